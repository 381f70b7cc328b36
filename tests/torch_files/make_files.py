"""Writes the .pt files of this folder; tests/torch_file_test.py has their values as formulas.

They were made with PyTorch 2.13.0: `python tests/torch_files/make_files.py`.
"""

import argparse
import collections
import pathlib

import torch

FOLDER = pathlib.Path(__file__).parent


def main():
    ramp = torch.arange(15, dtype=torch.float32) / 8
    rows = ramp.reshape(3, 5)
    contents = {
        'f32': rows,
        'f16': rows.half(),
        'bf16': rows.bfloat16(),
        'f64': rows.double(),
        'i64': torch.arange(-3, 3),
        'u8': torch.arange(250, 256).to(torch.uint8),
        'bool': torch.arange(6) % 3 == 0,
        'transposed': rows.t(),
        'sliced': rows[1:, 1::2],
        'expanded': rows[1:2].expand(4, 5),
        'empty': torch.zeros(5, 0),
        'scalar': torch.tensor(2.5, dtype=torch.bfloat16),
        'nested': collections.OrderedDict(a=rows, b=[rows[0], {'step': 3}]),
        'namespace': argparse.Namespace(lr=1e-4),
        'parameter': torch.nn.Parameter(rows),
    }
    for name, content in contents.items():
        torch.save(content, FOLDER / f'{name}.pt')
    torch.save(rows, FOLDER / 'legacy.pt', _use_new_zipfile_serialization=False)


if __name__ == '__main__':
    main()

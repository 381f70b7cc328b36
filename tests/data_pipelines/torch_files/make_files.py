"""Writes the files of this folder; tests/torch_file_test.py has their values as formulas.

They were made with PyTorch 2.13.0, nncore 0.4.2 and easydict 1.14:
`python tests/data_pipelines/torch_files/make_files.py`.
"""

import argparse
import collections
import pathlib

import easydict
import nncore
import numpy as np
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
    torch.save(checkpoint(), FOLDER / 'checkpoint.ckpt')
    torch.save(
        checkpoint(), FOLDER / 'checkpoint_legacy.ckpt', _use_new_zipfile_serialization=False
    )


def checkpoint():
    """What the public training codes save after a step, of a model of one layer."""
    model = torch.nn.Linear(5, 3)
    model.weight.data = torch.arange(15, dtype=torch.float32).reshape(3, 5) / 8
    model.bias.data = torch.arange(3).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.weight.sum().backward()
    optimizer.step()
    model.weight.data = torch.arange(15, dtype=torch.float32).reshape(3, 5) / 8
    options = argparse.Namespace(
        dset_name='hl',
        lr=1e-3,
        v_feat_dirs=['a/slowfast_features', 'a/clip_features'],
        a_feat_dir=None,
        device=torch.device('cuda:0'),
        results_dir=pathlib.PurePosixPath('a/b'),
        cfg=nncore.Config(dict(model=dict(strides=(1, 2), loss_cfg=dict(type='BundleLoss')))),
        easy=easydict.EasyDict(depth=dict(layers=2)),
        score=np.float64(0.5),
        scores=np.arange(3),
    )
    return dict(
        model=model.state_dict(),
        optimizer=optimizer.state_dict(),
        lr_scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 400).state_dict(),
        epoch=7,
        opt=options,
    )


if __name__ == '__main__':
    main()

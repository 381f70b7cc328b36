"""Writes the files of this folder: a small network of PyTorchVideo, and what it makes of two clips.

They were made with PyTorchVideo 0.1.5 and PyTorch 2.14.1:
`python tests/dualground_jax/encoders/slowfast_files/make_files.py`.
"""

import pathlib

import numpy as np
import torch
from pytorchvideo.models import slowfast

FOLDER = pathlib.Path(__file__).parent
ALPHA, FRAMES, SIZE = 4, 32, 48


def main():
    torch.manual_seed(17)
    side = -(-SIZE // 32)
    model = slowfast.create_slowfast(
        model_depth=18, stem_dim_outs=(2, 1), slowfast_channel_reduction_ratio=2,
        model_num_class=3, slowfast_fusion_conv_stride=(ALPHA, 1, 1),
        head_pool_kernel_sizes=((FRAMES // ALPHA, side, side), (FRAMES, side, side))).eval()
    with torch.no_grad():
        state = {name: _drawn(name, value) for name, value in model.state_dict().items()}
        model.load_state_dict(state)
        clips = torch.randint(0, 256, (2, 3, FRAMES, 1, 1), dtype=torch.uint8)
        # Pictures of few numbers: two ramps whose brightness changes over time.
        row = torch.arange(SIZE, dtype=torch.uint8) * 5
        clips = clips + row[:, None] + 3 * row
        fast = (clips.float() / 255 - 0.45) / 0.225
        slow = fast[:, :, torch.linspace(0, FRAMES - 1, FRAMES // ALPHA).long()]
        features = torch.nn.Sequential(*model.blocks[:-1])([slow, fast])
    torch.save({'model_state': {name: value.half() if value.is_floating_point() else value
                                for name, value in state.items()}}, FOLDER / 'pytorchvideo.pyth')
    np.savez_compressed(FOLDER / 'pytorchvideo.npz', features=features.flatten(1).numpy(),
                        clips=clips.permute(0, 2, 3, 4, 1).numpy())


def _drawn(name, value):
    """Random values that float16 holds; those of a BatchNorm too, so that no term can hide."""
    if not value.is_floating_point():
        return value
    if name.endswith('running_var') or (value.ndim == 1 and name.endswith('weight')):
        return (0.5 + torch.rand_like(value)).half().float()
    scale = value[0].numel() ** -0.5 if value.ndim > 1 else 0.5
    return (scale * torch.randn_like(value)).half().float()


if __name__ == '__main__':
    main()

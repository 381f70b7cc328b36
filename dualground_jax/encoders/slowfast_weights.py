"""Weights of SlowFast from the files of public codes, without PyTorch and Caffe2.

Three codes name the same layers: PySlowFast and PyTorchVideo, whose files `torch.save` wrote, and
Caffe2, whose arrays are pickled (PySlowFast's model zoo). A layer is a convolution without bias and
the BatchNorm behind it. With the statistics of the training that one is linear too: the two become
one convolution.
"""

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from data_pipelines import torch_file
from data_pipelines.errors import DataError
from dualground_jax.state_dict import listed

_EPSILON = 1e-5  # of all BatchNorms
_STAGES = (2, 3, 4, 5)  # of residual blocks; 1 is the stem


class Weights(NamedTuple):
    """What a file holds.

    Attributes:
        params: of `slowfast.SlowFast`, nested.
        sizes: fields of it that the arrays tell.
        alpha: another, which only a config in the file tells; None: there is none.
    """

    params: dict
    sizes: dict
    alpha: int | None


class _Code(NamedTuple):
    """What a public code calls a layer: its convolution and its BatchNorm.

    In the names `path` is 0 (slow) or 1 (fast), `t` the same for Caffe2; `index` is `stage` - 1;
    `conv` is a, b or c; `last` is for Caffe2 the layer of the fast path that the slow one is given.

    Attributes:
        stem: of a path.
        fuse: behind a stage, from the fast path to the slow one.
        block: a convolution of a residual block.
        shortcut: around a block.
        arrays: kernel; scale, offset, mean and variance of the BatchNorm.
    """

    stem: tuple[str, str]
    fuse: tuple[str, str]
    block: tuple[str, str]
    shortcut: tuple[str, str]
    arrays: tuple[str, ...] = '.weight', '.weight', '.bias', '.running_mean', '.running_var'

    def names(self, kind: str, path: int, stage: int, **fields: Any) -> list[str]:
        """The names of a layer's arrays."""
        fields |= dict(path=path, t='t_' * path, stage=stage, index=stage - 1)
        conv, norm = (name.format(**fields) for name in getattr(self, kind))
        return [conv + self.arrays[0], *(norm + name for name in self.arrays[1:])]


_SLOWFAST = 's{stage}.pathway{path}_'
_VIDEO = 'blocks.{index}.multipathway_'
_VIDEO_BLOCK = _VIDEO + 'blocks.{path}.res_blocks.{block}.'
_CAFFE2 = '{t}res{stage}_{block}_branch'
_CODES = dict(
    PySlowFast=_Code(
        stem=(_SLOWFAST + 'stem.conv', _SLOWFAST + 'stem.bn'),
        fuse=('s{stage}_fuse.conv_f2s', 's{stage}_fuse.bn'),
        block=(_SLOWFAST + 'res{block}.branch2.{conv}', _SLOWFAST + 'res{block}.branch2.{conv}_bn'),
        shortcut=(_SLOWFAST + 'res{block}.branch1', _SLOWFAST + 'res{block}.branch1_bn')),
    PyTorchVideo=_Code(
        stem=(_VIDEO + 'blocks.{path}.conv', _VIDEO + 'blocks.{path}.norm'),
        fuse=(_VIDEO + 'fusion.conv_fast_to_slow', _VIDEO + 'fusion.norm'),
        block=(_VIDEO_BLOCK + 'branch2.conv_{conv}', _VIDEO_BLOCK + 'branch2.norm_{conv}'),
        shortcut=(_VIDEO_BLOCK + 'branch1_conv', _VIDEO_BLOCK + 'branch1_norm')),
    Caffe2=_Code(
        stem=('{t}conv1', '{t}res_conv1_bn'),
        fuse=('{last}_subsample', '{last}_subsample_bn'),
        block=(_CAFFE2 + '2{conv}', _CAFFE2 + '2{conv}_bn'),
        shortcut=(_CAFFE2 + '1', _CAFFE2 + '1_bn'),
        arrays=('_w', '_s', '_b', '_rm', '_riv')),
)
# The classifier, and what training counts and keeps.
_UNUSED = re.compile(r'(head|blocks\.6\.proj)\..*|pred_[wb]|.*(num_batches_tracked|_momentum)|lr'
                     r'|model_iter')


def read(path: str | os.PathLike) -> Weights:
    """Reads a file of PySlowFast, PyTorchVideo or Caffe2.

    Raises:
        DataError: it can't be read, or holds other weights.
    """
    try:
        found = torch_file.read_weights(path)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    found = found if isinstance(found, Mapping) else {}
    state = found.get('model_state', found.get('blobs', found))
    arrays = {name: value for name, value in getattr(state, 'items', tuple)()
              if isinstance(name, str) and isinstance(value, np.ndarray)}
    code = next((code for code in _CODES.values() if code.names('stem', 0, 1)[0] in arrays), None)
    if code is None:
        raise DataError(f'{path}: holds {listed(arrays) or "no arrays by name"}; expected those '
                        f'of SlowFast as {", ".join(_CODES)} name them')
    blocks = tuple(_count_blocks(code, arrays, stage) for stage in _STAGES)
    flat, problems = {}, []
    for layer, names in _layers(code, blocks):
        if missing := [name for name in names if name not in arrays]:
            problems.append(f'{listed(missing)} missing')
            continue
        kernel, *norm = (arrays.pop(name) for name in names)
        if kernel.ndim != 5 or any(value.shape != kernel.shape[:1] for value in norm):
            problems.append(f'{names[0]} {kernel.shape} and {names[1]} {norm[0].shape} do not fit')
            continue
        flat[*layer, 'kernel'], flat[*layer, 'bias'] = joined = _join(kernel, *norm)
        if not all(np.isfinite(value).all() for value in joined):
            problems.append(f'{names[0]} or its BatchNorm is not finite')
    problems += [f'{name} is of another network' for name in sorted(arrays)
                 if not _UNUSED.fullmatch(name)]
    if problems:
        raise DataError(f'{path}: not the weights of SlowFast: {listed(problems, "; ")}')
    width, fast_width, fused = (flat[*layer, 'bias'].size for layer in (
        ('slow_1', 'conv'), ('fast_1', 'conv'), ('fuse_1',)))
    sizes = dict(width=width, beta=width // fast_width, fusion_ratio=fused // fast_width,
                 fusion_kernel=len(flat['fuse_1', 'kernel']), blocks=blocks)
    told = re.search(r'\bALPHA: *(\d+)', str(found.get('cfg')))
    return Weights(flax.traverse_util.unflatten_dict(flat), sizes, told and int(told[1]))


def _count_blocks(code: _Code, arrays: Mapping[str, Any], stage: int) -> int:
    first = lambda block: code.names('block', 0, stage, block=block, conv='a')[0]
    return next(block for block in itertools.count() if first(block) not in arrays)


def _layers(code: _Code, blocks: Sequence[int]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Each layer's place among our parameters, and the names of its arrays."""
    for stage, count in enumerate((0, *blocks), start=1):
        for path, name in enumerate(('slow', 'fast')):
            if stage == 1:
                yield (f'{name}_1', 'conv'), code.names('stem', path, stage)
            for block in range(count):
                place = dict(path=path, stage=stage, block=block)
                for conv in 'abc':
                    yield (f'{name}_{stage}_{block}', conv), code.names('block', conv=conv, **place)
                if block == 0:
                    yield (f'{name}_{stage}_0', 'shortcut'), code.names('shortcut', **place)
        if stage <= len(blocks):
            last = f't_res{stage}_{count - 1}_branch2c_bn' if count else 't_pool1'
            yield (f'fuse_{stage}',), code.names('fuse', 1, stage, last=last)


def _join(kernel: np.ndarray, scale: np.ndarray, offset: np.ndarray, mean: np.ndarray,
          variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The float32 kernel [T, H, W, in, out] and bias [out] of a convolution and its BatchNorm.

    Args:
        kernel: float[out, in, T, H, W].
        scale: float[out] of the BatchNorm, as the others.
        offset: added after it.
        mean: of the convolution's output in training.
        variance: of it.
    """
    with np.errstate(all='ignore'):
        factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + _EPSILON)
        joined = (kernel * factor[:, None, None, None, None]).transpose(2, 3, 4, 1, 0)
        return joined.astype(np.float32), (offset - mean * factor).astype(np.float32)

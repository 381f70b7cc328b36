"""Overlap of time windows and non-maximum suppression, the same code for numpy and JAX.

Functions take `xp`, numpy or jax.numpy, so that prediction files are treated without importing JAX
and the batched decode by the very same steps (`spans.nms`). Shapes are fixed: [..., K, 3] of start,
end and score; a score below 0 marks a row that is absent.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from data_pipelines.errors import UserError

Array = Any  # numpy.ndarray or jax.Array
KINDS = ('normal', 'linear', 'hard')
MAX_ROWS = 10  # of 'hard': rows read and rows kept, defaults of the DETRs' options


def overlap(a: Array, b: Array, xp: ModuleType = np) -> tuple[Array, Array, Array]:
    """Intersection, union and hull lengths of windows a and b [..., 2], broadcast."""
    inter = xp.maximum(xp.minimum(a[..., 1], b[..., 1]) - xp.maximum(a[..., 0], b[..., 0]), 0.0)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - inter
    hull = xp.maximum(a[..., 1], b[..., 1]) - xp.minimum(a[..., 0], b[..., 0])
    return inter, union, hull


def ratio(a: Array, b: Array, xp: ModuleType = np) -> Array:
    """a / b, and 0 (in JAX with a zero gradient) where b is 0."""
    safe = xp.where(b == 0, 1.0, b)
    return xp.where(b == 0, 0.0, a / safe)


def _loop(start, stop, step, value):
    """`jax.lax.fori_loop` for numpy."""
    for i in range(start, stop):
        value = step(i, value)
    return value


def nms(
    windows: Array, threshold: float, kind: str = 'normal', xp: ModuleType = np,
    loop: Callable = _loop,
) -> Array:
    """Suppresses windows that overlap a better one, as `kind` says.

    Args:
        windows: float[..., K, 3]; rows with a score below 0 are padding.
        threshold: IoU.
        kind: 'normal' or 'linear' (`suppress`), or 'hard' (`remove`).
        xp: numpy or jax.numpy.
        loop: with the signature of `jax.lax.fori_loop`.

    Returns:
        float[..., K', 3], best first; K' = K, for 'hard' at most `MAX_ROWS`.

    Raises:
        UserError: an unknown kind, listed with the known ones.
    """
    if kind not in KINDS:
        raise UserError(f'NMS of kind {kind!r}, known are: {", ".join(KINDS)}')
    return _NMS[kind](windows, threshold, xp=xp, loop=loop)


def suppress(
    windows: Array, threshold: float, linear: bool = False, xp: ModuleType = np,
    loop: Callable = _loop,
) -> Array:
    """Lowers the scores of windows that overlap a better one; all rows stay.

    As FlashVTG's evaluation (inference.py, post_processing_mr_nms): the best row left is swapped to
    the front, then later scores become 0 where IoU >= threshold, or if `linear`, whatever the
    threshold, are multiplied by 1 - IoU. Two windows of no length leave each other alone, where the
    reference gets NaN. Equal scores come in the order that the swaps leave; the reference's last
    sort leaves it open.

    Returns:
        float[..., K, 3], best first.
    """
    position = xp.arange(windows.shape[-2])

    def step(i, windows):
        score = xp.where(position >= i, windows[..., 2], -xp.inf)
        best = score.argmax(-1)[..., None]
        order = xp.where(position == i, best, xp.where(position == best, i, position))
        windows = xp.take_along_axis(windows, order[..., None], axis=-2)
        inter, union, _ = overlap(windows[..., i, :][..., None, :], windows, xp)
        iou = ratio(inter, union, xp)
        keep = 1 - iou if linear else xp.where((iou >= threshold) & (union != 0), 0.0, 1.0)
        score = windows[..., 2]
        score = xp.where((position > i) & (score > 0), score * keep, score)
        return xp.concatenate([windows[..., :2], score[..., None]], -1)

    return _best_first(loop(0, windows.shape[-2], step, windows), xp)


def remove(
    windows: Array, threshold: float, max_before: int = MAX_ROWS, max_after: int = MAX_ROWS,
    xp: ModuleType = np, loop: Callable = _loop,
) -> Array:
    """Removes windows that overlap a better one that stays: their score becomes -1.

    As the DETRs' evaluation (moment_detr, utils/temporal_nms.py): of the first max_before rows as
    listed, in stable order of score, those go whose overlap is strictly above the threshold, and
    all behind the first max_after that stay. The overlap's denominator is the hull of the two
    windows, which for windows that meet is their union.

    Returns:
        float[..., min(K, max_before), 3], best first.
    """
    windows = _best_first(windows[..., :max_before, :], xp)
    position = xp.arange(windows.shape[-2])

    def step(i, keep):
        inter, _, hull = overlap(windows[..., i, :][..., None, :], windows, xp)
        worse = (ratio(inter, hull, xp) > threshold) & (position > i)
        return keep & ~(keep[..., i][..., None] & worse)

    keep = loop(0, windows.shape[-2], step, windows[..., 2] >= 0)
    keep = keep & (keep.cumsum(-1) <= max_after)
    score = xp.where(keep, windows[..., 2], -1.0)
    return _best_first(xp.concatenate([windows[..., :2], score[..., None]], -1), xp)


def _best_first(windows, xp):
    order = xp.argsort(-windows[..., 2], axis=-1, stable=True)
    return xp.take_along_axis(windows, order[..., None], axis=-2)


_NMS = {
    'normal': suppress,
    'linear': functools.partial(suppress, linear=True),
    'hard': remove,
}

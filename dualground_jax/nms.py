"""Overlap of time windows and non-maximum suppression, the same code for numpy and JAX.

Functions take `xp`, numpy or jax.numpy, so that prediction files are treated without importing JAX
and the batched decode by the very same steps (`spans.nms`). Shapes are fixed: [..., K, 3] of start,
end and score; a score below 0 marks a row that is absent.
"""

import functools

import numpy as np

from data_pipelines.errors import UserError
from dualground_jax.metrics import rows

KINDS = ('normal', 'linear', 'hard')
MAX_ROWS = 10  # of 'hard': rows read and rows kept, defaults of the DETRs' options


def overlap(a, b, xp=np):
    """Intersection, union and hull lengths of windows a and b [..., 2], broadcast."""
    inter = xp.maximum(
        xp.minimum(a[..., 1], b[..., 1]) - xp.maximum(a[..., 0], b[..., 0]), 0.0
    )
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - inter
    hull = xp.maximum(a[..., 1], b[..., 1]) - xp.minimum(a[..., 0], b[..., 0])
    return inter, union, hull


def ratio(a, b, xp=np):
    """a / b, and 0 (in JAX with a zero gradient) where b is 0."""
    safe = xp.where(b == 0, 1.0, b)
    return xp.where(b == 0, 0.0, a / safe)


def _loop(start, stop, step, value):
    """`jax.lax.fori_loop` for numpy."""
    for i in range(start, stop):
        value = step(i, value)
    return value


def nms(windows, threshold, kind='normal', xp=np, loop=_loop):
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


def suppress(windows, threshold, linear=False, xp=np, loop=_loop):
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


def remove(windows, threshold, max_before=MAX_ROWS, max_after=MAX_ROWS, xp=np, loop=_loop):
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


def parse(text):
    """Reads 'KIND:THRESHOLD', such as 'normal:0.7', into (threshold, kind).

    Raises:
      UserError: another form, an unknown kind, listed with the known ones, or a threshold outside
        [0, 1].
    """
    kind, _, value = text.partition(':')
    try:
        threshold = float(value)
    except ValueError:
        threshold = -1.0
    if kind not in KINDS or not 0 <= threshold <= 1:
        raise UserError(f'--nms={text}: expected KIND:THRESHOLD with a kind of {", ".join(KINDS)} '
                        'and a threshold in [0, 1], such as normal:0.7')
    return threshold, kind


def nms_predictions(predictions, threshold, kind):
    """Applies `nms` to the windows of a list of predictions.

    Args:
      predictions: list of dicts with `qid` and `pred_relevant_windows`.

    Returns:
      New dicts. FlashVTG's kinds compute in float32 and the DETRs' in float64, as they do there.

    Raises:
      rows.MetricsError: a field that `metrics.evaluate` would not take either, or a negative score,
        which the references' suppression would raise to 0.
    """
    dtype = np.float64 if kind == 'hard' else np.float32
    found = []
    for start in range(0, len(predictions), 512):  # no list pads all others to its length
        part = predictions[start:start + 512]
        field, values = rows.predicted_windows(part)
        field.check(values[:, 2] >= 0, 'a score >= 0 for NMS')
        kept = nms(field.pad(values, -1.0).astype(dtype), threshold, kind)
        found += [row | dict(pred_relevant_windows=windows[windows[:, 2] >= 0].tolist())
                  for row, windows in zip(part, kept, strict=True)]
    return found

"""Moment retrieval scores of each query, as moment_detr's `standalone_eval/` defines them.

Vectorised over queries and thresholds. Axes: Q queries, P predicted windows, G ground-truth
windows, K IoU thresholds. Windows are [start, end] in seconds.
"""

import numpy as np

from dualground_jax.metrics.rows import Block, field, predicted_windows
from dualground_jax.nms import overlap

MAX_WINDOWS = 10  # what the official evaluation reads of a query's list
AP_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
R1_THRESHOLDS = tuple(percent / 100 for percent in range(30, 100, 5))
LENGTH_RANGES = {'short': (0, 10), 'middle': (10, 30), 'long': (30, 150), 'full': (-1, np.inf)}


def moment_retrieval(
    predictions: list[dict], annotations: list[dict], *, empty_iou: float = np.inf
) -> dict[str, Block]:
    """Scores each query's windows, against all its targets and against those of a length range.

    Args:
        predictions: list of Q dicts with `pred_relevant_windows`.
        annotations: their annotations in the same order, with `relevant_windows`.
        empty_iou: of two windows without length. 0/0 is NaN in the reference, where it sorts and
            compares as a match in mAP.

    Returns:
        {'short' | 'middle' | 'long' | 'full': Block} with 'MR-mIoU' float64[Q], 'MR-mAP'
        float64[Q, 10] and 'MR-R1' bool[Q, 14]. A query without a target in range has weight 0.

    Raises:
        MetricsError: a field that is missing or malformed.
    """
    predicted, windows = predicted_windows(predictions)
    annotated = field(annotations, 'annotations', 'relevant_windows')
    annotated.check_rows(annotated.counts > 0, 'at least one window')
    targets = annotated.numbers(2, 'two finite numbers [start, end]')
    annotated.check(targets[:, 0] <= targets[:, 1], 'start <= end')

    windows = predicted.pad(windows, 0.)[:, :MAX_WINDOWS]
    targets = annotated.pad(targets, 0.)
    has_window = np.arange(windows.shape[1]) < predicted.counts[:, None]
    has_target = np.arange(targets.shape[1]) < annotated.counts[:, None]
    iou = _pairwise_iou(windows[..., :2], targets, empty_iou)
    iou = np.where(has_window[:, :, None], iou, -1.)
    # The reference sorts by score after cutting to the first 10; the sort is stable.
    order = np.where(has_window, -windows[..., 2], np.inf).argsort(axis=1, kind='stable')
    ranked_iou = np.take_along_axis(iou, order[:, :, None], axis=1)

    length = targets[..., 1] - targets[..., 0]
    return {
        name: _block(windows[:, 0, :2], targets, iou[:, 0], ranked_iou,
                     has_target & (low < length) & (length <= high))
        for name, (low, high) in LENGTH_RANGES.items()
    }


def _block(first, targets, first_iou, ranked_iou, keep):
    """Returns the Block of one length range: targets in `keep`, queries that have one.

    Args:
        first: float64[Q, 2], first listed window of each query.
        targets: float64[Q, G, 2].
        first_iou: float64[Q, G], IoU of `first` with the targets; -1 where there is no window.
        ranked_iou: float64[Q, P, G], the same for all windows by falling score.
        keep: bool[Q, G], the targets that count.
    """
    rows = keep.any(axis=1)
    values = {'MR-mIoU': np.zeros(len(rows)), 'MR-mAP': np.zeros((len(rows), len(AP_THRESHOLDS))),
              'MR-R1': np.zeros((len(rows), len(R1_THRESHOLDS)), bool)}
    keep = keep[rows]
    hits = _greedy_hits(np.where(keep[:, None], ranked_iou[rows], -1.), np.array(AP_THRESHOLDS))
    best = _best_hull_iou(first[rows], targets[rows], np.where(keep, first_iou[rows], -1.))
    values['MR-mIoU'][rows] = best
    values['MR-mAP'][rows] = _average_precision(hits, keep.sum(axis=1))
    values['MR-R1'][rows] = best[:, None] >= R1_THRESHOLDS
    return Block(rows.astype(float), values)


def _pairwise_iou(windows, targets, empty_iou):
    """Returns the IoU float64[Q, P, G] of windows[Q, P, 2] with targets[Q, G, 2]."""
    inter, union, _ = overlap(windows[:, :, None], targets[:, None])
    return np.divide(inter, union, out=np.full_like(inter, empty_iou), where=union != 0)


def _best_hull_iou(first, targets, first_iou):
    """Returns float64[Q], the overlap of the first window with its best target, for R1 and mIoU.

    The reference chooses by IoU and then divides by the hull of both windows. That is the union
    where they overlap, but rounded differently, which can decide a threshold. A query without
    windows comes with the padding [0, 0], which overlaps nothing.
    """
    inter, _, hull = overlap(first, targets[np.arange(len(targets)), first_iou.argmax(axis=1)])
    return np.divide(inter, hull, out=np.zeros_like(inter), where=inter > 0)


def _greedy_hits(iou, thresholds):
    """Matches windows in rank order, each to its best target still free at that threshold.

    Takes iou float64[Q, P, G] (-1 where either is padding) and thresholds float64[K]; returns
    bool[Q, K, P], whether the window is a true positive.
    """
    queries, windows, targets = iou.shape
    # Of two equal IoUs the reference takes the target listed last, arg-max the first. Of three or
    # more it takes what an unstable sort leaves there: undefined, so ours stays with the last.
    iou = iou[:, :, ::-1]
    free = np.ones((queries, len(thresholds), targets), dtype=bool)
    hits = np.zeros((queries, len(thresholds), windows), dtype=bool)
    for rank in range(windows):
        candidates = np.where(free, iou[:, None, rank], -1.)
        best = candidates.argmax(axis=2)[:, :, None]
        hit = np.take_along_axis(candidates, best, axis=2) >= thresholds[:, None]
        hits[:, :, rank] = hit[:, :, 0]
        np.put_along_axis(free, best, np.take_along_axis(free, best, axis=2) & ~hit, axis=2)
    return hits


def _average_precision(hits, positives):
    """Returns AP float64[Q, K] of hits bool[Q, K, P] with positives int[Q] (>= 1) to be found.

    It is the area under the precision envelope over recall; padding at the end adds nothing.
    """
    true_positives = hits.cumsum(axis=2, dtype=np.float64)
    precision = true_positives / np.arange(1, hits.shape[2] + 1)
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
    gain = np.diff(true_positives / positives[:, None, None], axis=2, prepend=0.)
    # A running sum adds in rank order, as the reference does below 8 terms; `sum` pairs terms.
    return (gain * envelope).cumsum(axis=2)[:, :, -1]

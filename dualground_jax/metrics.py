"""Moment retrieval and highlight detection scores by the official QVHighlights protocol.

Follows moment_detr `standalone_eval/` in the form CG-DETR and FlashVTG extend it (mIoU, R1 from
0.3), vectorised over queries and thresholds; a data set without saliency (Charades-STA, TACoS)
gets the moment retrieval part. Axes: Q queries, P predicted windows, G ground-truth windows,
K IoU thresholds, C clips, A annotators. Windows are [start, end] in seconds.

What the official evaluator accepts, we accept with the same result:
- Fewer than 10 windows are scored as they are; of more, the first 10 as listed count. R1 and mIoU
  look at the first listed window, whatever the scores say.
- A window may leave the video: nothing is clipped. A zero-length prediction has IoU 0, except with
  a zero-length target, which it matches at every threshold of mAP (0/0 there; R1 and mIoU: miss).
- A saliency vector longer than the label is cut for mAP, a shorter one is filled with zeros. HIT@1
  takes the arg-max of the vector as it came, and misses if that clip lies past the label.
- A label has int(duration / 2) clips; where a clip id is listed twice, its last scores count.
- Only the fields that a task reads are needed: `query` and `vid` are not, `duration` is for
  highlights only. Extra fields are ignored.

Where it fails, we decide:
- An empty list of predicted windows is a miss: AP 0, R1 0, IoU 0, and the query counts.
- A length range that no target falls into is left out, its block and its brief keys (no NaN).
- An annotation with an empty `relevant_clip_ids` has an all-zero label: AP 0, HIT@1 0.
- Everything else that it dies of or silently misreads (start > end, NaN, duplicate qids, negative
  clip ids) raises `MetricsError`.
"""

import gzip
import json
import numbers
import reprlib
import sys
import zlib
from dataclasses import dataclass
from itertools import chain

import numpy as np

from dualground_jax.errors import UserError

MAX_WINDOWS = 10
CLIP_SECONDS = 2
ANNOTATORS = 3
AP_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
R1_THRESHOLDS = tuple(percent / 100 for percent in range(30, 100, 5))
BRIEF_AP = ('0.5', '0.75')
BRIEF_R1 = ('0.3', '0.5', '0.7')
LENGTH_RANGES = {'short': (0, 10), 'middle': (10, 30), 'long': (30, 150)}
MIN_SALIENCY = {'Fair': 2, 'Good': 3, 'VeryGood': 4}


class MetricsError(UserError):
    """Predictions, annotations or a jsonl file that cannot be scored; the message is one line."""


def load_jsonl(path):
    """Reads a list of dicts from a `.jsonl` or `.jsonl.gz` file, skipping blank lines.

    Raises:
        MetricsError: a line is not a JSON object, or the gzip stream is damaged.
    """
    opener = gzip.open if str(path).endswith('.gz') else open
    rows = []
    number = 0
    with opener(path, 'rb') as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    rows.append(_parse_line(line, path, number))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise MetricsError(
                f'{path}: damaged gzip stream after line {number} ({error}), '
                'expected a complete .gz file') from error
    return rows


def _parse_line(line, path, number):
    try:
        row = json.loads(line.strip())
    except ValueError as error:
        # The parser sees one line only: its own line number would mislead.
        reason = str(error).replace('line 1 column', 'column')
        raise MetricsError(
            f'{path}:{number}: malformed JSON ({reason}), expected one object per line') from error
    if not isinstance(row, dict):
        raise MetricsError(f'{path}:{number}: found {_short(row)}, expected a JSON object')
    return row


def evaluate(predictions, annotations):
    """Scores predictions against annotations by the official protocol (module docstring).

    Moment retrieval is scored where predictions hold `pred_relevant_windows`, highlights where
    predictions hold `pred_saliency_scores` and annotations `saliency_scores`. Means run over
    queries in the order of `predictions`, as in the reference: another order can change a sum's
    last bit, and with it the last printed digit of a value that lies on a rounding boundary.

    Args:
        predictions: list of dicts with `qid`, `pred_relevant_windows` ([start, end, score], best
            first) and/or `pred_saliency_scores` (one number per clip).
        annotations: list of dicts with the same qids in any order, `relevant_windows`
            ([start, end]), and for highlights `duration`, `relevant_clip_ids` and
            `saliency_scores` (three annotators' 0..4 for each relevant clip).

    Returns:
        dict with the keys and key order of the official `metrics.json`: `brief`, then
        `HL-min-*`, `full`, `long`, `middle`, `short`; percentages rounded to two decimals.

    Raises:
        MetricsError: qids that do not match, or a field that is missing or malformed.
    """
    annotations = _aligned(annotations, predictions)
    blocks, brief = {}, {}
    if _any_has(predictions, 'pred_relevant_windows'):
        moments = _moment_retrieval(predictions, annotations)
        blocks.update(moments)
        brief.update(_brief_moments(moments))
    if (_any_has(predictions, 'pred_saliency_scores')
            and _any_has(annotations, 'saliency_scores')):
        highlights = _highlights(predictions, annotations)
        blocks.update(highlights)
        for name, block in highlights.items():
            brief[f'{name}-mAP'] = block['HL-mAP']
            brief[f'{name}-Hit1'] = block['HL-Hit1']
    if not blocks:
        raise MetricsError(
            'nothing to score: no predictions with pred_relevant_windows, nor '
            'pred_saliency_scores together with annotated saliency_scores')
    return {'brief': brief, **{name: blocks[name] for name in sorted(blocks)}}


def format_table(metrics):
    """Returns the `brief` part of `metrics` as a text table, one metric per line."""
    brief = metrics['brief']
    width = max(len(name) for name in brief)
    return '\n'.join(f'{name:<{width}}  {value:6.2f}' for name, value in brief.items())


# ---------------------------------------------------------------------------- reading the rows


@dataclass(frozen=True)
class _Field:
    """One list-valued field of all rows: N entries laid end to end to check, padded to use."""

    rows: list
    source: str  # 'predictions' or 'annotations', for messages
    name: str
    counts: np.ndarray  # int[Q], entries per row, N in all

    def numbers(self, width, expected):
        """Returns float64[N, width], or float64[N] for width 0; raises on other content."""
        shape = (width,) if width else ()
        entries = list(chain.from_iterable(row[self.name] for row in self.rows))
        if not entries:
            return np.zeros((0, *shape))
        try:
            values = np.array(entries)
        except ValueError:  # entries of unequal length: the slow check names the culprit
            values = np.array(None)
        plain = values.dtype.kind in 'iuf' and values.shape[1:] == shape
        if not plain or not np.isfinite(values).all():
            self.check([_is_entry(entry, width) for entry in entries], expected)
            values = np.array(entries)
        return values.astype(np.float64)

    def check(self, good, expected):
        """Raises MetricsError for the first entry that is not in `good` (bool[N])."""
        bad = np.flatnonzero(np.logical_not(good))
        if bad.size:
            ends = np.cumsum(self.counts)
            row = int(np.searchsorted(ends, bad[0], side='right'))
            position = int(bad[0] - ends[row] + self.counts[row])
            found = self.rows[row][self.name][position]
            raise _error(self.source, self.rows[row], f'{self.name}[{position}]',
                         f'found {_short(found)}, expected {expected}')

    def check_rows(self, good, expected):
        """Raises MetricsError for the first row that is not in `good` (bool[Q])."""
        bad = np.flatnonzero(np.logical_not(good))
        if bad.size:
            row = self.rows[bad[0]]
            raise _error(self.source, row, self.name,
                         f'found {_short(row[self.name])}, expected {expected}')

    def pad(self, values, fill):
        """Returns values[N, ...] as [Q, max(counts) or 1, ...], `fill` behind each row's end."""
        longest = max(int(self.counts.max()), 1)
        padded = np.full((len(self.counts), longest, *values.shape[1:]), fill)
        padded[np.arange(longest) < self.counts[:, None]] = values
        return padded


def _field(rows, source, name):
    for row in rows:
        if name not in row:
            raise _error(source, row, name, 'missing, expected a list')
        if not isinstance(row[name], (list, tuple, np.ndarray)):
            raise _error(source, row, name, f'found {_short(row[name])}, expected a list')
    return _Field(rows, source, name, np.array([len(row[name]) for row in rows]))


def _is_number(value):
    # Compared, not converted: JSON also yields integers that no float can hold.
    return isinstance(value, numbers.Real) and bool(abs(value) <= sys.float_info.max)


def _is_entry(entry, width):
    if not width:
        return _is_number(entry)
    is_row = isinstance(entry, (list, tuple, np.ndarray))
    return is_row and len(entry) == width and all(_is_number(value) for value in entry)


def _any_has(rows, name):
    return any(name in row for row in rows)


def _short(value):
    return ' '.join(reprlib.repr(value).split())


def _error(source, row, field, problem):
    return MetricsError(f'{source} qid {_short(row["qid"])}: field {field}: {problem}')


def _by_qid(rows, source):
    table = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise MetricsError(
                f'{source} row {number}: found {_short(row)}, expected a dict with a qid')
        qid = row.get('qid')
        if not isinstance(qid, (str, numbers.Real)):
            raise MetricsError(
                f'{source} row {number}: field qid: found {_short(qid)}, '
                'expected a number or a string')
        if qid in table:
            raise MetricsError(
                f'{source} qid {_short(qid)}: field qid: duplicate in row {number}, '
                'expected once')
        table[qid] = row
    return table


def _aligned(annotations, predictions):
    """Returns the annotations in the order of the predictions, after checking the qids."""
    predicted = _by_qid(predictions, 'predictions')
    annotated = _by_qid(annotations, 'annotations')
    for what, have, want in (('missing', predicted, annotated), ('extra', annotated, predicted)):
        odd = [qid for qid in want if qid not in have]
        if odd:
            more = f' (and {len(odd) - 1} more)' if len(odd) > 1 else ''
            raise MetricsError(
                f'predictions qid {_short(odd[0])}{more}: field qid: {what}, '
                f'expected the {len(annotated)} qids of the annotations')
    if not predicted:
        raise MetricsError('predictions and annotations: found no rows, expected at least one')
    return [annotated[qid] for qid in predicted]


# ---------------------------------------------------------------------------- moment retrieval


def _moment_retrieval(predictions, annotations):
    """Returns {'full' | 'short' | 'middle' | 'long': block}, ranges without a query left out."""
    predicted = _field(predictions, 'predictions', 'pred_relevant_windows')
    windows = predicted.numbers(3, 'three finite numbers [start, end, score]')
    predicted.check(windows[:, 0] <= windows[:, 1], 'start <= end')
    annotated = _field(annotations, 'annotations', 'relevant_windows')
    annotated.check_rows(annotated.counts > 0, 'at least one window')
    targets = annotated.numbers(2, 'two finite numbers [start, end]')
    annotated.check(targets[:, 0] <= targets[:, 1], 'start <= end')

    windows = predicted.pad(windows, 0.)[:, :MAX_WINDOWS]
    targets = annotated.pad(targets, 0.)
    has_window = np.arange(windows.shape[1]) < predicted.counts[:, None]
    has_target = np.arange(targets.shape[1]) < annotated.counts[:, None]
    iou = np.where(has_window[:, :, None], _pairwise_iou(windows[..., :2], targets), -1.)
    # The reference sorts by score after cutting to the first 10; the sort is stable.
    order = np.where(has_window, -windows[..., 2], np.inf).argsort(axis=1, kind='stable')
    ranked_iou = np.take_along_axis(iou, order[:, :, None], axis=1)

    length = targets[..., 1] - targets[..., 0]
    keeps = {'full': has_target}
    for name, (low, high) in LENGTH_RANGES.items():
        keeps[name] = has_target & (low < length) & (length <= high)
    return {name: _moment_block(windows[:, 0, :2], targets, iou[:, 0], ranked_iou, keep)
            for name, keep in keeps.items() if keep.any()}


def _brief_moments(blocks):
    full = blocks['full']
    brief = {f'MR-full-R1@{threshold}': full['MR-R1'][threshold] for threshold in BRIEF_R1}
    brief.update({f'MR-full-mAP@{threshold}': full['MR-mAP'][threshold] for threshold in BRIEF_AP})
    brief['MR-full-mIoU'] = full['MR-mIoU']
    brief.update({f'MR-{name}-mAP': block['MR-mAP']['average'] for name, block in blocks.items()})
    return dict(sorted(brief.items()))


def _moment_block(first, targets, first_iou, ranked_iou, keep):
    """Returns the official block of one length range: targets in `keep`, queries that have one.

    Args:
        first: float64[Q, 2], first listed window of each query.
        targets: float64[Q, G, 2].
        first_iou: float64[Q, G], IoU of `first` with the targets; -1 where there is no window.
        ranked_iou: float64[Q, P, G], the same for all windows by falling score.
        keep: bool[Q, G], the targets that count.
    """
    rows = keep.any(axis=1)
    keep = keep[rows]
    hits = _greedy_hits(np.where(keep[:, None], ranked_iou[rows], -1.), np.array(AP_THRESHOLDS))
    per_threshold = _average_precision(hits, keep.sum(axis=1)).mean(axis=0)
    best = _best_hull_iou(first[rows], targets[rows], np.where(keep, first_iou[rows], -1.))
    mean_ap = {str(threshold): _percent(ap)
               for threshold, ap in zip(AP_THRESHOLDS, per_threshold, strict=True)}
    mean_ap['average'] = _percent(per_threshold.mean())
    recall = {str(threshold): _percent((best >= threshold).mean()) for threshold in R1_THRESHOLDS}
    return {'MR-mIoU': _percent(best.mean()), 'MR-mAP': mean_ap, 'MR-R1': recall}


def _pairwise_iou(windows, targets):
    """Returns the IoU float64[Q, P, G] of windows[Q, P, 2] with targets[Q, G, 2]."""
    windows, targets = windows[:, :, None], targets[:, None]
    left = np.maximum(windows[..., 0], targets[..., 0])
    right = np.minimum(windows[..., 1], targets[..., 1])
    inter = np.maximum(right - left, 0.)
    lengths = (windows[..., 1] - windows[..., 0]) + (targets[..., 1] - targets[..., 0])
    union = lengths - inter
    # Two zero-length windows: 0/0 is NaN in the reference, where it sorts and compares as a match.
    return np.divide(inter, union, out=np.full_like(inter, np.inf), where=union != 0)


def _best_hull_iou(first, targets, first_iou):
    """Returns float64[Q], the overlap of the first window with its best target, for R1 and mIoU.

    The reference chooses by IoU and then divides by the hull of both windows. That is the union
    where they overlap, but rounded differently, which can decide a threshold. A query without
    windows comes with the padding [0, 0], which overlaps nothing.
    """
    target = targets[np.arange(len(targets)), first_iou.argmax(axis=1)]
    inter = np.minimum(first[:, 1], target[:, 1]) - np.maximum(first[:, 0], target[:, 0])
    hull = np.maximum(first[:, 1], target[:, 1]) - np.minimum(first[:, 0], target[:, 0])
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
    envelope = _running_max_from_end(precision)
    gain = np.diff(true_positives / positives[:, None, None], axis=2, prepend=0.)
    # A running sum adds in rank order, as the reference does below 8 terms; `sum` pairs terms.
    return (gain * envelope).cumsum(axis=2)[:, :, -1]


# ------------------------------------------------------------------------- highlight detection


def _highlights(predictions, annotations):
    """Returns {'HL-min-Fair' | 'HL-min-Good' | 'HL-min-VeryGood': block}."""
    predicted = _field(predictions, 'predictions', 'pred_saliency_scores')
    predicted.check_rows(predicted.counts > 0, 'at least one score')
    scores = predicted.numbers(0, 'a finite number')
    labels, clips = _saliency_labels(annotations)

    queries = np.arange(len(clips))
    top = predicted.pad(scores, -np.inf).argmax(axis=1)
    in_label = top < clips
    top_labels = np.where(in_label[:, None], labels[queries, np.where(in_label, top, 0)], 0.)

    order, last_of_tie = _rank_clips(predicted.pad(scores, 0.), clips, labels.shape[1])
    ranked_labels = np.take_along_axis(labels, order[:, :, None], axis=1).transpose(0, 2, 1)
    blocks = {}
    for name, minimum in MIN_SALIENCY.items():
        ap = _clip_average_precision(ranked_labels >= minimum, last_of_tie[:, None])
        hit = (top_labels >= minimum).any(axis=1)
        blocks[f'HL-min-{name}'] = {'HL-mAP': _percent(ap.mean()), 'HL-Hit1': _percent(hit.mean())}
    return blocks


def _saliency_labels(annotations):
    """Returns labels float64[Q, C, A], zero off the relevant clips, and clips per query int[Q]."""
    for row in annotations:
        duration = row.get('duration')
        if not _is_number(duration) or duration < CLIP_SECONDS:
            raise _error('annotations', row, 'duration', f'found {_short(duration)}, '
                         f'expected a number of seconds >= {CLIP_SECONDS}')
    clips = np.array([int(row['duration'] / CLIP_SECONDS) for row in annotations])
    relevant = _field(annotations, 'annotations', 'relevant_clip_ids')
    ids = relevant.numbers(0, 'an integer')
    relevant.check((ids % 1 == 0) & (ids >= 0) & (ids < np.repeat(clips, relevant.counts)),
                   f'a clip id in [0, duration / {CLIP_SECONDS})')
    annotated = _field(annotations, 'annotations', 'saliency_scores')
    annotated.check_rows(annotated.counts == relevant.counts, 'one entry per relevant_clip_ids')
    scores = annotated.numbers(ANNOTATORS, f'{ANNOTATORS} finite numbers, one per annotator')

    labels = np.zeros((len(clips), clips.max(), ANNOTATORS))
    labels[np.repeat(np.arange(len(clips)), relevant.counts), ids.astype(int)] = scores
    return labels, clips


def _rank_clips(scores, clips, width):
    """Orders each query's clips by falling score, clips past its label (clips int[Q]) last.

    Cuts or zero-fills scores float64[Q, S] to the longest label, C = `width`. Returns order
    int[Q, C] and last_of_tie bool[Q, C]: whether the next clip's score is lower.
    """
    fitted = np.zeros((len(scores), width))
    fitted[:, :scores.shape[1]] = scores[:, :width]
    keys = np.where(np.arange(width) < clips[:, None], -fitted, np.inf)
    order = keys.argsort(axis=1)
    ranked = np.take_along_axis(keys, order, axis=1)
    last_of_tie = np.ones(ranked.shape, dtype=bool)
    last_of_tie[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
    return order, last_of_tie


def _clip_average_precision(positive, last_of_tie):
    """Returns AP float64[Q, A] of ranked binary labels: mean precision where recall grows.

    Clips of equal score are one point of the curve, so the mean is over points that gain recall
    and not over positives. The reference finds those points by differences of float32 recall;
    counts say the same without rounding. All-zero labels give 0, all-one labels 1.
    Takes positive bool[Q, A, C] by falling score (padding at the end is False and changes
    nothing) and last_of_tie bool[Q, 1, C], where the points of the curve lie.
    """
    true_positives = positive.cumsum(axis=2, dtype=np.float64)
    at_point = np.where(last_of_tie, true_positives, 0.)
    envelope = _running_max_from_end(at_point / np.arange(1, positive.shape[2] + 1))
    gains = np.diff(np.maximum.accumulate(at_point, axis=2), axis=2, prepend=0.) > 0
    return np.where(gains, envelope, 0.).sum(axis=2) / np.maximum(gains.sum(axis=2), 1)


def _running_max_from_end(values):
    return np.maximum.accumulate(values[..., ::-1], axis=-1)[..., ::-1]


def _percent(value):
    # Through text, as the reference rounds: `round` differs on some halves.
    return float(f'{100 * value:.2f}')

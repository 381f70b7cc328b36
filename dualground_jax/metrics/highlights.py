"""Highlight detection scores of each query: QVHighlights, own data, TVSum, YouTube Highlights.

Vectorised over queries. Axes: Q queries, C clips, A annotators.
"""

import functools

import numpy as np

from data_pipelines.files import short
from data_pipelines.saliency import SCORES, graded_clips
from dualground_jax.metrics import rows
from dualground_jax.metrics.rows import Block, error_of, field, is_number, predicted_saliency

CLIP_SECONDS = 2
ANNOTATORS = 3
MIN_SALIENCY = {'Fair': 2, 'Good': 3, 'VeryGood': 4}


def qvhighlights(
    predictions: list[dict], annotations: list[dict], clip_length: float | None = None
) -> dict[str, Block]:
    """Scores clips by QVHighlights' protocol (moment_detr, `standalone_eval/`).

    Args:
        predictions: list of Q dicts with `pred_saliency_scores`.
        annotations: their annotations in the same order, with `duration`, `relevant_clip_ids` and
            `saliency_scores`.
        clip_length: seconds of the predictions' clips, if known: the protocol has 2.

    Returns:
        {'HL-min-Fair' | 'HL-min-Good' | 'HL-min-VeryGood': Block} with 'HL-mAP' float64[Q, 3] of
        each annotator and 'HL-Hit1' bool[Q].

    Raises:
        MetricsError: a field that is missing or malformed; clips of another length.
    """
    if clip_length not in (None, CLIP_SECONDS):
        raise rows.MetricsError(
            f'clips of {clip_length} s (data.clip_length, --clip_length), expected '
            f'{CLIP_SECONDS} s, as annotators of QVHighlights graded them')
    return rows.in_parts(_qvhighlights, predictions, annotations)


def _qvhighlights(predictions, annotations):
    predicted, scores = predicted_saliency(predictions)
    for row in annotations:
        _check_duration(row, CLIP_SECONDS)
    clips = np.array([int(row['duration'] / CLIP_SECONDS) for row in annotations])
    labels = _saliency_labels(annotations, clips, ANNOTATORS, f'[0, duration / {CLIP_SECONDS})')
    top = predicted.pad(scores, -np.inf).argmax(axis=1)
    return _graded_blocks(_fitted(predicted.pad(scores, 0.), labels.shape[1], 0.), top, labels,
                          clips)


def own_data(
    predictions: list[dict], annotations: list[dict], clip_length: float | None = None
) -> dict[str, Block]:
    """Scores clips as `qvhighlights`, of any length, for any number of annotators.

    Where QVHighlights' protocol takes clips without a score as scored 0, they rank last here, and a
    best score behind the last clip is not looked at. The last clip may be a part of one.

    Args:
        predictions: as for `qvhighlights`.
        annotations: likewise, with grades of as many annotators as the first graded clip; those
            without `saliency_scores`, or with an empty list, do not count.
        clip_length: seconds.

    Raises:
        MetricsError: a field that is missing or malformed; no clip_length.
    """
    grades = [row['saliency_scores'] for row in annotations if _is_graded(row)]
    if not grades:
        return {}
    if clip_length is None:
        raise rows.MetricsError(
            'highlights of own data need the seconds of a clip: --clip_length=... or --config=...')
    first = next((entry for entries in grades if isinstance(entries, list) for entry in entries), 0)
    per_query = functools.partial(
        _own_data, clip_length=clip_length, annotators=max(1, np.size(first)))
    return rows.in_parts(per_query, predictions, annotations)


def _is_graded(row):
    return rows.has(row, 'saliency_scores') and row['saliency_scores'] != []


def _own_data(predictions, annotations, clip_length, annotators):
    graded = np.array(list(map(_is_graded, annotations)))
    places = np.flatnonzero(graded)
    blocks = {f'HL-min-{name}': Block(graded.astype(float), {
        'HL-mAP': np.zeros((len(graded), annotators)), 'HL-Hit1': np.zeros(len(graded), bool)})
        for name in MIN_SALIENCY}
    if not places.size:
        return blocks
    predicted, scores = predicted_saliency([predictions[i] for i in places])
    annotations = [annotations[i] for i in places]
    for row in annotations:
        _check_duration(row, 0)
    clips = np.array([graded_clips(row['duration'], clip_length) for row in annotations])
    labels = _saliency_labels(annotations, clips, annotators,
                              f'[0, duration / {clip_length}), the clip length in seconds')
    lowest = -np.finfo(float).max
    fitted = _fitted(predicted.pad(scores, lowest), labels.shape[1], lowest)
    top = np.where(_within(clips, labels.shape[1]), fitted, -np.inf).argmax(axis=1)
    for name, block in _graded_blocks(fitted, top, labels, clips).items():
        for metric, values in block.values.items():
            blocks[name].values[metric][places] = values
    return blocks


def _graded_blocks(scores, top, labels, clips):
    """Scores clips against annotators' labels.

    Args:
        scores: float64[Q, C].
        top: int[Q], the clip that is scored best, maybe one behind the labels.
        labels: float64[Q, C, A].
        clips: int[Q], clips of each query.
    """
    queries = np.arange(len(clips))
    in_label = top < clips
    top_labels = np.where(in_label[:, None], labels[queries, np.where(in_label, top, 0)], 0.)

    order, last_of_tie = _rank_clips(scores, clips)
    ranked_labels = np.take_along_axis(labels.transpose(0, 2, 1), order[:, None], axis=2)
    blocks = {}
    for name, minimum in MIN_SALIENCY.items():
        ap = _clip_average_precision(ranked_labels >= minimum, last_of_tie[:, None])
        hit = (top_labels >= minimum).any(axis=1)
        blocks[f'HL-min-{name}'] = Block(np.ones(len(clips)), {'HL-mAP': ap, 'HL-Hit1': hit})
    return blocks


def _check_duration(row, least):
    duration = row.get('duration')
    if not is_number(duration) or duration < least or duration <= 0:
        raise error_of('annotations', row, 'duration', f'found {short(duration)}, '
                       f'expected a number of seconds {f">= {least}" if least else "> 0"}')


def _saliency_labels(annotations, clips, annotators, expected):
    """Returns labels float64[Q, C, A], zero off the relevant clips, for clips int[Q]."""
    relevant = field(annotations, 'annotations', 'relevant_clip_ids')
    ids = relevant.numbers(0, 'an integer')
    relevant.check((ids % 1 == 0) & (ids >= 0) & (ids < np.repeat(clips, relevant.counts)),
                   f'a clip id in {expected}')
    annotated = field(annotations, 'annotations', 'saliency_scores')
    annotated.check_rows(annotated.counts == relevant.counts, 'one entry per relevant_clip_ids')
    scores = annotated.numbers(annotators, f'{annotators} finite numbers, one per annotator')
    low, high = SCORES
    annotated.check(((low <= scores) & (scores <= high)).all(axis=1),
                    f'{annotators} numbers from {low} to {high}')

    labels = np.zeros((len(clips), clips.max(), annotators))
    labels[np.repeat(np.arange(len(clips)), relevant.counts), ids.astype(int)] = scores
    return labels


def _fitted(scores, width, fill):
    """Cuts or fills scores float64[Q, S] to float64[Q, width]."""
    fitted = np.full((len(scores), width), fill)
    fitted[:, :scores.shape[1]] = scores[:, :width]
    return fitted


def _rank_clips(scores, clips):
    """Orders each query's clips by falling score, clips past its label (clips int[Q]) last.

    Takes scores float64[Q, C]. Returns order int[Q, C] and last_of_tie bool[Q, C]: whether the next
    clip's score is lower.
    """
    keys = np.where(_within(clips, scores.shape[1]), -scores, np.inf)
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


def tvsum(predictions: list[dict], annotations: list[dict]) -> dict[str, Block]:
    """Scores clips by the top-5 mAP of TVSum: `_video_domains` with 20 annotators.

    A clip is positive for an annotator who gave it more than the lower median of their labels.
    """
    labels, clips = _video_labels(annotations, 20)
    ordered = np.sort(np.where(_within(clips, labels.shape[1])[..., None], labels, np.inf), axis=1)
    median = ordered[np.arange(len(clips)), (clips - 1) // 2]
    return _video_domains(predictions, annotations, labels > median[:, None], clips, depth=5)


def youtube_highlights(predictions: list[dict], annotations: list[dict]) -> dict[str, Block]:
    """Scores clips by the mAP of YouTube Highlights: `_video_domains`, labels 0 or 1."""
    labels, clips = _video_labels(annotations, 1)
    field(annotations, 'annotations', 'label').check(
        np.isin(labels, (0, 1)).all(axis=2)[_within(clips, labels.shape[1])], '[0] or [1]')
    return _video_domains(predictions, annotations, labels == 1, clips, depth=None)


def _video_labels(annotations, annotators):
    """Returns labels float64[Q, C, A], zero behind a video's end, and clips per video int[Q]."""
    labelled = field(annotations, 'annotations', 'label')
    labelled.check_rows(labelled.counts > 0, 'at least one clip')
    entries = labelled.numbers(annotators, f'{annotators} finite numbers, one per annotator')
    return labelled.pad(entries, 0.), labelled.counts


def _within(counts, width):
    return np.arange(width) < counts[:, None]


def _video_domains(predictions, annotations, positive, clips, depth):
    """Scores clips as FlashVTG and CG-DETR do for data sets of domains (compute_hl_results).

    Of a video's clips by falling score, the first `depth` (None: all) count. With recall among
    these, AP is the area under the precision-recall curve, drawn with straight lines from recall 0
    and precision 1; without a positive it is 0. Scores beyond the labels are cut; labels beyond the
    scores are not ranked. Equal scores keep the order of the clips (the reference leaves it open).

    Args:
        predictions: list of Q dicts with `pred_saliency_scores`.
        annotations: list of Q dicts with `domain`.
        positive: bool[Q, C, A].
        clips: int[Q], clips of each video.
        depth: how many clips count.

    Returns:
        {domain: Block} with 'mAP' float64[Q, A], and 'full', where the weights make the mean of
        all videos the mean of the domains' means.
    """
    predicted, scores = predicted_saliency(predictions)
    for row in annotations:
        if not isinstance(row.get('domain'), str):
            raise error_of('annotations', row, 'domain',
                           f'found {short(row.get("domain"))}, expected a name')
    width = positive.shape[1]
    fitted = np.full((len(clips), width), -np.inf)
    padded = predicted.pad(scores, -np.inf)[:, :width]
    fitted[:, :padded.shape[1]] = padded
    ranked = np.minimum(predicted.counts, clips)
    keys = np.where(_within(ranked, width), -fitted, np.inf)
    order = keys.argsort(axis=1, kind='stable')[:, :depth]
    hit = np.take_along_axis(positive, order[..., None], axis=1)
    hits = (hit & _within(ranked, hit.shape[1])[..., None]).cumsum(axis=1, dtype=float)
    recall = hits / np.maximum(hits[:, -1:], 1)
    precision = hits / np.arange(1, hits.shape[1] + 1)[:, None]
    before = np.concatenate([np.ones_like(precision[:, :1]), precision[:, :-1]], axis=1)
    gain = np.diff(recall, axis=1, prepend=0.)
    # A running sum adds in rank order, as the reference does.
    ap = (gain * (before + precision) / 2).cumsum(axis=1)[:, -1]

    names, index, counts = np.unique(
        [row['domain'] for row in annotations], return_inverse=True, return_counts=True)
    weights = {'full': len(index) / (len(names) * counts[index])}
    weights |= {str(name): (index == i).astype(float) for i, name in enumerate(names)}
    return {name: Block(weight, {'mAP': ap}) for name, weight in weights.items()}

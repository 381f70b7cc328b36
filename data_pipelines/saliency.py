"""Targets of highlight detection: each clip's label, and pairs of clips to rank.

A mode says how they are made from a record: 'annotators' from the annotators' scores, 'window' from
the first true window.
"""

import numpy as np


def clip_labels(record, n_clips: int, mode: str) -> np.ndarray:
    """Returns the clips' labels float32[n_clips], all 0 where the record has none.

    Args:
        record: the query, a `datasets.Record`.
        n_clips: number of clips that the video's features have.
        mode: 'annotators': the annotators' sum at relevant clips, 0 elsewhere (clips beyond n_clips
            are ignored). 'window': 1 from the first to the last clip of the first window.
    """
    labels, _ = MODES[mode]
    return labels(record, n_clips)


def relevant_clips(record, n_clips: int, mode: str) -> np.ndarray:
    """Returns which clips are annotated as relevant, whatever their scores: bool[n_clips].

    Args: as for `clip_labels`; in mode 'window' the clips of the first window.
    """
    if mode == 'window':
        return _window_labels(record, n_clips) > 0
    relevant = np.zeros(n_clips, bool)
    relevant[record.clip_ids[record.clip_ids < n_clips]] = True
    return relevant


def sample_pairs(record, n_clips: int, mode: str,
                 rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws two pairs of clips of which the first should score higher, as the references do.

    Args:
        record: the query.
        n_clips: number of clips that the video's features have.
        mode: 'annotators': a relevant clip of the highest sum over one of the lowest, and any
            relevant clip over any other (the first pair again if there is no other). 'window': two
            clips of the first window over two outside (over themselves if there are no two).
        rng: source of the draws.

    Returns:
        pos: int32[2], neg: int32[2]; all 0 if the record has no labels, which the losses mask.
    """
    _, pairs = MODES[mode]
    pos, neg = pairs(record, n_clips, rng)
    return np.array(pos, np.int32), np.array(neg, np.int32)


_Pairs = tuple[tuple[int, int], tuple[int, int]]


def _annotator_labels(record, n_clips: int) -> np.ndarray:
    labels = np.zeros(n_clips, np.float32)
    if record.clip_scores is not None:
        inside = record.clip_ids < n_clips
        labels[record.clip_ids[inside]] = record.clip_scores[inside].sum(axis=1)
    return labels


def _annotator_pairs(record, n_clips: int, rng: np.random.Generator) -> _Pairs:
    if record.clip_scores is None or not len(record.clip_ids):
        return (0, 0), (0, 0)
    # Features can have fewer clips than the annotation: the last one stands for those beyond.
    clips = np.minimum(record.clip_ids, n_clips - 1)
    order = record.clip_scores.sum(axis=1).argsort(kind='stable')
    highest, lowest = clips[order[-1]], clips[order[0]]
    is_other = np.ones(n_clips, bool)
    is_other[clips] = False
    others = np.flatnonzero(is_other)
    if not len(others):
        return (highest, highest), (lowest, lowest)
    return ((highest, clips[rng.integers(len(clips))]),
            (lowest, others[rng.integers(len(others))]))


def _window_span(record, n_clips: int) -> tuple[int, int]:
    """Returns the first window's first and last clip; all clips are taken as equally long."""
    clip_length = record.duration / n_clips
    start, end = record.windows[0]
    last = max(0, min(int(end / clip_length), n_clips) - 1)
    return min(int(start / clip_length), last), last


def _window_labels(record, n_clips: int) -> np.ndarray:
    labels = np.zeros(n_clips, np.float32)
    if len(record.windows):
        first, last = _window_span(record, n_clips)
        labels[first:last + 1] = 1
    return labels


def _window_pairs(record, n_clips: int, rng: np.random.Generator) -> _Pairs:
    if not len(record.windows):
        return (0, 0), (0, 0)
    first, last = _window_span(record, n_clips)
    n_inside = last - first + 1
    i, j = _draw_two(rng, n_inside) if n_inside > 1 else (0, 0)
    pos = first + i, first + j
    if n_clips - n_inside < 2:
        return pos, pos
    # Numbers below `first` are clips before the window, the others clips after it.
    i, j = _draw_two(rng, n_clips - n_inside)
    return pos, (i + n_inside * (i >= first), j + n_inside * (j >= first))


def _draw_two(rng: np.random.Generator, n: int) -> tuple[int, int]:
    """Draws two different numbers below n, several times faster than `rng.choice`."""
    i, j = rng.integers(n), rng.integers(n - 1)
    return i, j + (j >= i)


MODES = {
    'annotators': (_annotator_labels, _annotator_pairs),
    'window': (_window_labels, _window_pairs),
}

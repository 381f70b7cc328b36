"""Targets of highlight detection: each clip's label, and pairs of clips to rank.

A mode says how they are made from a record: 'annotators' from the annotators' scores, 'window' from
the first true window, 'windows' from all of them.
"""

import functools
from collections.abc import Callable

import numpy as np


def clip_labels(record, n_clips: int, mode: str) -> np.ndarray:
    """Returns the clips' labels float32[n_clips], all 0 where the record has none.

    Args:
        record: the query, a `datasets.Record`.
        n_clips: number of clips that the video's features have.
        mode: 'annotators': the annotators' sum at relevant clips, 0 elsewhere (clips beyond n_clips
            are ignored). 'window': 1 from the first to the last clip of the first window.
            'windows': so for each window.
    """
    labels, _ = MODES[mode]
    return labels(record, n_clips)


def relevant_clips(record, n_clips: int, mode: str) -> np.ndarray:
    """Returns which clips are annotated as relevant, whatever their scores: bool[n_clips].

    Args: as for `clip_labels`; without annotators, the clips that are labelled 1.
    """
    if mode != 'annotators':
        return clip_labels(record, n_clips, mode) > 0
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
            'windows': two clips of any window over two outside all of them, likewise.
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


def _window_labels(record, n_clips: int, windows: slice) -> np.ndarray:
    """Labels the clips of some windows; all clips are taken as equally long."""
    labels = np.zeros(n_clips, np.float32)
    clip_length = record.duration / n_clips
    for start, end in record.windows[windows]:
        last = max(0, min(int(end / clip_length), n_clips) - 1)
        labels[min(int(start / clip_length), last):last + 1] = 1
    return labels


def _window_pairs(record, n_clips: int, rng: np.random.Generator, windows: slice) -> _Pairs:
    labels = _window_labels(record, n_clips, windows)
    inside, outside = np.flatnonzero(labels), np.flatnonzero(labels == 0)
    if not len(inside):
        return (0, 0), (0, 0)
    i, j = _draw_two(rng, len(inside)) if len(inside) > 1 else (0, 0)
    pos = inside[i], inside[j]
    if len(outside) < 2:
        return pos, pos
    i, j = _draw_two(rng, len(outside))
    return pos, (outside[i], outside[j])


def _draw_two(rng: np.random.Generator, n: int) -> tuple[int, int]:
    """Draws two different numbers below n, several times faster than `rng.choice`."""
    i, j = rng.integers(n), rng.integers(n - 1)
    return i, j + (j >= i)


def _windows(which: slice) -> tuple[Callable, Callable]:
    return tuple(functools.partial(function, windows=which)
                 for function in (_window_labels, _window_pairs))


MODES = {
    'annotators': (_annotator_labels, _annotator_pairs),
    'window': _windows(slice(1)),
    'windows': _windows(slice(None)),
}

"""Targets of highlight detection: each clip's label, and pairs of clips to rank.

A mode says how they are made from a record: 'annotators' from the annotators' scores of relevant
clips, 'window' from the first true window, 'windows' from all of them, 'grades' and 'binary' from
the label of every clip.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

HIGHEST = 12  # three annotators' 4; other grades are scaled to it


def clip_labels(record, n_clips: int, mode: str) -> np.ndarray:
    """Returns the clips' labels float32[n_clips], all 0 where the record has none.

    Args:
        record: the query, a `datasets.Record`.
        n_clips: number of clips that the video's features have.
        mode: 'annotators': the annotators' sum at relevant clips, 0 elsewhere (clips beyond n_clips
            are ignored). 'window': 1 from the first to the last clip of the first window.
            'windows': so for each window. 'grades': the annotators' mean grade, 1..5 scaled to
            0..12. 'binary': the label, 0 or 1. Clips without a label get 0.
    """
    return MODES[mode].labels(record, n_clips)


def relevant_clips(record, n_clips: int, mode: str) -> np.ndarray:
    """Returns which clips are annotated as relevant, whatever their scores: bool[n_clips].

    Args: as for `clip_labels`; in modes 'window' and 'windows' the clips of these, in mode 'grades'
        the better half (TR-DETR, start_end_dataset.py), in mode 'binary' those of label 1.
    """
    return MODES[mode].relevant(record, n_clips)


def is_annotated(record, mode: str) -> bool:
    """Says whether the record has what labels and metrics of the mode are made from."""
    return record.label is not None if MODES[mode].field == 'label' else len(record.windows) > 0


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
            'grades' and 'binary': a clip of the highest label over one of the lowest, twice.
        rng: source of the draws.

    Returns:
        pos: int32[2], neg: int32[2]; all 0 if the record has no labels, which the losses mask.
    """
    pos, neg = MODES[mode].pairs(record, n_clips, rng)
    return np.array(pos, np.int32), np.array(neg, np.int32)


_Pairs = tuple[tuple[int, int], tuple[int, int]]


def _annotator_labels(record, n_clips: int) -> np.ndarray:
    labels = np.zeros(n_clips, np.float32)
    if record.clip_scores is not None:
        inside = record.clip_ids < n_clips
        labels[record.clip_ids[inside]] = record.clip_scores[inside].sum(axis=1)
    return labels


def _annotator_relevant(record, n_clips: int) -> np.ndarray:
    relevant = np.zeros(n_clips, bool)
    relevant[record.clip_ids[record.clip_ids < n_clips]] = True
    return relevant


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


def _window_relevant(record, n_clips: int, windows: slice) -> np.ndarray:
    return _window_labels(record, n_clips, windows) > 0


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


def _graded_labels(record, n_clips: int) -> np.ndarray:
    labels = np.zeros(n_clips, np.float32)
    if record.label is not None:
        grades = record.label[:n_clips]
        low, high = MODES['grades'].grades
        labels[:len(grades)] = (grades - low).sum(axis=1) / (
            (high - low) * grades.shape[1]) * HIGHEST
    return labels


def _graded_relevant(record, n_clips: int) -> np.ndarray:
    relevant = np.zeros(n_clips, bool)
    if record.label is not None:
        grades = record.label[:n_clips].sum(axis=1)
        relevant[grades.argsort(kind='stable')[n_clips // 2:]] = True
    return relevant


def _binary_labels(record, n_clips: int) -> np.ndarray:
    labels = np.zeros(n_clips, np.float32)
    if record.label is not None:
        given = record.label[:n_clips, 0]
        labels[:len(given)] = given
    return labels


def _binary_relevant(record, n_clips: int) -> np.ndarray:
    return _binary_labels(record, n_clips) > 0


def _label_pairs(record, n_clips: int, rng: np.random.Generator) -> _Pairs:
    if record.label is None:
        return (0, 0), (0, 0)
    order = record.label[:n_clips].sum(axis=1).argsort(kind='stable')
    return (order[-1], order[-1]), (order[0], order[0])


@dataclasses.dataclass(frozen=True)
class Mode:
    """How targets are made from a record.

    Attributes:
        field: of the annotations; a record without it cannot be trained on, nor scored.
        labels: (record, number of clips) -> float32[n_clips].
        relevant: (record, number of clips) -> bool[n_clips].
        pairs: (record, number of clips, generator) -> two pairs of clips.
        grades: lowest and highest number that a record's `label` can hold.
    """

    field: str
    labels: Callable
    relevant: Callable
    pairs: Callable
    grades: tuple[float, float] = (-math.inf, math.inf)


def _windows(which: slice) -> Mode:
    functions = (_window_labels, _window_relevant, _window_pairs)
    return Mode('relevant_windows',
                *(functools.partial(function, windows=which) for function in functions))


MODES = {
    'annotators': Mode(
        'relevant_windows', _annotator_labels, _annotator_relevant, _annotator_pairs),
    'window': _windows(slice(1)),
    'windows': _windows(slice(None)),
    'grades': Mode('label', _graded_labels, _graded_relevant, _label_pairs, (1, 5)),
    'binary': Mode('label', _binary_labels, _binary_relevant, _label_pairs, (0, 1)),
}

"""Targets of highlight detection: each clip's label, and pairs of clips to rank.

A mode says how they are made for a query: 'annotators' from the annotators' scores of relevant
clips, 'window' from the first true window, 'windows' from all of them, 'grades' and 'binary' from
the label of every clip.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

SCORES = 0, 4  # lowest and highest grade of an annotator for a relevant clip
HIGHEST = 12  # three annotators' 4; other grades are scaled to it


def graded_clips(duration: float, clip_length: float) -> int:
    """How many clips of clip_length seconds a video has; the last one may be a part of one."""
    return max(1, math.ceil(duration / clip_length - 1e-6))  # 2.1 / 0.7 is a little more than 3


def clip_labels(query: Any, n_clips: int, mode: str) -> np.ndarray:
    """Returns the clips' labels float32[n_clips], all 0 where the query has none.

    Args:
        query: the query, an `annotations.Query`.
        n_clips: number of clips that the video's features have.
        mode: 'annotators': the sum of three annotators at relevant clips, of other numbers of them
            their mean times three, 0 elsewhere (clips beyond n_clips are ignored). 'window': 1 from
            the first to the last clip of the first window. 'windows': so for each window. 'grades':
            the annotators' mean grade, 1..5 scaled to 0..12. 'binary': the label, 0 or 1. Clips
            without a label get 0.
    """
    return MODES[mode].labels(query, n_clips)


def relevant_clips(query: Any, n_clips: int, mode: str) -> np.ndarray:
    """Returns which clips are annotated as relevant, whatever their scores: bool[n_clips].

    Args: as for `clip_labels`; in mode 'annotators', without grades and ids, the clips of all
        windows; in modes 'window' and 'windows' the clips of these, in mode 'grades'
        the better half (TR-DETR, start_end_dataset.py), in mode 'binary' those of label 1.
    """
    own = MODES[mode].relevant
    return own(query, n_clips) if own else clip_labels(query, n_clips, mode) > 0


def is_annotated(query: Any, mode: str) -> bool:
    """Says whether the query has what labels and metrics of the mode are made from."""
    return query.label is not None if MODES[mode].field == 'label' else len(query.windows) > 0


def is_graded(query: Any, mode: str) -> bool:
    """Says whether the labels of the query's clips are known."""
    if mode == 'annotators':
        return query.clip_scores is not None and len(query.clip_scores) > 0
    return is_annotated(query, mode)


def sample_pairs(query: Any, n_clips: int, mode: str,
                 rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws two pairs of clips of which the first should score higher, as the references do.

    Args:
        query: the query.
        n_clips: number of clips that the video's features have.
        mode: 'annotators': a relevant clip of the highest sum over one of the lowest, and any
            relevant clip over any other (the first pair again if there is no other). 'window': two
            clips of the first window over two outside (over themselves if there are no two).
            'windows': two clips of any window over two outside all of them, likewise.
            'grades' and 'binary': a clip of the highest label over one of the lowest, twice.
        rng: source of the draws.

    Returns:
        pos: int32[2], neg: int32[2]; all 0 if the query has no labels, which the losses mask.
    """
    pos, neg = MODES[mode].pairs(query, n_clips, rng)
    return np.array(pos, np.int32), np.array(neg, np.int32)


_Pairs = tuple[tuple[int, int], tuple[int, int]]


def _annotator_labels(query, n_clips: int) -> np.ndarray:
    labels = np.zeros(n_clips, np.float32)
    if query.clip_scores is not None:
        inside = query.clip_ids < n_clips
        scores = query.clip_scores[inside]
        scale = HIGHEST / SCORES[1] / scores.shape[1]
        labels[query.clip_ids[inside]] = scores.sum(axis=1) * scale
    return labels


def _annotator_relevant(query, n_clips: int) -> np.ndarray:
    if query.clip_scores is None and not len(query.clip_ids):
        return _window_labels(query, n_clips, slice(None)) > 0
    relevant = np.zeros(n_clips, bool)
    relevant[query.clip_ids[query.clip_ids < n_clips]] = True
    return relevant


def _annotator_pairs(query, n_clips: int, rng: np.random.Generator) -> _Pairs:
    if query.clip_scores is None or not len(query.clip_ids):
        return (0, 0), (0, 0)
    # Features can have fewer clips than the annotation: the last one stands for those beyond.
    clips = np.minimum(query.clip_ids, n_clips - 1)
    order = query.clip_scores.sum(axis=1).argsort(kind='stable')
    highest, lowest = clips[order[-1]], clips[order[0]]
    others = np.delete(np.arange(n_clips), clips)
    if not len(others):
        return (highest, highest), (lowest, lowest)
    return ((highest, clips[rng.integers(len(clips))]),
            (lowest, others[rng.integers(len(others))]))


def _window_labels(query, n_clips: int, windows: slice) -> np.ndarray:
    """Labels the clips of some windows; all clips are taken as equally long."""
    labels = np.zeros(n_clips, np.float32)
    clip_length = query.duration / n_clips
    for start, end in query.windows[windows]:
        last = max(0, min(int(end / clip_length), n_clips) - 1)
        labels[min(int(start / clip_length), last):last + 1] = 1
    return labels


def _window_pairs(query, n_clips: int, rng: np.random.Generator, windows: slice) -> _Pairs:
    labels = _window_labels(query, n_clips, windows)
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


def _given_labels(query, n_clips: int, scale: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Labels the clips as the annotations do; `scale` takes float32[T, A] to float32[T]."""
    labels = np.zeros(n_clips, np.float32)
    if query.label is not None:
        given = scale(query.label[:n_clips])
        labels[:len(given)] = given
    return labels


def as_grades(label: list, mode: str) -> list:
    """Rows of one number, a sum of all annotators' grades, as if each had given their mean.

    TVSum's files for SlowFast and CLIP (`tvsum_train_sfc.jsonl`) have such rows. Others stay.
    """
    (_, high), count = MODES[mode].grades, MODES[mode].summed
    is_sum = all(isinstance(row, list) and len(row) == 1 and type(row[0]) in (int, float)
                 for row in label)
    if not count or not is_sum or max(row[0] for row in label) <= high:
        return label
    return [[row[0] / count] * count for row in label]


def _mean_grades(grades: np.ndarray) -> np.ndarray:
    low, high = MODES['grades'].grades
    return (grades - low).sum(axis=1) / ((high - low) * grades.shape[1]) * HIGHEST


def _graded_relevant(query, n_clips: int) -> np.ndarray:
    relevant = np.zeros(n_clips, bool)
    if query.label is not None:
        grades = query.label[:n_clips].sum(axis=1)
        relevant[grades.argsort(kind='stable')[n_clips // 2:]] = True
    return relevant


def _label_pairs(query, n_clips: int, rng: np.random.Generator) -> _Pairs:
    if query.label is None:
        return (0, 0), (0, 0)
    order = query.label[:n_clips].sum(axis=1).argsort(kind='stable')
    return (order[-1], order[-1]), (order[0], order[0])


@dataclasses.dataclass(frozen=True)
class Mode:
    """How targets are made for a query.

    Attributes:
        field: of the annotations; a query without it cannot be trained on, nor scored.
        labels: (query, number of clips) -> float32[n_clips].
        pairs: (query, number of clips, generator) -> two pairs of clips.
        relevant: (query, number of clips) -> bool[n_clips]; None: the clips with a label above 0.
        grades: lowest and highest number that a query's `label` can hold.
        summed: of how many grades a number above the highest is the sum; 0: of none.
    """

    field: str
    labels: Callable
    pairs: Callable
    relevant: Callable | None = None
    grades: tuple[float, float] = (-math.inf, math.inf)
    summed: int = 0


def _windows(which: slice) -> Mode:
    return Mode('relevant_windows', functools.partial(_window_labels, windows=which),
                functools.partial(_window_pairs, windows=which))


MODES = {
    'annotators': Mode(
        'relevant_windows', _annotator_labels, _annotator_pairs, _annotator_relevant),
    'window': _windows(slice(1)),
    'windows': _windows(slice(None)),
    'grades': Mode('label', functools.partial(_given_labels, scale=_mean_grades), _label_pairs,
                   _graded_relevant, grades=(1, 5), summed=20),
    'binary': Mode('label', functools.partial(_given_labels, scale=lambda label: label[:, 0]),
                   _label_pairs, grades=(0, 1)),
}

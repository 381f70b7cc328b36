"""Rows of prediction and annotation files: reading, writing, and checking what is scored.

Every check names the row's qid, the field, what was found and what was expected. Checks run on all
rows at once; only where one fails is the culprit looked for.
"""

import numbers
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from data_pipelines import files
from data_pipelines.errors import UserError


class MetricsError(UserError):
    """Predictions, annotations or a jsonl file that cannot be scored; the message is one line."""


@dataclass(frozen=True)
class Block:
    """Values of each query for one block of `metrics.json`, whose numbers are their means.

    Attributes:
        weights: float64[Q], the query's weight in the mean; 0: it does not count.
        values: metric -> float64[Q], or [Q, K] of K thresholds or annotators.
    """

    weights: np.ndarray
    values: dict[str, np.ndarray]


def in_parts(
    per_query: Callable, predictions: list[dict], annotations: list[dict], size: int = 512
) -> dict[str, Block]:
    """Returns the blocks of `per_query`, called with `size` rows at a time.

    So that memory does not grow with the number of queries, nor one long list pads all others.
    """
    parts = [per_query(predictions[start:start + size], annotations[start:start + size])
             for start in range(0, len(predictions), size)]
    return {
        name: Block(np.concatenate([part[name].weights for part in parts]),
                    {metric: np.concatenate([part[name].values[metric] for part in parts])
                     for metric in block.values})
        for name, block in parts[0].items()
    }


@dataclass(frozen=True)
class Field:
    """One list-valued field of all rows: N entries laid end to end to check, padded to use."""

    rows: list[dict]
    source: str  # 'predictions' or 'annotations', for messages
    name: str
    counts: np.ndarray  # int[Q], entries per row, N in all

    def numbers(self, width: int, expected: str) -> np.ndarray:
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

    def check(self, good: ArrayLike, expected: str) -> None:
        """Raises MetricsError for the first entry that is not in `good` (bool[N])."""
        bad = np.flatnonzero(np.logical_not(good))
        if bad.size:
            ends = np.cumsum(self.counts)
            row = int(np.searchsorted(ends, bad[0], side='right'))
            position = int(bad[0] - ends[row] + self.counts[row])
            found = self.rows[row][self.name][position]
            raise error_of(self.source, self.rows[row], f'{self.name}[{position}]',
                         f'found {files.short(found)}, expected {expected}')

    def check_rows(self, good: ArrayLike, expected: str) -> None:
        """Raises MetricsError for the first row that is not in `good` (bool[Q])."""
        bad = np.flatnonzero(np.logical_not(good))
        if bad.size:
            row = self.rows[bad[0]]
            raise error_of(self.source, row, self.name,
                         f'found {files.short(row[self.name])}, expected {expected}')

    def pad(self, values: np.ndarray, fill: float) -> np.ndarray:
        """Returns values[N, ...] as [Q, max(counts) or 1, ...], `fill` behind each row's end."""
        longest = max(int(self.counts.max()), 1)
        padded = np.full((len(self.counts), longest, *values.shape[1:]), fill)
        padded[np.arange(longest) < self.counts[:, None]] = values
        return padded


def field(rows: list[dict], source: str, name: str) -> Field:
    """Returns the list-valued field `name` of all rows; raises MetricsError where it is not."""
    for row in rows:
        if name not in row:
            raise error_of(source, row, name, 'missing, expected a list')
        if not isinstance(row[name], (list, tuple, np.ndarray)):
            raise error_of(source, row, name, f'found {files.short(row[name])}, expected a list')
    return Field(rows, source, name, np.array([len(row[name]) for row in rows]))


def predicted_windows(predictions: list[dict]) -> tuple[Field, np.ndarray]:
    """Returns the field `pred_relevant_windows` and its checked entries float64[N, 3]."""
    predicted = field(predictions, 'predictions', 'pred_relevant_windows')
    return predicted, predicted.numbers(3, 'three finite numbers [start, end, score]')


def predicted_saliency(predictions: list[dict]) -> tuple[Field, np.ndarray]:
    """Returns the field `pred_saliency_scores` and its checked entries float64[N]."""
    predicted = field(predictions, 'predictions', 'pred_saliency_scores')
    predicted.check_rows(predicted.counts > 0, 'at least one score')
    return predicted, predicted.numbers(0, 'a finite number')


def is_number(value: Any) -> bool:
    """Says whether a float holds the value."""
    # Compared, not converted: JSON also yields integers that no float can hold.
    return isinstance(value, numbers.Real) and bool(abs(value) <= sys.float_info.max)


def _is_entry(entry, width):
    if not width:
        return is_number(entry)
    is_row = isinstance(entry, (list, tuple, np.ndarray))
    return is_row and len(entry) == width and all(is_number(value) for value in entry)


def has(row: dict, name: str) -> bool:
    """Says whether the row has the field, and not null in it."""
    return row.get(name) is not None


def any_has(rows: list[dict], name: str) -> bool:
    """Says whether any row has the field."""
    return any(has(row, name) for row in rows)


def error_of(source: str, row: dict, field: str, problem: str) -> MetricsError:
    """Returns the MetricsError that names a row's qid and field."""
    return MetricsError(f'{source} qid {files.short(row["qid"])}: field {field}: {problem}')


def check_kinds(predicted: Collection, annotated: Collection) -> None:
    """Raises MetricsError for a predicted qid that the annotations have as text, or vice versa."""
    by_text = {str(qid): qid for qid in annotated}
    for qid in predicted:
        other = by_text.get(str(qid), qid)
        if isinstance(qid, str) != isinstance(other, str):
            kinds = ('a text', 'a number')[::1 if isinstance(qid, str) else -1]
            raise MetricsError(f'predictions qid {files.short(qid)}: field qid: {kinds[0]}, '
                               f'expected {kinds[1]}, {files.short(other)} as in the annotations')


def absent(annotations: list[dict], predictions: list[dict]) -> list[int | str]:
    """Qids of the annotations without a prediction, after checking those that there are."""
    predicted = _by_qid(predictions, 'predictions')
    annotated = _by_qid(annotations, 'annotations')
    check_kinds(predicted, annotated)
    return [qid for qid in annotated if qid not in predicted]


def _by_qid(rows, source):
    table = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise MetricsError(
                f'{source} row {number}: found {files.short(row)}, expected a dict with a qid')
        qid = row.get('qid')
        if not isinstance(qid, (str, numbers.Real)):
            raise MetricsError(
                f'{source} row {number}: field qid: found {files.short(qid)}, '
                'expected a number or a string')
        if qid in table:
            raise MetricsError(
                f'{source} qid {files.short(qid)}: field qid: duplicate in row {number}, '
                'expected once')
        table[qid] = row
    return table


def align(annotations: list[dict], predictions: list[dict]) -> list[dict]:
    """Returns the annotations in the order of the predictions, after checking the qids."""
    predicted = _by_qid(predictions, 'predictions')
    annotated = _by_qid(annotations, 'annotations')
    check_kinds(predicted, annotated)
    for what, have, want, hint in (
            ('missing', predicted, annotated, '; --count_missing counts misses'),
            ('extra', annotated, predicted, '')):
        odd = [qid for qid in want if qid not in have]
        if odd:
            more = f' (and {len(odd) - 1} more)' if len(odd) > 1 else ''
            raise MetricsError(
                f'predictions qid {files.short(odd[0])}{more}: field qid: {what}, '
                f'expected the {len(annotated)} qids of the annotations{hint}')
    if not predicted:
        raise MetricsError('predictions and annotations: found no rows, expected at least one')
    return [annotated[qid] for qid in predicted]

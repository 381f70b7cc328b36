"""Annotation files: their lines, read and checked, become queries."""

import dataclasses
import json
import math
import os
import pathlib
import reprlib
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from data_pipelines import files, saliency, skip_list
from data_pipelines.errors import DataError, one_line

END_TOLERANCE = 1e-3  # seconds that a window may end after its video without a word
UNPRINTABLE = ('Cc', 'Cs', 'Zl', 'Zp')  # Unicode categories; joiners and the like are fine
T = TypeVar('T')


@dataclasses.dataclass
class Query:
    """One query of an annotation file.

    Attributes:
        qid: as in the file, a whole number or a text.
        query: the sentence.
        vid: name of its video.
        duration: seconds.
        windows: float64[M, 2], [start, end] in seconds. Not float32: the clips that a window covers
            are found by rounding down, and 3 % of the windows of Charades-STA would get others.
        clip_ids: int64[R], the relevant clips.
        clip_scores: float32[R, A] of A annotators, or None where the file has no scores.
        line: line number in the file, from 1.
        label: float32[C, A] of A annotators, what each of the video's clips is to them; None where
            the file has none.
        domain: of the video; '' where the file has none.
        oddities: kind, a key of `ODDITIES` -> what was read though it is not as it should be.
    """

    qid: int | str
    query: str
    vid: str
    duration: float
    windows: np.ndarray
    clip_ids: np.ndarray
    clip_scores: np.ndarray | None
    line: int
    label: np.ndarray | None = None
    domain: str = ''
    oddities: dict[str, str] = dataclasses.field(default_factory=dict)


# Kinds of what is read though it is not as it should be.
ODDITIES = {
    'late end': 'windows that end after their video',
    'empty window': 'windows without length',
}


def labelled_clips(queries: Iterable[Query]) -> dict[str, int]:
    """Of the videos whose clips have labels, how many have one."""
    return {query.vid: len(query.label) for query in queries if query.label is not None}


# Files


def annotation_files(data: Any) -> dict[str, pathlib.Path]:
    """The annotation file of each split that has one."""
    return {name: pathlib.Path(data.root, path) for name, path in data.annotations.items() if path}


def annotation_file(data: Any, split: str) -> pathlib.Path:
    """The annotation file of a split; DataError if it has none."""
    known = annotation_files(data)
    if split not in known:
        raise DataError(
            f'no annotation file for split {split!r}, data.annotations has {", ".join(known)}')
    return known[split]


def first_of_file(data: Any) -> dict[str, str]:
    """Split -> the first split that has the same annotation file: two may be one file."""
    files = annotation_files(data)
    return {split: next(first for first in files if files[first] == path)
            for split, path in files.items()}


def annotation_lines(path: str | os.PathLike) -> list[tuple[int, bytes]]:
    """The lines of an annotation file that are not blank, with their numbers from 1.

    Raises:
        DataError: the file can't be read or came in place of another.
    """
    files.check_genuine(path)
    try:
        lines = pathlib.Path(path).read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: can't be read: {one_line(error)}") from error
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def split_lines(data: Any, split: str) -> tuple[list[tuple[int, bytes]], dict[int, str]]:
    """Reads a split's annotation file.

    Returns:
        (its lines; numbers of those that data.skip_list has -> why).

    Raises:
        DataError: the config names no such split, or as `annotation_lines` and `skip_list.read`.
    """
    lines = annotation_lines(annotation_file(data, split))
    return lines, skip_list.read(data.skip_list, split, data.annotations, lines)


# Queries


def read_annotations(path: str | os.PathLike, data: Any,
                     skipped: list[str] | None = None) -> list[Query]:
    """Reads and checks an annotation file.

    Args:
        path: JSON lines; blank lines are passed over.
        data: the config node, of which limit, domain, max_windows, duration_unit, end_tolerance,
            clip_windows and clip_length are read, and saliency where records have a `label`.
        skipped: None: the first bad one raises. A list: bad ones are skipped, and their messages
            appended to it.

    Returns:
        The queries in the file's order. Those of a hidden test set have no windows.

    Raises:
        DataError: the file can't be read; a record is bad, repeats a qid or has grades of another
            number of annotators than those before it; none is of the domain.
    """
    return parse_annotations(annotation_lines(path), path, data, skipped)


def read_split(data: Any, split: str) -> list[Query]:
    """Reads the queries of a split as the config says, without those on data.skip_list.

    Raises:
        DataError: as `split_lines` and, unless data.on_error is 'skip', `read_annotations`.
    """
    lines, skip = split_lines(data, split)
    return parse_annotations(lines, annotation_file(data, split), data, skipped_list(data), skip)


def parse_annotations(numbered: Sequence[tuple[int, bytes]], path: Any, data: Any,
                      skipped: list[str] | None = None,
                      skip: Collection[int] = ()) -> list[Query]:
    """`read_annotations` of numbered lines; `path` is what messages call their file.

    The lines whose numbers are in `skip` are not looked at, but count for data.limit.
    """
    first_lines: dict[str, int] = {}
    first_graded: list[Query] = []

    def read_query(number: int, line: bytes) -> Query:
        query = _parse_query(line, number, f'{path}:{number}', data)
        first = first_lines.setdefault(str(query.qid), number)  # as feature files are named
        if first != number:
            raise DataError(f'{path}:{number}: qid {query.qid!r} is that of line {first}, '
                            'expected another')
        if query.clip_scores is not None and len(query.clip_scores):
            graded, n_annotators = (first_graded or [query])[0], query.clip_scores.shape[1]
            if n_annotators != graded.clip_scores.shape[1]:
                raise DataError(
                    f'{path}:{number}: saliency_scores have {n_annotators} numbers for each clip, '
                    f'expected {graded.clip_scores.shape[1]}, as in line {graded.line}: highlights '
                    'are scored for each annotator of the file')
            first_graded[:] = [graded]
        return query

    queries, others, read = [], set(), 0
    for entry in numbered:
        if data.limit and read == data.limit:
            break
        if entry[0] in skip:
            read += 1
            continue
        query = attempt(skipped, read_query, *entry)
        if query is not None and data.domain and query.domain != data.domain:
            others.add(query.domain)
            continue
        read += 1
        if query is not None:
            queries.append(query)
    if others and not queries:
        raise DataError(f'{path}: no record of domain {data.domain!r} (data.domain), known are: '
                        f'{", ".join(sorted(others - {""})) or "none"}')
    return queries


def _parse_query(line: bytes, number: int, where: str, data: Any) -> Query:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise DataError(f'{where}: not JSON: {one_line(error)}') from error
    _expect(isinstance(fields, dict), where, 'the line', fields, 'an object {...}')
    for name in ('qid', 'query', 'duration', 'vid'):
        if name not in fields:
            raise DataError(f'{where}: field {name!r} is missing')
    qid, query, duration, vid = (fields[name] for name in ('qid', 'query', 'duration', 'vid'))
    _expect((type(qid) is int or is_name(qid)) and files.is_file_name(str(qid)), where, 'qid', qid,
            'a whole number or a file name')
    is_text = isinstance(query, str) and query.strip()
    _expect(is_text, where, 'query', query, 'a text that is not empty')
    _expect(is_name(vid), where, 'vid', vid, 'a file name')
    _expect(_is_number(duration) and duration > 0, where, 'duration', duration, 'seconds above 0')
    duration *= data.duration_unit
    windows, oddities = _parse_windows(fields.get('relevant_windows'), duration, where, data)
    if len(windows) > data.max_windows:
        raise DataError(f'{where}: {len(windows)} relevant_windows, expected at most '
                        f'{data.max_windows} (data.max_windows)')
    ids, scores = fields.get('relevant_clip_ids'), fields.get('saliency_scores')
    label, domain = fields.get('label'), fields.get('domain', '')
    _expect(domain == '' or is_name(domain), where, 'domain', domain, 'a name')
    if label is not None:
        low, high = saliency.MODES[data.saliency].grades
        _expect(isinstance(label, list) and label, where, 'label', label,
                'a list, a row for each clip')
        label = saliency.as_grades(label, data.saliency)
        label = _parse_rows(label, where, 'label', f'{{}} numbers from {low} to {high}', low, high)
    clips = _parse_clips(ids, scores, duration, where, data)
    return Query(qid, query, vid, float(duration), windows, *clips, line=number, label=label,
                 domain=domain, oddities=oddities)


def _parse_windows(windows: Any, duration: float, where: str, data: Any
                   ) -> tuple[np.ndarray, dict[str, str]]:
    """Checks windows and returns float64[M, 2] and oddities.

    null, [] and, as in TVSum, [[]] are no windows.
    """
    windows = [] if windows is None or windows == [[]] else windows
    _expect(isinstance(windows, list), where, 'relevant_windows', windows, 'a list')
    for i, window in enumerate(windows):
        is_pair = isinstance(window, list) and len(window) == 2 and all(map(_is_number, window))
        _expect(is_pair and 0 <= window[0] <= window[1] and window[0] <= duration + END_TOLERANCE
                and window[1] <= duration + max(data.end_tolerance, END_TOLERANCE), where,
                f'relevant_windows[{i}]', window, f'0 <= start <= end <= duration {duration}, or '
                f'{data.end_tolerance} s after it (data.end_tolerance)')
    found = np.array(windows, np.float64).reshape(-1, 2)
    beyond = found[:, 1] - duration
    kept = np.minimum(found, duration) if data.clip_windows else found
    oddities = {}
    if (late := np.flatnonzero(beyond > END_TOLERANCE)).size:
        what = 'cut' if data.clip_windows else 'kept; data.clip_windows cuts'
        oddities['late end'] = (f'relevant_windows[{late[0]}] is {windows[late[0]]}, up to '
                                f'{beyond.max():.3g} s after the video of {duration} s: {what}')
    if (empty := np.flatnonzero(kept[:, 0] == kept[:, 1])).size:
        oddities['empty window'] = f'relevant_windows[{empty[0]}] is {windows[empty[0]]}'
    return kept, oddities


def _parse_clips(ids: Any, scores: Any, duration: float, where: str, data: Any
                 ) -> tuple[np.ndarray, np.ndarray | None]:
    """Checks relevant clips and their scores and returns Query's clip_ids and clip_scores."""
    ids = [] if ids is None else ids
    is_ids = isinstance(ids, list) and all(type(i) is int and 0 <= i < 2**31 for i in ids)
    _expect(is_ids and len(set(ids)) == len(ids), where, 'relevant_clip_ids', ids,
            'different clip numbers from 0 on')
    if scores is None:
        return np.array(ids, np.int64), None
    _expect(isinstance(scores, list), where, 'saliency_scores', scores, 'a list')
    if len(scores) != len(ids):
        raise DataError(f'{where}: {len(scores)} saliency_scores, expected {len(ids)}, as many as '
                        'relevant_clip_ids')
    low, high = saliency.SCORES
    rows = _parse_rows(scores, where, 'saliency_scores', f'a list of {{}} numbers from {low} to '
                       f'{high}', low, high)
    n_clips = saliency.graded_clips(duration, data.clip_length)
    for i, clip in enumerate(ids):
        _expect(clip < n_clips, where, f'relevant_clip_ids[{i}]', clip,
                f'a number below {n_clips}: {duration} s are {n_clips} clips of '
                f'{data.clip_length} s (data.clip_length)')
    return np.array(ids, np.int64), rows


def _parse_rows(rows: list, where: str, field: str, expected: str, low: float = -math.inf,
                high: float = math.inf) -> np.ndarray:
    """Checks the numbers of A annotators for R clips and returns float32[R, A].

    `expected` says what a row is, with a place for A; no number is below `low` or above `high`.
    """
    n_annotators = len(rows[0]) if rows and isinstance(rows[0], list) else 1
    for i, row in enumerate(rows):
        is_row = isinstance(row, list) and row and all(map(_is_number, row))
        _expect(is_row and len(row) == n_annotators and low <= min(row) and max(row) <= high, where,
                f'{field}[{i}]', row, expected.format(max(n_annotators, 1)))
    return np.array(rows, np.float32).reshape(len(rows), n_annotators)


def _is_number(value: Any) -> bool:
    """Says whether a float holds value, which JSON allows to be true, NaN or 400 digits long."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_name(value: Any) -> bool:
    """Says whether value is a text without control characters and line ends, and not blank."""
    return isinstance(value, str) and bool(value.strip()) and (
        value.isprintable() or not any(unicodedata.category(c) in UNPRINTABLE for c in value))


def _expect(condition: Any, where: str, field: str, found: Any, expected: str) -> None:
    if not condition:
        raise DataError(f'{where}: {field} is {reprlib.repr(found)}, expected {expected}')


def for_training(queries: Sequence[Query], path: Any, data: Any, skipped: list[str] | None
                 ) -> tuple[list[Query], list[str]]:
    """Deals with windows without length, from which nothing is learnt, as data.empty_windows says.

    Args:
        queries: of the annotation file `path`.
        path: what messages call their file.
        data: the config node.
        skipped: as for `read_annotations`, where they are refused.

    Returns:
        (the queries to train on, a message for each that is left out as it has no other window).

    Raises:
        DataError: one has such a window, and they are to be refused.
    """
    def check(query: Query) -> Query:
        if message := query.oddities.get('empty window'):
            raise DataError(f'{path}:{query.line}: {message}, expected a length to train on; '
                            '--config.data.empty_windows=drop leaves such windows out')
        return query

    if data.empty_windows == 'refuse':
        found = [attempt(skipped, check, query) for query in queries]
        return [query for query in found if query is not None], []
    kept, left_out = [], []
    for query in queries:
        if 'empty window' in query.oddities:
            message = query.oddities['empty window'] + ': left out'
            query = dataclasses.replace(
                query, windows=query.windows[query.windows[:, 0] < query.windows[:, 1]],
                oddities=query.oddities | {'empty window': message})
            if not len(query.windows):
                left_out.append(f'{path}:{query.line}: {message}, no other window')
                continue
        kept.append(query)
    return kept, left_out


def check_sentence(known: dict[str, str], qid: int | str, sentence: str, where: Any) -> None:
    """Notes the sentence of a qid; DataError if it has another one, as in another split.

    Args:
        known: qid as text -> sentence; changed.
        qid: of a query.
        sentence: of the query.
        where: what messages call its record.
    """
    if (other := known.setdefault(str(qid), sentence)) != sentence:
        raise DataError(f'{where}: qid {qid!r} stands for {files.short(other)}, too: they share a '
                        'feature file')


# Queries that cannot be used


def skipped_list(data: Any) -> list[str] | None:
    """Where messages of bad queries are collected; None where the first one is to raise."""
    return [] if data.on_error == 'skip' else None


def attempt(skipped: list[str] | None, function: Callable[..., T], *args: Any) -> T | None:
    """Calls the function; if it raises DataError and there is a list, adds to it, returns None."""
    try:
        return function(*args)
    except DataError as error:
        if skipped is None:
            raise
        skipped.append(str(error))
        return None

"""Mode `import-csv`: makes annotation files of a table of video, start, end, sentence.

Rows of one video and sentence are the windows of one query. Its qid is a hash of the two, so that
feature files stay those of their sentences when the table changes. See docs/own_data.md.
"""

import collections
import csv
import dataclasses
import hashlib
import io
import math
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from data_pipelines import annotations, features, files
from data_pipelines.errors import DataError, UserError, one_line

REQUIRED, OPTIONAL = ('video', 'start', 'end', 'sentence'), ('qid', 'duration', 'split')
SPLITS = ('train', 'val', 'test')
DELIMITERS = (',', '\t', ';')
# Seconds, or minutes:seconds, or hours:minutes:seconds.
_TIME = re.compile(r'(?:(?:(\d+):(?=\d+:))?(\d+):)?(\d+(?:\.\d*)?|\.\d+)', re.ASCII)


class Mistakes:
    """Collects what is wrong with tables, a line for each."""

    def __init__(self):
        self.lines: list[str] = []

    def add(self, where: str, column: str, found: object, expected: str) -> None:
        """Notes a cell, or what follows from it."""
        self.lines.append(f'{where}: {column} is {found!r}, expected {expected}')

    def check(self, path: str) -> None:
        """Prints the mistakes and raises DataError if there are any."""
        if self.lines:
            print('\n'.join(self.lines), file=sys.stderr)
            raise DataError(f'{path}: nothing is written, mistakes: {len(self.lines)}, the first: '
                            f'{self.lines[0]}')


@dataclasses.dataclass
class Query:
    """A query while its rows are gathered.

    Attributes:
        qid, video, sentence: as in the annotation file.
        split: '' where the table has none.
        where: its first row, path:line.
        windows: (start, end, row) of each row that has them, in seconds.
    """

    qid: int | str
    video: str
    sentence: str
    split: str
    where: str
    windows: list[tuple[float, float, str]] = dataclasses.field(default_factory=list)


def run(values: Any, config: ConfigDict | None) -> None:
    """Mode `import-csv`: writes `<output>/<split>.jsonl` of the table that the flags name, all or
    none; there is no config.

    Raises:
        UserError: flags that are missing, or a table with mistakes, which were printed.
    """
    if not values.table or not values.output:
        raise UserError('--mode=import-csv needs --table=FILE and --output=FOLDER')
    mistakes = Mistakes()
    queries, durations, unread = _read_table(values.table, mistakes)
    if values.durations:
        durations |= _other_durations(values.durations, values.clip_length, queries, mistakes)
    elif not durations:
        raise DataError(f'{values.table}: no column duration, expected one or --durations=FILE or '
                        '--durations=FOLDER with --clip_length')
    _check_durations(queries, durations, mistakes)
    mistakes.check(values.table)
    splits = _split_videos([query.video for query in queries], values.val_share)
    n_merged = 0
    rows = collections.defaultdict(list)
    for query in queries:
        given = {(start, end) for start, end, _ in query.windows}
        windows = _merge(given)
        n_merged += len(given) - len(windows)
        row = dict(qid=query.qid, query=query.sentence, duration=durations[query.video],
                   vid=query.video)
        if windows:
            row['relevant_windows'] = windows
        rows[query.split or splits[query.video]].append(row)  # that of the table comes first
    _write(values.output, rows)
    for split, found in rows.items():
        print(f'{split}: {len(found)} queries of {len({row["vid"] for row in found})} videos, '
              f'{sum(len(row.get("relevant_windows", ())) for row in found)} windows, '
              f'{pathlib.Path(values.output, split)}.jsonl')
    if n_merged:
        print(f'{n_merged} windows were merged with others of their query that they overlap')
    if unread:
        print(f'columns that are not read: {", ".join(unread)}')


# Tables


def _read_cells(path: str, required: Sequence[str], optional: Sequence[str], mistakes: Mistakes
               ) -> tuple[Iterator[tuple[str, dict[str, str]]], list[str]]:
    """Reads a table with a header; cells are stripped, columns in any order.

    Args:
        path: UTF-8, with or without byte order mark; commas, tabs or semicolons; cells in double
            quotes may hold these, line breaks and doubled quotes.
        required, optional: names of columns, whatever their case.
        mistakes: gets rows that are no rows.

    Returns:
        (iterator over rows: 'path:line', column -> cell, '' where the table lacks an optional one;
        names of further columns).

    Raises:
        DataError: the file can't be read or lacks a required column.
    """
    try:
        content = pathlib.Path(path).read_bytes()
        text = content.decode('utf-8-sig')
    except OSError as error:
        raise DataError(f"{path}: can't be read: {one_line(error)}") from error
    except UnicodeDecodeError as error:
        line = content[:error.start].count(b'\n') + 1
        raise DataError(f'{path}:{line}: byte {content[error.start]:#04x} is not UTF-8, expected '
                        'a table saved as UTF-8') from error
    header: list[str] = []
    for delimiter in DELIMITERS:
        reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True)
        try:
            header = [name.strip().lower() for name in next(reader, [])]
        except csv.Error:  # quotes are matched with another delimiter, or this is no header
            continue
        if set(required) <= set(header):
            break
    else:
        first = text.splitlines()[0] if text else ''
        raise DataError(f'{path}:1: header is {first!r}, expected columns {", ".join(required)}')
    if len(set(header)) < len(header):
        raise DataError(f'{path}:1: header is {header}, expected different names')
    names = [*required, *optional]

    def rows():
        line = reader.line_num + 1
        try:
            for cells in reader:
                if len(cells) == len(header):
                    row = dict(zip(header, map(str.strip, cells), strict=True))
                    yield f'{path}:{line}', {name: row.get(name, '') for name in names}
                elif any(cell.strip() for cell in cells):
                    mistakes.lines.append(f'{path}:{line}: {len(cells)} cells, expected '
                                          f'{len(header)} as in the header')
                line = reader.line_num + 1
        except csv.Error as error:
            mistakes.lines.append(f'{path}:{line}: {error}, expected cells in matched double '
                                  'quotes; nothing after it was read')

    return rows(), [name for name in header if name not in names]


def read_time(text: str) -> float:
    """Reads seconds, mm:ss or hh:mm:ss; seconds may have decimals. ValueError for others."""
    match = _TIME.fullmatch(text)
    if not match:
        raise ValueError(text)
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    if match[2] and seconds >= 60 or match[1] and minutes >= 60 or math.isinf(seconds):
        raise ValueError(text)
    return 3600 * hours + 60 * minutes + seconds


def _time(where: str, column: str, text: str, mistakes: Mistakes) -> float | None:
    try:
        return read_time(text)
    except ValueError:
        mistakes.add(where, column, text, 'seconds, mm:ss or hh:mm:ss')
        return None


def _read_table(path: str, mistakes: Mistakes) -> tuple[list[Query], dict[str, float], list[str]]:
    """Reads the table of moments.

    Returns:
        (queries in the order of their first rows; video -> seconds, of its column; columns that
        are not read).

    Raises:
        DataError: the table can't be read.
    """
    rows, unread = _read_cells(path, REQUIRED, OPTIONAL, mistakes)
    queries: dict[tuple, Query] = {}
    owners: dict[tuple, Query] = {}
    durations: dict[str, float] = {}
    row_splits: dict[bool, str] = {}
    for where, row in rows:
        sentence = ' '.join(row['sentence'].split())
        before = len(mistakes.lines)
        for column, text in (('video', row['video']), ('sentence', sentence),
                             ('qid', row['qid'] or 'none')):
            if not annotations.is_name(text):
                mistakes.add(where, column, text, 'a printable text')
        if row['split'] not in (*SPLITS, ''):
            mistakes.add(where, 'split', row['split'], f'one of {", ".join(SPLITS)}')
        first = row_splits.setdefault(bool(row['split']), where)
        if len(row_splits) == 2 and first == where:
            mistakes.add(where, 'split', row['split'], 'a split in all rows or in none, as in '
                         + next(iter(row_splits.values())))
        window = _read_window(where, row, mistakes)
        if row['duration']:
            _read_duration(where, row, durations, mistakes)
        if len(mistakes.lines) > before:
            continue
        qid = _qid(row['qid'], row['video'], sentence)
        key = (row['split'], row['video'], sentence, qid)
        owner = owners.setdefault((row['split'], qid), Query(qid, row['video'], sentence,
                                                             row['split'], where))
        if (owner.video, owner.sentence) != (row['video'], sentence):
            mistakes.add(where, 'qid', row['qid'], f'another than that of {owner.where}, which has '
                         'another video or sentence')
            continue
        query = queries.setdefault(key, owner)
        query.windows += [(*window, where)] if window else []
    if not queries and not mistakes.lines:
        raise DataError(f'{path}: no rows, expected at least one below the header')
    return list(queries.values()), durations, unread


def _read_duration(where: str, row: dict[str, str], durations: dict[str, float],
                   mistakes: Mistakes) -> None:
    """Adds a row's duration to those of the videos."""
    seconds = _time(where, 'duration', row['duration'], mistakes)
    if seconds is not None and durations.setdefault(row['video'], seconds) != seconds:
        mistakes.add(where, 'duration', row['duration'],
                     f'{durations[row["video"]]:g}, as in a row before')


def _read_window(where: str, row: dict[str, str], mistakes: Mistakes
                 ) -> tuple[float, float] | None:
    """Returns start and end, None if both cells are empty: a query without known moments."""
    if not row['start'] and not row['end']:
        return None
    start, end = (_time(where, name, row[name], mistakes) for name in ('start', 'end'))
    if start is not None and end is not None and start >= end:
        mistakes.add(where, 'end', row['end'], f'more than start {row["start"]}')
    return start, end


def _qid(text: str, video: str, sentence: str) -> int | str:
    """The qid of a query: that of the table, or a hash of video and sentence."""
    if re.fullmatch('0|[1-9][0-9]*', text):
        return int(text)
    return text or hashlib.sha256(f'{video}\n{sentence}'.encode()).hexdigest()[:16]


# Durations


def _other_durations(path: str, clip_length: float | None, queries: Sequence[Query],
                    mistakes: Mistakes) -> dict[str, float]:
    """Returns video -> seconds, of a table or a folder of video features.

    Clips rarely reach a video's very end: a window may end up to one clip after the last one, and
    then the video does.

    Raises:
        UserError: the file can't be read, or there is no clip length with a folder.
    """
    if not pathlib.Path(path).is_dir():
        durations: dict[str, float] = {}
        for where, row in _read_cells(path, ('video', 'duration'), (), mistakes)[0]:
            _read_duration(where, row, durations, mistakes)
        return durations
    if not clip_length or clip_length < 0:
        raise UserError(f'--durations={path} is a folder, it needs --clip_length=SECONDS')
    ends = collections.defaultdict(list)
    for query in queries:
        ends[query.video] += [end for _, end, _ in query.windows]
    durations = {}
    for query in queries:
        if query.video not in durations:
            try:
                file = features.find_file(path, (query.video,))
                seconds = len(features.read_features(file, features.VIDEO_KEY)) * clip_length
            except DataError as error:
                mistakes.lines.append(f'{query.where}: {error}')
                seconds = math.inf  # said once
            near = [end for end in ends[query.video] if end <= seconds + clip_length]
            durations[query.video] = max([seconds, *near])
    return durations


def _check_durations(queries: Sequence[Query], durations: dict[str, float],
                    mistakes: Mistakes) -> None:
    """Notes videos without duration and windows beyond it."""
    for query in queries:
        duration = durations.get(query.video)
        if duration is None:
            mistakes.add(query.where, 'duration', None, f'that of video {query.video!r}')
            continue
        if duration <= 0:
            mistakes.add(query.where, 'duration', duration, 'seconds above 0')
        for _, end, where in query.windows:
            if end > duration + annotations.END_TOLERANCE:
                mistakes.add(where, 'end', end,
                             f'at most {duration:g}, the duration of {query.video!r}')


# Annotation files


def _split_videos(videos: Sequence[str], val_share: float) -> dict[str, str]:
    """Assigns videos to train and val: those with the lowest hashes of their names go to val.

    Val gets a share of them, rounded, but at least one of two or more unless the share is 0. A
    video that is added moves none but those at the border.
    """
    order = sorted(set(videos), key=lambda video: hashlib.sha256(video.encode()).digest())
    n_val = max(round(val_share * len(order)), 1 if val_share and len(order) > 1 else 0)
    return {video: 'val' if i < n_val else 'train' for i, video in enumerate(order)}


def _merge(windows: Iterable[tuple[float, float]]) -> list[list[float]]:
    """Merges windows that overlap to one; those that only touch stay two. Sorted by start."""
    merged: list[list[float]] = []
    for start, end in sorted(windows):
        if merged and start < merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return merged


def _write(folder: str, rows: dict[str, list[dict]]) -> None:
    """Writes an annotation file for each split; earlier ones are replaced, all or none.

    Raises:
        DataError: a file of a split that has no rows is there, or the folder can't be written to.
    """
    folder = pathlib.Path(folder)
    for split in SPLITS:
        if split not in rows and (stale := folder / f'{split}.jsonl').exists():
            raise DataError(f'{stale}: is there already, but the table has no rows of this split: '
                            'remove it or choose another --output')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f'{split}.jsonl' for split in rows]
        with files.whole_files(*paths) as temporaries:
            for temporary, own in zip(temporaries, rows.values(), strict=True):
                temporary.write_text(files.to_jsonl(own))
    except OSError as error:
        raise DataError(f"{folder}: can't be written: {one_line(error)}") from error

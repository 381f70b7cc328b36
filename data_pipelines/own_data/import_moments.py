"""Modes `import` and `import-csv`: make annotation files of tables, and of published data sets.

Rows of one video and sentence are the windows of one query. Its qid is a hash of the two, so that
feature files stay those of their sentences when the table changes. See docs/own_data.md.
"""

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict

from data_pipelines import annotations, features, files, hdf5
from data_pipelines.errors import DataError, UserError, one_line
from data_pipelines.own_data import import_rows, import_sets, import_tables
from data_pipelines.own_data.import_rows import Report, Row

SPLITS = ('train', 'val', 'test')


@dataclasses.dataclass
class Query:
    """A query while its rows are gathered.

    Attributes:
        qid, video, sentence: as in the annotation file.
        split: '' where the files have none.
        where: its first row.
        duration: seconds.
        windows: [start, end] of each row that has them, in seconds.
    """

    qid: int | str
    video: str
    sentence: str
    split: str
    where: str
    duration: float
    windows: list[tuple[float, float]] = dataclasses.field(default_factory=list)


def run(values: Any, config: ConfigDict | None) -> None:
    """Writes `<output>/<split>.jsonl` of the files that the flags name, all or none; there is no
    config.

    Raises:
        UserError: flags that are missing, or files with mistakes, which were printed.
    """
    if not values.table or not values.output:
        raise UserError(f'--mode={values.mode} needs --table=FILE and --output=FOLDER')
    report = Report()
    rows = [row for source in values.table for row in _read(source, report)]
    durations = _durations(rows, values, report)
    queries = _gather(rows, durations, values, report)
    paths = ', '.join(values.table)
    report.check(paths, skip=values.on_error == 'skip')
    if not queries:
        raise DataError(f'{paths}: no rows, expected at least one')
    splits = _split_videos([query.video for query in queries], values.val_share)
    found = collections.defaultdict(list)
    for query in queries:
        found[query.split or splits[query.video]].append(query)  # that of the file comes first
    _write(values.output, {split: [_record(query, report) for query in part]
                           for split, part in found.items()})
    for split, part in found.items():
        print(f'{split}: {len(part)} queries of {len({query.video for query in part})} videos, '
              f'{sum(len(query.windows) for query in part)} windows, '
              f'{pathlib.Path(values.output, split)}.jsonl')
    for line in (*report.facts, *(f'{note}: {n}' for note, n in report.notes.items() if n)):
        print(line)
    if 'val' not in found:
        one_video = not rows[0].split and len(splits) == 1 and values.val_share
        reason = 'the table has one video, and no video is in both' if one_video else 'no row of it'
        print(f'val: no query ({reason}). Training chooses its checkpoints on val: give it rows by '
              'a column split, add a video, or choose them on the training queries: '
              'configs/custom.py:...,val=train')


# Rows


def _read(source: str, report: Report) -> list[Row]:
    """Reads the rows of a file, named as FILE or SPLIT=FILE.

    Raises:
        DataError: it can't be read or is none of the known kinds.
    """
    split, named, path = source.partition('=')
    if not named or split not in SPLITS:
        split, path = '', source
    text = import_rows.read_text(path, report)
    rows = import_sets.read(path, text, report)
    if rows is None:
        rows = import_tables.read_moments(path, text, report)
    if split:
        for row in rows:
            if row.split not in ('', split):
                report.add(row.where, 'split', row.split, f'{split}, as in --table={source}')
        rows = [dataclasses.replace(row, split=split) for row in rows]
    return rows


def _gather(rows: Sequence[Row], durations: dict[str, float], values: Any, report: Report
            ) -> list[Query]:
    """Makes queries of the rows, in the order of their first ones; notes what is wrong."""
    queries: dict[tuple, Query] = {}
    same: collections.Counter[tuple] = collections.Counter()
    split_in = next((row.where for row in rows if row.split), '')
    firsts: dict[str, Query] = {}
    late, told = [], set()
    for row in rows:
        _check_texts(row, split_in, report)
        duration = durations.get(row.video)
        if duration is None:
            if row.where not in report.bad and row.video not in told:
                told.add(row.video)
                report.add(row.where, 'duration', None, f'that of video {row.video!r}')
            report.bad.add(row.where)
        elif duration <= 0:
            report.add(row.where, 'duration', duration, 'seconds above 0')
        window = _window(row, duration, values, report) if duration else None
        if row.where in report.bad:
            continue
        qid = row.qid
        if qid == '':
            qid = hashlib.sha256(f'{row.video}\n{row.sentence}'.encode()).hexdigest()[:16]
            if row.is_query:
                same[row.split, qid] += 1
                qid += f'-{n}' if (n := same[row.split, qid]) > 1 else ''
        new = Query(qid, row.video, row.sentence, row.split, row.where, duration)
        query = queries.get((row.split, str(qid)), new)
        first = firsts.setdefault(str(qid), new)  # of any split: a feature file has no other name
        other = query if first.sentence == row.sentence else first
        if (other.video, other.sentence) != (row.video, row.sentence):
            report.add(row.where, 'qid', row.qid, f'another than that of {other.where}, which has '
                       'another video or sentence')
            continue
        queries[row.split, str(qid)] = query
        report.notes['rows with invisible characters, such as joiners, which are kept'] += (
            import_rows.has_invisible(row.video + row.sentence))
        if window is None:
            continue
        report.notes['moments without an end, read as up to that of their video'] += row.end is None
        if window[1] > duration + annotations.END_TOLERANCE:
            late.append(window[1] - duration)
        if values.clip_windows:
            window = (min(window[0], duration), min(window[1], duration))
        report.notes['rows that repeat another, left out'] += window in query.windows
        report.notes['windows without length, kept: to train on them, see data.empty_windows'] += (
            window[0] == window[1])
        query.windows += [window] * (window not in query.windows)
    if late:
        what = 'cut' if values.clip_windows else 'kept; --clip_windows cuts them'
        report.notes[f'windows that end after their video, by up to {max(late):.3g} s, '
                     f'{what}'] = len(late)
    return list(queries.values())


def _check_texts(row: Row, split_in: str, report: Report) -> None:
    """Notes names and sentences that can't be; `split_in`: the first row that has a split."""
    for field, text in (('video', row.video), ('sentence', row.sentence),
                        ('qid', str(row.qid) or 'none')):
        if not annotations.is_name(text):
            report.add(row.where, field, text, 'a text, not empty and without control characters')
    if row.split not in (*SPLITS, ''):
        report.add(row.where, 'split', row.split, f'one of {", ".join(SPLITS)}')
    elif split_in and not row.split:
        report.add(row.where, 'split', '', f'a split in all rows or in none; {split_in} has one')


def _window(row: Row, duration: float, values: Any, report: Report) -> tuple[float, float] | None:
    """The window of a row in a video of this duration; notes what is wrong with it."""
    if row.start is None:
        return None
    end = duration if row.end is None else row.end
    if duration < end < duration + row.grid:
        end = duration
    of_video = f'{import_rows.number(duration)}, the duration of {row.video!r}'
    if row.start > duration + annotations.END_TOLERANCE:
        report.add(row.where, 'start', row.start, f'at most {of_video}')
    elif row.start > end:
        report.add(row.where, 'end', end, f'at least start {import_rows.number(row.start)}')
    elif end > duration + max(values.end_tolerance, annotations.END_TOLERANCE):
        report.add(row.where, 'end', end, f'at most {of_video}, or '
                   f'{import_rows.number(values.end_tolerance)} s more (--end_tolerance)')
    return row.start, end


# Durations


def _durations(rows: Sequence[Row], values: Any, report: Report) -> dict[str, float]:
    """Video -> seconds: of the rows, else of --durations, whose files count more.

    Raises:
        UserError: there are none, a file can't be read, or a folder comes without clip length.
    """
    first: dict[str, Row] = {}
    for row in rows:
        if row.duration is not None and first.setdefault(row.video, row).duration != row.duration:
            report.add(row.where, 'duration', row.duration,
                       f'{import_rows.number(first[row.video].duration)}, as in '
                       f'{first[row.video].where}')
    if rows and not (first or values.durations or report.mistakes):
        raise DataError(f'{", ".join(values.table)}: no durations, expected a column duration or '
                        '--durations=FILE or --durations=FOLDER with --clip_length')
    durations = {video: row.duration for video, row in first.items()}
    for path in values.durations:
        if pathlib.Path(path).is_dir() or hdf5.is_hdf5(hdf5.file_of(path) or path):
            durations |= _durations_of_features(path, values.clip_length, rows, report)
        else:
            durations |= import_tables.read_durations(path, report)
    return durations


def _durations_of_features(folder: str, clip_length: float | None, rows: Sequence[Row],
                           report: Report) -> dict[str, float]:
    """Video -> seconds that its clips last.

    Clips rarely reach a video's very end: a window may end up to one clip after the last one, and
    then the video does.
    """
    if not clip_length or clip_length < 0:
        raise UserError(f'--durations={folder} is a folder, it needs --clip_length=SECONDS')
    of_video = collections.defaultdict(list)
    for row in rows:
        of_video[row.video].append(row)
    durations = {}
    for video, own in of_video.items():
        try:
            file = features.find_file(folder, (video,))
            seconds = len(features.read_features(file, features.VIDEO_KEY)) * clip_length
        except DataError as error:
            report.add_line(own[0].where, str(error))
            report.bad.update(row.where for row in own)
            continue
        near = [row.end for row in own if row.end and row.end <= seconds + clip_length]
        durations[video] = max([seconds, *near])
        report.notes['videos whose last window ends after their clips, by up to one: they end with '
                     'it'] += durations[video] > seconds
    return durations


# Annotation files


def _split_videos(videos: Sequence[str], val_share: float) -> dict[str, str]:
    """Assigns videos to train and val: those with the lowest hashes of their names go to val.

    Val gets a share of them, rounded, but at least one of two or more unless the share is 0. A
    video that is added moves none but those at the border.
    """
    order = sorted(set(videos), key=lambda video: hashlib.sha256(video.encode()).digest())
    n_val = max(round(val_share * len(order)), 1 if val_share and len(order) > 1 else 0)
    return {video: 'val' if i < n_val else 'train' for i, video in enumerate(order)}


def _record(query: Query, report: Report) -> dict:
    """The query as a record of an annotation file."""
    windows = _merge(query.windows)
    report.notes['windows merged with others of their query that they overlap'] += (
        len(query.windows) - len(windows))
    record = dict(qid=query.qid, query=query.sentence, duration=query.duration, vid=query.video)
    return record | (dict(relevant_windows=windows) if windows else {})


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

"""Annotations as ActivityNet Captions, DiDeMo, Ego4D NLQ and Charades-STA publish them.

Their forms are told by what is in them. See docs/datasets.md for what is done with each.
"""

import collections
import json
import math
import re
from collections.abc import Callable
from typing import Any

from data_pipelines import files
from data_pipelines.errors import DataError, one_line
from data_pipelines.own_data import import_rows
from data_pipelines.own_data.import_rows import Report, Row

SEGMENT = 5.0  # seconds, of DiDeMo
FORMS = ('ActivityNet Captions {video: {"duration", "sentences", "timestamps"}}, DiDeMo '
         '[{"video", "description", "times"}] or Ego4D NLQ {"videos": [{"clips"}]}')
_CHARADES = re.compile(r'\s*(\S+)\s+(\S+)\s+(\S+?)\s*##(.*)')


def read(path: str, text: str, report: Report) -> list[Row] | None:
    """Reads the annotations of a published file; None: it is of another kind.

    Raises:
        DataError: it is JSON of another form.
    """
    start = text.lstrip()
    if start.startswith(('{', '[')):
        form, found = _read_json(path, text, report)
    elif '##' in start.partition('\n')[0]:
        form, found = 'Charades-STA', _charades(path, text, report)
    else:
        return None
    rows = [row for row in found if row is not None]
    report.facts.append(f'{path}: {form}, {len(rows)} annotations')
    return rows


def _read_json(path: str, text: str, report: Report) -> tuple[str, list[Row | None]]:
    """Returns the name of the form and the rows, None for bad ones."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f'{path}: not one JSON value: {one_line(error)}, expected {FORMS}, or a '
                        'table') from error
    if isinstance(value, dict) and isinstance(value.get('videos'), list):
        return 'Ego4D NLQ', _ego4d(path, value['videos'], report)
    first = next(iter(value.values() if isinstance(value, dict) else value), None)
    keys = first.keys() if isinstance(first, dict) else ()
    if isinstance(value, list) and 'times' in keys:
        return 'DiDeMo', _didemo(path, value, report)
    if isinstance(value, dict) and 'sentences' in keys:
        return 'ActivityNet Captions', _activitynet(path, value, report)
    raise DataError(f'{path}: JSON of another form, {files.short(value)}, expected {FORMS}')


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _field(where: str, record: Any, name: str, is_right: Callable[[Any], bool], expected: str,
           report: Report) -> Any:
    """A field of a record; None, and a mistake, if it isn't as it should be."""
    value = record.get(name) if isinstance(record, dict) else None
    if is_right(value):
        return value
    if isinstance(record, dict):
        report.add(where, name, value, expected)
    else:
        report.add(where, 'the record', record, 'an object {...}')
    return None


def _row(where: str, video: Any, sentence: Any, window: Any, report: Report, **further: Any
         ) -> Row | None:
    """A row of values that JSON may hold; `window` None: the file doesn't tell."""
    if not _is_text(sentence) or not _is_text(video):
        report.add(where, 'video, sentence', [video, sentence], 'texts')
        return None
    if window is None:
        window = (None, None)
    elif not (_is_list(window) and len(window) == 2 and all(map(_is_time, window))):
        report.add(where, 'window', window, '[start, end] in seconds from 0 on')
        return None
    return Row(where, video, import_rows.one_space(sentence), *window, **further)


def _activitynet(path: str, videos: dict[str, Any], report: Report) -> list[Row | None]:
    """A sentence is a query. A file without timestamps is a test set."""
    rows = []
    for video, record in videos.items():
        where = f'{path}: {video}'
        duration = _field(where, record, 'duration', _is_time, 'seconds', report)
        sentences = _field(where, record, 'sentences', _is_list, 'a list', report)
        if duration is None or sentences is None:
            continue
        windows = record.get('timestamps', [None] * len(sentences))
        if not _is_list(windows) or len(windows) != len(sentences):
            report.add(where, 'timestamps', windows, f'{len(sentences)}, as many as sentences')
            continue
        rows += [_row(f'{where}[{i}]', video, sentence, window, report, duration=float(duration),
                      is_query=True)
                 for i, (sentence, window) in enumerate(zip(sentences, windows, strict=True))]
    return rows


def _didemo(path: str, records: list[Any], report: Report) -> list[Row | None]:
    """Annotators chose first and last of 5 or 6 segments of 5 s; the last ends with the video.

    The moment is what most of them chose; of several such, the first.
    """
    rows = []
    for i, record in enumerate(records):
        where = f'{path}[{i}]'
        times = _field(where, record, 'times', _is_list, 'a list', report)
        if times is None:
            continue
        n_segments = record.get('num_segments', 6)
        if type(n_segments) is not int or not 1 <= n_segments <= 6:
            report.add(where, 'num_segments', n_segments, 'a number from 1 to 6')
            continue
        if bad := [pair for pair in times
                   if not (_is_list(pair) and len(pair) == 2 and all(type(x) is int for x in pair)
                           and 0 <= pair[0] <= pair[1] < n_segments)]:
            report.add(where, 'times', bad[0], f'[first, last] of {n_segments} segments from 0 on')
            continue
        window = None
        if times:
            votes = collections.Counter(map(tuple, times))
            (first, last), most = votes.most_common(1)[0]
            window = [first * SEGMENT, (last + 1) * SEGMENT]
            report.notes['queries whose annotators differ, with the moment of most of them'] += (
                len(votes) > 1)
            report.notes['of these, with several such moments, of which the first is taken'] += (
                len(votes) > 1 and list(votes.values()).count(most) > 1)
        qid = record.get('annotation_id', '')
        rows.append(_row(where, record.get('video'), record.get('description'), window, report,
                         duration=n_segments * SEGMENT, grid=SEGMENT,
                         qid=qid if type(qid) in (int, str) else str(qid)))
    return rows


def _ego4d(path: str, videos: list[Any], report: Report) -> list[Row | None]:
    """A clip is a video here, as in the public baselines; qids are those of the challenge."""
    rows = []
    for i, video in enumerate(videos):
        where = f'{path}: videos[{i}]'
        for clip in _field(where, video, 'clips', _is_list, 'a list', report) or ():
            rows += _ego4d_clip(path, clip, str(video.get('split', '')), report)
    return rows


def _ego4d_clip(path: str, clip: Any, split: str, report: Report) -> list[Row | None]:
    name = clip.get('clip_uid') if isinstance(clip, dict) else None
    where = f'{path}: clip {name}'
    start, end = (_field(where, clip, f'video_{side}_sec', _is_time, 'seconds', report)
                  for side in ('start', 'end'))
    groups = _field(where, clip, 'annotations', _is_list, 'a list', report)
    if start is None or end is None:
        return []
    rows = []
    for group in groups or ():
        uid = _field(where, group, 'annotation_uid', _is_text, 'a text', report)
        queries = _field(where, group, 'language_queries', _is_list, 'a list', report)
        for i, query in enumerate(queries or ()):
            place = f'{path}: query {uid}_{i}'
            if not isinstance(query, dict):
                report.add(place, 'the query', query, 'an object {...}')
            elif not query.get('query'):
                report.notes['queries without a sentence, left out'] += 1
            else:
                window = [query.get('clip_start_sec'), query.get('clip_end_sec')]
                rows.append(_row(
                    place, name, query['query'], None if window == [None, None] else window, report,
                    duration=round(end - start, 6), qid=f'{uid}_{i}', split=split))
    return rows


def _charades(path: str, text: str, report: Report) -> list[Row | None]:
    """Lines `VIDEO START END##SENTENCE`; durations are elsewhere."""
    rows = []
    for line, content in enumerate(text.split('\n'), start=1):
        where = f'{path}:{line}'
        if not content.strip():
            continue
        match = _CHARADES.fullmatch(content.rstrip('\r'))
        try:
            window = [import_rows.read_time(part) for part in match.group(2, 3)]
        except (AttributeError, ValueError):
            report.add(where, 'the line', content[:80], 'VIDEO START END##SENTENCE')
            continue
        rows.append(_row(where, match[1], match[4], window, report, duration=None, is_query=True))
    return rows

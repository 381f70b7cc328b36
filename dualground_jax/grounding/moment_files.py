"""Moments as files: JSON, CSV, and cut lists for FFmpeg and for video editors.

A row is a dict: model, video (a path), query, duration and clip_length in seconds, windows [[start,
end, score], ...] best first, saliency and relevance (a number a clip), frame_rate where it is
known. A cut list has the windows in the order of the rows; those of score 0, which a better one
suppresses, are left out.
"""

import csv
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_pipelines import files
from data_pipelines.errors import ConfigError, DataError

EVENTS = 999  # of an EDL: their numbers have three digits


def to_json(rows: Sequence[dict]) -> str:
    """A list of the rows."""
    return json.dumps(rows, indent=1) + '\n'


def to_csv(rows: Sequence[dict]) -> str:
    """A line for each window, with its rank from 1; a quote before what tables would compute."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator='\n')
    table.writerow(('video', 'query', 'rank', 'start', 'end', 'score'))
    table.writerows((_inert(row['video']), _inert(row['query']), rank, *window)
                    for row in rows for rank, window in enumerate(row['windows'], start=1))
    return text.getvalue()


def to_ffconcat(rows: Sequence[dict], *, absolute: bool = True) -> str:
    """A script of FFmpeg's concat demuxer: `ffmpeg -f concat -safe 0 -i FILE cuts.mp4`.

    Args:
        rows: as everywhere here.
        absolute: whether paths are made so; else they are what the rows have.

    Raises:
        DataError: a path with a line break, which the format cannot hold.
    """
    lines = ['ffconcat version 1.0']
    for row, (start, end, score) in _cuts(rows):
        path = os.path.abspath(row['video']) if absolute else row['video']
        if len(path.splitlines()) > 1:
            raise DataError(f'{path!r}: a path with a line break, which .ffconcat cannot hold')
        quoted = path.replace("'", r"'\''")
        lines += [f'# {score:.4f} {_one_line(row["query"])}', f"file '{quoted}'",
                  f'inpoint {start:.6f}', f'outpoint {end:.6f}']
    return '\n'.join(lines) + '\n'


def to_edl(rows: Sequence[dict]) -> str:
    """An edit decision list (CMX 3600), which video editors import.

    Time codes count frames at the rounded rate and drop none; the first frame is 00:00:00:00.
    """
    lines, written = ['TITLE: moments', 'FCM: NON-DROP FRAME'], 0
    for number, (row, (start, end, score)) in enumerate(_cuts(rows), start=1):
        rate = row['frame_rate']
        first = round(start * rate)
        last = max(round(end * rate), first + 1)
        times = (first, last, written, written + last - first)
        written = times[-1]
        lines += ['', f'{number:03d}  AX       V     C        '
                      + ' '.join(_timecode(frame, round(rate)) for frame in times),
                  f'* FROM CLIP NAME: {_one_line(os.path.basename(row["video"]))}',
                  f'* COMMENT: {score:.4f} {_one_line(row["query"])}']
    return '\n'.join(lines) + '\n'


def _cuts(rows: Sequence[dict]) -> Iterator[tuple[dict, Sequence[float]]]:
    return ((row, window) for row in rows for window in row['windows'] if window[2] > 0)


def _inert(text: Any) -> str:
    return "'" * str(text).startswith(('=', '+', '-', '@', '\t', '\r')) + str(text)


def _one_line(text: Any) -> str:
    return ' '.join(str(text).replace('\0', ' ').split())  # FFmpeg ends lines at NUL too


def _timecode(frame: int, base: int) -> str:
    seconds, frame = divmod(frame, base)
    return f'{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{frame:02d}'


# Ending of a file's name -> its text of rows; cut lists point into videos.
FORMATS: dict[str, Callable[[Sequence[dict]], str]] = {
    '.json': to_json, '.csv': to_csv, '.ffconcat': to_ffconcat, '.edl': to_edl}
CUT_LISTS = ('.ffconcat', '.edl')


def check(path: str, rates: Sequence[float], cuts: int) -> None:
    """Raises ConfigError for what `write` could not write.

    Args:
        path: file to write.
        rates: frames a second of the videos; none where there are features alone.
        cuts: windows at most.
    """
    ending = pathlib.Path(path).suffix
    if ending not in FORMATS:
        raise ConfigError(f'--output={path}: expected a name that ends in {", ".join(FORMATS)}')
    if ending in CUT_LISTS and not rates:
        raise ConfigError(f'--output={path}: a cut list needs --video=FILE')
    if ending == '.edl' and (len(set(rates)) > 1 or not all(rates)):
        told = ', '.join(f'{rate:g}' for rate in sorted(set(rates)))
        raise ConfigError(f'--output={path}: videos of {told} frames a second, expected one rate: '
                          'write a list for each')
    if ending == '.edl' and cuts > EVENTS:
        raise ConfigError(f'--output={path}: up to {cuts} moments, expected at most {EVENTS}; '
                          '--top=1 writes the best of each query')
    if not pathlib.Path(path).absolute().parent.is_dir():
        raise ConfigError(f'--output={path}: no such folder')


def write(path: str, rows: Sequence[dict]) -> None:
    """Writes rows to a file of the format that its ending names."""
    files.write_text(path, FORMATS[pathlib.Path(path).suffix](rows))

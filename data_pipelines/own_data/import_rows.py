"""What the importers share: rows as files have them, and what is to be said of them."""

import codecs
import collections
import dataclasses
import math
import pathlib
import re
import sys
import unicodedata
from typing import Any

from data_pipelines import files
from data_pipelines.errors import DataError, one_line

# Seconds, also as 1.5e1, or minutes:seconds, or hours:minutes:seconds.
_TIME = re.compile(
    r'(?:(?:(\d+):(?=\d+:))?(\d+):)?(\d+(?:\.\d*)?|\.\d+)((?<!:)[eE][+-]?\d+)?', re.ASCII)


@dataclasses.dataclass(frozen=True)
class Row:
    """A moment as a file has it.

    Attributes:
        where: its place, for messages; no two rows have the same.
        video: name.
        sentence: with single spaces.
        start, end: seconds. Both None: it has no known moment; `end` alone: that of the video.
        duration: of the video, seconds; None where the file has none.
        qid: '' where the file has none.
        split: '' where the file has none.
        is_query: whether it is a query of its own, even if others have its video and sentence.
        grid: seconds of the annotators' grid: an end less than that after the video is the
            video's.
    """

    where: str
    video: str
    sentence: str
    start: float | None
    end: float | None
    duration: float | None
    qid: int | str = ''
    split: str = ''
    is_query: bool = False
    grid: float = 0.0


class Report:
    """Collects what is wrong with files, and what was read though it is out of the ordinary.

    Attributes:
        mistakes: a line for each.
        bad: places that have one.
        facts: lines to print.
        notes: what was read -> how often.
    """

    def __init__(self):
        self.mistakes: list[str] = []
        self.bad: set[str] = set()
        self.facts: list[str] = []
        self.notes: collections.Counter[str] = collections.Counter()

    def add(self, where: str, field: str, found: Any, expected: str) -> None:
        """Notes that a field is wrong."""
        if type(found) is float:
            found = number(found)
        elif isinstance(found, list | dict):
            found = files.short(found)
        else:
            found = repr(found)
        self.add_line(where, f'{field} is {found}, expected {expected}')

    def add_line(self, where: str, text: str) -> None:
        """Notes that something else is wrong at a place."""
        self.mistakes.append(f'{where}: {text}')
        self.bad.add(where)

    def check(self, paths: str, *, skip: bool) -> None:
        """Prints the mistakes. Unless they are to be skipped, raises DataError if there are any."""
        if not self.mistakes:
            return
        print('\n'.join(self.mistakes), file=sys.stderr)
        if not skip:
            raise DataError(f'{paths}: nothing is written, mistakes: {len(self.mistakes)}, the '
                            f'first: {self.mistakes[0]}')
        self.notes['with mistakes, left out'] = len(self.bad)


def number(value: float) -> str:
    """A number without digits that say nothing."""
    return f'{value:.12g}'


def read_time(text: str) -> float:
    """Reads seconds, mm:ss or hh:mm:ss; seconds may have decimals. ValueError for others."""
    match = _TIME.fullmatch(text)
    if not match or match[2] and match[4]:
        raise ValueError(text)
    hours, minutes = (float(part or 0) for part in match.groups()[:2])
    seconds = float(match[3] + (match[4] or ''))
    if match[2] and seconds >= 60 or match[1] and minutes >= 60 or math.isinf(seconds):
        raise ValueError(text)
    return 3600 * hours + 60 * minutes + seconds


def read_text(path: str, report: Report) -> str:
    """Reads a file in UTF-8, with or without byte order mark, or in UTF-16 with one.

    Raises:
        DataError: it can't be read or is none.
    """
    encoding = 'utf-8'
    try:
        content = pathlib.Path(path).read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            encoding = 'utf-16'
            report.facts.append(f'{path}: read as UTF-16')
        text = content.decode(encoding)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {one_line(error)}") from error
    except UnicodeDecodeError as error:
        line = content[:error.start].count(b'\n') + 1
        raise DataError(f'{path}:{line}: byte {content[error.start]:#04x} is not {error.encoding}, '
                        'expected a file saved as UTF-8') from error
    if '\0' in text[:100]:
        raise DataError(f'{path}:1: zero bytes, expected UTF-8, or UTF-16 with a byte order mark')
    return text.replace('\ufeff', '')  # byte order marks: files may have been joined


def has_invisible(text: str) -> bool:
    """Says whether there are joiners, marks of direction and the like in a text."""
    return not text.isprintable() and any(unicodedata.category(c) == 'Cf' for c in text)


def visible(text: str) -> str:
    """The text without such characters, and without spaces at its ends."""
    return ''.join(c for c in text if unicodedata.category(c) != 'Cf').strip()


def one_space(text: str) -> str:
    """The text with single spaces in place of runs of spaces and line breaks."""
    return ' '.join(text.split())

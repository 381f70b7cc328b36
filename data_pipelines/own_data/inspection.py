"""What feature files hold, remembered so that unchanged files need not be read again.

`Inspector` keeps what it found in `verified.json` in the folder of the features, with each file's
size, time of change and CRC-32. Where that folder can't be written to, it goes on without.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from data_pipelines import features, hdf5, progress, tokens
from data_pipelines.errors import DataError, one_line
from data_pipelines.files import write_text

CACHE = 'verified.json'
VERSION = 1  # raise it when inspection begins to find other things
THREADS = 8


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a feature file holds.

    Attributes:
        rows, width: shape of its array; 0 where it can't be used.
        filled: rows before the zeros at its end.
        zeros: rows of zeros among these.
        error: why it can't be used, without its path; '' if it can.
    """

    rows: int = 0
    width: int = 0
    filled: int = 0
    zeros: int = 0
    error: str = ''


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file as it was when it was inspected.

    Attributes:
        key: name of the array that was looked for.
        size: bytes, of an HDF5 file all of it.
        changed: time of its last change, in nanoseconds.
        crc32: of its bytes, in an HDF5 file of the array's.
        finding: what it holds.
    """

    key: str
    size: int
    changed: int
    crc32: int
    finding: Finding


def inspect(path: str | os.PathLike, key: str) -> Finding:
    """Reads a feature file as training does and says what it holds."""
    try:
        rows = features.read_features(path, key)
    except DataError as error:
        return Finding(error=str(error).removeprefix(f'{path}: '))
    filled = tokens.filled_rows(rows)
    zeros = int((~rows[:filled].any(axis=1)).sum())
    return Finding(*rows.shape, filled, zeros)


class Inspector:
    """Inspects files, those that are unchanged since the last time without reading them.

    Attributes:
        entries: path -> Entry, of all files inspected.
        read, unchanged: numbers of files.
        bytes: read.
        altered: paths whose content differs though size and time of change are those of before.
        note: why nothing is remembered; '' if it is.
    """

    def __init__(self, root: str | os.PathLike, *, recheck: bool = False):
        """Takes the folder of the features; recheck: reads also files that seem unchanged."""
        self.entries: dict[pathlib.Path, Entry] = {}
        self.read = self.unchanged = self.bytes = 0
        self.altered: list[pathlib.Path] = []
        self.note = ''
        self._root, self._recheck = root, recheck
        self._cache = pathlib.Path(root, CACHE)
        self._known, self._answers = self._load()

    def inspect_all(self, files: Iterable[tuple[pathlib.Path, str]]) -> None:
        """Inspects (path, array name) pairs in parallel, tells progress, remembers the findings."""
        files = list(files)
        pool = concurrent.futures.ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
        try:
            inspected = pool.map(lambda file: self._inspect_one(*file), files)
            with progress.Bar('verifying', len(files), 'files') as bar:
                for (path, _), (entry, size, altered) in zip(files, inspected, strict=True):
                    self.entries[path] = entry
                    self.read += size is not None
                    self.unchanged += size is None
                    self.bytes += size or 0
                    self.altered += [path] * altered
                    bar.advance(note=f'{self.bytes / 2**20:.0f} MiB read')
        finally:  # also when interrupted
            pool.shutdown(cancel_futures=True)
            self._save()

    def remember(self, question: str, paths: Sequence[pathlib.Path],
                 answer: Callable[[], Any]) -> Any:
        """Calls `answer`, whose JSON value hangs on inspected files alone, unless it is known."""
        checksums = [self.entries[path].crc32 for path in paths]
        known = self._answers.get(question)
        if not known or known[0] != checksums:
            known = self._answers[question] = [checksums, answer()]
            self._save()
        return known[1]

    def _inspect_one(self, path: pathlib.Path, key: str) -> tuple[Entry, int | None, bool]:
        """Returns the Entry, the bytes that were read if any, and whether the file was altered."""
        known = self._known.get(self._name(path))
        if known and known.key != key:
            known = None
        try:
            file = hdf5.file_of(path) or path
            stat = file.stat()
            seems_same = known and (known.size, known.changed) == (stat.st_size, stat.st_mtime_ns)
            if seems_same and not self._recheck:
                return known, None, False
            content = path.read_bytes() if file == path else hdf5.read(path, key).tobytes()
        except (OSError, DataError) as error:
            reason = str(error).removeprefix(f'{path}: ')
            if isinstance(error, OSError):
                reason = f"can't be read: {one_line(error)}"
            return Entry(key, -1, -1, 0, Finding(error=reason)), 0, False
        checksum = zlib.crc32(content)
        same = known and (known.crc32, known.size) == (checksum, stat.st_size)
        finding = known.finding if same else inspect(path, key)
        entry = Entry(key, stat.st_size, stat.st_mtime_ns, checksum, finding)
        return entry, len(content), bool(seems_same and not same)

    def _name(self, path: pathlib.Path) -> str:
        return os.path.relpath(path, self._root)

    def _load(self) -> tuple[dict[str, Entry], dict]:
        try:
            content = json.loads(self._cache.read_text(encoding='utf-8'))
            if content['version'] != VERSION:
                return {}, {}
            return {name: Entry(*entry, Finding(*finding))
                    for name, (*entry, finding) in content['files'].items()}, content['answers']
        except (OSError, ValueError, KeyError, TypeError):
            return {}, {}  # it only saves time: one that is damaged is as good as none

    def _save(self) -> None:
        now = {self._name(path): entry for path, entry in self.entries.items() if entry.size >= 0}
        files = {name: dataclasses.astuple(entry) for name, entry in (self._known | now).items()}
        content = dict(version=VERSION, answers=self._answers, files=files)
        try:
            write_text(self._cache, json.dumps(content))
        except OSError as error:
            self.note = f"{self._cache} can't be written: {one_line(error)}"

"""JSON files, and files and folders that appear whole or not at all."""

import contextlib
import gzip
import json
import os
import pathlib
import re
import reprlib
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from data_pipelines.errors import DataError, UserError, one_line

NAME_BYTES = 200  # of a name; file systems allow 255, of which endings take some
T = TypeVar('T')

# Whole or not at all


@contextlib.contextmanager
def named(path: str | os.PathLike) -> Iterator[None]:
    """Lets an OSError in the block name the path: that of a write to a full disk names none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # else a library's own text, which a file name would replace
            error.filename = error.filename or os.fspath(path)
        raise


@contextlib.contextmanager
def whole_files(*paths: str | os.PathLike) -> Iterator[list[pathlib.Path]]:
    """Yields paths to write to; the files take the places of `paths` when the block is through."""
    paths = [pathlib.Path(path) for path in paths]
    temporaries = [path.with_name(f'.{path.name}.tmp') for path in paths]
    try:
        with named(paths[0]):
            yield temporaries
            for temporary, path in zip(temporaries, paths, strict=True):
                os.replace(temporary, path)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(folder: str | os.PathLike, *, replace: bool = False) -> Iterator[pathlib.Path]:
    """Yields an empty folder to fill, which becomes `folder` when the block is through.

    Args:
        folder: to make.
        replace: whether a folder that is there gives way.

    Raises:
        OSError: there is a folder that is not empty.
    """
    folder = pathlib.Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{folder.name}.', dir=folder.parent) as scratch:
        unfinished = pathlib.Path(scratch, folder.name)
        unfinished.mkdir()
        with named(folder):
            yield unfinished
        if replace and folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)


def fill_once(folder: str | os.PathLike, record_name: str, record: dict,
              write: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Makes a folder by `write(path)`, with a JSON file that says what is in it.

    Args:
        folder: to make; one that holds the same record is left as it is.
        record_name: name of the JSON file.
        record: its content: all that decides what `write` writes.
        write: fills a folder.

    Returns:
        The folder's path.

    Raises:
        UserError: `folder` exists with other contents.
    """
    folder = pathlib.Path(folder)
    if _holds(folder, record_name, record):
        return folder
    try:
        with whole_folder(folder) as unfinished:
            write(unfinished)
            text = json.dumps(record, indent=1) + '\n'
            (unfinished / record_name).write_text(text, encoding='utf-8')
    except OSError:
        # Another process may have made it meanwhile.
        if not _holds(folder, record_name, record):
            raise
    return folder


def _holds(folder: pathlib.Path, record_name: str, record: dict) -> bool:
    """Says whether `folder` holds what `record` says; UserError if it holds anything else."""
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return False
    try:
        found = json.loads((folder / record_name).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        raise UserError(
            f'{folder}: no readable {record_name} in it, expected a new or empty folder') from None
    if found != record:
        differing = ', '.join(f'{key} {found.get(key)!r}, asked for {record.get(key)!r}'
                              for key in sorted({*found, *record})
                              if found.get(key) != record.get(key))
        raise UserError(f'{folder}: holds other data, expected the same or none: {differing}')
    return True


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file."""
    with whole_files(path) as (temporary,):
        temporary.write_text(text, encoding='utf-8')


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes one JSON value, indented."""
    write_text(path, json.dumps(value, indent=2) + '\n')


def write_jsonl(path: str | os.PathLike, rows: Iterable[Any]) -> None:
    """Writes one JSON value a line."""
    write_text(path, to_jsonl(rows))


def to_jsonl(rows: Iterable[Any]) -> str:
    """The text of JSON lines."""
    return ''.join(json.dumps(row) + '\n' for row in rows)


# Reading


def foreign(path: str | os.PathLike) -> str:
    """What a file says that came in place of another: a line; '' if it is no such file."""
    try:
        with open(path, 'rb') as file:
            start = file.read(1024).removeprefix(b'\xef\xbb\xbf').lstrip().lower()
    except OSError:
        return ''
    if start.startswith(b'version https://git-lfs'):
        return f'{path}: not the file but a pointer of Git LFS to it; `git lfs pull` gets the file'
    if re.match(rb'<(!doctype html|html|head|\?xml|error)', start):
        return f'{path}: not the file but a web page; download it again, perhaps signed in'
    return ''


def check_genuine(path: str | os.PathLike) -> None:
    """Raises DataError if the file came in place of another, see `foreign`."""
    if reason := foreign(path):
        raise DataError(reason)


def is_file_name(text: str) -> bool:
    """Whether files can be named by a text, with some letters before and after it."""
    return text not in ('', '.', '..') and not set(text) & set('/\0') and len(
        text.encode(errors='replace')) <= NAME_BYTES


def the_array(arrays: Mapping[str, T], key: str, path: Any) -> T:
    """The array of name `key` in a file or group, or the only one.

    Raises:
        DataError: there are several, or none.
    """
    if key in arrays:
        return arrays[key]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    found = ', '.join(map(repr, arrays)) or 'none'
    raise DataError(f'{path}: expected array {key!r} or one alone, found {found}')


def read_json(path: str | os.PathLike) -> dict:
    """Reads a JSON object.

    Raises:
        DataError: it is none.
    """
    check_genuine(path)
    try:
        found = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read as JSON: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise DataError(f'{path}: holds {short(found)}, expected a JSON object')
    return found


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads tensors by name.

    Raises:
        DataError: the file is missing or damaged.
    """
    import safetensors.numpy

    check_genuine(path)
    try:
        return safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f'{path}: damaged or cut short ({one_line(error)})') from error


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray],
                      told: Mapping[str, str] | None = None) -> None:
    """Writes tensors by name, and what is `told` of the file in its head.

    The library's own writer leaves files that their owner alone may read.
    """
    import safetensors.numpy

    pathlib.Path(path).write_bytes(safetensors.numpy.save(dict(tensors), told))


def load_jsonl(path: str | os.PathLike) -> list[dict]:
    """Reads a list of dicts from a `.jsonl` or `.jsonl.gz` file, skipping blank lines.

    Raises:
        DataError: the file can't be read or came in place of another, a line is not a JSON object,
            or the gzip stream is damaged.
    """
    check_genuine(path)
    opener = gzip.open if str(path).endswith('.gz') else open
    rows = []
    number = 0
    try:
        with opener(path, 'rb') as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    rows.append(_parse_line(line, path, number))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f'{path}: damaged gzip stream after line {number} ({error}), '
            'expected a complete .gz file') from error
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error
    return rows


def _parse_line(line: bytes, path: Any, number: int) -> dict:
    try:
        row = json.loads(line.strip())
    except ValueError as error:
        # The parser sees one line only: its own line number would mislead.
        reason = str(error).replace('line 1 column', 'column')
        raise DataError(
            f'{path}:{number}: malformed JSON ({reason}), expected one object per line') from error
    if not isinstance(row, dict):
        raise DataError(f'{path}:{number}: found {short(row)}, expected a JSON object')
    return row


def short(value: Any) -> str:
    """Returns the value as one short line."""
    return ' '.join(reprlib.repr(value).split())

"""Files of JSON, and folders: they appear whole or not at all."""

import gzip
import json
import os
import pathlib
import reprlib
import tempfile
import zlib

from data_pipelines.errors import DataError, UserError


def fill_once(folder, record_name, record, write):
    """Makes `folder` with `write(path)`, so that it and its record are there when whole, or never.

    Raises:
        UserError: `folder` exists with other contents.
    """
    folder = pathlib.Path(folder)
    if _holds(folder, record_name, record):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{folder.name}.', dir=folder.parent) as scratch:
        unfinished = pathlib.Path(scratch, folder.name)
        unfinished.mkdir()
        write(unfinished)
        text = json.dumps(record, indent=1) + '\n'
        (unfinished / record_name).write_text(text, encoding='utf-8')
        try:
            unfinished.rename(folder)
        except OSError:
            # Another process may have made it meanwhile: renaming never replaces a filled folder.
            if not _holds(folder, record_name, record):
                raise
    return folder


def _holds(folder, record_name, record):
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


def load_jsonl(path):
    """Reads a list of dicts from a `.jsonl` or `.jsonl.gz` file, skipping blank lines.

    Raises:
        DataError: the file can't be read, a line is not a JSON object, or the gzip stream is
            damaged.
    """
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


def _parse_line(line, path, number):
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


def write_jsonl(path, rows):
    """Writes one JSON object a line; the file appears whole or not at all."""
    write_text(path, ''.join(json.dumps(row) + '\n' for row in rows))


def write_json(path, value):
    """Writes one JSON value, indented; the file appears whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + '\n')


def write_text(path, text):
    """Writes a text; the file appears whole or not at all."""
    path = pathlib.Path(path)
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def short(value):
    """Returns the value as one short line."""
    return ' '.join(reprlib.repr(value).split())

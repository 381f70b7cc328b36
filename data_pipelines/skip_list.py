"""Records that training leaves out on purpose: a file of JSON lines that `data.skip_list` names.

Mode `verify-data` writes it; by hand, `{"split": "train", "qid": 7}` is enough. `line` is the
record's in its annotation file: it tells records without a readable qid, or of the same one,
apart. A list that no longer fits its annotation file is an error.
"""

import json
import os
import reprlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.files import load_jsonl

# Of an annotation file: line number from 1, content.
NumberedLines = Sequence[tuple[int, bytes]]


def qid_of(line: bytes) -> int | str | None:
    """The qid that a line of an annotation file claims, None where it has none."""
    try:
        qid = json.loads(line)['qid']
    except (ValueError, TypeError, KeyError):
        return None
    return qid if type(qid) in (int, str) else None


def messages(name: Any, path: Any, skip: Mapping[int, str]) -> list[str]:
    """What `Split.skipped` says of the lines of an annotation file that a skip list has."""
    return [f'{name}:{line}: {reason} ({path})' for line, reason in skip.items()]


def read(path: str | os.PathLike, split: str, splits: Collection[str], lines: NumberedLines,
         *, whole: bool = True) -> dict[int, str]:
    """Reads which records of a split are to be skipped.

    Args:
        path: the skip list; '' is an empty one.
        split: name of the split.
        splits: all names.
        lines: of the split's annotation file.
        whole: whether these are all; else an entry without a record is of one that is not there.

    Returns:
        Line number in the annotation file -> reason.

    Raises:
        DataError: the list can't be read, or an entry is not as expected: another split, or no
            record of its qid (on its line, if it has one).
    """
    if not path:
        return {}
    qids = {number: qid_of(line) for number, line in lines}
    skipped = {}
    try:
        entries = load_jsonl(path)
    except DataError as error:
        raise DataError(f'{error} (data.skip_list)') from error
    for i, entry in enumerate(entries, start=1):
        where = f'{path}, entry {i} (data.skip_list)'
        if entry.get('split') not in splits:
            raise DataError(f'{where}: split is {reprlib.repr(entry.get("split"))}, expected one '
                            f'of {", ".join(splits)}')
        if 'qid' not in entry or entry['qid'] is None and 'line' not in entry:
            raise DataError(f'{where}: found no qid and no line, expected one of a record')
        if entry['split'] != split:
            continue
        found = [number for number, qid in qids.items()
                 if qid == entry['qid'] and entry.get('line', number) == number]
        if not found and whole:
            place = f' on line {entry["line"]}' if 'line' in entry else ''
            raise DataError(f'{where}: split {split!r} has no record of qid {entry["qid"]!r}{place}'
                            ', verify the data anew')
        skipped |= dict.fromkeys(found, str(entry.get('reason', 'no reason given')))
    return skipped

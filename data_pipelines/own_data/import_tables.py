"""Tables of video, start, end, sentence, and of video, duration. See docs/own_data.md."""

import csv
import io
import re
from collections.abc import Mapping, Sequence

from data_pipelines.errors import DataError
from data_pipelines.own_data import import_rows
from data_pipelines.own_data.import_rows import Report, Row

REQUIRED, OPTIONAL = ('video', 'start', 'end', 'sentence'), ('qid', 'duration', 'split')
DURATIONS = {'id': 'video', 'length': 'duration'}  # as Charades names them
DELIMITERS = (',', '\t', ';')
_MAYBE_THOUSANDS = re.compile(r'[1-9]\d{0,2},\d{3}', re.ASCII)


def read_moments(path: str, text: str, report: Report) -> list[Row]:
    """Reads the rows of a table of moments.

    Raises:
        DataError: it lacks a column.
    """
    cells = _read_cells(path, text, REQUIRED, OPTIONAL, {}, report)
    _read_decimal_commas(cells, ('start', 'end', 'duration'), report)
    rows = []
    for where, row in cells:
        start, end, duration = (_time(where, name, row[name], report)
                                for name in ('start', 'end', 'duration'))
        if row['end'] and not row['start']:
            report.add(where, 'start', '', 'seconds, mm:ss or hh:mm:ss; only an end may be open')
        sentence = import_rows.one_space(row['sentence'])
        qid, split = row['qid'], import_rows.visible(row['split'])
        if re.fullmatch('0|[1-9][0-9]*', qid):
            qid = int(qid)
        rows.append(Row(where, row['video'], sentence, start, end, duration, qid, split))
    return rows


def read_durations(path: str, report: Report) -> dict[str, float]:
    """Reads a table of video, duration.

    Raises:
        DataError: it can't be read or lacks a column.
    """
    text = import_rows.read_text(path, report)
    cells = _read_cells(path, text, ('video', 'duration'), (), DURATIONS, report)
    _read_decimal_commas(cells, ('duration',), report)
    durations: dict[str, float] = {}
    for where, row in cells:
        if not row['duration']:
            report.add(where, 'duration', '', 'seconds, mm:ss or hh:mm:ss')
        seconds = _time(where, 'duration', row['duration'], report)
        if seconds is not None and durations.setdefault(row['video'], seconds) != seconds:
            report.add(where, 'duration', seconds, import_rows.number(durations[row['video']])
                       + ', as in a row before')
    return durations


def _time(where: str, column: str, text: str, report: Report) -> float | None:
    if not text:
        return None
    try:
        seconds = import_rows.read_time(text)
    except ValueError:
        report.add(where, column, text, 'seconds, mm:ss or hh:mm:ss')
        return None
    report.notes['times in scientific notation'] += 'e' in text.lower()
    return seconds


def _read_cells(path: str, text: str, required: Sequence[str], optional: Sequence[str],
                aliases: Mapping[str, str], report: Report) -> list[tuple[str, dict[str, str]]]:
    """Reads a table with a header; cells are stripped, columns in any order.

    Args:
        path: what messages call it.
        text: commas, tabs or semicolons; cells in double quotes may hold these, line breaks and
            doubled quotes.
        required, optional: names of columns, whatever their case.
        aliases: other names that they may have.
        report: gets rows that are no rows, and further columns.

    Returns:
        'path:line', column -> cell, '' where the table lacks an optional one; of each row.

    Raises:
        DataError: it lacks a required column.
    """
    for delimiter in DELIMITERS:
        reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True)
        try:
            header = [import_rows.visible(name).lower() for name in next(reader, [])]
        except csv.Error:  # quotes are matched with another delimiter, or this is no header
            continue
        header = [name if aliases.get(name, name) in header else aliases[name] for name in header]
        if set(required) <= set(header):
            break
    else:
        first = text.splitlines()[0] if text else ''
        raise DataError(f'{path}:1: header is {first!r}, expected columns {", ".join(required)}')
    named = [name for name in header if name]
    if len(set(named)) < len(named):
        raise DataError(f'{path}:1: header is {header}, expected different names')
    while not header[-1]:
        header.pop()
    if unread := [name or 'one without a name' for name in header
                  if name not in (*required, *optional)]:
        report.facts.append(f'{path}: columns that are not read: {", ".join(unread)}')
    n_empty = 0

    rows, line = [], reader.line_num + 1
    try:
        for cells in reader:
            where, line = f'{path}:{line}', reader.line_num + 1
            cells = [cell.strip() for cell in cells]
            beyond = cells[len(header):]
            n_empty = max(n_empty, len(beyond) if any(cells) else 0)
            if not any(cells):
                continue
            if len(cells) < len(header) or any(beyond):
                report.add_line(where, f'{len(cells)} cells, expected {len(header)} as in the '
                                'header')
                continue
            row = dict(zip(header, cells, strict=False))
            rows.append((where, {name: row.get(name, '') for name in (*required, *optional)}))
    except csv.Error as error:
        raise DataError(f'{path}:{line}: {error}, expected cells in matched double quotes: nothing '
                        'is written') from error
    if n_empty:
        report.facts.append(f'{path}: empty columns at the end, not read: {n_empty}')
    return rows


def _read_decimal_commas(rows: Sequence[tuple[str, dict[str, str]]], columns: Sequence[str],
                         report: Report) -> None:
    """Puts points for decimal commas, where it is clear from the table that they are such."""
    commas, points = [], []
    for where, row in rows:
        for column in columns:
            row[column] = import_rows.visible(row[column])
            marks = re.sub('[^,.]', '', row[column])
            if marks in (',', '.'):
                (commas if marks == ',' else points).append((where, column, row))
    unclear = all(_MAYBE_THOUSANDS.fullmatch(row[column]) for _, column, row in commas)
    for where, column, row in commas:
        if points:
            other, name, cells = points[0]
            report.add(where, column, row[column],
                       f'one decimal mark, but {name} is {cells[name]!r} in {other}')
        elif unclear:
            report.add(where, column, row[column], 'a decimal point or none: this comma may mean '
                       'decimals or thousands')
        else:
            report.notes['times with a decimal comma'] += 1
        row[column] = row[column].replace(',', '.')

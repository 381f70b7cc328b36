"""Tables as text: for the terminal and in Markdown, and how numbers look in their cells."""

from collections.abc import Sequence


def plain(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Lines with aligned columns.

    Args:
        rows: cells, the titles first.
        left: places of the columns that hold text; the others hold numbers, aligned to the right.
    """
    return '\n'.join('  '.join(cells).rstrip() for cells in _aligned(rows, left))


def markdown(columns: Sequence, rows: Sequence[Sequence]) -> str:
    """A Markdown table that can be read as it is; the first column is text, the others numbers."""
    titles, *body = _aligned([columns, *rows], (0,), least=3)
    rule = ['-' * len(titles[0]), *('-' * (len(title) - 1) + ':' for title in titles[1:])]
    return ''.join('| ' + ' | '.join(cells) + ' |\n' for cells in (titles, rule, *body))


def _aligned(rows, left, least=0):
    """Returns the cells as texts of one width in each column."""
    rows = [list(map(str, row)) for row in rows]
    widths = [max(least, *map(len, column)) for column in zip(*rows, strict=True)]
    left = [range(len(widths))[place] for place in left]
    return [[cell.ljust(width) if place in left else cell.rjust(width)
             for place, (cell, width) in enumerate(zip(row, widths, strict=True))] for row in rows]


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash for None."""
    return '–' if value is None else f'{value:.{digits}f}'


def interval(found: dict | None, digits: int = 2) -> str:
    """'value [low, high]', or a dash for what was not measured."""
    if not found:
        return '–'
    low, high = (number(found[end], digits) for end in ('low', 'high'))
    return f'{number(found["value"], digits)} [{low}, {high}]'


def spread(mean: float | None, std: float | None, digits: int = 2) -> str:
    """'mean ± std', the mean alone where there is no std, or a dash for what was not measured."""
    return number(mean, digits) + ('' if std is None else f' ± {std:.{digits}f}')

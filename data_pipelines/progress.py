"""How far long work has come: a bar on a terminal, elsewhere a line now and then.

All of it goes to stderr: stdout is for results, which may be piped. Of several processes only one
speaks; the others call `silence`.
"""

import contextlib
import sys
import time
from collections.abc import Collection, Iterator
from typing import TypeVar

from rich import progress
from rich.console import Console
from rich.table import Column
from rich.text import Text

LINE_SECONDS = 20.0  # between two lines of the same work where there is no terminal
RATE_SECONDS = 600.0  # what a rate is measured over

T = TypeVar('T')

_silent = False
_display: progress.Progress | None = None  # shared by all bars that are shown at the moment


def silence() -> None:
    """From now on says nothing."""
    global _silent
    _silent = True


def say(text: str) -> None:
    """Prints a line on stderr, above the bars."""
    if not _silent:
        print(text, file=sys.stderr, flush=True)


class Bar:
    """Counts items of a piece of work; a context manager, which shows the bar.

    Args:
        description: the work, as in 'reading features'.
        total: number of items, or None if it is not known.
        unit: the items' name, as in 'steps'.
        done: number of items that were done before.
    """

    def __init__(self, description: str, total: int | None, unit: str = 'items', done: int = 0):
        self.description, self.total, self.unit, self.done = description, total, unit, done

    def __enter__(self) -> 'Bar':
        global _display
        if _display is None:
            _display = _new_display()
            _display.start()
        self._task = _display.add_task(
            self.description, total=self.total, completed=self.done, unit=self.unit, note='')
        self._told = time.monotonic()
        return self

    def __exit__(self, *_) -> None:
        global _display
        _display.remove_task(self._task)
        if not _display.tasks:
            _display.stop()
            _display = None

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Counts items; a note, as in 'loss 1.23', stands beside the count until the next one."""
        _display.update(self._task, advance=count, **({} if note is None else dict(note=note)))
        if _display.disable and time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            task, = (task for task in _display.tasks if task.id == self._task)
            say(' '.join(filter(None, (text(task) for text in _TEXTS))))


def track(items: Collection[T], description: str, unit: str = 'items') -> Iterator[T]:
    """Yields the items behind a bar."""
    with Bar(description, len(items), unit) as bar:
        for item in items:
            yield item
            bar.advance()


@contextlib.contextmanager
def timed(work: str) -> Iterator[None]:
    """Tells of work that has no parts to count, and in the end how long it took."""
    start = time.monotonic()
    with Bar(work, None):
        if _display.disable:
            say(f'{work} ...')
        yield
    say(f'{work}: {time.monotonic() - start:.1f} s')


def _count(task: progress.Task) -> str:
    return '' if task.total is None else f'{task.completed:.0f}/{task.total:.0f}'


def _pace(task: progress.Task) -> str:
    """Rate and time left, as in '5.0 steps/s, 3 min left'; empty until they are known."""
    rate, left = task.speed, task.time_remaining
    if not rate or left is None:
        return ''
    unit, seconds = next(entry for entry in (('h', 3600), ('min', 60), ('s', 1))
                         if left >= 2 * entry[1] or entry[1] == 1)
    spelt = f'{rate:.1f}' if rate >= 1 else f'{rate:.3f}'
    return f'{spelt} {task.fields["unit"]}/s, {left / seconds:.0f} {unit} left'


_TEXTS = (lambda task: task.description, _count, lambda task: task.fields['note'], _pace)


class _TextColumn(progress.ProgressColumn):
    """A function's text of a task, as it is: rich would take what stands in brackets for markup."""

    def __init__(self, text):
        super().__init__(Column(no_wrap=True))
        self.text = text

    def render(self, task):
        return Text(self.text(task))


def _new_display() -> progress.Progress:
    console = Console(stderr=True)
    shown = sys.stderr.isatty() and not console.is_dumb_terminal and not _silent
    description, *texts = map(_TextColumn, _TEXTS)
    return progress.Progress(
        description, progress.BarColumn(20), *texts, console=console, disable=not shown,
        transient=True, refresh_per_second=4, speed_estimate_period=RATE_SECONDS,
        redirect_stdout=sys.stdout.isatty(),  # else it is a file, which lines must reach
    )

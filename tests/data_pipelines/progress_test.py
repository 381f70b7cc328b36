"""What long work says: a bar on a terminal, lines elsewhere, nothing on stdout."""

import os
import pty
import re
import subprocess
import sys

import pytest

from data_pipelines import progress
from tests.helpers.paths import REPO

WORK = """
import time
from data_pipelines import progress
with progress.timed('compiling'):
    time.sleep(0.3)
with progress.Bar('step', 20, 'steps', done=10) as bar:
    for i in range(10):
        time.sleep(0.05)
        bar.advance(1, f'loss [{i}]')
    for _ in progress.track(range(3), 'inner'):
        time.sleep(0.2)
    progress.say('one line')
    print('a result')
print('the end')
"""


@pytest.fixture(name='terminal')
def on_a_terminal():
    """Runs WORK with stderr on a terminal; returns what this shows and what stdout got."""

    def run(**settings):
        ours, theirs = pty.openpty()
        env = os.environ | dict(TERM='xterm', COLUMNS='100') | settings
        process = subprocess.Popen([sys.executable, '-c', WORK], cwd=REPO, stderr=theirs,
                                   stdout=subprocess.PIPE, env=env)
        os.close(theirs)
        shown = b''
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # so Linux tells that the other side is closed
                break
            if not part:
                break
            shown += part
        os.close(ours)
        assert process.wait() == 0, shown.decode()
        return shown.decode(), process.stdout.read().decode()

    return run


def test_a_terminal_shows_bars_that_vanish(terminal):
    shown, written = terminal()
    assert written == 'a result\nthe end\n'
    assert re.search(r'compiling.*━', shown) and 'compiling: 0.' in shown
    assert 'loss [9]' in shown and re.search(r'20/20.*steps/s, 0 s left', shown)
    assert re.search(r'inner.*1/3', shown)
    # The last bar is wiped out: what stays are the lines.
    assert shown.rstrip().endswith(('\x1b[2K', '\x1b[?25h')) and 'one line\r\n' in shown


def test_ascii_and_dumb_terminals_break_nothing(terminal):
    shown, written = terminal(PYTHONIOENCODING='ascii')
    assert shown.isascii() and 'step' in shown and written == 'a result\nthe end\n'
    shown, _ = terminal(TERM='dumb')
    assert '\x1b' not in shown and 'one line' in shown


def test_lines_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, 'LINE_SECONDS', 0)
    with progress.Bar('step', 1000, 'steps', done=998) as bar:
        bar.advance(note='loss 1.23')
        bar.advance()
    with progress.timed('compiling the train step'):
        pass
    found = capsys.readouterr()
    assert found.out == ''
    first, second, start, end = found.err.splitlines()
    assert first == 'step 999/1000 loss 1.23'
    assert re.fullmatch(r'step 1000/1000 loss 1.23 [\d.]+ steps/s, 0 s left', second)
    assert start == 'compiling the train step ...' and end == 'compiling the train step: 0.0 s'


def test_short_work_says_nothing_and_errors_pass(capsys):
    assert list(progress.track([1, 2], 'reading')) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        for _ in progress.track([1], 'reading'):
            raise ZeroDivisionError
    assert capsys.readouterr().err == '' and progress._display is None


@pytest.mark.parametrize('seconds, expected', [
    (0.25, '4.0 steps/s, 25 s left'),
    (2, '0.500 steps/s, 3 min left'),
    (90, '0.011 steps/s, 2 h left'),
])
def test_rate_and_time_left(seconds, expected):
    now = [0.0]
    shown = progress.progress.Progress(disable=True, get_time=lambda: now[0],
                                       speed_estimate_period=1e9)
    task = shown.add_task('', total=104, unit='steps')
    for _ in range(4):
        now[0] += seconds
        shown.update(task, advance=1)
    assert progress._pace(shown.tasks[0]) == expected


def test_silence(monkeypatch, capsys):
    monkeypatch.setattr(progress, '_silent', False)
    progress.silence()
    progress.say('hidden')
    with progress.timed('hidden'):
        pass
    assert capsys.readouterr().err == ''

"""Memory that a process keeps; how it ends where another one is lost."""

import os
import platform
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from dualground_jax import runtime

FAULTS = """
import resource, statistics
from dualground_jax import runtime
runtime.keep_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jnp.roll(jnp.sin(x) @ x[:, :9] @ x[:9], 7, 0))
x, faults = jnp.ones((3000, 3000)), []
for _ in range(30):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(statistics.median(faults)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another C library')
def test_most_steps_map_no_buffer_anew():
    """A buffer has 8789 pages. Without keep_memory each step maps two of them; with it some of the
    30 do, where threads left no hole that is large enough."""
    env = dict(os.environ, JAX_PLATFORMS='cpu')
    run = subprocess.run([sys.executable, '-c', FAULTS], capture_output=True, text=True, env=env)
    assert int(run.stdout) < 500, run.stderr


def test_a_process_without_the_others_ends_at_once_with_one_line(monkeypatch, capfd):
    error = jax.errors.JaxRuntimeError('UNKNOWN: Gloo all-reduce failed:\nConnection reset by peer')
    runtime.leave_others(error)  # one process: nothing is special
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    runtime.leave_others(RuntimeError('a mistake of ours'))
    assert capfd.readouterr() == ('', '')
    monkeypatch.setattr(os, '_exit', sys.exit)
    with pytest.raises(SystemExit):
        runtime.leave_others(error)
    told = capfd.readouterr().err
    assert told.startswith('error: process 0 of 2: UNKNOWN: Gloo') and told.count('\n') == 1


def counted_step():
    """A step that counts its traces, and what it was traced in."""
    traces = []

    @jax.jit
    def step(state, batch):
        traces.append(threading.current_thread())
        return state + batch['x'].sum()

    return runtime.Step(step, 'test'), traces


def batch_of(rows):
    return dict(x=np.ones(rows, np.float32))


def test_programs_are_compiled_ahead_of_their_use(capsys):
    step, traces = counted_step()
    with runtime.compilers() as compilers:
        for rows in (2, 3, 2):
            step.prepare(compilers, np.float32(0), batch_of(rows))
        assert [float(step(np.float32(1), batch_of(rows))) for rows in (2, 3, 4, 2)] == [3, 4, 5, 3]
    assert [thread is threading.main_thread() for thread in traces].count(False) == 2
    assert traces[-1] is threading.main_thread() and len(traces) == 3
    assert 'compiling the test step' in capsys.readouterr().err


def test_a_program_is_that_of_all_arguments_whatever_their_order():
    """As of groups of runs that differ in number, or in what differs among them."""
    traces = []

    @jax.jit
    def step(state, batch, values):
        traces.append(threading.current_thread())
        return state + batch['x'].sum() + sum(value.sum() for value in values.values())

    step = runtime.Step(step, 'test')
    one, two = np.ones(1, np.float32), np.ones(2, np.float32)
    with runtime.compilers() as compilers:
        for state, values in ((one, dict(a=one)), (two, dict(a=two)), (two, dict(a=two, b=two))):
            step.prepare(compilers, state, dict(y=two, x=one), values)
            found = step(state, dict(x=one, y=two), values)
            np.testing.assert_array_equal(found, 2 + sum(value.sum() for value in values.values()))
    assert len(traces) == 3 and threading.main_thread() not in traces


def test_programs_are_compiled_beside_one_another():
    both = threading.Barrier(2, timeout=60)

    @jax.jit
    def step(state, batch):
        both.wait()
        return state + batch['x'].sum()

    step = runtime.Step(step, 'test')
    with ThreadPoolExecutor(2) as compilers:
        for rows in (2, 3):
            step.prepare(compilers, np.float32(0), batch_of(rows))
        assert step(np.float32(1), batch_of(3)) == 4


def test_what_was_not_begun_is_compiled_at_its_use(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0})
    step, traces = counted_step()
    held = threading.Event()
    with runtime.compilers() as compilers:
        compilers.submit(held.wait)
        step.prepare(compilers, np.float32(0), batch_of(2))
    held.set()
    assert step(np.float32(1), batch_of(2)) == 3
    assert traces == [threading.main_thread()]

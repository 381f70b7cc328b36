"""Memory that a process keeps; how it ends where another one is lost."""

import os
import platform
import subprocess
import sys

import jax
import pytest

from dualground_jax import runtime

FAULTS = """
import resource
from dualground_jax import runtime
runtime.keep_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jnp.cumsum(jnp.sin(x) @ x[:, :300] @ x[:300], 0))
x, faults = jnp.ones((3000, 3000)), []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[4:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another C library')
def test_buffers_of_a_step_are_mapped_once():
    """A buffer has 8789 pages; without keep_memory a step maps some of them anew."""
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

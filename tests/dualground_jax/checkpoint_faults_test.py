"""What lies in a workdir after a full disk or a kill."""

import logging
import sys

import numpy as np
import pytest

from configs import synthetic
from dualground_jax import checkpoints, state
from tests.helpers.file_limit import file_limit

CONFIG = synthetic.get_config('runlocal').lock()


def make_state(step):
    params = {'w': np.full(2000, step, np.float32)}
    return state.TrainState(np.array(step, np.int32), params, {}, None)


def saved(workdir, kind):
    """Steps in the folder of a kind, and the values that its newest checkpoint restores to."""
    found = checkpoints.Checkpoints(workdir)
    restored, _ = found.restore(kind, make_state(0))
    names = sorted(path.name for path in (found.root / kind).iterdir() if path.name.isdigit())
    return names, set(restored.params['w'])


@pytest.mark.parametrize('size', [10, 1000])
def test_a_full_disk_leaves_the_last_checkpoint_whole(size, tmp_path, caplog, monkeypatch):
    """The limit is reached by what orbax writes, or by what tensorstore does."""
    monkeypatch.setattr(sys, 'unraisablehook', None)  # is set here; the tests' own comes back
    run = checkpoints.Checkpoints(tmp_path)
    run.save('latest', make_state(4), CONFIG, {})
    message = (f"{run.root / 'latest'}: the checkpoint of step 8 can't be written: File too large; "
               'what was saved before is whole, .*')
    with file_limit(size), pytest.raises(checkpoints.CheckpointError, match=f'^{message}$'):
        run.save('latest', make_state(8), CONFIG, {})
    assert not [row for row in caplog.records if row.levelno >= logging.ERROR]
    assert saved(tmp_path, 'latest') == (['4'], {4})
    run.save('latest', make_state(8), CONFIG, {})
    run.keep(latest=8)
    assert saved(tmp_path, 'latest') == (['8'], {8})


def test_what_a_killed_run_saved_last_gives_way(tmp_path):
    """It was killed between `best` and `latest`, and goes on with other evaluations."""
    run = checkpoints.Checkpoints(tmp_path)
    for step in (4, 12):
        run.save('best', make_state(step), CONFIG, {})
    assert saved(tmp_path, 'best') == (['12', '4'], {12})
    run.save('best', make_state(8), CONFIG, {})
    assert saved(tmp_path, 'best') == (['4', '8'], {8})
    run.keep(best=4)
    assert saved(tmp_path, 'best') == (['4'], {4})

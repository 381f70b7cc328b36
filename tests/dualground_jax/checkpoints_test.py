"""Checkpoints: what is missing, cut or altered in one is a line that names the file."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from configs import synthetic
from dualground_jax import checkpoints
from dualground_jax.state import TrainState


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """(workdir, its state) with a small checkpoint."""
    workdir = tmp_path_factory.mktemp('run')
    state = TrainState(jnp.int32(3), {'a': jnp.arange(600.0), 'b': jnp.ones((4, 5))}, (), None)
    progress = dict(best_value=1.5)
    checkpoints.Checkpoints(workdir).save('best', state, synthetic.get_config(), progress)
    return workdir, state


def restore(workdir, state):
    found = checkpoints.Checkpoints(workdir)
    return found.config('best'), *found.restore('best', state)


def test_comes_back(saved):
    config, state, progress = restore(*saved)
    assert config.to_dict() == synthetic.get_config().to_dict() and progress == {'best_value': 1.5}
    np.testing.assert_array_equal(state.params['a'], np.arange(600))


def refusal(workdir, state):
    with pytest.raises(checkpoints.CheckpointError) as info:
        restore(workdir, state)
    message = str(info.value)
    assert '\n' not in message and len(message) < 600
    return message


@pytest.mark.parametrize('how', ['removed', 'cut', 'altered', 'pointer'])
def test_each_file_is_named(saved, how, tmp_path):
    workdir, state = saved
    files = [path.relative_to(workdir) for path in workdir.glob('checkpoints/best/3/*/**/*')
             if path.is_file()]
    assert len(files) > 8
    for file in files:
        path = tmp_path / 'run' / file
        shutil.copytree(workdir, tmp_path / 'run', dirs_exist_ok=True)
        content = path.read_bytes()
        path.write_bytes(dict(
            removed=b'', cut=content[:-1], pointer=b'version https://git-lfs.github.com/spec/v1',
            altered=content[:-1] + bytes([content[-1] ^ 1]))[how])
        if how == 'removed':
            path.unlink()
        message = refusal(tmp_path / 'run', state)
        assert message.startswith(f'{path}: ') and ('damaged' in message or 'git lfs' in message)


@pytest.mark.parametrize('how', ['removed', 'cut'])
def test_without_a_list_of_files(saved, how, tmp_path):
    """As of a run of before, or one that was killed in between."""
    workdir, state = saved
    shutil.copytree(workdir, tmp_path / 'run')
    folder = tmp_path / 'run' / 'checkpoints' / 'best' / '3'
    assert json.loads((folder / checkpoints.FILES).read_text())
    (folder / checkpoints.FILES).unlink()
    restore(tmp_path / 'run', state)
    for name in ('progress', 'state', 'config'):
        if how == 'removed':
            shutil.rmtree(folder / name)
        else:
            for path in (folder / name).rglob('*'):
                if path.is_file():
                    path.write_bytes(path.read_bytes()[:10])
        assert f"{folder}: can't be restored: " in refusal(tmp_path / 'run', state)

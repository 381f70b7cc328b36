"""Two processes with two devices each are the same as one process; also killed and resumed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import synthetic as synthetic_config
from data_pipelines import files, world
from dualground_jax import checkpoints, evaluate, sharding, train
from dualground_jax import state as state_lib
from tests.helpers.paths import REPO

OVERRIDES = {
    'model.width': 16, 'model.heads': 2, 'model.ffn': 16, 'model.dummies': 2,
    'model.input_layers': 1, 'model.mlp_layers': 1, 'model.strides': (1,),
    'train.log_every': 1, 'evaluate.pictures': 0, 'optimizer.schedule': 'constant',
    'optimizer.warmup_steps': 0, 'optimizer.learning_rate': 2e-4,
}
# 16 records in batches of 12: the last rows are empty, and all in the second process.
RAGGED = '--config.evaluate.batch_size=12'
ARGUMENTS = 'runlocal,model=flash_vtg'
STEPS = 12


def make_config(root, **overrides):
    config = synthetic_config.get_config(f'{ARGUMENTS},root={root}')
    config.update_from_flattened_dict(OVERRIDES | overrides)
    return config.lock()


@pytest.fixture(scope='module', name='root')
def world_folder(tmp_path_factory):
    """Left to the processes: the first makes it while the other waits."""
    return tmp_path_factory.mktemp('processes') / 'world'


class Processes:
    """A job of two processes."""

    def __init__(self, root, workdir, *flags, module='dualground_jax.main'):
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        command = [
            sys.executable, '-m', module, '--mode=train', f'--workdir={workdir}',
            f'--config=configs/synthetic.py:{ARGUMENTS},root={root}',
            f'--coordinator=127.0.0.1:{port}', '--num_processes=2',
            *(f'--config.{key}={value}' for key, value in OVERRIDES.items()), *flags,
        ]
        self.logs = [workdir.with_name(f'{workdir.name}_{i}.log') for i in range(2)]
        self.running = []
        for i, log in enumerate(self.logs):
            with open(log, 'w') as file:
                self.running.append(subprocess.Popen(
                    [*command, f'--process_id={i}'], cwd=REPO, stdout=file,
                    stderr=subprocess.STDOUT, env=os.environ))

    def wait(self):
        try:
            for process, log in zip(self.running, self.logs):
                assert process.wait(timeout=300) == 0, log.read_text()[-3000:]
        finally:
            self.kill()

    def kill_after(self, history, step):
        deadline = time.time() + 300
        while time.time() < deadline and all(p.poll() is None for p in self.running):
            if history.exists() and f'"step": {step},' in history.read_text():
                break
            time.sleep(0.01)
        else:
            raise AssertionError('\n'.join(log.read_text()[-3000:] for log in self.logs))
        self.kill()

    def kill(self):
        for process in self.running:
            process.send_signal(signal.SIGKILL)
            process.wait()


def train_and_evaluate(root, workdir):
    Processes(root, workdir, RAGGED, f'--config.train.max_steps={STEPS}',
              module='tests.helpers.train_and_evaluate').wait()
    return workdir


@pytest.fixture(scope='module', name='workdir')
def trained_and_evaluated(root):
    return train_and_evaluate(root, root.parent / 'two')


@pytest.fixture(scope='module', name='single')
def one_process(workdir, root):
    config = make_config(root, **{'train.max_steps': STEPS})
    world.generate(config.world, config.data.root)
    train.train(config, str(root.parent / 'one'))
    return root.parent / 'one'


def restored(workdir, config):
    mesh = sharding.make_mesh(config.mesh)
    abstract = state_lib.abstract_state(config, mesh)
    return checkpoints.Checkpoints(str(workdir)).restore('latest', abstract)


def test_two_processes_equal_one(workdir, single, root):
    config = make_config(root)
    (ours, progress), (theirs, expected) = restored(workdir, config), restored(single, config)
    assert int(ours.step) == int(theirs.step) == STEPS

    def compare(path, a, b):
        # What all logits of a softmax share has no gradient but rounding, which Adam makes a step.
        if not (path[-1].key == 'bias' and path[-2].key == 'key'):
            np.testing.assert_allclose(a, b, atol=1e-5)

    jax.tree.map_with_path(compare, ours.params, theirs.params)
    rows = [files.load_jsonl(folder / 'val_predictions.jsonl') for folder in (workdir, single)]
    assert [row['qid'] for row in rows[0]] == [row['qid'] for row in rows[1]]
    assert progress['best_step'] == expected['best_step']
    steps = [row['step'] for row in files.load_jsonl(workdir / 'metrics.jsonl')
             if 'train/loss' in row]
    assert steps == list(range(1, STEPS + 1))
    first, second = (workdir.with_name(f'two_{i}.log').read_text() for i in range(2))
    assert f'step {STEPS}, val: ' in first and 'wrote' in first
    assert 'step' not in second and 'wrote' not in second


@pytest.mark.slow
def test_killed_processes_go_on(workdir, root):
    again = root.parent / 'again'
    Processes(root, again, RAGGED, '--config.train.max_steps=1000').kill_after(
        again / 'metrics.jsonl', 5)
    assert checkpoints.Checkpoints(str(again)).step('latest') in (4, 8)
    assert not (again / 'results.json').exists()
    train_and_evaluate(root, again)
    states = [restored(folder, make_config(root))[0] for folder in (again, workdir)]
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, states))


@pytest.mark.skipif(jax.device_count() < 2, reason='needs two (forced host) devices')
@pytest.mark.parametrize('axis', ['fsdp', 'model'])
def test_a_checkpoint_is_read_onto_another_mesh(workdir, root, axis):
    """Written by 2 x 2 devices along `data`."""
    whole, _ = restored(workdir, make_config(root))
    other = make_config(root, **{'mesh.data': 1, f'mesh.{axis}': 2})
    parts, _ = restored(workdir, other)
    kernel = parts.params['encoder']['encoder']['layer_0']['attention']['query']['kernel']
    assert kernel.sharding.shard_shape(kernel.shape) != kernel.shape
    moment = parts.opt_state[1][0].mu['encoder']['encoder']['layer_0']['attention']['query']
    assert moment['kernel'].sharding == kernel.sharding
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(parts), jax.device_get(whole))


def test_two_processes_evaluate_as_one(workdir, root, tmp_path):
    """Theirs are what mode evaluate wrote, in ragged batches; ours, of even ones, one process's."""
    shutil.copytree(workdir / 'checkpoints', tmp_path / 'checkpoints')
    evaluate.evaluate(make_config(root), str(tmp_path))
    ours, theirs = (files.load_jsonl(folder / 'val_predictions.jsonl')
                    for folder in (tmp_path, workdir))
    assert [row['qid'] for row in ours] == [row['qid'] for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a['pred_saliency_scores'], b['pred_saliency_scores'], atol=1e-4)

"""Training does not depend on the mesh: 1, 2, 4 and 8 forced host devices, several shapes."""

import functools
import json
import subprocess
import sys

import jax
import pytest
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from configs import qvh
from data_pipelines.errors import ConfigError
from dualground_jax import models, sharding
from dualground_jax import state as state_lib
from tests.helpers.paths import REPO

# Model -> meshes of forced host devices: data, fsdp, model.
SHAPES = {'flash_vtg': ('2,2,2',)}
SLOW = {'dualground': ('1,4,1', '2,1,1', '2,2,2'), 'cg_detr': ('2,2,2',),
        'tr_detr': ('8,1,1', '2,2,2')}


def mesh(**sizes):
    return sharding.make_mesh(ConfigDict(dict(data=1, fsdp=1, model=1) | sizes))


@functools.cache
def five_steps(*models_and_shapes: str) -> tuple[list[dict], str]:
    """Rows that the worker, one process for all models, prints; and its last words."""
    done = subprocess.run(
        [sys.executable, '-m', 'tests.helpers.mesh_worker', *models_and_shapes], text=True,
        timeout=1200, capture_output=True, cwd=REPO)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
    return rows, done.stderr[-3000:]


@pytest.mark.parametrize('name, of', [
    *((name, SHAPES) for name in SHAPES),
    *(pytest.param(name, SLOW, marks=pytest.mark.slow) for name in SLOW)])
def test_five_steps_are_the_same_on_every_mesh(name, of):
    rows, said = five_steps(*(':'.join([model, *shapes]) for model, shapes in of.items()))
    rows = [row for row in rows if row['model'] == name]
    assert [row['mesh'] for row in rows] == list(of[name]), said
    for row in rows:
        _, fsdp, model = map(int, row['mesh'].split(','))
        assert row['parts'] == fsdp * model, 'parameters are spread over fsdp and model'
        for what in ('params', 'ema'):
            assert row[what][0] < 1e-5, (row['mesh'], what, row[what])
        assert row['losses'][0] < 1e-3 and row['saliency'] < 1e-4, row


@pytest.mark.parametrize('name', models.MODELS)
def test_matrices_and_their_moments_have_logical_axes(name):
    """By the table alone: nothing is computed."""
    config = qvh.get_config(f'model={name}')
    abstract = state_lib.abstract_state(config, mesh())
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(abstract))
    sharded = state_lib.abstract_state(config, AbstractMesh((2, 2, 2), ('data', 'fsdp', 'model')))
    big = [x for x in jax.tree.leaves(sharded.params) if len(x.shape) > 1 and min(x.shape) > 4]
    whole = [x.shape for x in big if x.sharding.is_fully_replicated]
    assert not whole, 'every large matrix is split'
    placement = lambda tree: jax.tree.map(lambda x: x.sharding, tree)
    for moment in ('mu', 'nu'):
        found = getattr(sharded.opt_state[1][0], moment)
        assert placement(found) == placement(sharded.params)


@pytest.mark.parametrize('sizes, message', [
    (dict(data=1024), 'needs 1024 devices, found'),
    (dict(data=0), 'expected sizes of 1 or more'),
    (dict(data=-1, fsdp=-1), 'one of them may be -1'),
    (dict(data=-1, model=64), 'needs 64 devices'),
])
def test_sizes_that_do_not_fit_are_named(sizes, message):
    with pytest.raises(ConfigError, match=message):
        mesh(**sizes)


@pytest.mark.parametrize('runs, sizes, expected', [
    (1, dict(data=-1), dict(data=12)),
    (8, dict(data=-1), dict(runs=4, data=3)),
    (6, dict(data=-1, model=2), dict(runs=6, data=1, model=2)),
    (5, dict(data=1), dict(runs=1, data=1)),
    (24, dict(data=1), dict(runs=12, data=1)),
])
def test_runs_are_spread_over_devices_evenly(runs, sizes, expected):
    section = ConfigDict(dict(data=1, fsdp=1, model=1) | sizes)
    found = sharding.make_mesh(section, jax.local_devices()[:1] * 12, runs)
    assert found.shape == dict(fsdp=1, model=1) | expected
    assert found.axis_names[0] == next(iter(expected))


@pytest.mark.skipif(jax.device_count() < 2, reason='needs two (forced host) devices')
def test_batches_must_be_split_evenly():
    sharding.check_batch_size(mesh(fsdp=2), 4, 'train.batch_size')
    with pytest.raises(ConfigError, match='train.batch_size=3 cannot be split over 2 devices'):
        sharding.check_batch_size(mesh(fsdp=2), 3, 'train.batch_size')
    with pytest.raises(ConfigError, match='train.batch_size=0: expected 1 or more'):
        sharding.check_batch_size(mesh(), 0, 'train.batch_size')
    sharding.check_batch_size(mesh(model=2), 3, 'train.batch_size')

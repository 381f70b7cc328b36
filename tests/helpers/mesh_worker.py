"""Five steps of models on meshes of up to 8 forced host devices; prints parameters' distances.

    python -m tests.helpers.mesh_worker MODEL:2,1,1:2,2,2 MODEL:8,1,1 ...
"""

import json
import os
import sys

from dualground_jax import sharding

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join(
    [os.environ.get('XLA_FLAGS', ''), '--xla_force_host_platform_device_count=8'])

import jax
import numpy as np

from configs import qvh
from data_pipelines import pipeline
from dualground_jax import predict, train
from dualground_jax import state as state_lib

BATCH, CLIPS, STEPS = 8, 16, 5
SIZES = dict(width=16, heads=2, ffn=16, phrases=2, queries=4, strides=(1,), dummies=2,
             input_layers=1, mlp_layers=1)


def make_config(name):
    config = qvh.get_config(f'model={name},runlocal')
    config.model.update({k: v for k, v in SIZES.items() if k in config.model})
    config.data.update(dict(max_clips=CLIPS, max_tokens=8, video_dims=(30,), text_dim=16,
                            max_windows=3, max_spans=3))
    config.optimizer.update(dict(ema_decay=0.9, learning_rate=1e-4))
    return config


def make_batch(config):
    """Random samples, the last two of the same video."""
    rng = np.random.default_rng(0)
    batch = {k: np.zeros(*spec) for k, spec in pipeline.batch_spec(config.data, BATCH).items()}
    for name in ('video', 'text'):
        batch[name][:] = rng.normal(size=batch[name].shape)
    lengths = rng.integers(6, CLIPS + 1, BATCH)
    batch['video_mask'][:] = np.arange(CLIPS) < lengths[:, None]
    batch['source_id'][:] = [0, 1, 2, 3, 4, 5, 6, 6]
    batch['text_role'][:, :6] = [1, 2, 2, 2, 2, 3]
    batch['clip_length'][:], batch['duration'][:] = 2, 2 * lengths
    batch['windows'][:, 0], batch['windows_mask'][:, 0] = [2, 9], True
    batch['spans'][:, 0], batch['spans_mask'][:, 0] = [0.4, 0.3], True
    batch['saliency'][:] = rng.integers(0, 13, (BATCH, CLIPS)) * batch['video_mask']
    batch['relevant'][:] = batch['saliency'] > 0
    batch['neg_clips'][:], batch['pairs_mask'][:], batch['graded'][:] = 3, True, True
    return batch


def run(config, batch, shape, start=None):
    """Returns (first and last state, losses, saliency predicted, parts of the most split).

    Args:
        start: the first state; fresh without it, which takes long to compile.
    """
    config.mesh.update(dict(zip(('data', 'fsdp', 'model'), shape, strict=True)))
    mesh = sharding.make_mesh(config.mesh)
    tx = state_lib.make_optimizer(config.optimizer, STEPS)
    abstract = state_lib.abstract_state(config, mesh, STEPS)
    if start is None:
        state = state_lib.fresh_state(config, tx, abstract)
    else:
        state = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), start, abstract)
    start = jax.device_get(state)
    step = train.make_train_step(config, mesh, STEPS, abstract)
    placed = sharding.put_batch(batch, sharding.batch_sharding(mesh), BATCH)
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, placed, dict(seed=np.uint32(7)), {})
        losses.append(jax.device_get(metrics))
    predict_step = predict.make_predict_step(config, mesh)
    _, saliency = predict_step(sharding.gather(state.eval_params), placed)
    parts = [np.prod(x.shape) / np.prod(x.sharding.shard_shape(x.shape))
             for x in jax.tree.leaves(state.params)]
    return start, jax.device_get(state), losses, jax.device_get(saliency), max(parts)


def distance(a, b):
    """Largest difference of two trees, and where it is.

    What all logits of a softmax share has no gradient but rounding, which Adam makes a step.
    """
    apart = jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda x, y: float(np.abs(np.float64(x) - y).max()), a, b))
    named = [(value, jax.tree_util.keystr(path)) for path, value in apart]
    return max(entry for entry in named
               if not entry[1].endswith(("['key']['bias']", "['score']['bias']")))


def compare(name, shapes):
    """Prints a row for each shape: what differs from one device."""
    config = make_config(name)
    batch = make_batch(config)
    start, *alone = run(config, batch, (1, 1, 1))
    for shape in shapes:
        _, state, losses, saliency, parts = run(
            config, batch, tuple(map(int, shape.split(','))), start)
        print(json.dumps(dict(
            model=name, mesh=shape, parts=parts, params=distance(state.params, alone[0].params),
            ema=distance(state.ema, alone[0].ema), losses=distance(losses, alone[1]),
            saliency=float(np.abs(saliency - alone[2]).max()))))


if __name__ == '__main__':
    for argument in sys.argv[1:]:
        model, *meshes = argument.split(':')
        compare(model, meshes)

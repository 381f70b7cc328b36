"""The optimiser against AdamW as PyTorch documents and computes it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import synthetic
from dualground_jax import checkpoints, models, sharding, state

STEPS = 100


def gradients(size=1000):
    """Of each step, some parameters' tiny or always 0."""
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-9, 1, size)
    scale[:10] = 0
    return (rng.normal(size=(STEPS, size)) * scale).astype(np.float32)


def trajectory(tx, params, grads):
    """Parameters after each step: float[STEPS, size]."""

    @jax.jit
    def run(params, grads):
        def step(carry, grad):
            params, opt_state = carry
            updates, opt_state = tx.update(grad, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (params, opt_state), params

        return jax.lax.scan(step, (params, tx.init(params)), grads)[1]

    return np.asarray(run(params, grads))


def plain_adamw(params, grads, rates, weight_decay, dtype):
    """torch.optim.AdamW, from its documentation; single operations are rounded to `dtype`."""
    mean = square = np.zeros_like(params, dtype)
    params, found = params.astype(dtype), []
    for step, (grad, rate) in enumerate(zip(grads.astype(dtype), rates), 1):
        params = params * dtype(1 - rate * weight_decay)
        mean = dtype(0.9) * mean + dtype(1 - 0.9) * grad
        square = dtype(0.999) * square + dtype(1 - 0.999) * grad * grad
        root = np.sqrt(square) / dtype((1 - 0.999**step) ** 0.5) + dtype(1e-8)
        params = params - dtype(rate / (1 - 0.9**step)) * mean / root
        found.append(params)
    return np.stack(found)


def test_updates_are_exact_in_float32():
    """From 0, where a parameter is the sum of its updates; optax's first one is 2e-5 off."""
    grads = gradients()
    start = np.zeros_like(grads[0])
    rates = [1e-3] * STEPS
    expected = plain_adamw(start, grads, rates, 0.0, np.float64)
    found = trajectory(state.adamw(optax.constant_schedule(1e-3), 0.0), start, grads)
    np.testing.assert_allclose(found[0], expected[0], rtol=5e-7)
    np.testing.assert_allclose(found, expected, atol=1e-3 * 1e-4)


@pytest.mark.parametrize('decay', [1e-4, 1e-2])
@pytest.mark.parametrize('kind', ['constant', 'cosine'])
def test_parameters_are_rounded_as_pytorch_rounds_them(kind, decay):
    """A small decay is lost in float32, or takes a unit in the last place: of every parameter."""
    grads = gradients()
    start = np.random.default_rng(1).normal(size=grads.shape[1]).astype(np.float32)
    peak = 1e-4
    rates = [peak if kind == 'constant' else peak * (1 + np.cos(np.pi * i / STEPS)) / 2
             for i in range(STEPS)]
    schedule = (optax.constant_schedule(peak) if kind == 'constant'
                else optax.cosine_decay_schedule(peak, STEPS))
    found = trajectory(state.adamw(schedule, decay), start, grads)
    expected = plain_adamw(start, grads, rates, decay, np.float32)
    apart = (found[-1] - expected[-1]) / np.spacing(np.abs(expected[-1]))
    # Single roundings differ; a decay that is rounded another way moves all to one side.
    assert np.abs(apart).mean() < 1
    assert abs((apart * np.sign(start)).mean()) < 0.1
    still = slice(0, 10)  # no gradient: nothing but the decay
    np.testing.assert_array_equal(found[:, still], expected[:, still])


def test_older_checkpoints_go_on(tmp_path):
    """A state that optax's own AdamW left is restored."""
    config = synthetic.get_config()
    params = {'w': np.arange(3, dtype=np.float32)}
    older = optax.chain(
        optax.clip_by_global_norm(0.1), optax.adamw(optax.constant_schedule(1e-4)))
    ours = state.make_optimizer(config.optimizer, 1)
    _, left = older.update(params, older.init(params), params)
    saved = state.TrainState(np.int32(1), params, left, None)
    runs = checkpoints.Checkpoints(tmp_path)
    runs.save('latest', saved, config, {})
    wanted = state.TrainState(np.int32(0), params, ours.init(params), None)
    found, _ = runs.restore('latest', jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), wanted))
    jax.tree.map(np.testing.assert_array_equal, found, saved)
    ours.update(params, found.opt_state, params)


@pytest.mark.parametrize('name', models.MODELS)
def test_a_model_in_bfloat16_is_kept_in_float32(name):
    config = synthetic.get_config(f'model={name},runlocal')
    config.model.dtype, config.optimizer.ema_decay = 'bfloat16', 0.9
    abstract = state.abstract_state(config, sharding.one_device())
    kept = [x.dtype for x in jax.tree.leaves((abstract.params, abstract.opt_state, abstract.ema))
            if jnp.issubdtype(x.dtype, jnp.floating)]
    assert len(kept) >= 4 * len(jax.tree.leaves(abstract.params))
    assert set(kept) == {jnp.dtype('float32')}

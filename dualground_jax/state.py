"""What training carries from step to step: the state, the optimiser, and shapes of batches."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines import pipeline
from data_pipelines.errors import ConfigError
from data_pipelines.schedule import Bucket
from dualground_jax import models, sharding


class TrainState(flax.struct.PyTreeNode):
    """Parameters and what the optimiser keeps of them.

    Attributes:
        step: int32[], updates done.
        params: the model's parameters.
        opt_state: of the optimiser.
        ema: moving average of params, or None without optimizer.ema_decay.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any

    @property
    def eval_params(self) -> Any:
        """The parameters that are evaluated."""
        return self.params if self.ema is None else self.ema

    def updated(self, grads: Any, tx: optax.GradientTransformation, ema_decay: float
                ) -> 'TrainState':
        """The state a step further; `ema_decay` is that of `ema`, if there is one."""
        updates, opt_state = tx.update(grads, self.opt_state, self.params)
        params, ema = optax.apply_updates(self.params, updates), self.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1 - ema_decay)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state, ema=ema)


def make_optimizer(section: ConfigDict, total_steps: int) -> optax.GradientTransformation:
    """AdamW on all parameters behind a clip of the global gradient norm.

    Raises:
        ConfigError: an unknown schedule.
    """
    peak, warmup = section.learning_rate, section.warmup_steps
    if section.schedule == 'constant':
        schedule = optax.constant_schedule(peak)
    elif section.schedule == 'cosine':
        schedule = optax.cosine_decay_schedule(peak, max(total_steps - warmup, 1))
    else:
        raise ConfigError(
            f"optimizer.schedule={section.schedule!r}: expected 'constant' or 'cosine'")
    if warmup:
        ramp = optax.linear_schedule(0.0, peak, warmup)
        schedule = optax.join_schedules([ramp, schedule], [warmup])
    return optax.chain(
        optax.clip_by_global_norm(section.clip_norm),
        adamw(schedule, section.weight_decay))


def adamw(
    schedule: optax.Schedule, weight_decay: float, b1: float = 0.9, b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW with the state of `optax.adamw` and the arithmetic of `torch.optim.AdamW`.

    In float32 optax's correction 1 - b2**count is 5e-5 off at the first step; torch has it in
    float64. And torch rounds the decayed parameter before it adds the update: with a decay below
    3e-8 a step, as that of the DETRs' scripts, a parameter does not decay at all.

    Args:
        schedule: learning rate by the number of updates.
        weight_decay: part of a parameter that is taken off, times the learning rate.
        b1: decay of the mean gradient.
        b2: decay of the mean square.
        eps: added to the root of the mean square.
    """
    plain = optax.adamw(schedule, b1, b2, eps, weight_decay=weight_decay)

    def update(grads, state, params):
        rate = schedule(state[-1].count)
        _, state = plain.update(grads, state, params)
        count, means, squares = state[0]
        of_mean, of_square = (-jnp.expm1(count * math.log(b)) for b in (b1, b2))

        def change(param, mean, square):
            lost = 1 - jnp.asarray(1 - rate * weight_decay, param.dtype)
            root = jnp.sqrt(square) / jnp.sqrt(of_square) + eps
            # A product alone would not be rounded where compilers fuse it with the subtraction.
            kept = param - lost * param
            return kept - rate / of_mean * mean / root - param

        return jax.tree.map(change, params, means, squares), state

    return optax.GradientTransformation(plain.init, update)


def dummy_batch(config: ConfigDict, batch_size: int) -> dict[str, np.ndarray]:
    """A batch of zeros: its shapes are what a model is initialised with."""
    return {k: np.zeros(*spec) for k, spec in pipeline.batch_spec(config.data, batch_size).items()}


def abstract_batch(
    config: ConfigDict, batch_size: int, mesh: Mesh, bucket: Bucket | None = None, *,
    resident: bool = False, steps: int = 1,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and placement of a batch, or of those of several steps behind a first axis.

    Args:
        config: whole config.
        batch_size, bucket, resident: see `pipeline.batch_spec`.
        mesh: it is split over it.
        steps: how many.
    """
    placement = sharding.batch_sharding(mesh, steps > 1)
    before = (steps,) if steps > 1 else ()
    spec = pipeline.batch_spec(config.data, batch_size, bucket, resident=resident)
    return {name: jax.ShapeDtypeStruct((*before, *shape), dtype, sharding=placement)
            for name, (shape, dtype) in spec.items()}


def init_model(config: ConfigDict, key: jax.Array) -> Any:
    """Fresh parameters of the config's model, which know their logical axes."""
    # Some parameters are of training alone.
    return models.build(config.model).init(key, dummy_batch(config, 2), train=True)['params']


def _boxed_state(
    config: ConfigDict, tx: optax.GradientTransformation, seed: int | jax.Array, init: Callable
) -> TrainState:
    """Fresh state whose arrays know their logical axes; `init` as `init_model`."""
    params = init(config, jax.random.key(seed))
    ema = jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else None
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), ema)


def abstract_state(
    config: ConfigDict, mesh: Mesh, total_steps: int = 1, init: Callable = init_model
) -> TrainState:
    """Shapes and placement of the train state; nothing is computed. `init`: see `init_model`."""
    tx = make_optimizer(config.optimizer, total_steps)
    return sharding.placed(jax.eval_shape(lambda: _boxed_state(config, tx, 0, init)), mesh)


def of_runs(abstract: Any, runs: int) -> Any:
    """Shapes and placement of what so many runs have, with a first axis of them; 1: without."""
    return abstract if runs == 1 else jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        (runs, *x.shape), x.dtype, sharding=sharding.along_runs(x.sharding)), abstract)


def make_stack(abstract: TrainState, runs: int) -> tuple[TrainState | None, Callable, Callable]:
    """What holds the states of runs in one; that of a single run is the state itself.

    Args:
        abstract: shapes and placement of a run's state.
        runs: how many.

    Returns:
        (zeros, put: (states, place, state) -> states, which are donated, with the run's state,
        take: (states, place) -> the run's state).
    """
    if runs == 1:
        return None, lambda states, place, state: state, lambda states, place: states
    every = of_runs(abstract, runs)
    single, placement = (jax.tree.map(lambda x: x.sharding, tree) for tree in (abstract, every))
    zeros = jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), every),
                    out_shardings=placement)
    put = jax.jit(
        lambda states, place, state: jax.tree.map(
            lambda x, own: x.at[place].set(own), states, state),
        donate_argnums=0, out_shardings=placement)
    # Devices hand over what they have of the run, instead of gathering all runs.
    take = jax.jit(lambda states, place: jax.tree.map(lambda x: jnp.take(x, place, 0), states),
                   out_shardings=single)
    return zeros(), put, take


def make_fresh_state(
    config: ConfigDict, tx: optax.GradientTransformation, abstract: TrainState,
    init: Callable = init_model,
) -> Callable:
    """Compiles seed uint32[] -> the state before the first step, where `abstract` places it."""
    return jax.jit(
        lambda seed: nn.unbox(_boxed_state(config, tx, seed, init)),
        out_shardings=jax.tree.map(lambda x: x.sharding, abstract))


def fresh_state(
    config: ConfigDict, tx: optax.GradientTransformation, abstract: TrainState
) -> TrainState:
    """The state before the first step, made where `abstract` places it."""
    return make_fresh_state(config, tx, abstract)(np.uint32(config.seed))

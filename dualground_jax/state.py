"""Mesh, optimiser, train state and checkpoints."""

import json
import pathlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from data_pipelines import pipeline
from dualground_jax import models
from dualground_jax.errors import ConfigError, UserError


class CheckpointError(UserError):
    """A workdir does not hold what was asked of it."""


class TrainState(flax.struct.PyTreeNode):
    """What training carries from step to step.

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
    def eval_params(self):
        """The parameters that are evaluated."""
        return self.params if self.ema is None else self.ema


def make_mesh(section: ConfigDict) -> Mesh:
    """Device mesh with the axes of the config; one size may be -1: all remaining devices.

    Raises:
      ConfigError: the sizes do not fit the number of devices.
    """
    sizes, devices = dict(section), jax.devices()
    known = int(np.prod([n for n in sizes.values() if n > 0]))
    sizes = {axis: n if n > 0 else len(devices) // known for axis, n in sizes.items()}
    total = int(np.prod(list(sizes.values())))
    if total < 1 or total > len(devices):
        raise ConfigError(f'mesh {dict(section)} needs {total} devices, found {len(devices)}')
    return Mesh(np.array(devices[:total]).reshape(tuple(sizes.values())), tuple(sizes))


def shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """(replicated, split along the batch)."""
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec('data'))


def check_batch_size(mesh: Mesh, batch_size: int, key: str) -> None:
    """Raises ConfigError if a batch cannot be split evenly over the mesh's data axis."""
    if batch_size % mesh.shape['data']:
        raise ConfigError(
            f'{key}={batch_size} cannot be split over {mesh.shape["data"]} devices (mesh.data)'
        )


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
            f"optimizer.schedule={section.schedule!r}: expected 'constant' or 'cosine'"
        )
    if warmup:
        ramp = optax.linear_schedule(0.0, peak, warmup)
        schedule = optax.join_schedules([ramp, schedule], [warmup])
    return optax.chain(
        optax.clip_by_global_norm(section.clip_norm),
        optax.adamw(schedule, weight_decay=section.weight_decay),
    )


def dummy_batch(config: ConfigDict, batch_size: int) -> dict[str, np.ndarray]:
    """A batch of zeros: its shapes are what a model is initialised with."""
    return {k: np.zeros(*spec) for k, spec in pipeline.batch_spec(config.data, batch_size).items()}


def init_state(config: ConfigDict, tx: optax.GradientTransformation) -> TrainState:
    """Fresh state for the config's model and seed; trace it to get its shapes alone."""
    model = models.build(config.model)
    batch = dummy_batch(config, 2)
    # Some parameters are of training alone.
    params = model.init(jax.random.key(config.seed), batch, train=True)['params']
    ema = jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else None
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), ema)


class Checkpoints:
    """The newest and the best state of a run, each with the config it was made by.

    Layout: `<workdir>/checkpoints/{latest,best}/<step>/`.
    """

    def __init__(self, workdir: str):
        self.root = pathlib.Path(workdir).absolute() / 'checkpoints'

    def _manager(self, kind: str) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        return ocp.CheckpointManager(self.root / kind, options=options)

    def save(self, kind: str, state: TrainState, config: ConfigDict, progress: dict) -> None:
        """Writes the state, the config and the run's progress under `kind`.

        A write that is interrupted leaves the previous one as it was.
        """
        with self._manager(kind) as manager:
            manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    config=ocp.args.JsonSave(json.loads(config.to_json())),
                    progress=ocp.args.JsonSave(progress),
                ),
            )

    def step(self, kind: str) -> int | None:
        """The saved step, or None."""
        if not (self.root / kind).is_dir():
            return None
        with self._manager(kind) as manager:
            return manager.latest_step()

    def _restore(self, kind: str, **items):
        step = self.step(kind)
        if step is None:
            raise CheckpointError(
                f'{self.root / kind}: no checkpoint; train into this workdir first'
            )
        with self._manager(kind) as manager:
            return manager.restore(step, args=ocp.args.Composite(**items))

    def config(self, kind: str) -> ConfigDict:
        """The config that the checkpoint was made by, locked."""
        plain = self._restore(kind, config=ocp.args.JsonRestore()).config
        return ConfigDict(_tuples(plain)).lock()

    def restore(self, kind: str, abstract: TrainState) -> tuple[TrainState, dict]:
        """The state, placed as `abstract` says, and the progress."""
        found = self._restore(
            kind, state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
        )
        return found.state, found.progress


def _tuples(value):
    """JSON has lists only; configs have tuples only."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def abstract_state(config: ConfigDict, mesh: Mesh, total_steps: int = 1) -> TrainState:
    """Shapes and placement of the train state; nothing is computed."""
    tx = make_optimizer(config.optimizer, total_steps)
    replicated, _ = shardings(mesh)
    shapes = jax.eval_shape(lambda: init_state(config, tx))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), shapes
    )

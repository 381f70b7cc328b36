"""Mesh and sharding, optimiser, train state and checkpoints."""

import json
import pathlib
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from data_pipelines import pipeline
from data_pipelines.errors import ConfigError, UserError
from dualground_jax import models

# Logical axis -> mesh axes it lies along. `batch` is the first axis of all that enters a step;
# the others are those of parameters (models/layers.py) and of what the optimiser keeps of them.
RULES = (
    ('batch', ('data', 'fsdp')),
    ('embed', 'fsdp'),
    ('heads', 'model'),
    ('hidden', 'model'),
    ('features', 'model'),
)


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


def make_mesh(section: ConfigDict, devices: list | None = None) -> Mesh:
    """Device mesh with the axes of the config.

    Args:
      section: sizes of data (batches are split along it), fsdp (batches and parameters) and model
        (heads and hidden units); one of them may be -1: all remaining devices.
      devices: default: all.

    Raises:
      ConfigError: the sizes do not fit the number of devices, or leave out some of several
        processes.
    """
    sizes = {axis: section[axis] for axis in ('data', 'fsdp', 'model')}
    devices = jax.devices() if devices is None else devices
    if min(sizes.values()) < -1 or 0 in sizes.values() or list(sizes.values()).count(-1) > 1:
        raise ConfigError(f'mesh {sizes}: expected sizes of 1 or more, one of them may be -1')
    known = int(np.prod([n for n in sizes.values() if n > 0]))
    if -1 in sizes.values() and known <= len(devices) and len(devices) % known:
        raise ConfigError(
            f'mesh {sizes}: {len(devices)} devices cannot be shared out among {known}')
    sizes = {axis: n if n > 0 else len(devices) // known for axis, n in sizes.items()}
    total = int(np.prod(list(sizes.values())))
    if total < 1 or total > len(devices):
        raise ConfigError(f'mesh {dict(section)} needs {max(total, known)} devices, '
                          f'found {len(devices)}')
    if total < len(devices) and jax.process_count() > 1:
        raise ConfigError(f'mesh {dict(section)} has {total} of the {len(devices)} devices; '
                          'several processes use all of theirs')
    return Mesh(np.array(devices[:total]).reshape(tuple(sizes.values())), tuple(sizes))


def one_device() -> Mesh:
    """A mesh of this process's first device."""
    return make_mesh(ConfigDict(dict(data=1, fsdp=1, model=1)), jax.local_devices()[:1])


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on each device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, stacked: bool = False) -> NamedSharding:
    """The first axis split as `RULES` says; with `stacked` the second, behind one of steps."""
    axes = (None, 'batch') if stacked else ('batch',)
    return NamedSharding(mesh, nn.logical_to_mesh_axes(axes, RULES))


def gathered(sharding: NamedSharding) -> NamedSharding:
    """A parameter's placement while it is computed with: whole along fsdp."""
    spec = (None if axis == 'fsdp' else axis for axis in sharding.spec)
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def gather(params):
    """Makes parameters whole along fsdp."""
    return jax.device_put(params, jax.tree.map(lambda x: gathered(x.sharding), params))


def check_batch_size(mesh: Mesh, batch_size: int, key: str) -> None:
    """Raises ConfigError if a batch is empty, or cannot be split evenly over the mesh."""
    if batch_size < 1:
        raise ConfigError(f'{key}={batch_size}: expected 1 or more')
    parts = mesh.shape['data'] * mesh.shape['fsdp']
    if batch_size % parts:
        raise ConfigError(f'{key}={batch_size} cannot be split over {parts} devices (mesh.data x '
                          'mesh.fsdp)')


def local_rows(sharding: NamedSharding, size: int) -> slice:
    """The rows of a batch of `size` that this process's devices hold."""
    parts = [index[0] for index in sharding.addressable_devices_indices_map((size,)).values()]
    return slice(min(part.start or 0 for part in parts),
                 max(size if part.stop is None else part.stop for part in parts))


def put_batch(batch: dict, sharding: NamedSharding, size: int) -> dict[str, jax.Array]:
    """Puts a batch on the devices; each process brings its `local_rows` of `size` rows."""
    axis = len(sharding.spec) - 1
    return {
        name: jax.make_array_from_process_local_data(
            sharding, x, (*x.shape[:axis], size, *x.shape[axis + 1:]))
        for name, x in batch.items()
    }


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


def abstract_batch(
    config: ConfigDict, batch_size: int, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and placement of a batch."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in pipeline.batch_spec(config.data, batch_size).items()
    }


def _boxed_state(config: ConfigDict, tx: optax.GradientTransformation, seed) -> TrainState:
    """Fresh state whose arrays know their logical axes."""
    model = models.build(config.model)
    batch = dummy_batch(config, 2)
    # Some parameters are of training alone.
    params = model.init(jax.random.key(seed), batch, train=True)['params']
    ema = jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else None
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), ema)


def abstract_state(config: ConfigDict, mesh: Mesh, total_steps: int = 1) -> TrainState:
    """Shapes and placement of the train state; nothing is computed.

    A dimension that its mesh axis does not divide stays whole.
    """
    tx = make_optimizer(config.optimizer, total_steps)
    boxed = jax.eval_shape(lambda: _boxed_state(config, tx, 0))

    def place(x, axes):
        placed = nn.logical_to_mesh_axes(axes, RULES)
        fits = [size % _parts(mesh, axis) == 0 for size, axis in zip(x.shape, placed)]
        spec = PartitionSpec(*(axis if fit else None for axis, fit in zip(placed, fits)))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, nn.unbox(boxed), nn.get_partition_spec(boxed))


def _parts(mesh: Mesh, axis: str | None) -> int:
    return 1 if axis is None else mesh.shape[axis]


def fresh_state(config: ConfigDict, tx: optax.GradientTransformation, abstract: TrainState):
    """The state before the first step, made where `abstract` places it."""
    make = jax.jit(
        lambda seed: nn.unbox(_boxed_state(config, tx, seed)),
        out_shardings=jax.tree.map(lambda x: x.sharding, abstract),
    )
    return make(np.uint32(config.seed))


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

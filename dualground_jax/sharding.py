"""The device mesh: what lies where, and how batches get there."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from data_pipelines.errors import ConfigError

# Logical axis -> mesh axes it lies along. `batch` is the first axis of all that enters a step;
# the others are those of parameters (models/layers.py) and of what the optimiser keeps of them.
RULES = (
    ('batch', ('data', 'fsdp')),
    ('embed', 'fsdp'),
    ('heads', 'model'),
    ('hidden', 'model'),
    ('features', 'model'),
)


def make_mesh(section: ConfigDict, devices: list | None = None, runs: int = 1) -> Mesh:
    """Device mesh with the axes of the config.

    Args:
        section: sizes of data (batches are split along it), fsdp (batches and parameters) and model
            (heads and hidden units); one of them may be -1: all remaining devices.
        devices: default: all.
        runs: of several, the mesh has a first axis `runs`, as long as can be: they are shared out
            evenly along it.

    Raises:
        ConfigError: the sizes do not fit the number of devices, or leave out some of several
            processes.
    """
    sizes = {axis: section[axis] for axis in ('data', 'fsdp', 'model')}
    devices = jax.devices() if devices is None else devices
    if min(sizes.values()) < -1 or 0 in sizes.values() or list(sizes.values()).count(-1) > 1:
        raise ConfigError(f'mesh {sizes}: expected sizes of 1 or more, one of them may be -1')
    if runs > 1:
        taken = math.prod(n for n in sizes.values() if n > 0)
        sizes = dict(runs=math.gcd(runs, len(devices) // taken)) | sizes
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


def placed(boxed: Any, mesh: Mesh) -> Any:
    """Shapes and placement, by `RULES`, of parameters that know their logical axes.

    A dimension that its mesh axis does not divide stays whole.
    """
    def place(x, axes):
        placed = nn.logical_to_mesh_axes(axes, RULES)
        parts = [1 if axis is None else mesh.shape[axis] for axis in placed]
        fits = [size % part == 0 for size, part in zip(x.shape, parts)]
        spec = PartitionSpec(*(axis if fit else None for axis, fit in zip(placed, fits)))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, nn.unbox(boxed), nn.get_partition_spec(boxed))


def along_runs(placement: NamedSharding) -> NamedSharding:
    """The placement of what every run has: with a first axis of them, if the mesh has one."""
    if 'runs' not in placement.mesh.shape:
        return placement
    return NamedSharding(placement.mesh, PartitionSpec('runs', *placement.spec))


def over_runs(step: Callable, mesh: Mesh, in_axes: tuple) -> Callable:
    """Maps a step over the axis of runs, if the mesh has one; `in_axes` as of `vmap`."""
    return jax.vmap(step, in_axes, spmd_axis_name='runs') if 'runs' in mesh.shape else step


def gathered(sharding: NamedSharding) -> NamedSharding:
    """A parameter's placement while it is computed with: whole along fsdp."""
    spec = (None if axis == 'fsdp' else axis for axis in sharding.spec)
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def gather(params: Any) -> Any:
    """Makes parameters whole along fsdp."""
    return jax.device_put(params, jax.tree.map(lambda x: gathered(x.sharding), params))


def check_batch_size(mesh: Mesh, batch_size: int, key: str) -> None:
    """Raises ConfigError if a batch is empty, or cannot be split evenly over the mesh."""
    if batch_size < 1:
        raise ConfigError(f'{key}={batch_size}: expected 1 or more')
    if batch_size % batch_parts(mesh):
        raise ConfigError(f'{key}={batch_size} cannot be split over {batch_parts(mesh)} devices '
                          '(mesh.data x mesh.fsdp)')


def batch_parts(mesh: Mesh) -> int:
    """How many parts a batch is split into."""
    return mesh.shape['data'] * mesh.shape['fsdp']


def local_rows(sharding: NamedSharding, size: int) -> slice:
    """The rows of a batch of `size` that this process's devices hold."""
    parts = [index[0] for index in sharding.addressable_devices_indices_map((size,)).values()]
    return slice(min(part.start or 0 for part in parts),
                 max(size if part.stop is None else part.stop for part in parts))


def put_batch(
    batch: dict, sharding: NamedSharding, size: int, runs: int = 1
) -> dict[str, jax.Array]:
    """Puts a batch on the devices; each process brings its `local_rows` of `size` rows.

    Where the placement is `along_runs` it brings those of its own of the `runs`.
    """
    axis = len(sharding.spec) - 1
    first = (runs,) if 'runs' in sharding.spec else ()
    return {
        name: jax.make_array_from_process_local_data(
            sharding, x, (*first, *x.shape[len(first):axis], size, *x.shape[axis + 1:]))
        for name, x in batch.items()
    }

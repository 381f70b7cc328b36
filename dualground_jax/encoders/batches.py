"""Any number of rows through a program of one shape, over the devices of a mesh."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dualground_jax import runtime, sharding


def compiled(encode: Callable, mesh: Mesh) -> Callable:
    """Jits (params, batch) -> arrays; they come out in float32, and whole on each device."""
    @jax.default_matmul_precision('highest')
    def step(params, batch):
        return jax.tree.map(lambda x: x.astype(jnp.float32), encode(params, batch))

    return jax.jit(step, in_shardings=(None, sharding.batch_sharding(mesh)),
                   out_shardings=sharding.replicated(mesh))


def run(step: Callable, params: dict, rows: np.ndarray, mesh: Mesh, size: int
        ) -> Iterator[tuple[int, Any]]:
    """What a step of `compiled` makes of rows [N, ...], in batches of `size`.

    Yields:
        How many of a batch's rows count, and the arrays; the last batch is padded.
    """
    placement = sharding.batch_sharding(mesh)

    def results():
        for first in range(0, len(rows), size):
            batch = rows[first : first + size]
            padding = [(0, size - len(batch)), *[(0, 0)] * (rows.ndim - 1)]
            yield len(batch), step(params, jax.device_put(np.pad(batch, padding), placement))

    for count, out in runtime.one_ahead(results()):
        yield count, jax.device_get(out)

"""How layers are computed: choices that change what a step costs, not what comes out."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from data_pipelines.errors import ConfigError


class Execution(NamedTuple):
    """The choices; each is a field of every model.

    Attributes:
      attention_chunk: > 0: self-attention takes so many queries at a time. Its memory is then
        linear in the number of clips, also on the way back.
      scan_layers: equal layers run in one loop, so that the program does not grow with depth.
      remat: gradients compute a layer's activations anew instead of keeping them.
    """

    attention_chunk: int = 0
    scan_layers: bool = False
    remat: bool = False

    def rematted(self, step: Callable) -> Callable:
        """A function whose first argument is a module, as these choices have it run."""
        return nn.remat(step) if self.remat else step


def of_model(model: nn.Module) -> Execution:
    """Reads a model's fields.

    Raises:
      ConfigError: a chunk of negative size.
    """
    if model.attention_chunk < 0:
        raise ConfigError(f'model.attention_chunk={model.attention_chunk}: expected 0, which is '
                          'off, or a number of queries')
    return Execution(model.attention_chunk, model.scan_layers, model.remat)


def run_layers(
    parent: nn.Module, layer: Callable, step: Callable, x: jax.Array, *, num_layers: int,
    execution: Execution,
) -> tuple[jax.Array, jax.Array | None]:
    """Runs layers one after the other: `layer_0`, `layer_1`, ... of the parent.

    A loop stacks their parameters when it runs, so that the parent has the same parameters with
    and without it. Its dropout draws other numbers.

    Args:
      parent: module, from whose compact method this is called.
      layer: makes a layer from the keyword `name` or `parent`.
      step: (layer, x) -> (x, what else comes out: an array [B, ...] or None).
      x: what enters the first layer.
      num_layers: how many.
      execution: whether in a loop, and whether with rematerialisation.

    Returns:
      (what the last layer makes of x, what else came out [B, num_layers, ...]).
    """
    names = [f'layer_{i}' for i in range(num_layers)]
    if not execution.scan_layers or num_layers < 2 or parent.is_initializing():
        others = []
        for name in names:
            x, other = execution.rematted(step)(layer(name=name), x)
            others.append(other)
        return x, jax.tree.map(lambda *y: jnp.stack(y, 1), *others) if others else None

    own = parent.variables['params']
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(own[name] for name in names))
    rng = parent.make_rng('dropout') if parent.has_rng('dropout') else None
    apply = nn.apply(step, layer(parent=None))

    def body(x, each):
        i, params = each
        rngs = {} if rng is None else {'dropout': jax.random.fold_in(rng, i)}
        return apply({'params': params}, x, rngs=rngs)

    body = jax.checkpoint(body, prevent_cse=False) if execution.remat else body
    x, others = jax.lax.scan(body, x, (jnp.arange(num_layers), params))
    return x, jax.tree.map(lambda y: jnp.moveaxis(y, 0, 1), others)


def over_chunks(function: Callable, x: jax.Array, size: int) -> jax.Array:
    """Applies a function to pieces of x [B, T, ...] along T; gradients run it again.

    Args:
      function: (piece [B, t, ...], its number int32[]) -> [B, t, ...].
      x: [B, T, ...].
      size: t at most; pieces are as even as can be, and the last one ends in zeros.

    Returns:
      [B, T, ...].
    """
    length = x.shape[1]
    count = -(-length // size)
    each = -(-length // count)
    padded = jnp.pad(x, ((0, 0), (0, count * each - length), *((0, 0),) * (x.ndim - 2)))
    pieces = jnp.moveaxis(padded.reshape(len(x), count, each, *x.shape[2:]), 1, 0)
    body = jax.checkpoint(lambda piece: function(*piece), prevent_cse=False)
    out = jnp.moveaxis(jax.lax.map(body, (pieces, jnp.arange(count))), 0, 1)
    return out.reshape(len(x), -1, *out.shape[3:])[:, :length]

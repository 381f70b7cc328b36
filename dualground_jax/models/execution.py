"""How layers are computed: choices that change what a step costs, not what comes out."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualground_jax.models.dropout import Dropout, is_off


class Execution(NamedTuple):
    """The choices; each is a field of every model.

    Attributes:
      attention_chunk: > 0: self-attention takes so many queries at a time. Its memory is then
        linear in the number of clips, also on the way back.
      fused_attention: implementation of `jax.nn.dot_product_attention` for attention whose weights
        nobody reads and none is dropped; '': `layers` computes it.
      scan_layers: equal layers run in one loop, so that the program does not grow with depth.
      remat: gradients compute a layer's activations anew instead of keeping them.
    """

    attention_chunk: int = 0
    fused_attention: str = ''
    scan_layers: bool = False
    remat: bool = False

    def rematted(self, step: Callable, *, in_loop: bool = False) -> Callable:
        """A function whose first argument is a module, as these choices have it run."""
        return nn.remat(step, prevent_cse=not in_loop) if self.remat else step


def run_layers(
    parent: nn.Module, layer: Callable, step: Callable, x: jax.Array, num_layers: int
) -> tuple[jax.Array, jax.Array | None]:
    """Runs layers one after the other: `layer_0`, `layer_1`, ... of the parent.

    With `scan_layers` they run in a loop, for which their parameters are stacked: the parent has
    the same parameters with and without it. Dropout draws other numbers in a loop.

    Args:
      parent: module with a field `execution`, from whose compact method this is called.
      layer: makes a layer of a name.
      step: (layer, x) -> (x, what else comes out: an array [B, ...] or None).
      x: what enters the first layer.
      num_layers: how many.

    Returns:
      (what the last layer makes of x, what else came out [B, num_layers, ...]).
    """
    execution = parent.execution
    names = [f'layer_{i}' for i in range(num_layers)]
    if not execution.scan_layers or num_layers < 2 or parent.is_initializing():
        step = execution.rematted(step)
        others = []
        for name in names:
            x, other = step(layer(name), x)
            others.append(other)
        return x, jax.tree.map(lambda *y: jnp.stack(y, 1), *others) if others else None

    def stacked(variables):
        own = [variables['params'][name] for name in names]
        return {'params': {'layers': jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)}}

    def body(parent, x):
        return execution.rematted(step, in_loop=True)(layer('layers'), x)

    loop = nn.scan(
        body, variable_axes={'params': 0}, split_rngs={'dropout': True}, out_axes=1,
        length=num_layers)
    return nn.map_variables(loop, 'params', stacked)(parent, x)


def over_chunks(
    attend: Callable, query: jax.Array, drop: Dropout, size: int
) -> tuple[jax.Array, jax.Array | None]:
    """Attends from all queries at once, or from pieces of them, which gradients compute anew.

    Args:
      attend: (queries [B, t, D], dropout of the weights) -> (update [B, t, D], weights).
      query: float[B, Q, D].
      drop: dropout of the calling module; each piece draws numbers of its own.
      size: t at most, or 0: all at once. Pieces are as even as can be; the last one ends in zeros.

    Returns:
      (update [B, Q, D], the weights or, in pieces, None).
    """
    batch, length, width = query.shape
    if not 0 < size < length:
        return attend(query, drop)
    count = -(-length // size)
    each = -(-length // count)
    padded = jnp.pad(query, ((0, 0), (0, count * each - length), (0, 0)))
    pieces = padded.reshape(batch, count, each, width).swapaxes(0, 1)
    is_random = not (is_off(drop.rate) or drop.deterministic)
    rng = drop.parent.make_rng('dropout') if is_random else jax.random.key(0)
    unbound = drop.clone(parent=None)

    def attend_piece(numbered):
        piece, i = numbered
        rngs = {'dropout': jax.random.fold_in(rng, i)}
        return attend(piece, lambda weights: unbound.apply({}, weights, rngs=rngs))[0]

    body = jax.checkpoint(attend_piece, prevent_cse=False)
    updates = jax.lax.map(body, (pieces, jnp.arange(count)))
    return updates.swapaxes(0, 1).reshape(batch, -1, width)[:, :length], None

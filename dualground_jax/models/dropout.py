"""Dropout whose mask costs nothing: a hash of each entry's place instead of a generator's stream.

A fifth of a train step on CPUs goes into the bits of `nn.Dropout`. The hash is computed where it is
used, needs no memory, and is the same however the array is spread over devices.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# Along each axis, from place to place: large odd numbers (the primes of xxHash), by which entries
# of different places have, nearly all, different sums.
STEPS = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1


def is_off(rate: float | jax.Array) -> bool:
    """Whether nothing is dropped; an input of the program (`inputs.py`) is never 0."""
    return isinstance(rate, (int, float)) and rate == 0


def keep_mask(key: jax.Array, shape: tuple[int, ...], rate: float | jax.Array) -> jax.Array:
    """bool[shape], False with probability `rate`, to within 2^-32, of an array to within 2^-24.

    The hash is lowbias32 (https://nullprogram.com/blog/2018/07/31/) of the place in the array, with
    a word of the key before and one in the middle; these are as random as bits drawn by it, which
    would be one more loop to compile for each dropout. An entry's place does not depend on the
    shape, so padding leaves the others their masks.
    """
    before, middle = jax.random.key_data(key)[:2]
    place = sum(
        (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(STEPS[axis])
         for axis in range(len(shape))),
        jnp.zeros(shape, jnp.uint32))
    x = place ^ before
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ middle ^ (x >> 15)) * np.uint32(0x846CA68B)
    if isinstance(rate, jax.Array):
        threshold = (jnp.minimum(rate, 1 - 2**-24) * 2.0**32).astype(jnp.uint32)
    else:
        threshold = np.uint32(min(round(rate * 2**32), 2**32 - 1))
    return (x ^ (x >> 16)) >= threshold


class Dropout(nn.Module):
    """As `nn.Dropout`: zeroes entries with probability `rate` and scales the others."""

    rate: float | jax.Array
    broadcast_dims: tuple[int, ...] = ()
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool | None = None) -> jax.Array:
        """Maps x [...] to the same shape; entries along `broadcast_dims` share their fate."""
        deterministic = nn.merge_param('deterministic', self.deterministic, deterministic)
        if deterministic or is_off(self.rate):
            return x
        shape = [1 if axis in self.broadcast_dims else n for axis, n in enumerate(x.shape)]
        keep = keep_mask(self.make_rng('dropout'), tuple(shape), self.rate)
        return jnp.where(keep, x / (1 - self.rate), 0)

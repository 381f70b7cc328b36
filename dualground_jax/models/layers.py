"""Layers that the models share: masked attention, transformer layers, positions, input projections.

Masks are True where valid. Softmax and normalisation run in float32 whatever the compute dtype.
A row that may attend to nothing gets weights of zero, not NaN.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.errors import ConfigError
from dualground_jax.models import dropout, execution
from dualground_jax.models.execution import Execution

# torch.nn.Linear draws U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
xavier_uniform = nn.initializers.xavier_uniform()
# torch.nn.MultiheadAttention draws query, key and value projections as one matrix [3 D, D].
packed_xavier = nn.initializers.variance_scaling(1 / 2, 'fan_in', 'uniform')
normal = nn.initializers.normal(0.02)


class Init(NamedTuple):
    """How the matrices of a transformer start.

    Attributes:
      qkv: of an attention's query, key and value projections.
      out: of its output projection.
      linear: of the feed-forward.
    """

    qkv: Callable
    out: Callable
    linear: Callable


TORCH = Init(packed_xavier, torch_uniform, torch_uniform)
XAVIER = Init(packed_xavier, xavier_uniform, xavier_uniform)  # redrawn by CG-DETR and TR-DETR
NORMAL = Init(normal, normal, normal)  # redrawn by FlashVTG (transformer.py)


# Logical axes of a matrix, rows and columns: `state.RULES` says what mesh axis each lies along.
SQUARE = ('embed', None)
TO_HEADS, FROM_HEADS = ('embed', 'heads'), ('heads', 'embed')
TO_HIDDEN, FROM_HIDDEN = ('embed', 'hidden'), ('hidden', 'embed')
FROM_FEATURES = ('features', 'embed')

partitioned = nn.with_logical_partitioning


class Linear(nn.Module):
    """x W + b, as `nn.Dense`."""

    width: int
    dtype: str = 'float32'
    kernel_init: Callable = torch_uniform
    axes: tuple = SQUARE
    use_bias: bool = True

    @nn.compact
    def matrix(self, rows: int) -> tuple[jax.Array, jax.Array]:
        """(W [rows, width], b [width]), without a bias zeros, in the compute dtype."""
        kernel_init = partitioned(self.kernel_init, self.axes)
        kernel = self.param('kernel', kernel_init, (rows, self.width))
        bias = jnp.zeros(self.width)
        if self.use_bias:
            bias_init = partitioned(nn.initializers.zeros, self.axes[1:])
            bias = self.param('bias', bias_init, (self.width,))
        return kernel.astype(self.dtype), bias.astype(self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., D] to [..., width]."""
        return in_turn(x, self)


def in_turn(x: jax.Array, *linears: Linear) -> jax.Array:
    """Maps x [..., D] by linear layers one after the other, in one product of all rows.

    With nothing between them two are one: (x W_1 + b_1) W_2 + b_2 = x (W_1 W_2) + (b_1 W_2 + b_2).
    """
    first, *others = linears
    kernel, bias = first.matrix(x.shape[-1])
    for linear in others:
        following, offset = linear.matrix(kernel.shape[-1])
        kernel, bias = kernel @ following, bias @ following + offset
    return product(x.astype(first.dtype), kernel, bias)


def product(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x [..., D] kernel [D, E] + bias [E]."""
    # One axis of rows: else XLA for CPUs transposes activations for the gradient of a kernel.
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1) + bias


def dense_of(
    width: int, dtype: str, kernel_init: Callable = torch_uniform, axes: tuple = SQUARE, *,
    use_bias: bool = True,
) -> Callable[[str], Linear]:
    """Makes linear layers of one width by name: `dense('query')(x)`."""
    return lambda name: Linear(width, dtype, kernel_init, axes, use_bias, name=name)


class Conv(nn.Module):
    """A convolution along time, as `nn.Conv`, by one product: on CPUs two thirds of its time."""

    width: int
    size: int
    dtype: str = 'float32'
    stride: int = 1
    padding: int = 0  # zeros at both ends

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [B, T, D] to [B, (T + 2 padding - size) // stride + 1, width]."""
        kernel = self.param(
            'kernel', partitioned(torch_uniform, (None, *SQUARE)),
            (self.size, x.shape[-1], self.width)).astype(self.dtype)
        bias = self.param('bias', nn.initializers.zeros, (self.width,)).astype(self.dtype)
        x = jnp.pad(x.astype(self.dtype), ((0, 0), (self.padding, self.padding), (0, 0)))
        last = x.shape[1] - self.size
        shifted = [x[:, i : last + i + 1 : self.stride] for i in range(self.size)]
        return product(jnp.concatenate(shifted, -1), kernel.reshape(-1, self.width), bias)


def embedding(scale: float = 1.0) -> Callable:
    """Normal initialiser of learned vectors [..., D]."""
    def draw(key, shape, *args):
        axes = (*(None,) * (len(shape) - 1), 'embed')
        return partitioned(nn.initializers.normal(scale), axes)(key, shape, *args)

    return draw


@jax.custom_vjp
def normalise(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """(x - mean) / sqrt(variance + 1e-5) of x [..., D], times scale [D], plus bias [D].

    The variance is as exact as torch's: E[x^2] - E[x]^2 would lose digits. The gradient is written
    out: half of the memory traffic of the one that is derived, a twentieth of a CPU train step.
    """
    return _normalise(x, scale, bias)[0]


def _normalise(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    factor = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
    normal = centred * factor
    return normal * scale + bias, (normal, factor, scale)


def _normalise_gradient(kept, gradient):
    normal, factor, scale = kept
    rows = tuple(range(gradient.ndim - 1))
    of_normal = gradient * scale
    along = (of_normal * normal).mean(-1, keepdims=True)
    of_x = factor * (of_normal - of_normal.mean(-1, keepdims=True) - normal * along)
    return of_x, (gradient * normal).sum(rows), gradient.sum(rows)


normalise.defvjp(_normalise, _normalise_gradient)


class LayerNorm(nn.Module):
    """`normalise` with learned scale and bias, in float32 whatever the compute dtype."""

    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., D] to the same shape."""
        scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
        bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
        return normalise(x.astype(jnp.float32), scale, bias).astype(self.dtype)


class PReLU(nn.Module):
    """Rectifier with one learned slope; its gradient takes one pass over x, that of flax's two."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [...] to the same shape."""
        slope = self.param('negative_slope', nn.initializers.constant(0.25), ())
        return x * jnp.where(x >= 0, 1, slope).astype(x.dtype)


def masked_softmax(logits: jax.Array, mask: jax.Array | None, axis: int = -1) -> jax.Array:
    """Softmax in float32 over the entries where `mask` (broadcastable) is True; 0 elsewhere."""
    return _softmax(logits.astype(jnp.float32), True if mask is None else mask, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _softmax(logits, mask, axis):
    """The gradient is written out: fewer arrays of weights are kept for it.

    A train step on long videos takes 0.72 of the memory that it takes with the one that is derived.
    """
    return _softmax_kept(logits, mask, axis)[0]


def _softmax_kept(logits, mask, axis):
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    powers = jnp.exp(logits - logits.max(axis, keepdims=True))
    some = jnp.broadcast_to(mask, logits.shape).any(axis, keepdims=True)
    weights = powers * jnp.where(some, 1 / powers.sum(axis, keepdims=True), 0)
    return weights, weights


def _softmax_gradient(axis, weights, gradient):
    of_weights = weights * gradient
    return of_weights - weights * of_weights.sum(axis, keepdims=True), None


_softmax.defvjp(_softmax_kept, _softmax_gradient)


def sine_position(mask: jax.Array, width: int, *, normalize: bool = True) -> jax.Array:
    """Sine embedding of the running count of valid positions.

    Channel i has the angle p / 10000^(2 floor(i/2) / width); even channels are sines, odd ones
    cosines. `normalize` scales the counts of each row so that its last one becomes 2 pi
    (Moment-DETR's position_encoding.py).

    Args:
      mask: bool[B, T].
      width: channels.
      normalize: whether counts are relative to the number of valid positions.

    Returns:
      float32[B, T, width].
    """
    if not normalize:
        # A table: XLA would compute the sines anew for each phrase that they are added to.
        table = sine_channels(np.arange(mask.shape[-1] + 1), width, np)
        return jnp.asarray(table)[jnp.cumsum(mask, axis=-1)]
    count = jnp.cumsum(mask, axis=-1, dtype=jnp.float32)
    return sine_channels(count / (count[:, -1:] + 1e-6) * (2 * np.pi), width)


def sine_channels(x: jax.Array, width: int, numpy=jnp) -> jax.Array:
    """Interleaved sines and cosines of x[...] at `width` channels: float32[..., width]."""
    frequency = 10000.0 ** (-2.0 * (np.arange(width) // 2) / width)
    angle = x[..., None] * numpy.asarray(frequency, jnp.float32)
    angle = angle.astype(jnp.float32)
    return numpy.where(np.arange(width) % 2 == 0, numpy.sin(angle), numpy.cos(angle))


def attention_weights(
    query: jax.Array, key: jax.Array, mask: jax.Array | None, *, heads: int,
    normalize: str = 'inputs',
) -> jax.Array:
    """Scaled dot-product weights of contiguous channel groups.

    Args:
      query: float[B, Q, D].
      key: float[B, K, D].
      mask: bool, broadcastable to [B, heads, Q, K]; None if everything is valid.
      heads: number of channel groups.
      normalize: 'inputs': each query's weights sum to one over the keys. 'slots': the queries
        compete for each key, then each query's shares are rescaled to sum to one over the keys
        (Slot Attention, arXiv 2006.15055, algorithm 1).

    Returns:
      float32[B, heads, Q, K].

    Raises:
      ConfigError: D is no multiple of the heads, or an unknown value of normalize.
    """
    if query.shape[-1] % heads:
        raise ConfigError(f'model.width={query.shape[-1]}: expected a multiple of its {heads} '
                          'attention heads')
    query, key = (x.reshape(*x.shape[:-1], heads, -1) for x in (query, key))
    logits = jnp.einsum('bqhd,bkhd->bhqk', query * query.shape[-1] ** -0.5, key,
                        preferred_element_type=jnp.float32)
    if normalize == 'inputs':
        return masked_softmax(logits, mask)
    if normalize == 'slots':
        shares = jax.nn.softmax(logits.astype(jnp.float32), axis=-2) + 1e-8
        if mask is not None:
            shares = jnp.where(mask, shares, 0.0)
        return shares / jnp.maximum(shares.sum(-1, keepdims=True), 1e-8)
    raise ConfigError(f"normalize={normalize!r}: expected 'inputs' or 'slots'")


def weighted_values(weights: jax.Array, value: jax.Array) -> jax.Array:
    """Applies weights [B, heads, Q, K] to the channel groups of value [B, K, D]: [B, Q, D]."""
    split = value.reshape(*value.shape[:-1], weights.shape[1], -1)
    out = jnp.einsum('bhqk,bkhd->bqhd', weights.astype(value.dtype), split)
    return out.reshape(*out.shape[:2], -1)


def fused_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, *, heads: int,
    implementation: str,
) -> jax.Array:
    """`weighted_values` of `attention_weights`, which are not told: [B, Q, D].

    Args:
      query: float[B, Q, D].
      key: float[B, K, D].
      value: float[B, K, D].
      mask: bool, broadcastable to [B, 1, Q, K]; None if everything is valid.
      heads: number of channel groups.
      implementation: of `jax.nn.dot_product_attention`.
    """
    def even(x, *axes):  # cuDNN's gradient knows no odd lengths
        return jnp.pad(x, [(0, x.shape[axis] % 2 * (axis in axes)) for axis in range(x.ndim)])

    shape = len(query), 1, query.shape[1], key.shape[1]
    mask = jnp.broadcast_to(True if mask is None else mask, shape)
    split = (even(x.reshape(*x.shape[:-1], heads, -1), 1) for x in (query, key, value))
    out = jax.nn.dot_product_attention(
        *split, mask=even(mask, 2, 3), implementation=implementation)
    out = out[:, : query.shape[1]].reshape(query.shape)
    return jnp.where(mask.any(-1)[:, 0, :, None], out, 0)


class DropPath(nn.Module):
    """Drops the residual branch of whole samples (stochastic depth); scales by 1 / keep."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        dims = tuple(range(1, x.ndim))
        return dropout.Dropout(self.rate, broadcast_dims=dims)(x, deterministic=deterministic)


def residual_dropout(rate: float, drop_path: bool, deterministic: bool) -> Callable:
    """Dropout for a residual branch: of whole samples, or of single entries."""
    kind = DropPath if drop_path else dropout.Dropout
    return lambda x: kind(rate)(x, deterministic=deterministic)


class Block(nn.Module):
    """Fields of every layer with attention, and of what is made of such layers."""

    heads: int
    dropout: float = 0.0
    dtype: str = 'float32'
    execution: Execution = Execution()

    @property
    def shared(self) -> dict:
        """These fields, for the layers inside."""
        return dict(
            heads=self.heads, dropout=self.dropout, dtype=self.dtype, execution=self.execution)


class Attention(Block):
    """Multi-head attention with query, key, value and output projections; returns its weights."""

    normalize: str = 'inputs'  # with 'slots' the queries must not run in chunks
    inits: Init = TORCH

    @nn.compact
    def __call__(self, query, key, value, mask=None, *, deterministic: bool, outer=()):
        """Attends from query [B, Q, D] to key and value [B, K, D].

        Args:
          query: float[B, Q, D].
          key: float[B, K, D].
          value: float[B, K, D].
          mask: bool, broadcastable to [B, heads, Q, K]; in chunks the same for all queries.
          deterministic: no dropout.
          outer: linear layers that query, key and value pass before the projections, or none.

        Returns:
          (output [B, Q, D], weights float32[B, heads, Q, K] before dropout or, with more queries
          than a chunk or where it is fused, None).
        """
        width = query.shape[-1]
        dense = dense_of(width, self.dtype, self.inits.qkv, TO_HEADS)
        own = [dense(name) for name in ('query', 'key', 'value')]
        chains = zip(outer, own) if outer else zip(own)
        query, key, value = (in_turn(x, *chain) for x, chain in zip((query, key, value), chains))

        def attend(query, drop):
            weights = attention_weights(
                query, key, mask, heads=self.heads, normalize=self.normalize)
            return weighted_values(drop(weights), value), weights

        if self.execution.fused_attention and (deterministic or dropout.is_off(self.dropout)):
            weights, update = None, fused_attention(
                query, key, value, mask, heads=self.heads,
                implementation=self.execution.fused_attention)
        else:
            drop = dropout.Dropout(self.dropout, deterministic=deterministic)
            update, weights = execution.over_chunks(
                attend, query, drop, self.execution.attention_chunk)
        return dense_of(width, self.dtype, self.inits.out, FROM_HEADS)('out')(update), weights


class FeedForward(nn.Module):
    """Linear, PReLU with one learned slope, linear."""

    hidden: int
    dropout: float = 0.0
    dtype: str = 'float32'
    kernel_init: Callable = torch_uniform

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        width = x.shape[-1]
        x = dense_of(self.hidden, self.dtype, self.kernel_init, TO_HIDDEN)('linear1')(x)
        x = PReLU(name='activation')(x)
        x = dropout.Dropout(self.dropout)(x, deterministic=deterministic)
        return dense_of(width, self.dtype, self.kernel_init, FROM_HIDDEN)('linear2')(x)


class EncoderLayer(Block, kw_only=True):
    """Post-norm self-attention layer; positions are added to queries and keys only."""

    ffn: int
    drop_path: bool = True
    inits: Init = TORCH

    @nn.compact
    def __call__(self, x, position, mask, *, deterministic: bool) -> jax.Array:
        """Maps x [B, T, D] with position [..., T, D] and mask bool[B, T] to [B, T, D]."""
        drop = residual_dropout(self.dropout, self.drop_path, deterministic)
        keys = x + position
        update, _ = Attention(**self.shared, inits=self.inits, name='attention')(
            keys, keys, x, mask[:, None, None], deterministic=deterministic)
        x = LayerNorm(self.dtype, name='norm1')(x + drop(update))
        update = FeedForward(
            self.ffn, self.dropout, self.dtype, self.inits.linear, name='feed_forward'
        )(x, deterministic=deterministic)
        return LayerNorm(self.dtype, name='norm2')(x + drop(update))


class Encoder(Block, kw_only=True):
    """A stack of encoder layers; see there for arguments and shapes."""

    num_layers: int
    ffn: int
    drop_path: bool = True
    inits: Init = TORCH

    @nn.compact
    def __call__(self, x, position, mask, *, deterministic: bool) -> jax.Array:
        def layer(name):
            return EncoderLayer(
                **self.shared, ffn=self.ffn, drop_path=self.drop_path, inits=self.inits, name=name)

        def step(layer, x):
            return layer(x, position, mask, deterministic=deterministic), None

        return execution.run_layers(self, layer, step, x, self.num_layers)[0]


class ProjectedAttention(Block):
    """LayerNorm(x + attention(W_q x, W_k m, W_v m)) around an attention with own projections.

    The outer projections are those of DualGround's development code (LGI.py).
    """

    normalize: str = 'inputs'

    @nn.compact
    def __call__(self, x, memory, mask=None, *, deterministic: bool):
        """Attends from x [B, Q, D] to memory [B, K, D]: ([B, Q, D], weights [B, H, Q, K])."""
        dense = dense_of(x.shape[-1], self.dtype)
        outer = [dense(name) for name in ('query', 'key', 'value')]
        update, weights = Attention(**self.shared, normalize=self.normalize, name='attention')(
            x, memory, memory, mask, deterministic=deterministic, outer=outer)
        update = dropout.Dropout(self.dropout)(update, deterministic=deterministic)
        return LayerNorm(self.dtype, name='norm')(x + update), weights


class ResidualLinear(nn.Module):
    """LayerNorm(x + ReLU(linear(x)))."""

    dropout: float = 0.0
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        update = nn.relu(dense_of(x.shape[-1], self.dtype)('linear')(x))
        update = dropout.Dropout(self.dropout)(update, deterministic=deterministic)
        return LayerNorm(self.dtype, name='norm')(x + update)


class SelfAttentionLayer(Block):
    """Self-attention with outer projections, then the residual linear layer."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, *, deterministic: bool) -> jax.Array:
        """Maps x [B, T, D] with mask bool[B, T], or None, to [B, T, D]."""
        mask = None if mask is None else mask[:, None, None]
        x, _ = ProjectedAttention(**self.shared, name='attention')(
            x, x, mask, deterministic=deterministic)
        return ResidualLinear(self.dropout, self.dtype, name='feed_forward')(
            x, deterministic=deterministic)


class InputProjection(nn.Module):
    """`layers` times [LayerNorm, dropout, linear], with ReLU after all but the last."""

    width: int
    layers: int = 2
    dropout: float = 0.5
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        x = x.astype(self.dtype)
        for i in range(self.layers):
            x = LayerNorm(self.dtype, name=f'norm_{i}')(x)
            x = dropout.Dropout(self.dropout)(x, deterministic=deterministic)
            axes = FROM_FEATURES if i == 0 else SQUARE
            x = dense_of(self.width, self.dtype, axes=axes)(f'linear_{i}')(x)
            if i < self.layers - 1:
                x = nn.relu(x)
        return x


class MLP(nn.Module):
    """Linear layers of the given widths with ReLU between them."""

    widths: tuple[int, ...]
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, width in enumerate(self.widths):
            axes = FROM_HIDDEN if i % 2 else TO_HIDDEN
            x = dense_of(width, self.dtype, axes=axes)(f'linear_{i}')(x)
            if i < len(self.widths) - 1:
                x = nn.relu(x)
        return x

"""Cross-attention of clips to text (adaptive: CG-DETR, arXiv 2311.08835), which all models share.

Learnable dummies, conditioned on the text, are keys beside it that carry no value: clips that the
text does not speak of put their weight there.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualground_jax.models import dropout, execution, highlight, layers
from dualground_jax.models.execution import Execution


class CrossAttentionLayer(nn.Module):
    """Clips attend to text; only the last keys, as many as there are values, carry a value.

    The weight that falls on the keys before them, the dummies, is lost. The feed-forward residual
    is the un-normalised sum, as in the public code (FlashVTG and CG-DETR: crossattention.py and
    transformer.py; TR-DETR: transformer.py): trained checkpoints depend on it.
    """

    heads: int
    ffn: int
    dropout: float = 0.0
    dtype: str = 'float32'
    projections: bool = False  # of query, key and value: TR-DETR has them, and no dummies
    drop_path: bool = True
    inits: layers.Init = layers.NORMAL

    @nn.compact
    def __call__(self, clips, position, keys, values, keys_mask, *, deterministic: bool):
        """Attends from clips + position [B, T, D] to keys [B, K, D] with values [B, V <= K, D].

        Args:
          clips: float[B, T, D].
          position: float[B, T, D].
          keys: float[B, K, D], dummies first, positions included. Where all are masked the
            update is the bias of the output projection.
          values: float[B, V, D], without positions.
          keys_mask: bool[B, K].
          deterministic: no dropout.

        Returns:
          (clips [B, T, D], weights float32[B, heads, T, K] before dropout).
        """
        drop = layers.residual_dropout(self.dropout, self.drop_path, deterministic)
        if self.projections:
            update, weights = layers.Attention(
                self.heads, self.dropout, dtype=self.dtype, inits=self.inits, name='attention'
            )(clips + position, keys, values, keys_mask[:, None, None], deterministic=deterministic)
        else:
            weights = layers.attention_weights(
                clips + position, keys, keys_mask[:, None, None], heads=self.heads
            )
            valued = weights[..., weights.shape[-1] - values.shape[1] :]
            dropped = dropout.Dropout(self.dropout)(valued, deterministic=deterministic)
            update = layers.dense_of(clips.shape[-1], self.dtype, self.inits.out)('out')(
                layers.weighted_values(dropped, values)
            )
        residual = clips + drop(update)
        update = layers.FeedForward(
            self.ffn, self.dropout, self.dtype, self.inits.linear, name='feed_forward'
        )(layers.LayerNorm(self.dtype, name='norm1')(residual), deterministic=deterministic)
        return layers.LayerNorm(self.dtype, name='norm2')(residual + drop(update)), weights


class CrossAttention(nn.Module):
    """A stack of cross-attention layers; the text passes unchanged from layer to layer."""

    num_layers: int
    heads: int
    ffn: int
    dropout: float = 0.0
    dtype: str = 'float32'
    projections: bool = False
    drop_path: bool = True
    inits: layers.Init = layers.NORMAL
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, clips, position, keys, values, keys_mask, *, deterministic: bool):
        """As `CrossAttentionLayer`, but weights are float32[B, num_layers, heads, T, K]."""
        layer = functools.partial(
            CrossAttentionLayer,
            self.heads,
            self.ffn,
            self.dropout,
            self.dtype,
            self.projections,
            self.drop_path,
            self.inits,
        )
        return execution.run_layers(
            self,
            layer,
            lambda layer, x: layer(
                x, position, keys, values, keys_mask, deterministic=deterministic
            ),
            clips,
            num_layers=self.num_layers,
            execution=self.execution,
        )


class DummyEncoder(nn.Module):
    """Conditions learnable dummies on the text by self-attention over both."""

    dummies: int
    num_layers: int
    heads: int
    ffn: int
    dropout: float = 0.0
    dtype: str = 'float32'
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, text, text_mask, *, deterministic: bool) -> tuple[jax.Array, jax.Array]:
        """Conditions the dummies on text [B, L, D] with text_mask bool[B, L].

        Returns:
          (dummies [B, dummies, D], their positions [dummies, D]).
        """
        batch, length, width = text.shape
        shape = (self.dummies, width)
        tokens = self.param('tokens', layers.embedding(), shape).astype(text.dtype)
        positions = self.param('positions', layers.embedding(), shape).astype(text.dtype)
        sequence = jnp.concatenate([jnp.broadcast_to(tokens, (batch, *shape)), text], 1)
        sequence = layers.Encoder(
            self.num_layers,
            self.heads,
            self.ffn,
            self.dropout,
            self.dtype,
            execution=self.execution,
            name='encoder',
        )(
            sequence,
            jnp.pad(positions, ((0, length), (0, 0))),
            with_dummies(text_mask, self.dummies),
            deterministic=deterministic,
        )
        return sequence[:, : self.dummies], positions


def with_dummies(text_mask: jax.Array, dummies: int) -> jax.Array:
    """Puts valid entries for the dummies before text_mask bool[B, L]: bool[B, dummies + L]."""
    return jnp.pad(text_mask, ((0, 0), (dummies, 0)), constant_values=True)


class TextGuidedEncoder(nn.Module):
    """Dummies, adaptive cross-attention, then self-attention of the clips (FlashVTG's transformer).

    DualGround's sentence path is this with [EOS] as the only token of the text (paper eq. 1).
    """

    heads: int
    ffn: int
    dummies: int
    dummy_layers: int
    t2v_layers: int
    enc_layers: int
    dummy_heads: int = 8  # the public code has 8 there, whatever its number of heads
    dropout: float = 0.0
    dtype: str = 'float32'
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, clips, position, clips_mask, text, text_mask, *, deterministic: bool):
        """Relates clips to text.

        Args:
          clips: float[B, T, D].
          position: float[B, T, D], of the clips.
          clips_mask: bool[B, T].
          text: float[B, L, D], or half as many samples, each of which is the text of its own and
            the negative of the video before it, see `highlight.with_negatives`.
          text_mask: bool[B, L], as many.
          deterministic: no dropout.

        Returns:
          (clips [B, T, D], attention float32[B, t2v_layers, heads, T, dummies + L]).
        """
        common = dict(
            ffn=self.ffn, dropout=self.dropout, dtype=self.dtype, execution=self.execution
        )
        how = dict(deterministic=deterministic)
        dummies, positions = DummyEncoder(
            self.dummies, self.dummy_layers, self.dummy_heads, name='dummy_encoder', **common
        )(text, text_mask, **how)
        if len(text) < len(clips):
            dummies, text, text_mask = highlight.with_negatives((dummies, text, text_mask))
        clips, attention = CrossAttention(
            self.t2v_layers, self.heads, name='cross_attention', **common
        )(
            clips,
            position,
            jnp.concatenate([dummies + positions, text], 1),
            text,
            with_dummies(text_mask, self.dummies),
            **how,
        )
        clips = layers.Encoder(
            self.enc_layers, self.heads, inits=layers.NORMAL, name='encoder', **common
        )(clips, position, clips_mask, **how)
        return clips, attention

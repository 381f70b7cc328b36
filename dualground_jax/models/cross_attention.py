"""Cross-attention of clips to text (adaptive: CG-DETR, arXiv 2311.08835), which all models share.

Learnable dummies, conditioned on the text, are keys beside it that carry no value: clips that the
text does not speak of put their weight there.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualground_jax.models import dropout, execution, layers


class CrossAttentionLayer(layers.Block, kw_only=True):
    """Clips attend to text; only the last keys, as many as there are values, carry a value.

    The weight that falls on the keys before them, the dummies, is lost. The feed-forward residual
    is the un-normalised sum, as in the public code (FlashVTG and CG-DETR: crossattention.py and
    transformer.py; TR-DETR: transformer.py): trained checkpoints depend on it.
    """

    ffn: int
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
                self.heads, self.dropout, self.dtype, inits=self.inits, name='attention'
            )(clips + position, keys, values, keys_mask[:, None, None], deterministic=deterministic)
        else:
            weights = layers.attention_weights(
                clips + position, keys, keys_mask[:, None, None], heads=self.heads)
            valued = weights[..., weights.shape[-1] - values.shape[1] :]
            dropped = dropout.Dropout(self.dropout)(valued, deterministic=deterministic)
            update = layers.dense_of(clips.shape[-1], self.dtype, self.inits.out)('out')(
                layers.weighted_values(dropped, values))
        residual = clips + drop(update)
        update = layers.FeedForward(
            self.ffn, self.dropout, self.dtype, self.inits.linear, name='feed_forward'
        )(layers.LayerNorm(self.dtype, name='norm1')(residual), deterministic=deterministic)
        return layers.LayerNorm(self.dtype, name='norm2')(residual + drop(update)), weights


class CrossAttention(layers.Block, kw_only=True):
    """A stack of cross-attention layers; the text passes unchanged from layer to layer."""

    num_layers: int
    ffn: int
    projections: bool = False
    drop_path: bool = True
    inits: layers.Init = layers.NORMAL

    @nn.compact
    def __call__(self, clips, position, keys, values, keys_mask, *, deterministic: bool):
        """As `CrossAttentionLayer`, but weights are float32[B, num_layers, heads, T, K]."""
        def layer(name):
            return CrossAttentionLayer(
                **self.shared, ffn=self.ffn, projections=self.projections,
                drop_path=self.drop_path, inits=self.inits, name=name)

        def step(layer, x):
            return layer(x, position, keys, values, keys_mask, deterministic=deterministic)

        return execution.run_layers(self, layer, step, clips, self.num_layers)


class DummyEncoder(layers.Block, kw_only=True):
    """Conditions learnable dummies on the text by self-attention over both."""

    dummies: int
    num_layers: int
    ffn: int

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
        sequence = layers.Encoder(
            **self.shared, num_layers=self.num_layers, ffn=self.ffn, name='encoder'
        )(
            jnp.concatenate([jnp.broadcast_to(tokens, (batch, *shape)), text], 1),
            jnp.pad(positions, ((0, length), (0, 0))), with_dummies(text_mask, self.dummies),
            deterministic=deterministic)
        return sequence[:, : self.dummies], positions


def own_or(dropout: float, elsewhere: float) -> float:
    """The dropout of an encoder of dummies: its own, or if that is negative the model's."""
    return elsewhere if dropout < 0 else dropout


def with_dummies(text_mask: jax.Array, dummies: int) -> jax.Array:
    """Puts valid entries for the dummies before text_mask bool[B, L]: bool[B, dummies + L]."""
    return jnp.pad(text_mask, ((0, 0), (dummies, 0)), constant_values=True)


class EncodedText(NamedTuple):
    """What clips attend to.

    Attributes:
      keys: float[B, dummies + L, D], the dummies with positions, then the tokens.
      values: float[B, L, D], the tokens.
      keys_mask: bool[B, dummies + L].
    """

    keys: jax.Array
    values: jax.Array
    keys_mask: jax.Array


class TextGuidedEncoder(layers.Block, kw_only=True):
    """Dummies, adaptive cross-attention, then self-attention of the clips (FlashVTG's transformer).

    DualGround's sentence path is this with [EOS] as the only token of the text (paper eq. 1).
    """

    ffn: int
    dummies: int
    dummy_layers: int
    dummy_heads: int
    dummy_dropout: float
    t2v_layers: int
    enc_layers: int

    def setup(self):
        common = dict(self.shared, ffn=self.ffn)
        own = dict(heads=self.dummy_heads, dropout=own_or(self.dummy_dropout, self.dropout))
        self.dummy_encoder = DummyEncoder(
            **common | own, dummies=self.dummies, num_layers=self.dummy_layers)
        self.cross_attention = CrossAttention(**common, num_layers=self.t2v_layers)
        self.encoder = layers.Encoder(**common, num_layers=self.enc_layers, inits=layers.NORMAL)

    def encode_text(self, text, text_mask, *, deterministic: bool) -> EncodedText:
        """Encodes text [B, L, D] with text_mask bool[B, L], once a sample."""
        dummies, positions = self.dummy_encoder(text, text_mask, deterministic=deterministic)
        keys = jnp.concatenate([dummies + positions, text], 1)
        return EncodedText(keys, text, with_dummies(text_mask, self.dummies))

    def __call__(self, clips, position, clips_mask, text: EncodedText, *, deterministic: bool):
        """Relates clips to text.

        Args:
          clips: float[B, T, D].
          position: float[B, T, D], of the clips.
          clips_mask: bool[B, T].
          text: of `encode_text`.
          deterministic: no dropout.

        Returns:
          (clips [B, T, D], weights float32[B, t2v_layers, heads, T, dummies + L]).
        """
        how = dict(deterministic=deterministic)
        clips, weights = self.cross_attention(clips, position, *text, **how)
        return self.encoder(clips, position, clips_mask, **how), weights

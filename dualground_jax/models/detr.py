"""Moment queries: a decoder with reference spans and its span and class heads.

The decoder is that of DAB-DETR in one dimension, as CG-DETR and TR-DETR use it (their
transformer.py): each query carries a reference span (centre, width) that every layer refines.
DualGround uses it with `head='detr'`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dualground_jax import losses, spans
from dualground_jax.models import dropout, layers

# What every set loss needs of a config's `loss` section.
LOSS = dict(
    detr_cost=dict(span=10.0, giou=1.0, label=4.0),
    detr_label='cross_entropy',  # or 'focal'
    detr_background=0.1,  # weight of unmatched queries in the cross entropy
)


def inverse_sigmoid(x: jax.Array, eps: float = 1e-3) -> jax.Array:
    """Logit of x, cut so that neither x nor 1 - x goes below eps."""
    x = jnp.clip(x, 0.0, 1.0)
    return jnp.log(jnp.maximum(x, eps) / jnp.maximum(1 - x, eps))


def sine_span(reference: jax.Array, width: int) -> jax.Array:
    """Sine embedding of (centre, width) [..., 2]: half of the channels each, [..., width]."""
    embedded = layers.sine_channels(reference * (2 * np.pi), width // 2)
    return embedded.reshape(*reference.shape[:-1], width)


class DecoderLayer(layers.Block, kw_only=True):
    """Self-attention of the queries, conditional cross-attention to the clips, feed-forward.

    Content and position are projected apart. In the cross-attention they are concatenated per
    head, so that a query's position is compared with a clip's; only the first layer also adds
    them.
    """

    ffn: int
    first: bool
    drop_path: bool = True

    @nn.compact
    def __call__(self, x, query_position, query_sine, memory, position, mask, *, deterministic):
        """Maps queries x [B, N, D] to [B, N, D].

        Args:
          x: float[B, N, D], content.
          query_position: float[B, N, D].
          query_sine: float[B, N, D], modulated sine embedding of the reference spans.
          memory: float[B, T, D], clips.
          position: float[B, T, D], of the clips.
          mask: bool[B, T].
          deterministic: no dropout.

        Returns:
          ([B, N, D], cross-attention weights float32[B, heads, N, T]).
        """
        width = x.shape[-1]
        dense = layers.dense_of(width, self.dtype, layers.xavier_uniform)
        drop = layers.residual_dropout(self.dropout, self.drop_path, deterministic)
        drop_weights = dropout.Dropout(self.dropout, deterministic=deterministic)

        weights = layers.attention_weights(
            dense('self_query_content')(x) + dense('self_query_position')(query_position),
            dense('self_key_content')(x) + dense('self_key_position')(query_position), None,
            heads=self.heads)
        update = layers.weighted_values(drop_weights(weights), dense('self_value')(x))
        x = layers.LayerNorm(self.dtype, name='norm1')(x + drop(dense('self_out')(update)))

        query = dense('cross_query_content')(x)
        key = dense('cross_key_content')(memory)
        key_position = dense('cross_key_position')(position)
        if self.first:
            query = query + dense('cross_query_position')(query_position)
            key = key + key_position

        def beside(*parts):
            by_head = [x.reshape(*x.shape[:2], self.heads, -1) for x in parts]
            return jnp.concatenate(by_head, -1).reshape(*parts[0].shape[:2], -1)

        weights = layers.attention_weights(
            beside(query, dense('cross_query_sine')(query_sine)), beside(key, key_position),
            mask[:, None, None], heads=self.heads)
        update = layers.weighted_values(drop_weights(weights), dense('cross_value')(memory))
        x = layers.LayerNorm(self.dtype, name='norm2')(x + drop(dense('cross_out')(update)))

        update = layers.FeedForward(
            self.ffn, self.dropout, self.dtype, layers.XAVIER.linear, name='feed_forward'
        )(x, deterministic=deterministic)
        return layers.LayerNorm(self.dtype, name='norm3')(x + drop(update)), weights


class MomentDecoder(layers.Block, kw_only=True):
    """Decoder layers with iteratively refined reference spans, and the heads on each layer."""

    queries: int
    num_layers: int
    ffn: int
    drop_path: bool = True

    @nn.compact
    def __call__(self, memory, position, mask, *, deterministic: bool) -> dict[str, jax.Array]:
        """Decodes clips [B, T, D] into moments.

        Returns:
          pred_logits float32[layers, B, N, 2], index 0 is foreground; pred_spans
          float32[layers, B, N, 2], (centre, width) relative to the video; decoder_attention
          float32[B, layers, heads, N, T].
        """
        batch, _, width = memory.shape

        def mlp(name, *widths):
            return layers.MLP(widths, self.dtype, name=name)

        query_position = mlp('position_mlp', width, width)
        query_scale = mlp('scale_mlp', width, width)
        width_anchor = mlp('width_mlp', width, 1)
        refine = mlp('refine_mlp', width, width, 2)
        span_head = mlp('span_head', width, width, 2)
        class_head = layers.dense_of(2, self.dtype)('class')
        norm = layers.LayerNorm(self.dtype, name='norm')

        anchors = self.param('anchors', nn.initializers.normal(1.0), (self.queries, 2))
        reference = jnp.broadcast_to(nn.sigmoid(anchors), (batch, self.queries, 2))
        x = jnp.zeros((batch, self.queries, width), memory.dtype)

        def step(layer, *queries):
            return layer(*queries, memory, position, mask, deterministic=deterministic)

        logits, predicted, attention = [], [], []
        for i in range(self.num_layers):
            # A refined reference is a constant for the next layer, not for that layer's span head
            # (CG-DETR detaches the one, and not the other).
            current = reference if i == 0 else jax.lax.stop_gradient(reference)
            sine = sine_span(current, width).astype(memory.dtype)
            modulated = sine * (nn.sigmoid(width_anchor(x)) / current[..., 1:])
            if i > 0:
                modulated = modulated * query_scale(x)
            layer = DecoderLayer(
                **self.shared, ffn=self.ffn, first=i == 0, drop_path=self.drop_path,
                name=f'layer_{i}')
            x, weights = self.execution.rematted(step)(
                layer, x, query_position(sine), modulated.astype(memory.dtype))
            hidden = norm(x)
            offset = span_head(hidden).astype(jnp.float32)
            predicted.append(nn.sigmoid(offset + inverse_sigmoid(reference)))
            logits.append(class_head(hidden).astype(jnp.float32))
            attention.append(weights)
            if i < self.num_layers - 1:
                change = refine(x).astype(jnp.float32)
                reference = nn.sigmoid(change + inverse_sigmoid(current))
        return dict(
            pred_logits=jnp.stack(logits), pred_spans=jnp.stack(predicted),
            decoder_attention=jnp.stack(attention, 1))


def decode_moments(out: dict, seconds: jax.Array) -> jax.Array:
    """Windows of the last decoder layer, best first.

    Args:
      out: what `MomentDecoder` returned.
      seconds: float32[B], what a span of width 1 covers.

    Returns:
      float32[B, N, 3]: start and end in seconds, not yet clamped to the video, and a probability.
    """
    score = jax.nn.softmax(out['pred_logits'][-1], -1)[..., :1]
    bounds = spans.spans_to_windows(out['pred_spans'][-1]) * seconds[:, None, None]
    windows = jnp.concatenate([bounds, score], -1)
    order = jnp.argsort(-score[..., 0], axis=1, stable=True)
    return jnp.take_along_axis(windows, order[..., None], 1)


def decode(out: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Windows float32[B, N, 3] and saliency float32[B, T] of CG-DETR and TR-DETR.

    A span of width 1 covers batch['duration'], as in the public code (inference.py).
    """
    return decode_moments(out, batch['duration']), out['saliency']


def set_losses(out: dict, batch: dict, config) -> dict[str, jax.Array]:
    """Span, generalised IoU and label loss of every decoder layer, each layer matched anew.

    Args:
      out: what `MomentDecoder` returned.
      batch: needs spans float32[B, M, 2], spans_mask bool[B, M] and video_mask bool[B, T].
      config: the `loss` section; see `LOSS`.

    Returns:
      span, giou and query_label, each summed over the layers.
    """

    def layer(logits, pred_spans):
        return losses.set_prediction(
            logits=logits, spans=pred_spans, target_spans=batch['spans'],
            targets_mask=batch['spans_mask'], cost=dict(config.detr_cost), label=config.detr_label,
            background=config.detr_background, rows=losses.real_rows(batch))

    per_layer = jax.vmap(layer)(out['pred_logits'], out['pred_spans'])
    return {name: value.sum() for name, value in per_layer.items()}

"""Highlight detection: the saliency head that all models share, and losses with negatives."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualground_jax import losses
from dualground_jax.models import layers


class SaliencyHead(nn.Module):
    """<W_1 f_t, W_2 g> / sqrt(D): how well each clip f_t goes with a summary g.

    Without a summary (TR-DETR) a vector of ones stands for W_2 g.
    """

    dtype: str = 'float32'

    @nn.compact
    def __call__(self, clips: jax.Array, summary: jax.Array | None = None) -> jax.Array:
        """Scores clips [B, T, D] by summary [B, D], or alone: float32[B, T]."""
        width = clips.shape[-1]
        dense = layers.dense_of(width, self.dtype)
        scores = dense('clip')(clips)
        if summary is None:
            scores = scores.sum(-1, dtype=jnp.float32)
        else:
            scores = jnp.einsum('btd,bd->bt', scores, dense('video')(summary))
        return scores.astype(jnp.float32) * width**-0.5


# In training each video meets its own query and the next sample's, in rows that follow each other:
# then no row leaves its device where batches are spread over devices.


def twice(tree):
    """Repeats each row of every [B, ...]: [2B, ...]."""
    return jax.tree.map(lambda x: jnp.repeat(x, 2, 0), tree)


def with_negatives(tree):
    """Puts the next sample's row behind each of every [B, ...], for negative pairs: [2B, ...]."""
    pairs = lambda x: jnp.stack([x, jnp.roll(x, -1, 0)], 1)  # noqa: E731
    return jax.tree.map(lambda x: pairs(x).reshape(-1, *x.shape[1:]), tree)


def _by_sample(x: jax.Array, size: int) -> jax.Array:
    return x.reshape(size, -1, *x.shape[1:])


def without_negatives(x: jax.Array, size: int) -> jax.Array:
    """The rows [size, ...] of own queries, of [2 size, ...] or of [size, ...] without negatives."""
    return _by_sample(x, size)[:, 0]


def split_negatives(out: dict, size: int, names: tuple[str, ...]) -> dict:
    """Takes `without_negatives` of all entries; the other rows of `names` become *_neg."""
    others = {f'{name}_neg': _by_sample(out[name], size)[:, 1] for name in names}
    return {name: without_negatives(x, size) for name, x in out.items()} | others


def saliency_loss(out: dict, batch: dict, config) -> jax.Array:
    """The saliency loss on the scores and, weighted by config.attn, on the attention to the text.

    Args:
      out: saliency and saliency_neg float32[B, T], real_neg bool[B]; attention and attention_neg
        float32[B, T] where the model attends to text.
      batch: saliency float32[B, T], video_mask bool[B, T], pos_clips and neg_clips int32[B, 2],
        pairs_mask bool[B].
      config: the `loss` section: margin, margin_weight, absence_weight and attn.
    """
    shared = {name: batch[name] for name in ('pos_clips', 'neg_clips', 'pairs_mask')}
    shared |= dict(
        labels=batch['saliency'],
        mask=batch['video_mask'],
        real_neg=out['real_neg'],
        margin=config.margin,
        margin_weight=config.margin_weight,
        absence_weight=config.absence_weight,
    )
    loss = losses.highlight(scores=out['saliency'], scores_neg=out['saliency_neg'], **shared)
    if 'attention' in out:
        loss += config.attn * losses.highlight_attention(
            weights=out['attention'], weights_neg=out['attention_neg'], **shared
        )
    return loss

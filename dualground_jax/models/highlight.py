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


def text_weight(weights: jax.Array, num_tokens: int) -> jax.Array:
    """How much of its attention each clip gives to the text: float32[B, T].

    Args:
      weights: float32[B, layers, heads, T, dummies + L].
      num_tokens: L.
    """
    return weights[..., weights.shape[-1] - num_tokens :].sum(-1).mean((1, 2))


def saliency_loss(out: dict, batch: dict, config) -> jax.Array:
    """The saliency loss on the scores and, weighted by config.attn, on the weight of the text.

    Clips of higher labels are to rank above others, and above those of the negative pair, which is
    to find nothing. The weight of the text is also to be the label, cut to [0, 1].

    Args:
      out: saliency and saliency_neg float32[B, T], real_neg bool[B]; text_weight and
        text_weight_neg float32[B, T] where the model attends to text.
      batch: saliency float32[B, T], video_mask bool[B, T], pos_clips and neg_clips int32[B, 2],
        pairs_mask and graded bool[B].
      config: the `loss` section: margin, attn, margin_weight (1 in DualGround's development code, 2
        in the others, which sum over a sample's two pairs) and absence_weight (of what the negative
        pair is to find; 0 on YouTube Highlights in public code).
    """
    labels, mask, real_neg = batch['saliency'], batch['video_mask'], out['real_neg']

    def ranking(scores, scores_neg):
        pairs = losses.margin_ranking(
            scores=scores, pos_clips=batch['pos_clips'], neg_clips=batch['neg_clips'],
            mask=batch['pairs_mask'], margin=config.margin)
        return config.margin_weight * pairs + losses.rank_with_negatives(
            scores=scores, scores_neg=scores_neg, labels=labels, mask=mask, real_neg=real_neg)

    absence = losses.negative_pair(logits=out['saliency_neg'], mask=mask, real_neg=real_neg)
    loss = ranking(out['saliency'], out['saliency_neg']) + config.absence_weight * absence
    if 'text_weight' in out:
        own, other = out['text_weight'], out['text_weight_neg']
        graded = mask & batch['graded'][:, None]
        absence = losses.attention_absence(weights=other, mask=mask, real_neg=real_neg)
        loss += config.attn * (
            ranking(own, other)
            + losses.attention_cross_entropy(weights=own, labels=labels, mask=graded)
            + config.absence_weight * absence)
    return loss


def clip_query_nce(clips, query, has_query, batch: dict, config) -> jax.Array:
    """InfoNCE of clips [B, T, D] and query [B, D] where has_query bool[B], see `sampled_nce`."""
    return losses.sampled_nce(
        similarity=losses.cosine(clips, query[:, None]), labels=batch['saliency'],
        pos_clips=batch['pos_clips'][:, 0], mask=batch['video_mask'],
        pairs_mask=batch['pairs_mask'] & has_query, over_batch=config.nce_over_batch)

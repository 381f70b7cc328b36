"""TR-DETR: moment retrieval and highlight detection help each other (arXiv 2401.02309).

Follows the authors' code, mingyao1120/TR-DETR, in what it does to a single sample; numbers agree
with it to rounding (tr_detr_parity_test.py). Where padding acts there (means, the softmax over
clips, the length that a span is relative to), the valid clips and words act here.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dualground_jax import losses, spans
from dualground_jax.models import cross_attention, detr, dropout, highlight, layers, text
from dualground_jax.models.base import GroundingModel

# The `loss` section of its config; `dualground_jax.models` says what each weight is of.
LOSS = dict(
    detr.LOSS,
    weights=dict(span=10.0, giou=1.0, query_label=4.0, saliency=1.0, vtc=0.3, ctc=0.5),
    margin=0.2,
    margin_weight=2.0,
    detr_label='focal',
)


class Fuser(nn.Module):
    """Context-query attention (VSLNet, arXiv 2004.13931): each clip takes up what the words say."""

    dropout: float = 0.0
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, clips, clips_mask, words, words_mask, *, deterministic: bool) -> jax.Array:
        """Fuses clips [B, T, D] and words [B, L, D] under their masks: [B, T, D]."""
        width = clips.shape[-1]
        dense = layers.dense_of(width, self.dtype)
        score = layers.dense_of(1, self.dtype, layers.xavier_uniform, use_bias=False)
        # torch sees D inputs and D outputs in the shape of this vector.
        scale = self.param(
            'score_product', nn.initializers.variance_scaling(1.0, 'fan_out', 'uniform'), (1, width)
        ).astype(self.dtype)
        drop = dropout.Dropout(self.dropout, deterministic=deterministic)
        context, query = drop(clips), drop(words)
        scores = score('score_clip')(context) + jnp.swapaxes(score('score_word')(query), 1, 2)
        scores += jnp.einsum('btd,bld->btl', context * scale, query)
        over_words, over_clips = (
            layers.masked_softmax(scores, mask, axis).astype(clips.dtype)
            for mask, axis in ((words_mask[:, None], 2), (clips_mask[..., None], 1)))
        to_clips = jnp.einsum('btl,bld->btd', over_words, words)
        through_words = jnp.einsum(
            'btl,bld->btd', over_words, jnp.einsum('btl,btd->bld', over_clips, clips))
        attended = dense('attended')(
            jnp.concatenate([clips, to_clips, clips * to_clips, clips * through_words], -1))
        shares = layers.masked_softmax(score('pooling')(words), words_mask[..., None], 1)
        pooled = (shares.astype(words.dtype) * words).sum(1, keepdims=True)
        pooled = jnp.broadcast_to(pooled, attended.shape)
        return nn.relu(dense('joined')(jnp.concatenate([attended, pooled], -1)))


class GRU(nn.Module):
    """torch's gated recurrent unit, whose every gate has two biases; flax's have one."""

    features: int
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x: jax.Array, length: jax.Array) -> jax.Array:
        """The state after the first length [B] steps of x [B, T, D]: float32[B, features]."""
        dense = layers.dense_of(3 * self.features, self.dtype)
        kernel, bias = dense('hidden').matrix(self.features)

        def step(state, now):
            inputs, is_there = now
            hidden = state.astype(kernel.dtype) @ kernel + bias
            of_input, of_hidden = (
                jnp.split(gates.astype(jnp.float32), 3, -1) for gates in (inputs, hidden))
            reset, keep = (nn.sigmoid(a + b) for a, b in zip(of_input[:2], of_hidden[:2]))
            following = nn.tanh(of_input[2] + reset * of_hidden[2])
            following = (1 - keep) * following + keep * state
            return jnp.where(is_there, following, state), None

        start = jnp.zeros((x.shape[0], self.features), jnp.float32)
        steps = jnp.arange(x.shape[1])[:, None, None] < length[:, None]
        return jax.lax.scan(step, start, (dense('input')(x).swapaxes(0, 1), steps))[0]


def moment_clips(span: jax.Array, clips: jax.Array, length: jax.Array) -> jax.Array:
    """The clips from the first to the last one that a span touches, moved to the front.

    The public code slices a Python sequence of the sample's clips, so that a start before the
    video counts from its end: most such moments are empty (model.py: MR2HD).

    Args:
      span: float32[2], (centre, width) relative to the video. Carries no gradient.
      clips: float[T, D].
      length: int, the number of valid clips.

    Returns:
      [T, D], zeros behind the moment.
    """
    edges = jnp.floor(spans.spans_to_windows(span) * length).astype(jnp.int32) + jnp.array([0, 1])
    start, stop = jnp.clip(jnp.where(edges < 0, edges + length, edges), 0, length)
    index = jnp.arange(len(clips))
    rows = jnp.take(clips, start + index, axis=0, mode='clip')
    return jnp.where((index < stop - start)[:, None], rows, 0)


class MomentRefinement(nn.Module):
    """Raises clips by their likeness to the moment found, the last state of a GRU over it."""

    dtype: str = 'float32'

    @nn.compact
    def __call__(self, memory, clips, pred_logits, pred_spans, mask) -> jax.Array:
        """Multiplies each clip of memory by 1 + <state, clip>.

        The recurrence goes on over zeros behind the moment, up to the length of the video.

        Args:
          memory: float[B, T, D].
          clips: float[B, T, D], which are compared.
          pred_logits: float32[B, N, 2], index 0 is foreground.
          pred_spans: float32[B, N, 2], of which the most probable is taken.
          mask: bool[B, T].

        Returns:
          [B, T, D].
        """
        length = mask.sum(-1)
        best = jnp.argmax(jax.nn.softmax(pred_logits, -1)[..., 0], -1)
        span = jnp.take_along_axis(pred_spans, best[:, None, None], 1)[:, 0]
        moment = jax.vmap(moment_clips)(span, clips, length)
        state = GRU(clips.shape[-1], self.dtype, name='gru')(moment, length)
        likeness = jnp.einsum('bd,btd->bt', state, clips.astype(jnp.float32))
        return memory * (1 + likeness)[..., None].astype(memory.dtype)


class Model(GroundingModel):
    """TR-DETR. Fields, with those of all models, are the `model` section of the config.

    Its dropout is also that of the fuser, where the public code has 0.1 whatever the rest has.
    """

    enc_layers: int = 2  # of the cross-attention to the text and of the clips' encoder
    dec_layers: int = 2
    queries: int = 10

    @nn.compact
    def __call__(self, batch: dict, *, train: bool) -> dict[str, jax.Array]:
        """Grounds each sample's query in its video.

        Args:
          batch: video float32[B, T, d_v], video_mask bool[B, T], text float32[B, L, d_t],
            text_role int32[B, L].
          train: dropout.

        Returns:
          A flat dict. saliency float32[B, T]; the predictions of `MomentDecoder`; clips [B, T, D]
          and text [B, L, D], as projected, text_mask bool[B, L] and the means clips_mean and
          text_mean [B, D], which the alignment losses compare; attn
          float32[B, enc_layers, heads, T, L] and attn_roles int32[B, L].
        """
        how = dict(deterministic=not train)
        common = dict(self.shared, ffn=self.ffn, drop_path=False)
        mask, words_mask = batch['video_mask'], text.token_mask(batch, self.tokens)
        words = self.project('text_projection', batch['text'], train=train)
        clips = self.project('video_projection', batch['video'], train=train)
        position = self.position(mask)
        fused = Fuser(self.dropout, self.dtype, name='fuser')(clips, mask, words, words_mask, **how)
        guided, attn = cross_attention.CrossAttention(
            **common, num_layers=self.enc_layers, projections=True, inits=layers.XAVIER,
            name='cross_attention')(fused, position, words, words, words_mask, **how)

        # A first guess of the highlights says which clips count more in the same encoder's second
        # pass; nothing supervises it but what follows.
        encoder = layers.Encoder(
            **common, num_layers=self.enc_layers, inits=layers.XAVIER, name='encoder')
        saliency_head = highlight.SaliencyHead(self.dtype, name='saliency_head')
        memory = encoder(guided, position, mask, **how)
        shares = layers.masked_softmax(saliency_head(memory), mask)[..., None]
        memory = encoder(memory + shares.astype(guided.dtype) * guided, position, mask, **how)
        moments = detr.MomentDecoder(
            **common, queries=self.queries, num_layers=self.dec_layers, name='decoder'
        )(memory, position, mask, **how)

        # The moment found says in turn which clips are highlights.
        refined = MomentRefinement(self.dtype, name='moment_refinement')(
            memory, clips, moments['pred_logits'][-1], moments['pred_spans'][-1], mask)
        return moments | dict(
            saliency=saliency_head(refined),
            clips=clips,
            text=words,
            text_mask=words_mask,
            clips_mean=losses.masked_mean(clips, mask[..., None], axis=1),
            text_mean=losses.masked_mean(words, words_mask[..., None], axis=1),
            attn=attn,
            attn_roles=text.key_roles(batch, words_mask),
        )


def clip_text_alignment(*, clips, words, words_mask, relevant, mask, temperature=0.07) -> jax.Array:
    """Cross entropy of which clips are relevant by their cosine with the text (CTCLoss.py).

    Args:
      clips: float[B, T, D].
      words: float[B, L, D]; their directions are averaged, and the mean is not made unit again.
      words_mask: bool[B, L].
      relevant: bool[B, T].
      mask: bool[B, T].
      temperature: divides the similarity.
    """
    text_mean = losses.masked_mean(losses.unit(words), words_mask[..., None], axis=1)
    similarity = jnp.einsum('btd,bd->bt', losses.unit(clips), text_mean)
    loss = optax.sigmoid_binary_cross_entropy(similarity / temperature, relevant)
    return losses.masked_mean(loss, mask)


def video_text_alignment(*, videos, texts, mask, temperature=0.07) -> jax.Array:
    """InfoNCE of whole videos and texts, both ways (VTCLoss.py).

    Args:
      videos: float[B, D].
      texts: float[B, D].
      mask: bool[B], samples that have a text.
      temperature: divides the cosines.
    """
    how = dict(mask=mask, temperature=temperature)
    return (losses.info_nce(texts, videos, **how) + losses.info_nce(videos, texts, **how)) / 2


def loss_fn(out: dict, batch: dict, config) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of TR-DETR's losses (its model.py and train.py).

    Args:
      out: of `Model` with train=True.
      batch: video_mask bool[B, T], saliency float32[B, T] (0..12), relevant bool[B, T], pos_clips
        and neg_clips int32[B, 2], pairs_mask bool[B], spans float32[B, M, 2] and spans_mask
        bool[B, M].
      config: the `loss` section.

    Returns:
      (loss, every unweighted loss by name).
    """
    margin = losses.margin_ranking(
        scores=out['saliency'], pos_clips=batch['pos_clips'], neg_clips=batch['neg_clips'],
        mask=batch['pairs_mask'], margin=config.margin)
    rank = losses.rank_contrastive(
        scores=out['saliency'], labels=batch['saliency'], mask=batch['video_mask'])
    parts = dict(
        saliency=config.margin_weight * margin + losses.row_mean(rank, losses.real_rows(batch)),
        vtc=video_text_alignment(
            videos=out['clips_mean'], texts=out['text_mean'], mask=out['text_mask'].any(-1)),
        ctc=clip_text_alignment(
            clips=out['clips'], words=out['text'], words_mask=out['text_mask'],
            relevant=batch['relevant'], mask=batch['video_mask']),
        **detr.set_losses(out, batch, config),
    )
    return losses.weighted_sum(parts, config.weights), parts


decode = detr.decode

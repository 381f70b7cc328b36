"""CG-DETR: moment queries on clips whose attention to the text is calibrated (arXiv 2311.08835).

Follows the authors' code, wjun0830/CGDETR, in what it does to a single sample; numbers agree with
it to rounding (cg_detr_parity_test.py).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import xlogy

from dualground_jax import losses
from dualground_jax.models import cross_attention, detr, highlight, layers, negatives, text
from dualground_jax.models.base import GroundingModel

# The `loss` section of its config; `dualground_jax.models` says what each weight is of.
LOSS = dict(
    weights=dict(
        span=10.0, giou=1.0, query_label=4.0, saliency=1.0, align=1.0, distill=1.0, orthogonal=1.0),
    attn=1.0,
    margin=0.2,
    margin_weight=2.0,
    absence_weight=1.0,  # of what negative pairs are not to find
    **detr.LOSS,
)


def prepend(first: jax.Array, rest: jax.Array) -> jax.Array:
    """Puts `first` [D] or [B, D] before `rest` [..., T, D]: [..., 1 + T, D]."""
    shape = (*rest.shape[:-2], 1, rest.shape[-1])
    return jnp.concatenate([jnp.broadcast_to(first[..., None, :], shape), rest], -2)


class SummaryEncoder(layers.Block, kw_only=True):
    """Encoder of a sequence behind a learned token, which comes to stand for the whole."""

    num_layers: int
    ffn: int
    inits: layers.Init = layers.TORCH

    @nn.compact
    def __call__(self, x, position, mask, *, deterministic: bool) -> tuple[jax.Array, jax.Array]:
        """Maps x [B, T, D] with position [..., T, D] and mask bool[B, T] to ([B, D], [B, T, D])."""
        token, first = (
            self.param(name, layers.embedding(), x.shape[-1:]).astype(x.dtype)
            for name in ('token', 'position'))
        x = layers.Encoder(
            **self.shared, num_layers=self.num_layers, ffn=self.ffn, inits=self.inits,
            name='encoder',
        )(
            prepend(token, x), prepend(first, position), cross_attention.with_dummies(mask, 1),
            deterministic=deterministic)
        return x[:, 0], x[:, 1:]


def saliency_token(*, clips, context, importance, prompts, used: int) -> jax.Array:
    """The video's context moved towards the prompts that its important clips resemble.

    Clips are compared by how they differ from the context. Gradients reach clips and prompts
    through the likeness alone (the authors' transformer.py).

    Args:
      clips: float[B, T, D].
      context: float[B, D], mean clip.
      importance: float32[B, T] >= 0; 0 at padding. Where all are 0 the result is the context.
      prompts: float[P, D].
      used: how many prompts, the likeliest, are mixed; their weights keep their sum.

    Returns:
      float32[B, D].
    """
    likeness = losses.unit(clips - context[:, None]) @ losses.unit(prompts).T
    shares = importance / jnp.maximum(importance.sum(1, keepdims=True), 1e-9)
    weights = jnp.einsum('bt,btp->bp', jax.lax.stop_gradient(shares), nn.softmax(likeness))
    best, index = jax.lax.top_k(weights, used)
    return jnp.einsum('bk,bkd->bd', best, jnp.take(prompts, index, 0)) + context


class Model(GroundingModel):
    """CG-DETR. Fields, with those of all models, are the `model` section of the config."""

    dummies: int = 45
    dummy_layers: int = 2
    dummy_heads: int = 8  # of the encoders of dummies and sentences, whatever the other heads
    dummy_dropout: float = -1.0  # of these encoders; below 0: as elsewhere
    sentence_layers: int = 1
    moment_layers: int = 1
    t2v_layers: int = 2
    enc_layers: int = 3
    dec_layers: int = 3
    queries: int = 10
    prompts: int = 10
    used_prompts: int = 1

    @property
    def of_text(self) -> dict:
        """What the layers of the encoders of dummies and sentences are told."""
        return self.shared | dict(
            heads=self.dummy_heads,
            dropout=cross_attention.own_or(self.dummy_dropout, self.dropout))

    @nn.compact
    def __call__(self, batch: dict, *, train: bool) -> dict[str, jax.Array]:
        """Grounds each sample's query in its video.

        Args:
          batch: video float32[B, T, d_v], video_mask bool[B, T], text float32[B, L, d_t],
            text_role int32[B, L]; with `train` also source_id int32[B] and saliency float32[B, T].
          train: dropout, a second pass with the next sample's query for each video, and what the
            alignment losses compare.

        Returns:
          A flat dict. saliency float32[B, T]; text_weight float32[B, T], the weight of the text at
          each clip, mean over heads and layers; attn float32[B, layers, heads, T, dummies + L] and
          attn_roles int32[B, dummies + L]; the predictions of `MomentDecoder`. With
          `train` also saliency_neg, text_weight_neg, real_neg bool[B], dummies [B, dummies, D],
          prompts [P, D], column_mask bool[B, dummies + L] (which dummies and tokens are there) and
          the results of `summaries`.
        """
        how = dict(deterministic=not train)
        text_type, video_type = self.token_types()
        mask, tokens_mask = batch['video_mask'], text.token_mask(batch, self.tokens)
        tokens = self.project('text_projection', batch['text'], train=train) + text_type
        clips = self.project('video_projection', batch['video'], train=train) + video_type
        position = self.position(mask)
        dummies, dummy_position = cross_attention.DummyEncoder(
            **self.of_text, dummies=self.dummies,
            num_layers=self.dummy_layers, ffn=self.ffn, name='dummy_encoder',
        )(tokens, tokens_mask, **how)
        prompts = self.param('prompt_tokens', layers.embedding(), (self.prompts, self.width))

        video = clips, position, mask
        columns = cross_attention.with_dummies(tokens_mask, self.dummies)
        keys = jnp.concatenate([dummies + dummy_position, tokens], 1)
        encoded = cross_attention.EncodedText(keys, tokens, columns)
        if train:
            video, encoded = negatives.pair(video, encoded, batch)
        memory, summary, attn = self.relate(*video, encoded, prompts, how)
        rows = dict(
            memory=memory,
            saliency=highlight.SaliencyHead(self.dtype, name='saliency_head')(memory, summary),
            text_weight=highlight.text_weight(attn, tokens.shape[1]),
            attn=attn,
        )
        out = negatives.split(rows, batch) if train else rows

        memory = out.pop('memory')
        out['attn_roles'] = text.key_roles(batch, tokens_mask, self.dummies)
        if train:
            out |= dict(dummies=dummies, prompts=prompts, column_mask=columns)
            out |= self.summaries(
                (clips, position, mask), moment_clips(batch), (tokens, tokens_mask),
                (dummies, dummy_position), how)
        decoder = detr.MomentDecoder(
            **self.shared, queries=self.queries, num_layers=self.dec_layers, ffn=self.ffn,
            name='decoder')
        return out | decoder(memory, position, mask, **how)

    @nn.nowrap
    def relate(self, clips, position, mask, encoded, prompts, how):
        """Relates clips to text, and to the saliency token, in which the video is summed up.

        Returns:
          (clips [B, T, D], their summary [B, D],
          weights float32[B, t2v_layers, heads, T, dummies + L]).
        """
        attend = cross_attention.CrossAttention(
            **self.shared, num_layers=self.t2v_layers, ffn=self.ffn, inits=layers.XAVIER,
            name='cross_attention')
        related, weights = attend(clips, position, *encoded, **how)
        importance = highlight.text_weight(weights, encoded.values.shape[1])
        token = saliency_token(
            clips=clips,
            context=jax.lax.stop_gradient(losses.masked_mean(clips, mask[..., None], axis=1)),
            importance=jnp.where(mask, importance, 0.0), prompts=prompts, used=self.used_prompts,
        ).astype(self.dtype)
        first = self.param('summary_position', layers.embedding(), (self.width,))
        first = first.astype(self.dtype)
        # The token passes the same layers with nothing to attend to.
        nothing = jnp.zeros_like(encoded.keys_mask)
        token, _ = attend(token[:, None], first, encoded.keys, encoded.values, nothing, **how)
        x = layers.Encoder(
            **self.shared, num_layers=self.enc_layers, ffn=self.ffn, inits=layers.XAVIER,
            name='encoder',
        )(
            prepend(token[:, 0], related), prepend(first, position),
            cross_attention.with_dummies(mask, 1), **how)
        return x[:, 1:] + x[:, :1], x[:, 0], weights

    @nn.nowrap
    def summaries(self, video, relevant, sentence, dummies, how) -> dict[str, jax.Array]:
        """What the training losses compare: tokens that sum up moments and sentences.

        Args:
          video: (clips [B, T, D], position [B, T, D], mask bool[B, T]).
          relevant: bool[B, T], clips of the moments.
          sentence: (tokens [B, L, D], mask bool[B, L]).
          dummies: (dummies [B, N, D], positions [N, D]).
          how: deterministic or not.

        Returns:
          moment, non_moment, sentence and dummy_sentence [B, D]; moment_clips [B, T, D], relevant
          clips encoded among the relevant ones and the others among theirs; word_similarity
          float32[B, T, N + L] of the clips, encoded as of a moment, and the dummies and tokens.
        """
        encode_sentence = SummaryEncoder(
            **self.of_text, num_layers=self.sentence_layers, ffn=self.ffn,
            name='sentence_encoder')
        tokens, tokens_mask = sentence
        nowhere = jnp.zeros(tokens.shape[1:], tokens.dtype)  # text has no positions
        sentence, words = encode_sentence(tokens, nowhere, tokens_mask, **how)
        every_dummy = jnp.ones(dummies[0].shape[:2], bool)
        dummy_sentence, dummy_words = encode_sentence(*dummies, every_dummy, **how)

        encode_moment = SummaryEncoder(
            **self.shared, num_layers=self.moment_layers, ffn=self.ffn, inits=layers.XAVIER,
            name='moment_encoder')
        clips, position, mask = video
        moment, inside = encode_moment(clips, position, mask & relevant, **how)
        non_moment, outside = encode_moment(clips, position, mask & ~relevant, **how)
        both = jnp.concatenate([dummy_words, words], 1)
        return dict(
            moment=moment,
            non_moment=non_moment,
            sentence=sentence,
            dummy_sentence=dummy_sentence,
            moment_clips=jnp.where(relevant[..., None], inside, outside),
            word_similarity=jnp.einsum('btd,bld->btl', inside, both).astype(jnp.float32),
        )


@jax.custom_jvp
def saturating_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Binary cross entropy as torch's BCELoss takes it of a float32 sigmoid.

    Logs are cut at -100, and there is no gradient where the probability is exactly 0 or 1, which
    float32 reaches at logits of about -88 and 17.
    """
    p = _probability(logits)
    log_p, log_rest = (jnp.maximum(jnp.log(x), -100.0) for x in (p, 1 - p))
    return -(labels * log_p + (1 - labels) * log_rest)


def _probability(logits: jax.Array) -> jax.Array:
    # 1 - p has few digits near 1, and other formulas of the sigmoid have others.
    return 1 / (1 + jnp.exp(-logits))


@saturating_cross_entropy.defjvp
def _saturating_cross_entropy_jvp(primals, tangents):
    logits, labels = primals
    p = _probability(logits)
    # torch divides by at least 1e-12 before it multiplies by the sigmoid's derivative.
    slope = (p - labels) * jnp.minimum(p * (1 - p) / 1e-12, 1.0)
    return saturating_cross_entropy(logits, labels), slope * tangents[0]


def moment_alignment(
    *, moment, non_moment, sentence, dummy_sentence, clips, labels, mask, rows=None
) -> jax.Array:
    """Moments are to be like their sentences, unlike the dummies, and to tell their clips.

    Each moment is to find its sentence among all of the batch, at temperature 1. The second term
    is meant to have it find anything but its own dummies; what the public code asks for in effect
    is the second column in the first row and the first column in all others, kept here since the
    published results come from it (the authors' model.py).

    Args:
      moment: float[B, D].
      non_moment: float[B, D].
      sentence: float[B, D].
      dummy_sentence: float[B, D].
      clips: float[B, T, D].
      labels: bool[B, T], clips of the moment.
      mask: bool[B, T].
      rows: bool[B], those that hold samples; None: all do.
    """
    rows = jnp.ones(len(moment), bool) if rows is None else rows
    own = jnp.arange(len(rows))
    second = jnp.where(rows.sum() > 1, 1, len(rows))  # of a sample alone: its non-moment's

    def choose(among, target):
        logits = [jnp.where(rows, losses.unit(x) @ losses.unit(among).T, -1e9)
                  for x in (moment, non_moment)]
        return optax.softmax_cross_entropy_with_integer_labels(jnp.concatenate(logits, 1), target)

    to_clips = jnp.einsum('bd,btd->bt', moment.astype(jnp.float32), clips.astype(jnp.float32))
    return (
        losses.row_mean(
            choose(sentence, own) + choose(dummy_sentence, jnp.where(own == 0, second, 0)), rows)
        + losses.masked_mean(saturating_cross_entropy(to_clips, labels.astype(jnp.float32)), mask))


def distillation(*, similarity, weights, column_mask, mask) -> jax.Array:
    """KL divergence of the attention to the text from the likeness of moment clips and words.

    Args:
      similarity: float32[B, T, C], of clips to dummies and words; a constant.
      weights: float32[B, T, C], attention.
      column_mask: bool[B, C]; the divergence is a mean over these columns.
      mask: bool[B, T], clips of the moments.
    """
    columns = column_mask[:, None]
    target = jax.lax.stop_gradient(layers.masked_softmax(similarity, columns))
    divergence = xlogy(target, target) - target * jnp.log(weights + 1e-6)
    return losses.masked_mean(losses.masked_mean(divergence, columns, axis=-1), mask)


def overlap(vectors: jax.Array, rows: jax.Array | None = None) -> jax.Array:
    """Mean |cosine| of different vectors [..., N, D], the sum over pairs divided by N^2.

    With rows bool[B], those of vectors [B, N, D] count.

    One of the two is a constant, so each vector is pushed away from the others once.
    """
    unit = losses.unit(vectors)
    cosines = unit @ jax.lax.stop_gradient(unit).swapaxes(-1, -2)
    return losses.row_mean(jnp.abs(cosines * (1 - jnp.eye(unit.shape[-2]))), rows)


def moment_clips(batch: dict) -> jax.Array:
    """bool[B, T], clips of the moments: those with a label, or of windows that are not graded."""
    return jnp.where(batch['graded'][:, None], batch['saliency'] > 0, batch['relevant'])


def loss_fn(out: dict, batch: dict, config) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of CG-DETR's losses (the authors' model.py).

    Args:
      out: of `Model` with train=True.
      batch: video_mask bool[B, T], saliency float32[B, T] (0..12), pos_clips and neg_clips
        int32[B, 2], pairs_mask and graded bool[B], relevant bool[B, T], spans float32[B, M, 2]
        and spans_mask bool[B, M].
      config: the `loss` section.

    Returns:
      (loss, every unweighted loss by name; those of the queries are summed over decoder layers).
    """
    relevant, rows = batch['video_mask'] & moment_clips(batch), losses.real_rows(batch)
    parts = dict(
        saliency=highlight.saliency_loss(out, batch, config),
        align=moment_alignment(
            clips=out['moment_clips'], labels=relevant, mask=batch['video_mask'], rows=rows,
            **{k: out[k] for k in ('moment', 'non_moment', 'sentence', 'dummy_sentence')}),
        distill=distillation(
            similarity=out['word_similarity'], weights=out['attn'].mean((1, 2)),
            column_mask=out['column_mask'], mask=relevant),
        orthogonal=overlap(out['dummies'], rows) + overlap(out['prompts']),
        **detr.set_losses(out, batch, config),
    )
    return losses.weighted_sum(parts, config.weights), parts


decode = detr.decode

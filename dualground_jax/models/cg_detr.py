"""CG-DETR: moment queries on clips whose attention to the text is calibrated (arXiv 2311.08835).

Follows the authors' code, wjun0830/CGDETR, in what it does to a single sample; numbers agree with
it to rounding (tests/parity_test.py).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import xlogy

from dualground_jax import losses
from dualground_jax.models import cross_attention, detr, execution, highlight, layers, text
from dualground_jax.models.execution import Execution
from dualground_jax.pytorch import mapping, names

# The `loss` section of its config.
LOSS = dict(
    weights=dict(
        span=10.0, giou=1.0, query_label=4.0, saliency=1.0, align=1.0, distill=1.0, orthogonal=1.0
    ),
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


class SummaryEncoder(nn.Module):
    """Encoder of a sequence behind a learned token, which comes to stand for the whole."""

    num_layers: int
    heads: int
    ffn: int
    dropout: float = 0.0
    dtype: str = 'float32'
    inits: layers.Init = layers.TORCH
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x, position, mask, *, deterministic: bool) -> tuple[jax.Array, jax.Array]:
        """Maps x [B, T, D] with position [..., T, D] and mask bool[B, T] to ([B, D], [B, T, D])."""
        learned = lambda name: self.param(  # noqa: E731
            name, layers.embedding(), x.shape[-1:]
        ).astype(x.dtype)
        x = layers.Encoder(
            self.num_layers,
            self.heads,
            self.ffn,
            self.dropout,
            self.dtype,
            inits=self.inits,
            execution=self.execution,
            name='encoder',
        )(
            prepend(learned('token'), x),
            prepend(learned('position'), position),
            cross_attention.with_dummies(mask, 1),
            deterministic=deterministic,
        )
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


class Model(nn.Module):
    """CG-DETR. Fields are the `model` section of the config."""

    width: int = 256
    heads: int = 8
    ffn: int = 1024
    dropout: float = 0.1
    input_dropout: float = 0.5
    input_layers: int = 2
    tokens: str = 'full'  # 'full', 'eos' or 'words'
    dummies: int = 45
    dummy_layers: int = 2
    dummy_heads: int = 8  # of the encoders of dummies and sentences, whatever the other heads
    sentence_layers: int = 1
    moment_layers: int = 1
    t2v_layers: int = 2
    enc_layers: int = 3
    dec_layers: int = 3
    queries: int = 10
    prompts: int = 10
    used_prompts: int = 1
    dtype: str = 'float32'
    attention_chunk: int = 0  # > 0: self-attention takes so many queries at a time
    scan_layers: bool = False  # equal layers run in one loop
    remat: bool = False  # gradients compute the activations of layers anew

    @nn.compact
    def __call__(self, batch: dict, *, train: bool) -> dict[str, jax.Array]:
        """Grounds each sample's query in its video.

        Args:
          batch: video float32[B, T, d_v], video_mask bool[B, T], text float32[B, L, d_t],
            text_role int32[B, L]; with `train` also source_id int32[B] and saliency float32[B, T].
          train: dropout, a second pass with the next sample's query for each video, and what the
            alignment losses compare.

        Returns:
          A flat dict. saliency float32[B, T]; attention float32[B, T], the weight of the text at
          each clip, mean over heads and layers; attn float32[B, layers, heads, T, dummies + L] and
          attn_roles int32[B, dummies + L]; the predictions of `MomentDecoder`. With
          `train` also saliency_neg, attention_neg, real_neg bool[B], dummies [B, dummies, D],
          prompts [P, D], column_mask bool[B, dummies + L] (which dummies and tokens are there) and
          the results of `summaries`.
        """
        how = dict(deterministic=not train)
        project = layers.projector(self, deterministic=not train)
        types = self.param('token_types', layers.embedding(0.02), (2, self.width))
        text_type, video_type = types.astype(self.dtype)
        mask, size = batch['video_mask'], len(batch['video_mask'])
        tokens_mask = text.token_mask(batch, self.tokens)
        tokens = project('text_projection', batch['text']) + text_type
        clips = project('video_projection', batch['video']) + video_type
        position = layers.sine_position(mask, self.width).astype(self.dtype)
        dummies, dummy_position = cross_attention.DummyEncoder(
            self.dummies, self.dummy_layers, self.dummy_heads, name='dummy_encoder', **self.common
        )(tokens, tokens_mask, **how)
        prompts = self.param(
            'prompt_tokens', layers.embedding(), (self.prompts, self.width)
        )
        columns = cross_attention.with_dummies(tokens_mask, self.dummies)

        video, sentence = (clips, position, mask), (dummies + dummy_position, tokens, columns)
        if train:
            video = highlight.twice(video)
            sentence = highlight.with_negatives(sentence)
        memory, summary, attention = self.relate(*video, *sentence, prompts, how)
        out = dict(
            saliency=highlight.SaliencyHead(self.dtype, name='saliency_head')(memory, summary),
            attention=attention[..., self.dummies :].sum(-1).mean((1, 2)),
            attn=attention,
        )
        out = highlight.split_negatives(out, size, ('saliency', 'attention') if train else ())
        out['attn_roles'] = text.key_roles(batch, tokens_mask, self.dummies)
        if train:
            out['real_neg'] = batch['source_id'] != jnp.roll(batch['source_id'], -1)
            out.update(dummies=dummies, prompts=prompts, column_mask=columns)
            out |= self.summaries(
                (clips, position, mask), batch['saliency'] > 0, (tokens, tokens_mask),
                (dummies, dummy_position), how,
            )
        return out | detr.MomentDecoder(
            queries=self.queries,
            num_layers=self.dec_layers,
            heads=self.heads,
            name='decoder',
            **self.common,
        )(highlight.without_negatives(memory, size), position, mask, **how)

    @property
    def common(self) -> dict:
        how = execution.of_model(self)
        return dict(ffn=self.ffn, dropout=self.dropout, dtype=self.dtype, execution=how)

    @nn.nowrap
    def relate(self, clips, position, mask, dummies, tokens, columns, prompts, how):
        """Relates clips to text, and to the saliency token, in which the video is summed up.

        Returns:
          (clips [B, T, D], their summary [B, D],
          attention float32[B, t2v_layers, heads, T, dummies + L]).
        """
        attend = cross_attention.CrossAttention(
            self.t2v_layers,
            self.heads,
            inits=layers.XAVIER,
            name='cross_attention',
            **self.common,
        )
        keys = jnp.concatenate([dummies, tokens], 1)
        related, attention = attend(clips, position, keys, tokens, columns, **how)
        importance = attention[..., self.dummies :].sum(-1).mean((1, 2))
        token = saliency_token(
            clips=clips,
            context=jax.lax.stop_gradient(losses.masked_mean(clips, mask[..., None], axis=1)),
            importance=jnp.where(mask, importance, 0.0),
            prompts=prompts,
            used=self.used_prompts,
        ).astype(self.dtype)
        first = self.param(
            'summary_position', layers.embedding(), (self.width,)
        ).astype(self.dtype)
        # The token passes the same layers with nothing to attend to.
        nothing = jnp.zeros_like(columns)
        token, _ = attend(token[:, None], first, keys, tokens, nothing, **how)
        x = layers.Encoder(
            self.enc_layers, self.heads, inits=layers.XAVIER, name='encoder', **self.common
        )(
            prepend(token[:, 0], related),
            prepend(first, position),
            cross_attention.with_dummies(mask, 1),
            **how,
        )
        return x[:, 1:] + x[:, :1], x[:, 0], attention

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
            self.sentence_layers, self.dummy_heads, name='sentence_encoder', **self.common
        )
        tokens, tokens_mask = sentence
        nowhere = jnp.zeros(tokens.shape[1:], tokens.dtype)  # text has no positions
        sentence, words = encode_sentence(tokens, nowhere, tokens_mask, **how)
        every_dummy = jnp.ones(dummies[0].shape[:2], bool)
        dummy_sentence, dummy_words = encode_sentence(*dummies, every_dummy, **how)

        encode_moment = SummaryEncoder(
            self.moment_layers,
            self.heads,
            inits=layers.XAVIER,
            name='moment_encoder',
            **self.common,
        )
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
    cut_log = lambda x: jnp.maximum(jnp.log(x), -100.0)  # noqa: E731
    return -(labels * cut_log(p) + (1 - labels) * cut_log(1 - p))


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
    *, moment, non_moment, sentence, dummy_sentence, clips, labels, mask
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
    """
    rows = jnp.arange(len(moment))

    def choose(among, target):
        logits = [losses.unit(x) @ losses.unit(among).T for x in (moment, non_moment)]
        return optax.softmax_cross_entropy_with_integer_labels(jnp.concatenate(logits, 1), target)

    to_clips = jnp.einsum('bd,btd->bt', moment.astype(jnp.float32), clips.astype(jnp.float32))
    return (
        (choose(sentence, rows) + choose(dummy_sentence, jnp.where(rows == 0, 1, 0))).mean()
        + losses.masked_mean(saturating_cross_entropy(to_clips, labels.astype(jnp.float32)), mask)
    )


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


def overlap(vectors: jax.Array) -> jax.Array:
    """Mean |cosine| of different vectors [..., N, D], the sum over pairs divided by N^2.

    One of the two is a constant, so each vector is pushed away from the others once.
    """
    unit = losses.unit(vectors)
    cosines = unit @ jax.lax.stop_gradient(unit).swapaxes(-1, -2)
    return jnp.abs(cosines * (1 - jnp.eye(unit.shape[-2]))).mean()


def loss_fn(out: dict, batch: dict, config) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of CG-DETR's losses (the authors' model.py).

    Args:
      out: of `Model` with train=True.
      batch: video_mask bool[B, T], saliency float32[B, T] (0..12), pos_clips and neg_clips
        int32[B, 2], pairs_mask bool[B], spans float32[B, M, 2] and spans_mask bool[B, M].
      config: the `loss` section.

    Returns:
      (loss, every unweighted loss by name; those of the queries are summed over decoder layers).
    """
    relevant = batch['video_mask'] & (batch['saliency'] > 0)
    metrics = dict(
        saliency=highlight.saliency_loss(out, batch, config),
        align=moment_alignment(
            clips=out['moment_clips'],
            labels=relevant,
            mask=batch['video_mask'],
            **{k: out[k] for k in ('moment', 'non_moment', 'sentence', 'dummy_sentence')},
        ),
        distill=distillation(
            similarity=out['word_similarity'],
            weights=out['attn'].mean((1, 2)),
            column_mask=out['column_mask'],
            mask=relevant,
        ),
        orthogonal=overlap(out['dummies']) + overlap(out['prompts']),
        **detr.set_losses(out, batch, config),
    )
    return sum(config.weights[name] * value for name, value in metrics.items()), metrics


decode = detr.decode


def _summary_encoder(token: str, encoder: str) -> dict[str, str]:
    """The table of a `SummaryEncoder`."""
    return {
        'token': f'{token}_rep_token',
        'position': f'{token}_rep_pos',
        **mapping.nest('encoder/layer_{}', f'{encoder}.layers.{{}}', names.ENCODER_LAYER),
    }


TORCH_NAMES = {
    **names.INPUTS,
    **names.TEXT_GUIDED_ENCODER,
    **mapping.nest('saliency_head', '', names.SALIENCY_HEAD),
    **mapping.nest('decoder', '', names.DECODER),
    **mapping.nest('sentence_encoder', '', _summary_encoder('sent', 'scls_encoder')),
    **mapping.nest('moment_encoder', '', _summary_encoder('moment', 'transformer.mcls_encoder')),
    'prompt_tokens': 'global_rep_token',
    'summary_position': 'global_rep_pos',
}
TORCH_UNUSED = (*names.UNUSED, r'txt_proj_linear\..*')

# Field of `Model` -> name in the options of a public checkpoint.
TORCH_OPTIONS = dict(
    names.OPTIONS,
    dummies='num_dummies',
    dummy_layers='dummy_layers',
    sentence_layers='sent_layers',
    moment_layers='moment_layers',
    t2v_layers='t2v_layers',
    enc_layers='enc_layers',
    dec_layers='dec_layers',
    queries='num_queries',
    prompts='total_prompts',
    used_prompts='num_prompts',
)
# Entry of its config's `loss` section -> name there.
TORCH_LOSS = {
    **names.SET_LOSS,
    'weights/saliency': 'lw_saliency',
    'weights/align': 'lw_ms_align',
    'weights/distill': 'lw_distill',
    'weights/orthogonal': 'lw_distill',
    'attn': 'lw_wattn',
    'margin': 'saliency_margin',
    'detr_background': 'eos_coef',
}
torch_fields = names.no_fields

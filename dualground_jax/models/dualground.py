"""DualGround: sentence-level and phrase-level paths for video temporal grounding.

Paper: https://arxiv.org/abs/2510.20244. No official code exists. What follows the paper is marked
(P), what follows the authors' development code of May 2025 (D), its bases FlashVTG (F) and CG-DETR
(C), and what is decided here because all are silent (Z). Where P and D differ, P is the default
and D an option.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualground_jax import convert, losses
from dualground_jax.errors import ConfigError
from dualground_jax.models import detr, layers, pyramid


class SentencePath(nn.Module):
    """Adaptive cross-attention of the clips to [EOS], then self-attention (P eq. 1, C, D).

    Learnable dummies, conditioned on the sentence, are keys beside it that carry no value: clips
    that the sentence does not speak of put their weight there.
    """

    heads: int
    ffn: int
    dummies: int
    dummy_layers: int
    t2v_layers: int
    enc_layers: int
    dropout: float = 0.0
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, clips, position, clips_mask, eos, eos_mask, *, deterministic):
        """Maps clips [B, T, D] and eos [B, D] to V_s.

        Args:
          clips: float[B, T, D].
          position: float[B, T, D], of the clips.
          clips_mask: bool[B, T].
          eos: float[B, D].
          eos_mask: bool[B].
          deterministic: no dropout.

        Returns:
          (V_s [B, T, D], attention float32[B, t2v_layers, heads, T, dummies + 1], [EOS] last).
        """
        batch, _, width = clips.shape
        common = dict(dropout=self.dropout, dtype=self.dtype)
        shape = (self.dummies, width)
        tokens = self.param('dummies', nn.initializers.normal(1.0), shape)
        positions = self.param('dummy_positions', nn.initializers.normal(1.0), shape)

        sequence = jnp.broadcast_to(tokens, (batch, *shape)).astype(clips.dtype)
        sequence = jnp.concatenate([sequence, eos[:, None]], 1)
        offsets = jnp.concatenate([positions, jnp.zeros((1, width))]).astype(clips.dtype)
        mask = jnp.concatenate([jnp.ones((batch, self.dummies), bool), eos_mask[:, None]], 1)
        for i in range(self.dummy_layers):
            sequence = layers.EncoderLayer(
                self.heads,
                self.ffn,
                kernel_init=layers.xavier_uniform,
                name=f'dummy_{i}',
                **common,
            )(sequence, offsets, mask, deterministic=deterministic)

        keys = jnp.concatenate([sequence[:, : self.dummies], eos[:, None]], 1) + offsets
        attention = []
        for i in range(self.t2v_layers):
            clips, weights = layers.AdaptiveCrossAttentionLayer(
                self.heads, self.ffn, name=f't2v_{i}', **common
            )(clips, position, keys, eos[:, None], mask, deterministic=deterministic)
            attention.append(weights)
        for i in range(self.enc_layers):
            clips = layers.EncoderLayer(self.heads, self.ffn, name=f'enc_{i}', **common)(
                clips, position, clips_mask, deterministic=deterministic
            )
        return clips, jnp.stack(attention, 1)


class RecurrentPhrases(nn.Module):
    """Recurrent phrase generator: each phrase is a weighting of the words (P eq. 2, D: LGI.py).

    Each step is guided by the sentence and by the phrase before it. With `positions` the scored
    words carry a position embedding, so that neighbours group (P); the sum is over plain words.
    The loop is unrolled: its N steps, 3 or 4, have weights of their own.
    """

    phrases: int
    positions: bool = True
    dropout: float = 0.1
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, eos, words, words_mask, *, deterministic: bool):
        """Clusters words [B, L, D] under eos [B, D]: (phrases [B, N, D], weights [B, N, L])."""
        width = words.shape[-1]
        dense = lambda features, name: nn.Dense(  # noqa: E731
            features, dtype=self.dtype, kernel_init=layers.torch_uniform, name=name
        )
        guide, key, score = dense(width, 'guide'), dense(width, 'key'), dense(1, 'score')
        scored = words
        if self.positions:
            scored = words + layers.sine_position(words_mask, width, normalize=False)
        scored = dense(width, 'word')(scored.astype(words.dtype))

        phrase, phrases, attention = jnp.zeros_like(eos), [], []
        for n in range(self.phrases):
            query = dense(width, f'query_{n}')(eos)
            guided = nn.relu(guide(jnp.concatenate([query, phrase], -1)))
            logits = score(jnp.tanh(scored + key(guided)[:, None]))[..., 0]
            weights = layers.masked_softmax(logits, words_mask)
            dropped = nn.Dropout(self.dropout)(weights, deterministic=deterministic)
            phrase = jnp.einsum('bl,bld->bd', dropped.astype(words.dtype), words)
            phrases.append(phrase)
            attention.append(weights)
        return jnp.stack(phrases, 1), jnp.stack(attention, 1)


class SlotLayer(nn.Module):
    """Refines the phrases by the words, and P_EOS by the phrases (P, D: LGI.py).

    P_EOS sees itself and all phrases; the phrases do not see P_EOS.
    """

    heads: int
    normalize: str = 'slots'
    dropout: float = 0.0
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, phrases, phrase_eos, words, words_mask, *, deterministic: bool):
        """Refines phrases [B, N, D] and phrase_eos [B, D] by words [B, L, D] with positions.

        Returns:
          (phrases, phrase_eos, weights float32[B, heads, N, L]).
        """
        phrases, weights = layers.ProjectedAttention(
            self.heads,
            self.dropout,
            self.normalize,
            self.dtype,
            name='words_attention',
        )(phrases, words, words_mask[:, None, None], deterministic=deterministic)

        sequence = jnp.concatenate([phrase_eos[:, None], phrases], 1)
        size = sequence.shape[1]
        visible = jnp.ones((size, size), bool).at[1:, 0].set(False)
        update, _ = layers.Attention(
            self.heads, self.dropout, dtype=self.dtype, name='self_attention'
        )(sequence, sequence, sequence, visible, deterministic=deterministic)
        update = nn.Dropout(self.dropout)(update, deterministic=deterministic)
        sequence = layers.layer_norm(self.dtype, 'self_norm')(sequence + update)
        sequence = layers.ResidualLinear(self.dropout, self.dtype, name='feed_forward')(
            sequence, deterministic=deterministic
        )
        return sequence[:, 1:], sequence[:, 0], weights


class PhraseEncoder(nn.Module):
    """Words -> phrases and their summary P_EOS: recurrent generator, then slot refinement."""

    phrases: int
    phrase_layers: int
    heads: int
    slot_normalize: str = 'slots'
    rpg_positions: bool = True
    dropout: float = 0.0
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, eos, words, words_mask, *, deterministic: bool) -> dict[str, jax.Array]:
        """Clusters words [B, L, D] under eos [B, D].

        Returns:
          phrases [B, N, D]; phrase_eos [B, D]; phrase_attention float32[B, N, L], of the
          generator; slot_attention float32[B, phrase_layers, heads, N, L].
        """
        width = words.shape[-1]
        phrases, attention = RecurrentPhrases(
            self.phrases, self.rpg_positions, self.dropout, self.dtype, name='generator'
        )(eos, words, words_mask, deterministic=deterministic)
        positioned = words + layers.sine_position(words_mask, width, normalize=False)
        token = self.param('phrase_eos', nn.initializers.normal(1.0), (width,))
        phrase_eos = jnp.broadcast_to(token, eos.shape).astype(words.dtype)
        slot_attention = []
        for i in range(self.phrase_layers):
            phrases, phrase_eos, weights = SlotLayer(
                self.heads, self.slot_normalize, self.dropout, self.dtype, name=f'slot_{i}'
            )(
                phrases,
                phrase_eos,
                positioned.astype(words.dtype),
                words_mask,
                deterministic=deterministic,
            )
            slot_attention.append(weights)
        return dict(
            phrases=phrases,
            phrase_eos=phrase_eos,
            phrase_attention=attention,
            slot_attention=jnp.stack(slot_attention, 1),
        )


class PhraseClipProduct(nn.Module):
    """f_ctx(f_p(phrase) * f_v(clip)) for every pair of phrase and clip (P eq. 3, D)."""

    dtype: str = 'float32'

    @nn.compact
    def __call__(self, phrases: jax.Array, clips: jax.Array) -> jax.Array:
        """Combines phrases [B, N, D] and clips [B, T, D] to [B, N, T, D]."""
        dense = lambda name: nn.Dense(  # noqa: E731
            clips.shape[-1], dtype=self.dtype, kernel_init=layers.torch_uniform, name=name
        )
        product = (
            nn.relu(dense('phrase')(phrases))[:, :, None] * nn.relu(dense('clip')(clips))[:, None]
        )
        product = layers.layer_norm(self.dtype, 'norm1')(product)
        return nn.relu(layers.layer_norm(self.dtype, 'norm2')(dense('context')(product)))


class PhraseContextLayer(nn.Module):
    """Self-attention over time for each phrase; optionally over the phrases of each clip (D)."""

    heads: int
    across_phrases: bool = False
    dropout: float = 0.0
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, context, clips_mask, *, deterministic: bool) -> jax.Array:
        """Maps context [B, N, T, D] with clips_mask bool[B, T] to [B, N, T, D]."""
        batch, phrases, clips, width = context.shape
        layer = lambda name: layers.SelfAttentionLayer(  # noqa: E731
            self.heads, self.dropout, self.dtype, name=name
        )
        context = layer('time')(
            context.reshape(batch * phrases, clips, width),
            jnp.repeat(clips_mask, phrases, 0),
            deterministic=deterministic,
        ).reshape(context.shape)
        if self.across_phrases:
            by_clip = context.swapaxes(1, 2)
            context = layer('phrases')(
                by_clip.reshape(batch * clips, phrases, width), None, deterministic=deterministic
            ).reshape(by_clip.shape).swapaxes(1, 2)
        return context


class PhrasePath(nn.Module):
    """Phrase-clip contexts, and their sum weighted by how each phrase matches P_EOS (P eq. 3-4)."""

    heads: int
    context_layers: int = 2
    across_phrases: bool = False
    dropout: float = 0.0
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, phrases, phrase_eos, clips, clips_mask, *, deterministic: bool):
        """Maps phrases [B, N, D], phrase_eos [B, D] and clips [B, T, D] to V_p.

        Returns:
          (V_p [B, T, D], weights float32[B, N] of the phrases, energy float32[B, N, T]: norm of
          each phrase's context at each clip).
        """
        width = clips.shape[-1]
        context = PhraseClipProduct(self.dtype, name='product')(phrases, clips)
        position = layers.sine_position(clips_mask, width, normalize=False)
        context = context + position[:, None].astype(context.dtype)
        for i in range(self.context_layers):
            context = PhraseContextLayer(
                self.heads, self.across_phrases, self.dropout, self.dtype, name=f'layer_{i}'
            )(context, clips_mask, deterministic=deterministic)
        dense = lambda name: nn.Dense(  # noqa: E731
            width, dtype=self.dtype, kernel_init=layers.torch_uniform, name=name
        )
        logits = jnp.einsum('bd,bnd->bn', dense('query')(phrase_eos), dense('key')(phrases))
        weights = layers.masked_softmax(logits * width**-0.5, None)
        summed = jnp.einsum('bn,bntd->btd', weights.astype(context.dtype), context)
        return summed, weights, jnp.linalg.norm(context.astype(jnp.float32), axis=-1)


class Fusion(nn.Module):
    """Joins V_s and V_p (P: sum; the others are the alternatives of its ablation)."""

    mode: str = 'sum'
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, sentence: jax.Array, phrase: jax.Array) -> jax.Array:
        """Maps two [B, T, D] to [B, T, D]."""
        width = sentence.shape[-1]
        both = jnp.concatenate([sentence, phrase], -1)
        if self.mode == 'sum':
            return sentence + phrase
        if self.mode == 'hadamard':
            return sentence * phrase
        if self.mode == 'gate':
            gate = nn.sigmoid(nn.Dense(width, dtype=self.dtype, name='gate')(both))
            return gate * sentence + (1 - gate) * phrase
        if self.mode == 'concat':
            return layers.MLP((width, width), self.dtype, name='mlp')(both)
        raise ConfigError(
            f"model.fusion={self.mode!r}: expected 'sum', 'hadamard', 'gate' or 'concat'"
        )


class SaliencyHead(nn.Module):
    """<W_1 f_t, W_2 mean(f)> / sqrt(D), the mean over valid clips only (F averages padding too)."""

    dtype: str = 'float32'

    @nn.compact
    def __call__(self, clips: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps clips [B, T, D] with mask bool[B, T] to float32[B, T]."""
        width = clips.shape[-1]
        dense = lambda name: nn.Dense(  # noqa: E731
            width, dtype=self.dtype, kernel_init=layers.torch_uniform, name=name
        )
        mean = losses.masked_mean(clips, mask[..., None], axis=1)
        scores = jnp.einsum('btd,bd->bt', dense('clip')(clips), dense('video')(mean))
        return scores.astype(jnp.float32) * width**-0.5


def select_tokens(batch: dict, tokens: str) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Switches a token role off at the input: the paper's controlled experiment.

    Args:
      batch: words float[B, L, d_t], words_mask bool[B, L], eos float[B, d_t].
      tokens: 'full', 'eos' (no words) or 'words' (no [EOS]).

    Returns:
      words, words_mask, eos, eos_mask bool[B]; what is off is zero and invalid.

    Raises:
      ConfigError: another value of tokens.
    """
    words, words_mask, eos = batch['words'], batch['words_mask'], batch['eos']
    eos_mask = jnp.ones(eos.shape[:1], bool)
    if tokens == 'eos':
        words, words_mask = jnp.zeros_like(words), jnp.zeros_like(words_mask)
    elif tokens == 'words':
        eos, eos_mask = jnp.zeros_like(eos), jnp.zeros_like(eos_mask)
    elif tokens != 'full':
        raise ConfigError(f"model.tokens={tokens!r}: expected 'full', 'eos' or 'words'")
    return words, words_mask, eos, eos_mask


class Model(nn.Module):
    """DualGround. Fields are the `model` section of the config."""

    width: int = 256
    heads: int = 8
    ffn: int = 1024
    dropout: float = 0.1
    input_dropout: float = 0.5
    input_layers: int = 2
    tokens: str = 'full'  # 'full', 'eos' or 'words'
    paths: str = 'both'  # 'both', 'sentence' or 'phrase'
    dummies: int = 3  # L_d (D)
    dummy_layers: int = 2
    t2v_layers: int = 6
    enc_layers: int = 3
    phrases: int = 4  # N: 4 on QVHighlights, 3 on Charades-STA (P)
    phrase_layers: int = 2
    rpg_positions: bool = True  # P; D: False
    slot_normalize: str = 'slots'  # P; D: 'inputs', the words
    context_layers: int = 2
    across_phrases: bool = False  # D: True
    fusion: str = 'sum'
    head: str = 'pyramid'  # or 'detr'
    strides: tuple[int, ...] = (1, 2, 4, 8)
    kernel: int = 5
    conv_layers: int = 1
    mlp_layers: int = 5
    bins: int = 0  # > 0: boundaries as distributions, for loss.regression='dfl' (D: 4)
    queries: int = 10
    dec_layers: int = 3
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, batch: dict, *, train: bool) -> dict[str, jax.Array]:
        """Grounds each sample's query in its video.

        Args:
          batch: video float32[B, T, d_v], video_mask bool[B, T], words float32[B, L, d_t],
            words_mask bool[B, L], eos float32[B, d_t]; with `train` also video_id int32[B].
          train: dropout, and a second pass with the next sample's query for each video.

        Returns:
          A flat dict. saliency float32[B, T]; attention float32[B, T], the weight of [EOS] at
          each clip, mean over heads and layers; with `train` both also with the suffix _neg and
          real_neg bool[B]; the head's predictions (`PyramidHead` or `MomentDecoder`); clips
          [B, T, D] and eos [B, D], the features that the alignment losses compare; eos_mask and
          has_words bool[B]; and, where the path exists, the attention maps sentence_attention
          [B, layers, heads, T, dummies + 1], phrase_attention [B, N, L], slot_attention
          [B, layers, heads, N, L], phrase_weights [B, N], phrase_energy [B, N, T].
        """
        if self.paths not in ('both', 'sentence', 'phrase'):
            raise ConfigError(
                f"model.paths={self.paths!r}: expected 'both', 'sentence' or 'phrase'"
            )
        how = dict(deterministic=not train)
        out = {}
        types = self.param('token_types', nn.initializers.normal(0.02), (2, self.width))
        text_type, video_type = types.astype(self.dtype)
        text = self.encode_text(batch, text_type, out, how)
        mask, size = batch['video_mask'], len(batch['video_mask'])
        clips = self.project('video_projection', batch['video'], how) + video_type
        position = layers.sine_position(mask, self.width).astype(self.dtype)

        # In training each video meets its own query and, in the second half, the next sample's.
        if train:
            out['real_neg'] = batch['video_id'] != jnp.roll(batch['video_id'], -1)
            text = jax.tree.map(lambda x: jnp.concatenate([x, jnp.roll(x, -1, 0)]), text)
        pair = lambda x: jnp.concatenate([x, x]) if train else x  # noqa: E731
        clips, positions, masks = pair(clips), pair(position), pair(mask)

        joined = self.two_paths(clips, positions, masks, text, out, how)
        joined = layers.SelfAttentionLayer(
            heads=self.heads, name='temporal_attention', **self.common
        )(joined + positions, masks, **how)
        out['saliency'] = SaliencyHead(self.dtype, name='saliency_head')(joined, masks)

        halves = {name: out[name][size:] for name in ('saliency', 'attention') if train}
        out = {k: v[:size] for k, v in out.items()}
        out.update({f'{name}_neg': half for name, half in halves.items()})
        out.update(self.find_moments(joined[:size], position, mask, how))
        return out

    @property
    def common(self) -> dict:
        return dict(dropout=self.dropout, dtype=self.dtype)

    @nn.nowrap
    def project(self, name: str, x: jax.Array, how: dict) -> jax.Array:
        return layers.InputProjection(
            self.width, self.input_layers, self.input_dropout, self.dtype, name=name
        )(x.astype(self.dtype), **how)

    @nn.nowrap
    def encode_text(self, batch, text_type, out: dict, how: dict) -> dict[str, jax.Array]:
        """Projects the text and forms its phrases; three projection stacks in all (D).

        [EOS] carries its type embedding only on the way to the phrases (D).
        """
        words, words_mask, eos, eos_mask = select_tokens(batch, self.tokens)
        eos = self.project('eos_projection', eos, how) * eos_mask[:, None]
        out.update(eos=eos, eos_mask=eos_mask, has_words=words_mask.any(-1))
        text = dict(eos=eos, eos_mask=eos_mask)
        if self.paths != 'sentence':
            words = self.project('words_projection', words, how) + text_type
            guide = (eos + text_type) * eos_mask[:, None]
            encoded = PhraseEncoder(
                phrases=self.phrases,
                phrase_layers=self.phrase_layers,
                heads=self.heads,
                slot_normalize=self.slot_normalize,
                rpg_positions=self.rpg_positions,
                name='phrase_encoder',
                **self.common,
            )(guide, words, words_mask, **how)
            out.update(encoded)
            text.update(phrases=encoded['phrases'], phrase_eos=encoded['phrase_eos'])
        return text

    @nn.nowrap
    def two_paths(self, clips, positions, masks, text, out, how) -> jax.Array:
        """Runs the paths that are on and fuses them: [B, T, D]."""
        fused = []
        out['attention'] = jnp.zeros(masks.shape, jnp.float32)
        if self.paths != 'phrase':
            sentence, attention = SentencePath(
                heads=self.heads,
                ffn=self.ffn,
                dummies=self.dummies,
                dummy_layers=self.dummy_layers,
                t2v_layers=self.t2v_layers,
                enc_layers=self.enc_layers,
                name='sentence_path',
                **self.common,
            )(clips, positions, masks, text['eos'], text['eos_mask'], **how)
            fused.append(sentence)
            out['sentence_attention'] = attention
            out['attention'] = attention[..., -1].mean((1, 2))
        if self.paths != 'sentence':
            phrase, out['phrase_weights'], out['phrase_energy'] = PhrasePath(
                heads=self.heads,
                context_layers=self.context_layers,
                across_phrases=self.across_phrases,
                name='phrase_path',
                **self.common,
            )(text['phrases'], text['phrase_eos'], clips, masks, **how)
            fused.append(phrase)
        out['clips'] = fused[0]
        if len(fused) == 1:
            return fused[0]
        return Fusion(self.fusion, self.dtype, name='fusion')(*fused)

    @nn.nowrap
    def find_moments(self, clips, position, mask, how) -> dict[str, jax.Array]:
        """The chosen head on the fused clips [B, T, D]."""
        if self.head == 'pyramid':
            return pyramid.PyramidHead(
                strides=tuple(self.strides),
                kernel=self.kernel,
                conv_layers=self.conv_layers,
                mlp_layers=self.mlp_layers,
                bins=self.bins,
                dtype=self.dtype,
                name='pyramid_head',
            )(clips, mask)
        if self.head == 'detr':
            return detr.MomentDecoder(
                queries=self.queries,
                num_layers=self.dec_layers,
                heads=self.heads,
                ffn=self.ffn,
                name='decoder',
                **self.common,
            )(clips, position, mask, **how)
        raise ConfigError(f"model.head={self.head!r}: expected 'pyramid' or 'detr'")


def loss_fn(out: dict, batch: dict, config) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of DualGround's losses (P section 3.4; values: D).

    Args:
      out: of `Model` with train=True.
      batch: video_mask bool[B, T], saliency float32[B, T] (0..12), pos_clips and neg_clips
        int32[B, 2], pairs_mask bool[B], clip_length float32[B], windows float32[B, M, 2] in
        seconds with windows_mask bool[B, M], or spans and spans_mask for the `detr` head.
      config: the `loss` section.

    Returns:
      (loss, every unweighted loss by name).
    """
    labels, mask = batch['saliency'], batch['video_mask']
    pairs = {name: batch[name] for name in ('pos_clips', 'neg_clips', 'pairs_mask')}
    shared = dict(labels=labels, mask=mask, real_neg=out['real_neg'], margin=config.margin, **pairs)
    highlight = losses.highlight(
        scores=out['saliency'], scores_neg=out['saliency_neg'], **shared
    )
    metrics = dict(saliency=highlight)
    has_eos = out['eos_mask']
    if 'sentence_attention' in out:
        attention = losses.highlight_attention(
            weights=out['attention'], weights_neg=out['attention_neg'], **shared
        )
        metrics['saliency'] += config.attn * jnp.where(has_eos.any(), attention, 0.0)
    metrics['sal'] = losses.sampled_nce(
        similarity=losses.cosine(out['clips'], out['eos'][:, None]),
        labels=labels,
        pos_clips=batch['pos_clips'][:, 0],
        mask=mask,
        pairs_mask=batch['pairs_mask'] & has_eos,
    )
    if 'phrase_attention' in out:
        diversity = lambda attention: losses.phrase_diversity(  # noqa: E731
            attention=attention, mask=out['has_words'], r=config.dqa_r
        )
        metrics['phrase'] = diversity(out['phrase_attention']) + diversity(
            out['slot_attention'][:, -1].mean(1)
        )
        form = dict(infonce=losses.eos_info_nce, margin=losses.eos_margin)[config.eos_form]
        metrics['eos'] = form(
            phrase_eos=out['phrase_eos'], eos=out['eos'], mask=has_eos & out['has_words']
        )
    on_head = pyramid.point_losses if 'points' in out else detr.set_losses
    metrics.update(on_head(out, batch, config))
    return sum(config.weights[name] * value for name, value in metrics.items()), metrics


def decode(out: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Windows and saliency of each sample.

    Args:
      out: of `Model`.
      batch: clip_length float32[B], video_mask bool[B, T].

    Returns:
      (windows float32[B, K, 3]: start and end in seconds and a score, best first, score -1 where
      there is none; saliency float32[B, T]).
    """
    if 'points' in out:
        return pyramid.decode_points(out, batch['clip_length']), out['saliency']
    extent = batch['video_mask'].sum(-1) * batch['clip_length']
    return detr.decode_moments(out, extent), out['saliency']


# Names in the development code (D) of the modules that were measured; its final form, and so a
# whole checkpoint, is not public.
_ATTENTION = {'query': 'in_proj#q', 'key': 'in_proj#k', 'value': 'in_proj#v', 'out': 'out_proj'}
_FEED_FORWARD = {name: name for name in ('linear1', 'activation', 'linear2')}
_PROJECTED = {
    'query': 'q_proj',
    'key': 'k_proj',
    'value': 'v_proj',
    'norm': 'norm',
    **convert.nest('attention', 'att', _ATTENTION),
}
_ENCODER_LAYER = {
    **convert.nest('attention', 'self_attn', _ATTENTION),
    **convert.nest('feed_forward', '', _FEED_FORWARD),
    'norm1': 'norm1',
    'norm2': 'norm2',
}
_CROSS_LAYER = {
    'out': 'self_attn.out_proj',
    **convert.nest('feed_forward', '', _FEED_FORWARD),
    'norm1': 'norm1',
    'norm2': 'norm2',
}
_GENERATOR = {
    'query_{}': 'global_emb_fn.{}',
    'guide': 'guide_emb_fn.0',
    'key': 'att_fn.key2att',
    'word': 'att_fn.feat2att',
    'score': 'att_fn.to_alpha',
}
_SLOT_LAYER = {
    **convert.nest('words_attention', '', {k: v for k, v in _PROJECTED.items() if '/' not in k}),
    **convert.nest('words_attention/attention', 'slot_att', _ATTENTION),
    **convert.nest('self_attention', 'self_att', _ATTENTION),
    'self_norm': 'norm_s',
    'feed_forward/linear': 'linear1',
    'feed_forward/norm': 'norm1',
}
_PRODUCT = {
    'phrase': 'fc_1',
    'clip': 'fc_2',
    'context': 'fc_3',
    'norm1': 'norm',
    'norm2': 'norm1',
}
_CONTEXT_LAYER = {
    **convert.nest('time/attention', 't_att', _PROJECTED),
    'time/feed_forward/linear': 'fc_t.0',
    'time/feed_forward/norm': 'norm_t',
    **convert.nest('phrases/attention', 'n_att', _PROJECTED),
    'phrases/feed_forward/linear': 'fc_n.0',
    'phrases/feed_forward/norm': 'norm_n',
}
_TEMPORAL = {
    **convert.nest('attention', 't_att', _PROJECTED),
    'feed_forward/linear': 'linear',
    'feed_forward/norm': 'norm',
}
TORCH_NAMES = {
    **convert.nest('sentence_path/dummy_{}', 'txtproj_encoder.layers.{}', _ENCODER_LAYER),
    'sentence_path/dummies': 'dummy_rep_token',
    'sentence_path/dummy_positions': 'dummy_rep_pos',
    **convert.nest('sentence_path/t2v_{}', 'transformer.t2v_encoder.layers.{}', _CROSS_LAYER),
    **convert.nest('phrase_encoder/generator', 'phrase_generate.sqan', _GENERATOR),
    **convert.nest('phrase_encoder/slot_{}', 'phrase_generate.phrase_att.{}', _SLOT_LAYER),
    'phrase_encoder/phrase_eos': 'phrase_generate.cls_token',
    **convert.nest('phrase_path/product', 'phrase_context.product', _PRODUCT),
    **convert.nest('phrase_path/layer_{}', 'phrase_context.layers.{}', _CONTEXT_LAYER),
    **convert.nest('temporal_attention', 't_sa.layers.0', _TEMPORAL),
    'saliency_head/clip': 'saliency_proj.proj1',
    'saliency_head/video': 'saliency_proj.proj2',
}

"""DualGround: sentence-level and phrase-level paths for video temporal grounding.

Paper: https://arxiv.org/abs/2510.20244. No official code exists. What follows the paper is marked
(P), what follows the authors' development code of May 2025 (D), its bases FlashVTG (F) and CG-DETR
(C), and what is decided here because all are silent (Z). Where P and D differ, P is the default
and D an option.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from data_pipelines import tokens
from data_pipelines.errors import ConfigError
from dualground_jax import losses
from dualground_jax.models import (
    cross_attention,
    detr,
    execution,
    highlight,
    layers,
    phrases,
    pyramid,
    text,
)
from dualground_jax.pytorch import mapping, names

# The `loss` section of its config; values: D.
LOSS = dict(
    weights=dict(
        reg=1.0, cls=5.0, sal=0.1, saliency=0.8, label=4.0, phrase=1.0, eos=1.0,
        span=10.0, giou=1.0, query_label=4.0,
    ),
    attn=1.0,
    margin=0.2,
    margin_weight=1.0,
    dqa_r=0.3,
    eos_form='infonce',  # or 'margin' (D)
    radius=1.5,
    absence_weight=1.0,  # of what negative pairs are not to find
    nce_over_batch=True,
    classification='focal',  # or 'quality' (D), or 'saliency' without windows (F)
    regression='l1',  # or 'dfl' (D), with model.bins > 1
    **detr.LOSS,
)


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
            gate = nn.sigmoid(layers.dense_of(width, self.dtype)('gate')(both))
            return gate * sentence + (1 - gate) * phrase
        if self.mode == 'concat':
            return layers.MLP((width, width), self.dtype, name='mlp')(both)
        raise ConfigError(
            f"model.fusion={self.mode!r}: expected 'sum', 'hadamard', 'gate' or 'concat'"
        )


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
    attention_chunk: int = 0  # > 0: self-attention takes so many queries at a time
    scan_layers: bool = False  # equal layers run in one loop
    remat: bool = False  # gradients compute the activations of layers anew

    @nn.compact
    def __call__(self, batch: dict, *, train: bool) -> dict[str, jax.Array]:
        """Grounds each sample's query in its video.

        Args:
          batch: video float32[B, T, d_v], video_mask bool[B, T], text float32[B, L, d_t],
            text_role int32[B, L]; with `train` also source_id int32[B].
          train: dropout, and a second pass with the next sample's query for each video.

        Returns:
          A flat dict. saliency float32[B, T]; attention float32[B, T], the weight of [EOS] at
          each clip, mean over heads and layers; with `train` both also with the suffix _neg and
          real_neg bool[B]; the head's predictions (`PyramidHead` or `MomentDecoder`); clips
          [B, T, D] and eos [B, D], the features that the alignment losses compare; eos_mask and
          has_words bool[B]; attn float32[B, layers, heads, T, K] and attn_roles int32[B, K], see
          `attention_map`; and, where the path exists, sentence_attention
          [B, layers, heads, T, dummies + 1], phrase_attention [B, N, L], slot_attention
          [B, layers, heads, N, L], phrase_weights [B, N], phrase_energy [B, N, T], summary_energy
          [B, T].
        """
        if self.paths not in ('both', 'sentence', 'phrase'):
            raise ConfigError(
                f"model.paths={self.paths!r}: expected 'both', 'sentence' or 'phrase'"
            )
        how = dict(deterministic=not train)
        out = {}
        types = self.param('token_types', layers.embedding(0.02), (2, self.width))
        text_type, video_type = types.astype(self.dtype)
        sentence = self.encode_text(batch, text_type, out, how)
        mask, size = batch['video_mask'], len(batch['video_mask'])
        clips = self.project('video_projection', batch['video'], how) + video_type
        position = layers.sine_position(mask, self.width).astype(self.dtype)

        if train:
            out['real_neg'] = batch['source_id'] != jnp.roll(batch['source_id'], -1)
        video = clips, position, mask
        clips, positions, masks = highlight.twice(video) if train else video

        joined = self.two_paths(clips, positions, masks, sentence, out, how)
        temporal_attention = layers.SelfAttentionLayer(
            heads=self.heads, chunk=self.attention_chunk, name='temporal_attention', **self.common
        )
        joined = execution.of_model(self).rematted(lambda layer, x: layer(x, masks, **how))(
            temporal_attention, joined + positions
        )
        mean = losses.masked_mean(joined, masks[..., None], axis=1)
        out['saliency'] = highlight.SaliencyHead(self.dtype, name='saliency_head')(joined, mean)

        scores = tuple(name for name in ('saliency', 'attention') if train and name in out)
        out = highlight.split_negatives(out, size, scores)
        out['attn'], out['attn_roles'] = self.attention_map(out, batch)
        joined = highlight.without_negatives(joined, size)
        out.update(self.find_moments(joined, position, mask, how))
        return out

    @property
    def common(self) -> dict:
        return dict(dropout=self.dropout, dtype=self.dtype)

    @nn.nowrap
    def project(self, name: str, x: jax.Array, how: dict) -> jax.Array:
        return layers.InputProjection(
            self.width, self.input_layers, self.input_dropout, self.dtype, name=name
        )(x, **how)

    @nn.nowrap
    def encode_text(self, batch, text_type, out: dict, how: dict) -> dict[str, jax.Array]:
        """Projects the text and forms its phrases; three projection stacks in all (D).

        [EOS] carries its type embedding only on the way to the phrases (D).
        """
        words_mask, eos, eos_mask = text.split_roles(batch, self.tokens)
        eos = self.project('eos_projection', eos, how) * eos_mask[:, None]
        out.update(eos=eos, eos_mask=eos_mask, has_words=words_mask.any(-1))
        sentence = dict(eos=eos, eos_mask=eos_mask)
        if self.paths != 'sentence':
            words = self.project('words_projection', batch['text'], how) + text_type
            guide = (eos + text_type) * eos_mask[:, None]
            encoded = phrases.PhraseEncoder(
                phrases=self.phrases,
                phrase_layers=self.phrase_layers,
                heads=self.heads,
                slot_normalize=self.slot_normalize,
                rpg_positions=self.rpg_positions,
                name='phrase_encoder',
                **self.common,
            )(guide, words, words_mask, **how)
            out.update(encoded)
            sentence.update(phrases=encoded['phrases'], phrase_eos=encoded['phrase_eos'])
        return sentence

    @nn.nowrap
    def two_paths(self, clips, positions, masks, sentence, out, how) -> jax.Array:
        """Runs the paths that are on and fuses them: [B, T, D]."""
        fused = []
        if self.paths != 'phrase':
            clips_of_sentence, attention = cross_attention.TextGuidedEncoder(
                heads=self.heads,
                ffn=self.ffn,
                dummies=self.dummies,
                dummy_layers=self.dummy_layers,
                t2v_layers=self.t2v_layers,
                enc_layers=self.enc_layers,
                dummy_heads=self.heads,
                execution=execution.of_model(self),
                name='sentence_path',
                **self.common,
            )(clips, positions, masks, sentence['eos'][:, None], sentence['eos_mask'][:, None],
              **how)
            fused.append(clips_of_sentence)
            out['sentence_attention'] = attention
            out['attention'] = attention[..., -1].mean((1, 2))
        if self.paths != 'sentence':
            phrase, of_phrases = phrases.PhrasePath(
                heads=self.heads,
                context_layers=self.context_layers,
                across_phrases=self.across_phrases,
                execution=execution.of_model(self),
                name='phrase_path',
                **self.common,
            )(sentence['phrases'], sentence['phrase_eos'], clips, masks, **how)
            out.update(of_phrases)
            fused.append(phrase)
        out['clips'] = fused[0]
        if len(fused) == 1:
            return fused[0]
        return Fusion(self.fusion, self.dtype, name='fusion')(*fused)

    @nn.nowrap
    def attention_map(self, out: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        """What clips take from the dummies, [EOS], the words, the phrases and P_EOS (Z).

        The sentence path has layers and heads, and its weights of dummies and [EOS] sum to one. The
        phrase path has neither: its series are the same in each. A phrase answers a clip by its
        energy, P_EOS by that of the weighted sum, and a word by the energy of the phrases times its
        share in them and theirs in the sum.

        Returns:
          (float32[B, layers, heads, T, K], roles int32[B, K]); K is dummies + 1 of the sentence
          path, then N + 1 + L of the phrase path, where they are on; padding comes last.
        """
        words_mask, _, eos_mask = text.split_roles(batch, self.tokens)
        maps, roles = [], []
        if self.paths != 'phrase':
            maps.append(out['sentence_attention'])
            sentence = jnp.where(text.is_sentence(batch), batch['text_role'], tokens.PADDING).max(1)
            sentence = jnp.where(eos_mask, sentence, tokens.PADDING)
            roles.append(jnp.pad(sentence[:, None], ((0, 0), (self.dummies, 0)),
                                 constant_values=tokens.DUMMY))
        if self.paths != 'sentence':
            energy = out['phrase_energy']
            shares = out['phrase_weights'][..., None] * out['slot_attention'][:, -1].mean(1)
            series = jnp.concatenate(
                [energy.swapaxes(1, 2), out['summary_energy'][..., None],
                 jnp.einsum('bnt,bnl->btl', energy, shares)], -1)[:, None, None]
            like = maps[0].shape[1:3] if maps else (1, 1)
            maps.append(jnp.broadcast_to(series, (len(series), *like, *series.shape[3:])))
            added = jnp.array([tokens.PHRASE] * energy.shape[1] + [tokens.P_EOS])
            roles += [jnp.where(words_mask.any(1)[:, None], added, tokens.PADDING),
                      text.key_roles(batch, words_mask)]
        weights, roles = jnp.concatenate(maps, -1), jnp.concatenate(roles, 1)
        is_there = (roles != tokens.PADDING)[:, None, None, None]
        return jnp.where(is_there, weights, 0.0), roles

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
                execution=execution.of_model(self),
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
    has_eos = out['eos_mask']
    metrics = dict(saliency=highlight.saliency_loss(out, batch, config))
    metrics['sal'] = losses.sampled_nce(
        similarity=losses.cosine(out['clips'], out['eos'][:, None]),
        labels=batch['saliency'],
        pos_clips=batch['pos_clips'][:, 0],
        mask=batch['video_mask'],
        pairs_mask=batch['pairs_mask'] & has_eos,
        over_batch=config.nce_over_batch,
    )
    if 'phrase_attention' in out:
        diversity = lambda attention: losses.phrase_diversity(  # noqa: E731
            attention=attention, mask=out['has_words'], r=config.dqa_r
        )
        metrics['phrase'] = diversity(out['phrase_attention']) + diversity(
            out['slot_attention'][:, -1].mean(1)
        )
        form = dict(infonce=losses.info_nce, margin=losses.cosine_margin)[config.eos_form]
        metrics['eos'] = form(out['phrase_eos'], out['eos'], mask=has_eos & out['has_words'])
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
_PROJECTED = {
    'query': 'q_proj',
    'key': 'k_proj',
    'value': 'v_proj',
    'norm': 'norm',
    **mapping.nest('attention', 'att', names.ATTENTION),
}
_GENERATOR = {
    'query_{}': 'global_emb_fn.{}',
    'guide': 'guide_emb_fn.0',
    'key': 'att_fn.key2att',
    'word': 'att_fn.feat2att',
    'score': 'att_fn.to_alpha',
}
_SLOT_LAYER = {
    **mapping.nest('words_attention', '', {k: v for k, v in _PROJECTED.items() if '/' not in k}),
    **mapping.nest('words_attention/attention', 'slot_att', names.ATTENTION),
    **mapping.nest('self_attention', 'self_att', names.ATTENTION),
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
    **mapping.nest('time/attention', 't_att', _PROJECTED),
    'time/feed_forward/linear': 'fc_t.0',
    'time/feed_forward/norm': 'norm_t',
    **mapping.nest('phrases/attention', 'n_att', _PROJECTED),
    'phrases/feed_forward/linear': 'fc_n.0',
    'phrases/feed_forward/norm': 'norm_n',
}
_TEMPORAL = {
    **mapping.nest('attention', 't_att', _PROJECTED),
    'feed_forward/linear': 'linear',
    'feed_forward/norm': 'norm',
}
TORCH_NAMES = {
    **mapping.nest('sentence_path', '', names.TEXT_GUIDED_ENCODER),
    **mapping.nest('phrase_encoder/generator', 'phrase_generate.sqan', _GENERATOR),
    **mapping.nest('phrase_encoder/slot_{}', 'phrase_generate.phrase_att.{}', _SLOT_LAYER),
    'phrase_encoder/phrase_eos': 'phrase_generate.cls_token',
    **mapping.nest('phrase_path/product', 'phrase_context.product', _PRODUCT),
    **mapping.nest('phrase_path/layer_{}', 'phrase_context.layers.{}', _CONTEXT_LAYER),
    **mapping.nest('temporal_attention', 't_sa.layers.0', _TEMPORAL),
    'saliency_head/clip': 'saliency_proj.proj1',
    'saliency_head/video': 'saliency_proj.proj2',
}

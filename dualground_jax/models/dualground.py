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
    highlight,
    layers,
    negatives,
    phrases,
    pyramid,
    text,
)
from dualground_jax.models.base import GroundingModel

# The `loss` section of its config, values: D; `dualground_jax.models` says what each weight is of.
LOSS = dict(
    weights=dict(
        reg=1.0, cls=5.0, sal=0.1, saliency=0.8, label=4.0, phrase=1.0, eos=1.0,
        span=10.0, giou=1.0, query_label=4.0),
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
            f"model.fusion={self.mode!r}: expected 'sum', 'hadamard', 'gate' or 'concat'")


class Model(GroundingModel):
    """DualGround. Fields, with those of all models, are the `model` section of the config."""

    paths: str = 'both'  # 'both', 'sentence' or 'phrase'
    dummies: int = 3  # L_d (D)
    dummy_layers: int = 2
    dummy_dropout: float = -1.0  # of the dummies' encoder; below 0: as elsewhere
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

    @nn.compact
    def __call__(self, batch: dict, *, train: bool) -> dict[str, jax.Array]:
        """Grounds each sample's query in its video.

        Args:
          batch: video float32[B, T, d_v], video_mask bool[B, T], text float32[B, L, d_t],
            text_role int32[B, L]; with `train` also source_id int32[B].
          train: dropout, and a second pass with the next sample's query for each video.

        Returns:
          A flat dict. saliency float32[B, T]; text_weight float32[B, T], the weight of [EOS] at
          each clip, mean over heads and layers; with `train` both also with the suffix _neg and
          real_neg bool[B]; the head's predictions (`PyramidHead` or `MomentDecoder`); clips
          [B, T, D] and eos [B, D], the features that the alignment losses compare; eos_mask and
          has_words bool[B]; attn float32[B, layers, heads, T, K] and attn_roles int32[B, K], see
          `attention_map`; and, where the path exists, sentence_attention
          [B, layers, heads, T, dummies + 1], the results of `PhraseEncoder`, phrase_weights [B, N],
          phrase_energy [B, N, T], summary_energy [B, T].
        """
        if self.paths not in ('both', 'sentence', 'phrase'):
            raise ConfigError(
                f"model.paths={self.paths!r}: expected 'both', 'sentence' or 'phrase'")
        how = dict(deterministic=not train)
        text_type, video_type = self.token_types()
        words_mask, eos, eos_mask = text.split_roles(batch, self.tokens)
        mask = batch['video_mask']
        position = self.position(mask)
        # Three projections in all (D).
        clips = self.project('video_projection', batch['video'], train=train) + video_type
        eos = self.project('eos_projection', eos, train=train) * eos_mask[:, None]
        sentence_path, phrase_path = self.make_paths()

        # The query, encoded once a sample.
        query, encoded = {}, {}
        if sentence_path:
            query['sentence'] = sentence_path.encode_text(eos[:, None], eos_mask[:, None], **how)
        if phrase_path:
            words = self.project('words_projection', batch['text'], train=train) + text_type
            # [EOS] carries its type embedding only here (D).
            guide = (eos + text_type) * eos_mask[:, None]
            encoded = phrases.PhraseEncoder(
                **self.shared, phrases=self.phrases, phrase_layers=self.phrase_layers,
                slot_normalize=self.slot_normalize, rpg_positions=self.rpg_positions,
                name='phrase_encoder')(guide, words, words_mask, **how)
            query['phrases'] = encoded['phrases'], encoded['phrase_eos']

        # Each video with its query: one row a sample, in training two.
        video = clips, position, mask
        if train:
            video, query = negatives.pair(video, query, batch)
        clips, positions, masks = video
        rows, found = {}, []
        if sentence_path:
            of_sentence, weights = sentence_path(*video, query['sentence'], **how)
            rows.update(sentence_attention=weights, text_weight=highlight.text_weight(weights, 1))
            found.append(of_sentence)
        if phrase_path:
            of_phrases, energies = phrase_path(*query['phrases'], clips, masks, **how)
            rows.update(energies)
            found.append(of_phrases)
        joined = found[0]
        if len(found) == 2:
            joined = Fusion(self.fusion, self.dtype, name='fusion')(*found)
        temporal_attention = layers.SelfAttentionLayer(**self.shared, name='temporal_attention')
        attend = self.execution.rematted(lambda layer, x: layer(x, masks, **how))
        joined = attend(temporal_attention, joined + positions)
        mean = losses.masked_mean(joined, masks[..., None], axis=1)
        saliency = highlight.SaliencyHead(self.dtype, name='saliency_head')(joined, mean)
        rows.update(clips=found[0], joined=joined, saliency=saliency)
        out = negatives.split(rows, batch) if train else rows

        joined = out.pop('joined')
        out |= self.find_moments(joined, position, mask, how)
        out |= dict(encoded, eos=eos, eos_mask=eos_mask, has_words=words_mask.any(-1))
        out['attn'], out['attn_roles'] = self.attention_map(out, batch)
        return out

    @nn.nowrap
    def make_paths(self) -> tuple[nn.Module | None, nn.Module | None]:
        """The sentence path and the phrase path, None where one is off."""
        sentence_path = phrase_path = None
        if self.paths != 'phrase':
            sentence_path = cross_attention.TextGuidedEncoder(
                **self.shared, ffn=self.ffn, dummies=self.dummies, dummy_heads=self.heads,
                dummy_layers=self.dummy_layers, dummy_dropout=self.dummy_dropout,
                t2v_layers=self.t2v_layers, enc_layers=self.enc_layers, name='sentence_path')
        if self.paths != 'sentence':
            phrase_path = phrases.PhrasePath(
                **self.shared, context_layers=self.context_layers,
                across_phrases=self.across_phrases, name='phrase_path')
        return sentence_path, phrase_path

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
            maps.append(jnp.broadcast_to(series, (series.shape[0], *like, *series.shape[3:])))
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
                strides=tuple(self.strides), kernel=self.kernel, conv_layers=self.conv_layers,
                mlp_layers=self.mlp_layers, bins=self.bins, dtype=self.dtype, name='pyramid_head',
            )(clips, mask)
        if self.head == 'detr':
            return detr.MomentDecoder(
                **self.shared, queries=self.queries, num_layers=self.dec_layers, ffn=self.ffn,
                name='decoder')(clips, position, mask, **how)
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
    parts = dict(
        saliency=highlight.saliency_loss(out, batch, config),
        sal=highlight.clip_query_nce(out['clips'], out['eos'], has_eos, batch, config))
    if 'phrase_attention' in out:
        parts['phrase'] = sum(
            losses.phrase_diversity(attention=weights, mask=out['has_words'], r=config.dqa_r)
            for weights in (out['phrase_attention'], out['slot_attention'][:, -1].mean(1)))
        form = dict(infonce=losses.info_nce, margin=losses.cosine_margin)[config.eos_form]
        parts['eos'] = form(out['phrase_eos'], out['eos'], mask=has_eos & out['has_words'])
    on_head = pyramid.point_losses if 'points' in out else detr.set_losses
    parts.update(on_head(out, batch, config))
    return losses.weighted_sum(parts, config.weights), parts


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

"""FlashVTG: feature layering and adaptive score refinement (https://arxiv.org/abs/2412.13441).

Follows the authors' code, Zhuo-Cao/FlashVTG, in what it does to a single sample; numbers agree with
it to rounding (flash_vtg_parity_test.py).
"""


import flax.linen as nn
import jax
import jax.numpy as jnp

from dualground_jax import losses
from dualground_jax.models import cross_attention, highlight, layers, negatives, pyramid, text
from dualground_jax.models.base import GroundingModel

# The `loss` section of its config; `dualground_jax.models` says what each weight is of.
LOSS = dict(
    weights=dict(reg=1.0, cls=5.0, sal=0.1, saliency=0.8, label=4.0),
    attn=1.0,
    margin=0.2,
    margin_weight=2.0,
    radius=1.5,
    absence_weight=1.0,  # of what negative pairs are not to find
    nce_over_batch=True,
    classification='focal',  # or 'saliency' without windows
    regression='l1',
)


class Model(GroundingModel):
    """FlashVTG. Fields, with those of all models, are the `model` section of the config."""

    dummies: int = 40
    dummy_layers: int = 2
    dummy_heads: int = 8  # whatever the other heads
    dummy_dropout: float = -1.0  # of the dummies' encoder; below 0: as elsewhere
    t2v_layers: int = 6
    enc_layers: int = 3
    strides: tuple[int, ...] = (1, 2, 4, 8)
    kernel: int = 5
    conv_layers: int = 1
    mlp_layers: int = 5

    @nn.compact
    def __call__(self, batch: dict, *, train: bool) -> dict[str, jax.Array]:
        """Grounds each sample's query in its video.

        Args:
          batch: video float32[B, T, d_v], video_mask bool[B, T], text float32[B, L, d_t],
            text_role int32[B, L]; with `train` also source_id int32[B].
          train: dropout, and a second pass with the next sample's query for each video.

        Returns:
          A flat dict. saliency float32[B, T]; text_weight float32[B, T], the weight of the text at
          each clip, mean over heads and layers; with `train` both also with the suffix _neg and
          real_neg bool[B]; the predictions of `PyramidHead`; clips [B, T, D] and query [B, D], the
          features that the alignment loss compares; attn float32[B, layers, heads, T, dummies + L]
          and attn_roles int32[B, dummies + L].
        """
        how = dict(deterministic=not train)
        text_type, video_type = self.token_types()
        mask, tokens_mask = batch['video_mask'], text.token_mask(batch, self.tokens)
        tokens = self.project('text_projection', batch['text'], train=train) + text_type
        clips = self.project('video_projection', batch['video'], train=train) + video_type
        scores = layers.dense_of(1, self.dtype, use_bias=False)('pooling')(tokens)[..., 0]
        shares = layers.masked_softmax(scores, tokens_mask).astype(tokens.dtype)
        query = jnp.einsum('bl,bld->bd', shares, tokens)
        encoder = cross_attention.TextGuidedEncoder(
            **self.shared, ffn=self.ffn, dummies=self.dummies, dummy_layers=self.dummy_layers,
            dummy_heads=self.dummy_heads, dummy_dropout=self.dummy_dropout,
            t2v_layers=self.t2v_layers, enc_layers=self.enc_layers,
            name='encoder')

        video = clips, self.position(mask), mask
        encoded = encoder.encode_text(tokens, tokens_mask, **how)
        if train:
            video, encoded = negatives.pair(video, encoded, batch)
        clips, attn = encoder(*video, encoded, **how)
        mean = losses.masked_mean(clips, video[-1][..., None], axis=1)
        rows = dict(
            clips=clips,
            saliency=highlight.SaliencyHead(self.dtype, name='saliency_head')(clips, mean),
            text_weight=highlight.text_weight(attn, tokens.shape[1]),
            attn=attn,
        )
        out = negatives.split(rows, batch) if train else rows

        out |= pyramid.PyramidHead(
            strides=tuple(self.strides), kernel=self.kernel, conv_layers=self.conv_layers,
            mlp_layers=self.mlp_layers, dtype=self.dtype, name='pyramid_head')(out['clips'], mask)
        # The head rectifies the clips, and the alignment loss sees them so.
        out['clips'] = nn.relu(out['clips'])
        out['query'] = query
        out['attn_roles'] = text.key_roles(batch, tokens_mask, self.dummies)
        return out


def loss_fn(out: dict, batch: dict, config) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of FlashVTG's losses (its loss.py and model.py).

    Args:
      out: of `Model` with train=True.
      batch: video_mask bool[B, T], saliency float32[B, T] (0..12), pos_clips and neg_clips
        int32[B, 2], pairs_mask bool[B], clip_length float32[B], windows float32[B, M, 2] in
        seconds and windows_mask bool[B, M].
      config: the `loss` section.

    Returns:
      (loss, every unweighted loss by name).
    """
    parts = dict(
        saliency=highlight.saliency_loss(out, batch, config),
        sal=highlight.clip_query_nce(out['clips'], out['query'], True, batch, config),
        **pyramid.point_losses(out, batch, config))
    return losses.weighted_sum(parts, config.weights), parts


def decode(out: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Windows float32[B, K, 3] and saliency float32[B, T]; see `pyramid.decode_points`."""
    return pyramid.decode_points(out, batch['clip_length']), out['saliency']

"""FlashVTG: feature layering and adaptive score refinement (https://arxiv.org/abs/2412.13441).

Follows the authors' code, Zhuo-Cao/FlashVTG, in what it does to a single sample; numbers agree with
it to rounding (tests/parity_test.py).
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualground_jax import losses
from dualground_jax.models import cross_attention, execution, highlight, layers, pyramid, text
from dualground_jax.pytorch import mapping, names

# The `loss` section of its config.
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


class Model(nn.Module):
    """FlashVTG. Fields are the `model` section of the config."""

    width: int = 256
    heads: int = 8
    ffn: int = 1024
    dropout: float = 0.1
    input_dropout: float = 0.5
    input_layers: int = 2
    tokens: str = 'full'  # 'full', 'eos' or 'words'
    dummies: int = 40
    dummy_layers: int = 2
    dummy_heads: int = 8
    t2v_layers: int = 6
    enc_layers: int = 3
    strides: tuple[int, ...] = (1, 2, 4, 8)
    kernel: int = 5
    conv_layers: int = 1
    mlp_layers: int = 5
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
          A flat dict. saliency float32[B, T]; attention float32[B, T], the weight of the text at
          each clip, mean over heads and layers; with `train` both also with the suffix _neg and
          real_neg bool[B]; the predictions of `PyramidHead`; clips [B, T, D] and query [B, D], the
          features that the alignment loss compares; attn float32[B, layers, heads, T, dummies + L]
          and attn_roles int32[B, dummies + L].
        """
        how = dict(deterministic=not train)
        project = layers.projector(self, deterministic=not train)
        types = self.param('token_types', layers.embedding(0.02), (2, self.width))
        text_type, video_type = types.astype(self.dtype)
        mask, size = batch['video_mask'], len(batch['video_mask'])
        tokens_mask = text.token_mask(batch, self.tokens)
        roles = text.key_roles(batch, tokens_mask, self.dummies)
        tokens = project('text_projection', batch['text']) + text_type
        clips = project('video_projection', batch['video']) + video_type
        position = layers.sine_position(mask, self.width).astype(self.dtype)
        scores = layers.dense_of(1, self.dtype, use_bias=False)('pooling')(tokens)[..., 0]
        shares = layers.masked_softmax(scores, tokens_mask).astype(tokens.dtype)
        query = jnp.einsum('bl,bld->bd', shares, tokens)

        masks = mask
        if train:
            clips, position, masks = highlight.twice((clips, position, mask))
        clips, attention = cross_attention.TextGuidedEncoder(
            heads=self.heads,
            ffn=self.ffn,
            dummies=self.dummies,
            dummy_layers=self.dummy_layers,
            t2v_layers=self.t2v_layers,
            enc_layers=self.enc_layers,
            dummy_heads=self.dummy_heads,
            dropout=self.dropout,
            dtype=self.dtype,
            execution=execution.of_model(self),
            name='encoder',
        )(clips, position, masks, tokens, tokens_mask, **how)
        out = dict(
            saliency=highlight.SaliencyHead(self.dtype, name='saliency_head')(
                clips, losses.masked_mean(clips, masks[..., None], axis=1)
            ),
            attention=attention[..., self.dummies :].sum(-1).mean((1, 2)),
            attn=attention,
        )
        out = highlight.split_negatives(out, size, ('saliency', 'attention') if train else ())
        if train:
            out['real_neg'] = batch['source_id'] != jnp.roll(batch['source_id'], -1)
        # The head rectifies the clips, and the alignment loss sees them so.
        clips = highlight.without_negatives(clips, size)
        out.update(clips=nn.relu(clips), query=query, attn_roles=roles)
        return out | pyramid.PyramidHead(
            strides=tuple(self.strides),
            kernel=self.kernel,
            conv_layers=self.conv_layers,
            mlp_layers=self.mlp_layers,
            dtype=self.dtype,
            name='pyramid_head',
        )(clips, mask)


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
    metrics = dict(
        saliency=highlight.saliency_loss(out, batch, config),
        sal=losses.sampled_nce(
            similarity=losses.cosine(out['clips'], out['query'][:, None]),
            labels=batch['saliency'],
            pos_clips=batch['pos_clips'][:, 0],
            mask=batch['video_mask'],
            pairs_mask=batch['pairs_mask'],
            over_batch=config.nce_over_batch,
        ),
        **pyramid.point_losses(out, batch, config),
    )
    return sum(config.weights[name] * value for name, value in metrics.items()), metrics


def decode(out: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Windows float32[B, K, 3] and saliency float32[B, T]; see `pyramid.decode_points`."""
    return pyramid.decode_points(out, batch['clip_length']), out['saliency']


TORCH_NAMES = {
    **names.INPUTS,
    **mapping.nest('encoder', '', names.TEXT_GUIDED_ENCODER),
    **mapping.nest('saliency_head', '', names.SALIENCY_HEAD),
    **mapping.nest('pyramid_head', '', names.PYRAMID_HEAD),
    'pooling': 'pooling.att',
}
TORCH_UNUSED = names.UNUSED

# Field of `Model` -> name in the options of a public checkpoint.
TORCH_OPTIONS = dict(
    names.OPTIONS,
    dummies='num_dummies',
    dummy_layers='dummy_layers',
    t2v_layers='t2v_layers',
    enc_layers='enc_layers',
    kernel='kernel_size',
    conv_layers='num_conv_layers',
    mlp_layers='num_mlp_layers',
)
# Entry of its config's `loss` section -> name there.
TORCH_LOSS = {
    'weights/reg': 'lw_reg',
    'weights/cls': 'lw_cls',
    'weights/sal': 'lw_sal',
    'weights/saliency': 'lw_saliency',
    'weights/label': 'label_loss_coef',
    'attn': 'lw_wattn',
    'margin': 'saliency_margin',
}


def torch_fields(state) -> dict:
    """Fields that follow from a state dict: a level of stride 2^k has a chain of k convolutions."""
    chain = r'pyramid\.blocks\.{}\.\d+\.weight'
    lengths = [
        sum(1 for k, v in state.items() if re.fullmatch(chain.format(i), k) and v.ndim == 3)
        for i in range(len(state['coef']))
    ]
    return dict(strides=tuple(2**n for n in lengths))

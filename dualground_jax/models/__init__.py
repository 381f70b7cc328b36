"""The models, by name.

A model file exports `Model`, a linen module with `apply(variables, batch, train=...) -> out`;
`loss_fn(out, batch, config) -> (loss, parts)` with `LOSS`, the defaults of its config;
and `decode(out, batch) -> (windows, saliency)`. Nothing outside this package asks which model it
has; only `pytorch.names` knows what the public codes call our modules, by the model's name.

`out` is a flat dict. Its `attn` float32[B, layers, heads, T, K] is what clips take from each key,
and `attn_roles` int32[B, K] what each key is (numbers of `data_pipelines.tokens`): the analysis
reads these.

The parts of a loss, by their names in `loss.weights`:

    saliency      clips ranked by their saliency score, and by the weight they give to the text
    sal           InfoNCE: a clip is to be near its query (the releases call it saliency NCE)
    cls, reg      of a point: is it inside a moment, and how far are the moment's boundaries
    label         scores of the finest points are to be the saliency labels, both scaled to [0, 1]
    span, giou    of a moment query and its moment: error of centre and width, 1 - generalised IoU
    query_label   of a moment query: is it matched to a moment
    phrase, eos   DualGround: phrases are to differ (L_DQA), and P_EOS to be near [EOS] (L_EOS)
    align         CG-DETR: a moment's summary is to be near its sentence's, and to tell its clips
    distill       CG-DETR: clips are to attend to the words that moment clips resemble
    orthogonal    CG-DETR: dummies are to differ, and so are prompts
    vtc, ctc      TR-DETR: a video is to be near its text; a relevant clip is, too

Axes: B batch, T clips, L words, N phrases or moment queries, M target windows, D width, H heads,
P points, d_v and d_t widths of the video and text features.
"""

import dataclasses
from types import ModuleType

import flax.linen as nn

from data_pipelines.errors import ConfigError
from dualground_jax.models import cg_detr, dualground, flash_vtg, tr_detr

MODELS: dict[str, ModuleType] = dict(
    dualground=dualground, flash_vtg=flash_vtg, cg_detr=cg_detr, tr_detr=tr_detr)


def defaults(name: str) -> dict:
    """Field names and defaults of a model: the `model` section of its config."""
    own = (f for f in dataclasses.fields(MODELS[name].Model) if f.name not in ('parent', 'name'))
    return {field.name: field.default for field in own}


def check(config) -> None:
    """Raises ConfigError if the losses need what the model does not have."""
    strides, loss = config.model.get('strides', (1,)), config.loss
    by_clips = ['loss.weights.label > 0'] * bool(loss.weights.get('label'))
    by_clips += ["loss.classification='saliency'"] * (loss.get('classification') == 'saliency')
    if strides[:1] != (1,) and by_clips and config.model.get('head', 'pyramid') == 'pyramid':
        raise ConfigError(f'model.strides={tuple(strides)}: expected 1 first, {by_clips[0]} '
                          'compares the points of the first level with clips')


def build(section) -> nn.Module:
    """The model that a config's `model` section describes."""
    values = {key: value for key, value in section.items() if key != 'name'}
    return MODELS[section.name].Model(**values)

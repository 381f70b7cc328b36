"""The models, by name.

A model file exports `Model`, a linen module with `apply(variables, batch, train=...) -> out`;
`loss_fn(out, batch, config) -> (loss, metrics)` with `LOSS`, the defaults of its config;
and `decode(out, batch) -> (windows, saliency)`. For checkpoints of its public code it exports the
name table `TORCH_NAMES`, `TORCH_UNUSED` (patterns of names that nothing reads), `TORCH_OPTIONS` and
`TORCH_LOSS` (our fields' names among the stored options) and `torch_fields` (what follows from the
weights alone). Nothing outside this package asks which model it has.

`out` is a flat dict. Its `attn` float32[B, layers, heads, T, K] is what clips take from each key,
and `attn_roles` int32[B, K] what each key is (numbers of `data_pipelines.tokens`): the analysis
reads these.

Axes: B batch, T clips, L words, N phrases or moment queries, M target windows, D width, H heads,
P points, d_v and d_t widths of the video and text features.
"""

import dataclasses
from types import ModuleType

import flax.linen as nn

from dualground_jax.models import cg_detr, dualground, flash_vtg, tr_detr

MODELS: dict[str, ModuleType] = dict(
    dualground=dualground, flash_vtg=flash_vtg, cg_detr=cg_detr, tr_detr=tr_detr
)


def defaults(name: str) -> dict:
    """Field names and defaults of a model: the `model` section of its config."""
    own = (f for f in dataclasses.fields(MODELS[name].Model) if f.name not in ('parent', 'name'))
    return {field.name: field.default for field in own}


def build(section) -> nn.Module:
    """The model that a config's `model` section describes."""
    values = {key: value for key, value in section.items() if key != 'name'}
    return MODELS[section.name].Model(**values)

"""The hyperparameters of the public training scripts, one recipe for each model, data set and
release of features; `docs/hyperparameters.md` is printed from here.

A recipe names what its script passes or leaves to the defaults of its option parser, where that
differs from the model file's defaults. Widths of features and lengths of clips belong to the data
set (data_pipelines/datasets.py). To write the document anew:

    python -m configs.recipes > docs/hyperparameters.md
"""

import dataclasses
from collections.abc import Mapping

FLASH_VTG = 'Zhuo-Cao/FlashVTG: FlashVTG/scripts/'
CG_DETR = 'wjun0830/CGDETR: cg_detr/scripts/'
TR_DETR = 'mingyao1120/TR-DETR: tr_detr/scripts/'

# Data sets of highlights alone. The public codes of the DETRs make no matcher for them and skip
# every loss of their criterion but that of the saliency; FlashVTG has a config of its own (HD.py).
_NO_QUERIES = dict(span=0.0, giou=0.0, query_label=0.0)
_SALIENCY_ALONE = dict(_NO_QUERIES, align=0.0, distill=0.0, orthogonal=0.0)
_HD = dict(model_strides=(1,), loss_classification='saliency', loss_nce_over_batch=False)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a training script sets.

    Attributes:
        source: repository and path of the script.
        values: dotted config key -> value.
        remark: what a reader of the script should know.
    """

    source: str
    values: Mapping
    remark: str = ''


def _recipe(source, *, remark='', weights=(), **values):
    """Spells keys out: lr=..., weights=dict(sal=...), model_kernel=..., data_max_tokens=..."""
    short = dict(
        lr='optimizer.learning_rate',
        weight_decay='optimizer.weight_decay',
        batch='train.batch_size',
        epochs='train.epochs',
        eval_every='train.eval_every',
        nms='evaluate.nms',
        seed='seed',
        max_tokens='data.max_tokens',
    )
    spelt = {short.get(k, k.replace('_', '.', 1)): v for k, v in values.items()}
    spelt |= {f'loss.weights.{name}': value for name, value in dict(weights).items()}
    return Recipe(source, spelt, remark)


def _flash_vtg(script, **values):
    common = dict(seed=2024, nms=0.7, model_t2v_layers=6, model_dummy_layers=2, model_dummies=40)
    return _recipe(FLASH_VTG + script, **(common | values))


def _cg_detr(script, **values):
    common = dict(
        seed=2018, nms=2.0, batch=32, epochs=200, eval_every=5, model_dummies=45,
        model_prompts=10,
    )
    return _recipe(CG_DETR + script, **(common | values))


def _dualground(source, **values):
    return _recipe(source, **(dict(seed=2024, nms=0.7, eval_every=1) | values))


RECIPES = {
    ('dualground', 'qvhighlights', 'iv2'): _dualground(
        'paper, section 4.1; what it leaves open: qv_internvideo2/train.sh of FlashVTG',
        lr=1e-4, batch=64, epochs=150, eval_every=5, model_phrases=4, max_tokens=40,
        remark='the scripts that it stands on have lr 5e-4',
    ),
    ('dualground', 'qvhighlights', 'sf_clip'): _dualground(
        'as with InternVideo2', lr=1e-4, batch=64, epochs=150, eval_every=5, model_phrases=4,
        max_tokens=40,
    ),
    ('dualground', 'charades_sta', 'iv2'): _dualground(
        'paper, section 4.1; what it leaves open: charades_sta_internvideo2/train.sh of FlashVTG',
        lr=2.5e-4, batch=128, epochs=50, model_phrases=3, model_kernel=7, model_conv_layers=2,
        model_mlp_layers=3, max_tokens=23, weights=dict(sal=0.01, label=0.1),
    ),
    ('dualground', 'charades_sta', 'sf_clip'): _dualground(
        'paper, section 4.1; what it leaves open: charades_sta/train.sh of FlashVTG',
        lr=2.5e-4, batch=128, epochs=50, model_phrases=3, max_tokens=32,
        weights=dict(sal=0.01, label=0.1),
    ),
    ('dualground', 'charades_sta', 'vgg'): _dualground(
        'as with SlowFast and CLIP; what it leaves open: charades_sta/train_vgg.sh of FlashVTG',
        lr=2.5e-4, batch=128, epochs=50, model_phrases=3, model_kernel=3, model_conv_layers=2,
        max_tokens=32, weights=dict(sal=0.01, label=0.1),
    ),
    ('dualground', 'tacos', 'sf_clip'): _dualground(
        'tacos/train.sh of FlashVTG stands in: the paper has no TACoS',
        lr=2e-4, batch=32, epochs=150, eval_every=3, model_phrases=4, model_t2v_layers=8,
        model_conv_layers=2, model_dropout=0.0, weights=dict(sal=0.05),
    ),
    ('dualground', 'tvsum', 'sf_clip'): _dualground(
        'paper, section 4.1; what it leaves open: tvsum/train.sh of FlashVTG',
        lr=1e-3, weight_decay=0.05, batch=4, epochs=600, model_phrases=3, model_t2v_layers=2,
        model_kernel=3, model_conv_layers=3, model_mlp_layers=3, weights=dict(reg=0.0), **_HD,
    ),
    ('dualground', 'youtube_highlights', 'sf_clip'): _dualground(
        'youtube_uni/train.sh of FlashVTG stands in: the paper has no YouTube Highlights',
        lr=2e-4, batch=4, epochs=5, model_phrases=3, model_t2v_layers=2, model_conv_layers=2,
        model_mlp_layers=3, loss_absence_weight=0.0,
        weights=dict(reg=0.0, cls=0.6, sal=0.5, saliency=0.7, label=5.0), **_HD,
        remark='5 epochs are those of two of the six domains',
    ),
    ('flash_vtg', 'qvhighlights', 'sf_clip'): _flash_vtg(
        'train_qv_slowclip.sh', lr=5e-4, batch=64, epochs=150, eval_every=1, max_tokens=40,
    ),
    ('flash_vtg', 'qvhighlights', 'iv2'): _flash_vtg(
        'qv_internvideo2/train.sh', lr=5e-4, batch=64, epochs=150, eval_every=5, max_tokens=40,
        model_strides=(1, 2, 4, 8, 16), weights=dict(label=0.0),
    ),
    ('flash_vtg', 'charades_sta', 'sf_clip'): _flash_vtg(
        'charades_sta/train.sh', lr=2.5e-4, batch=128, epochs=50, eval_every=1, max_tokens=32,
        weights=dict(sal=0.01, label=0.1),
    ),
    ('flash_vtg', 'charades_sta', 'iv2'): _flash_vtg(
        'charades_sta_internvideo2/train.sh', lr=1.5e-4, batch=32, epochs=50, eval_every=1,
        max_tokens=23, model_kernel=7, model_conv_layers=2, model_mlp_layers=3,
        weights=dict(sal=0.01, label=0.1),
    ),
    ('flash_vtg', 'charades_sta', 'vgg'): _flash_vtg(
        'charades_sta/train_vgg.sh', lr=1e-4, batch=16, epochs=50, eval_every=1,
        model_kernel=3, model_conv_layers=2, weights=dict(sal=0.01, label=0.1),
        remark='the script says 1 epoch; 50 is that of the other two',
    ),
    ('flash_vtg', 'tacos', 'sf_clip'): _flash_vtg(
        'tacos/train.sh', lr=2e-4, batch=32, epochs=150, eval_every=3, model_t2v_layers=8,
        model_dummy_layers=3, model_dummies=35, model_conv_layers=2, model_dropout=0.0,
        weights=dict(sal=0.05),
    ),
    ('flash_vtg', 'tvsum', 'sf_clip'): _flash_vtg(
        'tvsum/train.sh', lr=1e-3, weight_decay=0.05, batch=4, epochs=600, eval_every=1,
        model_t2v_layers=2, model_dummies=3, model_kernel=3, model_conv_layers=3,
        model_mlp_layers=3, weights=dict(reg=0.0), **_HD,
        remark='kernel 5 and 2 convolutions are set and not passed: the defaults, 3 and 3, act',
    ),
    ('flash_vtg', 'youtube_highlights', 'sf_clip'): _flash_vtg(
        'youtube_uni/train.sh', lr=2e-4, batch=4, epochs=5, eval_every=2, model_t2v_layers=2,
        model_dummies=1, model_conv_layers=2, model_mlp_layers=3, loss_absence_weight=0.0,
        weights=dict(reg=0.0, cls=0.6, sal=0.5, saliency=0.7, label=5.0), **_HD,
        remark='5 epochs, for two of the six domains',
    ),
    ('cg_detr', 'qvhighlights', 'sf_clip'): _cg_detr(
        'train.sh', lr=1e-4, max_tokens=32, model_used_prompts=1,
    ),
    ('cg_detr', 'charades_sta', 'sf_clip'): _cg_detr(
        'charades_sta/train.sh', lr=2e-4, model_used_prompts=2, weights=dict(saliency=4.0),
        remark='the contrastive weight of 0.002 acts on no loss: its flag is not set',
    ),
    ('cg_detr', 'charades_sta', 'vgg'): _cg_detr(
        'charades_sta/train_vgg.sh', lr=2e-4, batch=16, model_used_prompts=2, model_dropout=0.2,
        weights=dict(saliency=4.0),
    ),
    ('cg_detr', 'tacos', 'sf_clip'): _cg_detr(
        'tacos/train.sh', lr=2e-4, model_dummies=50, model_used_prompts=2,
        evaluate_selection=('MR-full-R1@0.5', 'MR-full-R1@0.7'), weights=dict(saliency=4.0),
    ),
    ('cg_detr', 'tvsum', 'i3d'): _cg_detr(
        'tvsum/train_tvsum.sh', lr=1e-3, batch=4, epochs=1000, model_dummies=3,
        model_used_prompts=1, weights=_SALIENCY_ALONE, remark='tries 1 and 2 prompts',
    ),
    ('cg_detr', 'youtube_highlights', 'sf_clip'): _cg_detr(
        'youtube_uni/train.sh', lr=2e-4, batch=4, epochs=1000, model_dummies=1,
        model_used_prompts=1, loss_absence_weight=0.0,
        weights=dict(_SALIENCY_ALONE, saliency=4.0),
        remark='tries 1 and 2 prompts',
    ),
    ('tr_detr', 'qvhighlights', 'sf_clip'): _recipe(
        TR_DETR + 'train.sh', seed=2017, nms=2.0, lr=1e-4, batch=32, epochs=200, eval_every=5,
        max_tokens=32,
    ),
    ('tr_detr', 'charades_sta', 'sf_clip'): _recipe(
        TR_DETR + 'train.sh', seed=2017, nms=2.0, lr=1e-4, batch=32, epochs=200, eval_every=5,
        remark='that of QVHighlights stands in: there is none for Charades-STA',
    ),
    ('tr_detr', 'tacos', 'sf_clip'): _recipe(
        TR_DETR + 'train.sh', seed=2017, nms=2.0, lr=1e-4, batch=32, epochs=200, eval_every=5,
        max_tokens=32, remark='that of QVHighlights stands in: there is none for TACoS',
    ),
    ('tr_detr', 'youtube_highlights', 'sf_clip'): _recipe(
        TR_DETR + 'tvsum/train_tvsum.sh', seed=2018, nms=2.0, lr=1e-3, batch=4, epochs=2000,
        eval_every=5, weights=dict(_NO_QUERIES, vtc=0.5, ctc=2.0),
        remark='that of TVSum stands in: there is none for YouTube Highlights',
    ),
    ('tr_detr', 'tvsum', 'i3d'): _recipe(
        TR_DETR + 'tvsum/train_tvsum.sh', seed=2018, nms=2.0, lr=1e-3, batch=4, epochs=2000,
        eval_every=5, weights=dict(_NO_QUERIES, vtc=0.5, ctc=2.0),
        remark='its seed is a shell variable that is not set: the default',
    ),
}


def recipe(model: str, dataset: str, release: str) -> Recipe | None:
    """The recipe of a model for a data set: of this release of features, else of another one."""
    own = {key[2]: value for key, value in RECIPES.items() if key[:2] == (model, dataset)}
    return own.get(release) or next(iter(own.values()), None)


def document() -> str:
    """The text of docs/hyperparameters.md."""
    from dualground_jax import models

    parts = [_HEAD]
    for model, module in models.MODELS.items():
        own = {key[1:]: value for key, value in RECIPES.items() if key[0] == model}
        columns = [f'{dataset} {release}' for dataset, release in own]
        keys = sorted({key for entry in own.values() for key in entry.values})
        defaults = {f'model.{k}': v for k, v in models.defaults(model).items()}
        defaults |= {f'loss.weights.{k}': v for k, v in module.LOSS['weights'].items()}
        cell = lambda entry, key: str(entry.values.get(key, ''))  # noqa: E731
        rows = [['key', 'default', *columns]]
        rows += [['---'] * len(rows[0])]
        for key in [*keys, *sorted(defaults.keys() - set(keys))]:
            default = str(defaults.get(key, ''))
            rows.append([f'`{key}`', default, *(cell(entry, key) for entry in own.values())])
        parts.append(f'## {model}\n\n' + '\n'.join(f'| {" | ".join(row)} |' for row in rows))
        for column, entry in zip(columns, own.values(), strict=True):
            remark = f' ({entry.remark})' if entry.remark else ''
            parts.append(f'- {column}: {entry.source}{remark}')
    return '\n\n'.join(parts).replace(')\n\n- ', ')\n- ').replace('.sh\n\n- ', '.sh\n- ') + '\n'


_HEAD = """# Hyperparameters

Printed from `configs/recipes.py` and the model files by `python -m configs.recipes`. An empty cell
means the default: what the option parser of the public code says (`config.py` of FlashVTG, CG-DETR
and TR-DETR), or the scripts of QVHighlights where they overrule it; DualGround's are explained in
its model file. The script of each column stands below its table. All: AdamW on every parameter,
weight decay 1e-4 unless listed, gradient clip 0.1, constant learning rate (the drops of the public
schedulers come after the last epoch, or never).

`evaluate.nms` above 1 means none. Where a model has no script for a release of features, that of
another release of the same data set serves.

Three things are otherwise than in PyTorch: biases start at zero (there: uniform within
1 / sqrt(fan-in) for linear layers), saliency pairs are drawn anew each epoch (FlashVTG: once), and
a sentence that is longer than `data.max_tokens` keeps its [EOS]."""

if __name__ == '__main__':
    print(document(), end='')

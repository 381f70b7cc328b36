"""The hyperparameters of the public training scripts, one recipe for each model, data set and
release of features; `docs/hyperparameters.md` is printed from here.

A recipe has what its script passes or leaves to the defaults of its option parser. A key that it
lacks is as in configs/defaults.py and the model's file: the script says the same. Widths of
features and lengths of clips belong to the data set (data_pipelines/datasets.py). To write the
document anew:

    python -m configs.recipes > docs/hyperparameters.md
"""

import dataclasses
from collections.abc import Mapping

from flax import traverse_util

from configs import defaults
from dualground_jax import models

FLASH_VTG = 'Zhuo-Cao/FlashVTG: FlashVTG/scripts/'
CG_DETR = 'wjun0830/CGDETR: cg_detr/scripts/'
TR_DETR = 'mingyao1120/TR-DETR: tr_detr/scripts/'
DEVELOPMENT = 'mspercieve/FlashVTG, commit 8287513: FlashVTG_ms/scripts/train_internvid_0.sh'

# What the scripts of a model or data set have in common.
_CG_DETR = {'seed': 2018, 'evaluate.nms': 2.0, 'train.batch_size': 32, 'train.epochs': 200}
_TR_DETR = {'seed': 2017, 'evaluate.nms': 2.0, 'train.batch_size': 32, 'train.epochs': 200}
_CHARADES = {
    'train.epochs': 50, 'train.eval_every': 1, 'loss.weights.sal': 0.01, 'loss.weights.label': 0.1,
}
_CHARADES_IV2 = _CHARADES | {'model.kernel': 7, 'model.conv_layers': 2, 'model.mlp_layers': 3}
_CHARADES_VGG = _CHARADES | {'model.kernel': 3, 'model.conv_layers': 2}
_DUALGROUND_CHARADES = {
    'optimizer.learning_rate': 2.5e-4, 'train.batch_size': 128, 'model.phrases': 3,
}
_CG_DETR_MOMENTS = _CG_DETR | {
    'optimizer.learning_rate': 2e-4, 'model.used_prompts': 2, 'loss.weights.saliency': 4.0,
}
_TACOS = {
    'optimizer.learning_rate': 2e-4, 'train.batch_size': 32, 'train.eval_every': 3,
    'model.t2v_layers': 8, 'model.conv_layers': 2, 'loss.weights.sal': 0.05,
    # The script's dropout does not reach the dummies' encoder.
    'model.dropout': 0.0, 'model.dummy_dropout': 0.1,
}

# Data sets of highlights alone: FlashVTG has a config of its own (HD.py).
_HD = {
    'model.strides': (1,), 'model.t2v_layers': 2, 'model.mlp_layers': 3, 'train.batch_size': 4,
    'loss.classification': 'saliency', 'loss.nce_over_batch': False, 'loss.weights.reg': 0.0,
}
_TVSUM = _HD | {
    'optimizer.learning_rate': 1e-3, 'optimizer.weight_decay': 0.05, 'train.epochs': 600,
    'train.eval_every': 1, 'model.kernel': 3, 'model.conv_layers': 3,
}
_YOUTUBE = _HD | {
    'optimizer.learning_rate': 2e-4, 'train.epochs': 5, 'train.drop_last': True,
    'model.conv_layers': 2, 'loss.absence_weight': 0.0, 'loss.weights.cls': 0.6,
    'loss.weights.sal': 0.5, 'loss.weights.saliency': 0.7, 'loss.weights.label': 5.0,
}
# The public codes of the DETRs make no matcher for them and skip every loss of their criterion but
# that of the saliency.
_NO_QUERIES = {
    'loss.weights.span': 0.0, 'loss.weights.giou': 0.0, 'loss.weights.query_label': 0.0,
}
_CG_DETR_HD = _CG_DETR | _NO_QUERIES | {
    'loss.weights.align': 0.0, 'loss.weights.distill': 0.0, 'loss.weights.orthogonal': 0.0,
    'train.batch_size': 4, 'train.epochs': 1000,
}
_TR_DETR_HD = _TR_DETR | _NO_QUERIES | {
    'seed': 2018, 'optimizer.learning_rate': 1e-3, 'train.batch_size': 4, 'train.epochs': 2000,
    'loss.weights.vtc': 0.5, 'loss.weights.ctc': 2.0,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a training script sets.

    Attributes:
        source: repository and path of the script.
        values: dotted config key -> value; only those that differ from the defaults.
        remark: what a reader of the script should know.
    """

    source: str
    values: Mapping
    remark: str = ''


RECIPES = {
    ('dualground', 'qvhighlights', 'iv2'): Recipe(
        f'paper, section 4.1; what it leaves open: {DEVELOPMENT}', {'train.eval_every': 3},
        "learning rate: 1e-4 in the paper; 5e-4 in the script, as its parser's default"),
    ('dualground', 'qvhighlights', 'sf_clip'): Recipe(
        'as with InternVideo2', {'train.eval_every': 3}),
    ('dualground', 'charades_sta', 'iv2'): Recipe(
        'paper, section 4.1; what it leaves open: charades_sta_internvideo2/train.sh of FlashVTG',
        _CHARADES_IV2 | _DUALGROUND_CHARADES),
    ('dualground', 'charades_sta', 'sf_clip'): Recipe(
        'paper, section 4.1; what it leaves open: charades_sta/train.sh of FlashVTG',
        _CHARADES | _DUALGROUND_CHARADES),
    ('dualground', 'charades_sta', 'vgg'): Recipe(
        'as with SlowFast and CLIP; what it leaves open: charades_sta/train_vgg.sh of FlashVTG',
        _CHARADES_VGG | _DUALGROUND_CHARADES),
    ('dualground', 'tacos', 'sf_clip'): Recipe(
        'tacos/train.sh of FlashVTG stands in: the paper has no TACoS', _TACOS),
    ('dualground', 'tvsum', 'sf_clip'): Recipe(
        'paper, section 4.1; what it leaves open: tvsum/train.sh of FlashVTG',
        _TVSUM | {'model.phrases': 3}),
    ('dualground', 'youtube_highlights', 'sf_clip'): Recipe(
        'youtube_uni/train.sh of FlashVTG stands in: the paper has no YouTube Highlights',
        _YOUTUBE | {'model.phrases': 3, 'train.eval_every': 1},
        '5 epochs are those of two of the six domains'),
    ('flash_vtg', 'qvhighlights', 'sf_clip'): Recipe(
        FLASH_VTG + 'train_qv_slowclip.sh',
        {'optimizer.learning_rate': 5e-4, 'train.eval_every': 1}),
    ('flash_vtg', 'qvhighlights', 'iv2'): Recipe(
        FLASH_VTG + 'qv_internvideo2/train.sh',
        {'optimizer.learning_rate': 5e-4, 'model.strides': (1, 2, 4, 8, 16),
         'loss.weights.label': 0.0, 'data.segments': False,
         'evaluate.selection': ('MR-full-R1@0.5', 'MR-full-R1@0.7')},
        'its name of the data set is not the one by which the code knows QVHighlights: hence the '
        'selection, and negatives from other parts of the same video'),
    ('flash_vtg', 'charades_sta', 'sf_clip'): Recipe(
        FLASH_VTG + 'charades_sta/train.sh',
        _CHARADES | {'optimizer.learning_rate': 2.5e-4, 'train.batch_size': 128}),
    ('flash_vtg', 'charades_sta', 'iv2'): Recipe(
        FLASH_VTG + 'charades_sta_internvideo2/train.sh',
        _CHARADES_IV2 | {'optimizer.learning_rate': 1.5e-4, 'train.batch_size': 32}),
    ('flash_vtg', 'charades_sta', 'vgg'): Recipe(
        FLASH_VTG + 'charades_sta/train_vgg.sh', _CHARADES_VGG | {'train.batch_size': 16},
        'the script says 1 epoch; 50 is that of the other two'),
    ('flash_vtg', 'tacos', 'sf_clip'): Recipe(
        FLASH_VTG + 'tacos/train.sh', _TACOS | {'model.dummy_layers': 3, 'model.dummies': 35}),
    ('flash_vtg', 'tvsum', 'sf_clip'): Recipe(
        FLASH_VTG + 'tvsum/train.sh', _TVSUM | {'model.dummies': 3},
        'kernel 5 and 2 convolutions are set and not passed: the defaults, 3 and 3, act'),
    ('flash_vtg', 'youtube_highlights', 'sf_clip'): Recipe(
        FLASH_VTG + 'youtube_uni/train.sh',
        _YOUTUBE | {'model.dummies': 1, 'train.eval_every': 2},
        '5 epochs, for two of the six domains'),
    ('cg_detr', 'qvhighlights', 'sf_clip'): Recipe(
        CG_DETR + 'train.sh', _CG_DETR | {'data.max_tokens': 32}),
    ('cg_detr', 'charades_sta', 'sf_clip'): Recipe(
        CG_DETR + 'charades_sta/train.sh', _CG_DETR_MOMENTS,
        'the contrastive weight of 0.002 acts on no loss: its flag is not set'),
    ('cg_detr', 'charades_sta', 'vgg'): Recipe(
        CG_DETR + 'charades_sta/train_vgg.sh',
        _CG_DETR_MOMENTS | {
            'train.batch_size': 16, 'model.dropout': 0.2, 'model.dummy_dropout': 0.1}),
    ('cg_detr', 'tacos', 'sf_clip'): Recipe(
        CG_DETR + 'tacos/train.sh',
        _CG_DETR_MOMENTS | {
            'model.dummies': 50, 'evaluate.selection': ('MR-full-R1@0.5', 'MR-full-R1@0.7')}),
    ('cg_detr', 'tvsum', 'i3d'): Recipe(
        CG_DETR + 'tvsum/train_tvsum.sh',
        _CG_DETR_HD | {'optimizer.learning_rate': 1e-3, 'model.dummies': 3},
        'tries 1 and 2 prompts'),
    ('cg_detr', 'youtube_highlights', 'sf_clip'): Recipe(
        CG_DETR + 'youtube_uni/train.sh',
        _CG_DETR_HD | {
            'optimizer.learning_rate': 2e-4, 'model.dummies': 1, 'loss.absence_weight': 0.0,
            'loss.weights.saliency': 4.0},
        'tries 1 and 2 prompts'),
    ('tr_detr', 'qvhighlights', 'sf_clip'): Recipe(
        TR_DETR + 'train.sh', _TR_DETR | {'data.max_tokens': 32}),
    ('tr_detr', 'charades_sta', 'sf_clip'): Recipe(
        TR_DETR + 'train.sh', _TR_DETR,
        'that of QVHighlights stands in: there is none for Charades-STA'),
    ('tr_detr', 'tacos', 'sf_clip'): Recipe(
        TR_DETR + 'train.sh', _TR_DETR | {'data.max_tokens': 32},
        'that of QVHighlights stands in: there is none for TACoS'),
    ('tr_detr', 'youtube_highlights', 'sf_clip'): Recipe(
        TR_DETR + 'tvsum/train_tvsum.sh', _TR_DETR_HD,
        'that of TVSum stands in: there is none for YouTube Highlights'),
    ('tr_detr', 'tvsum', 'i3d'): Recipe(
        TR_DETR + 'tvsum/train_tvsum.sh', _TR_DETR_HD,
        'its seed is a shell variable that is not set: the default'),
}


def recipe(model: str, dataset: str, release: str) -> Recipe | None:
    """The recipe of a model for a data set: of this release of features, else of another one."""
    own = {key[2]: value for key, value in RECIPES.items() if key[:2] == (model, dataset)}
    return own.get(release) or next(iter(own.values()), None)


# What the public code does -> what is otherwise here, and why.
OURS = {
    'biases of linear layers start uniform within 1 / sqrt(fan-in)': 'at zero',
    'FlashVTG draws saliency pairs once': 'each epoch anew, as the other two',
    'a sentence longer than `data.max_tokens` loses its [EOS]':
        'it keeps it: [EOS] stands for the sentence',
    'FlashVTG chooses checkpoints before suppression':
        'after it, by the numbers that are reported; the best window is never suppressed, so that '
        'R1 is the same and only the mAP of QVHighlights can differ',
    'FlashVTG and CG-DETR compute a rank term of the attention for samples whose next query is of '
    'the same video, and never use it; that of the scores is 0 where a batch has a single one':
        'both count: such a sample ranks its own clips',
    'TR-DETR cuts windows to 0 to 150 s alone':
        'to the video as well: nothing beyond it can be right',
    "TR-DETR's fuser has dropout 0.1": 'that of the model',
    'FlashVTG and CG-DETR mean to cut windows of VGG to 0 to 360 s, but do not know VGG by its '
    'width, which has the temporal endpoints by then, and cut to 0 to 150 s':
        'to 0 to 360 s: the longest video has 194 s',
}


def document() -> str:
    """The text of docs/hyperparameters.md."""
    own = [model for model in models.MODELS if any(key[0] == model for key in RECIPES)]
    ours = ['| there | here |', '| --- | --- |', *(f'| {a} | {b} |' for a, b in OURS.items())]
    return '\n\n'.join([_HEAD, '\n'.join(ours), *map(_section, own)]) + '\n'


def _section(model: str) -> str:
    """The table of a model, a column for each recipe, and the sources below it."""
    own = {key[1:]: found for key, found in RECIPES.items() if key[0] == model}
    without = [traverse_util.flatten_dict(defaults.sections(model, *key), sep='.') for key in own]
    columns = [f'{dataset} {release}' for dataset, release in own]
    anywhere = {key for found in RECIPES.values() for key in found.values}
    keys = [key for key in sorted(without[0]) if key in anywhere
            or key.startswith(('model.', 'loss.weights.')) and key != 'model.name']
    rows = [['key', 'default', *columns], ['---'] * (2 + len(columns))]
    for key in keys:
        given = [str(values[key]) for values in without]
        cells = [str(found.values.get(key, values[key]))
                 for found, values in zip(own.values(), without, strict=True)]
        rows.append([f'`{key}`', given[0] if len(set(given)) == 1 else 'of the release', *cells])
    sources = [f'- {column}: {found.source}' + f' ({found.remark})' * bool(found.remark)
               for column, found in zip(columns, own.values(), strict=True)]
    table = [f'| {" | ".join(row)} |' for row in rows]
    return '\n'.join([f'## {model}\n', *table, '', *sources])


_HEAD = """# Hyperparameters

Printed from `configs` and the model files by `python -m configs.recipes`. Each cell is the value of
the full config. Defaults are what the option parser of the public code says (`config.py` of
FlashVTG, CG-DETR and TR-DETR), or the scripts of QVHighlights where they overrule it; DualGround's
are explained in its model file. The script of each column stands below its table. All: AdamW on
every parameter, gradient clip 0.1, constant learning rate (the drops of the public schedulers come
after the last epoch, or never).

`evaluate.nms` above 1 means none. Where a model has no script for a release of features, that of
another release of the same data set serves.

Other than in the public code, on purpose:"""

if __name__ == '__main__':
    print(document(), end='')

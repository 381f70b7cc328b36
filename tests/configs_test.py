"""Configs: recipes of the public scripts, and that every key exists."""

import operator

import pytest
from flax import traverse_util

from configs import charades, common, defaults, qvh, recipes, synthetic, tacos, tvsum, youtube_hl
from data_pipelines import datasets
from data_pipelines.errors import ConfigError
from dualground_jax import models
from tests.helpers.paths import REPO

DOCUMENT = REPO / 'docs/hyperparameters.md'


def test_the_document_is_that_of_the_recipes():
    assert DOCUMENT.read_text() == recipes.document(), 'python -m configs.recipes > the document'


@pytest.mark.parametrize('key', recipes.RECIPES, ids='-'.join)
def test_a_recipe_names_keys_that_its_model_has(key):
    config = common.base('qvhighlights', dict(common.ARGUMENTS, model=key[0], features='iv2'))
    for name in recipes.RECIPES[key].values:
        node = config
        for part in name.split('.'):
            assert part in node, name
            node = node[part]


def test_the_document_shows_the_values_of_the_configs():
    """Every cell, against the config that its column names."""
    for section in DOCUMENT.read_text().split('\n## ')[1:]:
        model, *lines = section.splitlines()
        header, _, *rows = [[cell.strip() for cell in line.strip('|').split('|')]
                            for line in lines if line.startswith('|')]
        shown = dict(zip(header[2:], list(zip(*rows))[2:], strict=True))
        assert len(shown) == sum(key[0] == model for key in recipes.RECIPES)
        for column, cells in shown.items():
            dataset, features = column.split()
            config = common.base(
                dataset, dict(common.ARGUMENTS, model=model, features=features))
            for (key, *_), cell in zip(rows, cells, strict=True):
                assert str(operator.attrgetter(key.strip('`'))(config)) == cell, (column, key)


def test_no_recipe_repeats_a_default():
    for key, recipe in recipes.RECIPES.items():
        values = traverse_util.flatten_dict(defaults.sections(*key), sep='.')
        assert not {name for name, value in recipe.values.items() if values[name] == value}, key


def test_values_reach_the_config():
    config = qvh.get_config('model=cg_detr,features=sf_clip')
    assert (config.seed, config.train.batch_size) == (2018, 32)
    assert config.optimizer.learning_rate == 1e-4
    assert (config.model.dummies, config.data.max_tokens, config.evaluate.nms) == (45, 32, 2.0)
    config = charades.get_config('model=flash_vtg')
    assert (config.model.kernel, config.loss.weights.sal, config.data.max_tokens) == (7, 0.01, 23)
    # There is no public recipe for these features: that of the others serves.
    config = qvh.get_config('model=tr_detr,features=iv2')
    assert (config.seed, config.train.epochs, config.data.text_dim) == (2017, 200, 4096)


def test_what_differs_between_sets_is_in_the_config():
    config = charades.get_config('features=vgg')
    assert config.data.clip_length == config.evaluate.round_to == 0.166666
    assert tuple(config.evaluate.clip_to) == (0, 360) and config.data.text_layout == 'glove'
    assert tuple(charades.get_config().evaluate.clip_to) == (0, 150)
    config = tacos.get_config('model=cg_detr')
    assert tuple(config.evaluate.selection) == ('MR-full-R1@0.5', 'MR-full-R1@0.7')
    assert tuple(tacos.get_config().evaluate.selection) == ('MR-full-R1@0.3',)
    config = tvsum.get_config('domain=BK,features=i3d')
    assert (config.data.domain, config.data.duration_unit, config.data.text_key) == (
        'BK', 2.0, 'token')
    assert (config.train.batch_size, config.train.epochs) == (4, 600)
    assert config.optimizer.learning_rate == 1e-3 and config.evaluate.protocol == 'tvsum'
    for module in (tvsum, youtube_hl):
        for model in ('dualground', 'flash_vtg'):
            config = module.get_config(f'model={model}')
            assert not config.data.normalize_text and tuple(config.model.strides) == (1,)
            assert config.loss.classification == 'saliency' and not config.loss.nce_over_batch
        weights = module.get_config('model=cg_detr').loss.weights
        assert [name for name, weight in weights.items() if weight] == ['saliency']
    absence = [module.get_config('model=flash_vtg').loss.absence_weight
               for module in (tvsum, youtube_hl)]
    assert absence == [1, 0]


def test_what_the_scripts_do_without_saying_so():
    """Checked against the public code: Python files, where the scripts are silent."""
    config = qvh.get_config('model=flash_vtg')
    assert tuple(config.evaluate.selection) == ('MR-full-R1@0.5', 'MR-full-R1@0.7')
    assert not config.data.segments and qvh.get_config().data.segments
    for config in (tacos.get_config('model=flash_vtg'), tacos.get_config()):
        assert (config.model.dropout, config.model.dummy_dropout) == (0.0, 0.1)
    config = charades.get_config('model=cg_detr,features=vgg')
    assert (config.model.dropout, config.model.dummy_dropout) == (0.2, 0.1)
    config = qvh.get_config()
    assert config.train.eval_every == 3 and config.optimizer.learning_rate == 1e-4
    assert (config.model.dummies, config.loss.weights.label) == (3, 4)
    assert '1e-4 in the paper; 5e-4 in the script' in DOCUMENT.read_text()
    keeps = {(module.__name__, model): not module.get_config(f'model={model}').train.drop_last
             for module in (qvh, charades, tacos, tvsum, youtube_hl)
             for model in ('flash_vtg', 'cg_detr', 'tr_detr')}
    assert [key for key, kept in keeps.items() if not kept] == [('configs.youtube_hl', 'flash_vtg')]


def test_every_model_has_a_recipe_for_every_set():
    keys = {key[:2] for key in recipes.RECIPES}
    assert {dataset for _, dataset in keys} == set(datasets.DATASETS) - {'synthetic', 'custom'}
    assert len(keys) == 4 * 5


def test_a_public_recipe_is_not_changed_by_another_model():
    before = qvh.get_config().to_dict()
    qvh.get_config('model=flash_vtg,runlocal')
    synthetic.get_config('runlocal')
    assert qvh.get_config().to_dict() == before


@pytest.mark.parametrize('argument, message', [
    ('model=unknown', "unknown model 'unknown', known are: .*dualground"),
    ('features=unknown', "unknown features 'unknown' for qvhighlights, known are: iv2, own, sf"),
    ('modell=dualground', "unknown config argument 'modell'"),
    ('runlocal=2', "runlocal='2'"),
])
def test_mistakes_are_named(argument, message):
    with pytest.raises(ConfigError, match=message):
        qvh.get_config(argument)


@pytest.mark.parametrize('name, changes, is_good', [
    ('flash_vtg', {'model.strides': (2, 4), 'loss.weights.label': 1.0}, False),
    ('flash_vtg', {'model.strides': (2, 1), 'loss.weights.label': 1.0}, False),
    ('flash_vtg', {'model.strides': (2, 4), 'loss.weights.label': 0.0}, True),
    ('flash_vtg', {'model.strides': (2, 4), 'loss.weights.label': 0.0,
                   'loss.classification': 'saliency'}, False),
    ('flash_vtg', {'model.strides': (1, 4)}, True),
    ('dualground', {'model.strides': (2, 4)}, False),
    ('dualground', {'model.strides': (2, 4), 'model.head': 'detr'}, True),
    ('cg_detr', {}, True),
])
def test_labels_of_clips_need_points_at_each_clip(name, changes, is_good):
    config = qvh.get_config(f'model={name}')
    config.update_from_flattened_dict(changes)
    if is_good:
        models.check(config)
    else:
        with pytest.raises(ConfigError, match=r'model.strides=\(2, .\): expected 1 first, loss'):
            models.check(config)

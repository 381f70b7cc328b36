"""The whole analysis: a tiny world with an untrained model, and worlds with a known answer."""

import csv
import json
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from ml_collections import ConfigDict

from configs import synthetic as synthetic_config
from data_pipelines import datasets, pipeline, world
from data_pipelines.errors import DataError, UserError
from data_pipelines.tokens import EOS, WORD
from dualground_jax import checkpoints, evaluate, models, predict, sharding
from dualground_jax import state as state_lib
from dualground_jax.analysis import analyse
from dualground_jax.metrics import official
from dualground_jax.models import base


def values_of(workdir, **changes):
    """Parsed flags of the mode."""
    defaults = dict(workdir=str(workdir), splits=['train', 'val'], limit=0, examples=1,
                    tokenizer='')
    return types.SimpleNamespace(**(defaults | changes))


def fresh_state(config):
    tx = state_lib.make_optimizer(config.optimizer, 1)
    abstract = state_lib.abstract_state(config, sharding.one_device())
    return state_lib.fresh_state(config, tx, abstract)


def save_run(workdir, config, state):
    checkpoints.Checkpoints(str(workdir)).save('best', state, config, dict(best_value=0.0))


@pytest.fixture(scope='module', name='runs')
def two_runs(tmp_path_factory):
    """Folder of two analysed runs, the config, and parameters of the first run."""
    folder = tmp_path_factory.mktemp('runs')
    config = synthetic_config.get_config(f'runlocal,root={folder / "world"}')
    config.model.update(dict(width=16, heads=2, ffn=16, phrases=2, input_layers=1, mlp_layers=1,
                             strides=(1,)))
    first, rng = fresh_state(config), np.random.default_rng(0)
    second = first.replace(params=jax.tree.map(
        lambda x: x + 0.1 * rng.normal(size=x.shape).astype(x.dtype), first.params))
    for config.seed, state in ((1, first), (2, second)):
        save_run(folder / f'seed={config.seed}', config, state)
    analyse.run(values_of(folder / 'seed=1'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analyse.report, '_draw', lambda *_: [])  # the first one has all figures
        analyse.run(values_of(folder))
    return folder, config, first.params


@pytest.fixture(scope='module', name='report')
def first_report(runs):
    return json.loads((runs[0] / 'seed=1' / 'analysis' / 'report.json').read_text())


@pytest.fixture(scope='module', name='predicted')
def predictions_of_first_run(runs):
    """Function: split -> predictions by the first run's parameters; compiled once."""
    _, config, params = runs
    mesh = sharding.make_mesh(config.mesh)
    step = predict.make_predict_step(config, mesh)
    placed = jax.device_put(jax.device_get(params), sharding.replicated(mesh))
    return lambda split: predict.predict_split(step, placed, split, config, mesh)


def test_report_has_what_it_promises(report, runs):
    assert report['model'] == 'dualground' and report['seed'] == 1 and 'jax' in report['versions']
    assert report['config']['model']['width'] == 16 and list(report['splits']) == ['train', 'val']
    for part in report['splits'].values():
        for pair in (('eos', 'words'), ('words', 'eos'), ('phrases', 'p_eos'), ('dummies', 'eos')):
            for pooling in ('sum', 'mean', 'max'):
                row = part['correlation'][pair[0]][pair[1]][pooling]
                assert {'pearson', 'spearman', 'pearson_pooled', 'spearman_pooled', 'n',
                        'n_constant'} <= row.keys()
        assert {'value', 'low', 'high'} <= part['reliance'].keys()
        assert {'full', 'mask_eos', 'mask_words', 'swap_words'} <= part['ablation'].keys()
        assert part['same_as']['mask_start'] == 'full', 'DualGround sees no start-of-text'
        assert 0 < part['phrases']['variance_within']['mean'] < 1
    folder = runs[0] / 'seed=1' / 'analysis'
    text = (folder / 'report.md').read_text()
    for name in ('correlation', 'ablation', 'query_length_val', 'heads_train'):
        assert f'(figures/{name}.png)' in text
        for suffix in ('svg', 'pdf', 'png'):
            assert (folder / 'figures' / f'{name}.{suffix}').stat().st_size > 0
    for kind in ('attention', 'phrases'):
        assert len(list((folder / 'figures').glob(f'{kind}_val_*.svg'))) == 1
    rows = (folder / 'queries_val.csv').read_text().splitlines()
    assert len(rows) == 17 and rows[0].startswith('qid,words,pearson_eos_words_sum')
    with open(folder / 'correlation.csv', newline='') as file:
        pairs = [(row['split'], frozenset((row['role_a'], row['role_b'])), row['pooling'])
                 for row in csv.DictReader(file)]
    assert len(pairs) == len(set(pairs)), 'a pair of roles is listed once'
    assert set(pairs) == {
        (split, frozenset((a, b)), pooling) for split, part in report['splits'].items()
        for a, others in part['correlation'].items() for b, found in others.items()
        for pooling in found}
    assert not list(runs[0].glob('**/.analysis*'))


def test_correlations_are_those_of_the_models_attention(report, runs):
    """Against scipy, on the model's attention of the whole split in one batch."""
    _, config, params = runs
    split = datasets.load_split(config.data, 'val')
    batch = pipeline.collate(split, config.data, np.arange(len(split.queries)), None)
    config.seed = 1
    model = models.build(config.model)
    out = jax.jit(lambda p, b: model.apply({'params': p}, b, train=False))(params, batch)
    attn, roles = np.array(out['attn']).mean((1, 2)), np.array(out['attn_roles'])
    found, pooled = [], ([], [])
    for b, clips in enumerate(batch['video_mask']):
        series = [attn[b][clips][:, roles[b] == role].sum(1) for role in (EOS, WORD)]
        found.append(scipy.stats.pearsonr(*series)[0])
        for of_role, values in zip(pooled, series):
            of_role.extend(values)
    row = report['splits']['val']['correlation']['eos']['words']['sum']
    assert row['n'] == len(found) == 16 and row['n_clips'] == batch['video_mask'].sum()
    # The attention itself is float32, of batches of other sizes.
    assert row['pearson'] == pytest.approx(np.mean(found), abs=1e-4)
    assert row['pearson_pooled'] == pytest.approx(scipy.stats.pearsonr(*pooled)[0], abs=1e-4)
    assert row['spearman_pooled'] == pytest.approx(scipy.stats.spearmanr(*pooled)[0], abs=1e-3)


@pytest.mark.parametrize('name, changed', [
    ('full', lambda text, roles: (text, roles)),
    ('mask_words', lambda text, roles: (text[roles == EOS], roles[roles == EOS])),
    ('mask_eos', lambda text, roles: (text[roles != EOS], roles[roles != EOS])),
])
def test_ablations_are_evaluations_of_changed_splits(report, runs, predicted, name, changed):
    split = datasets.load_split(runs[1].data, 'val')
    pairs = [changed(*query) for query in zip(split.text, split.roles, strict=True)]
    split.text[:], split.roles[:] = zip(*pairs, strict=True)
    rows = predicted(split)
    expected = official.evaluate(rows, evaluate.ground_truth(split))['brief']
    found = report['splits']['val']['ablation'][name]
    assert found == {metric: expected[metric] for metric in found}
    assert found['MR-full-mAP'] == pytest.approx(
        report['splits']['val']['performance'][name]['value'], abs=0.006)


def test_comparison_is_over_seeds(runs):
    folder = runs[0]
    rows = json.loads((folder / 'analysis' / 'comparison.json').read_text())['groups']
    assert [(row['values'], row['split'], row['runs']) for row in rows] == [
        ({'model.name': 'dualground'}, split, ['seed=1', 'seed=2']) for split in ('train', 'val')]
    single = [json.loads((folder / f'seed={seed}' / 'analysis' / 'report.json').read_text())
              ['splits']['val']['performance']['mask_eos']['value'] for seed in (1, 2)]
    found = rows[1]['numbers']['mask_eos']
    assert found['mean'] == pytest.approx(np.mean(single))
    assert found['std'] == pytest.approx(abs(single[0] - single[1]) / np.sqrt(2))
    assert found['n'] == 2
    text = (folder / 'analysis' / 'comparison.md').read_text()
    assert '| dualground | 2 |' in ' '.join(text.split())


def test_a_finished_analysis_is_kept_unless_asked_otherwise(runs, report, capsys, monkeypatch):
    folder = runs[0] / 'seed=1'
    monkeypatch.setattr(models, 'build', None)
    analyse.run(values_of(folder))
    assert 'kept' in capsys.readouterr().out
    with pytest.raises(TypeError):  # it wants to build the model
        analyse.run(values_of(folder, limit=4))
    assert json.loads((folder / 'analysis' / 'report.json').read_text()) == report


def test_what_is_cut_off_leaves_the_former_analysis(runs, report, monkeypatch):
    folder = runs[0] / 'seed=1'

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(analyse.report, 'write', fail)
    with pytest.raises(KeyboardInterrupt):
        analyse.run(values_of(folder, splits=['val'], limit=4))
    assert json.loads((folder / 'analysis' / 'report.json').read_text()) == report
    assert {path.name for path in folder.iterdir()} == {'checkpoints', 'analysis'}


@pytest.mark.parametrize('changes, error, message', [
    (dict(splits=['val', 'val']), UserError, '--splits=val,val: expected different splits'),
    (dict(splits=['dev']), DataError, "no annotation file for split 'dev'.*test, train, val"),
    (dict(tokenizer='no/such/folder'), DataError, '--tokenizer=no/such/folder cannot be loaded'),
])
def test_mistakes_are_named(runs, changes, error, message):
    with pytest.raises(error, match=message):
        analyse.run(values_of(runs[0] / 'seed=2', limit=3, **changes))


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(checkpoints.CheckpointError, match='no checkpoint here or in a folder'):
        analyse.run(values_of(tmp_path))


# Planted controls -----------------------------------------------------------------------------


def oracle(planted):
    """A model that adds what the words say to what [EOS] says, both read by the world's own maps.

    Where a token is noise it reads nothing in particular.
    """
    maps = world.concept_maps(planted)
    concepts = maps.text[:len(maps.video)]
    # Parameters and no constants: XLA for CPUs folds these, one of them all zero, to NaN at times.
    known = dict(from_eos=np.linalg.pinv(maps.summary), from_words=concepts.T,
                 from_text=np.linalg.pinv(concepts), from_video=maps.video.T)

    class Model(base.GroundingModel):
        @nn.compact
        def __call__(self, batch, *, train):
            read = {name: self.param(name, lambda _, x=x: jnp.asarray(x))
                    for name, x in known.items()}
            text, role = batch['text'], batch['text_role']
            words = jnp.where(role[..., None] == WORD, text, 0).sum(1)
            eos = jnp.where(role[..., None] == EOS, text, 0).sum(1) @ read['from_eos']
            unit = lambda x: x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-6)
            wanted = unit(words @ read['from_words']) + unit(eos @ read['from_text'])
            video = batch['video'][..., :-2]
            clips = nn.relu(unit(video) @ read['from_video'])
            saliency = jnp.einsum('btc,bc->bt', clips, wanted)
            heat = nn.relu(saliency)[:, None, None, :, None]
            attn = jnp.broadcast_to(heat, (*heat.shape[:4], role.shape[1]))
            return dict(saliency=saliency, attn=attn, attn_roles=role)

    def decode(out, batch):
        windows = jnp.full((len(out['saliency']), 1, 3), -1.0)
        return windows, out['saliency']

    return types.SimpleNamespace(Model=Model, decode=decode, LOSS={}, loss_fn=None)


@pytest.mark.parametrize('planted, low, high', [
    (dict(word_signal=0, eos_rank=64, eos_noise=0.0), 0.9, 1.0),  # words say nothing
    (dict(eos_rank=0), 0.0, 0.1),  # [EOS] says nothing
])
def test_planted_controls(tmp_path, monkeypatch, planted, low, high):
    """One and the same model: the score tells what it lives on in each world."""
    oracle_world = world.World(train_queries=2, val_queries=120, test_queries=2, video_noise=0.1,
                            extras=0.0, **planted)
    monkeypatch.setitem(models.MODELS, 'oracle', oracle(oracle_world))
    config = synthetic_config.get_config(f'root={tmp_path / "world"}')
    config.world.update(planted, train_queries=2, val_queries=120, test_queries=2,
                        video_noise=0.1, extras=0.0)
    config.model = ConfigDict(dict(name='oracle'))
    config.evaluate.selection = ('HL-min-VeryGood-Hit1',)
    save_run(tmp_path / 'run', config, fresh_state(config))
    analyse.run(values_of(tmp_path / 'run', splits=['val'], examples=0))
    report = json.loads((tmp_path / 'run' / 'analysis' / 'report.json').read_text())
    part = report['splits']['val']
    assert part['performance']['full']['value'] > part['performance']['mask_text']['value'] + 20
    found = part['reliance']
    assert low <= found['value'] <= high and found['low'] <= found['value'] <= found['high']
    assert abs(found['by_swapping']['value'] - found['value']) < 0.15
    assert 'phrases' not in part and not list((tmp_path / 'run').glob('**/phrases_*'))

"""Mode `sweep`: which runs there are, what is refused before training, what is tabulated."""

import json
import pathlib
import re
import shlex
import shutil
import statistics
import sys
import types

import jax
import numpy as np
import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import synthetic as synthetic_config
from configs.sweeps import attention_scaling
from data_pipelines import files, world
from data_pipelines.errors import ConfigError, UserError
from dualground_jax import checkpoints, inputs, main, sharding, sweep, train, worlds
from dualground_jax import runs as runs_lib
from dualground_jax import state as state_lib
from dualground_jax.config import with_arguments
from tests.helpers import command_line

TOKENS, SEEDS = 'model.tokens=full,eos,words', 'seed=1,2,3'
# What the fake training "measures", and its mean and std (ddof=1) by hand.
MAP = {
    ('full', 1): 70.0, ('full', 2): 73.0, ('full', 3): 76.0,  # deviations -3, 0, 3
    ('eos', 1): 60.0, ('eos', 2): 60.0, ('eos', 3): 66.0,  # deviations -2, -2, 4: variance 12
    ('words', 1): 50.0, ('words', 2): 51.0, ('words', 3): 55.0,  # -2, -1, 3: variance 7
}
BY_HAND = {'full': (73.0, 3.0), 'eos': (62.0, 12**0.5), 'words': (52.0, 7**0.5)}


@pytest.fixture(name='config')
def small_config(tmp_path):
    return synthetic_config.get_config(f'model=flash_vtg,runlocal,root={tmp_path}').lock()


def save_checkpoint(config, workdir, step=1, kind='latest'):
    state = state_lib.TrainState(np.int32(step), {'w': np.zeros(2, np.float32)}, {}, None)
    checkpoints.Checkpoints(str(workdir)).save(kind, state, config, {})


class Training:
    """Stands for train.train_many: notes the calls and leaves what real runs leave."""

    def __init__(self):
        self.calls, self.errors, self.traced, self.groups, self.worlds = [], {}, [], [], []

    def __call__(self, configs, workdirs):
        self.groups.append([workdir.name for workdir in workdirs])
        return [types.SimpleNamespace(failure=self.train(*one)) for one in zip(configs, workdirs)]

    def train(self, config, workdir):
        self.calls.append(workdir.name)
        if error := self.errors.get((config.model.tokens, config.seed)):
            if isinstance(error, runs_lib.TrainingError):
                return error
            raise error
        if checkpoints.Checkpoints(workdir).step('latest') is None:
            save_checkpoint(config, workdir)
            save_checkpoint(config, workdir, config.seed + 100, 'best')
        brief = {'MR-full-mAP': MAP.get((config.model.tokens, config.seed), 40.0),
                 'MR-full-R1@0.5': 10.0 * config.seed, 'MR-short-mAP': 1.0}
        result = dict(brief=brief, best_step=config.seed + 100, parameters=7, full={},
                      config=json.loads(config.to_json()))
        (workdir / 'results.json').write_text(json.dumps(result))
        return None


@pytest.fixture(name='training')
def fake_training(monkeypatch):
    """The fake, in place of training and of tracing models."""
    training = Training()
    monkeypatch.setattr(train, 'train_many', training)
    monkeypatch.setattr(worlds, 'prepare', lambda config: training.worlds.append(config.data.root))
    monkeypatch.setattr(state_lib, 'abstract_state', lambda config, _: training.traced.append(
        config.model.tokens))
    return training


def train_all(config, workdir, sweeps):
    sweep.train_all(config, workdir, *sweep.plan(config, workdir, sweeps))


def report_of(workdir):
    return json.loads((workdir / 'sweep.json').read_text())


# Which runs there are -------------------------------------------------------------------------


def test_all_combinations_are_trained_in_order(config, training, tmp_path):
    train_all(config, tmp_path, [TOKENS, SEEDS])
    assert training.calls == [f'model.tokens={tokens},seed={seed}'
                              for tokens in ('full', 'eos', 'words') for seed in (1, 2, 3)]
    for name in training.calls:
        saved = checkpoints.Checkpoints(str(tmp_path / name)).config('latest')
        assert name == f'model.tokens={saved.model.tokens},seed={saved.seed}'
        with saved.unlocked():
            saved.model.tokens, saved.seed = config.model.tokens, config.seed
        assert saved.to_json() == config.to_json(), 'a key that is not swept has changed'


def test_the_last_key_changes_fastest(config, tmp_path):
    choices = sweep.parse(config, ['seed=5,6', 'model.tokens=eos,full'])
    runs = sweep.combinations(config, tmp_path, choices)
    assert [(run.config.seed, run.config.model.tokens) for run in runs] == [
        (5, 'eos'), (5, 'full'), (6, 'eos'), (6, 'full')]
    assert runs[1].workdir == tmp_path / 'seed=5,model.tokens=full'
    assert all(run.config.is_locked for run in runs)
    assert config.seed == 2024 and config.model.tokens == 'full'


def test_more_epochs_are_trained_and_other_evaluations_refused(config, training, tmp_path):
    train_all(config, tmp_path, ['seed=1,2'])
    training.calls.clear()
    with config.unlocked():
        config.mesh.data, config.train.log_every = 1, 5
    train_all(config, tmp_path, ['seed=1,2'])
    assert not training.calls
    with config.unlocked():
        config.train.epochs += 1
    train_all(config, tmp_path, ['seed=1,2'])
    assert training.calls == ['seed=1', 'seed=2']
    with config.unlocked():
        config.evaluate.nms = 0.3
    with pytest.raises(UserError, match='seed=1: .*evaluate.nms: 0.7 there, 0.3 here'):
        train_all(config, tmp_path, ['seed=1,2'])


def test_a_config_brings_its_own_sweep_which_the_flag_replaces(training, tmp_path):
    config = attention_scaling.get_config(f'runlocal,root={tmp_path}').lock()
    train_all(config, tmp_path / 'own', [])
    assert training.calls == [f'model.dummies={dummies},model.phrases={phrases},seed={seed}'
                              for dummies in (1, 4, 16) for phrases in (2, 4) for seed in (1, 2)]
    saved = checkpoints.Checkpoints(str(tmp_path / 'own' / training.calls[-1])).config('latest')
    assert (saved.model.dummies, saved.model.phrases, saved.seed) == (16, 4, 2)
    assert saved.sweep == (), 'the run would be a sweep itself'
    training.calls.clear()
    train_all(config, tmp_path / 'flag', ['seed=7'])
    assert training.calls == ['seed=7']


@pytest.mark.parametrize('text, values, names', [
    ('train.epochs=3,12', [3, 12], ['3', '12']),
    ('optimizer.learning_rate=1e-3,2', [0.001, 2.0], ['0.001', '2.0']),
    ('data.normalize_text=true,False', [True, False], ['true', 'false']),
    ('data.normalize_text=0', [False], ['false']),
    ('model.tokens=eos,7', ['eos', '7'], ['eos', '7']),
])
def test_values_take_the_type_of_the_config(config, text, values, names, tmp_path):
    choices = sweep.parse(config, [text])
    key = text.partition('=')[0]
    found = choices[key]
    assert found == values and [type(v) for v in found] == [type(v) for v in values]
    runs = sweep.combinations(config, tmp_path, choices)
    assert [run.workdir.name for run in runs] == [f'{key}={name}' for name in names]
    assert [sweep.value_of(run.config, key) for run in runs] == values


def test_models_are_swept_as_arguments_of_the_file(training, tmp_path):
    source = f'configs/synthetic.py:runlocal,root={tmp_path / "world"}'
    overrides = {'train.epochs': 7}
    config_of = lambda arguments: with_arguments(source, arguments, overrides)
    choices, runs = sweep.plan(
        config_of({}), tmp_path, [':model=flash_vtg,dualground', 'model.width=16,32', 'seed=1'],
        config_of)
    assert [(one.config.model.name, one.config.model.width, one.config.train.epochs)
            for one in runs] == [(model, width, 7) for model in ('flash_vtg', 'dualground')
                                 for width in (16, 32)]
    assert runs[3].workdir.name == 'model=dualground,model.width=32,seed=1'
    assert set(runs[0].config.model) != set(runs[3].config.model)
    sweep.train_all(config_of({}), tmp_path, choices, runs)
    table = (tmp_path / 'sweep.md').read_text()
    assert table.startswith('flash_vtg, dualground, ') and '| model ' in table
    with pytest.raises(ConfigError, match='config.model has no key .phrases., known are'):
        sweep.plan(config_of({}), tmp_path, [':model=flash_vtg', 'model.phrases=2'], config_of)
    with pytest.raises(ConfigError, match="unknown config argument 'modle'"):
        sweep.plan(config_of({}), tmp_path, [':modle=flash_vtg'], config_of)
    with pytest.raises(ConfigError, match='a workdir takes no arguments'):
        with_arguments(str(tmp_path), {'model': 'flash_vtg'}, {})


def test_each_world_has_a_folder_of_its_own(config, training, tmp_path):
    sweeps = ['world.max_concepts=2,10', 'world.train_queries=8', 'seed=1,2']
    train_all(config, tmp_path, sweeps)
    roots = [f'{config.data.root},world.max_concepts={most},world.train_queries=8'
             for most in (2, 10)]
    assert training.worlds == roots
    saved = checkpoints.Checkpoints(tmp_path / training.calls[-1]).config('latest')
    assert saved.data.root == roots[1] and saved.world.max_concepts == 10
    training.worlds.clear()
    train_all(config, tmp_path, sweeps)
    assert not training.worlds, 'all are finished'


def test_commands_train_what_the_sweep_would(training, tmp_path, monkeypatch, capsys):
    """Each is parsed as a shell and the command line do it, and its run is found by the sweep."""
    asked = [f'--config=configs/synthetic.py:runlocal,root={tmp_path / "a world"}',
             f'--workdir={tmp_path}', '--config.train.epochs=7', '--sweep=:model=flash_vtg,cg_detr',
             '--sweep=model.input_dropout=0.1,0.25', '--sweep=world.distractors=2',
             '--config.mesh.runs=2']

    def parse(*argv):
        command_line.start(monkeypatch, ['dualground', *argv])
        flags.FLAGS(sys.argv)
        return flags.FLAGS

    def told(*further):
        main.run(parse('--mode=sweep', *asked, *further), [])
        return capsys.readouterr().out

    lines = told('--commands').splitlines()
    assert len(lines) == 4 and not training.calls and len(training.worlds) == 1
    for line in lines[:3]:
        values = parse(*shlex.split(line)[3:])
        found, workdir = values.config, pathlib.Path(values.workdir)
        assert f'model={found.model.name},model.input_dropout={found.model.input_dropout}' in (
            workdir.name)
        assert found.train.epochs == 7 and found.world.distractors == 2 and found.mesh.runs == 1
        training.train(found, workdir)
    capsys.readouterr()
    assert told('--commands').splitlines() == lines[3:]
    assert '3 of 4 runs are finished' in told('--collect')
    assert len(report_of(tmp_path)['runs']) == 3


# What is refused ------------------------------------------------------------------------------

REFUSED = {
    'no sweep': ([], ['--sweep=key=value', 'configs/sweeps']),
    'unknown key': (['model.token=full'], ["config.model has no key 'token'", 'tokens', 'width']),
    'unknown section': (['modle.tokens=full'], ["no key 'modle'", 'optimizer']),
    'no values': (['seed='], ['--sweep=seed=', 'no values']),
    'no equals sign': (['seed'], ['--sweep=seed', 'no values']),
    'an empty value': (['seed=1,,2'], ["found ''", 'whole number']),
    'an empty text': (['model.tokens=full,'], ["''", 'folder']),
    'no whole number': (['seed=1,2.5'], ["'2.5'", 'whole number']),
    'no number': (['optimizer.learning_rate=fast'], ["'fast'", 'finite number']),
    'NaN': (['optimizer.learning_rate=nan'], ["'nan'", 'finite number']),
    'no truth value': (['data.normalize_text=yes'], ["'yes'", 'true or false']),
    'a repeated value': (['seed=1,2,1'], ['1 is given twice']),
    'one value in two spellings': (['optimizer.learning_rate=1e-3,0.001'], ['0.001', 'twice']),
    'the same key twice': (['seed=1', 'seed=2'], ['seed is swept twice']),
    'a tuple': (['evaluate.selection=MR-full-mAP'], ['evaluate.selection is a tuple', 'number']),
    'a section': (['optimizer=adam'], ['is a section', 'learning_rate']),
    'another model': (['model.name=dualground'], ['--sweep=:model=NAME,NAME']),
    'a folder': (['data.root=here/there'], ["'here/there'", "folder's name"]),
    'a space': (['model.tokens=full, eos'], ["' eos'", "folder's name"]),
}


@pytest.mark.parametrize('case', REFUSED)
def test_bad_sweeps_are_refused_before_training(case, config, training, tmp_path):
    sweeps, expected = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        train_all(config, tmp_path, sweeps)
    message = str(caught.value)
    assert '\n' not in message and all(part in message for part in expected), message
    assert not training.calls and not list(tmp_path.iterdir())


def test_models_are_traced_once_for_all_seeds_and_not_for_finished_runs(
    config, training, tmp_path
):
    training.errors = {('eos', 2): runs_lib.TrainingError('no')}
    with pytest.raises(UserError):
        train_all(config, tmp_path, [TOKENS, SEEDS])
    assert training.traced == ['full', 'eos', 'words']
    with pytest.raises(UserError):
        train_all(config, tmp_path, [TOKENS, SEEDS])
    assert training.traced == ['full', 'eos', 'words', 'eos']


def test_a_value_that_the_model_refuses_stops_before_training(config, monkeypatch, tmp_path):
    monkeypatch.setattr(train, 'train_many', lambda *_: pytest.fail('trained'))
    with pytest.raises(ConfigError, match=r"^model.tokens=ful: model.tokens='ful': expected"):
        train_all(config, tmp_path, ['model.tokens=full,ful'])
    # An error of the library, not of ours.
    with pytest.raises(ConfigError, match='^model.width=30: .*30'):
        train_all(config, tmp_path, ['model.width=30'])


# Runs that exist ------------------------------------------------------------------------------


def test_finished_runs_are_not_trained_again_and_cut_off_ones_are(
    config, training, tmp_path, capsys
):
    train_all(config, tmp_path, ['seed=1,2,3'])
    (tmp_path / 'seed=2' / 'results.json').unlink()  # it was cut off after its checkpoint
    training.calls.clear()
    capsys.readouterr()
    train_all(config, tmp_path, ['seed=1,2,3,4'])
    assert training.calls == ['seed=2', 'seed=4']
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if 'not trained again' in line] == [
        f'run {i} of 4: seed={i} is finished, it is not trained again' for i in (1, 3)]
    assert [run['values'] for run in report_of(tmp_path)['runs']] == [
        {'seed': seed} for seed in (1, 2, 3, 4)]


def test_a_run_that_goes_on_is_not_finished_until_it_is(config, training, tmp_path):
    train_all(config, tmp_path, ['seed=1,2'])
    longer = config.copy_and_resolve_references()
    longer.train.max_steps = 300
    choices, runs = sweep.plan(longer, tmp_path, ['seed=1,2'])
    save_checkpoint(runs[1].config, runs[1].workdir, step=20)  # its first one, then it was killed
    assert sweep.write(longer, tmp_path, choices, runs) == '', 'numbers of the short training'
    training.calls.clear()
    train_all(longer, tmp_path, ['seed=1,2'])
    assert training.calls == ['seed=1', 'seed=2']
    assert len(report_of(tmp_path)['runs']) == 2
    shorter = config.copy_and_resolve_references()
    shorter.train.max_steps = 19
    with pytest.raises(UserError, match='seed=2: holds a run of 20 steps, 19 are asked for'):
        train_all(shorter, tmp_path, ['seed=1,2'])


def test_a_run_whose_best_model_is_another_than_that_of_its_results_is_not_finished(
        config, training, tmp_path):
    """As one that was extended, killed, and is asked for at its old length."""
    train_all(config, tmp_path, ['seed=1'])
    one, = sweep.plan(config, tmp_path, ['seed=1'])[1]
    assert one.is_finished
    result = json.loads(one.results.read_text())
    one.results.write_text(json.dumps({k: v for k, v in result.items() if k != 'config'}))
    assert one.is_finished, 'an older version told no config'
    save_checkpoint(one.config, one.workdir, 150, 'best')
    assert not one.is_finished


@pytest.mark.parametrize('finished', [True, False])
def test_a_run_by_another_config_is_named_with_its_keys(config, training, tmp_path, finished):
    train_all(config, tmp_path, ['seed=2'])
    if not finished:
        (tmp_path / 'seed=2' / 'results.json').unlink()
    training.calls.clear()
    other = config.copy_and_resolve_references()
    with other.unlocked():
        other.optimizer.learning_rate = 0.5
        other.data.annotations.val = 'other.jsonl'
        other.train.extra = 1
    with pytest.raises(UserError) as caught:
        train_all(other, tmp_path, ['seed=1,2'])
    message = str(caught.value)
    assert f'{tmp_path / "seed=2"}: ' in message
    for part in ('data.annotations.val: val.jsonl there, other.jsonl here',
                 'optimizer.learning_rate: 0.0015 there, 0.5 here',
                 'train.extra: absent there, 1 here'):
        assert part in message
    assert 'seed:' not in message and 'batch_size' not in message
    assert not training.calls, 'seed=1 comes first, but nothing may be trained'
    assert not (tmp_path / 'seed=1').exists()


def test_results_without_a_checkpoint_are_an_error(config, training, tmp_path):
    (tmp_path / 'seed=2').mkdir()
    (tmp_path / 'seed=2' / 'results.json').write_text('{}')
    with pytest.raises(UserError, match='seed=2/results.json: .*without its checkpoint'):
        train_all(config, tmp_path, ['seed=1,2'])
    assert not training.calls


def test_runs_that_share_a_program_are_trained_together(config, training, tmp_path):
    with config.unlocked():
        config.mesh.runs = 4
    sweeps = ['optimizer.learning_rate=0.1,0.2', 'model.tokens=full,eos', SEEDS]
    name = lambda rate, tokens, seed: (
        f'optimizer.learning_rate={rate},model.tokens={tokens},seed={seed}')
    training.errors = {('eos', 2): runs_lib.TrainingError('no')}
    with pytest.raises(UserError, match='^2 of 12 runs failed: .*=0.1,.*eos,seed=2 .no.; .*=0.2,'):
        train_all(config, tmp_path, sweeps)
    first, second = [(0.1, 1), (0.1, 2), (0.1, 3), (0.2, 1)], [(0.2, 2), (0.2, 3)]
    assert training.groups == [[name(rate, tokens, seed) for rate, seed in group]
                               for group in (first, second) for tokens in ('full', 'eos')]
    saved = checkpoints.Checkpoints(tmp_path / name(0.2, 'full', 3)).config('latest')
    assert saved.mesh.runs == 1, 'what it would be by itself'
    training.groups.clear()
    with pytest.raises(UserError):
        train_all(config, tmp_path, sweeps)
    assert training.groups == [[name(rate, 'eos', 2) for rate in (0.1, 0.2)]]


# Failures -------------------------------------------------------------------------------------


def test_a_run_that_fails_does_not_lose_the_others(config, training, tmp_path, capsys):
    training.errors = {('eos', 1): runs_lib.TrainingError('step 2: loss not finite'),
                       ('words', 3): RuntimeError('out of\nmemory')}
    with pytest.raises(UserError) as caught:
        train_all(config, tmp_path, [TOKENS, SEEDS])
    assert str(caught.value) == (
        '2 of 9 runs failed: model.tokens=eos,seed=1 (step 2: loss not finite); '
        'model.tokens=words,seed=3 (out of memory)')
    assert len(training.calls) == 9
    table = report_of(tmp_path)['table']
    assert [(row['values'], row['seeds'], row['mean']['MR-full-mAP']) for row in table] == [
        ({'model.tokens': 'full'}, 3, 73.0), ({'model.tokens': 'eos'}, 2, 63.0),
        ({'model.tokens': 'words'}, 2, 50.5)]
    assert '7 of 9 runs are finished' in capsys.readouterr().out

    training.calls.clear()
    training.errors = {}
    train_all(config, tmp_path, [TOKENS, SEEDS])
    assert training.calls == ['model.tokens=eos,seed=1', 'model.tokens=words,seed=3']
    assert [row['seeds'] for row in report_of(tmp_path)['table']] == [3, 3, 3]


def test_if_all_fail_there_is_no_table(config, training, tmp_path, capsys):
    training.errors = {('full', 1): runs_lib.TrainingError('no')}
    with pytest.raises(UserError, match='1 of 1 runs failed'):
        train_all(config, tmp_path, ['seed=1'])
    assert not list(tmp_path.iterdir()) and 'wrote' not in capsys.readouterr().out


def test_a_sweep_that_is_cut_off_leaves_the_table_of_what_it_has(config, training, tmp_path):
    training.errors = {('full', 3): KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        train_all(config, tmp_path, [SEEDS])
    assert [run['values']['seed'] for run in report_of(tmp_path)['runs']] == [1, 2]
    assert '71.50 ± 2.12' in (tmp_path / 'sweep.md').read_text()


# Tables ---------------------------------------------------------------------------------------


def test_mean_and_std_by_hand():
    runs = [(dict(seed=1, tokens='full'), {'A': 70.0, 'B': 1.0, 'C': 1.0}),
            (dict(seed=1, tokens='eos'), {'A': 60.0}),
            (dict(seed=2, tokens='full'), {'A': 73.0, 'B': 3.0}),
            (dict(seed=3, tokens='full'), {'B': 8.0, 'A': 76.0})]
    full, eos = sweep.grouped(runs)
    assert full['values'] == {'tokens': 'full'} and full['seeds'] == 3
    assert full['mean'] == {'A': 73.0, 'B': 4.0}  # C is of one of the runs only
    assert full['std'] == pytest.approx({'A': 3.0, 'B': 13**0.5})  # of B: (9 + 1 + 16) / 2
    assert eos == dict(values={'tokens': 'eos'}, seeds=1, mean={'A': 60.0}, std={})
    assert sweep.grouped([]) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from('xyz'), st.floats(0, 100)), min_size=1))
def test_groups_against_the_statistics_module(samples):
    table = sweep.grouped([(dict(key=key, seed=i), {'A': value})
                           for i, (key, value) in enumerate(samples)])
    assert [row['values']['key'] for row in table] == list(dict.fromkeys(k for k, _ in samples))
    for row in table:
        values = [value for key, value in samples if key == row['values']['key']]
        assert row['seeds'] == len(values)
        assert row['mean']['A'] == pytest.approx(statistics.mean(values))
        expected = {'A': statistics.stdev(values)} if len(values) > 1 else {}
        assert row['std'] == pytest.approx(expected, abs=1e-9)


def test_sweep_files(config, training, tmp_path, capsys):
    train_all(config, tmp_path, [TOKENS, SEEDS])
    report = report_of(tmp_path)
    assert report['keys'] == {'model.tokens': ['full', 'eos', 'words']}
    assert report['seeds'] == [1, 2, 3]
    assert report['runs'][5] == dict(
        values={'model.tokens': 'eos', 'seed': 3},
        workdir=str(tmp_path / 'model.tokens=eos,seed=3'),
        brief={'MR-full-mAP': 66.0, 'MR-full-R1@0.5': 30.0, 'MR-short-mAP': 1.0},
        best_step=103,
        parameters=7,
    )
    for row in report['table']:
        mean, std = BY_HAND[row['values']['model.tokens']]
        assert row['mean'] == {'MR-full-mAP': mean, 'MR-full-R1@0.5': 20.0, 'MR-short-mAP': 1.0}
        assert row['std']['MR-full-mAP'] == pytest.approx(std)
    text = (tmp_path / 'sweep.md').read_text()
    assert text in capsys.readouterr().out
    assert text.startswith('flash_vtg, ') and '9 of 9 runs' in text
    # Of the main metrics those that the results have; no others.
    assert [' '.join(line.split()) for line in text.splitlines()[2:]] == [
        '| model.tokens | MR-full-mAP | MR-full-R1@0.5 | seeds |',
        '| ------------ | -----------: | -------------: | ----: |',
        '| full | 73.00 ± 3.00 | 20.00 ± 10.00 | 3 |',
        '| eos | 62.00 ± 3.46 | 20.00 ± 10.00 | 3 |',
        '| words | 52.00 ± 2.65 | 20.00 ± 10.00 | 3 |',
    ]


def test_one_seed_has_no_deviation_and_selection_metrics_come_first(config, training, tmp_path):
    with config.unlocked():
        config.evaluate.selection = ('MR-short-mAP', 'MR-full-R1@0.5')
        config.seed = 2
    train_all(config, tmp_path, ['model.tokens=full,eos', 'train.epochs=4'])
    assert report_of(tmp_path)['seeds'] == [2]
    text = (tmp_path / 'sweep.md').read_text()
    table = [line.strip('|').replace(' ', '').split('|') for line in text.splitlines()[2:]]
    assert table[0] == ['model.tokens', 'train.epochs', 'MR-short-mAP', 'MR-full-R1@0.5',
                        'MR-full-mAP', 'seeds']
    assert table[2:] == [['full', '4', '1.00', '20.00', '73.00', '1'],
                         ['eos', '4', '1.00', '20.00', '60.00', '1']]


def test_a_table_has_gaps_where_a_combination_lacks_a_metric():
    table = sweep.grouped([({'k': True}, {'A': 1.0}), ({'k': False}, {'B': 2.0})])
    lines = sweep.markdown(['k'], ['A', 'B', 'C'], table).splitlines()
    assert [line.strip('|').replace(' ', '').split('|') for line in lines[:1] + lines[2:]] == [
        ['k', 'A', 'B', 'seeds'], ['true', '1.00', '–', '1'], ['false', '–', '2.00', '1']]
    assert len({len(line) for line in lines}) == 1


# A real sweep ---------------------------------------------------------------------------------


def assert_same_training(folder, expected, abstract):
    """The same but for rounding."""
    read = lambda folder: files.load_jsonl(folder / 'metrics.jsonl')
    for row, wanted in zip(read(folder), read(expected), strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)
    states = [checkpoints.Checkpoints(each).restore('latest', abstract)[0]
              for each in (folder, expected)]
    leaves = [jax.tree_util.tree_leaves_with_path(state.params) for state in states]
    for (path, found), (_, wanted) in zip(*leaves, strict=True):
        # What all logits of a softmax share has no gradient but rounding.
        if not jax.tree_util.keystr(path).endswith("['key']['bias']"):
            np.testing.assert_allclose(found, wanted, atol=1e-5, err_msg=str(path))


def test_a_real_sweep_and_the_same_runs_in_one_program(config, monkeypatch, tmp_path, capsys):
    """One goes on from what a run alone left that was cut off. Beside them are two whose inputs are
    all others, and whose losses are no numbers after a step."""
    with config.unlocked():
        config.model.update(dict(width=16, heads=2, ffn=16, input_layers=1, mlp_layers=1,
                                 strides=(1,)))
        config.optimizer.update(dict(warmup_steps=0, ema_decay=0.5))
        config.train.update(dict(batch_size=4, max_steps=4, log_every=1))
        config.evaluate.pictures, config.data.limit, config.mesh.data = 0, 8, 1
    world.generate(config.world, config.data.root)
    alone, together, sweeps = tmp_path / 'alone', tmp_path / 'together', ['seed=1,7']
    save = runs_lib.Run.score_and_save

    def save_and_copy(run, step, *rest):
        save(run, step, *rest)
        if run.config.seed == 7 and step == 2:
            shutil.copytree(run.folder, together / 'seed=7')

    monkeypatch.setattr(runs_lib.Run, 'score_and_save', save_and_copy)
    train_all(config, alone, sweeps)
    told = capsys.readouterr().err
    assert told.count('compiling the train step: ') == 1, 'another seed has the same program'
    monkeypatch.setattr(runs_lib.Run, 'score_and_save', save)
    results = [json.loads((alone / name / 'results.json').read_text())
               for name in ('seed=1', 'seed=7')]
    assert [run['brief'] for run in report_of(alone)['runs']] == [
        result['brief'] for result in results]

    fresh, resumed = sweep.combinations(config, together, sweep.parse(config, sweeps))
    values = {key: value * 0.9 for key, value in inputs.scalars(config).items()}
    diverging = inputs.with_values(fresh.config, values | {'optimizer.learning_rate': 1e30})
    folders = [tmp_path / 'first', fresh.workdir, resumed.workdir, tmp_path / 'last']
    capsys.readouterr()
    runs = train.train_many([diverging, fresh.config, resumed.config, diverging], folders)
    told = capsys.readouterr().err
    assert 'seed=7: resuming from step 2\n' in told and 'first: stopped: step 2: ' in told
    assert [told.count(f'compiling the {step} step: ') for step in ('train', 'predict')] == [1, 1]
    for run in runs[::3]:
        assert re.match(r'step 2: .*loss.* not finite; qids ', str(run.failure))
        assert not (run.folder / 'results.json').exists()
    abstract = state_lib.abstract_state(config, sharding.make_mesh(config.mesh))
    for one in (fresh, resumed):
        assert_same_training(one.workdir, alone / one.workdir.name, abstract)

    # Real checkpoints tell that the same sweep is done.
    monkeypatch.setattr(train, 'train_many', lambda *_: pytest.fail('trained again'))
    for workdir in (alone, together):
        train_all(config, workdir, sweeps)

"""Mode `study`: what is trained and analysed, and what runs are compared with."""

import json
import shutil

import pytest

from configs.sweeps import study as study_config
from data_pipelines import files
from data_pipelines.errors import ConfigError, DataError, UserError
from dualground_jax import main, study, sweep, train, train_encoder
from dualground_jax.config import load_config
from tests.helpers import command_line

USUAL = {'world': 'a', 'model.name': 'dualground', 'model.tokens': 'full', 'model.paths': 'both',
         'model.width': 32}


def run_of(seed, score, **values):
    changed = {name if name == 'world' else f'model.{name}': value
               for name, value in values.items()}
    return {**USUAL, **changed, 'seed': seed}, dict(full=score)


def test_a_reduced_study_from_encoder_to_tables(tmp_path, monkeypatch):
    source = (f'configs/sweeps/study.py:runlocal,model=tr_detr,encoders={tmp_path}/encoders,'
              f'root={tmp_path}/world')
    arguments = ['main', '--mode=study', f'--config={source}', f'--workdir={tmp_path}/out',
                 '--config.train.max_steps=1']

    def do(*further):
        command_line.start(monkeypatch, [*arguments, *further])
        main.start()

    for further in ((), ('--collect',), ()):
        with pytest.raises(SystemExit) as status:
            do(*further)
        assert not status.value.code
        monkeypatch.setattr(train, 'train_many', lambda *_: pytest.fail('trained again'))
        monkeypatch.setattr(train_encoder, 'train', lambda *_: pytest.fail('trained again'))
    section = load_config(source).study
    with section.unlocked(), pytest.raises(
            UserError, match='encoders/reference: .*seed: 0 there, 7 here'):
        section.encoders.reference = dict(seed=7)
        study.train_encoders(section)
    asked = []
    monkeypatch.setattr(train_encoder, 'train', lambda *one: asked.append(one))
    with section.unlocked():
        section.encoders.reference = dict(train=dict(max_steps=2))
    study.train_encoders(section)
    assert [(one.train.max_steps, folder.name) for one, folder in asked] == [(2, 'reference')]
    found = json.loads((tmp_path / 'out' / 'study.json').read_text())
    row, = found['Encoders']['groups']
    assert row['values'] == {'world': 'reference'}
    report = json.loads((tmp_path / 'out/runs/world=reference,seed=1/analysis/report.json')
                        .read_text())
    assert row['numbers']['MR-full-mAP'] == dict(
        mean=report['splits']['test']['ablation']['full']['MR-full-mAP'], std=None, n=1)
    text = (tmp_path / 'out' / 'study.md').read_text()
    assert '## Encoders' in text and '| world=reference |' in text

    # Numbers outlive the folders of their runs, and those of other runs are kept.
    shutil.rmtree(tmp_path / 'out' / 'runs')
    kept = tmp_path / 'out' / study.KEPT
    rows = [dict(run='seed=9', config='of another', numbers={}), *files.load_jsonl(kept)]
    files.write_jsonl(kept, rows)
    with pytest.raises(SystemExit):
        do()
    assert (tmp_path / 'out' / 'study.md').read_text() == text
    assert not (tmp_path / 'out' / 'runs').exists()
    assert list(files.load_jsonl(kept)) == rows


def test_the_whole_study_has_no_run_twice_and_needs_no_encoder_to_be_planned(tmp_path):
    for world in study_config.ENCODERS:
        config = study_config.get_config(f'world={world},encoders={tmp_path}')
        assert config.world.encoder == f'{tmp_path}/{world}/encoder'
    with pytest.raises(ConfigError, match="world='lost': expected planted, shipped, reference, "):
        study_config.get_config('world=lost')
    before = study.digest(config)
    config.study.encoders[world] = dict(seed=5)
    assert study.digest(config) != before, 'its numbers are of another encoder'
    config = study_config.get_config()
    assert set(config.study.encoders) == set(study_config.ENCODERS)
    lists = [one for lists in study_config.QUESTIONS.values() for one in lists]
    assert list(config.sweep) == lists
    seen = set()
    for one in lists:
        counted = [tuple(part.split('=')) for part in one]
        names = [key for key, _ in counted]
        assert len(set(names)) == len(names) and ('seed' in names) and ':world' in names
        seen.add(one)
    assert len(seen) == len(lists)


@pytest.mark.parametrize(('change', 'message'), [
    (dict(config='x'), 'line 2: seed=2 had another config than this command gives it; delete'),
    (dict(numbers=3), 'line 2: expected run, config and numbers'),
])
def test_kept_numbers_of_another_config_are_refused(change, message, tmp_path):
    config = load_config('configs/synthetic.py')
    runs = sweep.plan(config, tmp_path, ['seed=1,2,3'])[1]
    rows = [dict(run=one.workdir.name, config=study.digest(one.config), numbers=dict(full=1.5))
            for one in runs[:2]]
    path = tmp_path / study.KEPT
    files.write_jsonl(path, [*rows, dict(rows[0], run='seed=9', config='of another study')])
    assert list(study.read_kept(path, runs)) == ['seed=1', 'seed=2', 'seed=9']
    assert study.digest(runs[0].config) != study.digest(runs[1].config)
    grown = runs[0].config.copy_and_resolve_references()
    with grown.unlocked():
        grown.study = dict(questions={})
    assert study.digest(runs[0].config) == study.digest(grown)
    files.write_jsonl(path, [rows[0], rows[1] | change])
    with pytest.raises(DataError, match=f'{study.KEPT}: {message}'):
        study.read_kept(path, runs)


def test_figures_of_models_take_runs_that_differ_in_world_model_and_tokens_alone():
    runs = [run_of(1, score, **values) for score, values in (
        (50, {}), (60, dict(width=64)), (70, dict(name='flash_vtg', paths=None)),
        (75, dict(name='flash_vtg', paths=None, tokens='eos')), (80, dict(world='b')),
        (90, dict(world='b', paths='phrase')))]
    found = study.of_models(runs, USUAL)
    assert [(row['split'], *row['values'].values(), row['numbers']['full']['mean'])
            for row in found] == [
        ('a', 'dualground', 'full', 50), ('a', 'flash_vtg', 'full', 70),
        ('a', 'flash_vtg', 'eos', 75), ('b', 'dualground', 'full', 80)]


def test_a_config_without_a_study_is_refused(monkeypatch, tmp_path):
    command_line.start(monkeypatch, ['main', '--mode=study', '--config=configs/synthetic.py',
                                     f'--workdir={tmp_path}'])
    with pytest.raises(SystemExit, match='needs a config of a study'):
        main.start()


@pytest.mark.parametrize(('flags', 'message'), [
    (['--collect'], 'nowhere: no such folder, --collect takes what is there'),
    (['--collect', '--commands'], 'takes one of --collect and --commands'),
])
def test_what_can_not_be_collected(flags, message, monkeypatch, tmp_path):
    command_line.start(monkeypatch, [
        'main', '--mode=study', '--config=configs/sweeps/study.py:runlocal',
        f'--workdir={tmp_path / "nowhere"}', *flags])
    with pytest.raises(SystemExit, match=message):
        main.start()
    assert not (tmp_path / 'nowhere').exists()


def test_runs_are_compared_with_usual_ones_and_with_rivals():
    runs = [run_of(seed, score + seed, **values) for seed in (1, 2) for score, values in (
        (50, {}), (60, dict(width=64)), (55, dict(paths='phrase')),
        (70, dict(name='flash_vtg', paths=None)),
        (75, dict(name='flash_vtg', paths=None, tokens='eos')), (80, dict(world='b')),
        (90, dict(world='b', width=64)))]
    found = {(tuple(study.told(row['values'], USUAL).values()), row['key'], row['first']):
             row['numbers']['full']['value'] for row in study.differences(runs, runs, USUAL)}
    dualground, flash = ('a', 'dualground'), ('a', 'flash_vtg')
    assert found == {
        ((*dualground, 64), 'model.width', 32): 10,
        ((*dualground, 'phrase'), 'model.paths', 'both'): 5,
        ((*dualground, 'phrase'), 'model.name', 'flash_vtg'): -15,
        (flash, 'model.name', 'dualground'): 20,
        ((*flash, 'eos'), 'model.tokens', 'full'): 5,
        (('b', 'dualground'), 'world', 'a'): 30,
        (('b', 'dualground', 64), 'model.width', 32): 10,
        (('b', 'dualground', 64), 'world', 'a'): 30,
    }

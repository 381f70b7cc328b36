"""Mode `study`: what is trained and analysed, and what runs are compared with."""

import json

import pytest

from configs.sweeps import study as study_config
from data_pipelines.errors import UserError
from dualground_jax import main, study, train, train_encoder
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
    found = json.loads((tmp_path / 'out' / 'study.json').read_text())
    row, = found['Encoders']['groups']
    assert row['values'] == {'world': 'reference'}
    report = json.loads((tmp_path / 'out/runs/world=reference,seed=1/analysis/report.json')
                        .read_text())
    assert row['numbers']['MR-full-mAP'] == dict(
        mean=report['splits']['test']['ablation']['full']['MR-full-mAP'], std=None, n=1)
    text = (tmp_path / 'out' / 'study.md').read_text()
    assert '## Encoders' in text and '| world=reference |' in text


def test_the_whole_study_has_no_run_twice():
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


def test_a_config_without_a_study_is_refused(monkeypatch, tmp_path):
    command_line.start(monkeypatch, ['main', '--mode=study', '--config=configs/synthetic.py',
                                     f'--workdir={tmp_path}'])
    with pytest.raises(SystemExit, match='needs a config of a study'):
        main.start()


def test_runs_are_compared_with_usual_ones_and_with_rivals():
    runs = [run_of(seed, score + seed, **values) for seed in (1, 2) for score, values in (
        (50, {}), (60, dict(width=64)), (70, dict(name='flash_vtg', paths=None)),
        (75, dict(name='flash_vtg', paths=None, tokens='eos')), (80, dict(world='b')),
        (90, dict(world='b', width=64)))]
    found = {(tuple(study.told(row['values'], USUAL).values()), row['key'], row['first']):
             row['numbers']['full']['value'] for row in study.differences(runs, runs, USUAL)}
    dualground, flash = ('a', 'dualground'), ('a', 'flash_vtg')
    assert found == {
        (dualground, 'model.name', 'flash_vtg'): -20,
        ((*dualground, 64), 'model.width', 32): 10,
        ((*dualground, 64), 'model.name', 'flash_vtg'): -10,
        (flash, 'model.name', 'dualground'): 20,
        ((*flash, 'eos'), 'model.tokens', 'full'): 5,
        (('b', 'dualground'), 'world', 'a'): 30,
        (('b', 'dualground', 64), 'model.width', 32): 10,
        (('b', 'dualground', 64), 'world', 'a'): 30,
    }

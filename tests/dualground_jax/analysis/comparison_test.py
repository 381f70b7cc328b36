"""Runs side by side: what tells them apart, and means over seeds."""

import numpy as np
import pytest
from scipy import stats

from dualground_jax.analysis import comparison


def config(name='a', seed=1, width=8, tokens='full', root='x', **data):
    return dict(seed=seed, model=dict(name=name, width=width, tokens=tokens),
                data=dict(root=root, **data))


@pytest.mark.parametrize('configs, expected', [
    # Seeds and folders tell nothing.
    ([config(), config(seed=2, root='y')], [{'model.name': 'a'}] * 2),
    ([config(), config(tokens='eos', seed=5)],
     [{'model.name': 'a', 'model.tokens': tokens} for tokens in ('full', 'eos')]),
    # Two models have different widths anyway; it counts only if one model has two.
    ([config(), config('b', width=16), config('b', width=16, seed=2)],
     [{'model.name': 'a'}, {'model.name': 'b'}, {'model.name': 'b'}]),
    ([config(), config('b', width=16), config('b', width=32)],
     [{'model.name': 'a', 'model.width': 8}, {'model.name': 'b', 'model.width': 16},
      {'model.name': 'b', 'model.width': 32}]),
    ([config(), config(extra=1)], [{'model.name': 'a'}, {'model.name': 'a', 'data.extra': 1}]),
])
def test_what_tells_runs_apart(configs, expected):
    found = comparison.distinguishing({str(i): c for i, c in enumerate(configs)})
    assert list(found.values()) == expected


def report_of(value, **fields):
    part = dict(
        ablation={'full': {'MR-full-mAP': value}}, correlation={}, same_as={}, gains={},
        performance={'full': dict(value=value, low=0, high=1),
                     'mask_eos': dict(value=value / 2, low=0, high=1)},
        reliance=dict(value=abs(value) / 100, low=0, high=1 if value < 0 else 0.9),
    )
    return dict(config=config(**fields), splits=dict(val=part))


def test_means_and_spread_over_seeds():
    found = comparison.compare({
        'r1': report_of(10, seed=1), 'r2': report_of(20, seed=2), 'r3': report_of(60, seed=3),
        'r4': report_of(5, tokens='eos'), 'r5': report_of(-1, tokens='words'),
    })
    rows = found['groups']
    assert [row['runs'] for row in rows] == [['r1', 'r2', 'r3'], ['r4'], ['r5']]
    assert rows[0]['values'] == {'model.name': 'a', 'model.tokens': 'full'}
    assert rows[0]['split'] == 'val'
    numbers = rows[0]['numbers']
    assert numbers['MR-full-mAP'] == numbers['full'] == pytest.approx(
        dict(mean=30, std=700**0.5, n=3))
    assert numbers['mask_eos']['mean'] == 15 and numbers['reliance']['mean'] == pytest.approx(0.3)
    assert rows[1]['numbers']['full'] == dict(mean=5, std=None, n=1)
    assert 'reliance' not in rows[2]['numbers'], 'its interval says nothing'


def test_differences_are_paired_over_the_seeds_that_both_have():
    rng = np.random.default_rng(0)
    full, eos = rng.uniform(20, 90, (2, 4))
    reports = {f'full{i}': report_of(x, seed=i) for i, x in enumerate(full)}
    reports |= {f'eos{i}': report_of(x, seed=i, tokens='eos') for i, x in enumerate(eos)}
    reports['eos7'] = report_of(1, seed=7, tokens='eos')
    reports['other'] = report_of(5, name='b')
    model, tokens = comparison.compare(reports)['differences']
    assert (model['key'], model['first'], model['seeds']) == ('model.name', 'a', [1])
    assert model['numbers']['full'] == dict(value=5 - full[1], low=None, high=None)
    assert (tokens['key'], tokens['first'], tokens['seeds']) == (
        'model.tokens', 'full', [0, 1, 2, 3])
    assert tokens['values'] == {'model.name': 'a', 'model.tokens': 'eos'}
    expected = stats.ttest_rel(eos, full).confidence_interval()
    assert tokens['numbers']['full'] == pytest.approx(
        dict(value=(eos - full).mean(), low=expected.low, high=expected.high))


def test_files(tmp_path, capsys):
    reports = {'r1': report_of(10, seed=1), 'r2': report_of(20, seed=2),
               'r4': report_of(5, tokens='eos')}
    comparison.write(reports, tmp_path)
    text = (tmp_path / 'comparison.md').read_text()
    lines = [' '.join(line.split()) for line in text.splitlines()]
    assert any(line.startswith('| a, tokens=full | 2 | 15.00 ± 7.07 |') for line in lines)
    assert any(line.startswith('| a, tokens=eos | 1 | 5.00 |') for line in lines)
    assert text.split('![')[0].strip() == capsys.readouterr().out.strip()
    assert '(training_val.png)' in text and (tmp_path / 'training_val.svg').exists()


def test_fits_are_told_and_drawn(tmp_path):
    reports = {f'{width}_{seed}': report_of(width * 1.0 + seed, width=width, seed=seed)
               for width in (2, 4, 8) for seed in (1, 2)}
    comparison.write(reports, tmp_path)
    text = (tmp_path / 'comparison.md').read_text()
    lines = [' '.join(line.split()) for line in text.splitlines()]
    assert any(line.startswith('| a | width | 2 4 8 | 2 | all tokens | 3.000 [3.000, 3.000] |')
               for line in lines), text
    assert any(line.startswith('| a, width=8 | width=2 | 2 | 6.00 [6.00, 6.00] |')
               for line in lines), text
    assert '(scaling_val_width.png)' in text and (tmp_path / 'scaling_val_width.svg').exists()

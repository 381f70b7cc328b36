"""Bins of length, bootstrap and means over seeds: against loops and by hand."""

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualground_jax.metrics import summary


def test_bins_are_open_below_and_hold_each_length_once():
    words = np.arange(1, 200)
    bins = summary.length_bins(words)
    assert {name: (words[kept].min(), words[kept].max()) for name, kept in bins.items()} == {
        '1-10': (1, 10), '11-15': (11, 15), '16-20': (16, 20), '>20': (21, 199)}
    assert (np.sum(list(bins.values()), axis=0) == 1).all()


def test_bootstrap_against_a_loop():
    rng = np.random.default_rng(1)
    values, weights = rng.random((7, 3)), rng.random((7, 3)) * rng.integers(0, 2, (7, 3))
    found = summary.bootstrap(values, weights, 50, seed=5)
    draws = np.random.default_rng(5).integers(7, size=(50, 7))
    for row, draw in zip(found, draws, strict=True):
        for m in range(3):
            total = sum(weights[q, m] for q in draw)
            mean = sum(values[q, m] * weights[q, m] for q in draw) / total if total else np.nan
            assert row[m] == pytest.approx(mean, nan_ok=True)


def test_bootstrap_in_parts_is_bootstrap():
    values = np.random.default_rng(0).random((3000, 2))
    found = summary.bootstrap(values, np.ones((3000, 2)), 1000)
    # Spread of a mean: the standard error, within what 1000 draws allow.
    np.testing.assert_allclose(found.std(axis=0), values.std(axis=0) / 3000**0.5, rtol=0.15)
    np.testing.assert_allclose(found.mean(axis=0), values.mean(axis=0), atol=1e-3)
    assert len(np.unique(found[:, 0])) == 1000


def test_mean_and_std_by_hand():
    assert summary.mean_std([60.0, 60.0, 66.0]) == dict(mean=62.0, std=12**0.5, n=3)
    assert summary.mean_std([5.0]) == dict(mean=5.0, std=None, n=1)


def test_groups_keep_values_that_are_lists_and_the_places_of_their_runs():
    runs = [(dict(key=[1, 2], seed=1), {'A': 1.0, 'B': 2.0}), (dict(key=[1]), {'A': 7.0}),
            (dict(key=[1, 2], seed=5), {'A': 3.0})]
    assert summary.over_seeds(runs) == [
        dict(values={'key': [1, 2]}, runs=[0, 2], numbers={'A': dict(mean=2.0, std=2**0.5, n=2)}),
        dict(values={'key': [1]}, runs=[1], numbers={'A': dict(mean=7.0, std=None, n=1)})]
    assert summary.over_seeds([]) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from('xyz'), st.floats(0, 100)), min_size=1))
def test_groups_against_the_statistics_module(samples):
    found = summary.over_seeds([(dict(key=key, seed=i), {'A': value})
                                for i, (key, value) in enumerate(samples)])
    assert [row['values']['key'] for row in found] == list(dict.fromkeys(k for k, _ in samples))
    for row in found:
        values = [value for key, value in samples if key == row['values']['key']]
        assert len(row['runs']) == row['numbers']['A']['n'] == len(values)
        assert row['numbers']['A']['mean'] == pytest.approx(statistics.mean(values))
        if len(values) > 1:
            assert row['numbers']['A']['std'] == pytest.approx(statistics.stdev(values), abs=1e-9)

"""Fits of numbers to sizes, against planted laws and scipy."""

import numpy as np
import pytest
from scipy import stats

from dualground_jax.analysis import scaling

SIZES = (16, 32, 64, 128)


def runs_of(number, seeds=(1, 2, 3), **further):
    return [({'model.width': size, **further}, seed, dict(map=number(size, seed)))
            for size in SIZES for seed in seeds]


def test_a_planted_power_law_is_found():
    found, = scaling.fits(runs_of(lambda size, seed: (seed + 1) * size ** -0.3))
    assert (found['key'], found['name'], found['sizes'], found['seeds'], found['values']) == (
        'model.width', 'map', list(SIZES), [1, 2, 3], {})
    assert found['exponent'] == pytest.approx(dict(value=-0.3, low=-0.3, high=-0.3))
    assert found['curve'] == pytest.approx([3 * size ** -0.3 for size in SIZES])
    assert found['std'] == pytest.approx([size ** -0.3 for size in SIZES])


def test_slopes_and_their_interval_against_scipy():
    noise = np.random.default_rng(0).normal(0, 3, (3, 4))
    of = lambda size, seed: 5 * np.log2(size) - 30 + noise[seed - 1, SIZES.index(size)]
    found, = scaling.fits(runs_of(of))
    slopes = [stats.linregress(np.log2(SIZES), [of(size, seed) for size in SIZES]).slope
              for seed in (1, 2, 3)]
    expected = stats.ttest_1samp(slopes, 0).confidence_interval()
    assert found['per_doubling'] == pytest.approx(
        dict(value=np.mean(slopes), low=expected.low, high=expected.high))
    assert min(of(size, 1) for size in SIZES) < 0 and found['exponent'] is None


def test_families_are_fitted_apart_and_incomplete_seeds_left_out():
    runs = runs_of(lambda size, seed: size, **{'model.name': 'a'})
    runs += runs_of(lambda size, seed: size**2, (1,), **{'model.name': 'b'})
    runs += [({'model.name': 'a', 'model.width': 16}, 9, dict(map=1e6))]
    runs += [({'model.name': 'c', 'model.width': size}, 1, dict(map=1)) for size in (16, 32)]
    runs += [({'model.name': 'd', 'model.width': size}, 1, {}) for size in SIZES]
    a, b = scaling.fits(runs)
    assert (a['values'], a['seeds'], a['exponent']['value']) == (
        {'model.name': 'a'}, [1, 2, 3], pytest.approx(1))
    assert (b['values'], b['seeds'], b['exponent']) == (
        {'model.name': 'b'}, [1], dict(value=pytest.approx(2), low=None, high=None))
    assert b['std'] is None


def test_what_is_no_size_is_not_fitted():
    values = [({'model.tokens': text, 'data.flag': flag, 'loss.weight': weight}, 1, dict(map=1.0))
              for text, flag, weight in (('a', True, 0.0), ('b', False, 1.0), ('c', True, 2.0))]
    assert scaling.fits(values) == []

"""Correlations of series: scipy on rows and on concatenations, exact fractions, batch cuts."""

import itertools
import json
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data_pipelines.errors import UserError
from dualground_jax.analysis import correlation
from dualground_jax.analysis.correlation import Correlations

KINDS = {'pearson': stats.pearsonr, 'spearman': stats.spearmanr}
PAIRS = [(0, 1), (2, 1), (0, 0), (3, 0)]
N_SERIES = 4
ULP = 2.0**-52


def by_scipy(kind, x, y):
    if x.size < 2:
        return np.nan
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return KINDS[kind](x, y).statistic


def by_fractions(x, y):
    """Pearson's correlation without rounding but in the last step."""
    x, y = ([Fraction(float(number)) for number in row] for row in (x, y))
    x, y = ([number - sum(row) / len(row) for number in row] for row in (x, y))
    xx, yy, xy = (sum(map(lambda a, b: a * b, *two)) for two in ((x, x), (y, y), (x, y)))
    return math.copysign(math.sqrt(xy * xy / (xx * yy)), xy)


@st.composite
def batches(draw, max_samples=7):
    """series, present, mask and index of some samples: ties, constants, NaN where nobody looks."""
    n_samples, n_clips = draw(st.integers(1, max_samples)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([1, 2, 4, 1000]))
    series = rng.integers(0, levels, (n_samples, N_SERIES, n_clips)) / 7
    series[rng.random((n_samples, N_SERIES)) < 0.2] = draw(st.sampled_from([0.0, 0.1]))
    series *= draw(st.sampled_from([1e-30, 1.0, 1e8]))
    present = rng.random((n_samples, N_SERIES)) < 0.8
    mask = rng.random((n_samples, n_clips)) < 0.8
    series[~(present[..., None] & mask[:, None])] = draw(st.sampled_from([np.nan, np.inf, 5e8]))
    return series, present, mask, rng.permutation(100)[:n_samples]


def run(parts, **options):
    """Returns what is added for each part, and the results."""
    statistics = Correlations(PAIRS, **options)
    return [statistics.add(*part) for part in parts], statistics


def assert_alike(found, expected, atol=1e-12):
    """Results that differ by rounding only."""
    for ours, theirs in zip(found, expected, strict=True):
        assert set(ours) == set(theirs)
        for name, value in theirs.items():
            if isinstance(value, float):
                np.testing.assert_allclose(ours[name], value, rtol=0, atol=atol, err_msg=name)
            elif not name.endswith('histogram'):  # a rounding may move a value over an edge
                assert ours[name] == value, name
            else:
                assert sum(ours[name]) == sum(value)


# Single rows ----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(batches())
def test_rows_against_scipy(batch):
    series, present, mask, _ = batch
    valid = present[..., None] & mask[:, None]
    ranks = correlation.ranks(series, valid)
    assert ranks.dtype == np.float64
    for row, kept, rank in zip(series.reshape(-1, series.shape[-1]),
                               valid.reshape(-1, series.shape[-1]),
                               ranks.reshape(-1, series.shape[-1]), strict=True):
        np.testing.assert_array_equal(rank[kept], stats.rankdata(row[kept]))
    x, y = series[:, :2], series[:, 2:]
    both = valid[:, :2] & valid[:, 2:]
    for kind in KINDS:
        found = getattr(correlation, kind)(x, y, both)
        expected = [[by_scipy(kind, x[b, s, m], y[b, s, m]) for s, m in enumerate(both[b])]
                    for b in range(len(x))]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_ranks_of_infinity_and_of_both_zeros():
    x = np.array([np.inf, 0.0, -np.inf, -0.0, 3.0, np.inf])
    np.testing.assert_array_equal(correlation.ranks(x, True), stats.rankdata(x))
    mask = np.array([True, True, False, True, False, True])
    np.testing.assert_array_equal(correlation.ranks(x, mask)[mask], stats.rankdata(x[mask]))


def test_one_mask_for_many_rows():
    x, y = np.random.default_rng(0).random((2, 2, 3, 8))
    mask = np.array([[True] * 5 + [False] * 3, [False] + [True] * 7])[:, None]
    for kind in KINDS:
        np.testing.assert_allclose(
            getattr(correlation, kind)(x, y, mask),
            [[by_scipy(kind, x[b, s, mask[b, 0]], y[b, s, mask[b, 0]]) for s in range(3)]
             for b in range(2)], atol=1e-12)


@pytest.mark.parametrize('level', [0.1, 1 / 3, 1e8 + 1 / 3, 1e-30])
@pytest.mark.parametrize('length', [3, 6, 10, 75])
def test_constant_rows(level, length):
    """The mean of equal numbers is often not that number: no correlation of roundings."""
    constant, other = np.full(length, level), np.random.default_rng(0).random(length)
    for kind in KINDS:
        correlate = getattr(correlation, kind)
        assert np.isnan(correlate(constant, other, True))
        assert np.isnan(correlate(other, constant, True))
        assert np.isnan(correlate(other, other, np.arange(length) < 1))
        assert np.isnan(correlate(other, other, False))
        nearly = np.where(np.arange(length) == 1, level * (1 + 2 * ULP), level)
        assert correlate(nearly, -nearly, True) == pytest.approx(-1, abs=1e-15)


def test_two_clips():
    x, y = np.array([0.1, 0.2]), np.array([5.0, 4.0])
    assert correlation.pearson(x, y, True) == pytest.approx(-1, abs=1e-15)
    assert correlation.spearman(x, x, True) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize('scale', [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_scale_does_not_matter(scale):
    x, y = np.random.default_rng(0).random((2, 75))
    found = correlation.pearson(x * scale, y, True)
    assert found == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-14)


@pytest.mark.parametrize('step', [ULP, 1e-12, 1e-7])
def test_nearly_constant_rows(step):
    """What scipy itself gets wrong: numbers that differ in their last bits."""
    rng = np.random.default_rng(0)
    x, y = 1e8 * (1 + step * rng.integers(0, 4, (2, 75)))
    assert correlation.pearson(x, y, True) == pytest.approx(by_fractions(x, y), abs=1e-14)
    part = np.arange(75) // 25
    parts = [(np.stack([x[part == k], y[part == k]])[None], np.ones((1, 2), bool),
              np.ones((1, 25), bool), [k]) for k in range(3)]
    statistics = Correlations([(0, 1)])
    for one in parts:
        statistics.add(*one)
    found = statistics.results()[0]['pearson_pooled']
    assert found == pytest.approx(by_fractions(x, y), abs=1e-13)


# Many samples ---------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(batches())
def test_samples_and_pooled_clips_against_scipy(batch):
    series, present, mask, _ = batch
    [added], statistics = run([batch])
    results = statistics.results()
    json.dumps(results, allow_nan=False)
    for k, (i, j) in enumerate(PAIRS):
        rows = [(series[b, i, mask[b]], series[b, j, mask[b]]) if present[b, [i, j]].all() else None
                for b in range(len(series))]
        expected = {kind: np.array([by_scipy(kind, *row) if row else np.nan for row in rows])
                    for kind in KINDS}
        given_rows = [row for row in rows if row]
        x, y = (np.concatenate([row[a] for row in given_rows] or [[]]) for a in range(2))
        defined = ~np.isnan(expected['pearson'])
        result = results[k]
        assert result['n'] == defined.sum()
        assert result['n_constant'] == len(given_rows) - defined.sum()
        assert result['n_clips'] == x.size
        for kind, values in zip(KINDS, added, strict=True):
            assert values.dtype == np.float64
            np.testing.assert_allclose(values[:, k], expected[kind], rtol=0, atol=1e-12)
            kept, ours = expected[kind][defined], values[defined, k]
            whole = by_scipy(kind, x, y)
            for name, number in {kind: kept.mean() if kept.size else np.nan,
                                 f'{kind}_std': kept.std(ddof=1) if kept.size > 1 else np.nan,
                                 f'{kind}_pooled': whole}.items():
                if np.isnan(number):
                    assert result[name] is None
                else:
                    assert type(result[name]) is float
                    assert result[name] == pytest.approx(number, abs=1e-12)
            counts, _ = np.histogram(ours, correlation.BINS)
            assert result[f'{kind}_histogram'] == counts.tolist()


@settings(max_examples=40, deadline=None)
@given(batches(), st.data())
def test_batches_and_order_do_not_matter(batch, data):
    """Cut anywhere the numbers are the same, shuffled they are so up to rounding."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(batch[0])), max_size=3)))
    order = np.array(data.draw(st.permutations(range(len(batch[0])))))
    [whole], together = run([batch])
    added, apart = run(zip(*(np.split(array, cuts) for array in batch)))
    _, shuffled = run(zip(*(np.split(array[order], cuts) for array in batch)))
    for kind, values in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([part[kind] for part in added]), values)
    assert apart.results() == together.results()
    assert_alike(shuffled.results(), together.results())
    for k in range(len(PAIRS)):
        np.testing.assert_array_equal(apart.clips_of(k), together.clips_of(k))
        np.testing.assert_array_equal(apart.clips_of(k, 2), together.clips_of(k, 2))


@pytest.mark.parametrize('level', [0.1, 1 / 3, 1e8 + 1 / 3, 1e-30])
def test_series_that_is_constant_over_all_samples(level):
    """Also where the first samples lack it; its partner differs, so only one of them is odd."""
    rng = np.random.default_rng(0)
    statistics = Correlations([(0, 1)])
    for k in range(4):
        series = rng.random((5, 2, 7))
        present = np.ones((5, 2), bool)
        present[:3 if k == 0 else 0, 0] = False
        series[present[:, 0], 0] = level
        statistics.add(series, present, rng.random((5, 7)) < 0.8, np.arange(5 * k, 5 * k + 5))
    [result] = statistics.results()
    assert result['n'] == 0 and result['n_constant'] == 17 and result['n_clips'] > 70
    assert result['pearson_pooled'] is None and result['spearman_pooled'] is None


def test_no_samples():
    nothing = Correlations(PAIRS).results()
    batch = (np.ones((0, N_SERIES, 3)), np.ones((0, N_SERIES), bool), np.ones((0, 3), bool), [])
    assert nothing == run([batch])[1].results()
    for result in nothing:
        assert result['n'] == result['n_clips'] == sum(result['pearson_histogram']) == 0
        assert result['pearson'] is result['spearman_pooled'] is result['pearson_std'] is None


def test_bounds_of_the_histogram():
    """Of two clips correlations are -1 and 1: the first and the last bin."""
    series = np.zeros((3, 2, 2))
    series[:, 0], series[:, 1] = [0, 1], [[0, 1], [1, 0], [2, 3]]
    statistics = Correlations([(0, 1)])
    statistics.add(series, np.ones((3, 2), bool), np.ones((3, 2), bool), np.arange(3))
    [result] = statistics.results()
    expected = [1, *[0] * (len(correlation.BINS) - 3), 2]
    assert result['pearson_histogram'] == result['spearman_histogram'] == expected


def test_without_pooling():
    """The same but for what is pooled."""
    rng = np.random.default_rng(0)
    present, mask = rng.random((2, 30)) < 0.8, rng.random((2, 700)) < 0.8
    batch = (rng.random((2, 30, 700)), present, mask, [0, 1])
    pairs = list(itertools.combinations(range(30), 2))
    pooled, alone = Correlations(pairs), Correlations(pairs, pooled=False)
    for ours, theirs in zip(alone.add(*batch), pooled.add(*batch), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    extra = {'pearson_pooled', 'spearman_pooled', 'n_clips'}
    for ours, theirs in zip(alone.results(), pooled.results(), strict=True):
        assert ours == {name: value for name, value in theirs.items() if name not in extra}


def test_float32_is_kept_as_it_is_and_computed_in_float64():
    """As attention comes: what is kept is the device's numbers, the arithmetic is scipy's."""
    rng = np.random.default_rng(0)
    series = (0.2 + 1e-4 * rng.random((5, 2, 40))).astype(np.float32)
    statistics = Correlations([(0, 1)])
    for k in range(5):
        statistics.add(series[k:k + 1], np.ones((1, 2), bool), np.ones((1, 40), bool), [k])
    assert {part.dtype for part in statistics.clips[1:]} == {np.dtype(np.float32)}
    clips = series.astype(np.float64).swapaxes(0, 1).reshape(2, -1)
    np.testing.assert_array_equal(statistics.clips_of(0), clips)
    [result] = statistics.results()
    for kind in KINDS:
        assert result[f'{kind}_pooled'] == pytest.approx(by_scipy(kind, *clips), abs=1e-9)


@pytest.mark.parametrize('odd', [np.nan, np.inf])
def test_numbers_that_are_not_finite(odd):
    series = np.random.default_rng(0).random((2, N_SERIES, 5))
    present, mask = np.ones((2, N_SERIES), bool), np.ones((2, 5), bool)
    series[1, 2, 3] = odd
    with pytest.raises(UserError, match=f'^record 12: series 2 at clip 3: found {odd}, expected f'):
        run([(series, present, mask, [11, 12])])
    present[1, 2] = False
    run([(series, present, mask, [11, 12])])
    mask[1, 3] = False
    run([(series, np.ones((2, N_SERIES), bool), mask, [11, 12])])


def test_clips_for_a_scatter_plot_are_a_uniform_sample():
    """Kept clips by sample and by place in the video: as many as chance lets expect."""
    n_samples, n_clips, size = 500, 40, 5000
    place = np.broadcast_to(np.arange(n_clips, dtype=float), (n_samples, n_clips))
    sample = np.broadcast_to(np.arange(n_samples, dtype=float)[:, None], place.shape)
    statistics = Correlations([(0, 1)])
    statistics.add(np.stack([sample, place], axis=1), np.ones((n_samples, 2), bool),
                   np.ones(place.shape, bool), np.arange(n_samples))
    sample, place = statistics.clips_of(0, size)
    assert len(set(zip(sample, place))) == size, 'each clip at most once'
    for values, n in ((sample, 50), (place, n_clips)):
        counts, _ = np.histogram(values, n, (0, values.max() + 1))
        assert stats.chisquare(counts).pvalue > 1e-3
    assert abs(stats.spearmanr(sample, place).statistic) < 4 / math.sqrt(size)
    assert statistics.clips_of(0).shape == (2, n_samples * n_clips)

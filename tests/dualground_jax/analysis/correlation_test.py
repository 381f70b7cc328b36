"""Correlations of series: scipy on rows and on concatenations, exact fractions, invariants."""

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
    statistics = Correlations(N_SERIES, PAIRS, **options)
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
    statistics = Correlations(2, [(0, 1)])
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
        assert result['n_clips'] == x.size and result['pooled_exact'] is True
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
    """Split anywhere, shuffled, and filled up with padding that nobody may look at."""
    size = data.draw(st.sampled_from([4, 1000]))
    order = np.array(data.draw(st.permutations(range(len(batch[0])))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=3)))
    rows = np.split(order, cuts)
    parts = [[np.concatenate([array[part], array[:pad]]) for array in batch]
             for part in rows for pad in [data.draw(st.integers(0, 2))]]
    for part, kept in zip(parts, rows, strict=True):
        part[3][len(kept):] = -1
    [whole], together = run([batch], sample_size=size)
    added, apart = run(parts, sample_size=size)
    for values, kind in zip(whole, range(2), strict=True):
        for part, kept in zip(added, rows, strict=True):
            np.testing.assert_array_equal(part[kind][:len(kept)], values[kept])
            assert np.isnan(part[kind][len(kept):]).all()
    assert_alike(apart.results(), together.results())
    for k in range(len(PAIRS)):
        np.testing.assert_array_equal(apart.sample(k), together.sample(k))
        np.testing.assert_array_equal(apart.sample(k, 2), np.array(together.sample(k))[:, :2])


@pytest.mark.parametrize('level', [0.1, 1 / 3, 1e8 + 1 / 3, 1e-30])
def test_series_that_is_constant_over_all_samples(level):
    """Also where the first samples lack it; its partner differs, so only one of them is odd."""
    rng = np.random.default_rng(0)
    statistics = Correlations(2, [(0, 1)])
    for k in range(4):
        series = rng.random((5, 2, 7))
        present = np.ones((5, 2), bool)
        present[:3 if k == 0 else 0, 0] = False
        series[present[:, 0], 0] = level
        statistics.add(series, present, rng.random((5, 7)) < 0.8, np.arange(5 * k, 5 * k + 5))
    [result] = statistics.results()
    assert result['n'] == 0 and result['n_constant'] == 17 and result['n_clips'] > 70
    assert result['pearson_pooled'] is None and result['spearman_pooled'] is None


def test_no_samples_and_only_padding():
    nothing = Correlations(N_SERIES, PAIRS).results()
    batch = (np.ones((2, N_SERIES, 3)), np.ones((2, N_SERIES), bool), np.ones((2, 3), bool))
    _, padding = run([(*batch, [-1, -1])])
    _, empty = run([[np.asarray(part)[:0] for part in (*batch, [0, 1])]])
    assert nothing == padding.results() == empty.results()
    for result in nothing:
        assert result['n'] == result['n_clips'] == sum(result['pearson_histogram']) == 0
        assert result['pearson'] is result['spearman_pooled'] is result['pearson_std'] is None


def test_bounds_of_the_histogram_and_own_bins():
    """Of two clips correlations are -1 and 1: the first and the last bin."""
    series = np.zeros((3, N_SERIES, 2))
    series[:, 0], series[:, 1] = [0, 1], [[0, 1], [1, 0], [2, 3]]
    statistics = Correlations(N_SERIES, [(0, 1)], bins=[-1, -0.5, 0.5, 1])
    statistics.add(series, np.ones((3, N_SERIES), bool), np.ones((3, 2), bool), np.arange(3))
    [result] = statistics.results()
    assert result['pearson_histogram'] == result['spearman_histogram'] == [1, 0, 2]


def test_without_pooling():
    """The same but for what is pooled, also where pairs come in several chunks."""
    rng = np.random.default_rng(0)
    present, mask = rng.random((2, 30)) < 0.8, rng.random((2, 700)) < 0.8
    batch = (rng.random((2, 30, 700)), present, mask, [0, 1])
    pairs = list(itertools.combinations(range(30), 2))
    assert 2 * 700 * len(pairs) > 2 * correlation.CHUNK
    pooled, alone = Correlations(30, pairs), Correlations(30, pairs, pooled=False)
    for ours, theirs in zip(alone.add(*batch), pooled.add(*batch), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    extra = {'pearson_pooled', 'spearman_pooled', 'n_clips', 'pooled_exact'}
    for ours, theirs in zip(alone.results(), pooled.results(), strict=True):
        assert ours == {name: value for name, value in theirs.items() if name not in extra}
    k = pairs.index((7, 22))
    values = alone.add(*batch)
    for b in range(2):
        both = batch[1][b, 7] and batch[1][b, 22]
        for kind, found in zip(KINDS, values, strict=True):
            expected = by_scipy(kind, *batch[0][b, [7, 22]][:, batch[2][b]]) if both else np.nan
            np.testing.assert_allclose(found[b, k], expected, atol=1e-12)


@pytest.mark.parametrize('odd', [np.nan, np.inf])
def test_numbers_that_are_not_finite(odd):
    series = np.random.default_rng(0).random((2, N_SERIES, 5))
    present, mask = np.ones((2, N_SERIES), bool), np.ones((2, 5), bool)
    series[1, 2, 3] = odd
    with pytest.raises(UserError, match=f'^record 12: series 2 at clip 3: found {odd}, expected f'):
        run([(series, present, mask, [11, 12])])
    present[1, 2] = False
    run([(series, present, mask, [11, 12])])
    run([(series, np.ones((2, N_SERIES), bool), mask, [11, -1])])


def test_another_number_of_series():
    with pytest.raises(ValueError, match='3 series, expected 4'):
        run([(np.ones((1, 3, 5)), np.ones((1, 3), bool), np.ones((1, 5), bool), [0])])


# The sample of clips --------------------------------------------------------------------------


def long_split(n_samples=600, n_clips=20):
    rng = np.random.default_rng(0)
    series = rng.random((n_samples, N_SERIES, n_clips)) + np.arange(n_clips) / n_clips
    present = np.ones((n_samples, N_SERIES), bool)
    present[:, 3] = rng.random(n_samples) < 0.5
    mask = np.arange(n_clips) < rng.integers(n_clips // 2, n_clips + 1, n_samples)[:, None]
    return series, present, mask, np.arange(n_samples)


@pytest.mark.parametrize('size', [100, 1000])
def test_sample_of_clips(size):
    batch = long_split()
    found = []
    for n_parts, order in ((1, slice(None)), (7, slice(None)), (40, slice(None, None, -1))):
        statistics = Correlations(N_SERIES, PAIRS, sample_size=size)
        for part in zip(*(np.array_split(array[order], n_parts) for array in batch)):
            statistics.add(*part)
            # A view would keep all of the batch that it is cut from.
            chunks = [values for _, values in statistics.clips.chunks]
            held = sum((chunk if chunk.base is None else chunk.base).size for chunk in chunks)
            assert held <= N_SERIES * 2 * size
            if n_parts == 40:
                statistics.results()  # asking does not change what comes later
        found.append([statistics.sample(k) for k in range(3)] + [
            [row['spearman_pooled'] for row in statistics.results()]])
    for other in found[1:]:
        for ours, theirs in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    # Clips of the split, each at most once, with the right partner.
    clips = batch[0].transpose(0, 2, 1)[batch[2]]
    for (i, j), (x, y) in zip(PAIRS, found[0][:3]):
        assert len(set(zip(x, y))) == x.size == size
        assert set(zip(x, y)) <= set(map(tuple, clips[:, [i, j]]))


def test_sample_is_near_the_truth():
    """Within 4 standard errors, 1 / sqrt(size); and Pearson stays exact."""
    size = 2000
    _, sampled = run([long_split()], sample_size=size)
    _, whole = run([long_split()])
    for ours, theirs in zip(sampled.results(), whole.results(), strict=True):
        assert theirs['pooled_exact'] and not ours['pooled_exact']
        assert ours['n_clips'] == theirs['n_clips'] > size
        assert ours['pearson_pooled'] == theirs['pearson_pooled']
        assert ours['spearman_pooled'] == pytest.approx(theirs['spearman_pooled'],
                                                        abs=4 / math.sqrt(size / 2))
    assert sampled.results()[0]['spearman_pooled'] != whole.results()[0]['spearman_pooled']


def test_sample_is_uniform():
    """Kept clips by record and by place in the video: as many as chance lets expect."""
    n_samples, n_clips, size = 500, 40, 5000
    place = np.broadcast_to(np.arange(n_clips, dtype=float), (n_samples, n_clips))
    record = np.broadcast_to(np.arange(n_samples, dtype=float)[:, None], place.shape)
    statistics = Correlations(2, [(0, 1)], sample_size=size)
    statistics.add(np.stack([record, place], axis=1), np.ones((n_samples, 2), bool),
                   np.ones(place.shape, bool), np.arange(n_samples))
    record, place = statistics.sample(0)
    assert record.size == size
    for values, n in ((record, 50), (place, n_clips)):
        counts, _ = np.histogram(values, n, (0, values.max() + 1))
        assert stats.chisquare(counts).pvalue > 1e-3
    assert abs(stats.spearmanr(record, place).statistic) < 4 / math.sqrt(size)
    # The first of the stored clips are a sample in their turn.
    counts, _ = np.histogram(statistics.sample(0, 1000)[1], 10, (0, n_clips))
    assert counts.sum() == 1000 and stats.chisquare(counts).pvalue > 1e-3


def test_as_many_clips_as_are_stored_are_exact():
    batch = long_split(n_samples=30)
    n_clips = int(batch[2].sum())
    for size, exact in ((n_clips, True), (n_clips - 1, False)):
        _, statistics = run([batch], sample_size=size)
        assert statistics.results()[0]['pooled_exact'] is exact

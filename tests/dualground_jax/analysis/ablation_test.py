"""Token ablation: edits of the text, partners, scores against the official metrics, reliance."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.tokens import EOS, MEAN, PADDING, PUNCTUATION, START, WORD
from dualground_jax.analysis import ablation
from dualground_jax.analysis.ablation import CONDITIONS
from dualground_jax.metrics import official

LENGTH = 7


def make_texts(seed, sizes=((1, 3), (1, 0), (2, 4), (0, 1))):
    """Queries of (start rows, words) with [EOS]; the first feature is a number of the token."""
    rng = np.random.default_rng(seed)
    text, role = np.zeros((len(sizes), LENGTH, 2), np.float32), np.zeros((len(sizes), LENGTH), int)
    for row, (starts, words) in enumerate(sizes):
        kinds = [START] * starts + rng.choice([WORD, PUNCTUATION], words).tolist() + [EOS]
        role[row, : len(kinds)] = kinds
        text[row, : len(kinds), 0] = 100 * seed + 10 * row + np.arange(len(kinds)) + 1
    return dict(text=text, text_role=role, index=np.arange(len(sizes)))


def slow_edit(batch, condition, other):
    """Token lists, one query at a time."""
    found = []
    for b in range(len(batch['text'])):
        def tokens_of(of, keep, b=b):
            return [(r, x) for r, x in zip(of['text_role'][b], of['text'][b, :, 0])
                    if r != PADDING and keep(r)]
        kept = tokens_of(batch, lambda r: r not in condition.masked | condition.swapped)
        kept += tokens_of(other, lambda r: r in condition.swapped) if condition.swapped else []
        parts = ([t for t in kept if t[0] == START],
                 [t for t in kept if t[0] in (WORD, PUNCTUATION)],
                 [t for t in kept if t[0] in (EOS, MEAN)])
        found.append(list(itertools.chain(*parts))[:LENGTH])
    return found


@pytest.mark.parametrize('name', CONDITIONS)
def test_edits_equal_lists_of_tokens(name):
    batch, other = make_texts(1), make_texts(2, ((1, 2), (1, 3), (0, 3), (0, 5)))
    untouched = {key: value.copy() for key, value in batch.items()}
    edited = ablation.edit_text(batch, CONDITIONS[name], other)
    for b, expected in enumerate(slow_edit(batch, CONDITIONS[name], other)):
        n = len(expected)
        assert list(zip(edited['text_role'][b, :n], edited['text'][b, :n, 0])) == expected
        assert not edited['text_role'][b, n:].any() and not edited['text'][b, n:].any()
    assert edited['text'].shape == batch['text'].shape and edited['index'] is batch['index']
    for key, value in untouched.items():
        np.testing.assert_array_equal(batch[key], value)


def test_unchanged_text_stays():
    batch = make_texts(3)
    edited = ablation.edit_text(batch, CONDITIONS['full'], None)
    np.testing.assert_array_equal(edited['text'], batch['text'])


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.integers(0, 3))
def test_partners_are_a_permutation_without_own_video(source, seed):
    source = np.array(source)
    found = ablation.partners(source, seed)
    if 2 * np.unique(source, return_counts=True)[1].max() > len(source):
        assert found is None
    else:
        assert sorted(found) == list(range(len(source)))
        assert (source[found] != source).all()
        np.testing.assert_array_equal(found, ablation.partners(source, seed))


def test_conditions_that_a_model_cannot_tell_apart_are_one():
    same = ablation.distinct_conditions({WORD, EOS})
    assert same['mask_start'] == same['mask_punctuation'] == 'full'
    assert same['mask_words'] == 'mask_words' and same['swap_text'] == 'swap_text'
    same = ablation.distinct_conditions({EOS})
    assert same['mask_words'] == same['swap_words'] == 'full'
    assert same['mask_text'] == 'mask_eos' and same['swap_text'] == 'swap_eos'


# Scores ---------------------------------------------------------------------------------------


def make_rows(n=23, seed=0):
    """Predictions and annotations of n queries with windows of all lengths."""
    rng = np.random.default_rng(seed)
    predictions, annotations = [], []
    for qid in range(n):
        start, length = rng.integers(0, 40), rng.choice([6, 20, 60])
        annotations.append(dict(
            qid=qid, query='x ' * int(rng.integers(3, 25)), vid=f'v{qid}', duration=150,
            relevant_windows=[[int(start), int(start + length)]]))
        shift = rng.normal(0, 6, (3, 2))
        windows = np.sort(np.array([start, start + length]) + shift, axis=1)
        scores = np.sort(rng.random(3))[::-1]
        predictions.append(dict(
            qid=qid, query='', vid=f'v{qid}',
            pred_relevant_windows=np.column_stack([windows, scores]).tolist()))
    return predictions, annotations


def score(predictions, annotations):
    return official.columns(official.per_query(predictions, annotations))


def columns_of(names, values, weights, number=float):
    return official.Columns(names, values, weights, official.Protocol((), number, 2))


def test_scores_are_the_official_metrics():
    predictions, annotations = make_rows()
    scores = score(predictions, annotations)
    expected = official.evaluate(predictions, annotations)['brief']
    brief = scores.brief()
    assert brief and {name: expected[name] for name in brief} == pytest.approx(brief)
    kept = np.arange(len(predictions)) % 2 == 0
    half = official.evaluate([p for p in predictions if p['qid'] % 2 == 0],
                            [a for a in annotations if a['qid'] % 2 == 0])['brief']
    assert scores.brief(kept) == pytest.approx({name: half[name] for name in scores.brief(kept)})


def test_means_are_weighted():
    scores = columns_of(['a', 'b'], np.array([[1.0, 5], [3, 7], [9, 9]]),
                        np.array([[1.0, 0], [3, 0], [0, 0]]))
    assert scores.brief() == {'a': 2.5}, 'no query counts for b'
    assert scores.brief(np.array([False, True, True])) == {'a': 3.0}


SELECTION = ('MR-full-mAP',)


def resampled_of(levels, n=200, noise=0.0):
    """Performances where each condition has the same score on every query, plus noise."""
    rng = np.random.default_rng(0)
    scores = {}
    for name in CONDITIONS:
        values = levels.get(name, 0.5) + noise * rng.normal(size=(n, 1))
        scores[name] = columns_of(list(SELECTION), values, np.ones((n, 1)),
                                  lambda mean: 100 * mean)
    return ablation.resample(scores, SELECTION)


def levels(nothing, eos, words, full):
    return dict(full=full, mask_words=eos, mask_eos=words, mask_text=nothing)


@pytest.mark.parametrize('level, expected', [
    (levels(0.2, 0.8, 0.2, 0.8), 1.0),  # [EOS] does all
    (levels(0.2, 0.2, 0.8, 0.8), 0.0),  # the words do
    (levels(0.2, 0.8, 0.8, 0.8), 0.5),  # either will do
    (levels(0.2, 0.2, 0.2, 0.8), 0.5),  # only both do
    (levels(0.2, 0.4, 0.6, 0.8), 1 / 3),  # they add up
    (levels(0.2, 0.1, 0.9, 0.8), 0.0),  # [EOS] harms: not below 0
])
def test_reliance_is_the_shapley_share(level, expected):
    found = ablation.reliance(resampled_of(level))
    assert found['value'] == pytest.approx(expected, abs=1e-9)
    assert found['low'] == pytest.approx(expected) and found['high'] == pytest.approx(expected)


def test_reliance_of_a_text_that_adds_nothing():
    nothing = dict(value=0.0, low=0.0, high=0.0)
    assert ablation.reliance(resampled_of(levels(0.5, 0.5, 0.5, 0.5))) == dict(
        value=None, low=0.0, high=1.0, gain_of_text=nothing)
    unsure = ablation.reliance(resampled_of(levels(0.5, 0.5, 0.5, 0.502), noise=0.3))
    assert (unsure['low'], unsure['high']) == (0.0, 1.0)
    # Where it adds something by chance, [EOS] has all of that in each draw; that says nothing.
    rng = np.random.default_rng(0)
    with_eos, without = rng.normal(0.51, 0.3, 100), rng.normal(0.5, 0.3, 100)
    value = dict(full=0.51, mask_words=0.51, mask_eos=0.5, mask_text=0.5)
    draws = dict(full=with_eos, mask_words=with_eos, mask_eos=without, mask_text=without)
    found = ablation.reliance(ablation.Resampled(value, draws))
    assert (found['value'], found['low'], found['high']) == (1.0, 0.0, 1.0)
    assert found['gain_of_text']['value'] == pytest.approx(0.01)
    assert found['gain_of_text']['low'] < 0 < found['gain_of_text']['high']


def test_interval_holds_the_value_and_shrinks_with_queries():
    def width(n):
        found = ablation.reliance(resampled_of(levels(0.2, 0.5, 0.6, 0.9), n=n, noise=0.2))
        assert found['low'] < found['value'] < found['high']
        return found['high'] - found['low']

    assert width(2000) < width(100) / 2


def test_performance_is_the_mean_of_the_selected_metrics():
    predictions, annotations = make_rows()
    scores = dict(full=score(predictions, annotations))
    selection = ('MR-full-R1@0.5', 'MR-full-mAP')
    brief = official.evaluate(predictions, annotations)['brief']
    resampled = ablation.resample(scores, selection)
    assert resampled.value['full'] == pytest.approx(
        np.mean([brief[name] for name in selection]), abs=0.01)
    found = resampled.interval(lambda p: p['full'])
    assert found['low'] < found['value'] < found['high']


def test_gains_by_length_are_those_of_the_bins_alone():
    predictions, annotations = make_rows(60)
    worse = make_rows(60, seed=1)[0]
    conditions = dict(full=predictions, mask_words=worse, mask_eos=predictions)
    scores = {name: score(rows, annotations) for name, rows in conditions.items()}
    words = np.array([len(row['query'].split()) for row in annotations])
    found = ablation.length_gains(scores, SELECTION, words)
    for name, (low, high) in dict(zip(found['by_query_length'], [(0, 10), (10, 15), (15, 20),
                                                                 (20, 99)])).items():
        qids = {row['qid'] for row, n in zip(annotations, words) if low < n <= high}
        part = [official.evaluate([r for r in rows if r['qid'] in qids],
                                 [r for r in annotations if r['qid'] in qids])['brief']
                for rows in (predictions, worse)]
        row = found['by_query_length'][name]
        assert row['queries'] == len(qids)
        assert row['full']['value'] == pytest.approx(part[0]['MR-full-mAP'], abs=0.01)
        gain = part[0]['MR-full-mAP'] - part[1]['MR-full-mAP']
        assert row['gain_of_words']['value'] == pytest.approx(gain, abs=0.02)
        assert row['gain_of_eos']['value'] == row['gain_of_eos']['high'] == 0
    brief = official.evaluate(predictions, annotations)['brief']
    for name, row in found['by_window_length'].items():
        assert row['full']['value'] == pytest.approx(brief[f'MR-{name}-mAP'], abs=0.01)
    assert set(found['by_window_length']) == {'short', 'middle', 'long'}
    overall = found['overall']['all']
    assert overall['full']['value'] == pytest.approx(brief['MR-full-mAP'], abs=0.01)
    assert overall['queries'] == 60


def test_draws_are_paired():
    """The same queries are drawn for each condition: a constant difference has no spread."""
    rng = np.random.default_rng(0)
    values = rng.random((50, 1))
    scores = {name: columns_of(list(SELECTION), values + shift, np.ones((50, 1)))
              for name, shift in dict(full=0.5, mask_words=0.0).items()}
    found = ablation.resample(scores, SELECTION).interval(lambda p: p['full'] - p['mask_words'])
    assert found['high'] - found['low'] < 1e-9 and found['value'] == pytest.approx(0.5)

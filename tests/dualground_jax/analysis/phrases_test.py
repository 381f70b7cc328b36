"""Entropy, overlap, weights and likeness of phrases, by hand and against scipy."""

import numpy as np
import pytest
import scipy.stats

from data_pipelines.tokens import EOS, PADDING, PUNCTUATION, WORD
from dualground_jax.analysis import phrases

UNIFORM, FIRST, SECOND = [0.25] * 4, [1.0, 0, 0, 0], [0, 1.0, 0, 0]


@pytest.mark.parametrize('weights, entropy, overlap', [
    ([UNIFORM, UNIFORM], [1, 1], 1),
    ([FIRST, SECOND], [0, 0], 0),
    ([FIRST, [0.5, 0.5, 0, 0]], [0, 0.5], 0.5),
    ([UNIFORM, FIRST, FIRST], [1, 0, 0], (0.25 + 0.25 + 1) / 3),
    ([FIRST], [0], np.nan),
])
def test_by_hand(weights, entropy, overlap):
    weights = np.array([weights])
    np.testing.assert_allclose(phrases.entropy(weights, np.array([4])), [entropy], atol=1e-12)
    np.testing.assert_allclose(phrases.overlap(weights), [overlap])


def test_one_word_has_no_entropy():
    assert np.isnan(phrases.entropy(np.array([[[1.0, 0, 0]]]), np.array([1]))).all()


@pytest.mark.parametrize('a, b, c', [(1, 0, 0), (0, 1, 0), (3, 1, 0), (1, 3, 5)])
def test_planted_shares_of_variance(a, b, c):
    """Two queries at +-a, in each two phrases at +-b of it, all at c: three directions of space."""
    found = np.array([[[x, y, c] for y in (b, -b)] for x in (a, -a)], float)
    assert phrases.variance_within(found) == pytest.approx(b**2 / (a**2 + b**2))
    for shift, square in ((0, a**2 + b**2 + c**2), ([0, 0, c], a**2 + b**2)):
        height = square - a**2 - b**2
        within, between = phrases.cosines(found - shift)
        np.testing.assert_allclose(within, [(a**2 - b**2 + height) / square] * 2)
        assert between == pytest.approx((height - a**2) / square)


def test_likeness_is_nothing_of_one_phrase_one_query_or_equal_ones():
    rng = np.random.default_rng(0)
    alone, one_query = rng.normal(size=(5, 1, 4)), rng.normal(size=(1, 3, 4))
    assert np.isnan(phrases.cosines(alone)[0]).all() and np.isnan(phrases.cosines(one_query)[1])
    for embeddings in (alone, one_query, np.ones((5, 3, 4))):
        assert np.isnan(phrases.variance_within(embeddings))
    within, between = phrases.cosines(np.zeros((2, 2, 4)))
    assert not within.any() and between == 0


def test_unrelated_phrases_share_the_variance_by_their_number():
    embeddings = np.random.default_rng(0).normal(size=(2000, 4, 8))
    assert phrases.variance_within(embeddings) == pytest.approx(3 / 4, abs=0.01)
    within, between = phrases.cosines(embeddings)
    assert abs(within.mean()) < 0.01 and abs(between) < 1e-3


def make_batch(rng, counts, n_phrases=3, length=6, layers=2, heads=2, index=0):
    """Random weights over each query's words; text_role has a mark among the words."""
    role = np.full((len(counts), length + 1), PADDING)
    mask = np.arange(length) < np.array(counts)[:, None]
    role[:, :length][mask] = WORD
    role[np.array(counts) > 1, 1] = PUNCTUATION
    role[np.arange(len(counts)), counts] = EOS

    def distributions(*shape):
        weights = rng.random((len(counts), *shape, length)) * mask.reshape(
            len(counts), *[1] * len(shape), length)
        return weights / np.maximum(weights.sum(-1, keepdims=True), 1e-9)

    out = dict(phrases=np.float32(rng.normal(2, 1, (len(counts), n_phrases, 4))),
               phrase_attention=distributions(n_phrases),
               slot_attention=distributions(layers, heads, n_phrases),
               phrase_weights=rng.dirichlet(np.ones(n_phrases), len(counts)))
    return out, dict(index=np.arange(len(counts)) + index, text_role=role)


def test_split_statistics_equal_loops_over_queries():
    rng = np.random.default_rng(0)
    parts = [make_batch(rng, [6, 3, 0]), make_batch(rng, [1, 4, 5], index=3)]
    parts[1][1]['index'][2] = -1  # padding of the batch
    study = phrases.PhraseStudy()
    entropies, overlaps, effective, shares, embeddings = [], [], [], [], []
    for out, batch in parts:
        study.add(out, batch)
        for b, index in enumerate(batch['index']):
            count = np.isin(batch['text_role'][b], (WORD, PUNCTUATION)).sum()
            if index < 0 or not count:
                continue
            refined = out['slot_attention'][b, -1].mean(0)
            if count > 1:
                entropies.append(scipy.stats.entropy(refined.T).mean() / np.log(count))
            overlaps.append(np.mean([np.minimum(refined[i], refined[j]).sum()
                                     for i in range(3) for j in range(i)]))
            effective.append(np.exp(scipy.stats.entropy(out['phrase_weights'][b])))
            shares.append(out['phrase_weights'][b])
            embeddings.append(out['phrases'][b].astype(float))
    found = study.results()
    assert found['n'] == 4
    for name, values in dict(slot_entropy=entropies, slot_overlap=overlaps,
                             effective_phrases=effective).items():
        assert found[name]['mean'] == pytest.approx(np.mean(values))
        assert found[name]['std'] == pytest.approx(np.std(values))
    assert found['phrase_weights'] == pytest.approx(np.mean(shares, 0))
    assert found['generator_entropy']['mean'] != pytest.approx(found['slot_entropy']['mean'])

    centre = np.mean(embeddings, (0, 1))
    cosine = lambda x, y: x @ y / np.sqrt((x @ x) * (y @ y))
    for name, rows in (('cosine', embeddings), ('centred', [x - centre for x in embeddings])):
        within = [np.mean([cosine(x[i], x[j]) for i in range(3) for j in range(i)]) for x in rows]
        between = [cosine(x, y) for q in range(4) for p in range(q)
                   for x in rows[q] for y in rows[p]]
        assert found[f'{name}_within'] == pytest.approx(dict(mean=np.mean(within),
                                                             std=np.std(within)))
        assert found[f'{name}_between'] == dict(mean=pytest.approx(np.mean(between)), std=None)
    inside = [((x - x.mean(0)) ** 2).sum() for x in embeddings]
    total = [((x - centre) ** 2).sum() for x in embeddings]
    assert found['variance_within'] == dict(
        mean=pytest.approx(np.sum(inside) / np.sum(total)), std=None)


def test_a_model_that_sees_no_words_has_no_phrases():
    out, batch = make_batch(np.random.default_rng(0), [3, 2])
    study = phrases.PhraseStudy()
    study.add(dict(out, phrase_attention=0 * out['phrase_attention']), batch)
    assert not study.rows

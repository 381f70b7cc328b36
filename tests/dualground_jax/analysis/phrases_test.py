"""Entropy, overlap and weights of phrases, by hand and against scipy."""

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

    out = dict(phrase_attention=distributions(n_phrases),
               slot_attention=distributions(layers, heads, n_phrases),
               phrase_weights=rng.dirichlet(np.ones(n_phrases), len(counts)))
    return out, dict(index=np.arange(len(counts)) + index, text_role=role)


def test_split_statistics_equal_loops_over_queries():
    rng = np.random.default_rng(0)
    parts = [make_batch(rng, [6, 3, 0]), make_batch(rng, [1, 4, 5], index=3)]
    parts[1][1]['index'][2] = -1  # padding of the batch
    study = phrases.PhraseStudy()
    entropies, overlaps, effective, shares = [], [], [], []
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
    found = study.results()
    assert found['n'] == 4
    for name, values in dict(slot_entropy=entropies, slot_overlap=overlaps,
                             effective_phrases=effective).items():
        assert found[name]['mean'] == pytest.approx(np.mean(values))
        assert found[name]['std'] == pytest.approx(np.std(values))
    assert found['phrase_weights'] == pytest.approx(np.mean(shares, 0))
    assert found['generator_entropy']['mean'] != pytest.approx(found['slot_entropy']['mean'])

"""Losses and spans against plain numpy and scipy on random input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.optimize import linear_sum_assignment

from dualground_jax import losses, spans
from dualground_jax.models import highlight, pyramid


@pytest.fixture(name='rng')
def random_source():
    return np.random.default_rng(0)


def slow_iou(a, b):
    inter = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = a[1] - a[0] + b[1] - b[0] - inter
    return inter / union if union else 0.0


def test_overlaps(rng):
    a, b = np.sort(rng.integers(0, 6, (2, 60, 2)).astype(np.float32), -1)
    found, generalized = spans.iou(a, b), spans.generalized_iou(a, b)
    for x, y, i, g in zip(a, b, found, generalized, strict=True):
        hull = max(x[1], y[1]) - min(x[0], y[0])
        union = x[1] - x[0] + y[1] - y[0] - max(0, min(x[1], y[1]) - max(x[0], y[0]))
        assert i == pytest.approx(slow_iou(x, y))
        assert g == pytest.approx(slow_iou(x, y) - ((hull - union) / hull if hull else 0), abs=1e-6)
    as_spans = np.stack([a.mean(-1), a[:, 1] - a[:, 0]], -1)
    np.testing.assert_allclose(spans.spans_to_windows(as_spans), a, atol=1e-6)


@pytest.mark.parametrize('threshold', [0.3, 0.7, 1.1])
def test_nms_against_a_loop(rng, threshold):
    for _ in range(20):
        windows = np.sort(rng.uniform(0, 10, (12, 2)), -1)
        rows = np.concatenate([windows, rng.permutation(12)[:, None] / 12 + 0.01], 1)
        rows[-2:] = [0, 0, -1]
        best_first = sorted(rows.tolist(), key=lambda r: -r[2])
        kept = []
        for row in best_first:
            if row[2] > 0 and all(slow_iou(row, k) < threshold for k in kept):
                kept.append(row)
        found = np.asarray(spans.nms(jnp.asarray(rows, jnp.float32), threshold))
        np.testing.assert_allclose(found[: len(kept)], kept, atol=1e-5)
        rest = found[len(kept) :]
        assert (rest[:-2, 2] == 0).all() and (rest[-2:, 2] == -1).all()
        assert sorted(found[:, 0]) == pytest.approx(sorted(rows[:, 0]), abs=1e-5)


def test_negative_pairs_and_the_batch_can_be_left_out(rng):
    scores, labels = (jnp.asarray(rng.uniform(0.1, 0.9, (3, 5)), jnp.float32) for _ in range(2))
    clips = jnp.array([[0, 1], [2, 3], [4, 0]])
    mask, pairs_mask = jnp.ones((3, 5), bool), jnp.ones(3, bool)
    batch = dict(saliency=labels, video_mask=mask, pos_clips=clips, neg_clips=clips[:, ::-1],
                 pairs_mask=pairs_mask, graded=jnp.ones(3, bool))
    names = ('saliency', 'saliency_neg', 'text_weight', 'text_weight_neg')
    out = dict.fromkeys(names, scores) | dict(real_neg=jnp.array([1, 1, 0], bool))
    for attn, absent in ((0, np.log1p(np.exp(scores))),
                         (2, np.log1p(np.exp(scores)) - 2 * np.log(1 - scores))):
        config = dict(attn=attn, margin=0.2, margin_weight=1.0)
        both = [highlight.saliency_loss(out, batch, ConfigDict(config | dict(absence_weight=w)))
                for w in (1, 0)]
        assert both[0] - both[1] == pytest.approx(absent[:2].sum(1).mean(), rel=1e-4)
    # A sample without grades, and without a real negative pair, teaches nothing about highlights.
    ungraded = batch | dict(
        saliency=labels.at[2].set(0), graded=jnp.array([1, 1, 0], bool), pairs_mask=jnp.array(
            [1, 1, 0], bool))
    config = ConfigDict(dict(attn=1.0, margin=0.2, margin_weight=1.0, absence_weight=1.0))
    grads = jax.grad(lambda x: highlight.saliency_loss(x | dict(real_neg=out['real_neg']), ungraded,
                                                       config))({k: out[k] for k in names})
    assert all(g[:2].any() and not g[2].any() for g in grads.values())
    nce = dict(similarity=scores, labels=jnp.zeros((3, 5)), pos_clips=clips[:, 0],
               mask=mask, pairs_mask=pairs_mask, temperature=0.5)
    own = np.asarray(scores)[np.arange(3), clips[:, 0]]
    expected = np.mean(np.log(np.exp(2 * scores).sum(1)) - 2 * own)
    assert losses.sampled_nce(**nce, over_batch=False) == pytest.approx(expected, rel=1e-5)
    assert losses.sampled_nce(**nce) > losses.sampled_nce(**nce, over_batch=False)


@pytest.mark.parametrize('queries, targets', [(4, 3), (2, 3)])
def test_set_prediction_against_scipy(rng, queries, targets):
    size = 5
    logits = rng.normal(size=(size, queries, 2)).astype(np.float32)
    pred = rng.uniform(0.1, 0.9, (size, queries, 2)).astype(np.float32)
    true = rng.uniform(0.1, 0.9, (size, targets, 2)).astype(np.float32)
    mask = np.arange(targets) < np.array([0, 1, 2, 3, 3])[:, None]
    weights = dict(span=10.0, giou=1.0, label=4.0)
    values = dict(logits=logits, target_spans=true, targets_mask=mask, cost=weights)
    found = losses.set_prediction(spans=pred, background=0.1, **values)
    span, overlap, entropy = [], [], []
    for b in range(size):
        probability = np.exp(logits[b]) / np.exp(logits[b]).sum(-1, keepdims=True)
        windows = [(c - w / 2, c + w / 2) for c, w in pred[b]]
        goals = [(c - w / 2, c + w / 2) for c, w in true[b][mask[b]]]
        giou = np.array([[float(spans.generalized_iou(np.float32(p), np.float32(g)))
                          for g in goals] for p in windows]).reshape(queries, len(goals))
        l1 = np.abs(pred[b][:, None] - true[b][mask[b]][None]).sum(-1)
        rows, columns = linear_sum_assignment(10 * l1 - giou - 4 * probability[:, :1])
        span += (np.abs(pred[b][rows] - true[b][mask[b]][columns])).ravel().tolist()
        overlap += (1 - giou[rows, columns]).tolist()
        for q in range(queries):
            is_matched = q in rows
            entropy.append(-np.log(probability[q, 0 if is_matched else 1])
                           * (1 if is_matched else 0.1))
    np.testing.assert_allclose(found['span'], np.mean(span), rtol=1e-5)
    np.testing.assert_allclose(found['giou'], np.mean(overlap), rtol=1e-5)
    np.testing.assert_allclose(found['query_label'], np.mean(entropy), rtol=1e-5)
    # A prediction that is lost, though another one fits the targets.
    pred[1, 0] = np.nan
    assert np.isnan(list(losses.set_prediction(spans=pred, **values).values())).all()


def test_point_assignment_against_a_loop(rng):
    points = pyramid.pyramid_points(16, (1, 2, 4, 8))
    for _ in range(30):
        windows = np.sort(rng.integers(0, 17, (4, 2)).astype(np.float32), -1)
        mask = (windows[:, 1] > windows[:, 0]) & (rng.random(4) < 0.8)
        positive, offsets = losses.assign_points(jnp.asarray(points), windows, mask)
        for i, (time, low, high, stride) in enumerate(points):
            candidates = []
            for (start, end), real in zip(windows, mask, strict=True):
                centre = (start + end) / 2
                near = abs(time - centre) <= 1.5 * stride and start <= time <= end
                if real and near and low <= max(time - start, end - time) <= high:
                    candidates.append((end - start, (time - start) / stride, (end - time) / stride))
            assert bool(positive[i]) == bool(candidates)
            if candidates:
                shortest = min(length for length, *_ in candidates)
                assert any(
                    np.allclose(offsets[i], c[1:]) for c in candidates if c[0] == shortest
                )
            else:
                assert not np.asarray(offsets[i]).any()


def slow_rank(scores, labels, mask):
    """One row of the rank contrastive loss, as its docstring reads."""
    logits = np.where(mask, scores, -1e3) / 0.5
    log_prob = logits - logits.max()
    log_prob = log_prob - np.log(np.exp(log_prob).sum() + 1e-6)
    total = 0.0
    for r in range(1, 12):
        positive = (labels >= r) & mask
        if positive.any():
            total -= log_prob[positive].sum() / (positive.sum() + 1e-6)
    return total / 12


def test_saliency_losses_against_loops(rng):
    size, clips = 4, 7
    scores, negative = rng.normal(size=(2, size, clips)).astype(np.float32)
    mask = np.arange(clips) < np.array([7, 5, 1, 3])[:, None]
    labels = rng.integers(0, 13, (size, clips)) * mask
    real = np.array([True, False, True, False])
    found = losses.rank_with_negatives(
        scores=scores, scores_neg=negative, labels=labels.astype(np.float32), mask=mask,
        real_neg=real,
    )
    with_pair = [
        slow_rank(
            np.concatenate([scores[b], negative[b]]), np.concatenate([labels[b], 0 * labels[b]]),
            np.concatenate([mask[b], mask[b]]),
        )
        for b in (0, 2)
    ]
    alone = [slow_rank(scores[b], labels[b], mask[b]) for b in (1, 3)]
    np.testing.assert_allclose(found, np.mean(with_pair) + np.mean(alone), rtol=1e-4)

    found = losses.negative_pair(logits=negative, mask=mask, real_neg=real)
    expected = [-np.log(1 - 1 / (1 + np.exp(-negative[b][mask[b]]))).sum() for b in (0, 2)]
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-5)


def test_sampled_nce_against_a_loop(rng):
    size, clips = 4, 6
    similarity = rng.uniform(-1, 1, (size, clips)).astype(np.float32)
    labels = rng.integers(0, 13, (size, clips)).astype(np.float32)
    mask = np.arange(clips) < np.array([6, 4, 2, 5])[:, None]
    pos = np.array([0, 3, 1, 2])
    used = np.array([True, True, False, True])
    found = losses.sampled_nce(
        similarity=similarity, labels=labels, pos_clips=pos, mask=mask, pairs_mask=used
    )
    logits = np.where(
        mask & (labels <= labels[np.arange(size), pos][:, None]), similarity / 0.07, -np.inf
    )
    terms = []
    for b in np.flatnonzero(used):
        own = logits[b, pos[b]]
        terms.append(np.log(np.exp(logits[b]).sum()) - own
                     + np.log(np.exp(logits[used, pos[b]]).sum()) - own)
    np.testing.assert_allclose(found, np.mean(terms), rtol=1e-4)


def test_info_nce_against_numpy(rng):
    a, b = rng.normal(size=(2, 5, 8)).astype(np.float32)
    mask = np.array([1, 1, 0, 1, 1], bool)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    logits = unit(a)[mask] @ unit(b)[mask].T / 0.1
    expected = (np.log(np.exp(logits).sum(1)) - np.diag(logits)).mean()
    found = losses.info_nce(a, b, mask=mask)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


EXTREMES = {
    'negative_pair': lambda x: losses.negative_pair(
        logits=100 * x, mask=jnp.ones((2, 3), bool), real_neg=jnp.ones(2, bool)
    ),
    'attention of 0 and 1': lambda x: losses.attention_cross_entropy(
        weights=jnp.clip(x * 1e6, 0, 1), labels=jnp.array([[0.0, 1, 0], [1, 0, 1]]),
        mask=jnp.ones((2, 3), bool),
    ),
    'a clip excluded in all samples': lambda x: losses.sampled_nce(
        similarity=x, labels=jnp.array([[0.0, 1, 2], [0, 1, 2]]), pos_clips=jnp.array([0, 0]),
        mask=jnp.ones((2, 3), bool), pairs_mask=jnp.ones(2, bool),
    ),
    'labels all equal': lambda x: losses.label_alignment(
        logits=x, labels=jnp.ones((2, 3)), mask=jnp.ones((2, 3), bool)
    ),
    'nothing positive': lambda x: losses.boundary_l1(
        offsets=x, targets=jnp.zeros((2, 3)), mask=jnp.zeros(2, bool)
    ),
    'nothing valid': lambda x: losses.focal(
        logits=x, labels=jnp.zeros((2, 3), bool), mask=jnp.zeros((2, 3), bool)
    ),
    'zero vectors': lambda x: losses.cosine(x * 0, x).sum(),
}


@pytest.mark.parametrize('name', EXTREMES)
def test_extremes_are_finite_with_finite_gradient(name):
    x = jnp.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    value, gradient = jax.value_and_grad(EXTREMES[name])(x)
    assert np.isfinite(value) and np.isfinite(gradient).all()

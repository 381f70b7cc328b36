"""Matching against scipy's."""

import jax
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from dualground_jax import matching

# Predictions, places for targets.
SHAPES = [(6, 6), (7, 4), (4, 7), (1, 5), (5, 1)]


def costs_of_all_kinds(rng, queries, targets):
    """float32[300, queries, targets]: plain, with ties, large, with forbidden pairs, damaged."""
    cost = rng.normal(size=(300, queries, targets)).astype(np.float32)
    cost[50:100] = cost[50:100].round()
    cost[100:150] *= 1e6
    cost[150:200][rng.random((50, queries, targets)) < 0.3] = np.inf
    for rows, value in ((slice(200, 250), np.nan), (slice(250, 300), -np.inf)):
        cost[rows][rng.random((50, queries, targets)) < 0.1] = value
    return cost


@pytest.mark.parametrize('queries, targets', SHAPES)
def test_as_scipy(queries, targets):
    """As many pairs at the same cost; where scipy raises, none."""
    rng = np.random.default_rng(0)
    costs = costs_of_all_kinds(rng, queries, targets)
    masks = rng.random(costs.shape[::2]) < rng.random((len(costs), 1))
    refused = 0
    for cost, mask, matched in zip(costs, masks, jax.jit(jax.vmap(matching.match))(costs, masks)):
        taken = np.flatnonzero(matched >= 0)
        assert mask[taken].all()
        try:
            rows, columns = linear_sum_assignment(cost[:, mask])
        except ValueError:
            refused += 1
            assert not len(taken)
            continue
        assert len(taken) == len(set(matched[taken].tolist())) == len(rows)
        np.testing.assert_allclose(
            np.float64(cost)[matched[taken], taken].sum(),
            np.float64(cost)[:, mask][rows, columns].sum(),
            atol=1e-6 * (1 + np.abs(cost[np.isfinite(cost)]).max()))
    assert 20 < refused < 200

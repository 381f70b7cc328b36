"""Layers against what SciPy and the definitions say of them."""

import jax
import numpy as np
import pytest
import scipy.special

from dualground_jax.models import layers


@pytest.mark.parametrize('axis', [-1, 1])
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_softmax_and_its_gradient(axis, masked, dtype):
    """The gradient is J g with J = diag(w) - w w^T of each row; a row of nothing has zeros."""
    rng = np.random.default_rng(0)
    logits = jax.numpy.asarray(40 * rng.standard_normal((3, 4, 5)), dtype)
    gradient = rng.standard_normal(logits.shape).astype(np.float32)
    mask = rng.random((3, 1, 5) if axis == -1 else (3, 4, 1)) < 0.6
    mask[1] = False
    weights, pull = jax.vjp(
        lambda x: layers.masked_softmax(x, mask if masked else None, axis), logits)
    there = np.broadcast_to(mask if masked else True, logits.shape)

    rows = np.moveaxis(np.asarray(logits, np.float64), axis, -1)
    valid = np.moveaxis(there, axis, -1)
    expected, of_logits = np.zeros(rows.shape), np.zeros(rows.shape)
    for place in np.ndindex(rows.shape[:-1]):
        own = valid[place]
        w = expected[place][own] = scipy.special.softmax(rows[place][own]) if own.any() else []
        jacobian = np.diag(w) - np.outer(w, w)
        of_logits[place][own] = jacobian @ np.moveaxis(gradient, axis, -1)[place][own]

    assert weights.dtype == 'float32'
    np.testing.assert_allclose(weights, np.moveaxis(expected, -1, axis), rtol=1e-5, atol=1e-7)
    found, = pull(gradient)
    assert found.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(found, np.float64), np.moveaxis(of_logits, -1, axis),
        rtol=1e-5 if dtype == 'float32' else 1e-2, atol=1e-6)

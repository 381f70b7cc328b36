"""Dropout's masks: rates, independence, and what does not change them."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dualground_jax.models.dropout import Dropout, keep_mask

SIZE = 1 << 18
mask = jax.jit(keep_mask, static_argnums=(1, 2))


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
def test_rate_of_whole_masks_rows_and_columns(rate):
    kept = np.asarray(mask(jax.random.key(1), (512, 512), rate))
    for sums, n in ((kept.sum(), SIZE), (kept.sum(0), 512), (kept.sum(1), 512)):
        z = (sums - n * (1 - rate)) / np.sqrt(n * rate * (1 - rate))
        assert np.abs(z).max() < 4.5
        if np.size(z) > 1:
            # As spread as binomial counts are, not evener.
            assert 0.8 < z.var() < 1.2


@pytest.mark.parametrize('rate, most', [(0.1, 1), (0.5, 0), (1.0, 100)])
def test_a_rate_may_be_an_input(rate, most):
    """Rounded to float32, the mask is that of the constant but for an entry in 10^8."""
    key = jax.random.key(1)
    constant, given = mask(key, (SIZE,), rate), jax.jit(keep_mask, static_argnums=1)(
        key, (SIZE,), jnp.float32(rate))
    assert (constant != given).sum() <= most

    def dropped(rate):
        return Dropout(rate).apply({}, jnp.ones(SIZE), deterministic=False, rngs={'dropout': key})

    np.testing.assert_allclose(jax.jit(dropped)(jnp.float32(0.3)), dropped(0.3), rtol=1e-6)


def test_runs_are_as_long_as_those_of_a_coin():
    kept = np.asarray(mask(jax.random.key(2), (SIZE,), 0.5))
    lengths = np.array([len(list(run)) for _, run in itertools.groupby(kept)])
    counts = np.bincount(np.minimum(lengths, 10), minlength=11)[1:]
    shares = np.append(0.5 ** np.arange(1, 10), 0.5**9)
    assert scipy.stats.chisquare(counts, shares * len(lengths)).pvalue > 1e-3


@pytest.mark.parametrize('shape, more', [((5,), (9,)), ((6, 4, 3, 2), (7, 9, 5, 11)), ((), ())])
def test_padding_leaves_the_others_their_masks(shape, more):
    key = jax.random.key(3)
    corner = tuple(map(slice, shape))
    np.testing.assert_array_equal(mask(key, more, 0.5)[corner], mask(key, shape, 0.5))


def test_masks_of_other_keys_and_shifted_masks_are_independent():
    keys = [jax.random.fold_in(jax.random.key(seed), i) for seed in (0, 1) for i in range(6)]
    masks = [np.asarray(mask(key, (SIZE,), 0.5)) - 0.5 for key in keys]
    for a, b in itertools.combinations(masks, 2):
        assert abs((a * b).mean()) * 4 * np.sqrt(SIZE) < 5
    for shift in (1, 2, 3, 64, 256, 1024, 4096, 65536):
        assert abs((masks[0] * np.roll(masks[0], shift)).mean()) * 4 * np.sqrt(SIZE) < 5
        assert abs((masks[0] * np.roll(masks[1], shift)).mean()) * 4 * np.sqrt(SIZE) < 5


def test_no_axis_repeats_another():
    """Masks shifted along several axes at once, as attention's [B, heads, T, K], share nothing."""
    signs = np.asarray(mask(jax.random.key(4), (16, 8, 64, 64), 0.5)) * 2.0 - 1
    for shifts in itertools.product((-3, -1, 0, 1, 2), repeat=4):
        if any(shifts):
            shifted = np.roll(signs, shifts, range(4))
            assert abs((signs * shifted).mean()) * np.sqrt(signs.size) < 5, shifts


def test_module_scales_and_broadcasts():
    x = jnp.ones((64, 5, 7), jnp.bfloat16)
    out = Dropout(0.25).apply({}, x, deterministic=False, rngs={'dropout': jax.random.key(0)})
    assert out.dtype == x.dtype
    assert set(np.unique(out.astype(np.float32))) == {0.0, np.float32(jnp.bfloat16(4 / 3))}
    whole = Dropout(0.5, broadcast_dims=(1, 2), deterministic=False).apply(
        {}, x, rngs={'dropout': jax.random.key(0)})
    assert (whole == whole[:, :1, :1]).all() and len(np.unique(whole)) == 2
    for module in (Dropout(0.5, deterministic=True), Dropout(0.0, deterministic=False)):
        np.testing.assert_array_equal(module.apply({}, x), x)


def test_two_layers_of_a_model_draw_different_masks():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Dropout(0.5)(x, deterministic=False), Dropout(0.5)(x, deterministic=False)

    a, b = Two().apply({}, jnp.ones(1000), rngs={'dropout': jax.random.key(0)})
    assert 400 < (a != b).sum() < 600

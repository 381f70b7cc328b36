"""Non-maximum suppression: the references' numbers, a plain loop, numpy and JAX alike."""

import json
import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import UserError
from dualground_jax import nms, spans
from dualground_jax.metrics import score
from tests.helpers.paths import goldens_dir

FOLDER = goldens_dir() / 'components'
FLASH = FOLDER / 'postprocess_flash.npz'
DETR = FOLDER / 'postprocess_detr_nms.json'
needs_flash = pytest.mark.skipif(not FLASH.is_file(), reason=f'no {FLASH}')
needs_detr = pytest.mark.skipif(not DETR.is_file(), reason=f'no {DETR}')


def predictions_of(lists):
    return [{'qid': i, 'pred_relevant_windows': np.asarray(rows).tolist()}
            for i, rows in enumerate(lists)]


def suppressed(lists, threshold, kind):
    """The numpy form, as it is used on files."""
    found = score.suppress(predictions_of(lists), threshold, kind)
    return [np.array(row['pred_relevant_windows']).reshape(-1, 3) for row in found]


def sort_rows(rows):
    return rows[np.lexsort(rows.T)]


# Numbers of the references --------------------------------------------------------------------


@needs_flash
@pytest.mark.parametrize('source', ['rounded', 'unrounded'])
@pytest.mark.parametrize('kind', ['normal', 'linear'])
def test_flash_vtg_numbers(kind, source):
    """Ties come in any order there, so rows are compared as sets, and scores in order."""
    golden = np.load(FLASH)
    names = [n for n in golden.files if n.startswith(f'nms_{kind}_') and n.endswith(f'_{source}')]
    assert names
    for name in names:
        threshold = float(name.split('_')[2])
        expected = golden[name]
        inputs = golden['post_qvh'] if source == 'rounded' else golden['clamped4'].reshape(
            expected.shape)
        ours = suppressed(inputs, threshold, kind)
        for found, rows in zip(ours, expected, strict=True):
            assert np.isfinite(found).all() and len(found) == len(rows)
            np.testing.assert_array_equal(np.sort(-found[:, 2]), -found[:, 2])
            # Two windows whose lengths add up to 0: NaN there, untouched here.
            lost = np.isnan(rows).any(-1)
            if (rows[lost, 0] < rows[lost, 1]).any():
                continue  # such a row, and only such, then lowers rows that are better than it
            kept = without(found, rows[lost, :2])
            np.testing.assert_allclose(
                sort_rows(kept), sort_rows(rows[~lost]), rtol=0, atol=2e-6, err_msg=name)


def without(rows, windows):
    """Drops one row for each of the given windows."""
    rows = list(rows)
    for window in windows:
        places = [i for i, row in enumerate(rows) if np.allclose(row[:2], window, atol=1e-5)]
        del rows[places[0]]
    return np.array(rows)


@needs_detr
def test_detr_numbers():
    golden, arrays = json.loads(DETR.read_text()), np.load(FOLDER / 'postprocess_detr.npz')
    cases = 0
    for name, expected in golden.items():
        if match := re.fullmatch('(decoded|post)_nms_([0-9.]+)', name):
            found = suppressed(arrays[match[1]], float(match[2]), 'hard')
            for ours, theirs in zip(found, expected, strict=True):
                assert ours.tolist() == theirs
                cases += 1
        if match := re.fullmatch('big_nms_([0-9.]+)_max([0-9]+)', name):
            rows = np.array(golden['big_input'])
            ours = nms.remove(rows, float(match[1]), max_before=len(rows), max_after=int(match[2]))
            assert ours[ours[:, 2] >= 0].tolist() == expected
            cases += 1
    assert cases


# A plain loop ---------------------------------------------------------------------------------


def slow_iou(a, b):
    inter = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - inter
    return Fraction(inter, union) if union else 0


def slow_suppress(rows, threshold, linear):
    rows = [[*row[:2], Fraction(row[2])] for row in rows]
    for i in range(len(rows)):
        best = max(range(i, len(rows)), key=lambda j: (rows[j][2], -j))
        rows[i], rows[best] = rows[best], rows[i]
        for row in rows[i + 1:]:
            iou = slow_iou(rows[i], row)
            if linear:
                row[2] *= 1 - iou
            elif iou >= threshold:
                row[2] = Fraction(0)
    return sorted(rows, key=lambda row: -row[2])


def slow_remove(rows, threshold):
    kept = []
    for row in sorted(rows[:10], key=lambda row: -row[2]):
        if all(slow_iou(row, k) <= threshold for k in kept):
            kept.append(row)
    return kept[:10]


@st.composite
def window_lists(draw, max_size=12):
    start = st.integers(0, 12)
    row = st.tuples(start, st.integers(0, 6), st.integers(0, 8)).map(
        lambda row: [row[0], row[0] + row[1], row[2] / 8])
    return draw(st.lists(row, max_size=max_size))


THRESHOLDS = [Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), Fraction(1)]
PRIMES = [n for n in range(20, 1000) if all(n % d for d in range(2, n))]


def without_ties(rows):
    """The rows with prime scores / 1024: no product with the overlaps of short windows is equal.

    Where exact products are, float32 may order them differently, and what follows is another list.
    """
    primes = lambda i, value: PRIMES[int(8 * value) * 12 + i] / 1024
    return [[start, end, value and primes(i, value)] for i, (start, end, value) in enumerate(rows)]


@settings(max_examples=60, deadline=None)
@given(window_lists(), st.sampled_from(THRESHOLDS))
def test_files_against_a_plain_loop(rows, threshold):
    plain = lambda *args: np.array(slow_suppress(*args), float).reshape(-1, 3)
    [found] = suppressed([rows], float(threshold), 'normal')
    np.testing.assert_array_equal(found, plain(rows, threshold, False))
    apart = without_ties(rows)
    [found] = suppressed([apart], float(threshold), 'linear')
    np.testing.assert_allclose(found, plain(apart, threshold, True), atol=1e-6)
    [found] = suppressed([rows], float(threshold), 'hard')
    assert found.tolist() == slow_remove(rows, threshold)


@settings(max_examples=30, deadline=None)
@given(st.lists(window_lists(), min_size=1, max_size=4), st.sampled_from(nms.KINDS))
def test_a_list_does_not_depend_on_the_lists_beside_it(lists, kind):
    together = suppressed(lists, 0.5, kind)
    alone = [suppressed([rows], 0.5, kind)[0] for rows in lists]
    assert [rows.tolist() for rows in together] == [rows.tolist() for rows in alone]


# numpy and JAX --------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', nms.KINDS)
def test_numpy_and_jax_agree(kind):
    rng = np.random.default_rng(0)
    start = rng.integers(0, 75, (40, 14)) * 2.0
    end = start + rng.integers(0, 20, (40, 14)) * 2.0
    scores = rng.integers(0, 200, (40, 14)) / 200  # ties, zeros
    windows = np.stack([start, end, scores], -1).astype(np.float32)
    windows[:20, 11:, 2] = -1
    run = jax.jit(lambda w: spans.nms(w, 0.5, kind))
    ours = np.asarray(run(jnp.asarray(windows)))
    theirs = nms.nms(windows, 0.5, kind)
    np.testing.assert_array_equal(ours[..., :2], theirs[..., :2])
    np.testing.assert_allclose(ours[..., 2], theirs[..., 2], atol=1e-6)
    mapped = np.asarray(jax.vmap(lambda w: spans.nms(w, 0.5, kind))(jnp.asarray(windows)))
    np.testing.assert_array_equal(mapped, ours)
    # What is absent stays absent, and comes last.
    assert (ours[:20, -3:, 2] == -1).all() or kind == 'hard'
    for rows, plain in zip(theirs[:20], suppressed(windows[:20, :11], 0.5, kind), strict=True):
        np.testing.assert_allclose(rows[rows[:, 2] >= 0], plain, atol=1e-6)


# Mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize('text', ['normal', 'soft:0.5', 'normal:x', 'hard:1.5', 'hard:nan', '0.7'])
def test_bad_setting_lists_what_is_known(text):
    with pytest.raises(UserError, match='expected KIND:THRESHOLD with a kind of normal, linear'):
        score.parse_nms(text)


def test_setting_is_read():
    assert score.parse_nms('hard:0.7') == (0.7, 'hard')


def test_unknown_kind():
    with pytest.raises(UserError, match="kind 'soft', known are: normal, linear, hard"):
        nms.nms(np.zeros((1, 3)), 0.5, 'soft')


def test_negative_scores_are_refused():
    rows = predictions_of([[[0, 1, 0.5]], [[0, 1, 0.5], [2, 3, -0.5]]])
    with pytest.raises(UserError, match=re.escape(
            'predictions qid 1: field pred_relevant_windows[1]: found [2.0, 3.0, -0.5], '
            'expected a score >= 0')):
        score.suppress(rows, 0.5, 'hard')

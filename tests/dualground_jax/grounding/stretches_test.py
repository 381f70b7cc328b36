"""Stretches of long videos against plain loops."""

import numpy as np
import pytest

from dualground_jax.grounding import stretches

ALL = dict(threshold=2.0, kind='normal')  # nothing is suppressed


@pytest.mark.parametrize('n_clips, most, wanted', [
    (1, 75, [0]),
    (75, 75, [0]),
    (76, 75, [0, 1]),
    (112, 75, [0, 37]),
    (113, 75, [0, 37, 38]),
    (150, 75, [0, 37, 74, 75]),
    (5, 1, [0, 1, 2, 3, 4]),
    (9, 4, [0, 2, 4, 5]),
])
def test_starts(n_clips, most, wanted):
    assert stretches.starts(n_clips, most) == wanted


def test_stretches_cover_a_video_and_begin_half_a_stretch_apart():
    for most in (1, 2, 3, 8):
        for n_clips in range(1, 40):
            first = stretches.starts(n_clips, most)
            covered = {clip for start in first for clip in range(start, start + most)}
            assert covered >= set(range(n_clips)) and first[0] == 0
            assert first[-1] == max(n_clips - most, 0)
            steps = np.diff(first)
            assert (steps[:-1] == max(most // 2, 1)).all() and (steps > 0).all()
            assert (steps <= max(most // 2, 1)).all()


@pytest.fixture(name='rng')
def generator():
    return np.random.default_rng(0)


def test_saliency_is_the_mean_of_what_stretches_say(rng):
    n_clips, most = 23, 8
    first = stretches.starts(n_clips, most)
    values = rng.normal(size=(len(first), most)).astype(np.float32)
    found = stretches.average(values, first, n_clips)
    assert found.dtype == np.float32 and found.shape == (n_clips,)
    for clip in range(n_clips):
        said = [values[i][clip - start] for i, start in enumerate(first)
                if start <= clip < start + most]
        np.testing.assert_allclose(found[clip], sum(map(float, said)) / len(said), rtol=1e-6)


def test_best_of_each(rng):
    values = rng.normal(size=23)
    found = stretches.best_of_each(values, [0, 4, 15], 8)
    assert found.tolist() == [max(values[start : start + 8]) for start in (0, 4, 15)]


@pytest.mark.parametrize('lowest', [0.1, -0.5])
def test_windows_are_moved_weighted_and_sorted(rng, lowest):
    windows = rng.uniform(0, 10, (5, 3, 3)).astype(np.float32)
    windows[1, 2] = 0, 0, -1  # no window
    offsets, weights = np.arange(5) * 8.0, np.array([0.2, 0.4, lowest, 0.3, 0.2])
    found = stretches.fuse(windows, offsets, weights, **ALL)
    wanted = []
    for n in range(5):
        for start, end, score in windows[n].tolist():
            if score >= 0:
                weight = max(weights[n], 0) / 0.4
                wanted.append((start + offsets[n], end + offsets[n], score * weight))
    wanted.sort(key=lambda row: -row[2])
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert len(found) == 14 and (found[:, 2] >= 0).all()


def test_candidates_are_bounded(rng):
    windows = rng.uniform(0, 1, (30, 50, 3))
    found = stretches.fuse(windows, np.zeros(30), np.ones(30), **ALL)
    best = np.sort(windows[..., 2].ravel())[::-1][:stretches.CANDIDATES]
    np.testing.assert_array_equal(found[:, 2], best)
    assert not stretches.fuse(windows, np.zeros(30), np.zeros(30), **ALL)[:, 2].any()


@pytest.mark.parametrize('kind', ['normal', 'hard'])
def test_what_two_stretches_found_is_told_once(kind):
    windows = np.array([[[10, 20, 0.9], [2, 4, 0.5], [0, 30, 0.1]]] * 13, np.float32)
    windows[1] -= np.array([8, 8, 0])  # the same moments, seen by the next stretch
    offsets = np.arange(13) * 8.0
    weights = np.array([1.0, 0.9, *[0.1] * 11])
    found = stretches.fuse(windows, offsets, weights, threshold=0.7, kind=kind)
    kept = found[found[:, 2] > 0]
    wanted = []
    for n in (0, *range(2, 13)):
        wanted += [(start + offsets[n], end + offsets[n], score * weights[n])
                   for start, end, score in windows[n].tolist()]
    wanted.sort(key=lambda row: -row[2])
    # Those of all stretches overlap by less; of the longest windows neighbours overlap by 22 / 38.
    np.testing.assert_allclose(kept[:3], wanted[:3], rtol=1e-6)
    assert len(kept) == (10 if kind == 'hard' else len(wanted))

"""Tests of data_pipelines/saliency.py against the rules in words, and on the real files."""

import itertools

import numpy as np
import pytest

from data_pipelines import annotations, datasets, saliency
from tests.helpers.paths import REAL
from tests.helpers.release_files import LINE, annotation_config, needs_real_data, read_lines


def make_record(**changes):
    record = annotations.Query(
        1, 'a', 'v', 10.0, np.array([[2.0, 6.0]]), np.array([1, 2]),
        np.array([[3, 4, 2], [1, 0, 1]], np.float32), 1)
    for name, value in changes.items():
        setattr(record, name, value)
    return record


def slow_annotators(record, n_clips):
    """Labels, and all results that the pairs may have, from the rules in words."""
    sums = {}
    for clip, scores in zip(record.clip_ids.tolist(), record.clip_scores.tolist(), strict=True):
        sums[clip] = sum(scores)
    labels = [sums.get(clip, 0) for clip in range(n_clips)]
    ranked = sorted(sums, key=lambda clip: sums[clip])  # Python's sort is stable
    relevant = [min(clip, n_clips - 1) for clip in sums]
    others = [clip for clip in range(n_clips) if clip not in relevant]
    hard = min(ranked[-1], n_clips - 1), min(ranked[0], n_clips - 1)
    easy = set(itertools.product(relevant, others)) or {hard}
    return labels, {((hard[0], pos), (hard[1], neg)) for pos, neg in easy}


def slow_window(record, n_clips):
    return slow_windows(record, n_clips, record.windows[:1])


def slow_windows(record, n_clips, windows=None):
    length = record.duration / n_clips
    inside = set()
    for start, end in (record.windows if windows is None else windows).tolist():
        last = max(0, min(int(end / length), n_clips) - 1)
        inside |= set(range(min(int(start / length), last), last + 1))
    outside = [clip for clip in range(n_clips) if clip not in inside]
    pos = list(itertools.permutations(sorted(inside), 2)) or [tuple(inside) * 2]
    if len(outside) < 2:
        allowed = {(pair, pair) for pair in pos}
    else:
        allowed = set(itertools.product(pos, itertools.permutations(outside, 2)))
    return [float(clip in inside) for clip in range(n_clips)], allowed


SLOW = {'annotators': slow_annotators, 'window': slow_window, 'windows': slow_windows}


def draw(record, n_clips, mode, rng):
    pos, neg = saliency.sample_pairs(record, n_clips, mode, rng)
    assert pos.shape == neg.shape == (2,) and pos.dtype == neg.dtype == np.int32
    return tuple(pos.tolist()), tuple(neg.tolist())


@pytest.mark.parametrize('mode, n_clips, changes', [
    ('annotators', 5, {}),
    ('annotators', 3, {'clip_ids': np.array([0, 2])}),
    ('annotators', 2, {'clip_ids': np.array([0, 1])}),  # no other clip
    ('annotators', 4, {'clip_ids': np.array([2, 9])}),  # features shorter than the annotation
    ('annotators', 1, {}),
    ('annotators', 6, {'clip_ids': np.array([4, 0, 2]), 'clip_scores': np.ones((3, 3))}),  # ties
    ('window', 5, {}),
    ('window', 10, {}),
    ('window', 5, {'windows': np.array([[2.0, 2.1], [6.0, 8.0]])}),  # one clip; first window only
    ('window', 5, {'windows': np.array([[0.0, 10.0]])}),  # nothing outside
    ('window', 5, {'windows': np.array([[0.0, 8.0]])}),  # one clip outside
    ('window', 5, {'windows': np.array([[2.0, 8.0]])}),  # two, one on each side
    ('window', 5, {'windows': np.array([[9.9, 10.0]])}),
    ('window', 1, {}),
    ('windows', 5, {}),
    ('windows', 5, {'windows': np.array([[0.0, 2.0], [6.0, 8.0]])}),  # two apart
    ('windows', 5, {'windows': np.array([[2.0, 6.0], [4.0, 10.0]])}),  # overlap, one clip outside
])  # fmt: skip
def test_saliency_against_rules(mode, n_clips, changes):
    record = make_record(**changes)
    labels, allowed = SLOW[mode](record, n_clips)
    found = saliency.clip_labels(record, n_clips, mode)
    assert found.dtype == np.float32 and found.tolist() == labels
    rng = np.random.default_rng(0)
    seen = {draw(record, n_clips, mode, rng) for _ in range(15 * len(allowed))}
    assert seen == allowed


@pytest.mark.parametrize('mode', SLOW)
def test_pairs_follow_the_seed(mode):
    record = make_record(duration=60.0, windows=np.array([[10.0, 40.0]]))

    def draws(seed):
        rng = np.random.default_rng(seed)
        return [draw(record, 30, mode, rng) for _ in range(20)]

    assert draws(3) == draws(3) != draws(4)


def test_window_labels_are_those_of_float64(tmp_path):
    # Of Charades-STA. 31.17 / (31.17 / 31) is a little less than 31, but 31 with float32 windows.
    line = {**LINE, 'duration': 31.17, 'relevant_windows': [[19.1, 31.17]]}
    labels = saliency.clip_labels(read_lines(tmp_path, [line])[0], 31, 'window')
    assert labels.tolist() == [0] * 18 + [1] * 12 + [0]


def test_annotator_labels_of_many_annotators():
    """A grade means the same however many give it: three annotators' sum, 0 to 12."""
    for n_annotators in (1, 3, 5, 20):
        record = make_record(clip_ids=np.array([1, 2]),
                             clip_scores=np.full((2, n_annotators), [[2.0], [4.0]]))
        assert saliency.clip_labels(record, 3, 'annotators').tolist() == [0, 6, 12]


@pytest.mark.parametrize('duration, clip_length, expected', [
    (30, 1, 30), (30, 4, 8), (30, 0.5, 60), (2.1, 0.7, 3), (0.3, 0.1, 3), (30.2, 1, 31),
    (0.1, 2, 1)])  # fmt: skip
def test_the_last_clip_may_be_a_part_of_one(duration, clip_length, expected):
    assert saliency.graded_clips(duration, clip_length) == expected


def test_records_without_grades_have_moments_alone():
    record = make_record(clip_scores=None, clip_ids=np.zeros(0, np.int64))
    assert not saliency.clip_labels(record, 5, 'annotators').any()
    assert not saliency.is_graded(record, 'annotators')
    assert relevant(record, 5, 'annotators') == [1, 2]  # of the window
    assert saliency.is_graded(make_record(), 'annotators')
    assert saliency.is_graded(record, 'windows')


@pytest.mark.parametrize('mode', saliency.MODES)
def test_no_annotation_no_targets(mode):
    record = make_record(
        windows=np.zeros((0, 2)), clip_ids=np.zeros(0, np.int64), clip_scores=None)
    assert not saliency.clip_labels(record, 5, mode).any()
    assert not saliency.relevant_clips(record, 5, mode).any()
    pairs = saliency.sample_pairs(record, 5, mode, np.random.default_rng(0))
    assert [pair.tolist() for pair in pairs] == [[0, 0], [0, 0]]


def relevant(record, n_clips, mode):
    found = saliency.relevant_clips(record, n_clips, mode)
    assert found.dtype == np.bool_ and found.shape == (n_clips,)
    return np.flatnonzero(found).tolist()


@pytest.mark.parametrize('n_clips, clip_ids, expected', [
    (5, [1, 2], [1, 2]),
    (5, [4, 0, 2], [0, 2, 4]),  # in any order
    (3, [1, 2, 3, 9], [1, 2]),  # features shorter than the annotation
    (2, [7, 8], []),
])  # fmt: skip
@pytest.mark.parametrize('score', [4, 0, None])
def test_relevant_clips_whatever_their_scores(n_clips, clip_ids, expected, score):
    scores = None if score is None else np.full((len(clip_ids), 3), score, np.float32)
    record = make_record(clip_ids=np.array(clip_ids), clip_scores=scores)
    assert relevant(record, n_clips, 'annotators') == expected
    labelled = np.flatnonzero(saliency.clip_labels(record, n_clips, 'annotators')).tolist()
    assert labelled == (expected if score else [])


def test_relevant_clips_of_mixed_scores():
    record = make_record(clip_scores=np.array([[0, 0, 0], [1, 0, 2]], np.float32))
    assert relevant(record, 5, 'annotators') == [1, 2]
    assert saliency.clip_labels(record, 5, 'annotators').tolist() == [0, 0, 3, 0, 0]


@pytest.mark.parametrize('n_clips, windows, expected', [
    (5, [[2.0, 6.0]], [1, 2]),
    (5, [[6.0, 8.0], [0.0, 2.0]], [3]),  # the first of several
    (5, [[9.9, 10.0]], [4]),  # shorter than a clip
    (10, [[2.0, 6.0]], [2, 3, 4, 5]),
    (1, [[2.0, 6.0]], [0]),
])  # fmt: skip
def test_relevant_clips_of_windows(n_clips, windows, expected):
    # Clip numbers and scores say something else, and aren't asked.
    record = make_record(windows=np.array(windows), clip_ids=np.array([0]), clip_scores=None)
    assert relevant(record, n_clips, 'window') == expected
    labels = saliency.clip_labels(record, n_clips, 'window')
    assert labels.tolist() == [float(clip in expected) for clip in range(n_clips)]


@needs_real_data
@pytest.mark.parametrize('dataset, split', [
    ('qvhighlights', 'train'), ('qvhighlights', 'val'), ('charades_sta', 'train'),
    ('charades_sta', 'test'),
])  # fmt: skip
def test_real_annotations_against_rules(dataset, split):
    row = datasets.DATASETS[dataset]
    data = annotation_config(max_windows=row.max_windows)
    records = annotations.read_annotations(REAL / dataset / row.annotations[split], data)
    rng = np.random.default_rng(0)
    for record in records[:: len(records) // 40]:
        n_clips = int(record.duration / row.clip_length)
        labels, allowed = SLOW[row.saliency](record, n_clips)
        assert saliency.clip_labels(record, n_clips, row.saliency).tolist() == labels
        assert draw(record, n_clips, row.saliency, rng) in allowed
        expected = record.clip_ids.tolist() if row.saliency == 'annotators' else np.flatnonzero(
            labels).tolist()
        assert relevant(record, n_clips, row.saliency) == [c for c in expected if c < n_clips]

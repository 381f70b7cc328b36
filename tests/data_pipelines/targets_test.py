"""Targets of all records of all five data sets against the public loaders' rules in plain Python.

Features play no part: a video has as many clips as its duration or its labels ask for.
"""

import math
import pathlib

import numpy as np
import pytest

from configs import common
from data_pipelines import annotations, datasets, pipeline, saliency
from data_pipelines.schedule import Bucket
from data_pipelines.tokens import EOS
from tests.helpers.paths import REAL
from tests.helpers.release_files import LINE, annotation_config, needs_real_data, write_lines

SETS = {'qvhighlights': 'sf_clip', 'charades_sta': 'sf_clip', 'tacos': 'sf_clip',
        'tvsum': 'sf_clip', 'youtube_highlights': 'sf_clip'}
# Edge cases of each split, in the order of `edge_cases`; docs/datasets.md shows them.
EDGES = {
    ('qvhighlights', 'highlight_train_release.jsonl'): (7218, [302, 0, 0, 261, 0, 302, 194]),
    ('qvhighlights', 'highlight_val_release.jsonl'): (1550, [52, 0, 0, 63, 0, 52, 40]),
    ('qvhighlights', 'highlight_test_with_gt.jsonl'): (1542, [54, 0, 0, 59, 0, 54, 32]),
    ('charades_sta', 'charades_sta_train_tvr_format.jsonl'): (12404, [0, 0, 11898, 0, 0, 0, 0]),
    ('charades_sta', 'charades_sta_test_tvr_format.jsonl'): (3720, [0, 0, 3584, 0, 0, 0, 0]),
    ('tacos', 'train.jsonl'): (9790, [0, 253, 9790, 0, 0, 0, 0]),
    ('tacos', 'val.jsonl'): (4436, [0, 82, 4226, 0, 0, 0, 0]),
    ('tacos', 'test.jsonl'): (4001, [0, 61, 4001, 0, 0, 0, 0]),
    ('tvsum', 'tvsum_train.jsonl'): (40, [0, 0, 0, 0, 0, 0, 0]),
    ('tvsum', 'tvsum_val.jsonl'): (10, [0, 0, 0, 0, 0, 0, 0]),
    ('youtube_highlights', 'youtube_train.jsonl'): (233, [0, 0, 220, 0, 0, 0, 0]),
    ('youtube_highlights', 'youtube_valid.jsonl'): (152, [0, 0, 144, 0, 0, 0, 0]),
}
LARGE = [release for release, (queries, _) in EDGES.items() if queries > 5000]


def make_data(dataset):
    """The config of a data set's annotations, with features of width 1."""
    data = common.base(dataset, dict(common.ARGUMENTS, features=SETS[dataset])).data
    data.update(root=str(REAL / dataset), video_dims=(1,), text_dim=1, max_tokens=1)
    return data


def make_split(records, data):
    """A split whose videos have a clip for each label, or for each started clip length."""
    clips = [len(r.label) if r.label is not None else math.ceil(r.duration / data.clip_length)
             for r in records]
    return datasets.Split(
        name='train', queries=records, videos=[np.ones((n, 1), np.float32) for n in clips],
        video_index=np.arange(len(records)), source_index=np.arange(len(records)),
        text=[np.ones((1, 1), np.float32)] * len(records),
        roles=[np.array([EOS], np.int32)] * len(records),
        saliency=[saliency.clip_labels(r, n, data.saliency)
                  for r, n in zip(records, clips, strict=True)],
        skipped=[])


# The rules, of one record. Each returns labels, relevant clips, and a check of the pairs of clips.


def annotators(record, clips):
    sums = {int(clip): sum(scores) for clip, scores in
            zip(record.clip_ids, record.clip_scores.tolist(), strict=True)}
    at = {clip: total for clip, total in sums.items() if clip < clips}
    last = clips - 1
    rest = [clip for clip in range(clips) if clip not in sums]

    def are_pairs(pos, neg):
        best = [min(c, last) for c in sums if sums[c] == max(sums.values())]
        worst = [min(c, last) for c in sums if sums[c] == min(sums.values())]
        hard = pos[0] in best and neg[0] in worst
        if not rest:
            return hard and pos[1] == pos[0] and neg[1] == neg[0]
        return hard and pos[1] in [min(c, last) for c in sums] and neg[1] in rest

    labels = [at.get(clip, 0.0) for clip in range(clips)]
    return labels, sorted(at), are_pairs, not rest, len(set(sums.values())) == 1


def window(record, clips):
    start, end = record.windows[0].tolist()
    seconds = record.duration / clips
    last = max(0, min(int(end / seconds), clips) - 1)
    first = min(int(start / seconds), last)
    inside = list(range(first, last + 1))
    rest = [clip for clip in range(clips) if clip < first or clip > last]

    def are_pairs(pos, neg):
        distinct = pos[0] != pos[1] or len(inside) == 1
        if not (set(pos) <= set(inside) and distinct):
            return False
        if len(rest) < 2:
            return neg == pos
        return set(neg) <= set(rest) and neg[0] != neg[1]

    labels = [1.0 if first <= clip <= last else 0.0 for clip in range(clips)]
    return labels, inside, are_pairs, not rest, len(set(labels)) == 1


def label_pairs(totals):
    def are_pairs(pos, neg):
        return (pos[0] == pos[1] and neg[0] == neg[1] and totals[pos[0]] == max(totals)
                and totals[neg[0]] == min(totals))

    return are_pairs


def grades(record, clips):
    totals = [sum(grade - 1 for grade in row) for row in record.label.tolist()[:clips]]
    labels = [total / 80 * 12 for total in totals]
    better = sorted(totals)[clips // 2:]
    relevant = saliency.relevant_clips(record, clips, 'grades')  # of equal grades any are as good
    assert sorted(total for total, r in zip(totals, relevant, strict=True) if r) == better
    equal = len(set(totals)) == 1
    return labels, np.flatnonzero(relevant).tolist(), label_pairs(totals), equal, equal


def binary(record, clips):
    labels = [row[0] for row in record.label.tolist()[:clips]]
    ones = [clip for clip, label in enumerate(labels) if label == 1]
    equal = len(set(labels)) == 1
    return labels, ones, label_pairs(labels), equal, equal


RULES = dict(annotators=annotators, window=window, grades=grades, binary=binary)


def check_row(record, row, clips, data):
    """Checks a record's row of a batch; returns its edge cases."""
    labels, relevant, are_pairs, no_negative, all_equal = RULES[data.saliency](record, clips)
    assert row['video_mask'].sum() == clips
    np.testing.assert_allclose(row['saliency'][:clips], labels, rtol=1e-6, err_msg=record.qid)
    assert not row['saliency'][clips:].any() and row['saliency'].max() <= saliency.HIGHEST
    assert np.flatnonzero(row['relevant']).tolist() == relevant, record.qid
    if row['pairs_mask']:
        assert are_pairs(row['pos_clips'].tolist(), row['neg_clips'].tolist()), record.qid
        assert max(*row['pos_clips'], *row['neg_clips']) < clips
    assert row['pairs_mask'] == any(labels)

    windows = record.windows.tolist()
    count, kept = len(windows), min(len(windows), data.max_spans)
    np.testing.assert_array_equal(row['windows'][:count], np.array(windows).reshape(-1, 2).astype(
        np.float32))
    assert row['windows_mask'].tolist() == [i < count for i in range(data.max_windows)]
    assert row['spans_mask'].tolist() == [i < kept for i in range(data.max_spans)]
    length = clips * data.clip_length
    allowed = [((start + end) / 2 / length, (end - start) / length) for start, end in windows]
    found = [tuple(span) for span in row['spans'][:kept].tolist()]
    for span in found:
        assert any(math.dist(span, other) < 1e-6 for other in allowed), record.qid
    assert len(set(found)) == kept
    shortest = min((end - start for start, end in windows), default=math.inf)
    odd = abs(record.duration / data.clip_length - round(record.duration / data.clip_length))
    return (any(start <= 0 and end >= record.duration for start, end in windows),
            shortest < data.clip_length, odd > 1e-6, count > 5,
            any(end > record.duration for _, end in windows), no_negative, all_equal)


def edge_cases(records, data):
    """Checks all records; counts those with a window over the whole video or shorter than a clip,
    a duration that is no multiple of the clip length, more than 5 windows, a window that ends after
    the video, no clip for the negative of a pair, and annotated clips that are all labelled alike.
    """
    split, counts = make_split(records, data), np.zeros(7, int)
    for first in range(0, len(records), 512):
        indices = np.arange(first, min(first + 512, len(records)))
        draws = [np.random.default_rng([7, i]) for i in indices]
        clips = max(len(split.videos[i]) for i in indices)
        bucket = Bucket(clips, data.max_tokens)
        batch = pipeline.collate(split, data, indices, draws, bucket=bucket)
        for place, i in enumerate(indices):
            row = {name: values[place] for name, values in batch.items()}
            counts += check_row(records[i], row, len(split.videos[i]), data)
    return counts.tolist()


@needs_real_data
@pytest.mark.parametrize('dataset, name', [
    pytest.param(dataset, name, marks=[pytest.mark.slow] * ((dataset, name) in LARGE))
    for dataset in SETS
    for name in dict.fromkeys(datasets.DATASETS[dataset].annotations.values())
])  # fmt: skip
def test_targets_of_all_real_records(dataset, name):
    name = {'highlight_test_release.jsonl': 'highlight_test_with_gt.jsonl'}.get(name, name)
    data = make_data(dataset)
    records = annotations.read_annotations(pathlib.Path(data.root, name), data)
    counts = edge_cases(records, data)
    print(f'\n{dataset} {name}: {len(records)} records, {counts}')
    assert (len(records), counts) == EDGES[dataset, name]


BARE = {name: LINE[name] for name in ('qid', 'query', 'duration', 'vid')}


def annotated(*ids, score=2, **fields):
    return dict(relevant_clip_ids=list(ids), saliency_scores=[[score, 0, i] for i in ids], **fields)


def labels(*grades, **fields):
    return dict(label=[[grade, 3] for grade in grades], duration=len(grades), **fields)


@pytest.mark.parametrize('dataset, lines, counts', [
    ('qvhighlights', [
        annotated(1, 2, relevant_windows=[[2, 6]]),
        annotated(*range(5), relevant_windows=[[0, 10]]),  # all of the video
        annotated(3, relevant_windows=[[7, 7.5]], duration=9),  # short, odd
        annotated(1, 3, score=0, relevant_windows=[[i, i + 1] for i in range(9)]),  # many, short
        annotated(3, 4, relevant_windows=[[8, 10.0005]]),  # ends after the video
    ], [1, 2, 1, 1, 1, 1, 1]),
    ('tacos', [
        dict(relevant_windows=[[2, 6]]),
        dict(relevant_windows=[[0, 10.001]]),  # all and more
        dict(relevant_windows=[[9.9, 10]], duration=10.5),  # short, odd
        dict(relevant_windows=[[1, 3]], duration=3.5),  # a single clip is left for a negative
    ], [1, 1, 2, 0, 1, 1, 1]),
    ('tvsum', [labels(1, 5, 2, 4, 3), labels(2, 2, 2), labels(5), labels(4, 4, 5, 1, 1, 5)],
     [0, 0, 0, 0, 0, 2, 2]),
])  # fmt: skip
def test_targets_of_edge_cases(tmp_path, dataset, lines, counts):
    lines = [BARE | line | dict(qid=i) for i, line in enumerate(lines)]
    if dataset == 'tvsum':
        for line in lines:
            line['label'] = [row * 10 for row in line['label']]  # 20 annotators
    write_lines(tmp_path / 'a.jsonl', lines)
    data = make_data(dataset)
    assert edge_cases(annotations.read_annotations(tmp_path / 'a.jsonl', data), data) == counts


def test_binary_labels_of_edge_cases(tmp_path):
    rows = [[0, 1, 1, 0], [0, 0, 0], [1, 1], [1]]
    write_lines(tmp_path / 'a.jsonl', [
        BARE | dict(qid=i, label=[[value] for value in row]) for i, row in enumerate(rows)])
    data = make_data('youtube_highlights')
    counts = edge_cases(annotations.read_annotations(tmp_path / 'a.jsonl', data), data)
    assert counts == [0, 0, 0, 0, 0, 3, 3]


@pytest.mark.parametrize('mode', ['grades', 'binary'])
def test_labels_may_be_longer_or_shorter_than_features(tmp_path, mode):
    write_lines(tmp_path / 'a.jsonl', [BARE | dict(label=[[1], [0], [1]])])
    data = annotation_config(saliency='binary')
    record = annotations.read_annotations(tmp_path / 'a.jsonl', data)[0]
    rng = np.random.default_rng(0)
    for clips in (1, 2, 5):
        for found in (saliency.clip_labels, saliency.relevant_clips):
            assert found(record, clips, mode).shape == (clips,)
        assert not saliency.relevant_clips(record, clips, mode)[3:].any()
        assert np.max(saliency.sample_pairs(record, clips, mode, rng)) < clips

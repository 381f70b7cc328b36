"""Batches: contents against the records, static shapes, determinism, targets."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines import annotations, datasets, pipeline, saliency
from data_pipelines.tokens import EOS, PADDING, START, WORD
from dualground_jax import resident as resident_lib
from dualground_jax import sharding


def make_split(lengths, words, windows, rng, dims=(3, 2), text_dim=4):
    """A split of one query per video with random features; videos 2i and 2i + 1 share a source."""
    records, videos, labels = [], [], []
    for i, (n_clips, n_windows) in enumerate(zip(lengths, windows, strict=True)):
        starts = np.arange(n_windows) * 4.0
        clip_ids = np.arange(min(2, n_clips))
        records.append(
            annotations.Query(
                qid=100 + i,
                query='a dog runs',
                vid=f'v{i}',
                duration=2.0 * n_clips,
                windows=np.stack([starts, starts + 2.0], 1),
                clip_ids=clip_ids,
                clip_scores=np.ones((len(clip_ids), 3), np.float32),
                line=i + 1,
            )
        )
        videos.append(rng.normal(size=(n_clips, sum(dims))).astype(np.float32))
        labels.append(saliency.clip_labels(records[-1], n_clips, 'annotators'))
    return datasets.Split(
        name='train',
        queries=records,
        videos=videos,
        video_index=np.arange(len(records), dtype=np.int32),
        source_index=np.arange(len(records), dtype=np.int32) // 2,
        text=[rng.normal(size=(n + 2, text_dim)).astype(np.float32) for n in words],
        roles=[np.array([START, *[WORD] * n, EOS], np.int32) for n in words],
        saliency=labels,
        skipped=[],
    )


@pytest.fixture(name='data')
def data_section():
    return ConfigDict(
        dict(
            video_dims=(3, 2), text_dim=4, clip_length=2.0, saliency='annotators',
            max_clips=9, max_tokens=7, max_windows=8, max_spans=3, dtype='float32',
        )
    )


@pytest.fixture(name='split')
def random_split():
    rng = np.random.default_rng(0)
    return make_split([9, 4, 1, 6, 7], [5, 0, 2, 3, 1], [2, 1, 0, 7, 1], rng)


def test_pad_is_a_batch_of_a_query_without_annotations(split, data):
    blank = split.queries[3]
    blank.windows, blank.clip_ids = np.zeros((0, 2)), np.zeros(0, np.int64)
    blank.clip_scores = None
    split.saliency[3][:] = 0
    expected = pipeline.collate(split, data, np.array([3]), None)
    expected['index'][:] = expected['source_id'][:] = 0
    found = pipeline.pad(data, split.videos[3], split.text[3], split.roles[3], blank.duration)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_collate_holds_the_records_and_nothing_else(split, data):
    indices = np.array([3, 0, -1, 2])
    batch = pipeline.collate(split, data, indices, None)
    for name, (shape, dtype) in pipeline.batch_spec(data, 4).items():
        assert batch[name].shape == shape and batch[name].dtype == dtype, name
    for row, index in enumerate(indices):
        if index < 0:
            assert not any(batch[k][row].any() for k in batch if k not in ('index', 'clip_length'))
            continue
        n_clips, n_tokens = len(split.videos[index]), len(split.text[index])
        np.testing.assert_array_equal(batch['video'][row, :n_clips, :5], split.videos[index])
        ends = [[i / n_clips, (i + 1) / n_clips] for i in range(n_clips)]
        np.testing.assert_allclose(batch['video'][row, :n_clips, 5:], ends, atol=1e-6)
        assert batch['video_mask'][row].sum() == n_clips and not batch['video'][row, n_clips:].any()
        np.testing.assert_array_equal(batch['text'][row, :n_tokens], split.text[index])
        assert not batch['text'][row, n_tokens:].any()
        windows = split.queries[index].windows
        np.testing.assert_array_equal(batch['windows'][row, : len(windows)], windows)
        assert batch['windows_mask'][row].sum() == len(windows)


def test_roles_say_what_each_token_is(split, data):
    roles = pipeline.collate(split, data, np.array([0, 1, 3, -1]), None)['text_role']
    assert roles.tolist() == [
        [START, WORD, WORD, WORD, WORD, WORD, EOS],
        [START, EOS, *[PADDING] * 5],
        [START, WORD, WORD, WORD, EOS, PADDING, PADDING],
        [PADDING] * 7,
    ]


def test_relevant_clips_are_those_of_the_record_also_without_a_label(split, data):
    split.queries[3].clip_ids = np.array([5, 1, 8])  # the features have 6 clips
    split.queries[3].clip_scores = np.array([[0, 0, 0], [1, 0, 2], [4, 4, 4]], np.float32)
    split.saliency[3] = saliency.clip_labels(split.queries[3], 6, 'annotators')
    indices = np.array([3, -1, 2, 0])
    batch = pipeline.collate(split, data, indices, None)
    clips = [np.flatnonzero(row).tolist() for row in batch['relevant']]
    assert clips == [[1, 5], [], [0], [0, 1]]
    labels = [np.flatnonzero(row).tolist() for row in batch['saliency']]
    assert labels == [[1], [], [0], [0, 1]]

    data.saliency = 'window'  # the first window is [0, 2] seconds; record 2 has none
    relevant = pipeline.collate(split, data, indices, None)['relevant']
    assert [np.flatnonzero(row).tolist() for row in relevant] == [[0], [], [], [0]]


def test_queries_of_one_source_share_their_source_id(split, data):
    batch = pipeline.collate(split, data, np.array([4, 0, 3, 1, 2]), None)
    assert batch['source_id'].tolist() == [2, 0, 1, 0, 1]


def test_spans_are_relative_to_the_clips_and_drawn_when_too_many(split, data):
    draws = [np.random.default_rng(7)]
    batch = pipeline.collate(split, data, np.array([3]), draws)
    assert batch['spans_mask'].sum() == data.max_spans
    extent = 6 * data.clip_length
    starts = (batch['spans'][0, :, 0] - batch['spans'][0, :, 1] / 2) * extent
    widths = batch['spans'][0, :, 1] * extent
    np.testing.assert_allclose(widths, 2.0, atol=1e-5)
    assert len(set(np.round(starts))) == 3 and set(np.round(starts)) <= set(range(0, 28, 4))
    chosen = {
        tuple(np.sort(pipeline.collate(split, data, np.array([3]), [np.random.default_rng(s)])
                      ['spans'][0, :, 0]))
        for s in range(20)
    }
    assert len(chosen) > 3


@pytest.mark.parametrize('drop_last, per_epoch, kept', [(True, 3, 9), (False, 4, 11)])
def test_steps_cover_each_epoch_once_and_epochs_differ(drop_last, per_epoch, kept):
    size, batch_size = 11, 3
    assert pipeline.steps_per_epoch(size, batch_size, drop_last) == per_epoch
    assert pipeline.steps_per_epoch(9, batch_size, drop_last) == 3
    epochs = []
    for epoch in range(3):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        seen = np.concatenate([
            pipeline.train_indices(size, batch_size, 5, s, drop_last) for s in steps])
        assert len(seen) == per_epoch * batch_size
        assert len(set(seen[:kept])) == kept and min(seen[:kept]) >= 0
        assert (seen[kept:] == -1).all(), 'empty rows come last'
        epochs.append(tuple(seen))
    assert len(set(epochs)) == 3
    other = np.concatenate([pipeline.train_indices(size, batch_size, 6, s) for s in range(3)])
    assert tuple(other) != epochs[0]


def test_a_stream_from_the_middle_equals_the_whole_stream(split, data):
    def stream(first, seed=3):
        return list(
            pipeline.train_batches(
                split, data, batch_size=2, seed=seed, first_step=first, last_step=7
            )
        )

    whole, tail, other = stream(0), stream(4), stream(0, seed=4)
    assert len(whole) == 7 and len(tail) == 3
    for a, b in zip(whole[4:], tail, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert any((a['index'] != b['index']).any() for a, b in zip(whole, other, strict=True))


def test_saliency_pairs_are_redrawn_each_epoch(data):
    split = make_split([9] * 2, [1] * 2, [1] * 2, np.random.default_rng(0))
    batches = list(
        pipeline.train_batches(split, data, batch_size=2, seed=0, first_step=0, last_step=20)
    )
    easy = {batch['neg_clips'][list(batch['index']).index(0), 1] for batch in batches}
    assert len(easy) > 2
    for batch in batches:
        assert batch['pairs_mask'].all()
        rows = np.arange(2)[:, None]
        positive = batch['saliency'][rows, batch['pos_clips']]
        negative = batch['saliency'][rows, batch['neg_clips']]
        assert (positive >= negative).all()


def test_eval_batches_visit_every_record_once_in_order(split, data):
    found = list(pipeline.eval_batches(split, data, batch_size=2))
    for index in ([i for i, _ in found], [batch['index'] for _, batch in found]):
        np.testing.assert_array_equal(np.concatenate(index), [0, 1, 2, 3, 4, -1])


def test_length_buckets_hold_every_record_once_with_less_padding(data):
    lengths = [70, 3, 9, 64, 8, 20, 1, 65]
    split = make_split(lengths, [1] * 8, [1] * 8, np.random.default_rng(0))
    data.max_clips = 75
    assert pipeline.length_buckets(split, 75, 1) == [75]
    assert pipeline.length_buckets(split, 75, 2) == [16, 75]
    assert pipeline.length_buckets(split, 75, 4) == [8, 16, 64, 75]
    for count in (2, 4, 20):
        seen = []
        for index, batch in pipeline.eval_batches(split, data, batch_size=3, buckets=count):
            clips = batch['video'].shape[1]
            assert clips in pipeline.length_buckets(split, 75, count)
            used = np.array(lengths)[index[index >= 0]]
            np.testing.assert_array_equal(batch['video_mask'].sum(1)[index >= 0], used)
            shorter = [c for c in pipeline.length_buckets(split, 75, count) if c < clips]
            assert (used > max(shorter, default=0)).all(), 'the shortest bucket that holds it'
            seen += index[index >= 0].tolist()
        assert sorted(seen) == list(range(8))


@pytest.mark.parametrize('resident', [False, True])
def test_processes_share_a_batch(split, data, resident):
    def stream(**rows):
        return list(pipeline.train_batches(split, data, batch_size=4, seed=0, first_step=0,
                                           last_step=3, resident=resident, **rows))

    parts = stream(), stream(rows=slice(0, 1)), stream(rows=slice(1, 4))
    for whole, first, rest in zip(*parts, strict=True):
        assert ('video' in whole) != resident
        for name in whole:
            both = np.concatenate([first[name], rest[name]])
            np.testing.assert_array_equal(whole[name], both)


def test_resident_features_are_those_of_the_batch_in_bfloat16(split, data):
    indices = np.array([3, 0, -1, 2])
    batch = pipeline.collate(split, data, indices, None)
    store = resident_lib.load(split, data, sharding.one_device())
    assert store['video'].shape == (5, 9, 5), 'each video once'
    found = jax.jit(resident_lib.complete)(
        pipeline.collate(split, data, indices, None, resident=True), store)
    assert found.keys() == batch.keys()
    for name in ('video', 'text'):
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], batch[name], rtol=2**-8, atol=1e-6)
        assert (np.asarray(found[name] == 0) == (batch[name] == 0)).all(), 'padding stays zero'
    endpoints = found['video'][..., -2:], batch['video'][..., -2:]
    np.testing.assert_allclose(*endpoints, atol=1.2e-7)


def test_fewer_records_than_a_batch_are_one_or_an_error(split, data):
    steps = dict(batch_size=6, seed=0, first_step=0, last_step=1)
    with pytest.raises(datasets.DataError, match='5 records.*batch of 6.*train.batch_size'):
        pipeline.train_batches(split, data, drop_last=True, **steps)
    batch, = pipeline.train_batches(split, data, **steps)
    assert sorted(batch['index']) == [-1, 0, 1, 2, 3, 4] and batch['index'][5] == -1
    assert not any(batch[name][5].any() for name in batch if name not in ('index', 'clip_length'))

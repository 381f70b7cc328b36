"""Batches: contents against the records, static shapes, determinism, targets."""

import gc
import itertools
import time
import weakref

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines import annotations, datasets, pipeline, saliency, schedule
from data_pipelines.schedule import (
    Bucket,
    Schedule,
    evaluation_plan,
    limits,
    padded,
    query_sizes,
)
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
    expected = pipeline.collate(split, data, np.array([3]), None, bucket=Bucket(8, 7))
    expected['index'][:] = expected['source_id'][:] = 0
    one = pipeline.Sample(split.videos[3], split.text[3], split.roles[3], blank.duration)
    found = pipeline.pad(data, [one])
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    empty = pipeline.collate(split, data, np.array([-1]), None, bucket=Bucket(8, 7))
    several = pipeline.pad(data, [one] * 3)
    for name, values in several.items():
        rows = [expected[name]] * 3 + [empty[name]]
        np.testing.assert_array_equal(values, np.concatenate(rows), err_msg=name)


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


def train_batches(split, data, steps, *, batch_size, seed=0, each=1, **options):
    """Batches of the steps, in calls of `each`."""
    plan = Schedule(query_sizes(split), batch_size, seed, buckets=[limits(data)])
    calls = [steps[i : i + each] for i in range(0, len(steps), each)]
    return list(pipeline.train_batches(split, data, plan, padded([plan], calls), **options))


def test_a_stream_from_the_middle_equals_the_whole_stream(split, data):
    def stream(first, seed=3):
        return train_batches(split, data, range(first, 7), batch_size=2, seed=seed)

    whole, tail, other = stream(0), stream(4), stream(0, seed=4)
    assert len(whole) == 7 and len(tail) == 3
    for a, b in zip(whole[4:], tail, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert any((a['index'] != b['index']).any() for a, b in zip(whole, other, strict=True))


def test_saliency_pairs_are_redrawn_each_epoch(data):
    split = make_split([9] * 2, [1] * 2, [1] * 2, np.random.default_rng(0))
    batches = train_batches(split, data, range(20), batch_size=2)
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


@pytest.mark.parametrize('taken', [1, 3])
def test_a_stream_lets_its_split_go(data, taken):
    split = make_split([9] * 5, [1] * 5, [1] * 5, np.random.default_rng(0))
    kept, stream = weakref.ref(split), pipeline.eval_batches(split, data, batch_size=2)
    assert len(list(itertools.islice(stream, taken))) == taken
    stream.close()
    del split, stream
    for _ in range(50):  # a batch may be in the making
        gc.collect()
        if kept() is None:
            return
        time.sleep(0.1)
    pytest.fail('the split is kept')


def test_steps_of_a_call_are_padded_alike(split, data):
    whole = train_batches(split, data, range(6), batch_size=1)
    plan = Schedule(query_sizes(split), 1, 0, buckets=[Bucket(4, 4), Bucket(7, 7), Bucket(9, 7)])
    for each in (1, 2):
        calls = padded([plan], [range(i, i + each) for i in range(0, 6, each)])
        for step, batch in enumerate(pipeline.train_batches(split, data, plan, calls)):
            clips, tokens = list(calls.values())[step // each]
            assert batch['text'].shape[1] == batch['text_role'].shape[1] == tokens
            for name in ('video', 'saliency', 'video_mask'):
                assert batch[name].shape[1] == clips
                np.testing.assert_array_equal(batch[name], whole[step][name][:, :clips])
                assert not whole[step][name][:, clips:].any()
        if each == 1:
            assert set(calls.values()) == {(4, 4), (7, 7), (9, 7)}


def test_buckets_of_an_evaluation_hold_every_query_once(data, monkeypatch):
    monkeypatch.setattr(schedule, 'BATCHES', 1)
    lengths, words = [70, 3, 9, 64, 8, 20, 1, 65], [1, 1, 5, 1, 1, 2, 1, 4]
    split = make_split(lengths, words, [1] * 8, np.random.default_rng(0))
    data.max_clips, data.max_tokens = 75, 20
    padded = {}
    for count in (1, 2, 20):
        seen, padded[count] = [], 0
        for index, batch in pipeline.eval_batches(split, data, batch_size=2, buckets=count):
            clips, tokens = batch['video'].shape[1], batch['text'].shape[1]
            assert (clips, tokens) == (75, 20) if count == 1 else clips <= 70 and tokens <= 7
            assert len(index) * (clips + tokens + 64) <= 2 * (75 + 20 + 64)
            used = np.array(lengths)[index[index >= 0]]
            np.testing.assert_array_equal(batch['video_mask'].sum(1)[index >= 0], used)
            np.testing.assert_array_equal((batch['text_role'] > 0).sum(1)[index >= 0],
                                          np.array(words)[index[index >= 0]] + 2)
            padded[count] += len(index) * clips
            seen += index[index >= 0].tolist()
        assert sorted(seen) == list(range(8))
    assert padded[1] == 8 * 75 and padded[2] < 0.8 * padded[1] and padded[20] < padded[2]


@pytest.mark.parametrize('queries, batch_size, parts, expected', [
    (10, 64, 1, (1, 10)), (10, 64, 8, (1, 16)), (152, 64, 1, (3, 51)), (152, 64, 8, (3, 56)),
    (1550, 64, 1, (25, 62)), (128, 64, 8, (2, 64)), (1, 64, 2, (1, 2))])
def test_batches_of_an_evaluation_leave_few_rows_empty(data, queries, batch_size, parts, expected):
    sizes = np.full((queries, 2), 5)
    (bucket, batches), = evaluation_plan(sizes, data, batch_size, 4, parts)
    assert batches.shape == expected and bucket == (5, 5)
    np.testing.assert_array_equal(batches[batches >= 0], np.arange(queries))
    (bucket, batches), = evaluation_plan(sizes, data, batch_size, 1, parts)
    assert batches.shape[1] == batch_size and bucket == limits(data)


def test_no_query_need_be_longest_in_clips_and_in_tokens(data, monkeypatch):
    monkeypatch.setattr(schedule, 'BATCHES', 1)
    split = make_split([64, 64, 8, 8], [2, 2, 38, 38], [1] * 4, np.random.default_rng(0))
    found = list(pipeline.eval_batches(split, data, batch_size=1, buckets=3))
    assert sorted(np.concatenate([index for index, _ in found])) == [0, 1, 2, 3]
    assert {batch['video'].shape[1:2] + batch['text'].shape[1:2] for _, batch in found} == {
        (64, 4), (8, 40)}


def test_a_single_query_is_padded_to_a_power_of_two(split, data):
    data.max_clips, data.max_tokens = 75, 20
    for n_clips, n_tokens, clips, tokens in ((1, 3, 8, 8), (9, 9, 16, 16), (65, 17, 75, 20)):
        video, text = np.ones((n_clips, 5), np.float32), np.ones((n_tokens, 4), np.float32)
        sample = pipeline.Sample(video, text, np.full(n_tokens, WORD), 5.0)
        batch = pipeline.pad(data, [sample])
        assert batch['video'].shape[:2] == (1, clips) and batch['text'].shape[:2] == (1, tokens)
        assert batch['video_mask'].sum() == n_clips


@pytest.mark.parametrize('resident', [False, True])
def test_processes_share_a_batch(split, data, resident):
    def stream(**rows):
        return train_batches(split, data, range(3), batch_size=4, resident=resident, **rows)

    parts = stream(), stream(rows=slice(0, 1)), stream(rows=slice(1, 4))
    for whole, first, rest in zip(*parts, strict=True):
        assert ('video' in whole) != resident
        for name in whole:
            both = np.concatenate([first[name], rest[name]])
            np.testing.assert_array_equal(whole[name], both)


@pytest.mark.parametrize('bucket, indices', [(None, [3, 0, -1, 2]), (Bucket(7, 5), [3, 1, -1, 2])])
def test_resident_features_are_those_of_the_batch_in_bfloat16(split, data, bucket, indices):
    indices = np.array(indices)
    batch = pipeline.collate(split, data, indices, None, bucket=bucket)
    store = resident_lib.load(split, data, sharding.one_device())
    assert store['video'].shape == (5, 9, 5), 'each video once'
    found = jax.jit(resident_lib.complete)(
        pipeline.collate(split, data, indices, None, bucket=bucket, resident=True), store)
    assert found.keys() == batch.keys()
    for name in ('video', 'text'):
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], batch[name], rtol=2**-8, atol=1e-6)
        assert (np.asarray(found[name] == 0) == (batch[name] == 0)).all(), 'padding stays zero'
    endpoints = found['video'][..., -2:], batch['video'][..., -2:]
    np.testing.assert_allclose(*endpoints, atol=1.2e-7)


def test_a_batch_is_filled_up_with_empty_rows(split, data):
    batch, = train_batches(split, data, range(1), batch_size=6)
    assert sorted(batch['index']) == [-1, 0, 1, 2, 3, 4] and batch['index'][5] == -1
    assert not any(batch[name][5].any() for name in batch if name not in ('index', 'clip_length'))

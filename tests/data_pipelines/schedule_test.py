"""Which queries a step sees, and what they are padded to, against brute force and counting."""

import itertools

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines import datasets, schedule
from data_pipelines.errors import DataError
from data_pipelines.schedule import Bucket, Schedule, padded


def least_padding(sizes, count):
    """All choices of buckets on the grid, one by one: the least of clips and fifths of tokens."""
    largest = sizes.max(0)
    axes = [sorted({min(-(-n // step) * step, most) for n in column})
            for column, step, most in zip(sizes.T.tolist(), schedule.GRID, largest)]
    least = np.inf
    for others in itertools.combinations(itertools.product(*axes), count - 1):
        found = [*others, tuple(largest)]
        total = sum(min(c + t / 5 for c, t in found if clips <= c and tokens <= t)
                    for clips, tokens in sizes.tolist())
        least = min(least, total)
    return least


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('count', [2, 3])
def test_buckets_pad_least(seed, count):
    rng = np.random.default_rng(seed)
    sizes = np.stack([rng.geometric(0.03, 40) % 60 + 1, rng.integers(3, 30, 40)], 1)
    found = schedule.choose_buckets(sizes, count)
    place = schedule.smallest(found, sizes)
    padded = np.array(found)[place]
    assert (padded >= sizes).all() and len(found) == count
    least = least_padding(sizes, count)
    assert least <= (padded @ [1, 0.2]).sum() * (1 + 1e-9) <= 1.01 * least


def test_a_bucket_that_saves_little_is_left_out():
    sizes = np.array([[64, 20]] * 9 + [[56, 20]])
    assert schedule.choose_buckets(sizes, 4) == [Bucket(64, 20)]
    sizes = np.array([[64, 20]] * 5 + [[9, 3]] * 5)
    assert schedule.choose_buckets(sizes, 4) == [Bucket(16, 4), Bucket(64, 20)]


def test_a_long_training_pays_for_more_buckets():
    """An eighth of it is saved by a second one, which is compiled in place of 10 steps."""
    split, data = split_of([(48, 20)] * 50 + [(64, 20)] * 50), ConfigDict(
        dict(max_clips=75, max_tokens=32))
    section = ConfigDict(dict(batch_size=1, drop_last=False, like_lengths=0, buckets=8,
                              steps_per_call=1, max_steps=0, epochs=1))
    count = lambda **changes: len(
        Schedule.of(split, data, ConfigDict(section.to_dict() | changes), 0)[0].buckets)
    saved = 1 - (52 + 68) / (2 * 68)
    assert [count(max_steps=40), count(epochs=20), count(epochs=20, max_steps=int(9 / saved)),
            count(max_steps=int(11 / saved)), count(epochs=20, buckets=1)] == [1, 2, 1, 2, 1]


def make(size=11, seed=5, **changes):
    rng = np.random.default_rng(0)
    return Schedule(rng.integers(1, 60, (size, 2)), **dict(batch_size=3, seed=seed) | changes)


@pytest.mark.parametrize('like_lengths', [0, 2])
@pytest.mark.parametrize('drop_last, per_epoch, kept', [(True, 3, 9), (False, 4, 11)])
def test_steps_cover_each_epoch_once_and_epochs_differ(drop_last, per_epoch, kept, like_lengths):
    options = dict(drop_last=drop_last, like_lengths=like_lengths)
    plan = make(**options)
    assert plan.steps_per_epoch == per_epoch and make(9, **options).steps_per_epoch == 3
    epochs = []
    for epoch in range(3):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        seen = np.concatenate([plan.queries(step) for step in steps])
        assert len(seen) == per_epoch * 3
        assert len(set(seen[:kept])) == kept and min(seen[:kept]) >= 0
        assert (seen[kept:] == -1).all(), 'empty rows come last'
        epochs.append(tuple(seen))
    assert len(set(epochs)) == 3
    assert tuple(np.concatenate([make(seed=6).queries(step) for step in range(4)])) != epochs[0]


def test_queries_of_like_lengths_share_batches():
    plan, sorted_plan = make(100), make(100, like_lengths=5)
    spread = lambda plan: np.mean([np.ptp(plan.sizes[plan.queries(i), 0]) for i in range(33)])
    assert spread(sorted_plan) < spread(plan) / 3
    epoch = lambda plan: [plan.queries(i).tolist() for i in range(33)]
    windows = [sorted(sum(epoch(plan)[i : i + 5], [])) for i in range(0, 30, 5)]
    for batch in epoch(sorted_plan)[:33]:
        inside = [set(batch) <= set(window) for window in windows]
        assert sum(inside) == 1 or set(batch) <= set(range(100)) - set(sum(windows, []))


@pytest.mark.parametrize('like_lengths', [0, 2, 50])
def test_every_query_is_trained_on_where_incomplete_batches_are_dropped(like_lengths):
    plan = make(11, drop_last=True, like_lengths=like_lengths)
    assert {i for step in range(30) for i in plan.queries(step)} == set(range(11))


def split_of(sizes):
    fields = dict.fromkeys(('videos', 'video_index', 'source_index', 'text', 'skipped'))
    return datasets.Split(
        name='train', queries=[None] * len(sizes), saliency=[np.zeros(c) for c, _ in sizes],
        roles=[np.zeros(t) for _, t in sizes], **fields)


def test_a_calls_bucket_holds_all_of_its_steps_in_all_runs():
    rng = np.random.default_rng(1)
    split = split_of(np.minimum(rng.geometric([0.1, 0.2], (200, 2)), (75, 32)))
    data = ConfigDict(dict(max_clips=75, max_tokens=32))
    section = ConfigDict(dict(batch_size=2, drop_last=False, like_lengths=0, buckets=4,
                              steps_per_call=2, max_steps=0, epochs=20))
    plans = Schedule.of(split, data, section, 3, 4)
    buckets = plans[0].buckets
    assert buckets is plans[1].buckets and len(buckets) > 1
    calls = [range(first, first + 2) for first in range(0, 400, 2)]
    for these in (plans[:1], plans):
        for call, found in padded(these, calls).items():
            clips, tokens = np.max(
                [plan.sizes[plan.queries(i)].max(0) for plan in these for i in call], 0)
            holding = [b for b in buckets if b.clips >= clips and b.tokens >= tokens]
            assert found == min(holding, key=lambda b: b.clips + b.tokens / 5)
    others = Schedule.of(split, data, section, 7, 8)
    assert others[0].buckets == buckets, 'runs that differ in their seeds share programs'
    assert (others[0].queries(0) != plans[0].queries(0)).any()
    section.buckets = 1
    plan, = Schedule.of(split, data, section, 3)
    assert padded([plan], [range(1)]) == {range(1): (75, 32)}


def test_fewer_records_than_a_batch_are_one_or_an_error():
    split = split_of([(3, 4)] * 5)
    data = ConfigDict(dict(max_clips=75, max_tokens=32))
    section = ConfigDict(dict(batch_size=6, drop_last=True, like_lengths=0, buckets=4,
                              steps_per_call=1, max_steps=0, epochs=20))
    with pytest.raises(DataError, match='5 records.*batch of 6.*train.batch_size'):
        Schedule.of(split, data, section, 0)
    section.drop_last = False
    plan, = Schedule.of(split, data, section, 0)
    assert sorted(plan.queries(0)) == [-1, 0, 1, 2, 3, 4] and plan.queries(0)[5] == -1

"""Which queries a step of training or evaluation sees, and what batches are padded to.

Both are functions of the split and the config alone, the order also of the seed: every process and
every resumed run finds the same without asking.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import datasets
from data_pipelines.errors import DataError

GRID = 8, 4  # buckets are multiples of so many clips and tokens
PRICE = 1, 0.2  # of a clip and a token: FLOPs of train steps; a token's are 0.06 to 0.27
WORTH = 0.05  # a bucket more, which takes a compilation, saves this share of an evaluation
COMPILATION = 10  # steps that take about as long: 30 to 50 on two cores, but runs share programs
LEAST = 0.01  # share of a training that a bucket more saves, however long it is
EPOCHS = 4  # whose batches decide which buckets there are
BATCHES = 4  # of an evaluation that pay for the compilation of another size
OWN_TOKENS = 64  # that models have at most beside clips and text: dummies, moment queries


class Bucket(NamedTuple):
    """What the videos and texts of a batch are padded to."""

    clips: int
    tokens: int


def query_sizes(split: datasets.Split) -> np.ndarray:
    """Clips and tokens of each query, int[N, 2]."""
    sizes = [(len(labels), len(roles)) for labels, roles in zip(split.saliency, split.roles)]
    return np.array(sizes, int).reshape(-1, 2)


def limits(data: Any) -> Bucket:
    """The largest sizes that the `data` section allows."""
    return Bucket(data.max_clips, data.max_tokens)


def choose_buckets(sizes: np.ndarray, count: int, worth: float = WORTH) -> list[Bucket]:
    """At most `count` buckets that hold all sizes, with as little padding as can be found.

    Buckets are added one by one where they save most, and after each the others are moved to where
    they save most. What is saved is counted in `PRICE`.

    Args:
        sizes: int[N, 2], clips and tokens of what is padded together.
        count: 1 or more.
        worth: share of what is computed that a bucket more has to save.
    """
    sizes, times = np.unique(sizes, axis=0, return_counts=True)
    largest = sizes.max(0)
    rounded = np.minimum(-(-sizes // GRID) * GRID, largest)
    candidates = np.stack(np.meshgrid(*map(np.unique, rounded.T)), -1).reshape(-1, 2)
    cost = _prices(candidates, sizes)
    total = lambda chosen: cost[chosen].min(0) @ times
    best_beside = lambda chosen: int((np.minimum(cost, cost[chosen].min(0)) @ times).argmin())

    chosen = [int((candidates == largest).all(1).argmax())]
    while len(chosen) < count:
        more, before = [*chosen, best_beside(chosen)], np.inf
        while total(more) < before:
            before = total(more)
            for i in range(1, len(more)):
                more[i] = best_beside(more[:i] + more[i + 1:])
        if total(more) > (1 - worth) * total(chosen):
            break
        chosen = more
    return sorted(Bucket(*candidates[i].tolist()) for i in chosen)


def smallest(buckets: Sequence[Bucket], sizes: np.ndarray) -> np.ndarray:
    """Which of the buckets holds each of sizes int[N, 2] with the least padding, int[N]."""
    return _prices(np.array(buckets), sizes).argmin(0)


def _prices(buckets: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """What each size [N, 2] costs in each bucket [K, 2]: [K, N], inf where it has no room."""
    holds = (sizes <= buckets[:, None]).all(-1)
    return np.where(holds, (buckets @ PRICE)[:, None], np.inf)


def evaluation_plan(sizes: np.ndarray, data: Any, batch_size: int, count: int, parts: int = 1
                    ) -> list[tuple[Bucket, np.ndarray]]:
    """The batches of an evaluation, by what they are padded to.

    Args:
        sizes: int[N, 2], clips and tokens of the queries.
        data: the `data` section of the config.
        batch_size: most of the longest, all processes together; of shorter ones a batch has as many
            as take no more memory, of all as few as leave few rows empty.
        count: how many buckets there may be, see `choose_buckets`, but one for `BATCHES` batches at
            most; 1: the limits of the config, and batches of `batch_size`.
        parts: that a batch is split into.

    Returns:
        (bucket, queries int[batches, B] in order, -1 where empty), of each bucket.
    """
    if count == 1:
        return [(limits(data), _batches(np.arange(len(sizes)), batch_size))]
    buckets = choose_buckets(sizes, min(count, max(len(sizes) // (BATCHES * batch_size), 1)))
    place, memory = smallest(buckets, sizes), [sum(bucket) + OWN_TOKENS for bucket in buckets]
    plan = []
    for number in np.unique(place):
        own = np.flatnonzero(place == number)
        most = batch_size * (max(memory) // memory[number])
        size = -(-len(own) // -(-len(own) // most))  # with no more batches
        plan.append((buckets[number], _batches(own, -(-size // parts) * parts)))
    return plan


def _batches(queries: np.ndarray, size: int) -> np.ndarray:
    """Rows of `size`, the last one filled up with -1."""
    return np.pad(queries, (0, -len(queries) % size), constant_values=-1).reshape(-1, size)


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """The queries of each training step, and what they are padded to.

    Attributes:
        sizes: int[N, 2], clips and tokens of the split's queries.
        batch_size: of all processes together.
        seed: of the order.
        drop_last: whether an epoch's incomplete last batch is dropped; else empty rows fill it up.
        like_lengths: > 1: the shuffled queries of so many batches are sorted by clips.
        buckets: see `choose_buckets`.
    """

    sizes: np.ndarray
    batch_size: int
    seed: int
    drop_last: bool = False
    like_lengths: int = 0
    buckets: Sequence[Bucket] = ()

    @classmethod
    def of(cls, split: datasets.Split, data: Any, section: Any, *seeds: int) -> list['Schedule']:
        """Those of a split, one for each seed; their batches of a step are to be padded alike.

        Args:
            split: the training queries.
            data: the `data` section of the config.
            section: the `train` section.
            *seeds: of the order.

        Raises:
            DataError: the split has fewer queries than a batch, and such a batch is dropped.
        """
        sizes = query_sizes(split)
        if section.drop_last and len(sizes) < section.batch_size:
            raise DataError(
                f'split {split.name!r} has {len(sizes)} records, expected at least one batch of '
                f'{section.batch_size} (train.batch_size), or train.drop_last=False')
        plans = [cls(sizes, section.batch_size, seed, section.drop_last, section.like_lengths)
                 for seed in seeds]
        if section.buckets == 1:
            buckets = [limits(data)]
        else:
            each, per_epoch = section.steps_per_call, plans[0].steps_per_epoch
            # Of other seeds, always the same: a study's runs share the programs they compile.
            samples = [dataclasses.replace(plan, seed=i) for i, plan in enumerate(plans)]
            found = joint_sizes(
                samples, [range(i, i + each) for i in range(0, EPOCHS * per_epoch, each)])
            steps = section.max_steps or section.epochs * per_epoch
            buckets = choose_buckets(np.array([*found, sizes.max(0)]), section.buckets,
                                     worth=max(COMPILATION / steps, LEAST))
        return [dataclasses.replace(plan, buckets=buckets) for plan in plans]

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(len(self.sizes), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def queries(self, step: int) -> np.ndarray:
        """Queries of a step, int[batch_size], -1 where a row is empty; epochs are shuffled anew."""
        epoch, position = divmod(step, self.steps_per_epoch)
        found = _epoch_order(self, epoch)[position * self.batch_size :][: self.batch_size]
        return np.pad(found, (0, self.batch_size - len(found)), constant_values=-1)

    def size(self, steps: range) -> np.ndarray:
        """Most clips and most tokens of the queries of some steps, int[2]."""
        queries = np.concatenate([self.queries(step) for step in steps])
        return self.sizes[queries[queries >= 0]].max(0)


def joint_sizes(schedules: Sequence[Schedule], calls: Sequence[range]) -> np.ndarray:
    """Most clips and most tokens of the queries of each call's steps, in any run, int[calls, 2]."""
    sizes = [[one.size(steps) for steps in calls] for one in schedules]
    return np.max(sizes, 0).reshape(-1, 2)


def padded(schedules: Sequence[Schedule], calls: Iterable[range]) -> dict[range, Bucket]:
    """What the batches of each call's steps are padded to, in all runs alike."""
    calls, buckets = list(calls), schedules[0].buckets
    chosen = smallest(buckets, joint_sizes(schedules, calls))
    return {steps: buckets[i] for steps, i in zip(calls, chosen, strict=True)}


@functools.lru_cache(maxsize=512)  # two epochs of as many runs as may go side by side
def _epoch_order(schedule: Schedule, epoch: int) -> np.ndarray:
    size, batch_size = len(schedule.sizes), schedule.batch_size
    rng = np.random.default_rng([schedule.seed, epoch])
    order = rng.permutation(size)
    if schedule.like_lengths < 2:
        return order
    # An incomplete batch stays the last one, and is of any lengths: it may be dropped.
    whole = size // batch_size * batch_size
    window = schedule.like_lengths * batch_size
    alike = np.concatenate([
        part[np.argsort(schedule.sizes[part, 0], kind='stable')]
        for part in np.split(order[:whole], range(window, whole, window))])
    shuffled = rng.permutation(alike.reshape(-1, batch_size)).reshape(-1)
    return np.concatenate([shuffled, order[whole:]])

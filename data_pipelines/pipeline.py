"""From a split to batches of static shape.

A batch is a function of (split, seed, step) alone: any process can make any rows of any step's
batch, and a resumed run sees the very batches that the interrupted one would have seen.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import annotations, datasets, features, saliency
from data_pipelines.errors import UserError
from data_pipelines.schedule import Bucket, Schedule, evaluation_plan, limits, query_sizes

# What a batch holds: shape by axis names, dtype (None: data.dtype), meaning. B batch, T clips, L
# tokens, M windows, S spans; V and E are the widths of video and text features.
BATCH = {
    'index': ('B', np.int32),  # query of the split; -1 in the empty rows that fill up a last batch
    'video': ('BTV', None),  # normalised streams, then the two temporal endpoints
    'video_mask': ('BT', np.bool_),
    'source_id': ('B', np.int32),  # equal for queries of the same source video
    'text': ('BLE', None),  # token by token
    'text_role': ('BL', np.int32),  # what each token is, see `tokens`; 0 is padding
    'duration': ('B', np.float32),  # seconds
    'clip_length': ('B', np.float32),  # seconds
    'windows': ('BM2', np.float32),  # true windows, [start, end] in seconds
    'windows_mask': ('BM', np.bool_),
    'spans': ('BS2', np.float32),  # of at most S windows: (centre, width) relative to all clips
    'spans_mask': ('BS', np.bool_),
    'saliency': ('BT', np.float32),  # the clips' labels, 0..12
    'relevant': ('BT', np.bool_),  # clips annotated as relevant, also those labelled 0
    'pos_clips': ('B2', np.int32),  # clips that should score higher than those in neg_clips
    'neg_clips': ('B2', np.int32),
    'pairs_mask': ('B', np.bool_),  # whether the sample has such clips
    'graded': ('B', np.bool_),  # whether its clips have labels, of which 0 is one
}


SHORTEST = 8  # clips or tokens that `pad` pads to at least, if the limits of the config allow it
PARALLEL = 2  # batches that are made at the same time
FEATURES = ('video', 'text')  # in data.dtype; `resident` batches leave them to the device


def batch_spec(data: Any, batch_size: int, bucket: Bucket | None = None, *, resident: bool = False
               ) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and dtype of every entry of a batch.

    Args:
        data: the `data` section of the config.
        batch_size: rows.
        bucket: T and L; default: the limits of the config.
        resident: without features, which are on the device already.
    """
    clips, tokens = bucket or limits(data)
    sizes = dict(B=batch_size, T=clips, L=tokens,
                 V=sum(data.video_dims) + 2, E=data.text_dim, M=data.max_windows, S=data.max_spans)
    return {name: (tuple(sizes.get(a, 2) for a in axes), dtype or features.dtype_of(data))
            for name, (axes, dtype) in BATCH.items() if not (resident and name in FEATURES)}


def _temporal_endpoints(n_clips: int) -> np.ndarray:
    """Relative start and end of each clip, float32[n_clips, 2]."""
    start = np.arange(n_clips, dtype=np.float32) / n_clips
    return np.stack([start, start + np.float32(1 / n_clips)], 1)


def collate(split: datasets.Split, data: Any, indices: np.ndarray,
            draws: list[np.random.Generator] | None, **shape) -> dict[str, np.ndarray]:
    """Pads queries and their videos to one batch.

    Args:
        split: the queries and features.
        data: the `data` section of the config.
        indices: int[B], of the queries; -1 leaves a row empty.
        draws: a generator per row for the random targets (saliency pairs, and which windows become
            spans if there are more than data.max_spans); None: no pairs, the first windows.
        **shape: bucket and resident, as of `batch_spec`.

    Returns:
        Arrays as in `batch_spec`.
    """
    batch = _empty_batch(data, len(indices), **shape)
    batch['index'][:] = indices
    for row, index in enumerate(indices):
        sample = {name: values[row, ...] for name, values in batch.items()}
        if index < 0:
            for name in batch.keys() & set(FEATURES):
                sample[name][:] = 0
            continue
        if 'video' in sample:  # not in resident batches
            _write_features(sample, split.videos[split.video_index[index]], split.text[index])
        query = split.queries[index]
        _write_inputs(sample, len(split.saliency[index]), split.roles[index], query.duration)
        sample['source_id'][...] = split.source_index[index]
        _write_targets(sample, data, query, split.saliency[index],
                       None if draws is None else draws[row])
    return batch


@dataclasses.dataclass(frozen=True)
class Sample:
    """A video and a query without annotations.

    Attributes:
        video: data.dtype[T, sum of video_dims], as of `release.join_streams`.
        text: data.dtype[L, text_dim], as of `release.label_query`.
        roles: int32[L], of the rows of text.
        duration: of the video, seconds.
    """

    video: np.ndarray
    text: np.ndarray
    roles: np.ndarray
    duration: float


def pad(data: Any, samples: Sequence[Sample], bucket: Bucket | None = None, rows: int = 0
        ) -> dict[str, np.ndarray]:
    """Pads samples to one batch.

    Sizes are powers of two, those of clips and tokens up to the limits of the config: few programs
    serve all lengths.

    Args:
        data: the `data` section of the config.
        samples: one or more.
        bucket: T and L, in place of these powers.
        rows: B, in place of its.

    Returns:
        Arrays as in `batch_spec`; rows without a sample are empty, as `collate` has them.
    """
    longest = (max(len(rows) for rows in column)
               for column in zip(*((sample.video, sample.text) for sample in samples), strict=True))
    bucket = bucket or Bucket(*(min(max(power_of_two(n), SHORTEST), most)
                                for n, most in zip(longest, limits(data), strict=True)))
    batch = _empty_batch(data, rows or power_of_two(len(samples)), bucket=bucket)
    batch['index'][len(samples):] = -1
    for name in FEATURES:
        batch[name][len(samples):] = 0
    for row, sample in enumerate(samples):
        arrays = {name: values[row, ...] for name, values in batch.items()}
        _write_features(arrays, sample.video, sample.text)
        _write_inputs(arrays, len(sample.video), sample.roles, sample.duration)
    return batch


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below the number."""
    return 1 << (number - 1).bit_length()


def _empty_batch(data: Any, batch_size: int, **shape) -> dict[str, np.ndarray]:
    """Zeros, but features, which are the most of a batch: each of their bytes is written once."""
    batch = {name: (_aligned if name in FEATURES else np.zeros)(*spec)
             for name, spec in batch_spec(data, batch_size, **shape).items()}
    batch['clip_length'][:] = data.clip_length
    return batch


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An empty array at an address where TensorFlow takes it over without copying it."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _write_features(sample: dict[str, np.ndarray], video: np.ndarray, text: np.ndarray) -> None:
    for name, rows in (('video', video), ('text', text)):
        sample[name][:len(rows), :rows.shape[1]] = rows
        sample[name][len(rows):] = 0
    sample['video'][:len(video), -2:] = _temporal_endpoints(len(video))


def _write_inputs(sample: dict[str, np.ndarray], n_clips: int, roles: np.ndarray,
                  duration: float) -> None:
    """Writes what the model reads beside the features."""
    sample['video_mask'][:n_clips] = True
    sample['text_role'][:len(roles)] = roles
    sample['duration'][...] = duration


def _write_targets(sample: dict[str, np.ndarray], data: Any, query: annotations.Query,
                   labels: np.ndarray, rng: np.random.Generator | None) -> None:
    """Writes what losses and metrics read; `rng` draws the random targets, see `collate`."""
    n_clips, windows = len(labels), query.windows
    sample['saliency'][:n_clips] = labels
    sample['relevant'][:n_clips] = saliency.relevant_clips(query, n_clips, data.saliency)
    sample['graded'][...] = saliency.is_graded(query, data.saliency)
    sample['windows'][:len(windows)] = windows
    sample['windows_mask'][:len(windows)] = True
    if len(windows) > data.max_spans:
        order = np.arange(len(windows)) if rng is None else rng.permutation(len(windows))
        windows = windows[order[:data.max_spans]]
    relative = windows / (n_clips * data.clip_length)
    sample['spans'][:len(windows), 0] = relative.mean(1)
    sample['spans'][:len(windows), 1] = relative[:, 1] - relative[:, 0]
    sample['spans_mask'][:len(windows)] = True
    if rng is not None:
        sample['pos_clips'][:], sample['neg_clips'][:] = saliency.sample_pairs(
            query, n_clips, data.saliency, rng)
        sample['pairs_mask'][...] = labels.any()


def train_batches(
    split: datasets.Split, data: Any, schedule: Schedule, calls: Mapping[range, Bucket], *,
    rows: slice = slice(None), resident: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of training steps, made ahead of time by tf.data.

    Args:
        split: the queries.
        data: the `data` section of the config.
        schedule: which of them each step sees.
        calls: steps, and what their batches are padded to (`schedule.padded`).
        rows: of each batch, those that this process makes.
        resident: see `batch_spec`.
    """
    steps = [(step, bucket) for call, bucket in calls.items() for step in call]

    def make(number: int) -> dict[str, np.ndarray]:
        step, bucket = steps[number]
        indices = schedule.queries(step)[rows]
        draws = [np.random.default_rng([schedule.seed, step // schedule.steps_per_epoch,
                                        max(index, 0)])
                 for index in indices]
        return collate(split, data, indices, draws, bucket=bucket, resident=resident)

    return _prefetched(make, len(steps), batch_spec(data, 1, resident=resident))


def eval_batches(
    split: datasets.Split, data: Any, *, batch_size: int, buckets: int = 1, parts: int = 1,
    rows_of: Callable[[int], slice] = lambda size: slice(None),
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """All queries, those of a bucket in order; a last batch is filled up with empty rows.

    Args:
        split: the queries.
        data: the `data` section of the config.
        batch_size, buckets, parts: see `evaluation_plan`.
        rows_of: rows of a batch of that size that this process makes.

    Yields:
        (queries int[B], of all processes; -1 where empty, this process's rows of the batch).
    """
    for bucket, batches in evaluation_plan(
            query_sizes(split), data, batch_size, buckets, parts):
        rows = rows_of(batches.shape[1])

        def make(number: int, batches=batches, bucket=bucket, rows=rows) -> dict[str, np.ndarray]:
            return collate(split, data, batches[number][rows], None, bucket=bucket)

        yield from zip(batches, _prefetched(make, len(batches), batch_spec(data, 1)))


def _prefetched(make: Callable[[int], dict], count: int, spec: dict
                ) -> Iterator[dict[str, np.ndarray]]:
    """Yields make(number) for numbers below `count`, a few made in parallel ahead of their use."""
    import tensorflow as tf  # 6 seconds: only where batches are streamed

    for kind in ('GPU', 'TPU'):
        tf.config.set_visible_devices([], kind)
    failures, made_by = [], [make]

    def values(number):
        try:
            return list(made_by[0](int(number)).values())
        except UserError as error:  # TensorFlow would wrap it in a text of its own
            failures.append(error)
            raise

    def load(number):
        arrays = tf.numpy_function(values, [number], [dtype for _, dtype in spec.values()])
        return dict(zip(spec, arrays))

    dataset = tf.data.Dataset.range(count)
    # Order is kept, so parallel calls change nothing but the speed.
    dataset = dataset.map(load, num_parallel_calls=PARALLEL, deterministic=True).prefetch(2)
    try:
        yield from dataset.as_numpy_iterator()
    except tf.errors.OpError:
        if failures:
            raise failures[0] from None
        raise
    finally:
        made_by.clear()  # TensorFlow keeps `values` for ever, and with it all that batches are of

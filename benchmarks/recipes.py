"""An epoch of every public recipe, on real annotations, beside the public PyTorch code.

    python -m benchmarks.recipes --annotations DIR [--public DIR] [--sets tacos,tvsum]
        [--models flash_vtg,cg_detr] [--steps 3] [--repeats 3] [--memory-gb 12] [--output FILE.json]

--annotations has a folder for each set, with its annotation files. Features are random rows in
memory, of the true widths and numbers. --public has a checkout of each public code, by the name of
its repository (FlashVTG, CGDETR, TR-DETR): its train step, on the same queries, takes turns with
ours (benchmarks/public.py). A recipe that stands in for a script that does not exist is left out.

An epoch's seconds are those of N of its steps, which are drawn evenly from all of them in the
order of their size, each the median of its repeats. `compilations` is how many programs an epoch
takes, `compile_s` the mean seconds of one: those of the drawn steps are compiled, or loaded where
$JAX_COMPILATION_CACHE_DIR has them. `padding` is the share of the computed clips and tokens that
are not there. A recipe whose drawn steps take more than `--memory-gb` (`memory_gb`, the compiler's)
is compiled and not run.
`--steps 0` prints the tables of padding alone, of an epoch and of an evaluation.
"""

import importlib
import json
import math
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import common
from benchmarks.five_sets import SETS
from configs.recipes import RECIPES
from data_pipelines import annotations, datasets, features, pipeline, release, tokens
from data_pipelines.schedule import Bucket, Schedule, evaluation_plan, padded, query_sizes
from dualground_jax import models
from dualground_jax.tpu import compile

PUBLIC = 'flash_vtg', 'cg_detr', 'tr_detr'  # models that benchmarks.public builds


class StandIns(release.ReleaseSplit):
    """A split whose features are slices of one random block: real numbers of rows, no files."""

    def __init__(self, data: Any, split: str):
        for folder in (*data.video_dirs, data.text_dir):
            pathlib.Path(data.root, folder).mkdir(parents=True, exist_ok=True)
        super().__init__(data, split)
        rng, dtype = np.random.default_rng(0), features.dtype_of(data)
        block = lambda *shape: rng.standard_normal(shape, np.float32).astype(dtype)
        self._video = tokens.unit_rows(block(data.max_clips, sum(data.video_dims)))
        self._text = tokens.unit_rows(block(data.max_tokens, data.text_dim))
        self._sentences: dict[int | str, str] = {}
        self._clips: dict[str, int] = {}

    def queries(self, skipped: list[str] | None) -> list[annotations.Query]:
        """As the release's; notes how many rows they and their videos have."""
        queries = super().queries(skipped)
        for query in queries:
            self._sentences[query.qid] = query.query
            clips = math.ceil(query.duration / self._data.clip_length)
            self._clips[query.vid] = max(clips, self._clips.get(query.vid, 0))
        self._clips |= self._labelled
        return queries

    def query(self, qid: int | str) -> tuple[np.ndarray, np.ndarray]:
        """A row for each word, and those that the layout adds."""
        layout = tokens.TEXT_LAYOUTS[self._data.text_layout]
        n_rows = layout.start + len(self._sentences[qid].split()) + layout.has_eos
        _, roles = tokens.label_tokens(
            np.ones((n_rows, 1), np.float32), layout, self._data.max_tokens, normalize=False)
        return self._text[:len(roles)], roles

    def video(self, vid: str) -> np.ndarray:
        """A row for each clip that has a label, or for each of the video's seconds."""
        return self._video[:release.kept_clips(vid, self._clips[vid], self._data.max_clips)]


def load(model: str, name: str, release_name: str, folder: str, root: str
         ) -> tuple[ConfigDict, datasets.Split, datasets.Split]:
    """A recipe's config, and its splits for training and evaluation with stand-ins for features.

    Args:
        model: of the recipe.
        name: of the data set.
        release_name: of the features.
        folder: has a folder of annotations for each set.
        root: gets empty folders.
    """
    config = importlib.import_module(f'configs.{SETS[name][0]}').get_config(
        f'model={model},features={release_name},root={root},annotations={folder}/{name}')
    with mock.patch.object(release, 'ReleaseSplit', StandIns):
        return (config, datasets.load_split(config.data, 'train', training=True),
                datasets.load_split(config.data, config.evaluate.split))


# Padding --------------------------------------------------------------------------------------


def buckets_of(schedule: Schedule) -> list[Bucket]:
    """What the batch of each step of an epoch is padded to."""
    return list(padded([schedule], [range(i, i + 1) for i in range(schedule.steps_per_epoch)])
                .values())


def present(schedule: Schedule) -> np.ndarray:
    """Clips and tokens that an epoch's queries have, int[2]."""
    queries = np.concatenate([schedule.queries(i) for i in range(schedule.steps_per_epoch)])
    return schedule.sizes[queries[queries >= 0]].sum(0)


def padding(config: ConfigDict, split: datasets.Split) -> dict:
    """A row of the table of an epoch's padding: what is computed over what is there.

    `before` pads to the limits of the config, `after` to buckets, `longest` to the longest of each
    batch, as the public code does.
    """
    schedule, = Schedule.of(split, config.data, config.train, config.seed)
    with_one = config.train.copy_and_resolve_references()
    with_one.buckets = 1
    single, = Schedule.of(split, config.data, with_one, config.seed)
    steps = [range(i, i + 1) for i in range(schedule.steps_per_epoch)]
    rows, longest = [schedule.batch_size] * len(steps), list(map(schedule.size, steps))
    return dict(
        batch_size=schedule.batch_size, queries=len(split.queries),
        **ratios(present(schedule), before=(rows, buckets_of(single)),
                 after=(rows, buckets_of(schedule)), longest=(rows, longest)),
        buckets=told(schedule.buckets))


def evaluation_padding(config: ConfigDict, split: datasets.Split) -> dict:
    """The same of an evaluation; `longest`: of batches in order."""
    sizes, batch_size = query_sizes(split), config.evaluate.batch_size

    def planned(count: int) -> tuple[list[int], list[Bucket]]:
        plan = evaluation_plan(sizes, config.data, batch_size, count)
        return [batches.size for _, batches in plan], [bucket for bucket, _ in plan]

    after = planned(config.evaluate.buckets)
    batches = [sizes[i : i + batch_size] for i in range(0, len(sizes), batch_size)]
    longest = [len(one) for one in batches], [one.max(0) for one in batches]
    return dict(
        batch_size=batch_size, queries=len(sizes),
        **ratios(sizes.sum(0), before=planned(1), after=after, longest=longest),
        buckets=told(after[1]))


def ratios(there: np.ndarray, **ways: tuple[Sequence[int], Sequence]) -> dict[str, float]:
    """What is computed over what is there, of clips and of tokens.

    Args:
        there: clips and tokens, int[2].
        **ways: rows, and clips and tokens that each of them is padded to.
    """
    return {f'{axis}_{way}': float(np.dot(rows, np.array(sizes)[:, i]) / there[i])
            for i, axis in enumerate(Bucket._fields) for way, (rows, sizes) in ways.items()}


def told(buckets: Sequence[Bucket]) -> str:
    """As in a table."""
    return ' '.join(f'{clips}x{tokens}' for clips, tokens in buckets)


# Time -----------------------------------------------------------------------------------------


def drawn(schedule: Schedule, count: int) -> list[int]:
    """So many steps of the first epoch, evenly from all of them in the order of their size."""
    steps = range(schedule.steps_per_epoch)
    order = sorted(steps, key=lambda i: tuple(schedule.size(steps[i : i + 1])))
    return [order[int((i + 0.5) * len(order) / count)] for i in range(count)]


def measure(config: ConfigDict, split: datasets.Split, source: str, args: Any) -> dict:
    """The row of a recipe in the table of times."""
    schedule, = Schedule.of(split, config.data, config.train, config.seed)
    step = common.TrainStep(config)

    def batch_of(number: int, bucket: Bucket) -> dict[str, np.ndarray]:
        indices = schedule.queries(number)
        draws = [np.random.default_rng([config.seed, 0, max(i, 0)]) for i in indices]
        return pipeline.collate(split, config.data, indices, draws, bucket=bucket)

    steps = drawn(schedule, args.steps)
    bucket_of = buckets_of(schedule)
    programs, compile_seconds = {}, []
    for bucket, number in {bucket_of[i]: i for i in steps}.items():
        batch = jax.device_put(batch_of(number, bucket))
        started = time.perf_counter()
        programs[bucket] = step.step.lower(step.state, batch, *step.rest).compile()
        compile_seconds.append(time.perf_counter() - started)
    per_epoch = schedule.steps_per_epoch
    share = present(schedule).sum() / (schedule.batch_size * np.sum(bucket_of))
    row = dict(batch_size=schedule.batch_size, steps=per_epoch, padding=float(1 - share),
               compilations=len(set(bucket_of)), compile_s=float(np.mean(compile_seconds)),
               memory_gb=max(compile.memory_of(one)[0] for one in programs.values()) / 1e9)
    if row['memory_gb'] > args.memory_gb:
        return row

    def ours(number: int) -> Callable[[], object]:
        batch = jax.block_until_ready(jax.device_put(batch_of(number, bucket_of[number])))
        step.step = programs[bucket_of[number]]
        return lambda: jax.block_until_ready(step(batch))

    def seconds_of(prepare: Callable[[int], Callable]) -> Callable[[], float]:
        """A measure that takes another step each time; the largest first, which does not count.

        Each is taken twice and counted the second time: the first call of a program, and PyTorch's
        of a shape, take longer, and an epoch repeats them.
        """
        rounds = iter([steps[-1], *steps * args.repeats])

        def warm() -> float:
            call = prepare(next(rounds))
            call()
            return common.timed(call)()

        return warm

    measures = dict(ours=seconds_of(ours))
    if source:
        from benchmarks import public  # PyTorch need not be there

        theirs = public.Code(source, config, args.public)

        def torch(number: int) -> Callable[[], object]:
            batch = batch_of(number, Bucket(*schedule.size(range(number, number + 1))))
            vids = [split.queries[i].vid for i in batch['index'] if i >= 0]
            arguments = theirs.batch(batch, vids)
            return lambda: theirs.train_step(*arguments)

        measures['torch'] = seconds_of(torch)
    turns = common.in_turns(measures, args.repeats * len(steps))
    seconds = {name: float(np.median(found.reshape(args.repeats, -1), 0).mean())
               for name, found in turns.items()}
    row |= dict(step_s=seconds['ours'], epoch_s=per_epoch * seconds['ours'])
    if source:
        row |= dict(torch_step_s=seconds['torch'], torch_epoch_s=per_epoch * seconds['torch'],
                    of_torch=seconds['ours'] / seconds['torch'])
    return row


def main() -> None:
    args = common.arguments(
        __doc__, annotations=str, public='', sets=','.join(SETS), models=','.join(models.MODELS),
        steps=3, repeats=3, memory_gb=12.0, output='')
    chosen = [(key, recipe.source) for key, recipe in RECIPES.items()
              if key[0] in args.models.split(',') and key[1] in args.sets.split(',')
              and 'stands in' not in recipe.source + recipe.remark]
    if not chosen:
        raise SystemExit(f'no recipe of {args.models} for {args.sets}')
    pads, evaluations, times = {}, {}, []
    for (model, name, release_name), source in chosen:
        key = dict(set=name, features=release_name)
        with tempfile.TemporaryDirectory() as root:
            config, split, valid = load(model, name, release_name, args.annotations, root)
        # Models may share one; their seeds and so their batches differ.
        shared = name, release_name, config.data.max_tokens
        row = key | padding(config, split)
        pads.setdefault((*shared, row['batch_size'], row['buckets']), row)
        evaluations.setdefault(
            (*shared, config.evaluate.batch_size), key | evaluation_padding(config, valid))
        if args.steps:
            source = source if args.public and model in PUBLIC else ''
            times.append(dict(model=model) | key | measure(config, split, source, args))
            print(json.dumps(times[-1]), flush=True)
    common.write(args.output, padding=list(pads.values()), evaluation=list(evaluations.values()),
                 **dict(recipes=times) if times else {})


if __name__ == '__main__':
    main()

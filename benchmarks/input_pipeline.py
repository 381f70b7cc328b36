"""Samples per second of the training input alone, beside what a CPU train step consumes.

    python -m benchmarks.input_pipeline [--models flash_vtg,tr_detr] [--no-step] [--output F.json]

Features are stand-ins, of full length. Input comes from memory, as of a loaded split; from the
files of a release, which hold 16-bit rows; and from built data (docs/records.md). The latter two
keep nothing (data.cache_gb=0), but the operating system does: its cache holds them, so this
measures the software, not the disk. `resident` is what is left to the host where features lie on
the device. `of_memory` is the rate over that of float32 from memory; without `--no-step` `of_step`
is the rate over the samples per second of the train step. All take turns.
"""

import functools
import tempfile
import time

import jax
import numpy as np

from benchmarks import common
from data_pipelines import datasets, pipeline, tfds_builders
from data_pipelines.schedule import Schedule, padded

FILES, HALF = {'data.cache_gb': 0.0}, {'data.dtype': 'float16'}
BUILT = FILES | {'data.records': 'records'}
VARIANTS = {
    'memory float32': {}, 'memory float16': HALF, 'resident': {'data.resident': True},
    'files float32': FILES, 'files float16': FILES | HALF,
    'built float32': BUILT, 'built float16': BUILT | HALF,
}


def rate(config, split, steps: int) -> float:
    """Samples per second of `pipeline.train_batches`, without its start."""
    size = config.train.batch_size
    schedule, = Schedule.of(split, config.data, config.train, 0)
    batches = pipeline.train_batches(
        split, config.data, schedule, padded([schedule], [range(steps + 3)]),
        resident=config.data.resident)
    for _ in range(3):
        next(batches)
    started = time.perf_counter()
    assert sum(1 for _ in batches) == steps
    return steps * size / (time.perf_counter() - started)


def load(data, folder: str) -> datasets.Split:
    """The split of a variant, built first where it is to be read from built data."""
    built, data.records = data.records, ''
    split = common.make_split(data, folder, queries=512)
    if not built:
        return split
    data.records = f'{folder}/{built}'
    tfds_builders.build(data)
    return datasets.load_split(data, 'train')


def measure(name: str, args, folder: str) -> list[dict]:
    """The table's rows of a model."""
    measures, spec = {}, {}
    for variant, overrides in VARIANTS.items():
        config = common.make_config(name, **overrides)
        # Files are slower than the rest by an order of magnitude.
        steps = max(args.steps // 10, 3) if variant.startswith('files') else args.steps
        measures[variant] = functools.partial(rate, config, load(config.data, folder), steps)
        spec[variant] = pipeline.batch_spec(config.data, 1, resident=config.data.resident)
    if not args.no_step:
        seconds = common.timed(common.make_program(common.make_config(name)).call)
        measures['step'] = lambda: config.train.batch_size / seconds()
    found = common.in_turns(measures, args.repeats)
    jax.clear_caches()
    rows = []
    for variant in VARIANTS:
        own = found[variant]
        size = sum(np.prod(shape) * np.dtype(kind).itemsize
                   for shape, kind in spec[variant].values())
        rows.append(dict(
            model=name, variant=variant, samples_per_second=float(np.median(own)),
            gb_per_second=float(np.median(own) * size / 1e9),
            of_memory=float(np.median(own / found['memory float32']))))
        if 'step' in found:
            rows[-1] |= dict(step_consumes=float(np.median(found['step'])),
                             of_step=float(np.median(own / found['step'])))
    return rows


def main() -> None:
    args = common.arguments(
        __doc__, models='flash_vtg,tr_detr', repeats=3, steps=60, no_step=False, output='')
    rows = []
    for name in args.models.split(','):
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(name, args, folder)
    common.write(args.output, input_pipeline=rows)


if __name__ == '__main__':
    main()

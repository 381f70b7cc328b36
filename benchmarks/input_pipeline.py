"""Samples per second of the training input alone, beside what a CPU train step consumes.

    python -m benchmarks.input_pipeline [--models flash_vtg,tr_detr] [--no-step] [--output F.json]

Records are random, of full length and in memory, as a loaded split is. `resident` is what is left
to the host where features lie on the device. Without `--no-step` also the train step's samples per
second and their ratio, measured in turns.
"""

import argparse
import time

import jax
import numpy as np

from benchmarks import common
from data_pipelines import datasets, pipeline
from data_pipelines.tokens import EOS, START, WORD
from dualground_jax import runtime

RECORDS, WORDS = 512, 11
VARIANTS = {'float32': {}, 'float16': dict(dtype='float16'), 'resident': dict(resident=True)}


def make_split(data) -> datasets.Split:
    """Records of full length."""
    rng = np.random.default_rng(0)
    records = [
        datasets.Record(
            qid=i, query='', vid=f'v{i}', duration=data.max_clips * data.clip_length,
            windows=np.array([[10.0, 30.0]]), clip_ids=np.arange(5, 15),
            clip_scores=np.full((10, 3), 3, np.float32), line=i)
        for i in range(RECORDS)
    ]
    draw = lambda *shape: rng.standard_normal(shape, np.float32).astype(data.dtype)  # noqa: E731
    labels = np.zeros(data.max_clips, np.float32)
    labels[5:15] = 9
    return datasets.Split(
        name='train', records=records, problems=[],
        videos=[draw(data.max_clips, sum(data.video_dims)) for _ in records],
        video_index=np.arange(RECORDS, dtype=np.int32),
        source_index=np.arange(RECORDS, dtype=np.int32),
        text=[draw(WORDS + 2, data.text_dim) for _ in records],
        roles=[np.array([START, *[WORD] * WORDS, EOS], np.int32) for _ in records],
        saliency=[labels] * RECORDS,
    )


def rate(config, split, steps: int) -> float:
    """Samples per second of `pipeline.train_batches`, without its start."""
    size = config.train.batch_size
    batches = pipeline.train_batches(
        split, config.data, batch_size=size, seed=0, first_step=0, last_step=steps + 3,
        resident=config.data.resident)
    for _ in range(3):
        next(batches)
    started = time.perf_counter()
    assert sum(1 for _ in batches) == steps
    return steps * size / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--models', default='flash_vtg,tr_detr')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--steps', type=int, default=60)
    parser.add_argument('--no-step', action='store_true')
    parser.add_argument('--output')
    args = parser.parse_args()
    runtime.keep_memory()
    rows = []
    for name in args.models.split(','):
        step = None
        if not args.no_step:
            step = common.train_program(name, common.make_config(name))
            step.call()
        found = {variant: [] for variant in VARIANTS}
        consumed = []
        for _ in range(args.repeats):
            for variant, changes in VARIANTS.items():
                config = common.make_config(
                    name, **{f'data.{key}': value for key, value in changes.items()})
                found[variant].append(rate(config, make_split(config.data), args.steps))
            if step:
                started = time.perf_counter()
                step.call()
                consumed.append(config.train.batch_size / (time.perf_counter() - started))
        for variant, rates in found.items():
            samples = float(np.median(rates))
            spec = pipeline.batch_spec(
                common.make_config(name, **{f'data.{k}': v for k, v in VARIANTS[variant].items()})
                .data, 1, resident=variant == 'resident')
            size = sum(np.prod(shape) * np.dtype(kind).itemsize for shape, kind in spec.values())
            consumes = float(np.median(consumed)) if consumed else None
            rows.append(dict(
                features=common.CASES[name].features, variant=variant, samples_per_second=samples,
                gb_per_second=samples * float(size) / 1e9, step=name, step_consumes=consumes,
                ratio=consumes and samples / consumes,
            ))
        jax.clear_caches()
    common.write(args.output, input_pipeline=rows)


if __name__ == '__main__':
    main()

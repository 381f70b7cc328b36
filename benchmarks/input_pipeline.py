"""Samples per second of the training input alone, beside what a CPU train step consumes.

    python -m benchmarks.input_pipeline [--models flash_vtg,tr_detr] [--no-step] [--output F.json]

Records are random and of full length. Input comes from memory, as of a loaded split; from the files
of a release; and from built data (docs/records.md). The latter two keep nothing (data.cache_gb=0),
but the operating system does: its cache holds them, so this measures the software, not the disk.
`resident` is what is left to the host where features lie on the device. Without `--no-step` also
the train step's samples per second and their ratio, measured in turns.
"""

import argparse
import json
import pathlib
import tempfile
import time

import jax
import numpy as np

from benchmarks import common
from data_pipelines import annotations, datasets, pipeline, tfds_builders
from data_pipelines.tokens import EOS, START, WORD
from dualground_jax import runtime

RECORDS, WORDS = 512, 11
FILES, BUILT = dict(cache_gb=0.0), dict(cache_gb=0.0, records='records')
HALF = dict(dtype='float16')
VARIANTS = {
    'memory float32': {}, 'memory float16': HALF, 'resident': dict(resident=True),
    'files float32': FILES, 'files float16': FILES | HALF,
    'built float32': BUILT, 'built float16': BUILT | HALF,
}


def make_split(data) -> datasets.Split:
    """Records of full length."""
    rng = np.random.default_rng(0)
    records = [
        annotations.Query(
            qid=i, query='words', vid=f'v{i}', duration=data.max_clips * data.clip_length,
            windows=np.array([[10.0, 30.0]]), clip_ids=np.arange(5, 15),
            clip_scores=np.full((10, 3), 3, np.float32), line=i)
        for i in range(RECORDS)
    ]
    draw = lambda *shape: rng.standard_normal(shape, np.float32).astype(data.dtype)  # noqa: E731
    labels = np.zeros(data.max_clips, np.float32)
    labels[5:15] = 9
    return datasets.Split(
        name='train', queries=records, problems=[],
        videos=[draw(data.max_clips, sum(data.video_dims)) for _ in records],
        video_index=np.arange(RECORDS, dtype=np.int32),
        source_index=np.arange(RECORDS, dtype=np.int32),
        text=[draw(WORDS + 2, data.text_dim) for _ in records],
        roles=[np.array([START, *[WORD] * WORDS, EOS], np.int32) for _ in records],
        saliency=[labels] * RECORDS,
    )


def write_release(data, folder: pathlib.Path) -> None:
    """Writes `make_split` as a release has it, and points `data` to it."""
    data.update(dict(root=str(folder), annotations=dict.fromkeys(data.annotations, '')))
    data.annotations.train = 'train.jsonl'
    split = make_split(data)
    for name in (*data.video_dirs, data.text_dir):
        (folder / name).mkdir(parents=True)
    ends = np.cumsum(data.video_dims)[:-1]
    lines = []
    for record, video, text in zip(split.queries, split.videos, split.text, strict=True):
        for name, rows in zip(data.video_dirs, np.split(video, ends, axis=1), strict=True):
            np.savez(folder / name / f'{record.vid}.npz', features=rows)
        np.savez(folder / data.text_dir / f'qid{record.qid}.npz', last_hidden_state=text)
        lines.append(json.dumps(dict(
            qid=record.qid, query=record.query, vid=record.vid, duration=record.duration,
            relevant_windows=record.windows.tolist(), relevant_clip_ids=record.clip_ids.tolist(),
            saliency_scores=record.clip_scores.tolist())))
    (folder / 'train.jsonl').write_text('\n'.join(lines))


def load(data, folder: pathlib.Path) -> datasets.Split:
    """The split of a variant; files and built data are made where they are missing."""
    if data.cache_gb < 0:
        return make_split(data)
    if not folder.exists():
        original = data.copy_and_resolve_references()
        original.dtype = 'float32'
        write_release(original, folder)
    data.update(dict(root=str(folder), annotations=dict(train='train.jsonl', val='', test='')))
    if data.records:
        data.records = str(folder / data.records)
        tfds_builders.build(data)
    return datasets.load_split(data, 'train')


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
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.models.split(','):
            rows += measure(name, args, pathlib.Path(scratch, name))
    common.write(args.output, input_pipeline=rows)


def measure(name: str, args, folder: pathlib.Path) -> list[dict]:
    """The table's rows of a model."""
    configs = {
        variant: common.make_config(
            name, **{f'data.{key}': value for key, value in changes.items()})
        for variant, changes in VARIANTS.items()
    }
    step = None
    if not args.no_step:
        step = common.train_program(name, common.make_config(name))
        step.call()
    found = {variant: [] for variant in VARIANTS}
    consumed = []
    for _ in range(args.repeats):
        for variant, config in configs.items():
            # Files are slower than the rest by an order of magnitude.
            steps = max(args.steps // 10, 3) if variant.startswith('files') else args.steps
            found[variant].append(rate(config, load(config.data, folder), steps))
        if step:
            started = time.perf_counter()
            step.call()
            consumed.append(config.train.batch_size / (time.perf_counter() - started))
    jax.clear_caches()
    rows = []
    for variant, rates in found.items():
        samples, data = float(np.median(rates)), configs[variant].data
        spec = pipeline.batch_spec(data, 1, resident=data.resident)
        size = sum(np.prod(shape) * np.dtype(kind).itemsize for shape, kind in spec.values())
        consumes = float(np.median(consumed)) if consumed else None
        rows.append(dict(
            features=common.CASES[name].features, variant=variant, samples_per_second=samples,
            gb_per_second=samples * float(size) / 1e9, step=name, step_consumes=consumes,
            ratio=consumes and samples / consumes,
        ))
    return rows


if __name__ == '__main__':
    main()

"""The five data sets at full scale: from real annotations to each set's own metrics, timed.

    python -m benchmarks.five_sets --annotations DIR [--sets tacos,tvsum] [--limit N] [--output F]

DIR has a folder for each set, with its annotation files. Features of the true widths are generated
(mode `simulate`), verified, built, and trained from as built, by a small model; then its best
checkpoint is evaluated, from the built data too. `train` includes an evaluation, and both compile.
All records are used, or the first N of each file. `--steps 0` stops at the data. Files that are
made lie in a temporary folder, gigabytes of them; $TMPDIR says where.
"""

import importlib
import json
import pathlib
import tempfile
import time

from benchmarks import common
from data_pipelines import datasets, simulate, tfds_builders
from data_pipelines.errors import DataError
from data_pipelines.own_data import verify
from dualground_jax import evaluate, runtime, train

# Folder of annotations -> config, size of evaluation batches.
SETS = {
    'qvhighlights': ('qvh', 64),
    'charades_sta': ('charades', 64),
    'tacos': ('tacos', 8),
    'tvsum': ('tvsum', 8),
    'youtube_highlights': ('youtube_hl', 8),
}


def make_config(name: str, folder: str, args):
    """The set's config with its default features, a small model and as many steps as asked for."""
    module, batch_size = SETS[name]
    config = importlib.import_module(f'configs.{module}').get_config(
        f'runlocal,model={args.model},root={folder}/files,annotations={args.annotations}/{name}')
    config.data.update(dict(limit=args.limit, cache_gb=args.cache_gb, dtype=args.dtype,
                            records=f'{folder}/records'))
    config.train.update(dict(max_steps=args.steps, log_every=5, eval_every=10**6))
    config.evaluate.batch_size = batch_size
    return config.lock()


def run(name: str, config, workdir: str) -> dict:
    """Takes a set through all modes; its row of the table."""
    stages = dict(
        simulate=lambda: simulate.simulate(config.data, config.seed),
        verify=lambda: verify.verify(config),
        build=lambda: tfds_builders.build(config.data),
        load=lambda: datasets.load_split(config.data, 'train'),
        train=lambda: train.train(config, workdir),
        evaluate=lambda: evaluate.evaluate(config, workdir),
    )
    found, seconds = {}, {}
    for stage in list(stages)[:None if config.train.max_steps else 4]:
        started = time.perf_counter()
        found[stage] = stages[stage]()
        seconds[f'{stage}_s'] = time.perf_counter() - started
        print(f'{name}: {stage} took {seconds[f"{stage}_s"]:.1f} s', flush=True)
        if stage == 'verify' and (errors := found[stage].problems('error')):
            raise DataError(errors[0].message)
    files_gb, built_gb = size_of(found['simulate']), size_of(found['build'])
    row = dict(set=name, features=config.data.features, train_queries=len(found['load'].queries),
               train_videos=len(found['load'].videos), files_gb=files_gb, built_gb=built_gb,
               built_of_files=built_gb / files_gb, **seconds)
    if config.train.max_steps:
        trained, evaluated = (
            json.loads(pathlib.Path(workdir, file).read_text())
            for file in ('results.json', f'{config.evaluate.split}_metrics.json'))
        assert trained['brief'] == evaluated['brief'], 'the best checkpoint has other metrics now'
        row |= dict(metric=' + '.join(config.evaluate.selection),
                    value=evaluate.selection_value(evaluated, config.evaluate))
    return row


def size_of(folder: pathlib.Path) -> float:
    """Gigabytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e9


def main() -> None:
    args = common.arguments(
        __doc__, annotations=str, sets=','.join(SETS), limit=0, model='dualground',
        dtype='float16', cache_gb=0.01, steps=20, output='')
    rows = []
    for name in args.sets.split(','):
        with tempfile.TemporaryDirectory() as folder:
            runtime.keep_compiled(folder)
            rows.append(run(name, make_config(name, folder, args), f'{folder}/run'))
    common.write(args.output, five_sets=rows)


if __name__ == '__main__':
    main()

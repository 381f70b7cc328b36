"""The five data sets at full scale: from real annotations to each set's own metrics, timed.

    python -m benchmarks.five_sets --annotations DIR [--sets tacos,tvsum] [--limit N] [--output F]

DIR has a folder for each set, with its annotation files. Features of the true widths are generated
(mode `simulate`), verified, built, and trained from as built, by a small model; then its best
checkpoint is evaluated, from the built data too. `train` includes an evaluation, and both compile.
All records are used, or the first N of each file. Files that are made lie in a temporary folder,
gigabytes of them; $TMPDIR says where.
"""

import argparse
import collections
import importlib
import json
import pathlib
import shutil
import tempfile
import time

from benchmarks import common
from data_pipelines import datasets, files, simulate, tfds_builders
from data_pipelines.errors import DataError
from data_pipelines.own_data import verify
from dualground_jax import evaluate, runtime, train

# Folder of annotations -> config, size of evaluation batches, how many lengths they are padded to.
SETS = {
    'qvhighlights': ('qvh', 64, 1),
    'charades_sta': ('charades', 64, 2),
    'tacos': ('tacos', 8, 4),
    'tvsum': ('tvsum', 8, 1),
    'youtube_highlights': ('youtube_hl', 8, 1),
}


def make_config(name: str, annotations: pathlib.Path, folder: pathlib.Path, args):
    """The set's config with its default features, a small model and as many steps as asked for."""
    module, batch_size, buckets = SETS[name]
    config = importlib.import_module(f'configs.{module}').get_config(
        f'runlocal,model={args.model},root={folder / "files"},annotations={annotations / name}')
    config.data.update(dict(limit=args.limit, cache_gb=args.cache_gb, dtype=args.dtype,
                            records=str(folder / 'records')))
    config.train.update(dict(max_steps=args.steps, log_every=5, eval_every=10**6))
    config.evaluate.update(dict(batch_size=batch_size, buckets=buckets))
    return config.lock()


def run(name: str, config, workdir: pathlib.Path) -> tuple[dict, collections.Counter]:
    """Takes a set through all modes.

    Returns:
        (row of the table, number of problems and notes of each kind that verifying found).
    """
    seconds = {}

    def timed(stage, function, *args):
        started = time.perf_counter()
        found = function(*args)
        seconds[f'{stage}_s'] = time.perf_counter() - started
        print(f'{name}: {stage} took {seconds[f"{stage}_s"]:.1f} s', flush=True)
        return found

    files = timed('simulate', simulate.simulate_data, config.data, config.seed)
    report = timed('verify', verify.verify, config)
    parts = report.parts
    if errors := report.problems('error'):
        raise DataError(errors[0].message)
    built = timed('build', tfds_builders.build, config.data)
    print(tfds_builders.report(built))
    timed('load', datasets.load_split, config.data, 'train')
    row = dict(
        set=name, features=config.data.features,
        queries=len({(part.path, record.line) for part in parts for record in part.records}),
        videos=len({record.vid for part in parts for record in part.records}),
        files_gb=size_of(files), built_gb=size_of(built))
    if config.train.max_steps:
        timed('train', train.train, config, str(workdir))
        timed('evaluate', evaluate.evaluate, config, str(workdir))
        row |= outcome(config, workdir)
    kinds = collections.Counter(problem.kind for problem in report.problems())
    return row | seconds, kinds


def outcome(config, workdir: pathlib.Path) -> dict:
    """What training and evaluating came to, which must agree."""
    trained = json.loads((workdir / 'results.json').read_text())
    evaluated = json.loads((workdir / f'{config.evaluate.split}_metrics.json').read_text())
    assert trained['brief'] == evaluated['brief'], 'the best checkpoint has other metrics now'
    losses = [row['train/loss'] for row in files.load_jsonl(workdir / 'metrics.jsonl')
              if 'train/loss' in row]
    return dict(
        steps_per_s=trained['steps_per_second'], first_loss=losses[0], last_loss=losses[-1],
        metric=' + '.join(config.evaluate.selection),
        value=evaluate.selection_value(evaluated, config.evaluate))


def size_of(folder: pathlib.Path) -> float:
    """Gigabytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--annotations', type=pathlib.Path, required=True)
    parser.add_argument('--sets', default=','.join(SETS))
    parser.add_argument('--limit', type=int, default=0, help='records of each file; 0: all')
    parser.add_argument('--model', default='dualground')
    parser.add_argument('--dtype', default='float16', help='of features built and in batches')
    parser.add_argument('--cache-gb', type=float, default=0.01, help='of features in memory')
    parser.add_argument('--steps', type=int, default=20, help='0: the data alone')
    parser.add_argument('--output')
    args = parser.parse_args()
    runtime.keep_memory()
    rows, found = [], []
    with tempfile.TemporaryDirectory() as scratch:
        runtime.keep_compiled(scratch)
        for name in args.sets.split(','):
            folder = pathlib.Path(scratch, name)
            row, kinds = run(name, make_config(name, args.annotations, folder, args),
                             folder / 'run')
            shutil.rmtree(folder)
            rows.append(row)
            found += [dict(set=name, level=level, what=title, count=kinds[kind])
                      for kind, (level, title) in verify.KINDS.items() if kinds[kind]]
    common.write(args.output, five_sets=rows, **(dict(verified=found) if found else {}))


if __name__ == '__main__':
    main()

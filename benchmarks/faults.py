"""Fault trials: processes are killed and disks are full, and nothing may be lost or half-written.

    python -m benchmarks.faults [--kills 20] [--other-kills 5] [--parts train,...] [--output F]

`train` kills training runs at random moments of all phases, some runs several times in a row, and
lets each go on. `simulate`, `build`, `import-csv` and `sweep` kill these modes and run them again.
`disk` fills the disk (a small tmpfs where mounting is allowed, and a limit on the size of files)
before a run saves, and makes room again. `processes` kills one of two processes. What is there in
the end must be what an undisturbed run leaves: parameters, optimiser and metrics bit for bit, all
other files byte for byte, but for times. Exits with 1 if anything differs.
"""

import contextlib
import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from benchmarks import common
from configs import synthetic
from data_pipelines import files
from dualground_jax import sharding, state
from dualground_jax.checkpoints import Checkpoints

OVERRIDES = {
    'model.width': 16, 'model.heads': 2, 'model.ffn': 16, 'model.dummies': 2,
    'model.input_layers': 1, 'model.strides': (1,), 'model.mlp_layers': 1,
    'train.batch_size': 16, 'train.max_steps': 8, 'train.log_every': 1, 'evaluate.pictures': 0,
    'optimizer.schedule': 'constant', 'optimizer.warmup_steps': 0,
}
EVAL_STEPS = 2  # an epoch: 32 queries in batches of 16
PHASES = ('starting', 'compiling', 'steps', 'evaluating', 'saving', 'results')
# Keys of JSON that may differ: a run that went on for longer has the config of its best checkpoint.
MAY_DIFFER = ('steps_per_second', 'max_steps')
PATIENCE = 900.0  # seconds: what runs for longer hangs
QUERIES = 120  # of the files that are simulated and built


# Processes ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Job:
    """A command whose results lie in `folder`.

    Attributes:
        flags: of dualground_jax.main.
        folder: all that it writes.
        log: what it prints, of its last run.
    """

    flags: list[str]
    folder: pathlib.Path
    log: pathlib.Path

    def start(self, *more: str, file_size: int = resource.RLIM_INFINITY) -> subprocess.Popen:
        """Starts it with more flags, and a limit on the bytes of a file."""
        with open(self.log, 'w') as log:
            process = subprocess.Popen(
                [sys.executable, '-m', 'dualground_jax.main', *self.flags, *more], stdout=log,
                stderr=subprocess.STDOUT)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (file_size, file_size))
        return process

    def finish(self, *more: str) -> None:
        """Runs it to its end; RuntimeError if it fails."""
        if self.start(*more).wait(PATIENCE):
            raise RuntimeError(f'{self.flags}: {self.log.read_text()[-2000:]}')

    def last_lines(self) -> str:
        """What an error printed: its line, or how many there are."""
        lines = [line for line in self.log.read_text().splitlines() if line.strip()]
        if any('Traceback' in line for line in lines):
            print(self.log.read_text())
            return f'a traceback: {lines[-1]}'
        return lines[-1] if lines else ''


def poll(process: subprocess.Popen, reached: Callable[[], bool]) -> bool:
    """Waits until something is reached; False if the process ends before it is."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            kill(process)
            raise RuntimeError(f'{process.args} hangs')
        time.sleep(0.005)
    return True


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


# Phases of a training run ---------------------------------------------------------------------


def phase_of(run: Job) -> tuple[str, int]:
    """The phase that a run is in, or was killed in, and the last step that it noted."""
    log = run.log.read_text()
    history = run.folder / 'metrics.jsonl'
    text = history.read_text() if history.exists() else ''
    rows = [json.loads(line) for line in text.splitlines() if line.endswith('}')]
    step = rows[-1]['step'] if rows else 0
    if log.rstrip().endswith('...'):
        return 'compiling', step
    if ' parameters, ' not in log or not rows:
        return 'starting', step
    if (run.folder / 'checkpoints/latest' / str(OVERRIDES['train.max_steps'])).exists():
        return 'results', step
    if 'train/loss' not in rows[-1]:
        newer = (run.folder / 'checkpoints/latest' / str(step)).exists()
        return 'steps' if newer else 'saving', step
    return 'evaluating' if step % EVAL_STEPS == 0 else 'steps', step


def watch(process: subprocess.Popen, run: Job) -> list[tuple[tuple[str, int], float]]:
    """Runs to the end: each (phase, step) with its seconds."""
    found = []

    def look():
        if (now := phase_of(run)) != (found[-1][0] if found else None):
            found.append((now, time.monotonic()))
        return False

    poll(process, look)
    ends = [started for _, started in found[1:]] + [time.monotonic()]
    return [(name, end - started) for (name, started), end in zip(found, ends)]


def kill_in(run: Job, moment: tuple[str, int], seconds: float) -> str:
    """Starts a run and kills it so many seconds after a moment; the phase that this fell in."""
    process = run.start()
    if poll(process, lambda: phase_of(run) == moment or phase_of(run)[1] > moment[1]):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    ended = process.poll() is not None
    kill(process)
    return 'ended before' if ended else ' '.join(map(str, phase_of(run)))


# What must be the same ------------------------------------------------------------------------


class Reader:
    """Reads folders of results into what must be the same in another one."""

    def __init__(self, config):
        self.abstract = state.abstract_state(config, sharding.make_mesh(config.mesh))

    def contents(self, folder: pathlib.Path) -> dict[str, object]:
        """Name -> content of all results below a folder; of checkpoints, what they restore to.

        What a kill left of unfinished writing is no result; see `is_scratch`.
        """
        found = {}
        for path in sorted(folder.rglob('*')):
            parts = path.relative_to(folder).parts
            below = parts[parts.index('checkpoints') + 1:] if 'checkpoints' in parts else ()
            name = '/'.join(parts)
            if is_scratch(name):
                continue
            if len(below) == 2:
                found[name] = self.checkpoint(path.parents[2], *below)
            elif path.is_file() and not below and not path.name.startswith('events.'):
                content = path.read_bytes().replace(str(folder).encode(), b'')
                if '.array_record-' in name:
                    content = records(path)
                if path.suffix == '.json':
                    content = json.dumps(comparable(json.loads(content))).encode()
                found[name] = hashlib.sha256(content).hexdigest()
        return found

    def checkpoint(self, workdir: pathlib.Path, kind: str, step: str):
        """Digest of the state and the progress."""
        saved = Checkpoints(workdir)
        if str(saved.step(kind)) != step:
            return 'no checkpoint'
        restored, progress = saved.restore(kind, self.abstract)
        digest = hashlib.sha256(json.dumps(comparable(progress)).encode())
        for leaf in jax.tree.leaves(restored):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()

    def differences(self, folder: pathlib.Path, expected: dict[str, object]) -> str:
        """Names of what differs, '' if all is the same."""
        found = self.contents(folder)
        return ', '.join(name for name in sorted(found | expected)
                         if found.get(name) != expected.get(name))


def comparable(value):
    if isinstance(value, dict):
        return {k: comparable(v) for k, v in value.items() if k not in MAY_DIFFER}
    return [comparable(v) for v in value] if isinstance(value, list) else value


def is_scratch(name: str) -> bool:
    """Whether a name below a folder is of what is being written, by us, tfds or orbax."""
    return any(part.startswith(('.', 'incomplete.')) or part.endswith('.orbax-checkpoint-tmp')
               for part in name.split('/'))


def records(path: pathlib.Path) -> bytes:
    """The records of a built file; the order of fields in one of them is left to chance."""
    import tensorflow as tf
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(str(path))
    return b''.join(tf.train.Example.FromString(record).SerializeToString(deterministic=True)
                    for record in reader.read_all())


def leftover_bytes(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob('*')
               if path.is_file() and is_scratch(str(path.relative_to(folder))))


# Trials ---------------------------------------------------------------------------------------


class Trials:
    """All trials, in a folder of their own; the rows of their table."""

    def __init__(self, folder: pathlib.Path, seed: int):
        self.folder, self.random, self.rows = folder, random.Random(seed), []
        arguments = f'runlocal,paths=sentence,root={folder}/world'
        config = synthetic.get_config(arguments)
        config.update_from_flattened_dict(OVERRIDES)
        self.reader = Reader(config)
        self.train_flags = [f'--config=configs/synthetic.py:{arguments}',
                            *(f'--config.{key}={value}' for key, value in OVERRIDES.items())]

    def note(self, trial: str, fault: str, then: str, differing: str) -> None:
        """Adds a row and prints it."""
        self.rows.append(dict(trial=trial, fault=fault, then=then,
                              equal='no: ' + differing if differing else 'yes'))
        print(' | '.join(map(str, self.rows[-1].values())), flush=True)

    def training(self, name: str, *flags: str) -> Job:
        workdir = self.folder / name
        return Job([*self.train_flags, f'--workdir={workdir}', *flags], workdir, self.log(name))

    def log(self, name: str) -> pathlib.Path:
        return self.folder / f'{name.replace("/", "_")}.log'

    def reference(self) -> dict[str, object]:
        """What an undisturbed training run leaves."""
        run = self.training('reference')
        if not run.folder.exists():
            run.finish()
        return self.reader.contents(run.folder)

    def train(self, kills: int, in_a_row: int) -> None:
        """Kills training runs; the last one several times in a row."""
        expected = self.reference()
        run = self.training('watched')
        moments = watch(run.start(), run)
        self.note('train', 'none', 'run again from scratch',
                  self.reader.differences(run.folder, expected))
        total = sum(seconds for _, seconds in moments)
        for phase in PHASES:
            share = sum(seconds for (name, _), seconds in moments if name == phase)
            print(f'{phase}: {share:.1f} of {total:.1f} s')
        for number in range(kills):
            run = self.training(f'run{number}')
            self.kill_and_resume(run, moments, [PHASES[number % len(PHASES)]], expected)
        self.kill_and_resume(self.training('row'), moments,
                             [PHASES[1 + i % 4] for i in range(in_a_row)], expected)

    def kill_and_resume(self, run: Job, moments: list, phases: list[str], expected: dict) -> None:
        fell = []
        for phase in phases:
            after = phase_of(run)[1] if fell else -1
            choice = [entry for entry in moments if entry[0][0] == phase and (
                not fell or entry[0][1] > after or phase == 'compiling')]
            moment, seconds = self.random.choice(choice or moments[-1:])
            fell.append(kill_in(run, moment, self.random.uniform(0, seconds / 2)))
        run.finish()
        self.note('train', 'killed: ' + ', '.join(fell), 'run again',
                  self.reader.differences(run.folder, expected))
        shutil.rmtree(run.folder)

    def mode(self, name: str, kills: int, make: Callable[[pathlib.Path], list[str]]) -> None:
        """Kills a mode that writes into a folder while it writes, and runs it again."""
        def job(folder):
            folder.mkdir()
            return Job(make(folder), folder, self.log(folder.name))

        def wrote():
            return any(now.folder.iterdir())

        now = job(self.folder / f'{name}_whole')
        process = now.start()
        poll(process, wrote)
        started = time.monotonic()
        process.wait(PATIENCE)
        seconds = time.monotonic() - started
        expected = self.reader.contents(now.folder)
        for number in range(kills):
            now = job(self.folder / f'{name}_{number}')
            process, delay = now.start(), self.random.uniform(0, seconds)
            poll(process, wrote)
            time.sleep(delay)
            ended = process.poll() is not None
            kill(process)
            visible = self.reader.contents(now.folder)
            broken = [file for file, content in visible.items()
                      if name != 'sweep' and content != expected.get(file)]
            scratch = leftover_bytes(now.folder)
            now.finish()
            differing = self.reader.differences(now.folder, expected)
            self.note(name, f'{"ended before" if ended else "killed"} {delay:.2f} of '
                      f'{seconds:.2f} s after its first file, {len(visible)} of {len(expected)} '
                      f'files visible, {scratch / 1e6:.1f} MB of scratch', 'run again',
                      ', '.join([differing] * bool(differing)
                                + [f'half-written {file}' for file in broken]))
            shutil.rmtree(now.folder)

    def annotations(self) -> pathlib.Path:
        """Annotation files in the QVHighlights form, to simulate and build from."""
        folder = self.folder / 'annotations'
        if not folder.exists():
            folder.mkdir()
            for split, first in (('train', 0), ('val', QUERIES)):
                files.write_jsonl(folder / f'highlight_{split}_release.jsonl', [dict(
                    qid=i, vid=f'v{i}', duration=60, query=f'a dog number {i} runs home',
                    relevant_windows=[[10, 20]], relevant_clip_ids=list(range(5, 10)),
                    saliency_scores=[[3, 3, 3]] * 5) for i in range(first, first + QUERIES)])
            shutil.copy(folder / 'highlight_val_release.jsonl',
                        folder / 'highlight_test_release.jsonl')
        return folder

    def simulate(self, folder: pathlib.Path) -> list[str]:
        return ['--mode=simulate', '--config=configs/qvh.py:features=sf_clip,'
                f'annotations={self.annotations()},root={folder}/features']

    def build(self, folder: pathlib.Path) -> list[str]:
        root = self.folder / 'simulated'
        if not root.exists():
            root.mkdir()
            Job(self.simulate(root), root, self.log('simulated')).finish()
        return ['--mode=build', '--config=configs/qvh.py:features=sf_clip,'
                f'annotations={self.annotations()},root={root}/features',
                f'--config.data.records={folder}/records']

    def import_csv(self, folder: pathlib.Path) -> list[str]:
        table = self.folder / 'moments.csv'
        with open(table, 'w', newline='') as file:
            writer = csv.writer(file)
            writer.writerow(['video', 'start', 'end', 'sentence', 'duration'])
            writer.writerows([f'v{i // 3}', i % 9, i % 9 + 5, f'sentence {i}', 60]
                             for i in range(30000))
        return ['--mode=import-csv', f'--table={table}', f'--output={folder}/annotations']

    def sweep(self, folder: pathlib.Path) -> list[str]:
        return [*self.train_flags, '--mode=sweep', '--sweep=seed=1,2', f'--workdir={folder}/sweep',
                '--config.train.max_steps=4']

    def disk(self) -> None:
        """Fills the disk after four steps; makes room; lets the run go on."""
        expected = self.reference()
        prepared = self.training('prepared')
        prepared.finish('--config.train.max_steps=4')
        with tmpfs(self.folder / 'small') as small:
            if small is None:
                print('disk full: no right to mount a tmpfs, left out')
            else:
                ballast = small / 'ballast'
                for room in (20_000, 100_000, 300_000):
                    run = self.training(f'small/run{room}')
                    shutil.copytree(prepared.folder, run.folder)
                    free = os.statvfs(small)
                    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - room))
                    self.save_fails(run, f'{room // 1000} KB of disk left', expected,
                                    repair=ballast.unlink)
        for limit in (4_000, 30_000):
            run = self.training(f'limit{limit}')
            shutil.copytree(prepared.folder, run.folder)
            self.save_fails(run, f'files limited to {limit // 1000} KB', expected, limit)

    def save_fails(self, run: Job, fault: str, expected: dict, limit=resource.RLIM_INFINITY,
                   repair: Callable[[], None] = lambda: None) -> None:
        before = {name: content for name, content in self.reader.contents(run.folder).items()
                  if name.startswith('checkpoints/latest')}
        code = run.start(file_size=limit).wait(PATIENCE)
        said = run.last_lines()
        repair()
        after = self.reader.contents(run.folder)
        wrong = [f'lost {name}' for name, content in before.items() if after.get(name) != content]
        if not code or not said.startswith('error: '):
            wrong.append('no error of one line')
        run.finish()
        differing = self.reader.differences(run.folder, expected)
        self.note('disk', fault, f'exit {code}, "{said}"; run again with room',
                  ', '.join([*wrong, *[differing] * bool(differing)]))
        shutil.rmtree(run.folder)

    def processes(self) -> None:
        """Kills one of two processes; the other must end; both go on."""
        def start(name):
            with socket.socket() as free:
                free.bind(('127.0.0.1', 0))
                port = free.getsockname()[1]
            jobs = [self.training(
                name, f'--coordinator=127.0.0.1:{port}', '--num_processes=2', f'--process_id={i}')
                for i in range(2)]
            jobs[1].log = self.log(f'{name}_second')
            return jobs, [job.start() for job in jobs]

        def end(running):
            codes = [process.wait(PATIENCE) for process in running]
            if any(codes):
                raise RuntimeError(f'two processes: exit {codes}')

        end(start('two')[1])
        expected = self.reader.contents(self.folder / 'two')
        for victim in (1, 0):
            name = f'two_{victim}'
            jobs, running = start(name)
            poll(running[0], lambda first=jobs[0]: phase_of(first)[1] >= 3)
            kill(running[victim])
            killed = time.monotonic()
            other = running[1 - victim]
            try:
                code = other.wait(PATIENCE)
                then = (f'the other: exit {code} after {time.monotonic() - killed:.0f} s, '
                        f'"{jobs[1 - victim].last_lines()[:200]}"')
                hangs = ''
            except subprocess.TimeoutExpired:
                kill(other)
                then, hangs = f'the other went on for {PATIENCE} s', 'hangs'
            end(start(name)[1])
            differing = self.reader.differences(self.folder / name, expected)
            self.note('processes', f'process {victim} of 2 killed', f'{then}; run again',
                      hangs or differing)


@contextlib.contextmanager
def tmpfs(folder: pathlib.Path) -> Iterator[pathlib.Path | None]:
    """A file system of 16 MB; None without the right to mount one."""
    folder.mkdir()
    mounted = not subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', str(folder)],
                                 stderr=subprocess.DEVNULL).returncode
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(['umount', str(folder)], check=True)


def main() -> None:
    args = common.arguments(
        __doc__, kills=20, other_kills=5, in_a_row=5, seed=0, output='',
        parts='train,simulate,build,import-csv,sweep,disk,processes')
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', f'{folder}/compiled')
        trials = Trials(pathlib.Path(folder), args.seed)
        parts = dict(
            train=lambda: trials.train(args.kills, args.in_a_row),
            disk=trials.disk,
            processes=trials.processes,
        ) | {name: lambda name=name: trials.mode(
            name, args.other_kills, getattr(trials, name.replace('-', '_')))
            for name in ('simulate', 'build', 'import-csv', 'sweep')}
        for part in args.parts.split(','):
            parts[part]()
    common.write(args.output, faults=trials.rows)
    if unequal := sum(row['equal'] != 'yes' for row in trials.rows):
        sys.exit(f'{unequal} of {len(trials.rows)} trials differ')


if __name__ == '__main__':
    main()

"""What the benchmarks share: full-size batches, the machine's peak, interleaved timing, tables.

Machines differ and are noisy. So programs take turns, the peak of the machine (a 2048^3 float32
matrix product) is measured between them, and medians of seconds x peak are compared.
"""

import dataclasses
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from configs import qvh
from data_pipelines import pipeline
from data_pipelines.tokens import EOS, START, WORD
from dualground_jax import evaluate, sharding, train
from dualground_jax import state as state_lib


@dataclasses.dataclass(frozen=True)
class Case:
    """A model at the size of its public QVHighlights script.

    Attributes:
        features: release of features.
        batch_size: of training.
        train_seconds: a train step of the public PyTorch code on a CPU of `TORCH_PEAK`, or None.
        predict_ms: one query of it at batch size 1 there, or None.
    """

    features: str
    batch_size: int
    train_seconds: float | None = None
    predict_ms: float | None = None


TORCH_PEAK = 130.0  # GFLOP/s
CASES = {
    'flash_vtg': Case('iv2', 64, 7.1, 33.0),
    'dualground': Case('iv2', 64),
    'cg_detr': Case('sf_clip', 32, 3.04, 26.0),
    'tr_detr': Case('sf_clip', 32, 1.53, 28.0),
}


def make_config(name: str, **overrides):
    """The QVHighlights config of a case, with dotted keys overridden."""
    case = CASES[name]
    config = qvh.get_config(f'model={name},features={case.features}')
    config.train.batch_size = case.batch_size
    config.update_from_flattened_dict(overrides)
    return config


def random_batch(config, size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Samples as QVHighlights has them: most videos of full length, 10 to 15 tokens, a window."""
    rng = np.random.default_rng(seed)
    data = config.data
    batch = {k: np.zeros(*spec) for k, spec in pipeline.batch_spec(data, size).items()}
    clips = np.full(size, data.max_clips)
    clips[: size // 10] = rng.integers(data.max_clips // 2, data.max_clips, size // 10)
    tokens = rng.integers(10, 16, size)
    batch['index'][:] = batch['source_id'][:] = np.arange(size)
    batch['video_mask'][:] = np.arange(data.max_clips) < clips[:, None]
    video = rng.standard_normal(batch['video'].shape, dtype=np.float32)
    batch['video'][:] = 0.05 * video * batch['video_mask'][..., None]
    there = np.arange(data.max_tokens) < tokens[:, None]
    text = rng.standard_normal(batch['text'].shape, dtype=np.float32)
    batch['text'][:] = 0.05 * text * there[..., None]
    batch['text_role'][:] = np.where(there, WORD, 0)
    batch['text_role'][:, 0] = START
    batch['text_role'][np.arange(size), tokens - 1] = EOS
    batch['clip_length'][:], batch['duration'][:] = data.clip_length, clips * data.clip_length
    for b, n in enumerate(clips):
        start = rng.integers(0, n - 12)
        stop = start + rng.integers(4, 12)
        batch['windows'][b, 0] = np.array([start, stop]) * data.clip_length
        batch['spans'][b, 0] = (start + stop) / 2 / n, (stop - start) / n
        batch['saliency'][b, start:stop] = rng.integers(4, 12, stop - start)
        batch['pos_clips'][b] = rng.integers(start, stop, 2)
        batch['neg_clips'][b] = (start - 1) % n, (stop + 1) % n
    batch['windows_mask'][:, 0] = batch['spans_mask'][:, 0] = batch['pairs_mask'][:] = True
    batch['relevant'][:] = batch['saliency'] > 0
    return batch


# Programs -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Program:
    """A compiled step and its arguments.

    Attributes:
        name: in tables.
        call: runs it once and waits.
        compile_seconds: tracing included.
        flops: as the compiler counts them.
        memory: bytes of arguments, results and temporaries together.
        executable: what was compiled.
    """

    name: str
    call: Callable[[], None]
    compile_seconds: float
    flops: float
    memory: int
    executable: jax.stages.Compiled


def compiled(name: str, step, *arguments) -> tuple[Callable, Program]:
    """Compiles a jitted function; the Program's `call` is still to be set."""
    started = time.perf_counter()
    program = step.lower(*arguments).compile()
    seconds = time.perf_counter() - started
    memory = program.memory_analysis()
    size = (memory.argument_size_in_bytes + memory.output_size_in_bytes
            + memory.temp_size_in_bytes - memory.alias_size_in_bytes)
    flops = program.cost_analysis()['flops']
    return program, Program(name, None, seconds, flops, size, program)


def train_program(name: str, config) -> Program:
    """The train step of a config on a random batch; runs it anew on the state it left."""
    mesh = sharding.one_device()
    tx = state_lib.make_optimizer(config.optimizer, 1000)
    abstract = state_lib.abstract_state(config, mesh, 1000)
    state = state_lib.fresh_state(config, tx, abstract)
    batch = jax.device_put(random_batch(config, config.train.batch_size))
    seed = np.uint32(0)
    step, program = compiled(
        name, train.make_train_step(config, mesh, tx, abstract), state, batch, seed, {})
    held = [state]

    def call():
        held[0], metrics = step(held[0], batch, seed, {})
        assert np.isfinite(float(metrics['loss']))

    program.call = call
    return program


def predict_program(name: str, config, size: int) -> Program:
    """Prediction with decoding and suppression on a random batch."""
    mesh = sharding.one_device()
    tx = state_lib.make_optimizer(config.optimizer, 1)
    abstract = state_lib.abstract_state(config, mesh)
    params = state_lib.fresh_state(config, tx, abstract).eval_params
    batch = jax.device_put(random_batch(config, size))
    step, program = compiled(name, evaluate.make_predict_step(config, mesh), params, batch)
    program.call = lambda: jax.block_until_ready(step(params, batch))
    return program


# Timing ---------------------------------------------------------------------------------------


@jax.jit
def _product(a):
    return a @ a


def measure_peak() -> float:
    """GFLOP/s of a 2048^3 float32 product, the median of three."""
    a = jnp.ones((2048, 2048), jnp.float32)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        _product(a).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * 2048**3 / statistics.median(seconds) / 1e9


def interleave(programs: list[Program], repeats: int) -> list[dict]:
    """Runs the programs in turn, the first round untimed; a row of medians for each.

    A turn's peak is the mean of those measured right before and after it.
    """
    for program in programs:
        program.call()
    measure_peak()
    found = {program.name: [] for program in programs}
    for _ in range(repeats):
        for program in programs:
            before, started = measure_peak(), time.perf_counter()
            program.call()
            seconds = time.perf_counter() - started
            found[program.name].append((seconds, (before + measure_peak()) / 2))
    rows = []
    for program in programs:
        turns = found[program.name]
        normalised = statistics.median(seconds * peak for seconds, peak in turns)
        rows.append(dict(
            name=program.name,
            seconds=statistics.median(seconds for seconds, _ in turns),
            peak_gflops=statistics.median(peak for _, peak in turns),
            seconds_x_peak=normalised,
            gflop=program.flops / 1e9,
            share_of_peak=program.flops / 1e9 / normalised,
            memory_gb=program.memory / 1e9,
            compile_seconds=program.compile_seconds,
        ))
    return rows


# Reports --------------------------------------------------------------------------------------


def machine() -> dict:
    """What numbers depend on."""
    return dict(train.versions(), cores=os.cpu_count(), backend=jax.default_backend())


def markdown(rows: list[dict]) -> str:
    """A table with a column for each key of the rows."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cell = lambda x: '' if x is None else f'{x:.3g}' if isinstance(x, float) else str(x)  # noqa: E731
    lines = [keys, ['---'] * len(keys), *([cell(row.get(key)) for key in keys] for row in rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def write(output: str | None, **report) -> None:
    """Prints every table of the report, and writes it all as json."""
    for name, rows in report.items():
        print(f'\n{name}\n\n{markdown(rows)}')
    if output:
        pathlib.Path(output).write_text(json.dumps(dict(report, machine=machine()), indent=1))
        print(f'\nwrote {output}')

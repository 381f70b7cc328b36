"""What the benchmarks share: full-size data, compiled steps, measuring in turns, tables.

Machines differ and are noisy. So everything that is compared takes turns in one process, and ratios
are medians over the turns.
"""

import argparse
import dataclasses
import os
import pathlib
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import qvh
from data_pipelines import datasets, files, pipeline, simulate
from dualground_jax import predict, runtime, sharding, state, train
from dualground_jax.metrics import tables
from dualground_jax.tpu import compile

# Model -> release of features and batch size of its public QVHighlights script.
CASES = {
    'flash_vtg': ('iv2', 64),
    'dualground': ('iv2', 64),
    'cg_detr': ('sf_clip', 32),
    'tr_detr': ('sf_clip', 32),
}


def arguments(doc: str, **defaults) -> argparse.Namespace:
    """Reads the command line of a benchmark, and keeps memory as training does.

    Args:
        doc: of the benchmark's module.
        **defaults: value of each argument that is not given; its type, if it must be given.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        flag = f'--{name.replace("_", "-")}'
        if default is False:
            parser.add_argument(flag, action='store_true')
        elif isinstance(default, type):
            parser.add_argument(flag, type=default, required=True)
        else:
            parser.add_argument(flag, type=type(default), default=default)
    runtime.keep_memory()
    return parser.parse_args()


def make_config(name: str, **overrides) -> ConfigDict:
    """The QVHighlights config of a case, with dotted keys overridden."""
    features, batch_size = CASES[name]
    config = qvh.get_config(f'model={name},features={features}')
    config.train.batch_size = batch_size
    config.update_from_flattened_dict(overrides)
    return config


def make_split(data: ConfigDict, folder: str | pathlib.Path, queries: int) -> datasets.Split:
    """A training split of full-length videos, from files that are made where they are missing.

    Args:
        data: of the config; pointed to the files.
        folder: gets annotations and stand-in features.
        queries: each on a video of its own: 11 words, a window of 10 clips.
    """
    rows = [
        dict(qid=i, vid=f'v{i}', duration=data.max_clips * data.clip_length,
             query=' '.join(f'word{i + j}' for j in range(11)), relevant_windows=[[10, 30]],
             relevant_clip_ids=list(range(5, 15)), saliency_scores=[[3, 3, 3]] * 10)
        for i in range(queries)]
    path = pathlib.Path(folder, 'train.jsonl')
    files.write_jsonl(path, rows)
    data.update(root=str(path.with_name('features')),
                annotations=dict(train=str(path), val='', test=''))
    simulate.simulate(data, seed=0)
    return datasets.load_split(data, 'train')


# Programs -------------------------------------------------------------------------------------


class TrainStep:
    """A train step, called with a batch; it goes on from the state that its last call left."""

    def __init__(self, config: ConfigDict, store: dict[str, jax.Array] | None = None):
        """`store`: resident features; batches are stacked if a call is several steps."""
        mesh = sharding.one_device()
        tx = state.make_optimizer(config.optimizer, total_steps=1)
        abstract = state.abstract_state(config, mesh)
        self.state = state.fresh_state(config, tx, abstract)
        self.step = train.make_train_step(
            config, mesh, 1, abstract, stacked=config.train.steps_per_call > 1)
        self.rest = dict(seed=np.uint32(0)), store or {}

    def __call__(self, batch: dict) -> dict[str, jax.Array]:
        self.state, metrics = self.step(self.state, batch, *self.rest)
        return metrics


def make_batch(config: ConfigDict) -> dict[str, jax.Array]:
    """`train.batch_size` rows of `make_split`, on the device."""
    size, data = config.train.batch_size, config.data.copy_and_resolve_references()
    with tempfile.TemporaryDirectory() as folder:
        split = make_split(data, folder, size)
    draws = [np.random.default_rng(row) for row in range(size)]
    return jax.device_put(pipeline.collate(split, data, np.arange(size), draws))


@dataclasses.dataclass
class Program:
    """A compiled step.

    Attributes:
        call: runs it once and waits.
        precision: of float32 products, on accelerators.
        gflop: as the compiler counts them.
        memory_gb: arguments, results and temporaries together.
        compile_seconds: tracing included.
    """

    call: Callable[[], object]
    precision: str
    gflop: float
    memory_gb: float
    compile_seconds: float


def make_program(config: ConfigDict, *, predicts: bool = False) -> Program:
    """The train step of a config, or prediction with decoding and suppression."""
    step, batch = TrainStep(config), make_batch(config)
    if predicts:
        jitted = predict.make_predict_step(config, sharding.one_device())
        arguments = step.state.eval_params, batch
    else:
        jitted, arguments = step.step, (step.state, batch, *step.rest)
    started = time.perf_counter()
    compiled = jitted.lower(*arguments).compile()
    seconds = time.perf_counter() - started
    step.step = compiled
    return Program(
        call=lambda: jax.block_until_ready(compiled(*arguments) if predicts else step(batch)),
        precision=config.model.matmul_precision,
        gflop=compiled.cost_analysis()['flops'] / 1e9,
        memory_gb=compile.memory_of(compiled)[0] / 1e9, compile_seconds=seconds)


# Measuring ------------------------------------------------------------------------------------


def timed(call: Callable[[], object], times: int = 1, clock: Callable[[], float] = time.perf_counter
          ) -> Callable[[], float]:
    """A measure: the mean seconds of so many calls that wait for their result."""
    def measure():
        started = clock()
        for _ in range(times):
            call()
        return (clock() - started) / times
    return measure


def in_turns(measures: dict[str, Callable[[], float]], repeats: int) -> dict[str, np.ndarray]:
    """What each measure returns in `repeats` rounds; a round before them does not count."""
    rounds = [[measure() for measure in measures.values()] for _ in range(repeats + 1)]
    return dict(zip(measures, np.array(rounds[1:]).T))


def compare(programs: dict[str, Program], repeats: int) -> list[dict]:
    """A row for each program: medians, shares of the machine's peak, ratios to the first program.

    The peak is that of a 2048^3 float32 product, which takes its turn too.
    """
    a = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision='highest'))
    seconds = in_turns(
        {'peak': timed(lambda: product(a, a).block_until_ready())}
        | {name: timed(program.call) for name, program in programs.items()}, repeats)
    peak = 2 * 2048**3 / 1e9 / seconds.pop('peak')
    first = next(iter(seconds.values()))
    return [
        dict(name=name, seconds=float(np.median(own)), of_first=float(np.median(own / first)),
             precision=programs[name].precision, gflop=programs[name].gflop,
             share_of_peak=float(np.median(programs[name].gflop / own / peak)),
             memory_gb=programs[name].memory_gb, compile_seconds=programs[name].compile_seconds)
        for name, own in seconds.items()]


# Reports --------------------------------------------------------------------------------------


def markdown(rows: list[dict]) -> str:
    """A table with a column for each key of the rows."""
    keys = list(dict.fromkeys(key for row in rows for key in row))

    def cell(value) -> str:
        return f'{value:.3g}' if isinstance(value, float) else '' if value is None else str(value)

    return tables.markdown(keys, [[cell(row.get(key)) for key in keys] for row in rows])


def write(output: str, **report: list[dict]) -> None:
    """Prints every table of the report, and writes it all as json, with what numbers depend on."""
    for name, rows in report.items():
        print(f'\n{name}\n\n{markdown(rows)}', end='')
    if output:
        machine = dict(runtime.versions(), cores=os.cpu_count(), backend=jax.default_backend())
        files.write_json(output, dict(report, machine=machine))
        print(f'\nwrote {output}')

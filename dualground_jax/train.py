"""Mode `train`: one function, from the config to `results.json`."""

import functools
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.flags import FlagValues
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from data_pipelines import datasets, pipeline, progress
from data_pipelines.errors import ConfigError
from data_pipelines.schedule import Bucket, Schedule, padded
from dualground_jax import evaluate, inputs, models, predict, resident, runtime, sharding
from dualground_jax.config import with_recipe
from dualground_jax.runs import Run, check_steps, fingerprint
from dualground_jax.state import (
    TrainState,
    abstract_batch,
    abstract_state,
    make_fresh_state,
    make_optimizer,
    make_stack,
    of_runs,
)


def run(values: FlagValues, config: ConfigDict) -> None:
    """Trains in --workdir.

    Raises:
        ConfigError: as `train`, or a config of several runs.
    """
    if config.mesh.runs != 1:
        raise ConfigError(f'mesh.runs={config.mesh.runs}: mode train has one run, mode sweep many')
    train(config, values.workdir)


def make_train_step(
    config: ConfigDict, mesh: Mesh, total_steps: int, abstract: TrainState, *,
    stacked: bool = False,
) -> Callable:
    """Compiles (state, batch, values, store) -> (state, metrics); the state is donated.

    The values are of `inputs.with_values`: the `seed` uint32[], by which and by the step alone
    dropout is drawn, so that a resumed run repeats it. Metrics are the unweighted losses, `loss`
    and `grad_norm`, float32[] each, of the whole batch, however it is spread over devices, and
    `is_finite` bool[B], whether a sample's predictions are. Where the mesh has an axis of runs, all
    but the store have a first axis of them.

    Args:
        config: whole config.
        mesh: batches are split over it.
        total_steps: of the learning rate's schedule.
        abstract: shapes and placement of the state, of one run.
        stacked: batches hold several steps, one after the other, and metrics are of each.
    """
    module = models.MODELS[config.model.name]
    placement = jax.tree.map(lambda x: x.sharding, abstract)
    computed_with = jax.tree.map(sharding.gathered, placement.params)

    @models.build(config.model).precisely
    def train_step(state, batch, values, store):
        own = inputs.with_values(config, values)
        model, tx = models.build(own.model), make_optimizer(own.optimizer, total_steps)
        rng = jax.random.fold_in(jax.random.key(own.seed), state.step)
        batch = resident.complete(batch, store)

        def objective(params):
            # Else the partitioner moves activations about instead of parameters.
            params = jax.lax.with_sharding_constraint(params, computed_with)
            out = model.apply({'params': params}, batch, train=True, rngs={'dropout': rng})
            loss, parts = module.loss_fn(out, batch, own.loss)
            return loss, (parts, out)

        (loss, (parts, out)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        windows, saliency = module.decode(out, batch)
        is_finite = jnp.isfinite(windows).all((1, 2)) & jnp.isfinite(saliency).all(1)
        return state.updated(grads, tx, own.optimizer.ema_decay), dict(
            parts, loss=loss, grad_norm=optax.tree.norm(grads), is_finite=is_finite)

    def train_steps(state, batches, values, store):
        return jax.lax.scan(lambda s, b: train_step(s, b, values, store), state, batches)

    replicated = sharding.replicated(mesh)
    placement, batches, values = jax.tree.map(
        sharding.along_runs, (placement, sharding.batch_sharding(mesh, stacked), replicated))
    step = train_steps if stacked else train_step
    return jax.jit(
        sharding.over_runs(step, mesh, (0, 0, 0, None)), donate_argnums=0,
        in_shardings=(placement, batches, values, replicated),
        out_shardings=(placement, replicated))


class Programs(NamedTuple):
    """What training compiles.

    Attributes:
        abstract: shapes and placement of a run's state.
        fresh: of `make_fresh_state`.
        train: by whether batches are stacked, of `make_train_step`.
        predict: of `predict.make_predict_step`.
    """

    abstract: TrainState
    fresh: Callable
    train: dict[bool, Callable]
    predict: Callable


@functools.lru_cache(maxsize=1)  # those of the runs before are let go
def programs(config: FrozenConfigDict, mesh: Mesh, total_steps: int) -> Programs:
    """The programs of runs by a config, see `inputs.seedless`; kept for the runs that follow."""
    config = ConfigDict(config)
    abstract = abstract_state(config, mesh, total_steps)
    return Programs(
        abstract,
        make_fresh_state(config, make_optimizer(config.optimizer, total_steps), abstract),
        {stacked: runtime.Step(
            make_train_step(config, mesh, total_steps, abstract, stacked=stacked), 'train')
         for stacked in (False, True)},
        runtime.Step(predict.make_predict_step(config, mesh), 'predict'))


def planned_calls(schedules: Sequence[Schedule], section: ConfigDict, steps: range, stop_every: int
                  ) -> dict[range, Bucket]:
    """The steps of each call of a program, and what their batches are padded to.

    Args:
        schedules: of the runs.
        section: the `train` section. A call has `steps_per_call` steps, or a single one where so
            many would go beyond the last step or a multiple of `stop_every`.
        steps: to be done.
        stop_every: steps.
    """
    calls, step, most = [], steps.start, section.steps_per_call
    while step < steps.stop:
        stop = min(steps.stop, (step // stop_every + 1) * stop_every)
        calls.append(range(step, step + (most if step + most <= stop else 1)))
        step = calls[-1].stop
    return padded(schedules, calls)


def prepare(
    program: Programs, compilers: Executor, config: ConfigDict, mesh: Mesh,
    calls: Mapping[range, Bucket], *rest: dict, runs: int,
) -> None:
    """Has threads compile what the calls need; `rest`: of `make_train_step`, after the batch."""
    for steps, bucket in dict.fromkeys((len(call), bucket) for call, bucket in calls.items()):
        batch = abstract_batch(config, config.train.batch_size, mesh, bucket, steps=steps,
                               resident=config.data.resident)
        program.train[steps > 1].prepare(
            compilers, of_runs(program.abstract, runs), of_runs(batch, runs), *rest)


def device_batches(
    split: datasets.Split, config: ConfigDict, mesh: Mesh, schedules: Sequence[Schedule],
    calls: Mapping[range, Bucket],
) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    """Puts the batches of `planned_calls` on the devices.

    With the schedules of several runs, batches have a first axis of runs.

    Yields:
        (n, batches of n steps): stacked, unless it is one.
    """
    size = config.train.batch_size
    runs = len(schedules)
    here = sharding.local_rows(sharding.along_runs(sharding.replicated(mesh)), runs)
    rows = sharding.local_rows(sharding.batch_sharding(mesh), size)
    streams = [pipeline.train_batches(
        split, config.data, schedule, calls, resident=config.data.resident, rows=rows)
        for schedule in schedules[here]]
    for call in calls:
        stacked = len(call) > 1
        parts = [_stacked(itertools.islice(stream, len(call)), stacked) for stream in streams]
        placement = sharding.along_runs(sharding.batch_sharding(mesh, stacked))
        yield len(call), sharding.put_batch(_stacked(parts, runs > 1), placement, size, runs)


def _stacked(batches: Iterable[dict], several: bool) -> dict[str, np.ndarray]:
    """Batches behind a first axis; the only one, unless there are `several`, as it is."""
    batches = list(batches)
    return jax.tree.map(lambda *x: np.stack(x), *batches) if several else batches[0]


def load_splits(config: ConfigDict) -> list[datasets.Split]:
    """The training split and the one that checkpoints are chosen by.

    Raises:
        DataError: bad annotations or features, records without true windows or labels, whichever
            the data set's targets are made from, or with what can't be scored.
        ConfigError: checkpoints are to be chosen by a metric that the evaluation does not give.
    """
    splits = [predict.load_split(config, 'train', training=True), predict.load_split(config)]
    for split in splits:
        evaluate.check_labels(
            split, config.data, f'training needs them (data.saliency {config.data.saliency!r})')
    evaluate.selection_value(evaluate.score_blank(splits[1], config), config.evaluate)
    return splits


def train(config: ConfigDict, workdir: str) -> dict:
    """Trains the config's model; a run that was cut off goes on from its latest checkpoint.

    Writes into the workdir: checkpoints/, metrics.jsonl and TensorBoard events while it runs;
    val_predictions.jsonl, results.json and pictures at its end. Several processes call it alike.

    Returns:
        The best checkpoint's metrics, as `official.evaluate` gives them.

    Raises:
        DataError: bad annotations or features; raised before anything is compiled.
        CheckpointError: the workdir holds a run by another config, of other data, or of more steps.
        TrainingError: a loss is not finite.
        ConfigError: a batch of no size, or one that the mesh cannot split, or no steps.
    """
    run, = train_many([config], [workdir])
    if run.failure:
        raise run.failure
    return run.best['best_metrics']


def train_many(configs: Sequence[ConfigDict], workdirs: Sequence[str | os.PathLike]
               ) -> list[Run]:
    """Trains runs in one program, each as `train` does it alone, but for rounding.

    A workdir is that of a run alone. Runs that were cut off later than others wait for these.

    Args:
        configs: of the runs; the same for all but for what `inputs.program_of` leaves out.
        workdirs: of the runs.

    Returns:
        The runs; one whose loss was not finite has stopped with a `failure`.

    Raises:
        DataError, CheckpointError, ConfigError: as `train`.
    """
    # ---- Data: everything is read and checked before any device time is spent ----------------
    configs = list(map(with_recipe, configs))
    config, many = configs[0], len(configs) > 1
    mesh = sharding.make_mesh(config.mesh, runs=len(configs))
    batch_size = config.train.batch_size
    sharding.check_batch_size(mesh, batch_size, 'train.batch_size')
    predict.check_section(config.evaluate, mesh)
    models.check(config)
    for key in ('steps_per_call', 'buckets'):
        if config.train[key] < 1:
            raise ConfigError(f'train.{key}={config.train[key]}: expected 1 or more')
    if (config.train.max_steps or config.train.epochs) < 1:
        raise ConfigError(f'train.epochs={config.train.epochs}, train.max_steps='
                          f'{config.train.max_steps}: expected 1 or more of either')
    train_split, val_split = load_splits(config)
    schedules = Schedule.of(
        train_split, config.data, config.train, *(own.seed for own in configs))
    steps_per_epoch = schedules[0].steps_per_epoch
    total_steps = config.train.max_steps or config.train.epochs * steps_per_epoch
    eval_steps = max(int(config.train.eval_every * steps_per_epoch), 1)

    # ---- Runs and their states ---------------------------------------------------------------
    data = fingerprint(train_split)
    runs = [Run(*own, place if many else (), data) for place, own in enumerate(
        zip(configs, workdirs, schedules, strict=True))]
    for run in runs:
        # Without an incomplete batch there is nothing to drop.
        whole = len(train_split.queries) % batch_size == 0
        run.check(unused=('train.drop_last',) if whole else ())
        check_steps(run.folder, run.first_step, total_steps)
    program = programs(inputs.seedless(config), mesh, total_steps)
    states, put, take = make_stack(program.abstract, len(runs))
    parameters = sum(x.size for x in jax.tree.leaves(program.abstract.params))
    progress.say(
        f'{config.model.name}: {parameters} parameters, {len(train_split.queries)} training and '
        f'{len(val_split.queries)} {val_split.name} queries, {total_steps} steps of {batch_size} '
        f'{f"of {len(runs)} runs " if many else ""}on {dict(mesh.shape)} {jax.default_backend()}')

    # ---- Steps -------------------------------------------------------------------------------
    values = jax.device_put(
        jax.tree.map(lambda x: x if many else x[0], inputs.values_of(configs)),
        sharding.along_runs(sharding.replicated(mesh)))
    store = resident.load(train_split, config.data, mesh) if config.data.resident else {}
    starts = sorted({run.first_step for run in runs})
    clock, note = StepClock(), None
    with progress.Bar('step', total_steps, 'steps', done=starts[0]) as bar, (
            runtime.compilers()) as compilers:
        for step, last_step in itertools.pairwise([*starts, total_steps]):
            calls = planned_calls(schedules, config.train, range(step, last_step), eval_steps)
            prepare(program, compilers, config, mesh, calls, values, store, runs=len(runs))
            if calls:
                predict.prepare(
                    program.predict, compilers, of_runs(program.abstract, len(runs)).eval_params,
                    val_split, config, mesh)
            for run in runs:
                if run.first_step == step:
                    state = run.begin(
                        program.fresh, program.abstract, total_steps, train_split)
                    states = put(states, run.place, state)
            going = [run for run in runs if run.first_step <= step and not run.failure]
            for count, batch in runtime.one_ahead(device_batches(
                    train_split, config, mesh, schedules, calls)):
                states, metrics = program.train[count > 1](states, batch, values, store)
                step += count
                for run in going:
                    run.note(step, metrics)
                due = step % eval_steps == 0 or step == total_steps
                if step % config.train.log_every < count or due:
                    losses = [run.flush() for run in going]
                    note = f'epoch {step / steps_per_epoch:.1f}, loss {np.mean(losses):.3f}'
                    clock.lap(step)
                    going = [run for run in going if not run.failure]
                if not going:
                    break
                bar.advance(count, note)
                if not due:
                    continue

                # ---- Evaluation and checkpoints ----------------------------------------------
                found = predict.predict_runs(
                    program.predict, states.eval_params, val_split, config, mesh,
                    [run.place for run in going])
                for run, rows in zip(going, found, strict=True):
                    run.score_and_save(
                        step, take(states, run.place), rows, val_split, clock.rate)
                clock.restart()

    # ---- Results -----------------------------------------------------------------------------
    for run in runs:
        run.finish(parameters, val_split)
    return runs


class StepClock:
    """Steps per second, without the first lap, which compiles, and without evaluations."""

    def __init__(self):
        self.seconds, self.steps, self.since, self.rate = 0.0, 0, None, 0.0

    def lap(self, step: int) -> None:
        """Ends a lap at `step`."""
        now = time.perf_counter()
        if self.since is not None:
            self.seconds += now - self.since[1]
            self.steps += step - self.since[0]
            self.rate = self.steps / max(self.seconds, 1e-9)
        self.since = (step, now)

    def restart(self) -> None:
        """Leaves out the time since the last lap."""
        if self.since is not None:
            self.since = (self.since[0], time.perf_counter())



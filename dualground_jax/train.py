"""Mode `train`: one function, from the config to `results.json`."""

import itertools
import json
import math
import os
import pathlib
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.flags import FlagValues
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines import datasets, files, pipeline, progress, recipe
from data_pipelines.errors import ConfigError, UserError
from data_pipelines.schedule import Schedule, padded
from dualground_jax import evaluate, inputs, models, predict, resident, runtime, sharding
from dualground_jax.checkpoints import CheckpointError, Checkpoints
from dualground_jax.config import differences, with_recipe
from dualground_jax.metrics import official
from dualground_jax.state import (
    TrainState,
    abstract_state,
    make_fresh_state,
    make_optimizer,
    make_stack,
)

# Where a run goes on, the keys that may have changed: those that begin so.
MAY_CHANGE = ('evaluate.', 'mesh.', 'sweep', 'train.epochs', 'train.max_steps', 'train.eval_every',
              'train.log_every', 'train.steps_per_call', 'train.buckets', 'data.cache_gb')
# Those of `evaluate.` that change no number.
_SAME_NUMBERS = ('evaluate.batch_size', 'evaluate.buckets', 'evaluate.pictures',
                 'evaluate.any_recipe')

_NONE = dict(best_step=-1, best_value=-math.inf, best_metrics={})  # progress of a new run


class TrainingError(UserError):
    """Training cannot go on."""


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
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1 - own.optimizer.ema_decay)
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema)
        return state, dict(
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


class History:
    """`metrics.jsonl` and TensorBoard, written together; also the check that losses are finite.

    Metrics of steps stay on the device until `flush`: a step does not wait for its numbers. Only
    the first of several processes writes.

    Args:
        workdir: of the run.
        steps_per_epoch: what epochs are counted by.
        first_step: steps that were done before.
        qids_of: step -> the queries of its batch.
        place: see `Run`.
    """

    def __init__(
        self, workdir: pathlib.Path, steps_per_epoch: int, first_step: int, qids_of: Callable,
        place: int | tuple[()] = (),
    ):
        from clu import metric_writers  # imports TensorFlow

        self.path = workdir / 'metrics.jsonl'
        self.steps_per_epoch, self.qids_of, self.place = steps_per_epoch, qids_of, place
        self.writes, self.pending, self.rows = runtime.is_first(), [], []
        self.writer = metric_writers.create_default_writer(workdir, just_logging=not self.writes)
        if self.writes:
            # Steps after the checkpoint that we resume from are about to be made again.
            self.rows = [row for row in self._read() if row['step'] <= first_step]
            files.write_jsonl(self.path, self.rows)

    def _read(self) -> list[dict]:
        if not self.path.exists():
            return []
        lines = self.path.read_text().splitlines()
        # A killed run may have left half a line at the end.
        return [json.loads(line) for line in lines if line.endswith('}')]

    def add(self, step: int, device_metrics: dict) -> None:
        """Notes the metrics of `step`, or of several steps up to it, stacked."""
        self.pending.append((step, device_metrics))

    def flush(self) -> dict[str, float]:
        """Writes and returns the mean of the noted steps, of which there is one at least.

        Raises:
            TrainingError: a metric was not finite; names it, the step and the queries whose
              predictions were not; where these were, all of the batch.
        """
        found = [{k: v[self.place] for k, v in values.items()}
                 for values in jax.device_get([m for _, m in self.pending])]
        is_finite = [np.atleast_2d(values.pop('is_finite')) for values in found]
        for (last, _), values, rows in zip(self.pending, found, is_finite):
            bad = {k: ~np.isfinite(np.atleast_1d(v)) for k, v in values.items()}
            wrong = np.any(list(bad.values()), 0)
            if wrong.any():
                first = wrong.argmax()
                step = last - len(wrong) + 1 + first
                names = ', '.join(name for name, at in bad.items() if at[first])
                qids = self.qids_of(step)
                lost = [qid for qid, well in zip(qids, rows[first]) if not well]
                which = 'with such predictions' if lost else 'of the batch'
                raise TrainingError(
                    f'step {step}: {names} not finite; qids {which}: {lost or qids}')
        mean = {f'train/{k}': float(np.mean(np.concatenate([np.atleast_1d(v[k]) for v in found])))
                for k in found[0]}
        step = self.pending[-1][0]
        self.pending = []
        self.write(step, mean)
        return mean

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one row."""
        row = dict(step=step, epoch=round(step / self.steps_per_epoch, 4), **values)
        self.rows.append(row)
        if self.writes:
            with files.named(self.path), open(self.path, 'a') as file:
                file.write(json.dumps(row) + '\n')
        self.writer.write_scalars(step, values)


def device_batches(
    split: datasets.Split, config: ConfigDict, mesh: Mesh, *schedules: Schedule, first_step: int,
    last_step: int, stop_every: int,
) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    """Puts the batches of the steps after `first_step` on the devices.

    With the schedules of several runs, batches have a first axis of runs.

    Yields:
        (n, batches of n steps): config.train.steps_per_call of them, stacked, or a single one where
        so many would go beyond `last_step` or a multiple of `stop_every`.
    """
    size, most = config.train.batch_size, config.train.steps_per_call
    calls, step = [], first_step
    while step < last_step:
        stop = min(last_step, (step // stop_every + 1) * stop_every)
        calls.append(range(step, step + (most if step + most <= stop else 1)))
        step = calls[-1].stop
    runs = len(schedules)
    here = sharding.local_rows(sharding.along_runs(sharding.replicated(mesh)), runs)
    rows = sharding.local_rows(sharding.batch_sharding(mesh), size)
    buckets = padded(schedules, calls)
    streams = [pipeline.train_batches(
        split, config.data, schedule, buckets, resident=config.data.resident, rows=rows)
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
        CheckpointError: the workdir holds a run by another config or of other data.
        TrainingError: a loss is not finite.
        ConfigError: a batch of no size, or one that the mesh cannot split.
    """
    run, = train_many([config], [workdir])
    if run.failure:
        raise run.failure
    return run.best['best_metrics']


def train_many(configs: Sequence[ConfigDict], workdirs: Sequence[str | os.PathLike]
               ) -> list['Run']:
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
    abstract = abstract_state(config, mesh, total_steps)
    fresh = make_fresh_state(config, make_optimizer(config.optimizer, total_steps), abstract)
    states, put, take = make_stack(abstract, len(runs))
    parameters = sum(x.size for x in jax.tree.leaves(abstract.params))
    progress.say(
        f'{config.model.name}: {parameters} parameters, {len(train_split.queries)} training and '
        f'{len(val_split.queries)} {val_split.name} queries, {total_steps} steps of {batch_size} '
        f'{f"of {len(runs)} runs " if many else ""}on {dict(mesh.shape)} {jax.default_backend()}')

    # ---- Steps -------------------------------------------------------------------------------
    step_of = {
        stacked: runtime.announced(
            make_train_step(config, mesh, total_steps, abstract, stacked=stacked), 'train')
        for stacked in (False, True)
    }
    predict_step = runtime.announced(predict.make_predict_step(config, mesh), 'predict')
    values = jax.device_put(
        jax.tree.map(lambda x: x if many else x[0], inputs.values_of(configs)),
        sharding.along_runs(sharding.replicated(mesh)))
    store = resident.load(train_split, config.data, mesh) if config.data.resident else {}
    starts = sorted({run.first_step for run in runs})
    clock, note = StepClock(), None
    with progress.Bar('step', total_steps, 'steps', done=starts[0]) as bar:
        for step, last_step in itertools.pairwise([*starts, total_steps]):
            for run in runs:
                if run.first_step == step:
                    state = run.begin(fresh, abstract, total_steps, train_split)
                    states = put(states, run.place, state)
            going = [run for run in runs if run.first_step <= step and not run.failure]
            for count, batch in runtime.one_ahead(device_batches(
                train_split, config, mesh, *schedules, first_step=step, last_step=last_step,
                stop_every=eval_steps,
            )):
                states, metrics = step_of[count > 1](states, batch, values, store)
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
                found = predict.predict_runs(predict_step, states.eval_params, val_split, config,
                                             mesh, [run.place for run in going])
                for run, rows in zip(going, found, strict=True):
                    run.score_and_save(
                        step, take(states, run.place), rows, val_split, clock.rate)
                clock.restart()

    # ---- Results -----------------------------------------------------------------------------
    for run in runs:
        run.finish(parameters, val_split)
    return runs


class Run:
    """What a run has of its own, whether it is alone in a program or one of several.

    Attributes:
        config: of the run.
        folder: its workdir.
        schedule: of its training queries.
        place: its place in the arrays of all runs; () alone, where they have no axis of runs.
        best: its progress, as it is saved with checkpoints.
        first_step: steps that were done before.
        failure: what has stopped it, or None.
    """

    def __init__(self, config: ConfigDict, workdir: str | os.PathLike, schedule: Schedule,
                 place: int | tuple[()], training_data: str):
        self.config, self.folder, self.schedule = config, pathlib.Path(workdir), schedule
        self.place = place
        self.checkpoints = Checkpoints(workdir)
        self.best = dict(_NONE, steps_per_second=0.0, training_data=training_data)
        self.latest = self.checkpoints.step('latest')
        self.first_step, self.changed, self.failure = self.latest or 0, [], None

    def say(self, text: str) -> None:
        """Prints a line, which names the run if it is one of several."""
        progress.say(text if self.place == () else f'{self.folder.name}: {text}')

    def check(self, unused: tuple[str, ...]) -> None:
        """Raises CheckpointError if the workdir holds another run; else reads its progress.

        Args:
            unused: see `check_same_run`.
        """
        if self.latest is None:
            self._check_start()
            return
        # A converted checkpoint: all of this training is yet to come.
        compared = '' if self.latest else 'model.'
        self.changed = check_same_run(self.folder, self.checkpoints.config('latest'), self.config,
                                      compared=compared, unused=unused)
        told = self.checkpoints.progress('latest')
        check_same_data(self.folder, told, self.best)
        self.best |= told
        self.say('; '.join([f'resuming from step {self.latest}', *self.changed]))

    def _check_start(self) -> None:
        """Checks that there is what train.init_from names, and that it is of such features.

        Raises:
            CheckpointError: it has no checkpoint, or one of another model.
            DataError: its features were made by another recipe.
        """
        if not (source := self.config.train.init_from):
            return
        if changed := predict.other_model(source, self.config):
            raise CheckpointError(
                f'train.init_from={source}: holds another model ({", ".join(changed)}); the config '
                f'argument init={source} takes its model; features must be of the same widths')
        predict.check_recipe(
            Checkpoints(source).config('best').data.recipe, self.config.evaluate,
            recipe.parse(self.config.data.recipe), self.config.data.root)

    def begin(self, fresh: Callable, abstract: TrainState, total_steps: int, split: datasets.Split
              ) -> TrainState:
        """Opens the history and returns the state to go on from, `fresh` where nothing is saved."""
        from clu import periodic_actions  # imports TensorFlow

        if self.latest is None:
            state = fresh(np.uint32(self.config.seed))
            if source := self.config.train.init_from:
                state = start_from(source, state)
                self.say(f'starting from the best checkpoint of {source}')
        else:
            state, _ = self.checkpoints.restore('latest', abstract)
            # A killed run may have saved `best` without `latest`; a converted one is of step 0.
            self.checkpoints.keep(latest=self.latest, best=max(self.best['best_step'], 0))
            if self.latest < total_steps and is_evaluated_anew(self.changed):
                self.say('the evaluation has changed: the best checkpoint is chosen anew')
                self.best |= _NONE
        self.folder.mkdir(parents=True, exist_ok=True)
        qids_of = lambda step: [
            split.queries[i].qid for i in self.schedule.queries(step - 1) if i >= 0]
        self.history = History(self.folder, self.schedule.steps_per_epoch, self.first_step, qids_of,
                               self.place)
        self.report = periodic_actions.ReportProgress(
            num_train_steps=total_steps, writer=self.history.writer, every_secs=20.0)
        return state

    def note(self, step: int, metrics: dict) -> None:
        """Notes the metrics of `step`, which are of all runs."""
        self.history.add(step, metrics)
        self.report(step)

    def flush(self) -> float:
        """Writes what was noted and returns its mean loss; one that is not finite stops the run."""
        try:
            return self.history.flush()['train/loss']
        except TrainingError as error:
            self.failure = error
            if self.place != ():
                self.say(f'stopped: {error}')
            return math.nan

    def score_and_save(self, step: int, state: TrainState, rows: list[dict],
                       split: datasets.Split, steps_per_second: float) -> None:
        """Scores predictions of the split, saves the state, and says whether it is the best yet."""
        config, best = self.config, self.best
        found = evaluate.score(rows, split, config)
        value = evaluate.selection_value(found, config.evaluate)
        self.history.write(step, {f'{split.name}/{k}': v for k, v in found['brief'].items()})
        best['steps_per_second'] = steps_per_second or best['steps_per_second']
        better = (best['best_step'] < 0 or math.isnan(best['best_value'])
                  or value > best['best_value'])
        verdict = ', best yet' * better
        if math.isnan(value):
            names = ' + '.join(config.evaluate.selection)
            verdict = (f'; {names} is no number: this checkpoint is '
                       f'{"kept for want of a better one" if better else "not the best"}')
        self.say(f'step {step}, {split.name}: '
                 f'{evaluate.one_line(found, config.evaluate)}{verdict}')
        if better:
            best.update(best_step=step, best_value=value, best_metrics=found,
                        versions=runtime.versions())
            self.checkpoints.save('best', state, config, best)
            if runtime.is_first():
                files.write_jsonl(self.folder / f'{split.name}_predictions.jsonl', rows)
        self.checkpoints.save('latest', state, config, best)
        self.checkpoints.keep(latest=step, best=best['best_step'])

    def finish(self, parameters: int, split: datasets.Split) -> None:
        """Writes the results, unless the run has failed."""
        self.history.writer.close()
        if self.failure:
            return
        chosen_by = self.checkpoints.config('best')
        if runtime.is_first():
            write_results(chosen_by, self.folder, self.best, parameters, self.history.rows, split)


def start_from(workdir: str | os.PathLike, fresh: TrainState) -> TrainState:
    """The state before the first step, with the parameters that a run's evaluation takes."""
    mesh = jax.tree.leaves(fresh.params)[0].sharding.mesh
    params, _, _ = predict.restore_best(workdir, Checkpoints(workdir).config('best'), mesh)
    ema = None if fresh.ema is None else jax.tree.map(jnp.copy, params)  # buffers are donated
    return fresh.replace(params=params, ema=ema)


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


def check_same_run(
    workdir: str | os.PathLike, saved: ConfigDict, config: ConfigDict, *, compared: str = '',
    unused: tuple[str, ...] = (),
) -> list[str]:
    """Compares the config with that of the run in a workdir.

    Args:
        workdir: of the run.
        saved: config of its latest checkpoint.
        config: to go on by.
        compared: what the keys that matter begin with.
        unused: keys that act on nothing.

    Returns:
        What has changed: 'key: value there, value here' each.

    Raises:
        CheckpointError: something else has changed; names all of it.
    """
    flat = [traverse_util.flatten_dict(x.to_dict(), sep='.') for x in (saved, config)]
    for values in flat:
        for key in ('data.root', 'train.init_from'):
            values[key] = os.path.realpath(values[key])
        if found := recipe.parse(values.pop('data.recipe')):
            values |= {f'data.recipe.{key}': value for key, value in found.flat().items()}
    changed = [text for text in differences(*flat) if not text.startswith(unused)]
    if refused := [text for text in changed
                   if text.startswith(compared) and not text.startswith(MAY_CHANGE)]:
        raise CheckpointError(f'{workdir}: holds a run by another config ({"; ".join(refused)}); '
                              'use another --workdir')
    return changed


def is_evaluated_anew(changed: list[str]) -> bool:
    """Whether what has changed since, as of `check_same_run`, changes the numbers of a model."""
    return any(text.startswith('evaluate.') and not text.startswith(_SAME_NUMBERS)
               for text in changed)


def fingerprint(split: datasets.Split) -> str:
    """Says how many queries a split has, and sums up their ids, videos, windows and labels."""
    checksum = 0
    for query, labels in zip(split.queries, split.saliency, strict=True):
        told = repr((query.qid, query.vid, query.windows.tolist())).encode()
        checksum = zlib.crc32(told + labels.tobytes(), checksum)
    return f'{len(split.queries)} queries, checksum {checksum:08x}'


def check_same_data(workdir: str | os.PathLike, told: dict, here: dict) -> None:
    """Raises CheckpointError if the progress of a run tells of other training data."""
    there = told.get('training_data', here['training_data'])
    if there != here['training_data']:
        raise CheckpointError(f'{workdir}: holds a run on other training data ({there} there, '
                              f'{here["training_data"]} here); use another --workdir')


def write_results(
    config: ConfigDict, folder: pathlib.Path, best: dict, parameters: int, rows: list[dict],
    val_split: datasets.Split,
) -> None:
    """Writes results.json and the pictures of a finished run, and prints its metrics.

    Args:
        config: whole config that the best checkpoint was made and chosen by.
        folder: the workdir, which holds the predictions of the best step.
        best: progress of the run: best_step, best_metrics, steps_per_second, versions.
        parameters: how many the model has.
        rows: of metrics.jsonl.
        val_split: the split that was evaluated last.
    """
    from dualground_jax import plots  # imports matplotlib

    if val_split.name != config.evaluate.split:
        val_split = predict.load_split(config)

    result = dict(
        model=config.model.name,
        seed=config.seed,
        best_step=best['best_step'],
        steps_per_second=round(best['steps_per_second'], 3),
        parameters=parameters,
        versions=best.get('versions', runtime.versions()),
        config=json.loads(config.to_json()),
        **best['best_metrics'],
    )
    figure = plots.training_figure(rows, tuple(config.evaluate.selection), config.evaluate.split)
    plots.save(figure, folder / 'training.png')
    predictions = files.load_jsonl(folder / f'{config.evaluate.split}_predictions.jsonl')
    # Evenly spread over the split, so that the pictures are no choice of ours.
    count = min(config.evaluate.pictures, len(predictions))
    for i in np.linspace(0, len(predictions) - 1, count).astype(int):
        record = val_split.queries[i]
        # Of highlight data sets its length is nominal (docs/datasets.md): clips are equally long.
        clip_length = record.duration / len(val_split.saliency[i])
        example = plots.example_of(record, val_split.saliency[i], predictions[i], clip_length)
        plots.save(plots.grounding_figure(example), folder / f'grounding_{record.qid}.png')
    files.write_json(folder / 'results.json', result)  # last: it says that the run is finished
    print(official.format_table(best['best_metrics'], config.evaluate.protocol))
    print(f'best step {best["best_step"]}; wrote {folder / "results.json"}')

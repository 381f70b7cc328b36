"""Mode `train`: one function, from the config to `results.json`."""

import itertools
import json
import math
import os
import pathlib
import time
import zlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.flags import FlagValues
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines import datasets, files, pipeline, progress
from data_pipelines.errors import ConfigError, UserError
from data_pipelines.schedule import Schedule
from dualground_jax import evaluate, models, predict, resident, runtime, sharding
from dualground_jax.checkpoints import CheckpointError, Checkpoints
from dualground_jax.config import differences
from dualground_jax.metrics import official
from dualground_jax.state import TrainState, abstract_state, fresh_state, make_optimizer

# Where a run goes on, the keys that may have changed: those that begin so. Of these `train.buckets`
# and `train.steps_per_call` change what dropout draws.
MAY_CHANGE = ('evaluate.', 'mesh.', 'sweep', 'train.epochs', 'train.max_steps', 'train.eval_every',
              'train.log_every', 'train.steps_per_call', 'train.buckets', 'data.cache_gb')
# Those of `evaluate.` that change no number.
_SAME_NUMBERS = ('evaluate.batch_size', 'evaluate.buckets', 'evaluate.pictures')


class TrainingError(UserError):
    """Training cannot go on."""


def run(values: FlagValues, config: ConfigDict) -> None:
    """Trains in --workdir."""
    train(config, values.workdir)


def make_train_step(
    config: ConfigDict, mesh: Mesh, tx: optax.GradientTransformation,
    abstract: TrainState, *, stacked: bool = False,
) -> Callable:
    """Compiles (state, batch, seed, store) -> (state, metrics); the state is donated.

    Dropout depends on the seed, uint32[], and the step alone, so that a resumed run repeats it.
    Metrics are the unweighted losses, `loss` and `grad_norm`, float32[] each, of the whole batch,
    however it is spread over devices, and `is_finite` bool[B], whether a sample's predictions are.

    Args:
        config: whole config.
        mesh: batches are split over it.
        tx: the optimiser.
        abstract: shapes and placement of the state.
        stacked: batches hold several steps, one after the other, and metrics are of each.
    """
    model = models.build(config.model)
    module = models.MODELS[config.model.name]
    decay = config.optimizer.ema_decay
    placement = jax.tree.map(lambda x: x.sharding, abstract)
    computed_with = jax.tree.map(sharding.gathered, placement.params)

    @model.precisely
    def train_step(state, batch, seed, store):
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        batch = resident.complete(batch, store)

        def objective(params):
            # Else the partitioner moves activations about instead of parameters.
            params = jax.lax.with_sharding_constraint(params, computed_with)
            out = model.apply({'params': params}, batch, train=True, rngs={'dropout': rng})
            loss, parts = module.loss_fn(out, batch, config.loss)
            return loss, (parts, out)

        (loss, (parts, out)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        windows, saliency = module.decode(out, batch)
        is_finite = jnp.isfinite(windows).all((1, 2)) & jnp.isfinite(saliency).all(1)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1 - decay)
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema)
        return state, dict(
            parts, loss=loss, grad_norm=optax.tree.norm(grads), is_finite=is_finite)

    def train_steps(state, batches, seed, store):
        return jax.lax.scan(lambda s, b: train_step(s, b, seed, store), state, batches)

    replicated = sharding.replicated(mesh)
    return jax.jit(
        train_steps if stacked else train_step, donate_argnums=0,
        in_shardings=(placement, sharding.batch_sharding(mesh, stacked), replicated, replicated),
        out_shardings=(placement, replicated))


class History:
    """`metrics.jsonl` and TensorBoard, written together; also the check that losses are finite.

    Metrics of steps stay on the device until `flush`: a step does not wait for its numbers. Only
    the first of several processes writes.
    """

    def __init__(
        self, workdir: pathlib.Path, steps_per_epoch: int, first_step: int, qids_of: Callable
    ):
        from clu import metric_writers  # imports TensorFlow

        self.path = workdir / 'metrics.jsonl'
        self.steps_per_epoch, self.qids_of = steps_per_epoch, qids_of
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
        found = jax.device_get([m for _, m in self.pending])
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
    split: datasets.Split, config: ConfigDict, mesh: Mesh, schedule: Schedule, *, first_step: int,
    last_step: int, stop_every: int,
) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    """Puts the batches of the steps after `first_step` on the devices.

    Yields:
        (n, batches of n steps): config.train.steps_per_call of them, stacked, or a single one where
        so many would go beyond `last_step` or a multiple of `stop_every`.
    """
    most = config.train.steps_per_call
    calls, step = [], first_step
    while step < last_step:
        stop = min(last_step, (step // stop_every + 1) * stop_every)
        calls.append(range(step, step + (most if step + most <= stop else 1)))
        step = calls[-1].stop
    batches = pipeline.train_batches(
        split, config.data, schedule, calls, resident=config.data.resident,
        rows=sharding.local_rows(sharding.batch_sharding(mesh), schedule.batch_size))
    for call in calls:
        parts = list(itertools.islice(batches, len(call)))
        stacked = len(call) > 1
        batch = jax.tree.map(lambda *x: np.stack(x), *parts) if stacked else parts[0]
        placement = sharding.batch_sharding(mesh, stacked)
        yield len(call), sharding.put_batch(batch, placement, schedule.batch_size)


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
    # ---- Data: everything is read and checked before any device time is spent ----------------
    mesh = sharding.make_mesh(config.mesh)
    batch_size = config.train.batch_size
    sharding.check_batch_size(mesh, batch_size, 'train.batch_size')
    predict.check_section(config.evaluate, mesh)
    models.check(config)
    for key in ('steps_per_call', 'buckets'):
        if config.train[key] < 1:
            raise ConfigError(f'train.{key}={config.train[key]}: expected 1 or more')
    train_split, val_split = load_splits(config)
    schedule = Schedule.of(train_split, config.data, config.train, config.seed)
    steps_per_epoch = schedule.steps_per_epoch
    total_steps = config.train.max_steps or config.train.epochs * steps_per_epoch
    eval_steps = max(int(config.train.eval_every * steps_per_epoch), 1)

    # ---- State, checkpoints ------------------------------------------------------------------
    tx = make_optimizer(config.optimizer, total_steps)
    abstract = abstract_state(config, mesh, total_steps)
    checkpoints = Checkpoints(workdir)
    none = dict(best_step=-1, best_value=-math.inf, best_metrics={})
    best = dict(none, steps_per_second=0.0, training_data=fingerprint(train_split))
    if checkpoints.step('latest') is None:
        state = fresh_state(config, tx, abstract)
    else:
        # Without an incomplete batch there is nothing to drop.
        whole = len(train_split.queries) % batch_size == 0
        unused = ('train.drop_last',) if whole else ()
        # A converted checkpoint: all of this training is yet to come.
        compared = '' if checkpoints.step('latest') else 'model.'
        changed = check_same_run(workdir, checkpoints.config('latest'), config,
                                 compared=compared, unused=unused)
        state, told = checkpoints.restore('latest', abstract)
        check_same_data(workdir, told, best)
        best |= told
        # A killed run may have saved `best` without `latest`; a converted checkpoint is of step 0.
        checkpoints.keep(latest=int(state.step), best=max(best['best_step'], 0))
        progress.say('; '.join([f'resuming from step {int(state.step)}', *changed]))
        if int(state.step) < total_steps and is_evaluated_anew(changed):
            progress.say('the evaluation has changed: the best checkpoint is chosen anew')
            best |= none
    first_step = int(state.step)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    progress.say(
        f'{config.model.name}: {parameters} parameters, {len(train_split.queries)} training and '
        f'{len(val_split.queries)} {val_split.name} queries, {total_steps} steps of {batch_size} '
        f'on {dict(mesh.shape)} {jax.default_backend()}')

    # ---- Steps -------------------------------------------------------------------------------
    from clu import periodic_actions  # imports TensorFlow

    step_of = {
        stacked: runtime.announced(
            make_train_step(config, mesh, tx, abstract, stacked=stacked), 'train')
        for stacked in (False, True)
    }
    predict_step = runtime.announced(predict.make_predict_step(config, mesh), 'predict')
    seed = np.uint32(config.seed)
    store = resident.load(train_split, config.data, mesh) if config.data.resident else {}
    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    history = History(folder, steps_per_epoch, first_step, lambda step: [
        train_split.queries[i].qid for i in schedule.queries(step - 1) if i >= 0])
    report = periodic_actions.ReportProgress(
        num_train_steps=total_steps, writer=history.writer, every_secs=20.0)
    clock, step, note = StepClock(), first_step, None
    with progress.Bar('step', total_steps, 'steps', done=first_step) as bar:
        for count, batch in runtime.one_ahead(device_batches(
            train_split, config, mesh, schedule, first_step=first_step, last_step=total_steps,
            stop_every=eval_steps,
        )):
            state, step_metrics = step_of[count > 1](state, batch, seed, store)
            step += count
            history.add(step, step_metrics)
            report(step)
            due = step % eval_steps == 0 or step == total_steps
            if step % config.train.log_every < count or due:
                note = (f'epoch {step / steps_per_epoch:.1f}, '
                        f'loss {history.flush()["train/loss"]:.3f}')
                clock.lap(step)
            bar.advance(count, note)
            if not due:
                continue

            # ---- Evaluation and checkpoints --------------------------------------------------
            rows = predict.predict_split(predict_step, state.eval_params, val_split, config, mesh)
            found = evaluate.score(rows, val_split, config)
            value = evaluate.selection_value(found, config.evaluate)
            history.write(step, {f'{val_split.name}/{k}': v for k, v in found['brief'].items()})
            best['steps_per_second'] = clock.rate or best['steps_per_second']
            better = (best['best_step'] < 0 or math.isnan(best['best_value'])
                      or value > best['best_value'])
            verdict = ', best yet' * better
            if math.isnan(value):
                names = ' + '.join(config.evaluate.selection)
                verdict = (f'; {names} is no number: this checkpoint is '
                           f'{"kept for want of a better one" if better else "not the best"}')
            progress.say(f'step {step}, {val_split.name}: '
                         f'{evaluate.one_line(found, config.evaluate)}{verdict}')
            if better:
                best.update(best_step=step, best_value=value, best_metrics=found,
                            versions=runtime.versions())
                checkpoints.save('best', state, config, best)
                if runtime.is_first():
                    files.write_jsonl(folder / f'{val_split.name}_predictions.jsonl', rows)
            checkpoints.save('latest', state, config, best)
            checkpoints.keep(latest=step, best=best['best_step'])
            clock.restart()

    # ---- Results -----------------------------------------------------------------------------
    history.writer.close()
    chosen_by = checkpoints.config('best')
    if runtime.is_first():
        write_results(chosen_by, folder, best, parameters, history.rows, val_split)
    return best['best_metrics']


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
        values['data.root'] = os.path.realpath(values['data.root'])
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

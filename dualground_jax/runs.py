"""A training run: its workdir, history and progress, and what it may go on from."""

import json
import math
import os
import pathlib
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from data_pipelines import datasets, files, progress, recipe
from data_pipelines.errors import UserError
from data_pipelines.schedule import Schedule
from dualground_jax import evaluate, predict, pretrained, runtime
from dualground_jax.checkpoints import CheckpointError, Checkpoints
from dualground_jax.config import differences
from dualground_jax.metrics import official
from dualground_jax.state import TrainState

# Where a run goes on, the keys that may have changed: those that begin so.
MAY_CHANGE = ('evaluate.', 'mesh.', 'sweep', 'study.', 'train.epochs', 'train.max_steps',
              'train.eval_every', 'train.log_every', 'train.steps_per_call', 'train.buckets',
              'data.cache_gb')
# Those of `evaluate.` that change no number.
_SAME_NUMBERS = ('evaluate.batch_size', 'evaluate.buckets', 'evaluate.pictures',
                 'evaluate.any_recipe')

_NONE = dict(best_step=-1, best_value=-math.inf, best_metrics={})  # progress of a new run


class TrainingError(UserError):
    """Training cannot go on."""


class History:
    """`metrics.jsonl` and TensorBoard, written together; also the check that losses are finite.

    Metrics of steps stay on the device until `flush`: a step does not wait for its numbers. Only
    the first of several processes writes.

    Args:
        workdir: of the run.
        steps_per_epoch: what epochs are counted by; 0: there are none.
        first_step: steps that were done before.
        qids_of: step -> the queries of its batch; [] where they have no ids.
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
                told = f'; qids {which}: {lost or qids}' if qids else ''
                raise TrainingError(f'step {step}: {names} not finite{told}')
        mean = {f'train/{k}': float(np.mean(np.concatenate([np.atleast_1d(v[k]) for v in found])))
                for k in found[0]}
        step = self.pending[-1][0]
        self.pending = []
        self.write(step, mean)
        return mean

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one row."""
        each = self.steps_per_epoch
        row = dict(step=step) | (dict(epoch=round(step / each, 4)) if each else {}) | values
        self.rows.append(row)
        if self.writes:
            with files.named(self.path), open(self.path, 'a') as file:
                file.write(json.dumps(row) + '\n')
        self.writer.write_scalars(step, values)


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
            CheckpointError: it has no checkpoint, or one of another model; or the workdir is a
                pretrained folder.
            DataError: its features were made by another recipe.
        """
        if pretrained.is_folder(self.folder):
            raise CheckpointError(f'{self.folder}: holds a pretrained model; use another '
                                  f'--workdir, and start from it by init={self.folder}')
        if not (source := self.config.train.init_from):
            return
        if changed := predict.other_model(source, self.config):
            raise CheckpointError(
                f'train.init_from={source}: holds another model ({", ".join(changed)}); the config '
                f'argument init={source} takes its model; features must be of the same widths')
        predict.check_recipe(
            pretrained.config_of(source).data.recipe, self.config.evaluate,
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
        config = self.checkpoints.config('best').copy_and_resolve_references()
        for key in ('epochs', 'max_steps'):  # a shorter training may have found the best
            config.train[key] = self.config.train[key]
        if runtime.is_first():
            write_results(config, self.folder, self.best, parameters, self.history.rows, split)


def start_from(workdir: str | os.PathLike, fresh: TrainState) -> TrainState:
    """The state before the first step, with the parameters that a run's evaluation takes."""
    mesh = jax.tree.leaves(fresh.params)[0].sharding.mesh
    params, _, _ = predict.restore_best(workdir, pretrained.config_of(workdir), mesh)
    ema = None if fresh.ema is None else jax.tree.map(jnp.copy, params)  # buffers are donated
    return fresh.replace(params=params, ema=ema)


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
            if key in values:
                values[key] = os.path.realpath(values[key])
        if found := recipe.parse(values.pop('data.recipe', '')):
            values |= {f'data.recipe.{key}': value for key, value in found.flat().items()}
    changed = [text for text in differences(*flat) if not text.startswith(unused)]
    if refused := [text for text in changed
                   if text.startswith(compared) and not text.startswith(MAY_CHANGE)]:
        raise CheckpointError(f'{workdir}: holds a run by another config ({"; ".join(refused)}); '
                              'use another --workdir')
    return changed


def check_steps(workdir: str | os.PathLike, there: int, asked: int) -> None:
    """Raises CheckpointError if the run in a workdir has done more steps than it is asked for."""
    if there > asked:
        raise CheckpointError(f'{workdir}: holds a run of {there} steps, {asked} are asked for; '
                              'use another --workdir')


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
        config: that the best checkpoint was made and chosen by, with the run's own length.
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

"""Mode `analyse`: how much do trained models lean on [EOS], and how much on the words?

The diagnosis of the DualGround paper (arXiv 2510.20244, section 3) for any model of this project
that returns its attention. docs/analysis.md tells what each number is.
"""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from data_pipelines import datasets, pipeline, tokens
from data_pipelines.errors import ConfigError
from data_pipelines.files import whole_folder
from dualground_jax import evaluate, inputs, plots, predict, runtime, sharding, worlds
from dualground_jax import state as state_lib
from dualground_jax.analysis import ablation, attention, comparison, phrases, report
from dualground_jax.checkpoints import CheckpointError, Checkpoints
from dualground_jax.metrics import official, summary

VERSION = 3  # raise it when reports of the same settings become others


@dataclasses.dataclass(frozen=True)
class Settings:
    """What an analysis looks at; a finished one with the same settings is kept."""

    splits: tuple[str, ...]
    limit: int
    examples: int
    tokenizer: str


def run(values: Any, config: None = None) -> None:
    """Analyses the run in --workdir, or all runs in the folders below it and then compares them.

    Writes `<run>/analysis/`, whole or not at all; see `report`.

    Args:
        values: parsed flags.
        config: none, as each run's checkpoint has its own.

    Raises:
        CheckpointError: there is no run.
        ConfigError: the same split twice or none.
        DataError: a split's files are bad.
        UserError: the model returns no attention.
    """
    settings = Settings(tuple(values.splits), values.limit, values.examples, values.tokenizer)
    if not settings.splits or len(set(settings.splits)) < len(settings.splits):
        raise ConfigError(f'--splits={",".join(settings.splits)}: expected different splits')
    root = pathlib.Path(values.workdir)
    workdirs = [root] if (root / 'checkpoints').is_dir() else sorted(
        path.parent for path in root.rglob('checkpoints') if path.is_dir())
    if not workdirs:
        raise CheckpointError(f'{root}: no checkpoint here or in a folder below')
    reports = {}
    for workdir in workdirs:
        reports[str(workdir.relative_to(root))] = analyse_run(workdir, settings)
    if workdirs != [root]:
        with whole_folder(root / 'analysis', replace=True) as folder:
            comparison.write(reports, folder)
        print(f'wrote {root / "analysis"}, runs: {", ".join(reports)}')


def analyse_run(workdir: pathlib.Path, settings: Settings) -> dict:
    """Analyses a run's best checkpoint; returns its report."""
    checkpoints = Checkpoints(str(workdir))
    config = checkpoints.config('best')
    path = workdir / 'analysis' / 'report.json'
    asked = dict(dataclasses.asdict(settings), splits=list(settings.splits),
                 version=VERSION, step=checkpoints.step('best'))
    if path.exists() and (found := json.loads(path.read_text()))['settings'] == asked:
        print(f'{path}: kept, its settings are the same; delete it to make it anew\n'
              + report.summary(found))
        return found

    # ---- Data: everything is read and checked before any device time is spent ----------------
    worlds.prepare(config)
    with config.unlocked():
        config.data.limit = settings.limit or config.data.limit
    predict.check_split_recipe(workdir, config)
    splits = [load_split(config, name, settings) for name in settings.splits]

    # ---- Model -------------------------------------------------------------------------------
    seen = attention.seen_roles(config)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch_size(mesh, config.evaluate.batch_size, 'evaluate.batch_size')
    abstract = state_lib.abstract_state(config, mesh)
    params = checkpoints.restore('best', abstract)[0].eval_params
    predictor = make_predictor(config, mesh, params)

    # ---- Analysis ----------------------------------------------------------------------------
    with whole_folder(path.parent, replace=True) as folder:
        found = dict(
            model=config.model.name, seed=config.seed, settings=asked,
            selection=list(config.evaluate.selection),
            seen_roles=[tokens.ROLES[role] for role in sorted(seen)],
            config=json.loads(config.to_json()), versions=runtime.versions(), splits={})
        figures = []
        for split in splits:
            started = time.monotonic()
            part, points, examples = analyse_split(config, split, seen, predictor, settings, folder)
            found['splits'][split.name] = part
            figures.append((split.name, points, examples))
            logging.info('%s: %d queries of %s analysed in %.1f s', workdir, len(split.queries),
                         split.name, time.monotonic() - started)
        report.write(found, figures, folder)
    print(report.summary(found))
    print(f'wrote {path.parent}')
    return found


def load_split(config: ConfigDict, name: str, settings: Settings) -> datasets.Split:
    """A split in which punctuation has a role of its own, where it can be told."""
    split = predict.load_split(config, name)
    roles = []
    for record, role in zip(split.queries, split.roles, strict=True):
        words = tokens.word_strings(record.query, (role == tokens.WORD).sum(), settings.tokenizer)
        roles.append(tokens.mark_punctuation(role, words))
    return dataclasses.replace(split, roles=roles)


@functools.lru_cache(maxsize=1)  # that of the runs before is let go
def predict_step(config: FrozenConfigDict, mesh: Mesh) -> Callable:
    """Compiles (params, batch) -> (windows, saliency, what is studied), by `inputs.seedless`."""
    def look(out, batch):
        of_phrases = {name: out[name] for name in phrases.FIELDS if name in out}
        return attention.observe(out), of_phrases

    # One program for all: another one without the attention takes longer to compile than it saves
    # on most splits. What is not fetched stays on the device.
    return predict.make_predict_step(ConfigDict(config), mesh, look)


def make_predictor(config: ConfigDict, mesh: Mesh, params: Any) -> Callable:
    """Makes (split, batch) -> (predictions, what is studied of the batch, on the device)."""
    step = predict_step(inputs.seedless(config), mesh)
    placement = sharding.batch_sharding(mesh)

    def predictor(split, batch):
        windows, saliency, found = step(params, jax.device_put(batch, placement))
        windows, saliency = jax.device_get((windows, saliency))
        return predict.batch_predictions(split, batch['index'], windows, saliency), found

    return predictor


def analyse_split(
    config: ConfigDict, split: datasets.Split, seen: set[int], predictor: Callable,
    settings: Settings, folder: pathlib.Path,
) -> tuple[dict, dict, list[dict]]:
    """Goes through a split once.

    Args:
        config: whole config.
        split: the queries.
        seen: roles of tokens that the model sees.
        predictor: of `make_predictor`.
        settings: which of the queries are shown, and the tokenizer that names their words.
        folder: gets `queries_<split>.csv`, a row per query.

    Returns:
        (the split's part of the report, the points of the scatter plot, the examples).
    """
    words = np.array([len(record.query.split()) for record in split.queries])
    wanted = np.linspace(0, len(words) - 1, min(settings.examples, len(words))).astype(int)
    changes = Ablations(split, seen, config)
    study, phrase_study, examples, table = None, phrases.PhraseStudy(), [], []
    for index, batch in pipeline.eval_batches(
            split, config.data, batch_size=config.evaluate.batch_size):
        rows, found = predictor(split, batch)
        found, of_phrases = jax.device_get(found)
        changes.add('full', rows)
        for name, changed in changes.edited(batch):
            changes.add(name, predictor(split, changed)[0])

        study = study or attention.AttentionStudy(*found['heads'].shape[1:3])
        table += [dict(qid=row['qid'], words=len(row['query'].split()), **values)
                  for row, values in zip(rows, study.add(found, batch), strict=True)]
        if of_phrases:
            phrase_study.add(of_phrases, batch)
        for place in np.flatnonzero(np.isin(index, wanted)):
            picked = jax.tree.map(lambda x, b=place: x[b], (found, of_phrases))
            examples.append(example(split, index[place], rows[place], picked,
                                    config.data.clip_length, settings.tokenizer))
    report.write_table(folder / f'queries_{split.name}.csv', table)
    part = dict(queries=len(words), **study.results(summary.length_bins(words)))
    part |= changes.results(tuple(config.evaluate.selection), words)
    if phrase_study.rows:
        part['phrases'] = phrase_study.results()
    return part, scatter(study), examples


class Ablations:
    """The conditions of a split, each distinct one with its scores."""

    def __init__(self, split: datasets.Split, seen: set[int], config: ConfigDict):
        self.split = split
        there = set().union(*(np.unique(roles).tolist() for roles in split.roles))
        self.same_as = ablation.distinct_conditions(seen & there)
        self.partners = ablation.partners(split.source_index)
        if not evaluate.has_labels(split, config.data):
            self.same_as = {}
        if self.partners is None:
            self.same_as = {name: same for name, same in self.same_as.items()
                            if not ablation.CONDITIONS[name].swapped}
        self.protocol, self.clip_length = config.evaluate.protocol, config.data.clip_length
        self.predictions = {name: [] for name in self.same_as.values()}

    def edited(self, batch: dict) -> Iterator[tuple[str, dict]]:
        """Yields (name, batch) of each distinct condition but the unchanged one."""
        index = batch['index']
        other = None
        if self.partners is not None:
            drawn = np.where(index >= 0, self.partners[index], 0)
            other = ablation.texts_of(self.split, drawn, batch)
        for name in self.predictions:
            if name != 'full':
                yield name, ablation.edit_text(batch, ablation.CONDITIONS[name], other)

    def add(self, name: str, rows: list[dict]) -> None:
        """Takes the predictions of a batch; nothing is scored without labels."""
        if name in self.predictions:
            self.predictions[name] += rows

    def results(self, selection: tuple[str, ...], words: np.ndarray) -> dict:
        """The ablation's part of the report; empty without labels.

        Args:
            selection: metrics whose mean is called performance.
            words: int[Q], words of each query.
        """
        annotations = evaluate.ground_truth(self.split)
        found = {name: official.columns(
            official.per_query(rows, annotations, self.protocol, self.clip_length))
            for name, rows in self.predictions.items()}
        scores = {name: found[same] for name, same in self.same_as.items()}
        resampled = ablation.resample(scores, selection) if scores else None
        if resampled is None:
            return dict(ablation={}, performance={}, same_as={}, reliance=None, gains={})
        reliance = ablation.reliance(resampled)
        if 'swap_text' in scores:
            reliance['by_swapping'] = ablation.reliance(resampled, 'swap')
        return dict(
            ablation={name: values.brief() for name, values in scores.items()},
            performance={name: resampled.interval(lambda p, name=name: p[name])
                         for name in scores},
            same_as={name: same for name, same in self.same_as.items() if name != same},
            reliance=reliance,
            gains=ablation.length_gains(scores, selection, words),
        )


def example(
    split: datasets.Split, index: int, row: dict, found: tuple, clip_length: float, tokenizer: str
) -> dict:
    """What the figures show of one query.

    Args:
        split: the queries.
        index: of the query.
        row: its prediction.
        found: what `look` returned of it.
        clip_length: seconds.
        tokenizer: that names its words.
    """
    record, roles = split.queries[index], split.roles[index]
    seen, of_phrases = found
    n_clips = len(split.saliency[index])
    series = {tokens.ROLES[role]: seen['roles'][r, attention.POOLINGS.index('sum'), :n_clips]
              for r, role in enumerate(attention.STUDIED) if seen['present'][r]}
    shown = plots.example_of(record, split.saliency[index], row, clip_length)
    shown |= dict(qid=record.qid, roles=series)
    is_word = np.isin(roles, (tokens.WORD, tokens.PUNCTUATION))
    rows = np.flatnonzero(is_word)
    if of_phrases and tokens.ROLES[tokens.PHRASE] in series:
        strings = tokens.word_strings(record.query, len(rows), tokenizer)
        batched = {name: value[None] for name, value in of_phrases.items()}
        shown['phrases'] = dict(
            words=strings or [f'row {i}' for i in rows],
            weights=phrases.word_weights(batched)[0][:, rows],
            phrase_weights=of_phrases['phrase_weights'],
            energy=of_phrases['phrase_energy'][:, :n_clips],
        )
    return shown


def scatter(study: attention.AttentionStudy) -> dict:
    """Clips' attention to the sentence token and the words, for the figure: x and y."""
    for sentence in (tokens.EOS, tokens.MEAN):
        x, y = study.sample(sentence, tokens.WORD, 'sum', limit=2000)
        if len(x):
            break
    return dict(x=x, y=y)

"""From a checkpoint and a split to moments, as for a submission.

`predictor` grounds sentences in single videos.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines import annotations, datasets, pipeline, progress, recipe
from data_pipelines.errors import ConfigError
from data_pipelines.files import write_jsonl
from data_pipelines.schedule import evaluation_plan, query_sizes
from dualground_jax import models, pretrained, runtime, sharding, spans, state
from dualground_jax.checkpoints import CheckpointError
from dualground_jax.config import differences
from dualground_jax.metrics import official
from dualground_jax.metrics.moments import MAX_WINDOWS


def fit(windows: jax.Array, duration: jax.Array, section: ConfigDict) -> jax.Array:
    """Fits windows to the video and the data set's conventions.

    Args:
        windows: float32[B, K, 3], a score below 0 marks absence.
        duration: float32[B], seconds.
        section: the `evaluate` section: clip_to and round_to in seconds.

    Returns:
        float32[B, K, 3] (FlashVTG: postprocessing.py, inference.py).
    """
    bounds = jnp.clip(windows[..., :2], 0.0, duration[:, None, None])
    bounds = jnp.clip(bounds, *section.clip_to)
    if section.round_to:
        bounds = jnp.round(bounds / section.round_to) * section.round_to
    # The references suppress by scores of four decimals.
    score = jnp.round(windows[..., 2:] * 1e4) / 1e4
    return jnp.concatenate([bounds, score], -1)


def make_prediction(
    config: ConfigDict, observe: Callable | None = None, *, suppress: bool = True
) -> Callable:
    """A function (params, batch) -> (windows float32[B, K, 3], saliency float32[B, T]), to trace.

    Args:
        config: whole config.
        observe: (out, batch) -> what is returned as a third result.
        suppress: whether overlaps are suppressed as evaluate.nms says, and the best MAX_WINDOWS are
            returned; else all that the model decodes.
    """
    model = models.build(config.model)
    decode = models.MODELS[config.model.name].decode

    @model.precisely
    def predict_step(params, batch):
        out = model.apply({'params': params}, batch, train=False)
        windows, saliency = decode(out, batch)
        windows = fit(windows, batch['duration'], config.evaluate)
        if suppress:
            nms = config.evaluate.nms, config.evaluate.nms_kind
            windows = spans.nms(windows, *nms)[:, :MAX_WINDOWS]
        found = windows, saliency
        return found if observe is None else (*found, observe(out, batch))

    return predict_step


def make_predict_step(
    config: ConfigDict, mesh: Mesh, observe: Callable | None = None, *, suppress: bool = True
) -> Callable:
    """Compiles `make_prediction` for batches that are split over a mesh.

    Where the mesh has an axis of runs, parameters and results have a first axis of them; the batch
    is the same for all.
    """
    # Parameters stay where they are.
    return jax.jit(
        sharding.over_runs(make_prediction(config, observe, suppress=suppress), mesh, (0, None)),
        in_shardings=(None, sharding.batch_sharding(mesh)),
        out_shardings=sharding.replicated(mesh))


def prediction(record: annotations.Query, windows: np.ndarray, saliency: np.ndarray) -> dict:
    """One row of a submission in the official format.

    Args:
        record: the query.
        windows: float32[K, 3].
        saliency: float32[n] of the video's clips.
    """
    kept = windows[windows[:, 2] >= 0].astype(np.float64).round(4)
    return dict(
        qid=record.qid, query=record.query, vid=record.vid,
        pred_relevant_windows=kept.tolist(),
        pred_saliency_scores=saliency.astype(np.float64).round(4).tolist(),
    )


def batch_predictions(
    split: datasets.Split, index: np.ndarray, windows: np.ndarray, saliency: np.ndarray
) -> list[dict]:
    """Rows of a submission for a batch's records; index int[B] is -1 where it is empty."""
    return [
        prediction(split.queries[i], found, scores[: len(split.saliency[i])])
        for i, found, scores in zip(index, windows, saliency, strict=True)
        if i >= 0]


def check_section(section: ConfigDict, mesh: Mesh) -> None:
    """Raises ConfigError if the `evaluate` section has a batch or buckets that cannot be made."""
    sharding.check_batch_size(mesh, section.batch_size, 'evaluate.batch_size')
    if section.buckets < 1:
        raise ConfigError(f'evaluate.buckets={section.buckets}: expected 1 or more')


def prepare(
    predict_step: runtime.Step, compilers: Executor, params: dict, split: datasets.Split,
    config: ConfigDict, mesh: Mesh,
) -> None:
    """Has threads compile what `predict_runs` will need for parameters of these shapes."""
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=sharding.gathered(x.sharding)), params)
    for bucket, batches in evaluation_plan(
            query_sizes(split), config.data, config.evaluate.batch_size, config.evaluate.buckets,
            sharding.batch_parts(mesh)):
        predict_step.prepare(
            compilers, params, state.abstract_batch(config, batches.shape[1], mesh, bucket))


def predict_split(
    predict_step: Callable, params: dict, split: datasets.Split, config: ConfigDict, mesh: Mesh
) -> list[dict]:
    """Predictions for every record of a split, in its order, the same in each process."""
    return predict_runs(predict_step, params, split, config, mesh, [()])[0]


def predict_runs(
    predict_step: Callable, params: dict, split: datasets.Split, config: ConfigDict, mesh: Mesh,
    places: Sequence[int | tuple[()]],
) -> list[list[dict]]:
    """What `predict_split` gives, of several runs.

    Args:
        predict_step: of `make_predict_step`.
        params: of all runs.
        split: the same for all.
        config: whole config.
        mesh: of the step.
        places: of the wanted runs in the step's results; () if there is one, without an axis.
    """
    params = sharding.gather(params)
    placement = sharding.batch_sharding(mesh)
    batches = pipeline.eval_batches(
        split, config.data, batch_size=config.evaluate.batch_size,
        buckets=config.evaluate.buckets, parts=sharding.batch_parts(mesh),
        rows_of=functools.partial(sharding.local_rows, placement))
    found = ((index, predict_step(params, sharding.put_batch(batch, placement, len(index))))
             for index, batch in batches)
    rows = {}
    with progress.Bar(f'predicting {split.name}', len(split.queries), 'queries') as bar:
        for index, arrays in runtime.one_ahead(found):
            arrays = jax.device_get(arrays)
            new = [batch_predictions(split, index, *(x[place] for x in arrays)) for place in places]
            rows.update(zip(index[index >= 0].tolist(), zip(*new, strict=True), strict=True))
            bar.advance(len(new[0]))
    return [[rows[i][n] for i in sorted(rows)] for n in range(len(places))]


def load_split(
    config: ConfigDict, name: str | None = None, *, training: bool = False
) -> datasets.Split:
    """A split, by default that of `evaluate.split`; prints what is odd in it and what was skipped.

    Raises:
        DataError: bad annotations or features.
    """
    split = datasets.load_split(config.data, name or config.evaluate.split, training=training)
    for note in split.notes:
        print(f'split {split.name!r}: {note}')
    if split.skipped:
        print(f'split {split.name!r}: skipped {len(split.skipped)} problems, '
              f'{len(split.queries)} records are left')
        for problem in split.skipped:
            print(f'  {problem}')
    return split


def restore_best(
    workdir: str | os.PathLike, config: ConfigDict, mesh: Mesh
) -> tuple[dict, int, dict]:
    """Parameters to evaluate, step and progress of a run's best checkpoint, or as published.

    Args:
        workdir: of the run, or a pretrained folder.
        config: of the same model.
        mesh: where parameters are placed.

    Raises:
        CheckpointError: there is none, or the config's model is another one.
    """
    if changed := other_model(workdir, config):
        raise CheckpointError(f'{workdir} holds a run of another model ({", ".join(changed)}); '
                              'leave --config out, or name that of the run')
    return pretrained.best_of(workdir, config, mesh)


def other_model(workdir: str | os.PathLike, config: ConfigDict) -> list[str]:
    """How the model of a run's best checkpoint is another one than the config's: no text, if not.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    return differences(_model_of(pretrained.config_of(workdir)), _model_of(config))


def _model_of(config: ConfigDict) -> dict:
    """What a checkpoint's parameters were made for; how layers are computed may change."""
    may_change = ('dropout', 'dtype', 'matmul_precision', 'attention_chunk', 'fused_attention',
                  'remat')
    model = {key: value for key, value in config.model.items() if not key.endswith(may_change)}
    return model | {key: config.data[key] for key in ('video_dims', 'text_dim')}


def check_recipe(model: str, section: ConfigDict, found: recipe.Recipe | None, name: Any) -> None:
    """Checks that a model was trained on features by the recipe of those at hand.

    Args:
        model: `data.recipe` of its checkpoint.
        section: the `evaluate` section; its `any_recipe` takes features by another one.
        found: recipe of these features; None: unknown.
        name: where they are, or what makes them.

    Raises:
        DataError: they are by another recipe; names both.
    """
    if section.any_recipe or not model:
        return
    recipe.check(recipe.parse(model), found, name)
    if not found:
        progress.say(f'{name}: no {recipe.FILE}, so whether these features are by the recipe that '
                     'the model was trained on is not known')


def check_split_recipe(workdir: str | os.PathLike, config: ConfigDict) -> None:
    """As `check_recipe`, of a run's best checkpoint and the features of the config's splits."""
    check_recipe(pretrained.config_of(workdir).data.recipe, config.evaluate,
                 datasets.recipe_of(config.data), config.data.records or config.data.root)


def predict_best(config: ConfigDict, workdir: str, split: datasets.Split) -> list[dict]:
    """Predicts a split by a run's best checkpoint; writes `<workdir>/<split>_predictions.jsonl`.

    Returns:
        The rows of the file, see `prediction`.

    Raises:
        CheckpointError: there is no checkpoint.
        ConfigError: a batch that the mesh cannot split.
        DataError: the features were made by another recipe than the model's.
    """
    check_split_recipe(workdir, config)
    mesh = sharding.make_mesh(config.mesh)
    check_section(config.evaluate, mesh)
    params, step, told = restore_best(workdir, config, mesh)
    digits = official.PROTOCOLS[config.evaluate.protocol].digits
    print(f'best checkpoint: step {step}, {told["best_value"]:.{digits}f} on '
          f'{" + ".join(config.evaluate.selection)}')
    predict_step = runtime.Step(make_predict_step(config, mesh), 'predict')
    with runtime.compilers() as compilers:
        prepare(predict_step, compilers, params, split, config, mesh)
        rows = predict_split(predict_step, params, split, config, mesh)
    if runtime.is_first():
        path = pathlib.Path(workdir, f'{split.name}_predictions.jsonl')
        write_jsonl(path, rows)
        print(f'wrote {path}: {len(rows)} queries')
    return rows

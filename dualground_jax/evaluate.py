"""From parameters and a split to predictions and metrics."""

import collections
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines import annotations, datasets, pipeline, saliency
from data_pipelines.errors import ConfigError
from data_pipelines.files import write_json, write_jsonl
from dualground_jax import checkpoints, models, runtime, sharding, spans
from dualground_jax import state as state_lib
from dualground_jax.metrics import official

MAX_WINDOWS = 10  # what the official evaluation reads of a query's list


def postprocess(windows: jax.Array, duration: jax.Array, section: ConfigDict) -> jax.Array:
    """Fits windows to the video and the data set's conventions, then suppresses overlaps.

    Args:
      windows: float32[B, K, 3], a score below 0 marks absence.
      duration: float32[B], seconds.
      section: the `evaluate` section: clip_to and round_to in seconds, nms as IoU, nms_kind.

    Returns:
      float32[B, K', 3], best first (FlashVTG: postprocessing.py, inference.py).
    """
    bounds = jnp.clip(windows[..., :2], 0.0, duration[:, None, None])
    bounds = jnp.clip(bounds, *section.clip_to)
    if section.round_to:
        bounds = jnp.round(bounds / section.round_to) * section.round_to
    # The references suppress by scores of four decimals.
    score = jnp.round(windows[..., 2:] * 1e4) / 1e4
    windows = jnp.concatenate([bounds, score], -1)
    return spans.nms(windows, section.nms, section.nms_kind)


def make_predict_step(config: ConfigDict, mesh: Mesh, observe: Callable | None = None) -> Callable:
    """Compiles (params, batch) -> (windows float32[B, K, 3], saliency float32[B, T]).

    Args:
      config: whole config.
      mesh: batches are split over it.
      observe: (out, batch) -> what is returned as a third result.
    """
    model = models.build(config.model)
    decode = models.MODELS[config.model.name].decode

    def predict_step(params, batch):
        out = model.apply({'params': params}, batch, train=False)
        windows, saliency = decode(out, batch)
        windows = postprocess(windows, batch['duration'], config.evaluate)
        found = windows[:, :MAX_WINDOWS], saliency
        return found if observe is None else (*found, observe(out, batch))

    # Parameters stay where they are.
    return jax.jit(
        predict_step,
        in_shardings=(None, sharding.batch_sharding(mesh)),
        out_shardings=sharding.replicated(mesh),
    )


def prediction(record: annotations.Query, windows: np.ndarray, saliency: np.ndarray) -> dict:
    """One row of a submission in the official format.

    Args:
      record: the query.
      windows: float32[K, 3].
      saliency: float32[n] of the video's clips.
    """
    kept = windows[windows[:, 2] >= 0].astype(np.float64).round(4)
    return dict(
        qid=record.qid,
        query=record.query,
        vid=record.vid,
        pred_relevant_windows=kept.tolist(),
        pred_saliency_scores=saliency.astype(np.float64).round(4).tolist(),
    )


def check_section(section: ConfigDict, mesh: Mesh) -> None:
    """Raises ConfigError if the `evaluate` section has a batch or buckets that cannot be made."""
    sharding.check_batch_size(mesh, section.batch_size, 'evaluate.batch_size')
    if section.buckets < 1:
        raise ConfigError(f'evaluate.buckets={section.buckets}: expected 1 or more')


def predict_split(
    predict_step: Callable, params, split: datasets.Split, config: ConfigDict, mesh: Mesh
) -> list[dict]:
    """Predictions for every record of a split, in its order, the same in each process."""
    params = sharding.gather(params)
    size, placement = config.evaluate.batch_size, sharding.batch_sharding(mesh)
    batches = pipeline.eval_batches(
        split, config.data, batch_size=size, buckets=config.evaluate.buckets,
        rows=sharding.local_rows(placement, size),
    )
    rows, order = [], []
    waiting = collections.deque()  # the device works on one batch while the next one is put there

    def fetch():
        index, found = waiting.popleft()
        windows, saliency = jax.device_get(found)
        rows.extend(batch_predictions(split, index, windows, saliency))
        order.extend(index[index >= 0])

    for index, batch in batches:
        found = predict_step(params, sharding.put_batch(batch, placement, size))
        waiting.append((index, found))
        if len(waiting) > 1:
            fetch()
    while waiting:
        fetch()
    return [rows[i] for i in np.argsort(order, kind='stable')]


def batch_predictions(
    split: datasets.Split, index: np.ndarray, windows: np.ndarray, saliency: np.ndarray
) -> list[dict]:
    """Rows of a submission for a batch's records; index int[B] is -1 where it is empty."""
    return [
        prediction(split.queries[i], found, scores[: len(split.saliency[i])])
        for i, found, scores in zip(index, windows, saliency, strict=True)
        if i >= 0
    ]


def ground_truth(split: datasets.Split) -> list[dict]:
    """The split's annotations in the official format, as the metrics read them."""
    rows = []
    for record in split.queries:
        row = dict(
            qid=record.qid,
            query=record.query,
            duration=record.duration,
            vid=record.vid,
            relevant_windows=record.windows.tolist(),
        )
        if record.clip_scores is not None:
            row |= dict(
                relevant_clip_ids=record.clip_ids.tolist(),
                saliency_scores=record.clip_scores.tolist(),
            )
        if record.label is not None:
            row |= dict(label=record.label.tolist(), domain=record.domain)
        rows.append(row)
    return rows


def has_labels(split: datasets.Split, data: ConfigDict) -> bool:
    """Whether every record has true windows, or a label, as data.saliency needs them.

    A hidden test set has none.
    """
    return all(saliency.is_annotated(record, data.saliency) for record in split.queries)


def selection_value(found: dict, section: ConfigDict) -> float:
    """What checkpoints are compared by: the mean of the metrics that the config names.

    Raises:
      ConfigError: a metric that the evaluation did not give; lists those that it did.
    """
    brief = found['brief']
    if missing := [name for name in section.selection if name not in brief]:
        raise ConfigError(
            f'evaluate.selection names {", ".join(missing)}; the evaluation gives '
            f'{", ".join(brief)}'
        )
    return float(np.mean([brief[name] for name in section.selection]))


def evaluate(config: ConfigDict, workdir: str) -> None:
    """Evaluates a run's best checkpoint on a split: mode `evaluate`, and `predict` without labels.

    Writes `<workdir>/<split>_predictions.jsonl` and, where the annotations have labels,
    `<workdir>/<split>_metrics.json`.
    """
    name = config.evaluate.split
    split = datasets.load_split(config.data, name)
    report_problems(split)
    mesh = sharding.make_mesh(config.mesh)
    check_section(config.evaluate, mesh)
    abstract = state_lib.abstract_state(config, mesh)
    train_state, progress = checkpoints.Checkpoints(workdir).restore('best', abstract)
    digits = official.PROTOCOLS[config.evaluate.protocol].digits
    print(f'best checkpoint: step {int(train_state.step)}, {progress["best_value"]:.{digits}f} on '
          f'{" + ".join(config.evaluate.selection)}')
    step = make_predict_step(config, mesh)
    rows = predict_split(step, train_state.eval_params, split, config, mesh)
    if not runtime.is_first():
        return
    path = pathlib.Path(workdir, f'{name}_predictions.jsonl')
    write_jsonl(path, rows)
    print(f'wrote {path}: {len(rows)} queries')
    if has_labels(split, config.data):
        found = official.evaluate(rows, ground_truth(split), config.evaluate.protocol)
        print(official.format_table(found, config.evaluate.protocol))
        write_json(pathlib.Path(workdir, f'{name}_metrics.json'), found)


def report_problems(split: datasets.Split) -> None:
    """Prints what was skipped of a split."""
    if split.problems:
        print(f'split {split.name!r}: skipped {len(split.problems)} problems, '
              f'{len(split.queries)} records are left')
        for problem in split.problems:
            print(f'  {problem}')

"""Mode `evaluate`: from a checkpoint and a split to official metrics."""

import pathlib

import numpy as np
from absl.flags import FlagValues
from ml_collections import ConfigDict

from data_pipelines import annotations, datasets, saliency
from data_pipelines.errors import ConfigError, DataError
from data_pipelines.files import write_json
from dualground_jax import predict, runtime
from dualground_jax.metrics import official

# What is told of an evaluation, beside the metrics that checkpoints are chosen by.
MAIN_METRICS = ('MR-full-mAP', 'MR-full-R1@0.5', 'MR-full-R1@0.7', 'HL-min-VeryGood-Hit1')


def run(values: FlagValues, config: ConfigDict) -> None:
    """Evaluates the run in --workdir."""
    evaluate(config, values.workdir)


def evaluate(config: ConfigDict, workdir: str) -> dict:
    """Evaluates a run's best checkpoint on the split `config.evaluate.split`.

    Writes `<workdir>/<split>_predictions.jsonl` and `<workdir>/<split>_metrics.json`.

    Returns:
        The metrics, as `official.evaluate` gives them.

    Raises:
        DataError: bad annotations or features, or records without labels.
        CheckpointError: there is no checkpoint.
        ConfigError: a batch that the mesh cannot split.
    """
    split = predict.load_split(config)
    check_labels(split, config.data, 'predict it by --mode=predict')
    score_blank(split, config)
    rows = predict.predict_best(config, workdir, split)
    found = score(rows, split, config)
    if runtime.is_first():
        print(official.format_table(found, config.evaluate.protocol))
        write_json(pathlib.Path(workdir, f'{split.name}_metrics.json'), found)
    return found


def score(rows: list[dict], split: datasets.Split, config: ConfigDict) -> dict:
    """Scores a split's predictions by the config's protocol, as `official.evaluate`."""
    return official.evaluate(
        rows, ground_truth(split), config.evaluate.protocol, config.data.clip_length)


def score_blank(split: datasets.Split, config: ConfigDict) -> dict:
    """Scores made-up predictions, so that what can't be scored is told before device time.

    Raises:
        DataError: an annotation that the protocol refuses.
    """
    rows = [dict(qid=query.qid, pred_relevant_windows=[[0.0, query.duration, 1.0]],
                 pred_saliency_scores=[0.0] * len(split.saliency[i]))
            for i, query in enumerate(split.queries)]
    try:
        return score(rows, split, config)
    except official.MetricsError as error:
        path = annotations.annotation_file(config.data, split.name)
        raise DataError(f'{path}: cannot be scored: {error}') from error


def ground_truth(split: datasets.Split) -> list[dict]:
    """The split's annotations in the official format, as the metrics read them."""
    rows = []
    for record in split.queries:
        row = dict(qid=record.qid, query=record.query, duration=record.duration, vid=record.vid,
                   relevant_windows=record.windows.tolist())
        if record.clip_scores is not None:
            row |= dict(relevant_clip_ids=record.clip_ids.tolist(),
                        saliency_scores=record.clip_scores.tolist())
        if record.label is not None:
            row |= dict(label=record.label.tolist(), domain=record.domain)
        rows.append(row)
    return rows


def has_labels(split: datasets.Split, data: ConfigDict) -> bool:
    """Whether every record has true windows, or a label, as data.saliency needs them.

    A hidden test set has none.
    """
    return all(saliency.is_annotated(record, data.saliency) for record in split.queries)


def check_labels(split: datasets.Split, data: ConfigDict, advice: str) -> None:
    """Raises DataError, with the advice, if a record lacks what data.saliency makes targets of."""
    if not has_labels(split, data):
        raise DataError(f'split {split.name!r}: a record has no '
                        f'{saliency.MODES[data.saliency].field}; {advice}')


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


def one_line(found: dict, section: ConfigDict) -> str:
    """The main metrics of an evaluation, as in 'MR-full-mAP 43.21, MR-full-R1@0.5 62.10'."""
    brief, digits = found['brief'], official.PROTOCOLS[section.protocol].digits
    names = dict.fromkeys((*section.selection, *MAIN_METRICS))
    return ', '.join(f'{name} {brief[name]:.{digits}f}' for name in names if name in brief)

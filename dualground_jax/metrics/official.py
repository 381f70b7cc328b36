"""Moment retrieval and highlight detection scores by the official protocols.

QVHighlights, Charades-STA and TACoS follow moment_detr `standalone_eval/` in the form CG-DETR and
FlashVTG extend it (mIoU, R1 from 0.3); TVSum and YouTube Highlights follow `compute_hl_results` of
CG-DETR and FlashVTG. docs/evaluation.md tells what each number is and what becomes of odd
predictions.

Every number is a mean of values of single queries: `per_query` gives these, `summarise` the
official layout, `columns` the arrays that a bootstrap resamples.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from dualground_jax.metrics import highlights, moments, rows, tables
from dualground_jax.metrics.moments import AP_THRESHOLDS, R1_THRESHOLDS
from dualground_jax.metrics.rows import Block, MetricsError

BRIEF_AP = ('0.5', '0.75')
BRIEF_R1 = ('0.3', '0.5', '0.7')
# Metrics that hold one number per threshold.
THRESHOLDS = {'MR-mAP': AP_THRESHOLDS, 'MR-R1': R1_THRESHOLDS}


@dataclass(frozen=True)
class Task:
    """One kind of prediction and how it is scored.

    Attributes:
        per_query: (predictions, annotations) -> {name: Block}.
        brief: {name: Block} -> {name in the brief block: (block, metric, key or None)}.
        predicted: the field of a prediction; where no prediction has it, the task is left out.
        annotated: likewise of an annotation; None: it is always expected.
        of_clips: whether `per_query` takes the seconds of a clip, `clip_length`, too.
    """

    per_query: Callable
    brief: Callable
    predicted: str
    annotated: str | None = None
    of_clips: bool = False


@dataclass(frozen=True)
class Protocol:
    """How a data set is scored.

    Attributes:
        tasks: in the order of the brief block.
        number: mean -> number of `metrics.json`.
        digits: decimals of the numbers.
    """

    tasks: tuple[Task, ...]
    number: Callable
    digits: int


@dataclass(frozen=True)
class Scores:
    """What a prediction file scores on each query.

    Attributes:
        qids: Q, in the order of the predictions.
        blocks: name -> Block.
        brief: name in the brief block -> (block, metric, key of its thresholds or None).
        protocol: of the data set.
    """

    qids: list
    blocks: dict[str, Block]
    brief: dict[str, tuple]
    protocol: Protocol


@dataclass(frozen=True)
class Columns:
    """What single queries count for each number of the brief block.

    A number is the mean of its column of values, weighted by its column of weights, which may be
    all 0.

    Attributes:
        names: M metrics of the brief block.
        values: float64[Q, M].
        weights: float64[Q, M].
        protocol: of the data set.
    """

    names: list[str]
    values: np.ndarray
    weights: np.ndarray
    protocol: Protocol

    def brief(self, kept: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """Metrics of some queries; those that none of them counts for are left out."""
        total = self.weights[kept].sum(axis=0)
        means = (self.values * self.weights)[kept].sum(axis=0) / np.where(total > 0, total, 1)
        return {name: self.protocol.number(mean)
                for name, mean, n in zip(self.names, means, total, strict=True) if n > 0}


def _percent(mean):
    # Through text, as the reference rounds: `round` differs on some halves.
    return float(f'{100 * mean:.2f}')


def _fraction(mean):
    return float(round(np.float64(mean), 5))


def _brief_moments(blocks):
    brief = {f'MR-full-R1@{key}': ('full', 'MR-R1', key) for key in BRIEF_R1}
    brief |= {f'MR-full-mAP@{key}': ('full', 'MR-mAP', key) for key in BRIEF_AP}
    brief['MR-full-mIoU'] = ('full', 'MR-mIoU', None)
    brief |= {f'MR-{name}-mAP': (name, 'MR-mAP', 'average') for name in blocks}
    return dict(sorted(brief.items()))


def _brief_highlights(blocks):
    return {f'{name}-{metric.removeprefix("HL-")}': (name, metric, None)
            for name, block in blocks.items() for metric in block.values}


def _brief_domains(blocks):
    return {'mAP' if name == 'full' else f'{name}-mAP': (name, 'mAP', None) for name in blocks}


_MOMENTS = Task(functools.partial(rows.in_parts, moments.moment_retrieval), _brief_moments,
                'pred_relevant_windows')
_HIGHLIGHTS = Task(highlights.qvhighlights, _brief_highlights, 'pred_saliency_scores',
                   'saliency_scores', of_clips=True)
_OWN_MOMENTS = dataclasses.replace(_MOMENTS, per_query=functools.partial(
    rows.in_parts, functools.partial(moments.moment_retrieval, empty_iou=0.)))
_OWN_HIGHLIGHTS = dataclasses.replace(_HIGHLIGHTS, per_query=highlights.own_data)
_MOMENTS_AND_HIGHLIGHTS = Protocol((_MOMENTS, _HIGHLIGHTS), _percent, 2)
_MOMENTS_ONLY = Protocol((_MOMENTS,), _percent, 2)
_TVSUM = Task(highlights.tvsum, _brief_domains, 'pred_saliency_scores')
_YOUTUBE = Task(highlights.youtube_highlights, _brief_domains, 'pred_saliency_scores')

PROTOCOLS = {
    'qvhighlights': _MOMENTS_AND_HIGHLIGHTS,
    'charades_sta': _MOMENTS_ONLY,
    'tacos': _MOMENTS_ONLY,
    'tvsum': Protocol((_TVSUM,), _fraction, 5),
    'youtube_highlights': Protocol((_YOUTUBE,), _fraction, 5),
    'synthetic': _MOMENTS_AND_HIGHLIGHTS,
    'custom': Protocol((_OWN_MOMENTS, _OWN_HIGHLIGHTS), _percent, 2),
}


def evaluate(
    predictions: list[dict], annotations: list[dict], dataset: str = 'qvhighlights',
    clip_length: float | None = None,
) -> dict[str, dict]:
    """Scores predictions against annotations by the official protocol of a data set.

    Means run over queries in the order of `predictions`, as in the reference: another order can
    change a sum's last bit, and with it the last printed digit of a value that lies on a rounding
    boundary.

    Args:
        predictions: list of dicts with `qid`, `pred_relevant_windows` ([start, end, score], best
            first) and/or `pred_saliency_scores` (one number per clip). A task is scored where the
            predictions have its field (and, for QVHighlights, annotations have `saliency_scores`).
        annotations: list of dicts with the same qids in any order, `relevant_windows`
            ([start, end]), and for highlights `duration`, `relevant_clip_ids` and
            `saliency_scores` (three annotators' 0..4 for each relevant clip; of own data any number
            of annotators, and not in all annotations); of TVSum and YouTube Highlights `label`
            (annotators' numbers for each clip) and `domain`.
        dataset: one of `PROTOCOLS`.
        clip_length: seconds of a clip; highlights of own data need it.

    Returns:
        dict with the keys and key order of the official `metrics.json`: `brief`, then
        `HL-min-*`, `full`, `long`, `middle`, `short`; percentages rounded to two decimals.
        For TVSum and YouTube Highlights `brief` holds `mAP`, the mean of the domains' means, and
        each domain's; fractions rounded to five decimals.

    Raises:
        MetricsError: qids that do not match, or a field that is missing or malformed.
    """
    return summarise(per_query(predictions, annotations, dataset, clip_length))


def per_query(
    predictions: list[dict], annotations: list[dict], dataset: str = 'qvhighlights',
    clip_length: float | None = None, missed: Collection = (),
) -> Scores:
    """Returns the Scores of single queries; see `evaluate`, which gives their means.

    Queries whose qids are in `missed` score 0, whatever is predicted for them.
    """
    protocol = PROTOCOLS[dataset]
    annotations = rows.align(annotations, predictions)
    misses = [i for i, row in enumerate(predictions) if row['qid'] in missed]
    blocks, brief = {}, {}
    for task in protocol.tasks:
        if rows.any_has(predictions, task.predicted) and (
                not task.annotated or rows.any_has(annotations, task.annotated)):
            options = {'clip_length': clip_length} if task.of_clips else {}
            found = task.per_query(predictions, annotations, **options)
            for block in found.values():
                for values in block.values.values():
                    values[misses] = 0
            blocks |= found
            brief |= task.brief(found)
    if not blocks:
        fields = ' or '.join(task.predicted for task in protocol.tasks)
        raise MetricsError(f'nothing to score: expected predictions with {fields}, and annotations '
                           f'of the same task, as {dataset} has them')
    blocks = {name: blocks[name] for name in sorted(blocks)}
    return Scores([row['qid'] for row in predictions], blocks, brief, protocol)


def summarise(scores: Scores) -> dict[str, dict]:
    """Returns the means of Scores in the official layout; see `evaluate`."""
    number = scores.protocol.number
    blocks = {name: {metric: _mean(metric, values, block.weights, number)
                     for metric, values in block.values.items()}
              for name, block in scores.blocks.items()}
    brief = {name: blocks[block][metric] if key is None else blocks[block][metric][key]
             for name, (block, metric, key) in scores.brief.items()}
    return {'brief': brief, **blocks}


def _mean(metric, values, weights, number):
    """Returns a metric's number, or dict of numbers; 0 where no query counts, as CG-DETR writes."""
    counts = weights > 0
    values = values[counts] if counts.any() else np.zeros((1, *values.shape[1:]))
    weights = weights[counts] if counts.any() else np.ones(1)
    if metric not in THRESHOLDS:
        shape = weights.reshape(-1, *[1] * (values.ndim - 1))
        return number(np.average(values, weights=np.broadcast_to(shape, values.shape)))
    means = np.average(values, axis=0, weights=weights)
    found = {str(t): number(mean) for t, mean in zip(THRESHOLDS[metric], means, strict=True)}
    if metric == 'MR-mAP':
        found['average'] = number(means.mean())
    return found


def columns(scores: Scores) -> Columns:
    """Returns the brief metrics of single queries."""
    values, weights = [], []
    for block, metric, key in scores.brief.values():
        array = scores.blocks[block].values[metric].astype(float)
        if key not in (None, 'average'):
            array = array[:, [str(t) for t in THRESHOLDS[metric]].index(key)]
        values.append(array.mean(axis=1) if array.ndim == 2 else array)
        weights.append(scores.blocks[block].weights)
    return Columns(list(scores.brief), np.stack(values, axis=1), np.stack(weights, axis=1),
                   scores.protocol)


def format_table(metrics: dict[str, dict], dataset: str = 'qvhighlights') -> str:
    """Returns the `brief` part of `metrics` as a text table, one metric per line."""
    form = f'6.{PROTOCOLS[dataset].digits}f'
    return tables.plain([[name, f'{value:{form}}'] for name, value in metrics['brief'].items()])

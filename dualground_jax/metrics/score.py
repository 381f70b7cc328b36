"""Mode `score`: metrics of prediction files, without a model, JAX or TensorFlow.

See docs/evaluation.md for what each number is.
"""

import pathlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from data_pipelines.files import load_jsonl, short, write_json
from dualground_jax import nms
from dualground_jax.metrics import highlights, moments, official, rows, summary, tables

WINDOW_METRICS = [
    *((f'MR-R1@{key}', 'MR-R1', key) for key in official.BRIEF_R1), ('MR-mAP', 'MR-mAP', 'average'),
    *((f'MR-mAP@{key}', 'MR-mAP', key) for key in official.BRIEF_AP), ('MR-mIoU', 'MR-mIoU', None)]
COMPARE_RESAMPLES = 10000
LEVEL = 95  # per cent, of the intervals
BLANK = {'pred_relevant_windows': [], 'pred_saliency_scores': [0.]}  # where there is no prediction
CLIP_TOLERANCE = 3  # clips that are scored, more or fewer than durations say


@dataclass(frozen=True)
class Run:
    """One scored prediction file.

    Attributes:
        path: of the file.
        metrics: as of `official.evaluate`.
        columns: of each query, in the order of the annotations.
        queries: block -> number of queries that count for it.
        missed: number of queries without a prediction, which count as misses.
        by_query_length: bin -> brief metrics and 'queries'; {} unless asked for.
    """

    path: str
    metrics: dict
    columns: official.Columns
    queries: dict[str, int]
    missed: int
    by_query_length: dict[str, dict]

    def brief(self) -> dict[str, float]:
        """The brief metrics that a query counts for: the official block tells 0 for the others."""
        return {name: self.metrics['brief'][name] for name in self.columns.brief()}


def run(values: Any, config: ConfigDict | None = None, files: Sequence[str] = ()) -> None:
    """Scores the files that the flags name, prints tables and writes `--output`.

    Args:
        values: parsed flags.
        config: tells protocol and clip length where the flags do not; this mode needs none.
        files: those that follow as plain arguments: `--compare A B`, `--predictions runs/*/P`.

    Raises:
        UserError: flags that do not go together, or a file that cannot be scored or written.
    """
    paths = [*(values.compare or values.predictions), *files]
    if bool(values.compare) == bool(values.predictions):
        raise UserError('--mode=score needs either --predictions=FILE,... or --compare=FILE,FILE')
    if values.compare and len(paths) != 2:
        raise UserError(f'--compare: found {len(paths)} files, expected two')
    if not values.annotations:
        raise UserError('--mode=score needs --annotations=FILE')
    if values.output and not pathlib.Path(values.output).parent.is_dir():
        raise UserError(f'--output={values.output}: no such folder')
    suppression = parse_nms(values.nms) if values.nms else None
    protocol = dict(dataset=values.dataset or 'qvhighlights', clip_length=values.clip_length)
    if config:
        protocol = dict(dataset=values.dataset or config.evaluate.protocol,
                        clip_length=values.clip_length or config.data.clip_length)
    annotations = load_jsonl(values.annotations)
    runs = [score_file(path, annotations, values, protocol, suppression) for path in paths]
    print(f'{protocol["dataset"]}, {len(annotations)} queries of {values.annotations}')
    if values.compare:
        resamples = COMPARE_RESAMPLES if values.bootstrap is None else values.bootstrap
        report = report_comparison(*runs, resamples)
    else:
        report = report_runs(runs, values.bootstrap or 0)
    if values.count_missing:
        for run in runs:
            print(f'{run.path}: {run.missed} queries without a prediction, counted as misses')
        report |= dict(missing={run.path: run.missed for run in runs})
    if values.output:
        write_json(values.output, report)
        print(f'wrote {values.output}')


def score_file(
    path: str, annotations: list[dict], values: Any, protocol: dict,
    suppression: tuple[float, str] | None = None,
) -> Run:
    """Scores one prediction file; returns its Run.

    Args:
        path: of the file.
        annotations: the true answers.
        values: parsed flags.
        protocol: `dataset` and `clip_length` of `official.evaluate`.
        suppression: threshold and kind of NMS.

    Raises:
        MetricsError: it cannot be scored; the message names the file.
    """
    predictions = load_jsonl(path)
    try:
        missed = rows.absent(annotations, predictions) if values.count_missing else []
        # They score 0 whatever they are, but must have the fields of the others.
        blank = {name: value for name, value in BLANK.items() if rows.any_has(predictions, name)}
        predictions += [dict(blank, qid=qid) for qid in missed]
        protocol = protocol | dict(missed=set(missed))
        if suppression:
            rows.align(annotations, predictions)
            predictions = suppress(predictions, *suppression)
        check_clip_length(path, predictions, annotations, **protocol)
        scores = official.per_query(predictions, annotations, **protocol)
        by_length = (by_query_length(predictions, annotations, **protocol)
                     if values.breakdown else {})
    except rows.MetricsError as error:
        paths = dict(predictions=path, annotations=values.annotations)
        raise rows.MetricsError(re.sub(
            '^(predictions|annotations) (?=qid|row)', lambda match: f'{paths[match[1]]}: ',
            str(error))) from error
    columns = official.columns(scores)
    place = {qid: i for i, qid in enumerate(scores.qids)}
    order = [place[row['qid']] for row in annotations]
    columns = replace(columns, values=columns.values[order], weights=columns.weights[order])
    queries = {name: np.count_nonzero(block.weights) for name, block in scores.blocks.items()}
    return Run(path, official.summarise(scores), columns, queries, len(missed), by_length)


def check_clip_length(
    path: str, predictions: list[dict], annotations: list[dict], dataset: str,
    clip_length: float | None, missed: Collection,
) -> None:
    """Raises MetricsError if predictions seem to be of other clips than those that were graded."""
    found = [(len(row['pred_saliency_scores']), truth['duration']) for row, truth in zip(
                 predictions, rows.align(annotations, predictions), strict=True)
             if rows.has(truth, 'saliency_scores') and row['qid'] not in missed
             and isinstance(row.get('pred_saliency_scores'), list)
             and rows.is_number(truth.get('duration')) and truth['duration'] > 0]
    if not found or not any(task.of_clips for task in official.PROTOCOLS[dataset].tasks):
        return
    clip_length = clip_length or highlights.CLIP_SECONDS
    count, seconds = np.median(found, axis=0)
    expected = seconds / clip_length
    if abs(count - expected) > CLIP_TOLERANCE and not 2 / 3 < count / expected < 3 / 2:
        raise rows.MetricsError(
            f'{path}: {count:g} pred_saliency_scores for {seconds:g} s in the median row, expected '
            f'about {expected:g} of {clip_length:g} s each; --dataset=custom --clip_length=SECONDS '
            'scores clips of another length')


def by_query_length(
    predictions: list[dict], annotations: list[dict], dataset: str, **protocol
) -> dict[str, dict]:
    """Scores queries by their length.

    Args:
        predictions: as for `official.per_query`, and so are the others.
        annotations: with a `query`.
        dataset: name of the protocol.
        **protocol: clip_length, missed.

    Returns:
        Bin of `summary.QUERY_LENGTHS` -> brief metrics of its queries, and 'queries', their number.
        A word is what spaces separate. A bin without queries is left out, and a metric that none
        of its queries counts for.

    Raises:
        MetricsError: an annotation without a `query`, or one that `official.evaluate` refuses.
    """
    aligned = rows.align(annotations, predictions)
    for row in aligned:
        if not isinstance(row.get('query'), str):
            raise rows.error_of('annotations', row, 'query',
                                f'found {short(row.get("query"))}, expected a text')
    words = np.array([len(row['query'].split()) for row in aligned])
    found = {}
    for name, kept in summary.length_bins(words).items():
        kept = np.flatnonzero(kept)
        if kept.size:
            scores = official.per_query([predictions[i] for i in kept], [aligned[i] for i in kept],
                                       dataset, **protocol)
            brief = official.summarise(scores)['brief']
            counted = [metric for metric, (block, *_) in scores.brief.items()
                       if scores.blocks[block].weights.any()]
            found[name] = {'queries': int(kept.size)} | {name: brief[name] for name in counted}
    return found


def parse_nms(text: str) -> tuple[float, str]:
    """Reads 'KIND:THRESHOLD', such as 'normal:0.7', into (threshold, kind).

    Raises:
        UserError: another form, an unknown kind, listed with the known ones, or a threshold outside
            [0, 1].
    """
    kind, _, value = text.partition(':')
    try:
        threshold = float(value)
    except ValueError:
        threshold = -1.0
    if kind not in nms.KINDS or not 0 <= threshold <= 1:
        raise UserError(f'--nms={text}: expected KIND:THRESHOLD with a kind of '
                        f'{", ".join(nms.KINDS)} and a threshold in [0, 1], such as normal:0.7')
    return threshold, kind


def suppress(predictions: list[dict], threshold: float, kind: str) -> list[dict]:
    """Applies `nms.nms` to the windows of predictions.

    Args:
        predictions: dicts with `qid` and `pred_relevant_windows`.
        threshold: IoU.
        kind: of `nms.KINDS`.

    Returns:
        New dicts. FlashVTG's kinds compute in float32 and the DETRs' in float64, as they do there.

    Raises:
        MetricsError: a field that `official.evaluate` would not take either, or a negative score,
            which the references' suppression would raise to 0.
    """
    dtype = np.float64 if kind == 'hard' else np.float32
    found = []
    for start in range(0, len(predictions), 512):  # no list pads all others to its length
        part = predictions[start:start + 512]
        field, values = rows.predicted_windows(part)
        field.check(values[:, 2] >= 0, 'a score >= 0 for NMS')
        kept = nms.nms(field.pad(values, -1.0).astype(dtype), threshold, kind)
        found += [row | dict(pred_relevant_windows=windows[windows[:, 2] >= 0].tolist())
                  for row, windows in zip(part, kept, strict=True)]
    return found


# Reports --------------------------------------------------------------------------------------


def intervals(columns: official.Columns, resamples: int) -> dict[str, tuple]:
    """Percentile confidence intervals, rounded as the metric.

    Args:
        columns: of a run, or of the mean or the difference of runs.
        resamples: 0: no intervals.

    Returns:
        metric -> (low, high); metrics that fewer than two queries count for are left out.
    """
    if not resamples:
        return {}
    counted = np.flatnonzero(np.count_nonzero(columns.weights, axis=0) > 1)
    means = summary.bootstrap(columns.values[:, counted], columns.weights[:, counted], resamples)
    tail = (100 - LEVEL) / 200
    bounds = np.nanquantile(means, [tail, 1 - tail], axis=0).T
    return {columns.names[i]: tuple(map(columns.protocol.number, pair))
            for i, pair in zip(counted, bounds, strict=True)}


def report_runs(runs: list[Run], resamples: int) -> dict:
    """Prints one file's metrics, or several files' mean and std; returns what to write as json."""
    first, digits = runs[0], runs[0].columns.protocol.digits
    _check_same_metrics(runs)
    report, lengths = first.metrics, first.by_query_length
    columns = {'value': first.brief()}
    if len(runs) > 1:
        report, std = (_over_runs(kind, [run.metrics for run in runs], digits)
                       for kind in ('mean', 'std'))
        columns = {name: {key: tree['brief'][key] for key in first.brief()}
                   for name, tree in (('mean', report), ('std', std))}
        columns |= {str(i): run.brief() for i, run in enumerate(runs, start=1)}
        lengths = _over_runs('mean', [run.by_query_length for run in runs], digits)
        for name, brief in lengths.items():
            brief['queries'] = first.by_query_length[name]['queries']
        listed = [dict(predictions=run.path, brief=run.metrics['brief']) for run in runs]
        report |= dict(std=std, runs=listed)
    for i, run in enumerate(runs, start=1):
        print(f'{i}: {run.path}')
    mean = np.mean([run.columns.values for run in runs], axis=0)
    bounds = intervals(replace(first.columns, values=mean), resamples)
    print_table(columns, digits, bounds)
    if lengths:
        print_breakdown(report, lengths, first.queries, digits)
    return report | _given(intervals=bounds, by_query_length=lengths)


def report_comparison(first: Run, second: Run, resamples: int) -> dict:
    """Prints two files' metrics and their paired differences; returns what to write as json.

    Both files are resampled by the same queries, so that what is hard for both cancels out.
    """
    digits = first.columns.protocol.digits
    _check_same_metrics((first, second))
    paired = replace(first.columns, values=second.columns.values - first.columns.values)
    difference, bounds = paired.brief(), intervals(paired, resamples)
    print(f'A: {first.path}\nB: {second.path}')
    columns = {'A': first.brief(), 'B': second.brief(), 'B - A': difference}
    print_table(columns, digits, bounds, mark=True)
    listed = []
    for letter, run in (('A', first), ('B', second)):
        if run.by_query_length:
            print(f'\n{letter}: {run.path}', end='')
            print_breakdown(run.metrics, run.by_query_length, run.queries, digits)
        lengths = _given(by_query_length=run.by_query_length)
        listed.append(dict(predictions=run.path) | run.metrics | lengths)
    return dict(runs=listed, difference=difference) | _given(intervals=bounds)


def _check_same_metrics(runs):
    for run in runs[1:]:
        if odd := set(run.columns.names) ^ set(runs[0].columns.names):
            raise UserError(f'{runs[0].path} and {run.path}: only one of them has predictions for '
                            + ', '.join(sorted(odd)))


def _given(**parts):
    return {name: part for name, part in parts.items() if part}


def print_breakdown(
    found: dict, lengths: dict[str, dict], queries: dict[str, int], digits: int
) -> None:
    """Prints metrics by the number of words of the query and by the length of the true window."""
    print('\nby words of the query (queries)')
    print_table({f'{name} ({brief["queries"]})': {k: v for k, v in brief.items() if k != 'queries'}
                 for name, brief in lengths.items()}, digits)
    blocks = [name for name in moments.LENGTH_RANGES if queries.get(name)]
    if 'MR-mAP' in found.get('full', {}):
        print('\nby length of the true window (queries)')
        print_table({f'{name} ({queries[name]})': {
            title: found[name][metric][key] if key else found[name][metric]
            for title, metric, key in WINDOW_METRICS} for name in blocks}, digits)


def print_table(
    columns: dict[str, dict], digits: int, bounds: dict | None = None, mark: bool = False
) -> None:
    """Prints columns side by side, a metric a line.

    Args:
        columns: title -> {metric: number}; a number may be missing.
        digits: decimals.
        bounds: metric -> its interval, if any.
        mark: whether intervals that exclude 0 get a star.
    """
    lines = [['metric', *columns] + [f'{LEVEL} % interval'] * bool(bounds)]
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        cells = [f'{column[name]:.{digits}f}' if name in column else ''
                 for column in columns.values()]
        if bounds:
            low, high = bounds.get(name, (0, 0))
            star = ' *' * (mark and low * high > 0)
            cells.append(f'[{low:.{digits}f}, {high:.{digits}f}]{star}' * (name in bounds))
        lines.append([name, *cells])
    print(tables.plain(lines, left=(0, -1) if bounds else (0,)))
    if mark and bounds:
        print('* the interval of the difference excludes 0')


def _over_runs(kind, trees, digits):
    """Returns nested dicts of the mean or std of the numbers at one place of each run's dicts."""
    if isinstance(trees[0], dict):
        return {name: _over_runs(kind, [tree[name] for tree in trees], digits)
                for name in trees[0]}
    return round(summary.mean_std(trees)[kind], digits)

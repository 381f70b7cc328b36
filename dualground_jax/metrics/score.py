"""Mode `score`: metrics of prediction files, without a model, JAX or TensorFlow.

See docs/evaluation.md for what each number is.
"""

import pathlib
import re
from dataclasses import dataclass

import numpy as np

from data_pipelines import files
from data_pipelines.errors import UserError
from dualground_jax import nms
from dualground_jax.metrics import official, rows

# Words of a query, as in the paper: (0, 10], (10, 15], (15, 20], (20, inf).
QUERY_LENGTHS = {'1-10': (0, 10), '11-15': (10, 15), '16-20': (15, 20), '>20': (20, np.inf)}
WINDOW_METRICS = [
    *((f'MR-R1@{key}', 'MR-R1', key) for key in official.BRIEF_R1), ('MR-mAP', 'MR-mAP', 'average'),
    *((f'MR-mAP@{key}', 'MR-mAP', key) for key in official.BRIEF_AP), ('MR-mIoU', 'MR-mIoU', None)]
COMPARE_RESAMPLES = 10000
LEVEL = 95  # per cent, of the intervals
SEED = 0


@dataclass(frozen=True)
class Run:
    """One scored prediction file.

    Attributes:
        path: of the file.
        metrics: as of `metrics.evaluate`.
        names: M metrics of the brief block.
        values: float64[Q, M] of each query, in the order of the annotations.
        weights: float64[Q, M], see `metrics.columns`.
        queries: block -> number of queries that count for it.
        by_query_length: bin -> brief metrics and 'queries'; {} unless asked for.
        protocol: of the data set.
    """

    path: str
    metrics: dict
    names: list
    values: np.ndarray
    weights: np.ndarray
    queries: dict
    by_query_length: dict
    protocol: official.Protocol

    def brief(self):
        """The brief metrics that a query counts for: the official block tells 0 for the others."""
        brief = self.metrics['brief']
        return {name: brief[name] for name, counts in zip(self.names, self.weights.any(axis=0))
                if counts}


def run(values, config=None, extra=()):
    """Scores the files that the flags name, prints tables and writes `--output`.

    Args:
        values: parsed flags.
        config: None.
        extra: files that follow as plain arguments: `--compare A B`, `--predictions runs/*/P`.

    Raises:
        UserError: flags that do not go together, or a file that cannot be scored or written.
    """
    paths = [*(values.compare or values.predictions), *extra]
    if bool(values.compare) == bool(values.predictions):
        raise UserError('--mode=score needs either --predictions=FILE,... or --compare=FILE,FILE')
    if values.compare and len(paths) != 2:
        raise UserError(f'--compare: found {len(paths)} files, expected two')
    if not values.annotations:
        raise UserError('--mode=score needs --annotations=FILE')
    if values.output and not pathlib.Path(values.output).parent.is_dir():
        raise UserError(f'--output={values.output}: no such folder')
    suppression = nms.parse(values.nms) if values.nms else None
    annotations = files.load_jsonl(values.annotations)
    runs = [score_file(path, annotations, values, suppression) for path in paths]
    print(f'{values.dataset}, {len(annotations)} queries of {values.annotations}')
    if values.compare:
        resamples = COMPARE_RESAMPLES if values.bootstrap is None else values.bootstrap
        report = report_comparison(*runs, resamples)
    else:
        report = report_runs(runs, values.bootstrap or 0)
    if values.output:
        files.write_json(values.output, report)
        print(f'wrote {values.output}')


def score_file(path, annotations, values, suppression=None):
    """Scores one prediction file; returns its Run.

    Raises:
        MetricsError: it cannot be scored; the message names the file.
    """
    predictions = files.load_jsonl(path)
    try:
        if suppression:
            rows.align(annotations, predictions)
            predictions = nms.nms_predictions(predictions, *suppression)
        scores = official.per_query(predictions, annotations, values.dataset)
        by_length = (by_query_length(predictions, annotations, values.dataset)
                     if values.breakdown else {})
    except rows.MetricsError as error:
        paths = dict(predictions=path, annotations=values.annotations)
        raise rows.MetricsError(re.sub(
            '^(predictions|annotations) (?=qid|row)', lambda match: f'{paths[match[1]]}: ',
            str(error))) from error
    names, *columns = official.columns(scores)
    place = {qid: i for i, qid in enumerate(scores.qids)}
    order = [place[row['qid']] for row in annotations]
    queries = {name: np.count_nonzero(block.weights) for name, block in scores.blocks.items()}
    return Run(path, official.summarise(scores), names, *(array[order] for array in columns),
               queries, by_length, scores.protocol)


def by_query_length(predictions, annotations, dataset):
    """Returns bin of `QUERY_LENGTHS` -> brief metrics of its queries, and 'queries', their number.

    A word is what spaces separate. A bin without queries is left out, and a metric that none of
    its queries counts for.

    Raises:
        MetricsError: an annotation without a `query`, or one that `metrics.evaluate` refuses.
    """
    aligned = rows.align(annotations, predictions)
    for row in aligned:
        if not isinstance(row.get('query'), str):
            raise rows.error_of('annotations', row, 'query',
                                f'found {files.short(row.get("query"))}, expected a text')
    words = np.array([len(row['query'].split()) for row in aligned])
    found = {}
    for name, (low, high) in QUERY_LENGTHS.items():
        kept = np.flatnonzero((low < words) & (words <= high))
        if kept.size:
            scores = official.per_query([predictions[i] for i in kept], [aligned[i] for i in kept],
                                       dataset)
            brief = official.summarise(scores)['brief']
            counted = [metric for metric, (block, *_) in scores.brief.items()
                       if scores.blocks[block].weights.any()]
            found[name] = {'queries': int(kept.size)} | {name: brief[name] for name in counted}
    return found


# Bootstrap ------------------------------------------------------------------------------------


def bootstrap(values, weights, resamples, seed=SEED):
    """Means over queries drawn with replacement.

    Args:
        values: float64[Q, M].
        weights: float64[Q, M].
        resamples: R.
        seed: of the draws.

    Returns:
        float64[R, M], weighted means; NaN where a draw holds no query that counts.
    """
    rng = np.random.default_rng(seed)
    queries = len(values)
    means = np.empty((resamples, values.shape[1]))
    step = max(1, 2**20 // queries)  # draws at a time, so that memory stays small
    for start in range(0, resamples, step):
        part = means[start:start + step]
        drawn = rng.integers(queries, size=(len(part), queries))
        drawn += queries * np.arange(len(part))[:, None]
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape) * 1.0
        with np.errstate(invalid='ignore'):
            np.divide(counts @ (values * weights), counts @ weights, out=part)
    return means


def intervals(run, values, resamples):
    """Percentile confidence intervals: metric -> (low, high), rounded as the metric.

    Args:
        run: whose names, weights and protocol count.
        values: float64[Q, M], e.g. the difference of two runs' values.
        resamples: 0: no intervals.

    Metrics that fewer than two queries count for are left out.
    """
    if not resamples:
        return {}
    counted = np.flatnonzero(np.count_nonzero(run.weights, axis=0) > 1)
    means = bootstrap(values[:, counted], run.weights[:, counted], resamples)
    tail = (100 - LEVEL) / 200
    bounds = np.nanquantile(means, [tail, 1 - tail], axis=0).T
    return {run.names[i]: tuple(map(run.protocol.number, pair))
            for i, pair in zip(counted, bounds, strict=True)}


# Reports --------------------------------------------------------------------------------------


def report_runs(runs, resamples):
    """Prints one file's metrics, or several files' mean and std; returns what to write as json."""
    first, digits = runs[0], runs[0].protocol.digits
    _check_same_metrics(runs)
    report, lengths = first.metrics, first.by_query_length
    columns = {'value': first.brief()}
    if len(runs) > 1:
        trees = [run.metrics for run in runs]
        report = _leafwise(lambda *x: round(float(np.mean(x)), digits), *trees)
        std = _leafwise(lambda *x: round(float(np.std(x, ddof=1)), digits), *trees)
        columns = {name: {key: tree['brief'][key] for key in first.brief()}
                   for name, tree in (('mean', report), ('std', std))}
        columns |= {str(i): run.brief() for i, run in enumerate(runs, start=1)}
        lengths = _leafwise(lambda *x: round(float(np.mean(x)), digits),
                            *(run.by_query_length for run in runs))
        for name, brief in lengths.items():
            brief['queries'] = first.by_query_length[name]['queries']
        listed = [dict(predictions=run.path, brief=run.metrics['brief']) for run in runs]
        report |= dict(std=std, runs=listed)
    for i, run in enumerate(runs, start=1):
        print(f'{i}: {run.path}')
    bounds = intervals(first, np.mean([run.values for run in runs], axis=0), resamples)
    print_table(columns, digits, bounds)
    if lengths:
        print_breakdown(report, lengths, first.queries, digits)
    return report | _given(intervals=bounds, by_query_length=lengths)


def report_comparison(first, second, resamples):
    """Prints two files' metrics and their paired differences; returns what to write as json.

    Both files are resampled by the same queries, so that what is hard for both cancels out.
    """
    digits, number = first.protocol.digits, first.protocol.number
    _check_same_metrics((first, second))
    values, total = second.values - first.values, first.weights.sum(axis=0)
    means = (values * first.weights).sum(axis=0) / np.where(total > 0, total, 1)
    difference = {name: number(mean) for name, mean in zip(first.names, means, strict=True)
                  if name in first.brief()}
    bounds = intervals(first, values, resamples)
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
        if odd := set(run.names) ^ set(runs[0].names):
            raise UserError(f'{runs[0].path} and {run.path}: only one of them has predictions for '
                            + ', '.join(sorted(odd)))


def _given(**parts):
    return {name: part for name, part in parts.items() if part}


def print_breakdown(found, lengths, queries, digits):
    """Prints metrics by the number of words of the query and by the length of the true window."""
    print('\nby words of the query (queries)')
    print_table({f'{name} ({brief["queries"]})': {k: v for k, v in brief.items() if k != 'queries'}
                 for name, brief in lengths.items()}, digits)
    blocks = [name for name in ('short', 'middle', 'long', 'full') if queries.get(name)]
    if 'MR-mAP' in found.get('full', {}):
        print('\nby length of the true window (queries)')
        print_table({f'{name} ({queries[name]})': {
            title: found[name][metric][key] if key else found[name][metric]
            for title, metric, key in WINDOW_METRICS} for name in blocks}, digits)


def print_table(columns, digits, bounds=None, mark=False):
    """Prints columns side by side, a metric a line.

    Args:
        columns: title -> {metric: number}; a number may be missing.
        digits: decimals.
        bounds: metric -> its interval, if any.
        mark: whether intervals that exclude 0 get a star.
    """
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    lines = [['metric', *columns, f'{LEVEL} % interval' if bounds else '']]
    for name in names:
        numbers = [f'{column[name]:.{digits}f}' if name in column else ''
                   for column in columns.values()]
        interval = ''
        if bounds and name in bounds:
            low, high = bounds[name]
            interval = f'[{low:.{digits}f}, {high:.{digits}f}]' + ' *' * (mark and low * high > 0)
        lines.append([name, *numbers, interval])
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    for name, *numbers, interval in lines:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:])]
        print('  '.join([name.ljust(widths[0]), *cells, interval]).rstrip())
    if mark and bounds:
        print('* the interval of the difference excludes 0')


def _leafwise(function, *trees):
    """Applies the function to the numbers at the same place of nested dicts of one form."""
    if isinstance(trees[0], dict):
        return {name: _leafwise(function, *(tree[name] for tree in trees)) for name in trees[0]}
    return function(*trees)

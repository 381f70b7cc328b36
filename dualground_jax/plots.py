"""Pictures of a run: training curves, and what the model found in single videos."""

import os
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from data_pipelines import annotations
from data_pipelines.files import whole_files

# Okabe-Ito: told apart by colour-blind readers, and in grey.
BLUE, ORANGE, GREEN, PURPLE, GREY = '#0072B2', '#E69F00', '#009E73', '#CC79A7', '#777777'
CURVES = (
    ('MR-full-mAP', 'mAP', BLUE),
    ('MR-full-R1@0.5', 'R1@0.5', ORANGE),
    ('MR-full-R1@0.7', 'R1@0.7', GREEN),
    ('HL-min-VeryGood-Hit1', 'HIT@1', PURPLE),
    ('mAP', 'mAP, mean of the domains', BLUE),  # of highlight data sets, a fraction
)
SHOWN_PREDICTIONS = 4


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a PNG; the file appears whole or not at all."""
    write(figure, {path: dict(format='png', dpi=150, facecolor='white')})


def write(figure: Figure, pictures: dict) -> None:
    """Writes a figure to several files; they appear whole, or none does if one can't be drawn.

    Args:
        pictures: path -> options of `Figure.savefig`, the format among them.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine('none')  # the layout stays: to compute it takes a third of the time
    with whole_files(*pictures) as paths:
        for path, options in zip(paths, pictures.values(), strict=True):
            figure.savefig(path, **options)


def titled_figure(width: float, height: float, title: str) -> Figure:
    """Returns an empty figure of that many inches, as much higher as its wrapped title needs."""
    lines = textwrap.wrap(title, round(12 * width))
    size = (width, height + 0.17 * max(len(lines) - 1, 0))
    figure = Figure(figsize=size, layout='constrained')
    # Sentences may hold dollar signs, which are no formulas.
    figure.suptitle('\n'.join(lines), fontsize=10, parse_math=False)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[['top', 'right']].set_visible(False)
    axes.tick_params(labelsize=8)


def training_figure(rows: list[dict], selection: tuple[str, ...], split: str) -> Figure:
    """Losses over steps beside the validation metrics, the best step marked.

    Args:
        rows: lines of metrics.jsonl: 'train/NAME' in training rows, 'SPLIT/NAME' in evaluations.
        selection: the metrics whose mean decides which step is best.
        split: name of the evaluated split.
    """
    figure = Figure(figsize=(9, 3.4), layout='constrained')
    left, right = figure.subplots(1, 2)
    train = [row for row in rows if 'train/loss' in row]
    parts = sorted({k for row in train for k in row if k.startswith('train/')})
    for name in parts:
        if name not in ('train/loss', 'train/grad_norm'):
            points = [(row['step'], row[name]) for row in train if row.get(name, 0) > 0]
            if points:
                left.plot(*zip(*points, strict=True), color=GREY, lw=0.7, alpha=0.7)
                left.annotate(
                    name.removeprefix('train/'), points[-1], xytext=(3, 0), fontsize=6,
                    textcoords='offset points', color=GREY, va='center')
    left.plot([r['step'] for r in train], [r['train/loss'] for r in train], color=BLUE, lw=1.6)
    left.set_title('training loss (blue: weighted total)', fontsize=9)
    left.set_xlabel('step', fontsize=8)
    if train:
        # Some losses of highlight data sets have no lower bound.
        left.set_yscale('log' if min(row['train/loss'] for row in train) > 0 else 'symlog')

    evaluations = [row for row in rows if any(k.startswith(f'{split}/') for k in row)]
    for name, label, colour in CURVES:
        points = [(r['step'], r[f'{split}/{name}']) for r in evaluations if f'{split}/{name}' in r]
        if points:
            right.plot(*zip(*points, strict=True), color=colour, marker='o', ms=3, label=label)
    scored = [r for r in evaluations if all(f'{split}/{name}' in r for name in selection)]
    if scored:
        best = max(scored, key=lambda r: np.mean([r[f'{split}/{name}'] for name in selection]))
        right.axvline(best['step'], color=GREY, lw=0.8, ls=':', label=f'best: {best["step"]}')
    if right.get_legend_handles_labels()[0]:
        right.legend(fontsize=7, frameon=False)
    is_fraction = any(f'{split}/mAP' in row for row in evaluations)
    right.set_title(f'{split} metrics' + ' (%)' * (not is_fraction), fontsize=9)
    right.set_xlabel('step', fontsize=8)
    for axes in (left, right):
        _plain(axes)
    return figure


def example_of(
    record: annotations.Query, labels: np.ndarray, row: dict, clip_length: float
) -> dict:
    """What the figures of a query take, see `grounding_figure`.

    Args:
        record: the query.
        labels: float[T], annotated saliencies.
        row: its prediction in the official format.
        clip_length: seconds.
    """
    return dict(
        query=record.query, vid=record.vid, duration=record.duration, clip_length=clip_length,
        windows=record.windows.tolist(), labels=labels.tolist(),
        predictions=row['pred_relevant_windows'], saliency=row['pred_saliency_scores'])


def grounding_figure(example: dict) -> Figure:
    """Timeline of one query: true windows, ranked predictions, saliency.

    Args:
        example: query and vid, texts; duration and clip_length, seconds; saliency, T numbers;
            labels, T annotated saliencies or None; windows, true [start, end], none where they are
            not known; predictions, [start, end, score] best first.
    """
    figure = titled_figure(9, 3.4, f'“{example["query"]}”')
    bars, curve = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.1))
    draw_windows(bars, example)
    shade_windows(curve, example)
    draw_saliency(curve, example, ORANGE)
    label_time(curve, example)
    for axes in (bars, curve):
        _plain(axes)
    return figure


def draw_windows(axes: Axes, example: dict) -> None:
    """Draws a row of true windows, and below it a row for each of the best predicted ones."""
    known = bool(example['windows'])
    axes.set_ylim(-SHOWN_PREDICTIONS - 0.6, 0.6 if known else -0.4)
    for start, end in example['windows']:
        axes.barh(0, end - start, left=start, height=0.7, color=GREEN)
    for rank, (start, end, score) in enumerate(example['predictions'][:SHOWN_PREDICTIONS], 1):
        axes.barh(
            -rank, end - start, left=start, height=0.7, color=(BLUE, 0.25 + 0.75 * score),
            edgecolor=BLUE, lw=0.6)
        axes.annotate(
            f'{score:.2f}', (end, -rank), xytext=(3, 0), textcoords='offset points', fontsize=7,
            va='center')
    axes.set_yticks([0, -1][not known:], ['true', 'found'][not known:])


def shade_windows(axes: Axes, example: dict) -> None:
    """Shades the true windows behind what is drawn over time."""
    for start, end in example['windows']:
        axes.axvspan(start, end, color=GREEN, alpha=0.15, lw=0)


def draw_saliency(axes: Axes, example: dict, bar_colour: str) -> None:
    """Draws the predicted saliency, and the annotated one as bars on a scale of its own."""
    length = example['clip_length']
    centres = clip_centres(example['saliency'], length)
    if example['labels'] is not None:
        scale = axes.twinx()
        scale.bar(
            centres, example['labels'], width=0.9 * length, color=(bar_colour, 0.35),
            edgecolor=bar_colour, lw=0.4)
        top = 12 if max(example['labels']) > 1 else 1
        scale.set_ylim(0, top)
        scale.set_yticks([0, 4, 8, 12] if top == 12 else [0, 1])
        scale.set_ylabel(f'annotators (0–{top}): bars', fontsize=7)
        scale.spines[['top']].set_visible(False)
        scale.tick_params(labelsize=7)
        axes.set_zorder(scale.get_zorder() + 1)  # the line in front of the bars
        axes.patch.set_visible(False)
    axes.plot(centres, example['saliency'], color=BLUE, lw=1.4, marker='.', ms=3)
    axes.set_ylabel('predicted saliency: line', fontsize=7)


def clip_centres(values: Sequence, clip_length: float) -> np.ndarray:
    """Returns float[T], the seconds at the middle of each of T clips."""
    return (np.arange(len(values)) + 0.5) * clip_length


def label_time(axes: Axes, example: dict) -> None:
    """Lets the horizontal axis span the video, in seconds or in minutes."""
    axes.set_xlabel(f'time in {example["vid"]}', fontsize=8, parse_math=False)
    axes.set_xlim(0, example['duration'])
    if example['duration'] > 90:
        minutes = FuncFormatter(lambda t, _: f'{int(t // 60)}:{int(t % 60):02d}')
        axes.xaxis.set_major_formatter(minutes)
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda t, _: f'{t:g} s'))

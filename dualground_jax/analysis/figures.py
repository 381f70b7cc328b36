"""Figures of `analyse`: attention to [EOS] and words, ablations, lengths, phrases, heads.

Made for papers, and for light and dark pages alike: no background, grey text, colours that contrast
with both pages, and series that also differ in line, marker and hatch. Each function returns a
matplotlib Figure, which `save_all` writes.
"""

import os
import pathlib
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from data_pipelines.errors import UserError
from dualground_jax import plots
from dualground_jax.plots import BLUE, GREEN, PURPLE

INK = '#767676'  # contrast of at least 4.5 with white and with black
VERMILLION = '#D55E00'
BLACK = '#000000'  # numbers in cells, never on the page itself
WEIGHTS = matplotlib.colormaps['cividis']
# Without its dark ends, so that black numbers can be read in every cell.
SIGNED = ListedColormap(matplotlib.colormaps['RdBu_r'](np.linspace(0.18, 0.82, 255)))
FORMATS = {'svg': {'metadata': {'Date': None}}, 'pdf': {'metadata': {'CreationDate': None}},
           'png': {}}
STYLE = {
    'axes.edgecolor': INK, 'axes.labelcolor': INK, 'text.color': INK, 'xtick.color': INK,
    'ytick.color': INK, 'axes.facecolor': 'none', 'savefig.facecolor': 'none',
    'axes.spines.right': False, 'axes.spines.top': False,
    'axes.labelsize': 8, 'font.size': 8, 'legend.fontsize': 7, 'xtick.labelsize': 7,
    'ytick.labelsize': 7, 'legend.frameon': False, 'hatch.linewidth': 0.6, 'lines.linewidth': 1.3,
    'lines.markersize': 4,
    'pdf.fonttype': 42, 'svg.fonttype': 'none', 'svg.hashsalt': 'dualground_jax',
    'text.parse_math': False,  # words may hold dollar signs, which are no formulas
}


class Look(NamedTuple):
    """How a series is drawn."""

    colour: str
    line: str
    marker: str
    hatch: str


LOOKS = (Look(BLUE, '-', 'o', ''), Look(VERMILLION, '--', 's', '/////'),
         Look(GREEN, ':', '^', '|||||'), Look(PURPLE, '-.', 'D', 'xxxxx'))


@matplotlib.rc_context(STYLE)
def save_all(figure: Figure, path: str | os.PathLike) -> list[pathlib.Path]:
    """Writes `path`.svg, .pdf and .png, the same bytes each time; all appear whole, or none."""
    pictures = {pathlib.Path(f'{path}.{suffix}'): dict(format=suffix, dpi=200, **options)
                for suffix, options in FORMATS.items()}
    plots.write(figure, pictures)
    return list(pictures)


@matplotlib.rc_context(STYLE)
def correlation_figure(splits: dict, *, title: str) -> Figure:
    """Attention to [EOS] against that to words, and how they correlate within samples.

    Args:
        splits: name -> dict of x and y, n clips' attention to the two roles; edges float[k + 1];
            pearson_histogram and spearman_histogram, k counts of samples; pearson and spearman,
            means over samples, and pearson_pooled, over all clips (each None where undefined);
            n, number of samples.
    """
    looks = _looks(splits)
    figure = plots.titled_figure(4.2 + 2.1 * len(splits), 3.6, title)
    grid = figure.add_gridspec(2, len(splits) + 1, width_ratios=[1] * len(splits) + [1.9])
    points = None
    for column, (name, look) in enumerate(looks.items()):
        split = splits[name]
        points = figure.add_subplot(grid[:, column], sharex=points, sharey=points)
        # Hundreds of thousands of clips: as pixels, and the fainter the more there are.
        points.plot(split['x'], split['y'], ls='', marker=look.marker, ms=2, mew=0,
                    color=look.colour, rasterized=True,
                    alpha=float(np.clip(1500 / max(len(split['x']), 1), 0.3, 0.8)))
        points.set(xlabel='attention of a clip to [EOS]', ylabel='attention of a clip to words')
        points.label_outer()
        label = f'{name}: pooled Pearson {_text(split["pearson_pooled"])}'
        _legend_above(points, [Line2D([], [], ls='', marker=look.marker, color=look.colour,
                                      label=label)], handlelength=1)

    for row, kind in enumerate(('pearson', 'spearman')):
        axes, handles = figure.add_subplot(grid[row, -1]), []
        for name, look in looks.items():
            split, mean = splits[name], splits[name][kind]
            style = dict(color=look.colour, ls=look.line)
            axes.stairs(_density(split[f'{kind}_histogram'], split['edges']), split['edges'],
                        lw=1.3, **style)
            label = f'{name}: mean {_text(mean)}, {split["n"]:,} samples'
            handles.append(Line2D([], [], marker=look.marker, label=label, **style))
            if _defined(mean):
                axes.plot([mean, mean], [0, 1], lw=0.8, marker=look.marker, markevery=[1],
                          transform=axes.get_xaxis_transform(), clip_on=False, **style)
        axes.set(xlim=(-1, 1), ylim=(0, None), ylabel='density',
                 xlabel=f'{kind.capitalize()} correlation over the clips of a sample')
        _legend_above(axes, handles)
    return figure


@matplotlib.rc_context(STYLE)
def ablation_figure(groups: dict, *, metric: str, title: str) -> Figure:
    """Bars of a metric by condition and series, with intervals.

    Args:
        groups: condition -> {series: (value, low, high)}, at most 4 series; low and high None: no
            interval; value None, or a series that a condition lacks: not measured.
        metric: name of the numbers.
    """
    looks = _looks(dict.fromkeys(name for group in groups.values() for name in group))
    pitch = 0.84 / max(len(looks), 1)
    bars = len(groups) * len(looks)
    figure = plots.titled_figure(7, 1.1 + 0.16 * bars + 0.12 * len(groups), title)
    axes = figure.subplots()
    digits = _digits(group[name][0] for group in groups.values() for name in group)
    for row, group in enumerate(groups.values()):
        for place, (name, look) in enumerate(looks.items()):
            y = row + (place - (len(looks) - 1) / 2) * pitch
            value, low, high = group.get(name, (None, None, None))
            end = 0.
            if _defined(value):
                axes.barh(y, value, 0.86 * pitch, color=(look.colour, 0.25),
                          edgecolor=look.colour, hatch=look.hatch, lw=0.9)
                end = value
            if _defined(value) and _defined(low) and _defined(high):
                axes.plot([low, high], [y, y], color=INK, marker='|', ms=4, lw=1.4)
                end = min(value, low) if value < 0 else max(value, high)
            axes.annotate(_text(value, f'z.{digits}f', '–'), (end, y), textcoords='offset points',
                          xytext=(-5 if end < 0 else 5, 0), ha='right' if end < 0 else 'left',
                          va='center', fontsize=6.5)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_yticks(range(len(groups)), list(groups), fontsize=8)
    axes.tick_params(axis='y', length=0)
    axes.spines['left'].set_visible(False)
    axes.margins(x=0.14)  # room for the numbers
    axes.set(xlabel=metric, ylim=(len(groups) - 0.45, -0.55))
    handles = [Patch(facecolor=(look.colour, 0.25), edgecolor=look.colour, hatch=look.hatch,
                     label=name) for name, look in looks.items()]
    _legend_above(axes, handles, ncols=2)
    return figure


@matplotlib.rc_context(STYLE)
def length_figure(bins: dict, *, metric: str, title: str) -> Figure:
    """A metric by range of lengths, and what the first series gains over the second.

    Args:
        bins: range -> {series: (value, low, high), 'queries': their number}, at most 4 series; low
            and high None: no interval; value None: no such query.
        metric: name of the numbers.
    """
    looks = _looks(dict.fromkeys(name for row in bins.values() for name in row
                                 if name != 'queries'))
    figure = plots.titled_figure(max(4.5, 1.2 + 0.75 * len(bins)), 3.2, title)
    axes = figure.subplots()
    missing = (None, None, None)
    for place, (name, look) in enumerate(looks.items()):
        x = np.arange(len(bins)) + 0.14 * (place - (len(looks) - 1) / 2)
        intervals = np.array([row.get(name, missing) for row in bins.values()], float)
        for centre, (_, low, high) in zip(x, intervals, strict=True):
            axes.plot([centre, centre], [low, high], color=look.colour, marker='_', lw=1)
        axes.plot(x, intervals[:, 0], color=look.colour, ls=look.line, marker=look.marker,
                  label=name)
    axes.set_xticks(range(len(bins)), [f'{name}\nn = {row["queries"]:,}'
                                       for name, row in bins.items()])
    axes.set(xlim=(-0.5, len(bins) - 0.5), xlabel='n: number of queries', ylabel=metric)
    if len(looks) > 1:
        first, second, *_ = looks
        values = [[row.get(name, missing)[0] for name in (first, second)] for row in bins.values()]
        digits = _digits(value for pair in values for value in pair)
        gains = [_text(a - b, f'+z.{digits}f', '–') for a, b in np.array(values, float)]
        top = axes.secondary_xaxis('top')
        top.set_xticks(range(len(bins)), gains)
        top.tick_params(length=0)
        top.set_xlabel(f'{first} − {second}')
    figure.legend(loc='outside lower center', ncols=2, handlelength=3)
    return figure


@matplotlib.rc_context(STYLE)
def scaling_figure(panels: dict, *, size: str, title: str) -> Figure:
    """Curves over a size, on a scale of doublings.

    Args:
        panels: what is measured -> {series: dict of `sizes`, `curve` and `std`, n numbers each}, at
            most 4 series; std None: one seed.
        size: its name.
    """
    looks = _looks(dict.fromkeys(name for curves in panels.values() for name in curves))
    figure = plots.titled_figure(2.6 * len(panels) + 0.6, 2.6, title)
    for axes, (shows, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0],
                                     panels.items(), strict=True):
        for name, found in curves.items():
            look = looks[name]
            axes.errorbar(found['sizes'], found['curve'], found['std'], color=look.colour,
                          ls=look.line, marker=look.marker, capsize=2, lw=1.3)
        axes.set_xscale('log', base=2)
        sizes = sorted({x for found in curves.values() for x in found['sizes']})
        axes.set_xticks(sizes, map(str, sizes))
        axes.set(xlabel=size, ylabel=shows)
    _legend_above(figure.axes[0], [
        Line2D([], [], color=look.colour, ls=look.line, marker=look.marker, label=name)
        for name, look in looks.items()])
    return figure


@matplotlib.rc_context(STYLE)
def attention_figure(example: dict) -> Figure:
    """One query over time: windows, attention to each role, saliency.

    Args:
        example: what `plots.grounding_figure` takes, and roles, name -> T attention weights >= 0,
            at most 4 roles.
    """
    looks = _looks(example['roles'])
    figure = plots.titled_figure(8, 4.2, f'“{example["query"]}”')
    windows, attention, saliency = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1.1, 1))
    plots.draw_windows(windows, example)
    if not example['predictions']:
        windows.text(0.5, 0.4, 'no window found', ha='center', va='center',
                     transform=windows.transAxes)

    for axes in (attention, saliency):
        plots.shade_windows(axes, example)
    for name, weights in example['roles'].items():
        look = looks[name]
        attention.plot(plots.clip_centres(weights, example['clip_length']), _scaled(weights),
                       color=look.colour, ls=look.line, marker=look.marker, ms=3,
                       markevery=max(1, len(weights) // 30),
                       label=f'{name}\n({np.min(weights):#.2g} to {np.max(weights):#.2g})')
    attention.set_ylim(-0.05, 1.1)
    attention.set_ylabel('attention\n(in its own range)', fontsize=7)
    attention.legend(loc='center left', bbox_to_anchor=(1, 0.5), handlelength=3)

    plots.draw_saliency(saliency, example, VERMILLION)
    plots.label_time(saliency, example)
    figure.align_ylabels()
    return figure


@matplotlib.rc_context(STYLE)
def phrase_figure(example: dict) -> Figure:
    """Which words each phrase gathers, how much it counts, and when it fires.

    Args:
        example: query and vid, texts; words, L strings; weights float[N, L] and phrase_weights
            float[N], both >= 0; energy float[N, T] >= 0 of each phrase in each clip; duration and
            clip_length, seconds; windows, true [start, end].
    """
    weights, energy = np.asarray(example['weights']), np.asarray(example['energy'])
    phrases, words = weights.shape
    figure = plots.titled_figure(8, 2.4 + 0.5 * phrases, f'“{example["query"]}”')
    panels = figure.subplot_mosaic([['scale', '.'], ['words', 'counts'], ['time', '.']],
                                   width_ratios=(5, 1), height_ratios=(0.4, phrases, phrases))
    names = [f'phrase {number}' for number in range(1, phrases + 1)]

    mesh = _cells(panels['words'], weights, cmap=WEIGHTS, vmin=0, vmax=max(weights.max(), 1e-6))
    panels['words'].set_xticks(range(words), example['words'], rotation=60, ha='right',
                              rotation_mode='anchor')
    panels['words'].set_yticks(range(phrases), names)
    bar = figure.colorbar(mesh, cax=panels['scale'], location='top')
    bar.solids.set_rasterized(True)  # one picture: viewers draw seams between its many strips
    bar.set_label('weight of each word in the phrase')

    counts = panels['counts']
    counts.sharey(panels['words'])
    counts.barh(range(phrases), example['phrase_weights'], 0.7, color=(BLUE, 0.25),
                edgecolor=BLUE, lw=0.9)
    for row, weight in enumerate(example['phrase_weights']):
        counts.annotate(f'{weight:.2f}', (weight, row), xytext=(3, 0), va='center', fontsize=7,
                        textcoords='offset points')
    counts.tick_params(labelleft=False, left=False)
    counts.set(xlim=(0, None), xlabel='weight of\nthe phrase')

    time = panels['time']
    plots.shade_windows(time, example)
    edges = np.arange(energy.shape[1] + 1) * example['clip_length']
    for row, values in enumerate(energy):
        floor = row + 0.4
        time.stairs(floor - 0.8 * _scaled(values), edges, baseline=floor, fill=True,
                    color=(BLUE, 0.3))
        time.stairs(floor - 0.8 * _scaled(values), edges, baseline=None, color=BLUE, lw=1)
    time.set_ylim(phrases - 0.5, -0.5)
    time.set_yticks(range(phrases), names)
    time.tick_params(axis='y', length=0)
    time.set_ylabel('energy\n(in its own range)', fontsize=7)
    plots.label_time(time, example)
    return figure


@matplotlib.rc_context(STYLE)
def heads_figure(values: list[list[float | None]], *, title: str) -> Figure:
    """One number in [-1, 1] per attention head.

    Args:
        values: float[layers, heads]; None and NaN: undefined, such a cell is hatched.
    """
    values = np.array(values, float)
    layers, heads = values.shape
    figure = plots.titled_figure(max(4., 1.6 + 0.55 * heads), 1.3 + 0.34 * layers, title)
    axes = figure.subplots()
    mesh = _cells(axes, values, cmap=SIGNED, vmin=-1, vmax=1)
    for (layer, head), value in np.ndenumerate(values):
        if np.isnan(value):
            axes.add_patch(Rectangle((head - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor=INK,
                                     hatch='/////', lw=0.5))
        else:
            axes.text(head, layer, _text(value, '+z.2f'), color=BLACK, ha='center', va='center',
                      fontsize=7)
    axes.set_xticks(range(heads), range(1, heads + 1))
    axes.set_yticks(range(layers), range(1, layers + 1))
    axes.set(ylabel='layer',
             xlabel='head (hatched: undefined)' if np.isnan(values).any() else 'head')
    bar = figure.colorbar(mesh, ax=axes, ticks=(-1, -0.5, 0, 0.5, 1))
    bar.solids.set_rasterized(True)
    return figure


def _looks(names):
    """Returns {series: its look}; raises UserError where there are more series than looks."""
    names = list(names)
    if len(names) > len(LOOKS):
        raise UserError(f'figure: found {len(names)} series ({", ".join(names)}), expected at most '
                        f'{len(LOOKS)}')
    return dict(zip(names, LOOKS))


def _defined(value):
    return value is not None and not np.isnan(value)


def _text(value, form='z.2f', undefined='undefined'):
    return f'{value:{form}}'.replace('-', '−') if _defined(value) else undefined


def _digits(values):
    """Returns the decimals that show about three digits of the largest value."""
    largest = max((abs(value) for value in values if _defined(value)), default=0)
    return 1 if largest >= 10 else 2 if largest >= 1 else 3


def _density(counts, edges):
    """Returns the heights that give bars of k counts between k + 1 edges the area 1."""
    counts = np.asarray(counts, float)
    return counts / (max(counts.sum(), 1) * np.diff(edges))


def _scaled(values):
    """Returns numbers between 0, the least of them, and 1, the largest; 0.5 if all are equal."""
    values = np.asarray(values, float)
    spread = np.ptp(values)
    return (values - values.min()) / spread if spread > 0 else np.full(values.shape, 0.5)


def _legend_above(axes, handles, **layout):
    axes.legend(handles=handles, loc='lower left', bbox_to_anchor=(0, 1), borderaxespad=0.2,
                **{'handlelength': 3, **layout})


def _cells(axes, values, **colours):
    """Draws float[R, C] as outlined cells around whole coordinates, row 0 on top."""
    rows, columns = values.shape
    mesh = axes.pcolormesh(np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5, values,
                           edgecolors=INK, lw=0.5, **colours)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return mesh

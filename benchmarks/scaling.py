"""Cost of a train step against the number of clips and the batch size, with fitted exponents.

    python -m benchmarks.scaling [--model dualground] [--output FILE.json] [--picture FILE.png]

A small model, so that 4096 clips need no more than 7 GB; memory and FLOPs are the compiler's,
seconds are measured in turns. An exponent is the slope between the last two points in
log-log scale: what dominates in the end. FLOPs of chunked attention are not listed: a compiler
counts the body of a loop once. `--sizes 2` takes the first two points of each series alone.
"""

import numpy as np

from benchmarks import common
from configs.common import resize

SMALL = dict(width=32, heads=2, ffn=64, t2v_layers=1, enc_layers=1, dummies=3, dummy_layers=1,
             phrases=2, phrase_layers=1, context_layers=1, mlp_layers=2, dec_layers=1)
DATA = {'data.video_dirs': ('clips',), 'data.video_dims': (62,), 'data.text_dim': 64,
        'data.max_tokens': 16}
CLIPS, BATCHES = (75, 150, 300, 1200, 4096), (2, 4, 8, 16, 32)
# Series -> what grows, its values, and what else is set.
SERIES = {
    'clips': ('data.max_clips', CLIPS, {'train.batch_size': 2}),
    'clips, chunked': (
        'data.max_clips', CLIPS, {'train.batch_size': 2, 'model.attention_chunk': 128}),
    'batch': ('train.batch_size', BATCHES, {}),
}
MEASURES = {'memory_gb': 'memory, GB', 'gflop': 'GFLOP', 'seconds': 'seconds'}


def measure(model: str, repeats: int, key: str, sizes: tuple[int, ...], others: dict) -> list[dict]:
    """A row for each size."""
    programs = {}
    for size in sizes:
        config = common.make_config(model, **DATA)
        resize(config, **SMALL)
        config.update_from_flattened_dict(others | {key: size})
        programs[size] = common.make_program(config)
    rows = [dict(row, name=size) for size, row in zip(sizes, common.compare(programs, repeats))]
    return [row | dict(gflop=None) for row in rows] if 'model.attention_chunk' in others else rows


def exponent(rows: list[dict], name: str) -> float | None:
    """Slope of a measure between the last two sizes, in log-log scale; None if it is not known."""
    if len(rows) < 2 or rows[-1][name] is None:
        return None
    (x0, y0), (x1, y1) = ((row['name'], row[name]) for row in rows[-2:])
    return float(np.log(y1 / y0) / np.log(x1 / x0))


def draw(report: dict, path: str) -> None:
    """A panel for each measure and axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout='constrained')
    panels = figure.subplots(2, len(MEASURES))
    for series, rows in report.items():
        axis, sizes = series.split(',')[0], [row['name'] for row in rows]
        for axes, (name, title) in zip(panels[int(axis == 'batch')], MEASURES.items()):
            if (slope := exponent(rows, name)) is not None:
                axes.loglog(sizes, [row[name] for row in rows], '-o' if axis == series else '--s',
                            label=f'{series}: slope {slope:.2f}', ms=4)
            axes.set(title=title, xlabel=axis)
            axes.set_xticks(sizes, map(str, sizes))
            axes.minorticks_off()
            axes.legend()
            axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    print(f'wrote {path}')


def main() -> None:
    args = common.arguments(__doc__, model='dualground', repeats=3, sizes=5, output='', picture='')
    report = {
        series: measure(args.model, args.repeats, key, sizes[:args.sizes], others)
        for series, (key, sizes, others) in SERIES.items()
    }
    slopes = [dict(against=series) | {name: exponent(rows, name) for name in MEASURES}
              for series, rows in report.items()]
    common.write(args.output, **report, exponents=slopes)
    if args.picture:
        draw(report, args.picture)


if __name__ == '__main__':
    main()

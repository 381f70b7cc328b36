"""Cost of a train step against the number of clips and the batch size, with fitted exponents.

    python -m benchmarks.scaling [--model dualground] [--output FILE.json] [--picture FILE.png]

A small model, so that 4096 clips can be compiled; memory and FLOPs are the compiler's, seconds are
measured in turns where memory allows it. An exponent is the slope between the last two points in
log-log scale: what dominates in the end. FLOPs of chunked attention
are not listed: a compiler counts the body of a loop once.
"""

import argparse

import numpy as np

from benchmarks import common
from dualground_jax import runtime

SMALL = {
    'model.width': 32, 'model.heads': 2, 'model.ffn': 64, 'model.t2v_layers': 1,
    'model.enc_layers': 1, 'model.dummies': 3, 'model.dummy_layers': 1, 'model.phrases': 2,
    'model.phrase_layers': 1, 'model.context_layers': 1, 'model.mlp_layers': 2,
    'model.dec_layers': 1, 'data.video_dims': (62,), 'data.text_dim': 64, 'data.max_tokens': 16,
}
CLIPS, BATCHES, CHUNK = (75, 150, 300, 1200, 4096), (2, 4, 8, 16, 32), 128
LARGEST = 8e9  # bytes of a step that is run
MEASURES = ('memory_gb', 'gflop', 'seconds')
TITLES = dict(zip(MEASURES, ('memory, GB', 'GFLOP', 'seconds')))


def program(model: str, **overrides) -> common.Program:
    """The train step of the small model."""
    config = common.make_config(model)
    small = {k: v for k, v in SMALL.items()
             if not k.startswith('model.') or k.removeprefix('model.') in config.model}
    config.update_from_flattened_dict(small | overrides)
    return common.train_program(', '.join(f'{v}' for v in overrides.values()), config)


def measure(model: str, repeats: int, variants: list[dict]) -> list[dict]:
    """A row for each variant; seconds are None where the step is too large to run here."""
    programs = [program(model, **variant) for variant in variants]
    timed = {row['name']: row for row in common.interleave(
        [one for one in programs if one.memory < LARGEST], repeats)}
    return [
        dict(memory_gb=one.memory / 1e9, gflop=one.flops / 1e9, compile_seconds=one.compile_seconds,
             seconds=timed.get(one.name, {}).get('seconds'))
        for one in programs
    ]


def exponent(x, y) -> float | None:
    """Slope between the last two points that there are, in log-log scale."""
    pairs = [(a, b) for a, b in zip(x, y) if b]
    if len(pairs) < 2:
        return None
    (x0, y0), (x1, y1) = pairs[-2:]
    return float(np.log(y1 / y0) / np.log(x1 / x0))


def draw(series: dict, path: str) -> None:
    """A panel for each measure and axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout='constrained')
    panels = figure.subplots(2, len(MEASURES))
    for line, (axis, styles) in zip(panels, (
            ('clips', {'clips': '-o', 'clips, chunked': '--s'}), ('batch', {'batch': '-o'}))):
        for axes, name in zip(line, MEASURES):
            for key, style in styles.items():
                rows = [row for row in series[key] if row.get(name)]
                if rows:
                    slope = exponent(*zip(*((row[axis], row[name]) for row in rows)))
                    axes.loglog([row[axis] for row in rows], [row[name] for row in rows], style,
                                label=f'{key}: slope {slope:.2f}', ms=4)
            ticks = [row[axis] for row in series[axis]]
            axes.set_xticks(ticks, [str(n) for n in ticks])
            axes.minorticks_off()
            axes.set_xlabel(axis, fontsize=8)
            axes.set_title(TITLES[name], fontsize=9)
            axes.tick_params(labelsize=7)
            axes.legend(fontsize=7)
            axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    print(f'wrote {path}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', default='dualground', choices=common.CASES)
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--output')
    parser.add_argument('--picture')
    args = parser.parse_args()
    runtime.keep_memory()
    clips = [{'train.batch_size': 2, 'data.max_clips': n} for n in CLIPS]
    series = {
        'clips': [dict(clips=n) | row for n, row in zip(
            CLIPS, measure(args.model, args.repeats, clips))],
        'clips, chunked': [dict(clips=n, chunk=CHUNK) | row | dict(gflop=None) for n, row in zip(
            CLIPS, measure(args.model, args.repeats,
                           [one | {'model.attention_chunk': CHUNK} for one in clips]))],
        'batch': [dict(batch=n) | row for n, row in zip(BATCHES, measure(
            args.model, args.repeats, [{'train.batch_size': n} for n in BATCHES]))],
    }
    slopes = []
    for name, rows in series.items():
        axis = 'batch' if name == 'batch' else 'clips'
        x = [row[axis] for row in rows]
        slopes.append(dict(against=name) | {
            key: exponent(x, [row[key] for row in rows]) for key in MEASURES})
    common.write(args.output, **series, exponents=slopes)
    if args.picture:
        draw(series, args.picture)


if __name__ == '__main__':
    main()

"""Time, memory and FLOPs of train steps and batched predictions at full QVHighlights size.

    python -m benchmarks.steps [--models flash_vtg,dualground] [--repeats 5] [--output FILE.json]

`of_torch` is seconds x peak over that of the public PyTorch code: below 1 is faster.
"""

import argparse

from benchmarks import common
from dualground_jax import runtime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--models', default=','.join(common.CASES))
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--batch', type=int, default=64, help='of predictions')
    parser.add_argument('--only', choices=('train', 'predict'))
    parser.add_argument('--output')
    args = parser.parse_args()
    runtime.keep_memory()
    names, report = args.models.split(','), {}
    if args.only != 'predict':
        programs = [common.train_program(name, common.make_config(name)) for name in names]
        report['train_step'] = rows = common.interleave(programs, args.repeats)
        flash = {row['name']: row['seconds_x_peak'] for row in rows}.get('flash_vtg')
        for row in rows:
            torch = common.CASES[row['name']].train_seconds
            row['of_torch'] = torch and row['seconds_x_peak'] / (torch * common.TORCH_PEAK)
            row['of_flash_vtg'] = flash and row['seconds_x_peak'] / flash
    if args.only != 'train':
        programs = [
            common.predict_program(f'{name}, {size}', common.make_config(name), size)
            for name in names for size in (1, args.batch)
        ]
        report['prediction'] = rows = common.interleave(programs, args.repeats)
        for row in rows:
            name, size = row['name'].split(', ')
            row['ms_per_query'] = 1e3 * row['seconds'] / int(size)
            torch = common.CASES[name].predict_ms
            row['of_torch'] = torch and (
                1e3 * row['seconds_x_peak'] / int(size) / (torch * common.TORCH_PEAK))
    common.write(args.output, **report)


if __name__ == '__main__':
    main()

"""Time, memory and FLOPs of train steps and batched predictions at full QVHighlights size.

    python -m benchmarks.steps [--models flash_vtg,dualground] [--repeats 5] [--output FILE.json]

`of_first` is the time over that of the first row. `--batch` is the size of a prediction batch.
`--trace FOLDER` has the JAX profiler record one train step of each model, for TensorBoard or xprof:
it tells where the time goes.
"""

import jax

from benchmarks import common


def main() -> None:
    args = common.arguments(
        __doc__, models=','.join(common.CASES), repeats=5, batch=64, trace='', output='')
    names = args.models.split(',')
    programs = {name: common.make_program(common.make_config(name)) for name in names}
    train = common.compare(programs, args.repeats)
    if args.trace:
        for name, program in programs.items():
            with jax.profiler.trace(f'{args.trace}/{name}'):
                program.call()
    sizes = {f'{name}, {size}': size for name in names for size in (1, args.batch)}
    predict = common.compare({
        key: common.make_program(common.make_config(
            key.split(',')[0], **{'train.batch_size': size}), predicts=True)
        for key, size in sizes.items()}, args.repeats)
    for row in predict:
        row['ms_per_query'] = 1e3 * row['seconds'] / sizes[row['name']]
    common.write(args.output, train_step=train, prediction=predict)


if __name__ == '__main__':
    main()

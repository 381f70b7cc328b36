"""Time, memory and FLOPs of train steps and batched predictions at full QVHighlights size.

    python -m benchmarks.steps [--models flash_vtg,dualground] [--repeats 5] [--public DIR]
        [--output FILE.json]

`of_first` is the time over that of the first row. `--batch` is the size of a prediction batch.
`--trace FOLDER` has the JAX profiler record one train step of each model, for TensorBoard or xprof:
it tells where the time goes. `--public` has a checkout of each public code, as for
`benchmarks.recipes`: a query alone takes turns with it.
"""

import functools
import tempfile
import time

import jax
import numpy as np

from benchmarks import common
from configs.recipes import RECIPES
from data_pipelines import pipeline
from data_pipelines.schedule import Bucket, query_sizes
from dualground_jax import predict, sharding

ALONE = 20  # calls of a turn


def alone(name: str, folder: str, repeats: int) -> dict:
    """A query alone, from arrays to lists of windows and saliency: the row of a model.

    Neither code pads it. `cpu` are seconds of all cores.

    Args:
        name: of the model.
        folder: has a checkout of its public code.
        repeats: turns.
    """
    from benchmarks import public  # PyTorch need not be there

    config = common.make_config(name)
    source = RECIPES[name, 'qvhighlights', common.CASES[name][0]].source
    data = config.data.copy_and_resolve_references()
    with tempfile.TemporaryDirectory() as files:
        split = common.make_split(data, files, 1)
    batch = pipeline.collate(split, data, np.arange(1), [np.random.default_rng(0)],
                             bucket=Bucket(*query_sizes(split)[0].tolist()))
    step, mesh = common.TrainStep(config), sharding.one_device()
    predict_step = predict.make_predict_step(config, mesh)

    def ours() -> list[dict]:
        found = jax.device_get(predict_step(step.state.eval_params, batch))
        return predict.batch_predictions(split, batch['index'], *found)

    theirs = public.Code(source, config, folder)
    calls = dict(ours=ours, torch=functools.partial(
        theirs.predict, *theirs.batch(batch, [split.queries[0].vid])))
    row = dict(name=name)
    for kind, clock in dict(ms=time.perf_counter, cpu_ms=time.process_time).items():
        seconds = common.in_turns(
            {key: common.timed(call, ALONE, clock) for key, call in calls.items()}, repeats)
        row |= {f'{key}_{kind}': 1e3 * float(np.median(own)) for key, own in seconds.items()}
        row[f'of_torch_{kind}'] = float(np.median(seconds['ours'] / seconds['torch']))
    return row


def main() -> None:
    args = common.arguments(__doc__, models=','.join(common.CASES), repeats=5, batch=64, trace='',
                            public='', output='')
    names = args.models.split(',')
    programs = {name: common.make_program(common.make_config(name)) for name in names}
    train = common.compare(programs, args.repeats)
    if args.trace:
        for name, program in programs.items():
            with jax.profiler.trace(f'{args.trace}/{name}'):
                program.call()
    sizes = {f'{name}, {size}': size for name in names for size in (1, args.batch)}
    predict_programs = {
        key: common.make_program(common.make_config(
            key.split(',')[0], **{'train.batch_size': size}), predicts=True)
        for key, size in sizes.items()}
    prediction = common.compare(predict_programs, args.repeats)
    for row in prediction:
        row['ms_per_query'] = 1e3 * row['seconds'] / sizes[row['name']]
    beside = [alone(name, args.public, args.repeats) for name in names
              if args.public and (name, 'qvhighlights', common.CASES[name][0]) in RECIPES]
    common.write(args.output, train_step=train, prediction=prediction,
                 **dict(alone=beside) if beside else {})


if __name__ == '__main__':
    main()

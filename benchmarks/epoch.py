"""Share of an epoch that the steps wait for their data.

    python -m benchmarks.epoch [--model tr_detr] [--steps 8] [--output FILE.json]

--steps is a multiple of 4.
The loop of training, without evaluation, over records in memory against the same number of steps
on one batch that stays on the device, in turns. On a CPU the input pipeline takes its share of the
cores that compute; an accelerator's host has them for itself.
"""

import tempfile

import jax
import numpy as np

from benchmarks import common
from data_pipelines.schedule import Schedule
from dualground_jax import resident, runtime, sharding, train

VARIANTS = {
    'float32': {},
    'float16': {'data.dtype': 'float16'},
    'resident': {'data.resident': True},
    'resident, 4 steps a call': {'data.resident': True, 'train.steps_per_call': 4},
}


def loops(config, steps: int, folder: str) -> dict:
    """The training loop, and as many steps on one batch."""
    mesh = sharding.one_device()
    split = common.make_split(config.data, folder, queries=256)
    schedule, = Schedule.of(split, config.data, config.train, config.seed)
    step = common.TrainStep(
        config, resident.load(split, config.data, mesh) if config.data.resident else None)

    def batches():
        calls = train.planned_calls([schedule], config.train, range(steps), steps)
        return runtime.one_ahead(train.device_batches(split, config, mesh, [schedule], calls))

    def loop():
        for _, batch in batches():
            metrics = step(batch)
        jax.block_until_ready(metrics)

    count, batch = next(batches())

    def alone():
        for _ in range(steps // count):
            metrics = step(batch)
        jax.block_until_ready(metrics)

    return dict(loop=common.timed(loop), alone=common.timed(alone))


def main() -> None:
    args = common.arguments(__doc__, model='tr_detr', steps=8, repeats=3, output='')
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, overrides in VARIANTS.items():
            config = common.make_config(args.model, **overrides)
            found = common.in_turns(loops(config, args.steps, folder), args.repeats)
            loop, alone = found['loop'], found['alone']
            rows.append(dict(variant=name, seconds_per_step=float(np.median(loop)) / args.steps,
                             seconds_of_step_alone=float(np.median(alone)) / args.steps,
                             waiting=float(np.median(1 - alone / loop))))
    common.write(args.output, epoch=rows)


if __name__ == '__main__':
    main()

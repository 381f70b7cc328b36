"""Share of an epoch that the steps wait for their data.

    python -m benchmarks.epoch [--model tr_detr] [--steps 8] [--output FILE.json]

The loop of training, without evaluation, over records in memory against the same number of steps
on one batch that stays on the device, in turns. On a CPU the input pipeline takes its share of the
cores that compute; an accelerator's host has them for itself.
"""

import argparse
import statistics
import time

import jax
import numpy as np

from benchmarks import common, input_pipeline
from dualground_jax import resident, runtime, sharding, train
from dualground_jax import state as state_lib

VARIANTS = {
    'float32': {},
    'float16': {'data.dtype': 'float16'},
    'resident': {'data.resident': True},
    'resident, 4 steps a call': {'data.resident': True, 'train.steps_per_call': 4},
}


def loops(model: str, steps: int, **overrides):
    """(run the training loop, run as many steps on one batch), compiled, for one config."""
    config = common.make_config(model, **overrides)
    mesh = sharding.one_device()
    tx = state_lib.make_optimizer(config.optimizer, 10_000)
    abstract = state_lib.abstract_state(config, mesh, 10_000)
    held = [state_lib.fresh_state(config, tx, abstract)]
    split = input_pipeline.make_split(config.data)
    store = resident.load(split, config.data, mesh) if config.data.resident else {}
    step_of = {stacked: train.make_train_step(config, mesh, tx, abstract, stacked=stacked)
               for stacked in (False, True)}

    def step(count, batch):
        held[0], metrics = step_of[count > 1](held[0], batch, np.uint32(0), store)
        return metrics

    def batches():
        return train.device_batches(
            split, config, mesh, first_step=0, last_step=steps, stop_every=10_000)

    count, batch = next(batches())

    def loop():
        for each in batches():
            metrics = step(*each)
        jax.block_until_ready(metrics)

    def alone():
        for _ in range(steps // count):
            metrics = step(count, batch)
        jax.block_until_ready(metrics)

    loop()
    return loop, alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', default='tr_detr', choices=common.CASES)
    parser.add_argument('--steps', type=int, default=8)
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--output')
    args = parser.parse_args()
    runtime.keep_memory()
    rows = []
    for name, overrides in VARIANTS.items():
        seconds = ([], [])
        programs = loops(args.model, args.steps, **overrides)
        for _ in range(args.repeats):
            for program, found in zip(programs, seconds):
                started = time.perf_counter()
                program()
                found.append(time.perf_counter() - started)
        loop, alone = map(statistics.median, seconds)
        rows.append(dict(variant=name, seconds_per_step=loop / args.steps,
                         seconds_of_step_alone=alone / args.steps, waiting=1 - alone / loop))
    common.write(args.output, epoch=rows)


if __name__ == '__main__':
    main()

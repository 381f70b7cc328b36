"""Which runs can share a program, and what it takes as inputs."""

import jax
import numpy as np
import pytest

from configs import qvh
from dualground_jax import inputs


def changed(**values):
    """A config with values of dotted keys, in which __ stands for a dot."""
    config = qvh.get_config('model=flash_vtg').lock()
    return inputs.with_values(config, {k.replace('__', '.'): v for k, v in values.items()})


@pytest.mark.parametrize('values, is_shared', [
    (dict(seed=0), True),
    (dict(optimizer__learning_rate=0.5, optimizer__weight_decay=0.1), True),
    (dict(loss__weights__cls=1.0, loss__margin=0.1, model__dropout=0.4), True),
    (dict(model__dropout=0.0), False),  # nothing is dropped
    (dict(optimizer__ema_decay=0.9), False),  # there is an average
    (dict(optimizer__warmup_steps=1), False),
    (dict(train__batch_size=1), False),
    (dict(evaluate__nms=0.1), False),
    (dict(model__dummy_dropout=0.5), False),
])
def test_what_shares_a_program(values, is_shared):
    assert (inputs.program_of(changed(**values)) == inputs.program_of(changed())) == is_shared


def test_inputs_are_what_differs():
    configs = [changed(seed=seed, loss__margin=margin) for seed, margin in ((1, 0.5), (2, 0.25))]
    values = inputs.values_of(configs)
    assert {key: (x.dtype, x.tolist()) for key, x in values.items()} == {
        'seed': (np.uint32, [1, 2]), 'loss.margin': (np.float32, [0.5, 0.25])}
    assert inputs.values_of(configs[:1]).keys() == {'seed'}

    @jax.vmap
    def both(values):
        own = inputs.with_values(configs[0], values)
        return own.loss.margin * own.loss.weights.cls + own.seed

    assert both(values).tolist() == [0.5 * 5 + 1, 0.25 * 5 + 2]
    assert configs[0].loss.margin == 0.5 and configs[0].is_locked

"""Runs that have not trained: where any parameters will do."""

import pathlib
from typing import Any

from configs import synthetic
from dualground_jax import sharding
from dualground_jax import state as state_lib
from dualground_jax.checkpoints import Checkpoints


def save(folder: pathlib.Path, **values: Any) -> pathlib.Path:
    """Writes a tiny model into a workdir; `values` of dotted keys change its config."""
    config = synthetic.get_config('runlocal')
    config.model.update(paths='sentence', width=16, heads=2, ffn=16, phrases=2, input_layers=1,
                        mlp_layers=1, strides=(1, 4))
    config.update_from_flattened_dict(values)
    tx = state_lib.make_optimizer(config.optimizer, 1)
    state = state_lib.fresh_state(
        config, tx, state_lib.abstract_state(config, sharding.one_device()))
    Checkpoints(folder).save('best', state, config, dict(best_step=0, best_value=0.0))
    return folder

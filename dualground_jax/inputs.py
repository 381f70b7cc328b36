"""Values of the config that a compiled step takes as inputs: runs that differ in them share it."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict, FrozenConfigDict

# What the dotted keys of numbers begin with that change no shape.
SCALARS = ('loss.', 'optimizer.', 'model.dropout', 'model.input_dropout')


def scalars(config: ConfigDict) -> dict[str, float]:
    """The numbers that may be inputs, by their dotted keys."""
    flat = traverse_util.flatten_dict(config.to_dict(), sep='.')
    return {key: value for key, value in flat.items()
            if isinstance(value, float) and key.startswith(SCALARS)}


def program_of(config: ConfigDict) -> str:
    """A text that configs have in common if one program can train all of their runs.

    It tells the sign of numbers that may be inputs: what is 0 is left out of a program.
    """
    signs = {key: float(np.sign(value)) for key, value in scalars(config).items()}
    return with_values(config, dict(signs, seed=0)).to_json(sort_keys=True)


def seedless(config: ConfigDict) -> FrozenConfigDict:
    """What programs are kept by: runs that differ in their seed alone share them."""
    return FrozenConfigDict(with_values(config, dict(seed=0)))


def values_of(configs: Sequence[ConfigDict]) -> dict[str, np.ndarray]:
    """Of each config the seed, uint32[runs], and the numbers that are not alike, float32[runs]."""
    numbers = [scalars(config) for config in configs]
    differ = [key for key in numbers[0] if len({own[key] for own in numbers}) > 1]
    return dict(seed=np.uint32([config.seed for config in configs])) | {
        key: np.float32([own[key] for own in numbers]) for key in differ}


def with_values(config: ConfigDict, values: Mapping[str, jax.Array | float]) -> ConfigDict:
    """The config with values of dotted keys; inside a step they are its inputs."""
    own = config.copy_and_resolve_references()
    with own.unlocked(), own.ignore_type():
        own.update_from_flattened_dict(values)
    return own

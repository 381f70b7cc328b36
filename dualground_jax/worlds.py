"""Generated data of a config."""

import os
import pathlib

from ml_collections import ConfigDict

from dualground_jax import runtime


def prepare(config: ConfigDict) -> None:
    """Makes the generated world that a config's data come from, if they do and it is not there.

    Of several processes the first one makes it.

    Raises:
        UserError: a parameter is out of range, the folder holds something else, or the encoder of
            a world in pixels can't be read.
    """
    if config.world:
        runtime.first_alone(lambda: _generate(config))


def _generate(config: ConfigDict) -> None:
    from data_pipelines import scenes, world

    generated, encode = world.read(config.world), None
    if generated.encoder:
        from dualground_jax.encoders import encoder  # takes JAX, for seconds

        encode = encoder.load(
            [f'clip={encoder_source(generated.encoder)}'], clip_length=float(scenes.CLIP_SECONDS))
    world.generate(generated, config.data.root, encode)


def encoder_source(name: str) -> str:
    """Where an encoder is: in a folder here, in one that we brought along, or on the hub."""
    brought = pathlib.Path(__file__).parents[1] / name
    return str(brought) if not os.path.exists(name) and brought.is_dir() else name

"""Generated data of a config."""

from typing import Any

from ml_collections import ConfigDict

from dualground_jax import demo, runtime


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
    from data_pipelines import world

    generated = world.read(config.world)
    world.generate(generated, config.data.root, load_encoder(generated))


def load_encoder(generated: Any) -> Any:
    """The Encoder of a World in pixels; None of a planted one."""
    if not generated.encoder:
        return None
    from data_pipelines import scenes
    from dualground_jax.encoders import encoder  # takes JAX, for seconds

    return encoder.load(
        [f'clip={demo.find(generated.encoder)}'], clip_length=float(scenes.CLIP_SECONDS))

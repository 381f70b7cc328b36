"""Generated data of a config."""

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
    from data_pipelines import scenes, world

    generated, encode = world.read(config.world), None
    if generated.encoder:
        from dualground_jax.encoders import encoder  # takes JAX, for seconds

        encode = encoder.load(
            [f'clip={demo.find(generated.encoder)}'], clip_length=float(scenes.CLIP_SECONDS))
    world.generate(generated, config.data.root, encode)

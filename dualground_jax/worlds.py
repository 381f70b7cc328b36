"""Generated data of a config."""

from ml_collections import ConfigDict

from dualground_jax import runtime


def prepare(config: ConfigDict) -> None:
    """Makes the generated world that a config's data come from, if they do and it is not there.

    Of several processes the first one makes it.

    Raises:
        UserError: a parameter is out of range, or the folder holds something else.
    """
    if config.world:
        from data_pipelines import world

        runtime.first_alone(lambda: world.generate(config.world, config.data.root))

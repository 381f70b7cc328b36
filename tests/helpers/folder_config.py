"""A config for tests: an existing folder in the synthetic layout, read as real data."""

from ml_collections import ConfigDict

from configs import synthetic


def get_config(root):
    """Argument: the folder."""
    config = synthetic.get_config(f'runlocal,root={root}')
    config.world = ConfigDict()
    config.train.batch_size = 2
    return config

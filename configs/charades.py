"""Charades-STA (https://arxiv.org/abs/1705.02101): moment retrieval, one window a query."""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: features=iv2|sf_clip|vgg|own and those of `common.ARGUMENTS`."""
    return common.from_argument('charades_sta', arg, features='iv2')

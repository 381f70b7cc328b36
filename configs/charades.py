"""Charades-STA (https://arxiv.org/abs/1705.02101): moment retrieval, one window a query."""

from configs import common


def get_config(arg=None):
    """Arguments: features=iv2|sf_clip|vgg and those of `common.ARGUMENTS`."""
    args = common.parse_arg(arg, features='iv2', **common.ARGUMENTS)
    config = common.base('charades_sta', args)
    return common.small(config) if args['runlocal'] else config

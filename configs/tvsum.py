"""TVSum (Song et al., CVPR 2015): highlight detection, by the public protocol a model a domain."""

from configs import common


def get_config(arg=None):
    """Arguments: features=sf_clip|i3d, domain=BK|BT|DS|FM|GA|MS|PK|PR|VT|VU (default: all) and
    those of `common.ARGUMENTS`.
    """
    args = common.parse_arg(arg, features='sf_clip', domain='', **common.ARGUMENTS)
    config = common.base('tvsum', args)
    return common.small(config) if args['runlocal'] else config

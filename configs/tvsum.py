"""TVSum (Song et al., CVPR 2015): highlight detection, by the public protocol a model a domain."""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: features=sf_clip|i3d|own, domain=BK|BT|DS|FM|GA|MS|PK|PR|VT|VU (default:
    all) and those of `common.ARGUMENTS`.
    """
    return common.from_argument('tvsum', arg, features='sf_clip', domain='')

"""YouTube Highlights (https://doi.org/10.1007/978-3-319-10590-1_51): highlight detection, by the
public protocol a model per domain.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: features=sf_clip|own, domain=dog|gymnastics|parkour|skating|skiing|surfing
    (default: all) and those of `common.ARGUMENTS`.
    """
    return common.from_argument('youtube_highlights', arg, features='sf_clip', domain='')

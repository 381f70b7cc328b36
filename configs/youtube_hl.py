"""YouTube Highlights (https://doi.org/10.1007/978-3-319-10590-1_51): highlight detection, by the
public protocol a model per domain."""

from configs import common


def get_config(arg=None):
    """Arguments: features=sf_clip, domain=dog|gymnastics|parkour|skating|skiing|surfing
    (default: all) and those of `common.ARGUMENTS`.
    """
    args = common.parse_arg(arg, features='sf_clip', domain='', **common.ARGUMENTS)
    config = common.base('youtube_highlights', args)
    return common.small(config) if args['runlocal'] else config

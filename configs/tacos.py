"""TACoS (https://aclanthology.org/Q13-1003): moment retrieval in long cooking videos."""

from configs import common


def get_config(arg=None):
    """Arguments: features=sf_clip and those of `common.ARGUMENTS`."""
    args = common.parse_arg(arg, features='sf_clip', **common.ARGUMENTS)
    config = common.base('tacos', args)
    return common.small(config) if args['runlocal'] else config

"""QVHighlights (https://arxiv.org/abs/2107.09609): moment retrieval and highlight detection."""

from configs import common


def get_config(arg=None):
    """Arguments: features=iv2|sf_clip and those of `common.ARGUMENTS`."""
    args = common.parse_arg(arg, features='iv2', **common.ARGUMENTS)
    config = common.base('qvhighlights', args)
    return common.small(config) if args['runlocal'] else config

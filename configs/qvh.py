"""QVHighlights (https://arxiv.org/abs/2107.09609): moment retrieval and highlight detection."""

from configs import common


def get_config(arg=None):
    """Arguments: features=iv2|sf_clip, model=NAME, runlocal."""
    args = common.parse_arg(arg, features='iv2', model='dualground', runlocal=False)
    config = common.base('qvhighlights', args['features'], args['model'])
    return common.small(config) if args['runlocal'] else config

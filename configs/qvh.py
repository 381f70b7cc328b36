"""QVHighlights (https://arxiv.org/abs/2107.09609): moment retrieval and highlight detection."""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: features=iv2|sf_clip|own and those of `common.ARGUMENTS`."""
    return common.from_argument('qvhighlights', arg, features='iv2')

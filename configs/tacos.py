"""TACoS (https://aclanthology.org/Q13-1003): moment retrieval in long cooking videos."""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: features=sf_clip|own and those of `common.ARGUMENTS`."""
    return common.from_argument('tacos', arg, features='sf_clip')

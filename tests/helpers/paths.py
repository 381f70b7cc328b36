"""Where things lie: the repository, the golden numbers, the data sets' real annotations."""

import os
import pathlib

REPO = pathlib.Path(__file__).parents[2]
COMPACT_GOLDENS = REPO / 'tests' / 'goldens'
REAL = REPO.parent / 'shared' / 'data'
FOLDER_CONFIG = REPO / 'tests' / 'helpers' / 'folder_config.py'


def goldens_dir() -> pathlib.Path:
    """Folder of the golden numbers: $GOLDENS_DIR, or the compact copy beside the tests."""
    return pathlib.Path(os.environ.get('GOLDENS_DIR') or COMPACT_GOLDENS)

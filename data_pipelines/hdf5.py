"""Features in HDF5: one file a stream, with a dataset, or a group of one, for each video or query.

`FILE/NAME` names a dataset or group in a file as `FOLDER/NAME.npz` names a file in a folder; a file
that has its videos in a group of its own is `FILE/GROUP`.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_pipelines import files
from data_pipelines.errors import DataError, one_line

# What h5py raises on damaged files, and on what is not in them.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError)


def file_of(path: str | os.PathLike) -> pathlib.Path | None:
    """The file that a path names or leads into; None if it leads through folders alone."""
    path = pathlib.Path(path)
    found = next((part for part in (path, *path.parents) if part.exists()), path)
    return found if found.is_file() else None


def is_hdf5(path: str | os.PathLike) -> bool:
    """Whether a file begins as HDF5 files do."""
    try:
        with open(path, 'rb') as file:
            return file.read(8) == b'\x89HDF\r\n\x1a\n'
    except OSError:
        return False


def names(path: pathlib.Path) -> list[str]:
    """What a file, or the group in it that the path names, holds.

    Raises:
        DataError: it can't be read, or there is no such group.
    """
    with _group(path) as group:
        return list(group)


def holds(path: pathlib.Path, name: str) -> bool:
    """Whether a file, or the group in it that the path names, holds a name; raises as `names`."""
    with _group(path) as group:
        return name in group


def read(path: pathlib.Path, key: str) -> np.ndarray:
    """The array that a path names: a dataset, or a group with one of name `key` or one alone.

    Raises:
        DataError: it can't be read, or there is no such array.
    """
    with _node(path) as node:
        if hasattr(node, 'keys'):
            arrays = {name: entry for name, entry in node.items() if getattr(entry, 'shape', ())}
            node = files.the_array(arrays, key, path)
        return np.asarray(node[()])


@contextlib.contextmanager
def _group(path: pathlib.Path) -> Iterator[Any]:
    with _node(path) as node:
        if not hasattr(node, 'keys'):
            raise DataError(f'{path}: an array, expected a group with one for each video or query')
        yield node


@contextlib.contextmanager
def _node(path: pathlib.Path) -> Iterator[Any]:
    try:
        import h5py  # an extra
    except ImportError as error:
        raise DataError(f"{path}: HDF5 needs h5py: pip install -e '.[hdf5]'") from error
    file = file_of(path) or path
    try:
        with h5py.File(file, 'r', locking='best-effort') as opened:
            inner = path.relative_to(file).as_posix()
            yield opened['/' if inner == '.' else inner]
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(files.foreign(file) or f"{path}: can't be read: {one_line(error)}"
                        ) from error

"""Reads the features of a video or query: a file of one of SUFFIXES, or an array in one of HDF5."""

import os
import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import files, hdf5, torch_file
from data_pipelines.errors import ConfigError, DataError, one_line

SUFFIXES = ('.npz', '.npy', '.pt', '.pth', '.h5', '.hdf5')
VIDEO_KEY, TEXT_KEY = 'features', 'last_hidden_state'  # in .npz files; TEXT_KEY: of most releases

# What numpy raises on damaged .npy and .npz files (TokenError: cut header; RuntimeError: zipfile).
DAMAGE = (OSError, ValueError, EOFError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile,
           zlib.error)


def read_features(path: str | os.PathLike, key: str) -> np.ndarray:
    """Reads one feature file.

    Args:
        path: file of one of SUFFIXES with float[n, d] or float[1, n, d], or with a dict of such an
            array; or FILE/NAME of an HDF5 file.
        key: name of the array where there are several.

    Returns:
        float32[n, d] with n >= 1, all finite.

    Raises:
        DataError: the file is missing, damaged, lacks the key or holds something else.
    """
    path = pathlib.Path(path)
    try:
        if path.suffix in ('.h5', '.hdf5') or hdf5.file_of(path.parent):
            rows = hdf5.read(path, key)
        elif path.suffix in ('.pt', '.pth'):
            rows = _array(torch_file.load(path), key, path)
        else:
            rows = _read_numpy(path, key)
    except (OSError, DataError) as error:
        reason = files.foreign(path)
        if isinstance(error, OSError):
            reason = reason or f"{path}: can't be read: {one_line(error)}"
        raise DataError(reason or str(error)) from error
    return check_rows(rows, path)


def check_rows(rows: np.ndarray, name: Any) -> np.ndarray:
    """Returns features float[n, d] or float[1, n, d] as float32[n, d], or raises DataError."""
    if rows.dtype.kind == 'V' and rows.dtype.itemsize == 2 and not rows.dtype.names:
        # bfloat16, which numpy lacks: the upper half of float32
        rows = (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if rows.ndim == 3 and len(rows) == 1:
        rows = rows[0]
    if rows.ndim != 2 or not rows.size:
        raise DataError(f'{name}: shape {list(rows.shape)}, expected one or more rows [n, width]')
    if rows.dtype.kind != 'f':
        raise DataError(f'{name}: values of type {rows.dtype}, expected floating point')
    with np.errstate(over='ignore'):  # a float64 beyond float32 becomes inf, reported below
        rows = rows.astype(np.float32)
    if not np.isfinite(rows).all():
        row, column = np.argwhere(~np.isfinite(rows))[0]
        raise DataError(
            f'{name}: {rows[row, column]} in row {row}, column {column}, expected finite numbers')
    return rows


def _read_numpy(path: pathlib.Path, key: str) -> np.ndarray:
    with open(path, 'rb') as file:
        try:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            return files.the_array(content, key, path)
        except SystemError:  # of Python 3.11 where threads parse headers at once (cpython #106905)
            return _read_numpy(path, key)
        except DataError:
            raise
        except DAMAGE as error:
            if path.suffix == '.npz' or 'Object arrays' not in str(error):
                # Of what is no file of its own, numpy says to unpickle it.
                reason = 'not a numpy file' if 'pickled' in str(error) else one_line(error)
                raise DataError(f"{path}: can't be read: {reason}") from error
        return _array(torch_file.load_pickle(file, path), key, path)  # the header has been read


def _array(value: Any, key: str, path: pathlib.Path) -> np.ndarray:
    """The array that is the value, or in a dict or list that is."""
    if isinstance(value, np.ndarray) and value.dtype == object and value.size == 1:
        value = value.item()
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        value = files.the_array({name: entry for name, entry in value.items()
                                 if isinstance(entry, np.ndarray)}, key, path)
    if not isinstance(value, np.ndarray):
        raise DataError(f'{path}: holds a {type(value).__name__}, expected an array')
    return np.asarray(value)


def is_folder(folder: str | os.PathLike) -> bool:
    """Whether it can hold features: a folder, or an HDF5 file or a group in one."""
    return os.path.isdir(folder) or hdf5.file_of(folder) is not None


def find_file(folder: str | os.PathLike, stems: Sequence[str]) -> pathlib.Path:
    """Returns the first file `folder`/stem + suffix that exists, stems before SUFFIXES.

    Of an HDF5 file it is the first `folder`/stem that is in it.

    Raises:
        DataError: there is none.
    """
    folder, named = pathlib.Path(folder), ' or '.join(stems)
    if hdf5.file_of(folder):
        if found := next((stem for stem in stems if hdf5.holds(folder, stem)), None):
            return folder / found
        raise DataError(f'{folder}: has no {named}')
    paths = (folder / (stem + suffix) for stem in stems for suffix in SUFFIXES)
    try:
        found = next(filter(pathlib.Path.is_file, paths), None)
    except OSError as error:
        raise DataError(f'{folder}: {files.short(stems[0])} is no name of a file: {error.strerror}'
                        ) from error
    if found:
        return found
    raise DataError(f'{folder}: found no file {named} + {" or ".join(SUFFIXES)}')


def all_files(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The feature files of a folder, or the names in an HDF5 file, sorted."""
    folder = pathlib.Path(folder)
    if hdf5.file_of(folder):
        return sorted(folder / name for name in hdf5.names(folder))
    return sorted(path for path in folder.glob('*') if path.suffix in SUFFIXES)


def dtype_of(data: Any) -> type:
    """The numpy type that the config's data.dtype names.

    Raises:
        ConfigError: another one than float32 and float16.
    """
    if data.dtype not in ('float32', 'float16'):
        raise ConfigError(f"data.dtype={data.dtype!r}: expected 'float32' or 'float16'")
    return np.dtype(data.dtype).type

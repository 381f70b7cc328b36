"""Reads single feature files: .npz, .npy and .pt."""

import os
import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines import torch_file
from data_pipelines.errors import ConfigError, DataError, one_line

SUFFIXES = ('.npz', '.npy', '.pt')
VIDEO_KEY, TEXT_KEY = 'features', 'last_hidden_state'  # in .npz files; TEXT_KEY: of most releases

# What numpy raises on damaged .npy and .npz files (TokenError: cut header; RuntimeError: zipfile).
_DAMAGE = (OSError, ValueError, EOFError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile,
           zlib.error)


def read_features(path: str | os.PathLike, key: str) -> np.ndarray:
    """Reads one feature file.

    Args:
        path: .npz, .npy or .pt (one tensor) file of float[n, d] or float[1, n, d].
        key: name of the array in an .npz file.

    Returns:
        float32[n, d] with n >= 1, all finite.

    Raises:
        DataError: the file is missing, damaged, lacks the key or holds something else.
    """
    is_torch = os.fspath(path).endswith('.pt')
    try:
        rows = torch_file.read_tensor(path) if is_torch else _read_numpy(path, key)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {one_line(error)}") from error
    return check_rows(rows, path)


def check_rows(rows: np.ndarray, name: Any) -> np.ndarray:
    """Returns features float[n, d] or float[1, n, d] as float32[n, d], or raises DataError."""
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


def _read_numpy(path: str | os.PathLike, key: str) -> np.ndarray:
    with open(path, 'rb') as file:
        try:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            if key in content.files:
                return np.asarray(content[key])
        except SystemError:  # of Python 3.11 where threads parse headers at once (cpython #106905)
            return _read_numpy(path, key)
        except _DAMAGE as error:
            raise DataError(f"{path}: can't be read: {one_line(error)}") from error
    found = ', '.join(map(repr, content.files)) or 'none'
    raise DataError(f'{path}: expected array {key!r}, found {found}')


def find_file(folder: str | os.PathLike, stems: Sequence[str]) -> pathlib.Path:
    """Returns the first file `folder`/stem + suffix that exists, stems before SUFFIXES.

    Raises:
        DataError: there is none.
    """
    paths = (pathlib.Path(folder, stem + suffix) for stem in stems for suffix in SUFFIXES)
    if found := next(filter(pathlib.Path.is_file, paths), None):
        return found
    raise DataError(f'{folder}: found no file {" or ".join(stems)} + {" or ".join(SUFFIXES)}')


def dtype_of(data: Any) -> type:
    """The numpy type that the config's data.dtype names.

    Raises:
        ConfigError: another one than float32 and float16.
    """
    if data.dtype not in ('float32', 'float16'):
        raise ConfigError(f"data.dtype={data.dtype!r}: expected 'float32' or 'float16'")
    return np.dtype(data.dtype).type

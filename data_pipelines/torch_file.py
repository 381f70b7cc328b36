"""Reads tensors out of files of `torch.save` without PyTorch.

Such a file is a zip archive: `<name>/data.pkl` pickles the object, with each tensor's memory (its
storage) as raw bytes in `<name>/data/<key>`. Unpickling runs whatever function a file names, so
only the few names that a tensor needs are allowed, and they lead to code of this module or to a
plain container.
"""

import collections
import os
import pickle
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np

from dualground_jax.errors import UserError

# PyTorch's storage class -> type of its bytes. numpy lacks bfloat16, the upper half of float32.
_STORAGE_DTYPES = {
    'FloatStorage': '<f4', 'HalfStorage': '<f2', 'BFloat16Storage': '<u2', 'DoubleStorage': '<f8',
    'LongStorage': '<i8', 'IntStorage': '<i4', 'ShortStorage': '<i2', 'CharStorage': '|i1',
    'ByteStorage': '|u1', 'BoolStorage': '|b1',
}

# What pickle and zipfile raise on damaged content (RuntimeError: zipfile, on encrypted members).
_DAMAGE = (
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, EOFError, AttributeError, ImportError,
    IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError,
)


class TorchFileError(UserError):
    """A file of `torch.save` is damaged, or holds what this module doesn't read."""


class _Storage(NamedTuple):
    """The memory behind one or several tensors: PyTorch's class name, and the values in 1-D."""

    kind: str
    values: np.ndarray


def load(path: str | os.PathLike) -> Any:
    """Returns the object in a file of `torch.save`, its tensors as numpy arrays.

    Args:
        path: a zip-format file (PyTorch 1.6 and later) of tensors, numbers, texts and (nested)
            containers of them.

    Returns:
        The object. Tensors are row-major copies, on whatever device they were; bfloat16 becomes
        float32, every other type stays.

    Raises:
        TorchFileError: the file isn't of this format, is damaged, is big-endian, or names a class
            or function that a tensor doesn't need. The message names the file.
        OSError: the file can't be opened.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _Unpickler(archive).load()
    except TorchFileError as error:
        raise TorchFileError(f'{path}: {error}') from error
    except zipfile.BadZipFile as error:
        with open(path, 'rb') as file:
            is_zip = file.read(2) == b'PK'
        advice = 'damaged or cut short' if is_zip else (
            'not a zip-format PyTorch file; if PyTorch older than 1.6 wrote it, save it again with '
            'a newer one: torch.save(torch.load(path), path)')
        raise TorchFileError(f'{path}: {advice}') from error
    except _DAMAGE as error:
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise TorchFileError(f'{path}: damaged ({reason})') from error


def read_tensor(path: str | os.PathLike) -> np.ndarray:
    """Returns the one tensor in a file of `torch.save(tensor, path)`.

    Raises:
        TorchFileError: as `load`, or the file holds something else than one tensor.
        OSError: the file can't be opened.
    """
    value = load(path)
    if isinstance(value, np.ndarray):
        return value
    keys = f' with the keys {", ".join(map(repr, value))}' if isinstance(value, dict) else ''
    raise TorchFileError(f'{path}: holds a {type(value).__name__}{keys}, expected one tensor')


class _Unpickler(pickle.Unpickler):
    """Unpickles `data.pkl` of an open archive; `find_class` is the gate."""

    def __init__(self, archive: zipfile.ZipFile):
        names = archive.namelist()
        pickles = [name for name in names if name.endswith('/data.pkl') and name.count('/') == 1]
        if len(pickles) != 1:
            raise TorchFileError('a zip file without a PyTorch object (no data.pkl)')
        self._archive = archive
        self._folder = pickles[0].removesuffix('data.pkl')
        self._storages: dict[str, _Storage] = {}
        byte_order = self._folder + 'byteorder'  # PyTorch before 2.1 doesn't write it
        if byte_order in names and (found := archive.read(byte_order)) != b'little':
            raise TorchFileError(f'byte order is {found!r}, expected little')
        super().__init__(archive.open(pickles[0]), encoding='utf-8')

    def find_class(self, module: str, name: str) -> Any:
        """Looks a global up in the list of the allowed ones; nothing is imported."""
        if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
            return self._tensor
        if (module, name) == ('collections', 'OrderedDict'):
            return collections.OrderedDict
        if module == 'torch' and name in _STORAGE_DTYPES:
            # A text: unlike a class or an object, the pickle can't call it or set its attributes.
            return name
        raise TorchFileError(f'{module}.{name} is refused, only tensors and containers are read')

    def persistent_load(self, pid: Any) -> _Storage:
        """Reads the storage that (tag, class, key, device, number of values) refers to."""
        tag, kind, key, _, n_values = pid
        if tag != 'storage' or not isinstance(key, str):
            raise TorchFileError(f'reference to {tag!r} {key!r}, expected a storage')
        if key not in self._storages:
            content = self._archive.read(f'{self._folder}data/{key}')
            values = np.frombuffer(content, _STORAGE_DTYPES[kind])
            if len(values) != n_values:
                raise TorchFileError(f'storage {key}: {len(values)} values, expected {n_values}')
            self._storages[key] = _Storage(kind, values)
        return self._storages[key]

    def _tensor(self, storage, offset, size, stride, _requires_grad, _hooks, metadata=None):
        """Stands in for `torch._utils._rebuild_tensor_v2`; offset and strides count values."""
        if not isinstance(storage, _Storage) or metadata:
            raise TorchFileError(f'tensor without storage or with metadata {metadata!r}')
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        is_counts = all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride))
        if not is_counts or (0 not in size and last >= len(storage.values)):
            raise TorchFileError(f'tensor of size {size}, stride {stride}, offset {offset} leaves '
                                 f'its storage of {len(storage.values)} values')
        if 0 in size:
            values = np.empty(size, storage.values.dtype)
        else:
            steps = [step * storage.values.itemsize for step in stride]
            values = np.lib.stride_tricks.as_strided(
                storage.values[offset:], size, steps, writeable=False).copy()
        if storage.kind == 'BFloat16Storage':
            # The shift makes a scalar of a 0-d array.
            return np.asarray(values.astype(np.uint32) << 16).view(np.float32)
        return values

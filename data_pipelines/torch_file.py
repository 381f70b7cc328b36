"""Reads files of `torch.save` without PyTorch.

Such a file is a zip archive: `<name>/data.pkl` pickles the object, with each tensor's memory (its
storage) as raw bytes in `<name>/data/<key>`. Before PyTorch 1.6 it was one stream: the pickle, the
keys of the storages, their bytes. Unpickling runs whatever function a file names, so only the few
names that a tensor needs are looked up, and they lead to code of this module or to a plain
container. What else a file names is refused (`load`), or kept as text beside the data that it came
with (`read_checkpoint`, `read_weights`).
"""

import collections
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from data_pipelines import files
from data_pipelines.errors import DataError, one_line

# PyTorch's storage class -> type of its bytes. numpy lacks bfloat16, the upper half of float32.
_STORAGE_DTYPES = {
    'FloatStorage': '<f4', 'HalfStorage': '<f2', 'BFloat16Storage': '<u2', 'DoubleStorage': '<f8',
    'LongStorage': '<i8', 'IntStorage': '<i4', 'ShortStorage': '<i2', 'CharStorage': '|i1',
    'ByteStorage': '|u1', 'BoolStorage': '|b1', 'ComplexFloatStorage': '<c8',
    'ComplexDoubleStorage': '<c16',
}

# How a file from before PyTorch 1.6 begins: a pickled number.
_LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_LEGACY_PROTOCOL = 1001

# What pickle and zipfile raise on damaged content (RuntimeError: zipfile, on encrypted members).
_DAMAGE = (
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, EOFError, AttributeError, ImportError,
    IndexError, KeyError, MemoryError, OverflowError, RuntimeError, TypeError, ValueError,
)


class TorchFileError(DataError):
    """A file of `torch.save` is damaged, or holds what this module doesn't read."""


class Stub:
    """An object of a file whose class is neither imported nor called: its name and its data.

    Attributes:
        kind: 'module.name' of the class, or of the function that was to make the object.
        args: what it was to be called with.
        fields: its attributes and, if it is a mapping, its items.
        elements: if it is a list or a set.
        state: what would restore it, if that isn't a dict of attributes.
    """

    kind = ''

    def __new__(cls, *args, **kwargs):
        record = super().__new__(cls)
        record.args, record.fields, record.elements, record.state = args, dict(kwargs), [], None
        return record

    def __repr__(self):
        return f'<{self.kind}>'

    # The rest is what pickle does to an object.

    def __setitem__(self, key, value):
        self.fields[key] = value

    def __setstate__(self, state):
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        if all(isinstance(part, dict | None) for part in parts):
            for part in parts:
                self.fields.update(part or {})
        else:
            self.state = state

    def append(self, element):
        self.elements.append(element)

    add = append


class _Storage(NamedTuple):
    """The memory behind one or several tensors: PyTorch's class name, and the values in 1-D."""

    kind: str
    values: np.ndarray


def load(path: str | os.PathLike) -> Any:
    """Returns the object in a file of `torch.save`, its tensors as numpy arrays.

    Args:
        path: a file of tensors, numbers, texts and (nested) containers of them.

    Returns:
        The object. Tensors are row-major copies, on whatever device they were; bfloat16 becomes
        float32, every other type stays.

    Raises:
        TorchFileError: the file isn't of this format, is damaged, is big-endian, or names a class
            or function that a tensor doesn't need. The message names the file.
        OSError: the file can't be opened.
    """
    return _load(path, _Unpickler)


def read_checkpoint(path: str | os.PathLike) -> Any:
    """Returns the object in a file of `torch.save` that holds more than tensors.

    As `load`, but an object of a class that it doesn't know, such as an `argparse.Namespace` of
    options, becomes a `Stub`; numpy's scalars become numbers. No code of the file is run.

    Raises:
        TorchFileError: as `load`, but for unknown names.
        OSError: the file can't be opened.
    """
    return _load(path, _CheckpointUnpickler)


def read_weights(path: str | os.PathLike) -> Any:
    """Returns the object in a file of weights: of `torch.save`, or a pickle of numpy arrays.

    As `read_checkpoint`. The pickle may be one of Python 2, such as those of Caffe2.

    Raises:
        TorchFileError: as `read_checkpoint`.
        OSError: the file can't be opened.
    """
    return _load(path, _CheckpointUnpickler, plain=True)


def load_pickle(file: BinaryIO, path: str | os.PathLike) -> Any:
    """Returns the object of numpy arrays and containers that is pickled in an open file.

    Raises:
        TorchFileError: as `load`.
    """
    try:
        return _Unpickler(file).load()
    except TorchFileError as error:
        raise TorchFileError(f'{path}: {error}') from error
    except _DAMAGE as error:
        raise TorchFileError(f'{path}: damaged ({type(error).__name__}: {one_line(error)})'
                             ) from error


def _load(path: str | os.PathLike, unpickler: type['_Unpickler'], *, plain: bool = False) -> Any:
    """Reads what the file's start says that it is; with `plain` also a pickle alone."""
    try:
        with open(path, 'rb') as file:
            start = file.read(64)
            file.seek(0)
            if start.startswith(_LEGACY_START):
                return _read_legacy(file, unpickler)
            if plain and start.startswith(pickle.PROTO):
                # Texts of Python 2 are bytes; latin1 keeps each.
                return unpickler(file, encoding='latin1').load()
            return _read_zip(file, unpickler)
    except TorchFileError as error:
        raise TorchFileError(f'{path}: {error}') from error
    except zipfile.BadZipFile as error:
        reason = 'not a PyTorch file'
        if start.startswith(b'PK'):
            reason = 'damaged or cut short'
        raise TorchFileError(files.foreign(path) or f'{path}: {reason}') from error
    except _DAMAGE as error:
        raise TorchFileError(f'{path}: damaged ({type(error).__name__}: {one_line(error)})'
                             ) from error


def _read_zip(file: BinaryIO, unpickler: type['_Unpickler']) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.endswith('/data.pkl') and name.count('/') == 1]
        if len(pickles) != 1:
            raise TorchFileError('a zip file without a PyTorch object (no data.pkl)')
        folder = pickles[0].removesuffix('data.pkl')
        byte_order = folder + 'byteorder'  # PyTorch before 2.1 doesn't write it
        if byte_order in names and (found := archive.read(byte_order)) != b'little':
            raise TorchFileError(f'byte order is {found!r}, expected little')

        def read_storage(dtype: str, key: str, _: int) -> np.ndarray:
            return np.frombuffer(archive.read(f'{folder}data/{key}'), dtype)

        return unpickler(archive.open(pickles[0]), read_storage).load()


def _read_legacy(file: BinaryIO, unpickler: type['_Unpickler']) -> Any:
    """Reads the pickle twice: the types of the storages, which follow it, are in it."""
    _, protocol, system = (_Unpickler(file).load() for _ in range(3))
    if protocol != _LEGACY_PROTOCOL or not system['little_endian']:
        raise TorchFileError(f'protocol {protocol} on {system}, expected {_LEGACY_PROTOCOL} and a '
                             'little-endian machine')
    begin, size = file.tell(), os.fstat(file.fileno()).st_size
    dtypes, storages = {}, {}

    def measure(dtype: str, key: str, n_values: int) -> np.ndarray:
        dtypes[key] = np.dtype(dtype)
        if not 0 <= n_values * dtypes[key].itemsize <= size:
            raise TorchFileError(f'storage {key}: {n_values} values in a file of {size} bytes')
        return np.zeros(n_values, dtype)

    unpickler(file, measure).load()
    for key in _Unpickler(file).load():
        n_bytes = int.from_bytes(file.read(8), 'little') * dtypes[key].itemsize
        storages[key] = np.frombuffer(file.read(n_bytes), dtypes[key])
    file.seek(begin)
    return unpickler(file, lambda dtype, key, n_values: storages[key]).load()


def _no_storage(dtype: str, key: str, n_values: int) -> np.ndarray:
    raise TorchFileError('a tensor where none belongs')


class _Unpickler(pickle.Unpickler):
    """Unpickles tensors and plain containers; `find_class` is the gate."""

    def __init__(self, file: BinaryIO,
                 read_storage: Callable[[str, str, int], np.ndarray] = _no_storage,
                 encoding: str = 'utf-8'):
        """`read_storage` maps dtype, key and number of values to the values in 1-D."""
        super().__init__(file, encoding=encoding)
        self._read_storage = read_storage
        self._storages: dict[str, _Storage] = {}
        self._known = {
            ('torch._utils', '_rebuild_tensor_v2'): self._tensor,
            ('torch._utils', '_rebuild_parameter'): lambda tensor, *_: tensor,
            ('collections', 'OrderedDict'): collections.OrderedDict,
            ('numpy', 'dtype'): type('Record', (Stub,), dict(kind='numpy.dtype')),
            ('numpy', 'ndarray'): 'ndarray',  # a text, as those of the storages
            ('_codecs', 'encode'): lambda text, encoding: text.encode('latin1'),  # of bytes
        }
        for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
            self._known[module, '_reconstruct'] = lambda *_: _Array(0)
            self._known[module, 'scalar'] = _numpy_scalar

    def find_class(self, module: str, name: str) -> Any:
        """Looks a global up in the list of the allowed ones; nothing is imported."""
        if (module, name) in self._known:
            return self._known[module, name]
        if module == 'torch' and name in _STORAGE_DTYPES:
            # A text: unlike a class or an object, the pickle can't call it or set its attributes.
            return name
        return self._unknown(module, name)

    def _unknown(self, module: str, name: str) -> Any:
        raise TorchFileError(f'{module}.{name} is refused, only tensors and containers are read')

    def persistent_load(self, pid: Any) -> _Storage:
        """Reads the storage that (tag, class, key, device, number of values) refers to."""
        tag, kind, key, _, n_values, *view = pid
        if tag != 'storage' or not isinstance(key, str) or view not in ([], [None]):
            raise TorchFileError(f'reference to {tag!r} {key!r}, expected a storage')
        if not isinstance(kind, str) or kind not in _STORAGE_DTYPES:
            raise TorchFileError(f'storage {key}: of an unknown type, expected one of '
                                 f'{", ".join(_STORAGE_DTYPES)}')
        if key not in self._storages:
            values = self._read_storage(_STORAGE_DTYPES[kind], key, n_values)
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
        steps = [step * storage.values.itemsize for step in stride]
        values = np.lib.stride_tricks.as_strided(
            storage.values[offset:], size, steps, writeable=False).copy()
        if storage.kind == 'BFloat16Storage':
            # The shift makes a scalar of a 0-d array.
            return np.asarray(values.astype(np.uint32) << 16).view(np.float32)
        return values


class _CheckpointUnpickler(_Unpickler):
    """Unpickles also what it doesn't know, as a `Stub`."""

    def _unknown(self, module: str, name: str) -> Any:
        # A class of its own, since pickle makes objects of classes alone.
        return type('Record', (Stub,), dict(kind=f'{module}.{name}'))


def _numpy_scalar(dtype: Stub, content: bytes | str) -> int | float | complex | bool:
    """Stands in for `numpy.core.multiarray.scalar`."""
    return np.frombuffer(_as_bytes(content), _dtype(dtype, r'[biufc]\d+')).item()


def _as_bytes(content: Any) -> Any:
    """Bytes, which Python 2 pickled as a text."""
    return content.encode('latin1') if isinstance(content, str) else content


class _Array(np.ndarray):
    """A numpy array while it is unpickled: of numbers, texts, or of any objects."""

    def __setstate__(self, state):
        _, shape, dtype, is_fortran, content = state
        content = _as_bytes(content)
        dtype = _dtype(dtype, r'[biufcUSO]\d+|V2')
        is_shape = all(isinstance(n, int) and n >= 0 for n in shape)
        if not is_shape or not isinstance(content, list if dtype.kind == 'O' else bytes):
            raise TorchFileError(f'numpy array of type {dtype} and shape {shape} in a '
                                 f'{type(content).__name__}')
        super().__setstate__((1, shape, dtype, is_fortran, content))


def _dtype(stub: Stub, known: str) -> np.dtype:
    """The type that a pickled numpy.dtype names, if its code is one of `known`."""
    code, order = stub.args[0], stub.state[1]
    if not re.fullmatch(known, code) or order not in ('<', '>', '|', '='):
        raise TorchFileError(f'numpy values of type {code!r}, expected numbers')
    return np.dtype(order + code)

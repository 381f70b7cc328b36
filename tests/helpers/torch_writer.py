"""Writes files as `torch.save` does, without PyTorch: for tests of what reads them."""

import argparse
import collections
import pickle
import sys
import types
import zipfile
from unittest import mock

import numpy as np


def _stand_in(module, name, base=object, **fields):
    """A class that pickles under the name of one that is not installed."""
    return type(name, (base,), dict(fields, __module__=module, __qualname__=name))


_Storage = _stand_in('torch', 'FloatStorage')
_Device = _stand_in('torch', 'device', __reduce__=lambda self: (_Device, ('cuda', 0)))
_Config = _stand_in('nncore.utils.config', 'Config', collections.OrderedDict)


def _rebuild_tensor_v2(*_):
    """Only its name is pickled."""


_rebuild_tensor_v2.__module__ = 'torch._utils'


class _Memory:
    """Of one tensor."""

    def __init__(self, key, values):
        self.key, self.values = key, values


def options(values, **nested):
    """A Namespace as the public codes save it.

    Args:
      values: plain options.
      **nested: options that are config objects of the library nncore.
    """
    found = argparse.Namespace(device=_Device(), **values)
    for name, value in nested.items():
        node = _Config(model=_Config(value))
        node._frozen = False
        setattr(found, name, node)
    return found


def save(path, content):
    """Writes `content`, its numpy arrays (float32) as tensors, in the zip format."""
    memories = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, _Memory):
                return 'storage', _Storage, value.key, 'cuda:0', value.values.size

        def reducer_override(self, value):
            if not isinstance(value, np.ndarray):
                return NotImplemented
            memories.append(_Memory(str(len(memories)), np.ascontiguousarray(value, '<f4')))
            steps = tuple(n // value.itemsize for n in np.ascontiguousarray(value).strides)
            return _rebuild_tensor_v2, (
                memories[-1], 0, value.shape, steps[: value.ndim], False, collections.OrderedDict()
            )

    modules = {name: types.ModuleType(name) for name in
               ('torch', 'torch._utils', 'nncore', 'nncore.utils', 'nncore.utils.config')}
    modules['torch'].FloatStorage, modules['torch'].device = _Storage, _Device
    modules['torch._utils']._rebuild_tensor_v2 = _rebuild_tensor_v2
    modules['nncore.utils.config'].Config = _Config
    with zipfile.ZipFile(path, 'w') as archive, mock.patch.dict(sys.modules, modules):
        with archive.open('model_best/data.pkl', 'w') as file:
            Pickler(file, protocol=2).dump(content)
        for memory in memories:
            archive.writestr(f'model_best/data/{memory.key}', memory.values.tobytes())
        archive.writestr('model_best/version', '3\n')
    return path

"""What a checkpoint file of a public training code holds, under whatever names."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import files, torch_file
from data_pipelines.errors import one_line
from dualground_jax.state_dict import ConvertError, listed

# What training codes call the weights, their moving average, and the options.
_WEIGHTS = ('model', 'state_dict', 'model_state_dict', 'model_state', 'net', 'weights')
_EMA = ('model_ema', 'ema', 'ema_model', 'state_dict_ema', 'ema_state_dict', 'model_ema_state_dict')
_OPTIONS = ('opt', 'args', 'options', 'config', 'cfg', 'hyper_parameters')
# Wrappers put these before all names of a model: DataParallel, Lightning, torch.compile.
_PREFIXES = ('module.', 'model.', 'net.')
_COMPILED = '_orig_mod.'  # also within names
_BESIDE = ('criterion.', 'n_averaged')  # tensors that are not the model's


class Content(NamedTuple):
    """Weights by torch names and the options of the command line, None where there are none."""

    state: dict[str, np.ndarray]
    options: dict[str, Any] | None
    ema: dict[str, np.ndarray] | None


def read(path: str, options_path: str | None = None) -> Content:
    """Reads a checkpoint; options of the JSON file `options_path` count more than its own.

    Raises:
        TorchFileError: the file is damaged or of another kind.
        ConvertError: a file can't be read, or holds no weights.
    """
    try:
        found = torch_file.read_checkpoint(path)
    except OSError as error:
        raise ConvertError(f"{path}: can't be read: {error.strerror}") from error
    if not isinstance(found, Mapping):
        raise ConvertError(f'{path}: holds a {type(found).__name__}, expected weights by name')
    _, given = _first(found, _OPTIONS)
    options = None if given is None else _plain_options(given)
    if options is None and given is not None:
        raise ConvertError(f'{path}: its options are {files.short(given)}, expected names and '
                           'values')
    if options_path:
        options = (options or {}) | _read_options(options_path)
    if _is_state(found):
        return Content(_bare(found), options, None)
    (name, weights), (ema_name, ema) = _first(found, _WEIGHTS), _first(found, _EMA)
    for key, value in ((name, weights), (ema_name, ema)):
        if value is not None and not _is_state(value):
            raise ConvertError(f'{path}: {key!r} is not a state dict of tensors')
    if weights is None and ema is None:
        keys = listed(map(str, found))
        raise ConvertError(f"{path}: holds {keys}, expected weights, as in 'model'")
    weights, ema = (ema, None) if weights is None else (weights, ema)
    return Content(_bare(weights), options, ema and _bare(ema))


def _first(found: Mapping, names: Sequence[str]) -> tuple[str, Any]:
    """The first of the names that the mapping has a value for, and it; else '' and None."""
    return next(((name, found[name]) for name in names if found.get(name) is not None), ('', None))


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(
        isinstance(name, str) and isinstance(entry, np.ndarray) for name, entry in value.items())


def _bare(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict under the names that the model itself gives."""
    state = {name.replace(_COMPILED, ''): value for name, value in state.items()
             if not name.startswith(_BESIDE)}
    while prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in state)), ''):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _read_options(path: str) -> dict[str, Any]:
    files.check_genuine(path)
    try:
        with open(path, encoding='utf-8') as file:
            options = json.load(file)
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path}: can't be read as JSON: {one_line(error)} (--options)"
                           ) from error
    if not isinstance(options, dict):
        raise ConvertError(f'{path}: holds {files.short(options)}, expected a JSON object '
                           '(--options)')
    return options


def _plain_options(value: Any) -> dict[str, Any] | None:
    """Options of a dict, Namespace, EasyDict, ConfigDict or DictConfig; None if it is no such."""
    while isinstance(value, torch_file.Stub):
        value = _first(value.fields, ('_content', '_fields'))[1] or value.fields
    if not isinstance(value, Mapping) or not value:
        return None
    options = {str(name): _plain_value(entry) for name, entry in value.items()}
    plain = bool | int | float | str | list | tuple | None
    return {name: entry for name, entry in options.items() if isinstance(entry, plain)}


def _plain_value(value: Any) -> Any:
    """A number, text or list behind the objects that wrap it in some libraries."""
    if isinstance(value, torch_file.Stub):
        if value.kind.startswith('pathlib.'):
            return '/'.join(map(str, value.args))
        if '_val' in value.fields:
            return value.fields['_val']
        value = value.fields.get('_content') or value.elements or value
    if isinstance(value, list | tuple):
        return [_plain_value(entry) for entry in value]
    return value

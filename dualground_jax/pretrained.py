"""Trained models, wherever they lie: in the workdir of their run, or in a pretrained folder.

A pretrained folder holds config.json, the whole config of the run with what is told of its best
checkpoint beside it (`pretrained`); model.safetensors, the parameters that are evaluated, by their
paths; and README.md, the model card. It is what is published.
"""

import json
import math
import os
import pathlib
import re
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines import datasets, files, recipe
from data_pipelines.errors import ConfigError, UserError, one_line
from dualground_jax import model_card, models, state_dict
from dualground_jax.checkpoints import CheckpointError, Checkpoints, completed
from dualground_jax.state import abstract_state

FILES = CONFIG, WEIGHTS, CARD = 'config.json', 'model.safetensors', 'README.md'
SECTION = 'pretrained'  # of config.json, beside those of the config
DTYPES = 'float32', 'float16'  # of parameters in files
SECTIONS = ('seed', 'model', 'data', 'loss', 'optimizer', 'train', 'evaluate', 'mesh',
            'world')
# What predictions read of `evaluate`; models and data sets have defaults to tell kinds by.
EVALUATE = dict(batch_size=0, nms=0.0, nms_kind='', round_to=0.0, any_recipe=False)
EXPECTED = 'expected a folder that --mode=publish or save_pretrained wrote'


def is_folder(source: str | os.PathLike) -> bool:
    """Whether it is a pretrained folder, which a workdir is not."""
    folder = pathlib.Path(source)
    return not (folder / 'checkpoints').exists() and any(
        (folder / name).is_file() for name in (CONFIG, WEIGHTS))


def config_of(source: str | os.PathLike) -> ConfigDict:
    """The config of a workdir's best checkpoint or of a pretrained folder, locked.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    return _read_config(source)[0] if is_folder(source) else Checkpoints(source).config('best')


def best_of(source: str | os.PathLike, config: ConfigDict, mesh: Mesh) -> tuple[dict, int, dict]:
    """The parameters to evaluate, of a workdir's best checkpoint or of a pretrained folder.

    Args:
        source: of the two.
        config: of the same model.
        mesh: where the parameters are placed.

    Returns:
        (parameters, step, progress of the run: best_value, best_metrics, ...).

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    abstract = abstract_state(config, mesh)
    if not is_folder(source):
        state, told = Checkpoints(source).restore('best', abstract)
        return state.eval_params, int(state.step), told
    _, told = _read_config(source)
    value = told.get('best_value')
    params = _read_weights(pathlib.Path(source), told['weights'], abstract.params)
    return params, told['best_step'], dict(told, best_value=math.nan if value is None else value)


def find(name: str | os.PathLike, revision: str | None = None) -> pathlib.Path:
    """A pretrained folder, here or on the Hugging Face hub, whose files are kept here.

    Args:
        name: of the folder, or 'OWNER/NAME' on the hub.
        revision: branch, tag or commit there.

    Raises:
        CheckpointError: there is neither.
    """
    if os.path.isdir(name):
        if not is_folder(name):
            raise CheckpointError(f'{name}: no {CONFIG}, {EXPECTED}')
        return pathlib.Path(name)
    if not is_hub_name(str(name)):
        raise CheckpointError(f'{name}: no such folder')
    try:
        return find(hub().snapshot_download(str(name), revision=revision))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise CheckpointError(f'{name}: no such folder here, and none from the Hugging Face hub: '
                              f'{one_line(error)[:150]}') from error


def is_hub_name(text: str) -> bool:
    """Whether it is of the form 'OWNER/NAME', as models of the Hugging Face hub are named."""
    return bool(re.fullmatch(r'\w[\w.-]*/[\w.-]+', text))


def push(folder: str | os.PathLike, repo_id: str, *, private: bool, token: str | None,
         revision: str | None) -> str:
    """Uploads a folder to the Hugging Face hub; returns the address of the commit.

    Raises:
        ConfigError: the hub refuses it or can't be reached.
    """
    api = hub().HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=os.fspath(folder),
                                     revision=revision, commit_message='Upload a model'))
    except Exception as error:  # also of the library that makes its requests
        raise ConfigError(f'{repo_id}: the Hugging Face hub does not take it: '
                          f'{one_line(error)[:200]}') from error


def hub() -> Any:
    """The package huggingface_hub; ConfigError if it is not installed."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError("the Hugging Face hub needs pip install 'dualground_jax[hub]'"
                          ) from error
    return huggingface_hub


# Writing


def save(folder: str | os.PathLike, config: ConfigDict, params: dict, progress: dict, *,
         dtype: str = 'float32', licence: str = '', name: str = '') -> None:
    """Writes a pretrained folder, whole or not at all.

    Absolute paths in the config keep their last part alone: the others are this machine's.

    Args:
        folder: new, or empty.
        config: whole config.
        params: to evaluate.
        progress: of the run: best_step, best_value, best_metrics, ...
        dtype: of the parameters in the file, of DTYPES.
        licence: of the model, an identifier as in 'apache-2.0'; '': the card names none.
        name: of the model in its card; default: the folder's.

    Raises:
        ConfigError: a folder that is not empty, an unknown dtype, or parameters beyond it.
    """
    check_new(folder)
    flat = {name: _cast(name, np.asarray(value), dtype) for name, value in
            flax.traverse_util.flatten_dict(jax.device_get(params), sep='/').items()}
    told = dict(
        version=_version(), weights=state_dict.digest(flat), dtype=dtype,
        best_step=progress.get('best_step', 0), best_value=progress.get('best_value'),
        best_metrics={'brief': progress.get('best_metrics', {}).get('brief', {})},
        training_data=progress.get('training_data', ''), versions=progress.get('versions', {}))
    plain = _portable(json.loads(config.to_json()))
    card = model_card.text(
        plain, _finite(told), licence=licence, name=name or pathlib.Path(folder).absolute().name,
        parameters=sum(value.size for value in flat.values()))
    with files.whole_folder(folder) as unfinished:
        files.write_safetensors(unfinished / WEIGHTS, flat)
        files.write_text(unfinished / CARD, card)
        files.write_json(unfinished / CONFIG, plain | {SECTION: _finite(told)})


def check_new(folder: str | os.PathLike) -> None:
    """Raises ConfigError if a folder that is to be written is there and not empty."""
    path = pathlib.Path(folder)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(f'{folder}: is there already, expected a new or empty folder')


def _version() -> str:
    from dualground_jax import __version__

    return __version__


def _cast(name: str, value: np.ndarray, dtype: str) -> np.ndarray:
    if dtype not in DTYPES:
        raise ConfigError(f'dtype {dtype!r}: expected one of {", ".join(DTYPES)}')
    with np.errstate(over='ignore'):
        cast = np.array(value, dtype, order='C')
    if not np.isfinite(cast).all():
        largest = np.abs(value).max()
        raise ConfigError(f'{name}: the largest value is {largest:g}, expected one that {dtype} '
                          'holds')
    return cast


def _portable(value: Any) -> Any:
    """Nested values, absolute paths in them cut to their last part."""
    if isinstance(value, dict):
        return {key: _portable(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_portable(own) for own in value]
    return os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value


def _finite(value: Any) -> Any:
    """Nested values, None in place of numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Reading


def _read_config(folder: str | os.PathLike) -> tuple[ConfigDict, dict]:
    """The config of a pretrained folder, locked, and its section `pretrained`.

    Raises:
        CheckpointError: config.json is missing, damaged or another one.
    """
    path = pathlib.Path(folder, CONFIG)
    if not path.is_file():
        raise CheckpointError(f'{path}: no such file, {EXPECTED}')
    plain = files.read_json(path)
    told = plain.pop(SECTION, None)
    for name, found, kind in (
            (SECTION, told, dict), *((name, plain.get(name), int if name == 'seed' else dict)
                                     for name in SECTIONS)):
        if not isinstance(found, kind):
            raise CheckpointError(f'{path}: {name} is {files.short(found)}, {EXPECTED}')
    for name, kind in dict(weights=str, best_step=int, best_metrics=dict).items():
        _check_kind(f'{path}: {SECTION}.{name}', told.get(name), kind)
    model, release = plain['model'].get('name'), [plain['data'].get(key) for key in (
        'dataset', 'features')]
    if model not in models.MODELS:
        raise CheckpointError(f'{path}: model.name is {model!r}, known are: '
                              f'{", ".join(models.MODELS)}')
    if tuple(release) not in datasets.FEATURES:
        raise CheckpointError(f'{path}: data.dataset and data.features are {release}, which this '
                              f'version ({_version()}) does not know')
    found = completed(plain)
    # A release may leave widths and limits to its config; this one names all.
    data = datasets.defaults('qvhighlights', 'sf_clip') | datasets.defaults(*release)
    known = dict(model=dict(models.defaults(model), name=''), data=data)
    for section, defaults in known.items():
        for key in found[section].keys() - defaults.keys():
            raise CheckpointError(f'{path}: {section} has a key {key!r}, which this version '
                                  f'({_version()}) does not know')
    for section, defaults in (known | dict(evaluate=EVALUATE)).items():
        for key, default in defaults.items():
            _check_kind(f'{path}: {section}.{key}', found[section].get(key), type(default))
    recipe.parse(found['data']['recipe'], f'{path}: data.recipe')
    return ConfigDict(found).lock(), told


def _check_kind(name: str, value: Any, kind: type) -> None:
    if type(value) is not kind and (type(value), kind) != (int, float):
        raise CheckpointError(f'{name} is {files.short(value)}, expected a {kind.__name__}')


def _read_weights(folder: pathlib.Path, digest: str, abstract: dict) -> dict:
    """The parameters of a pretrained folder.

    Args:
        folder: with model.safetensors.
        digest: of them, as config.json has it.
        abstract: their shapes and placement, nested.

    Raises:
        CheckpointError: they are not the ones that were written.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f'{path}: no such file, {EXPECTED}')
    flat = files.read_safetensors(path)
    wanted = flax.traverse_util.flatten_dict(abstract, sep='/')
    if absent := sorted(wanted.keys() ^ flat.keys()):
        told = [f'{name} {"is missing" if name in wanted else "is not of this model"}'
                for name in absent]
        raise CheckpointError(f'{path}: {state_dict.listed(told)}; expected the parameters of the '
                              f'model in {CONFIG}')
    for name, leaf in wanted.items():
        if flat[name].shape != leaf.shape or str(flat[name].dtype) not in DTYPES:
            raise CheckpointError(
                f'{path}: {name} is {flat[name].dtype}{list(flat[name].shape)}, expected '
                f'{" or ".join(DTYPES)}{list(leaf.shape)} by {CONFIG}')
    if (found := state_dict.digest(flat)) != digest:
        raise CheckpointError(f'{path}: altered bytes: the checksum of its parameters is {found}, '
                              f'expected {digest} ({CONFIG}: {SECTION}.weights)')
    return flax.traverse_util.unflatten_dict({
        name: jax.device_put(flat[name].astype(leaf.dtype), leaf.sharding)
        for name, leaf in wanted.items()}, sep='/')

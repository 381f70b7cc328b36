"""Configs: of a file or a checkpoint, with values changed; an unknown key is named."""

import importlib.util
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from data_pipelines import datasets
from data_pipelines.errors import ConfigError, one_line


def load_config(
    source: str | os.PathLike, overrides: Mapping[str, Any] | None = None
) -> ConfigDict:
    """The locked config of a file or of a run.

    Args:
        source: 'configs/NAME.py' or 'configs/NAME.py:ARGUMENTS', or a workdir, which gives the
            config of its best checkpoint, or a pretrained folder.
        overrides: values of dotted keys, as in {'train.epochs': 50}.

    Raises:
        ConfigError: no such file, unknown arguments, a value of another type, or a key that the
            config lacks; lists the known ones.
        CheckpointError: the workdir holds no checkpoint.
    """
    if str(source).partition(':')[0].endswith('.py'):
        config = read_file(str(source))
    else:
        from dualground_jax import pretrained  # imports JAX

        config = pretrained.config_of(source)
    for key in overrides or ():
        check_key(config, key)
    try:
        config.update_from_flattened_dict(overrides or {})
    except TypeError as error:
        raise ConfigError(f'{source}: {one_line(error)}') from error
    return config.lock()


def read_file(named: str) -> ConfigDict:
    """The config of 'PATH' or 'PATH:ARGUMENTS'; without such a file, of one that we brought along.

    Raises:
        ConfigError: no such file, or unknown arguments.
    """
    path, _, arguments = named.partition(':')
    installed = pathlib.Path(__file__).parents[1] / path
    file = next((file for file in (pathlib.Path(path), installed) if file.is_file()), None)
    if file is None:
        raise ConfigError(f'--config={path}: no such file')
    spec = importlib.util.spec_from_file_location('config', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arguments or None)


def with_arguments(source: str, arguments: Mapping[str, Any], overrides: Mapping[str, Any]
                   ) -> ConfigDict:
    """The locked config of a file with more arguments, as of `load_config`.

    Raises:
        ConfigError: as `load_config`, or `source` is a workdir, which takes no arguments.
    """
    path, _, given = source.partition(':')
    if not path.endswith('.py'):
        raise ConfigError(f'--config={source}: a workdir takes no arguments, a file does')
    told = [given] * bool(given) + [f'{name}={value}' for name, value in arguments.items()]
    return load_config(f'{path}:{",".join(told)}', overrides)


def with_recipe(config: ConfigDict) -> ConfigDict:
    """The config to train by: `data.recipe` says how its features were made, where that is known.

    Raises:
        DataError: as `datasets.recipe_of`.
    """
    found = datasets.recipe_of(config.data)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.recipe = found.to_json() if found else ''
    return config.lock()


def differences(saved: dict, wanted: dict) -> list[str]:
    """'key: value there, value here' of each key whose values are not the same."""
    absent = 'absent'
    return [f'{key}: {saved.get(key, absent)} there, {wanted.get(key, absent)} here'
            for key in sorted(saved.keys() | wanted.keys())
            if key not in saved or key not in wanted or saved[key] != wanted[key]]


def check_key(config: ConfigDict, path: str) -> None:
    """Raises ConfigError, listing the known keys, if `path` ('a.b.c') is not in the config."""
    node, known = config, 'config'
    for key in path.split('.'):
        if not isinstance(node, ConfigDict) or key not in node:
            keys = ', '.join(sorted(node)) if isinstance(node, ConfigDict) else 'none'
            raise ConfigError(f'{known} has no key {key!r}, known are: {keys}')
        node, known = node[key], f'{known}.{key}'

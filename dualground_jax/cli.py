"""Turns mistakes on the command line into one line that says what is known instead."""

import importlib.util
import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict

from data_pipelines.errors import ConfigError, UserError


def parse(argv: list[str]) -> list[str]:
    """Parses the flags as `absl.app.run` would; exits with a one-line message on a mistake."""
    try:
        check_config(argv)
        return flags.FLAGS(argv)
    except (flags.Error, UserError) as error:
        sys.exit('error: ' + ' '.join(str(error).split()))


def check_config(argv: list[str]) -> None:
    """Loads the config that the arguments name and checks the keys that they override.

    ml_collections would do both, but without saying which keys there are.

    Raises:
      ConfigError: no such file, an error in it, or a key that the config lacks.
    """
    named = [a.partition('=')[2] for a in argv if a.startswith('--config=')]
    if not named:
        return
    path, _, argument = named[-1].partition(':')
    if not pathlib.Path(path).is_file():
        raise ConfigError(f'--config={path}: no such file')
    spec = importlib.util.spec_from_file_location('config', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(argument or None)
    for override in argv:
        if override.startswith('--config.'):
            check_key(config, override.removeprefix('--config.').partition('=')[0])


def check_key(config: ConfigDict, path: str) -> None:
    """Raises ConfigError, listing the known keys, if `path` ('a.b.c') is not in the config."""
    node, known = config, 'config'
    for key in path.split('.'):
        if not isinstance(node, ConfigDict) or key not in node:
            keys = ', '.join(sorted(node)) if isinstance(node, ConfigDict) else 'none'
            raise ConfigError(f'{known} has no key {key!r}, known are: {keys}')
        node, known = node[key], f'{known}.{key}'

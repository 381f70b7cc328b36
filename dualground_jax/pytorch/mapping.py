"""Maps options of the public PyTorch codes to ours, and back."""

from collections.abc import Mapping

import flax.traverse_util
from ml_collections import ConfigDict

from dualground_jax.pytorch.names import PublicCode
from dualground_jax.state_dict import ConvertError, listed


def read_options(code: PublicCode, options: Mapping | None, state: Mapping) -> dict:
    """What a public checkpoint says of a model and its losses: values by key of our config.

    Args:
        code: the public code of the model.
        options: of the checkpoint; None: it has none, only what follows from the state is told.
        state: torch parameter names and arrays; what no option tells follows from them.

    Raises:
        ConvertError: options that are missing; the message lists the first.
        KeyError: the state lacks an array that tells something.
    """
    if options is None:
        return code.derived(state)
    missing = sorted(set(code.options.values()) - set(options))
    if missing:
        raise ConvertError(f'options of the checkpoint lack {listed(missing)}; --options=FILE.json '
                           'adds some')
    return {key: options[name] for key, name in code.options.items()} | code.derived(state)


def public_options(code: PublicCode, config: ConfigDict) -> dict:
    """The public options that a config's model and losses stand for."""
    values = flax.traverse_util.flatten_dict(config.to_dict(), sep='.')
    return {name: values[key] for key, name in code.options.items()}

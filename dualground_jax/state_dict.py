"""Maps state dicts of PyTorch to our parameters by tables of names, and back.

A table maps flax module paths ('a/b_{}/c') to torch module paths ('x.y.{}.z'); `{}` stands for a
layer index. What a leaf becomes follows from its own name: `kernel` [*window, in, out] is the
`weight` [out, in, *window] of a linear layer or convolution, `scale` and `negative_slope` are a
`weight`. A torch path may end in 'in_proj#q', '#k' or '#v': one third of a packed attention
projection. A flax path that names a leaf itself, such as a learned token, maps to the torch
parameter of that very name.

Axes of length one that torch has and we have not are dropped without a word; on the way back
`axes` restores them.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from data_pipelines.errors import UserError


class ConvertError(UserError):
    """A state dict does not fit the model."""


def listed(items: Iterable[str], separator: str = ', ') -> str:
    """The first three items and how many more there are."""
    items = list(items)
    return separator.join(items[:3]) + f' and {len(items) - 3} more' * (len(items) > 3)


_LEAVES = dict(kernel='weight', scale='weight', negative_slope='weight', bias='bias')


def _lookup(path: tuple[str, ...], names: Mapping[str, str]) -> str | None:
    """The torch path of a flax path, with layer indices filled in."""
    for ours, theirs in names.items():
        pattern = re.escape(ours).replace(r'\{\}', r'(\d+)')
        if found := re.fullmatch(pattern, '/'.join(path)):
            return theirs.format(*found.groups())
    return None


def torch_leaf(path: tuple[str, ...], names: Mapping[str, str]) -> tuple[str, int | None]:
    """Torch parameter of a flax leaf, '' if there is none, and which third of it, None if all."""
    if (whole := _lookup(path, names)) is not None:
        return whole, None
    module, leaf = _lookup(path[:-1], names), _LEAVES.get(path[-1])
    if module is None or leaf is None:
        return '', None
    base, packed, part = module.partition('#')
    return (f'{base}_{leaf}', 'qkv'.index(part)) if packed else (f'{module}.{leaf}', None)


def matching(names: Iterable[str], patterns: tuple[str, ...]) -> set[str]:
    """The names that a regular expression matches."""
    return {name for name in names if any(re.fullmatch(pattern, name) for pattern in patterns)}


def from_torch(
    state: Mapping[str, np.ndarray],
    params: Mapping,
    names: Mapping[str, str],
    *,
    unused: tuple[str, ...] = (),
) -> dict:
    """Fills the tree of `params` with the values of a torch state dict.

    Args:
        state: torch parameter names and arrays.
        params: our parameters, nested; only paths and shapes are used.
        names: table of module names.
        unused: regular expressions of torch names that are left out on purpose.

    Returns:
        A nested dict of the structure of `params`.

    Raises:
        ConvertError: a parameter of ours that no torch array fills, an array that nothing uses, or
            one of another shape; the message lists the first.
    """
    flat, problems, used = {}, [], set()
    for path, leaf in flax.traverse_util.flatten_dict(params).items():
        ours = '/'.join(path)
        theirs, third = torch_leaf(path, names)
        if theirs not in state:
            problems.append(f'{ours}: nothing fills it (looked for {theirs or "no name"!r})')
            continue
        used.add(theirs)
        value = np.asarray(state[theirs])
        value = value if third is None else np.array_split(value, 3)[third]
        value = np.moveaxis(value, (0, 1), (-1, -2)) if path[-1] == 'kernel' else value
        if value.squeeze().shape == tuple(n for n in leaf.shape if n != 1):
            value = value.reshape(leaf.shape)
        else:
            problems.append(f'{ours}: shape {leaf.shape}, but {theirs} gives {value.shape}')
        flat[path] = value
    left = set(state) - used - matching(state, unused)
    problems += [f'{name}: nothing uses it' for name in sorted(left)]
    if problems:
        raise ConvertError(f'weights do not fit: {listed(problems, "; ")}')
    return flax.traverse_util.unflatten_dict(flat)


def to_torch(
    params: Mapping, names: Mapping[str, str], axes: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """The torch state dict of our parameters: what `from_torch` reads, bit for bit.

    Args:
        params: our parameters, nested.
        names: table of module names.
        axes: regular expression of torch names -> index that restores axes of length one.

    Raises:
        ConvertError: parameters without a torch name; the message lists the first.
    """
    state, thirds, problems = {}, {}, []
    for path, leaf in flax.traverse_util.flatten_dict(params).items():
        theirs, third = torch_leaf(path, names)
        value = np.asarray(leaf)
        value = np.moveaxis(value, (-1, -2), (0, 1)) if path[-1] == 'kernel' else value
        if not theirs:
            problems.append('/'.join(path))
        elif third is None:
            state[theirs] = value
        else:
            thirds.setdefault(theirs, [None] * 3)[third] = value
    if problems:
        raise ConvertError(f'PyTorch has no name for {listed(problems)}')
    state |= {name: np.concatenate(values) for name, values in thirds.items()}
    for pattern, index in (axes or {}).items():
        for name in matching(state, (pattern,)):
            state[name] = state[name][index]
    return {name: np.array(value, order='C') for name, value in state.items()}


def nest(flax_prefix: str, torch_prefix: str, table: Mapping[str, str]) -> dict[str, str]:
    """Puts a table of a submodule under prefixes; either may be empty."""
    return {
        f'{flax_prefix}/{ours}'.strip('/'): f'{torch_prefix}.{theirs}'.strip('.')
        for ours, theirs in table.items()
    }


def digest(params: Mapping, *others: Any) -> str:
    """A short hash of parameters' names and values, and of what else is given."""
    found = hashlib.sha256(repr(others).encode())
    for path, leaf in sorted(flax.traverse_util.flatten_dict(params, sep='/').items()):
        found.update(f'{path}{leaf.shape}{leaf.dtype}'.encode())
        found.update(np.ascontiguousarray(leaf))
    return found.hexdigest()[:16]

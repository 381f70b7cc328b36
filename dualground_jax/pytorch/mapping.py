"""Maps weights of PyTorch modules to ours and back, driven by a model's table of names.

A table maps flax module paths ('a/b_{}/c') to torch module paths ('x.y.{}.z'); `{}` stands for a
layer index. What a leaf becomes follows from its own name: `kernel` is the transposed `weight` of
a linear layer or convolution, `scale` and `negative_slope` are a `weight`. A torch path may end in
'in_proj#q', '#k' or '#v': one third of a packed attention projection. A flax path that names a
leaf itself, such as a learned token, maps to the torch parameter of that very name.

Axes of length one that torch has and we have not are dropped without a word; on the way back a
table of axes restores them. Files and configs are the matter of `torch_checkpoint`.
"""

import re
from collections.abc import Iterable, Mapping

import flax.traverse_util
import numpy as np

from data_pipelines.errors import UserError


class ConvertError(UserError):
    """A state dict does not fit the model."""


_LEAVES = {
    'kernel': 'weight',
    'scale': 'weight',
    'negative_slope': 'weight',
    'embedding': 'weight',
    'bias': 'bias',
}


def nest(flax_prefix: str, torch_prefix: str, table: Mapping[str, str]) -> dict[str, str]:
    """Puts a table of a submodule under prefixes; either may be empty."""
    join = lambda separator, *parts: separator.join(p for p in parts if p)  # noqa: E731
    return {
        join('/', flax_prefix, k): join('.', torch_prefix, v) for k, v in table.items()
    }


def subtable(table: Mapping[str, str], flax_prefix: str, torch_prefix: str) -> dict[str, str]:
    """The part of a table under both prefixes, with them removed: the table of a submodule."""
    return {
        k.removeprefix(flax_prefix).lstrip('/'): v.removeprefix(torch_prefix).lstrip('.')
        for k, v in table.items()
        if k.startswith(flax_prefix) and v.startswith(torch_prefix)
    }


def _lookup(path: str, names: Mapping[str, str]) -> str | None:
    """The torch path of a flax path, with layer indices filled in."""
    for ours, theirs in names.items():
        pattern = re.escape(ours).replace(r'\{\}', r'(\d+)')
        if found := re.fullmatch(pattern, path):
            return theirs.format(*found.groups())
    return None


def torch_leaf(path: tuple[str, ...], names: Mapping[str, str]) -> tuple[str, int]:
    """Torch parameter of a flax leaf, '' if there is none, and which third of it (-1: all)."""
    if (whole := _lookup('/'.join(path), names)) is not None:
        return whole, -1
    module = _lookup('/'.join(path[:-1]), names)
    if module is None or path[-1] not in _LEAVES:
        return '', -1
    leaf = _LEAVES[path[-1]]
    base, _, part = module.partition('#')
    if part:
        return f'{base}_{leaf}', 'qkv'.index(part)
    return f'{module}.{leaf}', -1


def _to_flax(value: np.ndarray, leaf: str, third: int, shape: tuple[int, ...]) -> np.ndarray:
    if third >= 0:
        value = np.split(value, 3)[third]
    if leaf == 'kernel':
        # Conv2d with a kernel of height 1 acts along time only.
        if value.ndim == 4 and value.shape[2] == 1:
            value = value[:, :, 0]
        value = value.T
    # torch keeps axes of length 1 where we have none, such as a PReLU's slope.
    if value.squeeze().shape == tuple(n for n in shape if n != 1):
        value = value.reshape(shape)
    return value


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
        one of another shape; the message lists them all.
    """
    flat, problems, used = {}, [], set()
    for path, leaf in flax.traverse_util.flatten_dict(params).items():
        ours = '/'.join(path)
        theirs, third = torch_leaf(path, names)
        if theirs not in state:
            problems.append(f'{ours}: nothing fills it (looked for {theirs or "no name"!r})')
            continue
        used.add(theirs)
        value = _to_flax(np.asarray(state[theirs]), path[-1], third, leaf.shape)
        if value.shape != leaf.shape:
            problems.append(f'{ours}: shape {leaf.shape}, but {theirs} gives {value.shape}')
        flat[path] = value
    left = set(state) - used - matching(state, unused)
    problems += [f'{name}: nothing uses it' for name in sorted(left)]
    if problems:
        raise ConvertError('weights do not fit: ' + '; '.join(problems))
    return flax.traverse_util.unflatten_dict(flat)


def to_torch(params: Mapping, names: Mapping[str, str], axes: Mapping) -> dict[str, np.ndarray]:
    """The torch state dict of our parameters: what `from_torch` reads, bit for bit.

    Args:
      params: our parameters, nested.
      names: table of module names.
      axes: regular expression of torch names -> index that gives a value, transposed as torch has
        it, the axes of length one that torch has.

    Raises:
      ConvertError: parameters without a torch name; the message lists them all.
    """
    state, parts, problems = {}, {}, []
    for path, leaf in flax.traverse_util.flatten_dict(params).items():
        theirs, third = torch_leaf(path, names)
        value = np.asarray(leaf).T if path[-1] == 'kernel' else np.asarray(leaf)
        if not theirs:
            problems.append('/'.join(path))
        elif third >= 0:
            parts.setdefault(theirs, {})[third] = value
        else:
            state[theirs] = value
    if problems:
        raise ConvertError(f'PyTorch has no name for {", ".join(problems)}')
    state |= {name: np.concatenate([thirds[i] for i in range(3)]) for name, thirds in parts.items()}
    for name in state:
        for pattern, index in axes.items():
            if re.fullmatch(pattern, name):
                state[name] = state[name][index]
    return {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in state.items()}


def read_options(module, options: Mapping, state: Mapping) -> tuple[dict, dict]:
    """What the options and weights of a public checkpoint say of a model.

    Args:
      module: the model file; its TORCH_OPTIONS and TORCH_LOSS name our fields' public options.
      options: of the checkpoint.
      state: torch parameter names and arrays; what no option tells follows from them.

    Returns:
      (fields of `Model`, values of its `loss` section).

    Raises:
      ConvertError: options that are missing; the message lists them all.
    """
    wanted = {**module.TORCH_OPTIONS, **module.TORCH_LOSS}
    missing = sorted(set(wanted.values()) - set(options))
    if missing:
        raise ConvertError(f'options of the checkpoint lack {", ".join(missing)}')
    fields = {ours: options[theirs] for ours, theirs in module.TORCH_OPTIONS.items()}
    loss = {tuple(ours.split('/')): options[theirs] for ours, theirs in module.TORCH_LOSS.items()}
    return fields | module.torch_fields(state), flax.traverse_util.unflatten_dict(loss)

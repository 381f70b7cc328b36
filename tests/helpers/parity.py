"""Golden numbers of components, and how ours are compared with them.

Outputs agree to `TOLERANCE` of an array's scale, gradients to as much of the component's largest
gradient.
"""

import re
from collections.abc import Callable, Iterable, Mapping

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualground_jax import state_dict
from tests.helpers.paths import goldens_dir

TOLERANCE = 1e-5


def component(name: str) -> dict[str, np.ndarray]:
    """The arrays of 'FOLDER/NAME.npz'; skips the test where the goldens lack it."""
    path = goldens_dir() / f'{name}.npz'
    if not path.is_file():
        pytest.skip(f'no component golden {path}')
    return dict(np.load(path))


def part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays below a prefix: of 'w' those of 'w/NAME', by NAME."""
    start = f'{prefix}/'
    return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}


class Component:
    """A component's arrays by prefix: `g.inputs['x']`, `g.out['y']`, ...

    Those are the inputs and outputs of a call, the weights `w` by torch names, the cotangents `ct`
    of the outputs, and the gradients by weights (`grad_w`) and by inputs (`grad_in`) under them.
    """

    def __init__(self, name: str):
        self.arrays = component(name)
        self.w, self.inputs, self.out = (part(self.arrays, p) for p in ('w', 'in', 'out'))
        self.ct, self.grad_w, self.grad_in = (
            part(self.arrays, p) for p in ('ct', 'grad/w', 'grad/in')
        )


def assert_close(actual, expected, scale=None, name=''):
    """Equal to `TOLERANCE` of the scale; default: the largest expected value."""
    scale = np.abs(expected).max() if scale is None else scale
    actual = np.asarray(actual, np.float64)
    assert actual.shape == expected.shape, name
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=TOLERANCE * max(scale, 1e-3), err_msg=name
    )


def params_of(weights, module: nn.Module, names, *inputs, unused=(), **how) -> dict:
    """A component's weights by torch names as the variables that `module.apply` takes.

    Args:
        weights: by torch names.
        module: the linen module.
        names: its table of torch names.
        *inputs: those of the module, as examples.
        unused: torch parameters that have no counterpart on purpose.
        **how: what else `module.init` takes.
    """
    shapes = jax.eval_shape(lambda: nn.unbox(module.init(jax.random.key(0), *inputs, **how)))
    return {'params': state_dict.from_torch(weights, shapes['params'], names, unused=unused)}


def names_without_parameter(names: Iterable[str], params: Mapping) -> list[str]:
    """The names of a table that lead to no parameter."""
    paths = flax.traverse_util.flatten_dict(params, sep='/')
    patterns = {name: re.escape(name).replace(r'\{\}', r'\d+') + '(/[a-z_]+)?' for name in names}
    return [
        name for name, pattern in patterns.items()
        if not any(re.fullmatch(pattern, path) for path in paths)
    ]


def check_module(
    golden: Component,
    module: nn.Module,
    names: Mapping[str, str],
    call: Callable,
    diff: Iterable[str],
    unused: tuple[str, ...] = (),
) -> None:
    """Outputs, and gradients by weights and inputs, of a module under the golden's cotangents.

    Args:
        golden: the component.
        module: the linen module.
        names: its table of torch names.
        call: (module, inputs) -> dict of the outputs that the golden names.
        diff: inputs to differentiate by.
        unused: torch parameters that have no counterpart on purpose.
    """
    inputs = {k: jnp.asarray(v) for k, v in golden.inputs.items()}
    to_ours = lambda values: params_of(
        values, module, names, inputs, method=call, unused=unused
    )
    params = to_ours(golden.w)
    assert not names_without_parameter(names, params['params'])

    @jax.jit
    def both(params, chosen):
        def total(params, chosen):
            out = module.apply(params, {**inputs, **chosen}, method=call)
            return sum((out[k] * golden.ct[k]).sum() for k in out), out

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(params, chosen)

    (_, out), (grads, found) = both(params, {name: inputs[name] for name in diff})
    assert set(out) == set(golden.ct), 'every output is compared'
    for name, value in out.items():
        # Cotangents are zero at padded queries, which we may blank; compare where they are not.
        wanted = golden.out[name]
        seen = np.broadcast_to(golden.ct[name].any(-1, keepdims=True), wanted.shape)
        scale = np.abs(wanted).max()
        assert_close(np.where(seen, value, 0), np.where(seen, wanted, 0), scale, name)
    scale = max(np.abs(g).max() for g in (*golden.grad_w.values(), *golden.grad_in.values()))
    # Parameters that the code never used have no gradient.
    expected = to_ours({k: golden.grad_w.get(k, np.zeros_like(v)) for k, v in golden.w.items()})
    jax.tree.map_with_path(
        lambda path, a, b: assert_close(a, b, scale, jax.tree_util.keystr(path)), grads, expected
    )
    for name in diff:
        assert_close(found[name], golden.grad_in[name], scale, name)


def check_loss(function: Callable, inputs, expected, gradients) -> None:
    """A scalar loss and its gradient by the named inputs."""
    value, found = jax.jit(jax.value_and_grad(function))(
        {k: jnp.asarray(inputs[k], jnp.float32) for k in gradients}
    )
    np.testing.assert_allclose(value, expected, rtol=TOLERANCE, atol=1e-6)
    scale = max(np.abs(g).max() for g in gradients.values())
    for name, gradient in gradients.items():
        assert_close(found[name], gradient, scale, name)

"""The precision of products on accelerators."""

import re

import pytest

from configs import synthetic
from data_pipelines.errors import ConfigError
from dualground_jax import models, sharding
from dualground_jax.tpu import compile

PRODUCTS = r'stablehlo\.(?:dot_general|convolution)\b.*'


@pytest.mark.parametrize('name, precision', [('train', 'highest'), ('predict', 'high')])
def test_every_product_of_a_step_has_the_precision(name, precision):
    """As lowered for a TPU; gradients included."""
    config = synthetic.get_config('model=flash_vtg,runlocal')
    assert config.model.matmul_precision == 'highest', 'the default is float32, as in PyTorch'
    config.model.matmul_precision = precision
    step, arguments = compile.make_step(name, config, sharding.one_device())
    text = step.trace(*arguments).lower(lowering_platforms=('tpu',)).as_text()
    products = re.findall(PRODUCTS, text)
    assert len(products) > 30
    found = [re.findall(r'\b(?:DEFAULT|HIGH|HIGHEST)\b', product) for product in products]
    assert found == [[precision.upper()] * 2] * len(products)


def test_an_unknown_precision_is_named():
    section = synthetic.get_config().model
    section.matmul_precision = 'fp32'
    with pytest.raises(ConfigError, match="matmul_precision='fp32': expected one of highest, high"):
        models.build(section).precisely  # noqa: B018

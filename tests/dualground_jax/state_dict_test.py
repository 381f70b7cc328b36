"""Weights by torch names become our trees, and back; no name in a table is without use."""

import numpy as np
import pytest

from configs import qvh
from dualground_jax import sharding, state, state_dict
from dualground_jax.pytorch import names
from tests.helpers import golden_models, parity


@pytest.mark.parametrize('model', names.CODES)
def test_names_all_lead_to_parameters(model):
    config = qvh.get_config(f'model={model},features=sf_clip')
    if 'strides' in config.model:
        config.model.strides = (1, 256)  # the longest chain of convolutions that has names
    config.data.max_clips = 256
    params = state.abstract_state(config, sharding.one_device()).params
    assert not parity.names_without_parameter(names.CODES[model].names, params)


def test_conversion_names_what_does_not_fit():
    params = {'a': {'kernel': np.zeros((2, 3)), 'bias': np.zeros(3)}, 'b': {'scale': np.zeros(2)}}
    state = {'x.weight': np.zeros((3, 2)), 'x.bias': np.zeros(4), 'old.weight': np.zeros(1)}
    with pytest.raises(state_dict.ConvertError) as error:
        state_dict.from_torch(state, params, {'a': 'x', 'b': 'y'})
    for part in ('b/scale: nothing fills it', 'y.weight', 'a/bias: shape (3,)', 'old.weight'):
        assert part in str(error.value)


@pytest.mark.parametrize('folder', golden_models.folders())
def test_round_trip_is_exact(folder):
    golden = golden_models.golden_model(folder)
    found = state_dict.to_torch(golden.params['params'], golden.code.names, names.AXES)
    unused = state_dict.matching(golden.state, golden.code.unused)
    assert found.keys() == golden.state.keys() - unused
    for name, value in found.items():
        assert (value.shape, value.dtype) == (golden.state[name].shape, np.float32), name
        np.testing.assert_array_equal(value, golden.state[name])


def test_parameters_without_a_name_are_an_error():
    params = dict(known=dict(kernel=np.ones((2, 3))), other=dict(bias=np.ones(3)))
    with pytest.raises(state_dict.ConvertError, match='no name for other/bias$'):
        state_dict.to_torch(params, {'known': 'theirs'})

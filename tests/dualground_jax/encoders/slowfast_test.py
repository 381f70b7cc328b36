"""Tests of SlowFast: outputs of the public codes, the three kinds of files, batches, bad files."""

import json
import pathlib
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import torch_file
from data_pipelines.errors import ConfigError, DataError
from dualground_jax.encoders import slowfast
from tests.helpers import torch_writer
from tests.helpers.parity import assert_close
from tests.helpers.paths import goldens_dir
from tests.helpers.python2_pickler import Python2Pickler

FILES = pathlib.Path(__file__).parent / 'slowfast_files'
VIDEO_FILE = FILES / 'pytorchvideo.pyth'


@pytest.fixture(scope='module')
def encoder():
    return slowfast.load(VIDEO_FILE, batch_size=2)


@pytest.fixture(scope='module')
def clips():
    return np.load(FILES / 'pytorchvideo.npz')['clips']


def public_state():
    """The arrays of the file by the names of PySlowFast."""
    return {slowfast_name(name): value.astype(np.float32)
            for name, value in torch_file.load(VIDEO_FILE)['model_state'].items()}


def slowfast_name(name):
    """What PySlowFast calls an array of PyTorchVideo."""
    name = re.sub(r'blocks\.(\d)\.', lambda found: f's{int(found[1]) + 1}.', name, count=1)
    name = name.replace('s7.proj', 'head.projection').replace('.norm.', '.bn.')
    name = re.sub(r'\.multipathway_fusion\.(conv)?', r'_fuse.\1', name)
    name = name.replace('conv_fast_to_slow', 'conv_f2s')
    name = re.sub(r'multipathway_blocks\.(\d)\.(conv|bn)', r'pathway\1_stem.\2', name)
    name = re.sub(r'multipathway_blocks\.(\d)\.res_blocks\.(\d+)', r'pathway\1_res\2', name)
    name = re.sub(r'branch1_conv', 'branch1', name).replace('branch1_norm', 'branch1_bn')
    return re.sub(r'branch2\.conv_', 'branch2.', re.sub(r'norm_([abc])', r'\1_bn', name))


def caffe2_name(name):
    """What Caffe2 calls an array of PySlowFast whose stages have one block each."""
    leaves = dict(weight='s', bias='b', running_mean='rm', running_var='riv')
    layer, leaf = name.rsplit('.', 1)
    leaf = leaves[leaf] if layer.endswith('bn') else leaf[0]
    layer = layer.replace('head.projection', 'pred')
    layer = re.sub(r's1_fuse\.(conv_f2s|bn)', r't_pool1_subsample.\1', layer)
    layer = re.sub(r's(\d)_fuse\.(conv_f2s|bn)', r't_res\1_0_branch2c_bn_subsample.\2', layer)
    layer = layer.replace('.conv_f2s', '').replace('subsample.bn', 'subsample_bn')
    layer = re.sub(r's1\.pathway(\d)_stem\.conv', r'pathway\1_conv1', layer)
    layer = re.sub(r's1\.pathway(\d)_stem\.bn', r'pathway\1_res_conv1_bn', layer)
    layer = re.sub(r's(\d)\.pathway(\d)_res(\d+)\.', r'pathway\2_res\1_\3_', layer)
    layer = layer.replace('branch2.', 'branch2').replace('pathway0_', '').replace('pathway1_', 't_')
    return f'{layer}_{leaf}'


def write_caffe2(path, state):
    blobs = {caffe2_name(name): value for name, value in state.items()
             if not name.endswith('num_batches_tracked')}
    blobs |= {f'{name}_momentum': value for name, value in blobs.items()}
    blobs |= dict(lr=np.float32(0.1), model_iter=np.array([7]))
    with open(path, 'wb') as file:
        Python2Pickler(file).dump(dict(blobs=blobs))
    return path


def test_matches_the_goldens():
    """Whatever their sizes: width, beta, alpha, fusion, depth."""
    folder = goldens_dir() / 'encoders'
    if not (folder / 'slowfast.npz').is_file():
        pytest.skip(f'no slowfast.npz in {folder}; the set is too large for the compact copy')
    sizes = json.loads((folder / 'slowfast.json').read_text())
    golden = np.load(folder / 'slowfast.npz')
    found = slowfast.load(folder / 'slowfast.pyth', alpha=sizes['alpha'])
    for name in ('beta', 'fusion_kernel', 'fusion_ratio'):
        assert getattr(found.model, name) == sizes.get(f'{name}_inv', sizes.get(name))
    assert found.model.width == sizes['width_per_group']
    assert found.width == golden['features'].shape[1]

    @jax.jit
    def outputs(params, fast):
        out = found.model.apply({'params': params}, fast)
        means = {f's2_{path}_mean': out[f'{path}_2'].mean((2, 3)) for path in ('slow', 'fast')}
        return {name: x.swapaxes(1, 2) for name, x in means.items()} | dict(
            features=out['features'])

    fast = np.moveaxis(golden['fast'], 1, -1).astype(np.float32)
    for name, value in jax.device_get(outputs(found.params, fast)).items():
        assert_close(value, golden[name], name=name)


def test_matches_pytorchvideo(encoder, clips):
    """From the bytes of pictures, in batches that are not full."""
    expected = np.load(FILES / 'pytorchvideo.npz')['features']
    assert_close(encoder.encode_clips(clips), expected)
    several = encoder.encode_clips(np.concatenate([clips, clips])[:3])
    assert_close(several, np.concatenate([expected, expected])[:3])
    assert encoder.encode_clips(clips[:0]).shape == (0, encoder.width)
    assert encoder._encode._cache_size() == 1


def test_bfloat16(encoder, clips):
    half = slowfast.load(VIDEO_FILE, 'bfloat16', batch_size=2)
    found, expected = half.encode_clips(clips), encoder.encode_clips(clips)
    assert found.dtype == np.float32 and half.weights_hash == encoder.weights_hash
    difference = np.abs(found - expected).max()
    assert 0 < difference < 0.03 * np.abs(expected).max()


def test_files_of_all_codes_hold_the_same(encoder, tmp_path):
    state = public_state()
    files = [torch_writer.save(tmp_path / 'a.pyth', dict(model_state=state, epoch=1)),
             torch_writer.save(tmp_path / 'bare.pyth', state),
             write_caffe2(tmp_path / 'a.pkl', state)]
    for path in files:
        found = slowfast.load(path)
        assert found.weights_hash == encoder.weights_hash
        assert found.model == encoder.model
        jax.tree.map(np.testing.assert_array_equal, found.params, encoder.params)
    state['s3.pathway1_res0.branch2.b.weight'] *= 1.01
    changed = slowfast.load(torch_writer.save(files[0], dict(model_state=state)))
    assert changed.weights_hash != encoder.weights_hash


@pytest.mark.parametrize('caffe2, slowfast', [
    ('res5_1_branch2b_bn_b', 's5.pathway0_res1.branch2.b_bn.bias'),
    ('res3_1_branch2a_bn_riv', 's3.pathway0_res1.branch2.a_bn.running_var'),
    ('res4_4_branch2c_w', 's4.pathway0_res4.branch2.c.weight'),
    ('t_res2_1_branch2c_w', 's2.pathway1_res1.branch2.c.weight'),
    ('t_res5_0_branch1_w', 's5.pathway1_res0.branch1.weight'),
])
def test_names_are_those_of_caffe2(caffe2, slowfast):
    """What PySlowFast told when it read SLOWFAST_8x8_R50.pkl (its issue 15)."""
    assert caffe2_name(slowfast) == caffe2


def test_alpha(encoder, tmp_path):
    """By the argument, else the file's config, else 4; but only where 4 is likely."""
    state = public_state()
    path = tmp_path / 'a.pyth'
    torch_writer.save(path, dict(model_state=state, cfg='SLOWFAST:\n  ALPHA: 8\n  BETA_INV: 8\n'))
    assert slowfast.load(path).model.alpha == 8
    assert slowfast.load(path, alpha=2).model.alpha == 2
    assert encoder.model.alpha == 4
    state |= {name: value[:, :, 1:-1] for name, value in state.items() if 'conv_f2s' in name}
    torch_writer.save(path, dict(model_state=state))
    assert slowfast.load(path, alpha=8).model.fusion_kernel == 5
    with pytest.raises(DataError, match='fusion takes 5 frames.*does not tell alpha'):
        slowfast.load(path)


def without(name):
    return lambda state: state.pop(name) is None or state


def replaced(name, change):
    return lambda state: state | {name: change(state[name])}


B = 's3.pathway1_res0.branch2.b'


@pytest.mark.parametrize('change, reason', [
    (without('s4_fuse.bn.bias'), 's4_fuse.bn.bias missing'),
    (without(f'{B}.weight'), f'{B}.weight missing'),
    (replaced(f'{B}.weight', lambda x: x[..., 0]), rf'{B}.weight \(.*\) and .*do not fit'),
    (replaced(f'{B}_bn.bias', lambda x: x[:-1]), f'{B}.weight .* and .* do not fit'),
    (replaced(f'{B}.weight', lambda x: x[:, 1:]), r'fast_3_0/b/kernel is .*, expected \(1, 3'),
    (replaced(f'{B}_bn.running_var', lambda x: -x), f'{B}.weight or its BatchNorm is not finite'),
    (lambda state: state | {'s3.pathway0_nonlocal1.conv_g.weight': np.ones(1)},
     's3.pathway0_nonlocal1.conv_g.weight is of another network'),
    (lambda state: dict(list(state.items())[:1]), 'missing'),
    (lambda state: dict(weight=np.ones(1)), 'holds weight; expected those of SlowFast'),
    (lambda state: {}, 'holds no arrays by name; expected'),
    (lambda state: [1], 'holds no arrays by name; expected'),
])
def test_refuses_other_weights(tmp_path, change, reason):
    path = torch_writer.save(tmp_path / 'a.pyth', dict(model_state=change(public_state())))
    with pytest.raises(DataError, match=reason) as info:
        slowfast.load(path)
    assert str(info.value).startswith(f'{path}: ') and '\n' not in str(info.value)


@pytest.mark.parametrize('content, reason', [
    (None, "can't be read: No such file"),
    (b'', 'not a PyTorch file'),
    (b'<!DOCTYPE html>', 'a web page'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull'),
    (VIDEO_FILE.read_bytes()[:9000], 'cut short'),
    (pickle.dumps(dict(blobs=dict(conv1_w=np.ones(3))))[:-20], 'damaged'),
    (pickle.dumps([1]), 'holds no arrays by name'),
    (pickle.dumps(dict(blobs=dict(res2_0_branch2a_w=np.ones(3)))), 'holds res2_0_branch2a_w;'),
])
def test_refuses_other_files(tmp_path, content, reason):
    path = tmp_path / 'a.pkl'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as info:
        slowfast.load(path)
    assert str(path) in str(info.value) and '\n' not in str(info.value)


@pytest.mark.parametrize('options, reason', [
    (dict(dtype='float16'), "dtype='float16': expected"),
    (dict(batch_size=0), 'batch_size=0: expected 1 or more'),
])
def test_refuses_options(options, reason):
    with pytest.raises(ConfigError, match=reason):
        slowfast.load(VIDEO_FILE, **options)


@pytest.mark.parametrize('clips', [
    np.zeros((1, 32, 8, 8, 3), np.float32), np.zeros((1, 16, 8, 8, 3), np.uint8),
    np.zeros((32, 8, 8, 3), np.uint8), np.zeros((1, 32, 3, 8, 8), np.uint8),
])
def test_refuses_other_clips(encoder, clips):
    with pytest.raises(DataError, match=r'expected uint8\[N, 32, 224, 224, 3\]'):
        encoder.encode_clips(clips)


def test_normalises():
    grey = np.array([0, 114.75, 255], np.float32)
    np.testing.assert_allclose(slowfast.normalise(jnp.asarray(grey)), [-2, 0, 22 / 9], atol=1e-6)

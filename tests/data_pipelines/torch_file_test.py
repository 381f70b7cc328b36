"""Tests of data_pipelines/torch_file.py on the files of torch_files/ and, where it is, PyTorch."""

import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from data_pipelines import torch_file
from tests.helpers.python2_pickler import Python2Pickler

FILES = pathlib.Path(__file__).parent / 'torch_files'
ROWS = np.arange(15).reshape(3, 5) / 8


def rewrite(name, path, **changes):
    """Copies FILES/name.pt to path with changed members: name of the member -> old bytes -> new."""
    with zipfile.ZipFile(FILES / f'{name}.pt') as old, zipfile.ZipFile(path, 'w') as new:
        for member in old.namelist():
            content = old.read(member)
            change = changes.get(member.split('/')[-1].replace('.pkl', ''))
            new.writestr(member, change(content) if change else content)
    return path


def refusal(path):
    with pytest.raises(torch_file.TorchFileError) as info:
        torch_file.load(path)
    message = str(info.value)
    assert message.startswith(f'{path}: ') and '\n' not in message
    return message


@pytest.mark.parametrize('name, expected', [
    ('f32', ROWS.astype(np.float32)),
    ('f16', ROWS.astype(np.float16)),
    ('bf16', ROWS.astype(np.float32)),
    ('f64', ROWS),
    ('i64', np.arange(-3, 3)),
    ('u8', np.arange(250, 256).astype(np.uint8)),
    ('bool', np.arange(6) % 3 == 0),
    ('transposed', ROWS.T.astype(np.float32)),
    ('sliced', ROWS[1:, 1::2].astype(np.float32)),
    ('expanded', np.tile(ROWS[1:2], (4, 1)).astype(np.float32)),
    ('empty', np.zeros((5, 0), np.float32)),
    ('scalar', np.array(2.5, np.float32)),
    ('parameter', ROWS.astype(np.float32)),
    ('legacy', ROWS.astype(np.float32)),  # the format before PyTorch 1.6
])  # fmt: skip
def test_reads_tensor(name, expected):
    found = torch_file.load(FILES / f'{name}.pt')
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)
    assert found.flags.c_contiguous and found.flags.writeable


def test_load_returns_nested_containers():
    nested = torch_file.load(FILES / 'nested.pt')
    assert list(nested) == ['a', 'b'] and nested['b'][1] == {'step': 3}
    np.testing.assert_array_equal(nested['a'], ROWS)
    np.testing.assert_array_equal(nested['b'][0], ROWS[0])


def test_reads_tensor_of_another_device(tmp_path):
    def move(content):
        assert b'X\x03\x00\x00\x00cpu' in content
        return content.replace(b'X\x03\x00\x00\x00cpu', b'X\x06\x00\x00\x00cuda:0')

    path = rewrite('f32', tmp_path / 'cuda.pt', data=move)
    np.testing.assert_array_equal(torch_file.load(path), ROWS)


def test_refuses_objects():
    assert 'argparse.Namespace is refused' in refusal(FILES / 'namespace.pt')


@pytest.mark.parametrize('protocol', range(2, 5))
@pytest.mark.parametrize('array', [
    ROWS, ROWS.astype('>f4'), np.asfortranarray(ROWS), ROWS > 1, np.array(['ab', 'c']),
    np.array([None, 'a', 3]),
])
def test_reads_arrays_of_numpy(tmp_path, protocol, array):
    content = pickle.dumps(dict(x=array), protocol)
    path = rewrite('f32', tmp_path / 'a.pt', data=lambda _: content)
    found = torch_file.load(path)['x']
    assert found.dtype.kind == array.dtype.kind and found.itemsize == array.itemsize
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize('array', [ROWS, np.asfortranarray(ROWS.astype('f4')), ROWS > 1])
def test_reads_weights_of_python_2(tmp_path, array):
    path = tmp_path / 'a.pkl'
    with open(path, 'wb') as file:
        Python2Pickler(file).dump(dict(blobs=dict(x=array), lr=np.float32(0.5), note='\xe9'))
    found = torch_file.read_weights(path)
    assert found['blobs']['x'].dtype == array.dtype
    np.testing.assert_array_equal(found['blobs']['x'], array)
    assert found['lr'] == 0.5 and found['note'] == '\xe9'
    with pytest.raises(torch_file.TorchFileError, match='not a PyTorch file'):
        torch_file.read_checkpoint(path)


@pytest.mark.parametrize('name', ['f32', 'legacy'])
def test_reads_weights_of_pytorch(name):
    np.testing.assert_array_equal(torch_file.read_weights(FILES / f'{name}.pt'), ROWS)


@pytest.mark.parametrize('state', [
    (1, (2,), np.dtype('f4'), False, b'1234'), (1, (-1, -1), np.dtype('f4'), False, b'1234'),
    (1, (1,), np.dtype('O'), False, b'12345678'), (1, (1,), np.dtype('f8,O'), False, b'1' * 16),
    (1, (1,), np.dtype('f4'), False, [object]), (1, (1,), 'f4', False, b'1234'), {'a': 1}, None,
])
def test_refuses_arrays_that_are_none(tmp_path, state):
    class Array:
        def __reduce__(self):
            return np._core.multiarray._reconstruct, (np.ndarray, (0,), b'b'), state

    content = pickle.dumps(Array(), 2)
    path = rewrite('f32', tmp_path / 'a.pt', data=lambda _: content)
    if state is None:
        assert torch_file.load(path).size == 0
    else:
        refusal(path)


def test_refuses_damaged_files(tmp_path):
    whole = (FILES / 'f32.pt').read_bytes()
    path = tmp_path / 'cut.pt'
    path.write_bytes(whole[: len(whole) // 2])
    assert 'damaged or cut short' in refusal(path)

    flipped = bytearray(whole)
    flipped[whole.index(ROWS.astype(np.float32).tobytes()[4:])] ^= 1
    path.write_bytes(flipped)
    assert 'damaged' in refusal(path)

    assert '14 values, expected 15' in refusal(rewrite('f32', path, **{'0': lambda old: old[:-4]}))
    assert 'damaged (' in refusal(rewrite('f32', path, data=lambda old: old[:-20]))


def test_refuses_damaged_legacy_files(tmp_path):
    whole = (FILES / 'legacy.pt').read_bytes()
    path = tmp_path / 'cut.pt'
    for size in (len(whole) - 4, len(whole) - 70, 100):
        path.write_bytes(whole[:size])
        assert 'damaged' in refusal(path) or 'expected 15' in refusal(path)
    count = b'K\x0fNtq\x05Q'  # the storage's number of values
    assert whole.count(count) == 1
    path.write_bytes(whole.replace(count, b'J\xff\xff\xff\x7fNtq\x05Q'))
    assert '2147483647 values in a file of' in refusal(path)
    order = b'little_endianq\x02\x88'
    assert whole.count(order) == 1
    path.write_bytes(whole.replace(order, order[:-1] + b'\x89'))
    assert 'expected 1001 and a little-endian machine' in refusal(path)


@pytest.mark.parametrize('content, reason', [
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:d51e\n', 'git lfs pull'),
    (b'\xef\xbb\xbf\n <!DOCTYPE HTML><html>', 'a web page'),
    (b'hello', 'not a PyTorch file'),
    (b'', 'not a PyTorch file'),
])  # fmt: skip
def test_says_what_a_file_is_instead(tmp_path, content, reason):
    path = tmp_path / 'a.pt'
    path.write_bytes(content)
    assert reason in refusal(path)


def test_refuses_zip_of_something_else(tmp_path):
    np.savez(tmp_path / 'a.npz', features=ROWS)
    path = (tmp_path / 'a.npz').rename(tmp_path / 'a.pt')
    assert 'no data.pkl' in refusal(path)


def test_refuses_big_endian(tmp_path):
    path = rewrite('f32', tmp_path / 'big.pt', byteorder=lambda _: b'big')
    assert "b'big', expected little" in refusal(path)


@pytest.mark.parametrize('old, new', [
    (b'K\x00K\x03K\x05\x86', b'K\x00K\x04K\x05\x86'),  # a row more than the storage has
    (b'K\x00K\x03K\x05\x86', b'K\x01K\x03K\x05\x86'),  # starts one value later
    (b'K\x05K\x01\x86', b'K\x06K\x01\x86'),  # rows further apart
    (b'K\x00K\x03', b'J\xff\xff\xff\xffK\x03'),  # starts one value before the storage
])  # fmt: skip
def test_refuses_tensor_beyond_its_storage(tmp_path, old, new):
    def change(content):
        assert content.count(old) == 1
        return content.replace(old, new)

    assert 'storage of 15 values' in refusal(rewrite('f32', tmp_path / 'a.pt', data=change))


class _Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_runs_no_code_of_the_file(tmp_path):
    trace = tmp_path / 'trace'
    attack = pickle.dumps(_Attack(trace))
    pickle.loads(attack)
    assert trace.exists()  # the attack works where nothing stops it
    trace.unlink()
    message = refusal(rewrite('f32', tmp_path / 'a.pt', data=lambda _: attack))
    assert 'is refused' in message and not trace.exists()


@pytest.mark.parametrize('module, name', [
    ('collections', 'OrderedDict.fromkeys'), ('collections', 'abc.sys'), ('torch', 'load'),
    ('torch', '_utils._rebuild_tensor_v2'), ('builtins', 'eval'), ('os', 'FloatStorage'),
])  # fmt: skip
def test_refuses_every_other_global(tmp_path, module, name):
    texts = b''.join(b'\x8c' + bytes([len(text)]) + text.encode() for text in (module, name))
    path = rewrite('f32', tmp_path / 'a.pt', data=lambda _: b'\x80\x04' + texts + b'\x93.')
    assert f'{module}.{name} is refused' in refusal(path)


@pytest.mark.parametrize('name', ['checkpoint', 'checkpoint_legacy'])
def test_reads_checkpoint(name):
    found = torch_file.read_checkpoint(FILES / f'{name}.ckpt')
    assert list(found) == ['model', 'optimizer', 'lr_scheduler', 'epoch', 'opt']
    np.testing.assert_array_equal(found['model']['weight'], ROWS.astype(np.float32))
    np.testing.assert_array_equal(found['model']['bias'], np.arange(3, dtype=np.float32))
    assert found['optimizer']['state'][0]['step'] == 1 and found['epoch'] == 7
    assert found['lr_scheduler']['base_lrs'] == [1e-3]

    options = found['opt']
    assert options.kind == 'argparse.Namespace' and repr(options) == '<argparse.Namespace>'
    options = options.fields
    assert options['lr'] == 1e-3 and options['a_feat_dir'] is None
    assert options['v_feat_dirs'] == ['a/slowfast_features', 'a/clip_features']
    assert type(options['score']) is float and options['score'] == 0.5
    assert (options['device'].kind, options['device'].args) == ('torch.device', ('cuda', 0))
    assert options['results_dir'].args == ('a', 'b')
    assert options['easy'].fields['depth'].fields == {'layers': 2}
    model = options['cfg'].fields['model']
    assert model.kind == 'nncore.utils.config.Config' and model.fields['strides'] == (1, 2)
    assert model.fields['loss_cfg'].fields['type'] == 'BundleLoss'
    assert type(options['scores']).__mro__[1] is np.ndarray


class _List(list):
    pass


def test_unknown_classes_become_records(tmp_path):
    value = [_List([1, 2]), {3}, range(4), complex(1, 2)]
    path = rewrite('f32', tmp_path / 'a.ckpt', data=lambda _: pickle.dumps(value, 2))
    elements, group, numbers, number = torch_file.read_checkpoint(path)
    assert elements.elements == [1, 2] and elements.kind.endswith('torch_file_test._List')
    assert (group.kind, group.args) == ('__builtin__.set', ([3],))
    assert (numbers.kind, numbers.args) == ('__builtin__.xrange', (0, 4, 1))
    assert (number.kind, number.args) == ('__builtin__.complex', (1.0, 2.0))


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_checkpoint_runs_no_code_of_the_file(tmp_path, protocol):
    trace = tmp_path / 'trace'
    attack = pickle.dumps([_Attack(trace)], protocol)
    path = rewrite('f32', tmp_path / 'a.ckpt', data=lambda _: attack)
    try:
        (found,) = torch_file.read_checkpoint(path)
        assert found.kind == f'{pathlib.Path.__module__}.Path.touch' and protocol >= 4
    except torch_file.TorchFileError as error:  # before protocol 4 the attack calls getattr first
        assert "'Record' object is not callable" in str(error) and protocol < 4
    assert not trace.exists()


@pytest.mark.parametrize('code', [
    b"cos\nsystem\n(S'touch %s'\ntR.",  # a function
    b"(S'touch %s'\nios\nsystem\n.",  # as an object of a class
    b"cbuiltins\nexec\n(S'open(\"%s\", \"w\")'\ntR.",
    b"cos\nsystem\n}S'__setstate__'\ncos\nsystem\nsbS'touch %s'\nb.",  # by attributes
    b"cargparse\nNamespace\n)\x81}S'__setstate__'\ncos\nsystem\nsbS'touch %s'\nb.",
    b"ccollections\nOrderedDict\n)R}S'__setstate__'\ncos\nsystem\nsbS'touch %s'\nb.",
    b"cnumpy.core.multiarray\nscalar\n(cos\nsystem\nS'touch %s'\ntR.",
])  # fmt: skip
def test_attacks_stay_data(tmp_path, code):
    trace = tmp_path / 'trace'
    content = code.replace(b'%s', bytes(trace))
    path = rewrite('f32', tmp_path / 'a.ckpt', data=lambda _: content)
    plain = tmp_path / 'a.pkl'
    plain.write_bytes(pickle.PROTO + b'\2' + content)
    for read, file in ((torch_file.read_checkpoint, path), (torch_file.read_weights, plain)):
        try:
            read(file)
        except torch_file.TorchFileError as error:
            assert 'damaged' in str(error)
        assert not trace.exists()


def test_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        torch_file.load(tmp_path / 'none.pt')


def test_agrees_with_torch(tmp_path):
    torch = pytest.importorskip('torch')
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, 5, generator=generator)
    views = [base, base.permute(2, 0, 1), base[1:3, ::2, 3], base[0, 0, 0], base[:, :0]]
    kinds = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32,
             torch.int16, torch.int8, torch.uint8, torch.bool]
    for view in views:
        for kind in kinds:
            tensor = (view * 50).abs().to(kind)
            torch.save(tensor, tmp_path / 'a.pt')
            found = torch_file.load(tmp_path / 'a.pt')
            plain = tensor.float() if kind == torch.bfloat16 else tensor
            assert found.dtype == plain.numpy().dtype
            np.testing.assert_array_equal(found, plain.numpy())

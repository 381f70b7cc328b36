"""Tests of data_pipelines/features.py: formats, damage, and which file is taken."""

import shutil

import numpy as np
import pytest

from data_pipelines import features
from tests.helpers.paths import REPO
from tests.helpers.release_files import assert_parts, make_rows, refusal, with_value

TORCH_FILES = REPO / 'tests' / 'data_pipelines' / 'torch_files'


def save_npz(path, rows):
    np.savez(path, features=rows, other=rows[:1])


@pytest.mark.parametrize('save, suffix', [
    (save_npz, '.npz'), (lambda path, rows: np.save(path, rows), '.npy'),
])  # fmt: skip
@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
@pytest.mark.parametrize('batch', [False, True])
def test_read_features(tmp_path, save, suffix, dtype, batch):
    rows = make_rows(3, 5).astype(dtype)
    path = tmp_path / f'a.1{suffix}'
    save(path, rows[None] if batch else rows)
    found = features.read_features(path, 'features')
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, rows.astype(np.float32))


@pytest.mark.parametrize('name', ['f32', 'f16', 'bf16', 'f64'])
def test_read_features_of_torch(name):
    found = features.read_features(TORCH_FILES / f'{name}.pt', 'features')
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.arange(15).reshape(3, 5) / 8)


@pytest.mark.parametrize('rows, parts', [
    (with_value(np.nan), ['nan in row 2, column 3', 'finite']),
    (with_value(-np.inf), ['-inf in row 2, column 3', 'finite']),
    (np.full((1, 2), 1e300), ['inf in row 0, column 0']),
    (make_rows(1, 5)[0], ['shape [5]', '[n, width]']),
    (np.zeros((2, 3, 4)), ['shape [2, 3, 4]']),
    (np.zeros((0, 4)), ['shape [0, 4]', 'one or more']),
    (np.zeros((4, 0)), ['shape [4, 0]']),
    (np.zeros((2, 4), int), ['int64', 'floating point']),
    (np.zeros((2, 4), bool), ['bool', 'floating point']),
    (np.array([['a']]), ['<U1', 'floating point']),
    (np.array([[{}]], object), ["can't be read", 'Object arrays']),
])  # fmt: skip
@pytest.mark.parametrize('suffix', ['.npy', '.npz'])
def test_bad_arrays(tmp_path, rows, parts, suffix):
    path = tmp_path / f'a{suffix}'
    if suffix == '.npy':
        np.save(path, rows)
    else:
        np.savez(path, features=rows)
    assert_parts(refusal(features.read_features, path, 'features'), path, *parts)


def test_missing_key_lists_the_others(tmp_path):
    np.savez(tmp_path / 'a.npz', pooler_output=make_rows(1, 2), text=make_rows(1, 2))
    message = refusal(features.read_features, tmp_path / 'a.npz', 'features')
    assert_parts(message, tmp_path / 'a.npz', "'features'", "'pooler_output', 'text'")


@pytest.mark.parametrize('suffix', ['.npy', '.npz', '.pt'])
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f'a{suffix}'
    assert_parts(refusal(features.read_features, path, 'features'), path, 'No such file')
    if suffix == '.pt':
        shutil.copy(TORCH_FILES / 'f32.pt', path)
    elif suffix == '.npz':
        np.savez_compressed(path, features=make_rows(4, 5))
    else:
        np.save(path, make_rows(4, 5))
    whole = path.read_bytes()
    for content in (b'', b'hello', b'<html>\n<body>', whole[:60], whole[:-30], whole[:20]):
        path.write_bytes(content)
        assert_parts(refusal(features.read_features, path, 'features'), path)
    if suffix == '.npz':
        middle = len(whole) // 3
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        assert_parts(refusal(features.read_features, path, 'features'), path)


def test_damage_that_numpy_has_its_own_errors_for(tmp_path):
    path = tmp_path / 'a.npz'
    np.savez(path, features=make_rows(4, 5))
    content = bytearray(path.read_bytes())
    content[content.index(b'PK\x01\x02') + 8] |= 1  # the directory says that it's encrypted
    path.write_bytes(content)
    assert_parts(refusal(features.read_features, path, 'features'), path, 'encrypted')

    path = tmp_path / 'a.npy'
    np.save(path, make_rows(4, 5))
    path.write_bytes(path.read_bytes().replace(b'}', b' ', 1))  # the header's bracket stays open
    assert_parts(refusal(features.read_features, path, 'features'), path, "can't be read")


def test_find_file_order_and_message(tmp_path):
    message = refusal(features.find_file, tmp_path, ('qid7', '7'))
    assert_parts(message, tmp_path, 'qid7 or 7', '.npz or .npy or .pt')
    for name in ('7.npz', 'qid7.pt', 'qid7.npy'):
        (tmp_path / name).touch()
    assert features.find_file(tmp_path, ('qid7', '7')) == tmp_path / 'qid7.npy'
    assert features.find_file(tmp_path, ('7',)) == tmp_path / '7.npz'
    (tmp_path / '7.5.npz').mkdir()
    refusal(features.find_file, tmp_path, ('7.5',))


def test_a_parser_that_threads_disturbed_is_asked_again(tmp_path, monkeypatch):
    np.savez(tmp_path / 'v.npz', features=np.ones((2, 3), np.float32))
    load, calls = np.load, []

    def disturbed(*args, **options):
        calls.append(args)
        if len(calls) == 1:
            raise SystemError('AST constructor recursion depth mismatch (before=45, after=43)')
        return load(*args, **options)

    monkeypatch.setattr(np, 'load', disturbed)
    assert features.read_features(tmp_path / 'v.npz', 'features').shape == (2, 3)
    assert len(calls) == 2

"""Tests of data_pipelines/features.py: formats, damage, and which file is taken."""

import concurrent.futures
import shutil
import sys

import h5py
import ml_dtypes
import numpy as np
import pytest

from data_pipelines import datasets, features, hdf5
from data_pipelines.own_data import inspection
from tests.helpers import torch_writer
from tests.helpers.paths import REPO
from tests.helpers.release_files import (
    assert_parts,
    make_release,
    make_rows,
    refusal,
    with_value,
)

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


@pytest.mark.parametrize('suffix', ['.pt', '.pth'])
@pytest.mark.parametrize('name', ['f32', 'f16', 'bf16', 'f64'])
def test_read_features_of_torch(name, suffix, tmp_path):
    path = shutil.copy(TORCH_FILES / f'{name}.pt', tmp_path / f'a{suffix}')
    found = features.read_features(path, 'features')
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.arange(15).reshape(3, 5) / 8)


def save_pth(path, value):
    torch_writer.save(path, value)


def save_npy(path, value):
    np.save(path, value, allow_pickle=True)


def save_arrays(path, value):
    np.savez(path, **value)


def save_hdf5(path, value):
    with h5py.File(path, 'w') as file:
        file.update(value)


@pytest.mark.parametrize('save, suffix', [
    (save_pth, '.pt'), (save_pth, '.pth'), (save_npy, '.npy'), (save_arrays, '.npz'),
    (save_hdf5, '.h5'),
])
def test_files_of_several_or_one_array(tmp_path, save, suffix):
    path, rows, others = tmp_path / f'a{suffix}', make_rows(3, 5), make_rows(2, 5)
    for value in (dict(feat=rows), dict(x=others, features=rows)):
        save(path, value)
        np.testing.assert_array_equal(features.read_features(path, 'features'), rows)
    save(path, dict(x=rows, y=others))
    message = refusal(features.read_features, path, 'features')
    assert_parts(message, path, "array 'features' or one alone", "'x', 'y'")
    if suffix not in ('.npz', '.h5'):
        save(path, dict(x=rows, fps=2, name='v'))
        np.testing.assert_array_equal(features.read_features(path, 'features'), rows)
        save(path, dict(fps=2))
        assert_parts(refusal(features.read_features, path, 'features'), path, 'found none')


@pytest.mark.parametrize('suffix', ['.npy', '.npz'])
def test_bfloat16(tmp_path, suffix):
    rows = make_rows(3, 5).astype(ml_dtypes.bfloat16)
    path = tmp_path / f'a{suffix}'
    (np.save if suffix == '.npy' else np.savez)(path, rows)
    for found in (features.read_features(path, 'features'), features.check_rows(rows, 'rows')):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, rows.astype(np.float32))


# HDF5


def write_hdf5(path):
    """Writes the layouts of public releases and returns their arrays."""
    arrays = {name: make_rows(4, 5, seed) for seed, name in enumerate('abcd')}
    with h5py.File(path, 'w') as file:
        file['a'] = arrays['a']  # Charades-STA, TACoS
        file.create_group('b')['c3d_features'] = arrays['b']  # ActivityNet
        file.create_group('c').update(features=arrays['c'], fps=np.ones(1))
        file.create_group('videos')['d'] = arrays['d'][None]
        file['damaged'], file['ids'] = np.full((2, 5), np.nan), np.ones((2, 3), int)
        file.create_group('two').update(x=arrays['a'], y=arrays['b'])
    return arrays


def test_hdf5(tmp_path):
    path = tmp_path / 'c3d.hdf5'
    arrays = write_hdf5(path)
    for name, rows in arrays.items():
        folder = path / 'videos' if name == 'd' else path
        found = features.find_file(folder, (f'qid{name}', name))
        assert found == folder / name
        np.testing.assert_array_equal(features.read_features(found, 'features'), rows)
    assert features.is_folder(path) and features.is_folder(path / 'videos')
    assert not features.is_folder(tmp_path / 'd3d.hdf5') and features.is_folder(tmp_path)
    assert features.all_files(path / 'videos') == [path / 'videos' / 'd']
    for name, parts in {
        'damaged': ['nan in row 0'], 'ids': ['int64', 'floating point'], 'none': ["doesn't exist"],
        'two': ["'features' or one alone, found 'x', 'y'"],
    }.items():
        assert_parts(refusal(features.read_features, path / name, 'features'), path / name, *parts)
    assert_parts(refusal(features.find_file, path, ('qid7', '7')), path, 'has no qid7 or 7')
    assert_parts(refusal(features.find_file, path / 'a', ('x',)), path / 'a', 'expected a group')
    whole = path.read_bytes()
    for content, part in ((whole[:-50], "can't be read"), (b'', "can't be read"),
                          (b'version https://git-lfs.github.com/spec/v1', 'git lfs pull')):
        path.write_bytes(content)
        assert_parts(refusal(features.read_features, path / 'a', 'features'), path, part)


def test_hdf5_in_a_split_and_in_threads(tmp_path):
    """What is read is what files in folders give, also by many threads, also remembered."""
    data = make_release(tmp_path, segments=True)
    expected = datasets.load_split(data, 'train')
    for folder in ('slow', 'clip', 'text'):
        with h5py.File(tmp_path / f'{folder}.h5', 'w') as file:
            for path in (tmp_path / folder).iterdir():
                file[path.stem] = features.read_features(path, 'features')
    data.video_dirs, data.text_dir = ('slow.h5', 'clip.h5'), 'text.h5'
    data.cache_gb = 0.0
    found = datasets.load_split(data, 'train')
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        videos = list(pool.map(found.videos.__getitem__, [0, 1] * 50))
    for i, rows in enumerate(videos):
        np.testing.assert_array_equal(rows, expected.videos[i % 2])
    for ours, theirs in zip(found.text, expected.text, strict=True):
        np.testing.assert_array_equal(ours, theirs)

    paths = [(path, 'features') for path in features.all_files(tmp_path / 'slow.h5')]
    for read, unchanged in ((2, 0), (0, 2)):
        inspector = inspection.Inspector(tmp_path)
        inspector.inspect_all(paths)
        assert (inspector.read, inspector.unchanged) == (read, unchanged)
        assert [inspector.entries[path].finding.rows for path, _ in paths] == [5, 6]


def test_hdf5_needs_its_library(tmp_path, monkeypatch):
    write_hdf5(tmp_path / 'other.h5')
    monkeypatch.setitem(sys.modules, 'h5py', None)
    assert_parts(refusal(hdf5.names, tmp_path / 'other.h5'), "pip install -e '.[hdf5]'")


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
    (np.array([[1, 2]], object), ['bject']),
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
    assert_parts(message, tmp_path, 'qid7 or 7', '.npz or .npy or .pt or .pth or .h5')
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

"""Tests of data_pipelines/datasets.py on small releases written here, and on the real files."""

import itertools
import json
import os
import pathlib
import shutil
import types

import numpy as np
import pytest

from data_pipelines import datasets

REPO = pathlib.Path(__file__).parents[1]
REAL = REPO.parent / 'shared' / 'data'
TORCH_FILES = REPO / 'tests' / 'torch_files'
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason='no ../shared/data')

CLIP = datasets.TEXT_LAYOUTS['clip']
LLAMA = datasets.TEXT_LAYOUTS['llama']
WORDS = datasets.TEXT_LAYOUTS['words']

LINE = {
    'qid': 1, 'query': 'a dog runs', 'duration': 10, 'vid': 'v_0.0_10.0',
    'relevant_windows': [[2, 6]], 'relevant_clip_ids': [1, 2],
    'saliency_scores': [[3, 4, 2], [1, 0, 1]],
}  # fmt: skip


def make_rows(n, width, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def write_lines(path, lines):
    path.write_text('\n'.join(json.dumps(line) for line in lines))


def make_release(root, **changes):
    """Writes a release of three queries on two videos and returns its config node."""
    for folder in ('slow', 'clip', 'text'):
        (root / folder).mkdir(parents=True)
    lines = [LINE, {**LINE, 'qid': 'b', 'vid': 'w'}, {**LINE, 'qid': 3}]
    write_lines(root / 'train.jsonl', lines)
    for seed, vid in enumerate(('v_0.0_10.0', 'w')):
        np.savez(root / 'slow' / f'{vid}.npz', features=make_rows(5 + seed, 4, seed))
        np.save(root / 'clip' / f'{vid}.npy', make_rows(6, 3, 10 + seed))
    np.savez(root / 'text' / 'qid1.npz', last_hidden_state=make_rows(6, 8, 20))
    np.savez(root / 'text' / 'b.npz', last_hidden_state=make_rows(4, 8, 21).astype(np.float16))
    np.save(root / 'text' / 'qid3.npy', make_rows(3, 8, 22))
    data = dict(
        root=str(root), annotations={'train': 'train.jsonl', 'val': 'val.jsonl', 'test': ''},
        video_dirs=('slow', 'clip'), video_dims=(4, 3), text_dir='text', text_dim=8,
        text_layout='clip', clip_length=2.0, max_clips=8, max_words=20, max_windows=2,
        normalize_text=True, saliency='annotators', on_error='raise', limit=0,
    )  # fmt: skip
    return types.SimpleNamespace(**{**data, **changes})


def refusal(function, *args, **kwargs):
    """Returns the DataError's message, which must be one line."""
    with pytest.raises(datasets.DataError) as info:
        function(*args, **kwargs)
    message = str(info.value)
    assert '\n' not in message
    return message


def assert_parts(message, *parts):
    for part in parts:
        assert str(part) in message, f'{part!r} is not in {message!r}'


def unit(rows):
    return np.stack([row / (np.sqrt((row**2).sum()) + 1e-5) for row in rows])


# Tables


def test_tables_agree():
    for (dataset, _), features in datasets.FEATURES.items():
        assert dataset in datasets.DATASETS
        assert features['text_layout'] in datasets.TEXT_LAYOUTS
        assert 'video_dims' not in features or (
            len(features['video_dirs']) == len(features['video_dims']))
    assert {dataset for dataset, _ in datasets.FEATURES} == set(datasets.DATASETS)
    assert sum(datasets.FEATURES['qvhighlights', 'sf_clip']['video_dims']) == 2816
    assert datasets.FEATURES['charades_sta', 'iv2']['text_dim'] == 4096


# Feature files


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
    found = datasets.read_features(path, 'features')
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, rows.astype(np.float32))


@pytest.mark.parametrize('name', ['f32', 'f16', 'bf16', 'f64'])
def test_read_features_of_torch(name):
    found = datasets.read_features(TORCH_FILES / f'{name}.pt', 'features')
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.arange(15).reshape(3, 5) / 8)


def with_value(value):
    rows = make_rows(4, 5)
    rows[2, 3] = value
    rows[3, 0] = value
    return rows


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
    assert_parts(refusal(datasets.read_features, path, 'features'), path, *parts)


def test_missing_key_lists_the_others(tmp_path):
    np.savez(tmp_path / 'a.npz', pooler_output=make_rows(1, 2), text=make_rows(1, 2))
    message = refusal(datasets.read_features, tmp_path / 'a.npz', 'features')
    assert_parts(message, tmp_path / 'a.npz', "'features'", "'pooler_output', 'text'")


@pytest.mark.parametrize('suffix', ['.npy', '.npz', '.pt'])
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f'a{suffix}'
    assert_parts(refusal(datasets.read_features, path, 'features'), path, 'No such file')
    if suffix == '.pt':
        shutil.copy(TORCH_FILES / 'f32.pt', path)
    elif suffix == '.npz':
        np.savez_compressed(path, features=make_rows(4, 5))
    else:
        np.save(path, make_rows(4, 5))
    whole = path.read_bytes()
    for content in (b'', b'hello', b'<html>\n<body>', whole[:60], whole[:-30], whole[:20]):
        path.write_bytes(content)
        assert_parts(refusal(datasets.read_features, path, 'features'), path)
    if suffix == '.npz':
        middle = len(whole) // 3
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        assert_parts(refusal(datasets.read_features, path, 'features'), path)


def test_damage_that_numpy_has_its_own_errors_for(tmp_path):
    path = tmp_path / 'a.npz'
    np.savez(path, features=make_rows(4, 5))
    content = bytearray(path.read_bytes())
    content[content.index(b'PK\x01\x02') + 8] |= 1  # the directory says that it's encrypted
    path.write_bytes(content)
    assert_parts(refusal(datasets.read_features, path, 'features'), path, 'encrypted')

    path = tmp_path / 'a.npy'
    np.save(path, make_rows(4, 5))
    path.write_bytes(path.read_bytes().replace(b'}', b' ', 1))  # the header's bracket stays open
    assert_parts(refusal(datasets.read_features, path, 'features'), path, "can't be read")


def test_find_file_order_and_message(tmp_path):
    message = refusal(datasets.find_file, tmp_path, ('qid7', '7'))
    assert_parts(message, tmp_path, 'qid7 or 7', '.npz or .npy or .pt')
    for name in ('7.npz', 'qid7.pt', 'qid7.npy'):
        (tmp_path / name).touch()
    assert datasets.find_file(tmp_path, ('qid7', '7')) == tmp_path / 'qid7.npy'
    assert datasets.find_file(tmp_path, ('7',)) == tmp_path / '7.npz'
    (tmp_path / '7.5.npz').mkdir()
    refusal(datasets.find_file, tmp_path, ('7.5',))


def test_read_video_joins_streams_of_different_lengths(tmp_path):
    data = make_release(tmp_path)
    video = datasets.read_video(data, 'v_0.0_10.0')
    assert video.dtype == np.float32
    expected = np.concatenate([unit(make_rows(5, 4, 0)), unit(make_rows(6, 3, 10)[:5])], axis=1)
    np.testing.assert_allclose(video, expected, rtol=1e-6)


def test_read_video_of_zeros_is_finite(tmp_path):
    data = make_release(tmp_path)
    np.savez(tmp_path / 'slow' / 'w.npz', features=np.zeros((6, 4)))
    video = datasets.read_video(data, 'w')
    assert not video[:, :4].any() and np.isfinite(video).all()


def test_read_video_errors(tmp_path):
    data = make_release(tmp_path, max_clips=5)
    assert len(datasets.read_video(data, 'v_0.0_10.0')) == 5
    message = refusal(datasets.read_video, data, 'w')
    assert_parts(message, tmp_path / 'slow' / 'w.npz', '6 clips', 'at most 5', 'data.max_clips')
    data.video_dims = (4, 512)
    message = refusal(datasets.read_video, data, 'w')
    assert_parts(message, tmp_path / 'clip' / 'w.npy', 'width 3', 'expected 512', 'data.video_dims')
    assert_parts(refusal(datasets.read_video, data, 'x'), tmp_path / 'slow', ' x ')


def test_read_query(tmp_path):
    data = make_release(tmp_path)
    words, eos = datasets.read_query(data, 1)
    expected = unit(make_rows(6, 8, 20))
    np.testing.assert_allclose(words, expected[1:-1], rtol=1e-6)
    np.testing.assert_allclose(eos, expected[-1], rtol=1e-6)
    words, eos = datasets.read_query(data, 'b')
    assert words.shape == (2, 8) and words.dtype == eos.dtype == np.float32


def test_read_query_errors(tmp_path):
    data = make_release(tmp_path, text_dim=300)
    message = refusal(datasets.read_query, data, 1)
    assert_parts(message, tmp_path / 'text' / 'qid1.npz', 'width 8', '300', 'data.text_dim')
    data.text_dim, data.text_layout = 8, 'llama'
    message = refusal(datasets.read_query, data, 'b')
    assert_parts(message, tmp_path / 'text' / 'b.npz', '4 rows', 'at least 5', "'llama'")
    assert_parts(refusal(datasets.read_query, data, 9), tmp_path / 'text', 'qid9 or 9')


# Token roles


@pytest.mark.parametrize('layout, words, eos', [(CLIP, range(1, 9), 9), (LLAMA, range(4, 9), 9)])
@pytest.mark.parametrize('padding', [0, 3])
def test_split_tokens(layout, words, eos, padding):
    rows = make_rows(10, 4)
    padded = np.concatenate([rows, np.zeros((padding, 4), np.float32)])
    found = datasets.split_tokens(padded, layout, 20, normalize=False)
    np.testing.assert_array_equal(found[0], rows[words])
    np.testing.assert_array_equal(found[1], rows[eos])
    found = datasets.split_tokens(padded, layout, 20, normalize=True)
    np.testing.assert_allclose(found[0], unit(rows)[words], rtol=1e-6)
    np.testing.assert_allclose(found[1], unit(rows)[eos], rtol=1e-6)


def test_split_tokens_keeps_eos_of_long_queries():
    rows = make_rows(60, 4)
    words, eos = datasets.split_tokens(rows, CLIP, 40, normalize=False)
    np.testing.assert_array_equal(words, rows[1:41])
    np.testing.assert_array_equal(eos, rows[59])


def test_split_tokens_mean_of_all_words():
    rows = make_rows(7, 4)
    words, eos = datasets.split_tokens(rows, WORDS, 3, normalize=False)
    np.testing.assert_array_equal(words, rows[:3])
    np.testing.assert_allclose(eos, sum(rows) / 7, rtol=1e-5)
    words, eos = datasets.split_tokens(rows, WORDS, 3, normalize=True)
    np.testing.assert_allclose(words, unit(rows)[:3], rtol=1e-6)
    np.testing.assert_allclose(eos, unit([sum(unit(rows)) / 7])[0], rtol=1e-5)


def test_split_tokens_keeps_zero_rows_inside():
    rows = make_rows(6, 4)
    rows[2] = 0
    words, _ = datasets.split_tokens(rows, CLIP, 9, normalize=True)
    assert len(words) == 4 and not words[1].any()


@pytest.mark.parametrize('layout, n_rows', [(CLIP, 2), (LLAMA, 5)])
def test_no_words_is_legal_no_eos_is_not(layout, n_rows):
    rows = make_rows(n_rows, 4)
    words, eos = datasets.split_tokens(rows, layout, 9, normalize=False)
    assert words.shape == (0, 4)
    np.testing.assert_array_equal(eos, rows[-1])
    message = refusal(datasets.split_tokens, rows[:-1], layout, 9, normalize=False)
    assert_parts(message, f'{n_rows - 1} rows', f'at least {n_rows}')


@pytest.mark.parametrize('layout', [CLIP, LLAMA, WORDS])
def test_only_padding(layout):
    message = refusal(datasets.split_tokens, np.zeros((3, 4)), layout, 9, normalize=True)
    assert_parts(message, '0 rows')


def test_text_similarity(tmp_path):
    data = make_release(tmp_path)
    start = make_rows(1, 8, 99)
    first = np.concatenate([start, make_rows(3, 8, 20), np.zeros((2, 8), np.float32)])
    second = np.concatenate([2 * start, make_rows(2, 8, 21)])
    np.savez(tmp_path / 'text' / 'qid1.npz', last_hidden_state=first)
    np.savez(tmp_path / 'text' / 'b.npz', last_hidden_state=second)
    shutil.rmtree(tmp_path / 'slow')  # only the text is looked at
    text = datasets.text_similarity(data, 'train', n=2)
    blocks = [block.splitlines() for block in text.split('\n\n')]
    assert len(blocks) == 2
    assert_parts(blocks[0][0], 'qid 1', 'a dog runs')
    assert_parts(blocks[0][1], 'qid1.npz', '6 rows', '2 of them padding', "'clip'")
    assert [line.split()[1] for line in blocks[0][3:]] == ['dropped', 'word', 'word', '[EOS]']
    assert [line.split()[1] for line in blocks[1][3:]] == ['dropped', 'word', '[EOS]']
    cells = [line.split('|') for line in blocks[1][3:]]
    assert float(cells[0][0].split()[2]) == 1  # start-of-text is that of the first query
    a, b = second[1], second[2]
    cosine = a @ b / np.sqrt((a @ a) * (b @ b))
    assert float(cells[1][1].split()[2]) == pytest.approx(cosine, abs=0.006)
    across = b @ first[2] / np.sqrt((b @ b) * (first[2] @ first[2]))
    assert float(cells[2][0].split()[2]) == pytest.approx(across, abs=0.006)


# Annotations


def read_lines(tmp_path, lines, problems=None, **changes):
    path = tmp_path / 'a.jsonl'
    write_lines(path, lines)
    data = types.SimpleNamespace(**{'limit': 0, 'max_windows': 2, **changes})
    return datasets.read_annotations(path, data, problems)


def test_read_annotations(tmp_path):
    record, other = read_lines(tmp_path, [LINE, {**LINE, 'qid': 's30-d52_0', 'duration': 9.5}])
    assert (record.qid, record.query, record.vid) == (1, 'a dog runs', 'v_0.0_10.0')
    assert (record.duration, record.line, other.line) == (10.0, 1, 2)
    assert (other.qid, other.duration) == ('s30-d52_0', 9.5)
    np.testing.assert_array_equal(record.windows, [[2, 6]])
    np.testing.assert_array_equal(record.clip_ids, [1, 2])
    np.testing.assert_array_equal(record.clip_scores, [[3, 4, 2], [1, 0, 1]])


@pytest.mark.parametrize('value', [None, [], [[]]])
def test_records_without_labels(tmp_path, value):
    labels = {'relevant_windows': value, 'relevant_clip_ids': None, 'saliency_scores': None}
    bare = {name: LINE[name] for name in ('qid', 'query', 'duration', 'vid')}
    for record in read_lines(tmp_path, [bare, {**bare, **labels, 'qid': 2}]):
        assert record.windows.shape == (0, 2) and record.clip_ids.shape == (0,)
        assert record.clip_scores is None
        for mode in ('annotators', 'window'):
            assert not datasets.saliency_labels(record, 5, mode).any()
            pairs = datasets.sample_saliency_pairs(record, 5, mode, np.random.default_rng(0))
            assert [pair.tolist() for pair in pairs] == [[0, 0], [0, 0]]


def test_blank_lines_line_ends_and_unicode(tmp_path):
    path = tmp_path / 'a.jsonl'
    line = json.dumps({**LINE, 'query': 'a caf\u00e9\u2028bar'}, ensure_ascii=False)
    other = json.dumps({**LINE, 'qid': 2})
    path.write_bytes(f'{line}\r\n\n  \n{other}'.encode())
    data = types.SimpleNamespace(limit=0, max_windows=2)
    assert [record.line for record in datasets.read_annotations(path, data)] == [1, 4]


@pytest.mark.parametrize('changes, parts', [
    ({'query': '  '}, ['query', "'  '", 'not empty']),
    ({'query': 5}, ['query is 5']),
    ({'vid': ''}, ['vid', "''"]),
    ({'vid': 'a\nb'}, ['vid', "'a\\nb'"]),
    ({'qid': 1.5}, ['qid is 1.5']),
    ({'qid': True}, ['qid is True']),
    ({'qid': None}, ['qid is None']),
    ({'qid': [1]}, ['qid is [1]']),
    ({'duration': 0}, ['duration is 0', 'above 0']),
    ({'duration': -3.5}, ['duration is -3.5']),
    ({'duration': float('nan')}, ['duration is nan']),
    ({'duration': float('inf')}, ['duration is inf']),
    ({'duration': 10**400}, ['duration is 1000']),
    ({'duration': '10'}, ["duration is '10'"]),
    ({'duration': True}, ['duration is True']),
    ({'relevant_windows': [[0, 1], [5, 5]]}, ['relevant_windows[1] is [5, 5]', 'start < end']),
    ({'relevant_windows': [[6, 2]]}, ['relevant_windows[0] is [6, 2]']),
    ({'relevant_windows': [[-0.5, 2]]}, ['relevant_windows[0] is [-0.5, 2]', '0 <= start']),
    ({'relevant_windows': [[2, 10.01]]}, ['[2, 10.01]', 'duration 10']),
    ({'relevant_windows': [[2, float('nan')]]}, ['[2, nan]']),
    ({'relevant_windows': [[2]]}, ['relevant_windows[0] is [2]']),
    ({'relevant_windows': [2, 6]}, ['relevant_windows[0] is 2']),
    ({'relevant_windows': [['2', '6']]}, ["['2', '6']"]),
    ({'relevant_windows': '2-6'}, ["relevant_windows is '2-6'", 'a list']),
    ({'relevant_windows': [[0, 1], [2, 3], [4, 5]]},
     ['3 relevant_windows', 'at most 2', 'data.max_windows']),
    ({'relevant_clip_ids': [1]}, ['2 saliency_scores', 'expected 1', 'relevant_clip_ids']),
    ({'relevant_clip_ids': None}, ['2 saliency_scores', 'expected 0']),
    ({'relevant_clip_ids': [1, -1]}, ['relevant_clip_ids is [1, -1]', 'from 0']),
    ({'relevant_clip_ids': [1, 1]}, ['relevant_clip_ids is [1, 1]', 'different']),
    ({'relevant_clip_ids': [1, 2.0]}, ['relevant_clip_ids is [1, 2.0]']),
    ({'saliency_scores': [[1, 2, 3], [1, 'x', 3]]}, ["saliency_scores[1] is [1, 'x', 3]", '3 num']),
    ({'saliency_scores': [[1, 2, 3], [1, 2]]}, ['saliency_scores[1] is [1, 2]', '3 numbers']),
    ({'saliency_scores': [[1, 2, 3], [1, float('nan'), 2]]}, ['saliency_scores[1] is [1, nan, 2]']),
    ({'saliency_scores': [[], []]}, ['saliency_scores[0] is []']),
    ({'saliency_scores': [4, 5]}, ['saliency_scores[0] is 4']),
    ({'saliency_scores': 4}, ['saliency_scores is 4']),
])  # fmt: skip
def test_bad_records(tmp_path, changes, parts):
    good = {**LINE, 'qid': 0}
    message = refusal(read_lines, tmp_path, [good, {**LINE, **changes}])
    assert_parts(message, f'{tmp_path / "a.jsonl"}:2: ', *parts)
    problems = []
    assert [record.qid for record in read_lines(tmp_path, [good, {**LINE, **changes}], problems)]
    assert problems == [message]


@pytest.mark.parametrize('name', ['qid', 'query', 'duration', 'vid'])
def test_missing_field(tmp_path, name):
    line = {key: value for key, value in LINE.items() if key != name}
    assert_parts(refusal(read_lines, tmp_path, [line]), 'a.jsonl:1: ', f'{name!r} is missing')


@pytest.mark.parametrize('content', [b'{"qid": 1, ', b'\xff\xfe{', b'[1, 2', b'nothing'])
def test_lines_that_are_not_json(tmp_path, content):
    path = tmp_path / 'a.jsonl'
    path.write_bytes(json.dumps(LINE).encode() + b'\n' + content)
    data = types.SimpleNamespace(limit=0, max_windows=2)
    assert_parts(refusal(datasets.read_annotations, path, data), f'{path}:2: not JSON')
    path.write_bytes(b'[1]')
    assert_parts(refusal(datasets.read_annotations, path, data), f'{path}:1: the line is [1]')


def test_window_may_end_a_little_after_the_video(tmp_path):
    records = read_lines(tmp_path, [{**LINE, 'relevant_windows': [[2, 10.0005]]}])
    assert records[0].windows[0, 1] == 10.0005


def test_repeated_qid_names_both_lines(tmp_path):
    lines = [{**LINE, 'qid': 7}, LINE, {**LINE, 'qid': 7}]
    assert_parts(refusal(read_lines, tmp_path, lines), 'a.jsonl:3: qid 7', 'line 1')
    problems = []
    records = read_lines(tmp_path, lines, problems)
    assert [(record.qid, record.line) for record in records] == [(7, 1), (1, 2)]
    assert len(problems) == 1


def test_limit_counts_lines_with_content(tmp_path):
    lines = [{**LINE, 'qid': qid} for qid in range(5)]
    assert [record.qid for record in read_lines(tmp_path, lines, limit=2)] == [0, 1]
    lines[0]['query'] = ''
    assert [record.qid for record in read_lines(tmp_path, lines, [], limit=2)] == [1]


# Splits


def test_load_split(tmp_path):
    data = make_release(tmp_path)
    split = datasets.load_split(data, 'train')
    assert split.name == 'train' and split.problems == []
    assert [record.qid for record in split.records] == [1, 'b', 3]
    assert split.video_index.tolist() == [0, 1, 0] and split.video_index.dtype == np.int32
    assert len(split.videos) == 2 and [video.shape for video in split.videos] == [(5, 7), (6, 7)]
    for record, place in zip(split.records, split.video_index, strict=True):
        np.testing.assert_array_equal(split.videos[place], datasets.read_video(data, record.vid))
    assert [len(words) for words in split.words] == [4, 2, 1]
    assert split.eos.shape == (3, 8) and split.eos.dtype == np.float32
    np.testing.assert_array_equal(split.eos[1], datasets.read_query(data, 'b')[1])
    assert [labels.tolist() for labels in split.saliency] == [
        [0, 9, 2, 0, 0], [0, 9, 2, 0, 0, 0], [0, 9, 2, 0, 0]]


def test_load_split_takes_a_config_dict(tmp_path):
    config_dict = pytest.importorskip('ml_collections').ConfigDict
    data = config_dict({'data': vars(make_release(tmp_path))}).lock().data
    assert len(datasets.load_split(data, 'train').records) == 3


def test_load_split_skips_and_reports(tmp_path):
    data = make_release(tmp_path, on_error='skip')
    with open(tmp_path / 'train.jsonl', 'a') as file:
        for line in ({**LINE, 'qid': 4, 'duration': 0}, {**LINE, 'qid': 5, 'vid': 'w'}):
            file.write('\n' + json.dumps(line))
    np.savez(tmp_path / 'text' / 'qid5.npz', last_hidden_state=with_value(np.nan))
    (tmp_path / 'slow' / 'v_0.0_10.0.npz').write_bytes(b'PK')
    split = datasets.load_split(data, 'train')
    assert [record.qid for record in split.records] == ['b']
    assert split.video_index.tolist() == [0] and len(split.videos) == 1
    assert len(split.words) == len(split.eos) == len(split.saliency) == 1
    np.testing.assert_array_equal(split.videos[0], datasets.read_video(data, 'w'))
    record, query, video = split.problems
    assert_parts(record, 'train.jsonl:4', 'duration is 0')
    assert_parts(query, 'qid5.npz', 'nan')
    assert_parts(video, 'v_0.0_10.0.npz', "can't be read", '(skipped records: 2)')


def test_load_split_holds_no_video_of_skipped_queries_only(tmp_path):
    data = make_release(tmp_path, on_error='skip')
    (tmp_path / 'text' / 'b.npz').unlink()
    split = datasets.load_split(data, 'train')
    assert len(split.videos) == 1 and split.video_index.tolist() == [0, 0]


def test_load_split_raises_the_first_problem(tmp_path):
    data = make_release(tmp_path)
    (tmp_path / 'clip' / 'w.npy').unlink()
    assert_parts(refusal(datasets.load_split, data, 'train'), tmp_path / 'clip', ' w ', '.npz')


def test_load_split_with_nothing_left(tmp_path):
    data = make_release(tmp_path, on_error='skip', video_dims=(4, 9))
    message = refusal(datasets.load_split, data, 'train')
    assert_parts(message, tmp_path / 'train.jsonl', 'no usable record', '2 problems', 'width 3')
    (tmp_path / 'train.jsonl').write_text('\n')
    data.on_error = 'raise'
    assert_parts(refusal(datasets.load_split, data, 'train'), 'train.jsonl', 'no usable record')


@pytest.mark.parametrize('on_error', ['raise', 'skip'])
@pytest.mark.parametrize('changes, split, parts', [
    ({}, 'dev', ["'dev'", 'train, val']),
    ({}, 'test', ["'test'", 'train, val']),
    ({}, 'val', ['val.jsonl', 'No such file']),
    ({'video_dirs': ('slow', 'gone')}, 'train', ['gone', 'no such folder']),
    ({'text_dir': 'gone'}, 'train', ['gone', 'no such folder']),
    ({'video_dims': (4,)}, 'train', ['data.video_dirs has 2', 'data.video_dims 1']),
    ({'video_dirs': (), 'video_dims': ()}, 'train', ['at least one']),
    ({'text_layout': 'bert'}, 'train', ['data.text_layout', "'bert'", 'clip, llama, words']),
    ({'saliency': 'x'}, 'train', ['data.saliency', "'x'", 'annotators, window']),
])  # fmt: skip
def test_load_split_config_errors(tmp_path, on_error, changes, split, parts):
    data = make_release(tmp_path, **{'on_error': on_error, **changes})
    assert_parts(refusal(datasets.load_split, data, split), *parts)


def test_load_split_unknown_on_error(tmp_path):
    data = make_release(tmp_path, on_error='ignore')
    assert_parts(refusal(datasets.load_split, data, 'train'), "data.on_error is 'ignore'", 'skip')


# Saliency


def make_record(**changes):
    record = datasets.Record(
        1, 'a', 'v', 10.0, np.array([[2.0, 6.0]]), np.array([1, 2]),
        np.array([[3, 4, 2], [1, 0, 1]], np.float32), 1)
    for name, value in changes.items():
        setattr(record, name, value)
    return record


def slow_annotators(record, n_clips):
    """Labels, and all results that the pairs may have, from the rules in words."""
    sums = {}
    for clip, scores in zip(record.clip_ids.tolist(), record.clip_scores.tolist(), strict=True):
        sums[clip] = sum(scores)
    labels = [sums.get(clip, 0) for clip in range(n_clips)]
    ranked = sorted(sums, key=lambda clip: sums[clip])  # Python's sort is stable
    relevant = [min(clip, n_clips - 1) for clip in sums]
    others = [clip for clip in range(n_clips) if clip not in relevant]
    hard = min(ranked[-1], n_clips - 1), min(ranked[0], n_clips - 1)
    easy = set(itertools.product(relevant, others)) or {hard}
    return labels, {((hard[0], pos), (hard[1], neg)) for pos, neg in easy}


def slow_window(record, n_clips):
    start, end = record.windows[0].tolist()
    length = record.duration / n_clips
    last = max(0, min(int(end / length), n_clips) - 1)
    first = min(int(start / length), last)
    inside = list(range(first, last + 1))
    outside = [clip for clip in range(n_clips) if clip not in inside]
    pos = list(itertools.permutations(inside, 2)) or [(first, first)]
    if len(outside) < 2:
        allowed = {(pair, pair) for pair in pos}
    else:
        allowed = set(itertools.product(pos, itertools.permutations(outside, 2)))
    return [float(clip in inside) for clip in range(n_clips)], allowed


SLOW = {'annotators': slow_annotators, 'window': slow_window}


def draw(record, n_clips, mode, rng):
    pos, neg = datasets.sample_saliency_pairs(record, n_clips, mode, rng)
    assert pos.shape == neg.shape == (2,) and pos.dtype == neg.dtype == np.int32
    return tuple(pos.tolist()), tuple(neg.tolist())


@pytest.mark.parametrize('mode, n_clips, changes', [
    ('annotators', 5, {}),
    ('annotators', 3, {'clip_ids': np.array([0, 2])}),
    ('annotators', 2, {'clip_ids': np.array([0, 1])}),  # no other clip
    ('annotators', 4, {'clip_ids': np.array([2, 9])}),  # features shorter than the annotation
    ('annotators', 1, {}),
    ('annotators', 6, {'clip_ids': np.array([4, 0, 2]), 'clip_scores': np.ones((3, 3))}),  # ties
    ('window', 5, {}),
    ('window', 10, {}),
    ('window', 5, {'windows': np.array([[2.0, 2.1], [6.0, 8.0]])}),  # one clip; first window only
    ('window', 5, {'windows': np.array([[0.0, 10.0]])}),  # nothing outside
    ('window', 5, {'windows': np.array([[0.0, 8.0]])}),  # one clip outside
    ('window', 5, {'windows': np.array([[2.0, 8.0]])}),  # two, one on each side
    ('window', 5, {'windows': np.array([[9.9, 10.0]])}),
    ('window', 1, {}),
])  # fmt: skip
def test_saliency_against_rules(mode, n_clips, changes):
    record = make_record(**changes)
    labels, allowed = SLOW[mode](record, n_clips)
    found = datasets.saliency_labels(record, n_clips, mode)
    assert found.dtype == np.float32 and found.tolist() == labels
    rng = np.random.default_rng(0)
    seen = {draw(record, n_clips, mode, rng) for _ in range(15 * len(allowed))}
    assert seen == allowed


@pytest.mark.parametrize('mode', ['annotators', 'window'])
def test_pairs_follow_the_seed(mode):
    record = make_record(duration=60.0, windows=np.array([[10.0, 40.0]]))

    def draws(seed):
        rng = np.random.default_rng(seed)
        return [draw(record, 30, mode, rng) for _ in range(20)]

    assert draws(3) == draws(3) != draws(4)


def test_window_labels_are_those_of_float64(tmp_path):
    # Of Charades-STA. 31.17 / (31.17 / 31) is a little less than 31, but 31 with float32 windows.
    line = {**LINE, 'duration': 31.17, 'relevant_windows': [[19.1, 31.17]]}
    labels = datasets.saliency_labels(read_lines(tmp_path, [line])[0], 31, 'window')
    assert labels.tolist() == [0] * 18 + [1] * 12 + [0]


def test_annotator_labels_of_many_annotators():
    record = make_record(clip_ids=np.array([2]), clip_scores=np.full((1, 20), 2.0))
    assert datasets.saliency_labels(record, 3, 'annotators').tolist() == [0, 0, 40]


# Real files


@needs_real_data
@pytest.mark.parametrize('dataset, folder, split, count', [
    ('qvhighlights', 'qvhighlights', 'train', 7218),
    ('qvhighlights', 'qvhighlights', 'val', 1550),
    ('qvhighlights', 'qvhighlights', 'test', 1542),
    ('charades_sta', 'charades_sta', 'train', 12404),
    ('charades_sta', 'charades_sta', 'test', 3720),
])  # fmt: skip
def test_real_annotations(dataset, folder, split, count):
    row = datasets.DATASETS[dataset]
    path = REAL / folder / row.annotations[split]
    data = types.SimpleNamespace(limit=0, max_windows=row.max_windows)
    records = datasets.read_annotations(path, data)
    assert len(records) == count
    lines = [json.loads(line) for line in path.read_text().split('\n')]
    for record, line in zip(records, lines, strict=True):
        assert record.qid == line['qid'] and record.duration == line['duration']
        assert record.windows.tolist() == line.get('relevant_windows', [])
        assert record.clip_ids.tolist() == line.get('relevant_clip_ids', [])
    rng = np.random.default_rng(0)
    labelled = [record for record in records if len(record.windows)]
    for record in labelled[:: max(1, len(labelled) // 40)]:
        n_clips = int(record.duration / row.clip_length)
        labels, allowed = SLOW[row.saliency](record, n_clips)
        assert datasets.saliency_labels(record, n_clips, row.saliency).tolist() == labels
        assert draw(record, n_clips, row.saliency, rng) in allowed


@needs_real_data
@pytest.mark.parametrize('name, count', [
    ('qvhighlights/highlight_test_with_gt.jsonl', 1542), ('tacos/val.jsonl', 4436),
    ('tvsum/tvsum_val.jsonl', 10), ('youtube_highlights/youtube_valid.jsonl', 152),
])  # fmt: skip
def test_other_real_annotations(name, count):
    data = types.SimpleNamespace(limit=0, max_windows=30)
    assert len(datasets.read_annotations(REAL / name, data)) == count


@needs_real_data
def test_real_clip_features(tmp_path):
    data = make_release(
        tmp_path, video_dirs=('clip',), video_dims=(512,), text_dim=512, max_clips=15)
    os.symlink(REAL / 'real_clip_features' / 'vid.npz', tmp_path / 'clip' / 'real.npz')
    video = datasets.read_video(data, 'real')
    assert video.shape == (15, 512)
    np.testing.assert_allclose(np.linalg.norm(video, axis=1), 1, atol=1e-4)

    path = REAL / 'real_clip_features' / 'txt.npz'
    rows = datasets.read_features(path, 'features')
    with np.load(path) as file:
        expected = unit(file['features'].astype(np.float32))
    words, eos = datasets.split_tokens(rows, CLIP, 4, normalize=True)
    np.testing.assert_allclose(words, expected[1:5], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(eos, expected[11], rtol=1e-5, atol=1e-6)
    roles = datasets.token_roles(rows, CLIP).tolist()
    assert roles == ['dropped', *['word'] * 10, '[EOS]']
    os.symlink(path, tmp_path / 'text' / 'qid9.npz')
    assert_parts(refusal(datasets.read_query, data, 9), 'qid9.npz', "'last_hidden_state'")

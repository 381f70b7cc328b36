"""Tests of data_pipelines/datasets.py on small releases written here, and on the real files."""

import json
import os
import re
import shutil

import numpy as np
import pytest

from data_pipelines import annotations, datasets, features, release, saliency, tokens
from data_pipelines.own_data import text_rows
from data_pipelines.tokens import EOS, MEAN, START, WORD
from tests.helpers.paths import REAL
from tests.helpers.release_files import (
    LINE,
    annotation_config,
    assert_parts,
    make_release,
    make_rows,
    needs_real_data,
    read_lines,
    refusal,
    unit,
    with_value,
    write_lines,
)

# Tables


def test_tables_agree():
    for (dataset, _), values in datasets.FEATURES.items():
        assert dataset in datasets.DATASETS
        assert values['text_layout'] in tokens.TEXT_LAYOUTS
        assert 'video_dims' not in values or (
            len(values['video_dirs']) == len(values['video_dims']))
    assert all(row.saliency in saliency.MODES for row in datasets.DATASETS.values())
    assert {dataset for dataset, _ in datasets.FEATURES} == set(datasets.DATASETS)
    assert sum(datasets.FEATURES['qvhighlights', 'sf_clip']['video_dims']) == 2816
    assert datasets.FEATURES['charades_sta', 'iv2']['text_dim'] == 4096



def test_read_video_joins_streams_of_different_lengths(tmp_path):
    data = make_release(tmp_path)
    video = release.read_video(data, 'v_0.0_10.0')
    assert video.dtype == np.float32
    expected = np.concatenate([unit(make_rows(5, 4, 0)), unit(make_rows(6, 3, 10)[:5])], axis=1)
    np.testing.assert_allclose(video, expected, rtol=1e-6)


def test_read_video_of_zeros_is_finite(tmp_path):
    data = make_release(tmp_path)
    np.savez(tmp_path / 'slow' / 'w.npz', features=np.zeros((6, 4)))
    video = release.read_video(data, 'w')
    assert not video[:, :4].any() and np.isfinite(video).all()


def test_read_video_errors(tmp_path):
    data = make_release(tmp_path, max_clips=3)
    message = refusal(release.read_video, data, 'w')
    assert_parts(message, tmp_path / 'slow' / 'w.npz', '6 clips', 'at most 3', 'data.max_clips')
    data.video_dims = (4, 512)
    message = refusal(release.read_video, data, 'w')
    assert_parts(message, tmp_path / 'clip' / 'w.npy', 'width 3', 'expected 512', 'data.video_dims')
    assert_parts(refusal(release.read_video, data, 'x'), tmp_path / 'slow', ' x ')


def test_a_clip_more_than_max_clips_is_cut_and_counted(tmp_path):
    """As of QVHighlights videos, of which some releases have 76 rows for 150 s."""
    data = make_release(tmp_path)
    for vid in ('v_0.0_10.0', 'w'):
        for folder, width in (('slow', 4), ('clip', 3)):
            np.save(tmp_path / folder / f'{vid}.npy', make_rows(76 if vid == 'w' else 75, width))
            (tmp_path / folder / f'{vid}.npz').unlink(missing_ok=True)
    data.max_clips = 76
    whole = release.read_video(data, 'w')
    data.max_clips = 75
    np.testing.assert_array_equal(release.read_video(data, 'w'), whole[:75])
    split = datasets.load_split(data, 'train')
    assert {len(video) for video in split.videos} == {75} == {len(x) for x in split.saliency}
    assert split.notes == ['videos cut to 75 clips (data.max_clips): 1, the first: w of 76']
    data.max_clips = 69  # a tenth fewer: it is as likely another rate, or another video
    assert_parts(refusal(datasets.load_split, data, 'train'), 'w.npy: 76 clips', 'at most 69')


def test_transposed_features_are_named_as_such(tmp_path):
    data = make_release(tmp_path)
    np.save(tmp_path / 'clip' / 'w.npy', make_rows(3, 6))
    message = refusal(release.read_video, data, 'w')
    assert_parts(message, 'w.npy', 'shape [3, 6]', 'expected [n, 3] (data.video_dims): transposed?')
    np.save(tmp_path / 'text' / 'qid3.npy', make_rows(8, 3))
    assert_parts(refusal(release.read_query, data, 3), 'shape [8, 3]', '[n, 8]', 'transposed?')


@pytest.mark.parametrize('lengths, is_good', [
    ((6, 11), True), ((6, 12), False), ((80, 100), True), ((79, 100), False), ((150, 75), False),
])
def test_streams_of_another_rate(tmp_path, lengths, is_good):
    data = make_release(tmp_path, max_clips=200)
    streams = [make_rows(n, width) for n, width in zip(lengths, data.video_dims, strict=True)]
    if is_good:
        assert len(release.join_streams(data, streams, ['a', 'b'])) == min(lengths)
    else:
        message = refusal(release.join_streams, data, streams, ['a', 'b'])
        assert_parts(message, f'a {lengths[0]}, b {lengths[1]}', 'about the same number')


@pytest.mark.parametrize('content, part', [
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'git lfs pull'),
    (b'<!DOCTYPE html>\n<html>', 'a web page'),
])
def test_what_came_in_place_of_a_file(tmp_path, content, part):
    data = make_release(tmp_path, on_error='skip')
    (tmp_path / 'skip.jsonl').write_bytes(content)
    data.skip_list = str(tmp_path / 'skip.jsonl')
    assert_parts(refusal(datasets.load_split, data, 'train'), 'skip.jsonl', part)
    (tmp_path / 'train.jsonl').write_bytes(content)
    assert_parts(refusal(datasets.load_split, data, 'train'), 'train.jsonl', part)


def test_read_query(tmp_path):
    data = make_release(tmp_path)
    text, roles = release.read_query(data, 1)
    np.testing.assert_allclose(text, unit(make_rows(6, 8, 20)), rtol=1e-6)
    assert roles.tolist() == [START, WORD, WORD, WORD, WORD, EOS]
    text, roles = release.read_query(data, 'b')
    assert text.shape == (4, 8) and text.dtype == np.float32 and roles.dtype == np.int32


def test_read_query_follows_the_config(tmp_path):
    data = make_release(tmp_path, normalize_text=False, max_tokens=3)
    rows = make_rows(6, 8, 20)
    text, roles = release.read_query(data, 1)
    np.testing.assert_array_equal(text, rows[[0, 1, 5]])
    assert roles.tolist() == [START, WORD, EOS]
    data.text_layout = 'words'
    text, roles = release.read_query(data, 1)
    np.testing.assert_array_equal(text[:2], rows[:2])
    np.testing.assert_allclose(text[2], sum(rows) / 6, rtol=1e-5)
    assert roles.tolist() == [WORD, WORD, MEAN]


def test_read_query_errors(tmp_path):
    data = make_release(tmp_path, text_dim=300)
    message = refusal(release.read_query, data, 1)
    assert_parts(message, tmp_path / 'text' / 'qid1.npz', 'width 8', '300', 'data.text_dim')
    data.text_dim, data.text_layout = 8, 'llama'
    message = refusal(release.read_query, data, 'b')
    assert_parts(message, tmp_path / 'text' / 'b.npz', '4 rows', 'at least 5', "'llama'")
    assert_parts(refusal(release.read_query, data, 9), tmp_path / 'text', 'qid9 or 9')


def test_text_similarity(tmp_path):
    data = make_release(tmp_path)
    start = make_rows(1, 8, 99)
    first = np.concatenate([start, make_rows(3, 8, 20), np.zeros((2, 8), np.float32)])
    second = np.concatenate([2 * start, make_rows(2, 8, 21)])
    np.savez(tmp_path / 'text' / 'qid1.npz', last_hidden_state=first)
    np.savez(tmp_path / 'text' / 'b.npz', last_hidden_state=second)
    shutil.rmtree(tmp_path / 'slow')  # only the text is looked at
    text = text_rows.text_similarity(data, 'train', n=2)
    blocks = [block.splitlines() for block in text.split('\n\n')]
    assert len(blocks) == 2
    assert_parts(blocks[0][0], 'qid 1', 'a dog runs')
    assert_parts(blocks[0][1], 'qid1.npz', '6 rows', '2 of them padding', "'clip'")
    assert [line.split()[1] for line in blocks[0][3:]] == ['start', 'words', 'words', 'eos']
    assert [line.split()[1] for line in blocks[1][3:]] == ['start', 'words', 'eos']
    cells = [line.split('|') for line in blocks[1][3:]]
    assert float(cells[0][0].split()[2]) == 1  # start-of-text is that of the first query
    a, b = second[1], second[2]
    cosine = a @ b / np.sqrt((a @ a) * (b @ b))
    assert float(cells[1][1].split()[2]) == pytest.approx(cosine, abs=0.006)
    across = b @ first[2] / np.sqrt((b @ b) * (first[2] @ first[2]))
    assert float(cells[2][0].split()[2]) == pytest.approx(across, abs=0.006)


# Annotations


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


def test_blank_lines_line_ends_and_unicode(tmp_path):
    path = tmp_path / 'a.jsonl'
    line = json.dumps({**LINE, 'query': 'a caf\u00e9\u2028bar'}, ensure_ascii=False)
    other = json.dumps({**LINE, 'qid': 2})
    path.write_bytes(f'{line}\r\n\n  \n{other}'.encode())
    data = annotation_config(max_windows=2)
    assert [record.line for record in annotations.read_annotations(path, data)] == [1, 4]


@pytest.mark.parametrize('changes, parts', [
    ({'query': '  '}, ['query', "'  '", 'not empty']),
    ({'query': 5}, ['query is 5']),
    ({'vid': ''}, ['vid', "''"]),
    ({'vid': 'a\nb'}, ['vid', "'a\\nb'"]),
    ({'qid': 1.5}, ['qid is 1.5']),
    ({'qid': True}, ['qid is True']),
    ({'qid': None}, ['qid is None']),
    ({'qid': [1]}, ['qid is [1]']),
    ({'qid': 'a/b'}, ["qid is 'a/b'", 'a file name']),
    ({'qid': '..'}, ["qid is '..'", 'a file name']),
    ({'qid': 'a\0b'}, ['qid is ', 'a file name']),
    ({'qid': 'ab' * 101}, ['qid is ', 'a file name']),
    ({'qid': 10**210}, ['qid is ', 'a file name']),
    ({'duration': 0}, ['duration is 0', 'above 0']),
    ({'duration': -3.5}, ['duration is -3.5']),
    ({'duration': float('nan')}, ['duration is nan']),
    ({'duration': float('inf')}, ['duration is inf']),
    ({'duration': 10**400}, ['duration is 1000']),
    ({'duration': '10'}, ["duration is '10'"]),
    ({'duration': True}, ['duration is True']),
    ({'relevant_windows': [[6, 2]]}, ['relevant_windows[0] is [6, 2]']),
    ({'relevant_windows': [[-0.5, 2]]}, ['relevant_windows[0] is [-0.5, 2]', '0 <= start']),
    ({'relevant_windows': [[2, 11.01]]},
     ['[2, 11.01]', 'duration 10.0, or 1.0 s after it (data.end_tolerance)']),
    ({'relevant_windows': [[10.01, 10.02]]}, ['[10.01, 10.02]', 'start']),
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
    ({'saliency_scores': [[1, 2, 3], [1, 2, 4.5]]}, ['saliency_scores[1]', '3 numbers from 0 to']),
    ({'saliency_scores': [[1, -1, 3], [1, 2, 3]]}, ['saliency_scores[0]', 'from 0 to 4']),
    ({'saliency_scores': [[3], [4]]},
     ['have 1 numbers for each clip, expected 3, as in line 1', 'each annotator']),
    ({'relevant_clip_ids': [1, 5]},
     ['relevant_clip_ids[1] is 5', 'below 5', '10.0 s are 5 clips of 2.0 s (data.clip_length)']),
    ({'saliency_scores': [4, 5]}, ['saliency_scores[0] is 4']),
    ({'saliency_scores': 4}, ['saliency_scores is 4']),
])  # fmt: skip
def test_bad_records(tmp_path, changes, parts):
    good = {**LINE, 'qid': 0}
    message = refusal(read_lines, tmp_path, [good, {**LINE, **changes}])
    assert_parts(message, f'{tmp_path / "a.jsonl"}:2: ', *parts)
    skipped = []
    assert [record.qid for record in read_lines(tmp_path, [good, {**LINE, **changes}], skipped)]
    assert skipped == [message]


@pytest.mark.parametrize('name', ['qid', 'query', 'duration', 'vid'])
def test_missing_field(tmp_path, name):
    line = {key: value for key, value in LINE.items() if key != name}
    assert_parts(refusal(read_lines, tmp_path, [line]), 'a.jsonl:1: ', f'{name!r} is missing')


@pytest.mark.parametrize('content', [b'{"qid": 1, ', b'\xff\xfe{', b'[1, 2', b'nothing'])
def test_lines_that_are_not_json(tmp_path, content):
    path = tmp_path / 'a.jsonl'
    path.write_bytes(json.dumps(LINE).encode() + b'\n' + content)
    data = annotation_config(max_windows=2)
    assert_parts(refusal(annotations.read_annotations, path, data), f'{path}:2: not JSON')
    path.write_bytes(b'[1]')
    assert_parts(refusal(annotations.read_annotations, path, data), f'{path}:1: the line is [1]')


def test_window_may_end_a_little_after_the_video(tmp_path):
    lines = [{**LINE, 'relevant_windows': [[2, 10.0005]]},
             {**LINE, 'qid': 2, 'relevant_windows': [[1, 2], [9.5, 10.25]]}]
    exact, late = read_lines(tmp_path, lines)
    assert exact.windows[0, 1] == 10.0005 and not exact.oddities
    assert late.windows.tolist() == [[1, 2], [9.5, 10.25]]
    assert_parts(late.oddities['late end'], 'relevant_windows[1] is [9.5, 10.25]', '0.25 s', 'kept')
    cut = read_lines(tmp_path, lines, clip_windows=True)
    assert [query.windows[-1, 1] for query in cut] == [10, 10]
    assert_parts(cut[1].oddities['late end'], '[9.5, 10.25]', '0.25 s', ': cut')
    assert_parts(refusal(read_lines, tmp_path, lines, end_tolerance=0.2), 'a.jsonl:2: ')
    whole, = read_lines(tmp_path, [{**LINE, 'relevant_windows': [[10, 10.5]]}], clip_windows=True)
    assert whole.windows.tolist() == [[10, 10]] and 'empty window' in whole.oddities


def test_windows_without_length_are_read_and_not_trained_on(tmp_path):
    data = make_release(tmp_path)
    write_lines(tmp_path / 'train.jsonl', [
        {**LINE, 'relevant_windows': [[5, 5]]},
        {**LINE, 'qid': 'b', 'vid': 'w', 'relevant_windows': [[5, 5], [2, 6]]},
        {**LINE, 'qid': 3}])
    split = datasets.load_split(data, 'train')
    assert [query.windows.tolist() for query in split.queries] == [
        [[5, 5]], [[5, 5], [2, 6]], [[2, 6]]]
    note, = split.notes
    assert_parts(note, 'windows without length: 2', 'train.jsonl:1: relevant_windows[0] is [5, 5]')
    message = refusal(datasets.load_split, data, 'train', training=True)
    assert_parts(message, 'train.jsonl:1: relevant_windows[0]', 'data.empty_windows=drop')
    data.empty_windows = 'drop'
    split = datasets.load_split(data, 'train', training=True)
    assert [(query.qid, query.windows.tolist()) for query in split.queries] == [
        ('b', [[2, 6]]), (3, [[2, 6]])]
    assert_parts(*split.skipped, 'train.jsonl:1: ', 'left out, no other window')
    assert_parts(*split.notes, 'windows without length: 1', 'train.jsonl:2', 'left out')
    data.empty_windows, data.on_error = 'refuse', 'skip'
    split = datasets.load_split(data, 'train', training=True)
    assert [query.qid for query in split.queries] == [3] and len(split.skipped) == 2
    data.empty_windows = 'keep'
    assert_parts(refusal(datasets.load_split, data, 'val'), 'data.empty_windows', 'refuse, drop')


@pytest.mark.parametrize('again', [7, '7'])  # their feature files have one name
def test_repeated_qid_names_both_lines(tmp_path, again):
    lines = [{**LINE, 'qid': 7}, LINE, {**LINE, 'qid': again}]
    assert_parts(refusal(read_lines, tmp_path, lines), f'a.jsonl:3: qid {again!r}', 'line 1')
    skipped = []
    records = read_lines(tmp_path, lines, skipped)
    assert [(record.qid, record.line) for record in records] == [(7, 1), (1, 2)]
    assert len(skipped) == 1


def test_limit_counts_lines_with_content(tmp_path):
    lines = [{**LINE, 'qid': qid} for qid in range(5)]
    assert [record.qid for record in read_lines(tmp_path, lines, limit=2)] == [0, 1]
    lines[0]['query'] = ''
    assert [record.qid for record in read_lines(tmp_path, lines, [], limit=2)] == [1]


# Splits


def test_load_split(tmp_path):
    data = make_release(tmp_path)
    split = datasets.load_split(data, 'train')
    assert split.name == 'train' and split.skipped == []
    assert [record.qid for record in split.queries] == [1, 'b', 3]
    assert split.video_index.tolist() == [0, 1, 0] and split.video_index.dtype == np.int32
    assert len(split.videos) == 2 and [video.shape for video in split.videos] == [(5, 7), (6, 7)]
    for record, place in zip(split.queries, split.video_index, strict=True):
        np.testing.assert_array_equal(split.videos[place], release.read_video(data, record.vid))
    assert [len(text) for text in split.text] == [len(roles) for roles in split.roles] == [6, 4, 3]
    for record, *query in zip(split.queries, split.text, split.roles, strict=True):
        for found, expected in zip(query, release.read_query(data, record.qid), strict=True):
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype
    assert [labels.tolist() for labels in split.saliency] == [
        [0, 9, 2, 0, 0], [0, 9, 2, 0, 0, 0], [0, 9, 2, 0, 0]]


VIDEOS = ('v_0.0_10.0', 'v_10.0_20.0', 'w', 'v', 'a_v_0.0_10.0', 'a_w_0.0_10.0', '_x__0.0_10.0',
          '_x__2.5_12.5')


@pytest.mark.parametrize('segments, same', [
    # Names of sources may themselves have underscores, as '_x_' and 'a_v' have.
    (True, [['v_0.0_10.0', 'v_10.0_20.0', 'v'], ['w'], ['a_v_0.0_10.0'],
            ['a_w_0.0_10.0'], ['_x__0.0_10.0', '_x__2.5_12.5']]),
    (False, [[vid] for vid in VIDEOS]),
])  # fmt: skip
def test_source_index(tmp_path, segments, same):
    data = make_release(tmp_path, segments=segments)
    vids = [*VIDEOS, 'v_10.0_20.0', 'w']
    write_lines(
        tmp_path / 'train.jsonl', [{**LINE, 'qid': i, 'vid': vid} for i, vid in enumerate(vids)])
    for qid in range(len(vids)):
        np.save(tmp_path / 'text' / f'qid{qid}.npy', make_rows(3, 8, qid))
    for vid in VIDEOS:
        np.save(tmp_path / 'slow' / f'{vid}.npy', make_rows(5, 4))
        np.save(tmp_path / 'clip' / f'{vid}.npy', make_rows(5, 3))
    split = datasets.load_split(data, 'train')
    assert split.source_index.dtype == np.int32 and split.source_index.shape == (len(vids),)
    group = {vid: i for i, members in enumerate(same) for vid in members}
    for i, first in enumerate(vids):
        for j, second in enumerate(vids):
            is_same = split.source_index[i] == split.source_index[j]
            assert is_same == (group[first] == group[second]), (first, second)
    assert len(split.videos) == len(VIDEOS)  # segments of a source are videos of their own


def test_load_split_takes_a_config_dict(tmp_path):
    config_dict = pytest.importorskip('ml_collections').ConfigDict
    data = config_dict({'data': vars(make_release(tmp_path))}).lock().data
    assert len(datasets.load_split(data, 'train').queries) == 3


def test_load_split_skips_and_reports(tmp_path):
    data = make_release(tmp_path, on_error='skip')
    with open(tmp_path / 'train.jsonl', 'a') as file:
        for line in ({**LINE, 'qid': 4, 'duration': 0}, {**LINE, 'qid': 5, 'vid': 'w'}):
            file.write('\n' + json.dumps(line))
    np.savez(tmp_path / 'text' / 'qid5.npz', last_hidden_state=with_value(np.nan))
    (tmp_path / 'slow' / 'v_0.0_10.0.npz').write_bytes(b'PK')
    split = datasets.load_split(data, 'train')
    assert [record.qid for record in split.queries] == ['b']
    assert split.video_index.tolist() == [0] and len(split.videos) == 1
    for values in (split.text, split.roles, split.saliency, split.source_index):
        assert len(values) == 1
    np.testing.assert_array_equal(split.videos[0], release.read_video(data, 'w'))
    record, query, video = split.skipped
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
    ({'text_layout': 'bert'}, 'train', ['data.text_layout', "'bert'", 'clip, llama, words, glove']),
    ({'max_tokens': 0}, 'train', ['data.max_tokens is 0', '1 or more']),
    ({'saliency': 'x'}, 'train', ['data.saliency', "'x'", 'annotators, window, windows, grades']),
])  # fmt: skip
def test_load_split_config_errors(tmp_path, on_error, changes, split, parts):
    data = make_release(tmp_path, **{'on_error': on_error, **changes})
    assert_parts(refusal(datasets.load_split, data, split), *parts)


def test_load_split_unknown_on_error(tmp_path):
    data = make_release(tmp_path, on_error='ignore')
    assert_parts(refusal(datasets.load_split, data, 'train'), "data.on_error is 'ignore'", 'skip')


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
    data = annotation_config(max_windows=row.max_windows)
    records = annotations.read_annotations(path, data)
    assert len(records) == count
    lines = [json.loads(line) for line in path.read_text().split('\n')]
    for record, line in zip(records, lines, strict=True):
        assert record.qid == line['qid'] and record.duration == line['duration']
        assert record.windows.tolist() == line.get('relevant_windows', [])
        assert record.clip_ids.tolist() == line.get('relevant_clip_ids', [])
        assert bool(re.fullmatch(r'.+_\d+\.\d_\d+\.\d', record.vid)) == row.segments


@needs_real_data
@pytest.mark.parametrize('name, count', [
    ('qvhighlights/highlight_test_with_gt.jsonl', 1542), ('tacos/val.jsonl', 4436),
    ('tvsum/tvsum_val.jsonl', 10), ('youtube_highlights/youtube_valid.jsonl', 152),
])  # fmt: skip
def test_other_real_annotations(name, count):
    data = annotation_config()
    assert len(annotations.read_annotations(REAL / name, data)) == count


@needs_real_data
def test_real_clip_features(tmp_path):
    data = make_release(
        tmp_path, video_dirs=('clip',), video_dims=(512,), text_dim=512, max_clips=15)
    os.symlink(REAL / 'real_clip_features' / 'vid.npz', tmp_path / 'clip' / 'real.npz')
    video = release.read_video(data, 'real')
    assert video.shape == (15, 512)
    np.testing.assert_allclose(np.linalg.norm(video, axis=1), 1, atol=1e-4)

    path = REAL / 'real_clip_features' / 'txt.npz'
    rows = features.read_features(path, 'features')
    with np.load(path) as file:
        expected = unit(file['features'].astype(np.float32))
    text, roles = tokens.label_tokens(rows, tokens.TEXT_LAYOUTS['clip'], 6, normalize=True)
    np.testing.assert_allclose(text, expected[[0, 1, 2, 3, 4, 11]], rtol=1e-5, atol=1e-6)
    assert roles.tolist() == [START, *[WORD] * 4, EOS]
    roles = tokens.token_roles(rows, tokens.TEXT_LAYOUTS['clip'])
    assert roles.tolist() == [START, *[WORD] * 10, EOS]
    os.symlink(path, tmp_path / 'text' / 'qid9.npz')
    assert release.read_query(data, 9)[0].shape == (12, 512)  # the only array, of another name

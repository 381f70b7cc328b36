"""Mode verify-data: each kind of damage is found, all at once, and can be skipped."""

import json
import os
import pathlib
import types

import numpy as np
import pytest

from data_pipelines import datasets, features, world
from data_pipelines.own_data import inspection, verify
from dualground_jax import cli, main
from tests.helpers import command_line
from tests.helpers.paths import FOLDER_CONFIG, REPO
from tests.helpers.release_files import assert_parts, refusal, write_lines

WORDS = ('a dog runs', 'the cat sleeps', 'people dance on stage', 'rain falls', 'he sings',
         'two birds fly', 'children play', 'it snows', 'someone cooks pasta', 'lights go out')


def save_text(root, qid, sentence, start=1):
    """Rows as of a causal encoder: the same ones before the words, then the sentence's own."""
    shared = np.random.default_rng(0).normal(size=(start, 8))
    own = np.random.default_rng([1, *sentence.encode()]).normal(size=(len(sentence.split()) + 1, 8))
    rows = np.concatenate([shared, own]).astype(np.float32)
    np.savez(root / 'text' / f'qid{qid}.npz', last_hidden_state=rows)


@pytest.fixture(name='release')
def clean_release(tmp_path):
    """The config of a release without a fault: videos of 10 s, two streams, two splits."""
    for folder in ('slow', 'clip', 'text'):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(2)
    lines = []
    for i, sentence in enumerate(WORDS):
        np.savez(tmp_path / 'slow' / f'v{i}.npz', features=rng.normal(size=(5, 4)))
        np.savez(tmp_path / 'clip' / f'v{i}.npz', features=rng.normal(size=(6, 3)))
        save_text(tmp_path, i, sentence)
        lines.append(dict(qid=i, query=sentence, vid=f'v{i}', duration=10,
                          relevant_windows=[[2, 6]]))
    write_lines(tmp_path / 'train.jsonl', lines[:8])
    write_lines(tmp_path / 'val.jsonl', lines[8:])
    data = types.SimpleNamespace(
        root=str(tmp_path), annotations={'train': 'train.jsonl', 'val': 'val.jsonl', 'test': ''},
        video_dirs=('slow', 'clip'), video_dims=(4, 3), text_dir='text', text_dim=8,
        text_layout='clip', clip_length=2.0, max_clips=8, max_tokens=20, max_windows=2, max_spans=1,
        dtype='float32', normalize_text=True, saliency='window', segments=False,
        on_error='raise', skip_list='', limit=0, domain='', duration_unit=1.0, video_parts=('',),
        text_key='last_hidden_state', cache_gb=-1.0, records='', dataset='tiny', features='raw',
        end_tolerance=1.0, clip_windows=False, empty_windows='refuse',
    )  # fmt: skip
    return types.SimpleNamespace(data=data, evaluate=types.SimpleNamespace(split='val'))


def change_line(root, number, **changes):
    path = root / 'train.jsonl'
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[number - 1] |= changes
    write_lines(path, lines)


def change_rows(path, change, key='features'):
    np.savez(path, **{key: change(np.load(path)[key].copy())})


def change_text(root, change):
    change_rows(root / 'text' / 'qid0.npz', change, 'last_hidden_state')


def put(value, *place):
    def change(rows):
        rows[place] = value
        return rows
    return change


def found(report):
    """Level and kind -> the problems."""
    kinds = {}
    for problem in report.problems():
        kinds.setdefault((verify.KINDS[problem.kind][0], problem.kind), []).append(problem)
    return kinds


def test_clean_data_have_no_problems(release):
    report = verify.verify(release)
    assert report.problems() == []
    assert [(part.name, len(part.queries), part.n_videos) for part in report.parts] == [
        ('train', 8, 8), ('val', 2, 2)]
    assert report.numbers['clips more than durations or labels say'] == {0: 10}
    assert report.numbers['clips that streams of a video differ by'] == {1: 10}
    assert report.numbers['rows more than words'] == {0: 10}
    assert report.numbers['train: windows of a query'] == {1: 8}
    assert report.text_rows['row 0'] == 1 and report.text_rows['last row'] < 0.9
    files = [*pathlib.Path(release.data.root).glob('*/*.npz')]
    assert report.inspector.read == len(files) == 30
    assert report.inspector.bytes == sum(path.stat().st_size for path in files)


# name: change of the folder, level, kind, parts of the message, lines of train that it concerns.
DAMAGES = {
    'no folder': (
        lambda root: (root / 'clip').rename(root / 'elsewhere'), 'error', 'folder',
        ['clip', 'no such folder'], []),
    'no annotations': (
        lambda root: (root / 'val.jsonl').unlink(), 'error', 'annotation file', ['val.jsonl'], []),
    'no json': (
        lambda root: (root / 'train.jsonl').write_text(
            '{"qid"\n' + (root / 'train.jsonl').read_text().split('\n', 1)[1]),
        'error', 'record', ['train.jsonl:1', 'not JSON'], [1]),
    'window beyond the video': (
        lambda root: change_line(root, 2, relevant_windows=[[2, 11.5]]), 'error', 'record',
        ['train.jsonl:2', 'relevant_windows[0]', '[2, 11.5]', 'data.end_tolerance'], [2]),
    'window a little beyond the video': (
        lambda root: change_line(root, 2, relevant_windows=[[0, 1], [2, 10.25]]), 'warning',
        'late end', ['train.jsonl:2: relevant_windows[1] is [2, 10.25]', '0.25 s after'], [2]),
    'window without length to train on': (
        lambda root: change_line(root, 2, relevant_windows=[[0, 1], [5, 5]]), 'error',
        'empty target', ['train.jsonl:2: relevant_windows[1] is [5, 5]', 'empty_windows=drop'],
        [2]),
    'clip beyond the video': (
        lambda root: change_line(root, 2, relevant_clip_ids=[4, 5], saliency_scores=[[1], [3]]),
        'error', 'record', ['train.jsonl:2: relevant_clip_ids[1] is 5', 'below 5', '2.0 s'], [2]),
    'grade beyond the scale': (
        lambda root: change_line(root, 2, relevant_clip_ids=[4], saliency_scores=[[1, 5]]),
        'error', 'record', ['train.jsonl:2: saliency_scores[0] is [1, 5]', 'from 0 to 4'], [2]),
    'grades of another scale': (
        lambda root: change_line(root, 2, relevant_clip_ids=[4], saliency_scores=[[1, 0.5]]),
        'warning', 'low grades', ['train.jsonl: grades up to 1', 'from 0 to 4'], []),
    'too many windows': (
        lambda root: change_line(root, 2, relevant_windows=[[0, 2], [4, 6], [8, 10]]), 'error',
        'record', ['3 relevant_windows', 'at most 2'], [2]),
    'repeated qid': (
        lambda root: change_line(root, 5, qid=0), 'error', 'record',
        ['train.jsonl:5', 'line 1'], [5]),
    'no windows': (
        lambda root: change_line(root, 3, relevant_windows=[]), 'error', 'unlabelled',
        ['train.jsonl:3', 'no relevant_windows', "data.saliency 'window'"], [3]),
    'no video': (
        lambda root: (root / 'slow' / 'v0.npz').unlink(), 'error', 'video missing',
        ['slow', 'v0'], [1]),
    'damaged video': (
        lambda root: (root / 'slow' / 'v0.npz').write_bytes(b'PK\x03\x04'), 'error', 'video file',
        ['v0.npz', "can't be read"], [1]),
    'nan': (
        lambda root: change_rows(root / 'slow' / 'v0.npz', put(np.nan, 2, 1)), 'error',
        'video file', ['v0.npz', 'nan in row 2, column 1'], [1]),
    'video width': (
        lambda root: change_rows(root / 'slow' / 'v0.npz', lambda rows: rows[:, :2]), 'error',
        'video width', ['v0.npz', 'width 2, expected 4'], [1]),
    'no text': (
        lambda root: (root / 'text' / 'qid0.npz').unlink(), 'error', 'text missing', ['qid0'],
        [1]),
    'infinite text': (
        lambda root: change_text(root, put(np.inf, 0, 0)), 'error', 'text file', ['inf in row 0'],
        [1]),
    'text width': (
        lambda root: change_text(root, lambda rows: rows[:, :7]), 'error', 'text width',
        ['width 7, expected 8', 'data.text_dim'], [1]),
    'text of zeros': (
        lambda root: change_text(root, lambda rows: 0 * rows), 'error', 'text rows',
        ['0 rows beside padding', 'at least 2', "'clip'"], [1]),
    'zero clip': (
        lambda root: change_rows(root / 'slow' / 'v0.npz', put(0, slice(3, 5))), 'warning',
        'zero clips', ['v0.npz', '2 of 5'], [1]),
    'zero word': (
        lambda root: change_text(root, put(0, 2)), 'warning', 'zero words', ['1 of 5'], [1]),
    'several durations': (
        lambda root: change_line(root, 2, vid='v0', duration=10.5), 'warning', 'duration',
        ['v0', '10.0, 10.5'], [1, 2]),
    'few rows': (
        lambda root: change_text(root, lambda rows: np.delete(rows, 2, 0)), 'warning', 'few rows',
        ['2 rows for words (4 in all), 3 words'], [1]),
    'many rows': (
        lambda root: change_text(root, lambda rows: np.repeat(rows, 3, 0)), 'warning', 'many rows',
        ['13 rows for words (15 in all)'], [1]),
    'leak': (
        lambda root: change_line(root, 1, vid='v9'), 'warning', 'shared video',
        ['v9: 1 records in', 'train.jsonl', '1 in', 'val.jsonl'], [1]),
    'shared qid': (
        lambda root: change_line(root, 1, qid=9, query='lights go off'), 'warning', 'shared qid',
        ['val.jsonl:2', 'train.jsonl:1', 'another sentence'], [1]),
    'late window': (
        lambda root: change_line(root, 1, duration=14, relevant_windows=[[10, 14]]), 'warning',
        'late window', ['train.jsonl:1: [10.0, 14.0]', '5 clips end at 10'], [1]),
    'short window': (
        lambda root: change_line(root, 1, relevant_windows=[[2, 3.5]]), 'note', 'short window',
        ['train.jsonl:1', '[2.0, 3.5]'], [1]),
    'whole video': (
        lambda root: change_line(root, 1, relevant_windows=[[0, 10]]), 'note', 'whole video',
        ['train.jsonl:1'], [1]),
    'unused file': (
        lambda root: np.save(root / 'slow' / 'w.npy', np.ones((5, 4))), 'note', 'unused file',
        ['w.npy'], []),
    'grades after the end': (
        lambda root: change_line(
            root, 1, duration=11, relevant_clip_ids=[5], saliency_scores=[[1, 2, 3]]),
        'note', 'late grades', ['clip 5 of 5'], [1]),
}  # fmt: skip


@pytest.mark.parametrize('damage', DAMAGES)
def test_damage_is_found(damage, release):
    change, level, kind, parts, lines = DAMAGES[damage]
    change(pathlib.Path(release.data.root))
    problems = found(verify.verify(release))
    problem, = problems[level, kind]
    assert_parts(problem.message, *parts)
    assert [line for split, line in problem.records if split == 'train'] == lines
    others = {key for key in problems if key[0] == 'error'} - {(level, kind)}
    assert not others


def test_more_clips_than_the_limit_and_than_the_duration_says(release):
    for folder, rows in (('slow', 11), ('clip', 17)):
        change_rows(pathlib.Path(release.data.root, folder, 'v0.npz'),
                    lambda x, n=rows: np.resize(x, (n, x.shape[1])))
    problems = found(verify.verify(release))
    assert set(problems) == {('error', 'video length'), ('warning', 'clip count'),
                             ('warning', 'stream lengths'), ('error', 'stream rates')}
    assert_parts(problems['error', 'stream rates'][0].message, '11 to 17 clips', 'v0.npz 11')
    assert_parts(problems['error', 'video length'][0].message, 'v0: 11 clips', 'at most 8')
    assert_parts(problems['warning', 'clip count'][0].message, '11 clips', 'about 5.0', '10.0 s')
    assert_parts(problems['warning', 'stream lengths'][0].message, '11, 17 clips')


def test_a_clip_more_than_the_limit_is_cut(release):
    release.data.max_clips = 4
    assert set(found(verify.verify(release))) == {('warning', 'cut clips')}
    release.data.max_clips = 2
    assert ('error', 'video length') in found(verify.verify(release))


def test_windows_that_are_many_or_overlap_and_a_repeated_sentence(release):
    root = pathlib.Path(release.data.root)
    change_line(root, 1, relevant_windows=[[4, 8], [2, 6]])
    change_line(root, 3, vid='v1', query=WORDS[1])
    problems = found(verify.verify(release))
    assert_parts(problems['note', 'overlap'][0].message, '[[2.0, 6.0], [4.0, 8.0]]')
    assert_parts(problems['note', 'many windows'][0].message, '2, data.max_spans 1')
    assert_parts(problems['note', 'repeated query'][0].message, 'train.jsonl:3', 'line 2')


def test_values_of_the_config_that_do_not_fit(release):
    release.data.clip_length, release.data.max_tokens = 1.0, 5
    problems = found(verify.verify(release))
    assert_parts(problems['warning', 'clip length'][0].message, '2.000 s', 'data.clip_length is 1')
    assert len(problems['warning', 'clip count']) == 10
    cut, = problems['note', 'cut words']
    assert_parts(cut.message, 'qid2.npz', '6 tokens', 'data.max_tokens 5')
    release.data.saliency = 'none'
    assert_parts(refusal(verify.verify, release), 'data.saliency')


@pytest.mark.parametrize('layout, start, parts', [
    ('clip', 1, None),
    ('llama', 4, None),
    ('clip', 4, ["4 first rows", "'clip' has 1", "'llama' 4"]),
    ('llama', 1, ["1 first rows", "'llama' has 4", "'clip' 1"]),
    ('words', 1, ["1 first rows", "'words' has 0"]),
])
def test_text_layout_is_told_by_the_rows_that_queries_share(layout, start, parts, release):
    for qid, sentence in enumerate(WORDS):
        save_text(pathlib.Path(release.data.root), qid, sentence, start)
    release.data.text_layout = layout
    found_problems = found(verify.verify(release)).get(('warning', 'text layout'), [])
    assert bool(found_problems) == bool(parts)
    for problem in found_problems:
        assert_parts(problem.message, *parts)


def test_last_rows_that_are_the_same_are_not_eos(release):
    """Queries padded to one length, as by a tokenizer, with rows that are not zeros."""
    for qid in range(len(WORDS)):
        path = pathlib.Path(release.data.root, 'text', f'qid{qid}.npz')
        change_rows(path, lambda x: np.concatenate([x, np.ones((9 - len(x), 8))]),
                    'last_hidden_state')
    messages = [problem.message for problem in
                found(verify.verify(release))['warning', 'text layout']]
    assert_parts(messages[0], 'all 10 queries have 9 rows')
    assert_parts(messages[1], 'last row is the same in 10 queries')


def test_words_without_eos_and_labels_without_windows(release):
    root = pathlib.Path(release.data.root)
    release.data.text_layout, release.data.saliency = 'words', 'grades'
    for qid in range(len(WORDS)):
        path = root / 'text' / f'qid{qid}.npz'
        change_rows(path, lambda x: x[1:-1], 'last_hidden_state')
    for split in ('train', 'val'):
        path = root / f'{split}.jsonl'
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        write_lines(path, [line | dict(relevant_windows=None, label=[[1, 5]] * 4, duration=99)
                           for line in lines])
    report = verify.verify(release)
    assert not found(report)
    assert report.numbers['rows more than words'] == {0: 10}
    assert report.numbers['clips more than durations or labels say'] == {1: 10}
    change_line(root, 2, label=[[1, 5]] * 9)
    problem, = found(verify.verify(release))['error', 'video labels']
    assert_parts(problem.message, 'v1', '5 clips, expected about 9')
    change_line(root, 2, label=None)
    problem, = found(verify.verify(release))['error', 'unlabelled']
    assert_parts(problem.message, 'train.jsonl:2', 'has no label', "'grades'")


def test_streams_of_several_files(release):
    root = pathlib.Path(release.data.root)
    release.data.video_dirs, release.data.video_dims = ('slow',), (7,)
    release.data.video_parts = ('_rgb', '_flow')
    for i in range(len(WORDS)):
        (root / 'slow' / f'v{i}.npz').rename(root / 'slow' / f'v{i}_rgb.npz')
        (root / 'clip' / f'v{i}.npz').rename(root / 'slow' / f'v{i}_flow.npz')
    assert verify.verify(release).problems() == []
    (root / 'slow' / 'v0_flow.npz').unlink()
    change_rows(root / 'slow' / 'v1_rgb.npz', put(np.nan, 0, 0))
    change_rows(root / 'slow' / 'v2_rgb.npz', lambda x: x[:, :3])
    problems = found(verify.verify(release))
    assert_parts(problems['error', 'video missing'][0].message, 'v0_flow')
    assert_parts(problems['error', 'video file'][0].message, 'v1_rgb.npz: nan')
    assert_parts(problems['error', 'video width'][0].message, 'v2_rgb.npz: width 6, expected 7')


def test_zeros_are_words_without_a_vector_in_glove(release):
    release.data.text_layout = 'glove'
    for qid in range(len(WORDS)):
        path = pathlib.Path(release.data.root, 'text', f'qid{qid}.npz')
        change_rows(path, lambda x: x[1:-1] * ([[0]] + [[1]] * (len(x) - 4) + [[0]]),
                    'last_hidden_state')
    report = verify.verify(release)
    assert report.problems() == [] and report.numbers['rows more than words'] == {0: 10}


def test_a_split_that_training_does_not_need_may_be_absent(release):
    release.data.annotations['test'] = 'test.jsonl'
    assert set(found(verify.verify(release))) == {('warning', 'split file')}


def test_one_file_under_two_names_is_verified_once(release):
    release.data.annotations['test'] = 'val.jsonl'
    pathlib.Path(release.data.root, 'slow', 'v9.npz').unlink()
    report = verify.verify(release)
    problem, = report.problems()
    assert problem.records == (('test', 2), ('val', 2)) or problem.records == (
        ('val', 2), ('test', 2))
    assert report.inspector.read == 29


# Skip list


def flags_of(tmp_path, **changes):
    return types.SimpleNamespace(**{'output': None, 'skip_list': None, 'recheck': False, **changes})


def damage_much(root):
    change_rows(root / 'text' / 'qid5.npz', put(0, 1), 'last_hidden_state')
    change_line(root, 7, relevant_windows=[[0, 10]])
    DAMAGES['unused file'][0](root)
    DAMAGES['no json'][0](root)
    (root / 'text' / 'qid2.npz').unlink()
    change_rows(root / 'slow' / 'v2.npz', put(np.nan, 0, 0))
    lines = (root / 'train.jsonl').read_text().split('\n')
    lines[4] = lines[4].replace('"qid": 4', '"qid": 3')  # repeated
    (root / 'train.jsonl').write_text('\n'.join(lines))
    (root / 'clip' / 'v9.npz').unlink()


def test_a_skip_list_makes_broken_data_load(release, tmp_path, capsys):
    damage_much(tmp_path)
    skip = str(tmp_path / 'skip.jsonl')
    message = refusal(verify.run, flags_of(tmp_path, skip_list=skip), release)
    assert_parts(message, 'errors in the data: 5;', '4 records', f'--config.data.skip_list={skip}')
    printed = capsys.readouterr().out
    assert_parts(printed, 'ERROR', 'WARNING', 'NOTE', 'train.jsonl:1', 'qid2', 'v2.npz: nan', 'v9')
    assert 'w.npy' not in printed  # whether a file is used is told when all records can be read
    entries = [json.loads(line) for line in pathlib.Path(skip).read_text().splitlines()]
    assert [(e['split'], e['line'], e['qid']) for e in entries] == [
        ('train', 1, None), ('train', 3, 2), ('train', 5, 3), ('val', 2, 9)]
    assert_parts(entries[1]['reason'], 'qid2', 'v2.npz: nan')

    refusal(datasets.load_split, release.data, 'train')
    release.data.skip_list = skip
    split = datasets.load_split(release.data, 'train')
    assert [(record.qid, record.line) for record in split.queries] == [
        (1, 2), (3, 4), (5, 6), (6, 7), (7, 8)]
    assert len(split.skipped) == 3
    assert_parts(split.skipped[2], 'train.jsonl:5', 'line 4', 'skip.jsonl')
    assert [record.qid for record in datasets.load_split(release.data, 'val').queries] == [8]
    verify.run(flags_of(tmp_path), release)  # without errors

    change_rows(tmp_path / 'slow' / 'v3.npz', put(np.nan, 0, 0))  # one more: the list grows
    refusal(verify.run, flags_of(tmp_path, skip_list=skip), release)
    assert len(pathlib.Path(skip).read_text().splitlines()) == 5


def test_no_skip_list_where_it_does_not_help(release, tmp_path):
    release.data.text_dim = 9
    skip = tmp_path / 'skip.jsonl'
    message = refusal(verify.run, flags_of(tmp_path, skip_list=str(skip)), release)
    assert_parts(message, 'errors in the data: 12;', 'do not help against: empty split')
    assert not skip.exists()
    with pytest.raises(ValueError, match='nowhere/skip: no such folder'):
        verify.run(flags_of(tmp_path, skip_list='nowhere/skip'), release)


@pytest.mark.parametrize('content, parts', [
    ('{"split": "train", "qid": 99}', ['entry 1', "'train'", 'no record of qid 99']),
    ('{"split": "train", "qid": 1, "line": 3}', ['qid 1 on line 3', 'verify the data anew']),
    ('{"split": "trian", "qid": 1}', ["'trian'", 'train, val']),
    ('{"split": "train"}', ['no qid and no line']),
    ('{"split": "train", "qid": null}', ['no qid and no line']),
    ('\n{"split"', [':2', 'JSON', 'data.skip_list']),
    ('[1]', [':1', 'JSON object']),
    (None, ["can't be read", 'data.skip_list']),
])
def test_skip_lists_that_do_not_fit(content, parts, release, tmp_path):
    path = tmp_path / 'skip.jsonl'
    if content is not None:
        path.write_text(content)
    release.data.skip_list = str(path)
    assert_parts(refusal(datasets.load_split, release.data, 'train'), path, *parts)
    assert_parts(refusal(verify.verify, release), path, *parts)


def test_a_skip_list_by_hand(release, tmp_path):
    path = tmp_path / 'skip.jsonl'
    path.write_text('{"split": "train", "qid": 1}\n{"split": "val", "qid": 8}\n')
    release.data.skip_list = str(path)
    split = datasets.load_split(release.data, 'train')
    assert [record.qid for record in split.queries] == [0, *range(2, 8)]
    assert split.skipped == [f'{tmp_path}/train.jsonl:2: no reason given ({path})']
    release.data.limit = 2
    records = datasets.load_split(release.data, 'train').queries
    assert [record.qid for record in records] == [0]  # of the first two


# What is remembered


def reads(monkeypatch):
    """Paths that are read from now on."""
    paths = []

    def watch(owner, name):
        real = getattr(owner, name)

        def spy(path, *args):
            paths.append(pathlib.Path(path).name)
            return real(path, *args)

        monkeypatch.setattr(owner, name, spy)

    watch(pathlib.Path, 'read_bytes')
    watch(features, 'read_features')
    return paths


def test_only_changed_files_are_read_again(release, tmp_path, monkeypatch):
    (tmp_path / 'slow' / 'v1.npz').write_bytes(b'PK')
    first = verify.verify(release)
    paths = reads(monkeypatch)
    again = verify.verify(release)
    assert not [name for name in paths if name.endswith('npz')]
    assert again.inspector.unchanged == 30 and again.inspector.read == 0
    assert again.problems() == first.problems() and again.text_rows == first.text_rows

    change_rows(tmp_path / 'slow' / 'v0.npz', put(np.nan, 0, 0))
    paths.clear()
    problems = found(verify.verify(release))
    assert {name for name in paths if name.endswith('npz')} == {'v0.npz'}
    assert_parts(str(problems['error', 'video file']), 'v0.npz: nan', "v1.npz: can't be read")


def test_an_altered_file_is_found_by_a_recheck(release, tmp_path):
    path = tmp_path / 'slow' / 'v0.npz'
    verify.verify(release)
    stat = path.stat()
    change_rows(path, put(np.nan, 0, 0))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert verify.verify(release).problems() == []
    report = verify.verify(release, recheck=True)
    assert report.inspector.read == 30
    assert set(found(report)) == {('error', 'video file'), ('warning', 'altered file')}
    assert set(found(verify.verify(release, recheck=True))) == {('error', 'video file')}


@pytest.mark.parametrize('content', ['', '{"version": 0}', '{"version": 1, "files": {"a": 1}}'])
def test_a_damaged_memory_is_as_good_as_none(content, release, tmp_path):
    (tmp_path / inspection.CACHE).write_text(content)
    assert verify.verify(release).inspector.read == 30
    assert verify.verify(release).inspector.read == 0


def test_a_folder_that_cannot_be_written_to(release, monkeypatch):
    def refuse(*_):
        raise PermissionError('read-only')

    monkeypatch.setattr(inspection, 'write_text', refuse)
    report = verify.verify(release)
    assert report.problems() == []
    assert_parts(str(report), 'not remembered', 'read-only')


# Command line


def test_command_line(tmp_path, monkeypatch, capsys):
    folder = world.generate(
        world.World(train_queries=6, val_queries=2, test_queries=2), tmp_path / 'world')
    monkeypatch.chdir(REPO)

    def start():
        argv = ['main', '--mode=verify-data', f'--output={tmp_path / "report.json"}',
                f'--config={FOLDER_CONFIG}:{folder}']
        command_line.start(monkeypatch, argv)
        main.main(cli.parse(argv))

    start()
    assert_parts(capsys.readouterr().out, 'errors: 0, warnings: 0')
    (folder / 'text' / 'qid0.npz').unlink()
    with pytest.raises(SystemExit, match='errors in the data: 1; .*--skip_list') as info:
        start()
    assert info.value.code != 0
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['counts'] == dict(error=1, warning=0, note=0)
    problem, = report['problems']
    assert problem['level'] == 'error' and problem['kind'] == 'text missing'
    assert problem['records'] == [['train', 1]]

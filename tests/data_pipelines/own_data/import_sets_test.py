"""Mode import: the forms in which ActivityNet Captions, DiDeMo, Ego4D and Charades-STA come."""

import json
import types

import pytest

from data_pipelines.own_data import import_moments
from tests.helpers.release_files import assert_parts, refusal

ACTIVITYNET = {
    'v_a': {'duration': 82.73, 'timestamps': [[0.83, 19.86], [17.37, 60.81]],
            'sentences': ['A woman  walks.', 'She falls. ']},
    'v_b': {'duration': 10, 'timestamps': [[2, 10.5], [1, 3]], 'sentences': ['It rains.'] * 2},
}  # fmt: skip
DIDEMO = [
    {'annotation_id': 3, 'video': 'x.mov', 'description': 'a cat', 'num_segments': 6,
     'times': [[1, 1], [1, 2], [1, 2], [0, 5]]},
    {'annotation_id': 4, 'video': 'x.mov', 'description': 'a dog', 'num_segments': 6,
     'times': [[5, 5], [4, 5], [5, 5], [4, 5]]},
    {'annotation_id': 5, 'video': 'y.mov', 'description': 'a cat', 'num_segments': 5,
     'times': [[3, 4]] * 4},
]  # fmt: skip


def ego4d(**changes):
    queries = [
        {'query': 'Where is my cup?', 'clip_start_sec': 3.5, 'clip_end_sec': 4.5,
         'video_start_sec': 13.5, 'video_end_sec': 14.5},
        {'query': None, 'clip_start_sec': 1, 'clip_end_sec': 2},
        {'query': 'What did I eat?', 'clip_start_sec': 7.0, 'clip_end_sec': 7.0} | changes,
    ]  # fmt: skip
    clip = {'clip_uid': 'c1', 'video_start_sec': 10.0, 'video_end_sec': 490.0,
            'annotations': [{'annotation_uid': 'u', 'language_queries': queries}]}
    return {'version': '1', 'videos': [{'video_uid': 'V', 'split': 'val', 'clips': [clip]}]}


CHARADES = 'A1 0.0 6.9##a person opens a door.\nA1 20 30.5##she sits down.\r\n\nB2 1 2##a ## b\n'
LENGTHS = 'id,subject,actions,length\nA1,x,"c1 0 3;c2 1 2",30.00\nB2,y,,5\n'


@pytest.fixture(name='convert')
def convert_file(tmp_path):
    """Imports a value, as JSON, or a text; returns split -> rows of its annotation file."""

    def convert(content, durations='', **changes):
        path = tmp_path / 'source'
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        values = dict(mode='import', table=[str(path)], output=str(tmp_path / 'out'), durations=[],
                      clip_length=None, val_share=0.0, end_tolerance=1.0, clip_windows=False,
                      on_error='raise')
        if durations:
            (tmp_path / 'd.csv').write_text(durations)
            values['durations'] = [str(tmp_path / 'd.csv')]
        import_moments.run(types.SimpleNamespace(**(values | changes)), None)
        return {path.stem: [json.loads(line) for line in path.read_text().splitlines()]
                for path in (tmp_path / 'out').glob('*.jsonl')}

    return convert


def moments(rows):
    return [(row['vid'], row['query'], row['duration'], row.get('relevant_windows'))
            for row in rows]


def test_activitynet(convert, capsys):
    rows = convert(ACTIVITYNET)['train']
    assert moments(rows) == [
        ('v_a', 'A woman walks.', 82.73, [[0.83, 19.86]]),
        ('v_a', 'She falls.', 82.73, [[17.37, 60.81]]),
        ('v_b', 'It rains.', 10, [[2, 10.5]]),
        ('v_b', 'It rains.', 10, [[1, 3]]),  # one query each, as published
    ]
    assert rows[3]['qid'] == rows[2]['qid'] + '-2' and len({row['qid'] for row in rows}) == 4
    assert_parts(capsys.readouterr().out, 'ActivityNet Captions, 4 annotations',
                 'end after their video, by up to 0.5 s, kept')
    hidden = {'v_a': {'duration': 9.5, 'sentences': ['x']}}
    assert moments(convert(hidden)['train']) == [('v_a', 'x', 9.5, None)]


def test_didemo(convert, capsys):
    rows = convert(DIDEMO)['train']
    assert [row['qid'] for row in rows] == [3, 4, 5]
    assert moments(rows) == [('x.mov', 'a cat', 30, [[5, 15]]), ('x.mov', 'a dog', 30, [[25, 30]]),
                             ('y.mov', 'a cat', 25, [[15, 25]])]
    assert_parts(capsys.readouterr().out, 'DiDeMo, 3 annotations',
                 'annotators differ, with the moment of most of them: 2',
                 'several such moments, of which the first is taken: 1')
    # The last segment ends with the video, but at 30 s in one that was longer.
    known = convert(DIDEMO, durations='video,duration\nx.mov,28.2\ny.mov,41\n')['train']
    assert [row['relevant_windows'] for row in known] == [[[5, 15]], [[25, 28.2]], [[15, 25]]]
    assert 'end after' not in capsys.readouterr().out


def test_ego4d(convert, capsys):
    rows = convert(ego4d())['val']
    assert moments(rows) == [('c1', 'Where is my cup?', 480, [[3.5, 4.5]]),
                             ('c1', 'What did I eat?', 480, [[7, 7]])]
    assert [row['qid'] for row in rows] == ['u_0', 'u_2']
    assert_parts(capsys.readouterr().out, 'Ego4D NLQ, 2 annotations', 'windows without length',
                 'queries without a sentence, left out: 1')
    hidden = ego4d()
    for query in hidden['videos'][0]['clips'][0]['annotations'][0]['language_queries']:
        del query['clip_start_sec'], query['clip_end_sec']
    assert [row[3] for row in moments(convert(hidden)['val'])] == [None, None]


def test_charades(convert, capsys):
    rows = convert(CHARADES, LENGTHS, clip_windows=True)['train']
    assert moments(rows) == [('A1', 'a person opens a door.', 30, [[0, 6.9]]),
                             ('A1', 'she sits down.', 30, [[20, 30]]),
                             ('B2', 'a ## b', 5, [[1, 2]])]
    assert_parts(capsys.readouterr().out, 'Charades-STA, 3 annotations', 'up to 0.5 s, cut: 1')
    assert_parts(refusal(convert, CHARADES), 'no durations', '--durations=FILE')
    message = refusal(convert, CHARADES, 'id,length\nA1,30\n')
    assert_parts(message, 'mistakes: 1', "source:4: duration is None", "'B2'")


@pytest.mark.parametrize('content, parts', [
    ({'v': {'start': 1}}, ['JSON of another form', "{'v': {'start': 1}}", 'ActivityNet Captions']),
    ([], ['JSON of another form', '[]']),
    (['v_a', 'v_b'], ['JSON of another form']),
    ('{"qid": 1}\n{"qid": 2}\n', ['not one JSON value', 'DiDeMo']),
    ({'v': {'sentences': ['a'], 'timestamps': [[0, 1]]}}, ['v: duration is None', 'seconds']),
    ({'v': {'duration': 9, 'sentences': ['a', 'b'], 'timestamps': [[0, 1]]}},
     ['v: timestamps is [[0, 1]]', '2, as many as sentences']),
    ({'v': {'duration': 9, 'sentences': ['a'], 'timestamps': [[3, 1]]}},
     ['v[0]: end is 1', 'at least start 3']),
    ({'v': {'duration': 9, 'sentences': ['a'], 'timestamps': [[-1, 1]]}},
     ['v[0]: window is [-1, 1]', 'from 0 on']),
    ({'v': {'duration': 9, 'sentences': ['a'], 'timestamps': [[1, float('nan')]]}},
     ['v[0]: window is [1, nan]']),
    ({'v': {'duration': 9, 'sentences': [5], 'timestamps': [[0, 1]]}}, ["['v', 5]", 'texts']),
    ({'v': {'duration': 9, 'sentences': ['\ud800'], 'timestamps': [[0, 1]]}},
     [r"sentence is '\ud800'", 'control characters']),
    ([DIDEMO[0] | {'times': [[2, 6]]}], ['source[0]: times is [2, 6]', '6 segments']),
    ([DIDEMO[0] | {'times': [[2, 1]]}], ['source[0]: times is [2, 1]']),
    ([DIDEMO[0], 'x'], ["source[1]: the record is 'x'", 'an object']),
    ([DIDEMO[0], DIDEMO[0] | {'video': 'z'}], ['source[1]: qid is 3', 'another video']),
    (ego4d(clip_end_sec=6.5), ['query u_2: end is 6.5', 'at least start 7']),
    (ego4d(clip_start_sec=None), ['query u_2: window is [None, 7.0]']),
    (ego4d(clip_end_sec=900), ['query u_2: end is 900', "480, the duration of 'c1'"]),
    ({'videos': [{'video_uid': 'V', 'clips': [{'clip_uid': 'c'}]}]}, ['clip c: video_start_sec']),
    ({'videos': [7]}, ['videos[0]: the record is 7']),
    ('A 1 x##b\n', ["source:1: the line is 'A 1 x##b'", 'VIDEO START END##SENTENCE']),
    ('A 1 2##b\nA 1 2 b\n', ["source:2: the line is 'A 1 2 b'"]),
])
def test_mistakes_are_named_and_nothing_is_written(content, parts, convert, tmp_path):
    assert_parts(refusal(convert, content, 'video,duration\nA,9\n'), 'source', *parts)
    assert not (tmp_path / 'out').exists()


def test_mistakes_can_be_left_out(convert, capsys):
    bad = ACTIVITYNET | {'v_c': {'duration': 9, 'sentences': ['a'], 'timestamps': [[3, 1]]}}
    assert len(convert(bad, on_error='skip')['train']) == 4
    assert_parts(capsys.readouterr().out, 'with mistakes, left out: 1')


def test_a_split_of_the_flag_and_of_the_file(convert, tmp_path):
    assert set(convert(ego4d())) == {'val'}
    source = tmp_path / 'source'
    assert_parts(refusal(convert, ego4d(), table=[f'test={source}']), 'split is', "'val'", 'test')

"""Mode import-csv: tables as people have them, and every mistake by its place."""

import json
import types

import numpy as np
import pytest

from data_pipelines import annotations
from data_pipelines.errors import UserError
from data_pipelines.own_data import import_csv
from tests.helpers.release_files import annotation_config, assert_parts, refusal


@pytest.fixture(name='convert')
def convert_table(tmp_path):
    """Writes a table and imports it; returns split -> rows of its annotation file."""

    def convert(content, name='t.csv', **changes):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        values = dict(table=str(path), output=str(tmp_path / 'out'), durations=None,
                      clip_length=None, val_share=0.0)
        import_csv.run(types.SimpleNamespace(**(values | changes)), None)
        return {path.stem: [json.loads(line) for line in path.read_text().splitlines()]
                for path in (tmp_path / 'out').glob('*.jsonl')}

    return convert


def test_rows_become_windows_of_queries(convert, tmp_path):
    rows = convert('video,start,end,sentence,duration\n'
                   'b,1,2.5,a cat,30\na,0,4,a dog,20\nb,7,9,a cat,30\nb,1,2.5,a cat,30\n')['train']
    assert [(row['vid'], row['query'], row['duration']) for row in rows] == [
        ('b', 'a cat', 30), ('a', 'a dog', 20)]
    assert [row['relevant_windows'] for row in rows] == [[[1, 2.5], [7, 9]], [[0, 4]]]
    data = annotation_config(max_windows=2)
    records = annotations.read_annotations(tmp_path / 'out' / 'train.jsonl', data)
    assert [record.qid for record in records] == [row['qid'] for row in rows]


@pytest.mark.parametrize('delimiter', [',', '\t', ';'])
def test_quotes_order_case_and_byte_order_mark(delimiter, convert, capsys):
    header = ['Note', ' END', 'Sentence', 'VIDEO ', 'start', 'Duration']
    row = ['x', '1:02', f'"a dog{delimiter} ""Rex"",\nruns  fast"', ' v', '0:00:30.5', '75:00']
    content = '\ufeff' + '\r\n'.join([delimiter.join(header), delimiter.join(row), '', ''])
    found, = convert(content)['train']
    assert found['query'] == f'a dog{delimiter.strip()} "Rex", runs fast'.replace('dog "', 'dog "')
    assert (found['vid'], found['duration']) == ('v', 4500)
    assert found['relevant_windows'] == [[30.5, 62]]
    assert 'not read: note' in capsys.readouterr().out


@pytest.mark.parametrize('text, seconds', [
    ('0', 0), ('12.5', 12.5), ('.5', 0.5), ('7.', 7), ('1:02', 62), ('75:30.25', 4530.25),
    ('1:01:02.5', 3662.5), ('00:00:09', 9),
])  # fmt: skip
def test_times(text, seconds):
    assert import_csv.read_time(text) == seconds


@pytest.mark.parametrize('text', ['', '-1', '1,5', '1:60', '1:60:00', '1:2:3:4', ':30', '1e3',
                                  'nan', '12 s', '\u0663', '1:', '9' * 400])
def test_no_times(text):
    with pytest.raises(ValueError):
        import_csv.read_time(text)


def test_overlapping_windows_are_merged_touching_ones_are_not(convert, capsys):
    rows = convert('video,start,end,sentence,duration\nv,5,9,a,30\nv,2,6,a,30\nv,9,12,a,30\n'
                   'v,10,11,a,30\n')['train']
    assert rows[0]['relevant_windows'] == [[2, 9], [9, 12]]
    assert '2 windows were merged' in capsys.readouterr().out


def test_qids_are_those_of_the_table_or_hang_on_the_query_alone(convert):
    header = 'video,start,end,sentence,duration,qid\n'
    rows = convert(f'{header}v,1,2,a,9,7\nv,1,2,b,9,q07\nv,3,4,a,9,7\n')['train']
    assert [row['qid'] for row in rows] == [7, 'q07']
    first = convert(f'{header}v,1,2,a,9,\nw,1,2,a,9,\n')['train']
    other = convert(f'{header}u,1,2,b,9,\nw,3,4,a,9,\nv,1,2,a,9,\n')['train']
    assert len({row['qid'] for row in first + other}) == 3
    assert {row['vid']: row['qid'] for row in first}.items() <= {
        row['vid']: row['qid'] for row in other}.items()


def test_splits_of_the_table_and_queries_without_windows(convert):
    found = convert('video,start,end,sentence,duration,split\nv,1,2,a,9,train\nw,1,2,b,9,val\n'
                    'x,,,c,9,test\n')
    assert [(split, rows[0]['vid']) for split, rows in sorted(found.items())] == [
        ('test', 'x'), ('train', 'v'), ('val', 'w')]
    assert 'relevant_windows' not in found['test'][0]


def test_videos_are_split_and_adding_one_moves_few(convert):
    def table(videos):
        return 'video,start,end,sentence,duration\n' + ''.join(
            f'v{i},1,2,a,9\nv{i},3,4,b,9\n' for i in videos)

    def val(videos):
        found = convert(table(videos), val_share=0.2)
        train = {row['vid'] for row in found['train']}
        val = {row['vid'] for row in found['val']}
        assert not train & val and len(train | val) == len(videos)
        return val

    fifty = val(range(50))
    assert len(fifty) == 10 and val(range(49, -1, -1)) == fifty
    assert len(val(range(51)) ^ fifty) <= 2
    assert len(val(range(2))) == 1


def test_durations_of_another_table(convert, tmp_path):
    (tmp_path / 'd.csv').write_text('duration,video\n0:40,w\n30,v\n')
    table = 'video,start,end,sentence\nv,1,2,a\nw,30,31,a\n'
    rows = convert(table, durations=str(tmp_path / 'd.csv'))['train']
    assert [row['duration'] for row in rows] == [30, 40]
    (tmp_path / 'd.csv').write_text('duration,video\n20,w\n2x,v\n')
    message = refusal(convert, table, durations=str(tmp_path / 'd.csv'))
    assert_parts(message, 'mistakes: 3', "d.csv:3: duration is '2x'")


def test_durations_from_features(convert, tmp_path):
    for name, clips in (('v', 5), ('w', 5)):
        np.savez(tmp_path / f'{name}.npz', features=np.ones((clips, 3)))
    table = 'video,start,end,sentence\nv,1,11.5,a\nw,1,2,a\n'
    options = dict(durations=str(tmp_path), clip_length=2.0)
    assert [row['duration'] for row in convert(table, **options)['train']] == [11.5, 10]
    message = refusal(convert, f'{table}v,1,12.5,b\nx,1,2,c\n', **options)
    assert_parts(message, 'mistakes: 2')
    with pytest.raises(UserError, match='--clip_length=SECONDS'):
        convert(table, durations=str(tmp_path))


def test_the_same_table_gives_the_same_files(convert, tmp_path):
    table = 'video,start,end,sentence,duration\n' + ''.join(
        f'v{i % 7},{i},{i + 1},s{i},90\n' for i in range(40))
    convert(table, val_share=0.3)
    first = {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
    convert(table, val_share=0.3)
    assert {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()} == first
    assert sorted(first) == ['train.jsonl', 'val.jsonl']


HEADER = 'video,start,end,sentence,duration,qid,split\n'
GOOD = 'v,1,2,a,9,,train\n'


@pytest.mark.parametrize('row, parts', [
    (',1,2,b,9,,train', [":3: video is ''", 'a printable text']),
    ('v,1,2, ,9,,train', [":3: sentence is ''"]),
    ('v,x,2,b,9,,train', [":3: start is 'x'", 'seconds, mm:ss or hh:mm:ss']),
    ('v,1,,b,9,,train', [":3: end is ''"]),
    ('v,2,2,b,9,,train', [":3: end is '2'", 'more than start 2']),
    ('v,1,9.5,b,9,,train', [':3: end is 9.5', "at most 9, the duration of 'v'"]),
    ('v,1,2,b,8,,train', [":3: duration is '8'", '9, as in']),
    ('w,1,2,b,,,train', [':3: duration is None', "of video 'w'"]),
    ('w,,,b,0,,train', [':3: duration is 0', 'above 0']),
    ('v,1,2,b,9,,dev', [":3: split is 'dev'", 'one of train, val, test']),
    ('v,1,2,b,9,', [':3: 6 cells, expected 7']),
    ('v,1,2,"b\n\n,9,,train', [':3: unexpected end of data', 'matched double quotes']),
    ('v,1,2,b,9,,\n', [":3: split is ''", 'in all rows or in none', 't.csv:2']),
    ('"v\nw",1,2,b,9,,train', [":3: video is 'v\\nw'"]),
    ('v,5,6,b,9,5,train\nv,1,2,c,9,5,train', [":4: qid is '5'", 'another than that of', ':3']),
    ('v,1,2,"b\nc",9,,train\nv,1,x,d,9,,train', [":5: end is 'x'"]),  # rows of several lines
])
def test_mistakes_are_named_by_their_place(row, parts, convert, tmp_path, capsys):
    assert_parts(refusal(convert, HEADER + GOOD + row), 't.csv: nothing', 'mistakes: 1,', *parts)
    assert_parts(capsys.readouterr().err, *parts)
    assert not (tmp_path / 'out').exists()


def test_all_mistakes_are_told_at_once(convert, capsys):
    message = refusal(convert, HEADER + GOOD + 'v,a,b,,9,,train\nv,1,2\nv,1,99,b,9,,train\n')
    assert_parts(message, 'mistakes: 5')
    lines = capsys.readouterr().err.splitlines()
    assert [line.rsplit('t.csv', 1)[1].split(' ')[0] for line in lines] == [
        ':3:', ':3:', ':3:', ':4:', ':5:']


@pytest.mark.parametrize('content, parts', [
    ('', [':1: header', 'video, start, end, sentence']),
    ('video,begin,end,sentence\n', ['begin', 'expected columns']),
    ('video,start,end,sentence,video\n', ['different names']),
    ('video,start,end,sentence\n', ['no rows']),
    ('video,start,end,sentence\nv,1,2,a\n', ['no column duration', '--durations']),
    ('video,start,end,sentence\nv,1,2,café\n'.encode('latin-1'), [':2: byte 0xe9', 'UTF-8']),
])
def test_tables_that_are_none(content, parts, convert, tmp_path):
    assert_parts(refusal(convert, content), 't.csv', *parts)
    assert not (tmp_path / 'out').exists()


def test_a_table_that_is_not_there(convert, tmp_path):
    message = refusal(convert, '', table=str(tmp_path / 'gone.csv'))
    assert_parts(message, 'gone.csv', "can't be read")
    with pytest.raises(UserError, match='needs --table=FILE and --output=FOLDER'):
        convert('', table=None)


def test_nothing_is_half_written(convert, tmp_path, monkeypatch):
    table = HEADER + GOOD + 'w,1,2,b,9,,val\n'
    convert(table)
    files = {path: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
    refusal(convert, table.replace('9,,val', '1,,val'))
    real = json.dumps

    def fail(row):
        if row['vid'] == 'w':
            raise OSError('disk full')
        return real(row)

    monkeypatch.setattr(json, 'dumps', fail)
    assert_parts(refusal(convert, table.replace('v,1', 'v,0')), 'disk full')
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in (tmp_path / 'out').iterdir()} == files
    # An annotation file that would stay from another table.
    assert_parts(refusal(convert, HEADER + GOOD), 'val.jsonl', 'is there already')
    assert {path: path.read_bytes() for path in (tmp_path / 'out').iterdir()} == files

"""Modes import and import-csv: tables as people have them, and every mistake by its place."""

import json
import types

import numpy as np
import pytest

from data_pipelines import annotations
from data_pipelines.errors import UserError
from data_pipelines.own_data import import_moments, import_rows
from tests.helpers.release_files import annotation_config, assert_parts, refusal


@pytest.fixture(name='convert')
def convert_table(tmp_path):
    """Writes a table and imports it; returns split -> rows of its annotation file."""

    def convert(content, name='t.csv', **changes):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        values = dict(mode='import-csv', table=[str(path)], output=str(tmp_path / 'out'),
                      durations=[], clip_length=None, val_share=0.0, end_tolerance=1.0,
                      clip_windows=False, on_error='raise')
        import_moments.run(types.SimpleNamespace(**(values | changes)), None)
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
    ('1:01:02.5', 3662.5), ('00:00:09', 9), ('1e1', 10), ('1.5E+01', 15), ('25e-2', 0.25),
])  # fmt: skip
def test_times(text, seconds):
    assert import_rows.read_time(text) == seconds


@pytest.mark.parametrize('text', ['', '-1', '1,5', '1:60', '1:60:00', '1:2:3:4', ':30', '1:1e1',
                                  '1e', '1e400', 'nan', 'inf', '-inf', '50%', '1 234', '12 s',
                                  '\u0663', '1:', '9' * 400])
def test_no_times(text):
    with pytest.raises(ValueError):
        import_rows.read_time(text)


def test_overlapping_windows_are_merged_touching_ones_are_not(convert, capsys):
    rows = convert('video,start,end,sentence,duration\nv,5,9,a,30\nv,2,6,a,30\nv,9,12,a,30\n'
                   'v,10,11,a,30\n')['train']
    assert rows[0]['relevant_windows'] == [[2, 9], [9, 12]]
    assert 'they overlap: 2\n' in capsys.readouterr().out


def test_qids_are_those_of_the_table_or_hang_on_the_query_alone(convert):
    header = 'video,start,end,sentence,duration,qid\n'
    rows = convert(f'{header}v,1,2,a,9,7\nv,1,2,b,9,q07\nv,3,4,a,9,7\n')['train']
    assert [row['qid'] for row in rows] == [7, 'q07']
    first = convert(f'{header}v,1,2,a,9,\nw,1,2,a,9,\n')['train']
    other = convert(f'{header}u,1,2,b,9,\nw,3,4,a,9,\nv,1,2,a,9,\n')['train']
    assert len({row['qid'] for row in first + other}) == 3
    assert {row['vid']: row['qid'] for row in first}.items() <= {
        row['vid']: row['qid'] for row in other}.items()


@pytest.mark.parametrize('second, parts', [
    ('w,1,2,b,9,1,val', ["t.csv:3: qid is 1, expected another than that of", 't.csv:2']),
    ('v,3,4,b,9,1,train', ['t.csv:3', 't.csv:2']),
    ('w,3,4,a,9,1,train', ['t.csv:3', 't.csv:2']),
    ('w,3,4,a,9,1,val', None),
])  # fmt: skip
def test_a_qid_has_one_sentence_in_all_splits_and_one_video_in_each(convert, second, parts):
    """Since a feature file is named by it alone."""
    table = f'video,start,end,sentence,duration,qid,split\nv,1,2,a,9,1,train\n{second}\n'
    if parts is None:
        assert [row['qid'] for rows in convert(table).values() for row in rows] == [1, 1]
    else:
        assert_parts(refusal(convert, table), *parts)


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
    rows = convert(table, durations=[str(tmp_path / 'd.csv')])['train']
    assert [row['duration'] for row in rows] == [30, 40]
    (tmp_path / 'd.csv').write_text('duration,video\n20,w\n2x,v\n')
    message = refusal(convert, table, durations=[str(tmp_path / 'd.csv')])
    assert_parts(message, 'mistakes: 3', "d.csv:3: duration is '2x'")


def test_durations_from_features(convert, tmp_path, capsys):
    for name, clips in (('v', 5), ('w', 5)):
        np.savez(tmp_path / f'{name}.npz', features=np.ones((clips, 3)))
    table = 'video,start,end,sentence\nv,1,11.5,a\nw,1,2,a\n'
    options = dict(durations=[str(tmp_path)], clip_length=2.0)
    assert [row['duration'] for row in convert(table, **options)['train']] == [11.5, 10]
    assert 'ends after their clips, by up to one: they end with it: 1' in capsys.readouterr().out
    message = refusal(convert, f'{table}v,1,13,b\nx,1,2,c\n', **options)
    assert_parts(message, 'mistakes: 2')
    with pytest.raises(UserError, match='--clip_length=SECONDS'):
        convert(table, durations=[str(tmp_path)])


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
    (',1,2,b,9,,train', [":3: video is ''", 'a text, not empty and without control characters']),
    ('v,1,2,b\a,9,,train', [":3: sentence is 'b\\x07'"]),
    ('v,1,2, ,9,,train', [":3: sentence is ''"]),
    ('v,x,2,b,9,,train', [":3: start is 'x'", 'seconds, mm:ss or hh:mm:ss']),
    ('v,,2,b,9,,train', [":3: start is ''", 'only an end may be open']),
    ('v,-1,2,b,9,,train', [":3: start is '-1'", 'seconds, mm:ss']),
    ('v,3,2,b,9,,train', [':3: end is 2,', 'at least start 3']),
    ('v,9.1,9.2,b,9,,train', [':3: start is 9.1', "at most 9, the duration of 'v'"]),
    ('v,1,10.5,b,9,,train', [':3: end is 10.5', "at most 9, the duration of 'v', or 1 s more"]),
    ('v,1,2,b,8,,train', [':3: duration is 8,', '9, as in']),
    ('v,1,"1,234",b,9,,train', [":3: end is '1,234'", 'decimals or thousands']),
    ('v,1,"1,234.5",b,9,,train', [":3: end is '1,234.5'"]),
    ('v,1,2,b,9,,train,,7', [':3: 9 cells, expected 7']),
    ('w,1,2,b,,,train', [':3: duration is None', "of video 'w'"]),
    ('w,,,b,0,,train', [':3: duration is 0', 'above 0']),
    ('v,1,2,b,9,,dev', [":3: split is 'dev'", 'one of train, val, test']),
    ('v,1,2,b,9,', [':3: 6 cells, expected 7']),
    ('v,1,2,b,9,,\n', [":3: split is ''", 'in all rows or in none', 't.csv:2']),
    ('"v\nw",1,2,b,9,,train', [":3: video is 'v\\nw'"]),
    ('v,5,6,b,9,5,train\nv,1,2,c,9,5,train', [':4: qid is 5,', 'another than that of', ':3']),
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
    assert sorted(line.rsplit('t.csv', 1)[1].split(' ')[0] for line in lines) == [
        ':3:', ':3:', ':3:', ':4:', ':5:']


@pytest.mark.parametrize('content, parts', [
    ('video,start'.encode('utf-16-le'), [':1: zero bytes', 'byte order mark']),
    ('', [':1: header', 'video, start, end, sentence']),
    ('video,begin,end,sentence\n', ['begin', 'expected columns']),
    ('video,start,end,sentence,video\n', ['different names']),
    ('video,start,end,sentence\n', ['no rows']),
    ('video,start,end,sentence\nv,1,2,a\n', ['no durations', 'column duration', '--durations']),
    ('video,start,end,sentence\nv,1,2,café\n'.encode('latin-1'), [':2: byte 0xe9', 'UTF-8']),
    (HEADER + GOOD + 'v,1,2,"b\n\n,9,,train',
     [':3: unexpected end of data', 'matched double quotes']),
])
def test_tables_that_are_none(content, parts, convert, tmp_path):
    assert_parts(refusal(convert, content), 't.csv', *parts)
    assert not (tmp_path / 'out').exists()


def test_a_table_that_is_not_there(convert, tmp_path):
    message = refusal(convert, '', table=[str(tmp_path / 'gone.csv')])
    assert_parts(message, 'gone.csv', "can't be read")
    with pytest.raises(UserError, match='needs --table=FILE and --output=FOLDER'):
        convert('', table=None)


def test_nothing_is_half_written(convert, tmp_path, monkeypatch):
    table = HEADER + GOOD + 'w,1,2,b,9,,val\n'
    convert(table)
    files = {path: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
    refusal(convert, table.replace('9,,val', '0.5,,val'))
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


# What is out of the ordinary is read, and said


@pytest.mark.parametrize('row, windows, said', [
    ('v;12,5;20,75;a;60;1', [[12.5, 20.75]], 'times with a decimal comma: 2'),
    ('v;1,5;1,234e1;a;60;1', [[1.5, 12.34]], 'scientific notation: 1'),
    ('v;0:01:02,500;1:03;a;100;1', [[62.5, 63]], 'decimal comma: 1'),
    ('v;1e1;1.5E+01;a;20;1', [[10, 15]], 'times in scientific notation: 2'),
    ('v;\u200f5 ;\u20669\u2069;a;20;1', [[5, 9]], '1 windows'),
    ('v;5;;a;20;1', [[5, 20]], 'moments without an end, read as up to that of their video: 1'),
    ('v;2;2;a;20;1', [[2, 2]], 'windows without length, kept: to train'),
    ('v;29.61;89.72;a;89.71;1', [[29.61, 89.72]], 'by up to 0.01 s, kept; --clip_windows'),
    ('v;2;3;a;20;1\nv;2;3;a;20;1', [[2, 3]], 'rows that repeat another, left out: 1'),
    ('v;2;3;a;20;1;;\n;;;;;;;\n\n', [[2, 3]], 'empty columns at the end, not read: 2'),
])
def test_odd_cells(row, windows, said, convert, capsys):
    found, = convert(f'video;start;end;sentence;duration;qid\n{row}\n')['train']
    assert found['relevant_windows'] == windows
    assert said in capsys.readouterr().out


def test_nothing_is_said_of_a_plain_table(convert, capsys):
    convert(HEADER + GOOD + 'w,1,2.5,b,9,,val\n')
    assert [line.partition(':')[0] for line in capsys.readouterr().out.splitlines()] == [
        'train', 'val']


@pytest.mark.parametrize('sentence', [
    'مرد می\u200cرود', 'a family 👨\u200d👩\u200d👧 walks', '\u200fעברית', 'cafe\u0301',
    '東京\u3000タワー',
])
def test_sentences_and_names_of_all_scripts(sentence, convert, capsys, tmp_path):
    header = 'video,start,end,sentence,duration\n'
    found, = convert(f'{header}{sentence},1,5,{sentence},20\n')['train']
    assert found['query'] == ' '.join(sentence.split())
    query, = annotations.read_annotations(tmp_path / 'out' / 'train.jsonl', annotation_config())
    assert (query.vid, query.query) == (sentence, found['query'])
    assert ('invisible' in capsys.readouterr().out) == any(
        character in sentence for character in '\u200c\u200d\u200f')


@pytest.mark.parametrize('header', [
    'video,start,end,sentence,duration,,', ' Video ,START,End\u200e,sentence,"duration"',
    ',video,start,end,sentence,duration'])
def test_headers(header, convert, capsys):
    row = 'v,1,5,a man runs,20'
    row = f'0,{row}' if header.startswith(',') else f'{row},,' if header.endswith(',') else row
    found, = convert(f'{header}\n{row}\n')['train']
    assert (found['vid'], found['duration'], found['relevant_windows']) == ('v', 20, [[1, 5]])
    # A comma for a point would shift cells into the columns without a name.
    assert_parts(refusal(convert, f'{header}\nv,1,2,5,a,20,7,\n'), ':2: 8 cells, expected')


def test_marks_where_files_were_joined(convert):
    rows = convert('video,start,end,sentence,duration\n\ufeffv,1,2,a,9\nv,3,4,a,9\n')['train']
    assert [row['relevant_windows'] for row in rows] == [[[1, 2], [3, 4]]]


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-8-sig'])
def test_encodings(encoding, convert):
    text = 'video\tstart\tend\tsentence\tduration\r\nv\t1\t5\tcafé\t20\r\n'
    assert convert(text.encode(encoding))['train'][0]['query'] == 'café'


def test_two_decimal_marks_in_a_table(convert):
    message = refusal(convert, 'video;start;end;sentence;duration\nv;1,5;2.5;a;20\n')
    assert_parts(message, ":2: start is '1,5'", "one decimal mark, but end is '2.5' in", ':2')


def test_windows_past_the_end_as_the_flags_say(convert, capsys):
    table = 'video,start,end,sentence,duration\nv,1,10.5,a,10\nv,10.0005,10.5,b,10\n'
    rows = convert(table, clip_windows=True)['train']
    assert [row['relevant_windows'] for row in rows] == [[[1, 10]], [[10, 10]]]
    assert_parts(capsys.readouterr().out, 'up to 0.5 s, cut: 2', 'without length, kept: to', ': 1')
    assert_parts(refusal(convert, table, end_tolerance=0.25), 'mistakes: 2', '0.25 s more')
    convert(table.replace('10.5', '10.0009'), end_tolerance=0.0)
    assert 'end after' not in capsys.readouterr().out


def test_mistakes_can_be_left_out(convert, capsys):
    rows = convert(HEADER + GOOD + 'v,3,1,a,9,,train\nw,1,2,b,,,train\nw,3,4,c,,,train\nv,8,9,d,9,'
                   ',train', on_error='skip')['train']
    assert [(row['query'], row['relevant_windows']) for row in rows] == [
        ('a', [[1, 2]]), ('d', [[8, 9]])]
    printed = capsys.readouterr()
    assert 'with mistakes, left out: 3' in printed.out and len(printed.err.splitlines()) == 2
    assert_parts(refusal(convert, HEADER + 'v,3,1,a,9,,train', on_error='skip'), 'no rows')


def test_the_same_sentence_for_two_videos_is_two_queries(convert):
    rows = convert('video,start,end,sentence,duration\nv,1,2,a,9\nw,1,2,a,9\n')['train']
    assert rows[0]['qid'] != rows[1]['qid']


def test_one_video_has_no_validation_and_a_way_on(convert, capsys):
    header = 'video,start,end,sentence,duration\n'
    assert set(convert(f'{header}v,1,5,a,20\nv,6,9,b,20\n', val_share=0.1)) == {'train'}
    assert_parts(capsys.readouterr().out, 'val: no query (the table has one video', 'val=train')


def test_a_file_for_each_split(convert, tmp_path, capsys):
    for name in 'abc':
        (tmp_path / f'{name}.csv').write_text(
            f'video,start,end,sentence,duration\n{name},1,2,a {name},9\n')
    tables = [f'train={tmp_path}/a.csv', f'train={tmp_path}/b.csv', f'val={tmp_path}/c.csv']
    found = convert('', table=tables)
    assert {split: [row['vid'] for row in rows] for split, rows in found.items()} == {
        'train': ['a', 'b'], 'val': ['c']}
    assert 'no query' not in capsys.readouterr().out
    message = refusal(convert, '', table=[f'train={tmp_path}/a.csv', f'{tmp_path}/b.csv'])
    assert_parts(message, "b.csv:2: split is ''", 'in all rows or in none')

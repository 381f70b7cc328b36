"""JSON lines are read with names of what is bad; files appear whole or not at all."""

import gzip
import json
import re

import pytest

from data_pipelines import files
from data_pipelines.errors import DataError
from data_pipelines.files import load_jsonl
from tests.helpers.file_limit import file_limit


@pytest.mark.parametrize('name', ['x.jsonl', 'x.jsonl.gz'])
def test_load_jsonl_reads_plain_and_gzip(tmp_path, name):
    content = '\n{"qid": 1, "query": "caf\u00e9\u2028"}\r\n  \n{"qid": 2}'.encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith('.gz') else content)
    assert load_jsonl(path) == load_jsonl(str(path)) == [
        {'qid': 1, 'query': 'caf\u00e9\u2028'}, {'qid': 2}]


@pytest.mark.parametrize(('line', 'text'), [
    (b'{"qid": 1', 'malformed JSON'),
    (b'{"qid": 1} {"qid": 2}', 'malformed JSON'),
    (b'{"qid": "\xff"}', 'malformed JSON'),
    (b'[1, 2]', 'found [1, 2], expected a JSON object'),
])
@pytest.mark.parametrize('name', ['x.jsonl', 'x.jsonl.gz'])
def test_load_jsonl_names_file_and_line(tmp_path, name, line, text):
    content = b'{"qid": 0}\n\n' + line + b'\n{"qid": 3}\n'
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith('.gz') else content)
    with pytest.raises(DataError, match=f'^{re.escape(str(path))}:3: {re.escape(text)}') as e:
        load_jsonl(path)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('damage', [lambda data: data[:-12], lambda data: b'{"qid": 1}\n',
                                    lambda data: data[:20] + b'\x00\xff' * 8 + data[36:]])
def test_load_jsonl_names_a_damaged_gzip_file(tmp_path, damage):
    path = tmp_path / 'x.jsonl.gz'
    path.write_bytes(damage(gzip.compress(b'{"qid": 1}\n{"qid": 22, "query": "abcdefgh"}\n')))
    with pytest.raises(DataError, match=f'^{re.escape(str(path))}: damaged gzip stream'):
        load_jsonl(path)


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match='no.jsonl: can.t be read: No such file or directory'):
        load_jsonl(tmp_path / 'no.jsonl')


def test_json_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'x.json'
    files.write_json(path, {'a': 1})
    with pytest.raises(TypeError):
        files.write_json(path, {'a': object()})
    path.with_name('folder').mkdir()
    with pytest.raises(OSError):
        files.write_json(path.with_name('folder'), {'a': 2})
    assert json.loads(path.read_text()) == {'a': 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ['folder', 'x.json']


def test_a_full_disk_is_told_with_the_file(tmp_path):
    path = tmp_path / 'x.json'
    files.write_json(path, 1)
    with file_limit(10), pytest.raises(OSError, match=f"File too large: '{path}'"):
        files.write_json(path, list(range(1000)))
    assert [json.loads(path.read_text()) for path in tmp_path.iterdir()] == [1]


def test_files_appear_together_or_not_at_all(tmp_path):
    paths = [tmp_path / 'a', tmp_path / 'b']
    with files.whole_files(*paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text('before')
    with pytest.raises(KeyError), files.whole_files(*paths) as temporaries:
        temporaries[0].write_text('half')
        raise KeyError
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ['before', 'before']


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / 'new' / 'folder'

    def fill(content, **options):
        with files.whole_folder(folder, **options) as unfinished:
            (unfinished / content).write_text(content)
            assert not (folder / content).exists()
            if content == 'bad':
                raise KeyError

    with pytest.raises(KeyError):
        fill('bad')
    assert not any((tmp_path / 'new').iterdir())
    fill('first')
    with pytest.raises(OSError):
        fill('second')
    with pytest.raises(KeyError):
        fill('bad', replace=True)
    assert [path.name for path in folder.iterdir()] == ['first']
    fill('third', replace=True)
    assert [path.name for path in folder.iterdir()] == ['third']
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['folder']

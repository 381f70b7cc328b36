"""Rows of words looked up in a file of vectors."""

import numpy as np
import pytest

from data_pipelines import release
from data_pipelines.errors import ConfigError
from data_pipelines.own_data import word_vectors
from data_pipelines.tokens import MEAN, WORD
from tests.helpers.release_files import LINE, assert_parts, make_release, refusal, write_lines

VECTORS = """the 1 2 3
dog 0.5 -1e-1 2
cat 9 9 9
runs 4 5 6
"""


@pytest.fixture(name='data')
def make_data(tmp_path):
    data = make_release(tmp_path, text_dir='glove', text_dim=3, text_layout='glove',
                        normalize_text=False)
    lines = [LINE | dict(query='The dog runs.'), LINE | dict(qid='b', query='a Dog')]
    for name in ('train', 'val'):
        write_lines(tmp_path / f'{name}.jsonl', lines)
    (tmp_path / 'vectors.txt').write_text(VECTORS)
    return data


def test_rows_of_sentences(data, tmp_path):
    said = word_vectors.write_rows(data, tmp_path / 'vectors.txt')
    assert_parts(said, tmp_path / 'glove', '2 queries', '2 of their 4 different words')
    text, roles = release.read_query(data, 1)
    assert roles.tolist() == [WORD, WORD, WORD, MEAN]  # 'runs.' is not 'runs', as in public code
    np.testing.assert_allclose(text, [[1, 2, 3], [0.5, -0.1, 2], [0, 0, 0], [0.5, 1.9 / 3, 5 / 3]],
                               rtol=1e-6)
    np.testing.assert_allclose(release.read_query(data, 'b')[0][:2], [[0, 0, 0], [0.5, -0.1, 2]])
    assert_parts(refusal(word_vectors.write_rows, data, tmp_path / 'vectors.txt'), 'exists')


@pytest.mark.parametrize('vectors, parts', [
    ('the 1 2\n', ['vectors.txt:1', '3 finite numbers', 'data.text_dim']),
    ('cat x\nthe 1 2 x\n', ['vectors.txt:2']),
    ('the 1 2 nan\n', ['vectors.txt:1']),
    ('cat 1 2 3\n', ['none of the 4 words']),
])  # fmt: skip
def test_bad_vectors_leave_nothing(data, tmp_path, vectors, parts):
    (tmp_path / 'vectors.txt').write_text(vectors)
    before = sorted(tmp_path.iterdir())
    assert_parts(refusal(word_vectors.write_rows, data, tmp_path / 'vectors.txt'), *parts)
    assert_parts(refusal(word_vectors.write_rows, data, tmp_path / 'none'), "can't be read")
    assert sorted(tmp_path.iterdir()) == before


def test_a_qid_of_two_sentences_is_refused(data, tmp_path):
    write_lines(tmp_path / 'val.jsonl', [LINE | dict(qid=str(LINE['qid']), query='a cat')])
    assert_parts(refusal(word_vectors.write_rows, data, tmp_path / 'vectors.txt'),
                 "val.jsonl:1: qid '1' stands for 'The dog runs.', too: they share a feature file")
    assert not (tmp_path / 'glove').exists()


def test_only_for_releases_of_words_alone(data, tmp_path):
    data.text_layout = 'clip'
    with pytest.raises(ConfigError, match="'clip', whose rows are not words alone"):
        word_vectors.write_rows(data, tmp_path / 'vectors.txt')

"""Tests of data_pipelines/tokens.py: what each row is, what is kept, what is averaged."""

import numpy as np
import pytest

from data_pipelines import tokens
from data_pipelines.tokens import EOS, MEAN, PADDING, START, WORD
from tests.helpers.release_files import assert_parts, make_rows, refusal, unit

CLIP, LLAMA, WORDS = (tokens.TEXT_LAYOUTS[name] for name in ('clip', 'llama', 'words'))
N_START = {CLIP: 1, LLAMA: 4, WORDS: 0}


def label(rows, layout, max_tokens=20, *, normalize=False):
    text, roles = tokens.label_tokens(rows, layout, max_tokens, normalize=normalize)
    assert text.dtype == np.float32 and roles.dtype == np.int32
    assert len(text) == len(roles) <= max_tokens
    return text, roles.tolist()


def padded(rows, n):
    return np.concatenate([rows, np.zeros((n, rows.shape[1]), np.float32)])


def test_layouts_and_names():
    found = {name: (layout.start, layout.has_eos, layout.padded)
             for name, layout in tokens.TEXT_LAYOUTS.items()}
    assert found == {'clip': (1, True, True), 'llama': (4, True, True),
                     'words': (0, False, True), 'glove': (0, False, False)}
    names = {PADDING: 'padding', START: 'start', WORD: 'words', EOS: 'eos', MEAN: 'mean'}
    assert dict(enumerate(tokens.ROLES)).items() >= names.items()
    assert len(tokens.ROLES) == tokens.P_EOS + 1
    assert PADDING == 0  # what batches are filled up with


@pytest.mark.parametrize('layout, roles', [
    (CLIP, [START, *[WORD] * 8, EOS]),
    (LLAMA, [*[START] * 4, *[WORD] * 5, EOS]),
    (WORDS, [WORD] * 10),
])  # fmt: skip
@pytest.mark.parametrize('padding', [0, 3])
def test_rows_and_roles(layout, roles, padding):
    rows = make_rows(10, 4)
    every_row = padded(rows, padding)
    assert tokens.token_roles(every_row, layout).tolist() == [*roles, *[PADDING] * padding]
    for normalize, expected in ((False, rows), (True, unit(rows))):
        text, found = label(every_row, layout, normalize=normalize)
        if not layout.has_eos:
            assert found.pop() == MEAN
            text = text[:-1]
        assert found == roles
        np.testing.assert_allclose(text, expected, rtol=1e-6 if normalize else 0)


def test_words_without_a_vector_are_no_padding():
    rows = padded(make_rows(2, 4), 1)
    text, roles = label(rows, tokens.TEXT_LAYOUTS['glove'])
    assert roles == [WORD, WORD, WORD, MEAN] and not text[2].any()
    np.testing.assert_allclose(text[3], rows.sum(0) / 3, rtol=1e-6)


@pytest.mark.parametrize('layout', [CLIP, LLAMA, WORDS])
@pytest.mark.parametrize('max_tokens', range(1, 16))
def test_cutting_loses_the_last_words_only(layout, max_tokens):
    rows = make_rows(12, 4)
    whole, whole_roles = label(rows, layout, 99)
    assert len(whole) == 12 + (not layout.has_eos)
    text, roles = label(padded(rows, 5), layout, max_tokens)
    # Every row counts: start-of-text, words, and [EOS] or the mean.
    assert len(text) == min(max_tokens, len(whole))
    np.testing.assert_array_equal(text[:-1], whole[:len(text) - 1])
    np.testing.assert_array_equal(text[-1], whole[-1])
    assert roles == [*whole_roles[:len(roles) - 1], EOS if layout.has_eos else MEAN]


def test_a_long_query_by_hand():
    rows = make_rows(60, 4)
    text, roles = label(rows, CLIP, 40)
    np.testing.assert_array_equal(text, rows[[*range(39), 59]])
    assert roles == [START, *[WORD] * 38, EOS]


def test_mean_is_of_all_words_also_those_cut():
    rows = make_rows(7, 4)
    text, roles = label(rows, WORDS, 4)
    assert roles == [WORD, WORD, WORD, MEAN]
    np.testing.assert_array_equal(text[:3], rows[:3])
    np.testing.assert_allclose(text[3], sum(rows) / 7, rtol=1e-5)
    text, roles = label(padded(rows, 2), WORDS, 4, normalize=True)
    np.testing.assert_allclose(text[:3], unit(rows)[:3], rtol=1e-6)
    np.testing.assert_allclose(text[3], unit([sum(unit(rows)) / 7])[0], rtol=1e-5)
    assert roles == [WORD, WORD, WORD, MEAN]


def test_mean_is_of_words_without_start_rows():
    rows = make_rows(5, 4)
    text, roles = label(rows, tokens.TextLayout(start=2, has_eos=False))
    assert roles == [START, START, WORD, WORD, WORD, MEAN]
    np.testing.assert_allclose(text[5], sum(rows[2:]) / 3, rtol=1e-5)


def test_zero_rows_inside_are_kept():
    rows = make_rows(6, 4)
    rows[2] = 0
    text, roles = label(padded(rows, 1), CLIP, normalize=True)
    assert roles == [START, *[WORD] * 4, EOS] and not text[2].any() and np.isfinite(text).all()


@pytest.mark.parametrize('layout', [CLIP, LLAMA])
def test_no_words_is_legal_no_eos_is_not(layout):
    rows = make_rows(N_START[layout] + 1, 4)
    text, roles = label(rows, layout, 9)
    np.testing.assert_array_equal(text, rows)
    assert roles == [*[START] * N_START[layout], EOS]
    message = refusal(tokens.label_tokens, rows[:-1], layout, 9, normalize=False)
    assert_parts(message, f'{len(rows) - 1} rows', f'at least {len(rows)}')


@pytest.mark.parametrize('layout', [CLIP, LLAMA, WORDS])
def test_only_padding(layout):
    message = refusal(tokens.label_tokens, np.zeros((3, 4)), layout, 9, normalize=True)
    assert_parts(message, '0 rows', f'at least {N_START[layout] + 1}')
    assert tokens.token_roles(np.zeros((3, 4)), layout).tolist() == [PADDING] * 3


# The text behind the rows


@pytest.mark.parametrize('sentence, count, expected', [
    ('A man, a dog.', 6, ['A', 'man', ',', 'a', 'dog', '.']),
    ('A man, a dog.', 4, ['A', 'man', 'a', 'dog']),
    ("it's 9-year-old", 2, ["it's", '9-year-old']),
    ('A man, a dog.', 5, None),
    ('', 0, []),
])
def test_word_strings_by_their_number(sentence, count, expected):
    assert tokens.word_strings(sentence, count) == expected


def test_word_strings_of_a_tokenizer(tmp_path):
    import tokenizers
    import transformers

    vocabulary = {word: i for i, word in enumerate(['[UNK]', 'a', 'do', '##g', ',', 'red'])}
    model = tokenizers.models.WordPiece(vocabulary, unk_token='[UNK]')
    built = tokenizers.Tokenizer(model)
    built.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    transformers.PreTrainedTokenizerFast(tokenizer_object=built).save_pretrained(tmp_path)
    strings = tokens.word_strings('a red, dog', 5, str(tmp_path))
    assert strings[:4] == ['a', 'red', ',', 'do'] and strings[4].endswith('g')
    # A long query has lost its last rows; more rows than tokens cannot be explained.
    assert tokens.word_strings('a red, dog', 3, str(tmp_path)) == ['a', 'red', ',']
    assert tokens.word_strings('a red, dog', 6, str(tmp_path)) is None


def test_punctuation_gets_its_role():
    roles = np.array([START, WORD, WORD, WORD, EOS, PADDING], np.int32)
    found = tokens.mark_punctuation(roles, ['dog', '...', "'s"])
    assert found.tolist() == [START, WORD, tokens.PUNCTUATION, WORD, EOS, PADDING]
    assert found.dtype == np.int32 and roles[2] == WORD
    assert tokens.mark_punctuation(roles, None).tolist() == roles.tolist()

"""Tests of data_pipelines/tokens.py: what each row is, what is kept, what is averaged."""

import numpy as np
import pytest
from release_files import assert_parts, make_rows, refusal, unit

from data_pipelines import tokens
from data_pipelines.tokens import EOS, MEAN, PADDING, START, WORD

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
    found = {name: (layout.start, layout.has_eos) for name, layout in tokens.TEXT_LAYOUTS.items()}
    assert found == {'clip': (1, True), 'llama': (4, True), 'words': (0, False)}
    names = {PADDING: 'padding', START: 'start', WORD: 'word', EOS: '[EOS]', MEAN: 'mean'}
    assert dict(enumerate(tokens.ROLES)) == names
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

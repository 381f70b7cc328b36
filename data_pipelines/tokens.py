"""What each row of a query's features is: start-of-text, a word, punctuation, or [EOS]."""

import dataclasses
import functools
import re
from collections.abc import Callable

import numpy as np

from data_pipelines.errors import DataError

NORM_EPSILON = 1e-5  # as in the references; keeps rows of zeros finite

# MEAN is a row of ours where a release has no sentence token: the mean of the words.
# Models treat punctuation as words; the last three are keys that a model adds to the tokens.
PADDING, START, WORD, EOS, MEAN, PUNCTUATION, DUMMY, PHRASE, P_EOS = range(9)
ROLES = ('padding', 'start', 'words', 'eos', 'mean', 'punctuation', 'dummies', 'phrases', 'p_eos')


@dataclasses.dataclass(frozen=True)
class TextLayout:
    """What the rows of a text feature file are.

    Attributes:
        start: rows before the words: start-of-text, prompt.
        has_eos: whether the last row is [EOS].
        padded: whether rows of zeros at the end are padding; else they are words.
    """

    start: int
    has_eos: bool
    padded: bool = True


TEXT_LAYOUTS = {
    'clip': TextLayout(start=1, has_eos=True),
    'llama': TextLayout(start=4, has_eos=True),
    'words': TextLayout(start=0, has_eos=False),
    'glove': TextLayout(start=0, has_eos=False, padded=False),  # zeros: a word without a vector
}


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Scales the rows of float[..., D] to length one."""
    return rows / (np.linalg.norm(rows, axis=-1, keepdims=True) + NORM_EPSILON)


def filled_rows(rows: np.ndarray) -> int:
    """Returns the number of rows float[R, D] before the padding, which is rows of zeros."""
    filled = np.flatnonzero(rows.any(axis=1))
    return int(filled[-1]) + 1 if len(filled) else 0


def word_rows(n_rows: int, layout: TextLayout) -> int:
    """How many of the rows beside padding are words; DataError if they hold no word, no [EOS]."""
    if n_rows <= layout.start:
        raise DataError(f'{n_rows} rows beside padding, expected at least {layout.start + 1}')
    return n_rows - layout.start - layout.has_eos


def token_roles(rows: np.ndarray, layout: TextLayout) -> np.ndarray:
    """Returns the role int32[R] of each row float[R, D]; see TextLayout for rows of zeros."""
    n_rows = filled_rows(rows) if layout.padded else len(rows)
    roles = np.full(len(rows), PADDING, np.int32)
    roles[:n_rows] = WORD
    if layout.has_eos and n_rows:
        roles[n_rows - 1] = EOS
    roles[:min(layout.start, n_rows)] = START
    return roles


def label_tokens(rows: np.ndarray, layout: TextLayout, max_tokens: int, *,
                 normalize: bool) -> tuple[np.ndarray, np.ndarray]:
    """Takes a query's tokens out of its rows, with their roles.

    Args:
        rows: float32[R, D], as in the file.
        layout: of the rows.
        max_tokens: longer queries lose their last words, but not the sentence token (the references
            cut it off with them).
        normalize: whether rows are scaled to length one.

    Returns:
        text: float32[L, D], L <= max_tokens, without padding; the last row is [EOS] or MEAN.
        roles: int32[L].

    Raises:
        DataError: no row is left for [EOS], or no word to average.
    """
    roles = token_roles(rows, layout)
    word_rows(np.count_nonzero(roles != PADDING), layout)
    text, roles = rows[roles != PADDING], roles[roles != PADDING]
    text = unit_rows(text) if normalize else text
    if not layout.has_eos:
        mean = text[roles == WORD].mean(axis=0, keepdims=True)
        text = np.concatenate([text, unit_rows(mean) if normalize else mean])
        roles = np.append(roles, np.int32(MEAN))
    return cut(text, roles, max_tokens)


def cut(text: np.ndarray, roles: np.ndarray, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a query to max_tokens rows by taking out its last words; see `label_tokens`."""
    if len(text) <= max_tokens:
        return text, roles
    kept = np.delete(np.arange(len(text)), slice(max_tokens - 1, -1))
    return text[kept], roles[kept]


@functools.lru_cache(maxsize=1)
def tokenizer(name: str) -> Callable[[str], list[str]]:
    """Splits sentences as the text encoder did: sentence -> tokens, without special ones.

    Args:
        name: folder or hub name of a Hugging Face tokenizer.

    Raises:
        DataError: it cannot be loaded.
    """
    import transformers

    try:
        found = transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise DataError(f'--tokenizer={name} cannot be loaded: {error}') from error
    return lambda sentence: [
        found.decode([i]).strip() for i in found(sentence, add_special_tokens=False)['input_ids']]


def word_strings(sentence: str, count: int, name: str = '') -> list[str] | None:
    """The text behind each word row of a query.

    Args:
        sentence: the query.
        count: word rows; a long query may have lost its last ones.
        name: of the encoder's tokenizer. Without one, rows are taken for the sentence's words, or
            for its words and marks, whichever are `count`.

    Returns:
        `count` strings, or None where it cannot be told.

    Raises:
        DataError: the tokenizer cannot be loaded.
    """
    if name:
        found = tokenizer(name)(sentence)
        return found[:count] if len(found) >= count else None
    for found in (re.findall(r'\w+|[^\w\s]', sentence), re.findall(r'\w+', sentence),
                  sentence.split()):
        if len(found) == count:
            return found
    return None


def mark_punctuation(roles: np.ndarray, strings: list[str] | None) -> np.ndarray:
    """Tells punctuation from words, where the text behind the rows is known.

    Args:
        roles: int32[L].
        strings: of the rows with role WORD, in order, or None.

    Returns:
        int32[L].
    """
    roles = roles.copy()
    if strings is not None:
        marks = [not any(c.isalnum() for c in string) for string in strings]
        rows = np.flatnonzero(roles == WORD)
        roles[rows[marks]] = PUNCTUATION
    return roles

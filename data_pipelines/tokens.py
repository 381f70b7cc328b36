"""What each row of a query's features is: start-of-text, a word, or the sentence token [EOS]."""

import dataclasses

import numpy as np

from dualground_jax.errors import DataError

NORM_EPSILON = 1e-5  # as in the references; keeps rows of zeros finite

# MEAN is a row of ours where a release has no sentence token: the mean of the words.
PADDING, START, WORD, EOS, MEAN = range(5)
ROLES = ('padding', 'start', 'word', '[EOS]', 'mean')


@dataclasses.dataclass(frozen=True)
class TextLayout:
    """What the rows of a text feature file are.

    Attributes:
        start: rows before the words: start-of-text, prompt.
        has_eos: whether the last row is [EOS].
    """

    start: int
    has_eos: bool


TEXT_LAYOUTS = {
    'clip': TextLayout(start=1, has_eos=True),
    'llama': TextLayout(start=4, has_eos=True),
    'words': TextLayout(start=0, has_eos=False),
}


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Scales the rows of float[..., D] to length one."""
    return rows / (np.linalg.norm(rows, axis=-1, keepdims=True) + NORM_EPSILON)


def token_roles(rows: np.ndarray, layout: TextLayout) -> np.ndarray:
    """Returns the role int32[R] of each row float[R, D]; rows of zeros at the end are padding."""
    filled = np.flatnonzero(rows.any(axis=1))
    n_rows = filled[-1] + 1 if len(filled) else 0
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
    if not np.isin(roles, (WORD, EOS)).any():
        found = np.count_nonzero(roles != PADDING)
        raise DataError(f'{found} rows beside padding, expected at least {layout.start + 1}')
    text, roles = rows[roles != PADDING], roles[roles != PADDING]
    text = unit_rows(text) if normalize else text
    if not layout.has_eos:
        mean = text[roles == WORD].mean(axis=0, keepdims=True)
        text = np.concatenate([text, unit_rows(mean) if normalize else mean])
        roles = np.append(roles, np.int32(MEAN))
    kept = np.delete(np.arange(len(text)), slice(max_tokens - 1, -1))
    return text[kept], roles[kept]

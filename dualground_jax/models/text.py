"""Which tokens of a sentence a model sees; the switch of the paper's controlled experiment.

`tokens` is 'full', 'eos' (the sentence token alone) or 'words' (the words alone).
"""

import jax
import jax.numpy as jnp

from data_pipelines.errors import ConfigError
from data_pipelines.tokens import DUMMY, EOS, MEAN, PADDING, PUNCTUATION, START, WORD

# A release without [EOS] has the words' mean in its place, which only those see who ask for [EOS].
_WORDS = (WORD, PUNCTUATION)
_SENTENCE = (EOS, MEAN)
_SEEN = {'full': (START, *_WORDS, EOS), 'eos': _SENTENCE, 'words': _WORDS}


def check_tokens(tokens: str) -> None:
    """Raises ConfigError for an unknown value of model.tokens."""
    if tokens not in _SEEN:
        raise ConfigError(f"model.tokens={tokens!r}: expected 'full', 'eos' or 'words'")


def token_mask(batch: dict, tokens: str) -> jax.Array:
    """The tokens that a model sees which treats all alike: bool[B, L].

    Raises:
      ConfigError: an unknown value of tokens.
    """
    check_tokens(tokens)
    return jnp.isin(batch['text_role'], jnp.array(_SEEN[tokens]))


def is_sentence(batch: dict) -> jax.Array:
    """Which token stands for the whole sentence: bool[B, L]."""
    return jnp.isin(batch['text_role'], jnp.array(_SENTENCE))


def split_roles(batch: dict, tokens: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The words and the sentence token, apart.

    Args:
      batch: text float[B, L, d_t], text_role int[B, L].
      tokens: which of them are seen.

    Returns:
      words_mask bool[B, L], eos float[B, d_t], eos_mask bool[B]; what is off is zero and invalid.

    Raises:
      ConfigError: an unknown value of tokens.
    """
    check_tokens(tokens)
    role = batch['text_role']
    words_mask = jnp.isin(role, jnp.array(_WORDS)) & (tokens != 'eos')
    is_eos = is_sentence(batch) & (tokens != 'words')
    eos = jnp.where(is_eos[..., None], batch['text'], 0).sum(1)
    return words_mask, eos, is_eos.any(1)


def key_roles(batch: dict, seen: jax.Array, dummies: int = 0) -> jax.Array:
    """Roles of attention's keys: first the dummies, then the tokens.

    Args:
      batch: text_role int[B, L].
      seen: bool[B, L]; what is not seen counts as padding.
      dummies: how many there are.

    Returns:
      int[B, dummies + L].
    """
    roles = jnp.where(seen, batch['text_role'], PADDING)
    return jnp.pad(roles, ((0, 0), (dummies, 0)), constant_values=DUMMY)

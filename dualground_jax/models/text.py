"""Which tokens of a sentence a model sees; the switch of the paper's controlled experiment.

`tokens` is 'full', 'eos' (the sentence token alone) or 'words' (the words alone).
"""

import jax
import jax.numpy as jnp

from data_pipelines.tokens import EOS, MEAN, START, WORD
from dualground_jax.errors import ConfigError

# A release without [EOS] has the words' mean in its place, which only those see who ask for [EOS].
_SEEN = {'full': (START, WORD, EOS), 'eos': (EOS, MEAN), 'words': (WORD,)}


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
    words_mask = (role == WORD) & (tokens != 'eos')
    is_eos = ((role == EOS) | (role == MEAN)) & (tokens != 'words')
    eos = jnp.where(is_eos[..., None], batch['text'], 0).sum(1)
    return words_mask, eos, is_eos.any(1)

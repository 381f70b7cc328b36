"""What of a sentence the clips attend to, in words and phrases that a reader knows.

Axes: N stretches of the video, T clips, K keys of the model, P phrases, L text rows.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.tokens import EOS, MEAN, PHRASE, WORD
from dualground_jax.grounding import stretches


def observe(out: dict, batch: dict) -> dict[str, jax.Array]:
    """What `tell` reads of a model's `out`: attention as the mean of layers and heads.

    Returns:
        attention float32[B, T, K] with roles int32[B, K]; of a model with phrases also shares
        float32[B, P, L], of the words in each, with text_roles int32[B, L].
    """
    found = dict(attention=out['attn'].astype(jnp.float32).mean((1, 2)), roles=out['attn_roles'])
    if 'slot_attention' in out:
        found |= dict(shares=out['slot_attention'][:, -1].mean(1), text_roles=batch['text_role'])
    return found


def tell(found: dict[str, np.ndarray], words: Sequence[tuple[str, int]], n_clips: int, most: int
         ) -> dict[str, Any]:
    """The attention that the clips of a video pay to each word, each phrase and the whole sentence.

    Args:
        found: of `observe`, with stretches in place of samples.
        words: and the number of their pieces, as of `Tokenizer.words`.
        n_clips: of the video.
        most: clips of a stretch.

    Returns:
        words, a list of dicts: text and attention, a number a clip or None where the model does
        not attend to it; phrases, a list of dicts: shares, a number a word, and attention; and
        sentence, the attention of the sentence token, or None. What is attention differs between
        models; only its course over the clips compares.
    """
    first, roles = stretches.starts(n_clips, most), found['roles'][0]

    def series(keys: np.ndarray) -> list[float]:
        own = found['attention'][..., keys].sum(-1)
        return stretches.average(own, first, n_clips).astype(float).round(5).tolist()

    keys = np.flatnonzero(roles == WORD)
    ends = np.cumsum([count for _, count in words])
    pieces = [np.arange(end - count, end) for (_, count), end in zip(words, ends, strict=True)]
    seen = [len(own) and own[-1] < len(keys) for own in pieces]
    told = [dict(text=text, attention=series(keys[own]) if its else None)
            for (text, _), own, its in zip(words, pieces, seen, strict=True)]
    phrases = []
    if 'shares' in found:
        rows = found['shares'][0][:, found['text_roles'][0] == WORD]
        shares = [rows[:, own[own < rows.shape[1]]].sum(1) for own in pieces]
        phrases = [dict(shares=[round(float(share[n]), 5) for share in shares],
                        attention=series(key[None]))
                   for n, key in enumerate(np.flatnonzero(roles == PHRASE))]
    sentence = np.flatnonzero((roles == EOS) | (roles == MEAN))
    return dict(words=told, phrases=phrases, sentence=series(sentence) if len(sentence) else None)

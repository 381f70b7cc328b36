"""Negative pairs: in training each video also meets the next sample's query.

The text is encoded once a sample; `pair` then makes two rows of each sample, all that follows works
on rows, and `split` takes them apart. Rows of a sample lie next to each other: no row leaves its
device where batches are spread over devices.
"""

import jax
import jax.numpy as jnp

from dualground_jax import losses

# What the saliency loss compares between a video's own query and the other.
SCORES = ('saliency', 'text_weight')


def following(x: jax.Array, batch: dict) -> jax.Array:
    """The next sample's x [B, ...]; the first one's after the last sample, be rows empty or not."""
    rows = losses.real_rows(batch)
    is_last = rows & ~jnp.roll(rows, -1)
    return jnp.where(is_last.reshape(-1, *(1,) * (x.ndim - 1)), x[:1], jnp.roll(x, -1, 0))


def pair(video, query, batch: dict):
    """Makes two rows of each sample: its video with its own query, and with the next sample's.

    Args:
      video: arrays [B, ...].
      query: arrays [B, ...].
      batch: video_mask bool[B, T].

    Returns:
      (video, query), of arrays [2B, ...].
    """
    def with_next(x):
        return jnp.stack([x, following(x, batch)], 1).reshape(-1, *x.shape[1:])

    return jax.tree.map(lambda x: jnp.repeat(x, 2, 0), video), jax.tree.map(with_next, query)


def split(rows: dict[str, jax.Array], batch: dict) -> dict[str, jax.Array]:
    """Takes the rows of `pair` apart.

    Args:
      rows: arrays [2B, ...].
      batch: source_id int32[B], equal for queries of one source video; video_mask bool[B, T].

    Returns:
      The rows of own queries [B, ...]; those of the others of the SCORES that are there, by name
      with the suffix _neg; real_neg bool[B], whether the other query is of another video.
    """
    pairs = {name: x.reshape(-1, 2, *x.shape[1:]) for name, x in rows.items()}
    own = {name: x[:, 0] for name, x in pairs.items()}
    others = {f'{name}_neg': pairs[name][:, 1] for name in SCORES if name in pairs}
    source = batch['source_id']
    real_neg = losses.real_rows(batch) & (source != following(source, batch))
    return own | others | dict(real_neg=real_neg)

"""A split's features on the device: batches then bring indices, and the step gathers the rest.

An accelerator holds the training features of QVHighlights many times over (docs/scaling.md), and a
step no longer waits for them to be copied.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines import datasets, progress
from dualground_jax import sharding


def load(split: datasets.Split, data: ConfigDict, mesh: Mesh) -> dict[str, jax.Array]:
    """Puts the features of a split on every device, each video once, rounded to bfloat16.

    Returns:
        video bfloat16[V, T, d_v] without the temporal endpoints, text bfloat16[N, L, d_t] and
        video_index int32[N].
    """
    store = dict(
        video=_padded(split.videos, data.max_clips), text=_padded(split.text, data.max_tokens),
        video_index=np.asarray(split.video_index, np.int32))
    progress.say(f'features of {len(split.videos)} videos and {len(split.text)} queries on each '
                 f'device: {sum(x.nbytes for x in store.values()) / 1e9:.2f} GB')
    everywhere = sharding.replicated(mesh)
    return {k: jax.make_array_from_process_local_data(everywhere, x) for k, x in store.items()}


def _padded(sequences: list[np.ndarray], length: int) -> np.ndarray:
    out = np.zeros((len(sequences), length, sequences[0].shape[1]), jnp.bfloat16)
    for row, rows in zip(out, sequences, strict=True):
        row[: len(rows)] = rows
    return out


def complete(batch: dict[str, jax.Array], store: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Adds the features of a batch's records, as `pipeline.collate` would; {} has none to add."""
    if not store:
        return batch
    index = jnp.maximum(batch['index'], 0)
    mask = batch['video_mask'][..., None]
    start = jnp.cumsum(mask, 1) - 1
    count = jnp.maximum(mask.sum(1, keepdims=True), 1).astype(jnp.float32)
    relative = start / count
    video = store['video'][store['video_index'][index], : mask.shape[1]].astype(jnp.float32)
    video = jnp.concatenate([video, relative, relative + 1 / count], -1)
    roles = batch['text_role'][..., None]
    text = jnp.where(roles > 0, store['text'][index, : roles.shape[1]], 0)
    return batch | dict(video=jnp.where(mask, video, 0), text=text.astype(jnp.float32))

"""Time spans: conversion, overlap, suppression.

`spans` are (centre, width) relative to the video, `windows` are (start, end); the overlap
functions take windows in any unit.
"""

import jax
import jax.numpy as jnp


def spans_to_windows(spans: jax.Array) -> jax.Array:
    """(centre, width) [..., 2] -> (start, end) [..., 2]."""
    centre, width = spans[..., 0], spans[..., 1]
    return jnp.stack([centre - width / 2, centre + width / 2], -1)


def _overlap(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Intersection, union and hull lengths of windows a and b [..., 2], broadcast."""
    inter = jnp.maximum(
        jnp.minimum(a[..., 1], b[..., 1]) - jnp.maximum(a[..., 0], b[..., 0]), 0.0
    )
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - inter
    hull = jnp.maximum(a[..., 1], b[..., 1]) - jnp.minimum(a[..., 0], b[..., 0])
    return inter, union, hull


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, and 0 with a zero gradient where b is 0."""
    safe = jnp.where(b == 0, 1.0, b)
    return jnp.where(b == 0, 0.0, a / safe)


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of windows [..., 2], broadcast; 0 for two windows of no length."""
    inter, union, _ = _overlap(a, b)
    return _ratio(inter, union)


def generalized_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """IoU minus the share of the hull that neither window covers (arXiv 1902.09630), broadcast."""
    inter, union, hull = _overlap(a, b)
    return _ratio(inter, union) - _ratio(hull - union, hull)


def nms(windows: jax.Array, threshold: float) -> jax.Array:
    """Suppresses windows that overlap a better one of the same list.

    Nothing is removed: a suppressed window's score becomes 0 and the list is sorted again, as in
    FlashVTG's evaluation, so that a list of fixed length stays a list of that length.

    Args:
      windows: float32[K, 3]: start, end, score; rows with a score below 0 are padding.
      threshold: IoU from which on the worse window is suppressed.

    Returns:
      float32[K, 3], best first.
    """
    windows = windows[jnp.argsort(-windows[:, 2], stable=True)]
    overlaps = iou(windows[:, None, :2], windows[None, :, :2]) >= threshold
    later = jnp.arange(len(windows))
    valid = windows[:, 2] > 0

    def step(i, keep):
        return keep & ~(keep[i] & overlaps[i] & (later > i))

    keep = jax.lax.fori_loop(0, len(windows), step, valid)
    score = jnp.where(valid & ~keep, 0.0, windows[:, 2])
    windows = windows.at[:, 2].set(score)
    return windows[jnp.argsort(-score, stable=True)]

"""Time spans: conversion, overlap, suppression.

`spans` are (centre, width) relative to the video, `windows` are (start, end); the overlap
functions take windows in any unit.
"""

import jax
import jax.numpy as jnp

from dualground_jax import nms as suppression


def spans_to_windows(spans: jax.Array) -> jax.Array:
    """(centre, width) [..., 2] -> (start, end) [..., 2]."""
    centre, width = spans[..., 0], spans[..., 1]
    return jnp.stack([centre - width / 2, centre + width / 2], -1)


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of windows [..., 2], broadcast; 0 for two windows of no length."""
    inter, union, _ = suppression.overlap(a, b, jnp)
    return suppression.ratio(inter, union, jnp)


def generalized_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """IoU minus the share of the hull that neither window covers (arXiv 1902.09630), broadcast."""
    inter, union, hull = suppression.overlap(a, b, jnp)
    return suppression.ratio(inter, union, jnp) - suppression.ratio(hull - union, hull, jnp)


def nms(windows: jax.Array, threshold: float, kind: str = 'normal') -> jax.Array:
    """`nms.nms` for traced arrays [..., K, 3]: suppression of overlaps as in the references."""
    return suppression.nms(windows, threshold, kind, xp=jnp, loop=jax.lax.fori_loop)

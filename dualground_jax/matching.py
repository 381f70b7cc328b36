"""One-to-one assignment of predictions to targets (Hungarian matching, as in DETR)."""

import jax
import jax.numpy as jnp
from optax import assignment

from dualground_jax import spans as spans_lib


def matching_cost(
    pred_spans: jax.Array, foreground: jax.Array, target_spans: jax.Array, *, span: float,
    giou: float, label: float,
) -> jax.Array:
    """Cost of giving each target to each prediction of one sample.

    Args:
      pred_spans: float[N, 2], (centre, width) relative to the video.
      foreground: float[N], probability that the prediction is a moment.
      target_spans: float[M, 2], (centre, width).
      span: weight of the L1 distance of the spans (summed over centre and width).
      giou: weight of minus the generalised IoU.
      label: weight of minus the foreground probability.

    Returns:
      float32[N, M] (Moment-DETR, matcher.py).
    """
    l1 = jnp.abs(pred_spans[:, None] - target_spans[None]).sum(-1)
    overlap = spans_lib.generalized_iou(
        spans_lib.spans_to_windows(pred_spans)[:, None],
        spans_lib.spans_to_windows(target_spans)[None])
    return span * l1 - giou * overlap - label * foreground[:, None]


def match(cost: jax.Array, mask: jax.Array) -> jax.Array:
    """Finds the assignment of least total cost for one sample, as scipy's `linear_sum_assignment`.

    Args:
      cost: float[N, M]; inf forbids a pair.
      mask: bool[M], True for real targets.

    Returns:
      int32[M], the prediction of each target, or -1. Targets without one are those that are not
      real, and of more targets than predictions the costliest. Real targets are all without one
      where scipy raises: a cost is NaN or -inf, or each assignment has a forbidden pair.
    """
    queries, targets = cost.shape
    # Where there may be more targets, each that a sample has beyond the predictions goes to a
    # stand-in. Constant columns and rows change no comparison between assignments of the others.
    stand_in = jnp.arange(max(targets - queries, 0))[:, None]
    is_free = ~mask | (stand_in < mask.sum() - queries)
    costs = jnp.concatenate([jnp.where(mask, cost, 0.0), jnp.where(is_free, 0.0, jnp.inf)])
    rows, cols = assignment.hungarian_algorithm(costs)
    matched = jnp.zeros(targets, jnp.int32).at[cols].set(rows.astype(jnp.int32))
    is_matched = mask & (matched < queries)
    chosen = costs[matched, jnp.arange(targets)]
    is_sound = (costs > -jnp.inf).all() & (chosen < jnp.inf).all()
    return jnp.where(is_matched & is_sound, matched, -1)

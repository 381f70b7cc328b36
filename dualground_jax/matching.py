"""One-to-one assignment of predictions to targets (Hungarian matching, as in DETR)."""

import jax
import jax.numpy as jnp
from optax import assignment

from data_pipelines.errors import ConfigError
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
    """Finds the assignment of least total cost for one sample.

    Args:
      cost: float[N, M], N >= M.
      mask: bool[M], True for real targets. The others get what is left; ignore them.

    Returns:
      int32[M], the prediction of each target.

    Raises:
      ConfigError: more target columns than predictions.
    """
    if cost.shape[0] < cost.shape[1]:
        raise ConfigError(
            f'{cost.shape[1]} target spans for {cost.shape[0]} moment queries: '
            'set model.queries >= data.max_spans')
    # A constant column changes no comparison between assignments of the real targets.
    rows, cols = assignment.hungarian_algorithm(jnp.where(mask, cost, 0.0))
    return jnp.zeros(cost.shape[1], jnp.int32).at[cols].set(rows.astype(jnp.int32))

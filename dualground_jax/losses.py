"""Losses, each one pure function.

Inputs carry masks, True where valid; what has no valid entry contributes 0, never NaN. Means run
over the global batch: under sharding XLA sums over all devices, so that a loss does not depend on
how many there are.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax import Array

from data_pipelines.errors import ConfigError
from dualground_jax import matching
from dualground_jax import spans as spans_lib

RANKS = 12


def masked_mean(x: Array, mask: Array, axis=None) -> Array:
    """Mean of `x` over the entries where `mask` (broadcastable) is True; 0 if there are none."""
    mask = jnp.broadcast_to(mask, x.shape)
    total = jnp.sum(jnp.where(mask, x, 0), axis)
    return total / jnp.maximum(jnp.sum(mask, axis), 1).astype(x.dtype)


def real_rows(batch: Mapping[str, Array]) -> Array:
    """Rows that hold a sample, bool[B]; empty ones at the end fill up a partial batch."""
    return batch['video_mask'].any(-1)


def row_mean(x: Array, rows: Array | None = None) -> Array:
    """Mean of x [B, ...] over the rows bool[B] that hold samples; None: all do.

    Where all do, the factor is exactly 1, and the result that of a plain mean bit for bit.
    """
    if rows is None:
        return x.mean()
    held = rows.reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.where(held, x, 0).mean() * (len(x) / jnp.maximum(rows.sum(), 1))


def weighted_sum(parts: dict[str, Array], weights: Mapping[str, float]) -> Array:
    """The loss: the sum of its parts, each times the weight of its name."""
    return sum(weights[name] * part for name, part in parts.items())


# Moment retrieval on points -------------------------------------------------------------------


def assign_points(
    points: Array, windows: Array, mask: Array, *, radius: float = 1.5
) -> tuple[Array, Array]:
    """Assigns to each point of one sample the window that it has to predict.

    A point takes a window if it lies inside, within `radius` strides of the centre, and if its
    larger boundary distance falls into its level's range; of several the shortest wins, ties
    within 1e-3 go to the first (FlashVTG, loss.py).

    Args:
      points: float32[P, 4], rows [time, low, high, stride] in clips.
      windows: float32[M, 2], start and end in clips.
      mask: bool[M].
      radius: centre sampling radius in strides.

    Returns:
      (positive bool[P], offsets float32[P, 2]: distances to start and end in strides, 0 where not
      positive).
    """
    time, low, high, stride = (points[:, i, None] for i in range(4))
    start, end = windows[None, :, 0], windows[None, :, 1]
    distances = jnp.stack([time - start, end - time], -1)
    centre = (start + end) / 2
    inside = (time >= jnp.maximum(centre - radius * stride, start)) & (
        time <= jnp.minimum(centre + radius * stride, end))
    farthest = distances.max(-1)
    takes = mask & inside & (farthest >= low) & (farthest <= high)
    length = jnp.where(takes, end - start, jnp.inf)
    positive = takes.any(-1)
    shortest = jnp.argmin(length, -1)
    offsets = jnp.take_along_axis(distances, shortest[:, None, None], 1)[:, 0] / stride
    return positive, jnp.where(positive[:, None], offsets, 0.0)


def focal(*, logits: Array, labels: Array, mask: Array, gamma: float = 2.0) -> Array:
    """Sigmoid focal loss without class balance, mean over valid points (arXiv 1708.02002)."""
    loss = optax.sigmoid_focal_loss(logits, labels.astype(logits.dtype), gamma=gamma)
    return masked_mean(loss, mask)


def saliency_cross_entropy(*, logits: Array, labels: Array, mask: Array) -> Array:
    """Binary cross entropy of points with their clips' saliency labels, mean over valid points.

    FlashVTG's classification where there are no windows (data/HD.py: DynamicBCELoss). It takes
    labels as they are: above 1 the loss has no lower bound, and the logit grows with the label.

    Args:
      logits: float[B, T], of the points of stride 1.
      labels: float[B, T], 0..12.
      mask: bool[B, T].
    """
    return masked_mean(jax.nn.softplus(logits) - labels * logits, mask)


def quality_focal(
    *, logits: Array, labels: Array, quality: Array, mask: Array, beta: float = 2.0
) -> Array:
    """Quality focal loss: positives are to predict their IoU (arXiv 2006.04388, eq. 3).

    The target IoU is part of the graph, as in DualGround's development code.

    Args:
      logits: float[...].
      labels: bool[...], which entries are positive.
      quality: float[...] in [0, 1], target of the positives.
      mask: bool[...].
      beta: focusing exponent.
    """
    target = jnp.where(labels, quality, 0.0)
    loss = optax.sigmoid_binary_cross_entropy(logits, target)
    return masked_mean(loss * jnp.abs(target - jax.nn.sigmoid(logits)) ** beta, mask)


def boundary_l1(*, offsets: Array, targets: Array, mask: Array) -> Array:
    """Mean absolute error of both distances [B, P, 2] over the positive points bool[B, P]."""
    return masked_mean(jnp.abs(offsets - targets), mask[..., None])


def distribution_focal(*, logits: Array, labels: Array) -> Array:
    """Cross entropy shared between the two bins that enclose a label (arXiv 2006.04388, eq. 6).

    Args:
      logits: float[..., C].
      labels: float[...] in [0, C - 1], in bins. At exactly C - 1 the loss is 0, as in DualGround's
        development code: clip labels below it.

    Returns:
      float[...].
    """
    bins = logits.shape[-1]
    left = jnp.floor(labels)
    lower = jnp.clip(left, 0, bins - 1)
    upper = jnp.clip(left + 1, 0, bins - 1)
    to_lower, to_upper = (
        optax.softmax_cross_entropy_with_integer_labels(logits, index.astype(jnp.int32))
        for index in (lower, upper))
    return to_lower * (upper - labels) + to_upper * (labels - lower)


def boundary_bins(*, logits: Array, targets: Array, mask: Array, radius: float = 1.5) -> Array:
    """Distribution focal loss of both distances over the positive points.

    Args:
      logits: float32[B, P, 2, C], over C distances from 0 to `radius` strides.
      targets: float32[B, P, 2], strides; farther ones are cut to the last bin.
      mask: bool[B, P].
      radius: the farthest distance, in strides.
    """
    last = logits.shape[-1] - 1
    labels = jnp.clip(targets / radius * last, 0.0, last - 1e-3)
    return masked_mean(distribution_focal(logits=logits, labels=labels).mean(-1), mask)


# Highlight detection --------------------------------------------------------------------------


def margin_ranking(
    *, scores: Array, pos_clips: Array, neg_clips: Array, mask: Array, margin: float = 0.2
) -> Array:
    """Hinge loss of index pairs: relu(margin + negative - positive), mean over pairs.

    Args:
      scores: float[B, T].
      pos_clips: int[B, 2], clips that should score higher than
      neg_clips: int[B, 2].
      mask: bool[B], samples that have such pairs.
      margin: wanted difference.
    """
    positive = jnp.take_along_axis(scores, pos_clips, 1)
    negative = jnp.take_along_axis(scores, neg_clips, 1)
    return masked_mean(jax.nn.relu(margin + negative - positive), mask[:, None])


def rank_contrastive(
    *, scores: Array, labels: Array, mask: Array, temperature: float = 0.5
) -> Array:
    """Rank-aware contrastive loss of each row (QD-DETR, eq. 6).

    For each rank r = 1..11 the entries labelled >= r are positives among all entries of the row.
    The sum of these 11 terms is divided by 12, as in all public code: a constant factor that the
    public loss weights contain.

    Args:
      scores: float[B, T].
      labels: float[B, T], sums of annotators' scores, 0..12.
      mask: bool[B, T].
      temperature: divides the scores.

    Returns:
      float[B]; 0 for a row without positives.
    """
    # -1000 before the division is what the public code puts at padding.
    logits = jnp.where(mask, scores, -1e3) / temperature
    logits = logits - logits.max(-1, keepdims=True)
    log_prob = logits - jnp.log(jnp.exp(logits).sum(-1, keepdims=True) + 1e-6)
    ranks = jnp.arange(1, RANKS)[:, None, None]
    positive = (labels >= ranks) & mask
    count = positive.sum(-1)
    mean = jnp.where(positive, log_prob, 0.0).sum(-1) / (count + 1e-6)
    return -mean.sum(0) / RANKS


def rank_with_negatives(
    *, scores: Array, scores_neg: Array, labels: Array, mask: Array, real_neg: Array,
    temperature: float = 0.5,
) -> Array:
    """Rank contrastive loss in which the clips also rank above those of the negative pair.

    A row with a real negative pair is extended by that pair's scores, labelled 0. The means over
    rows with and without one add up (CG-DETR, model.py: loss_saliency); a batch without any real
    pair is thereby defined.

    Args:
      scores: float[B, T].
      scores_neg: float[B, T], the same clips with another sample's query.
      labels: float[B, T].
      mask: bool[B, T].
      real_neg: bool[B], whether that query belongs to another video.
      temperature: divides the scores.
    """
    both = rank_contrastive(
        scores=jnp.concatenate([scores, scores_neg], 1),
        labels=jnp.concatenate([labels, jnp.zeros_like(labels)], 1),
        mask=jnp.concatenate([mask, mask & real_neg[:, None]], 1), temperature=temperature)
    return masked_mean(both, real_neg) + masked_mean(both, mask.any(-1) & ~real_neg)


def _absence(cost: Array, mask: Array, real_neg: Array) -> Array:
    """Cost [B, T] summed over clips, mean over rows with a real negative pair."""
    return masked_mean(jnp.where(mask, cost, 0.0).sum(-1), real_neg)


def negative_pair(*, logits: Array, mask: Array, real_neg: Array) -> Array:
    """-log(1 - sigmoid(logit)) summed over clips, mean over rows with a real negative pair."""
    return _absence(jax.nn.softplus(logits), mask, real_neg)


def attention_absence(*, weights: Array, mask: Array, real_neg: Array) -> Array:
    """-log(1 - weight) summed over clips, mean over rows with a real negative pair."""
    return _absence(-_log1m(weights), mask, real_neg)


def attention_cross_entropy(*, weights: Array, labels: Array, mask: Array) -> Array:
    """Binary cross entropy of attention weights in [0, 1] with labels cut to [0, 1]."""
    target = jnp.clip(labels, 0.0, 1.0)
    log = jnp.log(jnp.maximum(weights, 1e-12))
    return masked_mean(-(target * log + (1 - target) * _log1m(weights)), mask)


def _log1m(x: Array) -> Array:
    """log(1 - x), finite at 1."""
    return jnp.log1p(-jnp.minimum(x, 1 - 1e-6))


def sampled_nce(
    *, similarity: Array, labels: Array, pos_clips: Array, mask: Array, pairs_mask: Array,
    temperature: float = 0.07, over_batch: bool = True,
) -> Array:
    """InfoNCE of clip and query similarity, over the clips and over the batch.

    A clip takes part if its label is not above that of the sample's positive clip (FlashVTG,
    loss.py: SampledNCELoss).

    Args:
      similarity: float[B, T], cosine of each clip and the sample's query.
      labels: float[B, T], saliency labels.
      pos_clips: int[B], the positive clip.
      mask: bool[B, T].
      pairs_mask: bool[B], samples that have a positive clip.
      temperature: divides the similarity; 1 / temperature is capped at 100.
      over_batch: False: over the clips alone, as FlashVTG on highlight data sets (data/HD.py).
    """
    allowed = mask & (labels <= jnp.take_along_axis(labels, pos_clips[:, None], 1))
    logits = jnp.where(allowed, similarity * min(1 / temperature, 100.0), -1e9)
    own = jnp.take_along_axis(logits, pos_clips[:, None], 1)[:, 0]
    over_clips = jax.nn.logsumexp(logits, 1) - own
    if not over_batch:
        return masked_mean(over_clips, pairs_mask)
    rows = jnp.where(pairs_mask[:, None], logits, -1e9)
    over_batch = jax.nn.logsumexp(rows, 0)[pos_clips] - own
    return masked_mean(over_clips + over_batch, pairs_mask)


def label_alignment(*, logits: Array, labels: Array, mask: Array) -> Array:
    """Mean squared difference of base-level logits and saliency labels, both scaled to [0, 1].

    The scaling is by the least and the greatest valid entry of the whole batch (FlashVTG,
    loss.py: loss_labels). A batch whose labels are all equal has no scale: 0.

    Args:
      logits: float[B, T].
      labels: float[B, T].
      mask: bool[B, T].
    """

    def scale(x):
        low = jnp.where(mask, x, jnp.inf).min()
        extent = jnp.where(mask, x, -jnp.inf).max() - low
        return jnp.where(mask, x - low, 0.0) / jnp.where(extent > 0, extent, 1.0), extent > 0

    scaled_labels, has_labels = scale(labels)
    scaled_logits, has_logits = scale(logits)
    return masked_mean((scaled_labels - scaled_logits) ** 2, mask & has_labels & has_logits)


# Phrases --------------------------------------------------------------------------------------


def phrase_diversity(*, attention: Array, mask: Array, r: float = 0.3) -> Array:
    """L_DQA: || A A^T - r I ||_F^2, mean over samples that have words.

    Args:
      attention: float[B, N, L], weights of the words in each phrase.
      mask: bool[B], samples that have words.
      r: wanted concentration of a phrase's weights.
    """
    gram = jnp.einsum('bnl,bml->bnm', attention, attention)
    return masked_mean(((gram - r * jnp.eye(gram.shape[1])) ** 2).sum((1, 2)), mask)


def unit(x: Array) -> Array:
    """x / |x| over the last axis in float32; 0 with a moderate gradient for zero vectors."""
    x = x.astype(jnp.float32)
    square = (x * x).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > 1e-16, square, 1.0))


def cosine(a: Array, b: Array) -> Array:
    """Cosine of the last axes in float32, broadcast; 0 for zero vectors."""
    return (unit(a) * unit(b)).sum(-1)


def info_nce(a: Array, b: Array, *, mask: Array, temperature: float = 0.1) -> Array:
    """Each row of a is to find its own row of b in the batch (DualGround's L_EOS: P_EOS and [EOS]).

    Args:
      a: float[B, D].
      b: float[B, D].
      mask: bool[B], samples that have both.
      temperature: divides the cosines.
    """
    logits = cosine(a[:, None], b[None]) / temperature
    logits = jnp.where(mask[None, :], logits, -1e9)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(len(b)))
    return masked_mean(loss, mask)


def late_interaction(words: Array, patches: Array, mask: Array) -> tuple[Array, Array]:
    """How alike sentences and pictures are by their words and patches (FILIP, arXiv 2111.07783).

    FILIP's are the two similarities: each row's largest cosine with a row of the other side, and
    their mean. Ours is which rows take part: FILIP takes all rows that are no padding.

    Args:
      words: float[B, W, D].
      patches: float[C, N, D].
      mask: bool[B, W], at least one word each.

    Returns:
      float32[B, C] each: means over a sentence's words, means over a picture's patches.
    """
    patches = unit(patches)

    def of_sentence(sentence):
        rows, held = sentence
        cosines = jnp.einsum('wd,cnd->wcn', rows, patches)
        to_words = jnp.where(held[:, None, None], cosines, -jnp.inf).max(0).mean(-1)
        return masked_mean(cosines.max(-1), held[:, None], 0), to_words

    return jax.lax.map(of_sentence, (unit(words), mask), batch_size=8)


def cosine_margin(a: Array, b: Array, *, mask: Array, margin: float = 0.7) -> Array:
    """L_EOS as in the development code: relu(margin - cosine), over matched pairs only."""
    return masked_mean(jax.nn.relu(margin - cosine(a, b)), mask)


# Moment queries -------------------------------------------------------------------------------


def set_prediction(
    *, logits: Array, spans: Array, target_spans: Array, targets_mask: Array, cost: dict,
    label: str = 'cross_entropy', background: float = 0.1, rows: Array | None = None,
) -> dict[str, Array]:
    """Matches one layer's moment queries to the targets and scores them.

    Of more targets than queries, those count that are matched. All is NaN if a sample's targets
    cannot be matched, see `matching.match`: the loss must not go on without it.

    Args:
      logits: float32[B, N, 2], index 0 is foreground.
      spans: float32[B, N, 2], (centre, width) relative to the video.
      target_spans: float32[B, M, 2].
      targets_mask: bool[B, M].
      cost: weights `span`, `giou`, `label` of the matching cost.
      label: 'cross_entropy' of the two classes, its mean over all queries (CG-DETR, model.py:
        loss_labels), or 'focal': sigmoid focal loss of both logits (TR-DETR, model.py).
      background: weight of unmatched queries in the cross entropy.
      rows: bool[B], those that hold samples; None: all do.

    Returns:
      span: mean absolute error of centre and width over all matched pairs of the batch;
      giou: mean of 1 - generalised IoU over them; query_label: the label loss.

    Raises:
      ConfigError: another value of label.
    """
    foreground = jax.nn.softmax(logits, -1)[..., 0]

    def assign(pred, probability, target, mask):
        return matching.match(matching.matching_cost(pred, probability, target, **cost), mask)

    matched = jax.lax.stop_gradient(jax.vmap(assign)(spans, foreground, target_spans, targets_mask))
    has_query = matched >= 0
    is_sound = (has_query.any(1) | ~targets_mask.any(1)).all()
    chosen = jnp.take_along_axis(spans, jnp.maximum(matched, 0)[..., None], 1)
    overlap = spans_lib.generalized_iou(
        spans_lib.spans_to_windows(chosen), spans_lib.spans_to_windows(target_spans))
    queries = jnp.arange(spans.shape[1])
    is_matched = (matched[:, :, None] == queries).any(1)
    labels = jnp.where(is_matched, 0, 1)
    if label == 'cross_entropy':
        label_loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        label_loss *= jnp.where(is_matched, 1.0, background)
    elif label == 'focal':
        classes = jax.nn.one_hot(labels, 2)
        label_loss = optax.sigmoid_focal_loss(logits, classes, alpha=0.25, gamma=2.0)
    else:
        raise ConfigError(f"loss.detr_label={label!r}: expected 'cross_entropy' or 'focal'")
    parts = dict(
        span=masked_mean(jnp.abs(chosen - target_spans), has_query[..., None]),
        giou=masked_mean(1 - overlap, has_query), query_label=row_mean(label_loss, rows))
    return {name: jnp.where(is_sound, part, jnp.nan) for name, part in parts.items()}

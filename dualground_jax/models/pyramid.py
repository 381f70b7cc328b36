"""Temporal pyramid, its points, the heads on it and their decoding (FlashVTG, arXiv 2412.13441).

DualGround and FlashVTG share these. A level of stride s holds floor(T / s) points. A point counts
for a sample if all its clips are valid, so that a sample has the same points and the same scores
whatever it is padded to.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.errors import ConfigError
from dualground_jax import losses, spans
from dualground_jax.models import layers


def pyramid_points(num_clips: int, strides: tuple[int, ...]) -> np.ndarray:
    """Points of all levels that exist for `num_clips`, as rows [time, low, high, stride].

    `low` and `high` bound the larger of a point's two boundary distances, all in clips: a level is
    responsible for distances from its own stride (from 0 at the first level) to the next level's
    stride (no upper bound at the last).

    Returns:
      float32[P, 4].
    """
    rows = []
    for level, stride in enumerate(strides):
        times = np.arange(num_clips // stride, dtype=np.float32) * stride
        low = 0.0 if level == 0 else float(stride)
        high = float(strides[level + 1]) if level + 1 < len(strides) else np.inf
        bounds = np.tile(np.float32([low, high, stride]), (len(times), 1))
        rows.append(np.concatenate([times[:, None], bounds], 1))
    return np.concatenate(rows)


def points_mask(mask: jax.Array, strides: tuple[int, ...]) -> jax.Array:
    """Which points are valid, bool[B, P], for clips valid as in mask bool[B, T]."""
    length = mask.sum(-1, keepdims=True)
    levels = [jnp.arange(mask.shape[-1] // stride) < length // stride for stride in strides]
    return jnp.concatenate(levels, -1)


class TemporalPyramid(nn.Module):
    """Levels of clip features by chains of stride-2 convolutions (blocks.py: ConvPyramid).

    Every level starts from the rectified input; its weights are its own.
    """

    strides: tuple[int, ...]
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, clips: jax.Array) -> list[jax.Array]:
        """Maps clips [B, T, D] to one [B, floor(T / stride), D] for each stride <= T."""
        clips = nn.relu(clips)
        levels = []
        for i, stride in enumerate(self.strides):
            if stride > clips.shape[1]:
                continue
            x = clips
            for k in range(int(np.log2(stride))):
                x = layers.Conv(
                    clips.shape[-1], 2, self.dtype, stride=2, name=f'level_{i}_conv_{k}')(x)
                x = nn.relu(layers.LayerNorm(self.dtype, name=f'level_{i}_norm_{k}')(x))
            levels.append(x)
        return levels


class ConvHead(nn.Module):
    """Convolutions with ReLU along time, then an MLP.

    Every convolution sees zeros where `mask` is False, as it would at the ends of an unpadded
    sequence.
    """

    kernel: int
    conv_layers: int
    mlp_widths: tuple[int, ...]
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps x [B, T, D] with mask bool[B, T] to [B, T, mlp_widths[-1]]."""
        for i in range(self.conv_layers):
            x = layers.Conv(
                x.shape[-1], self.kernel, self.dtype, padding=self.kernel // 2, name=f'conv_{i}'
            )(jnp.where(mask[..., None], x, 0))
            x = nn.relu(x)
        return layers.MLP(self.mlp_widths, self.dtype, name='mlp')(x)


class BoundaryHead(nn.Module):
    """Two convolutions of width 3 with ReLU between them (blocks.py: ConvHead)."""

    channels: int
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        for i, features in enumerate((x.shape[-1], self.channels)):
            x = layers.Conv(features, 3, self.dtype, padding=1, name=f'conv_{i}')(
                jnp.where(mask[..., None], x, 0))
            if i == 0:
                x = nn.relu(x)
        return x


class PyramidHead(nn.Module):
    """Scores and boundaries of the points of a temporal pyramid.

    The score mixes a head that runs on each level with one that runs once over the levels laid
    end to end, by a learned weight (FlashVTG: adaptive score refinement). A convolution of the
    second head reaches across the border of two levels; padding between them is closed up first,
    so that it reaches the same points as in an unpadded sample.
    """

    strides: tuple[int, ...] = (1, 2, 4, 8)
    kernel: int = 5
    conv_layers: int = 1
    mlp_layers: int = 5
    bins: int = 0  # 0: one exp(.) distance a side; else logits of a distribution over distances
    radius: float = 1.5  # upper end of that distribution, in strides
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, clips: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        """Maps clips [B, T, D] with mask bool[B, T] to the points' predictions.

        Returns:
          points float32[P, 4], points_mask bool[B, P], logits float32[B, P], offsets
          float32[B, P, 2] >= 0: distances to start and end in strides; with bins also
          offset_logits float32[B, P, 2, bins].
        """
        pyramid = TemporalPyramid(self.strides, self.dtype, name='pyramid')(clips)
        strides = self.strides[: len(pyramid)]
        valid = points_mask(mask, strides)
        level_masks = jnp.split(valid, np.cumsum([x.shape[1] for x in pyramid])[:-1], axis=1)

        width = clips.shape[-1]
        widths = (width // 2,) * (self.mlp_layers - 1) + (1,)
        class_head, score_head = (
            ConvHead(self.kernel, self.conv_layers, widths, self.dtype, name=name)
            for name in ('class_head', 'score_head'))
        by_level = jnp.concatenate([class_head(x, m) for x, m in zip(pyramid, level_masks)], 1)

        order = jnp.argsort(~valid, axis=1, stable=True)[..., None]
        packed = jnp.take_along_axis(jnp.concatenate(pyramid, 1), order, 1)
        packed_mask = jnp.take_along_axis(valid, order[..., 0], 1)
        across = jnp.take_along_axis(score_head(packed, packed_mask), jnp.argsort(order, axis=1), 1)
        mix = self.param('mix', nn.initializers.constant(0.5), (1,))
        logits = mix * by_level + (1 - mix) * across

        out = dict(
            points=jnp.asarray(pyramid_points(clips.shape[1], strides)), points_mask=valid,
            logits=logits[..., 0].astype(jnp.float32))
        boundary_head = BoundaryHead(2 * max(self.bins, 1), self.dtype, name='boundary_head')
        raw = [boundary_head(x, m).astype(jnp.float32) for x, m in zip(pyramid, level_masks)]
        if self.bins:
            raw = jnp.concatenate(raw, 1)
            out['offset_logits'] = raw.reshape(*raw.shape[:2], 2, self.bins)
            centres = jnp.linspace(0.0, self.radius, self.bins)
            out['offsets'] = jax.nn.softmax(out['offset_logits'], -1) @ centres
        else:
            scale = self.param('level_scale', nn.initializers.ones, (len(self.strides),))
            out['offsets'] = jnp.concatenate([jnp.exp(x) * scale[i] for i, x in enumerate(raw)], 1)
        return out


def decode_points(out: dict, clip_length: jax.Array, max_windows: int = 50) -> jax.Array:
    """Windows of the best points, best first.

    Args:
      out: what `PyramidHead` returned.
      clip_length: float32[B], seconds.
      max_windows: how many windows at most.

    Returns:
      float32[B, K, 3]: start and end in seconds, not yet clamped to the video, and a probability;
      (0, 0, -1) where a sample has fewer than K points.
    """
    time, stride = out['points'][:, 0], out['points'][:, 3]
    signed = out['offsets'] * jnp.array([-1.0, 1.0])
    bounds = (time[:, None] + signed * stride[:, None]) * clip_length[:, None, None]
    score = jax.nn.sigmoid(out['logits'])
    windows = jnp.concatenate([bounds, score[..., None]], -1)
    windows = jnp.where(out['points_mask'][..., None], windows, jnp.array([0.0, 0.0, -1.0]))
    best = jax.lax.top_k(windows[..., 2], min(max_windows, windows.shape[1]))[1]
    return jnp.take_along_axis(windows, best[..., None], 1)


def point_losses(out: dict, batch: dict, config) -> dict[str, jax.Array]:
    """Classification, boundary and label alignment losses of the points.

    Args:
      out: what `PyramidHead` returned.
      batch: windows float32[B, M, 2] in seconds, windows_mask bool[B, M], clip_length float32[B],
        saliency float32[B, T], video_mask bool[B, T], graded bool[B].
      config: the `loss` section: radius, classification, regression.

    Returns:
      cls, reg and label.

    Raises:
      ConfigError: classification or regression has an unknown value.
    """
    windows = batch['windows'] / batch['clip_length'][:, None, None]
    positive, targets = jax.vmap(
        lambda w, m: losses.assign_points(out['points'], w, m, radius=config.radius)
    )(windows, batch['windows_mask'])
    valid = out['points_mask']
    positive &= valid
    clips = batch['saliency'].shape[1]
    of_clips = dict(logits=out['logits'][:, :clips], labels=batch['saliency'],
                    mask=batch['video_mask'] & batch['graded'][:, None])

    if config.classification == 'focal':
        cls = losses.focal(logits=out['logits'], labels=positive, mask=valid)
    elif config.classification == 'quality':
        sides = jnp.array([-1.0, 1.0])
        quality = spans.iou(out['offsets'] * sides, targets * sides)
        cls = losses.quality_focal(
            logits=out['logits'], labels=positive, quality=quality, mask=valid)
    elif config.classification == 'saliency':
        cls = losses.saliency_cross_entropy(**of_clips)
    else:
        raise ConfigError(
            f"loss.classification={config.classification!r}: expected 'focal', 'quality' or "
            "'saliency'")
    if config.regression == 'l1':
        reg = losses.boundary_l1(offsets=out['offsets'], targets=targets, mask=positive)
    elif config.regression == 'dfl' and 'offset_logits' in out:
        reg = losses.boundary_bins(
            logits=out['offset_logits'], targets=targets, mask=positive, radius=config.radius)
    else:
        raise ConfigError(
            f"loss.regression={config.regression!r}: expected 'l1', or 'dfl' with model.bins > 1")
    return dict(cls=cls, reg=reg, label=losses.label_alignment(**of_clips))

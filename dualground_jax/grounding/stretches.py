"""Long videos: stretches that a model can read, and one answer out of those that it gives.

A stretch is as many clips of a video as the model was trained on; each but the last begins half a
stretch after the one before it. Pure functions on numpy arrays. N stretches have K windows each.
"""

import numpy as np

from dualground_jax import nms

CANDIDATES = 256  # windows of all stretches that are looked at for overlaps


def starts(n_clips: int, most: int) -> list[int]:
    """The first clip of each stretch of `most` clips; the last one ends with the video.

    A video that fits is one stretch.
    """
    last = max(n_clips - most, 0)
    return [*range(0, last, max(most // 2, 1)), last]


def best_of_each(values: np.ndarray, first: list[int], most: int) -> np.ndarray:
    """The largest of a video's values[T] in each of the stretches that begin at `first`."""
    return np.array([values[start : start + most].max() for start in first])


def fuse(
    windows: np.ndarray, offsets: np.ndarray, weights: np.ndarray, *, threshold: float, kind: str
) -> np.ndarray:
    """Makes one list of the windows of all stretches, and suppresses overlaps in it.

    A model has learnt from videos that hold what it is asked for, so it finds a best window
    anywhere, and scores of two stretches do not compare. Weights say how likely it is that a
    stretch holds it (CONE, arXiv 2209.10918, multiplies by the best similarity of clip and
    sentence); that of the likeliest stretch counts as 1.

    Args:
        windows: float[N, K, 3], start and end in seconds of the stretch, and a score; below 0 where
            there is none.
        offsets: float[N], seconds of the video at which stretches begin.
        weights: float[N], the higher the likelier; below 0 is as 0.
        threshold: IoU.
        kind: as of `nms.nms`; 'hard' reads all of the list.

    Returns:
        float64[M, 3] in seconds of the video, best first, M at most CANDIDATES.
    """
    weights = np.maximum(weights.astype(np.float64), 0)
    weights = weights / (weights.max() or 1)
    found = windows.astype(np.float64)
    found[..., :2] += offsets[:, None, None]
    found[..., 2] *= weights[:, None]
    found = found[windows[..., 2] >= 0]
    found = found[np.argsort(-found[:, 2], kind='stable')[:CANDIDATES]]
    if kind == 'hard':
        return nms.remove(found, threshold, max_before=CANDIDATES)
    return nms.nms(found, threshold, kind)


def average(values: np.ndarray, first: list[int], n_clips: int) -> np.ndarray:
    """The mean of what stretches say of each clip.

    Args:
        values: float[N, T], of the T clips of each stretch.
        first: clip of the video at which each begins.
        n_clips: of the video.

    Returns:
        float32[n_clips].
    """
    total, count = np.zeros((2, n_clips))
    for start, own in zip(first, values, strict=True):
        total[start : start + len(own)] += own[: n_clips - start]
        count[start : start + len(own)] += 1
    return (total / count).astype(np.float32)

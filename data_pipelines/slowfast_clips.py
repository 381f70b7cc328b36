"""Which frames of a video stand for a clip in SlowFast's features.

As linjieli222/HERO_Video_Feature_Extractor, which made the public ones, chooses them
(slowfast/extract_feature/preprocessing.py).
"""

import collections
import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np

from data_pipelines.errors import DataError

RATE = 30  # frames a second that a video is read at
FAST_FRAMES = 32  # that the network sees of a clip
_STEP = 2  # frames of the training videos from one of them to the next


def clips_of(
    frames: Iterable[np.ndarray], *, clip_length: float, source_rate: float,
    duration: float | None = None,
) -> Iterator[np.ndarray]:
    """Cuts a video into clips that follow each other, in bounded memory.

    The last second is filled up with its last frame; then whole seconds are, as copies of the last
    one, up to a whole clip.

    Args:
        frames: uint8[S, S, 3], `RATE` a second.
        clip_length: seconds, a whole number of frames.
        source_rate: mean frames a second of the file. It decides how far the chosen frames reach,
            see `fast_frames`.
        duration: of the file's video stream in seconds, which bounds the number of clips; None:
            the file does not tell.

    Yields:
        uint8[FAST_FRAMES, S, S, 3] for each clip.

    Raises:
        DataError: a clip is no whole number of frames, or a rate or duration is not above 0.
    """
    size = round(clip_length * RATE) if 0 < clip_length < math.inf else 0
    if not size or abs(size - clip_length * RATE) > 1e-6:
        raise DataError(f'clips of {clip_length} s: SlowFast takes {RATE} frames a second, '
                        f'expected a multiple of 1/{RATE} s above 0')
    for name, value in (('frame rate', source_rate), ('duration', duration)):
        if value is not None and not 0 < value < math.inf:
            raise DataError(f'{name} is {value}, expected a number above 0')
    chosen = fast_frames(size, source_rate)
    limit = None if duration is None else math.ceil(duration / clip_length)
    return itertools.islice(_cut(frames, size, chosen), limit)


def fast_frames(size: int, source_rate: float) -> np.ndarray:
    """The places int[FAST_FRAMES] of the chosen frames in a clip of `size` frames.

    They reach over 64 r / 30 frames, where the file has r whole frames a second, or to the end: the
    clip is at `RATE` already, but the public code counts as if it were at the file's rate.
    """
    reach = FAST_FRAMES * _STEP * math.floor(source_rate) / RATE
    return np.linspace(0, reach - 1, FAST_FRAMES).clip(0, size - 1).astype(int)


def slow_frames(count: int, alpha: int) -> np.ndarray:
    """The places int[count // alpha] of the slow path's frames among the `count` fast ones."""
    return np.linspace(0, count - 1, count // alpha).astype(int)


def _cut(frames: Iterable[np.ndarray], size: int, chosen: np.ndarray) -> Iterator[np.ndarray]:
    frames = _filled(frames, size)
    while clip := list(itertools.islice(frames, size)):
        yield np.stack([clip[i] for i in chosen])


def _filled(frames: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The frames, and those that fill up the last clip."""
    second = collections.deque(maxlen=RATE)
    count = 0
    for frame in frames:
        second.append(frame)
        yield frame
        count += 1
    for _ in range(-count % RATE):
        second.append(second[-1])
        yield second[-1]
        count += 1
    # Empty only where there was no frame, and then nothing is missing.
    yield from itertools.islice(itertools.cycle(second), -count % size)

"""Tests of data_pipelines/slowfast_clips.py against the rule in exact numbers, clip by clip."""

import fractions
import itertools
import math

import numpy as np
import pytest

from data_pipelines import slowfast_clips
from data_pipelines.errors import DataError


def pictures(count):
    """Frames that tell their number."""
    return (np.full((1, 2, 3), i, np.uint16) for i in range(count))


def numbers(count, **options):
    return [clip[:, 0, 0, 0].tolist() for clip in
            slowfast_clips.clips_of(pictures(count), **options)]


def by_hand(count, clip_length, source_rate, duration):
    """The numbers of the frames, from the facts."""
    frames = [min(i, count - 1) for i in range(-(-count // 30) * 30)]
    seconds = [frames[i : i + 30] for i in range(0, len(frames), 30)]
    size = int(clip_length * 30)
    while len(seconds) * 30 % size:
        seconds.append(seconds[-1])
    frames = sum(seconds, [])
    clips = [frames[i : i + size] for i in range(0, len(frames), size)]
    if duration:
        clips = clips[: math.ceil(duration / clip_length)]
    last = fractions.Fraction(64 * math.floor(source_rate), 30) - 1
    chosen = [max(0, min(math.floor(last * i / 31), size - 1)) for i in range(32)]
    return [[clip[i] for i in chosen] for clip in clips]


@pytest.mark.parametrize('count', [1, 29, 30, 31, 60, 61, 89, 90, 150, 4500])
@pytest.mark.parametrize('source_rate', [0.5, 12, 15, 23.976, 25, 29.97, 30, 60, 120])
def test_frames_of_two_seconds(count, source_rate):
    for duration in (None, count / 30, count / 30 + 0.02, max(count / 30 - 1, 0.01)):
        options = dict(clip_length=2, source_rate=source_rate, duration=duration)
        assert numbers(count, **options) == by_hand(count, **options)


@pytest.mark.parametrize('clip_length', [1, 1.5, 0.5, 3, 5, 0.1])
def test_frames_of_other_lengths(clip_length):
    for count in (1, 44, 45, 46, 91, 200):
        options = dict(clip_length=clip_length, source_rate=25, duration=count / 30)
        assert numbers(count, **options) == by_hand(count, **options)


def test_no_frames_no_clips():
    assert numbers(0, clip_length=2, source_rate=30) == []


def test_streams():
    """A clip is there as soon as its frames are, and a video without end can be cut."""
    taken = itertools.count()
    frames = (np.zeros((1, 1, 3), np.uint8) for _ in taken)
    clips = slowfast_clips.clips_of(frames, clip_length=2, source_rate=30)
    for number in range(1, 4):
        assert next(clips).shape == (32, 1, 1, 3)
        assert next(taken) <= 60 * number + number


@pytest.mark.parametrize('options, reason', [
    (dict(clip_length=0), 'multiple of 1/30 s'), (dict(clip_length=1.25), 'multiple of 1/30 s'),
    (dict(clip_length=math.inf), 'multiple of 1/30 s'), (dict(source_rate=0), 'frame rate is 0'),
    (dict(source_rate=math.nan), 'frame rate is nan'), (dict(duration=0), 'duration is 0'),
])
def test_refuses(options, reason):
    """Before a frame is read."""
    options = dict(clip_length=2, source_rate=30) | options
    with pytest.raises(DataError, match=reason):
        slowfast_clips.clips_of(iter([]), **options)


@pytest.mark.parametrize('alpha', [1, 2, 4, 8, 16, 32])
def test_slow_frames(alpha):
    count = 32 // alpha
    expected = [math.floor(fractions.Fraction(31 * i, max(count - 1, 1))) for i in range(count)]
    assert slowfast_clips.slow_frames(32, alpha).tolist() == expected

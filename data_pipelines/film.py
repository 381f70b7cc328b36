"""Frames of generated videos: figures that keep their places in a scene and move a little."""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines import pictures
from data_pipelines.scenes import CLIP_SECONDS, Scene, Video

RATE = 8  # frames a second
_SWAY = 0.03  # of the picture's side, how far figures move from their places
_TURNS = 0.05, 0.15  # how often a second they come back


class _Stage(NamedTuple):
    """How a scene is shown: figures and their places, rates [K] a second and phases [K, 2]."""

    shown: list[tuple[int, int | None]]
    layout: pictures.Layout
    rates: np.ndarray
    phases: np.ndarray


def middles(clips: int) -> np.ndarray:
    """Seconds of the frames that stand for clips by the rule 'middle' of `video.clip_frames`."""
    return CLIP_SECONDS * (np.arange(clips) + 0.5) - 1 / RATE


def frames(video: Video, times: Sequence[float], size: int = pictures.SIZE,
           noise: float = pictures.NOISE) -> np.ndarray:
    """Draws frames of a video.

    Args:
        video: its seed, scenes and strengths decide what a frame shows, whatever the others are.
        times: N, seconds from the video's start.
        size: pixels of a side.
        noise: of the camera, see `pictures.NOISE`.

    Returns:
        uint8[N, size, size, 3], RGB.
    """
    ends = [scene.end for scene in video.scenes]
    stages: dict[int, _Stage] = {}
    found = np.empty((len(times), size, size, 3), np.uint8)
    for i, time in enumerate(times):
        clip = int(time // CLIP_SECONDS)
        number = bisect.bisect_right(ends, clip)
        if number not in stages:
            stages[number] = _stage(video.seed, number, video.scenes[number], size)
        shown, layout, rates, phases = stages[number]
        strengths = video.visible[clip]
        figures = [pictures.Figure(*ids, strengths[[i for i in ids if i is not None]].mean())
                   for ids in shown]
        turns = 2 * math.pi * (rates[:, None] * time + phases)
        moved = layout._replace(centres=layout.centres + _SWAY * size * np.sin(turns))
        rng = np.random.default_rng((*video.seed, 2, round(1000 * time)))
        found[i] = pictures.expose(rng, pictures.paint(figures, moved), noise)
    return found


def _stage(seed: tuple[int, ...], number: int, scene: Scene, size: int) -> _Stage:
    rng = np.random.default_rng((*seed, 1, number))
    shown = [*pictures.bind(scene.concepts), *pictures.bind(scene.extras)]
    return _Stage(shown, pictures.arrange(rng, len(shown), size),
                  rng.uniform(*_TURNS, len(shown)), rng.random((len(shown), 2)))

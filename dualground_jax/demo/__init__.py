"""What comes with the package, so that nothing needs to be downloaded to try it."""

import os
import pathlib

ENCODER = pathlib.Path(__file__).parent / 'encoder'  # a small CLIP: --encoder=clip=... (its card)
MODEL = ENCODER.with_name('model')  # a DualGround of its features: --workdir=... (its card)
VIDEOS = ENCODER.with_name('videos')  # bicycle.mp4, bridge.webm, kitchen.mp4
ANNOTATIONS = VIDEOS / 'annotations.jsonl'  # sentences of them, and where their moments are


def find(path: str) -> str:
    """A path as it is, or where nothing is there, what came along: `dualground_jax/demo/...`."""
    brought = pathlib.Path(__file__).parents[2] / path
    return path if os.path.exists(path) or not brought.exists() else str(brought)

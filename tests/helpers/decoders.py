"""Decoders that misbehave, for processes: without JAX, so that these start at once."""

import os
import resource
import time
from collections.abc import Iterator

import numpy as np


def slow(path: str) -> Iterator[np.ndarray]:
    """Pictures that take their time, as if of a video."""
    for _ in range(1000):
        time.sleep(0.1)
        yield np.zeros((32, 32, 3), np.uint8)


def stuck(path: str) -> Iterator[np.ndarray]:
    """A decoder that hangs."""
    time.sleep(1000)
    yield np.zeros((32, 32, 3), np.uint8)


def dead(path: str) -> Iterator[np.ndarray]:
    """A decoder that crashes."""
    yield np.zeros((32, 32, 3), np.uint8)
    os.abort()


def greedy(path: str) -> Iterator[np.ndarray]:
    """A decoder that takes all memory."""
    yield np.ones((2**33, 1), np.uint8)


def endless(path: str) -> Iterator[np.ndarray]:
    """A decoder that does not end."""
    while True:
        yield np.zeros((32, 32, 3), np.uint8)


def busy(path: str) -> Iterator[np.ndarray]:
    """A decoder that computes for ever; makes the limit on that, if there is one, a second."""
    resource.setrlimit(resource.RLIMIT_CPU, (
        min(int(time.process_time()) + 1, resource.getrlimit(resource.RLIMIT_CPU)[0]),) * 2)
    while True:
        pass
    yield

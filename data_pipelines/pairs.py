"""Pictures and sentences to train an encoder on, and those to ask what it has learned.

A batch is a function of the seed and the step. It is drawn while devices compute.
"""

import collections
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, NamedTuple, TypeVar

import numpy as np

from data_pipelines import pictures, sentences

TRAIN, HELD_OUT = 1, 2  # streams of random numbers
DRAWN = 4  # times as many held-out pairs as are asked for are drawn: not all have two attributes
AHEAD = 2  # batches

T = TypeVar('T')


class HeldOut(NamedTuple):
    """Pairs that no training step has.

    Attributes:
        pictures: uint8[N, S, S, 3].
        sentences: N of them, all different.
        swapped_pictures: uint8[M, S, S, 3], of sentences that have a swapped form.
        right: their M sentences.
        wrong: M sentences with two nouns' attributes exchanged.
    """

    pictures: np.ndarray
    sentences: list[str]
    swapped_pictures: np.ndarray
    right: list[str]
    wrong: list[str]

    def fingerprint(self) -> str:
        """A checksum of all of it."""
        told = zlib.crc32(repr(self[1::2]).encode())
        for array in (self.pictures, self.swapped_pictures):
            told = zlib.crc32(array, told)
        return f'{told:08x}'


def training_batch(seed: int, step: int, size: int, world: Any, named: int = 0
                   ) -> tuple[np.ndarray, list[str]]:
    """Draws the pairs of a training step.

    Args:
        seed: of the run.
        step: from 0 on.
        size: pairs.
        world: see `pictures.pairs`.
        named: most concepts that a caption names; 0: it is the sentence.

    Returns:
        uint8[size, S, S, 3] and captions.
    """
    rng = np.random.default_rng([seed, TRAIN, step])
    shown, texts = pictures.pairs(rng, size, world)
    return shown, [shortened(rng, text, named) for text in texts]


def shortened(rng: np.random.Generator, sentence: str, named: int) -> str:
    """So many of the concepts that a sentence names, in their order; all of it, if it has no more.

    Args:
        rng: of the choice.
        sentence: to shorten.
        named: concepts to keep; 0: all.
    """
    words = sentence.split()
    places = [i for i, word in enumerate(words) if word in sentences.WORD_CLASS]
    if not 0 < named < len(places):
        return sentence
    return ' '.join(words[i] for i in sorted(rng.choice(places, named, replace=False)))


def held_out(seed: int, count: int, world: Any) -> HeldOut:
    """Draws at most `count` pairs of each kind: fewer, where the world has no more of them."""
    rng = np.random.default_rng([seed, HELD_OUT])
    shown, texts = pictures.pairs(rng, DRAWN * count, world)
    first = {text: i for i, text in reversed(list(enumerate(texts)))}
    own = sorted(first.values())
    wrong = {i: ' '.join(other) for i in own if (other := pictures.swapped(texts[i].split(), rng))}
    own, swappable = own[:count], list(wrong)[:count]
    return HeldOut(shown[own], [texts[i] for i in own], shown[swappable],
                   [texts[i] for i in swappable], [wrong[i] for i in swappable])


def ahead(make: Callable[[int], T], steps: Iterable[int]) -> Iterator[T]:
    """Yields make(step) of each step; the next ones are made in a thread meanwhile."""
    with futures.ThreadPoolExecutor(1) as worker:
        waiting = collections.deque()
        for step in steps:
            waiting.append(worker.submit(make, step))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

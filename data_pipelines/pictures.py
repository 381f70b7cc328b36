"""Pictures of the generated world: an icon for each concept, at a place of its own.

A noun's attribute changes its icon, so that 'a red dog and a blue cat' and 'a blue dog and a red
cat' name the same concepts and look different.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import icons, sentences
from data_pipelines.sentences import CONCEPTS, WORD_CLASS

SIZE = 64  # pixels of a side
NOISE = 8.0  # of a camera: standard deviation, in grey levels of 255
NOUNS = 'actor', 'object'  # classes of words that an attribute can be bound to
_COARSE = 4  # points in a row of a background's random colours


class Figure(NamedTuple):
    """What a picture shows of a concept.

    Attributes:
        concept: its id in CONCEPTS.
        attribute: id of the attribute that is bound to it; None: none is.
        strength: 0..1, how far it stands out from the background.
    """

    concept: int
    attribute: int | None = None
    strength: float = 1.0


class Layout(NamedTuple):
    """Where figures stand.

    Attributes:
        centres: float[K, 2], pixels from the top and from the left.
        sizes: int[K], pixels.
        background: float32[S, S, 3], 0..255.
    """

    centres: np.ndarray
    sizes: np.ndarray
    background: np.ndarray


def bind(ids: Iterable[int]) -> list[tuple[int, int | None]]:
    """Pairs concepts with their attributes: an attribute belongs to the noun that comes next.

    Args:
        ids: of CONCEPTS, in the order of a sentence.

    Returns:
        (concept, its attribute or None) of each; an attribute that no noun follows is a concept.
    """
    found, waiting = [], None
    for concept in ids:
        kind = WORD_CLASS[CONCEPTS[concept]]
        if waiting is not None and kind not in NOUNS:
            found.append((waiting, None))
            waiting = None
        if kind == 'attribute':
            waiting = concept
        else:
            found.append((concept, waiting))
            waiting = None
    return found + [(waiting, None)] * (waiting is not None)


def figures_of(words: Sequence[str]) -> list[Figure]:
    """The figures of a sentence's concepts, by its grammar."""
    return [Figure(*pair) for pair in bind(sentences.concept_ids(words))]


def swapped(words: Sequence[str], rng: np.random.Generator) -> tuple[str, ...] | None:
    """Exchanges what two nouns of a sentence have of attributes, one of which may have none.

    Returns:
        The words; None where all nouns have the same.
    """
    bare, own, waiting = [], {}, None
    for word in words:
        kind = WORD_CLASS.get(word)
        if kind == 'attribute':
            waiting = word
            continue
        if kind in NOUNS:
            own[len(bare)], waiting = waiting, None
        bare.append(word)
    choices = [pair for pair in itertools.combinations(own, 2) if own[pair[0]] != own[pair[1]]]
    if not choices:
        return None
    i, j = choices[rng.integers(len(choices))]
    own[i], own[j] = own[j], own[i]
    return tuple(word for i, noun in enumerate(bare) for word in (own.get(i), noun) if word)


def arrange(rng: np.random.Generator, count: int, size: int = SIZE) -> Layout:
    """Draws places for so many figures, which hardly overlap, and a background."""
    side = max(2, int(np.ceil(np.sqrt(count))))
    cell = size / side
    cells = rng.permutation(side * side)[:count]
    sizes = np.rint(cell * rng.uniform(0.8, 1, count)).astype(int).clip(max=size // 3)
    centres = (np.stack(np.divmod(cells, side), axis=1) + 0.5) * cell
    slack = (cell - sizes)[:, None] / 2 + 1
    centres += rng.uniform(-1, 1, (count, 2)) * slack
    colours = rng.uniform(30, 110) + rng.uniform(-30, 30, (_COARSE, _COARSE, 3))
    return Layout(centres, sizes, _enlarge(colours.astype(np.float32), size))


def _enlarge(colours: np.ndarray, size: int) -> np.ndarray:
    """Scales [n, n, 3] up to [size, size, 3], linear in between."""
    places = np.linspace(0, len(colours) - 1, size, dtype=np.float32)
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(len(colours))))
    weights = weights.astype(np.float32)
    rows = (weights @ colours.reshape(len(colours), -1)).reshape(size, *colours.shape[1:])
    return weights @ rows


def paint(figures: Sequence[Figure], layout: Layout) -> np.ndarray:
    """Draws figures in their places: float32[S, S, 3], 0..255."""
    canvas = layout.background.copy()
    size = len(canvas)
    for figure, centre, own in zip(figures, layout.centres, layout.sizes.tolist(), strict=True):
        colours, covered = icons.icon(figure.concept, figure.attribute, own)
        height, width = covered.shape[:2]
        top = min(max(round(centre[0] - height / 2), 0), size - height)
        left = min(max(round(centre[1] - width / 2), 0), size - width)
        part = canvas[top:top + height, left:left + width]
        part += np.float32(figure.strength) * (colours - covered * part)
    return canvas


def expose(rng: np.random.Generator, canvas: np.ndarray, noise: float = NOISE) -> np.ndarray:
    """What a camera makes of it: noise, and uint8[S, S, 3]."""
    grain = rng.standard_normal(canvas.shape, dtype=np.float32)
    return (canvas + np.float32(noise) * grain).clip(0, 255).astype(np.uint8)


def draw(rng: np.random.Generator, figures: Sequence[Figure], *, size: int = SIZE,
         noise: float = NOISE) -> np.ndarray:
    """Draws figures at random places before a random background: uint8[size, size, 3]."""
    return expose(rng, paint(figures, arrange(rng, len(figures), size)), noise)


def pairs(rng: np.random.Generator, count: int, world: Any) -> tuple[np.ndarray, list[str]]:
    """Draws sentences and a picture of each, to train an encoder on.

    Args:
        rng: of all draws.
        count: n.
        world: its min_concepts and max_concepts are those of a sentence; `extras` and `faintest`
            say what pictures show beside it, and how strongly.

    Returns:
        uint8[n, S, S, 3] and n sentences.
    """
    pictures = np.empty((count, SIZE, SIZE, 3), np.uint8)
    texts = []
    for i in range(count):
        words = sentences.draw_sentence(rng, world, ())
        ids = sentences.concept_ids(words)
        others = np.setdiff1d(np.arange(len(CONCEPTS)), ids)
        extras = rng.choice(others, round(world.extras * len(ids)), replace=False).tolist()
        shown = [*bind(ids), *bind(extras)]
        strengths = rng.uniform(world.faintest, 1, len(shown))
        pictures[i] = draw(rng, [Figure(*pair, strength) for pair, strength
                                 in zip(shown, strengths.tolist(), strict=True)])
        texts.append(' '.join(words))
    return pictures, texts

"""The icons of the generated world's concepts: shapes that numpy draws, and what attributes change.

A shape says of points (x, y) of the icon's square, -1 to 1 from left to right and from top to
bottom, whether they belong to it. Icons of a class of words are alike in style: actors and objects
are figures, motions are strokes, handlings are marks on a dark disc, manners marks on a light tile,
places are textured tiles. An attribute without a noun is the change that it makes of a plain disc.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

from data_pipelines.sentences import CONCEPTS, LEXICON, WORD_CLASS

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]  # x, y -> bool, of one shape
OVERSAMPLED = 4  # points in a row of a pixel

BLACK, WHITE, GREY = (25, 25, 25), (245, 245, 245), (185, 185, 185)
RED, BLUE = (225, 20, 30), (35, 60, 250)  # nothing else has colours like these two
ORANGE, BROWN, YELLOW, LIME = (245, 145, 40), (165, 105, 60), (250, 225, 60), (165, 220, 50)
GREEN, TEAL, CYAN = (35, 150, 60), (30, 170, 150), (110, 225, 235)
VIOLET, PINK, SKIN = (155, 80, 200), (250, 150, 205), (250, 205, 165)


# Shapes


def ellipse(x0: float, y0: float, rx: float, ry: float | None = None) -> Shape:
    """Around (x0, y0); a disc without ry."""
    return lambda x, y: ((x - x0) / rx) ** 2 + ((y - y0) / (ry or rx)) ** 2 <= 1


def box(left: float, top: float, right: float, bottom: float) -> Shape:
    """A rectangle."""
    return lambda x, y: (x >= left) & (x <= right) & (y >= top) & (y <= bottom)


def polygon(*points: tuple[float, float]) -> Shape:
    """The inside of a closed line."""
    def inside(x, y):
        found = np.zeros(x.shape, bool)
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
            if y0 != y1:
                found ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        return found

    return inside


def stroke(width: float, *points: tuple[float, float]) -> Shape:
    """A line from point to point with round ends."""
    def near(x, y):
        found = np.zeros(x.shape, bool)
        for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
            dx, dy = x1 - x0, y1 - y0
            along = ((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy)
            along = along.clip(0, 1)
            found |= np.hypot(x - x0 - along * dx, y - y0 - along * dy) <= width / 2
        return found

    return near


def arc(x0: float, y0: float, radius: float, width: float, start: float = 0, stop: float = 360
        ) -> Shape:
    """A part of a circle, in degrees clockwise from the right."""
    angles = np.radians(np.linspace(start, stop, 25))
    return stroke(width, *zip(x0 + radius * np.cos(angles), y0 + radius * np.sin(angles),
                              strict=True))


def waves(width: float, count: int, heights: tuple[float, ...]) -> list[Shape]:
    """Wavy lines from left to right."""
    x = np.linspace(-0.9, 0.9, 25)
    return [stroke(width, *zip(x, y0 + 0.13 * np.sin(count * math.pi * x), strict=True))
            for y0 in heights]


_TILE = box(-0.95, -0.95, 0.95, 0.95)
_DISC = ellipse(0, 0, 0.95)
_HEAD = ellipse(0, -0.62, 0.33)

# Concept -> layers (colour, shapes), from back to front; the first is what an attribute colours.
LAYERS = {
    'dog': [(ORANGE, ellipse(0, 0.1, 0.62, 0.75), ellipse(-0.68, 0.05, 0.27, 0.6),
             ellipse(0.68, 0.05, 0.27, 0.6)),
            (BLACK, ellipse(-0.25, -0.1, 0.13), ellipse(0.25, -0.1, 0.13), ellipse(0, 0.45, 0.24))],
    'cat': [(GREY, ellipse(0, 0.2, 0.75, 0.65), polygon((-0.85, -0.95), (-0.7, 0.1), (-0.1, -0.3)),
             polygon((0.85, -0.95), (0.7, 0.1), (0.1, -0.3))),
            (LIME, ellipse(-0.32, 0.05, 0.17), ellipse(0.32, 0.05, 0.17)),
            (BLACK, stroke(0.1, (-1, 0.4), (-0.2, 0.5)), stroke(0.1, (1, 0.4), (0.2, 0.5)))],
    'woman': [(VIOLET, polygon((0, -0.55), (0.8, 1), (-0.8, 1)), box(-0.45, -0.95, 0.45, -0.3)),
              (SKIN, ellipse(0, -0.58, 0.28), stroke(0.14, (-0.25, -0.1), (-0.75, 0.25)),
               stroke(0.14, (0.25, -0.1), (0.75, 0.25)))],
    'man': [(GREEN, box(-0.62, -0.3, 0.62, 0.35)),
            (BLACK, box(-0.45, 0.35, -0.08, 1), box(0.08, 0.35, 0.45, 1)), (SKIN, _HEAD)],
    'girl': [(PINK, polygon((0, -0.05), (0.6, 1), (-0.6, 1)), ellipse(-0.68, -0.35, 0.28),
              ellipse(0.68, -0.35, 0.28)), (SKIN, ellipse(0, -0.42, 0.46)),
             (BLACK, ellipse(-0.17, -0.45, 0.09), ellipse(0.17, -0.45, 0.09))],
    'boy': [(TEAL, box(-0.5, 0.35, 0.5, 1), box(-0.55, -0.95, 0.5, -0.45), box(0, -0.6, 1, -0.4)),
            (SKIN, ellipse(0, -0.05, 0.5)), (BLACK, ellipse(0.22, -0.1, 0.1))],
    'chef': [(WHITE, ellipse(-0.42, -0.6, 0.4), ellipse(0.42, -0.6, 0.4), ellipse(0, -0.7, 0.3),
              box(-0.5, -0.6, 0.5, 0)), (SKIN, ellipse(0, 0.35, 0.55)),
             (BLACK, stroke(0.16, (-0.3, 0.5), (0, 0.42), (0.3, 0.5)))],
    'dancer': [(LIME, stroke(0.24, (-0.85, -0.75), (0, -0.1), (0.85, -0.75)),
                polygon((-0.9, 0.4), (0.9, 0.4), (0.2, -0.2), (-0.2, -0.2))),
               (SKIN, ellipse(0, -0.55, 0.3), stroke(0.18, (-0.1, 0.4), (-0.5, 0.95)),
                stroke(0.18, (0.1, 0.4), (0.85, 0.75)))],
    'ball': [(ORANGE, ellipse(0, 0, 0.9)),
             (BLACK, stroke(0.14, (-0.88, 0), (0.88, 0)), stroke(0.14, (0, -0.88), (0, 0.88)))],
    'guitar': [(BROWN, ellipse(-0.4, 0.45, 0.52), ellipse(-0.02, 0.05, 0.36)),
               (YELLOW, stroke(0.2, (0, 0), (0.85, -0.85))), (BLACK, ellipse(-0.3, 0.35, 0.2))],
    'bicycle': [(TEAL, arc(-0.52, 0.4, 0.4, 0.2), arc(0.52, 0.4, 0.4, 0.2)),
                (WHITE, stroke(0.16, (-0.52, 0.4), (-0.15, -0.35), (0.4, -0.35), (0.52, 0.4)),
                 stroke(0.16, (-0.15, -0.35), (0.05, 0.4), (0.4, -0.35), (0.3, -0.7)))],
    'basket': [(YELLOW, polygon((-0.95, -0.05), (0.95, -0.05), (0.6, 0.95), (-0.6, 0.95)),
                arc(0, -0.05, 0.65, 0.2, 180, 360)),
               (BROWN, box(-0.85, 0.2, 0.85, 0.32), box(-0.7, 0.58, 0.7, 0.7),
                box(-0.06, 0, 0.06, 0.9))],
    'book': [(GREEN, polygon((-0.98, -0.75), (0, -0.5), (0.98, -0.75), (0.98, 0.6), (0, 0.85),
                             (-0.98, 0.6))),
             (WHITE, polygon((-0.8, -0.5), (-0.1, -0.3), (-0.1, 0.6), (-0.8, 0.42))),
             (WHITE, polygon((0.8, -0.5), (0.1, -0.3), (0.1, 0.6), (0.8, 0.42)))],
    'bottle': [(TEAL, box(-0.42, -0.25, 0.42, 1), polygon((-0.42, -0.2), (-0.17, -0.55),
                                                        (0.17, -0.55), (0.42, -0.2))),
               (WHITE, box(-0.42, 0.2, 0.42, 0.6)), (BROWN, box(-0.2, -1, 0.2, -0.5))],
    'hat': [(BROWN, ellipse(0, 0.5, 1, 0.32), box(-0.52, -0.7, 0.52, 0.5)),
            (YELLOW, box(-0.52, 0.05, 0.52, 0.32))],
    'lamp': [(YELLOW, polygon((-0.4, -0.95), (0.4, -0.95), (0.85, 0.1), (-0.85, 0.1))),
             (BLACK, box(-0.1, 0.1, 0.1, 0.8), box(-0.5, 0.75, 0.5, 1))],
    'drum': [(VIOLET, box(-0.85, -0.3, 0.85, 0.6), ellipse(0, 0.6, 0.85, 0.3)),
             (WHITE, ellipse(0, -0.3, 0.85, 0.32)),
             (YELLOW, stroke(0.12, (-0.8, 0.2), (-0.4, 0.75), (0, 0.2), (0.4, 0.75), (0.8, 0.2)))],
    'kite': [(PINK, polygon((0, -1), (0.72, -0.25), (0, 0.5), (-0.72, -0.25))),
             (BLACK, stroke(0.1, (0, -1), (0, 0.5)), stroke(0.1, (-0.7, -0.25), (0.7, -0.25))),
             (YELLOW, stroke(0.16, (0, 0.5), (0.3, 0.68), (-0.1, 0.82), (0.3, 0.95)))],
    'runs': [(WHITE, stroke(0.24, (-0.3, 0), (0.85, 0)), stroke(0.24, (0.4, -0.5), (0.85, 0),
                                                              (0.4, 0.5)),
              stroke(0.2, (-0.85, -0.4), (0, -0.4)), stroke(0.2, (-0.85, 0.4), (0, 0.4)))],
    'jumps': [(LIME, stroke(0.26, (0, 0.55), (0, -0.8)), stroke(0.26, (-0.5, -0.3), (0, -0.8),
                                                              (0.5, -0.3)),
               stroke(0.24, (-0.8, 0.85), (0.8, 0.85)))],
    'dances': [(PINK, arc(0, -0.42, 0.42, 0.24, 60, 330), arc(0, 0.42, 0.42, 0.24, -120, 150))],
    'sleeps': [(VIOLET, stroke(0.22, (-0.85, -0.1), (0, -0.1), (-0.85, 0.85), (0, 0.85)),
                stroke(0.2, (0.25, -0.85), (0.85, -0.85), (0.25, -0.2), (0.85, -0.2)))],
    'sings': [(YELLOW, ellipse(-0.4, 0.6, 0.42, 0.32),
               stroke(0.2, (-0.08, 0.6), (-0.08, -0.8), (0.7, -0.5), (0.7, -0.1)))],
    'waves': [(CYAN, *waves(0.22, 2, (-0.6, 0, 0.6)))],
    'holds': [(BLACK, _DISC), (ORANGE, arc(0, 0.05, 0.5, 0.28, -20, 200))],
    'washes': [(BLACK, _DISC), (CYAN, arc(-0.3, 0.2, 0.32, 0.18), arc(0.4, -0.1, 0.2, 0.16),
                                ellipse(-0.1, -0.5, 0.18), ellipse(0.3, 0.5, 0.16))],
    'paints': [(BLACK, _DISC), (PINK, stroke(0.24, (-0.6, -0.4), (0.5, -0.4), (-0.5, 0.1),
                                             (0.6, 0.1), (-0.2, 0.55)))],
    'throws': [(BLACK, _DISC), (LIME, stroke(0.2, (-0.65, 0.3), (-0.4, -0.25), (0.05, -0.4)),
                                ellipse(0.42, -0.2, 0.28))],
    'carries': [(BLACK, _DISC), (YELLOW, box(-0.4, -0.55, 0.4, 0.15), box(-0.7, 0.3, 0.7, 0.5))],
    'fixes': [(BLACK, _DISC), (WHITE, stroke(0.24, (-0.55, 0), (0.55, 0)),
                               stroke(0.24, (0, -0.55), (0, 0.55)))],
    'fast': [(WHITE, _TILE), (GREEN, stroke(0.28, (-0.6, -0.6), (0, 0), (-0.6, 0.6)),
                              stroke(0.28, (0.05, -0.6), (0.65, 0), (0.05, 0.6)))],
    'slowly': [(WHITE, _TILE), (BROWN, polygon((-0.65, -0.75), (0.65, -0.75), (0, 0)),
                                polygon((-0.65, 0.75), (0.65, 0.75), (0, 0)))],
    'quietly': [(WHITE, _TILE), (BLACK, stroke(0.26, (-0.55, -0.55), (0.55, 0.55)),
                                 stroke(0.26, (0.55, -0.55), (-0.55, 0.55)))],
    'happily': [(WHITE, _TILE), (ORANGE, arc(0, 0, 0.55, 0.24, 10, 170), ellipse(-0.35, -0.4, 0.2),
                                 ellipse(0.35, -0.4, 0.2))],
    'gently': [(WHITE, _TILE), (PINK, ellipse(-0.3, -0.25, 0.36), ellipse(0.3, -0.25, 0.36),
                                polygon((-0.62, -0.05), (0.62, -0.05), (0, 0.75)))],
    'alone': [(WHITE, _TILE), (VIOLET, ellipse(0, 0, 0.35))],
    'kitchen': [(TEAL, _TILE), (WHITE, *(box(x, y, x + 0.48, y + 0.48) for x, y in (
        (-0.95, -0.95), (0, -0.95), (-0.47, -0.47), (0.48, -0.47), (-0.95, 0), (0, 0),
        (-0.47, 0.48), (0.48, 0.48))))],
    'garden': [(GREEN, _TILE), (PINK, *(ellipse(x, y, 0.24) for x, y in (
        (-0.5, -0.5), (0.5, -0.55), (0, 0), (-0.5, 0.5), (0.5, 0.5))))],
    'beach': [(YELLOW, _TILE), (CYAN, box(-0.95, -0.95, 0.95, -0.1)),
              (WHITE, *waves(0.2, 3, (-0.1,)))],
    'street': [(GREY, _TILE), (BLACK, box(-0.55, -0.95, 0.55, 0.95)),
               (YELLOW, box(-0.12, -0.85, 0.12, -0.3), box(-0.12, -0.05, 0.12, 0.45),
                box(-0.12, 0.7, 0.12, 0.95))],
    'forest': [(LIME, _TILE), (GREEN, polygon((-0.9, 0.9), (-0.45, -0.9), (0, 0.9)),
                               polygon((0, 0.9), (0.45, -0.6), (0.9, 0.9)))],
    'bridge': [(CYAN, _TILE), (BROWN, box(-0.95, -0.4, 0.95, 0), arc(0, 0.9, 0.8, 0.3, 180, 360))],
    **{word: [(GREY, ellipse(0, 0, 0.9))] for word in LEXICON['attribute']},
}
# Attribute -> where the icon stands in its square (scale and centre), and layers before it.
_WHOLE = 1, 1, 0, 0
CHANGES = {
    'red': (_WHOLE, []),
    'blue': (_WHOLE, []),
    'striped': (_WHOLE, []),
    'tall': (_WHOLE, []),
    'small': ((0.6, 0.6, 0, 0), [(WHITE, arc(0, 0, 0.9, 0.14))]),
    'young': ((0.8, 0.72, 0, 0.28), [(GREEN, stroke(0.16, (0, -0.3), (0, -0.7))),
                                     (LIME, ellipse(-0.38, -0.78, 0.38, 0.2),
                                      ellipse(0.38, -0.78, 0.38, 0.2))]),
    'wet': ((0.8, 0.72, 0, -0.28), [(CYAN, *(
        shape for x in (-0.62, 0, 0.62) for shape in (
            ellipse(x, 0.76, 0.22), polygon((x - 0.2, 0.7), (x, 0.2), (x + 0.2, 0.7)))))]),
    'shiny': ((0.8, 0.8, -0.2, 0.2), [(YELLOW, polygon(
        (0.55, -1), (0.68, -0.62), (1, -0.5), (0.68, -0.38), (0.55, 0), (0.42, -0.38), (0.1, -0.5),
        (0.42, -0.62))), (WHITE, ellipse(0.55, -0.5, 0.16))]),
}
SIDES = {'tall': (1.35, 0.65)}  # height and width of the square, as shares of the size


def _paint(x: np.ndarray, y: np.ndarray, layers: list) -> np.ndarray:
    """Colours and whether there is one, float[h, w, 4]."""
    found = np.zeros((*x.shape, 4))
    for colour, *shapes in layers:
        for shape in shapes:
            found[shape(x, y)] = [*colour, 1]
    return found


@functools.lru_cache(maxsize=2048)  # all of pictures of 64 pixels
def icon(concept: int, attribute: int | None, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a concept of CONCEPTS, changed by an attribute.

    Args:
        concept: its id; of an attribute: what it changes of a disc.
        attribute: the id of a noun's attribute.
        size: pixels of a side.

    Returns:
        float32[h, w, 3] in 0..255, weighted by float32[h, w, 1] in 0..1, the share of a pixel that
        the icon covers.
    """
    word = CONCEPTS[concept]
    change = word if WORD_CLASS[word] == 'attribute' else attribute and CONCEPTS[attribute]
    height, width = (max(round(side * size), 1) for side in SIDES.get(change, (1, 1)))
    y, x = ((2 * np.arange(n * OVERSAMPLED) + 1) / (n * OVERSAMPLED) - 1 for n in (height, width))
    x, y = np.broadcast_arrays(x[None], y[:, None])
    (wide, high, right, down), front = CHANGES.get(change, (_WHOLE, []))
    (colour, *body), *details = LAYERS[word]
    colour = dict(red=RED, blue=BLUE).get(change, colour)
    own = (x - right) / wide, (y - down) / high
    points = _paint(*own, [(colour, *body)])
    if change == 'striped':
        points[(points[..., 3] > 0) & ((x + y + 2) % 0.8 < 0.4), :3] = BLACK
    for above in _paint(*own, details), _paint(x, y, front):
        points = np.where(above[..., 3:] > 0, above, points)
    blocks = points.reshape(height, OVERSAMPLED, width, OVERSAMPLED, 4).mean((1, 3))
    return blocks[..., :3].astype(np.float32), blocks[..., 3:].astype(np.float32)

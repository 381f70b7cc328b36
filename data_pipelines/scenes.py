"""The videos of the generated world: stretches of clips that show concepts, and their answers."""

import dataclasses
import math
from typing import Any

import numpy as np

from data_pipelines import pictures
from data_pipelines.sentences import CONCEPTS, concept_ids, draw_sentence, swap_concepts

CLIP_SECONDS = 2  # as annotators grade them in real files
MAX_WINDOWS = 4


@dataclasses.dataclass(frozen=True)
class Scene:
    """Clips [start, end) that show `concepts` and, whatever their strength, `extras` (ids)."""

    start: int
    end: int
    concepts: tuple[int, ...]
    extras: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Video:
    """A generated video.

    Attributes:
        name: of its files.
        split: that it belongs to.
        seed: of its random numbers: of the world, the split, and its own.
        scenes: from end to end.
        visible: float[T, V], the strength with which clips show CONCEPTS.
        planted: float32[T, D], features without pictures.
        queries: (annotation record, float32[L, D] of its sentence without an encoder) of each.
    """

    name: str
    split: str
    seed: tuple[int, ...]
    scenes: list[Scene]
    visible: np.ndarray
    planted: np.ndarray
    queries: list[tuple[dict, np.ndarray]]


def draw_video(rng: np.random.Generator, world: Any, may_share: bool, seen: set[tuple[str, ...]]
               ) -> tuple[list[tuple[str, ...]], list[Scene]]:
    """Draws a video's one or two sentences, adds them to `seen`, and its scenes from end to end."""
    several = rng.random() < world.multi_windows
    shared = rng.random() < world.shared_videos and may_share
    while True:
        sentence = draw_sentence(rng, world, seen)
        decoys = [swap_concepts(rng, sentence, 0, world.swaps) for _ in range(world.distractors)]
        side = rng.spawn(1)[0]  # draws that leave those of a planted world as they are
        decoys = [side.random() < world.attribute_swaps and pictures.swapped(sentence, side)
                  or decoy for decoy in decoys]
        if shared and several:
            decoys = decoys[:1] * len(decoys)  # so that the second query has several windows, too
        # Scenes that resemble one another without the query: likeness alone must not tell.
        foil = swap_concepts(rng, sentence, 1, 1)
        foils = [foil, *(swap_concepts(rng, foil, 0, world.swaps) for _ in decoys)]
        sentences = [sentence, decoys[0]] if shared else [sentence]
        if not seen.intersection(sentences):
            break
    seen.update(sentences)
    windows = int(rng.integers(2, MAX_WINDOWS + 1)) if several else 1
    clips = int(rng.integers(world.min_clips, world.max_clips + 1))
    lengths = [*_draw_lengths(rng, clips, windows),
               *_draw_lengths(rng, clips, len(decoys) + len(foils))]
    planted = [concept_ids(words) for words in [sentence] * windows + decoys + foils]
    order = rng.permutation(len(planted))
    starts, ends = _lay_out(rng, clips, np.array(lengths)[order])
    stretches = list(zip(starts, ends, [planted[i] for i in order], strict=True))
    return sentences, _add_background(rng, world, clips, stretches)


def _draw_lengths(rng, clips, count):
    """Draws lengths of 1 to 0.7 / count of the clips, log-uniform: short ones more often."""
    longest = 0.7 * clips / max(count, 1)
    lengths = np.exp(rng.uniform(math.log(1.35), math.log(longest + 0.5), count))
    return np.rint(lengths).astype(int)


def _lay_out(rng, clips, lengths):
    """Places stretches in order, at random, at least a clip apart: their starts and ends int[K]."""
    lengths = lengths.copy()
    between = len(lengths) - 1
    while lengths.sum() + between > clips:
        lengths[lengths.argmax()] -= 1
    spare = clips - lengths.sum() - between
    gaps = rng.multinomial(spare, rng.dirichlet(np.ones(between + 2)))
    gaps[1:-1] += 1
    ends = np.cumsum(gaps[:-1] + lengths)
    return (ends - lengths).tolist(), ends.tolist()


def _add_background(rng, world, clips, stretches):
    """Makes scenes of the planted (start, end, concepts) and fills the clips between them.

    A background scene shows as many concepts as a planted one, so that only the query tells which
    is meant, but less than half of those of any planted one.
    """
    planted = sorted({concepts for _, _, concepts in stretches})
    planted_ids = sorted({i for concepts in planted for i in concepts})
    size = len(planted[0])
    extras = round(world.extras * size)
    weights = np.ones(len(CONCEPTS))
    weights[rng.choice(len(CONCEPTS), world.topic_size, replace=False)] = world.topic_weight

    def draw(count, banned):
        allowed = weights.copy()
        allowed[banned] = 0
        return rng.choice(len(CONCEPTS), count, False, allowed / allowed.sum()).tolist()

    scenes = []
    end = 0
    for start, stop, concepts in [*stretches, (clips, clips, ())]:
        while end < start:
            begin, end = end, min(start, end + int(rng.integers(2, 9)))
            banned = [i for ids in planted for i in rng.permutation(ids)[:size // 2 + 1]]
            shown = draw(size + extras, banned)
            scenes.append(Scene(begin, end, tuple(shown[:size]), tuple(shown[size:])))
        if start < stop:
            scenes.append(Scene(start, stop, concepts, tuple(draw(extras, planted_ids))))
        end = stop
    return scenes


def visibility(rng: np.random.Generator, world: Any, scenes: list[Scene]) -> np.ndarray:
    """Returns the strength float[T, V] with which clips show concepts, 0 where they do not.

    A scene's concepts grow strong and faint together, and one clip shows them at their best; its
    extras vary on their own, so that the mixture tells the saliency even after normalisation.
    """
    visible = np.zeros((scenes[-1].end, len(CONCEPTS)))
    for scene in scenes:
        span = scene.end - scene.start
        quality = world.faintest + (1 - world.faintest) * np.cbrt(rng.random(span))
        quality[rng.integers(span)] = 1
        strengths = quality[:, None] + 0.1 * rng.standard_normal((span, len(scene.concepts)))
        visible[scene.start:scene.end, scene.concepts] = strengths.clip(world.faintest, 1)
        strengths = rng.uniform(world.faintest, 1, (span, len(scene.extras)))
        visible[scene.start:scene.end, scene.extras] = strengths
    return visible


def annotate(rng: np.random.Generator, world: Any, sentence: tuple[str, ...], scenes: list[Scene],
             visible: np.ndarray) -> dict[str, list]:
    """Returns a query's windows, its relevant clips and three annotators' grades 0..4 of each."""
    ids = concept_ids(sentence)
    # Pictures tell which noun an attribute belongs to, planted vectors do not.
    shown = lambda ids: set(pictures.bind(ids) if world.encoder else ids)
    windows = [(scene.start, scene.end) for scene in scenes if shown(scene.concepts) == shown(ids)]
    clips = [clip for start, end in windows for clip in range(start, end)]
    share = visible[np.ix_(clips, ids)].mean(axis=1)
    opinions = world.annotator_noise * rng.standard_normal((len(clips), 3))
    grades = np.rint(4 * share[:, None] + opinions).clip(0, 4).astype(int)
    seconds = [[CLIP_SECONDS * start, CLIP_SECONDS * end] for start, end in windows]
    return {'relevant_clip_ids': clips, 'saliency_scores': grades.tolist(),
            'relevant_windows': seconds}

"""The embedded data set: a planted-moment world with known answers.

`generate` writes the world. Its videos are stretches of clips that show sets of concepts; a query
names concepts, and its windows are the stretches that show all of them. Word features tell the
concepts apart, [EOS] only gives a low-rank summary of their sum. So whether a model reads the words
or lives on [EOS] decides what it can find, and by how much is known: the question of the DualGround
paper (https://arxiv.org/abs/2510.20244) in a world that fits on a laptop.

`simulate` makes features of the same kind for real annotation files.
"""

import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from data_pipelines import files
from data_pipelines.errors import UserError
from data_pipelines.sentences import CONCEPTS, WORD_IDS, concept_ids, draw_sentence, swap_concepts

VERSION = 1  # recorded beside the parameters: raise it when the same ones begin to give other data
SPLITS = ('train', 'val', 'test')
SALIENCY_SECONDS = 2  # of a clip that annotators grade, in real files; of any clip here
MAX_WINDOWS = 4


@dataclasses.dataclass(frozen=True)
class World:
    """Parameters of the planted world; a noise is the length of what is added to unit vectors."""

    seed: int = 0
    train_queries: int = 4000
    val_queries: int = 300
    test_queries: int = 300
    video_dim: int = 96
    text_dim: int = 64
    min_clips: int = 20
    max_clips: int = 32
    min_concepts: int = 2  # that a query names
    max_concepts: int = 10
    shared_videos: float = 0.3  # share of videos with a second query: of a distractor of the first
    multi_windows: float = 0.2  # share of queries with several windows
    distractors: int = 1  # stretches per video that show some, but not all, of a query's concepts
    swaps: float = 0.4  # share of a query's concepts that a distractor lacks at most; at least one
    extras: float = 0.3  # concepts that each stretch shows beside its own, as a share of these
    topic_size: int = 12  # concepts that a video's background prefers, ...
    topic_weight: float = 4.0  # ... and how many times likelier than others they are
    faintest: float = 0.7  # concepts are shown with a strength between this and 1
    annotator_noise: float = 0.5  # standard deviation, in saliency grades
    context: float = 0.2  # share of its neighbours in a word's feature
    word_signal: float = 1.0  # 0: word features are noise
    eos_rank: int = 3  # 0: [EOS] is noise
    eos_noise: float = 0.6
    video_noise: float = 0.4

    def __post_init__(self):
        # Each scene needs a clip, and one before the next.
        most_scenes = MAX_WINDOWS + 2 * self.distractors + 1
        limits = {
            'video_dim': (1, math.inf),
            'text_dim': (1, math.inf),
            'min_clips': (2 * most_scenes - 1, self.max_clips),
            'min_concepts': (2, self.max_concepts),
            'max_concepts': (2, 10),
            'shared_videos': (0, 1 if self.distractors else 0),
            'multi_windows': (0, 1),
            'distractors': (0, MAX_WINDOWS),
            'swaps': (0, 0.5),
            'extras': (0, 1),
            'topic_size': (0, len(CONCEPTS)),
            'topic_weight': (1, math.inf),
            'faintest': (0, 1),
            'word_signal': (0, 1),
            'eos_rank': (0, self.text_dim),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise UserError(f'world.{name} is {getattr(self, name)}, expected {low} to {high}')


@dataclasses.dataclass(frozen=True)
class Maps:
    """The fixed random vectors of a world.

    Attributes:
        video: float32[V, video_dim], unit vectors of CONCEPTS in clip features.
        text: float32[V + F, text_dim], unit vectors of CONCEPTS, then of FUNCTION_WORDS.
        start: float32[text_dim], the start-of-text row.
        summary: float32[text_dim, text_dim] of rank eos_rank. It takes the sum of a query's concept
            vectors to [EOS], up to length and noise.
    """

    video: np.ndarray
    text: np.ndarray
    start: np.ndarray
    summary: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scene:
    """Clips [start, end) that show `concepts` and, whatever their strength, `extras` (ids)."""

    start: int
    end: int
    concepts: tuple[int, ...]
    extras: tuple[int, ...]


def concept_maps(world: World) -> Maps:
    """Returns the Maps of a world; with another eos_rank, only `summary` is another one."""
    rng = np.random.default_rng([world.seed, 0])
    video = unit(rng.standard_normal((len(CONCEPTS), world.video_dim)))
    text = unit(rng.standard_normal((len(WORD_IDS), world.text_dim)))
    start = unit(rng.standard_normal(world.text_dim))
    down, up = rng.standard_normal((2, world.text_dim, world.text_dim))
    summary = down[:, :world.eos_rank] @ up[:world.eos_rank] / world.text_dim
    return Maps(*(array.astype(np.float32) for array in (video, text, start, summary)))


def generate(world: Any, folder: str | os.PathLike) -> pathlib.Path:
    """Writes the world's annotations and features into `folder`, whole or not at all.

    Args:
        world: a World, or a config node with the same attributes.
        folder: gets `{split}.jsonl`, `video/{vid}.npz`, `text/qid{qid}.npz` and `world.json`.

    Returns:
        The folder's path. A folder that holds this very world already is left as it is.

    Raises:
        UserError: a parameter is out of range, or `folder` holds something else.
    """
    fields = dataclasses.fields(World)
    world = World(**{field.name: getattr(world, field.name) for field in fields})
    record = {'version': VERSION, **dataclasses.asdict(world)}
    return files.fill_once(folder, 'world.json', record, functools.partial(_write_world, world))


def _write_world(world: World, folder: pathlib.Path) -> None:
    maps = concept_maps(world)
    seen = set()
    qids = itertools.count()
    for split_id, split in enumerate(SPLITS, start=1):
        left = getattr(world, f'{split}_queries')
        with open(folder / f'{split}.jsonl', 'w', encoding='utf-8') as annotations:
            for index in itertools.count():
                if left == 0:
                    break
                # A stream per video, and no draw hangs on eos_rank, word_signal or a noise: worlds
                # that differ in these share sentences and windows, a controlled comparison.
                rng = np.random.default_rng([world.seed, split_id, index])
                sentences, scenes = _draw_video(rng, world, left > 1, seen)
                visible = _visibility(rng, world, scenes)
                vid = f'{split}_{index:05d}'
                clips = clip_features(rng, visible, maps.video, world.video_noise)
                save(folder / 'video', vid, features=clips)
                for sentence in sentences:
                    qid = next(qids)
                    row = {'qid': qid, 'query': ' '.join(sentence),
                           'duration': SALIENCY_SECONDS * len(visible), 'vid': vid,
                           **_annotate(rng, world, sentence, scenes, visible)}
                    annotations.write(json.dumps(row) + '\n')
                    rows = _text_features(rng, world, maps, sentence)
                    save(folder / 'text', f'qid{qid}', last_hidden_state=rows)
                left -= len(sentences)


# Videos


def _draw_video(rng, world, may_share, seen):
    """Draws a video's one or two sentences, adds them to `seen`, and its scenes from end to end."""
    several = rng.random() < world.multi_windows
    shared = rng.random() < world.shared_videos and may_share
    while True:
        sentence = draw_sentence(rng, world, seen)
        decoys = [swap_concepts(rng, sentence, 0, world.swaps) for _ in range(world.distractors)]
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


def _visibility(rng, world, scenes):
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


def _annotate(rng, world, sentence, scenes, visible):
    """Returns a query's windows, its relevant clips and three annotators' grades 0..4 of each."""
    ids = concept_ids(sentence)
    windows = [(scene.start, scene.end) for scene in scenes if set(scene.concepts) == set(ids)]
    clips = [clip for start, end in windows for clip in range(start, end)]
    share = visible[np.ix_(clips, ids)].mean(axis=1)
    opinions = world.annotator_noise * rng.standard_normal((len(clips), 3))
    grades = np.rint(4 * share[:, None] + opinions).clip(0, 4).astype(int)
    seconds = [[SALIENCY_SECONDS * start, SALIENCY_SECONDS * end] for start, end in windows]
    return {'relevant_clip_ids': clips, 'saliency_scores': grades.tolist(),
            'relevant_windows': seconds}


# Features


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scales float[..., D] to length one; zeros stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def normal_rows(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Returns normal noise float32[rows, width], rows having a length of about 1."""
    return rng.standard_normal((rows, width), dtype=np.float32) / np.float32(math.sqrt(width))


def clip_features(rng: np.random.Generator, strengths: np.ndarray, vectors: np.ndarray,
                  noise: float) -> np.ndarray:
    """Returns [T, D]: the sums of vectors[K, D] by strengths[T, K], normalised, and noise."""
    # No matmul: on such small arrays the threads of BLAS cost more than they save, and they are
    # free to round in another order from run to run.
    clean = unit(np.einsum('tk,kd->td', strengths.astype(np.float32), vectors))
    return clean + noise * normal_rows(rng, *clean.shape)


def _text_features(rng, world, maps, sentence):
    """Returns [L + 2, text_dim] in the CLIP layout: start-of-text, words, [EOS]."""
    vectors = maps.text[[WORD_IDS[word] for word in sentence]]
    around = np.pad(vectors, ((1, 1), (0, 0)))
    words = unit(vectors + world.context / 2 * (around[:-2] + around[2:]))
    noise = normal_rows(rng, len(sentence) + 1, world.text_dim)
    words = unit(world.word_signal * words + (1 - world.word_signal) * noise[1:])
    summary = unit(maps.text[list(concept_ids(sentence))].sum(axis=0) @ maps.summary)
    eos = summary + (world.eos_noise if world.eos_rank else 1) * noise[0]
    return np.concatenate([maps.start[None], words, eos[None]])


# Files


def save(folder: pathlib.Path, name: str, **arrays: np.ndarray) -> None:
    """Writes `{name}.npz` with the arrays as float16."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f'{name}.npz', **{k: array.astype(np.float16) for k, array in arrays.items()})

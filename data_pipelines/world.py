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
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_pipelines import files, film, pictures, progress, scenes
from data_pipelines.errors import UserError
from data_pipelines.sentences import CONCEPTS, WORD_IDS, concept_ids

VERSION = 1  # recorded beside the parameters: raise it when the same ones begin to give other data
SPLITS = ('train', 'val', 'test')
PIXELS = 'encoder', 'attribute_swaps', 'camera_noise'  # parameters that pictures add


@dataclasses.dataclass(frozen=True)
class World:
    """Parameters of the generated world; a noise is the length of what is added to unit vectors."""

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
    encoder: str = ''  # folder of the CLIP that reads pictures of the world; '': planted features
    attribute_swaps: float = 0.0  # share of distractors that exchange a query's attributes
    camera_noise: float = pictures.NOISE

    def __post_init__(self):
        # Each scene needs a clip, and one before the next.
        most_scenes = scenes.MAX_WINDOWS + 2 * self.distractors + 1
        limits = {
            'video_dim': (1, math.inf),
            'text_dim': (1, math.inf),
            'min_clips': (2 * most_scenes - 1, self.max_clips),
            'min_concepts': (2, self.max_concepts),
            'max_concepts': (2, 10),
            'shared_videos': (0, 1 if self.distractors else 0),
            'multi_windows': (0, 1),
            'distractors': (0, scenes.MAX_WINDOWS),
            'swaps': (0, 0.5),
            'extras': (0, 1),
            'topic_size': (0, len(CONCEPTS)),
            'topic_weight': (1, math.inf),
            'faintest': (0, 1),
            'word_signal': (0, 1),
            'eos_rank': (0, self.text_dim),
            'attribute_swaps': (0, 1 if self.encoder else 0),
            'camera_noise': (0, 255),
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


def concept_maps(world: World) -> Maps:
    """Returns the Maps of a world; with another eos_rank, only `summary` is another one."""
    rng = np.random.default_rng([world.seed, 0])
    video = unit(rng.standard_normal((len(CONCEPTS), world.video_dim)))
    text = unit(rng.standard_normal((len(WORD_IDS), world.text_dim)))
    start = unit(rng.standard_normal(world.text_dim))
    down, up = rng.standard_normal((2, world.text_dim, world.text_dim))
    summary = down[:, :world.eos_rank] @ up[:world.eos_rank] / world.text_dim
    return Maps(*(array.astype(np.float32) for array in (video, text, start, summary)))


def parameters(world: World) -> dict[str, Any]:
    """The world as a section of the config; of a planted one without what pictures add."""
    return {name: value for name, value in dataclasses.asdict(world).items()
            if world.encoder or name not in PIXELS}


def read(section: Any) -> World:
    """The World of a section of the config, or of anything with its attributes.

    Raises:
        UserError: a parameter is out of range.
    """
    return World(**{field.name: getattr(section, field.name, field.default)
                    for field in dataclasses.fields(World)})


def generate(world: Any, folder: str | os.PathLike, encode: Any = None) -> pathlib.Path:
    """Writes the world's annotations and features into `folder`, whole or not at all.

    Args:
        world: a World, or a config node with the same attributes.
        folder: gets `{split}.jsonl`, `video/{vid}.npz`, `text/qid{qid}.npz` and `world.json`; with
            `encode` its streams' folders, and `features.json`.
        encode: what world.encoder names; encodes the frame in the middle of each clip, and the
            sentences. `encode_video(pictures) -> [float32[T, D]]`, `encode_text(sentences) ->
            [float32[L, d] of each]`, `recipe`, as encoders.encoder.Encoder.

    Returns:
        The folder's path. A folder that holds this very world already is left as it is.

    Raises:
        UserError: a parameter is out of range, or `folder` holds something else.
    """
    world = read(world)
    record = {'version': VERSION, **parameters(world)}
    if encode:  # by its weights, wherever these are
        del record['encoder']
        record |= {f'recipe.{name}': value for name, value in encode.recipe.flat().items()}
    return files.fill_once(
        folder, 'world.json', record, functools.partial(_write_world, world, encode))


def _write_world(world: World, encode: Any, folder: pathlib.Path) -> None:
    if encode:
        video_dir, text_dir = encode.recipe.streams[0].folder, encode.recipe.text.folder
        size = encode.recipe.streams[0].size
    else:
        video_dir, text_dir = 'video', 'text'
    records = {split: [] for split in SPLITS}
    total = sum(getattr(world, f'{split}_queries') for split in SPLITS)
    with progress.Bar('generating the world', total, 'queries') as bar:
        for video in videos(world):
            clips = video.planted
            if encode:
                times = film.middles(len(clips))
                [clips] = encode.encode_video(film.frames(video, times, size, world.camera_noise))
            save(folder / video_dir, video.name, features=clips)
            for record, rows in video.queries:
                records[video.split].append(record)
                if not encode:
                    save(folder / text_dir, f'qid{record["qid"]}', last_hidden_state=rows)
            bar.advance(len(video.queries))
    if encode:
        queries = [record for split in SPLITS for record in records[split]]
        texts = encode.encode_text([query['query'] for query in queries])
        for query, rows in zip(queries, texts, strict=True):
            save(folder / text_dir, f'qid{query["qid"]}', last_hidden_state=rows)
        encode.recipe.write(folder)
    for split in SPLITS:
        files.write_jsonl(folder / f'{split}.jsonl', records[split])


def videos(world: World) -> Iterator[scenes.Video]:
    """Draws the world's videos, split by split."""
    maps = concept_maps(world)
    seen = set()
    qids = itertools.count()
    for split_id, split in enumerate(SPLITS, start=1):
        left = getattr(world, f'{split}_queries')
        for index in itertools.count():
            if left == 0:
                break
            # A stream per video, and no draw hangs on eos_rank, word_signal or a noise: worlds
            # that differ in these share sentences and windows, a controlled comparison. Features
            # are drawn where pictures replace them, too: so do a planted world and its pictures.
            seed = world.seed, split_id, index
            rng = np.random.default_rng(seed)
            sentences, stretches = scenes.draw_video(rng, world, left > 1, seen)
            visible = scenes.visibility(rng, world, stretches)
            name = f'{split}_{index:05d}'
            clips = clip_features(rng, visible, maps.video, world.video_noise)
            queries = []
            for sentence in sentences:
                record = {'qid': next(qids), 'query': ' '.join(sentence),
                          'duration': scenes.CLIP_SECONDS * len(visible), 'vid': name,
                          **scenes.annotate(rng, world, sentence, stretches, visible)}
                queries.append((record, text_features(rng, world, maps, sentence)))
            yield scenes.Video(name, split, seed, stretches, visible, clips, queries)
            left -= len(queries)


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


def text_features(rng: np.random.Generator, world: World, maps: Maps, sentence: tuple[str, ...]
                  ) -> np.ndarray:
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

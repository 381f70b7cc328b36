"""Stand-in features for real annotation files, by the rules of the planted world."""

import collections
import functools
import hashlib
import math
import pathlib
import string
from collections.abc import Iterable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines import annotations, files, progress, release, world
from data_pipelines.annotations import Query
from data_pipelines.errors import UserError
from data_pipelines.tokens import TEXT_LAYOUTS

STOP_WORDS = frozenset("""
    a an and are as at be been being by can for from had has have he her hers him his how i in into
    is it its me my of off on onto or our out over she so some than that the their them then there
    these they this those through to too under up us was we were what when where which while who
    will with you your""".split())
STANDIN_EOS_RANK = 32


def run(values: Any, config: ConfigDict) -> None:
    """Mode `simulate`: writes features that the config then reads; takes no flags.

    Raises:
        UserError: as `simulate`.
    """
    print(f'stand-in features in {simulate(config.data, config.seed)}')


def simulate(data: Any, seed: int, *, video_noise: float = 0.5, eos_noise: float = 0.3
             ) -> pathlib.Path:
    """Writes features for the real queries of annotation files, by the rules of the planted world.

    A concept is a lower-cased word without punctuation that is no stop word. Clips in a query's
    windows show its concepts, more where the annotators' mean saliency is higher; some other
    stretch shows half of them; all clips show random words of the file's other queries. Where every
    clip has a `label`, a video has as many clips, which show the concepts as their labels say. A
    query without either (a hidden test set) plants nothing but that stretch.

    Args:
        data: the section of the config. Its root gets a file for each video, stream and part, one
            for each query, and `standin.json`. The annotation files stay where they are:
            `standin.json` names each with its SHA-256.
        seed: of all draws.
        video_noise: length of what is added to the unit vectors of clips.
        eos_noise: length of what is added to those of [EOS].

    Returns:
        The folder's path. A folder that holds this very stand-in already is left as it is.

    Raises:
        UserError: a config value or record that we cannot use, no annotation file, or the folder
            holds something else.
    """
    release.check_options(data)
    settings = dict(
        video_dims=dict(zip(data.video_dirs, data.video_dims, strict=True)), text_dim=data.text_dim,
        layout=data.text_layout, clip_length=data.clip_length, seed=seed, limit=data.limit,
        domain=data.domain, text_folder=data.text_dir, text_key=data.text_key,
        video_parts=list(data.video_parts), duration_unit=data.duration_unit,
        video_noise=video_noise, eos_noise=eos_noise,
    )
    paths = {split: path.resolve() for split, path in annotations.annotation_files(data).items()}
    for split, path in paths.items():
        if not path.is_file():
            raise UserError(f'{path}: no annotation file of split {split!r} (data.annotations; '
                            'annotations=FOLDER after the config names the folder)')
    sources = {split: {'file': str(path), 'sha256': hashlib.sha256(path.read_bytes()).hexdigest()}
               for split, path in paths.items()}
    record = {'version': world.VERSION, **settings, 'annotations': sources}
    splits = dict.fromkeys(annotations.first_of_file(data).values())
    return files.fill_once(data.root, 'standin.json', record,
                           functools.partial(_write_standin, data, settings, splits))


def _read_queries(data: Any, split: str) -> list[Query]:
    """Reads a split's queries; raises UserError if there is none or one is no file name."""
    path = annotations.annotation_file(data, split)
    queries = annotations.read_split(data, split)
    if not queries:
        raise UserError(f'{path}: no record')
    for query in queries:
        if not files.is_file_name(query.vid):
            raise UserError(f'{path}:{query.line}: vid is {query.vid!r}, expected a name '
                            'without folders')
    return queries


def _write_standin(data: Any, settings: dict, splits: Iterable[str], folder: pathlib.Path) -> None:
    videos = collections.defaultdict(list)
    vocabulary_of = {}
    for split in splits:
        queries = _read_queries(data, split)
        vocabulary = sorted({word for query in queries for word in _content(query.query)})
        for query in queries:
            vocabulary_of.setdefault(query.vid, vocabulary)
            videos[query.vid].append(query)
    # Vectors that fall out of the cache are made again: memory does not grow with the vocabulary.
    vector = functools.lru_cache(maxsize=4096)(functools.partial(_hashed_vector, settings['seed']))
    n_clips = 0
    for vid, queries in progress.track(videos.items(), 'simulating', 'videos'):
        rng = _hashed_rng(settings['seed'], 'video', vid)
        clip_length, label = settings['clip_length'], queries[0].label
        seconds = max(query.duration for query in queries)
        clips = math.ceil(seconds / clip_length) if label is None else len(label)
        edges = clip_length * np.arange(clips + 1)
        shown, strengths = _show_queries(rng, queries, vocabulary_of[vid], edges)
        for stream, width in settings['video_dims'].items():
            vectors = np.stack([sum((vector(stream, word, width) for word in words),
                                    start=np.zeros(width, np.float32)) for words in shown])
            rows = world.clip_features(rng, strengths, vectors, settings['video_noise'])
            parts = settings['video_parts']
            for part, columns in zip(parts, np.array_split(rows, len(parts), axis=1)):
                world.save(folder / stream, vid + part, features=columns)
        for query in queries:
            world.save(folder / settings['text_folder'], f'qid{query.qid}',
                       **{settings['text_key']: _standin_text(vector, query, settings)})
        n_clips += clips
    n_queries = sum(map(len, videos.values()))
    print(f'wrote features of {len(videos)} videos ({n_clips} clips) and {n_queries} queries')


def _show_queries(rng, queries, vocabulary, edges):
    """Returns what clips between `edges` (seconds) show: K lists of words and float[T, K]."""
    clips = len(edges) - 1
    planted = [_planted_strength(query, edges) for query in queries]
    free = np.flatnonzero(np.sum(planted, axis=0) == 0)
    shown, strengths = [], []
    for query, strength in zip(queries, planted, strict=True):
        words = _content(query.query)
        rng.shuffle(words)
        decoy = np.zeros(clips)
        if free.size:
            first = rng.integers(free.size)
            decoy[free[first:first + 1 + rng.integers(clips // 4 + 1)]] = 1
        half = math.ceil(len(words) / 2)
        shown += [words[:half], words[half:]]
        strengths += [strength, strength + decoy]
    quiet = 1 - np.max(planted, axis=0) / 2  # the background is fainter where a query is shown
    end = 0
    while end < clips:
        begin, end = end, end + int(rng.integers(2, 9))
        shown.append([vocabulary[i] for i in rng.integers(len(vocabulary), size=4)])
        strengths.append(np.zeros(clips))
        strengths[-1][begin:end] = quiet[begin:end]
    return shown, np.stack(strengths, axis=1)


def _planted_strength(query, edges):
    """Returns how strongly clips show a query: float[T] in 0..1; ungraded clips count as 4."""
    if query.label is not None:
        grades = query.label.mean(axis=1, dtype=np.float64)[:len(edges) - 1]
        scaled = (grades - grades.min()) / (np.ptp(grades) or 1)
        return np.pad(scaled, (0, len(edges) - 1 - len(scaled)))
    share = np.zeros(len(edges) - 1)
    for start, end in query.windows:
        overlap = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
        share += np.maximum(overlap, 0) / np.diff(edges)
    grades = np.full(len(share), 4.0)
    if query.clip_scores is not None:
        grades[query.clip_ids] = query.clip_scores.mean(axis=1, dtype=np.float64)
    return np.minimum(share, 1) * (4 + grades) / 8


def _standin_text(vector, query, settings):
    """Returns text rows [R, text_dim] as the layout prescribes; [EOS] is a low-rank summary."""
    width, layout = settings['text_dim'], TEXT_LAYOUTS[settings['layout']]
    rng = _hashed_rng(settings['seed'], 'text', query.qid)
    prompt = [vector('prompt', str(i), width) for i in range(layout.start)]
    words = [vector('text', _plain(word), width) for word in query.query.split()]
    if not layout.has_eos:
        return np.stack([*prompt, *words])
    code = sum(vector('summary', word, STANDIN_EOS_RANK) for word in _content(query.query))
    basis = np.stack([vector('basis', str(i), width) for i in range(STANDIN_EOS_RANK)])
    eos = world.unit(np.einsum('k,kd->d', code, basis))
    eos = eos + settings['eos_noise'] * world.normal_rows(rng, 1, width)[0]
    return np.stack([*prompt, *words, eos])


def _plain(word):
    return word.lower().strip(string.punctuation)


def _content(sentence):
    """Returns a sentence's different words without stop words; all if there are no others."""
    words = list(dict.fromkeys(_plain(word) for word in sentence.split()))
    return [word for word in words if word and word not in STOP_WORDS] or words


def _hashed_rng(*key):
    """Returns a generator that is the same in every process and whatever was drawn before."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()))


def _hashed_vector(seed, space, word, width):
    return world.unit(_hashed_rng(seed, space, word).standard_normal(width, dtype=np.float32))

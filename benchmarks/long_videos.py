"""Long videos with known answers: how R1 and mAP fall as a video grows.

    python -m benchmarks.long_videos --workdir runs/synthetic [--queries 300] [--counts 1,2,4]

A long video is a query's own video of the generated world amid others of its split, end to end. The
run in --workdir is one of configs/synthetic.py, trained on single ones. It reads the long ones

    whole      as one input, longer than any that it was trained on
    alone      in stretches, their scores as they are
    saliency   in stretches, weighted by the sigmoid of their best saliency: without an encoder
    cosine     in stretches, weighted by their best cosine of clip and sentence. For an encoder
               stands the world's own map of concepts, with noise of length --noise to unit vectors

Then it tells where it fails at the greatest length: by how many concepts a query names, and whether
the best window lies in the query's own video at all. Last, the saliency's sigmoid in single videos.
"""

import dataclasses
import json
import pathlib

import numpy as np
from scipy.special import expit

from benchmarks import common
from data_pipelines import datasets, files, sentences, world
from dualground_jax.config import load_config
from dualground_jax.grounding import stretches
from dualground_jax.grounding.predictor import Moments, Predictor
from dualground_jax.metrics import official, tables

WHOLE = 8  # videos, at most, that are read as one input: attention grows with the square
METRICS = 'R1@0.5', 'R1@0.7', 'mAP'


@dataclasses.dataclass
class Long:
    """A long video and a query.

    Attributes:
        clips: float32[T, D].
        query: number of the query in the split.
        own: first clip and end of the query's own video.
    """

    clips: np.ndarray
    query: int
    own: tuple[int, int]


def make_long(split: datasets.Split, query: int, count: int) -> Long:
    """The query's video amid count - 1 others."""
    rng = np.random.default_rng([query, count])
    own = split.video_index[query]
    others = rng.choice(np.delete(np.arange(len(split.videos)), own), count - 1, replace=False)
    place = int(rng.integers(count))
    videos = [split.videos[i] for i in (*others[:place], own, *others[place:])]
    start = sum(map(len, videos[:place]))
    return Long(np.concatenate(videos), query, (start, start + len(videos[place])))


def truth(split: datasets.Split, long: Long, clip_length: float) -> dict:
    """The annotation of a long video's query in the official format."""
    query = split.queries[long.query]
    return dict(qid=query.qid, query=query.query, vid=query.vid,
                duration=len(long.clips) * clip_length,
                relevant_windows=(query.windows + long.own[0] * clip_length).tolist())


class Encoder:
    """Sentences as unit vectors [D] in the space of clips, as CLIP would have them."""

    def __init__(self, root: str, noise: float):
        record = json.loads(pathlib.Path(root, 'world.json').read_text())
        record.pop('version')
        self.vectors = world.concept_maps(world.World(**record)).video
        self.noise = noise

    def __call__(self, sentence: str) -> np.ndarray:
        ids = list(sentences.concept_ids(sentence.split()))
        vector = world.unit(self.vectors[ids].sum(0))
        rng = np.random.default_rng(ids)
        return world.unit(vector + self.noise * world.normal_rows(rng, 1, len(vector))[0])


def ground(predictor: Predictor, split: datasets.Split, longs: list[Long], encoder: Encoder
           ) -> dict[str, list[Moments]]:
    """The moments of each long video's query, by each way of reading it in stretches."""
    data = predictor.config.data
    found = dict(alone=[], saliency=[], cosine=[])
    for long in longs:
        n_clips, text = len(long.clips), (split.text[long.query], split.roles[long.query])
        read = [values[0] for values in predictor.read_stretches(
            long.clips, [text], n_clips * data.clip_length)]
        best = stretches.best_of_each(
            long.clips @ encoder(split.queries[long.query].query),
            stretches.starts(n_clips, data.max_clips), data.max_clips)
        for name, weights in dict(alone=np.ones(len(best)), saliency=None, cosine=best).items():
            found[name].append(predictor.fuse(*read, n_clips, weights))
    return found


def as_whole(workdir: str, split: datasets.Split, longs: list[Long]) -> list[Moments]:
    """The moments of each long video's query, each video read as one input."""
    longest = max(len(long.clips) for long in longs)
    predictor = Predictor.from_checkpoint(
        workdir, load_config(workdir, {'data.max_clips': longest}))
    clip_length = predictor.config.data.clip_length
    return [predictor.fuse(*(values[0] for values in predictor.read_stretches(
        long.clips, [(split.text[long.query], split.roles[long.query])],
        len(long.clips) * clip_length)), len(long.clips)) for long in longs]


def score(moments: list[Moments], truths: list[dict], clip_length: float) -> dict[str, float]:
    """R1 and mAP, percent."""
    rows = [dict(qid=row['qid'], query=row['query'], vid=row['vid'],
                 pred_relevant_windows=found.windows.astype(float).tolist())
            for row, found in zip(truths, moments, strict=True)]
    brief = official.evaluate(rows, truths, 'synthetic', clip_length)['brief']
    return {name: brief[f'MR-full-{name}'] for name in METRICS}


def failures(split: datasets.Split, longs: list[Long], truths: list[dict],
             found: dict[str, list[Moments]], clip_length: float) -> str:
    """A table of kinds of queries: how many, how often the video is found, and the moment in it."""
    named = [len(sentences.concept_ids(row['query'].split())) for row in truths]
    single = [len(row['relevant_windows']) == 1 for row in truths]
    kinds = {
        'of 2 to 4 concepts': [n <= 4 for n in named],
        'of 5 to 7 concepts': [4 < n <= 7 for n in named],
        'of 8 to 10 concepts': [n > 7 for n in named],
        'with one window': single, 'with several windows': [not one for one in single],
    }
    rows = []
    for kind, chosen in kinds.items():
        places = np.flatnonzero(chosen)
        if not len(places):
            continue
        cells = [kind, len(places)]
        for moments in found.values():
            inside = [long.own[0] <= moments[i].windows[0][:2].mean() / clip_length < long.own[1]
                      for i, long in ((i, longs[i]) for i in places)]
            scores = score([moments[i] for i in places], [truths[i] for i in places], clip_length)
            cells += [f'{100 * np.mean(inside):.0f}', f'{scores["R1@0.5"]:.0f}']
        rows.append(cells)
    titles = [f'{name}, {what}' for name in found for what in ('video', 'R1@0.5')]
    return tables.markdown(['queries', 'number', *titles], rows)


def sigmoids(predictor: Predictor, split: datasets.Split, queries: int) -> str:
    """Quartiles of the saliency's sigmoid of clips in single videos: of the moment, others, and by
    a sentence of another video.
    """
    clip_length = predictor.config.data.clip_length
    found = {'clips of the moment': [], 'other clips': [],
             "clips, by another video's sentence": []}
    for i in range(queries):
        other = (i + queries // 2) % queries
        own, wrong = predictor.predict(
            [split.videos[split.video_index[i]]], [split.text[i], split.text[other]])
        times = (np.arange(len(own.saliency)) + 0.5) * clip_length
        inside = np.any([(start <= times) & (times < end)
                         for start, end in split.queries[i].windows], 0)
        for values, into in zip((own.saliency[inside], own.saliency[~inside], wrong.saliency),
                                found.values()):
            into += expit(values).tolist()
    return tables.markdown(
        ('sigmoid', 'lower quartile', 'median', 'upper quartile'),
        [(name, *(f'{value:.3f}' for value in np.percentile(values, (25, 50, 75))))
         for name, values in found.items()])


def main() -> None:
    args = common.arguments(__doc__, workdir=str, split='test', root='', queries=300,
                            counts='1,2,4,8,16,32', noise=0.0, output='')
    predictor = Predictor.from_checkpoint(args.workdir)
    data = predictor.config.data.copy_and_resolve_references()
    data.root = args.root or data.root
    split = datasets.load_split(data, args.split)
    encoder, rows, report = Encoder(data.root, args.noise), [], {}
    for count in map(int, args.counts.split(',')):
        longs = [make_long(split, query, count)
                 for query in range(min(args.queries, len(split.queries)))]
        truths = [truth(split, long, data.clip_length) for long in longs]
        found = ground(predictor, split, longs, encoder)
        if count <= WHOLE:
            found = dict(whole=as_whole(args.workdir, split, longs)) | found
        scores = {name: score(moments, truths, data.clip_length)
                  for name, moments in found.items()}
        clips = np.mean([len(long.clips) for long in longs])
        report[count] = dict(clips=clips, scores=scores)
        cells = [' / '.join(f'{value:.1f}' for value in scores[name].values())
                 if name in scores else '–' for name in ('whole', 'alone', 'saliency', 'cosine')]
        rows.append([count, f'{clips * data.clip_length / 60:.1f}', *cells])
        print(tables.markdown(('videos', 'minutes', 'whole', 'alone', 'saliency', 'cosine'), rows),
              flush=True)
    print(failures(split, longs, truths, found, data.clip_length))
    print(sigmoids(predictor, split, min(args.queries, len(split.queries))))
    if args.output:
        files.write_json(args.output, report)


if __name__ == '__main__':
    main()

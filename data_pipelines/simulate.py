"""Stand-in features for real annotation files, by the rules of the planted world."""

import collections
import functools
import hashlib
import json
import math
import pathlib
import string

import numpy as np

from data_pipelines import annotations, files, world
from data_pipelines.errors import UserError
from data_pipelines.features import TEXT_KEY
from data_pipelines.tokens import TEXT_LAYOUTS

STOP_WORDS = frozenset("""
    a an and are as at be been being by can for from had has have he her hers him his how i in into
    is it its me my of off on onto or our out over she so some than that the their them then there
    these they this those through to too under up us was we were what when where which while who
    will with you your""".split())
STANDIN_EOS_RANK = 32


def simulate(annotations, folder, *, video_dims, text_dim, layout, clip_length, seed, limit=0,
             domain='', text_folder='text', text_key=TEXT_KEY, video_parts=('',), duration_unit=1.0,
             video_noise=0.5, eos_noise=0.3):
    """Writes features for the real queries of annotation files, by the rules of the planted world.

    A concept is a lower-cased word without punctuation that is no stop word. Clips in a query's
    windows show its concepts, more where the annotators' mean saliency is higher; some other
    stretch shows half of them; all clips show random words of the file's other queries. Where every
    clip has a `label`, a video has as many clips, which show the concepts as their labels say. A
    query without either (a hidden test set) plants nothing but that stretch.

    Args:
        annotations: {split: path of a jsonl file}. They stay where they are: `standin.json` in the
            folder names each with its SHA-256.
        folder: gets `{stream}/{vid}{part}.npz`, `{text_folder}/qid{qid}.npz` and `standin.json`.
        video_dims: {stream: width}.
        layout: key of TEXT_LAYOUTS.
        clip_length: seconds.
        limit: use the first `limit` records of each file; 0: all.
        domain: use only the records of this domain; '': all.
        text_key: name of a query's array.
        video_parts: ends of the names of the files that a stream's columns are spread over.
        duration_unit: seconds that a 1 in the field `duration` stands for.

    Returns:
        The folder's path. A folder that holds this very stand-in already is left as it is.

    Raises:
        UserError: an unknown layout, a record we cannot use, or `folder` holds something else.
    """
    if layout not in TEXT_LAYOUTS:
        raise UserError(f'layout is {layout!r}, expected one of {sorted(TEXT_LAYOUTS)}')
    settings = {'video_dims': dict(video_dims), 'text_dim': text_dim, 'layout': layout,
                'clip_length': clip_length, 'seed': seed, 'limit': limit, 'domain': domain,
                'text_folder': text_folder, 'text_key': text_key,
                'video_parts': list(video_parts), 'duration_unit': duration_unit,
                'video_noise': video_noise, 'eos_noise': eos_noise}
    paths = {split: pathlib.Path(path).resolve() for split, path in annotations.items()}
    for split, path in paths.items():
        if not path.is_file():
            raise UserError(f'{path}: no annotation file of split {split!r} (data.annotations; '
                            'annotations=FOLDER after the config names the folder)')
    sources = {split: {'file': str(path), 'sha256': hashlib.sha256(path.read_bytes()).hexdigest()}
               for split, path in paths.items()}
    record = {'version': world.VERSION, **settings, 'annotations': sources}
    distinct = list(dict.fromkeys(paths.values()))  # two splits may be one file
    return files.fill_once(folder, 'standin.json', record,
                      functools.partial(_write_standin, settings, distinct))


def run(values, config):
    """Writes stand-in features for the config's annotations."""
    print(f'stand-in features in {simulate_data(config.data, config.seed)}')


def simulate_data(data, seed):
    """Runs `simulate` for a config's `data` section: features that it then reads."""
    return simulate(
        annotations.annotation_files(data), data.root,
        video_dims=dict(zip(data.video_dirs, data.video_dims, strict=True)),
        text_dim=data.text_dim, text_folder=data.text_dir, text_key=data.text_key,
        layout=data.text_layout, clip_length=data.clip_length, seed=seed, limit=data.limit,
        domain=data.domain, video_parts=data.video_parts, duration_unit=data.duration_unit)


def _write_standin(settings, paths, folder):
    videos = collections.defaultdict(list)
    vocabulary_of = {}
    for path in paths:
        records = _read_records(path, settings)
        vocabulary = sorted({word for record in records for word in _content(record['query'])})
        for record in records:
            vocabulary_of.setdefault(record['vid'], vocabulary)
            videos[record['vid']].append(record)
    # Vectors that fall out of the cache are made again: memory does not grow with the vocabulary.
    vector = functools.lru_cache(maxsize=4096)(
        functools.partial(_hashed_vector, settings['seed']))
    queries, clips_written = 0, 0
    for vid, records in videos.items():
        rng = _hashed_rng(settings['seed'], 'video', vid)
        clip_length = settings['clip_length']
        seconds = max(record['duration'] for record in records) * settings['duration_unit']
        clips = len(records[0].get('label') or ()) or math.ceil(seconds / clip_length)
        edges = clip_length * np.arange(clips + 1)
        shown, strengths = _show_queries(rng, records, vocabulary_of[vid], edges)
        for stream, width in settings['video_dims'].items():
            vectors = np.stack([sum((vector(stream, word, width) for word in words),
                                    start=np.zeros(width, np.float32)) for words in shown])
            features = world.clip_features(rng, strengths, vectors, settings['video_noise'])
            parts = settings['video_parts']
            for part, columns in zip(parts, np.array_split(features, len(parts), axis=1)):
                world.save(folder / stream, vid + part, features=columns)
        for record in records:
            rows = _standin_text(vector, record, settings)
            world.save(folder / settings['text_folder'], f'qid{record["qid"]}',
                  **{settings['text_key']: rows})
        queries += len(records)
        clips_written += clips
    print(f'wrote features of {len(videos)} videos ({clips_written} clips) and {queries} queries')


def _show_queries(rng, records, vocabulary, edges):
    """Returns what clips between `edges` (seconds) show: K lists of words and float[T, K]."""
    clips = len(edges) - 1
    planted = [_planted_strength(record, edges) for record in records]
    free = np.flatnonzero(np.sum(planted, axis=0) == 0)
    shown, strengths = [], []
    for record, strength in zip(records, planted, strict=True):
        words = _content(record['query'])
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


def _planted_strength(record, edges):
    """Returns how strongly clips show a query: float[T] in 0..1; ungraded clips count as 4."""
    if record.get('label'):
        grades = np.mean(record['label'], axis=1)[:len(edges) - 1]
        scaled = (grades - grades.min()) / (np.ptp(grades) or 1)
        return np.pad(scaled, (0, len(edges) - 1 - len(scaled)))
    share = np.zeros(len(edges) - 1)
    for start, end in record.get('relevant_windows') or ():
        overlap = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
        share += np.maximum(overlap, 0) / np.diff(edges)
    grades = np.full(math.ceil(edges[-1] / world.SALIENCY_SECONDS) + 1, 4.0)
    if record.get('relevant_clip_ids') and record.get('saliency_scores'):
        grades[record['relevant_clip_ids']] = np.mean(record['saliency_scores'], axis=1)
    middles = (edges[1:] + edges[:-1]) / 2
    return np.minimum(share, 1) * (4 + grades[(middles // world.SALIENCY_SECONDS).astype(int)]) / 8


def _standin_text(vector, record, settings):
    """Returns text rows [R, text_dim] as the layout prescribes; [EOS] is a low-rank summary."""
    width, layout = settings['text_dim'], TEXT_LAYOUTS[settings['layout']]
    rng = _hashed_rng(settings['seed'], 'text', record['qid'])
    prompt = [vector('prompt', str(i), width) for i in range(layout.start)]
    words = [vector('text', _plain(word), width) for word in record['query'].split()]
    if not layout.has_eos:
        return np.stack([*prompt, *words])
    code = sum(vector('summary', word, STANDIN_EOS_RANK) for word in _content(record['query']))
    basis = np.stack([vector('basis', str(i), width) for i in range(STANDIN_EOS_RANK)])
    eos = world.unit(np.einsum('k,kd->d', code, basis))
    eos = eos + settings['eos_noise'] * world.normal_rows(rng, 1, width)[0]
    return np.stack([*prompt, *words, eos])


def _plain(word):
    return word.lower().strip(string.punctuation)


def _content(query):
    """Returns a query's different words without stop words; all of them if there are no others."""
    words = list(dict.fromkeys(_plain(word) for word in query.split()))
    return [word for word in words if word and word not in STOP_WORDS] or words


def _hashed_rng(*key):
    """Returns a generator that is the same in every process and whatever was drawn before."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()))


def _hashed_vector(seed, space, word, width):
    return world.unit(_hashed_rng(seed, space, word).standard_normal(width, dtype=np.float32))


def _read_records(path, settings):
    """Returns the records of an annotation file; UserError names file and line of a bad one."""
    records, domain = [], settings['domain']
    with open(path, encoding='utf-8') as lines:
        for number, line in enumerate(lines, start=1):
            if settings['limit'] and len(records) == settings['limit']:
                break
            try:
                record = json.loads(line)
                problem = _problem(record)
            except json.JSONDecodeError as error:
                problem = f'no JSON ({error}), expected a record'
            if problem:
                raise UserError(f'{path}:{number}: {problem}')
            if not domain or record.get('domain') == domain:
                records.append(record)
    if not records:
        raise UserError(f'{path}: no record' + f' of domain {domain!r}' * bool(domain))
    return records


def _problem(record):
    """Says in a line why features cannot be made for a record; '' if they can."""
    missing = [name for name in ('qid', 'query', 'vid', 'duration') if name not in record]
    if missing:
        return f'no field {missing[0]}, expected qid, query, vid and duration'
    for name in ('qid', 'vid'):  # both become file names
        if pathlib.PurePath(str(record[name])).name != str(record[name]):
            return f'{name} is {record[name]!r}, expected a name without folders'
    if not record['query'].split():
        return f'query is {record["query"]!r}, expected words'
    if not 0 < record['duration'] < math.inf:
        return f'duration is {record["duration"]}, expected a positive number of seconds'
    return ''

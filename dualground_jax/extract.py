"""Mode `extract`: from videos and sentences to the feature files that a model reads.

ROOT/STREAM/VID.npz has the rows of a video, ROOT/text/qidQID.npz those of a sentence, and
ROOT/features.json how they were made. What is there is not made again, so that the same command
goes on where it was cut off. Several machines share the videos out: as the processes of one
`jax.distributed` job, or as workers of Apache Beam.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, TypeVar

import jax
import numpy as np
from absl.flags import FlagValues
from ml_collections import ConfigDict

from data_pipelines import beam as beam_lib
from data_pipelines import decoding, features, files, progress, recipe
from data_pipelines.annotations import check_sentence
from data_pipelines.decoding import Job
from data_pipelines.errors import ConfigError, DataError, UserError
from dualground_jax import runtime, sharding
from dualground_jax.encoders import encoder as encoder_lib
from dualground_jax.encoders.encoder import TEXT, Encoder, Stream

# Of files in a folder of videos; a list of paths may name others.
SUFFIXES = ('.mp4', '.mkv', '.webm', '.avi', '.mov', '.m4v', '.mpg', '.mpeg', '.ts', '.m2ts',
            '.wmv', '.flv', '.3gp', '.ogv', '.mxf', '.vob')
SENTENCES = 256  # that are encoded before their files are written
BEAM_VIDEOS = 32  # of an element of Beam
T = TypeVar('T')
QUERY, SENTENCE = 'query', 'pooler_output'  # in a query's file, beside its rows
SOURCE = 'source'  # in a video's file: mark of the video that its rows are of
ENDS = 2**16  # bytes at the beginning and the end of a video that make its mark


@dataclasses.dataclass(frozen=True)
class Query:
    """A sentence to encode.

    Attributes:
        qid: as in the annotations.
        sentence: its text.
    """

    qid: int | str
    sentence: str


@dataclasses.dataclass
class Work:
    """What is to be made.

    Attributes:
        videos: by name; path '' where there is none.
        queries: of the annotations.
    """

    videos: list[Job]
    queries: list[Query]


def run(values: FlagValues, config: ConfigDict | None) -> None:
    """Extracts what --videos and --annotations name into --output.

    Raises:
        ConfigError, DataError: flags, annotations, weights or a folder that can't be used; nothing
            was extracted.
        UserError: some videos or queries failed; all others are extracted.
    """
    if not (values.videos or values.annotations) or not values.encoder:
        raise ConfigError('--mode=extract needs --encoder=clip=FOLDER and --videos=FOLDER or '
                          '--annotations=FILE')
    if values.beam and values.coordinator:
        raise ConfigError('--beam shares the videos out itself, without --coordinator')
    output = pathlib.Path(values.output)
    work = find_work(values.videos, values.annotations)
    settings = dict(
        streams=values.encoder, clip_frames=values.clip_frames, rule=values.rule,
        clip_length=values.clip_length or (0.0 if values.clip_frames else 2.0),
        dtype=values.encoder_dtype)
    mesh = sharding.make_mesh(ConfigDict(dict(data=-1, fsdp=1, model=1)), jax.local_devices())
    encoder = encoder_lib.load(**settings, mesh=mesh)
    if work.queries:
        encoder.encode_text([])  # can it?
    check_root(output, encoder)
    # Not of what is left: processes may not see the same files at the same time.
    own = slice(jax.process_index(), None, jax.process_count())
    work = Work(work.videos[own], work.queries[own])
    left = unfinished(output, encoder, work)
    absent = sum(not job.path for job in left.videos)
    print(f'{output}: {len(work.videos)} videos, {len(left.videos) - absent} to extract, {absent} '
          f'not found; {len(work.queries)} queries, {len(left.queries)} to extract')
    if values.dry_run:
        return
    runtime.first_alone(lambda: prepare(output, encoder))
    decoders = values.decoders or len(os.sched_getaffinity(0))
    if values.beam:
        failed = by_beam(values.beam, settings, left, output, decoders)
    else:
        failed = extract(encoder, left, output, decoders)
    if failed:
        raise UserError(f'{output}: {len(failed)} of {len(left.videos) + len(left.queries)} videos '
                        'and queries failed for the reasons above; the same command tries these '
                        'again')


# What is to be made


def find_work(videos: str | None, annotations: str | None) -> Work:
    """Lists videos and queries.

    Args:
        videos: a folder of videos, or a text file with a path on each line, from its own folder.
        annotations: annotation files, as 'a.jsonl,b.jsonl'; their videos are the ones wanted.

    Raises:
        DataError: two videos of one name, two sentences of one query, or files that can't be read.
    """
    found = _videos(pathlib.Path(videos)) if videos else {}
    queries, sentences, wanted = {}, {}, {}
    for path in filter(None, (annotations or '').split(',')):
        for number, row in enumerate(files.load_jsonl(path), start=1):
            where = f'{path}: record {number}'
            query = _query(row, where)
            check_sentence(sentences, query.qid, query.sentence, where)
            queries.setdefault(str(query.qid), query)
            wanted[row['vid']] = None
    jobs = [Job(vid, found.get(vid, '')) for vid in wanted or found] if videos else []
    return Work(jobs, list(queries.values()))


def _videos(source: pathlib.Path) -> dict[str, str]:
    """Name -> path of each video in a folder or list, sorted by name."""
    if source.is_dir():
        paths = [path for path in source.iterdir() if path.suffix.lower() in SUFFIXES]
    else:
        try:
            lines = source.read_text(encoding='utf-8').splitlines()
        except (OSError, ValueError) as error:
            raise DataError(f'{source}: expected a folder of videos, or a text file with a path on '
                            f'each line ({error})') from error
        paths = [source.parent / line.strip() for line in lines if line.strip()]
    found: dict[str, str] = {}
    for path in sorted(paths):
        if path.stem in found:
            raise DataError(f'{path}: a second video of the name {path.stem!r}, beside '
                            f'{found[path.stem]}')
        found[path.stem] = str(path)
    if not found:
        raise DataError(f'{source}: no videos, expected files that end in {", ".join(SUFFIXES)}, '
                        'or a text file with a path on each line')
    return dict(sorted(found.items()))


def _query(row: Mapping[str, Any], where: str) -> Query:
    """The query of an annotation record."""
    for field, kinds in dict(qid=(int, str), query=str, vid=str).items():
        value = row.get(field)
        if not isinstance(value, kinds) or isinstance(value, bool) or not str(value).strip():
            raise DataError(f'{where}: {field} is {files.short(value)}, expected '
                            + ('text' if kinds is str else 'a whole number or text'))
        if field != 'query' and not files.is_file_name(str(value)):
            raise DataError(f'{where}: {field} {files.short(value)} can\'t name a file')
    return Query(row['qid'], row['query'])


def unfinished(output: pathlib.Path, encoder: Encoder, work: Work) -> Work:
    """What of the work is not there yet."""
    videos = [job for job in work.videos
              if not all(_is_of(_file(output, stream, job), job) for stream in encoder.streams)]
    return Work(videos, [query for query in work.queries if not _is_written(output, query)])


def _file(output: pathlib.Path, stream: Stream, job: Job) -> pathlib.Path:
    return output / stream.record.folder / f'{job.vid}.npz'


def _is_of(path: pathlib.Path, job: Job) -> bool:
    """Whether there are rows of this very video, by its mark; rows of one that is gone count."""
    if not os.path.exists(job.path):
        return path.exists()
    return np.array_equal(_noted(path, SOURCE), _mark(job.path))


def _mark(path: str) -> np.ndarray:
    """Tells a video from others without reading all of it: int64[2], size and checksum of ENDS."""
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        start = file.read(ENDS)
        file.seek(max(size - ENDS, 0))
        return np.array([size, zlib.crc32(file.read(ENDS), zlib.crc32(start))])


def _noted(path: pathlib.Path, name: str) -> np.ndarray | None:
    """What a file has beside its rows; None if it has not, or is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return found[name]
    except (KeyError, *features.DAMAGE):
        return None


def _text_file(output: pathlib.Path, query: Query) -> pathlib.Path:
    return output / TEXT / f'qid{query.qid}.npz'


def _is_written(output: pathlib.Path, query: Query) -> bool:
    """Whether there are rows of this very sentence."""
    found = _noted(_text_file(output, query), QUERY)
    return found is not None and str(found) == query.sentence


# The folder


def check_root(output: pathlib.Path, encoder: Encoder) -> None:
    """Raises DataError if a folder holds features by another recipe, or by one that is unknown."""
    there = recipe.read(output)
    if there is None:
        for folder in _folders(output, encoder):
            if folder.is_dir() and any(folder.iterdir()):
                raise DataError(f'{folder}: holds features without {recipe.FILE}, expected another '
                                '--output')
    elif changed := recipe.differences(there, encoder.recipe):
        raise DataError(f'{output}: holds features by another recipe ({"; ".join(changed)}), '
                        'expected another --output')


def prepare(output: pathlib.Path, encoder: Encoder) -> None:
    """Makes the folders and features.json."""
    for folder in _folders(output, encoder):
        folder.mkdir(parents=True, exist_ok=True)
    encoder.recipe.write(output)


def _folders(output: pathlib.Path, encoder: Encoder) -> list[pathlib.Path]:
    names = [stream.record.folder for stream in encoder.streams]
    return [output / name for name in (*names, *[TEXT] * bool(encoder.recipe.text))]


# Extraction


def extract(encoder: Encoder, work: Work, output: pathlib.Path, decoders: int) -> dict[str, str]:
    """Extracts the work; goes on after a failure, and tells of it on stderr.

    Args:
        encoder: of all streams.
        work: what is not there yet.
        output: the prepared folder.
        decoders: processes that decode.

    Returns:
        Name of what failed -> why.
    """
    failed: dict[str, str] = {}

    def fail(name: str, reason: str) -> None:
        failed[name] = reason
        print(f'failed: {name}: {reason}', file=sys.stderr, flush=True)

    for job in work.videos:
        if not job.path:
            fail(job.vid, 'no video of this name in --videos')
    for stream in encoder.streams:
        jobs = [job for job in work.videos
                if job.vid not in failed and not _is_of(_file(output, stream, job), job)]
        for job, rows in encoded(stream, jobs, decoders, encoder.recipe.clip_length):
            try:
                if isinstance(rows, str):
                    raise DataError(rows)
                rows = encoder_lib.stored(rows, job.path)
                _write(_file(output, stream, job), **{
                    features.VIDEO_KEY: rows, SOURCE: _mark(job.path)})
            except DataError as error:
                fail(job.vid, str(error))
    with progress.Bar('encoding sentences', len(work.queries), 'queries') as bar:
        for part in _parts(work.queries, SENTENCES):
            try:
                _extract_text(encoder, part, output)
            except DataError:  # of one of them
                for query in part:
                    try:
                        _extract_text(encoder, [query], output)
                    except DataError as error:
                        fail(f'qid{query.qid}', str(error))
            bar.advance(len(part))
    return failed


def _extract_text(encoder: Encoder, queries: Sequence[Query], output: pathlib.Path) -> None:
    sentences = [query.sentence for query in queries]
    rows, wholes = encoder.encode_text(sentences), encoder.encode_sentences(sentences)
    for query, own, whole in zip(queries, rows, wholes, strict=True):
        _write(_text_file(output, query), **{
            features.TEXT_KEY: own, SENTENCE: whole, QUERY: np.array(query.sentence)})


def _write(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """Writes a file, which is there as a whole or not at all; numbers as STORED."""
    arrays = {name: x.astype(encoder_lib.STORED) if x.dtype.kind == 'f' else x
              for name, x in arrays.items()}
    with files.whole_files(path) as (temporary,), open(temporary, 'wb') as file:
        np.savez(file, **arrays)


def encoded(stream: Stream, jobs: Sequence[Job], decoders: int, clip_length: float
            ) -> Iterator[tuple[Job, np.ndarray | str]]:
    """Decodes and encodes videos, in batches of one size that they share.

    Args:
        stream: that makes the rows.
        jobs: the videos.
        decoders: processes that decode.
        clip_length: seconds, to tell how fast it goes; 0: unknown.

    Yields:
        (job, float32[T, width]) where a video is complete, (job, reason) where it failed.
    """
    start, clips = time.monotonic(), 0
    # In all the rings there are two batches, so that decoding goes on while one is encoded.
    events = decoding.decoded(jobs, stream.decode, stream.shape, workers=decoders,
                              slots=max(2, 2 * stream.batch_size // decoders))
    with (contextlib.closing(events),
          progress.Bar(f'extracting {stream.record.folder}', len(jobs), 'videos') as bar):
        for job, rows in _in_batches(events, stream):
            yield job, rows
            clips += 0 if isinstance(rows, str) else len(rows)
            minutes = clips * clip_length / 60 / max(time.monotonic() - start, 1e-9)
            bar.advance(note=f'{minutes:.2f} minutes of video/s' if clip_length else None)


@dataclasses.dataclass(eq=False)
class _Video:
    """A video on its way: how many pictures are in batches, and the rows that came back."""

    job: Job
    pictures: int = 0
    rows: list[np.ndarray] = dataclasses.field(default_factory=list)
    reason: str = ''  # that it failed


def _in_batches(events: Iterable[tuple[Job, np.ndarray | str | None]], stream: Stream
                ) -> Iterator[tuple[Job, np.ndarray | str]]:
    """Encodes what `decoding.decoded` yields; a batch is filled while the one before is encoded."""
    videos: dict[Job, _Video] = {}
    ended: list[_Video] = []

    def batches() -> Iterator[tuple[list[_Video], futures.Future]]:
        owners, batch = [], np.empty((stream.batch_size, *stream.shape), np.uint8)
        for job, event in events:
            if event is None:
                videos[job] = _Video(job)
            elif isinstance(event, str):
                videos[job].reason = event
                ended.append(videos.pop(job))
            else:
                batch[len(owners)] = event
                owners.append(videos[job])
                videos[job].pictures += 1
                if len(owners) == len(batch):
                    yield owners, device.submit(stream.encode, batch)
                    owners, batch = [], np.empty_like(batch)
        if owners:
            yield owners, device.submit(stream.encode, batch[:len(owners)])

    def complete() -> Iterator[tuple[Job, np.ndarray | str]]:
        for video in [*ended]:
            if video.reason or len(video.rows) == video.pictures:
                ended.remove(video)
                width = stream.record.width
                yield video.job, video.reason or np.array(video.rows).reshape(-1, width)

    with futures.ThreadPoolExecutor(1) as device:
        for owners, rows in runtime.one_ahead(batches()):
            for owner, row in zip(owners, rows.result(), strict=True):
                owner.rows.append(row)
            yield from complete()
        yield from complete()


# Several machines


def by_beam(options: str, settings: Mapping[str, Any], work: Work, output: pathlib.Path,
            decoders: int) -> dict[str, str]:
    """Extracts the work on Apache Beam, some videos at a time; `output` is seen by its workers.

    Args:
        options: of Beam, as in 'runner=DirectRunner'.
        settings: of `encoder.load`.
        work: as of `extract`, as are the others and what is returned.
        output: the prepared folder.
        decoders: processes that decode, of each worker.
    """
    pipeline_options = beam_lib.options(options)
    import apache_beam as beam

    class Extract(beam.DoFn):
        """Extracts some work; yields what failed."""

        def setup(self):
            self.encoder = encoder_lib.load(**settings)

        def process(self, part):
            yield from extract(self.encoder, part, output, decoders).items()

    parts = [Work(list(part), []) for part in _parts(work.videos, BEAM_VIDEOS)]
    parts += [Work([], list(part)) for part in _parts(work.queries, SENTENCES)]
    told = output / '.failed'
    with beam.Pipeline(options=pipeline_options) as pipeline:
        (pipeline | beam.Create(parts) | beam.Reshuffle() | beam.ParDo(Extract())
         | beam.Map(json.dumps) | beam.io.WriteToText(str(told)))
    failed = {}
    for path in sorted(output.glob('.failed-*')):
        failed |= dict(map(json.loads, path.read_text(encoding='utf-8').splitlines()))
        path.unlink()
    return failed


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))

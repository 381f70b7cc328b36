"""Reads data sets that `tfds_builders` built: record i of a split, in any order, from many threads.

A built data set is a folder of `tensorflow_datasets` in the ArrayRecord format. Its split `videos`
holds each video once; the others hold queries with their annotation lines, and say which video is
theirs. Features lie there as the bytes that a batch needs. Each record carries a checksum, which
reading compares.
"""

import bisect
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines import annotations, features, release, skip_list, tokens
from data_pipelines.errors import DataError

VERSION = '1.0.0'
VIDEOS = 'videos'  # the split of videos

# Fields of `data` that what is stored depends on; reading with others is refused.
SETTINGS = ('video_dirs', 'video_dims', 'video_parts', 'text_dir', 'text_dim', 'text_key',
            'text_layout', 'normalize_text', 'dtype')
# Fields of which less than was built can be read, but no more; 0 means no bound.
BOUNDS = ('max_tokens', 'limit')
# Fields of which a part of what was built can be read; '' is all of it.
PARTS = ('domain',)


def config_name(data: Any) -> str:
    """The builder's config: feature release and dtype."""
    return f'{data.features}_{data.dtype}'


def folder_of(data: Any) -> pathlib.Path:
    """Where the built data lie that the config names."""
    return pathlib.Path(data.records, data.dataset, config_name(data), VERSION)


def settings_of(data: Any) -> dict[str, Any]:
    """What is recorded of the config, as JSON gives it back."""
    names = (*SETTINGS, *BOUNDS, *PARTS)
    return json.loads(json.dumps({name: getattr(data, name) for name in names}))


def read_metadata(folder: pathlib.Path) -> dict[str, Any]:
    """What the builder recorded of its sources; see `tfds_builders.Grounding`.

    Raises:
        DataError: the folder is no built data set.
    """
    try:
        return json.loads((folder / 'metadata.json').read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise DataError(f'{folder}: no built data set: {features.one_line(error)} (data.records; '
                        '--mode=build makes it)') from error


def check_settings(folder: pathlib.Path, data: Any) -> dict[str, Any]:
    """Returns the metadata of built data; DataError if the config would make other ones."""
    metadata = read_metadata(folder)
    built, wanted = metadata['settings'], settings_of(data)
    for name in SETTINGS:
        if built[name] != wanted[name]:
            raise DataError(f'{folder}: built with data.{name}={built[name]!r}, expected '
                            f'{wanted[name]!r}')
    for name in BOUNDS:
        if 0 < built[name] < (wanted[name] or built[name] + 1):
            raise DataError(f'{folder}: built with data.{name}={built[name]}, too little for '
                            f'{wanted[name]}')
    for name in PARTS:
        if built[name] not in ('', wanted[name]):
            raise DataError(f'{folder}: built with data.{name}={built[name]!r}, lacks what is not '
                            f'of it, expected {wanted[name]!r}')
    return metadata


class Shards:
    """The serialised records of a split, numbered through its files."""

    def __init__(self, split: str, paths: Sequence[Any], counts: Sequence[int]):
        """Opens the files; `counts` are the numbers of records that they should have.

        Raises:
            DataError: a file is missing, cut short or holds another number of records.
        """
        self._split, self._paths = split, paths
        self._ends = list(itertools.accumulate(counts))
        self._readers = [self._open(path, n) for path, n in zip(paths, counts, strict=True)]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> bytes:
        """A record's bytes; DataError if they are not those that were written."""
        shard = bisect.bisect_right(self._ends, index)
        place = index - (self._ends[shard - 1] if shard else 0)
        try:
            return self._readers[shard].read([place])[0]
        except (RuntimeError, IndexError, ValueError) as error:
            raise DataError(
                f'{self._paths[shard]}: record {place} (number {index} of split {self._split!r}) '
                f"can't be read: {features.one_line(error)}") from error

    @staticmethod
    def _open(path: Any, count: int):
        try:
            from array_record.python import array_record_module
        except ImportError as error:
            raise DataError(f'data.records needs the package array_record: {error}; '
                            'pip install array_record, or leave data.records empty') from error
        try:
            # BuiltSplit are read one by one, so nothing is read ahead of them.
            reader = array_record_module.ArrayRecordReader(
                str(path), 'readahead_buffer_size:0,max_parallelism:0',
                file_reader_buffer_size=1 << 15)
            if not reader.ok():
                reader.read([0])  # tells the reason, if there is more to tell
                raise RuntimeError('damaged or cut short')
            found = reader.num_records()
        except (RuntimeError, OSError, ValueError) as error:
            raise DataError(f"{path}: can't be read: {features.one_line(error)}") from error
        if found != count:
            raise DataError(f'{path}: {found} records, expected {count}')
        return reader


def open_split(info: Any, split: str) -> Shards:
    """Opens the files of a split of a `tfds.core.DatasetInfo`; raises DataError as `Shards`."""
    files = info.splits[split].file_instructions
    return Shards(split, [file.filename for file in files],
                  [file.examples_in_shard for file in files])


def field(record: bytes, name: str) -> memoryview:
    """The content of one feature of a serialised `tf.train.Example`, without copying it.

    The message is Example(1: Features(1: [entry(1: name, 2: Feature(KIND: list(1: content)))])),
    with a single content: the bytes, or all whole numbers packed. Its own parser would copy a
    video twice.
    """
    _, entries = next(_parts(memoryview(record)))
    for _, entry in _parts(entries):
        parts = _parts(entry)
        if next(parts)[1] == name.encode():
            content = next(parts)[1]
            for _ in range(2):
                _, content = next(_parts(content))
            return content
    raise KeyError(name)


def _parts(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a protocol buffer whose fields all have a length: (tag, content) of each."""
    place = 0
    while place < len(message):
        tag, start = _varint(message, place)
        size, start = _varint(message, start)
        place = start + size
        yield tag, message[start:place]


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """The number that begins at a place, seven bits a byte, and where it ends."""
    number = shift = 0
    while (byte := message[place]) > 127:
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
    return number | byte << shift, place + 1


def number(record: bytes, name: str) -> int:
    """A field that holds one whole number, 0 or more."""
    return _varint(field(record, name), 0)[0]


def array(record: bytes, name: str, dtype: Any, width: int) -> np.ndarray:
    """A field that is stored as the bytes of [n, width]."""
    return np.frombuffer(field(record, name), dtype).reshape(-1, width)


class BuiltSplit:
    """A built split; the counterpart of `release.ReleaseSplit`."""

    def __init__(self, data: Any, split: str):
        """Opens the shards that the config names.

        Raises:
            DataError: there are none, they were built with other settings, lack the split, or one
                of them is damaged.
        """
        import tensorflow_datasets as tfds

        release.check_options(data)
        self.name, self._data = folder_of(data), data
        metadata = check_settings(self.name, data)
        if split not in metadata['splits']:
            raise DataError(f'{self.name}: no split {split!r}, built are '
                            f'{", ".join(metadata["splits"])}')
        info = tfds.builder_from_directory(self.name).info
        self._queries = open_split(info, metadata['splits'][split]['stored_as'])
        self._videos = open_split(info, VIDEOS)
        self.left_out = list(metadata['splits'][split]['left_out'])
        self._skipped = metadata['splits'][split]['skipped']  # numbers of lines
        self._split, self._splits = split, metadata['splits']
        self._query_place: dict[int | str, int] = {}
        self._video_place: dict[str, int] = {}
        self._n_clips: dict[str, int] = {}

    def queries(self, problems: list[str] | None) -> list[annotations.Query]:
        """Reads the annotations of all queries, and which videos are theirs."""
        lines, found = [], {}
        count = len(self._queries)
        if self._data.limit and not self._data.domain:
            count = min(count, self._data.limit)
        for place in range(count):
            try:
                query = self._queries[place]
            except DataError as error:
                if problems is None:
                    raise
                problems.append(str(error))
                continue
            line = number(query, 'line')
            lines.append((line, bytes(field(query, 'annotation'))))
            found[line] = place, number(query, 'video_place'), number(query, 'n_clips')
        # What was left out when the data were built is not there any more.
        skipped = skip_list.read(
            self._data.skip_list, self._split, self._splits, lines, whole=False)
        self.left_out += skip_list.messages(self.name, self._data.skip_list, skipped)
        absent = {line: b'' for line in self._skipped}
        records = annotations.parse_annotations(
            sorted(lines + list(absent.items())), self.name, self._data, problems,
            skipped.keys() | absent.keys())
        for record in records:
            place, video, n_clips = found[record.line]
            self._query_place[record.qid] = place
            self._video_place[record.vid] = video
            self._n_clips[record.vid] = n_clips
        return records

    def query(self, qid: int | str) -> tuple[np.ndarray, np.ndarray]:
        """As `release.read_query`."""
        query = self._queries[self._query_place[qid]]
        text = array(query, 'text', features.dtype_of(self._data), self._data.text_dim)
        roles = array(query, 'roles', np.int32, 1)[:, 0]
        return tokens.cut(text, roles, self._data.max_tokens)

    def video(self, vid: str) -> np.ndarray:
        """As `release.read_video`."""
        video = self._videos[self._video_place[vid]]
        return array(video, 'video', features.dtype_of(self._data), sum(self._data.video_dims))

    def n_clips(self, vid: str, read: Callable[[str], np.ndarray]) -> int:
        """As recorded with the query; with data.on_error = 'skip', of the video itself."""
        found = len(read(vid)) if self._data.on_error == 'skip' else self._n_clips[vid]
        if found > self._data.max_clips:
            raise DataError(f'{self.name}: video {vid!r}: {found} clips, expected at most '
                            f'{self._data.max_clips} (data.max_clips)')
        return found

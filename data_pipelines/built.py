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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from data_pipelines import annotations, features, release, skip_list, tokens
from data_pipelines.errors import DataError, one_line

VERSION = '1.0.0'
VIDEOS = 'videos'  # the split of videos

# Fields of `data` that what is stored depends on; reading with others is refused.
SETTINGS = ('video_dirs', 'video_dims', 'video_parts', 'text_dir', 'text_dim', 'text_key',
            'text_layout', 'normalize_text', 'dtype')
# Fields of which less than was built can be read, but no more; 0 means no bound.
BOUNDS = ('max_tokens', 'limit')
# Fields of which a part of what was built can be read; '' is all of it.
PARTS = ('domain',)

Record = Mapping[str, tf.train.Feature]  # a stored query or video: name of a field -> content


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
        raise DataError(f'{folder}: no built data set: {one_line(error)} (data.records; '
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
    """The records of a split, numbered through its files."""

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

    def __getitem__(self, index: int) -> Record:
        """A record; DataError if its bytes are not those that were written."""
        shard = bisect.bisect_right(self._ends, index)
        place = index - (self._ends[shard - 1] if shard else 0)
        try:
            record = self._readers[shard].read([place])[0]
        except (RuntimeError, IndexError, ValueError) as error:
            raise DataError(
                f'{self._paths[shard]}: record {place} (number {index} of split {self._split!r}) '
                f"can't be read: {one_line(error)}") from error
        return tf.train.Example.FromString(record).features.feature

    @staticmethod
    def _open(path: Any, count: int):
        try:
            from array_record.python import array_record_module
        except ImportError as error:
            raise DataError(f'data.records needs the package array_record: {error}; '
                            'pip install array_record, or leave data.records empty') from error
        try:
            # Records are read one by one, so nothing is read ahead of them.
            reader = array_record_module.ArrayRecordReader(
                str(path), 'readahead_buffer_size:0,max_parallelism:0',
                file_reader_buffer_size=1 << 15)
            if not reader.ok():
                reader.read([0])  # tells the reason, if there is more to tell
                raise RuntimeError('damaged or cut short')
            found = reader.num_records()
        except (RuntimeError, OSError, ValueError) as error:
            raise DataError(f"{path}: can't be read: {one_line(error)}") from error
        if found != count:
            raise DataError(f'{path}: {found} records, expected {count}')
        return reader


def open_split(info: Any, split: str) -> Shards:
    """Opens the files of a split of a `tfds.core.DatasetInfo`; raises DataError as `Shards`."""
    files = info.splits[split].file_instructions
    return Shards(split, [file.filename for file in files],
                  [file.examples_in_shard for file in files])


def number(record: Record, name: str) -> int:
    """A field that holds one whole number."""
    return record[name].int64_list.value[0]


def content(record: Record, name: str) -> bytes:
    """A field that holds a text or an array, as its bytes."""
    return record[name].bytes_list.value[0]


def array(record: Record, name: str, dtype: Any, width: int) -> np.ndarray:
    """A field that is stored as the bytes of [n, width]."""
    return np.frombuffer(content(record, name), dtype).reshape(-1, width)


class BuiltSplit:
    """A built split; the counterpart of `release.ReleaseSplit`.

    Attributes:
        name: its folder.
        skipped: what was left out when it was built, or is on data.skip_list, a message each.
        cut: as of `ReleaseSplit`.
    """

    def __init__(self, data: Any, split: str):
        """Opens the shards that the config names.

        Raises:
            DataError: there are none, they were built with other settings, lack the split, or one
                of them is damaged.
        """
        release.check_options(data)
        self.name, self._data = folder_of(data), data
        metadata = check_settings(self.name, data)
        if split not in metadata['splits']:
            raise DataError(f'{self.name}: no split {split!r}, built are '
                            f'{", ".join(metadata["splits"])}')
        info = tfds.builder_from_directory(self.name).info
        self._queries = open_split(info, metadata['splits'][split]['stored_as'])
        self._videos = open_split(info, VIDEOS)
        self.skipped = list(metadata['splits'][split]['left_out'])
        self._not_built = metadata['splits'][split]['skipped']  # numbers of lines
        self._split, self._splits = split, metadata['splits']
        self.cut: dict[str, int] = {}
        self._query_place: dict[int | str, int] = {}
        self._video: dict[str, tuple[int, int]] = {}  # its place, number of its clips

    def queries(self, skipped: list[str] | None) -> list[annotations.Query]:
        """Reads the annotations of all queries, and which videos are theirs."""
        lines, found = [], {}
        count = len(self._queries)
        if self._data.limit and not self._data.domain:
            count = min(count, self._data.limit)
        for place in range(count):
            record = annotations.attempt(skipped, self._queries.__getitem__, place)
            if record is not None:
                line = number(record, 'line')
                lines.append((line, content(record, 'annotation')))
                found[line] = place, (number(record, 'video_place'), number(record, 'n_clips'))
        # What was skipped when the data were built is not there any more.
        skip = skip_list.read(self._data.skip_list, self._split, self._splits, lines, whole=False)
        self.skipped += skip_list.messages(self.name, self._data.skip_list, skip)
        absent = dict.fromkeys(self._not_built, b'')
        queries = annotations.parse_annotations(
            sorted(lines + list(absent.items())), self.name, self._data, skipped,
            skip.keys() | absent.keys())
        for query in queries:
            self._query_place[query.qid], self._video[query.vid] = found[query.line]
        return queries

    def query(self, qid: int | str) -> tuple[np.ndarray, np.ndarray]:
        """As `release.read_query`."""
        record = self._queries[self._query_place[qid]]
        text = array(record, 'text', features.dtype_of(self._data), self._data.text_dim)
        roles = array(record, 'roles', np.int32, 1)[:, 0]
        return tokens.cut(text, roles, self._data.max_tokens)

    def video(self, vid: str) -> np.ndarray:
        """As `release.read_video`."""
        record = self._videos[self._video[vid][0]]
        video = array(record, 'video', features.dtype_of(self._data), sum(self._data.video_dims))
        return video[:self._data.max_clips]

    def n_clips(self, vid: str, read: Callable[[str], np.ndarray]) -> int:
        """As recorded with the query; with data.on_error = 'skip', of the video itself."""
        if self._data.on_error == 'skip':
            read(vid)
        found = self._video[vid][1]
        kept = release.kept_clips(f'{self.name}: video {vid!r}', found, self._data.max_clips)
        if kept < found:
            self.cut[vid] = found
        return kept

"""Reads the data sets' public releases, as users have them, into raw examples.

A release is one annotation file per split (JSON lines), one feature file per video and stream, and
one per query. All errors of these files are raised here, before any device time, as a `DataError`
of one line. What a user must say of a release is in the config node `data`; functions that take
`data` read these attributes of it:

    root            folder that the other paths are relative to
    annotations     split -> annotation file; '' where there is none
    video_dirs, video_dims   folder and width of each video stream
    text_dir, text_dim       folder and width of the query features
    text_layout     key of tokens.TEXT_LAYOUTS
    normalize_text  whether text rows are scaled to length one (video rows always are)
    saliency        how a clip's label is made: 'annotators' or 'window'
    segments        whether video ids end in _START_END: queries of one source are no negatives
    max_tokens      rows of a query, start-of-text and [EOS] included; further words are cut
    max_clips, max_windows   a video or query with more is an error
    dtype           of features in memory and batches, 'float32' or 'float16'
    on_error        'raise' or 'skip'
    limit           only the first so many records of a split; 0: all
    cache_gb        features of a split that stay in memory, in 10^9 bytes; the others are read
                    whenever a batch needs them. Negative: all stay
    records         folder of built data to read instead of the files, see `built`; '' for none
    dataset, features   its name and that of its feature release there
"""

import collections
import dataclasses
import json
import os
import pathlib
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from data_pipelines import features, lazy, saliency, tokens
from dualground_jax.errors import DataError

END_TOLERANCE = 1e-3  # seconds that a window may end after its video

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What belongs to a data set, whatever the features.

    Attributes:
        annotations: split -> file name in the release.
        clip_length: seconds.
        saliency: how a clip's label is made, see `saliency.clip_labels`.
        max_windows: no query has more.
        segments: whether video ids end in _START_END, and so name their source before that.
        selection: the best checkpoint has the highest mean of these metrics.
        round_to_clip: whether predicted windows are rounded to multiples of clip_length.
        clip_to: seconds that predicted windows are clipped to.
    """

    annotations: Mapping[str, str]
    clip_length: float
    saliency: str
    max_windows: int
    segments: bool = False
    selection: tuple[str, ...] = ('MR-full-mAP',)
    round_to_clip: bool = True
    clip_to: tuple[float, float] = (0.0, 150.0)


DATASETS = {
    'qvhighlights': Dataset(
        annotations={
            'train': 'highlight_train_release.jsonl',
            'val': 'highlight_val_release.jsonl',
            'test': 'highlight_test_release.jsonl',
        },
        clip_length=2.0,
        saliency='annotators',
        max_windows=30,  # val has 25
        segments=True,
    ),
    'charades_sta': Dataset(
        annotations={
            'train': 'charades_sta_train_tvr_format.jsonl',
            'val': 'charades_sta_test_tvr_format.jsonl',  # there is no third split
            'test': 'charades_sta_test_tvr_format.jsonl',
        },
        clip_length=1.0,
        saliency='window',
        max_windows=1,
        selection=('MR-full-R1@0.5', 'MR-full-R1@0.7'),
    ),
    'synthetic': Dataset(
        annotations={'train': 'train.jsonl', 'val': 'val.jsonl', 'test': 'test.jsonl'},
        clip_length=2.0,
        saliency='annotators',
        max_windows=5,
    ),
}

_SF_CLIP = dict(
    video_dirs=('slowfast_features', 'clip_features'), video_dims=(2304, 512),
    text_dir='clip_text_features', text_dim=512, text_layout='clip')
_IV2 = dict(video_dims=(768,), text_dim=4096, text_layout='llama')

# (data set, release of features) -> fields of `data`.
FEATURES = {
    ('qvhighlights', 'sf_clip'): dict(**_SF_CLIP, max_clips=75, max_tokens=40),
    ('qvhighlights', 'iv2'): dict(
        **_IV2, video_dirs=('qvhighlight_6b',), text_dir='qvhighlight_llama_text_feature',
        max_clips=75, max_tokens=40),
    # The longest video of Charades-STA has 194.33 s.
    ('charades_sta', 'sf_clip'): dict(**_SF_CLIP, max_clips=200, max_tokens=32),
    ('charades_sta', 'iv2'): dict(
        **_IV2, video_dirs=('charade_sta_6b',), text_dir='charade_sta_llama_text_feature',
        max_clips=200, max_tokens=23),
    # Widths and limits are those of the generated world.
    ('synthetic', 'planted'): dict(video_dirs=('video',), text_dir='text', text_layout='clip'),
}


@dataclasses.dataclass
class Record:
    """One query of an annotation file.

    Attributes:
        qid: as in the file, a whole number or a text.
        query: the sentence.
        vid: name of its video.
        duration: seconds.
        windows: float64[M, 2], [start, end] in seconds. Not float32: the clips that a window covers
            are found by rounding down, and 3 % of the windows of Charades-STA would get others.
        clip_ids: int64[R], the relevant clips.
        clip_scores: float32[R, A] of A annotators, or None where the file has no scores.
        line: line number in the file, from 1.
    """

    qid: int | str
    query: str
    vid: str
    duration: float
    windows: np.ndarray
    clip_ids: np.ndarray
    clip_scores: np.ndarray | None
    line: int


@dataclasses.dataclass
class Split:
    """A split; record i has `videos[video_index[i]]`, `text[i]` and so on.

    `videos` and `text` may read from disk whenever they are indexed (data.cache_gb): lengths are
    those of `saliency` and `roles`, which are in memory.

    Attributes:
        name: of the split.
        records: list of N.
        videos: data.dtype[T_i, sum of video_dims] of each video, once.
        video_index: int32[N].
        source_index: int32[N], equal for videos that are cut from the same one.
        text: N of data.dtype[L_i, text_dim], token by token.
        roles: N of int32[L_i], see `tokens`.
        saliency: N of float32[T_i], the clips' labels.
        problems: what was skipped, one message each.
    """

    name: str
    records: list[Record]
    videos: Sequence[np.ndarray]
    video_index: np.ndarray
    source_index: np.ndarray
    text: Sequence[np.ndarray]
    roles: list[np.ndarray]
    saliency: list[np.ndarray]
    problems: list[str]


# Features


def read_video(data: Any, vid: str) -> np.ndarray:
    """Reads a video's streams and joins them clip by clip.

    Returns:
        float32[T, sum of data.video_dims]: each stream's rows scaled to length one; T is the number
        of clips of the shortest stream.

    Raises:
        DataError: a file is missing or bad, its width is not that of data.video_dims, or there are
            more than data.max_clips clips.
    """
    folders = [pathlib.Path(data.root, folder) for folder in data.video_dirs]
    paths = [features.find_file(folder, (vid,)) for folder in folders]
    streams = [features.read_features(path, features.VIDEO_KEY) for path in paths]
    return join_streams(data, streams, names=paths)


def join_streams(data: Any, streams: Sequence[np.ndarray], names: Sequence[Any]) -> np.ndarray:
    """Joins a video's raw streams clip by clip, in data.dtype; see `read_video`.

    Args:
        data: the config node.
        streams: float32[T_i, d_i], in the order of data.video_dirs.
        names: of the streams, for messages.
    """
    if len(streams) != len(data.video_dims):
        raise DataError(f'{len(streams)} video streams, expected {len(data.video_dims)}: '
                        f'{", ".join(data.video_dirs)} (data.video_dirs)')
    for name, rows, dim in zip(names, streams, data.video_dims, strict=True):
        _check_width(name, rows, dim, 'data.video_dims')
    shortest = min(range(len(streams)), key=lambda i: len(streams[i]))
    n_clips = len(streams[shortest])
    if n_clips > data.max_clips:
        raise DataError(f'{names[shortest]}: {n_clips} clips, expected at most {data.max_clips} '
                        '(data.max_clips)')
    joined = np.concatenate([tokens.unit_rows(rows)[:n_clips] for rows in streams], axis=1)
    return joined.astype(features.dtype_of(data), copy=False)


def read_query(data: Any, qid: int | str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a query's tokens: what `tokens.label_tokens` returns.

    Raises:
        DataError: the file is missing or bad, its width is not data.text_dim, or data.text_layout
            leaves nothing of it.
    """
    path, rows = _read_query_rows(data, qid)
    return label_query(data, rows, name=path)


def label_query(data: Any, rows: np.ndarray, name: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels a query's raw rows float32[R, d] as the config says, in data.dtype."""
    _check_width(name, rows, data.text_dim, 'data.text_dim')
    layout = tokens.TEXT_LAYOUTS[data.text_layout]
    try:
        text, roles = tokens.label_tokens(
            rows, layout, data.max_tokens, normalize=data.normalize_text)
    except DataError as error:
        raise DataError(f'{name}: {error} (data.text_layout {data.text_layout!r})') from error
    return text.astype(features.dtype_of(data), copy=False), roles


def _read_query_rows(data: Any, qid: int | str) -> tuple[pathlib.Path, np.ndarray]:
    path = features.find_file(pathlib.Path(data.root, data.text_dir), (f'qid{qid}', f'{qid}'))
    return path, features.read_features(path, features.TEXT_KEY)


def _check_width(name: Any, rows: np.ndarray, dim: int, config_key: str) -> None:
    if rows.shape[1] != dim:
        raise DataError(f'{name}: width {rows.shape[1]}, expected {dim} ({config_key})')


# Queries


def text_similarity(data: Any, split: str, n: int = 3) -> str:
    """Describes the first n queries' rows, so that a user can see whether data.text_layout fits.

    CLIP and LLaMA are causal: the rows before the words (start-of-text, prompt) are the same in
    every query, and those from the first word on are not.

    Returns:
        Text: for each query, its rows' roles, their cosine similarity with the same row of the
        first query, and with one another. Padding is left out.

    Raises:
        DataError: as `load_split`, but for the videos.
    """
    _check_config(data, (data.text_dir,))
    records = read_annotations(_annotation_file(data, split), data, _problem_list(data))[:n]
    blocks, first = [], None
    for record in records:
        path, rows = _read_query_rows(data, record.qid)
        roles = tokens.token_roles(rows, tokens.TEXT_LAYOUTS[data.text_layout])
        unit = tokens.unit_rows(rows[roles != tokens.PADDING])
        first = unit if first is None else first
        same = np.einsum('rd,rd->r', unit[:len(first)], first[:len(unit)])
        lines = [
            f'qid {record.qid}: {record.query}',
            f'{path}: {len(rows)} rows, {len(rows) - len(unit)} of them padding, '
            f'layout {data.text_layout!r}',
            'row  role     query 1 |' + ''.join(f'{i:>6}' for i in range(len(unit))),
        ]
        for i, similarities in enumerate(unit @ unit.T):
            shared = f'{same[i]:.2f}' if i < len(same) else ''
            cells = ''.join(f'{value:6.2f}' for value in similarities)
            lines.append(f'{i:>3}  {tokens.ROLES[roles[i]]:<8} {shared:>7} |{cells}')
        blocks.append('\n'.join(lines))
    return '\n\n'.join(blocks)


# Annotations


def read_annotations(path: str | os.PathLike, data: Any,
                     problems: list[str] | None = None) -> list[Record]:
    """Reads and checks an annotation file.

    Args:
        path: JSON lines; blank lines are passed over.
        data: the config node, of which limit and max_windows are read.
        problems: None: the first bad record raises. A list: bad records are left out, and their
            messages appended to it.

    Returns:
        The records in the file's order. Those of a hidden test set have no windows.

    Raises:
        DataError: the file can't be read; a record is bad or repeats a qid.
    """
    return parse_annotations(annotation_lines(path), path, data, problems)


def annotation_lines(path: str | os.PathLike) -> list[tuple[int, bytes]]:
    """The lines of an annotation file that are not blank, with their numbers from 1.

    Raises:
        DataError: the file can't be read.
    """
    try:
        lines = pathlib.Path(path).read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: can't be read: {features.one_line(error)}") from error
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def parse_annotations(numbered: Sequence[tuple[int, bytes]], path: Any, data: Any,
                      problems: list[str] | None = None) -> list[Record]:
    """`read_annotations` of numbered lines; `path` is what messages call their file."""
    first_lines: dict[int | str, int] = {}

    def read_record(number: int, line: bytes) -> Record:
        record = _parse_record(line, number, f'{path}:{number}', data.max_windows)
        first = first_lines.setdefault(record.qid, number)
        if first != number:
            raise DataError(f'{path}:{number}: qid {record.qid!r} is that of line {first}, '
                            'expected another')
        return record

    attempts = [_attempt(problems, read_record, *entry) for entry in numbered[:data.limit or None]]
    return [record for record in attempts if record is not None]


def _parse_record(line: bytes, number: int, where: str, max_windows: int) -> Record:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise DataError(f'{where}: not JSON: {features.one_line(error)}') from error
    _expect(isinstance(fields, dict), where, 'the line', fields, 'an object {...}')
    for name in ('qid', 'query', 'duration', 'vid'):
        if name not in fields:
            raise DataError(f'{where}: field {name!r} is missing')
    qid, query, duration, vid = (fields[name] for name in ('qid', 'query', 'duration', 'vid'))
    _expect(type(qid) is int or _is_name(qid), where, 'qid', qid, 'a whole number or a file name')
    is_text = isinstance(query, str) and query.strip()
    _expect(is_text, where, 'query', query, 'a text that is not empty')
    _expect(_is_name(vid), where, 'vid', vid, 'a file name')
    _expect(_is_number(duration) and duration > 0, where, 'duration', duration, 'seconds above 0')
    windows = _parse_windows(fields.get('relevant_windows'), duration, where)
    if len(windows) > max_windows:
        raise DataError(f'{where}: {len(windows)} relevant_windows, expected at most {max_windows} '
                        '(data.max_windows)')
    ids, scores = fields.get('relevant_clip_ids'), fields.get('saliency_scores')
    return Record(qid, query, vid, float(duration), windows, *_parse_clips(ids, scores, where),
                  line=number)


def _parse_windows(windows: Any, duration: float, where: str) -> np.ndarray:
    """Checks windows and returns float64[M, 2]; null, [] and, as in TVSum, [[]] are none."""
    windows = [] if windows is None or windows == [[]] else windows
    _expect(isinstance(windows, list), where, 'relevant_windows', windows, 'a list')
    for i, window in enumerate(windows):
        is_pair = isinstance(window, list) and len(window) == 2 and all(map(_is_number, window))
        _expect(is_pair and 0 <= window[0] < window[1] <= duration + END_TOLERANCE, where,
                f'relevant_windows[{i}]', window, f'0 <= start < end <= duration {duration}')
    return np.array(windows, np.float64).reshape(-1, 2)


def _parse_clips(ids: Any, scores: Any, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Checks relevant clips and their scores and returns Record's clip_ids and clip_scores."""
    ids = [] if ids is None else ids
    is_ids = isinstance(ids, list) and all(type(i) is int and 0 <= i < 2**31 for i in ids)
    _expect(is_ids and len(set(ids)) == len(ids), where, 'relevant_clip_ids', ids,
            'different clip numbers from 0 on')
    if scores is None:
        return np.array(ids, np.int64), None
    _expect(isinstance(scores, list), where, 'saliency_scores', scores, 'a list')
    if len(scores) != len(ids):
        raise DataError(f'{where}: {len(scores)} saliency_scores, expected {len(ids)}, as many as '
                        'relevant_clip_ids')
    n_annotators = len(scores[0]) if scores and isinstance(scores[0], list) else 1
    for i, row in enumerate(scores):
        is_row = isinstance(row, list) and row and all(map(_is_number, row))
        _expect(is_row and len(row) == n_annotators, where, f'saliency_scores[{i}]', row,
                f'a list of {max(n_annotators, 1)} numbers')
    return np.array(ids, np.int64), np.array(scores, np.float32).reshape(len(ids), n_annotators)


def _is_number(value: Any) -> bool:
    """Says whether a float holds value, which JSON allows to be true, NaN or 400 digits long."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and bool(value.strip())


def _expect(condition: Any, where: str, field: str, found: Any, expected: str) -> None:
    if not condition:
        raise DataError(f'{where}: {field} is {reprlib.repr(found)}, expected {expected}')


# Splits


class Files:
    """A split as its release has it: an annotation file, and a file a query and video stream."""

    def __init__(self, data: Any, split: str):
        """Checks the config and that the folders exist; raises DataError."""
        _check_config(data, (*data.video_dirs, data.text_dir))
        self.name, self._data = _annotation_file(data, split), data
        self.left_out: list[str] = []  # on purpose, one message each

    def records(self, problems: list[str] | None) -> list[Record]:
        """As `read_annotations`."""
        return read_annotations(self.name, self._data, problems)

    def query(self, qid: int | str) -> tuple[np.ndarray, np.ndarray]:
        """As `read_query`."""
        return read_query(self._data, qid)

    def video(self, vid: str) -> np.ndarray:
        """As `read_video`."""
        return read_video(self._data, vid)

    def n_clips(self, vid: str, read: Callable[[str], np.ndarray]) -> int:
        """How many clips a video has; `read` is `video`, or remembers what that returned."""
        return len(read(vid))


def load_split(data: Any, split: str) -> Split:
    """Reads a split, each video once, and keeps as much of it in memory as data.cache_gb says.

    All files are read and checked, whatever is kept. Of built data (data.records), which were
    checked when they were built, videos are checked only with data.on_error = 'skip'.

    Raises:
        DataError: the config or a folder is wrong, the split has no annotation file, nothing usable
            is left, or a record or one of its files is bad. With data.on_error = 'skip', bad
            records are left out instead and reported in `problems`.
    """
    problems = _problem_list(data)
    if data.records:
        from data_pipelines import built  # takes TensorFlow, for seconds

        store = built.Records(data, split)
    else:
        store = Files(data, split)
    memory = lazy.Memory(data.cache_gb)

    def read_text(qid: int | str) -> np.ndarray:
        return memory.get(('text', qid), lambda: store.query(qid)[0])

    def read_clips(vid: str) -> np.ndarray:
        return memory.get(('video', vid), lambda: store.video(vid))

    records, roles = [], []
    for record in store.records(problems):
        if (query := _attempt(problems, store.query, record.qid)) is not None:
            memory.keep(('text', record.qid), query[0])
            records.append(record)
            roles.append(query[1])
    lengths = {}
    for vid, uses in collections.Counter(record.vid for record in records).items():
        n_clips = _attempt(problems, store.n_clips, vid, read_clips)
        if n_clips is None:
            problems[-1] += f' (skipped records: {uses})'
        else:
            lengths[vid] = n_clips
    kept = [i for i, record in enumerate(records) if record.vid in lengths]
    if not kept:
        reason = f'; the first of {len(problems)} problems: {problems[0]}' if problems else ''
        raise DataError(f'{store.name}: no usable record{reason}')
    records, roles = [records[i] for i in kept], [roles[i] for i in kept]
    places = {vid: place for place, vid in enumerate(lengths)}
    sources = [r.vid.rsplit('_', 2)[0] if data.segments else r.vid for r in records]
    # In memory they are lists, which can also be changed.
    collect = list if memory.unlimited else lambda rows: rows
    return Split(
        name=split,
        records=records,
        videos=collect(lazy.Rows(read_clips, lengths)),
        video_index=np.array([places[record.vid] for record in records], np.int32),
        source_index=np.unique(sources, return_inverse=True)[1].astype(np.int32),
        text=collect(lazy.Rows(read_text, [record.qid for record in records])),
        roles=roles,
        saliency=[saliency.clip_labels(record, lengths[record.vid], data.saliency)
                  for record in records],
        problems=[*store.left_out, *(problems or [])],
    )


def annotation_files(data: Any) -> dict[str, pathlib.Path]:
    """The annotation file of each split that has one."""
    return {name: pathlib.Path(data.root, path) for name, path in data.annotations.items() if path}


def _annotation_file(data: Any, split: str) -> pathlib.Path:
    known = annotation_files(data)
    if split not in known:
        raise DataError(
            f'no annotation file for split {split!r}, data.annotations has {", ".join(known)}')
    return known[split]


def _check_config(data: Any, folders: Iterable[str]) -> None:
    """Checks what can't be blamed on a file, and that the folders exist."""
    check_options(data)
    for folder in folders:
        if not (path := pathlib.Path(data.root, folder)).is_dir():
            raise DataError(f'{path}: no such folder (data.root, data.video_dirs, data.text_dir)')


def check_options(data: Any) -> None:
    """Raises DataError if a value of the config is none of those that it can have."""
    options = {'on_error': ('raise', 'skip'), 'saliency': saliency.MODES,
               'text_layout': tokens.TEXT_LAYOUTS}
    for name, known in options.items():
        if (value := getattr(data, name)) not in known:
            raise DataError(f'data.{name} is {value!r}, expected one of {", ".join(known)}')
    if not 0 < len(data.video_dirs) == len(data.video_dims):
        raise DataError(f'data.video_dirs has {len(data.video_dirs)} entries, data.video_dims '
                        f'{len(data.video_dims)}, expected the same number, at least one')
    if data.max_tokens < 1:
        raise DataError(f'data.max_tokens is {data.max_tokens}, expected 1 or more')


def _problem_list(data: Any) -> list[str] | None:
    return [] if data.on_error == 'skip' else None


def _attempt(problems: list[str] | None, function: Callable[..., T], *args: Any) -> T | None:
    """Calls the function; if it raises DataError and there is a list, adds to it, returns None."""
    try:
        return function(*args)
    except DataError as error:
        if problems is None:
            raise
        problems.append(str(error))
        return None

"""Reads the data sets' public releases, as users have them, into raw examples.

A release is one annotation file per split (JSON lines), one feature file per video and stream, and
one per query. All errors of these files are raised here, before any device time, as a `DataError`
of one line. What a user must say of a release is in the config node `data`; functions that take
`data` read these attributes of it:

    root            folder that the other paths are relative to
    annotations     split -> annotation file; '' where there is none
    video_dirs, video_dims   folder and width of each video stream
    text_dir, text_dim       folder and width of the query features
    text_layout     key of TEXT_LAYOUTS
    normalize_text  whether text rows are scaled to length one (video rows always are)
    saliency        how a clip's label is made: 'annotators' or 'window'
    max_words       further words of a query are cut
    max_clips, max_windows   a video or query with more is an error
    on_error        'raise' or 'skip'
    limit           only the first so many records of a split; 0: all
"""

import collections
import dataclasses
import json
import os
import pathlib
import reprlib
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from data_pipelines import torch_file
from dualground_jax.errors import UserError

SUFFIXES = ('.npz', '.npy', '.pt')
VIDEO_KEY, TEXT_KEY = 'features', 'last_hidden_state'  # names in the .npz files of all releases
END_TOLERANCE = 1e-3  # seconds that a window may end after its video
NORM_EPSILON = 1e-5  # as in the references; keeps rows of zeros finite

# What numpy raises on damaged .npy and .npz files (TokenError: cut header; RuntimeError: zipfile).
_DAMAGE = (OSError, ValueError, EOFError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile,
           zlib.error)

T = TypeVar('T')


class DataError(UserError):
    """A file of a data set, or what the config says of it, is not as expected."""


@dataclasses.dataclass(frozen=True)
class TextLayout:
    """What the rows of a text feature file are.

    Attributes:
        drop_first: rows before the words: start-of-text, prompt.
        eos: 'last': the last row is [EOS]; 'mean': the file has no sentence token, and the mean of
            its words takes the place.
    """

    drop_first: int
    eos: str


TEXT_LAYOUTS = {
    'clip': TextLayout(drop_first=1, eos='last'),
    'llama': TextLayout(drop_first=4, eos='last'),
    'words': TextLayout(drop_first=0, eos='mean'),
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What belongs to a data set, whatever the features.

    Attributes:
        annotations: split -> file name in the release.
        clip_length: seconds.
        saliency: how a clip's label is made, see `saliency_labels`.
        max_windows: no query has more.
        selection: the best checkpoint has the highest mean of these metrics.
        round_to_clip: whether predicted windows are rounded to multiples of clip_length.
        clip_to: seconds that predicted windows are clipped to.
    """

    annotations: Mapping[str, str]
    clip_length: float
    saliency: str
    max_windows: int
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
    ('qvhighlights', 'sf_clip'): dict(**_SF_CLIP, max_clips=75, max_words=40),
    ('qvhighlights', 'iv2'): dict(
        **_IV2, video_dirs=('qvhighlight_6b',), text_dir='qvhighlight_llama_text_feature',
        max_clips=75, max_words=40),
    # The longest video of Charades-STA has 194.33 s.
    ('charades_sta', 'sf_clip'): dict(**_SF_CLIP, max_clips=200, max_words=32),
    ('charades_sta', 'iv2'): dict(
        **_IV2, video_dirs=('charade_sta_6b',), text_dir='charade_sta_llama_text_feature',
        max_clips=200, max_words=23),
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
    """A split in memory; record i has `videos[video_index[i]]`, `words[i]` and so on.

    Attributes:
        name: of the split.
        records: list of N.
        videos: float32[T_i, sum of video_dims] of each video, once.
        video_index: int32[N].
        words: N of float32[L_i, text_dim].
        eos: float32[N, text_dim].
        saliency: N of float32[T_i], the clips' labels.
        problems: what was skipped, one message each.
    """

    name: str
    records: list[Record]
    videos: list[np.ndarray]
    video_index: np.ndarray
    words: list[np.ndarray]
    eos: np.ndarray
    saliency: list[np.ndarray]
    problems: list[str]


# Feature files


def read_features(path: str | os.PathLike, key: str) -> np.ndarray:
    """Reads one feature file.

    Args:
        path: .npz, .npy or .pt (one tensor) file of float[n, d] or float[1, n, d].
        key: name of the array in an .npz file.

    Returns:
        float32[n, d] with n >= 1, all finite.

    Raises:
        DataError: the file is missing, damaged, lacks the key or holds something else.
    """
    try:
        if os.fspath(path).endswith('.pt'):
            rows = torch_file.read_tensor(path)
        else:
            rows = _read_numpy(path, key)
    except torch_file.TorchFileError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(f"{path}: can't be read: {_one_line(error)}") from error
    return check_rows(rows, path)


def check_rows(rows: np.ndarray, name: Any) -> np.ndarray:
    """Returns features float[n, d] or float[1, n, d] as float32[n, d], or raises DataError."""
    if rows.ndim == 3 and len(rows) == 1:
        rows = rows[0]
    if rows.ndim != 2 or not rows.size:
        raise DataError(f'{name}: shape {list(rows.shape)}, expected one or more rows [n, width]')
    if rows.dtype.kind != 'f':
        raise DataError(f'{name}: values of type {rows.dtype}, expected floating point')
    with np.errstate(over='ignore'):  # a float64 beyond float32 becomes inf, reported below
        rows = rows.astype(np.float32)
    if not np.isfinite(rows).all():
        row, column = np.argwhere(~np.isfinite(rows))[0]
        raise DataError(
            f'{name}: {rows[row, column]} in row {row}, column {column}, expected finite numbers')
    return rows


def _read_numpy(path: str | os.PathLike, key: str) -> np.ndarray:
    with open(path, 'rb') as file:
        try:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            if key in content.files:
                return np.asarray(content[key])
        except _DAMAGE as error:
            raise DataError(f"{path}: can't be read: {_one_line(error)}") from error
    found = ', '.join(map(repr, content.files)) or 'none'
    raise DataError(f'{path}: expected array {key!r}, found {found}')


def find_file(folder: str | os.PathLike, stems: Iterable[str]) -> pathlib.Path:
    """Returns the first file `folder`/stem + suffix that exists, stems before SUFFIXES.

    Raises:
        DataError: there is none.
    """
    stems = tuple(stems)
    for stem in stems:
        for suffix in SUFFIXES:
            path = pathlib.Path(folder, stem + suffix)
            if path.is_file():
                return path
    raise DataError(f'{folder}: found no file {" or ".join(stems)} + {" or ".join(SUFFIXES)}')


def read_video(data: Any, vid: str) -> np.ndarray:
    """Reads a video's streams and joins them clip by clip.

    Returns:
        float32[T, sum of data.video_dims]: each stream's rows scaled to length one; T is the number
        of clips of the shortest stream.

    Raises:
        DataError: a file is missing or bad, its width is not that of data.video_dims, or there are
            more than data.max_clips clips.
    """
    paths = [find_file(pathlib.Path(data.root, folder), (vid,)) for folder in data.video_dirs]
    return join_streams(data, [read_features(path, VIDEO_KEY) for path in paths], names=paths)


def join_streams(data: Any, streams: Sequence[np.ndarray], names: Sequence[Any]) -> np.ndarray:
    """Joins a video's raw streams clip by clip; see `read_video`.

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
    return np.concatenate([_normalize(rows)[:n_clips] for rows in streams], axis=1)


def read_query(data: Any, qid: int | str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a query's features and splits them by `split_tokens`, whose results it returns.

    Raises:
        DataError: the file is missing or bad, its width is not data.text_dim, or data.text_layout
            leaves nothing of it.
    """
    path, rows = _read_query_rows(data, qid)
    return split_query(data, rows, name=path)


def split_query(data: Any, rows: np.ndarray, name: Any) -> tuple[np.ndarray, np.ndarray]:
    """Splits a query's raw rows float32[R, d] as the config says; see `read_query`."""
    _check_width(name, rows, data.text_dim, 'data.text_dim')
    layout = TEXT_LAYOUTS[data.text_layout]
    try:
        return split_tokens(rows, layout, data.max_words, normalize=data.normalize_text)
    except DataError as error:
        raise DataError(f'{name}: {error} (data.text_layout {data.text_layout!r})') from error


def _read_query_rows(data: Any, qid: int | str) -> tuple[pathlib.Path, np.ndarray]:
    path = find_file(pathlib.Path(data.root, data.text_dir), (f'qid{qid}', f'{qid}'))
    return path, read_features(path, TEXT_KEY)


def _check_width(name: Any, rows: np.ndarray, dim: int, config_key: str) -> None:
    if rows.shape[1] != dim:
        raise DataError(f'{name}: width {rows.shape[1]}, expected {dim} ({config_key})')


def _normalize(rows: np.ndarray) -> np.ndarray:
    return rows / (np.linalg.norm(rows, axis=-1, keepdims=True) + NORM_EPSILON)


# Token roles


def token_roles(rows: np.ndarray, layout: TextLayout) -> np.ndarray:
    """Returns text[R]: each row is 'dropped', 'word', '[EOS]' or, if zero at the end, 'padding'."""
    filled = np.flatnonzero(rows.any(axis=1))
    n_rows = filled[-1] + 1 if len(filled) else 0
    roles = np.full(len(rows), 'padding')
    roles[:n_rows] = 'word'
    if layout.eos == 'last' and n_rows:
        roles[n_rows - 1] = '[EOS]'
    roles[:min(layout.drop_first, n_rows)] = 'dropped'
    return roles


def split_tokens(rows: np.ndarray, layout: TextLayout, max_words: int, *,
                 normalize: bool) -> tuple[np.ndarray, np.ndarray]:
    """Splits a query's rows by their roles.

    Args:
        rows: float32[R, D], as in the file.
        layout: of the rows.
        max_words: longer queries lose their last words, but not [EOS], which is taken out before.
        normalize: whether rows are scaled to length one.

    Returns:
        words: float32[L, D], L <= max_words. L = 0 is legal where the file has its own [EOS].
        eos: float32[D].

    Raises:
        DataError: no row is left for [EOS], or no word to average.
    """
    roles = token_roles(rows, layout)
    kept = rows[(roles == 'word') | (roles == '[EOS]')]
    if not len(kept):
        found = np.count_nonzero(roles != 'padding')
        raise DataError(f'{found} rows beside padding, expected at least {layout.drop_first + 1}')
    kept = _normalize(kept) if normalize else kept
    if layout.eos == 'last':
        words, eos = kept[:-1], kept[-1]
    else:
        words, eos = kept, kept.mean(axis=0)
        eos = _normalize(eos) if normalize else eos
    return words[:max_words], eos


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
        roles = token_roles(rows, TEXT_LAYOUTS[data.text_layout])
        unit = _normalize(rows[roles != 'padding'])
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
            lines.append(f'{i:>3}  {roles[i]:<8} {shared:>7} |{cells}')
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
    try:
        lines = pathlib.Path(path).read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: can't be read: {_one_line(error)}") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
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
        raise DataError(f'{where}: not JSON: {_one_line(error)}') from error
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


def load_split(data: Any, split: str) -> Split:
    """Reads a whole split into memory, each video once.

    Raises:
        DataError: the config or a folder is wrong, the split has no annotation file, nothing usable
            is left, or a record or one of its files is bad. With data.on_error = 'skip', bad
            records are left out instead and reported in `problems`.
    """
    _check_config(data, (*data.video_dirs, data.text_dir))
    path = _annotation_file(data, split)
    problems = _problem_list(data)
    records = read_annotations(path, data, problems)
    queries = [_attempt(problems, read_query, data, record.qid) for record in records]
    examples = [example for example in zip(records, queries, strict=True) if example[1] is not None]
    videos, places = [], {}
    for vid, uses in collections.Counter(record.vid for record, _ in examples).items():
        video = _attempt(problems, read_video, data, vid)
        if video is None:
            problems[-1] += f' (skipped records: {uses})'
        else:
            places[vid] = len(videos)
            videos.append(video)
    examples = [example for example in examples if example[0].vid in places]
    if not examples:
        reason = f'; the first of {len(problems)} problems: {problems[0]}' if problems else ''
        raise DataError(f'{path}: no usable record{reason}')
    records = [record for record, _ in examples]
    video_index = np.array([places[record.vid] for record in records], np.int32)
    return Split(
        name=split,
        records=records,
        videos=videos,
        video_index=video_index,
        words=[words for _, (words, _) in examples],
        eos=np.stack([eos for _, (_, eos) in examples]),
        saliency=[saliency_labels(record, len(videos[i]), data.saliency)
                  for record, i in zip(records, video_index, strict=True)],
        problems=problems or [],
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
    options = {'on_error': ('raise', 'skip'), 'saliency': _SALIENCY, 'text_layout': TEXT_LAYOUTS}
    for name, known in options.items():
        if (value := getattr(data, name)) not in known:
            raise DataError(f'data.{name} is {value!r}, expected one of {", ".join(known)}')
    if not 0 < len(data.video_dirs) == len(data.video_dims):
        raise DataError(f'data.video_dirs has {len(data.video_dirs)} entries, data.video_dims '
                        f'{len(data.video_dims)}, expected the same number, at least one')
    for folder in folders:
        if not (path := pathlib.Path(data.root, folder)).is_dir():
            raise DataError(f'{path}: no such folder (data.root, data.video_dirs, data.text_dir)')


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


def _one_line(error: BaseException) -> str:
    return ' '.join(str(error).split())


# Saliency


def saliency_labels(record: Record, n_clips: int, mode: str) -> np.ndarray:
    """Returns the clips' labels float32[n_clips], all 0 where the record has none.

    Args:
        record: the query.
        n_clips: number of clips that the video's features have.
        mode: 'annotators': the annotators' sum at relevant clips, 0 elsewhere (clips beyond n_clips
            are ignored). 'window': 1 from the first to the last clip of the first window.
    """
    labels, _ = _SALIENCY[mode]
    return labels(record, n_clips)


def sample_saliency_pairs(record: Record, n_clips: int, mode: str,
                          rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws two pairs of clips of which the first should score higher, as the references do.

    Args:
        record: the query.
        n_clips: number of clips that the video's features have.
        mode: 'annotators': a relevant clip of the highest sum over one of the lowest, and any
            relevant clip over any other (the first pair again if there is no other). 'window': two
            clips of the first window over two outside (over themselves if there are no two).
        rng: source of the draws.

    Returns:
        pos: int32[2], neg: int32[2]; all 0 if the record has no labels, which the losses mask.
    """
    _, pairs = _SALIENCY[mode]
    pos, neg = pairs(record, n_clips, rng)
    return np.array(pos, np.int32), np.array(neg, np.int32)


_Pairs = tuple[tuple[int, int], tuple[int, int]]


def _annotator_labels(record: Record, n_clips: int) -> np.ndarray:
    labels = np.zeros(n_clips, np.float32)
    if record.clip_scores is not None:
        inside = record.clip_ids < n_clips
        labels[record.clip_ids[inside]] = record.clip_scores[inside].sum(axis=1)
    return labels


def _annotator_pairs(record: Record, n_clips: int, rng: np.random.Generator) -> _Pairs:
    if record.clip_scores is None or not len(record.clip_ids):
        return (0, 0), (0, 0)
    # Features can have fewer clips than the annotation: the last one stands for those beyond.
    clips = np.minimum(record.clip_ids, n_clips - 1)
    order = record.clip_scores.sum(axis=1).argsort(kind='stable')
    highest, lowest = clips[order[-1]], clips[order[0]]
    is_other = np.ones(n_clips, bool)
    is_other[clips] = False
    others = np.flatnonzero(is_other)
    if not len(others):
        return (highest, highest), (lowest, lowest)
    return ((highest, clips[rng.integers(len(clips))]),
            (lowest, others[rng.integers(len(others))]))


def _window_span(record: Record, n_clips: int) -> tuple[int, int]:
    """Returns the first window's first and last clip; all clips are taken as equally long."""
    clip_length = record.duration / n_clips
    start, end = record.windows[0]
    last = max(0, min(int(end / clip_length), n_clips) - 1)
    return min(int(start / clip_length), last), last


def _window_labels(record: Record, n_clips: int) -> np.ndarray:
    labels = np.zeros(n_clips, np.float32)
    if len(record.windows):
        first, last = _window_span(record, n_clips)
        labels[first:last + 1] = 1
    return labels


def _window_pairs(record: Record, n_clips: int, rng: np.random.Generator) -> _Pairs:
    if not len(record.windows):
        return (0, 0), (0, 0)
    first, last = _window_span(record, n_clips)
    n_inside = last - first + 1
    i, j = _draw_two(rng, n_inside) if n_inside > 1 else (0, 0)
    pos = first + i, first + j
    if n_clips - n_inside < 2:
        return pos, pos
    # Numbers below `first` are clips before the window, the others clips after it.
    i, j = _draw_two(rng, n_clips - n_inside)
    return pos, (i + n_inside * (i >= first), j + n_inside * (j >= first))


def _draw_two(rng: np.random.Generator, n: int) -> tuple[int, int]:
    """Draws two different numbers below n, several times faster than `rng.choice`."""
    i, j = rng.integers(n), rng.integers(n - 1)
    return i, j + (j >= i)


_SALIENCY = {
    'annotators': (_annotator_labels, _annotator_pairs),
    'window': (_window_labels, _window_pairs),
}

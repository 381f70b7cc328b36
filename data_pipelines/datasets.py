"""Reads the data sets' public releases, as users have them, into raw examples.

A release is one annotation file per split (JSON lines), one feature file per video and stream, and
one per query. All errors of these files are raised here, before any device time, as a `DataError`
of one line. What a user must say of a release is in the config node `data`; functions that take
`data` read these attributes of it:

    root            folder that the other paths are relative to
    annotations     split -> annotation file; '' where there is none
    domain          only the records of this domain (TVSum, YouTube Highlights); '': all
    duration_unit   seconds that a 1 in the annotations' field `duration` stands for
    video_dirs, video_dims   folder and width of each video stream
    video_parts     ends of the names of the files whose columns make up a stream; ('',): one file
    text_dir, text_dim       folder and width of the query features
    text_key        name of the query's array in an .npz file
    text_layout     key of tokens.TEXT_LAYOUTS
    normalize_text  whether text rows are scaled to length one (video rows always are)
    saliency        how a clip's label is made: key of saliency.MODES
    segments        whether video ids end in _START_END: queries of one source are no negatives
    max_tokens      rows of a query, start-of-text and [EOS] included; further words are cut
    max_clips, max_windows   a video or query with more is an error
    dtype           of features in memory and batches, 'float32' or 'float16'
    on_error        'raise' or 'skip'
    skip_list       file of records to leave out, see `skip_list`; '' for none
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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from data_pipelines import features, lazy, saliency, skip_list, tokens
from data_pipelines.errors import DataError

END_TOLERANCE = 1e-3  # seconds that a window may end after its video
LABEL_TOLERANCE = 2, 0.1  # clips, or share of them, that features and labels may differ by

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
        duration_unit: seconds that a 1 in the annotations' field `duration` stands for.
        selection: the best checkpoint has the highest mean of these metrics.
        round_to_clip: whether predicted windows are rounded to multiples of clip_length.
        clip_to: seconds that predicted windows are clipped to; a release of features can say
            otherwise.
    """

    annotations: Mapping[str, str]
    clip_length: float
    saliency: str
    max_windows: int
    segments: bool = False
    duration_unit: float = 1.0
    selection: tuple[str, ...] = ('MR-full-mAP',)
    round_to_clip: bool = True
    clip_to: tuple[float, float] = (0.0, 150.0)


_WHOLE_VIDEO = 0.0, 50000.0  # as the public post-processing writes it

# docs/datasets.md tells where each comes from, and its traps.
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
    'tacos': Dataset(
        # The public scripts choose their checkpoints on the test split.
        annotations={'train': 'train.jsonl', 'val': 'val.jsonl', 'test': 'test.jsonl'},
        clip_length=2.0,
        saliency='window',
        max_windows=1,
        selection=('MR-full-R1@0.3',),
        clip_to=_WHOLE_VIDEO,
    ),
    'tvsum': Dataset(
        annotations={
            'train': 'tvsum_train.jsonl',
            'val': 'tvsum_val.jsonl',  # there is no third split
            'test': 'tvsum_val.jsonl',
        },
        clip_length=2.0,
        saliency='grades',
        max_windows=1,  # none, but the batch has a place for them
        duration_unit=2.0,  # `duration` counts clips
        selection=('mAP',),
        clip_to=_WHOLE_VIDEO,
    ),
    'youtube_highlights': Dataset(
        annotations={
            'train': 'youtube_train.jsonl',
            'val': 'youtube_valid.jsonl',  # there is no third split
            'test': 'youtube_valid.jsonl',
        },
        clip_length=1.0,  # as the public scripts say; clips are 50 frames apart
        saliency='binary',
        max_windows=1,
        selection=('mAP',),
        clip_to=_WHOLE_VIDEO,
    ),
    'synthetic': Dataset(
        annotations={'train': 'train.jsonl', 'val': 'val.jsonl', 'test': 'test.jsonl'},
        clip_length=2.0,
        saliency='annotators',
        max_windows=5,
    ),
    'custom': Dataset(  # configs/custom.py reads sizes off the user's files
        annotations={'train': 'train.jsonl', 'val': 'val.jsonl', 'test': 'test.jsonl'},
        clip_length=2.0,
        saliency='windows',
        max_windows=5,
        round_to_clip=False,
    ),
}

_SF_CLIP = dict(
    video_dirs=('slowfast_features', 'clip_features'), video_dims=(2304, 512),
    text_dir='clip_text_features', text_dim=512, text_layout='clip')
_IV2 = dict(video_dims=(768,), text_dim=4096, text_layout='llama')

# Highlight data sets: CLIP rows as they are, titles and domain names of a few words.
_HIGHLIGHTS = dict(text_dim=512, text_layout='clip', normalize_text=False, max_tokens=77)

# (data set, release of features) -> fields of `data`, and `clip_to` of `evaluate`. Limits of clips
# leave room for what releases add to the longest video's duration.
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
    # Six rows a second; rows of the sentences are made by --mode=word-vectors.
    ('charades_sta', 'vgg'): dict(
        video_dirs=('vgg_features/rgb_features',), video_dims=(4096,), text_dir='glove_features',
        text_dim=300, text_layout='glove', clip_length=0.166666, clip_to=(0.0, 360.0),
        max_clips=1200, max_tokens=32),
    # 1402.18 s, 64 words
    ('tacos', 'sf_clip'): dict(**_SF_CLIP, max_clips=710, max_tokens=77),
    # 323 and 741 labelled clips
    ('tvsum', 'sf_clip'): dict(
        **_HIGHLIGHTS, video_dirs=('vid_slowfast', 'vid_clip'), video_dims=(2304, 512),
        text_dir='txt_clip', max_clips=400),
    ('tvsum', 'i3d'): dict(
        **_HIGHLIGHTS, video_dirs=('video_features',), video_dims=(2048,),
        video_parts=('_rgb', '_opt'), text_dir='query_features', text_key='token', max_clips=400),
    ('youtube_highlights', 'sf_clip'): dict(
        **_HIGHLIGHTS, video_dirs=('vid_clip', 'vid_slowfast'), video_dims=(512, 2304),
        text_dir='txt_clip', max_clips=800),
    # Widths and limits are those of the generated world.
    ('synthetic', 'planted'): dict(video_dirs=('video',), text_dir='text', text_layout='clip'),
    ('custom', 'own'): dict(
        video_dirs=('video',), text_dir='text', text_layout='clip', max_tokens=40),
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
        label: float32[C, A] of A annotators, what each of the video's clips is to them; None where
            the file has none.
        domain: of the video; '' where the file has none.
    """

    qid: int | str
    query: str
    vid: str
    duration: float
    windows: np.ndarray
    clip_ids: np.ndarray
    clip_scores: np.ndarray | None
    line: int
    label: np.ndarray | None = None
    domain: str = ''


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
        problems: what was skipped, on purpose or on_error, one message each.
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


def read_video(data: Any, vid: str, labelled: int | None = None) -> np.ndarray:
    """Reads a video's streams and joins them clip by clip.

    Args:
        data: the config node.
        vid: name of the video.
        labelled: how many clips the annotations have a label for, if they have: what is behind
            these is cut off.

    Returns:
        float32[T, sum of data.video_dims]: each stream's rows scaled to length one; T is the number
        of clips of the shortest stream.

    Raises:
        DataError: a file is missing or bad, its width is not that of data.video_dims, there are
            more than data.max_clips clips, or not about as many as labels.
    """
    files = video_files(data, vid)
    streams = [join_parts([features.read_features(path, features.VIDEO_KEY) for path in paths])
               for paths in files]
    names = [paths[0] for paths in files]
    video = join_streams(data, streams, names)
    if labelled is None:
        return video
    check_labels(names[0], vid, len(video), labelled)
    return video[:labelled]


def video_files(data: Any, vid: str) -> list[list[pathlib.Path]]:
    """The files of a video: for each stream of data.video_dirs its parts.

    Raises:
        DataError: one is missing.
    """
    folders = [pathlib.Path(data.root, folder) for folder in data.video_dirs]
    return [[features.find_file(folder, (vid + part,)) for part in data.video_parts]
            for folder in folders]


def join_parts(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Lays the files of a stream, float32[T_i, d_i], side by side, as long as the shortest."""
    shortest = min(map(len, parts))
    return np.concatenate([rows[:shortest] for rows in parts], axis=1)


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
        check_width(name, rows.shape[1], dim, 'data.video_dims')
    shortest = min(range(len(streams)), key=lambda i: len(streams[i]))
    n_clips = len(streams[shortest])
    check_clips(names[shortest], n_clips, data.max_clips)
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
    check_width(name, rows.shape[1], data.text_dim, 'data.text_dim')
    layout = tokens.TEXT_LAYOUTS[data.text_layout]
    try:
        text, roles = tokens.label_tokens(
            rows, layout, data.max_tokens, normalize=data.normalize_text)
    except DataError as error:
        raise DataError(f'{name}: {error} (data.text_layout {data.text_layout!r})') from error
    return text.astype(features.dtype_of(data), copy=False), roles


def _read_query_rows(data: Any, qid: int | str) -> tuple[pathlib.Path, np.ndarray]:
    path = find_query(data, qid)
    return path, features.read_features(path, data.text_key)


def find_query(data: Any, qid: int | str) -> pathlib.Path:
    """The feature file of a query; DataError if there is none."""
    return features.find_file(pathlib.Path(data.root, data.text_dir), (f'qid{qid}', f'{qid}'))


def check_width(name: Any, width: int, dim: int, config_key: str) -> None:
    """Raises DataError if a file's features are not as wide as the config says."""
    if width != dim:
        raise DataError(f'{name}: width {width}, expected {dim} ({config_key})')


def check_labels(name: Any, vid: str, n_clips: int, labelled: int) -> None:
    """Raises DataError if a video has not about as many clips as its annotations have labels."""
    clips, share = LABEL_TOLERANCE
    if abs(n_clips - labelled) > max(clips, share * labelled):
        raise DataError(f'{name}: {n_clips} clips, expected about {labelled}, as many as the '
                        f'annotations of {vid!r} have labels')


def check_clips(name: Any, n_clips: int, max_clips: int) -> None:
    """Raises DataError if a video has more clips than data.max_clips."""
    if n_clips > max_clips:
        raise DataError(f'{name}: {n_clips} clips, expected at most {max_clips} (data.max_clips)')


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
    lines, skipped = split_lines(data, split)
    path = _annotation_file(data, split)
    records = parse_annotations(lines, path, data, _problem_list(data), skipped)[:n]
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
        data: the config node, of which limit, domain, max_windows and duration_unit are read, and
            saliency where records have a `label`.
        problems: None: the first bad record raises. A list: bad records are left out, and their
            messages appended to it.

    Returns:
        The records in the file's order. Those of a hidden test set have no windows.

    Raises:
        DataError: the file can't be read; a record is bad or repeats a qid; none is of the domain.
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
                      problems: list[str] | None = None,
                      skipped: Collection[int] = ()) -> list[Record]:
    """`read_annotations` of numbered lines; `path` is what messages call their file.

    The lines whose numbers are `skipped` are not looked at, but count for data.limit.
    """
    first_lines: dict[int | str, int] = {}

    def read_record(number: int, line: bytes) -> Record:
        record = _parse_record(line, number, f'{path}:{number}', data)
        first = first_lines.setdefault(record.qid, number)
        if first != number:
            raise DataError(f'{path}:{number}: qid {record.qid!r} is that of line {first}, '
                            'expected another')
        return record

    records, others, read = [], set(), 0
    for entry in numbered:
        if data.limit and read == data.limit:
            break
        if entry[0] in skipped:
            read += 1
            continue
        record = _attempt(problems, read_record, *entry)
        if record is not None and data.domain and record.domain != data.domain:
            others.add(record.domain)
            continue
        read += 1
        if record is not None:
            records.append(record)
    if others and not records:
        raise DataError(f'{path}: no record of domain {data.domain!r} (data.domain), known are: '
                        f'{", ".join(sorted(others - {""})) or "none"}')
    return records


def _parse_record(line: bytes, number: int, where: str, data: Any) -> Record:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise DataError(f'{where}: not JSON: {features.one_line(error)}') from error
    _expect(isinstance(fields, dict), where, 'the line', fields, 'an object {...}')
    for name in ('qid', 'query', 'duration', 'vid'):
        if name not in fields:
            raise DataError(f'{where}: field {name!r} is missing')
    qid, query, duration, vid = (fields[name] for name in ('qid', 'query', 'duration', 'vid'))
    _expect(type(qid) is int or is_name(qid), where, 'qid', qid, 'a whole number or a file name')
    is_text = isinstance(query, str) and query.strip()
    _expect(is_text, where, 'query', query, 'a text that is not empty')
    _expect(is_name(vid), where, 'vid', vid, 'a file name')
    _expect(_is_number(duration) and duration > 0, where, 'duration', duration, 'seconds above 0')
    duration *= data.duration_unit
    windows = _parse_windows(fields.get('relevant_windows'), duration, where)
    if len(windows) > data.max_windows:
        raise DataError(f'{where}: {len(windows)} relevant_windows, expected at most '
                        f'{data.max_windows} (data.max_windows)')
    ids, scores = fields.get('relevant_clip_ids'), fields.get('saliency_scores')
    label, domain = fields.get('label'), fields.get('domain', '')
    _expect(domain == '' or is_name(domain), where, 'domain', domain, 'a name')
    if label is not None:
        label = _parse_label(label, where, saliency.MODES[data.saliency].grades)
    return Record(qid, query, vid, float(duration), windows, *_parse_clips(ids, scores, where),
                  line=number, label=label, domain=domain)


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


def _parse_label(label: Any, where: str, grades: tuple[float, float]) -> np.ndarray:
    """Checks each clip's label and returns float32[C, A]; `grades` are the lowest and highest."""
    _expect(isinstance(label, list) and label, where, 'label', label, 'a list, a row for each clip')
    n_annotators = len(label[0]) if isinstance(label[0], list) else 0
    low, high = grades
    for i, row in enumerate(label):
        is_row = isinstance(row, list) and row and all(map(_is_number, row))
        _expect(is_row and len(row) == n_annotators and low <= min(row) and max(row) <= high, where,
                f'label[{i}]', row, f'{max(n_annotators, 1)} numbers from {low} to {high}')
    return np.array(label, np.float32)


def _is_number(value: Any) -> bool:
    """Says whether a float holds value, which JSON allows to be true, NaN or 400 digits long."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_name(value: Any) -> bool:
    """Says whether value is a printable text that is not blank."""
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
        self._lines, self.skipped = split_lines(data, split)
        self.left_out = skip_list.messages(self.name, data.skip_list, self.skipped)
        self._labelled: dict[str, int] = {}

    def records(self, problems: list[str] | None) -> list[Record]:
        """As `read_annotations`, without those of data.skip_list, which `left_out` names."""
        records = parse_annotations(self._lines, self.name, self._data, problems, self.skipped)
        self._labelled = labelled_clips(records)
        return records

    def query(self, qid: int | str) -> tuple[np.ndarray, np.ndarray]:
        """As `read_query`."""
        return read_query(self._data, qid)

    def video(self, vid: str) -> np.ndarray:
        """As `read_video`, cut to the clips that the records have labels for."""
        return read_video(self._data, vid, self._labelled.get(vid))

    def n_clips(self, vid: str, read: Callable[[str], np.ndarray]) -> int:
        """How many clips a video has; `read` is `video`, or remembers what that returned."""
        return len(read(vid))


def labelled_clips(records: Iterable[Record]) -> dict[str, int]:
    """Of the videos whose clips have labels, how many have one."""
    return {record.vid: len(record.label) for record in records if record.label is not None}


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


def split_lines(data: Any, split: str) -> tuple[list[tuple[int, bytes]], dict[int, str]]:
    """Reads a split's annotation file.

    Returns:
        (its lines; numbers of those that data.skip_list leaves out -> why).

    Raises:
        DataError: the config names no such split, or as `annotation_lines` and `skip_list.read`.
    """
    lines = annotation_lines(_annotation_file(data, split))
    skipped = skip_list.read(data.skip_list, split, data.annotations, lines)
    return lines, skipped


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
    if not data.video_parts:
        raise DataError("data.video_parts is empty, expected the ends of files' names, or ('',)")
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

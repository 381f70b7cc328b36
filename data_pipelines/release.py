"""Feature files of a release: a file for each video, stream and query, read and checked."""

import contextlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines import annotations, features, recipe, saliency, skip_list, tokens
from data_pipelines.errors import DataError

# Clips, or share of them, that features may have more than data.max_clips, which are cut off, or
# more or fewer than labels: what encoders add. With more it is another rate or another video.
CLIP_TOLERANCE = 2, 0.1
# Clips, or share of the most, that a video's streams may differ by; the shortest counts. With more
# they have other rates.
STREAM_TOLERANCE = 5, 0.2


class ReleaseSplit:
    """A split as its release has it: an annotation file, and a file a query and video stream.

    Attributes:
        name: of its annotation file.
        skipped: what data.skip_list leaves out, a message each.
        cut: number of clips of the videos that were cut to data.max_clips.
    """

    def __init__(self, data: Any, split: str):
        """Checks the config and that the folders exist; raises DataError."""
        check_config(data, (*data.video_dirs, data.text_dir))
        found = recipe.read(data.root)
        if found and found.clip_length not in (0, data.clip_length):
            raise DataError(f'{data.root}/{recipe.FILE}: clips of {found.clip_length} s, expected '
                            f'{data.clip_length} (data.clip_length)')
        self.name, self._data = annotations.annotation_file(data, split), data
        self._lines, self._skip = annotations.split_lines(data, split)
        self.skipped = skip_list.messages(self.name, data.skip_list, self._skip)
        self._labelled: dict[str, int] = {}
        self.cut: dict[str, int] = {}

    def queries(self, skipped: list[str] | None) -> list[annotations.Query]:
        """As `read_annotations`, without those of data.skip_list."""
        queries = annotations.parse_annotations(
            self._lines, self.name, self._data, skipped, self._skip)
        self._labelled = annotations.labelled_clips(queries)
        return queries

    def query(self, qid: int | str) -> tuple[np.ndarray, np.ndarray]:
        """As `read_query`."""
        return read_query(self._data, qid)

    def video(self, vid: str) -> np.ndarray:
        """As `read_video`, cut to the clips that the queries have labels for."""
        return read_video(self._data, vid, self._labelled.get(vid), self.cut)

    def n_clips(self, vid: str, read: Callable[[str], np.ndarray]) -> int:
        """How many clips a video has; `read` is `video`, or remembers what that returned."""
        return len(read(vid))


# Config


def check_config(data: Any, folders: Iterable[str]) -> None:
    """Checks what can't be blamed on a file, and that the folders exist."""
    check_options(data)
    for folder in folders:
        if not features.is_folder(path := pathlib.Path(data.root, folder)):
            raise DataError(f'{path}: no such folder or HDF5 file (data.root, data.video_dirs, '
                            'data.text_dir)')


def check_options(data: Any) -> None:
    """Raises DataError if a value of the config is none of those that it can have."""
    options = {'on_error': ('raise', 'skip'), 'saliency': saliency.MODES,
               'text_layout': tokens.TEXT_LAYOUTS, 'empty_windows': ('refuse', 'drop')}
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
    if not data.end_tolerance >= 0:
        raise DataError(f'data.end_tolerance is {data.end_tolerance}, expected seconds from 0 on')
    if not data.clip_length > 0:
        raise DataError(f'data.clip_length is {data.clip_length}, expected seconds above 0')


# Videos


def read_video(data: Any, vid: str, labelled: int | None = None,
               cut: dict[str, int] | None = None) -> np.ndarray:
    """Reads a video's streams and joins them clip by clip.

    Args:
        data: the config node.
        vid: name of the video.
        labelled: how many clips the annotations have a label for, if they have: what is behind
            these is cut off.
        cut: takes the number of clips of the video if it is cut to data.max_clips.

    Returns:
        float32[T, sum of data.video_dims]: each stream's rows scaled to length one; T is the number
        of clips of the shortest stream, data.max_clips at most.

    Raises:
        DataError: a file is missing or bad, its width is not that of data.video_dims, there are
            far more than data.max_clips clips, or not about as many as labels.
    """
    files = _video_files(data, vid)
    streams = [join_parts([features.read_features(path, features.VIDEO_KEY) for path in paths])
               for paths in files]
    names = [paths[0] for paths in files]
    video = join_streams(data, streams, names)
    shortest = min(range(len(streams)), key=lambda i: len(streams[i]))
    kept = kept_clips(names[shortest], len(video), data.max_clips)
    if cut is not None and len(video) > kept:
        cut[vid] = len(video)
    if labelled is not None:
        check_labels(names[0], vid, kept, labelled)
    return video[:kept][:labelled]


def _video_files(data: Any, vid: str) -> list[list[pathlib.Path]]:
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

    Returns:
        [T, sum of data.video_dims], T of the shortest stream, whatever data.max_clips.
    """
    if len(streams) != len(data.video_dims):
        raise DataError(f'{len(streams)} video streams, expected {len(data.video_dims)}: '
                        f'{", ".join(data.video_dirs)} (data.video_dirs)')
    for name, rows, dim in zip(names, streams, data.video_dims, strict=True):
        check_width(name, rows.shape, dim, 'data.video_dims')
    check_lengths(names, list(map(len, streams)))
    n_clips = min(map(len, streams))
    joined = np.concatenate([tokens.unit_rows(rows[:n_clips]) for rows in streams], axis=1)
    return joined.astype(features.dtype_of(data), copy=False)


# Queries


def read_query(data: Any, qid: int | str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a query's tokens: what `tokens.label_tokens` returns.

    Raises:
        DataError: the file is missing or bad, its width is not data.text_dim, or data.text_layout
            leaves nothing of it.
    """
    path, rows = read_query_rows(data, qid)
    return label_query(data, rows, name=path)


def label_query(data: Any, rows: np.ndarray, name: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels a query's raw rows float32[R, d] as the config says, in data.dtype."""
    check_width(name, rows.shape, data.text_dim, 'data.text_dim')
    with naming_layout(data, name):
        text, roles = tokens.label_tokens(rows, tokens.TEXT_LAYOUTS[data.text_layout],
                                          data.max_tokens, normalize=data.normalize_text)
    return text.astype(features.dtype_of(data), copy=False), roles


@contextlib.contextmanager
def naming_layout(data: Any, name: Any) -> Iterator[None]:
    """Adds the file and data.text_layout to a DataError of `tokens`."""
    try:
        yield
    except DataError as error:
        raise DataError(f'{name}: {error} (data.text_layout {data.text_layout!r})') from error


def read_query_rows(data: Any, qid: int | str) -> tuple[pathlib.Path, np.ndarray]:
    """Reads the rows of a query as they are in its file: (path, float32[R, d])."""
    path = find_query(data, qid)
    return path, features.read_features(path, data.text_key)


def find_query(data: Any, qid: int | str) -> pathlib.Path:
    """The feature file of a query; DataError if there is none."""
    return features.find_file(pathlib.Path(data.root, data.text_dir), (f'qid{qid}', f'{qid}'))


# Checks


def check_width(name: Any, shape: tuple[int, int], dim: int, config_key: str) -> None:
    """Raises DataError if features of this shape are not as wide as the config says."""
    n_rows, width = shape
    if width != dim and n_rows == dim:
        raise DataError(f'{name}: shape [{n_rows}, {width}], expected [n, {dim}] ({config_key}): '
                        'transposed?')
    if width != dim:
        raise DataError(f'{name}: width {width}, expected {dim} ({config_key})')


def check_lengths(names: Sequence[Any], lengths: Sequence[int]) -> None:
    """Raises DataError if the streams of a video differ so much in clips that rates must differ."""
    clips, share = STREAM_TOLERANCE
    if max(lengths) - min(lengths) > max(clips, share * max(lengths)):
        found = ', '.join(f'{name} {n}' for name, n in zip(names, lengths, strict=True))
        raise DataError(f'streams of {min(lengths)} to {max(lengths)} clips, expected about the '
                        f'same number: {found}')


def check_labels(name: Any, vid: str, n_clips: int, labelled: int) -> None:
    """Raises DataError if a video has not about as many clips as its annotations have labels."""
    if abs(n_clips - labelled) > _tolerated(labelled):
        raise DataError(f'{name}: {n_clips} clips, expected about {labelled}, as many as the '
                        f'annotations of {vid!r} have labels')


def kept_clips(name: Any, n_clips: int, max_clips: int) -> int:
    """How many clips of a video are read: data.max_clips at most, as public loaders cut.

    Raises:
        DataError: it has far more.
    """
    if n_clips - max_clips > _tolerated(max_clips):
        raise DataError(f'{name}: {n_clips} clips, expected at most {max_clips} (data.max_clips; '
                        f'up to {int(_tolerated(max_clips))} more are cut off)')
    return min(n_clips, max_clips)


def _tolerated(n_clips: int) -> float:
    clips, share = CLIP_TOLERANCE
    return max(clips, share * n_clips)

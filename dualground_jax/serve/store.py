"""Videos and their features on disk: a folder for each, by the hash of its bytes.

A folder holds `video.json`, the upload as `video` (a video of the allowed folder stays where it
is), and when it is encoded `features.npz`. What has no features is encoded after the next start.
"""

import collections
import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import pathlib
import shutil
import threading
from typing import Any

from data_pipelines import files
from data_pipelines.errors import ConfigError, DataError, UserError, one_line
from data_pipelines.recipe import Recipe
from dualground_jax.grounding.encoded import EncodedVideo
from dualground_jax.serve.reading import Facts

LOG = logging.getLogger('dualground.serve')
QUEUED, ENCODING, READY, FAILED, CANCELLED = 'queued', 'encoding', 'ready', 'failed', 'cancelled'
VIDEO, RECORD, FEATURES = 'video', 'video.json', 'features.npz'
IN_MEMORY = 32  # encoded videos that are kept there
ENDED = 200  # failed and cancelled videos that are remembered
_OWN = '.' + '[0-9a-f]' * 32 + '.*'  # folders of videos, half-made or half-deleted


class Busy(UserError):
    """The video's state does not allow it."""


@dataclasses.dataclass(eq=False)
class Video:
    """A video that the service knows.

    Attributes:
        id: hash of its bytes.
        name: as uploaded; for people alone.
        media_type: as its bytes tell.
        bytes: of the file.
        source: its path, if it lies in the allowed folder; else ''.
        facts: what it says of itself; None: not read yet.
        state: QUEUED, ENCODING, READY, FAILED or CANCELLED.
        error: why it failed.
        done, total: pictures encoded, and all of them; 0: not known.
        started: when encoding began, seconds of the monotonic clock.
    """

    id: str
    name: str
    media_type: str
    bytes: int
    source: str = ''
    facts: Facts | None = None
    state: str = QUEUED
    error: str = ''
    done: int = 0
    total: int = 0
    started: float = 0.0

    def record(self) -> dict[str, Any]:
        """What is kept on disk."""
        kept = {name: getattr(self, name) for name in ('id', 'name', 'media_type', 'bytes',
                                                       'source')}
        return kept | dict(facts=dataclasses.asdict(self.facts) if self.facts else None)


class Store:
    """The videos of a service; methods may be called from any thread.

    Args:
        folder: made if it is missing; of one service at a time.
        limit: bytes of all videos and features.
        recipe: of the features that the model reads; others are made anew.

    Raises:
        ConfigError: another service uses the folder, or it holds something else.
    """

    def __init__(self, folder: str | os.PathLike, limit: float, recipe: Recipe):
        self.folder, self.limit, self._recipe = pathlib.Path(folder).absolute(), limit, recipe
        self.videos: dict[str, Video] = {}  # the least recently used one first
        self._sizes: dict[str, int] = {}  # bytes in the folder of each
        self._encoded: collections.OrderedDict[str, EncodedVideo] = collections.OrderedDict()
        self._changes = threading.RLock()
        with files.named(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / '.lock', 'w')
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f'{self.folder}: another service uses this folder') from None
        self._open()

    def _open(self) -> None:
        for path in self.folder.glob('.*.part'):
            path.unlink()
        for path in self.folder.glob(_OWN):
            shutil.rmtree(path)
        folders = [path for path in self.folder.iterdir()
                   if path.is_dir() and not path.name.startswith('.')]
        for folder in sorted(folders, key=lambda path: (path / RECORD).stat().st_mtime
                             if (path / RECORD).exists() else 0.0):
            video = self._read(folder)
            self.videos[video.id] = video
            self._sizes[video.id] = _size(folder)

    def _read(self, folder: pathlib.Path) -> Video:
        try:
            record = json.loads((folder / RECORD).read_text(encoding='utf-8'))
            facts = record.pop('facts')
            if record['id'] != folder.name:
                raise ValueError(f"id is {record['id']!r}")
            video = Video(**record, facts=Facts(**facts) if facts else None)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{folder / RECORD}: can't be read: {one_line(error)}; expected a "
                              "service's folder") from error
        with contextlib.suppress(DataError):
            if EncodedVideo.load(folder / FEATURES).recipe == self._recipe:
                video.state = READY
        return video

    def close(self) -> None:
        """Lets another service use the folder."""
        self._lock.close()

    def bytes(self) -> int:
        """Of all videos and features."""
        return sum(self._sizes.values())

    def path(self, video: Video) -> pathlib.Path:
        """The file of a video."""
        return pathlib.Path(video.source or self.folder / video.id / VIDEO)

    def find(self, key: str) -> Video | None:
        """A video by its id, which counts as used now."""
        with self._changes:
            video = self.videos.pop(key, None)
            if video:
                self.videos[key] = video
                with contextlib.suppress(OSError):  # it has no folder any more
                    os.utime(self.folder / key / RECORD)
            return video

    def add(self, video: Video, upload: pathlib.Path | None) -> Video:
        """Takes a new video in, to be encoded; one that is here or on its way is returned as it is.

        Args:
            video: the new one.
            upload: its file in the store's folder, which is moved; None: it stays in its place.

        Raises:
            Busy: there is no room.
        """
        with self._changes:
            known = self.find(video.id)
            if known and known.state not in (FAILED, CANCELLED):
                return known
            self.remove(video.id)
            self.make_room(video.bytes if upload else 0)
            with files.whole_folder(self.folder / video.id) as folder:
                if upload:
                    upload.rename(folder / VIDEO)
                files.write_json(folder / RECORD, video.record())
            self.videos[video.id] = video
            self._sizes[video.id] = _size(self.folder / video.id)
            return video

    def make_room(self, size: int) -> None:
        """Deletes the least recently used videos until there is room; Busy if there can't be."""
        with self._changes:
            self._drop_idle(size)
            if self.bytes() + size > self.limit:
                raise Busy(f'no room for {size / 1e6:.1f} MB more, expected at most '
                           f'{self.limit / 1e9:g} GB of videos')

    def _drop_idle(self, size: int) -> None:
        idle = [video.id for video in self.videos.values() if video.state == READY]
        while self.bytes() + size > self.limit and idle:
            self.remove(idle.pop(0))

    def begin(self, video: Video, now: float) -> bool:
        """Whether a queued video is still wanted; it is encoded from now on."""
        with self._changes:
            if video.state != QUEUED:
                return False
            video.state, video.started, video.done = ENCODING, now, 0
            return True

    def finish(self, video: Video, encoded: EncodedVideo) -> bool:
        """Keeps the features of a video, unless it was cancelled; returns whether it was kept."""
        with self._changes:
            if video.state != ENCODING:
                return False
            folder = self.folder / video.id
            encoded.save(folder / FEATURES)
            files.write_json(folder / RECORD, video.record())
            self._sizes[video.id] = _size(folder)
            self._drop_idle(0)
            video.state = READY
            return True

    def end(self, video: Video, state: str, error: str = '') -> bool:
        """Ends a video that is queued or encoded as FAILED or CANCELLED; its file goes."""
        with self._changes:
            if video.state not in (QUEUED, ENCODING):
                return False
            video.state, video.error = state, error
            self._delete(video.id)
            ended = [other.id for other in self.videos.values()
                     if other.state in (FAILED, CANCELLED)]
            for key in ended[:-ENDED]:
                del self.videos[key]
            return True

    def remove(self, key: str) -> None:
        """Forgets a video, whatever its state; a file of the allowed folder stays."""
        with self._changes:
            if video := self.videos.pop(key, None):
                if video.state in (QUEUED, ENCODING):
                    video.state = CANCELLED
                self._delete(key)

    def _delete(self, key: str) -> None:
        self._sizes.pop(key, None)
        self._encoded.pop(key, None)
        folder = self.folder / key
        if folder.exists():
            trash = folder.with_name(f'.{key}.deleted')
            shutil.rmtree(trash, ignore_errors=True)
            folder.rename(trash)
            shutil.rmtree(trash)

    def load(self, video: Video) -> EncodedVideo:
        """The features of a video.

        Raises:
            Busy: it is not encoded, or its features are damaged.
        """
        with self._changes:
            if video.state != READY:
                raise Busy(f'the video is {video.state}, expected ready'
                           + f': {video.error}' * bool(video.error))
            if video.id not in self._encoded:
                path = self.folder / video.id / FEATURES
                try:
                    self._encoded[video.id] = EncodedVideo.load(path)
                except DataError as error:
                    LOG.error('damaged features', extra=dict(error=one_line(error)))
                    raise Busy('the features of the video are damaged; delete it, and upload it '
                               'again') from error
            self._encoded.move_to_end(video.id)
            while len(self._encoded) > IN_MEMORY:
                self._encoded.popitem(last=False)
            return self._encoded[video.id]


def _size(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())

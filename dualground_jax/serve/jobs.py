"""Videos on their way to features: some at a time, each in a process that decodes it."""

import contextlib
import dataclasses
import functools
import logging
import math
import queue
import threading
import time
from collections.abc import Iterator

import numpy as np

from data_pipelines.errors import UserError
from dualground_jax.encoders.encoder import Encoder, Stream
from dualground_jax.grounding.encoded import EncodedVideo
from dualground_jax.serve import reading
from dualground_jax.serve.device import Device, Full
from dualground_jax.serve.metrics import Metrics
from dualground_jax.serve.store import CANCELLED, ENCODING, FAILED, QUEUED, Store, Video

LOG = logging.getLogger('dualground.serve')


class _Stopped(Exception):
    """The video is not wanted any more."""


class Jobs:
    """Encodes the store's videos in `count` threads.

    Args:
        store: of the videos; those queued in it are begun with.
        encoder: what makes the features.
        device: where it computes.
        metrics: counters.
        count: videos at a time.
        waiting: videos that may wait at most.
        bounds: of reading a video.
    """

    def __init__(self, store: Store, encoder: Encoder, device: Device, metrics: Metrics, *,
                 count: int, waiting: int, bounds: reading.Bounds):
        self._store, self._encoder, self._device = store, encoder, device
        self._metrics, self._most, self._bounds = metrics, waiting, bounds
        self._queue: queue.SimpleQueue[Video | None] = queue.SimpleQueue()
        self._hurry = False
        self._stopping = False
        for video in store.videos.values():
            if video.state == QUEUED:
                self._queue.put(video)
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def check_room(self) -> None:
        """Raises Full if too many videos wait."""
        waiting = len(self.waiting())
        if waiting >= self._most or self._stopping:
            raise Full(f'{waiting} videos wait, expected at most {self._most}')

    def waiting(self) -> list[Video]:
        """Queued videos, the next one first."""
        return [video for video in list(self._store.videos.values()) if video.state == QUEUED]

    def submit(self, video: Video) -> None:
        """Encodes a queued video when its turn comes."""
        self._queue.put(video)

    def stop(self, grace: float) -> None:
        """Lets running videos finish within `grace` seconds; the others stay queued on disk."""
        self._stopping = True
        for _ in self._threads:
            self._queue.put(None)
        end = time.monotonic() + grace
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0))
        self._hurry = True
        for thread in self._threads:
            thread.join(self._bounds.patience)

    def _work(self) -> None:
        while (video := self._queue.get()) is not None and not self._stopping:
            if not self._store.begin(video, time.monotonic()):
                continue
            try:
                self._finish(video, self._encode(video))
            except _Stopped:
                LOG.info('stopped', extra=dict(video=video.id, state=video.state))
            except UserError as error:
                self._fail(video, str(error))
            except Exception:  # of any kind: other videos follow
                LOG.exception('job', extra=dict(video=video.id))
                self._fail(video, 'the service failed; its log says why')

    def _encode(self, video: Video) -> EncodedVideo:
        streams = []
        for stream in self._encoder.streams:
            on_device = dataclasses.replace(
                stream, encode=functools.partial(self._device.call, stream.encode))
            with contextlib.closing(self._pictures(video, stream)) as pictures:
                streams.append(on_device.rows(pictures, video.name))
        duration = video.facts.duration or min(map(len, streams)) * self._bounds.clip_length
        return EncodedVideo(streams, duration, self._encoder.recipe)

    def _pictures(self, video: Video, stream: Stream) -> Iterator[np.ndarray]:
        def tell(facts: reading.Facts) -> None:
            video.facts = facts
            clips = math.ceil(facts.duration / (self._bounds.clip_length or 1))
            video.total = max(clips, 1) * len(self._encoder.streams)

        pictures = reading.read(
            str(self._store.path(video)), stream.decode, stream.shape, 2 * stream.batch_size,
            self._bounds, tell)
        with contextlib.closing(pictures):
            for picture in pictures:
                if video.state != ENCODING or self._hurry:
                    raise _Stopped
                video.done += 1
                yield picture

    def _finish(self, video: Video, encoded: EncodedVideo) -> None:
        if self._store.finish(video, encoded):
            seconds = time.monotonic() - video.started
            self._metrics.jobs.labels(video.state).inc()
            self._metrics.encoded_seconds.inc(encoded.duration)
            LOG.info('encoded', extra=dict(video=video.id, seconds=round(seconds, 3),
                                           duration=round(encoded.duration, 3)))

    def _fail(self, video: Video, reason: str) -> None:
        if self._hurry:  # it goes on after the next start
            return
        if self._store.end(video, FAILED, reason):
            self._metrics.jobs.labels(FAILED).inc()
            LOG.warning('failed', extra=dict(video=video.id, error=reason))

    def cancel(self, video: Video) -> bool:
        """Ends a video that is queued or encoded; returns whether it was."""
        ended = self._store.end(video, CANCELLED)
        if ended:
            self._metrics.jobs.labels(CANCELLED).inc()
            LOG.info('cancelled', extra=dict(video=video.id))
        return ended


def seconds_left(video: Video, now: float) -> float | None:
    """Of encoding; None where it can't be told yet."""
    if video.state != ENCODING or not video.done or not video.total:
        return None
    return (now - video.started) / video.done * max(video.total - video.done, 0)

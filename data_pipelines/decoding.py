"""Videos decoded in processes of their own, which write the pictures into rings in shared memory.

A worker is told which videos to decode and how much of its ring was read; it tells of each picture
and of the end of each video. Nothing but these words goes through a pipe.
"""

import collections
import contextlib
import dataclasses
import math
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, shared_memory

import numpy as np

from data_pipelines import slowfast_clips, video
from data_pipelines.errors import UserError, one_line

AHEAD = 2  # videos that a worker is told of: the one it decodes, and the next
ATTEMPTS = 2  # at a video whose worker dies

Decode = Callable[[str], Iterator[np.ndarray]]  # of one video; sent to processes


@dataclasses.dataclass(frozen=True)
class Job:
    """A video to decode.

    Attributes:
        vid: its name.
        path: of its file.
    """

    vid: str
    path: str


def clip_pictures(path: str, *, clip_length: float, clip_frames: int, rule: str, size: int
                  ) -> Iterator[np.ndarray]:
    """As `video.clip_frames`; where clip_length is 0, a clip is `clip_frames` frames of the file.

    Raises:
        DataError: as there, or a file without a frame rate.
    """
    return video.clip_frames(path, clip_length=clip_length or clip_frames / _rate(path), rule=rule,
                             size=size)


def motion_clips(path: str, *, clip_length: float, size: int) -> Iterator[np.ndarray]:
    """Yields uint8[32, size, size, 3] for each clip, as SlowFast sees it; raises DataError."""
    found = video.probe(path)
    frames = video.frames_at(path, rate=slowfast_clips.RATE, size=size)
    return slowfast_clips.clips_of(frames, clip_length=clip_length, source_rate=found.frame_rate,
                                   duration=found.duration)


def _rate(path: str) -> float:
    if rate := video.probe(path).frame_rate:
        return rate
    raise UserError(f'{path}: does not say how many frames a second it has')


def decoded(
    jobs: Sequence[Job], decode: Decode, shape: tuple[int, ...], *, workers: int, slots: int,
    attempts: int = ATTEMPTS, patience: float | None = None,
) -> Iterator[tuple[Job, np.ndarray | str | None]]:
    """Decodes videos in several processes.

    Args:
        jobs: what to decode.
        decode: path -> pictures; a function of a module, or a `partial` of one.
        shape: of a picture.
        workers: number of processes.
        slots: pictures that a worker's ring holds; decoding waits where nobody reads them.
        attempts: at a video whose process dies.
        patience: seconds; where no process tells anything for so long, one of them is killed. None:
            for ever.

    Yields:
        (job, None) where a video begins, anew if its process has died; then (job, uint8[shape])
        for each picture; at last (job, '') at its end, or (job, reason) if it failed. Videos
        interleave.
    """
    left, deaths = collections.deque(jobs), collections.Counter()
    crew = [_Worker(decode, shape, slots) for _ in range(min(workers, len(jobs)))]
    try:
        for ahead in range(1, AHEAD + 1):
            for worker in crew:
                worker.take(left, ahead)
        yield from ((worker.jobs[0], None) for worker in crew)
        while crew:
            ready = connection.wait([worker.pipe for worker in crew], patience)
            worker = next(worker for worker in crew if not ready or worker.pipe is ready[0])
            crew.remove(worker)
            crew.append(worker)  # the others come first now
            try:
                if not ready:
                    raise TimeoutError
                told = worker.pipe.recv()
            except (EOFError, OSError):  # it is dead
                job = worker.jobs.popleft()
                left.extendleft(reversed(worker.jobs))
                deaths[job] += 1
                if deaths[job] < attempts:
                    left.appendleft(job)
                else:
                    times = f' {attempts} times' * (attempts > 1)
                    reason = (f'ended its process{times}' if ready else
                              f'gave no picture in {patience:g} s')
                    yield job, f'{job.path}: decoding it {reason}'
                crew.pop().close()
                if left:
                    crew.append(_Worker(decode, shape, slots))
                    crew[-1].take(left, AHEAD)
                    yield crew[-1].jobs[0], None
                continue
            if told is None:
                yield worker.jobs[0], worker.picture()
                continue
            yield worker.jobs.popleft(), told
            worker.take(left, AHEAD)
            if worker.jobs:
                yield worker.jobs[0], None
            else:
                crew.pop().close()
    finally:
        for worker in crew:
            worker.close()


class _Worker:
    """A process and its ring, seen from the process that reads."""

    def __init__(self, decode: Decode, shape: tuple[int, ...], slots: int):
        context = multiprocessing.get_context('spawn')
        self._memory = shared_memory.SharedMemory(create=True, size=slots * math.prod(shape))
        self._ring = np.ndarray((slots, *shape), np.uint8, self._memory.buf)
        self._read = 0
        self.jobs: collections.deque[Job] = collections.deque()
        self.pipe, other_end = context.Pipe()
        self._process = context.Process(
            target=_work, args=(other_end, self._memory.name, decode, (slots, *shape)), daemon=True)
        self._process.start()
        other_end.close()

    def take(self, left: collections.deque[Job], ahead: int) -> None:
        """Sends it jobs, until it knows of `ahead`."""
        while left and len(self.jobs) < ahead:
            self.jobs.append(left.popleft())
            self._send(self.jobs[-1].path)

    def picture(self) -> np.ndarray:
        """The picture that it told of, out of the ring."""
        found = self._ring[self._read % len(self._ring)].copy()
        self._read += 1
        self._send(None)
        return found

    def _send(self, word: str | None) -> None:
        with contextlib.suppress(OSError):  # it was killed; reading finds it out
            self.pipe.send(word)

    def close(self) -> None:
        """Ends the process and gives the ring back."""
        self.pipe.close()
        self._process.kill()
        self._process.join()
        self._ring = None
        self._memory.close()
        self._memory.unlink()


def _work(pipe: connection.Connection, name: str, decode: Decode, shape: tuple[int, ...]) -> None:
    """Decodes what it is told until nobody is at the other end of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other end closes the pipe
    memory = shared_memory.SharedMemory(name)
    ring = np.ndarray(shape, np.uint8, memory.buf)
    jobs, free, written = collections.deque(), len(ring), 0

    def listen() -> None:
        nonlocal free
        word = pipe.recv()
        if word is None:
            free += 1
        else:
            jobs.append(word)

    with contextlib.suppress(EOFError, OSError):  # nobody is there
        while True:
            while not jobs:
                listen()
            for picture in _tolerant(decode, jobs.popleft()):
                if isinstance(picture, str):
                    pipe.send(picture)
                    continue
                while not free:
                    listen()
                ring[written % len(ring)] = picture
                written, free = written + 1, free - 1
                pipe.send(None)


def _tolerant(decode: Decode, path: str) -> Iterator[np.ndarray | str]:
    """The pictures of a video, then '' or why there are no more of them."""
    try:
        yield from decode(path)
    except UserError as error:
        yield str(error)
    except Exception as error:  # of any kind: other videos follow
        yield f'{path}: {one_line(error)}'
    else:
        yield ''

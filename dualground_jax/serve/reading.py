"""How uploads are read: their first bytes here, all else in processes of their own with limits.

What such a process finds wrong, or does not live through, becomes one line.
"""

import contextlib
import dataclasses
import json
import resource
from collections.abc import Callable, Iterator

import numpy as np

from data_pipelines import decoding, video
from data_pipelines.decoding import Job
from data_pipelines.errors import DataError

MEMORY = 4 * 2**30  # bytes that a process may take
CPU, CPU_RATIO = 60, 2  # seconds that it may compute, and of these for a second of video
HEAD = 512  # bytes that tell the container

# Place and bytes -> media type. Text, pictures, archives, programs, playlists are not among them.
SIGNATURES = (
    (4, b'ftypqt  ', 'video/quicktime'), (4, b'ftyp', 'video/mp4'),
    *((4, name, 'video/quicktime') for name in (b'moov', b'mdat', b'wide', b'free', b'skip')),
    (8, b'AVI ', 'video/x-msvideo'), (0, b'FLV\x01', 'video/x-flv'), (0, b'OggS', 'video/ogg'),
    (0, b'\x00\x00\x01\xba', 'video/mpeg'), (0, b'\x00\x00\x01\xb3', 'video/mpeg'),
    (0, bytes.fromhex('3026b2758e66cf11'), 'video/x-ms-wmv'),
    (0, bytes.fromhex('060e2b3402050101'), 'application/mxf'),
)
KNOWN = 'MP4, MOV, WebM, MKV, AVI, MPEG, FLV, OGG, WMV or MXF'


def media_type(head: bytes) -> str:
    """The media type of a video that starts with `head`, its first HEAD bytes or all of it.

    Raises:
        DataError: it is no container of videos.
    """
    if head.startswith(b'\x1aE\xdf\xa3'):
        return 'video/webm' if b'webm' in head[:64] else 'video/x-matroska'
    for place, signature, found in SIGNATURES:
        if head[place : place + len(signature)] == signature:
            return found
    for start in (0, 4):  # transport streams, as broadcast and as of cameras
        if head[start :: 188 + start][:2] == b'GG':
            return 'video/mp2t'
    raise DataError(f'no video, expected {KNOWN}')


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a video says of itself; seconds, frames a second, pixels."""

    duration: float
    frame_rate: float
    width: int
    height: int
    codec: str


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Of reading a video.

    Attributes:
        seconds: of the video.
        clip_length: seconds; 0: unknown.
        patience: seconds for a picture.
    """

    seconds: float
    clip_length: float
    patience: float


def read(path: str, decode: decoding.Decode, shape: tuple[int, ...], slots: int, bounds: Bounds,
         tell: Callable[[Facts], None]) -> Iterator[np.ndarray]:
    """Yields the pictures of a video, which a process of its own decodes; closing it kills that.

    Args:
        path: of the video.
        decode: path -> pictures, to be sent to the process.
        shape: of a picture.
        slots: pictures that are decoded ahead.
        bounds: beyond which the process ends.
        tell: is told what the video says of itself, before its first picture.

    Raises:
        DataError: why there are no more pictures; does not name the path.
    """
    events = decoding.decoded(
        [Job('video', path)], _Guarded(decode, shape, bounds), shape, workers=1, slots=slots,
        attempts=1, patience=bounds.patience)
    told = False
    with contextlib.closing(events):
        for _, event in events:
            if isinstance(event, str):
                if event:
                    raise DataError(event.replace(f'{path}: ', '').replace(path, 'the video'))
            elif event is not None and not told:
                told = True
                tell(Facts(**json.loads(event.tobytes().rstrip(b'\0'))))
            elif event is not None:
                yield event


@dataclasses.dataclass(frozen=True)
class _Guarded:
    """Decodes within bounds, in the process; the first picture holds Facts as JSON."""

    decode: decoding.Decode
    shape: tuple[int, ...]
    bounds: Bounds

    def __call__(self, path: str) -> Iterator[np.ndarray]:
        bounds = self.bounds
        for kind, most in ((resource.RLIMIT_DATA, MEMORY), (resource.RLIMIT_CORE, 0),
                           (resource.RLIMIT_FSIZE, 0)):
            resource.setrlimit(kind, (most, most))
        _limit_computing(CPU)
        found = video.probe(path)
        if found.duration > bounds.seconds:
            raise DataError(f'{found.duration / 60:.1f} minutes long, expected at most '
                            f'{bounds.seconds / 60:g}')
        facts = Facts(found.duration, found.frame_rate, found.width, found.height, found.codec)
        page = np.zeros(self.shape, np.uint8)
        text = json.dumps(dataclasses.asdict(facts)).encode()
        page.reshape(-1)[:len(text)] = np.frombuffer(text, np.uint8)
        _limit_computing(CPU + CPU_RATIO * found.duration)
        yield page
        for number, picture in enumerate(self.decode(path), start=1):
            if number * bounds.clip_length > bounds.seconds + bounds.clip_length:
                raise DataError(f'longer than {bounds.seconds / 60:g} minutes')
            yield picture


def _limit_computing(seconds: float) -> None:
    """Of this process; below CPU, as of a negative duration, there might be no limit."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(max(seconds, CPU)), hard))

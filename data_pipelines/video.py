"""Videos: from a file to the pictures that stand for its clips, and from pictures to a file.

The features that public models were trained on come from linjieli222/HERO_Video_Feature_Extractor,
which chooses, resizes and crops frames by ffmpeg's filters `fps`, `scale` and `crop`. Here frames
are chosen by their time stamps alone, so that a rule stays the same from one ffmpeg to the next,
and only these are resized, by the same filters. docs/videos.md has the rules in words.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines import files
from data_pipelines.errors import ConfigError, DataError, UserError, one_line

if TYPE_CHECKING:
    import av

RULES = 'middle', 'legacy', 'start'
PIXELS = 2**26  # of a picture at most: twice as many as 8K has
_STEP_BACK = 1  # seconds that time stamps may go back; recorders jitter
_ROUGH = 1  # seconds that the duration in a header may be too long, beside the longest frame

# Ending of a file -> encoder, and its options for a picture in which one sees no loss.
WRITTEN = {
    'mp4': ('libx264', dict(crf='20', preset='veryfast')),
    'webm': ('libvpx-vp9', {'crf': '24', 'b:v': '0', 'deadline': 'realtime', 'cpu-used': '8'}),
}
_LISTS = 'hls', 'dash', 'concat'  # formats whose files name others, anywhere on the machine

# From the signs of a display matrix (x to x, x to y, y to x, y to y; y points down) to filters.
_TURNS = {
    (1, 0, 0, 1): (),
    (-1, 0, 0, 1): ('hflip',),
    (1, 0, 0, -1): ('vflip',),
    (-1, 0, 0, -1): ('hflip', 'vflip'),
    (0, 1, -1, 0): ('transpose=clock',),
    (0, -1, 1, 0): ('transpose=cclock',),
    (0, 1, 1, 0): ('transpose=cclock_flip',),
    (0, -1, -1, 0): ('transpose=clock_flip',),
}


@dataclasses.dataclass(frozen=True)
class Video:
    """What a video file says of itself, and its first frame."""

    path: str
    width: int  # pixels, as shown: after the rotation
    height: int
    duration: float  # seconds
    frame_rate: float  # mean frames a second, 0.0 if the file does not say
    rotation: int  # degrees, counterclockwise, that a player turns the stored picture by
    codec: str


def probe(path: str | os.PathLike) -> Video:
    """Reads what a file says of its video, and decodes its first frame.

    Raises:
        DataError: it can't be read as a video.
    """
    with _opened(path) as (container, stream):
        frames = _decode(path, container, stream)
        _, _, frame = next(frames)
        frames.close()
        width, height = _shown(path, frame)
        return Video(os.fspath(path), width, height, float(_duration(path, container, stream)),
                     float(stream.average_rate or stream.guessed_rate or 0), frame.rotation,
                     stream.codec_context.name)


def clip_frames(path: str | os.PathLike, *, clip_length: float, rule: str,
                size: int) -> Iterator[np.ndarray]:
    """Yields the picture that stands for each clip of a video, in order.

    Args:
        path: of the video.
        clip_length: seconds.
        rule: which frame it is; for a clip that starts at t and lasts c
            'middle': the last one before t + c/2, as ffmpeg's filter `fps` since 2018;
            'legacy': the first one from t - c/2 on, as that filter before;
            'start': the one that is shown at t.
            The first two are taken at the rate of 2 / max(1, whole seconds) where a video is
            shorter than c + 0.1 s, as in HERO's code.
        size: of the pictures, pixels: the short side is scaled to it, the centre is cut out.

    Yields:
        uint8[size, size, 3], RGB, read only. The same array where a frame stands for several.

    Raises:
        ConfigError: there is no such rule.
        DataError: the file can't be read as a video, or, after some pictures, to its end.
    """
    if rule not in RULES:
        raise ConfigError(f'rule {rule!r} for the frames of clips, expected one of {RULES}')
    period = Fraction(clip_length).limit_denominator(10**6)
    if rule != 'start':
        with _opened(path) as (container, stream):
            duration = float(_duration(path, container, stream))
        if duration < clip_length + 0.1:
            period = Fraction(max(int(duration), 1), 2)
    yield from _pictures(path, rule, period, size)


def frames_at(path: str | os.PathLike, *, rate: int, size: int) -> Iterator[np.ndarray]:
    """Yields `rate` pictures a second of a video, as ffmpeg's filter `fps` chooses them.

    Args, Yields, Raises: as `clip_frames`.
    """
    return _pictures(path, 'middle', Fraction(1, rate), size)


def write(path: str | os.PathLike, frames: Iterable[np.ndarray], rate: int) -> None:
    """Writes a video without sound, whole or not at all: H.264 in .mp4, VP9 in .webm.

    Args:
        path: of the file; its ending decides.
        frames: uint8[H, W, 3] each, RGB; H and W are even.
        rate: frames a second.

    Raises:
        ConfigError: another ending.
    """
    av = _av()
    ending = os.path.splitext(path)[1].removeprefix('.')
    if ending not in WRITTEN:
        raise ConfigError(f'{path}: expected a name that ends in .{" or .".join(WRITTEN)}')
    codec, options = WRITTEN[ending]
    with (files.whole_files(path) as (temporary,),
          av.open(os.fspath(temporary), 'w', format=ending) as container):
        stream = container.add_stream(codec, rate=rate, options=options, pix_fmt='yuv420p')
        for i, frame in enumerate(frames):
            if i == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())


def _pictures(path: str | os.PathLike, rule: str, period: Fraction,
              size: int) -> Iterator[np.ndarray]:
    with _opened(path) as (container, stream):
        resize = _Resizer(path, size)
        for frame, rows in _choose(_decode(path, container, stream), rule, period):
            if rows:
                picture = resize(frame)
                for _ in range(rows):
                    yield picture


def _choose(frames: Iterator[tuple[Fraction, Fraction, 'av.VideoFrame']], rule: str,
            period: Fraction) -> Iterator[tuple['av.VideoFrame', int]]:
    """Yields frames and the number of rows that each stands for.

    A frame stands for the rows from its number to the next frame's. Of frames with one number the
    last is taken, or the first by the legacy rule, whose numbers start with the first frame. Rows
    before the first number take the first frame that is taken.
    """
    number = math.ceil if rule == 'start' else lambda time: math.floor(time + Fraction(1, 2))
    held, origin, given, row = None, 0, 0, 0
    for start, end, frame in frames:  # noqa: B007
        if held is None and rule == 'legacy':
            origin = start - number(start / period) * period
        next_row = number((start - origin) / period)
        if held is not None and next_row > row:
            yield held, next_row - given
            given = next_row
        elif held is not None and rule == 'legacy':
            continue
        held, row = frame, next_row
    rows = row + 1 if rule == 'legacy' else number(end / period)
    yield held, max(rows - given, 0 if given else 1)  # a video has a row, however short


def _decode(path: str | os.PathLike, container: 'av.container.InputContainer',
            stream: 'av.VideoStream') -> Iterator[tuple[Fraction, Fraction, 'av.VideoFrame']]:
    """Yields each frame with its start and end, seconds since the start of the file.

    Raises:
        DataError: there is no frame, one can't be decoded, or the file ends early.
    """
    av = _av()
    zero = round(_start(container) / stream.time_base)
    stamped = _has_stamps(container)
    start = end = seen = longest = Fraction(0)
    frames, reason = 0, 'the stream is empty'
    for packet in _packets(container):
        if packet.pts is not None:
            stop = (packet.pts + (packet.duration or 0)) * packet.time_base
            seen = max(seen, stop - _start(container))
        if packet.stream_index != stream.index or not packet.size and packet.dts is not None:
            continue  # one without content repeats the frame before
        if packet.has_sidedata('encryption_info'):
            raise DataError(f'{path}: encrypted, expected a video that plays without a key')
        try:
            decoded = packet.decode()
        except av.FFmpegError as error:
            reason = one_line(error)
            if not frames:  # a recording may begin between key frames
                continue
            raise DataError(f'{path}: damaged after {float(end):.2f} s ({reason})') from error
        for frame in decoded:
            if frame.is_corrupt:
                if not frames:
                    continue
                raise DataError(f'{path}: damaged after {float(end):.2f} s')
            stamp = frame.dts if frame.pts is None else frame.pts
            previous = start if frames else Fraction(0)
            start = (stamp - zero) * stream.time_base if stamped and stamp is not None else end
            if previous - start > _STEP_BACK:
                raise DataError(f'{path}: time stamps go back from {float(previous):.2f} to '
                                f'{float(start):.2f} s, expected one recording')
            start = max(start, previous)
            gap = start - previous
            length = (frame.duration or 0) * stream.time_base
            if length <= stream.time_base and gap > 2 * length:  # not known, as in ffmpeg
                length = gap
            longest = max(longest, length, gap)
            end = start + length
            frames += 1
            yield start, end, frame
    if not frames:
        raise DataError(f'{path}: no frame can be decoded ({reason})')
    reached = end if stream.duration else max(end, seen)  # else it is the longest stream's
    duration = _header_duration(container, stream)
    if duration and duration - reached > _ROUGH + longest:
        raise DataError(f'{path}: ends after {float(reached):.2f} of {float(duration):.2f} s, '
                        'truncated')


def _packets(container: 'av.container.InputContainer') -> Iterator['av.Packet']:
    """Yields the packets of all streams, and at the end an empty one of each."""
    with contextlib.suppress(IndexError):  # at the end, of a stream that the header did not name
        yield from container.demux()


class _Resizer:
    """Turns, scales and crops frames to uint8[size, size, 3], as ffmpeg's filters do."""

    def __init__(self, path: str | os.PathLike, size: int):
        self._path, self._size, self._layout = path, size, None

    def __call__(self, frame: 'av.VideoFrame') -> np.ndarray:
        layout = (frame.width, frame.height, frame.format.name, int(frame.colorspace),
                  int(frame.color_range), frame.rotation)
        if layout != self._layout:
            self._layout, self._graph = layout, self._make_graph(frame)
        self._graph.push(frame)
        picture = self._graph.pull().to_ndarray()
        picture.flags.writeable = False
        return picture

    def _make_graph(self, frame: 'av.VideoFrame') -> 'av.filter.Graph':
        width, height = _shown(self._path, frame)
        size, short = self._size, min(width, height)
        width, height = width * size // short, height * size // short
        graph = _av().filter.Graph()
        nodes = [graph.add('buffer', video_size=f'{frame.width}x{frame.height}',
                           pix_fmt=frame.format.name, time_base=str(frame.time_base),
                           colorspace=str(int(frame.colorspace)),
                           range=str(int(frame.color_range)))]
        for step in (*_turn(self._path, frame), f'scale={width}:{height}:flags=bicubic',
                     f'crop={size}:{size}:{(width - size) // 2}:{(height - size) // 2}',
                     'format=rgb24', 'buffersink'):
            name, _, arguments = step.partition('=')
            nodes.append(graph.add(name, arguments or None))
        graph.link_nodes(*nodes).configure()
        return graph


def _turn(path: str | os.PathLike, frame: 'av.VideoFrame') -> tuple[str, ...]:
    """The filters that turn and flip a frame as its file asks for.

    PyAV's side data and their frame hold each other: asked of all frames they fill the memory.

    Raises:
        DataError: it is to be turned by other than quarters.
    """
    if 'DISPLAYMATRIX' not in frame.side_data:
        return ()
    a, b, _, c, d, *_ = np.sign(np.frombuffer(frame.side_data['DISPLAYMATRIX'], np.int32)).tolist()
    try:
        return _TURNS[a, b, c, d]
    except KeyError:
        raise DataError(f'{path}: turned by {frame.rotation} degrees, expected quarters') from None


def _shown(path: str | os.PathLike, frame: 'av.VideoFrame') -> tuple[int, int]:
    """Width and height of a frame after its turn."""
    sides = frame.width, frame.height
    turned = any(step.startswith('transpose') for step in _turn(path, frame))
    return sides[::-1] if turned else sides


@contextlib.contextmanager
def _opened(path: str | os.PathLike
            ) -> Iterator[tuple['av.container.InputContainer', 'av.VideoStream']]:
    """Opens a file; FFmpeg's errors in the block become DataErrors of one line."""
    av = _av()
    if not os.path.isfile(path):
        raise DataError(f'{path}: ' + ('a folder' if os.path.isdir(path) else 'no such file')
                        + ', expected a video')
    files.check_genuine(path)
    try:
        # The prefix: else a colon in a name ends a protocol's.
        with av.open(f'file:{os.fspath(path)}', metadata_errors='replace') as container:
            yield container, _video_stream(path, container)
    except av.FFmpegError as error:
        reason = 'empty' if not os.path.getsize(path) else error.strerror or one_line(error)
        raise DataError(f"{path}: can't be read as a video: {reason}") from error


def _video_stream(path: str | os.PathLike,
                  container: 'av.container.InputContainer') -> 'av.VideoStream':
    """The first stream of moving pictures."""
    av = _av()
    name = container.format.name
    if name.endswith('_pipe') or name == 'image2':
        raise DataError(f'{path}: a picture, expected a video')
    if name == 'tty':
        raise DataError(f'{path}: a text, expected a video')
    if name in _LISTS:
        raise DataError(f'{path}: a list of other files, expected a video')
    streams = [stream for stream in container.streams.video
               if not stream.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        found = sorted({'a picture' if stream.type == 'video' else stream.type
                        for stream in container.streams})
        raise DataError(f"{path}: has no video, found {' and '.join(found) or 'nothing'}")
    if streams[0].codec_context is None:
        raise DataError(f'{path}: FFmpeg has no decoder for its video')
    streams[0].thread_type = 'AUTO'
    streams[0].codec_context.options = dict(max_pixels=str(PIXELS))
    return streams[0]


def _start(container: 'av.container.InputContainer') -> Fraction:
    """Seconds; the time stamp that counts as 0."""
    return Fraction(container.start_time or 0, _av().time_base)


def _has_stamps(container: 'av.container.InputContainer') -> bool:
    """Whether the format keeps time stamps; else they are made up, and durations are sums."""
    return not container.format.flags & _av().format.Flags.no_timestamps.value


def _header_duration(container: 'av.container.InputContainer',
                     stream: 'av.VideoStream') -> Fraction | None:
    """Seconds from the file's start to the video's end, as its header says; None if it does not."""
    zero = _start(container)
    if stream.duration:
        # Where the file has no start, FFmpeg has guessed the stream's.
        begin = 0 if container.start_time is None else (stream.start_time or 0) * stream.time_base
        return stream.duration * stream.time_base + max(begin - zero, 0)
    if not container.duration:
        return None
    duration = Fraction(container.duration, _av().time_base)
    return duration - zero if container.format.name.startswith('matroska') else duration


def _duration(path: str | os.PathLike, container: 'av.container.InputContainer',
              stream: 'av.VideoStream') -> Fraction:
    """Seconds, as the header says or else by the packets, which are read in a second pass."""
    if known := _header_duration(container, stream):
        return known
    end = Fraction(0)
    with _opened(path) as (again, stream):
        for packet in again.demux(stream):
            length = (packet.duration or 0) * stream.time_base
            if packet.pts is not None and _has_stamps(again):
                end = max(end, packet.pts * stream.time_base - _start(again) + length)
            else:
                end += length
    return end


def _av() -> ModuleType:
    """PyAV, which only those need who read videos."""
    try:
        import av
    except ModuleNotFoundError:
        raise UserError("videos are for PyAV: pip install 'dualground_jax[video]'") from None
    return av

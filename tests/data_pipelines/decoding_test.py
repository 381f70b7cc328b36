"""Decoding in processes: all pictures, once and in order; failures and deaths are told."""

import collections
import os
import pathlib
import signal

import numpy as np
import pytest

from data_pipelines import decoding
from data_pipelines.decoding import Job
from data_pipelines.errors import DataError

SHAPE = 2, 3


def count_to(path):
    """A video of 'NAME:N' has N pictures, which say their number; others fail in several ways."""
    name, _, count = path.partition(':')
    for i in range(int(count)):
        yield np.full(SHAPE, i, np.uint8)
    if name == 'truncated':
        raise DataError(f'{path}: truncated')
    if name == 'bug':
        raise ZeroDivisionError('a\nbug')
    if name == 'killer':
        os.kill(os.getpid(), signal.SIGKILL)
    if name.endswith('once') and not pathlib.Path(name).exists():
        pathlib.Path(name).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def collect(paths, *, workers, slots=2):
    """Path -> (numbers of the pictures since it last began, its end, how often it began)."""
    pictures, ends, begun = {}, {}, collections.Counter()
    for job, event in decoding.decoded([Job(path, path) for path in paths], count_to, SHAPE,
                                       workers=workers, slots=slots):
        assert job.path not in ends
        if event is None:
            pictures[job.path] = []
            begun[job.path] += 1
        elif isinstance(event, str):
            ends[job.path] = event
        else:
            assert event.shape == SHAPE and (event == event[0, 0]).all()
            pictures[job.path].append(int(event[0, 0]))
    return {path: (pictures[path], end, begun[path]) for path, end in ends.items()}


def test_each_picture_comes_once_and_in_order():
    """More of them than a ring holds; fewer videos than processes, and more."""
    paths = ['a:7', 'b:0', 'c:20', 'd:1', 'e:3']
    found = collect(paths, workers=2)
    assert found == {path: (list(range(int(path[2:]))), '', 1) for path in paths}
    assert collect(paths[:1], workers=3)['a:7'] == (list(range(7)), '', 1)
    assert collect([], workers=2) == {}


def test_others_go_on_after_a_failure_or_a_death(tmp_path):
    once = f'{tmp_path}/once:4'
    paths = ['truncated:2', 'bug:1', 'killer:3', once, *(f'v{i}:5' for i in range(6))]
    found = collect(paths, workers=2)
    assert found['truncated:2'][1] == 'truncated:2: truncated'
    assert found['bug:1'][1] == 'bug:1: a bug'
    assert found['killer:3'][1:] == ('killer:3: decoding it ended its process 2 times', 2)
    assert found[once] == ([0, 1, 2, 3], '', 2)
    assert all(found[f'v{i}:5'] == ([0, 1, 2, 3, 4], '', 1) for i in range(6))


def test_nothing_is_left_where_the_reader_stops():
    events = decoding.decoded([Job('a', 'a:50'), Job('b', 'b:50')], count_to, SHAPE, workers=2,
                              slots=2)
    while not isinstance(next(events)[1], np.ndarray):
        pass
    blocks = set(os.listdir('/dev/shm'))
    events.close()
    assert not {name for name in os.listdir('/dev/shm') if name in blocks and 'psm_' in name}


@pytest.mark.parametrize('clip_length, clip_frames, expected', [(1.0, 0, 4), (0.0, 5, 8)])
def test_clips_of_seconds_or_of_frames(tmp_path, clip_length, clip_frames, expected):
    """Of a video of 4 s at 10 frames a second."""
    path = write_video(tmp_path / 'a.mp4', 40, 10)
    pictures = list(decoding.clip_pictures(path, clip_length=clip_length, clip_frames=clip_frames,
                                           rule='middle', size=16))
    assert len(pictures) == expected and pictures[0].shape == (16, 16, 3)


def test_motion_clips(tmp_path):
    clips = list(decoding.motion_clips(write_video(tmp_path / 'a.mp4', 30, 10), clip_length=2.0,
                                       size=16))
    assert [clip.shape for clip in clips] == 2 * [(32, 16, 16, 3)]


def write_video(path, frames, rate):
    import av

    with av.open(str(path), 'w') as container:
        stream = container.add_stream('mpeg4', rate=rate)
        stream.width, stream.height, stream.pix_fmt = 48, 32, 'yuv420p'
        for i in range(frames):
            picture = np.full((32, 48, 3), i * 5 % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        container.mux(stream.encode(None))
    return str(path)

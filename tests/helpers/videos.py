"""Videos for tests, made and read by the ffmpeg of imageio-ffmpeg: an oracle beside PyAV."""

import pathlib
import re
import subprocess
from fractions import Fraction
from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
H264 = '-c:v libx264 -preset ultrafast -threads 1'


def ffmpeg(*arguments) -> subprocess.CompletedProcess:
    """Runs it; texts with spaces are several arguments, paths are one."""
    split = [part for argument in arguments for part in (
        argument.split() if isinstance(argument, str) else [str(argument)])]
    done = subprocess.run([FFMPEG, '-nostdin', '-y', *split], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done


def scene(seconds: float, rate='10', size: str = '64x48') -> str:
    """Arguments for an input whose pictures all differ."""
    return f'-f lavfi -i testsrc2=s={size}:r={rate}:d={seconds},noise=alls=50:allf=t'


def make(path: pathlib.Path, seconds: float, rate='10', size: str = '64x48',
         codec: str = H264 + ' -pix_fmt yuv420p') -> pathlib.Path:
    """Writes a video; the file's ending decides the container."""
    ffmpeg(scene(seconds, rate, size), codec, path)
    return path


def read(path: pathlib.Path, size: int, *, filters: str = 'null',
         shape: tuple[int, int] = (64, 48)) -> SimpleNamespace:
    """The frames of a video that is `shape` as shown, by the command line.

    Returns:
        pictures uint8[N, size, size, 3]; times, lengths: Fractions, seconds.
    """
    width, height = (side * size // min(shape) for side in shape)
    crop = f'crop={size}:{size}:{(width - size) // 2}:{(height - size) // 2}'
    done = ffmpeg('-hide_banner -i', path, '-filter_complex',
                  f'[0:v:0]{filters},showinfo,scale={width}:{height},{crop}',
                  '' if 'fps' in filters else '-fps_mode passthrough',
                  '-f rawvideo -pix_fmt rgb24 -')
    log = done.stderr.decode(errors='replace')
    base = Fraction(re.search(r'config in time_base: (\d+/\d+)', log)[1])
    stamps = re.findall(r'\] n: *\d+ pts: *(-?\d+) .*?duration: *(\d+)', log)
    return SimpleNamespace(
        pictures=np.frombuffer(done.stdout, np.uint8).reshape(-1, size, size, 3),
        times=[int(pts) * base for pts, _ in stamps],
        lengths=[int(length) * base for _, length in stamps])

"""Minutes of video per second of mode extract: decoding alone, the encoder alone, and both.

    python -m benchmarks.extract [--videos 2] [--seconds 60] [--decoders 2] [--output F.json]
        [--sizes '480 x 360,1280 x 720']

CLIP ViT-B/32 with random weights, clips of 2 s, by the rule `middle`. The videos are made here:
H.264 with textures that move, a key frame every 250 frames as x264 has it. `both` is at most the
smaller of the other two, and less where they share CPUs. All take turns.
"""

import functools
import pathlib
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np

from benchmarks import common
from data_pipelines import decoding, recipe
from dualground_jax import extract, sharding
from dualground_jax.encoders import clip
from dualground_jax.encoders.encoder import BATCH, Stream

SIZES = {'480 x 360': (480, 360), '1280 x 720': (1280, 720)}
RATE, CLIP_LENGTH = 30, 2.0


def write_video(path: pathlib.Path, width: int, height: int, seconds: int, seed: int) -> None:
    import av

    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 255, (height // 8 + 17, width // 8 + 17, 3), np.uint8)
    texture = np.kron(texture, np.ones((8, 8, 1), np.uint8))
    noise = rng.integers(0, 12, (height, width, 3), np.uint8)
    frames = [av.VideoFrame.from_ndarray(
        texture[2 * i : 2 * i + height, i : i + width] // 2 + noise, format='rgb24'
        ).reformat(format='yuv420p') for i in range(64)]
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
        stream.options = dict(preset='ultrafast')
        for i in range(seconds * RATE):
            frame = frames[abs(i % 126 - 63)]  # there and back
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def make_stream() -> Stream:
    """ViT-B/32 with random weights, as a stream."""
    mesh = sharding.one_device()
    vision, text = clip.Vision(), clip.Text()
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jax.device_put((rng.normal(size=x.shape) * 0.02).astype(x.dtype), x.sharding),
        clip.abstract_params(vision, text, mesh))
    own = clip.ClipEncoder(vision, text, params, None, 'random', mesh, BATCH['clip'], 32)
    decode = functools.partial(decoding.clip_pictures, clip_length=CLIP_LENGTH, clip_frames=0,
                               rule='middle', size=own.size)
    return Stream(recipe.Stream('clip', 'clip', 'random', own.width, own.size),
                  (own.size, own.size, 3), own.batch_size, decode, own.encode_frames)


def rate(run: Callable[[], float]) -> float:
    """Minutes of video per second of what returns the seconds of video that it went through."""
    started = time.perf_counter()
    seconds = run()
    return seconds / 60 / (time.perf_counter() - started)


def encode(stream: Stream, pictures: np.ndarray) -> float:
    stream.encode(pictures)
    return len(pictures) * CLIP_LENGTH


def decode(stream: Stream, jobs: list[decoding.Job], decoders: int) -> float:
    events = decoding.decoded(jobs, stream.decode, stream.shape, workers=decoders,
                              slots=2 * stream.batch_size // decoders)
    return sum(isinstance(event, np.ndarray) for _, event in events) * CLIP_LENGTH


def both(stream: Stream, jobs: list[decoding.Job], decoders: int) -> float:
    found = extract.encoded(stream, jobs, decoders, CLIP_LENGTH)
    return sum(len(rows) for _, rows in found) * CLIP_LENGTH


def main() -> None:
    args = common.arguments(
        __doc__, videos=2, seconds=60, decoders=2, repeats=2, sizes='480 x 360', output='')
    stream, rows = make_stream(), []
    pictures = np.random.default_rng(0).integers(
        0, 255, (2 * stream.batch_size, *stream.shape), np.uint8)
    stream.encode(pictures)  # compiles
    with tempfile.TemporaryDirectory() as folder:
        for name in args.sizes.split(','):
            width, height = SIZES[name]
            jobs = [decoding.Job(str(i), f'{folder}/{width}_{i}.mp4') for i in range(args.videos)]
            for i, job in enumerate(jobs):
                write_video(pathlib.Path(job.path), width, height, args.seconds, i)
            runs = dict(
                decoding=functools.partial(decode, stream, jobs, args.decoders),
                encoder=functools.partial(encode, stream, pictures),
                both=functools.partial(both, stream, jobs, args.decoders))
            found = common.in_turns(
                {kind: functools.partial(rate, run) for kind, run in runs.items()}, args.repeats)
            rows.append(dict(video=name) | {
                kind: float(np.median(values)) for kind, values in found.items()})
    common.write(args.output, extract=rows)


if __name__ == '__main__':
    main()

"""The encoders of a model's features: video streams in their order, sentences, and their recipe."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jax.sharding import Mesh

from data_pipelines import decoding, recipe
from data_pipelines.errors import ConfigError, DataError
from data_pipelines.slowfast_clips import FAST_FRAMES
from dualground_jax import sharding
from dualground_jax.encoders import clip, slowfast

# Of features in files, as in the public ones. Rows are rounded to it wherever they go, so that a
# model sees the same of a video and of its files.
STORED = np.float16
TEXT = 'text'  # folder of the queries' rows
BATCH = dict(clip=32, slowfast=8)  # clips of a batch, for each device


@dataclasses.dataclass(frozen=True)
class Stream:
    """A video stream.

    Attributes:
        record: its part of the recipe.
        shape: of what `decode` yields.
        batch_size: how many of these `encode` takes at a time.
        decode: path -> uint8[shape] of each clip; can be sent to other processes.
        encode: uint8[N, *shape] -> float32[N, width].
    """

    record: recipe.Stream
    shape: tuple[int, ...]
    batch_size: int
    decode: decoding.Decode
    encode: Callable[[np.ndarray], np.ndarray]

    def rows(self, pictures: Iterable[np.ndarray], name: str) -> np.ndarray:
        """Encodes a video's clips, batch by batch: float32[T, width]; DataError as `stored`."""
        found, pictures = [], iter(pictures)
        while batch := list(itertools.islice(pictures, self.batch_size)):
            found.append(self.encode(np.stack(batch)))
        return stored(np.concatenate([np.zeros((0, self.record.width), np.float32), *found]), name)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What makes features; `load` makes one.

    Attributes:
        recipe: how it makes them.
        streams: of a video.
        clip: encodes sentences; None: nothing does.
    """

    recipe: recipe.Recipe
    streams: tuple[Stream, ...]
    clip: clip.ClipEncoder | None

    def encode_video(self, video: str | os.PathLike | Iterable[np.ndarray]) -> list[np.ndarray]:
        """Encodes a video.

        Args:
            video: its file; or, where CLIP is the only stream, its pictures uint8[S, S, 3], one for
                each clip of `recipe.clip_length` seconds.

        Returns:
            float32[T, width] of each stream, as the feature files hold them.

        Raises:
            DataError: the file can't be read as a video, or there are no pictures.
            ConfigError: pictures, but another stream than CLIP.
        """
        if isinstance(video, str | os.PathLike):
            return [stream.rows(stream.decode(os.fspath(video)), os.fspath(video))
                    for stream in self.streams]
        if len(self.streams) > 1 or not self.clip:
            raise ConfigError('pictures for clips are read by CLIP alone; the encoders '
                              f'{self.recipe.flat()["streams"]} need the file')
        return [self.streams[0].rows(video, 'video')]

    def encode_text(self, sentences: Sequence[str]) -> list[np.ndarray]:
        """Encodes sentences row by row: float32[R, d] of each, as the feature files hold them.

        Raises:
            ConfigError: there is no CLIP.
            DataError: it has no tokenizer, or can't take a sentence.
        """
        rows = self._text_encoder().encode_text(sentences)
        return [stored(own, sentence) for own, sentence in zip(rows, sentences, strict=True)]

    def encode_sentences(self, sentences: Sequence[str]) -> np.ndarray:
        """Encodes sentences as a whole, float32[n, d], to compare with CLIP's rows of a video.

        Raises:
            ConfigError, DataError: as `encode_text`.
        """
        return stored(self._text_encoder().encode_sentences(sentences), 'sentences')

    def _text_encoder(self) -> clip.ClipEncoder:
        if not self.clip:
            raise ConfigError('sentences are encoded by CLIP: --encoder=clip=FOLDER')
        return self.clip


def stored(rows: np.ndarray, name: str) -> np.ndarray:
    """Rounds rows [n, d] to what files hold of them, float32[n, d].

    Raises:
        DataError: there is none, or a value that is not finite in files.
    """
    with np.errstate(over='ignore'):
        found = rows.astype(STORED).astype(np.float32)
    if not len(found):
        raise DataError(f'{name}: shorter than a clip')
    if not np.isfinite(found).all():
        row, column = np.argwhere(~np.isfinite(found))[0]
        raise DataError(f'{name}: encoded to {rows[row, column]} in row {row}, column {column}, '
                        f'expected a number that {np.dtype(STORED)} holds')
    return found


def load(
    streams: str | Sequence[str], *, clip_length: float = 2.0, clip_frames: int = 0,
    rule: str = 'middle', dtype: str = 'float32', mesh: Mesh | None = None,
) -> Encoder:
    """Loads encoders.

    Args:
        streams: 'clip=FOLDER,slowfast=FILE' or one of these, as text or a list, in the order in
            which a model reads them; see `clip.load` and `slowfast.load`.
        clip_length: seconds; 0: a clip is `clip_frames` frames of its video.
        clip_frames: for CLIP alone.
        rule: which frame stands for a clip, one of video.RULES.
        dtype: that they compute in, 'float32' or 'bfloat16'.
        mesh: batches are split over it; default: the first device.

    Raises:
        ConfigError: encoders that are not known or can't be asked for this.
        DataError: weights that can't be read.
    """
    sources = _parse(streams)
    if clip_length <= 0 and not clip_frames:
        raise ConfigError(f'clip_length={clip_length}: expected seconds above 0')
    if clip_frames and (clip_length or 'slowfast' in sources):
        raise ConfigError('clips of a number of frames have no length in seconds, and SlowFast '
                          'needs that')
    mesh = mesh or sharding.one_device()
    devices = sharding.batch_parts(mesh)
    found, text, clip_encoder = [], None, None
    for name, source in sources.items():
        options = dict(mesh=mesh, batch_size=BATCH[name] * devices)
        # Of a path the last part: it may be told to others. A model of the hub keeps its name.
        known = os.path.basename(os.path.normpath(source)) if os.path.exists(source) else source
        if name == 'clip':
            clip_encoder = clip.load(source, dtype, **options)
            own, shape, encode = clip_encoder, (), clip_encoder.encode_frames
            decode = functools.partial(
                decoding.clip_pictures, clip_length=clip_length, clip_frames=clip_frames,
                rule=rule, size=own.size)
            tokenizer = own.tokenizer
            text = recipe.Stream(
                TEXT, name, own.weights_hash, own.text_width, layout='clip',
                options=f'{dtype}, {tokenizer.cleaning if tokenizer else "no tokenizer"}, '
                        f'at most {own.max_rows} rows', source=known)
        else:
            own = slowfast.load(source, dtype, **options)
            shape, encode = (FAST_FRAMES,), own.encode_clips
            decode = functools.partial(
                decoding.motion_clips, clip_length=clip_length, size=own.size)
        record = recipe.Stream(name, name, own.weights_hash, own.width, own.size, options=dtype,
                               source=known)
        found.append(Stream(record, (*shape, own.size, own.size, 3), own.batch_size, decode,
                            encode))
    return Encoder(
        recipe.Recipe(clip_length, rule, tuple(stream.record for stream in found), text,
                      clip_frames),
        tuple(found), clip_encoder)


def _parse(streams: str | Sequence[str]) -> dict[str, str]:
    """Name -> source of each encoder."""
    parts = streams.split(',') if isinstance(streams, str) else streams
    pairs = [part.partition('=') for part in parts]
    found = {name: source for name, _, source in pairs}
    if not pairs or len(found) < len(pairs) or not all(found.values()) or set(found) - set(BATCH):
        raise ConfigError(f'encoder {",".join(parts)!r}: expected clip=FOLDER, slowfast=FILE, or '
                          'both in the order of the streams')
    return found

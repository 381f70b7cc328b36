"""Videos as encoders give them, and which encoders a model's videos and sentences need."""

import dataclasses
import os
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines import features, files, recipe
from data_pipelines.errors import DataError, one_line
from data_pipelines.recipe import Recipe
from dualground_jax import predict, pretrained


@dataclasses.dataclass(frozen=True, repr=False)
class EncodedVideo:
    """A video as an encoder gives it, ready for any number of sentences.

    Attributes:
        streams: float32[T_i, d_i] of each stream, raw.
        duration: seconds.
        recipe: how they were made; None: unknown.
    """

    streams: list[np.ndarray]
    duration: float
    recipe: Recipe | None = None

    def save(self, path: str | os.PathLike) -> None:
        """Writes an .npz file, whole or not at all.

        Raises:
            DataError: there is no such folder.
        """
        if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise DataError(f'{path}: no such folder')
        with files.whole_files(path) as (unfinished,), open(unfinished, 'wb') as file:
            np.savez(file, *self.streams, duration=self.duration,
                     recipe=self.recipe.to_json() if self.recipe else '')

    @classmethod
    def load(cls, path: str | os.PathLike) -> 'EncodedVideo':
        """Reads what `save` wrote.

        Raises:
            DataError: the file is missing, damaged, or another one.
        """
        try:
            with np.load(path, allow_pickle=False) as found:
                streams = [found[f'arr_{i}'] for i in range(len(found.files) - 2)]
                return cls(streams, float(found['duration']),
                           recipe.parse(str(found['recipe']), path))
        except (KeyError, TypeError, *features.DAMAGE) as error:
            reason = one_line(error) if isinstance(error, OSError) else 'damaged, or another file'
            raise DataError(f"{path}: can't be read: {reason}; expected what EncodedVideo.save "
                            'wrote') from error


def load_encoder(streams: str, data: ConfigDict) -> Any:
    """Loads encoders that make features as the model's training had them.

    Args:
        streams: as of `encoders.encoder.load`.
        data: the `data` section of the model's config.
    """
    from dualground_jax.encoders import encoder  # of what only videos and sentences need

    known = recipe.parse(data.recipe)
    if known is None:
        return encoder.load(streams, clip_length=data.clip_length)
    return encoder.load(streams, clip_length=known.clip_length, clip_frames=known.clip_frames,
                        rule=known.rule, dtype=known.streams[0].options)


def known_encoder(text: str, folder: str | os.PathLike) -> str:
    """The encoders that made a model's features, as `load_encoder` takes them; '' if unknown.

    Args:
        text: `data.recipe` of the model's config. A stream's source may be a path from the model's
            folder, or a model of the Hugging Face hub.
        folder: of the model.
    """
    made, found = recipe.parse(text), []
    for stream in made.streams if made else ():
        path = os.path.normpath(os.path.join(folder, stream.source))
        is_here = stream.source and os.path.exists(path)
        if not is_here and not pretrained.is_hub_name(stream.source):
            return ''
        found.append(f'{stream.encoder}={path if is_here else stream.source}')
    return ','.join(found)


def check_encoder(found: Recipe, config: ConfigDict) -> None:
    """Raises DataError if an encoder's features are not those that a model reads."""
    predict.check_recipe(config.data.recipe, config.evaluate, found, 'the encoder')
    for key, value in found.data().items():
        if not key.endswith('_dir') and key != 'video_dirs' and value != config.data[key]:
            raise DataError(f'the encoder: {key} is {value}, the model was trained on '
                            f'{config.data[key]} (data.{key})')

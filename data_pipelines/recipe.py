"""How features were made: the recipe that stands beside them, and that a model keeps.

Mode `extract` writes it as `features.json` into the folder of the streams' folders. A config has it
as `data.recipe`, so that it is saved with every checkpoint, and features that were made otherwise
are refused by the model that was trained on these.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from data_pipelines import files
from data_pipelines.errors import DataError, one_line

FILE = 'features.json'


@dataclasses.dataclass(frozen=True)
class Stream:
    """What gives the rows of a folder.

    Attributes:
        folder: below that of features.json; its name makes no difference.
        encoder: 'clip' or 'slowfast'.
        weights: hash of the encoder's weights.
        width: of a row.
        size: of the pictures, pixels; 0 for text.
        layout: of text rows, a key of tokens.TEXT_LAYOUTS; '' for video.
        options: what else changes the rows, as in 'float32'.
        source: name of the weights' folder or file, or on the Hugging Face hub, to be told beside
            their hash; of a published model also a path from its folder. Makes no difference.
    """

    folder: str
    encoder: str
    weights: str
    width: int
    size: int = 0
    layout: str = ''
    options: str = ''
    source: str = ''


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the features of a folder were made.

    Attributes:
        clip_length: seconds that a video row stands for; 0: it stands for `clip_frames`.
        rule: which frames stand for a clip, one of video.RULES.
        streams: of the video, in the order in which a model reads them.
        text: of the queries; None: there are none.
        clip_frames: frames of the video that a row stands for, where clip_length is 0.
        normalization: of the rows in the files; 'none': as the encoder gives them. Readers scale
            rows to length one.
    """

    clip_length: float
    rule: str
    streams: tuple[Stream, ...]
    text: Stream | None = None
    clip_frames: int = 0
    normalization: str = 'none'

    def to_json(self) -> str:
        """The recipe as text, which `parse` reads."""
        return json.dumps(dataclasses.asdict(self))

    def write(self, folder: str | os.PathLike) -> None:
        """Writes features.json."""
        files.write_json(pathlib.Path(folder, FILE), dataclasses.asdict(self))

    def of(self, video_dirs: Sequence[str], text_dir: str) -> 'Recipe | None':
        """The recipe of some folders alone; None if it is of none of these video streams."""
        streams = tuple(stream for folder in video_dirs for stream in self.streams
                        if stream.folder == folder)
        text = self.text if self.text and self.text.folder == text_dir else None
        return dataclasses.replace(self, streams=streams, text=text) if streams else None

    def data(self) -> dict[str, Any]:
        """The config's values of section `data` that read these features."""
        found = dict(
            video_dirs=tuple(stream.folder for stream in self.streams),
            video_dims=tuple(stream.width for stream in self.streams))
        if self.clip_length:
            found['clip_length'] = self.clip_length
        if self.text:
            found |= dict(text_dir=self.text.folder, text_dim=self.text.width,
                          text_layout=self.text.layout)
        return found

    def flat(self) -> dict[str, Any]:
        """All that makes a difference, by names as in 'clip.weights'."""
        found = dict(streams=' + '.join(stream.encoder for stream in self.streams))
        for field in ('clip_length', 'clip_frames', 'rule', 'normalization'):
            found[field] = getattr(self, field)
        parts = {stream.encoder: stream for stream in self.streams} | {'text': self.text}
        for name, stream in parts.items():
            values = dataclasses.asdict(stream) if stream else {}
            found |= {f'{name}.{key}': value for key, value in values.items()
                      if key not in ('folder', 'source')}
        return found


    def sources(self) -> dict[str, str]:
        """' (NAME)' of the weights, by their names in `flat`."""
        streams = {stream.encoder: stream for stream in self.streams} | {'text': self.text}
        return {f'{name}.weights': f' ({stream.source})'
                for name, stream in streams.items() if stream and stream.source}


def parse(text: str, name: Any = 'data.recipe') -> Recipe | None:
    """Reads what `Recipe.to_json` wrote; '' is None, an unknown recipe.

    Raises:
        DataError: it is anything else; `name` says where.
    """
    if not text:
        return None
    try:
        found = json.loads(text)
        own = dict(streams=tuple(Stream(**stream) for stream in found['streams']),
                   text=Stream(**found['text']) if found.get('text') else None)
        return Recipe(**found | own)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f'{name}: no recipe of features ({one_line(error)}); expected what '
                        '--mode=extract writes') from error


def read(folder: str | os.PathLike) -> Recipe | None:
    """The recipe of a folder's features; None if there is no features.json.

    Raises:
        DataError: features.json can't be read.
    """
    path = pathlib.Path(folder, FILE)
    try:
        text = path.read_text(encoding='utf-8')
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read: {one_line(error)}") from error
    return parse(text or 'null', path)


def of_files(paths: Sequence[str | os.PathLike]) -> Recipe | None:
    """The recipe of a video's feature files, one for each stream; None if it is unknown."""
    paths = [pathlib.Path(path).absolute() for path in paths]
    found = read(paths[0].parents[1])
    return found.of([path.parent.name for path in paths], '') if found else None


def differences(there: Recipe, here: Recipe) -> list[str]:
    """'name: value there, value here' of all that is not the same.

    What one of them lacks is left out where the streams, or whether there is a text, tell it.
    """
    a, b = there.flat(), here.flat()
    names = [name for name in a if name in b and a[name] != b[name]]
    return [f'{name}: {a[name]}{there.sources().get(name, "")} there, '
            f'{b[name]}{here.sources().get(name, "")} here' for name in names]



def check(model: Recipe | None, found: Recipe | None, name: Any) -> None:
    """Checks that a model was trained on such features.

    Args:
        model: the recipe of the features it was trained on; None: unknown, as of public releases.
        found: the recipe of the features at hand, or None.
        name: where these are, or what makes them.

    Raises:
        DataError: they are not the same; names both.
    """
    if model and found and (changed := differences(model, found)):
        raise DataError(
            f'{name}: features by another recipe than those that the model was trained on '
            f'({"; ".join(changed)}); --config.evaluate.any_recipe=True takes them all the same')

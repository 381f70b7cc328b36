"""Mode `render`: videos of the generated world as files, with their annotations."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines import files, film, progress, scenes, video, world
from data_pipelines.errors import ConfigError
from data_pipelines.world import World

SCALE = 4  # pixels of the file for each of a picture: colours are stored at half the resolution


def run(values: Any, config: ConfigDict) -> None:
    """Writes what --splits and --limit name into --output.

    Raises:
        ConfigError: the config has no world in pixels, or there is no such split.
        UserError: a parameter is out of range, or the folder holds something else.
    """
    generated = world.read(config.world)
    if not generated.encoder:
        raise ConfigError('--mode=render needs a world in pixels, --config=configs/pixels.py')
    if unknown := set(values.splits) - set(world.SPLITS):
        raise ConfigError(f'--splits={",".join(sorted(unknown))}: the world has '
                          f'{", ".join(world.SPLITS)}')
    folder = render(generated, values.output, values.splits, values.limit, values.container)
    print(f'rendered videos in {folder}')


def render(generated: World, folder: str, splits: Sequence[str], limit: int, ending: str
           ) -> pathlib.Path:
    """Writes `videos/{vid}.{ending}` and `{split}.jsonl` into a folder, whole or not at all.

    Args:
        generated: the world.
        folder: to make; one that holds these very videos is left as it is.
        splits: of the world.
        limit: the first queries of each split; 0: all.
        ending: of the files, see `video.write`.

    Returns:
        The folder's path.

    Raises:
        UserError: `folder` holds something else.
    """
    record = {**world.parameters(generated), 'version': world.VERSION, 'splits': sorted(splits),
              'limit': limit, 'ending': ending}
    del record['encoder']  # it makes no difference here
    return files.fill_once(folder, 'render.json', record, functools.partial(
        _write, generated, splits, limit, ending))


def _write(generated: World, splits: Sequence[str], limit: int, ending: str, folder: pathlib.Path
           ) -> None:
    (folder / 'videos').mkdir()
    most = {split: min(getattr(generated, f'{split}_queries'), limit or 10**9) for split in splits}
    records = {split: [] for split in splits}
    with progress.Bar('rendering', sum(most.values()), 'queries') as bar:
        for clip in world.videos(generated):
            own = records.get(clip.split)
            if own is None or len(own) == most[clip.split]:
                continue
            seconds = scenes.CLIP_SECONDS * len(clip.visible)
            times = np.arange(seconds * film.RATE) / film.RATE
            pictures = film.frames(clip, times, noise=generated.camera_noise)
            video.write(folder / 'videos' / f'{clip.name}.{ending}',
                        (picture.repeat(SCALE, 0).repeat(SCALE, 1) for picture in pictures),
                        film.RATE)
            added = [record for record, _ in clip.queries][:most[clip.split] - len(own)]
            own += added
            bar.advance(len(added))
    for split, own in records.items():
        files.write_jsonl(folder / f'{split}.jsonl', own)

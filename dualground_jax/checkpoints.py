"""Checkpoints of a run: the newest and the best state, each with its config."""

import json
import logging
import os
import pathlib
import shutil
import sys
import zlib
from collections.abc import Callable, Collection

import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from data_pipelines import datasets, files
from data_pipelines.errors import UserError, one_line
from dualground_jax import models, runtime
from dualground_jax.state import TrainState

# Sections' keys that were added since runs were first saved -> what such runs did. Those of the
# model, its losses and the data count as their defaults.
ADDED = {
    'train': {'drop_last': True, 'buckets': 1, 'like_lengths': 0, 'init_from': ''},
    'mesh': {'runs': 1},
    'evaluate': {'any_recipe': False},
}
ADDED_TO_ENCODERS = {'train': {'word_weight': 0.0}}
FILES = 'files.json'  # in a step's folder: file -> [bytes, CRC-32]; orbax checks few of them
ADVICE = 'the checkpoint is damaged: copy it again, or train into another workdir'

# What a thread of orbax logs with a traceback, saving raises as well.
logging.getLogger('absl').addFilter(
    lambda record: not record.pathname.endswith('orbax/checkpoint/_src/futures/future.py'))


class CheckpointError(UserError):
    """A workdir does not hold what was asked of it."""


class Checkpoints:
    """The newest and the best state of a run, each with the config it was made by.

    Layout: `<workdir>/checkpoints/{latest,best}/<step>/{state,config,progress}/`.
    """

    def __init__(self, workdir: str | os.PathLike):
        self.root = pathlib.Path(workdir).absolute() / 'checkpoints'

    def _manager(self, kind: str) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
        return ocp.CheckpointManager(self.root / kind, options=options)

    def save(self, kind: str, state: TrainState, config: ConfigDict, progress: dict) -> None:
        """Writes the state, the config and the run's progress under `kind`.

        Earlier ones stay as they are until `keep`, also where this one can't be written. One of
        this step or a later one gives way: the run that saved it was killed and did not go on.

        Raises:
            CheckpointError: it cannot be written, as on a full disk.
        """
        step = int(state.step)
        self._remove(kind, lambda other: other >= step)
        # Where writing fails, threads of tensorstore go on for a moment and find nobody to tell.
        told, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
        try:
            self._write(kind, step, state, config, progress)
            sys.unraisablehook = told
        except (OSError, RuntimeError, ValueError) as error:
            logging.getLogger('asyncio').setLevel(logging.CRITICAL)
            for unfinished in (self.root / kind).glob('*.orbax-checkpoint-tmp'):
                shutil.rmtree(unfinished, ignore_errors=True)
            # Of tensorstore's text the last part is the system's reason.
            reason = (getattr(error, 'strerror', None)
                      or one_line(error).rpartition(': ')[2].partition(' [')[0])
            raise CheckpointError(
                f"{self.root / kind}: the checkpoint of step {step} can't be written: {reason}; "
                'what was saved before is whole, the same command goes on from it') from error

    def _write(self, kind: str, step: int, state: TrainState, config: ConfigDict, progress: dict
               ) -> None:
        with self._manager(kind) as manager:
            manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    config=ocp.args.JsonSave(json.loads(config.to_json())),
                    progress=ocp.args.JsonSave(progress)))
        if runtime.is_first():
            folder = self.root / kind / str(step)
            written = {path.relative_to(folder).as_posix(): _fingerprint(path)
                       for path in folder.glob('*/**/*') if path.is_file()}
            files.write_json(folder / FILES, written)

    def keep(self, **steps: int) -> None:
        """Of each kind removes all but this step, as what a run saved just before it was killed."""
        for kind, step in steps.items():
            self._remove(kind, lambda other, step=step: other != step)

    def _remove(self, kind: str, unwanted: Callable[[int], bool]) -> None:
        def remove():
            for folder in (self.root / kind).glob('[0-9]*'):
                if folder.name.isdigit() and unwanted(int(folder.name)):
                    shutil.rmtree(folder)

        runtime.first_alone(remove)  # before another process lists what is there

    def step(self, kind: str) -> int | None:
        """The saved step, or None."""
        if not (self.root / kind).is_dir():
            return None
        with self._manager(kind) as manager:
            return manager.latest_step()

    def _restore(self, kind: str, **items: ocp.args.CheckpointArgs) -> ocp.args.Composite:
        step = self.step(kind)
        if step is None:
            raise CheckpointError(
                f'{self.root / kind}: no checkpoint; train into this workdir first')
        folder = self.root / kind / str(step)
        _check_files(folder, items)
        try:
            with self._manager(kind) as manager:
                return manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax and tensorstore have many, some of them no other class
            raise CheckpointError(f"{folder}: can't be restored: {one_line(error)[:200]}; {ADVICE}"
                                  ) from error

    def config(self, kind: str) -> ConfigDict:
        """The config that the checkpoint was made by, with keys added since, locked."""
        plain = self._restore(kind, config=ocp.args.JsonRestore()).config
        return ConfigDict(completed(plain)).lock()

    def progress(self, kind: str) -> dict:
        """The progress that was saved with the checkpoint."""
        return self._restore(kind, progress=ocp.args.JsonRestore()).progress

    def restore(self, kind: str, abstract: TrainState) -> tuple[TrainState, dict]:
        """The state, placed as `abstract` says, and the progress."""
        found = self._restore(
            kind, state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore())
        return found.state, found.progress


def completed(config: dict) -> dict:
    """A config that was saved as JSON, with keys added since, as nested dicts."""
    return _tuples(_completed(config, _added(config)))


def _added(config: dict) -> dict:
    """What a saved config may lack, as nested dicts."""
    if 'data' not in config:
        return ADDED_TO_ENCODERS
    added = dict(ADDED)
    data, name = config['data'], config['model']['name']
    if name in models.MODELS:
        added |= dict(model=models.defaults(name), loss=models.MODELS[name].LOSS)
    if (release := (data['dataset'], data['features'])) in datasets.FEATURES:
        added['data'] = datasets.defaults(*release)
    return added


def _completed(config: dict, added: dict) -> dict:
    """Nested dicts: the config, and behind its own keys those that it lacks."""
    own = {key: _completed(value, added[key]) if isinstance(added.get(key), dict) else value
           for key, value in config.items()}
    return own | {key: value for key, value in added.items() if key not in config}


def _fingerprint(path: pathlib.Path) -> list[int]:
    """Number of bytes and CRC-32 of a file."""
    size = checksum = 0
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 24):
            size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
    return [size, checksum]


def _check_files(folder: pathlib.Path, items: Collection[str]) -> None:
    """Raises CheckpointError if the files of a step's items are not those that were written.

    A write that was interrupted, and checkpoints of 0.2.0, have no list of them.
    """
    try:
        written = json.loads((folder / FILES).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return
    for name, (size, checksum) in written.items():
        if name.partition('/')[0] not in items:
            continue
        path = folder / name
        try:
            found, found_checksum = _fingerprint(path)
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read: {error.strerror}; {ADVICE}") from error
        if found != size or found_checksum != checksum:
            reason = f'{found} bytes, expected {size}' if found != size else 'altered bytes'
            raise CheckpointError(files.foreign(path) or f'{path}: {reason}; {ADVICE}')


def _tuples(value):
    """JSON has lists only; configs have tuples only."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value

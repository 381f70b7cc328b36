"""Mode `sweep`: trains every combination of config values, one by one or many at a time, and
tabulates them.

A sweep is `key=value,value,...` with a dotted key of the config, given by the flag or the config
(`configs/sweeps`). Each combination is a run of its own in `<workdir>/<key>=<value>,<key>=<value>`,
which mode `evaluate` and others take as any run.
"""

import itertools
import json
import math
import pathlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from data_pipelines import files
from data_pipelines.errors import ConfigError, UserError, one_line
from dualground_jax import checkpoints, inputs, sharding, state, train
from dualground_jax.config import check_key as check_known
from dualground_jax.config import with_recipe
from dualground_jax.evaluate import MAIN_METRICS
from dualground_jax.metrics import summary, tables
from dualground_jax.runs import check_same_run, is_evaluated_anew

_BOOLEANS = {'true': True, '1': True, 'false': False, '0': False}


def _finite(text):
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


# Type of the config's value -> what reads one, what it expects.
_KINDS = {
    bool: (lambda text: _BOOLEANS[text.lower()], 'true or false'),
    int: (int, 'a whole number'),
    float: (_finite, 'a finite number'),
    str: (str, 'text'),
}


@dataclass(frozen=True)
class Run:
    """One combination.

    Attributes:
        values: key -> value, in the order of the flags.
        workdir: of the run.
        config: with these values, locked.
    """

    values: dict
    workdir: pathlib.Path
    config: ConfigDict

    @property
    def results(self) -> pathlib.Path:
        """The file that a finished run has."""
        return self.workdir / 'results.json'

    @property
    def is_finished(self) -> bool:
        """Whether it is trained for as long as the config says."""
        if not self.results.exists():
            return False
        saved = checkpoints.Checkpoints(self.workdir).config('latest')
        there, here = ((x.train.epochs, x.train.max_steps) for x in (saved, self.config))
        return there == here


def run(values: Any, config: ConfigDict) -> None:
    """Trains what --sweep or the config names into --workdir; see `train_all`."""
    train_all(config, values.workdir, values.sweep)


def train_all(config: ConfigDict, workdir: str | pathlib.Path, sweeps: Sequence[str]) -> None:
    """Trains all combinations that are not finished yet; a run that fails does not stop the others.

    Writes `sweep.json` and `sweep.md` into the workdir, anew after every finished run.

    Args:
        config: whole config, of which each run changes some values.
        workdir: folder of the runs' folders.
        sweeps: 'key=value,value,...', each; none: those of `config.sweep`.

    Raises:
        ConfigError: bad sweeps or none, or values that the model refuses; nothing was trained.
        UserError: a run's folder holds a run by another config (nothing was trained), or runs
            failed: all others are finished and tabulated.
    """
    if config.mesh.runs < 1:
        raise ConfigError(f'mesh.runs={config.mesh.runs}: expected 1 or more')
    choices = parse(config, sweeps or config.sweep)
    runs = combinations(config, workdir, choices)
    check(runs)
    failures = {}
    for group in groups(runs, config.mesh.runs):
        for one in group:
            told = ' is finished, it is not trained again' * one.is_finished
            print(f'run {runs.index(one) + 1} of {len(runs)}: {one.workdir.name}{told}')
        if not group[0].is_finished:
            failed = train_group(group)
            for name, text in failed.items():
                print(f'{name} failed: {text}')
            failures |= failed
        table = write(config, workdir, choices, runs)
    if table:
        print(f'{table}wrote {pathlib.Path(workdir, "sweep.md")} and sweep.json')
    if failures:
        named = '; '.join(f'{name} ({text})' for name, text in failures.items())
        raise UserError(f'{len(failures)} of {len(runs)} runs failed: {named}')


def groups(runs: list[Run], most: int) -> list[list[Run]]:
    """Runs that are trained at the same time, in the order of the first one of each group.

    Args:
        runs: all of them; one that is finished is a group of its own.
        most: runs in a group, which share a program.
    """
    groups, open_groups = [], {}
    for one in runs:
        program = str(one.workdir) if one.is_finished else inputs.program_of(one.config)
        group = open_groups.get(program, [])
        if len(group) in (0, most):
            group = open_groups[program] = []
            groups.append(group)
        group.append(one)
    return groups


def train_group(group: list[Run]) -> dict[str, str]:
    """Trains runs in one program; returns the errors of those that failed, by their names."""
    try:
        done = train.train_many([one.config for one in group], [one.workdir for one in group])
        failures = [run.failure for run in done]
    except Exception as error:  # of any kind: hours of other runs may follow
        failures = [error] * len(group)
        if not isinstance(error, UserError):
            logging.exception('%s failed', ', '.join(one.workdir.name for one in group))
    # As text: the error itself would keep the run's arrays alive.
    return {one.workdir.name: one_line(error) for one, error in zip(group, failures, strict=True)
            if error}


# What to train --------------------------------------------------------------------------------


def parse(config: ConfigDict, sweeps: Sequence[str]) -> dict[str, list]:
    """Reads the sweeps: key -> list of values that have the type of the config's.

    Raises:
        ConfigError: an unknown key, a value of another type, the same key or value twice, none.
    """
    if not sweeps:
        raise ConfigError('--mode=sweep needs --sweep=key=value,value,... or a config with a sweep '
                          'of its own, as those in configs/sweeps')
    choices = {}
    for sweep in sweeps:
        key, _, listed = sweep.partition('=')
        check_key(config, key)
        if not listed:
            raise ConfigError(f'--sweep={sweep}: no values, expected key=value,value,...')
        if key in choices:
            raise ConfigError(f'--sweep={sweep}: {key} is swept twice')
        kind = type(value_of(config, key))
        values = [parse_value(key, kind, text) for text in listed.split(',')]
        if twice := [value for i, value in enumerate(values) if value in values[:i]]:
            raise ConfigError(f'--sweep={sweep}: {spelt(twice[0])} is given twice')
        choices[key] = values
    return choices


def check_key(config: ConfigDict, key: str) -> None:
    """Raises ConfigError if the config has no such value, or if one that cannot be swept."""
    check_known(config, key)
    if key == 'model.name':
        raise ConfigError('--sweep=model.name: models differ in their keys; use one sweep for each '
                          'model, with --config=...:model=NAME')
    if key.startswith('world.'):
        raise ConfigError(f'--sweep={key}: all runs of a sweep read the same world; use one sweep '
                          'for each world, with its own --config.data.root')
    value = value_of(config, key)
    if isinstance(value, ConfigDict):
        raise ConfigError(f'--sweep={key}: config.{key} is a section, with the keys '
                          + (', '.join(sorted(value)) or 'none'))
    if type(value) not in _KINDS:
        raise ConfigError(f'--sweep={key}: config.{key} is a {type(value).__name__}; only a '
                          'number, a text, true or false can be swept')


def value_of(config: ConfigDict, key: str) -> Any:
    """The value at a dotted key."""
    for part in key.split('.'):
        config = config[part]
    return config


def parse_value(key: str, kind: type, text: str) -> Any:
    """Returns the text as a value of the kind; raises ConfigError if it is none."""
    read, expected = _KINDS[kind]
    try:
        value = read(text)
    except (KeyError, ValueError):
        raise ConfigError(f'--sweep={key}: found {text!r}, expected {expected}') from None
    if not re.fullmatch(r'[\w.+-]+', spelt(value)):
        raise ConfigError(f"--sweep={key}: {text!r} cannot be part of a folder's name; expected "
                          'letters, digits and . + - _')
    return value


def spelt(value: Any) -> str:
    """The value as folders and tables show it, however it was given: 1e-3 is 0.001."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def combinations(
    config: ConfigDict, workdir: str | pathlib.Path, choices: dict[str, list]
) -> list[Run]:
    """The runs of all combinations; the last key changes fastest."""
    runs = []
    for chosen in itertools.product(*choices.values()):
        values = dict(zip(choices, chosen, strict=True))
        own = config.copy_and_resolve_references()
        with own.unlocked():
            own.update_from_flattened_dict(values)
            own.sweep, own.mesh.runs = (), 1  # a run is what it would be by itself
        name = ','.join(f'{key}={spelt(value)}' for key, value in values.items())
        runs.append(Run(values, pathlib.Path(workdir, name), with_recipe(own)))
    return runs


def check(runs: list[Run]) -> None:
    """Checks all runs before the first one is trained.

    Raises:
        ConfigError: a value that the model, the optimiser or the mesh refuses.
        UserError: a folder holds a run by another config, finished or cut off.
    """
    for one in runs:
        check_same_config(one)
    traced = []
    for one in runs:
        without_seed = summary.without_seed(one.values)
        if one.is_finished or without_seed in traced:
            continue
        traced.append(without_seed)
        try:
            state.abstract_state(one.config, sharding.make_mesh(one.config.mesh))
        except Exception as error:  # flax and jax refuse shapes by errors of several kinds
            raise ConfigError(f'{one.workdir.name}: {one_line(error)}') from error


def check_same_config(one: Run) -> None:
    """Raises UserError if the run's folder holds a run by another config."""
    run_there = checkpoints.Checkpoints(str(one.workdir))
    if run_there.step('latest') is None:
        if one.results.exists():
            raise UserError(f'{one.results}: a finished run without its checkpoint, which says by '
                            'what config; expected both or none')
        return
    changed = check_same_run(one.workdir, run_there.config('latest'), one.config)
    if is_evaluated_anew(changed):
        raise UserError(f'{one.workdir}: holds a run that was evaluated otherwise '
                        f'({"; ".join(changed)}), and a table compares; use another --workdir')


# What came out --------------------------------------------------------------------------------


def grouped(runs: list[tuple[dict, dict]]) -> list[dict]:
    """Means over seeds, as `sweep.json` lists them.

    Args:
        runs: (values, metrics) each; values is key -> value, metrics name -> number.

    Returns:
        A dict for each combination of values but for the seed, in the order of its first run:
        `values`, `seeds` (number of runs), `mean` and `std` (metric -> number, ddof=1; {} for one
        seed) of the metrics that all its runs have.
    """
    return [dict(
        values=row['values'],
        seeds=len(row['runs']),
        mean={name: found['mean'] for name, found in row['numbers'].items()},
        std={name: found['std'] for name, found in row['numbers'].items() if found['n'] > 1},
    ) for row in summary.over_seeds(runs)]


def markdown(keys: list[str], names: Iterable[str], table: list[dict]) -> str:
    """Text of a Markdown table.

    Args:
        keys: of the values, in the order of their columns.
        names: of the metrics; those that no row has are left out.
        table: as of `grouped`.
    """
    names = [name for name in names if any(name in row['mean'] for row in table)]
    return tables.markdown([*keys, *names, 'seeds'], [
        [*(spelt(row['values'][key]) for key in keys),
         *(tables.spread(row['mean'].get(name), row['std'].get(name)) for name in names),
         row['seeds']] for row in table])


def write(
    config: ConfigDict, workdir: str | pathlib.Path, choices: dict[str, list], runs: list[Run]
) -> str:
    """Writes `sweep.json` and `sweep.md` of the runs that are finished; returns the latter's text.

    Without a finished run nothing is written, and the text is empty.
    """
    listed = []
    for one in runs:
        if one.results.exists():
            result = json.loads(one.results.read_text())
            kept = {name: result[name] for name in ('brief', 'best_step', 'parameters')}
            listed.append(dict(values=one.values, workdir=str(one.workdir), **kept))
    if not listed:
        return ''
    keys = summary.without_seed(choices)
    seeds = choices.get(summary.SEED, [config.seed])
    table = grouped([(entry['values'], entry['brief']) for entry in listed])
    text = (f'{config.model.name}, best checkpoint on split {config.evaluate.split}, mean ± std '
            f'(ddof=1) over seeds {", ".join(map(str, seeds))}; {len(listed)} of {len(runs)} runs '
            'are finished\n\n')
    text += markdown(list(keys), dict.fromkeys((*config.evaluate.selection, *MAIN_METRICS)), table)
    files.write_json(pathlib.Path(workdir, 'sweep.json'),
                    dict(keys=keys, seeds=seeds, runs=listed, table=table))
    files.write_text(pathlib.Path(workdir, 'sweep.md'), text)
    return text

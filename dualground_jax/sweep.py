"""Mode `sweep`: trains every combination of config values, one by one or many at a time, and
tabulates them.

A sweep is `key=value,value,...` with a dotted key of the config, or `:name=value,value,...` with an
argument of its file, given by the flag or the config (`configs/sweeps`). A config may have several
lists of them, whose combinations are added up. Each combination is a run of its own in
`<workdir>/<key>=<value>,<key>=<value>`, which mode `evaluate` and others take as any run.
"""

import itertools
import json
import math
import pathlib
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from absl import logging
from absl.flags import FlagValues
from ml_collections import ConfigDict, config_flags

from data_pipelines import files
from data_pipelines.errors import ConfigError, UserError, one_line
from dualground_jax import checkpoints, inputs, sharding, state, train, worlds
from dualground_jax.config import check_key as check_known
from dualground_jax.config import with_arguments, with_recipe
from dualground_jax.evaluate import MAIN_METRICS
from dualground_jax.metrics import summary, tables
from dualground_jax.runs import check_same_run, check_steps, is_evaluated_anew

ConfigOf = Callable[[dict[str, Any]], ConfigDict]
ARGUMENT = ':'  # what keys begin with that are arguments of the config's file
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
        arguments: those of the config's file among the values, by name.
        changes: what else is set: the values of keys, and the folder of the run's world.
    """

    values: dict
    workdir: pathlib.Path
    config: ConfigDict
    arguments: dict
    changes: dict

    @property
    def results(self) -> pathlib.Path:
        """The file that a finished run has."""
        return self.workdir / 'results.json'

    @property
    def is_finished(self) -> bool:
        """Whether it is trained for as long as the config says."""
        if not self.results.exists():
            return False
        result, saved = json.loads(self.results.read_text()), checkpoints.Checkpoints(self.workdir)
        # Those of 0.2.0 have no config.
        trained = result['config'] if 'config' in result else saved.config('latest').to_dict()
        there, here = trained['train'], self.config.train
        return (all(there[key] == here[key] for key in ('epochs', 'max_steps'))
                and saved.step('best') == result['best_step'])  # else it was trained further


def run(values: FlagValues, config: ConfigDict) -> None:
    """Trains what --sweep or the config names into --workdir; see `train_all`.

    With --commands it prints the commands of the runs that are not finished, with --collect it
    tabulates those that are.
    """
    source = config_flags.get_config_filename(values['config'])
    overrides = config_flags.get_override_values(values['config'])
    choices, runs = plan(config, values.workdir, values.sweep,
                         lambda arguments: with_arguments(source, arguments, overrides))
    if values.commands:
        check(runs)
        print('\n'.join(command(one, source, overrides) for one in runs if not one.is_finished))
    elif values.collect:
        for one in runs:
            check_same_config(one)
        tell(config, values.workdir, choices, runs)
    else:
        train_all(config, values.workdir, choices, runs)


def plan(
    config: ConfigDict, workdir: str | pathlib.Path, sweeps: Sequence[str],
    config_of: ConfigOf | None = None,
) -> tuple[dict[str, list], list[Run]]:
    """The choices of a sweep, and the runs of all combinations.

    Args:
        config: whole config, of which each run changes some values.
        workdir: folder of the runs' folders.
        sweeps: 'key=value,value,...', each; none: those of `config.sweep`, or of each of its lists.
        config_of: arguments of the config's file -> config; None: they can't be swept.

    Raises:
        ConfigError: bad sweeps or none, or a run that is in two lists.
    """
    asked = sweeps or config.sweep
    lists = [asked] if not asked or isinstance(asked[0], str) else asked
    choices, runs = {}, {}
    for listed in lists:
        chosen = parse(config, listed)
        for one in combinations(config, workdir, chosen, config_of):
            if runs.setdefault(one.workdir, one) is not one:
                raise ConfigError(f'config.sweep: {one.workdir.name} is in two lists')
        for key, values in chosen.items():
            choices[key] = list(dict.fromkeys([*choices.get(key, ()), *values]))
    return choices, list(runs.values())


def train_all(config: ConfigDict, workdir: str | pathlib.Path, choices: dict[str, list],
              runs: list[Run]) -> None:
    """Trains all combinations that are not finished yet; a run that fails does not stop the others.

    Writes `sweep.json` and `sweep.md` into the workdir, anew after every finished run.

    Args:
        config: as in `plan`.
        workdir: as in `plan`.
        choices: of `plan`.
        runs: of `plan`.

    Raises:
        ConfigError: values that the model refuses; nothing was trained.
        UserError: a run's folder holds a run by another config (nothing was trained), or runs
            failed: all others are finished and tabulated.
    """
    if config.mesh.runs < 1:
        raise ConfigError(f'mesh.runs={config.mesh.runs}: expected 1 or more')
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
            write(config, workdir, choices, runs)
    tell(config, workdir, choices, runs)
    if failures:
        named = '; '.join(f'{name} ({text})' for name, text in failures.items())
        raise UserError(f'{len(failures)} of {len(runs)} runs failed: {named}')


def command(one: Run, source: str, overrides: Mapping[str, Any]) -> str:
    """The command that trains a run alone, wherever it is started.

    Args:
        one: the run.
        source: of its config, file and arguments.
        overrides: values of the config that the command line of the sweep gave.
    """
    arguments = [f'{key}={spelt(value)}' for key, value in one.arguments.items()]
    if arguments:
        source += (',' if ':' in source else ':') + ','.join(arguments)
    changed = {key: value for key, value in {**overrides, **one.changes}.items()
               if key not in ('sweep', 'mesh.runs')}
    return shlex.join([
        'python', '-m', 'dualground_jax.main', f'--config={source}', f'--workdir={one.workdir}',
        *(f'--config.{key}={value}' for key, value in changed.items())])


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
        if not key.startswith(ARGUMENT):
            check_key(config, key)
        if not listed:
            raise ConfigError(f'--sweep={sweep}: no values, expected key=value,value,...')
        if key in choices:
            raise ConfigError(f'--sweep={sweep}: {key} is swept twice')
        kind = str if key.startswith(ARGUMENT) else type(value_of(config, key))
        values = [parse_value(key, kind, text) for text in listed.split(',')]
        if twice := [value for i, value in enumerate(values) if value in values[:i]]:
            raise ConfigError(f'--sweep={sweep}: {spelt(twice[0])} is given twice')
        choices[key] = values
    return choices


def check_key(config: ConfigDict, key: str) -> None:
    """Raises ConfigError if the config has no such value, or if one that cannot be swept."""
    check_known(config, key)
    if key == 'model.name':
        raise ConfigError('--sweep=model.name: models differ in their keys; sweep the argument, '
                          f'--sweep={ARGUMENT}model=NAME,NAME')
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
    config: ConfigDict, workdir: str | pathlib.Path, choices: dict[str, list],
    config_of: ConfigOf | None = None,
) -> list[Run]:
    """The runs of all combinations; the last key changes fastest. See `plan`.

    Raises:
        ConfigError: arguments that the config's file does not take, or with which it lacks a key.
    """
    runs, configs = [], {(): config}
    for chosen in itertools.product(*choices.values()):
        values = dict(zip(choices, chosen, strict=True))
        arguments = {key.removeprefix(ARGUMENT): value for key, value in values.items()
                     if key.startswith(ARGUMENT)}
        if arguments and config_of is None:
            raise ConfigError(f'--sweep={ARGUMENT}{next(iter(arguments))}: no file takes arguments')
        asked = tuple(arguments.items())
        own = configs[asked] = configs.get(asked) or config_of(arguments)
        own = own.copy_and_resolve_references()
        changes = {key: value for key, value in values.items() if not key.startswith(ARGUMENT)}
        for key in changes:
            check_key(own, key)
        with own.unlocked():
            own.update_from_flattened_dict(changes)
        # Another world needs a folder of its own, which the file may have given it.
        of_world = [named(f'world.{key}', value) for key, value in own.world.items()
                    if f'world.{key}' in changes
                    or own.data.root == config.data.root and value != config.world.get(key)]
        if of_world:
            changes['data.root'] = ','.join((own.data.root, *of_world))
        with own.unlocked():
            own.data.root = changes.get('data.root', own.data.root)
            own.sweep, own.mesh.runs = (), 1  # a run is what it would be by itself
        folder = pathlib.Path(workdir, ','.join(itertools.starmap(named, values.items())))
        runs.append(Run(values, folder, own.lock(), arguments, changes))
    return runs


def named(key: str, value: Any) -> str:
    """A value with its key, as in a folder's name."""
    return f'{key.removeprefix(ARGUMENT)}={spelt(value)}'


def check(runs: list[Run]) -> None:
    """Checks all runs before the first one is trained, and makes their worlds.

    Raises:
        ConfigError: a value that the model, the optimiser or the mesh refuses.
        UserError: a folder holds a run by another config, finished or cut off, or another world.
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
    for root in dict.fromkeys(one.config.data.root for one in runs if not one.is_finished):
        worlds.prepare(next(one.config for one in runs if one.config.data.root == root))


def check_same_config(one: Run) -> None:
    """Raises UserError if the run's folder holds a run by another config, or a longer one."""
    run_there = checkpoints.Checkpoints(str(one.workdir))
    if run_there.step('latest') is None:
        if one.results.exists():
            raise UserError(f'{one.results}: a finished run without its checkpoint, which says by '
                            'what config; expected both or none')
        return
    if most := one.config.train.max_steps:
        check_steps(one.workdir, run_there.step('latest'), most)
    changed = check_same_run(
        one.workdir, run_there.config('latest'), with_recipe(one.config))
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
        keys: of the values, in the order of their columns; empty where a row is as the config.
        names: of the metrics; those that no row has are left out.
        table: as of `grouped`.
    """
    names = [name for name in names if any(name in row['mean'] for row in table)]
    titles = [key.removeprefix(ARGUMENT) for key in keys]
    return tables.markdown([*titles, *names, 'seeds'], [
        [*(spelt(row['values'].get(key, '')) for key in keys),
         *(tables.spread(row['mean'].get(name), row['std'].get(name)) for name in names),
         row['seeds']] for row in table])


def tell(config: ConfigDict, workdir: str | pathlib.Path, choices: dict[str, list],
         runs: list[Run]) -> None:
    """Prints the table of the finished runs, if there are some, and writes it; see `write`."""
    if table := write(config, workdir, choices, runs):
        print(f'{table}wrote {pathlib.Path(workdir, "sweep.md")} and sweep.json')


def write(
    config: ConfigDict, workdir: str | pathlib.Path, choices: dict[str, list], runs: list[Run]
) -> str:
    """Writes `sweep.json` and `sweep.md` of the runs that are finished; returns the latter's text.

    Without a finished run nothing is written, and the text is empty.
    """
    listed = []
    for one in runs:
        if one.is_finished:
            result = json.loads(one.results.read_text())
            kept = {name: result[name] for name in ('brief', 'best_step', 'parameters')}
            listed.append(dict(values=one.values, workdir=str(one.workdir), **kept))
    if not listed:
        return ''
    keys = summary.without_seed(choices)
    seeds = choices.get(summary.SEED, [config.seed])
    table = grouped([(entry['values'], entry['brief']) for entry in listed])
    models = ', '.join(dict.fromkeys(one.config.model.name for one in runs))
    text = (f'{models}, best checkpoint on split {config.evaluate.split}, mean ± std '
            f'(ddof=1) over seeds {", ".join(map(str, seeds))}; {len(listed)} of {len(runs)} runs '
            'are finished\n\n')
    text += markdown(list(keys), dict.fromkeys((*config.evaluate.selection, *MAIN_METRICS)), table)
    files.write_json(pathlib.Path(workdir, 'sweep.json'),
                    dict(keys=keys, seeds=seeds, runs=listed, table=table))
    files.write_text(pathlib.Path(workdir, 'sweep.md'), text)
    return text

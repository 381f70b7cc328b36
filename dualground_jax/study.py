"""Mode `study`: from one config to tables.

Trains the encoders that the config names and all runs of its questions, and analyses each run on a
split by which nothing was chosen.

A question is a title and lists of values, as `config.sweep` has them. Its runs are compared with
those that have the config's own value in place of one of theirs, pair by pair of the same seed.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from absl.flags import FlagValues
from flax import traverse_util
from ml_collections import ConfigDict, config_flags

from data_pipelines import files, progress
from data_pipelines.errors import ConfigError, DataError
from dualground_jax import sweep, train_encoder
from dualground_jax.analysis import analyse, comparison, scaling
from dualground_jax.checkpoints import Checkpoints
from dualground_jax.config import load_config, with_arguments
from dualground_jax.metrics import summary
from dualground_jax.runs import check_same_run

SPLIT = 'test'  # checkpoints are chosen by another one
SETTINGS = analyse.Settings(splits=(SPLIT,), limit=0, examples=0, tokenizer='')
WORLD, MODEL = 'world', 'model.name'  # told of every run
TOKENS = 'model.tokens'  # beside these the only key that figures of models tell apart
KEPT = 'runs.jsonl'


def run(values: FlagValues, config: ConfigDict) -> None:
    """Does what is missing of the study in --workdir.

    Writes `runs/`, each run with its analysis, and `runs.jsonl`, `study.json`, `study.md` and
    figures; encoders into `config.study.folder`. Runs that are in `runs.jsonl` are not made again,
    nor are their folders needed. With --commands it only trains encoders, and prints a command for
    each run that is missing; with --collect it takes what is there.

    Raises:
        ConfigError: the config has no study, flags that contradict, or as `sweep`.
        DataError: `runs.jsonl` has a run of another config.
    """
    if 'study' not in config:
        raise ConfigError('--mode=study needs a config of a study, as configs/sweeps/study.py')
    folder, trains = pathlib.Path(values.workdir), not values.collect
    if values.collect and values.commands:
        raise ConfigError('--mode=study takes one of --collect and --commands')
    if values.collect and not folder.is_dir():
        raise ConfigError(f'--workdir={folder}: no such folder, --collect takes what is there')
    source = config_flags.get_config_filename(values['config'])
    overrides = config_flags.get_override_values(values['config'])

    def plan(lists):
        return sweep.plan(config, folder / 'runs', lists,
                          lambda arguments: with_arguments(source, arguments, overrides))

    if trains:
        train_encoders(config.study)
    choices, runs = plan(())
    kept = read_kept(folder / KEPT, runs)
    numbers = {one.workdir: kept[one.workdir.name]['numbers'] for one in runs
               if one.workdir.name in kept}
    missing = [one for one in runs if one.workdir not in numbers]
    if values.commands:
        sweep.check(missing)
        for one in missing:
            if not one.is_finished:
                print(sweep.command(one, source, overrides), '&&', analysis_command(one))
        progress.say(f'{len(missing)} of {len(runs)} runs are missing')
        return
    if trains:
        sweep.train_all(config, folder / 'runs', choices, missing)
    for one in missing:
        if one.is_finished:
            sweep.check_same_config(one)
            report = analyse.analyse_run(one.workdir, SETTINGS)
            numbers[one.workdir] = comparison.numbers_of(report['splits'][SPLIT])
    kept |= {one.workdir.name: dict(
        run=one.workdir.name, config=digest(one.config), numbers=numbers[one.workdir])
        for one in missing if one.workdir in numbers}
    files.write_jsonl(folder / KEPT, kept.values())
    questions = {title: plan(lists)[1] for title, lists in config.study.questions.items()}
    write(folder, config, questions, numbers)
    print(f'wrote {folder / "study.md"}, {len(numbers)} of {len(runs)} runs are finished')


def read_kept(path: pathlib.Path, runs: list[sweep.Run]) -> dict[str, dict]:
    """The file's lines by the names of their runs, the last of each; some are of other runs.

    Raises:
        DataError: a line is no such record, or one of these runs had another config.
    """
    by_name, found = {one.workdir.name: one for one in runs}, {}
    for line, row in enumerate(files.load_jsonl(path) if path.exists() else (), 1):
        if not (isinstance(row.get('run'), str) and isinstance(row.get('numbers'), dict)):
            raise DataError(f'{path}: line {line}: expected run, config and numbers')
        one = by_name.get(row['run'])
        if one and row.get('config') != digest(one.config):
            raise DataError(f'{path}: line {line}: {row["run"]} had another config than '
                            'this command gives it; delete the line to train it anew')
        found[row['run']] = row
    return found


def digest(config: ConfigDict) -> str:
    """What tells a run's config, and its encoder's, from others; the rest of a study may grow."""
    own = {key: value for key, value in config.to_dict().items() if key != 'study'}
    name = pathlib.Path((config.world or {}).get('encoder', '')).parent.name
    if name in config.get('study', {}).get('encoders', {}):
        own['encoder'] = encoder_config(config.study, name).to_dict()
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]


def train_encoders(study: ConfigDict) -> None:
    """Trains those that are not there yet.

    Raises:
        CheckpointError: a folder holds another encoder, or one of more steps.
    """
    for name in study.encoders:
        folder, config = pathlib.Path(study.folder, name), encoder_config(study, name)
        results = folder / 'results.json'
        if results.exists() and json.loads(results.read_text())['steps'] == config.train.max_steps:
            check_same_run(folder, Checkpoints(folder).config('latest'), config)
        else:
            print(f'encoder {name}')
            train_encoder.train(config, folder)


def encoder_config(study: ConfigDict, name: str) -> ConfigDict:
    """The config that an encoder of the study is trained by."""
    changes = traverse_util.flatten_dict(study.encoders[name].to_dict(), sep='.')
    return load_config(study.encoder, changes)


def analysis_command(one: sweep.Run) -> str:
    """The command that analyses a run as the study does."""
    return ('python -m dualground_jax.main --mode=analyse '
            f'--workdir={one.workdir} --splits={SPLIT} --examples={SETTINGS.examples}')


# Tables ---------------------------------------------------------------------------------------


def write(folder: pathlib.Path, config: ConfigDict, questions: Mapping[str, list[sweep.Run]],
          numbers: Mapping[pathlib.Path, dict]) -> None:
    """Writes study.json, study.md and figures: of the models in each world, and of each size.

    Args:
        folder: of the study.
        config: of the study.
        questions: title -> its runs.
        numbers: folder of each finished run -> what was measured of it.
    """
    keys = dict.fromkeys(key for runs in questions.values() for one in runs for key in one.values)
    usual = assignment({}, config, keys)
    measured = {title: [
        (assignment(one.values, one.config, keys), numbers[one.workdir])
        for one in runs if one.workdir in numbers] for title, runs in questions.items()}
    everything = [each for runs in measured.values() for each in runs]
    found = {title: dict(
        groups=summary.over_seeds(runs),
        differences=differences(runs, everything, dict(usual, world=runs[0][0].get(WORLD))),
        scaling=[]) for title, runs in measured.items() if runs}
    fits = scaling.fits([(summary.without_seed(values), values[summary.SEED], measured)
                         for values, measured in everything])
    found['Scaling'] = dict(groups=[], differences=[], scaling=fits)
    for rows in (row for part in found.values() for kind in part.values() for row in kind):
        rows['values'] = told(rows['values'], usual)
    pictures = [*comparison.draw(of_models(everything, usual), folder),
                *comparison.draw_scaling(fits, folder, SPLIT)]
    files.write_json(folder / 'study.json', found)
    files.write_text(folder / 'study.md', '\n'.join([
        '# Study\n', *(f'## {title}\n\n{comparison.markdown(part)}'
                      for title, part in found.items()),
        *(f'![{shows}]({name}.png)\n' for name, shows in pictures)]))


def assignment(chosen: Mapping[str, Any], config: ConfigDict, keys: Any) -> dict[str, Any]:
    """What a run has of each key: the value chosen, else its config's, None where it has none."""
    flat = traverse_util.flatten_dict(config.to_dict(), sep='.')
    found = {}
    for key in keys:
        name = key.removeprefix(sweep.ARGUMENT)
        if name != key and name != WORLD:  # of those that say which model
            name = 'model.' + dict(model='name').get(name, name)
        found[name] = chosen.get(key, flat.get(name))
    return found


def of_models(runs: list[tuple[dict, dict]], usual: Mapping[str, Any]) -> list[dict]:
    """Runs that are as usual but for world, model and tokens, as `comparison.draw` takes them."""
    free = (WORLD, MODEL, TOKENS, summary.SEED)
    found = []
    for world in dict.fromkeys(values.get(WORLD) for values, _ in runs):
        here = [({key: values[key] for key in free[1:] if key in values}, numbers)
                for values, numbers in runs if values.get(WORLD) == world
                and all(values[key] in (None, usual[key]) for key in values if key not in free)]
        found += [dict(row, split=world) for row in summary.over_seeds(here)]
    return found


def told(values: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not the study's own."""
    return {key: value for key, value in values.items()
            if key in (WORLD, MODEL) or value not in (None, usual[key])}


def differences(runs: list[tuple[dict, dict]], others: list[tuple[dict, dict]],
                usual: Mapping[str, Any]) -> list[dict]:
    """Compares groups of runs with those that have a usual value in place of one of theirs.

    Variants of the usual model are also compared with other models that have the same of all else
    that they have.

    Args:
        runs: (assignment, numbers) each.
        others: the same of all runs.
        usual: key -> the value compared with.

    Returns:
        As `comparison.compare`.
    """
    found = []
    for values, own in by_seed(runs):
        is_variant = values.get(MODEL) == usual.get(MODEL) and any(
            value not in (None, usual[key]) for key, value in values.items() if key != WORLD)
        for other, there in by_seed(others):
            differing = [key for key in values if values[key] != other[key]
                         and {values[key], other[key]} != {None, usual[key]}]
            is_one = len(differing) == 1 and other[differing[0]] == usual[differing[0]]
            is_rival = (is_variant and MODEL in differing
                        and all(other[key] is None for key in differing if key != MODEL))
            seeds = sorted(own.keys() & there.keys())
            if (is_one or is_rival) and seeds:
                key = MODEL if is_rival else differing[0]
                found.append(dict(key=key, values=values, first=other[key], seeds=seeds,
                                  numbers=comparison.paired(there, own, seeds)))
    return found


def by_seed(runs: list[tuple[dict, dict]]) -> list[tuple[dict, dict]]:
    """(assignment but for the seed, seed -> numbers) of each group of runs."""
    return [(group['values'], {runs[place][0][summary.SEED]: runs[place][1]
                               for place in group['runs']}) for group in summary.over_seeds(runs)]

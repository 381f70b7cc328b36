"""What all configs share: the command-line argument, defaults and recipe, the small variant."""

import math
import os
from collections.abc import Iterable

from ml_collections import ConfigDict

from configs import defaults, recipes
from data_pipelines import datasets, recipe
from data_pipelines.errors import ConfigError
from dualground_jax import models
from dualground_jax.config import load_config

MODEL = 'model', 'head', 'tokens', 'paths'  # arguments that say which one
# What every config takes beside `features`.
ARGUMENTS = dict(
    model='dualground',
    head='pyramid',
    tokens='full',
    paths='both',
    root='',  # folder of the features; default data/<data set>
    annotations='',  # folder of the annotation files; default: the root
    init='',  # workdir to start training from: its model and losses are taken
    runlocal=False,  # shrink to run in seconds
)


def parse_arg(arg: str | None, **known) -> dict:
    """Reads a config argument such as 'model=dualground,features=iv2,runlocal'.

    Args:
        arg: comma-separated name=value; a bare name means True.
        **known: the names and their defaults; values take the type of these.

    Raises:
        ConfigError: an unknown name, listed with the known ones, or a value of another type.
    """
    values = dict(known)
    for part in filter(None, (arg or '').split(',')):
        name, given, value = part.partition('=')
        _check_known('config argument', name, known)
        kind = type(known[name])
        if kind is bool:
            meaning = {'': True, 'true': True, '1': True, 'false': False, '0': False}
            if value.lower() not in meaning:
                raise ConfigError(f'config argument {name}={value!r}: expected true or false')
            values[name] = meaning[value.lower()]
        elif not given:
            raise ConfigError(f'config argument {name!r} needs a value: {name}=...')
        else:
            values[name] = kind(value)
    return values


def from_argument(dataset: str, arg: str | None, **further) -> ConfigDict:
    """The config of a data set for its argument; `further`: names beside `ARGUMENTS`, defaults."""
    args = parse_arg(arg, **further, **ARGUMENTS)
    config = base(dataset, args)
    return small(config) if args['runlocal'] else config


def base(dataset: str, args: dict) -> ConfigDict:
    """The full config for a data set and the parsed arguments.

    Values are those of the model's public recipe (`recipes`) where there is one for the data set,
    else the defaults.

    Raises:
        ConfigError: an unknown model or release, listed with the known ones, or not that of init.
        CheckpointError: init has no checkpoint.
    """
    saved = _config_of_init(args)
    model, features = saved.model.name if saved else args['model'], args['features']
    _check_known('model', model, models.MODELS)
    releases = [name for owner, name in datasets.FEATURES if owner == dataset]
    _check_known('features', features, releases, f' for {dataset}')
    config = ConfigDict(defaults.sections(model, dataset, features))
    config.model.update({k: args[k] for k in MODEL[1:] if k in config.model})
    config.data.domain = args.get('domain', '')
    config.data.root = args['root'] or config.data.root
    if features == 'own' and (found := recipe.read(config.data.root)):
        length = config.data.clip_length
        config.data.update(found.data())
        if dataset != 'custom':
            config.data.max_clips = math.ceil(
                config.data.max_clips * length / config.data.clip_length)
        if config.evaluate.round_to:
            config.evaluate.round_to = config.data.clip_length
    elif features == 'own' and dataset != 'custom':
        raise ConfigError(f'{config.data.root}: no {recipe.FILE}, expected the folder that '
                          '--mode=extract has written (argument root)')
    if args['annotations']:
        for split, name in config.data.annotations.items():
            path = os.path.join(args['annotations'], name)
            config.data.annotations[split] = os.path.abspath(path)
    if script := recipes.recipe(model, dataset, features):
        config.lock()  # a key that does not exist is an error
        config.update_from_flattened_dict(script.values)
        config.unlock()
    if saved:
        config.update(model=saved.model.to_dict(), loss=saved.loss.to_dict())
        config.data.normalize_text = saved.data.normalize_text
        config.train.init_from = args['init']
    return config


def _config_of_init(args: dict) -> ConfigDict | None:
    """The config of the run to start from, if there is one.

    Raises:
        CheckpointError: it has no checkpoint.
        ConfigError: an argument asks for another model than it has.
    """
    if not args['init']:
        return None
    saved = load_config(args['init'])
    for key, value in dict(saved.model, model=saved.model.name).items():
        if key in MODEL and args[key] not in (ARGUMENTS[key], value):
            raise ConfigError(f'config argument {key}={args[key]}: init={args["init"]} has {value}')
    return saved


def _check_known(kind: str, name: str, known: Iterable[str], where: str = '') -> None:
    if name not in known:
        raise ConfigError(f'unknown {kind} {name!r}{where}, known are: {", ".join(sorted(known))}')


def resize(config: ConfigDict, **sizes) -> None:
    """Sets those of the sizes that the config's model has; one of another run keeps its own."""
    if config.train.init_from:
        return
    config.model.update({name: value for name, value in sizes.items() if name in config.model})


def small(config: ConfigDict) -> ConfigDict:
    """Shrinks any config to run in seconds."""
    resize(
        config, width=32, heads=4, ffn=64, t2v_layers=1, enc_layers=1, dec_layers=1,
        dummy_layers=1, dummies=3, phrase_layers=1, context_layers=1, mlp_layers=2)
    config.data.limit = 32
    batch_size = min(8, config.train.batch_size)
    config.train.update(batch_size=batch_size, epochs=2, log_every=2, eval_every=1)
    config.evaluate.update(batch_size=8, pictures=1)
    return config

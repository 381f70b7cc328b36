"""What all configs share: every default once, the command-line argument, the small variant."""

import dataclasses
import os

from ml_collections import ConfigDict

from configs import recipes
from data_pipelines import datasets
from data_pipelines import features as features_lib
from data_pipelines.errors import ConfigError
from dualground_jax import models

# What every config takes beside `features`.
ARGUMENTS = dict(
    model='dualground',
    head='pyramid',
    tokens='full',
    paths='both',
    root='',  # folder of the features; default data/<data set>
    annotations='',  # folder of the annotation files; default: the root
    runlocal=False,  # shrink to run in seconds
)


def parse_arg(arg: str | None, **defaults) -> dict:
    """Reads a config argument such as 'model=dualground,features=iv2,runlocal'.

    Args:
      arg: comma-separated name=value; a bare name means True.
      **defaults: the known names; values take the type of their default.

    Raises:
      ConfigError: an unknown name, listed with the known ones, or a value of another type.
    """
    values = dict(defaults)
    for part in filter(None, (arg or '').split(',')):
        name, given, value = part.partition('=')
        if name not in defaults:
            raise ConfigError(
                f'unknown config argument {name!r}, known are: {", ".join(sorted(defaults))}'
            )
        kind = type(defaults[name])
        if kind is bool:
            known = {'': True, 'true': True, '1': True, 'false': False, '0': False}
            if value.lower() not in known:
                raise ConfigError(f'config argument {name}={value!r}: expected true or false')
            values[name] = known[value.lower()]
        elif not given:
            raise ConfigError(f'config argument {name!r} needs a value: {name}=...')
        else:
            values[name] = kind(value)
    return values


def base(dataset: str, args: dict) -> ConfigDict:
    """The full config for a data set and the parsed arguments.

    Values are those of the model's public recipe (`recipes`) where there is one for the data set.

    Raises:
      ConfigError: an unknown model or release, listed with the known ones.
    """
    model, features = args['model'], args['features']
    if model not in models.MODELS:
        raise ConfigError(f'unknown model {model!r}, known are: {", ".join(sorted(models.MODELS))}')
    releases = {name: values for (owner, name), values in datasets.FEATURES.items()
                if owner == dataset}
    if features not in releases:
        raise ConfigError(
            f'unknown features {features!r} for {dataset}, known are: {", ".join(sorted(releases))}'
        )
    row = datasets.DATASETS[dataset]
    release = dict(releases[features])
    clip_to = release.pop('clip_to', row.clip_to)
    config = ConfigDict()
    config.seed = 2024
    config.model = ConfigDict(dict(name=model, **models.defaults(model)))
    config.model.update({k: args[k] for k in ('head', 'tokens', 'paths') if k in config.model})
    config.data = ConfigDict(
        dict(
            root=args['root'] or f'data/{dataset}',
            annotations={
                split: os.path.abspath(os.path.join(args['annotations'], name))
                if args['annotations'] else name  # relative to the root
                for split, name in row.annotations.items()
            },
            clip_length=row.clip_length,
            saliency=row.saliency,
            segments=row.segments,
            domain=args.get('domain', ''),  # only its records; '': all
            duration_unit=row.duration_unit,
            video_parts=('',),
            text_key=features_lib.TEXT_KEY,
            max_windows=row.max_windows,
            max_spans=min(row.max_windows, 5),  # as many as the references' moment queries see
            normalize_text=True,
            dtype='float32',  # of features in memory and batches; 'float16' halves both
            on_error='raise',
            skip_list='',  # file of records to leave out, as mode verify-data writes it
            limit=0,
            cache_gb=-1.0,  # features of a split kept in memory; negative: all
            records='',  # folder of built data (mode build) to read instead of the files
            dataset=dataset,
            features=features,
            resident=False,  # training features on the device, as bfloat16
        )
        | release
    )
    config.loss = ConfigDict(models.MODELS[model].LOSS)
    config.optimizer = ConfigDict(
        dict(
            learning_rate=1e-4,
            weight_decay=1e-4,
            clip_norm=0.1,
            schedule='constant',  # or 'cosine'
            warmup_steps=0,
            ema_decay=0.0,  # 0: evaluate the parameters themselves
        )
    )
    config.train = ConfigDict(
        dict(
            batch_size=64,
            epochs=150,
            max_steps=0,  # > 0: stop there, whatever the epochs
            steps_per_call=1,  # > 1: so many steps in one program
            log_every=10,  # steps
            eval_every=5,  # epochs
        )
    )
    config.evaluate = ConfigDict(
        dict(
            batch_size=64,
            split='val',
            buckets=1,  # lengths that videos are padded to; each is compiled
            nms=0.7,  # IoU; above 1: none
            nms_kind='normal',  # or 'linear', 'hard': nms.py
            round_to=config.data.clip_length if row.round_to_clip else 0.0,  # seconds; 0: none
            clip_to=clip_to,
            protocol=dataset,  # of the metrics: key of metrics.PROTOCOLS
            selection=row.selection,
            pictures=4,  # grounding timelines after training
        )
    )
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, model=1))  # -1: all remaining devices
    config.sweep = ()  # 'key=value,value' each: what mode sweep runs without --sweep
    config.world = ConfigDict()  # parameters of the generated data; empty: the data are real
    if (recipe := recipes.recipe(model, dataset, features)) is not None:
        config.lock()  # a key that does not exist is an error
        config.update_from_flattened_dict(recipe.values)
        config.unlock()
    return config


def resize(config: ConfigDict, **sizes) -> None:
    """Sets those of the sizes that the config's model has."""
    config.model.update({name: value for name, value in sizes.items() if name in config.model})


def small(config: ConfigDict) -> ConfigDict:
    """Shrinks any config to run in seconds."""
    resize(
        config, width=32, heads=4, ffn=64, t2v_layers=1, enc_layers=1, dec_layers=1,
        dummy_layers=1, dummies=3, phrase_layers=1, context_layers=1, mlp_layers=2,
    )
    config.data.limit = 32
    batch_size = min(8, config.train.batch_size)
    config.train.update(dict(batch_size=batch_size, epochs=2, log_every=2, eval_every=1))
    config.evaluate.update(dict(batch_size=8, pictures=1))
    return config


def world_fields(world) -> dict:
    """A world's parameters as a plain dict."""
    return dataclasses.asdict(world)

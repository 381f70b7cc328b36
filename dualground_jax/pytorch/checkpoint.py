"""Public PyTorch checkpoints become workdirs, and workdirs PyTorch checkpoints: mode `convert`.

The public training codes save a dict with the state dict (`model`), the options of the command line
(`opt`) and the state of the optimizer; `content` reads it without PyTorch and without running code
of the file. What the options say of the model, its losses, the data and the training becomes our
config (`names` says how); the order of the video streams is never assumed (`streams`). The
optimizer starts fresh, at step 0: training on in the workdir is fine-tuning.
"""

import importlib
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data_pipelines import datasets, files
from data_pipelines.errors import ConfigError
from dualground_jax import sharding, state_dict
from dualground_jax import state as state_lib
from dualground_jax.checkpoints import Checkpoints
from dualground_jax.pytorch import content, mapping, names, streams
from dualground_jax.state_dict import ConvertError

# The public codes' names of the data sets -> our config files.
_CONFIGS = dict(
    hl='qvh', qv_internvideo2='qvh', qvhighlight='qvh', charadesSTA='charades',
    charadesSTA_internvideo2='charades', charades='charades', tacos='tacos', tvsum='tvsum',
    youtube_uni='youtube_hl', youtube_highlight='youtube_hl',
)
# What can be chosen there and not here.
_FIXED = dict(
    pre_norm=False, position_embedding='sine', use_txt_pos=False, ctx_mode='video_tef',
    no_norm_vfeat=False, a_feat_dir=None, a_feat_dirs=None, span_loss_type='l1',
    contrastive_align_loss=False,
)
EMA_DECAY = 0.999  # where a checkpoint has averaged weights; their own decay is not in its options
# Key of our config -> public option; a negative number stands for no limit, and leaves ours.
_TRAINING = {
    'seed': 'seed', 'optimizer.learning_rate': 'lr', 'optimizer.weight_decay': 'wd',
    'optimizer.clip_norm': 'grad_clip', 'train.batch_size': 'bsz', 'train.epochs': 'n_epoch',
    'train.eval_every': 'eval_epoch', 'data.clip_length': 'clip_length',
    'data.max_clips': 'max_v_l', 'data.max_tokens': 'max_q_l', 'data.max_spans': 'max_windows',
    'evaluate.nms_kind': 'nms_type',
}


def run(flags: Any, config: ConfigDict | None) -> None:
    """Converts as the flags checkpoint, model, options, streams, workdir, output and config say.

    Raises:
        ConfigError: a flag is missing.
        UserError: as `import_checkpoint` and `export_checkpoint`.
    """
    path, model, workdir = flags.checkpoint, flags.model, flags.workdir
    if workdir and flags.output:
        tensors = export_checkpoint(workdir, flags.output, template=path)
        print(f'{flags.output}: {len(tensors)} tensors')
    elif workdir and path and model:
        data = import_checkpoint(path, model, workdir, config, options=flags.options,
                                 order=flags.streams).data
        print(
            f'{workdir}: {model} from {path}, for {" + ".join(data.video_dirs)} {data.video_dims} '
            f'and {data.text_dir} {data.text_dim} in {data.root}; the optimizer starts fresh')
    else:
        raise ConfigError(
            '--mode=convert needs --checkpoint=FILE --model=NAME --workdir=DIR, or --workdir=DIR '
            '--output=FILE')


# From PyTorch


def import_checkpoint(
    path: str, model: str, workdir: str, config: ConfigDict | None = None, *,
    options: str | None = None, order: Sequence[str] = ()
) -> ConfigDict:
    """Writes a public checkpoint into a new workdir, as its latest and best.

    Args:
        path: file of a public training code.
        model: our name of the model.
        workdir: folder that holds no run.
        config: whose model and losses become those of the checkpoint; default: one for the data
            set and features that the checkpoint names.
        options: JSON file of options, for a checkpoint without or with other ones.
        order: folders of the video streams, where their names in the options do not tell.

    Returns:
        The config in the workdir.

    Raises:
        TorchFileError: the file is damaged or of another kind.
        ConvertError: it does not fit the model, or the workdir holds a run; nothing is written.
        ConfigError: the config is of another model.
    """
    code = _public_code(model)
    found = content.read(path, options)
    try:
        config = make_config(model, found.options, found.state, config, order)
        if found.ema and not config.optimizer.ema_decay:
            with config.unlocked():
                config.optimizer.ema_decay = EMA_DECAY
        shapes = state_lib.abstract_state(config, sharding.one_device()).params
        read = lambda state: jax.tree.map(
            lambda x, shape: jnp.asarray(x, shape.dtype),
            state_dict.from_torch(state, shapes, code.names, unused=code.unused), shapes)
        params = read(found.state)
        ema = read(found.ema or found.state) if config.optimizer.ema_decay else None
    except ConvertError as error:
        raise ConvertError(f'{path}: {error}') from error
    tx = state_lib.make_optimizer(config.optimizer, 1)
    start = state_lib.TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), ema)
    _write(workdir, start, config)
    return config


def _write(workdir: str, start: state_lib.TrainState, config: ConfigDict) -> None:
    """Writes all checkpoints of a workdir, or none."""
    folder = pathlib.Path(workdir)
    root = Checkpoints(workdir).root
    if root.exists():
        raise ConvertError(f'{root}: the workdir holds a run; use another --workdir')
    folder.mkdir(parents=True, exist_ok=True)
    # As a run that has not been evaluated yet.
    progress = dict(best_step=-1, best_value=-np.inf, best_metrics={}, steps_per_second=0.0)
    with tempfile.TemporaryDirectory(dir=folder) as staging:
        checkpoints = Checkpoints(staging)
        for kind in ('best', 'latest'):
            checkpoints.save(kind, start, config, progress)
        checkpoints.root.rename(root)


def _public_code(model: str) -> names.PublicCode:
    if model not in names.CODES:
        raise ConvertError(
            f'{model!r} has no public PyTorch code, known are: {", ".join(names.CODES)}')
    return names.CODES[model]


def make_config(
    model: str, options: Mapping | None, state: Mapping, config: ConfigDict | None = None,
    order: Sequence[str] = ()
) -> ConfigDict:
    """The config of a public checkpoint.

    Args:
        model: our name of the model.
        options: of the checkpoint; None: it has none, so the config says all.
        state: torch parameter names and arrays.
        config, order: as in `import_checkpoint`.

    Raises:
        ConvertError: options that we lack or that have no counterpart here, features of another
            width than the config's, or streams whose order nothing tells.
        ConfigError: the config is of another model.
    """
    if options is None and config is None:
        raise ConvertError('weights without options; give --options=FILE.json, which public code '
                           'writes beside them as opt.json, or --config=configs/NAME.py:model='
                           f'{model}')
    told = options or {}
    for name, value in _FIXED.items():
        if (told.get(name, value) or None) != (value or None):
            raise ConvertError(f'option {name} is {options[name]!r}, only {value!r} is known here')
    try:
        values = mapping.read_options(names.CODES[model], options, state)
        # The video features are followed by two temporal endpoints.
        widths = (
            len(state['input_vid_proj.0.LayerNorm.weight']) - 2,
            len(state['input_txt_proj.0.LayerNorm.weight']),
        )
    except KeyError as error:
        name = error.args[0]
        raise ConvertError(f'the weights lack {name}; is --model the right one?') from error
    for name, width, beside in (('v_feat_dim', widths[0], 2), ('t_feat_dim', widths[1], 0)):
        if told.get(name, width) not in (width, width + beside):
            raise ConvertError(f'option {name} is {told[name]}, the weights are for {width}')
    folders = order or told.get('v_feat_dirs') or ()
    folders = [folders] if isinstance(folders, str) else list(folders)
    if config is None:
        config = _infer_config(model, options, widths, folders)
        values |= _training_values(options)
        if config.evaluate.round_to:
            values['evaluate.round_to'] = values.get('data.clip_length', config.data.clip_length)
    elif config.model.name != model:
        raise ConfigError(f'the config is of model {config.model.name}, --model={model}')
    config = config.copy_and_resolve_references().lock()
    data = config.data
    if widths != (sum(data.video_dims), data.text_dim):
        raise ConvertError(
            f'the weights are for features of widths {widths[0]} (video) and {widths[1]} (text), '
            f'data.video_dims is {data.video_dims}, data.text_dim {data.text_dim}')
    if len(data.video_dirs) > 1:
        values |= _in_order(dict(zip(data.video_dirs, data.video_dims, strict=True)), widths[0],
                            folders)
    try:
        config.update_from_flattened_dict(values)
    except TypeError as error:
        raise ConvertError(f'an option is of another type: {error}') from error
    return config


def _training_values(options: Mapping) -> dict:
    """What the options say of data, training and evaluation, by key of our config."""
    values = {key: options.get(name) for key, name in _TRAINING.items()}
    is_set = lambda v: isinstance(v, str) or (isinstance(v, int | float) and v >= 0)
    values = {key: value for key, value in values.items() if is_set(value)}
    values['data.normalize_text'] = not options.get('no_norm_tfeat', False)
    if 'nms_thd' in options:
        values['evaluate.nms'] = options['nms_thd'] if is_set(options['nms_thd']) else 2.0
    return values


def _in_order(known: Mapping[str, int], width: int, folders: Sequence[str]) -> dict:
    """The streams as the checkpoint has them, by key of our config; see `streams.the_order`."""
    order = streams.the_order(known, width, folders)
    return {'data.video_dirs': order, 'data.video_dims': tuple(known[name] for name in order)}


def _infer_config(model: str, options: Mapping, widths: tuple[int, int],
                  folders: Sequence[str]) -> ConfigDict:
    """The config file for the data set and the features that the options name.

    Config files stand above this package, so one is found by its name, as on the command line.
    """
    dataset = options.get('dset_name')
    if dataset not in _CONFIGS:
        raise ConvertError(
            f'option dset_name is {dataset!r}, known are: {", ".join(_CONFIGS)}; '
            'other data need --config=configs/NAME.py')
    get_config = importlib.import_module(f'configs.{_CONFIGS[dataset]}').get_config
    release, chosen = _find_release(get_config().data.dataset, widths, folders)
    config = get_config(f'model={model},features={release}')
    config.update_from_flattened_dict(chosen)
    return config


def _find_release(dataset: str, widths: tuple[int, int], folders: Sequence[str]
                  ) -> tuple[str, dict]:
    """The release of features of these widths, and its streams, by key of our config."""
    known = []
    for (owner, release), values in datasets.FEATURES.items():
        if owner != dataset or 'video_dims' not in values:
            continue
        dims = dict(zip(values['video_dirs'], values['video_dims'], strict=True))
        known.append(f'{release} ({" + ".join(map(str, dims.values()))}, {values["text_dim"]})')
        if values['text_dim'] != widths[1]:
            continue
        if len(dims) == 1 and sum(dims.values()) == widths[0]:
            return release, {}
        if streams.orders(dims, widths[0]):
            return release, _in_order(dims, widths[0], folders)
    raise ConvertError(
        f'features of widths {widths[0]} (video) and {widths[1]} (text) are unknown, known are for '
        f'{dataset}: {", ".join(known)}; other features need --config=configs/NAME.py with '
        '--config.data.video_dirs, video_dims, text_dir and text_dim')


# To PyTorch


def export_checkpoint(
    workdir: str, output: str, template: str | None = None
) -> dict[str, np.ndarray]:
    """Writes the best checkpoint of a workdir as a file that the public code of its model loads.

    The file holds `model`, the state dict, `epoch` (0) and `opt`, a dict of the options that say
    how model and losses are made and which video streams there are. The public modules have some
    tensors that nothing reads and we have not: with a template the file has them too, and loads
    strictly; without one it needs `load_state_dict(..., strict=False)`.

    Args:
        workdir: of a run.
        output: file to write.
        template: any checkpoint of the public code with the same sizes.

    Returns:
        The tensors, by torch names.

    Raises:
        CheckpointError: the workdir holds no run.
        ConvertError: PyTorch is not installed, the model has no public code, or the template's
            tensors are others.
    """
    try:
        import torch
    except ImportError as error:
        raise ConvertError(
            "writing PyTorch files needs PyTorch: pip install -e '.[torch]'") from error
    checkpoints = Checkpoints(workdir)
    config = checkpoints.config('best')
    code = _public_code(config.model.name)
    abstract = state_lib.abstract_state(config, sharding.one_device())
    state, _ = checkpoints.restore('best', abstract)
    tensors = state_dict.to_torch(jax.device_get(state.eval_params), code.names, names.AXES)
    if template:
        tensors |= _unread(tensors, content.read(template).state, code.unused, template)
    options = dict(mapping.public_options(code, config), v_feat_dirs=list(config.data.video_dirs))
    saved = dict(
        model={name: torch.from_numpy(value.copy()) for name, value in tensors.items()},
        epoch=0,
        opt=options,
    )
    with files.whole_files(output) as (unfinished,):
        torch.save(saved, unfinished)
    return tensors


def _unread(
    ours: Mapping, theirs: Mapping, unused: tuple[str, ...], path: str
) -> dict[str, np.ndarray]:
    """The template's tensors that nothing reads, after a check that all others agree in shape."""
    extra = {name: theirs[name] for name in state_dict.matching(theirs, unused)}
    shapes = {name: value.shape for name, value in ours.items()}
    wanted = {name: value.shape for name, value in theirs.items() if name not in extra}
    changed = sorted(
        name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    if changed:
        pairs = (f'{n}: {wanted.get(n)} there, {shapes.get(n)} here' for n in changed)
        raise ConvertError(f'{path}: other tensors than ours: {state_dict.listed(pairs, "; ")}')
    return extra

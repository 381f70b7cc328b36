"""Public PyTorch checkpoints become workdirs, and workdirs PyTorch checkpoints: mode `convert`.

The public training codes save a dict with the state dict (`model`), the options of the command line
(`opt`) and the state of the optimizer; read here without PyTorch and without running code of the
file. What the options say of the model, its losses, the data and the training becomes our config;
a model file's TORCH_* tables say how (`models`). The optimizer starts fresh, at step 0: training on
in the workdir is fine-tuning.
"""

import os
import pathlib
import tempfile
from collections.abc import Mapping
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import common
from data_pipelines import datasets, torch_file
from data_pipelines.errors import ConfigError
from dualground_jax import models, sharding
from dualground_jax import state as state_lib
from dualground_jax.checkpoints import Checkpoints
from dualground_jax.pytorch import mapping, names
from dualground_jax.pytorch.mapping import ConvertError

# The public codes' names of the data sets -> ours.
_DATASETS = {
    'hl': 'qvhighlights', 'qv_internvideo2': 'qvhighlights', 'charadesSTA': 'charades_sta',
    'charadesSTA_internvideo2': 'charades_sta', 'tacos': 'tacos', 'tvsum': 'tvsum',
    'youtube_uni': 'youtube_highlights',
}
# What can be chosen there and not here.
_FIXED = dict(
    pre_norm=False, position_embedding='sine', use_txt_pos=False, ctx_mode='video_tef',
    no_norm_vfeat=False, a_feat_dir=None, span_loss_type='l1', contrastive_align_loss=False,
)  # fmt: skip
# Key of our config -> public option; a negative number stands for no limit, and leaves ours.
_OPTIONS = {
    'seed': 'seed', 'optimizer.learning_rate': 'lr', 'optimizer.weight_decay': 'wd',
    'optimizer.clip_norm': 'grad_clip', 'train.batch_size': 'bsz', 'train.epochs': 'n_epoch',
    'train.eval_every': 'eval_epoch', 'data.clip_length': 'clip_length',
    'data.max_clips': 'max_v_l', 'data.max_tokens': 'max_q_l', 'data.max_spans': 'max_windows',
    'evaluate.nms_kind': 'nms_type',
}  # fmt: skip


def run(values, config: ConfigDict | None) -> None:
    """Converts as the flags checkpoint, model, workdir and output, and the config, say.

    Raises:
      ConfigError: a flag is missing.
      UserError: as `import_checkpoint` and `export_checkpoint`.
    """
    path, model, workdir = values.checkpoint, values.model, values.workdir
    if workdir and values.output:
        tensors = export_checkpoint(workdir, values.output, template=path)
        print(f'{values.output}: {len(tensors)} tensors')
    elif workdir and path and model:
        data = import_checkpoint(path, model, workdir, config).data
        print(
            f'{workdir}: {model} from {path}, for {" + ".join(data.video_dirs)} {data.video_dims} '
            f'and {data.text_dir} {data.text_dim} in {data.root}; the optimizer starts fresh'
        )
    else:
        raise ConfigError(
            '--mode=convert needs --checkpoint=FILE --model=NAME --workdir=DIR, or --workdir=DIR '
            '--output=FILE'
        )


# From PyTorch


def import_checkpoint(
    path: str, model: str, workdir: str, config: ConfigDict | None = None
) -> ConfigDict:
    """Writes a public checkpoint into a new workdir, as its latest and best.

    Args:
      path: file of a public training code.
      model: our name of the model.
      workdir: folder that holds no run.
      config: whose model and losses become those of the checkpoint; default: one for the data set
        and features that the checkpoint names.

    Returns:
      The config in the workdir.

    Raises:
      TorchFileError: the file is damaged or of another kind.
      ConvertError: it does not fit the model, or the workdir holds a run; nothing is written.
      ConfigError: the config is of another model.
    """
    module = _module(model)
    state, options = read(path)
    try:
        config = make_config(model, options, state, config)
        tx = state_lib.make_optimizer(config.optimizer, 1)
        shapes = state_lib.abstract_state(config, sharding.one_device()).params
        params = mapping.from_torch(
            state, shapes, module.TORCH_NAMES, unused=module.TORCH_UNUSED
        )
    except ConvertError as error:
        raise ConvertError(f'{path}: {error}') from error
    params = jax.tree.map(lambda x, shape: jnp.asarray(x, shape.dtype), params, shapes)
    ema = jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else None
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


def _module(model: str) -> ModuleType:
    known = [name for name, module in models.MODELS.items() if hasattr(module, 'TORCH_OPTIONS')]
    if model not in known:
        raise ConvertError(f'{model!r} has no public PyTorch code, known are: {", ".join(known)}')
    return models.MODELS[model]


def read(path: str) -> tuple[dict[str, np.ndarray], dict]:
    """Reads the state dict and the options of a public checkpoint.

    Raises:
      TorchFileError: the file is damaged or of another kind.
      ConvertError: it can't be opened, or lacks weights or options.
    """
    try:
        content = torch_file.read_checkpoint(path)
    except OSError as error:
        raise ConvertError(f"{path}: can't be read: {error.strerror}") from error
    if not isinstance(content, Mapping) or not {'model', 'opt'} <= set(content):
        keys = ', '.join(map(str, content)) if isinstance(content, Mapping) else type(content)
        raise ConvertError(f"{path}: holds {keys}, expected a dict with 'model' and 'opt'")
    state, options = content['model'], content['opt']
    if isinstance(options, torch_file.Stub):
        options = options.fields
    if not isinstance(options, Mapping):
        raise ConvertError(f"{path}: 'opt' is {options!r}, expected options")
    plain = bool | int | float | str | list | tuple | None
    options = {name: value for name, value in options.items() if isinstance(value, plain)}
    if not isinstance(state, Mapping) or not all(
        isinstance(value, np.ndarray) for value in state.values()
    ):
        raise ConvertError(f"{path}: 'model' is not a state dict of tensors")
    return dict(state), options


def make_config(
    model: str, options: Mapping, state: Mapping, config: ConfigDict | None = None
) -> ConfigDict:
    """The config of a public checkpoint.

    Args:
      model: our name of the model.
      options: of the checkpoint.
      state: torch parameter names and arrays.
      config: as in `import_checkpoint`.

    Raises:
      ConvertError: options that we lack or that have no counterpart here, or features of another
        width than the config's.
      ConfigError: the config is of another model.
    """
    module = models.MODELS[model]
    for name, value in _FIXED.items():
        if options.get(name, value) != value:
            raise ConvertError(f'option {name} is {options[name]!r}, only {value!r} is known here')
    fields, loss = mapping.read_options(module, options, state)
    widths = _widths(module, state)
    if config is None:
        config = _infer_config(model, options, widths)
    elif config.model.name != model:
        raise ConfigError(f'the config is of model {config.model.name}, --model={model}')
    config = config.copy_and_resolve_references().unlock()
    data = config.data
    if widths != (sum(data.video_dims), data.text_dim):
        raise ConvertError(
            f'the weights are for features of widths {widths[0]} (video) and {widths[1]} (text), '
            f'data.video_dims is {data.video_dims}, data.text_dim {data.text_dim}'
        )
    try:
        config.model.update(fields)
        config.loss.update(loss)
    except TypeError as error:
        raise ConvertError(f'an option is of another type: {error}') from error
    return config.lock()


def _widths(module: ModuleType, state: Mapping) -> tuple[int, int]:
    """Widths of the video features, without the temporal endpoints, and of the text features."""
    found = []
    for stream in ('video', 'text'):
        path = (f'{stream}_projection', 'norm_0', 'scale')
        name, _ = mapping.torch_leaf(path, module.TORCH_NAMES)
        if name not in state:
            raise ConvertError(f'the weights lack {name}; is --model the right one?')
        found.append(len(state[name]))
    return found[0] - 2, found[1]


def _infer_config(model: str, options: Mapping, widths: tuple[int, int]) -> ConfigDict:
    """The config for the data set and the features that the options name."""
    known = [name for name, ours in _DATASETS.items() if ours in datasets.DATASETS]
    if options.get('dset_name') not in known:
        raise ConvertError(
            f'option dset_name is {options.get("dset_name")!r}, known are: {", ".join(known)}; '
            'other data need --config=configs/NAME.py'
        )
    dataset = _DATASETS[options['dset_name']]
    release, streams = _find_release(dataset, options, widths)
    config = common.base(dataset, dict(common.ARGUMENTS, model=model, features=release))
    config.data.update(streams)
    values = {key: options.get(name) for key, name in _OPTIONS.items()}
    is_set = lambda v: isinstance(v, str) or (isinstance(v, int | float) and v >= 0)  # noqa: E731
    config.lock()
    config.update_from_flattened_dict({k: v for k, v in values.items() if is_set(v)})
    config.unlock()
    config.data.normalize_text = not options.get('no_norm_tfeat', False)
    threshold = options.get('nms_thd', config.evaluate.nms)
    config.evaluate.nms = 2.0 if threshold < 0 else float(threshold)
    if config.evaluate.round_to:
        config.evaluate.round_to = config.data.clip_length
    return config


def _find_release(
    dataset: str, options: Mapping, widths: tuple[int, int]
) -> tuple[str, dict[str, tuple]]:
    """The release of features of these widths, and which of its streams, if not all."""
    folders = options.get('v_feat_dirs') or ()
    streams_read = tuple(pathlib.PurePath(folder).name for folder in folders)
    known = []
    for (owner, release), values in datasets.FEATURES.items():
        if owner != dataset:
            continue
        streams = dict(zip(values['video_dirs'], values['video_dims'], strict=True))
        known.append(f'{release} ({" + ".join(map(str, streams.values()))}, {values["text_dim"]})')
        dims = tuple(streams.get(name, 0) for name in streams_read)
        if (sum(dims), values['text_dim']) == widths:
            return release, dict(video_dirs=streams_read, video_dims=dims)
        if (sum(streams.values()), values['text_dim']) == widths:
            return release, {}
    raise ConvertError(
        f'features of widths {widths[0]} (video) and {widths[1]} (text) are unknown, known are for '
        f'{dataset}: {", ".join(known)}; other features need --config=configs/NAME.py with '
        '--config.data.video_dirs, video_dims, text_dir and text_dim'
    )


# To PyTorch


def export_checkpoint(
    workdir: str, output: str, template: str | None = None
) -> dict[str, np.ndarray]:
    """Writes the best checkpoint of a workdir as a file that the public code of its model loads.

    The file holds `model`, the state dict, `epoch` (0) and `opt`, a dict of the options that say
    how model and losses are made. The public modules have some tensors that nothing reads and we
    have not: with a template the file has them too, and loads strictly; without one it needs
    `load_state_dict(..., strict=False)`.

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
            "writing PyTorch files needs PyTorch: pip install -e '.[torch]'"
        ) from error
    checkpoints = Checkpoints(workdir)
    config = checkpoints.config('best')
    module = _module(config.model.name)
    abstract = state_lib.abstract_state(config, sharding.one_device())
    state, _ = checkpoints.restore('best', abstract)
    params = jax.device_get(state.eval_params)
    tensors = mapping.to_torch(params, module.TORCH_NAMES, names.AXES)
    if template:
        tensors = _complete(tensors, read(template)[0], module.TORCH_UNUSED, template)
    content = dict(
        model={name: torch.from_numpy(value.copy()) for name, value in tensors.items()},
        epoch=0,
        opt=public_options(module, config),
    )
    partial = pathlib.Path(f'{output}.partial')
    try:
        torch.save(content, partial)
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
    return tensors


def _complete(
    ours: Mapping, theirs: Mapping, unused: tuple[str, ...], path: str
) -> dict[str, np.ndarray]:
    """Adds the tensors that nothing reads, after a check that all others agree in shape."""
    extra = mapping.matching(theirs, unused)
    shapes = {name: value.shape for name, value in ours.items()}
    wanted = {name: value.shape for name, value in theirs.items() if name not in extra}
    changed = sorted(
        name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name)
    )
    if changed:
        pairs = (f'{n}: {wanted.get(n)} there, {shapes.get(n)} here' for n in changed)
        raise ConvertError(f'{path}: other tensors than ours: {"; ".join(pairs)}')
    return dict(ours) | {name: theirs[name] for name in extra}


def public_options(module: ModuleType, config: ConfigDict) -> dict:
    """The public options that a config's model and losses stand for."""
    found = {theirs: config.model[ours] for ours, theirs in module.TORCH_OPTIONS.items()}
    for ours, theirs in module.TORCH_LOSS.items():
        node = config.loss
        for key in ours.split('/'):
            node = node[key]
        found[theirs] = node
    return found

"""Mode `export`: the best checkpoint of a run as programs that run without this package.

What is written is a pretrained folder with `programs/` of `jax.export`, export.json, which says how
their inputs are made, and run.py, which does that and runs them with JAX and numpy alone.

The number of samples is symbolic. Clips and rows of text are padded to the sizes that the predictor
has, each with a program of its own: models make tables of these sizes as they are traced, and so
an exported program is the very one that the workdir runs.
"""

import itertools
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from absl.flags import FlagValues
from jax import export as jax_export
from ml_collections import ConfigDict

from data_pipelines import features, files, progress
from data_pipelines.errors import ConfigError
from data_pipelines.pipeline import SHORTEST
from data_pipelines.schedule import Bucket, limits
from data_pipelines.tokens import EOS, MEAN, PADDING, START, TEXT_LAYOUTS, WORD
from dualground_jax import predict, pretrained
from dualground_jax.grounding.predictor import Predictor, unbounded
from dualground_jax.publishing import run as runner

PLATFORMS = ('cpu', 'cuda', 'tpu')  # each program is for all of them


def run(values: FlagValues, config: ConfigDict | None) -> None:
    """Exports as the flags workdir, output and weights_dtype say.

    Raises:
        ConfigError: --output can't be written.
        UserError: as `Predictor.from_checkpoint`.
    """
    if config:
        raise ConfigError('--config changes nothing in --mode=export: a model is exported with the '
                          'config of its run')
    pretrained.check_new(values.output)
    sizes = export(Predictor.from_checkpoint(values.workdir), values.output,
                   dtype=values.weights_dtype)
    print(f'wrote {values.output}: {len(sizes)} programs for {", ".join(PLATFORMS)}; '
          f'python {values.output}/run.py VIDEO.npy TEXT.npy')


def export(predictor: Predictor, folder: str, dtype: str = 'float32') -> list[Bucket]:
    """Writes the folder, whole or not at all.

    Args:
        predictor: of the model.
        folder: new, or empty.
        dtype: of the parameters in it, as of `save_pretrained`.

    Returns:
        The numbers of clips and text rows that there are programs for.

    Raises:
        ConfigError: a folder that is not empty, or parameters beyond the dtype.
    """
    pretrained.check_new(folder)
    config = unbounded(predictor.config)
    with config.unlocked():
        config.model.fused_attention = ''  # of one platform alone
    data, layout = config.data, TEXT_LAYOUTS[config.data.text_layout]
    sizes = [Bucket(*pair) for pair in itertools.product(*map(_steps, limits(data)))]
    told = dict(
        jax=jax.__version__, platforms=PLATFORMS, shortest=SHORTEST, max_clips=data.max_clips,
        max_tokens=data.max_tokens, clip_length=data.clip_length, dtype=data.dtype,
        video_dirs=data.video_dirs, video_dims=data.video_dims, text_dim=data.text_dim,
        normalize_text=data.normalize_text, start=layout.start, has_eos=layout.has_eos,
        padded=layout.padded)
    params = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in
              flax.traverse_util.flatten_dict(predictor.params, sep='/').items()}
    traced = jax.jit(program(config))
    with files.whole_folder(folder) as unfinished:
        predictor.save_pretrained(unfinished, dtype=dtype, name=pathlib.Path(folder).name)
        (unfinished / 'programs').mkdir()
        for size in progress.track(sizes, 'exporting', 'programs'):
            exported = jax_export.export(traced, platforms=PLATFORMS)(
                params, inputs(data, size))
            path = unfinished / 'programs' / f'{size.clips}x{size.tokens}.bin'
            path.write_bytes(exported.serialize())
        files.write_text(unfinished / 'export.json', json.dumps(told, indent=2) + '\n')
        shutil.copyfile(runner.__file__, unfinished / 'run.py')
    return sizes


def _steps(most: int) -> list[int]:
    """The sizes up to `most` that `pipeline.pad` pads to."""
    powers = (SHORTEST << i for i in itertools.count())
    return [*itertools.takewhile(lambda size: size < most, powers), most]


def inputs(data: ConfigDict, size: Bucket) -> dict[str, jax.ShapeDtypeStruct]:
    """What a program takes beside parameters, for any number of samples.

    Returns:
        video dtype[b, T, sum of video_dims] and text dtype[b, L, text_dim], rows as the model has
        them (of length one, see run.py), zeros behind; clips and rows int32[b], how many there are;
        duration float32[b], seconds.
    """
    batch, = jax_export.symbolic_shape('b')
    dtype = features.dtype_of(data)
    specs = dict(
        video=((size.clips, sum(data.video_dims)), dtype),
        text=((size.tokens, data.text_dim), dtype),
        clips=((), jnp.int32), rows=((), jnp.int32), duration=((), jnp.float32))
    return {name: jax.ShapeDtypeStruct((batch, *shape), kind)
            for name, (shape, kind) in specs.items()}


def program(config: ConfigDict) -> Callable[[dict, dict], tuple[Any, Any]]:
    """What is exported: (parameters by path, `inputs`) -> (windows [b, K, 3], saliency [b, T])."""
    find = predict.make_prediction(config)
    layout = TEXT_LAYOUTS[config.data.text_layout]

    def call(params, inputs):
        video, text, clips = inputs['video'], inputs['text'], inputs['clips'][:, None]
        place = jnp.arange(video.shape[1])
        is_clip = place < clips
        # XLA would multiply by the reciprocal of a count that it sees to be one for all clips, and
        # numpy, which makes the workdir's batches, divides.
        count = jax.lax.optimization_barrier(
            jnp.broadcast_to(clips, is_clip.shape).astype(jnp.float32))
        start = place / count
        ends = jnp.stack([start, start + 1 / count], -1)
        ends = jnp.where(is_clip[..., None], ends, 0).astype(video.dtype)
        row, last = jnp.arange(text.shape[1]), inputs['rows'][:, None] - 1
        role = jnp.where(row == last, EOS if layout.has_eos else MEAN, WORD)
        role = jnp.where(row < layout.start, START, role)
        batch = dict(
            video=jnp.concatenate([video, ends], -1), video_mask=is_clip, text=text,
            text_role=jnp.where(row <= last, role, PADDING).astype(jnp.int32),
            duration=inputs['duration'],
            clip_length=jnp.full_like(inputs['duration'], config.data.clip_length))
        return find(flax.traverse_util.unflatten_dict(params, sep='/'),
                    jax.lax.optimization_barrier(batch))

    return call

"""Files of CLIP's weights, read without PyTorch: what they say of the sizes, and the tensors."""

import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.serialization
import flax.traverse_util
import numpy as np

from data_pipelines import files, torch_file
from data_pipelines.errors import DataError, one_line
from data_pipelines.files import read_json, read_safetensors
from dualground_jax.state_dict import nest

# Tables of names, see `state_dict`
_LAYER = {
    **nest('attention', 'self_attn', dict(query='q_proj', key='k_proj', value='v_proj',
                                          out='out_proj')),
    'norm1': 'layer_norm1', 'norm2': 'layer_norm2', 'linear1': 'mlp.fc1', 'linear2': 'mlp.fc2',
}
HUGGING_FACE = {
    **nest('vision', 'vision_model', {
        'class': 'embeddings.class_embedding', 'patches': 'embeddings.patch_embedding',
        'positions': 'embeddings.position_embedding.weight', 'norm_before': 'pre_layrnorm',
        **nest('layer_{}', 'encoder.layers.{}', _LAYER), 'norm_after': 'post_layernorm'}),
    **nest('text', 'text_model', {
        'tokens': 'embeddings.token_embedding.weight',
        'positions': 'embeddings.position_embedding.weight',
        **nest('layer_{}', 'encoder.layers.{}', _LAYER), 'norm_after': 'final_layer_norm'}),
    'vision/projection': 'visual_projection', 'text/projection': 'text_projection',
}
_BLOCK = {
    **nest('attention', 'attn', dict(query='in_proj#q', key='in_proj#k', value='in_proj#v',
                                     out='out_proj')),
    'norm1': 'ln_1', 'norm2': 'ln_2', 'linear1': 'mlp.c_fc', 'linear2': 'mlp.c_proj',
}
OPENAI = {
    **nest('vision', 'visual', {
        'class': 'class_embedding', 'patches': 'conv1', 'positions': 'positional_embedding',
        'norm_before': 'ln_pre', **nest('layer_{}', 'transformer.resblocks.{}', _BLOCK),
        'norm_after': 'ln_post', 'projection/kernel': 'proj'}),
    **nest('text', '', {
        'tokens': 'token_embedding.weight', 'positions': 'positional_embedding',
        **nest('layer_{}', 'transformer.resblocks.{}', _BLOCK), 'norm_after': 'ln_final',
        'projection/kernel': 'text_projection'}),
}
UNUSED = r'logit_scale|.*\.position_ids|input_resolution|context_length|vocab_size',

# Key of config.json -> field of a tower.
FIELDS = dict(
    hidden_size='width', intermediate_size='ffn', num_hidden_layers='num_layers',
    num_attention_heads='heads', hidden_act='activation', image_size='size', patch_size='patch',
    vocab_size='vocabulary', max_position_embeddings='context')


class Weights(NamedTuple):
    """What files of CLIP hold.

    Attributes:
        vision, text: fields of the towers.
        state: tensors by name.
        names: the table of these names.
        cleaning: of sentences, that belongs to such files.
    """

    vision: dict[str, Any]
    text: dict[str, Any]
    state: dict[str, np.ndarray]
    names: dict[str, str]
    cleaning: str


def read(source: str | os.PathLike) -> Weights:
    """Reads a Hugging Face folder, a model of the hub, or OpenAI's file.

    Args:
        source: folder with `config.json` and weights (`model.safetensors`, `pytorch_model.bin` or
            `flax_model.msgpack`, whole or in shards); name on the hub; or file of `torch.save` or
            `torch.jit.save` with OpenAI's names.

    Raises:
        DataError: there is no such thing, or it is damaged or of another kind.
    """
    return _read_openai(source) if os.path.isfile(source) else _read_hugging_face(str(source))


def write(folder: pathlib.Path, vision: Any, text: Any, state: Mapping[str, np.ndarray],
          start: int, end: int) -> None:
    """Writes config.json and model.safetensors of a Hugging Face model.

    Args:
        folder: gets the files.
        vision: the tower of pictures.
        text: the tower of sentences.
        state: tensors by names of `HUGGING_FACE`, and logit_scale.
        start: id of start-of-text.
        end: id of end-of-text, which also pads.
    """
    def section(tower, **others):
        fields = {key: getattr(tower, name) for key, name in FIELDS.items() if hasattr(tower, name)}
        return fields | others | dict(projection_dim=tower.projected)

    config = dict(
        architectures=['CLIPModel'], model_type='clip', projection_dim=vision.projected,
        dtype='float32', torch_dtype='float32',  # of activations, whatever the file holds
        vision_config=section(vision, model_type='clip_vision_model'),
        text_config=section(text, model_type='clip_text_model', bos_token_id=start,
                            eos_token_id=end, pad_token_id=end))
    files.write_json(folder / 'config.json', config)
    files.write_safetensors(folder / 'model.safetensors', state, {'format': 'pt'})


def find(source: str, name: str) -> pathlib.Path | None:
    """A file of a folder, or of a model of the Hugging Face hub; None if there is none.

    Raises:
        DataError: there is neither such a folder nor such a model.
    """
    if os.path.isdir(source):
        path = pathlib.Path(source, name)
        return path if path.is_file() else None
    if not re.fullmatch(r'\w[\w.-]*/[\w.-]+', source):
        raise DataError(f'{source}: no such folder or file')
    import huggingface_hub

    try:
        return pathlib.Path(huggingface_hub.hf_hub_download(source, name))
    except huggingface_hub.errors.EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f'{source}: no such folder or file here, and none from the Hugging Face '
                        f'hub: {one_line(error)[:150]}') from error


# Hugging Face


def _read_hugging_face(source: str) -> Weights:
    path = find(source, 'config.json')
    if path is None:
        raise DataError(f'{source}: no config.json, expected the folder of a Hugging Face model or '
                        'the name of one that can be downloaded')
    config = read_json(path)
    vision, text = (_fields(config, kind, path) for kind in ('vision', 'text'))
    return Weights(vision, text, _read_state(source), HUGGING_FACE, 'huggingface')


def _fields(config: Mapping, kind: str, path: pathlib.Path) -> dict[str, Any]:
    """What config.json says of a tower; what it leaves out is as in ViT-B/32."""
    if config.get('model_type') != 'clip':
        raise DataError(f'{path}: model_type is {config.get("model_type")!r}, expected \'clip\'')
    key = f'{kind}_config'
    section = {'hidden_act': 'quick_gelu'}
    for part in (key, f'{key}_dict'):  # the second is in old files
        found = config.get(part) or {}
        if not isinstance(found, dict):
            raise DataError(f'{path}: {part} is {files.short(found)}, expected a JSON object')
        section |= found
    for name, known in (('layer_norm_eps', 1e-5), ('num_channels', 3)):
        if section.get(name, known) != known:
            raise DataError(f'{path}: {key}.{name} is {section[name]}, only {known} is known here')
    fields = {field: section[name] for name, field in FIELDS.items() if name in section}
    fields['projected'] = config.get('projection_dim', 512)
    for name, value in fields.items():
        if name != 'activation' and (not isinstance(value, int) or value < 1):
            raise DataError(f'{path}: {key} has {name} {value!r}, expected a number above 0')
    return fields


def _read_state(source: str) -> dict[str, np.ndarray]:
    """Tensors by name, of the first format that is there."""
    for name, read_file in _FORMATS.items():
        if path := find(source, name):
            return read_file(path)
        if index := find(source, f'{name}.index.json'):
            shards = read_json(index).get('weight_map')
            if not isinstance(shards, dict) or not all(
                    map(files.is_file_name, map(str, shards.values()))):
                raise DataError(f'{index}: weight_map is {files.short(shards)}, expected the file '
                                'of each tensor')
            state = {}
            for shard in sorted(set(shards.values())):
                path = find(source, shard)
                if path is None:
                    raise DataError(f'{index}: names {shard!r}, which is not there')
                state |= read_file(path)
            return state
    raise DataError(f'{source}: no weights, expected one of {", ".join(_FORMATS)}')


def _read_bin(path: pathlib.Path) -> dict[str, np.ndarray]:
    return _tensors(torch_file.load(path), path)


def _read_msgpack(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Flax' parameters by PyTorch's names."""
    files.check_genuine(path)
    try:
        tree = flax.traverse_util.flatten_dict(
            flax.serialization.msgpack_restore(path.read_bytes()))
    except Exception as error:  # msgpack has no class of its own for all damage
        raise DataError(f'{path}: damaged or cut short ({one_line(error)})') from error
    state = {}
    for (*module, leaf), value in tree.items():
        if leaf == 'kernel':
            value = np.moveaxis(value, (-1, -2), (0, 1))
        leaf = 'weight' if leaf in ('kernel', 'scale', 'embedding') else leaf
        state['.'.join((*module, leaf))] = value
    return _tensors(state, path)


_FORMATS = {'model.safetensors': read_safetensors, 'pytorch_model.bin': _read_bin,
            'flax_model.msgpack': _read_msgpack}


def _tensors(found: Any, path: Any) -> dict[str, np.ndarray]:
    """What a file holds, if it is tensors by name."""
    if not isinstance(found, Mapping) or not all(
            isinstance(value, np.ndarray) for value in found.values()):
        raise DataError(f'{path}: holds {files.short(found)}, expected tensors by name')
    return dict(found)


# OpenAI


def _read_openai(path: str | os.PathLike) -> Weights:
    found = torch_file.read_checkpoint(path)
    if isinstance(found, torch_file.Stub):  # an archive of TorchScript: modules in modules
        found = _parameters(found)
    state = _tensors(found, path)
    if any(name.startswith('visual.layer1.') for name in state):
        raise DataError(f'{path}: the weights of a ResNet, expected those of a ViT')
    try:
        vision = _sizes(state, 'visual.')
        patch = state['visual.conv1.weight'].shape[-1]
        side = math.isqrt(len(state['visual.positional_embedding']) - 1)
        vision |= dict(patch=patch, size=side * patch)
        text = _sizes(state, '')
        text |= dict(vocabulary=len(state['token_embedding.weight']),
                     context=len(state['positional_embedding']))
        for name in ('visual.proj', 'text_projection'):
            state[name] = state[name].T  # [in, out], elsewhere [out, in]
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{path}: no tensor {one_line(error)} of OpenAI's CLIP; of a Hugging Face model name "
            'the folder') from error
    return Weights(vision, text, state, OPENAI, 'openai')


def _sizes(state: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """The fields of a tower that follow from its tensors."""
    block = f'{prefix}transformer.resblocks.'
    width = state[f'{block}0.ln_1.weight'].shape[0]
    numbers = {name.removeprefix(block).split('.')[0] for name in state if name.startswith(block)}
    return dict(
        width=width, ffn=len(state[f'{block}0.mlp.c_fc.weight']), num_layers=len(numbers),
        heads=max(width // 64, 1), projected=state['text_projection'].shape[1],
        activation='quick_gelu')


def _parameters(module: torch_file.Stub, prefix: str = '') -> dict[str, np.ndarray]:
    """The tensors of a module of TorchScript, by PyTorch's names."""
    found = {}
    for name, value in module.fields.items():
        if isinstance(value, torch_file.Stub):
            found |= _parameters(value, f'{prefix}{name}.')
        elif isinstance(value, np.ndarray):
            found[f'{prefix}{name}'] = value
    return found

"""CLIP against transformers' and OpenAI's code (goldens), and what files of weights may be."""

import functools
import json
import pathlib
import shutil

import flax.serialization
import flax.traverse_util
import huggingface_hub
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from data_pipelines.errors import ConfigError, DataError, UserError
from dualground_jax import sharding, state_dict
from dualground_jax.encoders import clip, clip_weights
from tests.helpers import clip_folder, clip_oracle, torch_writer
from tests.helpers.parity import assert_close
from tests.helpers.paths import goldens_dir

FOLDER = goldens_dir() / 'encoders'
FILES = pathlib.Path(__file__).parent / 'clip_files'
needs_goldens = pytest.mark.skipif(
    not (FOLDER / 'clip_openai.npz').is_file(), reason='not in the compact goldens')


@functools.cache
def golden(name):
    source = FOLDER / ('clip_hf' if name == 'clip_hf' else 'clip_openai_state.pt')
    encoder = clip.load(source, max_rows=2)
    return encoder, dict(np.load(FOLDER / f'{name}.npz'))


def towers(encoder, pixels, ids, end):
    """What both towers return for pictures [B, 3, S, S]."""
    run = jax.jit(lambda params: (
        encoder.vision.apply({'params': params['vision']}, pixels.transpose(0, 2, 3, 1)),
        encoder.text.apply({'params': params['text']}, ids, end)))
    return jax.device_get(run(encoder.params))


# Against public code


@needs_goldens
def test_outputs_equal_transformers():
    encoder, x = golden('clip_hf')
    image, text = towers(encoder, x['pixels'], x['ids'], x['lengths'] - 1)
    assert_close(image['rows'], x['vision_rows'], name='rows')
    assert_close(image['pooled'], x['vision_pooled'], name='pooled')
    assert_close(image['features'], x['image_embeds'], name='image')
    assert_close(text['features'], x['text_embeds'], name='text')
    valid = np.arange(x['ids'].shape[1]) < x['lengths'][:, None]
    for name in ('text_rows', 'text_rows_without_mask'):
        assert_close(text['rows'][valid], x[name][valid], name=name)
    assert (encoder.size, encoder.width, encoder.text_width) == (
        x['pixels'].shape[-1], x['text_embeds'].shape[1], x['text_rows'].shape[2])


def test_first_layer_equals_transformers():
    weights, x = clip_weights.read(FOLDER / 'clip_hf'), np.load(FOLDER / 'clip_hf.npz')
    vision = clip.Vision(**weights.vision | dict(num_layers=1))
    shapes = clip.abstract_params(vision, clip.Text(num_layers=1), sharding.one_device())
    params = state_dict.from_torch(
        weights.state, dict(vision=shapes['vision']), weights.names, unused=('.*',))
    pixels = x['pixels'].transpose(0, 2, 3, 1)
    found = jax.jit(vision.apply)({'params': params['vision']}, pixels)
    assert_close(found['rows'], x['vision_hidden_1'])


@needs_goldens
def test_outputs_equal_openai():
    encoder, x = golden('clip_openai')
    image, text = towers(encoder, x['pixels'], x['ids'], x['ids'].argmax(1))
    assert_close(image['features'], x['image_value'], name='image')
    assert_close(text['rows'], x['text_last_hidden_state'], name='text rows')
    assert_close(text['features'], x['text_pooler_output'], name='text')


@needs_goldens
def test_bfloat16_is_near():
    _, x = golden('clip_hf')
    rough = clip.load(FOLDER / 'clip_hf', 'bfloat16', max_rows=2)
    image, text = towers(rough, x['pixels'], x['ids'], x['lengths'] - 1)
    for found, expected in ((image['features'], x['image_embeds']),
                            (text['features'], x['text_embeds'])):
        error = np.abs(found.astype(np.float32) - expected).max() / np.abs(expected).max()
        assert found.dtype == jax.numpy.bfloat16 and 1e-4 < error < 0.05


# Formats


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    return clip_folder.write(tmp_path_factory.mktemp('clip') / 'hf')


def copied(small, folder, *names):
    """A folder with the config, the vocabulary and the tensors of another one, for new weights."""
    folder.mkdir(exist_ok=True)
    for name in ('config.json', 'vocab.json', 'merges.txt', *names):
        shutil.copy(small / name, folder / name)
    return load_file(small / 'model.safetensors')


def to_flax(state):
    """Tensors in Flax' names and axes, as transformers wrote them."""
    tree = {}
    for name, value in state.items():
        *module, leaf = name.split('.')
        if leaf == 'weight':
            leaf = 'scale' if 'norm' in name else 'embedding' if value.ndim == 2 and (
                'embedding' in name) else 'kernel'
        if leaf == 'kernel':
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        tree[*module, leaf] = np.ascontiguousarray(value)
    return flax.traverse_util.unflatten_dict(tree)


def write_shards(folder, state, name, write):
    names = sorted(state)
    index = {}
    for i, part in enumerate((names[::2], names[1::2])):
        stem, ending = name.split('.')
        file = f'{stem}-0000{i + 1}-of-00002.{ending}'
        write({key: state[key] for key in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / f'{name}.index.json').write_text(json.dumps(dict(weight_map=index)))


def write_as(kind, folder, state):
    write_bin = lambda state, path: torch_writer.save(path, dict(state))
    if kind == 'safetensors in shards':
        write_shards(folder, state, 'model.safetensors', save_file)
    elif kind == 'bin':
        # As old files have it.
        positions = {'text_model.embeddings.position_ids': np.zeros((1, 77), np.float32)}
        write_bin(state | positions, folder / 'pytorch_model.bin')
    elif kind == 'bin in shards':
        write_shards(folder, state, 'pytorch_model.bin', write_bin)
    elif kind == 'msgpack':
        content = flax.serialization.msgpack_serialize(to_flax(state))
        (folder / 'flax_model.msgpack').write_bytes(content)


@pytest.mark.parametrize('kind', ['safetensors in shards', 'bin', 'bin in shards', 'msgpack'])
def test_formats_of_hugging_face_hold_the_same(small, tmp_path, kind):
    write_as(kind, tmp_path, copied(small, tmp_path))
    first, found = clip.load(small), clip.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, first.params, found.params)
    assert found.weights_hash == first.weights_hash
    other = clip.load(clip_folder.write(tmp_path / 'other', seed=1))
    assert other.weights_hash != first.weights_hash


@needs_goldens
def test_public_bin_holds_the_same(tmp_path):
    for name in ('config.json', 'pytorch_model.bin'):
        shutil.copy(FOLDER / 'clip_hf' / name, tmp_path / name)
    assert clip.load(tmp_path, max_rows=2).weights_hash == golden('clip_hf')[0].weights_hash


def test_torchscript_holds_the_same_as_the_state_dict():
    archive, state = (clip.load(FILES / f'{name}.pt', max_rows=2) for name in ('archive', 'state'))
    assert archive.weights_hash == state.weights_hash
    assert archive.vision == clip.Vision(
        heads=1, width=8, ffn=24, num_layers=2, projected=6, size=8, patch=4)
    assert archive.text == clip.Text(
        heads=1, width=8, ffn=24, num_layers=1, projected=6, vocabulary=11, context=5)


def test_hub_names_are_downloaded(small, monkeypatch):
    asked = []

    def download(name, file):
        asked.append((name, file))
        if not (small / file).is_file():
            raise huggingface_hub.errors.LocalEntryNotFoundError(file)
        return str(small / file)

    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
    assert clip.load('some/clip').weights_hash == clip.load(small).weights_hash
    assert asked[:2] == [('some/clip', 'config.json'), ('some/clip', 'model.safetensors')]


# Encoding


@pytest.fixture(scope='module')
def encoder(small):
    return clip.load(small, batch_size=4, max_rows=12)


def frames(count, size):
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), np.uint8)


def test_frames_are_normalised_and_padded(small, encoder):
    given = frames(6, encoder.size)
    state = load_file(small / 'model.safetensors')
    found = encoder.encode_frames(given)
    assert found.dtype == np.float32
    expected = [clip_oracle.picture(frame, state, encoder.vision.heads) for frame in given]
    assert_close(found, np.stack(expected))
    assert_close(encoder.encode_frames(given[5:]), found[5:])  # whatever stands beside it
    assert encoder.encode_frames(given[:0]).shape == (0, encoder.width)


def test_text_rows_are_those_that_count(small, encoder):
    given = ['a dog runs', '', 'the man talks to the woman with the camera again and again !']
    ids, lengths = encoder.tokenizer(given, 12)
    rows = encoder.encode_text([*given, *given])
    assert [len(row) for row in rows] == [*lengths, *lengths] and lengths[1:].tolist() == [2, 12]
    assert ids[2, -1] == encoder.tokenizer.end
    vectors = encoder.encode_sentences(given)
    assert vectors.dtype == rows[0].dtype == np.float32
    state = load_file(small / 'model.safetensors')
    for i, row in enumerate(rows):
        expected = clip_oracle.sentence(
            ids[i % 3, : lengths[i % 3]], state, encoder.text.heads)
        assert_close(row, expected[0])
        assert_close(vectors[i % 3], expected[1])
    # Of two ends of text the first one stands for the sentence, as in both codes.
    ids, _ = encoder.tokenizer(twice := ['a <|endoftext|> dog'], 12)
    first = ids[0].tolist().index(encoder.tokenizer.end) + 1
    expected = clip_oracle.sentence(ids[0, :first], state, encoder.text.heads)
    assert_close(encoder.encode_sentences(twice)[0], expected[1])
    assert len(encoder.encode_text(twice)[0]) > first
    assert encoder.encode_text([]) == [] and encoder.encode_sentences([]).shape == (0, 12)


def test_heads_and_hidden_units_are_shared_out(small, encoder):
    mesh = sharding.make_mesh(ConfigDict(dict(data=1, fsdp=1, model=2)), jax.devices()[:2])
    spread = clip.load(small, mesh=mesh, batch_size=4, max_rows=12)
    layer = spread.params['vision']['layer_0']
    for kernel, axis in ((layer['attention']['query']['kernel'], 1),
                         (layer['attention']['out']['kernel'], 0),
                         (layer['linear1']['kernel'], 1), (layer['linear2']['kernel'], 0)):
        part = kernel.addressable_shards[0].data.shape
        assert part[axis] * 2 == kernel.shape[axis] and part[1 - axis] == kernel.shape[1 - axis]
    given = frames(3, encoder.size)
    assert_close(spread.encode_frames(given), encoder.encode_frames(given))
    data = sharding.make_mesh(ConfigDict(dict(data=2, fsdp=1, model=1)), jax.devices()[:2])
    split = clip.load(small, mesh=data, batch_size=4, max_rows=12)
    assert_close(split.encode_sentences(['a dog']), encoder.encode_sentences(['a dog']))


# What can't be used


def refused(source, message, **options):
    with pytest.raises(UserError, match=message) as info:
        clip.load(source, **options)
    assert '\n' not in str(info.value) and len(str(info.value)) < 500
    return str(info.value)


LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n'


@pytest.mark.parametrize('name, content, message', [
    ('config.json', None, 'hf: no config.json, expected the folder'),
    ('config.json', b'{', "config.json: can't be read as JSON"),
    ('config.json', LFS, 'config.json: .*a pointer of Git LFS'),
    ('model.safetensors', None, 'hf: no weights, expected one of model.safetensors'),
    ('model.safetensors', LFS, 'model.safetensors: .*a pointer of Git LFS'),
    ('model.safetensors', slice(-9), 'model.safetensors: damaged or cut short'),
    ('model.safetensors', slice(5), 'model.safetensors: damaged or cut short'),
    ('pytorch_model.bin', LFS, 'pytorch_model.bin: .*a pointer of Git LFS'),
    ('pytorch_model.bin', slice(-9), 'pytorch_model.bin: damaged or cut short'),
    ('flax_model.msgpack', LFS, 'flax_model.msgpack: .*a pointer of Git LFS'),
    ('flax_model.msgpack', slice(-9), 'flax_model.msgpack: damaged or cut short'),
])
def test_bad_files(small, tmp_path, name, content, message):
    folder = tmp_path / 'hf'
    state = copied(small, folder)
    kinds = {'pytorch_model.bin': 'bin', 'flax_model.msgpack': 'msgpack'}
    if name in kinds:
        write_as(kinds[name], folder, state)
    else:
        shutil.copy(small / 'model.safetensors', folder)
    path = folder / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else path.read_bytes()[content])
    refused(folder, message)


LAYER = 'vision_model.encoder.layers.1.mlp.fc1.bias'


@pytest.mark.parametrize('change, message', [
    ({LAYER: None}, f'hf: weights do not fit: vision/layer_1/linear1/bias: .*{LAYER}'),
    ({LAYER: np.zeros(3, np.float32)}, r'layer_1/linear1/bias: shape \(32,\), but .*\(3,\)$'),
    ({'vision_model.encoder.layers.2.mlp.fc1.bias': np.zeros(1, np.float32)},
     r'layers.2.mlp.fc1.bias: nothing uses it$'),
])
def test_tensors_that_do_not_fit(small, tmp_path, change, message):
    state = copied(small, tmp_path / 'hf') | change
    save_file({key: value for key, value in state.items() if value is not None},
              tmp_path / 'hf' / 'model.safetensors')
    refused(tmp_path / 'hf', message)


def test_a_missing_shard(small, tmp_path):
    write_as('safetensors in shards', tmp_path, copied(small, tmp_path))
    (tmp_path / 'model-00002-of-00002.safetensors').unlink()
    refused(tmp_path, "index.json: names 'model-00002-of-00002.safetensors', which is not there")
    for shards in (['a'], {'a': '../b'}):
        index = tmp_path / 'model.safetensors.index.json'
        index.write_text(json.dumps(dict(weight_map=shards)))
        refused(tmp_path, 'index.json: weight_map is .*, expected the file of each tensor')


@pytest.mark.parametrize('change, message', [
    (dict(model_type='siglip'), "config.json: model_type is 'siglip', expected 'clip'"),
    (dict(projection_dim='12'), "config.json: vision_config has projected '12', expected a number"),
    (dict(vision_config=dict(layer_norm_eps=1e-6)), 'layer_norm_eps is 1e-06, only 1e-05 is known'),
    (dict(vision_config=dict(hidden_act='relu')), "activation 'relu', expected one of quick_gelu"),
    (dict(vision_config=dict(num_attention_heads=5)), 'width 24 and heads 5, expected a multiple'),
    (dict(vision_config=3), 'vision_config is 3, expected a JSON object'),
])
def test_configs_that_do_not_fit(small, tmp_path, change, message):
    copied(small, tmp_path, 'model.safetensors')
    config = json.loads((small / 'config.json').read_text())
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    (tmp_path / 'config.json').write_text(json.dumps(config))
    refused(tmp_path, message)


def test_what_is_no_file_of_openai(tmp_path):
    refused('no/folder/here', 'no/folder/here: no such folder or file$')
    path = tmp_path / 'ViT.pt'
    for state, message in (
            ({'a.weight': np.zeros((2, 2), np.float32)}, "ViT.pt: no tensor 'visual.*name the"),
            ({'visual.layer1.0.conv1.weight': np.zeros((2, 2), np.float32)}, 'a ResNet, expected'),
            ([1, 2], r'ViT.pt: holds \[1, 2\], expected tensors by name')):
        torch_writer.save(path, state)
        refused(path, message)
    path.write_bytes((FILES / 'archive.pt').read_bytes()[:-30])
    refused(path, 'ViT.pt: damaged or cut short')
    path.write_bytes(LFS)
    refused(path, 'ViT.pt: .*a pointer of Git LFS')


def test_options_that_can_not_be(small):
    with pytest.raises(ConfigError, match="dtype='float16'"):
        clip.load(small, 'float16')
    refused(small, 'max_rows=41: expected 2 to 40', max_rows=41)
    refused(small, 'batch_size=0: expected 1 or more', batch_size=0)
    refused(small, "cleaning='nfc'", cleaning='nfc')


def test_inputs_that_can_not_be(encoder):
    for given in (frames(1, 8), frames(1, encoder.size)[0], frames(1, encoder.size) / 255):
        with pytest.raises(DataError, match=r'^frames are .*, expected uint8\[N, 32, 32, 3\]$'):
            encoder.encode_frames(given)
    alone = clip.load(FILES / 'archive.pt', max_rows=2)
    with pytest.raises(DataError, match='came without a tokenizer'):
        alone.encode_text([])


def test_vocabulary_beside_openais_file(small, tmp_path):
    """It is found beside the weights, or where `tokenizer` says, and its size is theirs."""
    shutil.copy(FILES / 'archive.pt', tmp_path / 'ViT.pt')
    shutil.copy(small / 'bpe_simple_vocab_16e6.txt.gz', tmp_path)
    refused(tmp_path / 'ViT.pt', 'txt.gz: 514 tokens, the text encoder knows 11', max_rows=2)
    refused(FILES / 'archive.pt', 'vocab.json: .* tokens, the text encoder knows 11', max_rows=2,
            tokenizer=small)

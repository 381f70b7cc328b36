"""Writes a small CLIP as Hugging Face does: random weights, and a vocabulary of byte pairs."""

import gzip
import json
import pathlib

import jax
import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import pre_tokenizers, trainers

from dualground_jax import sharding, state_dict
from dualground_jax.encoders import clip, clip_weights

SENTENCES = [
    'a man in a red shirt is running with the dog', "they're cooking; he doesn't know 12 people!",
    'the woman talks to the camera, then walks away !', 'naïve café on the straße 2023 & more',
]
SIZES = dict(
    vision=dict(width=24, heads=2, ffn=32, num_layers=2, size=32, patch=16),
    text=dict(width=16, heads=2, ffn=24, num_layers=2, context=40), projected=12)


def merges(count: int = 60) -> list[tuple[str, str]]:
    """Pairs of pieces that become one, learned from some sentences."""
    learner = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix='</w>'))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(SENTENCES * 20, trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + count, initial_alphabet=alphabet, show_progress=False,
        end_of_word_suffix='</w>'))
    return [tuple(pair) for pair in json.loads(learner.to_str())['model']['merges']][:count]


def pieces(pairs: list[tuple[str, str]]) -> list[str]:
    """The vocabulary in the order of ids, as OpenAI's code makes it of merges."""
    printable = [*range(ord('!'), ord('~') + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = [*map(chr, printable), *(chr(256 + i) for i in range(256 - len(printable)))]
    return [*characters, *(c + '</w>' for c in characters), *map(''.join, pairs),
            '<|startoftext|>', '<|endoftext|>']


def write_vocabulary(folder: pathlib.Path, pairs: list[tuple[str, str]]) -> None:
    """Writes Hugging Face's files, and OpenAI's, which has more merges than its models know."""
    lines = [' '.join(pair) for pair in pairs]
    ids = {piece: i for i, piece in enumerate(pieces(pairs))}
    (folder / 'vocab.json').write_text(json.dumps(ids))
    (folder / 'merges.txt').write_text('\n'.join(['#version: 0.2', *lines, '']))
    text = '\n'.join(['bpe_simple_vocab#version: 0.2', *lines, 'zz zz</w>', ''])
    (folder / 'bpe_simple_vocab_16e6.txt.gz').write_bytes(gzip.compress(text.encode()))


def write(folder: pathlib.Path, seed: int = 0, sizes: dict = SIZES) -> pathlib.Path:
    """Makes the folder, with config.json, weights and vocabulary; returns its path."""
    folder.mkdir(parents=True)
    pairs = merges()
    write_vocabulary(folder, pairs)
    fields = {kind: sizes[kind] | dict(projected=sizes['projected']) for kind in ('vision', 'text')}
    fields['text']['vocabulary'] = len(pieces(pairs))
    shapes = clip.abstract_params(
        clip.Vision(**fields['vision']), clip.Text(**fields['text']), sharding.one_device())
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: (rng.normal(size=x.shape) * 0.1).astype(x.dtype), shapes)
    save_file(state_dict.to_torch(params, clip_weights.HUGGING_FACE), folder / 'model.safetensors')
    keys = {field: key for key, field in clip_weights.FIELDS.items()}
    config = {f'{kind}_config': {keys[field]: value for field, value in fields[kind].items()
                                 if field in keys} for kind in fields}
    config |= dict(model_type='clip', projection_dim=sizes['projected'])
    (folder / 'config.json').write_text(json.dumps(config))
    return folder

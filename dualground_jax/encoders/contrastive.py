"""CLIP as it is trained: on pairs of a picture and a sentence, which are to find each other.

Its folder is one of Hugging Face, which `clip.load` reads as it reads any other.
"""

import json
import math
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from data_pipelines import files, pictures
from data_pipelines.errors import ConfigError
from data_pipelines.pairs import HeldOut
from data_pipelines.sentences import MAX_WORDS, WORD_IDS
from dualground_jax import losses, state_dict
from dualground_jax.encoders import clip, clip_weights, tokenizer
from dualground_jax.metrics import retrieval
from dualground_jax.models.execution import Execution

NAME = 'clip'  # config.model.name of an encoder
WORDS = tuple(WORD_IDS)
START_SCALE, MAX_SCALE = 1 / 0.07, 100.0  # of the logits, as in CLIP's training
STORED = np.float16

CARD = """---
library_name: transformers
tags: [clip, video-temporal-grounding]
---

# A small CLIP of a generated world

Made by `python -m dualground_jax.main --mode=train-encoder` of dualground_jax, from nothing:
{parameters} parameters, {steps} steps of {batch} pairs, seed {seed}. Pictures are {size} x {size}
pixels of drawn icons, sentences have {count} words. It knows nothing of photographs.

On pairs that training did not see, with these weights of 16 bits:

- retrieval@1 among {pairs}: sentence of a picture {to_sentence:.3f}, picture of a sentence
  {to_picture:.3f}
{swaps}
`dualground_jax.encoders.clip.load(folder)` and `transformers.CLIPModel.from_pretrained(folder)`
read it. An unknown word is an error; it knows {words}.

Its config:

```json
{config}
```
"""
SWAPS = """- of {swapped_pairs} sentences and their forms with two nouns' attributes exchanged, the
  right one is nearer in {swaps:.3f} (chance 0.5)
"""


class Clip(nn.Module):
    """Both towers, and the learned scale of their cosines."""

    vision: clip.Vision
    text: clip.Text

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Encodes pairs.

        Args:
          batch: `frames` uint8[B, S, S, 3]; `ids` int32[B, L] of sentences; `end` int32[B], the
            rows of end-of-text in them.

        Returns:
          `pictures` [B, P] and `sentences` [B, P], `patches` [B, N, P] and `words` [B, W, P] of
          the same space, none normalised; `word_mask` bool[B, W], where there are words between
          start-of-text and end-of-text; `scale` float32[].
        """
        scale = self.param('logit_scale', nn.initializers.constant(math.log(START_SCALE)), ())
        shown = self.vision(clip.pixels_of(batch['frames']))
        told = self.text(batch['ids'], batch['end'])
        words = told['projected'][:, 1:1 + MAX_WORDS]
        return dict(
            pictures=shown['features'], sentences=told['features'], patches=shown['projected'],
            words=words, word_mask=jnp.arange(1, 1 + words.shape[1]) < batch['end'][:, None],
            scale=scale_of(scale))


def scale_of(logit_scale: jax.Array) -> jax.Array:
    """What cosines are multiplied by, of the learned logarithm."""
    return jnp.exp(jnp.minimum(logit_scale, math.log(MAX_SCALE)))


def build(section: ConfigDict) -> Clip:
    """The model of a config's `model` section; both towers have the same sizes.

    Raises:
        ConfigError: a size that does not fit another one.
    """
    if section.width % section.heads:
        raise ConfigError(f'model.width={section.width}: expected a multiple of model.heads='
                          f'{section.heads}')
    if pictures.SIZE % section.patch:
        raise ConfigError(f'model.patch={section.patch}: expected a divisor of {pictures.SIZE}, '
                          'the side of a picture')
    shared = dict(
        width=section.width, ffn=4 * section.width, heads=section.heads, num_layers=section.layers,
        projected=section.projected, dtype=section.dtype, execution=Execution())
    return Clip(
        clip.Vision(**shared, size=pictures.SIZE, patch=section.patch),
        clip.Text(**shared, vocabulary=len(WORDS) + 2, context=section.context))


def loss_of(out: dict[str, jax.Array], word_weight: float = 0.0
            ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Symmetric InfoNCE over the batch: (loss, what is told of it).

    With a weight the loss of words and patches is added: symmetric cross entropy of
    `losses.late_interaction`, as in FILIP. There it stands alone; the sum and the one scale for
    both are ours.

    Args:
        out: of `Clip`.
        word_weight: of words and patches; 0: they are not looked at, the loss is CLIP's.
    """
    how = dict(mask=jnp.ones(len(out['pictures']), bool), temperature=1 / out['scale'])
    by_picture = losses.info_nce(out['pictures'], out['sentences'], **how)
    by_sentence = losses.info_nce(out['sentences'], out['pictures'], **how)
    loss = (by_picture + by_sentence) / 2
    told = dict(by_picture=by_picture, by_sentence=by_sentence, scale=out['scale'])
    if word_weight:
        of_words, of_patches = losses.late_interaction(
            out['words'], out['patches'], out['word_mask'])
        own = jnp.arange(len(of_words))
        told['by_words'], told['by_patches'] = (
            optax.softmax_cross_entropy_with_integer_labels(out['scale'] * scores, own).mean()
            for scores in (of_words, of_patches.T))
        loss += word_weight * (told['by_words'] + told['by_patches']) / 2
    return loss, told


def evaluate(encoder: clip.ClipEncoder, pairs: HeldOut) -> dict[str, float]:
    """Retrieval@1 of held-out pairs, both ways, and how often a sentence beats its swapped form."""
    encode = lambda frames, *texts: [np.asarray(losses.unit(x)) for x in (
        encoder.encode_frames(frames), *map(encoder.encode_sentences, texts))]
    shown, texts = encode(pairs.pictures, pairs.sentences)
    scores = shown @ texts.T
    found = dict(pairs=len(scores), to_sentence=retrieval.recall_at_1(scores),
                 to_picture=retrieval.recall_at_1(scores.T))
    if pairs.right:
        shown, right, wrong = encode(pairs.swapped_pictures, pairs.right, pairs.wrong)
        found |= dict(swapped_pairs=len(shown), swaps=retrieval.wins(
            (shown * right).sum(1), (shown * wrong).sum(1)))
    return found


def rounded(params: Any) -> Any:
    """Parameters as the folder holds them."""
    return jax.tree.map(lambda x: x.astype(STORED).astype(x.dtype), params)


def save(folder: pathlib.Path, model: Clip, params: dict, card: str) -> None:
    """Writes a Hugging Face folder, whole or not at all; one that is there gives way.

    Args:
        folder: to make.
        model: of the parameters.
        params: of both towers, and `logit_scale`; numpy arrays.
        card: text of its README.md.
    """
    towers = {name: params[name] for name in ('vision', 'text')}
    state = state_dict.to_torch(towers, clip_weights.HUGGING_FACE)
    state['logit_scale'] = np.minimum(params['logit_scale'], math.log(MAX_SCALE))
    state = {name: np.asarray(value, STORED) for name, value in state.items()}
    with files.whole_folder(folder, replace=True) as unfinished:
        start, end = len(WORDS), len(WORDS) + 1
        clip_weights.write(unfinished, model.vision, model.text, state, start, end)
        tokenizer.write_words(unfinished, WORDS, model.text.context)
        (unfinished / 'README.md').write_text(card, encoding='utf-8')


def card(config: ConfigDict, parameters: int, found: dict[str, float]) -> str:
    """README.md of a trained encoder: how it was made, and what it can do.

    Args:
        config: it was trained by.
        parameters: how many.
        found: of `evaluate`.
    """
    swaps = SWAPS.format(**found) if 'swaps' in found else ''
    return CARD.format(
        parameters=parameters, steps=config.train.max_steps, batch=config.train.batch_size,
        seed=config.seed, size=pictures.SIZE, count=len(WORDS), words=', '.join(sorted(WORDS)),
        swaps=swaps, config=json.dumps(json.loads(config.to_json()), indent=1), **{
            key: found[key] for key in ('pairs', 'to_sentence', 'to_picture')})

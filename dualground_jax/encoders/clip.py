"""CLIP in Flax: pictures and sentences to features of one space (arXiv 2103.00020).

`load` reads the weights that `clip_weights` knows; the towers compute what OpenAI's code and
Hugging Face's `CLIPModel` compute.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data_pipelines.errors import ConfigError, DataError
from dualground_jax import sharding, state_dict
from dualground_jax.encoders import batches, clip_weights
from dualground_jax.encoders import tokenizer as tokenizer_lib
from dualground_jax.models import layers
from dualground_jax.models.execution import Execution, run_layers

# Of the colours of a picture scaled to [0, 1], red first.
MEAN = 0.48145466, 0.4578275, 0.40821073
STD = 0.26862954, 0.26130258, 0.27577711


def pixels_of(frames: jax.Array) -> jax.Array:
    """What `Vision` takes of pictures uint8[B, S, S, 3]."""
    return (frames.astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(STD)


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x): the activation of OpenAI's weights."""
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS = dict(quick_gelu=quick_gelu, gelu=functools.partial(nn.gelu, approximate=False))


class Layer(layers.Block, kw_only=True):
    """Pre-norm transformer layer."""

    ffn: int
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array, mask: np.ndarray | None) -> jax.Array:
        """Maps x [B, T, D] with a mask bool[T, T] of what each row may attend to, to [B, T, D]."""
        y = layers.LayerNorm(self.dtype, name='norm1')(x)
        update, _ = layers.Attention(**self.shared, name='attention')(
            y, y, y, mask, deterministic=True)
        x = x + update
        y = layers.LayerNorm(self.dtype, name='norm2')(x)
        y = layers.dense_of(self.ffn, self.dtype, axes=layers.TO_HIDDEN)('linear1')(y)
        y = ACTIVATIONS[self.activation](y)
        return x + layers.dense_of(x.shape[-1], self.dtype, axes=layers.FROM_HIDDEN)('linear2')(y)


class Tower(layers.Block):
    """What both towers have: a stack of layers and a projection. The defaults are ViT-B/32's."""

    heads: int = 8
    execution: Execution = Execution(scan_layers=True)
    width: int = 512
    ffn: int = 2048
    num_layers: int = 12
    projected: int = 512
    activation: str = 'quick_gelu'

    @nn.nowrap
    def run(self, x: jax.Array, mask: np.ndarray | None = None) -> jax.Array:
        """Runs the layers on x [B, T, D]; see `Layer`."""
        def layer(name):
            return Layer(**self.shared, ffn=self.ffn, activation=self.activation, name=name)

        step = lambda layer, x: (layer(x, mask), None)
        return run_layers(self, layer, step, x, self.num_layers)[0]

    @nn.nowrap
    def projection(self) -> nn.Module:
        """Maps rows [..., D] to the space that pictures and sentences share: [..., P]."""
        return layers.Linear(self.projected, self.dtype, use_bias=False, name='projection')


class Patches(nn.Module):
    """A convolution whose stride is its window, by one product: faster on CPUs, and exact alike."""

    width: int
    size: int
    dtype: str

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Maps [B, S, S, 3] to [B, (S / size)^2, width]."""
        size, count = self.size, pixels.shape[1] // self.size
        kernel = self.param(
            'kernel', layers.partitioned(layers.normal, (None, None, *layers.SQUARE[::-1])),
            (size, size, pixels.shape[-1], self.width)).astype(self.dtype)
        x = pixels[:, : count * size, : count * size].astype(self.dtype)
        x = x.reshape(len(x), count, size, count, size, -1).swapaxes(2, 3)
        return x.reshape(len(x), count * count, -1) @ kernel.reshape(-1, self.width)


class Vision(Tower):
    """The tower of pictures: a Vision Transformer."""

    heads: int = 12
    width: int = 768
    ffn: int = 3072
    size: int = 224
    patch: int = 32

    @nn.compact
    def __call__(self, pixels: jax.Array) -> dict[str, jax.Array]:
        """Encodes pictures.

        Args:
          pixels: float[B, S, S, 3], less MEAN, by STD.

        Returns:
          `rows` [B, 1 + patches, D] after the last layer, `pooled` [B, D], `features` [B, P];
          `projected` [B, patches, P], patches as `pooled` and `features` are made of the first row.
        """
        x = Patches(self.width, self.patch, self.dtype, name='patches')(pixels)
        start = self.param('class', layers.embedding(0.02), (self.width,)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(start, (len(x), 1, self.width)), x], 1)
        positions = self.param('positions', layers.embedding(0.02), x.shape[1:])
        x = layers.LayerNorm(self.dtype, name='norm_before')(x + positions.astype(self.dtype))
        rows = self.run(x)
        norm, project = layers.LayerNorm(self.dtype, name='norm_after'), self.projection()
        pooled = norm(rows[:, 0])
        return dict(rows=rows, pooled=pooled, features=project(pooled),
                    projected=project(norm(rows[:, 1:])))


class Text(Tower):
    """The tower of sentences: each row sees those before it."""

    vocabulary: int = 49408
    context: int = 77

    @nn.compact
    def __call__(self, ids: jax.Array, end: jax.Array) -> dict[str, jax.Array]:
        """Encodes sentences.

        Args:
          ids: int32[B, L], L at most `context`: start-of-text, word pieces, end-of-text, any.
          end: int32[B], row of end-of-text.

        Returns:
          `rows` [B, L, D] before the projection, `projected` [B, L, P] after it, `features` [B, P].
        """
        length = ids.shape[1]
        table = self.param('tokens', layers.embedding(0.02), (self.vocabulary, self.width))
        positions = self.param('positions', layers.embedding(0.01), (self.context, self.width))
        x = (table[ids] + positions[:length]).astype(self.dtype)
        x = self.run(x, np.tri(length, dtype=bool))
        rows = layers.LayerNorm(self.dtype, name='norm_after')(x)
        project = self.projection()
        return dict(rows=rows, features=project(rows[jnp.arange(len(rows)), end]),
                    projected=project(rows))


@dataclasses.dataclass(frozen=True)
class ClipEncoder:
    """CLIP with its weights; `load` makes one.

    Example:
        encoder = clip.load('openai/clip-vit-base-patch32')
        encoder.encode_frames(frames) @ encoder.encode_sentences(['a dog runs'])[0]

    Attributes:
        vision, text: the towers.
        params: of both, by these names.
        tokenizer: None if the weights came without one, and none was named.
        weights_hash: the same for the same weights, whatever the file's format.
        mesh: batches are split over it.
        batch_size: pictures or sentences at a time; fewer are padded.
        max_rows: of a sentence, as `Tokenizer` cuts it.
    """

    vision: Vision
    text: Text
    params: dict
    tokenizer: tokenizer_lib.Tokenizer | None
    weights_hash: str
    mesh: Mesh
    batch_size: int
    max_rows: int

    @property
    def size(self) -> int:
        """Height and width of pictures."""
        return self.vision.size

    @property
    def width(self) -> int:
        """Of the features of pictures and sentences."""
        return self.vision.projected

    @property
    def text_width(self) -> int:
        """Of text rows."""
        return self.text.width

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        """Encodes pictures.

        Args:
            frames: uint8[N, S, S, 3], red first.

        Returns:
            float32[N, width], projected, not normalised.

        Raises:
            DataError: another type or shape.
        """
        expected = self.size, self.size, 3
        if frames.dtype != np.uint8 or frames.shape[1:] != expected or frames.ndim != 4:
            raise DataError(f'frames are {frames.dtype}{list(frames.shape)}, expected '
                            f'uint8[N, {self.size}, {self.size}, 3]')
        step = _frames_step(self.vision, self.mesh)
        found = [out[:count] for count, out in self._batches(step, frames)]
        return np.concatenate([np.zeros((0, self.width), np.float32), *found])

    def encode_text(self, sentences: Sequence[str]) -> list[np.ndarray]:
        """Encodes sentences row by row.

        Args:
            sentences: any number; with none, whether there is a tokenizer is checked.

        Returns:
            float32[R, text_width] of each: rows of start-of-text, word pieces and end-of-text after
            the last LayerNorm, before the projection; R is at most `max_rows`.

        Raises:
            DataError: there is no tokenizer, or it can't take a sentence.
        """
        ids, lengths = self._tokenize(sentences)
        found = self._batches(self._ids_step, ids)
        rows = [row for count, out in found for row in out['rows'][:count]]
        return [row[:length] for row, length in zip(rows, lengths, strict=True)]

    def encode_sentences(self, sentences: Sequence[str]) -> np.ndarray:
        """Encodes sentences as a whole: float32[n, width], projected, not normalised.

        Raises:
            DataError: as `encode_text`.
        """
        ids, _ = self._tokenize(sentences)
        found = self._batches(self._ids_step, ids)
        vectors = [out['features'][:count] for count, out in found]
        return np.concatenate([np.zeros((0, self.width), np.float32), *vectors])

    def _tokenize(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if self.tokenizer is None:
            raise DataError("CLIP's weights came without a tokenizer; name its folder or file")
        return self.tokenizer(sentences, self.max_rows)

    def _batches(self, step: Callable, rows: np.ndarray) -> Iterator[tuple[int, Any]]:
        return batches.run(step, self.params, rows, self.mesh, self.batch_size)

    @property
    def _ids_step(self) -> Callable:
        return _ids_step(self.text, self.mesh, self.tokenizer.end)


# Encoders that differ in their weights alone share programs.


@functools.lru_cache(maxsize=8)
def _frames_step(vision: Vision, mesh: Mesh) -> Callable:
    return batches.compiled(
        lambda params, frames: vision.apply(
            {'params': params['vision']}, pixels_of(frames))['features'], mesh)


@functools.lru_cache(maxsize=8)
def _ids_step(text: Text, mesh: Mesh, end: int) -> Callable:
    def step(params, ids):
        out = text.apply({'params': params['text']}, ids, end_of(ids, end))
        return dict(rows=out['rows'], features=out['features'])

    return batches.compiled(step, mesh)


def end_of(ids: jax.Array, end: int) -> jax.Array:
    """Row of end-of-text in ids [B, L], the first one, as in both codes."""
    return jnp.argmax(ids == end, 1)


def load(
    source: str | os.PathLike, dtype: str = 'float32', *, tokenizer: str | os.PathLike = '',
    cleaning: str = '', mesh: Mesh | None = None, batch_size: int = 32, max_rows: int = 32,
) -> ClipEncoder:
    """Loads CLIP's weights and tokenizer.

    Args:
        source: a Hugging Face folder, the name of a model on the hub, or OpenAI's file.
        dtype: 'float32' or 'bfloat16'.
        tokenizer: where the vocabulary is, see `tokenizer.load`; default: in the folder, or beside
            OpenAI's file, or none.
        cleaning: 'openai' or 'huggingface'; default: that of the weights' kind.
        mesh: batches are split over it, heads and hidden units as `sharding.RULES` says; default:
            the first device.
        batch_size: see `ClipEncoder`.
        max_rows: see `ClipEncoder`.

    Raises:
        DataError: files that are missing, damaged, or don't fit each other.
        ConfigError: another dtype, cleaning, batch size or number of rows.
    """
    if dtype not in ('float32', 'bfloat16'):
        raise ConfigError(f"dtype={dtype!r}: expected 'float32' or 'bfloat16'")
    mesh = mesh or sharding.one_device()
    sharding.check_batch_size(mesh, batch_size, 'batch_size')
    weights = clip_weights.read(source)
    vision, text = Vision(**weights.vision, dtype=dtype), Text(**weights.text, dtype=dtype)
    for tower in (vision, text):
        if tower.activation not in ACTIVATIONS:
            raise DataError(f'{source}: activation {tower.activation!r}, expected one of '
                            f'{", ".join(ACTIVATIONS)}')
        if tower.width % tower.heads:
            raise DataError(f'{source}: a tower has width {tower.width} and heads {tower.heads}, '
                            'expected a multiple')
    if not 2 <= max_rows <= text.context:
        raise ConfigError(f'max_rows={max_rows}: expected 2 to {text.context}')
    vocabulary = tokenizer_lib.load(
        tokenizer or source, text.vocabulary, cleaning or weights.cleaning)
    abstract = abstract_params(vision, text, mesh)
    try:
        params = state_dict.from_torch(
            weights.state, abstract, weights.names, unused=clip_weights.UNUSED)
    except state_dict.ConvertError as error:
        raise DataError(f'{source}: {error}') from error
    params = jax.tree.map(lambda x, own: np.asarray(x, own.dtype), params, abstract)
    placement = jax.tree.map(lambda x: sharding.gathered(x.sharding), abstract)
    # Beside the shapes, what else decides what comes out.
    told = vision.heads, text.heads, vision.activation, text.activation
    return ClipEncoder(
        vision, text, jax.device_put(params, placement), vocabulary,
        state_dict.digest(params, *told), mesh, batch_size, max_rows)


def abstract_params(vision: Vision, text: Text, mesh: Mesh) -> dict:
    """Shapes and placement of the parameters of both towers; nothing is computed."""
    pixels = jnp.zeros((1, vision.size, vision.size, 3))
    ids = jnp.zeros((1, 2), jnp.int32)
    boxed = jax.eval_shape(lambda key: dict(
        vision=vision.init(key, pixels)['params'],
        text=text.init(key, ids, ids[:, 0])['params']), jax.random.key(0))
    return sharding.placed(boxed, mesh)

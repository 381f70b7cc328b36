"""SlowFast networks (arXiv 1812.03982) in Flax: clips of a video -> features of motion.

A slow path sees few frames by many channels, a fast one many frames by few. Before each stage a
convolution in time hands what the fast path found to the slow one. The features are the mean of
each path over its frames and the picture, slow first, as they would reach the classifier.

B = clips, T = frames of the fast path, S = side of the picture, C = channels.
"""

import dataclasses
import functools
import os
from collections.abc import Callable

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data_pipelines.errors import ConfigError, DataError
from data_pipelines.slowfast_clips import FAST_FRAMES, slow_frames
from data_pipelines.slowfast_clips import clips_of as clips_of
from dualground_jax import sharding
from dualground_jax.encoders import batches, slowfast_weights
from dualground_jax.state_dict import digest, listed

_MEAN, _STD = 0.45, 0.225  # of the three colours alike


class SlowFast(nn.Module):
    """The network without its classifier; its BatchNorms are part of the convolutions.

    Parameters are named by stage, of which 1 is the stem, and block: 'slow_3_0' is the first block
    of the slow path's stage 3. The sizes are those of SLOWFAST_8x8_R50.
    """

    width: int = 64  # channels of the slow path's stem
    beta: int = 8  # the fast path has so many times fewer
    alpha: int = 4  # and so many times more frames
    fusion_kernel: int = 7  # frames
    fusion_ratio: int = 2  # channels handed over for each one of the fast path
    blocks: tuple[int, ...] = (3, 4, 6, 3)  # of stages 2 to 5
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, fast: jax.Array) -> dict[str, jax.Array]:
        """Maps normalised clips [B, T, S, S, 3] to their features and what leads to them.

        Returns:
            features: float32[B, C + C / beta]; and for each stage n 'slow_n'
            [B, T / alpha, s, s, c] and 'fast_n' [B, T, s, s, c / beta].
        """
        slow = fast[:, slow_frames(fast.shape[1], self.alpha)]
        out = dict(
            slow_1=Stem(self.width, 1, self.dtype, name='slow_1')(slow.astype(self.dtype)),
            fast_1=Stem(self.width // self.beta, 5, self.dtype, name='fast_1')(
                fast.astype(self.dtype)))
        for stage, (blocks, frames) in enumerate(zip(self.blocks, (1, 1, 3, 3)), start=2):
            width = self.width * 2 ** (stage - 2)
            slow, fast = out[f'slow_{stage - 1}'], out[f'fast_{stage - 1}']
            fused = nn.relu(_conv(
                fast.shape[-1] * self.fusion_ratio, (self.fusion_kernel, 1, 1), self.dtype,
                f'fuse_{stage - 1}', strides=(self.alpha, 1, 1))(fast))
            slow = jnp.concatenate([slow, fused], -1)
            for i in range(blocks):
                stride = 2 if stage > 2 and i == 0 else 1
                block = functools.partial(
                    Bottleneck, stride=stride, project=i == 0, dtype=self.dtype)
                slow = block(width, frames, name=f'slow_{stage}_{i}')(slow)
                fast = block(width // self.beta, 3, name=f'fast_{stage}_{i}')(fast)
            out |= {f'slow_{stage}': slow, f'fast_{stage}': fast}
        means = [x.astype(jnp.float32).mean((1, 2, 3)) for x in (slow, fast)]
        return out | dict(features=jnp.concatenate(means, -1))


class Stem(nn.Module):
    """A path's first layer: a wide convolution, and a maximum over the picture."""

    width: int
    frames: int  # that the convolution reaches over
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, T, S, S, 3] to [B, T, S / 4, S / 4, width]."""
        x = nn.relu(_conv(
            self.width, (self.frames, 7, 7), self.dtype, 'conv', strides=(1, 2, 2))(x))
        return nn.max_pool(x, (1, 3, 3), (1, 2, 2), _around((1, 3, 3)))


class Bottleneck(nn.Module):
    """A residual block: in time, in the picture, and to four times the width."""

    width: int
    frames: int  # that the first convolution reaches over
    stride: int  # in the picture
    project: bool  # whether the shortcut is a convolution
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, T, S, S, C] to [B, T, S / stride, S / stride, 4 width]."""
        strides = 1, self.stride, self.stride
        y = nn.relu(_conv(self.width, (self.frames, 1, 1), self.dtype, 'a')(x))
        y = nn.relu(_conv(self.width, (1, 3, 3), self.dtype, 'b', strides=strides)(y))
        y = _conv(4 * self.width, (1, 1, 1), self.dtype, 'c')(y)
        if self.project:
            x = _conv(4 * self.width, (1, 1, 1), self.dtype, 'shortcut', strides=strides)(x)
        return nn.relu(x + y)


def _conv(width: int, kernel: tuple[int, ...], dtype: str, name: str, **options) -> nn.Conv:
    return nn.Conv(width, kernel, padding=_around(kernel), dtype=dtype, name=name, **options)


def _around(kernel: tuple[int, ...]) -> list[tuple[int, int]]:
    """The padding of PyTorch's codes; that of flax is another one where a stride is 2."""
    return [(size // 2, size // 2) for size in kernel]


@dataclasses.dataclass(frozen=True)
class SlowFastEncoder:
    """A network with its weights.

    Attributes:
        model: the network.
        params: its weights, on the devices.
        weights_hash: equal for equal weights, whatever file they came in.
        mesh: that batches are split over.
        batch_size: clips that are computed at a time.
        size: of the pictures that it was trained on, pixels.
    """

    model: SlowFast
    params: dict
    weights_hash: str
    mesh: Mesh
    batch_size: int
    size: int = 224

    @property
    def width(self) -> int:
        """Of a clip's features."""
        slow = 4 * self.model.width * 2 ** (len(self.model.blocks) - 1)
        return slow + slow // self.model.beta

    def encode_clips(self, fast: np.ndarray) -> np.ndarray:
        """Encodes clips.

        Args:
            fast: uint8[N, FAST_FRAMES, S, S, 3], red first, of `clips_of`.

        Returns:
            float32[N, width], slow path first.

        Raises:
            DataError: another type or shape.
        """
        if fast.dtype != np.uint8 or fast.ndim != 5 or (fast.shape[1], fast.shape[4]) != (
                FAST_FRAMES, 3):
            raise DataError(f'clips are {fast.dtype}{list(fast.shape)}, expected '
                            f'uint8[N, {FAST_FRAMES}, {self.size}, {self.size}, 3]')
        found = batches.run(self._encode, self.params, fast, self.mesh, self.batch_size)
        return np.concatenate([np.zeros((0, self.width), np.float32),
                               *(out[:count] for count, out in found)])

    @functools.cached_property
    def _encode(self) -> Callable:
        def encode(params, clips):
            return self.model.apply({'params': params}, normalise(clips))['features']

        return batches.compiled(encode, self.mesh)


def normalise(clips: jax.Array) -> jax.Array:
    """Maps uint8 to what the networks were trained on, float32."""
    return (clips.astype(jnp.float32) / 255 - _MEAN) / _STD


def load(
    path: str | os.PathLike, dtype: str = 'float32', *, alpha: int | None = None,
    mesh: Mesh | None = None, batch_size: int = 8,
) -> SlowFastEncoder:
    """Loads a network of any width and depth.

    Args:
        path: file of PySlowFast or PyTorchVideo (.pyth), or of Caffe2 (.pkl).
        dtype: that it computes in, 'float32' or 'bfloat16'.
        alpha: times that the fast path has more frames; default: as the file says, else 4.
        mesh: that batches are split over; default: the first device.
        batch_size: clips that are computed at a time.

    Raises:
        DataError: the file can't be read, or holds other weights.
        ConfigError: another dtype, or a batch that the mesh does not divide.
    """
    if dtype not in ('float32', 'bfloat16'):
        raise ConfigError(f"dtype={dtype!r}: expected 'float32' or 'bfloat16'")
    mesh = mesh or sharding.one_device()
    sharding.check_batch_size(mesh, batch_size, 'batch_size')
    found = slowfast_weights.read(path)
    alpha = alpha or found.alpha
    if not alpha and found.sizes['fusion_kernel'] != SlowFast.fusion_kernel:
        raise DataError(
            f'{path}: its fusion takes {found.sizes["fusion_kernel"]} frames, that of SlowFast R50 '
            f'8x8 {SlowFast.fusion_kernel}, and the file does not tell alpha, the ratio of frames')
    model = SlowFast(**found.sizes, alpha=alpha or SlowFast.alpha, dtype=dtype)
    clip = jax.ShapeDtypeStruct((1, FAST_FRAMES, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), clip)['params']
    flat, expected = map(flax.traverse_util.flatten_dict, (found.params, shapes))
    wrong = [f'{"/".join(name)} is {flat[name].shape}, expected {x.shape}'
             for name, x in expected.items() if flat[name].shape != x.shape]
    if wrong:
        raise DataError(f'{path}: not the weights of SlowFast: {listed(wrong, "; ")}')
    params = jax.device_put(found.params, sharding.replicated(mesh))
    return SlowFastEncoder(
        model, params, digest(found.params, model.alpha), mesh, batch_size)

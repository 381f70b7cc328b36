"""What all models have: their common fields, and how they take in video and text."""

from collections.abc import Callable

import flax.linen as nn
import jax

from data_pipelines.errors import ConfigError
from dualground_jax.models import layers
from dualground_jax.models.execution import Execution

# What `matmul_precision` may be. JAX's default on accelerators is 'default'.
PRECISIONS = ('highest', 'high', 'default')
# What `fused_attention` may be.
FUSED = ('', 'xla', 'cudnn')


class GroundingModel(nn.Module):
    """The fields that every model has in the `model` section of its config."""

    width: int = 256
    heads: int = 8
    ffn: int = 1024
    dropout: float = 0.1
    input_dropout: float = 0.5
    input_layers: int = 2
    tokens: str = 'full'  # 'full', 'eos' or 'words'
    dtype: str = 'float32'
    matmul_precision: str = 'highest'  # of float32 products on accelerators; or 'high', 'default'
    attention_chunk: int = 0  # > 0: self-attention takes so many queries at a time
    fused_attention: str = ''  # where dropout is off: 'xla' or 'cudnn', in place of chunks
    scan_layers: bool = False  # equal layers run in one loop
    remat: bool = False  # gradients compute the activations of layers anew

    @property
    def execution(self) -> Execution:
        """How layers are computed.

        Raises:
          ConfigError: a chunk of negative size, or attention that is not there.
        """
        if self.attention_chunk < 0:
            raise ConfigError(f'model.attention_chunk={self.attention_chunk}: expected 0, which is '
                              'off, or a number of queries')
        self.check_fused_attention()
        return Execution(
            self.attention_chunk, self.fused_attention, self.scan_layers, self.remat)

    @nn.nowrap
    def check_fused_attention(self) -> None:
        """Raises ConfigError if `fused_attention` cannot be had."""
        fused, backend = self.fused_attention, jax.default_backend()
        if fused not in FUSED:
            raise ConfigError(f'model.fused_attention={fused!r}: expected one of '
                              f'{", ".join(map(repr, FUSED))}')
        if fused == 'cudnn' and (self.dtype not in ('bfloat16', 'float16') or backend != 'gpu'):
            raise ConfigError(f"model.fused_attention='cudnn' needs a GPU and model.dtype=bfloat16 "
                              f'or float16, found {backend} and {self.dtype}')
        each = self.width // self.heads
        if fused == 'cudnn' and (each % 8 or each > 128):
            raise ConfigError(f"model.fused_attention='cudnn': model.width={self.width} gives each "
                              f'of {self.heads} heads {each} channels, expected a multiple of 8 '
                              'up to 128')

    @property
    def precisely(self) -> Callable:
        """Decorates what is to be jitted: float32 products and convolutions in it, and those of
        their gradients, take `matmul_precision`.

        Raises:
          ConfigError: an unknown precision.
        """
        if self.matmul_precision not in PRECISIONS:
            raise ConfigError(f'model.matmul_precision={self.matmul_precision!r}: expected one of '
                              f'{", ".join(PRECISIONS)}')
        return jax.default_matmul_precision(self.matmul_precision)

    @property
    def shared(self) -> dict:
        """What layers with attention are told, see `layers.Block`."""
        return dict(
            heads=self.heads, dropout=self.dropout, dtype=self.dtype, execution=self.execution)

    @nn.nowrap
    def token_types(self) -> tuple[jax.Array, jax.Array]:
        """What tells text from video where they meet: a vector [D] for each."""
        text, video = self.param('token_types', layers.embedding(0.02), (2, self.width))
        return text.astype(self.dtype), video.astype(self.dtype)

    @nn.nowrap
    def project(self, name: str, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps inputs [..., d] to the model's width: [..., D]."""
        return layers.InputProjection(
            self.width, self.input_layers, self.input_dropout, self.dtype, name=name
        )(x, deterministic=not train)

    @nn.nowrap
    def position(self, mask: jax.Array) -> jax.Array:
        """Positions of the clips that are valid as in mask bool[B, T]: [B, T, D]."""
        return layers.sine_position(mask, self.width).astype(self.dtype)

"""The ResNet encoder-decoder that finds hearts, and takes calcium out of a slice or puts it in (Bruns 2022, van Velzen 2022, table 2).

A convolution, two of stride 2, residual blocks, two transposed ones and a convolution, each but the last with batch normalisation and
ReLU. Volumes are [b, z, y, x, c], slices [b, y, x, c]; any sides will do.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from cacjax.models.conv2d import Conv2D
from cacjax.models.conv3d import Conv3D
from cacjax.models.unet import Normalisation

GRAIN = 4  # the decoder comes back to sides that are multiples of this


class Normalised(nn.Module):
    """A convolution (a class) and batch normalisation: running averages of momentum 0.9 outside of training."""

    convolution: type
    features: int
    size: int = 3
    step: str = "same"

    @nn.compact
    def __call__(self, x, train: bool):
        x = self.convolution(self.features, self.size, self.step)(x)
        return Normalisation(name="BatchNorm_0")(x, train)  # its arrays are called as Flax's own


class Block(nn.Module):
    """Two convolutions and what came in; no activation after the sum."""

    convolution: type
    features: int

    @nn.compact
    def __call__(self, x, train: bool):
        x_ = nn.relu(Normalised(self.convolution, self.features)(x, train))
        return x + Normalised(self.convolution, self.features)(x_, train)


class EncoderDecoder(nn.Module):
    """Logits [b, .., classes] of volumes or slices [b, .., k], or one of each, [b, classes]: with `head` "mean" by a mean over places and a
    dense layer, with "peak" by a dense layer and log mean exp over places, so that what is small is not outvoted.

    width, blocks: channels of the first layer, number of residual blocks. ends: kernel size of the first and the last convolution. bias:
    also before normalisations. Of slices: padding, "zero" or "reflect"; spread: of kernels at the start (0: as PyTorch draws them). skips:
    the first two layers stand beside what the decoder makes of the rest. last_bias: of all logits at the start, in place of a drawn one.
    Parameters: 386,942 as it is; without biases 2,147,986 at width 16, 9 blocks and 2 classes. Slices at width 64, 6 blocks, without
    biases: 7,828,865 for 1 class, 7,457,218 for 2 by a mean.
    """

    width: int = 8
    blocks: int = 6
    classes: int = 6
    ends: int = 7
    bias: bool = True
    padding: str = "zero"
    spread: float = 0.0
    skips: bool = False
    head: str = "decoder"
    last_bias: float | None = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        sides, rank = x.shape[1:-1], x.ndim - 2
        layer = functools.partial(Conv3D, bias=self.bias)
        if rank == 2:
            layer = functools.partial(Conv2D, bias=self.bias, padding=self.padding, spread=self.spread)
        x = jnp.pad(x, ((0, 0), *[(0, -n % GRAIN) for n in sides], (0, 0)), mode="edge")
        seen = [nn.relu(Normalised(layer, self.width, self.ends)(x, train))]
        for factor in (2, 4):
            seen.append(nn.relu(Normalised(layer, factor * self.width, step="down")(seen[-1], train)))
        x = seen.pop()
        for _ in range(self.blocks):
            x = Block(layer, 4 * self.width)(x, train)
        if self.head == "mean":
            return nn.Dense(self.classes)(x.mean(tuple(range(1, 1 + rank))))
        if self.head == "peak":
            return jax.nn.logsumexp(nn.Dense(self.classes)(x), tuple(range(1, 1 + rank)), b=1 / math.prod(x.shape[1:-1]))
        for factor in (2, 1):
            x = nn.relu(Normalised(layer, factor * self.width, step="up")(x, train))
            x = jnp.concatenate([x, seen.pop()], -1) if self.skips else x
        x = layer(self.classes, self.ends, bias=self.last_bias is None)(x)[(slice(None), *(slice(0, n) for n in sides))]
        if self.last_bias is None:
            return x
        return x + self.param("last_bias", nn.initializers.constant(self.last_bias), (self.classes,))

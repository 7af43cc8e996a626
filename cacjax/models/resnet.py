"""The 3-D ResNet encoder-decoder of Bruns 2022, which finds the heart's chambers; the same form serves other segmentations.

A convolution, two of stride 2, residual blocks, two transposed ones and a convolution, each but the last with batch normalisation and
ReLU. 386,942 parameters at width 8, 6 blocks and 6 classes. Volumes are [b, z, y, x, c]; any sides will do.
"""

import flax.linen as nn
import jax.numpy as jnp

from cacjax.models.conv3d import Conv3D

GRAIN = 4  # the decoder comes back to sides that are multiples of this


class Normalised(nn.Module):
    """A convolution and batch normalisation: running averages of momentum 0.9 outside of training."""

    features: int
    size: int = 3
    step: str = "same"

    @nn.compact
    def __call__(self, x, train: bool):
        x = Conv3D(self.features, self.size, self.step)(x)
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)(x)


class Block(nn.Module):
    """Two convolutions and what came in; no activation after the sum."""

    features: int

    @nn.compact
    def __call__(self, x, train: bool):
        return x + Normalised(self.features)(nn.relu(Normalised(self.features)(x, train)), train)


class EncoderDecoder(nn.Module):
    """Logits [b, z, y, x, classes] of volumes [b, z, y, x, 1]; `ends` is the kernel size of the first and the last convolution."""

    width: int = 8
    blocks: int = 6
    classes: int = 6
    ends: int = 7

    @nn.compact
    def __call__(self, x, train: bool = False):
        sides = x.shape[1:4]
        x = jnp.pad(x, ((0, 0), *[(0, -n % GRAIN) for n in sides], (0, 0)), mode="edge")
        x = nn.relu(Normalised(self.width, self.ends)(x, train))
        for factor in (2, 4):
            x = nn.relu(Normalised(factor * self.width, step="down")(x, train))
        for _ in range(self.blocks):
            x = Block(4 * self.width)(x, train)
        for factor in (2, 1):
            x = nn.relu(Normalised(factor * self.width, step="up")(x, train))
        z, y, x_ = sides
        return Conv3D(self.classes, self.ends)(x)[:, :z, :y, :x_]

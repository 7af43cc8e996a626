"""A discriminator that judges a slice patch by patch (Isola 2017; van Velzen 2022, table 2). Slices are [b, y, x, c]."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from cacjax.models import conv, conv2d
from cacjax.models.unet import Normalisation

SLOPE = 0.2  # of the leaky ReLU below 0


class Layer(NamedTuple):
    """Kernel size, stride, and times `width` the channels."""

    size: int
    stride: int
    factor: int


class PatchGAN(nn.Module):
    """Logits [b, y', x', 1], one for each patch of slices [b, y, x, 1]: above 0 is real.

    layers: (size, stride, factor) each, zero padding 1, then leaky ReLU; with `norm` all but the first have batch normalisation, by the
    batch's own moments, and no bias. last: kernel size of the last one (above 1 with padding 1). spread: of kernels at the start, 0: He's.
    As it is 2,763,585 parameters and patches of 70 pixels.
    """

    width: int = 64
    layers: tuple = ((4, 2, 1), (4, 2, 2), (4, 2, 4), (4, 1, 8))
    last: int = 4
    norm: bool = True
    spread: float = 0.02

    @nn.compact
    def __call__(self, x):
        for i, layer in enumerate(Layer(*each) for each in self.layers):
            normal = self.norm and i > 0
            x = self._convolution(x, f"layer_{i}", layer.factor * self.width, layer.size, layer.stride, 1, bias=not normal)
            if normal:
                x = Normalisation(name=f"norm_{i}")(x, True)
            x = nn.leaky_relu(x, SLOPE)
        return self._convolution(x, "last", 1, self.last, 1, int(self.last > 1), bias=True)

    def _convolution(self, x, name, features, size, stride, padding, *, bias):
        if self.spread:
            drawn = nn.initializers.normal(self.spread)
        else:
            drawn = nn.initializers.he_normal() if features > 1 else nn.initializers.normal(0.05)
        kernel = self.param(f"{name}_kernel", drawn, (size, size, x.shape[-1], features))
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        x = conv2d.valid(x, kernel, stride)
        return conv.add(x, self.param(f"{name}_bias", nn.initializers.zeros, (features,))) if bias else x


def field(layers, last) -> int:
    """Pixels along an axis that a patch covers."""
    width, step = 1, 1
    for size, stride, _ in layers:
        width, step = width + (size - 1) * step, step * stride
    return width + (last - 1) * step

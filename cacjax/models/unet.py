"""The U-Net in 2D or 3D, by the rank of what it is given: blocks of two convolutions, plain or residual (Gogin 2021, "Model architecture").

Levels of width, 2 width, 4 width, .., with maxima over pairs between them; on the way back the nearest voxel twice, a convolution, and
what the way in had at that level beside it. 1,627,073 parameters in 3D at width 16 and 4 levels (5: 6,560,321). Arrays are channels last.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cacjax.models import conv, conv3d

MOMENTUM, EPSILON = 0.9, 1e-5  # of the running statistics


class UNet(nn.Module):
    """Logits [b, z, y, x, outputs] of [b, z, y, x, c], or the same in 2D; sides must be multiples of 2 to the power of levels - 1.

    residual: a block adds what it is given, by a 1x1 convolution where the number of channels changes. heads: the deepest so many levels
    of the way back answer, too: then the result is a tuple, the finest first. first_bias: the last layer's bias at the start.
    """

    width: int = 16
    levels: int = 4
    outputs: int = 1
    residual: bool = True
    heads: int = 0
    first_bias: float = 0.0

    @nn.compact
    def __call__(self, x, train: bool = False):
        if any(side % 2 ** (self.levels - 1) for side in x.shape[1:-1]):
            raise ValueError(f"sides must be multiples of {2 ** (self.levels - 1)}, got {x.shape[1:-1]}")
        kept, answers = [], []
        for level in range(self.levels):
            kept.append(Block(self.width * 2**level, self.residual)(halved(x) if level else x, train))
            x = kept[-1]
        for level in range(self.levels - 2, -1, -1):
            x = jnp.concatenate([kept[level], Up(self.width * 2**level)(x)], -1)
            x = Block(self.width * 2**level, self.residual)(x, train)
            if level and self.levels - 1 - level <= self.heads:
                answers.append(Pointwise(self.outputs, bias=self.first_bias)(x))
        answer = Pointwise(self.outputs, bias=self.first_bias)(x)
        return (answer, *reversed(answers)) if self.heads else answer


class Block(nn.Module):
    """Convolution, normalisation, ELU, convolution, normalisation; what came in is added, where residual; ELU."""

    features: int
    residual: bool = True

    @nn.compact
    def __call__(self, x, train: bool):
        y = Normalisation()(Kernel3(self.features)(x), train)
        y = Normalisation()(Kernel3(self.features)(jax.nn.elu(y)), train)
        if self.residual:
            y = y + (x if x.shape[-1] == self.features else Pointwise(self.features)(x))
        return jax.nn.elu(y)


class Kernel3(nn.Module):
    """Convolution of size 3 along every axis with zero padding and no bias; kernels ~ U(+-sqrt(6 / fan in))."""

    features: int

    @nn.compact
    def __call__(self, x):
        return same(x, _kernel(self, 3, x))


class Up(nn.Module):
    """The nearest voxel twice along every axis, then a convolution of size 3 with bias."""

    features: int

    @nn.compact
    def __call__(self, x):
        kernel, bias = _kernel(self, 3, x), self.param("bias", nn.initializers.zeros, (self.features,))
        if x.ndim == 5:
            return conv3d.doubled(x, kernel) + bias
        return same(x.repeat(2, 1).repeat(2, 2), kernel) + bias


class Pointwise(nn.Module):
    """A product with a matrix of channels; with a bias where its first value is given."""

    features: int
    bias: float | None = None

    @nn.compact
    def __call__(self, x):
        x = x @ self.param("kernel", conv.he, (x.shape[-1], self.features))
        return x if self.bias is None else x + self.param("bias", nn.initializers.constant(self.bias), (self.features,))


class Normalisation(nn.Module):
    """Batch normalisation; outside of training by running averages."""

    @nn.compact
    def __call__(self, x, train: bool):
        channels = (x.shape[-1],)
        mean, variance = self.variable("batch_stats", "mean", jnp.zeros, channels), self.variable("batch_stats", "var", jnp.ones, channels)
        scale, bias = self.param("scale", nn.initializers.ones, channels), self.param("bias", nn.initializers.zeros, channels)
        if not train:
            return (x - mean.value) * (jax.lax.rsqrt(variance.value + EPSILON) * scale) + bias
        flat = x.reshape(1, -1, x.shape[-1])
        middle = conv.sums(flat)[0, 0] / flat.shape[1]
        spread = conv.sums(jnp.square(flat - middle))[0, 0] / flat.shape[1]
        if not self.is_initializing():
            mean.value = MOMENTUM * mean.value + (1 - MOMENTUM) * middle
            variance.value = MOMENTUM * variance.value + (1 - MOMENTUM) * spread
        return (x - middle) * (jax.lax.rsqrt(spread + EPSILON) * scale) + bias


def same(x, kernel):
    """Convolution of odd size with zero padding, in 2D or 3D."""
    half = len(kernel) // 2
    x = jnp.pad(x, ((0, 0), *[(half, half)] * (x.ndim - 2), (0, 0)))
    if x.ndim == 5:
        return conv3d.convolution(x, kernel)
    return conv.arranged(x, kernel) if jax.default_backend() == "cpu" else conv.convolution(x, kernel)


def halved(x):
    """The largest of each pair of voxels along every axis."""
    sides = [part for n in x.shape[1:-1] for part in (n // 2, 2)]
    return x.reshape(x.shape[0], *sides, x.shape[-1]).max(tuple(range(2, 2 * x.ndim - 3, 2)))


def _kernel(module, size, x):
    return module.param("kernel", conv.he, (size,) * (x.ndim - 2) + (x.shape[-1], module.features))

"""The U-Net in 2D or 3D, by the rank of what it is given: as Gogin 2021 ("Model architecture") and Zhang 2018 (section 2.2.2) have it.

Levels of width, 2 width, 4 width, .., with maxima over pairs between them; on the way back the next coarser level made finer, and what
the way in had at that level beside it. Gogin, `UNet()`: 1,627,073 parameters in 3D at width 16 and 4 levels (5: 6,560,321). Zhang,
`UNet(levels=6, outputs=4, heads=4, **ZHANG)`: 23,667,796 upon 192 channels. Arrays are channels last.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cacjax.models import conv, conv3d
from cacjax.models.dropout import Dropout

MOMENTUM, EPSILON = 0.9, 1e-5  # of the running statistics
GROUPS = 8
ZHANG = {"residual": False, "norm": "group", "activation": "relu", "finer": "linear"}


class UNet(nn.Module):
    """Logits [b, z, y, x, outputs] of [b, z, y, x, c], or the same in 2D; sides must be multiples of 2 to the power of levels - 1.

    residual: a block adds what it is given, by a 1x1 convolution where the number of channels changes. heads: the deepest so many levels
    of the way back answer, too: then the result is a tuple, the finest first. first_bias: the last layer's bias at the start.
    norm: "batch" or "group". activation: "elu" or "relu". finer: by the "nearest" voxel and a convolution, or "linear" alone. dropout:
    behind every activation of a block in training (key "dropout"). flat: the first so many poolings keep z. remat: for the gradient
    what is inside of a block is computed again, not kept.
    """

    width: int = 16
    levels: int = 4
    outputs: int = 1
    residual: bool = True
    heads: int = 0
    first_bias: float | tuple[float, ...] = 0.0
    norm: str = "batch"
    activation: str = "elu"
    finer: str = "nearest"
    dropout: float = 0.0
    flat: int = 0
    remat: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        pools = [pool_of(level, x.ndim - 2, self.flat) for level in range(self.levels - 1)]
        check_sides(x, pools)
        kept, answers = [], []
        for level in range(self.levels):
            kept.append(self._block(level, level)(halved(x, pools[level - 1]) if level else x, train))
            x = kept[-1]
        for level in range(self.levels - 2, -1, -1):
            finer = enlarged(x, pools[level]) if self.finer == "linear" else Up(self.width * 2**level)(x)
            x = jnp.concatenate([kept[level], finer], -1)
            x = self._block(level, 2 * (self.levels - 1) - level)(x, train)
            if level and self.levels - 1 - level <= self.heads:
                answers.append(Pointwise(self.outputs, bias=self.first_bias)(x))
        answer = Pointwise(self.outputs, bias=self.first_bias)(x)
        return (answer, *reversed(answers)) if self.heads else answer

    def _block(self, level, number):
        kind = nn.remat(Block, static_argnums=2) if self.remat else Block
        style = self.residual, self.norm, self.activation, self.dropout
        return kind(self.width * 2**level, *style, name=f"Block_{number}")  # one name, whether computed again or not


def pool_of(level, rank, flat=0):
    """How many voxels along each axis the pooling behind a level makes one: 2, along z 1 at the first `flat` levels."""
    return (1 if level < flat else 2, *[2] * (rank - 1))


def check_sides(x, pools):
    """Raise ValueError where the sides of x [b, .., c] cannot be pooled so."""
    least = [math.prod(along) for along in zip(*pools)] or [1] * (x.ndim - 2)
    if any(side % n for side, n in zip(x.shape[1:-1], least)):
        raise ValueError(f"sides must be multiples of {' x '.join(map(str, least))}, got {x.shape[1:-1]}")


class Block(nn.Module):
    """Convolution, normalisation, activation, convolution, normalisation; what came in is added, where residual; activation."""

    features: int
    residual: bool = True
    norm: str = "batch"
    activation: str = "elu"
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train: bool):
        active = {"elu": jax.nn.elu, "relu": jax.nn.relu}[self.activation]
        normal = {"batch": Normalisation, "group": GroupNormalisation}[self.norm]
        drop = Dropout(self.dropout, deterministic=not train)
        y = normal()(Kernel3(self.features)(x), train)
        y = normal()(Kernel3(self.features)(drop(active(y))), train)
        if self.residual:
            y = y + (x if x.shape[-1] == self.features else Pointwise(self.features)(x))
        return drop(active(y))


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
    bias: float | tuple[float, ...] | None = None

    @nn.compact
    def __call__(self, x):
        x = x @ self.param("kernel", conv.he, (x.shape[-1], self.features))
        return x if self.bias is None else x + self.param("bias", nn.initializers.constant(jnp.asarray(self.bias)), (self.features,))


class Normalisation(nn.Module):
    """Batch normalisation; outside of training by running averages."""

    @nn.compact
    def __call__(self, x, train: bool):
        channels = (x.shape[-1],)
        scale, bias = self.param("scale", nn.initializers.ones, channels), self.param("bias", nn.initializers.zeros, channels)
        if train:
            x, *found = normalised(x, scale, bias)
            _keep(self, *found)
            return x
        mean, variance = moments(self, x, train)
        return (x - mean) * (lax.rsqrt(variance + EPSILON) * scale) + bias


@jax.custom_vjp
def normalised(x, scale, bias):
    """(maps [b, .., c] of mean 0 and variance 1, times `scale`, plus `bias`; mean and variance [c] of before, without a gradient)."""
    mean, variance = _of_batch(x)
    return (x - mean) * (lax.rsqrt(variance + EPSILON) * scale) + bias, mean, variance


def _forward(x, scale, bias):
    out, mean, variance = normalised(x, scale, bias)
    return (out, mean, variance), (x, mean, lax.rsqrt(variance + EPSILON), scale)


def _backward(residuals, slopes):
    (x, mean, by, scale), slope = residuals, slopes[0]
    flat, unit = slope.reshape(1, -1, slope.shape[-1]), (x - mean) * by
    to_bias, to_scale = (conv.sums(each)[0, 0] for each in (flat, flat * unit.reshape(flat.shape)))
    return (slope - (to_bias + unit * to_scale) / flat.shape[1]) * (by * scale), to_scale, to_bias


normalised.defvjp(_forward, _backward)


def moments(module, x, train: bool):
    """(mean, variance) [c] of maps, whose running averages a module keeps; outside of training these."""
    return _keep(module, *_of_batch(x)) if train else tuple(each.value for each in _running(module, x.shape[-1]))


def _of_batch(x):
    flat = x.reshape(1, -1, x.shape[-1])
    middle = conv.sums(flat)[0, 0] / flat.shape[1]
    return middle, conv.sums(jnp.square(flat - middle))[0, 0] / flat.shape[1]


def _running(module, channels):
    return (module.variable("batch_stats", name, first, (channels,)) for name, first in (("mean", jnp.zeros), ("var", jnp.ones)))


def _keep(module, *found):
    """The moments of a batch, once they are mixed into a module's running ones."""
    for kept, new in zip(_running(module, len(found[0])), found):
        if not module.is_initializing():
            kept.value = MOMENTUM * kept.value + (1 - MOMENTUM) * new
    return found


class GroupNormalisation(nn.Module):
    """Each sample's mean and variance over groups of adjacent channels, `GROUPS` of them or as many as there are channels (Wu 2018)."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        channels, groups = x.shape[-1], min(GROUPS, x.shape[-1])
        scale, bias = self.param("scale", nn.initializers.ones, (channels,)), self.param("bias", nn.initializers.zeros, (channels,))

        def mean(values):
            sums = conv.sums(values).reshape(len(values), groups, -1).sum(-1) / (values.shape[1] * channels // groups)
            return jnp.repeat(sums, channels // groups, -1)[:, None]

        flat = x.reshape(x.shape[0], -1, channels)
        middle = mean(flat)
        spread = mean(jnp.square(flat - middle))
        return ((flat - middle) * (lax.rsqrt(spread + EPSILON) * scale) + bias).reshape(x.shape)


def same(x, kernel):
    """Convolution of odd size with zero padding, in 2D or 3D."""
    return conv3d.same(x, kernel) if x.ndim == 5 else conv.same(x, kernel)


def halved(x, pool=None):
    """The largest of each pair of voxels along every axis, or of `pool` (1 or 2) of them."""
    for axis, n in enumerate(pool or [2] * (x.ndim - 2), 1):
        if n == 2:
            pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
            x = jnp.maximum(*(lax.index_in_dim(pairs, half, axis + 1, keepdims=False) for half in (0, 1)))
    return x


def enlarged(x, factors):
    """Linear interpolation to so many voxels for each one, along each axis; beyond the first and the last middle of a voxel constant."""
    for axis, factor in enumerate(factors, 1):
        if factor > 1:
            x = _enlarged_along(x, axis, factor)
    return x


def _enlarged_along(x, axis, factor):
    n = x.shape[axis]
    before = jnp.concatenate([lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, 0, n - 1, axis=axis)], axis)
    after = jnp.concatenate([lax.slice_in_dim(x, 1, n, axis=axis), lax.slice_in_dim(x, n - 1, n, axis=axis)], axis)
    places = [(i + 0.5) / factor - 0.5 for i in range(factor)]  # of the middle of each new voxel, from that of the old one
    parts = [x + abs(at) * ((before if at < 0 else after) - x) for at in places]
    return jnp.stack(parts, axis + 1).reshape(*x.shape[:axis], n * factor, *x.shape[axis + 1 :])


def _kernel(module, size, x):
    return module.param("kernel", conv.he, (size,) * (x.ndim - 2) + (x.shape[-1], module.features))

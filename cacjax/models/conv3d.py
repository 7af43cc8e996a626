"""3-D convolutions, channels last, in the form that is fastest on CPU: 2-D ones over slices (see conv.py), exact up to rounding.

XLA:CPU has no fast path for them. On CPU the taps along z become channels of one 2-D convolution, on the side that has fewer: input
channels where these are few (slices side by side), else output channels that are shifted and added. Strided and transposed ones are
2x2x2 convolutions of halved grids on every backend: a pair of voxels per axis becomes channels (`fold`), or comes out of them.
Arrays are [b, z, y, x, c].
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cacjax.models import conv

# Weight of kernel entry k in tap a and voxel p of a pair, along one axis: out[i] = w0 x[2i-1] + w1 x[2i] + w2 x[2i+1] is a sum over the
# pairs i-1 and i. The transposed convolution reads it the other way: out[2i] = w1 x[i], out[2i+1] = w2 x[i] + w0 x[i+1].
DOWN, UP = np.zeros((2, 2, 3), np.float32), np.zeros((2, 2, 3), np.float32)
DOWN[0, 1, 0] = DOWN[1, 0, 1] = DOWN[1, 1, 2] = 1
UP[0, 0, 1] = UP[0, 1, 2] = UP[1, 1, 0] = 1
# Of the nearest voxel twice: out[2i] = w0 x[i-1] + (w1 + w2) x[i], out[2i+1] = (w0 + w1) x[i] + w2 x[i+1].
NEAREST = np.zeros((2, 2, 3), np.float32)
NEAREST[0, 0, 0] = NEAREST[1, 0, 1] = NEAREST[1, 0, 2] = NEAREST[0, 1, 0] = NEAREST[0, 1, 1] = NEAREST[1, 1, 2] = 1


def convolution(x, kernel):
    """VALID, stride 1: [b, z, y, x, c] and [k, k, k, c, f] -> [b, z - k + 1, y - k + 1, x - k + 1, f]."""
    if jax.default_backend() == "cpu":
        return by_slices(x, kernel)
    return lax.conv_general_dilated(x, kernel, (1, 1, 1), "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


def by_slices(x, kernel):
    """`convolution` by one 2-D convolution."""
    b, depth, height, width, c = x.shape
    k, f = len(kernel), kernel.shape[-1]
    out = depth - k + 1
    if c <= f:
        wide = jnp.concatenate([x[:, tap : tap + out] for tap in range(k)], -1).reshape(b * out, height, width, k * c)
        planes = conv.arranged(wide, kernel.transpose(1, 2, 0, 3, 4).reshape(k, k, k * c, f), 1)
        return planes.reshape(b, out, *planes.shape[1:])
    planes = conv.arranged(x.reshape(b * depth, height, width, c), kernel.transpose(1, 2, 3, 0, 4).reshape(k, k, c, k * f), 1)
    planes = planes.reshape(b, depth, *planes.shape[1:3], k, f)
    return sum(planes[:, tap : tap + out, ..., tap, :] for tap in range(k))


def fold(x):
    """Pairs of voxels along each axis as channels: [b, 2z, 2y, 2x, c] -> [b, z, y, x, 8c]."""
    b, z, y, x_, c = x.shape
    x = x.reshape(b, z // 2, 2, y // 2, 2, x_ // 2, 2, c)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, z // 2, y // 2, x_ // 2, 8 * c)


def unfold(x):
    """The way back: [b, z, y, x, 8f] -> [b, 2z, 2y, 2x, f]."""
    b, z, y, x_, f = x.shape
    x = x.reshape(b, z, y, x_, 2, 2, 2, f // 8)
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, 2 * z, 2 * y, 2 * x_, f // 8)


def doubled(x, kernel):
    """`convolution` of size 3 with zero padding of the nearest voxel twice along each axis, [b, z, y, x, c] -> [b, 2z, 2y, 2x, f].

    Each of the eight voxels that one becomes sees two neighbours along each axis: 64 products of channels in place of 216.
    """
    *_, c, f = kernel.shape
    small = jnp.einsum("apk,bql,crm,klmio->abcipqro", NEAREST, NEAREST, NEAREST, kernel).reshape(2, 2, 2, c, 8 * f)
    pairs = convolution(jnp.pad(x, ((0, 0), *[(1, 1)] * 3, (0, 0))), small)
    pairs = pairs.reshape(*pairs.shape[:-1], 2, 2, 2, f)
    for axis, n in zip((1, 2, 3), x.shape[1:4]):  # of voxel i the first half from the pair (i - 1, i), the second from (i, i + 1)
        halves = [lax.index_in_dim(lax.slice_in_dim(pairs, half, half + n, axis=axis), half, 4, keepdims=False) for half in (0, 1)]
        pairs = jnp.stack(halves, axis + 1).reshape(*pairs.shape[:axis], 2 * n, *pairs.shape[axis + 1 : 4], *pairs.shape[5:])
    return pairs


class Conv3D(nn.Module):
    """Convolution with zero padding and bias; stride 2 ("down") or its transpose ("up", PyTorch's padding 1, output_padding 1) for size 3.

    Kernel [k, k, k, c, f] and bias are drawn as PyTorch does; sides must be even for "down".
    """

    features: int
    size: int = 3
    step: str = "same"

    @nn.compact
    def __call__(self, x):
        c = x.shape[-1]
        bound = 1 / np.sqrt(self.size**3 * (self.features if self.step == "up" else c))
        kernel = self.param("kernel", conv.uniform(bound), (self.size,) * 3 + (c, self.features))
        bias = self.param("bias", conv.uniform(bound), (self.features,))
        if self.step == "down":
            pairs = jnp.pad(fold(x), ((0, 0), *[(1, 0)] * 3, (0, 0)))
            small = jnp.einsum("apk,bql,crm,klmio->abcpqrio", DOWN, DOWN, DOWN, kernel)
            return convolution(pairs, small.reshape(2, 2, 2, 8 * c, self.features)) + bias
        if self.step == "up":
            ahead = jnp.pad(x, ((0, 0), *[(0, 1)] * 3, (0, 0)))
            small = jnp.einsum("apk,bql,crm,klmio->abcipqro", UP, UP, UP, kernel)
            return unfold(convolution(ahead, small.reshape(2, 2, 2, c, 8 * self.features))) + bias
        half = self.size // 2
        return convolution(jnp.pad(x, ((0, 0), *[(half, half)] * 3, (0, 0))), kernel) + bias

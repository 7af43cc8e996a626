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

FEW = 64  # voxels of a slice up to which one product with all neighbours of each is faster than convolutions
MANY = 6  # times as many inputs as outputs: then products give the kernel's gradient sooner
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


def same(x, kernel):
    """Zero padding, stride 1, odd size: [b, z, y, x, c] and [k, k, k, c, f] -> [b, z, y, x, f]."""
    if jax.default_backend() == "cpu":
        return same_by_slices(x, kernel) if x.shape[2] * x.shape[3] > FEW else _by_products(x, kernel)
    return lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


def by_slices(x, kernel, padding: int = 0):
    """`convolution` by one 2-D convolution; `padding` along y and x."""
    b, depth, height, width, c = x.shape
    k, f = len(kernel), kernel.shape[-1]
    out = depth - k + 1
    if c <= f:
        wide = jnp.concatenate([x[:, tap : tap + out] for tap in range(k)], -1).reshape(b * out, height, width, k * c)
        planes = conv.arranged(wide, kernel.transpose(1, 2, 0, 3, 4).reshape(k, k, k * c, f), 1, 1, padding)
        return planes.reshape(b, out, *planes.shape[1:])
    flat = x.reshape(b * depth, height, width, c)
    planes = conv.arranged(flat, kernel.transpose(1, 2, 3, 0, 4).reshape(k, k, c, k * f), 1, 1, padding)
    planes = planes.reshape(b, depth, *planes.shape[1:3], k, f)
    return sum(planes[:, tap : tap + out, ..., tap, :] for tap in range(k))


def _by_products(x, kernel):
    k, f = len(kernel), kernel.shape[-1]
    return _neighbours(_padded(x, k // 2, (1, 2, 3)), k) @ kernel.transpose(2, 1, 0, 3, 4).reshape(-1, f)


def _neighbours(x, k):
    """Each voxel's k neighbours along every axis as channels (x, y, z, c), axis after axis: a third of the steps of all at once."""
    for axis in (1, 2, 3):
        n = x.shape[axis] - k + 1
        x = jnp.concatenate([lax.slice_in_dim(x, tap, tap + n, axis=axis) for tap in range(k)], -1)
    return x


@jax.custom_vjp
def same_by_slices(x, kernel):
    """`same` by 2-D convolutions, and its gradients by others: what is fastest for one is not for the next."""
    half = len(kernel) // 2
    return by_slices(_padded(x, half), kernel, half)


def _backward(residuals, slope):
    x, kernel = residuals
    flipped = kernel[::-1, ::-1, ::-1].transpose(0, 1, 2, 4, 3)
    form = _gradient_by_products if x.shape[-1] >= MANY * slope.shape[-1] else _gradient_by_taps
    return same_by_slices(slope, flipped), form(x, slope, len(kernel))


same_by_slices.defvjp(lambda x, kernel: (same_by_slices(x, kernel), (x, kernel)), _backward)


def _gradient_by_taps(x, slope, k):
    """Gradient of the kernel, a 2-D one for each of its slices."""
    half, depth = k // 2, slope.shape[1]
    x, flat = _padded(x, half), slope.reshape(-1, *slope.shape[2:])
    parts = (x[:, tap : tap + depth].reshape(-1, *x.shape[2:]) for tap in range(k))
    return jnp.stack([conv.kernel_gradient(part, flat, 1, half) for part in parts])


def _gradient_by_products(x, slope, k):
    """The same where outputs are few: slice after slice a product of all that the kernel shifts of the slope with the input."""
    slope = _padded(slope, k // 2, (1, 2, 3))
    depth, f, c = x.shape[1], slope.shape[-1], x.shape[-1]

    def add(total, z):
        near = _neighbours(lax.dynamic_slice_in_dim(slope, z, k, 1), k).reshape(-1, k**3 * f)
        return total + near.T @ lax.dynamic_index_in_dim(x, z, 1, keepdims=False).reshape(-1, c), None

    total = lax.scan(add, jnp.zeros((k**3 * f, c), x.dtype), jnp.arange(depth))[0].reshape(k, k, k, f, c)
    return total[::-1, ::-1, ::-1].transpose(2, 1, 0, 4, 3)


def _padded(x, half, axes=(1,)):
    return jnp.pad(x, [(half, half) if axis in axes else (0, 0) for axis in range(x.ndim)])


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
    """Convolution with zero padding; stride 2 ("down") or its transpose ("up", PyTorch's padding 1, output_padding 1) for size 3.

    Kernel [k, k, k, c, f] and bias are drawn as PyTorch does; sides must be even for "down".
    """

    features: int
    size: int = 3
    step: str = "same"
    bias: bool = True

    @nn.compact
    def __call__(self, x):
        bound = 1 / np.sqrt(self.size**3 * (self.features if self.step == "up" else x.shape[-1]))
        kernel = self.param("kernel", conv.uniform(bound), (self.size,) * 3 + (x.shape[-1], self.features))
        bias = self.param("bias", conv.uniform(bound), (self.features,)) if self.bias else 0.0
        return {"same": same, "down": halved, "up": unfolded}[self.step](x, kernel) + bias


def halved(x, kernel):
    """Convolution of size 3, stride 2, zero padding: [b, 2z, 2y, 2x, c] and [3, 3, 3, c, f] -> [b, z, y, x, f]."""
    *_, c, f = kernel.shape
    small = jnp.einsum("apk,bql,crm,klmio->abcpqrio", DOWN, DOWN, DOWN, kernel)
    return convolution(jnp.pad(fold(x), ((0, 0), *[(1, 0)] * 3, (0, 0))), small.reshape(2, 2, 2, 8 * c, f))


def unfolded(x, kernel):
    """The transposed one: [b, z, y, x, c] and [3, 3, 3, c, f] -> [b, 2z, 2y, 2x, f]."""
    *_, c, f = kernel.shape
    small = jnp.einsum("apk,bql,crm,klmio->abcipqro", UP, UP, UP, kernel)
    return unfold(convolution(jnp.pad(x, ((0, 0), *[(0, 1)] * 3, (0, 0))), small.reshape(2, 2, 2, c, 8 * f)))

"""2-D convolutions that keep, halve or double the sides of a picture, each in the form that is fastest on CPU. Arrays are [b, y, x, c].

Transposed ones go by four phases there: XLA:CPU's own gradient of a dilated input takes 20 times as long. Few outputs of a large kernel
come from one product with all of its taps, shifted and added.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cacjax.models import conv

PHASES = 32  # outputs from which a transposed convolution goes by phases
TAPS = 64  # most numbers that a pixel becomes in `by_taps`: then one product is faster than a convolution


class Conv2D(nn.Module):
    """Convolution of odd size: "same", stride 2 ("down"), or its transpose ("up", PyTorch's padding 1, output_padding 1) for size 3.

    padding: "zero" or "reflect"; a transposed one has none. Sides must be even for "down". Kernel [k, k, c, f] and bias are drawn as
    PyTorch does; with `spread` from N(0, spread) and 0.
    """

    features: int
    size: int = 3
    step: str = "same"
    bias: bool = True
    padding: str = "zero"
    spread: float = 0.0

    @nn.compact
    def __call__(self, x):
        bound = 1 / np.sqrt(self.size**2 * (self.features if self.step == "up" else x.shape[-1]))
        drawn = nn.initializers.normal(self.spread) if self.spread else conv.uniform(bound)
        kernel = self.param("kernel", drawn, (self.size, self.size, x.shape[-1], self.features))
        if self.step == "up":
            x = doubled(x, kernel)
        else:
            mode = {"zero": "constant", "reflect": "reflect"}[self.padding]
            x = jnp.pad(x, ((0, 0), *[(self.size // 2,) * 2] * 2, (0, 0)), mode=mode)
            x = valid(x, kernel, stride={"same": 1, "down": 2}[self.step])
        if not self.bias:
            return x
        return conv.add(x, self.param("bias", nn.initializers.zeros if self.spread else conv.uniform(bound), (self.features,)))


def valid(x, kernel, stride: int = 1):
    """Convolution without padding: [b, y, x, c] and [k, k, c, f] -> [b, (y - k) / stride + 1, .., f]."""
    if jax.default_backend() != "cpu":
        return conv.convolution(x, kernel, stride=stride)
    few = len(kernel) ** 2 * kernel.shape[-1] <= TAPS and kernel.shape[-1] < 8
    return by_taps(x, kernel) if few and stride == 1 else conv.arranged(x, kernel, 1, stride)


@jax.custom_vjp
def by_taps(x, kernel):
    """`valid` as one product to all taps of every pixel, which are shifted and added; with the gradient of a convolution."""
    k, _, c, f = kernel.shape
    taps = (x @ kernel.transpose(2, 0, 1, 3).reshape(c, k * k * f)).reshape(*x.shape[:3], k, k, f)
    rows = sum(taps[:, :, i : x.shape[2] - k + 1 + i, :, i] for i in range(k))
    return sum(rows[:, i : x.shape[1] - k + 1 + i, :, i] for i in range(k))


by_taps.defvjp(lambda x, kernel: (by_taps(x, kernel), (x, kernel)), lambda kept, slope: jax.vjp(conv.arranged, *kept)[1](slope))


def doubled(x, kernel):
    """Transposed convolution of size 3 and stride 2: [b, y, x, c] and [3, 3, c, f] -> [b, 2y, 2x, f].

    Along an axis out[2i] = w1 x[i] and out[2i + 1] = w2 x[i] + w0 x[i + 1], the last x being 0.
    """
    if jax.default_backend() != "cpu":
        return dilated(x, kernel)
    return by_adjoint(x, kernel) if kernel.shape[-1] < PHASES else by_phases(x, kernel)


def dilated(x, kernel):
    """`doubled` as a convolution of an input with zeros between its pixels."""
    axes = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel[::-1, ::-1], (1, 1), ((1, 2), (1, 2)), lhs_dilation=(2, 2), dimension_numbers=axes)


@jax.custom_vjp
def by_adjoint(x, kernel):
    """`dilated`, whose gradients are those of the convolution of stride 2 that it is the transpose of."""
    return dilated(x, kernel)


def _adjoint(kept, slope):
    x, kernel = kept
    before = jnp.pad(slope, ((0, 0), (1, 0), (1, 0), (0, 0)))
    to_x, to_kernel = jax.vjp(lambda kernel: conv.arranged(before, kernel.transpose(0, 1, 3, 2), 1, 2), kernel)
    return to_x, *to_kernel(x)


by_adjoint.defvjp(lambda x, kernel: (by_adjoint(x, kernel), (x, kernel)), _adjoint)


def by_phases(x, kernel):
    """`doubled` as four convolutions of 1, 2, 2 and 4 taps, one for each pixel that a pixel becomes."""
    b, height, width, _ = x.shape
    ahead = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    taps = ((1,), (2, 0))  # of even and of odd rows or columns

    def phase(row, column):
        own = kernel[np.ix_(taps[row], taps[column])]
        return conv.arranged(ahead[:, : height + row, : width + column], own)

    rows = [jnp.stack([phase(row, 0), phase(row, 1)], 3).reshape(b, height, 2 * width, -1) for row in (0, 1)]
    return jnp.stack(rows, 2).reshape(b, 2 * height, 2 * width, -1)

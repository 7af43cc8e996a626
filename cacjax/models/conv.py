"""The shared 2-D convolution: VALID, stride 1, channels last, PyTorch's default initialisation; its form is chosen here.

XLA's plain convolution is the fastest exact form on CPU once the option in `cacjax.backend` is set, but not inside a loop: there
the gradients run up to 3 times slower (20 critic updates in a scan: 0.31 s as convolutions, 0.10 s unrolled, which compiles for
minutes). As shifted slices and one matrix product they keep their speed in a loop.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def uniform(bound: float):
    """Return an initialiser that draws from U(-bound, bound)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
    """Convolution [b, h, w, c] -> [b, h - d(k-1), w - d(k-1), features].

    Kernel and bias ~ U(+-1/sqrt(fan_in)), as PyTorch draws them; with `he` the kernel ~ U(+-sqrt(6/fan_in)) and the bias is zero.
    `looped` says that the gradient is taken inside a compiled loop.
    """

    features: int
    size: int = 3
    dilation: int = 1
    he: bool = False
    looped: bool = False

    @nn.compact
    def __call__(self, x):
        fan_in = self.size**2 * x.shape[-1]
        bound = 1 / np.sqrt(fan_in)
        kernel_init = uniform(np.sqrt(6) * bound if self.he else bound)
        kernel = self.param("kernel", kernel_init, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros if self.he else uniform(bound), (self.features,))
        as_product = self.looped and jax.default_backend() == "cpu"
        return (product if as_product else convolution)(x, kernel, self.dilation) + bias


def convolution(x, kernel, dilation: int):
    """XLA's convolution: [b, h, w, c] and [k, k, c, f] -> [b, h', w', f]."""
    axes = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", rhs_dilation=(dilation, dilation), dimension_numbers=axes)


def product(x, kernel, dilation: int):
    """The same as shifted slices side by side times the kernel as a matrix."""
    size = len(kernel)
    h, w = (side - dilation * (size - 1) for side in x.shape[1:3])
    shifts = [(dilation * i, dilation * j) for i in range(size) for j in range(size)]
    columns = jnp.concatenate([x[:, i : i + h, j : j + w] for i, j in shifts], axis=-1)
    return columns @ kernel.reshape(-1, kernel.shape[-1])

"""The shared 2-D convolution: VALID, stride 1, channels last, PyTorch's default initialisation; its form is chosen here.

On CPU the gradients are written out as convolutions in the one arrangement of axes that XLA:CPU's library path takes. XLA rearranges
others only at a program's top level: in a loop or a conditional a plain gradient falls back to scalar code (one critic update at
published widths: 40 s in a scan, 1.0 s with the gradients below, the same as outside).
"""

import functools

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
    """

    features: int
    size: int = 3
    dilation: int = 1
    he: bool = False

    @nn.compact
    def __call__(self, x):
        fan_in = self.size**2 * x.shape[-1]
        bound = 1 / np.sqrt(fan_in)
        kernel_init = uniform(np.sqrt(6) * bound if self.he else bound)
        kernel = self.param("kernel", kernel_init, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros if self.he else uniform(bound), (self.features,))
        form = arranged if jax.default_backend() == "cpu" else convolution
        return form(x, kernel, self.dilation) + bias


def convolution(x, kernel, dilation: int = 1, *, stride: int = 1, padding: int = 0):
    """XLA's convolution: [b, h, w, c] and [k, k, c, f] -> [b, h', w', f]."""
    axes = ("NHWC", "HWIO", "NHWC")
    pads = [(padding, padding)] * 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, rhs_dilation=(dilation, dilation), dimension_numbers=axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def arranged(x, kernel, dilation: int = 1):
    """The same with gradients whose axes are arranged for XLA:CPU."""
    return convolution(x, kernel, dilation)


def _forward(x, kernel, dilation):
    return convolution(x, kernel, dilation), (x, kernel)


def _backward(dilation, residuals, slope):
    x, kernel = residuals
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    to_x = convolution(slope, flipped, dilation, padding=dilation * (len(kernel) - 1))
    to_kernel = convolution(x.transpose(3, 1, 2, 0), slope.transpose(1, 2, 0, 3), stride=dilation)
    return to_x, to_kernel.transpose(1, 2, 0, 3)


arranged.defvjp(_forward, _backward)

"""The shared 2-D convolution: VALID, stride 1, channels last, PyTorch's default initialisation; its form is chosen here.

On CPU the gradients are written out as convolutions in the one arrangement of axes that XLA:CPU's library path takes. XLA rearranges
others only at a program's top level: in a loop or a conditional a plain gradient falls back to scalar code (one critic update at
published widths: 40 s in a scan, 1.0 s with the gradients below, the same as outside). Wide 3x3 layers go by sums of rows (see
winograd.py), a few samples at a time. Elsewhere XLA's convolution and its own gradients are taken.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cacjax.models import winograd

WINOGRAD, WINOGRAD_GRADIENT = 32, 64  # channels from which sums of rows pay on CPU: for outputs, for the kernel's gradient
CACHED = 2**19  # numbers of an input that are worked on at once, so that all that is made of them stays in the cache


def uniform(bound: float):
    """Return an initialiser that draws from U(-bound, bound)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def he(key, shape, dtype=jnp.float32):
    """Draw from U(-sqrt(6 / fan in), sqrt(6 / fan in)) (He 2015), the last axis being the outputs."""
    bound = np.sqrt(6 / np.prod(shape[:-1]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
    """Convolution [b, h, w, c] -> [b, h - d(k-1), w - d(k-1), features], with `stride` every second (third, ..) of them.

    Kernel and bias ~ U(+-1/sqrt(fan_in)), as PyTorch draws them; with `he` the kernel ~ U(+-sqrt(6/fan_in)) and the bias is zero.
    """

    features: int
    size: int = 3
    dilation: int = 1
    he: bool = False
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        fan_in = self.size**2 * x.shape[-1]
        bound = 1 / np.sqrt(fan_in)
        kernel_init = uniform(np.sqrt(6) * bound if self.he else bound)
        kernel = self.param("kernel", kernel_init, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros if self.he else uniform(bound), (self.features,))
        form = arranged if jax.default_backend() == "cpu" else convolution
        return add(form(x, kernel, self.dilation, self.stride), bias)


def same(x, kernel):
    """Convolution of odd size with zero padding and stride 1: [b, h, w, c] and [k, k, c, f] -> [b, h, w, f]."""
    form = arranged if jax.default_backend() == "cpu" else convolution
    return form(x, kernel, 1, 1, len(kernel) // 2)


def convolution(x, kernel, dilation: int = 1, stride: int = 1, padding=0):
    """XLA's convolution: [b, h, w, c] and [k, l, c, f] -> [b, h', w', f]; padding: zeros on both sides, a number or one an axis."""
    axes = ("NHWC", "HWIO", "NHWC")
    pads = [(n, n) for n in _each_axis(padding)]
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, rhs_dilation=(dilation, dilation), dimension_numbers=axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def arranged(x, kernel, dilation: int = 1, stride: int = 1, padding=0):
    """The same in the form that is fastest on CPU, with gradients to match; padding with stride 1 only."""
    return _fastest(x, kernel, dilation, padding) if stride == 1 else convolution(x, kernel, dilation, stride)


def _forward(x, kernel, dilation, stride, padding):
    return arranged(x, kernel, dilation, stride, padding), (x, kernel)


def _backward(dilation, stride, padding, residuals, slope):
    x, kernel = residuals
    reach = [dilation * (n - 1) for n in kernel.shape[:2]]
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    if stride == 1:
        around = tuple(r - n for r, n in zip(reach, _each_axis(padding)))
        return _fastest(slope, flipped, dilation, around), kernel_gradient(x, slope, dilation, padding)
    unread = [(n - r - 1) % stride for n, r in zip(x.shape[1:3], reach)]  # rows and columns at the end
    pads = ((0, 0, 0), *((r, r + end, stride - 1) for r, end in zip(reach, unread)), (0, 0, 0))
    to_x = _fastest(lax.pad(slope, jnp.zeros((), slope.dtype), pads), flipped, dilation)
    # Between the pixels that it reads the stride dilates the slope, and the dilation makes strides.
    read = x[:, : x.shape[1] - unread[0], : x.shape[2] - unread[1]]
    to_kernel = convolution(read.transpose(3, 1, 2, 0), slope.transpose(1, 2, 0, 3), stride, dilation)
    return to_x, to_kernel.transpose(1, 2, 0, 3)


arranged.defvjp(_forward, _backward)


def kernel_gradient(x, slope, dilation: int = 1, padding=0):
    """Gradient [k, l, c, f] of the kernel of a convolution of stride 1, from its input and the slope of its output."""
    size = [(n + 2 * around - m) // dilation + 1 for n, m, around in zip(x.shape[1:3], slope.shape[1:3], _each_axis(padding))]
    if suits_winograd(x.shape, (*size, x.shape[-1], slope.shape[-1]), dilation, padding, least=WINOGRAD_GRADIENT):
        return winograd.kernel_gradient(_padded(x, padding), slope, dilation)
    to_kernel = convolution(x.transpose(3, 1, 2, 0), slope.transpose(1, 2, 0, 3), 1, dilation, padding)
    return to_kernel.transpose(1, 2, 0, 3)


@jax.custom_vjp
def add(x, bias):
    """[b, h, w, c] + [c], whose gradient takes `sums`."""
    return x + bias


add.defvjp(lambda x, bias: (x + bias, None), lambda _, slope: (slope, sums(slope.reshape(1, -1, slope.shape[-1]))[0, 0]))


def sums(x):
    """Sums [g, 1, c] of [g, n, c] over n: on CPU as a product with ones, for which XLA takes a third of the time of its own sum."""
    if jax.default_backend() != "cpu":
        return x.sum(1, keepdims=True)
    return jnp.einsum("n,gnc->gc", jnp.ones(x.shape[1], x.dtype), x)[:, None]


def _fastest(x, kernel, dilation, padding=0):
    if not suits_winograd(x.shape, kernel.shape, dilation, padding, least=WINOGRAD):
        return convolution(x, kernel, dilation, 1, padding)
    x = _padded(x, padding)
    at_once = max(1, CACHED // x[0].size)
    if len(x) <= at_once or len(x) % at_once:
        return winograd.convolve(x, kernel, dilation)
    parts = lax.map(lambda part: winograd.convolve(part, kernel, dilation), x.reshape(-1, at_once, *x.shape[1:]))
    return parts.reshape(len(x), *parts.shape[2:])


def _padded(x, padding):
    return jnp.pad(x, ((0, 0), *((n, n) for n in _each_axis(padding)), (0, 0)))


def _each_axis(padding) -> tuple[int, int]:
    """Padding along y and x."""
    return (padding, padding) if isinstance(padding, int) else tuple(padding)


def suits_winograd(shape, kernel, dilation: int, padding=0, *, least: int) -> bool:
    """Whether sums of rows pay on CPU: 3x3, at least `least` channels on both sides, at most a tenth of the rows padding."""
    rows = shape[1] + 2 * _each_axis(padding)[0] - 2 * dilation
    added = -(-rows // (4 * dilation)) * 4 * dilation
    return tuple(kernel[:2]) == (3, 3) and min(kernel[2:]) >= least and added <= 1.1 * rows

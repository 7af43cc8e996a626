"""A 3x3 convolution by rows of four at the price of two: Winograd's F(4, 3) along the first image axis (Lavin and Gray 2016).

Four outputs d rows apart read six rows d apart. Six sums of those rows, each convolved along the other axis only with one sum of the
kernel's rows, and four sums of the six results give the outputs: 6 products where the direct form takes 12. Exact in real numbers;
in float32 it differs from the direct form by up to 3e-6 of the largest value. Along both axes the
sums cost more than they save. Arrays are [b, h, w, c], channels last; VALID, stride 1, dilation d.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax

ROWS = np.array(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
)
KERNEL = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
OUTPUTS = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


def convolve(x, kernel, dilation: int = 1):
    """[b, h, w, c] and [3, 3, c, f] -> [b, h - 2d, w - 2d, f]. Fastest where 4d divides h - 2d: other heights are padded first."""
    rows, groups = _whole(x.shape[1], dilation)
    b, h, w, _ = x.shape
    sums = _row_sums(jnp.pad(x, ((0, 0), (0, rows - h), (0, 0), (0, 0))), dilation)
    products = [_along_w(s, k, rhs_dilation=(1, dilation)) for s, k in zip(sums, _kernel_sums(kernel))]
    shape = (b, groups, dilation, w - 2 * dilation, kernel.shape[-1])
    outputs = _combine(OUTPUTS, [p.reshape(shape) for p in products])
    return jnp.stack(outputs, 2).reshape(b, 4 * dilation * groups, *shape[3:])[:, : h - 2 * dilation]


def kernel_gradient(x, slope, dilation: int = 1):
    """Gradient [3, 3, c, f] of the kernel from x [b, h, w, c] and the slope of the outputs [b, h - 2d, w - 2d, f]: the transpose."""
    rows, groups = _whole(x.shape[1], dilation)
    b, h, w, f = slope.shape
    sums = _row_sums(jnp.pad(x, ((0, 0), (0, rows - x.shape[1]), (0, 0), (0, 0))), dilation)
    slope = jnp.pad(slope, ((0, 0), (0, 4 * dilation * groups - h), (0, 0), (0, 0)))
    slopes = _combine(OUTPUTS.T, list(jnp.moveaxis(slope.reshape(b, groups, 4, dilation, w, f), 2, 0)))
    slopes = [s.reshape(b, groups * dilation, w, f) for s in slopes]
    # Axes as XLA:CPU's library path takes them: channels for samples, the image for the window.
    pairs = zip((s.transpose(3, 1, 2, 0) for s in sums), (s.transpose(1, 2, 0, 3) for s in slopes))
    products = jnp.stack([_along_w(s, t, window_strides=(1, dilation))[:, 0] for s, t in pairs])
    return jnp.einsum("ai,acjf->ijcf", KERNEL.astype(x.dtype), products)


def _whole(h, dilation):
    """Rows that make whole groups of four outputs, and the number of groups."""
    groups = -(-(h - 2 * dilation) // (4 * dilation))
    return (4 * groups + 2) * dilation, groups


def _row_sums(x, dilation):
    """The six sums [b, groups * d, w, c] of rows."""
    b, h, w, c = x.shape
    end = h - 2 * dilation
    first, second = (part.reshape(b, -1, 4, dilation, w, c) for part in (x[:, :end], x[:, 2 * dilation :]))
    parts = [first[:, :, i] for i in range(4)] + [second[:, :, i] for i in (2, 3)]
    return [total.reshape(b, end // 4, w, c) for total in _combine(ROWS, parts)]


def _kernel_sums(kernel):
    return jnp.einsum("ai,ijcf->ajcf", KERNEL.astype(kernel.dtype), kernel)[:, None]


def _combine(matrix, parts):
    """Matrix times a list of arrays, zeros left out."""
    return [sum(float(m) * part if m != 1 else part for m, part in zip(row, parts) if m) for row in matrix]


def _along_w(x, kernel, *, window_strides=(1, 1), rhs_dilation=(1, 1)):
    axes = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, window_strides, "VALID", rhs_dilation=rhs_dilation, dimension_numbers=axes)

"""The shared 2-D convolution: VALID, stride 1, channels last, PyTorch's default initialisation.

XLA's plain convolution is the fastest exact form on CPU once the option in `cacjax.backend` is set; another form per platform
would be chosen here and nowhere else.
"""

import flax.linen as nn
import jax
import numpy as np


def uniform(bound: float):
    """Return an initialiser that draws from U(-bound, bound)."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


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
        torch_bound = 1 / np.sqrt(fan_in)
        conv = nn.Conv(
            self.features,
            (self.size, self.size),
            padding="VALID",
            kernel_dilation=self.dilation,
            kernel_init=uniform(np.sqrt(6 / fan_in) if self.he else torch_bound),
            bias_init=nn.initializers.zeros if self.he else uniform(torch_bound),
            name="conv",
        )
        return conv(x)

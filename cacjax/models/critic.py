"""The Wasserstein critic of Zhai 2022 (section 2.3): seven convolutions with batch normalisation on feature windows, one output.

It always normalises with the statistics of the batch in hand: the published code never uses its running averages, so none are kept.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from cacjax.models.conv import Conv, sums, uniform

PUBLISHED_CHANNELS = (128, 128, 256, 128, 64, 32, 1)


class BatchNorm(nn.Module):
    """Normalise [b, h, w, c] by the mean and the biased variance of each of `groups` equal parts of the batch."""

    groups: int
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        parts = x.reshape(self.groups, -1, x.shape[-1])
        mean = sums(parts) / parts.shape[1]
        variance = sums(jnp.square(parts - mean)) / parts.shape[1]
        parts = (parts - mean) * lax.rsqrt(variance + self.eps) * scale + bias
        return parts.reshape(x.shape)


class Critic(nn.Module):
    """Feature windows [b, n, n, c] -> critic values [b]; 942,653 parameters at 25 x 25 x 96.

    `groups` = 2 normalises source and target apart (the published code calls the critic on each batch), 1 together, 0 not at all. Without
    normalisation the last layer has no rectifier: of its one channel that lets everything through at some seeds and nothing at others,
    and then no gradient ever. Sows the least share of pixels that a layer's rectifiers let through, "live".
    """

    channels: tuple = PUBLISHED_CHANNELS

    @nn.compact
    def __call__(self, windows, groups: int = 1):
        x, live = windows, 1.0
        for i, channels in enumerate(self.channels):
            x = Conv(channels)(x)
            x = BatchNorm(groups)(x) if groups else x
            if groups or i < len(self.channels) - 1:
                x = nn.relu(x)
                live = jnp.minimum(live, (x > 0).mean())
        self.sow("intermediates", "live", live)
        x = x.reshape(len(x), -1)
        bound = 1 / x.shape[-1] ** 0.5
        return nn.Dense(1, kernel_init=uniform(bound), bias_init=uniform(bound))(x)[:, 0]

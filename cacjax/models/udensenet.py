"""The 2D U-DenseNet of Zhang 2018 (section 2.2.1, Figure 3): features of each slice, 12 growth channels at its full resolution.

Three dense blocks on the way in, one at the bottom, three on the way back; 707,856 parameters at growth 16. A dense block answers with
its new maps only; on the way in its input stays beside them. Normalised maps go into a 1x1 convolution, so the scale is folded into its
kernel, and the moments of a map, which every later layer of its block needs, are taken once. Arrays are [b, y, x, c].
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cacjax.models import conv
from cacjax.models.dropout import Dropout
from cacjax.models.unet import EPSILON, Normalisation, Pointwise, enlarged, halved, moments

STEM = (3, 5, 7)  # sizes of the first convolutions, beside each other
LAYERS = (3, 4, 5)  # of the dense blocks on the way in; on the way back the same in reverse
BOTTOM = 6


class UDenseNet(nn.Module):
    """Features [b, y, x, 12 growth] of [b, y, x, c], sides multiples of 8.

    order: of a layer, "bn_conv_relu" as printed, or "bn_relu_conv" (DenseNet). dropout: behind every convolution of a dense block in
    training (key "dropout"). remat: for the gradient what is inside of a block is computed again, not kept.
    """

    growth: int = 16
    dropout: float = 0.5
    order: str = "bn_conv_relu"
    remat: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        size = STEM[-1]
        kernels = [self.param(f"stem_{k}", conv.he, (k, k, x.shape[-1], self.growth)) for k in STEM]
        pads = [((size - k) // 2,) * 2 for k in STEM]
        x = conv.same(x, jnp.concatenate([jnp.pad(kernel, (p, p, (0, 0), (0, 0))) for kernel, p in zip(kernels, pads)], -1))
        kept, answers = [], []
        for i, layers in enumerate(LAYERS):
            kept.append(self._block(layers, f"in_{i}")(x, train))
            x = self._of(Transition, f"transition_{i}")(x, kept[-1], train)
        x = self._block(BOTTOM, "bottom")(x, train)
        for i, layers in reversed(list(enumerate(LAYERS))):
            finer = summed(enlarged(x, (2, 2)) + Pointwise(x.shape[-1], name=f"skip_{i}")(kept[i]))
            answers.append(self._block(layers, f"back_{i}")(finer, train))
            if i:
                x = answers[-1] + Pointwise(layers * self.growth, name=f"past_{i}")(finer)
        return jnp.concatenate([enlarged(each, (2**i, 2**i)) for i, each in zip((2, 1, 0), answers)], -1)

    def _block(self, layers, name):
        return self._of(DenseBlock, name, layers, self.growth, self.dropout, self.order)

    def _of(self, kind, name, *options):
        kind = nn.remat(kind, static_argnums=kind.TRAIN) if self.remat else kind
        return kind(*options, name=name)


@jax.custom_vjp
def summed(x):
    """x; the sum that is its gradient is worked out once, and not in the order of each product that reads it, which takes far longer."""
    return x


summed.defvjp(lambda x: (x, None), lambda _, slope: (lax.optimization_barrier(slope),))


class DenseBlock(nn.Module):
    """`layers` times `growth` new maps, each layer seeing the input and all new maps before it: normalisation, 1x1 convolution to four
    times the growth, rectifier, normalisation, 3x3 convolution, rectifier; or the rectifiers before the convolutions."""

    layers: int
    growth: int
    dropout: float
    order: str

    TRAIN = 2

    @nn.compact
    def __call__(self, x, train: bool):
        if self.order not in ("bn_conv_relu", "bn_relu_conv"):
            raise ValueError(f"order must be bn_conv_relu or bn_relu_conv, got {self.order!r}")
        relu_first = self.order == "bn_relu_conv"
        behind, drop = (lambda y: y) if relu_first else jax.nn.relu, Dropout(self.dropout, deterministic=not train)
        channels, new = x.shape[-1], None
        mean, variance = Moments(name="moments_in")(x, train)
        for i in range(self.layers):
            if i:
                of_last = Moments(name=f"moments_{i}")(last, train)  # noqa: F821  (of the layer before)
                mean, variance = (jnp.concatenate(pair) for pair in zip((mean, variance), of_last))
            kernel = self.param(f"narrow_{i}", conv.he, (channels + i * self.growth, 4 * self.growth))
            scale = self.param(f"scale_{i}", nn.initializers.ones, mean.shape) * lax.rsqrt(variance + EPSILON)
            shift = self.param(f"shift_{i}", nn.initializers.zeros, mean.shape) - mean * scale
            y = drop(behind(_narrow(x, new, kernel, scale, shift, relu_first)))
            y = Normalisation(name=f"norm_{i}")(y, train)
            wide = self.param(f"wide_{i}", conv.he, (3, 3, 4 * self.growth, self.growth))
            last = drop(behind(conv.same(jax.nn.relu(y) if relu_first else y, wide)))
            new = last if new is None else jnp.concatenate([new, last], -1)
        return new


def _narrow(x, new, kernel, scale, shift, relu_first):
    """(scale * [x, new] + shift) @ kernel, rectified before the product where `relu_first`; new may be None."""
    n = x.shape[-1]
    parts = [(x, slice(0, n))] + ([] if new is None else [(new, slice(n, None))])
    if relu_first:
        return sum(jax.nn.relu(part * scale[at] + shift[at]) @ kernel[at] for part, at in parts)
    return sum(part @ (scale[:, None] * kernel)[at] for part, at in parts) + shift @ kernel


class Moments(nn.Module):
    """(mean, variance) [c] of maps; outside of training the running ones."""

    @nn.compact
    def __call__(self, x, train: bool):
        return moments(self, x, train)


class Transition(nn.Module):
    """What goes down: block input and new maps beside each other, normalised, rectified, a 1x1 convolution of as many channels, the largest
    of 2x2."""

    TRAIN = 3

    @nn.compact
    def __call__(self, x, new, train: bool):
        both = jnp.concatenate([x, new], -1)
        return halved(Pointwise(both.shape[-1])(jax.nn.relu(Normalisation()(both, train))))

"""Dropout (Srivastava 2014) of large maps: where half of the numbers stay, a random bit decides each, not 32."""

import flax.linen as nn
import jax
import jax.numpy as jnp

WORD = 32


class Dropout(nn.Module):
    """Zero in place of a share `rate` of the numbers of [.., c], the others divided by 1 - rate; nothing where `deterministic`.

    XLA:CPU draws what depends on a key alone before all else: at 32 bits a number those of a published CAC-Net step were 10 GiB.
    """

    rate: float
    deterministic: bool = False

    @nn.compact
    def __call__(self, x):
        if self.deterministic or self.rate == 0:
            return x
        key = self.make_rng("dropout")
        keep = _halves(key, x.shape) if self.rate == 0.5 else jax.random.bernoulli(key, 1 - self.rate, x.shape)
        return jnp.where(keep, x / (1 - self.rate), 0)


def _halves(key, shape):
    """Random bools of a shape, each a bit of its own of words of 32, which no two positions but along the last axis share."""
    words = jax.random.bits(key, (*shape[:-1], -(-shape[-1] // WORD)), jnp.uint32)
    bits = (words[..., None] >> jnp.arange(WORD, dtype=jnp.uint32)) & 1
    return (bits > 0).reshape(*shape[:-1], -1)[..., : shape[-1]]

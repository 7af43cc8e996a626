"""The second-stage CNN of Lessmann 2018: whether a voxel that the first stage calls calcium is calcium, from three patches around it.

Two orders are on record. `norm` "after" is the PyTorch port by Zhai et al.: batch normalisation after the activation. "before" is the
ancestor: normalisation before it, one set of kernels for the three orientations, and a second dropout before the output.
"""

import flax.linen as nn
import jax.numpy as jnp

from cacjax.models.dilated import elu

PUBLISHED_WIDTHS = (24, 32, 48, 32)
SIZES = (5, 3, 3, 1)  # of kernels; a pooling of 2 follows all but the last
EPS = 1e-4  # of batch normalisation, as Lasagne's
NORMS = ("after", "before")


class Undilated(nn.Module):
    """Logits [b, 2] (no calcium, calcium) of patches [b, 3, h, w, 1]; 956,522 numbers at 65 x 65 with the statistics of the layers."""

    widths: tuple = PUBLISHED_WIDTHS
    hidden: int = 256
    dropout: float = 0.5
    norm: str = "after"

    @nn.compact
    def __call__(self, patches, train: bool = False):
        drop = nn.Dropout(self.dropout, deterministic=not train)
        sets = 1 if self.norm == "before" else 3
        kernels = [[_convolution(w, k, f"conv_{i}_{j}") for j, (w, k) in enumerate(zip(self.widths, SIZES))] for i in range(sets)]
        maps = []
        for plane in range(3):
            x = patches[:, plane]
            for layer, kernel in enumerate(kernels[plane % sets]):
                x = self._activated(elu, kernel(x), train, f"norm_{plane}_{layer}")
                x = pool(x) if layer < len(self.widths) - 1 else x
            maps.append(x.reshape(len(x), -1))
        hidden = nn.Dense(self.hidden, use_bias=False, kernel_init=nn.initializers.orthogonal())(drop(jnp.concatenate(maps, -1)))
        hidden = self._activated(nn.relu, hidden, train, "norm")
        return nn.Dense(2, kernel_init=nn.initializers.orthogonal())(drop(hidden) if self.norm == "before" else hidden)

    def _activated(self, activation, x, train, name):
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=EPS, name=name)
        return activation(norm(x)) if self.norm == "before" else norm(activation(x))


def _convolution(features, size, name):
    return nn.Conv(features, (size, size), padding="VALID", use_bias=False, kernel_init=nn.initializers.orthogonal(), name=name)


def pool(x):
    """The largest of 2 x 2 pixels, [b, h, w, c] -> [b, h // 2, w // 2, c]; an odd last row or column is left out."""
    h, w = x.shape[1] // 2, x.shape[2] // 2
    return x[:, : 2 * h, : 2 * w].reshape(len(x), h, 2, w, 2, -1).max((2, 4))

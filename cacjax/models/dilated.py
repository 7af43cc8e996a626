"""The dilated CNN of Lessmann 2018, as Zhai 2022 uses it: one subnet per plane orientation, auxiliary heads, one main head.

Planes are [b, h, w, slab]: one slice of the axial (y, x), coronal (z, x) or sagittal (z, y) plane through a voxel; with slab > 1
the neighbouring slices stand in the channels. A plane of n + 2 * margin pixels gives n x n feature vectors.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cacjax.models.conv import Conv

CACHED = 2**20  # numbers of one layer's maps, in a plane, that are worked on at once on CPU
PUBLISHED_DILATIONS = (1, 1, 2, 4, 8, 16, 32, 1)  # 3x3 layers; receptive field 131 pixels (Zhai 2022, section 2.2)


def margin(dilations) -> int:
    """Pixels that the subnet takes away on each side: half of its receptive field."""
    return sum(dilations)


def doubling(dilations, spacing: int = 4) -> int:
    """The layer with dilation `spacing` from which on dilations double, but for last ones of 1; len(dilations) where there is none.

    With spacing 2 instead of 4 the middle costs no less in training, and neighbours can share one layer less.
    """
    ends = len(dilations) - _ones(dilations)
    start = dilations.index(spacing) if spacing in dilations[:ends] else ends
    doubles = all(b == 2 * a for a, b in zip(dilations[start:ends], dilations[start + 1 : ends]))
    return start if start < ends and doubles else len(dilations)


def middle_pixels(dilations) -> int:
    """Pixels that the layers from `doubling(dilations)` on compute for one middle."""
    ones = _ones(dilations)
    levels = len(dilations) - ones - doubling(dilations)
    return (2 * ones + 1) ** 2 * sum((2**level - 1) ** 2 for level in range(1, levels + 1)) + sum((2 * i + 1) ** 2 for i in range(ones))


def _ones(dilations) -> int:
    """Last layers of dilation 1."""
    return next((i for i, d in enumerate(reversed(dilations)) if d != 1), len(dilations))


@jax.custom_vjp
def elu(x):
    """ELU whose gradient is taken from its output: one array less to keep, one exponential less to compute.

    Not by expm1, which takes twice as long on CPU: in float32 both are off by 5e-8 at most.
    """
    return jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0)) - 1)


elu.defvjp(lambda x: (elu(x),) * 2, lambda y, slope: (slope * jnp.where(y > 0, 1, y + 1),))


class Subnet(nn.Module):
    """3x3 dilated convolutions and a 1x1, ELU after each: [b, h, w, slab] -> [b, h - 2m, w - 2m, width].

    Layers start..stop - 1 alone take and give what stands between layers. With `middle` the layers from `start` on are computed for
    the middle of windows [b, n, n, width] of their receptive field, only at the pixels that it depends on: where dilations double
    these are every dilation-th pixel around the 3 x 3 (or 1, for no last layers of dilation 1) that the last layer reads, and the
    layer on them is a plain one of stride 2. Exact.
    """

    width: int
    dilations: tuple
    he: bool = False

    @nn.compact
    def __call__(self, x, start: int = 0, stop: int | None = None, *, middle: bool = False):
        ones = _ones(self.dilations)
        side, ends = 2 * ones + 1, len(self.dilations) - ones
        if middle:
            x = _phases(x, self.dilations[start], side)
        for i, dilation in list(enumerate(self.dilations))[start:stop]:
            if middle and i == ends:
                x = x.reshape(-1, side, side, self.width)
            how = {"stride": 2} if middle and i < ends else {"dilation": dilation}
            x = elu(Conv(self.width, he=self.he, name=f"Conv_{i}", **how)(x))
        if stop is not None:
            return x
        return elu(Conv(self.width, size=1, he=self.he, name=f"Conv_{len(self.dilations)}")(x))


def _phases(x, spacing: int, side: int):
    """Every `spacing`-th pixel of [b, n, n, c] from each of the first side x side ones on: [b * side * side, m, m, c]."""
    n = x.shape[1] - side + 1
    parts = [x[:, i : i + n : spacing, j : j + n : spacing] for i in range(side) for j in range(side)]
    return jnp.stack(parts, 1).reshape(-1, *parts[0].shape[1:])


class Classifier(nn.Module):
    """Main head, the "neck": 1x1 convolutions on [b, h, w, planes * width] -> logits [b, h, w, classes]."""

    hidden: int
    classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, features, train: bool = False):
        drop = nn.Dropout(self.dropout, deterministic=not train)
        hidden = elu(Conv(self.hidden, size=1, he=True)(drop(features)))
        return Conv(self.classes, size=1, he=True)(drop(hidden))


class AuxiliaryHead(nn.Module):
    """Deep supervision of one subnet: dropout and a 1x1 convolution to the class logits."""

    classes: int
    dropout: float

    @nn.compact
    def __call__(self, features, train: bool = False):
        return Conv(self.classes, size=1)(nn.Dropout(self.dropout, deterministic=not train)(features))


class Dilated(nn.Module):
    """Subnets, auxiliary heads and main head; 212,348 parameters as published (generator 198,336, main head 13,319).

    `dropout` acts in the auxiliary heads, `main_dropout` in the main head (0 in the ancestor's training). `he` draws the subnets'
    weights as the ancestor does (He-uniform, zero bias) instead of by PyTorch's default.
    """

    width: int = 32
    dilations: tuple = PUBLISHED_DILATIONS
    hidden: int = 128
    classes: int = 7
    planes: int = 3
    dropout: float = 0.35
    main_dropout: float = 0.0
    he: bool = False

    def setup(self):
        self.subnets = [Subnet(self.width, self.dilations, self.he) for _ in range(self.planes)]
        self.auxiliary = [AuxiliaryHead(self.classes, self.dropout) for _ in range(self.planes)]
        self.classifier = Classifier(self.hidden, self.classes, self.main_dropout)

    def plane(self, x, index: int):
        """Features of one orientation: [b, h, w, slab] -> [b, h - 2m, w - 2m, width]."""
        return self.subnets[index](x)

    def early(self, x, index: int, stop: int):
        """What layer `stop` of one orientation sees: [b, h, w, slab] -> [b, h', w', width]."""
        return self.subnets[index](x, 0, stop)

    def late(self, windows, index: int, start: int):
        """Features [b, width] of the middle of windows [b, n, n, width] of what layer `start` sees, n = 2 * margin(rest) + 1."""
        return self.subnets[index](windows, start, middle=True)[:, 0, 0]

    def features(self, x):
        """Features of all orientations side by side: [b, planes, h, w, slab] -> [b, n, n, planes * width]."""
        return jnp.concatenate([subnet(x[:, i]) for i, subnet in enumerate(self.subnets)], axis=-1)

    def features_in_parts(self, x):
        """The same, on CPU only as many samples at a time as have maps that stay in its cache."""
        return self._in_parts("features", x)

    def centre_in_parts(self, x):
        """`features_at_centre` likewise."""
        return self._in_parts("features_at_centre", x)

    def _in_parts(self, method, x):
        most = max(1, CACHED // (x.shape[2] * x.shape[3] * self.width))
        at_once = next(n for n in range(min(most, len(x)), 0, -1) if len(x) % n == 0)
        if jax.default_backend() != "cpu" or at_once == len(x) or self.is_initializing():
            return getattr(self, method)(x)
        module, variables = self.unbind()
        maps = lax.map(lambda part: module.apply(variables, part, method=method), x.reshape(-1, at_once, *x.shape[1:]))
        return maps.reshape(-1, *maps.shape[2:])

    def features_at_centre(self, x):
        """Features [b, 1, 1, planes * width] of the middle of planes [b, planes, h, w, slab], at a third of the price of all of them."""
        start, cut = doubling(self.dilations), x.shape[2] // 2 - margin(self.dilations)
        if start == len(self.dilations):
            return centre(self.features(x))
        x = x[:, :, cut : cut + 2 * margin(self.dilations) + 1, cut : cut + 2 * margin(self.dilations) + 1]
        parts = [self.late(self.early(x[:, i], i, start), i, start) for i in range(self.planes)]
        return jnp.concatenate(parts, axis=-1)[:, None, None]

    def classify(self, features, train: bool = False):
        """Class logits of feature vectors [b, h, w, planes * width]."""
        return self.classifier(features, train)

    def auxiliary_logits(self, features, train: bool = False):
        """Logits [b, planes, n, n, classes] of the auxiliary heads, each on its own plane's features."""
        parts = jnp.split(features, self.planes, axis=-1)
        return jnp.stack([head(part, train) for head, part in zip(self.auxiliary, parts)], axis=1)

    def __call__(self, x, train: bool = False):
        """Return main logits at the centre voxel [b, 1, 1, classes] and auxiliary logits [b, planes, n, n, classes]."""
        features = self.features(x)
        return self.classify(centre(features), train), self.auxiliary_logits(features, train)


def centre(maps):
    """The middle pixel of maps [b, n, n, c] as [b, 1, 1, c]: the voxel that all orientations share."""
    middle = maps.shape[1] // 2
    return maps[:, middle : middle + 1, middle : middle + 1]

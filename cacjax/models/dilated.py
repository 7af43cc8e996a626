"""The dilated CNN of Lessmann 2018, as Zhai 2022 uses it: one subnet per plane orientation, auxiliary heads, one main head.

Planes are [b, h, w, slab]: one slice of the axial (y, x), coronal (z, x) or sagittal (z, y) plane through a voxel; with slab > 1
the neighbouring slices stand in the channels. A plane of n + 2 * margin pixels gives n x n feature vectors.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cacjax.models.conv import Conv

PUBLISHED_DILATIONS = (1, 1, 2, 4, 8, 16, 32, 1)  # 3x3 layers; receptive field 131 pixels (Zhai 2022, section 2.2)


def margin(dilations) -> int:
    """Pixels that the subnet takes away on each side: half of its receptive field."""
    return sum(dilations)


class Subnet(nn.Module):
    """3x3 dilated convolutions and a 1x1, ELU after each: [b, h, w, slab] -> [b, h - 2m, w - 2m, width]."""

    width: int
    dilations: tuple
    he: bool = False

    @nn.compact
    def __call__(self, x):
        for dilation in self.dilations:
            x = nn.elu(Conv(self.width, dilation=dilation, he=self.he)(x))
        return nn.elu(Conv(self.width, size=1, he=self.he)(x))


class Classifier(nn.Module):
    """Main head, the "neck": 1x1 convolutions on [b, h, w, planes * width] -> logits [b, h, w, classes]."""

    hidden: int
    classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, features, train: bool = False):
        drop = nn.Dropout(self.dropout, deterministic=not train)
        hidden = nn.elu(Conv(self.hidden, size=1, he=True)(drop(features)))
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

    def features(self, x):
        """Features of all orientations side by side: [b, planes, h, w, slab] -> [b, n, n, planes * width]."""
        return jnp.concatenate([subnet(x[:, i]) for i, subnet in enumerate(self.subnets)], axis=-1)

    def features_by_sample(self, x):
        """The same a sample at a time on CPU, whose cache holds one sample's maps but not a batch's."""
        if jax.default_backend() != "cpu" or len(x) == 1 or self.is_initializing():
            return self.features(x)
        module, variables = self.unbind()
        return lax.map(lambda sample: module.apply(variables, sample[None], method="features")[0], x)

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

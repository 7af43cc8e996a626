"""CAC-Net (Zhang 2018): a 2D network reads every slice, a 3D U-Net reads what it says of all of them; and the networks of its Table 4.

24,375,652 parameters as printed (growth 16, width 16). Arrays are [b, z, y, x, c].
"""

import flax.linen as nn
import jax

from cacjax.models.udensenet import UDenseNet
from cacjax.models.unet import ZHANG, Block, Pointwise, UNet, check_sides, enlarged, halved, pool_of

FORMS = ("cacnet", "udensenet", "unet3d", "twofold", "fcn3d")
LEVELS = 6  # of the 3D part, five poolings
CLASSES = 4  # background, LAD, LCX, RCA
SLICES_AT_ONCE = 4  # outside of training, where slices are independent


class CACNet(nn.Module):
    """Logits of 4 classes, [b, z, y, x, 4], and with a 3D U-Net those of its four auxiliary heads, a tuple, the finest first.

    form: "cacnet"; "udensenet", the 2D part and a 1x1 convolution; "unet3d", the 3D part alone; "twofold", a 2D U-Net of 3 levels in the
    place of the U-DenseNet; "fcn3d", the way in of the 3D part and one head, interpolated. Sides must be multiples of `sides(form, flat)`.
    growth, order: see `UDenseNet`; width, flat: see `UNet`; dropout, remat: of both.
    """

    form: str = "cacnet"
    growth: int = 16
    width: int = 16
    dropout: float = 0.5
    order: str = "bn_conv_relu"
    flat: int = 0
    remat: bool = False
    first_bias: float = 0.0
    norm: str = "group"

    @nn.compact
    def __call__(self, x, train: bool = False):
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {self.form!r}")
        check_sides(x, [pool_of(level, 3, self.flat) for level in range(LEVELS - 1)])
        first_bias = (self.first_bias, *[0.0] * (CLASSES - 1))
        if self.form in ("cacnet", "udensenet", "twofold"):
            x = self._by_slice(x, train)
        if self.form == "udensenet":
            return (Pointwise(CLASSES, bias=first_bias)(x),)
        more = {"dropout": self.dropout, "remat": self.remat, "flat": self.flat, "first_bias": first_bias, "name": "volume"}
        if self.form == "fcn3d":
            return (Encoder(self.width, **more)(x, train),)
        return UNet(self.width, LEVELS, CLASSES, heads=LEVELS - 2, **more, **ZHANG | {"norm": self.norm})(x, train)

    def _by_slice(self, x, train):
        """Features [b, z, y, x, 12 growth] of each slice."""
        more = {"dropout": self.dropout, "remat": self.remat}
        if self.form == "twofold":
            network = UNet(self.growth, 3, 12 * self.growth, **more, **ZHANG | {"norm": "batch"}, name="slices")
        else:
            network = UDenseNet(self.growth, order=self.order, **more, name="slices")
        slices = x.reshape(-1, *x.shape[2:])
        if train or self.is_initializing():
            found = network(slices, train)
        else:
            variables = network.variables
            found = jax.lax.map(lambda one: network.clone(parent=None).apply(variables, one[None])[0], slices, batch_size=SLICES_AT_ONCE)
        return found.reshape(*x.shape[:2], *found.shape[1:])


class Encoder(nn.Module):
    """The way in of a 3D U-Net, one head on its deepest level, interpolated to every voxel: a fully convolutional network."""

    width: int
    dropout: float = 0.5
    flat: int = 0
    remat: bool = False
    first_bias: float | tuple[float, ...] = 0.0

    @nn.compact
    def __call__(self, x, train: bool = False):
        kind = nn.remat(Block, static_argnums=2) if self.remat else Block
        style = ZHANG["residual"], ZHANG["norm"], ZHANG["activation"], self.dropout
        pools = [pool_of(level, 3, self.flat) for level in range(LEVELS - 1)]
        for level in range(LEVELS):
            x = kind(self.width * 2**level, *style, name=f"Block_{level}")(halved(x, pools[level - 1]) if level else x, train)
        return enlarged(Pointwise(CLASSES, bias=self.first_bias)(x), [2 ** sum(n == 2 for n in along) for along in zip(*pools)])


def sides(flat=0):
    """What the sides (z, y, x) of an input must be multiples of."""
    return (2 ** (LEVELS - 1 - flat), 2 ** (LEVELS - 1), 2 ** (LEVELS - 1))

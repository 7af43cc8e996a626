"""Patch networks on whole scans: three orthogonal patches around a voxel, and what a network says of every voxel that is asked for.

The patches are square in millimetres whatever the voxels are: `crop` reads the whole voxels that they span, `look` interpolates. In
training the crops are cut by `sampling.cut_sample`, so that both see the same. Everything has static shapes: the voxels are taken in
blocks of one size, inside a larger compiled program or step by step under a progress bar, and memory is that of one block and one
volume more. Volumes [z, y, x], crops and patches [b, 3, h, w, 1].
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cacjax.classes import AIR_HU, OUTSIDE_HU
from cacjax.inference import rectangles, steps
from cacjax.kernels import bits
from cacjax.task import is_traced

BLOCK = {"cpu": 64}  # voxels at once; 1024 elsewhere
STEP = 16  # blocks between two looks at the progress bar
ROUNDING = 1e-6  # weight that a voxel has by rounding alone
UNDECIDED = 0.5  # probability where no voxel is asked for


class Field(NamedTuple):
    """What a patch covers: pixels on a side, the distance in mm from the first to the last, and the voxels' spacing_mm (z, y, x)."""

    pixels: int
    extent_mm: float
    spacing_mm: tuple

    @property
    def margin(self) -> int:
        """Voxels to read on each side of the middle one."""
        return int(np.ceil(self.extent_mm / 2 / min(self.spacing_mm)))


def look(crops, field: Field):
    """Patches in [0, 1] of crops in HU; crops are axial, coronal, sagittal (as `sampling.PLANES`) with field.margin voxels around.

    As the ancestor's code: sagittal (z, y) and coronal (z, x) upside down, then axial (y, x); linear interpolation at `pixels` points
    from end to end of the field, air at those outside of the volume (between voxels of OUTSIDE_HU and others, too), then
    (HU + 800) / 2000, clipped.
    """
    z, y, x = (_interpolation(field, step_mm) for step_mm in field.spacing_mm)
    rows, columns = np.stack([z[::-1], z[::-1], y]), np.stack([y, x, x])
    hu = crops[:, ::-1, :, :, 0].astype(jnp.float32)
    between = lambda values: jnp.einsum("pir,bprc,pjc->bpij", rows, values, columns, precision=lax.Precision.HIGHEST)  # noqa: E731
    outside = hu == OUTSIDE_HU
    seen = jnp.where(between(outside.astype(jnp.float32)) > ROUNDING, AIR_HU, between(jnp.where(outside, AIR_HU, hu)))
    return jnp.clip((seen + 800.0) / 2000.0, 0.0, 1.0)[..., None]


def _interpolation(field, step_mm):
    """Weights [pixels, 2 * margin + 1] of the voxels along one axis."""
    at = np.linspace(-field.extent_mm / 2, field.extent_mm / 2, field.pixels) / step_mm
    voxels = np.arange(-field.margin, field.margin + 1)
    return np.maximum(0.0, 1.0 - np.abs(at[:, None] - voxels)).astype(np.float32)


def crop(hu, z, y, x, margin: int):
    """The crops around voxels [b] of a volume, OUTSIDE_HU beyond its ends: [b, 3, 2 * margin + 1, 2 * margin + 1, 1]."""
    reach = jnp.arange(-margin, margin + 1)
    z, y, x = (each[:, None, None] for each in (z, y, x))
    down, right = reach[:, None], reach
    planes = (z, y + down, x + right), (z + down, y, x + right), (z + down, y + right, x)
    crops = [hu.at[at].get(mode="fill", fill_value=OUTSIDE_HU, wrap_negative_indices=False) for at in planes]
    return jnp.stack(crops, 1)[..., None]


def probability(model, variables, hu, asked, field: Field):
    """P(calcium), float32 [z, y, x], of the voxels where `asked` (bool), UNDECIDED elsewhere.

    model: gives logits [b, 2] of patches; hu: [z, y, x] Hounsfield units. Traced arrays make it a part of the caller's program; with
    others it runs in steps and shows its progress after some seconds.
    """
    traced = is_traced(variables, hu, asked)
    hu, packed = jnp.asarray(hu), rectangles.pack(jnp.asarray(asked))
    everything = jnp.full(hu.shape, UNDECIDED, jnp.float32)
    kind = {"traced": traced, "every": STEP, "unit": "block", "title": "second stage"}
    return steps.advance(functools.partial(_advance, model, field, variables, hu, packed), _count_blocks(packed), everything, **kind)


def _count_blocks(packed):
    return -(-packed.n // _block())


def _block():
    return BLOCK.get(jax.default_backend(), 1024)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=7)
def _advance(model, field, variables, hu, packed, first, last, found):
    """`found` with the probabilities of blocks first..last - 1."""

    def one(number, found):
        rank = number * _block() + jnp.arange(_block())
        z, y, x = _place(packed, rank, hu.shape)
        logits = model.apply(variables, look(crop(hu, z, y, x, field.margin), field))
        z = jnp.where(rank < packed.n, z, hu.shape[0])  # of a last block that is not full
        return found.at[z, y, x].set(jax.nn.softmax(logits)[:, 1], mode="drop")

    return lax.fori_loop(first, last, one, found)


def _place(packed, rank, shape):
    """Indices z, y, x of the voxels of some ranks in raster order."""
    flat, before = packed.words.ravel(), packed.before.ravel()
    word = jnp.searchsorted(before, rank, side="right") - 1  # of words that begin alike only the last one has voxels
    row, column = jnp.divmod(word, packed.words.shape[2])
    z, y = jnp.divmod(row, shape[1])
    return z, y, column * bits.WORD + bits.select(flat[word], rank - before[word])

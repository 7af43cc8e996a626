"""What Lessmann 2018 makes of a detection: small lesions dropped, the others grown into what of the image they fill enough of. [z, y, x].

For the published baseline, on whole volumes: a pass per class, where `reduction.grow` counts votes by runs.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int32, UInt8

from cacjax.kernels import lesions
from cacjax.kernels.lesions import N_CLASSES
from cacjax.kernels.shapes import HU, Labels, Scalar, Spacing

SMALL_MM3, SMALL_VOXELS = 2.0, 2  # lesions of so much or less are dropped, whichever are more voxels
FILLED = 0.25  # of a component of the image: what one lesion has to fill of it to grow into all of it
LARGE_MM3 = 10_000.0  # components above it are left alone
CONNECTIVITY = 26


@jax.jit
def grow(detected: Labels, hu: HU, threshold_hu: Scalar, spacing_mm: Spacing) -> tuple[UInt8[Array, "z y x"], dict]:
    """The detection (classes 0..6) as Lessmann's code leaves it, and what each step took away: {name: count}.

    Voxels below the threshold are dropped (130 HU in the paper), then lesions, of whatever classes, of at most max(2, ceil(2 mm3)) voxels.
    Of the others each is a 26-connected component of one class; a component of the image from the threshold up of which one lesion makes
    up a quarter, and that is of at most ceil(10,000 mm3) voxels, gets the class of most of its lesions' voxels, ties to the smallest.
    Lesions in other components stay as they are.
    """
    voxel_mm3, above = jnp.prod(jnp.asarray(spacing_mm, jnp.float32)), hu >= threshold_hu
    mask = jnp.where(above, detected, 0).astype(jnp.uint8)
    whole = _label(mask > 0)
    least = jnp.maximum(SMALL_VOXELS, _voxels(SMALL_MM3, voxel_mm3))
    small = (mask > 0) & (_sizes(whole) <= least)[whole]
    component, kept = _label(above), jnp.where(small, 0, mask)

    def of_class(number):
        """Per component the voxels of a class, and of its largest lesion of that class."""
        lesion = _label(kept == number)
        own = jnp.where(lesion > 0, _sizes(lesion)[lesion], 0)
        nothing = jnp.zeros(mask.size + 1, jnp.int32)
        return nothing.at[component].add(lesion > 0), nothing.at[component].max(own)

    votes, lesions_of = jax.lax.map(of_class, jnp.arange(1, N_CLASSES))  # a loop: labelling compiles once
    size, largest = _sizes(component), lesions_of.max(0)
    filled = (largest >= FILLED * size) & (size <= _voxels(LARGE_MM3, voxel_mm3)) & (largest > 0)
    winner = (1 + jnp.argmax(votes, 0)).astype(jnp.uint8)
    grown = jnp.where(above & filled[component], winner[component], kept)
    return grown, {"below_threshold": ((detected > 0) & ~above).sum(), "too_small": _number(whole, small)}


def _label(mask):
    return lesions.label(mask, connectivity=CONNECTIVITY)[0]


def _sizes(labels) -> Int32[Array, " numbers"]:
    """Voxels of each number."""
    return jnp.zeros(labels.size + 1, jnp.int32).at[labels].add(1)


def _voxels(mm3, voxel_mm3):
    """A volume in whole voxels, rounded up; a part in a million less, lest float32 make one more of a whole number."""
    return jnp.ceil(mm3 / voxel_mm3 * (1 - 1e-6)).astype(jnp.int32)


def _number(labels, chosen):
    """How many of the labels 1.. have a chosen voxel."""
    return jnp.zeros(labels.size + 1, bool).at[jnp.where(chosen, labels, 0)].set(True)[1:].sum()

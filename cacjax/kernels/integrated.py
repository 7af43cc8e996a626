"""Calcium without a threshold: integrated mass, volume fraction and spatial weighting. Arrays of any shape, in HU; jit and vmap.

Source: integrated mass and volume fraction of Black 2023 and the spatially weighted score, by their formulas in
MolloiLab/CalciumScoring.jl, whose unit tests are ours.
"""

import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from cacjax.kernels.shapes import Scalar, Spacing

PLUS = 0.2  # weight of a pixel and of each of its four neighbours in the slice


def integrated_voxels(hu: Real[ArrayLike, "..."], *, background_hu: Scalar, object_hu: Scalar) -> Float[Array, ""]:
    """Voxels of pure calcium that would add to the background what the region `hu` holds: (sum - n background) / (object - background).

    background_hu: mean of the tissue around; object_hu: of pure calcium of the assumed density. Noise and blur cancel in the sum.
    """
    hu = jnp.asarray(hu, jnp.float32)
    return (hu - background_hu).sum() / (object_hu - background_hu)


def integrated(
    hu: Real[ArrayLike, "..."], *, background_hu: Scalar, object_hu: Scalar, spacing_mm: Spacing, density: Scalar
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(volume in mm3, mass) of the calcium in a region by integrated intensity; density: mass per mm3 of pure calcium at object_hu."""
    volume_mm3 = integrated_voxels(hu, background_hu=background_hu, object_hu=object_hu) * _voxel_mm3(spacing_mm)
    return volume_mm3, volume_mm3 * density


def volume_fraction(hu: Real[ArrayLike, "..."], *, tissue_hu: Scalar, calcium_hu: Scalar) -> Float[Array, ""]:
    """Sum over voxels of the fraction of each that is calcium, (HU - tissue) / (calcium - tissue), below tissue negative."""
    hu = jnp.asarray(hu, jnp.float32)
    return ((hu - tissue_hu) / (calcium_hu - tissue_hu)).sum()


def by_volume_fraction(
    hu: Real[ArrayLike, "..."], *, tissue_hu: Scalar, calcium_hu: Scalar, spacing_mm: Spacing, density: Scalar
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(volume in mm3, mass) of the calcium in a region by volume fraction; density: mass per mm3 of the calcium at calcium_hu."""
    volume_mm3 = volume_fraction(hu, tissue_hu=tissue_hu, calcium_hu=calcium_hu) * _voxel_mm3(spacing_mm)
    return volume_mm3, volume_mm3 * density


def spatially_weighted(hu: Real[ArrayLike, "*slices y x"], calibration_hu: Real[ArrayLike, "..."]) -> Float[Array, ""]:
    """Sum of the weights of all pixels of slices, each averaged with its four neighbours (nothing beyond the edge).

    A pixel's weight is the probability that calibration calcium (mean and sample SD of `calibration_hu`) is less dense.
    """
    hu, patch = jnp.asarray(hu, jnp.float32), jnp.asarray(calibration_hu, jnp.float32)
    weight = norm.cdf(hu, patch.mean(), patch.std(ddof=1))
    y, x = jnp.arange(hu.shape[-2]), jnp.arange(hu.shape[-1])
    # Convolution and sum: each pixel counts once for itself and once for every neighbour that lies in the slice.
    neighbours = ((y > 0) + 0 + (y < y[-1]))[:, None] + ((x > 0) + 0 + (x < x[-1]))
    return PLUS * (weight * (1 + neighbours)).sum()


def _voxel_mm3(spacing_mm):
    return jnp.prod(jnp.asarray(spacing_mm, jnp.float32))

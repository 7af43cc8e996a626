"""Slabs of a thickness at a step along z, on pixels of a size: the grid of van Velzen 2022. Arrays are [z, y, x].

Every axis is one product with a matrix that the host works out, an argument of the program: scans of a like size share it. Along z slabs
are means of the slices in them, weighted by overlap; in the plane values are interpolated linearly between the middles of pixels, over a
whole new pixel where that is larger.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float32, Real

from cacjax.kernels.shapes import HU, Scalar, Shape, Spacing


class Matrices(NamedTuple):
    """Weights [new, old] along each axis; rows and columns beyond those in use are 0. shape: int32 [3], rows in use."""

    z: Float32[np.ndarray, "_ _"]
    y: Float32[np.ndarray, "_ _"]
    x: Float32[np.ndarray, "_ _"]
    shape: np.ndarray


class Plan(NamedTuple):
    """How a scan lies on slabs: there and, in the plane alone, back; mm (z, y, x) of the slabs; voxels of the result to voxels of the
    scan, [4, 4]."""

    there: Matrices
    back: Matrices
    spacing_mm: tuple[float, float, float]
    index: np.ndarray


def plan(shape: Shape, spacing_mm: Spacing, new_mm: Spacing, *, thickness_mm: Scalar, sizes=None) -> Plan:
    """The `Plan` of a scan. new_mm: step of the slabs and size of the pixels; sizes: of the padded scan and of the padded slabs, [2][3]
    (default: no padding). Slices are taken to be as thick as their increment; a scan thinner than a slab is one."""
    z, first_mm = _slabs(shape[0], spacing_mm[0], thickness_mm, new_mm[0])
    there = [z, *(_linear(n, old, new) for n, old, new in zip(shape[1:], spacing_mm[1:], new_mm[1:]))]
    count = [len(matrix) for matrix in there]
    ratio = np.divide(new_mm, spacing_mm)
    shift = (np.array(shape) - count * ratio + ratio - 1) / 2  # of the middle of the first new pixel
    shift[0] = first_mm / spacing_mm[0]
    back = [np.eye(count[0], dtype=np.float32)]
    back += [_at((np.arange(n) - s) / r, m) for n, m, r, s in zip(shape[1:], count[1:], ratio[1:], shift[1:])]
    old, new = sizes or (shape, count)
    index = np.diag([*ratio, 1.0])
    index[:3, 3] = shift
    inplane = (count[0], *shape[1:])
    return Plan(
        Matrices(*(_filled(m, n, o) for m, n, o in zip(there, new, old)), np.array(count, np.int32)),
        Matrices(*(_filled(m, o, n) for m, n, o in zip(back, new, (new[0], *old[1:]))), np.array(inplane, np.int32)),
        tuple(float(mm) for mm in new_mm),
        index,
    )


def resample(volume: HU, matrices: Matrices, *, fill: Scalar) -> Float32[Array, "_ _ _"]:
    """A volume on the grid of matrices; `fill` beyond it."""

    def product(volume, matrix, axis):
        found = lax.dot_general(volume, jnp.asarray(matrix), (((axis,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
        return jnp.moveaxis(found, -1, axis)

    volume = jnp.asarray(volume, jnp.float32)
    for axis in range(3):
        volume = product(volume, matrices[axis], axis)
    inside = [jnp.arange(n) < m for n, m in zip(volume.shape, jnp.asarray(matrices.shape))]
    return jnp.where(inside[0][:, None, None] & inside[1][:, None] & inside[2], volume, fill)


def _slabs(n, step_mm, slab_mm, slab_step_mm):
    """(weights [slabs, n], mm from the middle of the first slice to that of the first slab)."""
    extent = step_mm * n
    thickness_mm = min(slab_mm, extent)
    count = int(np.floor((extent - thickness_mm) / slab_step_mm + 1 + 1e-6))
    low, piece = np.arange(count)[:, None] * slab_step_mm, np.arange(n)[None] * step_mm
    overlap = np.clip(np.minimum(low + thickness_mm, piece + step_mm) - np.maximum(low, piece), 0, None)
    return (overlap / overlap.sum(1, keepdims=True)).astype(np.float32), (thickness_mm - step_mm) / 2


def _linear(n, old_mm, new_mm):
    """Weights [m, n] of m = n old / new pixels about the same middle."""
    ratio = new_mm / old_mm
    count = max(1, round(n / ratio))
    return _at((np.arange(count) - (count - 1) / 2) * ratio + (n - 1) / 2, n, reach=max(ratio, 1.0))


def _at(positions: Real[ArrayLike, " m"], n: int, *, reach: float = 1.0):
    """Weights [m, n] of n values at positions between them: triangles of a half width, and beyond the ends the end ones."""
    positions = np.clip(positions, 0, n - 1)
    weights = np.clip(1 - abs(positions[:, None] - np.arange(n)) / reach, 0, None)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _filled(matrix, rows, columns):
    return np.pad(matrix, ((0, rows - matrix.shape[0]), (0, columns - matrix.shape[1])))

"""Isotropic cells of some millimetres that a scan's voxels fall into, what of their HU a cell keeps, and the way back. Volumes [z, y, x].

Voxel i lies in cell floor((i + .5) spacing / side). Where slices are thinner or thicker than a cell, a cell's mean weighs them by how
much of it they fill; slices within 1 % of the side are cells as they are. A cell without a voxel centre takes the voxel at its own.
(Gogin 2021, "Pre-processing": the paper says that intensities above 130 HU were enhanced in the downsampled image, not how.)
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float32, Int32, Shaped

from cacjax.classes import CALCIUM_HU, CORONARY
from cacjax.kernels.shapes import HU, Labels, Mask, Shape, Spacing

RESTORE = ("max_components", "max", "mean", "none")
SIDES = (16, 16, 16)  # numbers of cells are rounded up to multiples of these: four halvings, few programs
SAME = 0.01  # a slice this near to a cell's side is a cell
TAPS = 4  # voxels of a cell are rounded up to a multiple of this
LEFT_OUT = -32768.0


class Axis(NamedTuple):
    """Cells along one axis, a row each: its voxels, their share of its mean, whether their centres lie in it; the cell of each voxel."""

    voxel: Int32[ArrayLike, "cells taps"]
    share: Float32[ArrayLike, "cells taps"]
    inside: Bool[ArrayLike, "cells taps"]
    cell: Int32[ArrayLike, " voxels"]


Axes = tuple[Axis, Axis, Axis]


class Cells(NamedTuple):
    """The cells of a grid: axes (arrays for the device), their number [3] and sides in mm [3] along z, y, x."""

    axes: Axes
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]


def plan(shape: Shape, spacing_mm: Spacing, sides_mm: tuple | list, *, padded: Shape | None = None, lengthen: bool = False) -> Cells:
    """The cells of a grid (host, numpy), of that one of `sides_mm` which is nearest to the slice spacing; the smaller of two as near.

    padded: shape of the volumes, where they have more voxels behind the grid's: these are in no cell, and the last is looked up for them.
    lengthen: repeat the last cells up to multiples of SIDES.
    """
    if min(*shape, *sides_mm, *spacing_mm) <= 0:
        raise ValueError(f"shape, spacing_mm and sides_mm must be positive, got {shape}, {spacing_mm}, {sides_mm}")
    side = min(sides_mm, key=lambda mm: (abs(mm - spacing_mm[0]), mm))
    slab = float(spacing_mm[0]) if abs(spacing_mm[0] - side) <= SAME * side else side
    sides = (slab, side, side)
    numbers = tuple(max(1, int(np.ceil(n * s / mm - 1e-6))) for n, s, mm in zip(shape, spacing_mm, sides))
    each = zip(shape, numbers, spacing_mm, sides, padded or shape, SIDES if lengthen else (1, 1, 1), strict=True)
    axes = tuple(_axis(n, m, mm / s, more, multiple, slabs=i == 0) for i, (n, m, s, mm, more, multiple) in enumerate(each))
    return Cells(axes, numbers, tuple(float(mm) for mm in sides))


def _axis(voxels, cells, width, padded, multiple, *, slabs):
    """One axis: `width` voxels to a cell."""
    cell = np.minimum(((np.arange(voxels) + 0.5) / width + 1e-9).astype(np.int32), cells - 1)
    edge = np.minimum(np.arange(cells + 1) * width, voxels)
    first = np.minimum((edge[:-1] + 1e-9).astype(np.int32), voxels - 1)
    last = np.maximum(np.ceil(edge[1:] - 1e-9).astype(np.int32) - 1, first)
    taps = -(-int((last - first).max() + 1) // TAPS) * TAPS
    voxel = first[:, None] + np.arange(taps, dtype=np.int32)
    inside = (voxel <= last[:, None]) & (cell[np.minimum(voxel, voxels - 1)] == np.arange(cells)[:, None])
    middle = np.minimum(((np.arange(cells) + 0.5) * width).astype(np.int32), voxels - 1)
    inside |= ~inside.any(1, keepdims=True) & (voxel == middle[:, None])
    share = np.clip(np.minimum(voxel + 1, edge[1:, None]) - np.maximum(voxel, edge[:-1, None]), 0, None) if slabs else inside
    share = (share / share.sum(1, keepdims=True)).astype(np.float32)
    more = [(0, -cells % multiple), (0, 0)]
    arrays = (np.pad(each, more, mode="edge") for each in (np.minimum(voxel, voxels - 1), share, inside))
    return Axis(*arrays, np.pad(cell, (0, padded - voxels), mode="edge"))


@functools.partial(jax.jit, static_argnames="restore")
def coarse(hu: HU, axes: Axes, *, restore: str = "max_components") -> Float32[Array, "_ _ _"]:
    """HU of the cells: the mean of each, and of what reaches 130 HU in it, where that would be lost, what `restore` names.

    "max_components": at least the highest HU of its voxels in areas (4-connected within the slice) of 3 pixels or more; "max": of any
    voxel; "mean": the mean of those voxels; "none": nothing. Raises ValueError for another name.
    """
    if restore not in RESTORE:
        raise ValueError(f"restore must be one of {', '.join(RESTORE)}, got {restore!r}")
    hu = jnp.asarray(hu, jnp.float32)
    mean, bright = _mean(hu, axes), hu >= CALCIUM_HU
    if restore == "none":
        return mean
    if restore == "mean":
        total, number = (_sum(jnp.where(bright, each, 0), axes) for each in (hu, 1.0))
        return jnp.where(number > 0, total / jnp.maximum(number, 1), mean)
    kept = in_areas_of_three(bright) if restore == "max_components" else bright
    return jnp.maximum(mean, _highest(jnp.where(kept, hu, LEFT_OUT), axes))


@jax.jit
def classes(label: Labels, axes: Axes) -> Shaped[Array, "_ _ _"]:
    """Classes (0 to 7, uint8) of the cells: of a cell that any labelled voxel lies in its highest class, a coronary one before others."""
    ranked = jnp.asarray(label, jnp.int32) + 8 * jnp.isin(label, jnp.array(CORONARY))
    return (_highest(ranked, axes) % 8).astype(jnp.uint8)


def look_up(cells: Shaped[ArrayLike, "_ _ _"], axes: Axes) -> Shaped[Array, "z y x"]:
    """What the cell of each voxel holds."""
    for axis, each in enumerate(axes):
        cells = jnp.take(cells, each.cell, axis=axis)
    return cells


def in_areas_of_three(mask: Mask) -> Bool[Array, "z y x"]:
    """The pixels of a mask in 4-connected areas of a slice of 3 pixels or more: those with two neighbours, and the neighbours of these."""
    mask = jnp.asarray(mask)
    middle = mask & (sum(near.astype(jnp.int8) for near in _neighbours(mask)) >= 2)
    return middle | (mask & functools.reduce(jnp.logical_or, _neighbours(middle)))


def _neighbours(mask):
    wide = jnp.pad(mask, ((0, 0), (1, 1), (1, 1)))
    return wide[:, 2:, 1:-1], wide[:, :-2, 1:-1], wide[:, 1:-1, 2:], wide[:, 1:-1, :-2]


def _mean(volume, axes):
    return _pool(volume, axes, lambda values, share, inside: values * share, jnp.add)


def _sum(volume, axes):
    return _pool(volume, axes, lambda values, share, inside: values * inside, jnp.add)


def _highest(volume, axes):
    least = jnp.asarray(LEFT_OUT, volume.dtype)
    return _pool(volume, axes, lambda values, share, inside: jnp.where(inside, values, least), jnp.maximum)


def _pool(volume, axes, weigh, join):
    """weigh(values, share, inside) of the voxels of every cell, joined along y, x and z in turn: rows first, which lie side by side."""
    for axis in (1, 2, 0):
        side = [-1 if i == axis else 1 for i in range(3)]
        taps = zip(*(jnp.asarray(each).T for each in axes[axis][:3]))
        parts = [weigh(jnp.take(volume, v, axis=axis), share.reshape(side), inside.reshape(side)) for v, share, inside in taps]
        volume = functools.reduce(join, parts)
    return volume

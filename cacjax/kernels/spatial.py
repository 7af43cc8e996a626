"""Grids: resample, average slabs, pad and crop, dilate by millimetres. Volumes [z, y, x], spacing (dz, dy, dx) in mm.

Positions and weights are planned on the host in float64 and applied axis by axis on the device in float32.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float32, Int32, Integer, Real, Shaped

from cacjax.kernels import runs
from cacjax.kernels.shapes import HU, Mask, Scalar, Shape, Spacing, Volume

NOWHERE = np.iinfo(np.int32).max
_REACH = 24  # (2 - sqrt 3)^24 = 2e-14: how far a sample reaches into cubic spline coefficients


class Axis(NamedTuple):
    """How one axis is sampled, a row per sample: the voxel at or before it, and weights of voxels.

    No weights: the voxel itself. 2: it and the next. 4: cubic B-spline over its neighbours from the one before it, applied to
    spline coefficients, whose edges lie at 0 and `size` - 1. Arrays may be longer than the grid that they were planned for.
    """

    first: Int32[ArrayLike, " rows"]
    weight: Float32[ArrayLike, "rows taps"] | None
    size: Integer[ArrayLike, ""]


Axes = tuple[Axis, Axis, Axis]
Affine = Real[ArrayLike, "4 4"]
Start = tuple[int, int, int]


def zoomed_shape(shape: Shape, spacing_mm: Spacing, new_spacing_mm: Spacing) -> tuple[int, int, int]:
    """Shape of a volume at another spacing, as `scipy.ndimage.zoom` rounds it, at least 1 a side."""
    return tuple(max(1, round(n * (old / new))) for n, old, new in zip(shape, spacing_mm, new_spacing_mm, strict=True))


def resample(
    volume: Volume, spacing_mm: Spacing, new_spacing_mm: Spacing, *, order: int = 1, shape: Shape | None = None
) -> tuple[Shaped[Array, "_ _ _"], tuple[float, float, float]]:
    """A volume at another spacing: (volume, its true spacing), as `scipy.ndimage.zoom(mode="nearest")` does it.

    First and last sample centres of both grids coincide, so the true spacing, (n - 1) / (m - 1) of the old, is near the asked one.
    order: 0 nearest, 1 linear, 3 cubic B-spline with prefilter. shape: of the result, in place of rounding; with the old shape it
    takes a resampled volume back to its grid. Raises ValueError on another order or spacing that is not positive.
    """
    if min(*spacing_mm, *new_spacing_mm) <= 0:
        raise ValueError(f"spacings must be positive, got {tuple(spacing_mm)} and {tuple(new_spacing_mm)}")
    shape = zoomed_shape(volume.shape, spacing_mm, new_spacing_mm) if shape is None else shape
    axes, true = plan(volume.shape, shape, spacing_mm, new_spacing_mm, order=order)
    return sample(volume, axes), true


def plan(
    shape: Shape, new_shape: Shape, spacing_mm: Spacing, new_spacing_mm: Spacing, *, order: int
) -> tuple[Axes, tuple[float, float, float]]:
    """What `sample` needs to bring a grid to another of the same extent (see `resample`): (an `Axis` each, true spacing in mm)."""
    steps = [(n - 1) / (m - 1) if m > 1 else 1.0 for n, m in zip(shape, new_shape, strict=True)]
    positions = [np.arange(m, dtype=np.float64) * step for m, step in zip(new_shape, steps, strict=True)]
    true = [s * f if n > 1 and m > 1 else new for s, f, n, m, new in zip(spacing_mm, steps, shape, new_shape, new_spacing_mm)]
    return _plan(positions, shape, order), tuple(float(s) for s in true)


def rows(axes: Axes, start: Shape, stop: Shape) -> Axes:
    """A plan of the part of its results from start to stop - 1 along each axis."""

    def one(axis, first, beyond):
        return axis._replace(first=axis.first[first:beyond], weight=None if axis.weight is None else axis.weight[first:beyond])

    return tuple(map(one, axes, start, stop))


def moved(axes: Axes, start: Shape) -> Axes:
    """A nearest-neighbour plan for a volume that begins at voxel `start` of the one that it was made for."""
    return tuple(axis._replace(first=axis.first - first) for axis, first in zip(axes, start, strict=True))


def lengthen(axes: Axes, shape: Shape) -> Axes:
    """A plan with `shape` rows, so that grids of like size share one compiled `sample`: what the rows added give means nothing."""

    def one(axis, size):
        more = size - len(axis.first)
        if axis.weight is None:
            return Axis(np.pad(axis.first, (0, more), constant_values=NOWHERE), None, np.int32(axis.size))
        return Axis(np.pad(axis.first, (0, more), mode="edge"), np.pad(axis.weight, ((0, more), (0, 0)), mode="edge"), np.int32(axis.size))

    return tuple(one(axis, size) for axis, size in zip(axes, shape, strict=True))


def resample_to(
    volume: Volume, affine: Affine, to_affine: Affine, to_shape: Shape, *, order: int = 1, outside: Scalar | None = None
) -> Shaped[Array, "_ _ _"]:
    """A volume on another grid whose axes run along the same lines (affines in array order, mm), as `sample` gives it.

    Sample positions beyond the outer voxel centres by more than half a voxel become `outside`, by default the nearest edge.
    Raises ValueError if the grids are turned against each other.
    """
    relative = np.linalg.inv(np.asarray(affine, np.float64)) @ np.asarray(to_affine, np.float64)
    step = np.diag(relative)[:3]
    if np.abs(relative[:3, :3] - np.diag(step)).max() > 1e-3 * np.abs(step).max():
        raise ValueError(f"grids must share their axes, got voxel axes\n{relative[:3, :3]}")
    positions = [offset + np.arange(n) * s for n, s, offset in zip(to_shape, step, relative[:3, 3], strict=True)]
    result = sample(volume, _plan(positions, volume.shape, order))
    if outside is None:
        return result
    z, y, x = ((p >= -0.5) & (p <= n - 0.5) for p, n in zip(positions, volume.shape, strict=True))
    return jnp.where(z[:, None, None] & y[:, None] & x, result, outside)


def _plan(positions, shape, order):
    if order not in (0, 1, 3):
        raise ValueError(f"order must be 0, 1 or 3, got {order!r}")
    plan = {0: _nearest, 1: _linear, 3: _cubic}[order]
    return tuple(plan(np.clip(p, 0, n - 1), n) for p, n in zip(positions, shape, strict=True))


def _nearest(position, size):
    return Axis(np.minimum(np.floor(position + 0.5).astype(np.int32), size - 1), None, size)


def _linear(position, size):
    first = np.floor(position).astype(np.int32)
    return Axis(first, np.stack([first + 1 - position, position - first], 1).astype(np.float32), size)


def _cubic(position, size):
    first = np.floor(position).astype(np.int32)
    t = position - first
    spline = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    return Axis(first, spline.astype(np.float32), size)


@jax.jit
def sample(volume: Volume, axes: Axes) -> Shaped[Array, "_ _ _"]:
    """A volume sampled along each axis as planned; float32, but the volume's own type where all axes are nearest."""
    if any(axis.weight is not None for axis in axes):
        volume = volume.astype(jnp.float32)
    # The axis that shrinks most goes first: less is left for the others.
    sizes = [len(axis.first) / n for axis, n in zip(axes, volume.shape)]
    for dim in np.argsort(sizes, kind="stable").tolist():
        volume = _sample_axis(volume, axes[dim], dim)
    return volume


def _sample_axis(volume, axis, dim):
    if axis.weight is None:
        return jnp.take(volume, axis.first, axis=dim, mode="clip")
    if axis.weight.shape[1] == 4:
        return _apply_matrix(volume, _cubic_matrix(axis, volume.shape[dim]), dim)
    before, after = (axis.weight[:, i].reshape([-1 if d == dim else 1 for d in range(3)]) for i in range(2))
    second = jnp.minimum(axis.first + 1, axis.size - 1)
    return jnp.take(volume, axis.first, axis=dim, mode="clip") * before + jnp.take(volume, second, axis=dim, mode="clip") * after


def _cubic_matrix(axis, columns):
    """Weights [rows, columns] of the interpolating spline: B-spline weights times its inverse filter, sqrt(3) (sqrt(3) - 2)^|k|."""
    offset = np.arange(-_REACH, _REACH + 1)
    inverse = (np.sqrt(3.0) * (np.sqrt(3.0) - 2) ** np.abs(offset)).astype(np.float32)
    tap = np.arange(4)[:, None] - 1
    source = jnp.clip(axis.first[:, None, None] + tap + offset, 0, axis.size - 1)
    row = np.arange(len(axis.first))[:, None, None]
    return jnp.zeros((len(axis.first), columns), jnp.float32).at[row, source].add(axis.weight[:, :, None] * inverse)


def _apply_matrix(volume, matrix, dim):
    def dot(a, b):
        return jnp.dot(a, b, precision=lax.Precision.HIGHEST)

    if dim == 0:
        return dot(matrix, volume.reshape(volume.shape[0], -1)).reshape(-1, *volume.shape[1:])
    # Slice by slice: a product of the whole volume would be transposed on the way in and out.
    return lax.map(lambda image: dot(matrix, image) if dim == 1 else dot(image, matrix.T), volume)


def touched(mask: Bool[Array, "z y x"], axes: Axes, shape: Shape) -> Bool[Array, "{shape[0]} {shape[1]} {shape[2]}"]:
    """Voxels of a volume of `shape` that the wanted results (`mask`) of a nearest-neighbour plan read: the transpose of `sample`."""
    words = runs.pack(mask)
    for dim in range(2):
        words = _join(words, axes[dim].first, shape[dim], dim)
    return _join(runs.unpack(words, mask.shape[2]), axes[2].first, shape[2], 2)


def _join(values, first, size, dim):
    """OR of the values that lie on the same voxel 0..size - 1 of one axis; `first` ascends."""
    low, high = (jnp.searchsorted(first, jnp.arange(size), side=side) for side in ("left", "right"))

    def add(i, joined):
        row = jnp.where(low + i < high, low + i, values.shape[dim])
        return joined | jnp.take(values, row, axis=dim, mode="fill", fill_value=0)

    shape = (*values.shape[:dim], size, *values.shape[dim + 1 :])
    return lax.fori_loop(0, (high - low).max(), add, jnp.zeros(shape, values.dtype))


def slab_average(
    volume: HU, step_mm: Scalar, *, thickness_mm: Scalar | None = None, slab_mm: Scalar = 3.0, slab_step_mm: Scalar = 1.5
) -> tuple[Float32[Array, "slabs y x"], Scalar]:
    """Slabs along z as means of the slices in them, weighted by overlap: (volume, z of its first centre in mm).

    step_mm: increment of the slices; thickness_mm: theirs (default: the increment). Slabs begin where the first slice begins, and
    none reaches past the last; z counts from the centre of the first slice. Raises ValueError if the scan is thinner than a slab.
    """
    thickness_mm = step_mm if thickness_mm is None else thickness_mm
    extent = thickness_mm + step_mm * (volume.shape[0] - 1)
    count = int(np.floor((extent - slab_mm) / slab_step_mm + 1 + 1e-9))
    if count < 1:
        raise ValueError(f"the scan must be at least one slab thick ({slab_mm} mm), got {extent:.3f} mm")
    slab = np.arange(count)[:, None] * slab_step_mm
    piece = np.arange(volume.shape[0])[None] * step_mm
    overlap = np.clip(np.minimum(slab + slab_mm, piece + thickness_mm) - np.maximum(slab, piece), 0, None)
    weight = (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)
    return _apply_matrix(volume.astype(jnp.float32), weight, 0), (slab_mm - thickness_mm) / 2


def fit(
    volume: Volume, shape: Shape, *, fill: Scalar, start: Shape | None = None
) -> tuple[Shaped[Array, "{shape[0]} {shape[1]} {shape[2]}"], Start]:
    """Cut or pad to a shape: (volume, start), where voxel 0 of the result is voxel `start` of the input (negative where padded).

    start: default centred. `fit(result, volume.shape, fill=fill, start=negated start)` goes back.
    """
    start = tuple((n - m) // 2 for n, m in zip(volume.shape, shape, strict=True)) if start is None else tuple(start)
    config = [(-s, s + m - n, 0) for s, m, n in zip(start, shape, volume.shape, strict=True)]
    return lax.pad(jnp.asarray(volume), jnp.asarray(fill, volume.dtype), config), start


class Ball(NamedTuple):
    """A ball in voxels: its rows along x as (half width, dz, dy) each, behind them rows of width -1, which are none; and how far these
    reach (one more than the width)."""

    rows: Int32[np.ndarray, "rows 3"]
    reach: tuple[int, int, int]


def ball(radius_mm: Scalar, spacing_mm: Spacing, shape: Shape, *, step: int = 1) -> Ball:
    """The `Ball` of voxels whose centre is within radius_mm, as far as a volume of `shape` can tell.

    step: the reach is rounded up to multiples of it, and balls of one reach have as many rows, so that they share one compiled `spread`.
    """
    if radius_mm < 0 or min(spacing_mm) <= 0:
        raise ValueError(f"radius_mm must be >= 0 and spacing_mm positive, got {radius_mm} and {tuple(spacing_mm)}")
    reach = [min(int(radius_mm / s + 1e-6) + 1, n - 1) for s, n in zip(spacing_mm, shape, strict=True)]
    dz, dy, dx = (np.arange(-r, r + 1) * float(s) for r, s in zip(reach, spacing_mm, strict=True))
    inside = np.sqrt(dz[:, None, None] ** 2 + dy[None, :, None] ** 2 + dx[None, None, reach[2] :] ** 2) <= radius_mm
    width = inside.sum(2) - 1  # half width of the ball's row at (dz, dy), -1 where there is none
    z, y = np.nonzero(width >= 0)
    rows = np.stack([width[z, y], z - reach[0], y - reach[1]], 1).astype(np.int32)
    reach = tuple(-(-r // step) * step for r in (reach[0], reach[1], int(width.max()) + 1))
    none = np.full(((2 * reach[0] + 1) * (2 * reach[1] + 1) - len(rows), 3), (-1, 0, 0), np.int32)
    return Ball(np.concatenate([rows, none]), reach)


def dilate(mask: Mask, radius_mm: Scalar, spacing_mm: Spacing) -> Bool[Array, "z y x"]:
    """Mask of all voxels whose centre is within radius_mm of the centre of one of the mask's: a ball in mm.

    Equals `scipy.ndimage.distance_transform_edt(~mask, spacing) <= radius_mm`; an empty mask stays empty.
    """
    rows, reach = ball(radius_mm, spacing_mm, mask.shape)
    return spread(jnp.asarray(mask), rows, reach=reach)


@functools.partial(jax.jit, static_argnames=("reach",))
def spread(mask: Mask, rows: Int32[ArrayLike, "rows 3"], *, reach: tuple[int, int, int]) -> Bool[Array, "z y x"]:
    """`dilate` by a `Ball`: OR over its rows, on words of 32 voxels: the mask grown by 0, 1, .. voxels, shifted by (dz, dy)."""
    grown = [runs.pack(mask.astype(bool))]
    for _ in range(reach[2] - 1):
        grown.append(_grow_row(grown[-1]))
    shape = grown[0].shape
    stack = jnp.pad(jnp.stack(grown), ((0, 0), (reach[0],) * 2, (reach[1],) * 2, (0, 0)))

    def join(i, words):
        level, z, y = rows[i]
        return words | lax.dynamic_slice(stack, (level, z + reach[0], y + reach[1], 0), (1, *shape))[0]

    words = lax.fori_loop(0, (rows[:, 0] >= 0).sum(), join, jnp.zeros(shape, jnp.uint32))
    return runs.unpack(words, mask.shape[2])


def _grow_row(words):
    from_left = jnp.pad(words[..., :-1], ((0, 0), (0, 0), (1, 0))) >> 31
    from_right = jnp.pad(words[..., 1:], ((0, 0), (0, 0), (0, 1))) << 31
    return words | (words << 1) | from_left | (words >> 1) | from_right

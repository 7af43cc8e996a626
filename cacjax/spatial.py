"""Grids: resample, average slabs, pad and crop, dilate by millimetres. Volumes [z, y, x], spacing (dz, dy, dx) in mm.

Positions and weights are planned on the host in float64 and applied axis by axis on the device in float32.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cacjax import runs

_REACH = 24  # (2 - sqrt 3)^24 = 2e-14: how far a sample reaches into cubic spline coefficients


class Axis(NamedTuple):
    """How one axis is sampled: `first` and `second` neighbours and the weight of the second, or a `matrix` [out, in] (cubic)."""

    first: np.ndarray | None
    second: np.ndarray | None
    weight: np.ndarray | None
    matrix: np.ndarray | None = None


def zoomed_shape(shape, spacing_mm, new_spacing_mm):
    """Shape of a volume at another spacing, as `scipy.ndimage.zoom` rounds it, at least 1 a side."""
    return tuple(max(1, round(n * (old / new))) for n, old, new in zip(shape, spacing_mm, new_spacing_mm, strict=True))


def resample(volume, spacing_mm, new_spacing_mm, *, order=1, shape=None):
    """A volume at another spacing: (float32 volume, its true spacing), as `scipy.ndimage.zoom(mode="nearest")` does it.

    First and last sample centres of both grids coincide, so the true spacing, (n - 1) / (m - 1) of the old, is near the asked one.
    order: 0 nearest, 1 linear, 3 cubic B-spline with prefilter. shape: of the result, in place of rounding; with the old shape it
    takes a resampled volume back to its grid. Raises ValueError on another order or spacing that is not positive.
    """
    if min(*spacing_mm, *new_spacing_mm) <= 0:
        raise ValueError(f"spacings must be positive, got {tuple(spacing_mm)} and {tuple(new_spacing_mm)}")
    shape = zoomed_shape(volume.shape, spacing_mm, new_spacing_mm) if shape is None else shape
    steps = [(n - 1) / (m - 1) if m > 1 else 1.0 for n, m in zip(volume.shape, shape, strict=True)]
    positions = [np.arange(m, dtype=np.float64) * step for m, step in zip(shape, steps, strict=True)]
    true = [s * f if n > 1 and m > 1 else new for s, f, n, m, new in zip(spacing_mm, steps, volume.shape, shape, new_spacing_mm)]
    return _sample(volume, _plan(positions, volume.shape, order)), tuple(float(s) for s in true)


def resample_to(volume, affine, to_affine, to_shape, *, order=1, outside=None):
    """A volume on another grid whose axes run along the same lines (affines [4, 4] in array order, mm), float32.

    Sample positions beyond the outer voxel centres by more than half a voxel become `outside`, by default the nearest edge.
    Raises ValueError if the grids are turned against each other.
    """
    relative = np.linalg.inv(np.asarray(affine, np.float64)) @ np.asarray(to_affine, np.float64)
    step = np.diag(relative)[:3]
    if np.abs(relative[:3, :3] - np.diag(step)).max() > 1e-3 * np.abs(step).max():
        raise ValueError(f"grids must share their axes, got voxel axes\n{relative[:3, :3]}")
    positions = [offset + np.arange(n) * s for n, s, offset in zip(to_shape, step, relative[:3, 3], strict=True)]
    result = _sample(volume, _plan(positions, volume.shape, order))
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
    first = np.minimum(np.floor(position + 0.5).astype(np.int32), size - 1)
    return Axis(first, None, None)


def _linear(position, size):
    first = np.floor(position).astype(np.int32)
    return Axis(first, np.minimum(first + 1, size - 1), (position - first).astype(np.float32))


def _cubic(position, size):
    """Rows of weights of the interpolating cubic spline: B-spline weights times its inverse filter, sqrt(3) (sqrt(3) - 2)^|k|."""
    floor = np.floor(position).astype(np.int64)
    t = position - floor
    spline = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    offset = np.arange(-_REACH, _REACH + 1)
    inverse = np.sqrt(3.0) * (np.sqrt(3.0) - 2) ** np.abs(offset)
    matrix = np.zeros((len(position), size))
    out = np.arange(len(position))[:, None]
    for tap in range(4):
        source = np.clip(floor[:, None] + tap - 1 + offset, 0, size - 1)
        np.add.at(matrix, (out, source), spline[:, tap, None] * inverse)
    return Axis(None, None, None, matrix.astype(np.float32))


@jax.jit
def _sample(volume, plan):
    volume = volume.astype(jnp.float32)
    # The axis that shrinks most goes first: less is left for the others.
    size = [len(axis.first if axis.matrix is None else axis.matrix) / n for axis, n in zip(plan, volume.shape)]
    for dim in np.argsort(size, kind="stable").tolist():
        volume = _sample_axis(volume, plan[dim], dim)
    return volume


def _sample_axis(volume, axis, dim):
    if axis.matrix is not None:
        return _apply_matrix(volume, axis.matrix, dim)
    first = jnp.take(volume, axis.first, axis=dim, mode="clip")
    if axis.weight is None:
        return first
    weight = axis.weight.reshape([-1 if d == dim else 1 for d in range(3)])
    return first + (jnp.take(volume, axis.second, axis=dim, mode="clip") - first) * weight


def _apply_matrix(volume, matrix, dim):
    def dot(a, b):
        return jnp.dot(a, b, precision=lax.Precision.HIGHEST)

    if dim == 0:
        return dot(matrix, volume.reshape(volume.shape[0], -1)).reshape(-1, *volume.shape[1:])
    # Slice by slice: a product of the whole volume would be transposed on the way in and out.
    return lax.map(lambda image: dot(matrix, image) if dim == 1 else dot(image, matrix.T), volume)


def slab_average(volume, step_mm, *, thickness_mm=None, slab_mm=3.0, slab_step_mm=1.5):
    """Slabs along z as means of the slices in them, weighted by overlap: (float32 volume, z of its first centre in mm).

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


def fit(volume, shape, *, fill, start=None):
    """Cut or pad to a shape: (volume, start), where voxel 0 of the result is voxel `start` of the input (negative where padded).

    start: default centred. `fit(result, volume.shape, fill=fill, start=negated start)` goes back.
    """
    start = tuple((n - m) // 2 for n, m in zip(volume.shape, shape, strict=True)) if start is None else tuple(start)
    config = [(-s, s + m - n, 0) for s, m, n in zip(start, shape, volume.shape, strict=True)]
    return lax.pad(jnp.asarray(volume), jnp.asarray(fill, volume.dtype), config), start


def dilate(mask, radius_mm, spacing_mm):
    """Bool mask of all voxels whose centre is within radius_mm of the centre of one of the mask's: a ball in mm.

    Equals `scipy.ndimage.distance_transform_edt(~mask, spacing) <= radius_mm`; an empty mask stays empty.
    """
    if radius_mm < 0 or min(spacing_mm) <= 0:
        raise ValueError(f"radius_mm must be >= 0 and spacing_mm positive, got {radius_mm} and {tuple(spacing_mm)}")
    reach = [min(int(radius_mm / s + 1e-6) + 1, n - 1) for s, n in zip(spacing_mm, mask.shape, strict=True)]
    dz, dy, dx = (np.arange(-r, r + 1) * float(s) for r, s in zip(reach, spacing_mm, strict=True))
    ball = np.sqrt(dz[:, None, None] ** 2 + dy[None, :, None] ** 2 + dx[None, None, reach[2] :] ** 2) <= radius_mm
    width = ball.sum(2) - 1  # half width of the ball's row at (dz, dy), -1 where there is none
    z, y = np.nonzero(width >= 0)
    offsets = np.stack([width[z, y], z, y], 1).astype(np.int32)
    return _dilate(jnp.asarray(mask), offsets, reach=tuple(reach), levels=int(width.max()) + 1)


@functools.partial(jax.jit, static_argnames=("reach", "levels"))
def _dilate(mask, offsets, *, reach, levels):
    """OR over the rows of the ball, on words of 32 voxels: rows grown by 0, 1, .. voxels, shifted by (dz, dy)."""
    grown = [runs.pack(mask.astype(bool))]
    for _ in range(levels - 1):
        grown.append(_grow_row(grown[-1]))
    shape = grown[0].shape
    stack = jnp.pad(jnp.stack(grown), ((0, 0), (reach[0],) * 2, (reach[1],) * 2, (0, 0)))

    def join(i, words):
        level, z, y = offsets[i]
        return words | lax.dynamic_slice(stack, (level, z, y, 0), (1, *shape))[0]

    words = lax.fori_loop(0, len(offsets), join, jnp.zeros(shape, jnp.uint32))
    return runs.unpack(words, mask.shape[2])


def _grow_row(words):
    from_left = jnp.pad(words[..., :-1], ((0, 0), (0, 0), (1, 0))) >> 31
    from_right = jnp.pad(words[..., 1:], ((0, 0), (0, 0), (0, 1))) << 31
    return words | (words << 1) | from_left | (words >> 1) | from_right

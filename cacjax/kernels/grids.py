"""The grid that a network sees, and the few shapes that scans are padded to so that they share compiled programs. Volumes [z, y, x].

A grid is described by its "kind". "spline", at "spacing_mm": cubic, first and last voxel centres stay where they are (Zhai 2022).
"linear", at "spacing_mm": means of whole blocks of voxels, then linear, so that noise averages out as in thick slices. "cells", of one of
"sides_mm", with what "restore" names: see `cacjax.kernels.cells` (Gogin 2021). "native": the scan's own (Zhang 2018). "slabs", of
"thickness_mm" at "spacing_mm": see `cacjax.kernels.slabs` (van Velzen 2022). Cohorts resample by the same functions as detection:
training sees what scoring sees.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np

from cacjax.kernels import cells, slabs, spatial

KINDS = ("spline", "linear", "cells", "native", "slabs")
SIDES = (32, 64, 64)  # sides of scans are rounded up to multiples of these
NETWORK_SIDES = (32, 128, 128)  # and those of a network's own grid: pixels of any size then make few programs
BOX_SIDES = (64, 288, 288)  # and those of a box around a heart on such a grid: most hearts are less than 190 mm wide
NO_HU = -32768.0  # of what a scan is padded with: below every threshold


class Grids(NamedTuple):
    """How the scan's grid and the network's, or what the network sees of that, lie to each other; plans are None where they are one.

    network_shape: int32 [3], without padding. box: lowest and highest + 1 voxel there to look at, [2, 3].
    """

    network_shape: Any
    box: Any
    to_network: Any
    to_scan: Any


def padded(shape, sides=None):
    """The shape that scans of this shape are padded to."""
    return tuple(-(-n // side) * side for n, side in zip(shape, sides or SIDES, strict=True))


def pad(volume, *, fill):
    """A volume (host) with `fill` behind its last voxels, to the shape that `padded` gives."""
    return np.pad(volume, [(0, m - n) for n, m in zip(volume.shape, padded(volume.shape))], constant_values=fill)


def cut(volume, shape):
    """The first voxels of a padded volume, on the host: `pad` undone."""
    return np.asarray(volume)[tuple(slice(0, n) for n in shape)]


def join(shape, spacing_mm, network_mm, box, *, halo=None):
    """(`Grids` of a scan and a network's spline grid, padded shape of what the network sees of the latter, longest side of the box there,
    rounded up).

    box: of the network's grid, None for all of it. halo: voxels that the network reads around it, along each axis: it sees no more than
    these, and the same of what is in the box; None: it sees everything.
    """
    network = spatial.zoomed_shape(shape, spacing_mm, network_mm)
    low, high = np.array(((0, 0, 0), network) if box is None else box, np.int32)
    sides = np.array(padded(high - low, None if box is None else BOX_SIDES))
    longest = int(sides.max())
    if network == tuple(shape):
        return Grids(np.array(network, np.int32), np.array((low, high)), None, None), padded(shape), longest
    full, start, stop = padded(network, NETWORK_SIDES), np.zeros(3, np.int32), np.array(network, np.int32)
    if box is not None and halo is not None:
        full = tuple(min(n, int(m)) for n, m in zip(full, padded(sides + 2 * np.array(halo), (32, 32, 32))))
        start, stop = np.maximum(low - halo, 0), np.minimum(high + halo, network)
    there, true_mm = spatial.plan(shape, network, spacing_mm, network_mm, order=3)
    back, _ = spatial.plan(network, shape, true_mm, spacing_mm, order=0)
    to_network = spatial.lengthen(spatial.rows(there, start, stop), full)
    to_scan = spatial.lengthen(spatial.moved(back, start), padded(shape))
    return Grids((stop - start).astype(np.int32), np.array((low - start, high - start), np.int32), to_network, to_scan), full, longest


def resample(hu, spacing_mm, grid):
    """A scan on a network's grid: (HU float32, index), where `index` [4, 4] takes voxels of the result to voxels of the scan.

    Raises ValueError for a kind that is not in KINDS.
    """
    if grid["kind"] == "native":
        return np.asarray(hu, np.float32), np.eye(4)
    if grid["kind"] == "linear":
        return coarsen(hu, spacing_mm, grid["spacing_mm"])
    if grid["kind"] == "cells":
        found = cells.plan(hu.shape, spacing_mm, grid["sides_mm"])
        width = np.divide(found.spacing_mm, spacing_mm)
        return cells.coarse(hu, found.axes, restore=grid["restore"]), scaling(width, (width - 1) / 2)
    if grid["kind"] == "slabs":
        found = slabs.plan(hu.shape, spacing_mm, grid["spacing_mm"], thickness_mm=grid["thickness_mm"])
        return np.asarray(slabs.resample(hu, found.there, fill=0.0)), found.index
    if grid["kind"] != "spline":
        raise ValueError(f"grid.kind must be one of {', '.join(KINDS)}, got {grid['kind']!r}")
    volume, _ = spatial.resample(hu, spacing_mm, grid["spacing_mm"], order=3)
    sizes = zip(hu.shape, volume.shape, spacing_mm, grid["spacing_mm"])
    # Exact, not true spacing over the old one: labels halfway between two voxels fall to the same one as by `spatial.resample`.
    return volume, scaling([(n - 1) / (m - 1) if n > 1 and m > 1 else new / old for n, m, old, new in sizes], [0, 0, 0])


def labels_on(labels, spacing_mm, grid, index, shape):
    """Labels on the grid that `resample` gave: nearest neighbours, or whatever lies in a cell; uint8."""
    if grid["kind"] == "cells":
        return np.asarray(cells.classes(np.asarray(labels, np.uint8), cells.plan(labels.shape, spacing_mm, grid["sides_mm"]).axes))
    return nearest(labels, index, shape)


def nearest(labels, index, shape):
    """Labels on the grid that `resample` gave, nearest neighbours, uint8."""
    return np.asarray(spatial.resample_to(labels, np.eye(4), index, shape, order=0), np.uint8)


def coarsen(hu, spacing_mm, new_mm):
    """(HU float32, index) of a scan at another spacing: means of whole blocks of voxels, then linear between them.

    A finer spacing than the scan's is only interpolated.
    """
    whole = [max(1, int(new / old + 1e-6)) for new, old in zip(new_mm, spacing_mm, strict=True)]
    filled = np.pad(np.asarray(hu, np.float32), [(0, -n % w) for n, w in zip(hu.shape, whole)], mode="edge")
    blocks = filled.reshape(*itertools.chain(*((n // w, w) for n, w in zip(filled.shape, whole)))).mean((1, 3, 5))
    step = [new / (old * w) for new, old, w in zip(new_mm, spacing_mm, whole)]
    shape = [max(1, round(n / s)) for n, s in zip(blocks.shape, step)]
    between = scaling(step, [0, 0, 0])
    coarse = np.asarray(spatial.resample_to(blocks, np.eye(4), between, shape))
    return coarse, scaling(whole, [(w - 1) / 2 for w in whole]) @ between


def scaling(factors, shift):
    """The affine [4, 4] that scales each axis, then shifts it."""
    matrix = np.diag([*factors, 1.0]).astype(float)
    matrix[:3, 3] = shift
    return matrix


def extent(mask):
    """First and last voxel of a mask along each axis, int [2, 3]; None for an empty one."""
    hits = [np.flatnonzero(mask.any(tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    return np.array([(hit[0], hit[-1]) for hit in hits]).T if len(hits[0]) else None


def box_around(mask, shape, spacing_mm, *, margin_mm=0.0):
    """Box ((z0, y0, x0), (z1, y1, x1)), ends exclusive, around a mask with voxels in it plus a margin, on another grid of that extent."""
    scale = (np.array(shape) - 1) / np.maximum(np.array(mask.shape) - 1, 1)
    (first, last), margin = extent(mask) * scale, margin_mm / np.array(spacing_mm, np.float64)
    low, high = np.maximum(first - margin, 0).astype(int), np.minimum(np.ceil(last + margin).astype(int) + 1, shape)
    return tuple(low.tolist()), tuple(high.tolist())

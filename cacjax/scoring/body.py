"""The body of a scan: its largest part that is no air, without table, electrodes and wires. Arrays [z, y, x], axis 1 towards the back."""

import numpy as np
from scipy import ndimage

from cacjax.kernels import grids

BODY_HU = -300.0  # fat and skin are brighter, lung and most foam darker
WATER_HU = 0.0
LUNG_HU = -950.0  # lung is next to nowhere darker, air around patients is:
LEAST_AIR = 0.5  # in .61 of what holds a table, in .78 or more without
IN_SLICE = np.array([np.zeros((3, 3)), [[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.zeros((3, 3))])
CELL_MM = 3.0
THIN_MM = 6.0  # what is thinner than twice this, such as a table's shell, an electrode or a wire, does not hang on to the body
FRONT = 0.62  # of a slice of the body, from its front: the heart and the great vessels lie there, the spine behind it


def of(hu, spacing_mm):
    """(body, bool in cells of 3 mm, index): everything but the air around the largest part that is no air, and what lies in that air.

    Slice by slice what reaches the field of view's edge and is mostly air, unlike a lung there. All False where there is no body. index
    [4, 4] takes cells to voxels.
    """
    cells, index = grids.coarsen(hu, spacing_mm, (CELL_MM,) * 3)
    n = round(THIN_MM / CELL_MM)
    ball = np.hypot(*np.mgrid[-n : n + 1, -n : n + 1]) <= n
    solid = np.pad(cells > BODY_HU, ((0, 0), (2 * n, 2 * n), (2 * n, 2 * n)), mode="edge")  # it goes on beyond the field of view
    parts, count = ndimage.label(ndimage.binary_opening(solid, ball[None])[:, 2 * n : -2 * n, 2 * n : -2 * n])
    if not count:
        return np.zeros(cells.shape, bool), index
    rest, count = ndimage.label(parts != 1 + np.bincount(parts.ravel())[1:].argmax(), IN_SLICE)
    airy = ndimage.mean(cells < LUNG_HU, rest, np.arange(count + 1)) >= LEAST_AIR
    at_edge = np.isin(np.arange(count + 1), np.concatenate([rest[:, [0, -1]].ravel(), rest[:, :, [0, -1]].ravel()]))
    return ~(airy & at_edge & (np.arange(count + 1) > 0))[rest], index


def clear(hu, spacing_mm):
    """HU in which nothing outside of the body, or in its outermost 3 mm, is brighter than water; of a scan without a body as it is."""
    body, index = of(hu, spacing_mm)
    if not body.any():
        return hu
    body = ndimage.binary_erosion(body, np.ones((1, 3, 3)), border_value=1)
    cell = np.linalg.inv(index)
    for axis, n in enumerate(hu.shape):
        nearest = np.floor(np.arange(n) * cell[axis, axis] + cell[axis, 3] + 0.5).astype(int)
        body = np.take(body, np.clip(nearest, 0, body.shape[axis] - 1), axis)
    return np.where(body, hu, np.minimum(hu, np.float32(WATER_HU)))


def front(body):
    """The front of a body [z, y, x] slice by slice, bool: where the heart and the great vessels can be."""
    rows, seen = np.arange(body.shape[1]), body.any(2)
    first, last = seen.argmax(1), body.shape[1] - 1 - seen[:, ::-1].argmax(1)
    return body & (rows < (first + FRONT * (last + 1 - first))[:, None])[:, :, None]

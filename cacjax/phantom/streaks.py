"""Streaks that fan out in a slice from what stops the beam: dense contrast medium in the superior caval vein, metal.

The scout of `beam` is too coarse for them. Each slice has a random function of the direction, which turns slowly from slice to slice,
and whose amplitude fades with the distance.
"""

import numpy as np

from cacjax.phantom import motion

MODES = np.arange(5, 45)  # streaks in a full turn
SLICE_MM = 4.0  # along z, after which the streaks are other ones
START_MM, REACH_MM = 6.0, 24.0  # where they begin, and over what they fade to 1/e
DENSE_HU, PER_HU = 450.0, 0.10  # caval blood above it makes streaks of so many HU (standard deviation) for each HU more
BELOW_MM = 18.0  # under the end of the caval vein, where the right atrium dilutes it
METAL_HU = 50.0


def of_caval_vein(anatomy, protocol, grid, timing):
    """(centres_mm [z, 2] (x, y), strength_hu [z]) of the streaks from the superior caval vein, as `add` takes them."""
    x, y, z = motion.from_reference(np.asarray(anatomy["svc"], float)[::-1], timing).T
    slices = grid.axis(0)
    strength = PER_HU * max(protocol.blood["svc"] - DENSE_HU, 0.0) * np.clip(1 + (slices - z[0]) / BELOW_MM, 0, 1)
    return np.stack([np.interp(slices, z, x), np.interp(slices, z, y)], 1), strength


def add(image, grid, centres_mm, strength_hu, g: np.random.Generator) -> None:
    """Add streaks around a point of each slice, centres_mm [z, 2], to image [z, y, x] in place; strength_hu [z]: their SD at the start."""
    turn, phase = g.normal(0, 1 / SLICE_MM, len(MODES)), g.uniform(0, 2 * np.pi, len(MODES))
    angle = np.linspace(-np.pi, np.pi, 721)
    y, x = grid.axis(1), grid.axis(2)
    for k in np.flatnonzero(np.asarray(strength_hu) > 0):
        waves = np.cos(MODES * angle[:, None] + phase + turn * grid.axis(0)[k]).sum(1) * np.sqrt(2 / len(MODES))
        rows, columns = (np.flatnonzero(np.abs(v - c) < 3 * REACH_MM) for v, c in ((y, centres_mm[k, 1]), (x, centres_mm[k, 0])))
        if len(rows) and len(columns):
            dy, dx = y[rows, None] - centres_mm[k, 1], x[columns] - centres_mm[k, 0]
            r = np.hypot(dy, dx)
            fade = np.exp(-np.maximum(r - START_MM, 0) / REACH_MM) * np.clip(r / START_MM - 0.5, 0, 1)
            image[k, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += (
                strength_hu[k] * fade * np.interp(np.arctan2(dy, dx), angle, waves)
            ).astype(image.dtype)


def of_metal(positions_mm, grid):
    """The same of metal at positions_mm [n, 3]: one centre for all that lies in a slice."""
    centres, strength = np.zeros((grid.shape[0], 2)), np.zeros(grid.shape[0])
    near = np.round((positions_mm[:, 2] - grid.origin_mm[2]) / grid.spacing_mm[0]).astype(int)
    for k in np.unique(near[(near >= 0) & (near < grid.shape[0])]):
        centres[k], strength[k] = positions_mm[near == k, :2].mean(0), METAL_HU
    return centres, strength

"""Masks [z, y, x] on which labelling is timed: what a detector leaves, bone and noise of a thorax, and two that nobody scores."""

import numpy as np


def blobs(depth: int, side: int, *, n: int = 30, voxels: int = 4500) -> np.ndarray:
    """What a detector leaves: `n` ellipsoids of log-normal volume, about `voxels` in all, in the middle of the plane."""
    rng = np.random.default_rng(0)
    volumes = rng.lognormal(0, 1, n)
    mask = np.zeros((depth, side, side), bool)
    for volume in volumes / volumes.sum() * voxels:
        radius = (3 * volume / (4 * np.pi)) ** (1 / 3)
        radii = np.maximum(radius * np.array([0.6, rng.uniform(0.7, 1.3), rng.uniform(0.8, 1.8)]), (0.6, 0.8, 0.8))
        centre = np.array([rng.uniform(4, depth - 4), *rng.uniform(0.35 * side, 0.65 * side, 2)])
        low = np.maximum((centre - radii - 1).astype(int), 0)
        high = np.minimum((centre + radii + 2).astype(int), mask.shape)
        box = tuple(slice(a, b) for a, b in zip(low, high))
        inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip(np.ogrid[box], centre, radii)) <= 1
        mask[box] |= inside
    return mask


def thorax(depth: int, side: int) -> np.ndarray:
    """Voxels of 130 HU or more of a thorax, 3 %: vertebra, sternum and oblique ribs with ragged marrow, and speckle."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    body = np.hypot(y - 0.72, (x - 0.5) / 1.2)
    spinous = (np.abs(x - 0.5) < 0.012) & (y > 0.78) & (y < 0.886)
    sternum = np.hypot((y - 0.2) / 0.02, (x - 0.5) / 0.055)
    rib, angle = np.hypot((y - 0.5) / 0.36, (x - 0.5) / 0.43), np.arctan2((y - 0.5) / 0.36, (x - 0.5) / 0.43)
    mask = np.zeros((depth, side, side), bool)
    for z, plane in enumerate(mask):
        marrow, chest, spongy, speckle = (rng.random((side, side), dtype=np.float32) < p for p in (0.45, 0.3, 0.35, 0.0008))
        plane |= (body < 0.066) & ((body > 0.053) | marrow) | spinous
        plane |= (sternum < 1) & ((sternum > 0.7) | chest)
        shown = (np.abs(angle) / np.pi * 6 + z * 0.06) % 1 < 0.45
        plane |= (np.abs(rib - 1) < 0.035) & shown & ((np.abs(rib - 1) > 0.02) | spongy)
        plane |= speckle
    return mask


def percolation(depth: int, side: int) -> np.ndarray:
    """Random voxels, 30 %: near the point at which one component fills the volume."""
    return np.random.default_rng(0).random((depth, side, side), dtype=np.float32) < 0.3


def spiral(depth: int, side: int) -> np.ndarray:
    """One component: a spiral one voxel wide in every second slice, joined in turn in the middle and at the corner."""
    plane, (y, x), (dy, dx) = np.zeros((side, side), bool), (0, 0), (0, 1)
    plane[0, 0] = True
    reach = [side - 1, *(length for k in range(side - 1, 1, -2) for length in (k, k))]
    for length in reach:
        plane[min(y, y + dy * length) : max(y, y + dy * length) + 1, min(x, x + dx * length) : max(x, x + dx * length) + 1] = True
        y, x, dy, dx = y + dy * length, x + dx * length, dx, -dy
    mask = np.zeros((depth, side, side), bool)
    mask[::2] = plane
    for i, z in enumerate(range(1, depth - 1, 2)):
        mask[(z, 0, 0) if i % 2 else (z, y, x)] = True
    return mask


def with_hu(mask: np.ndarray) -> np.ndarray:
    """HU int16 for a mask: 130 to 1,500 inside, below 130 outside."""
    rng = np.random.default_rng(1)
    hu = rng.integers(-200, 129, mask.shape, dtype=np.int16)
    hu[mask] = rng.integers(130, 1500, int(mask.sum()), dtype=np.int16)
    return hu

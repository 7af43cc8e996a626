"""Beam hardening and the map of quantum noise, from a coarse scout of the whole chest that is projected and reconstructed.

Dense matter (bone, contrast, calcium) hardens the beam, so that rays which cross much of it read too little. The error is added to
each ray's line integral and reconstructed: dark bands between dense structures, bright ones beside them (second-order model of
Joseph and Spital 1978). Its part that only rescales the dense matter is removed, since tissue values are given as measured.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy import fft, sparse

from cacjax.phantom.anatomy import stream
from cacjax.phantom.render import Grid, render

SCOUT_PIXELS, SCOUT_MM, SCOUT_DZ_MM, BLUR_MM = 72, 5.5, 4.0, 2.2
ANGLES = 60
WATER_PER_MM = 0.02
DENSE_HU = 110.0
HARDENING, SELF_HARDENING = 0.014, 2.0  # at 120 kVp; weight of the dense path itself against that of water
NOISE_EXPONENT = 0.5  # noise variance grows with the ray's line integral; less than 1 as tube current and bow tie follow the body


STREAKS_HU, STARVED, STARVED_SHARE = 18.0, 1.0, 0.05  # SD in the body; how steeply they grow with a ray's line integral; of the rays


class Beam(NamedTuple):
    """Per voxel of a scan: hardening error HU [z, y, x] and relative noise SD [z, y, x] (1 at the heart)."""

    error_hu: np.ndarray
    noise: np.ndarray


def scan_beam(anatomy, grid: Grid, timing, protocol, couch: bool, calcium, centre_mm) -> Beam:
    """Simulate the beam for one scan; calcium [z, y, x] HU on `grid`; centre_mm [3]: where the noise has its nominal value."""
    scout_grid, scout_timing = _scout(grid, timing)
    scout, *_ = render(anatomy, scout_grid, scout_timing, protocol.blood, (BLUR_MM, BLUR_MM), couch)
    scout += _binned(calcium, grid, scout_grid)
    water = WATER_PER_MM * np.clip(scout + 1000.0, 0, None) / 1000.0
    dense = WATER_PER_MM * np.where(scout > DENSE_HU, scout, 0.0) / 1000.0
    path, dense_path = project(water), project(dense)
    error = harden(path, dense_path, HARDENING * protocol.hardening * (120.0 / protocol.kvp) ** 1.5)
    error_hu = reconstruct(error) * (1000.0 / WATER_PER_MM)
    noise = np.sqrt(np.maximum(_spread(np.exp(NOISE_EXPONENT * path)) / ANGLES, 0.0))
    middle = (np.asarray(centre_mm) - scout_grid.origin_mm)[::-1] / scout_grid.spacing_mm
    noise /= noise[tuple(np.clip(np.round(middle).astype(int), 0, np.array(scout_grid.shape) - 1))]
    return Beam(_onto(error_hu, scout_grid, grid), _onto(noise, scout_grid, grid))


def streaks(anatomy, grid: Grid, timing, protocol, couch: bool, seed: int):
    """HU [z, y, x] of streaks by rays that few photons pass, those from side to side through the shoulders most: STREAKS_HU at its mean."""
    scout_grid, scout_timing = _scout(grid, timing)
    scout, *_ = render(anatomy, scout_grid, scout_timing, protocol.blood, (BLUR_MM, BLUR_MM), couch)
    path = project(WATER_PER_MM * np.clip(scout + 1000.0, 0, None) / 1000.0)
    g = stream(seed, 710)
    rays = g.standard_normal(path.shape, dtype=np.float32) * np.exp(STARVED * (path - path.max())) * (g.random(path.shape) < STARVED_SHARE)
    found = reconstruct(rays)
    return _onto(found * (STREAKS_HU / max(found[scout > -300].std(), 1e-9)), scout_grid, grid)


def harden(path, dense_path, strength):
    """Error of each ray's line integral [angle, detector, slice], without the part that rescales the dense matter."""
    loss = -strength * dense_path * (path + SELF_HARDENING * dense_path)
    scale = np.sum(loss * dense_path) / max(np.sum(dense_path * dense_path), 1e-9)
    return loss - scale * dense_path


def _scout(grid, timing):
    """The scout's grid around the body over the range of the scan, and the timing of the slices nearest to its slices."""
    z = grid.axis(0)
    count = max(2, int(np.ceil((z[-1] - z[0]) / SCOUT_DZ_MM)) + 1)
    dz = max((z[-1] - z[0]) / (count - 1), 1e-3)
    corner = -SCOUT_MM * (SCOUT_PIXELS - 1) / 2
    nearest = np.clip(np.round((z[0] + dz * np.arange(count) - z[0]) / grid.spacing_mm[0]).astype(int), 0, len(z) - 1)
    timing = timing._replace(time_s=timing.time_s[nearest], shift_mm=timing.shift_mm[nearest])
    return Grid((count, SCOUT_PIXELS, SCOUT_PIXELS), (dz, SCOUT_MM, SCOUT_MM), (corner, corner + 4.0, z[0])), timing


def _binned(values, grid, scout_grid):
    """Sum of voxel values [z, y, x] falling into the scout's voxels, as a mean over each of them."""
    at = np.nonzero(values > 20.0)
    index = []
    for k in range(3):
        place = (grid.axis(k)[at[k]] - scout_grid.origin_mm[2 - k]) / scout_grid.spacing_mm[k]
        index.append(np.clip(np.round(place).astype(int), 0, scout_grid.shape[k] - 1))
    flat = np.ravel_multi_index(index, scout_grid.shape) if len(at[0]) else np.zeros(0, int)
    total = np.bincount(flat, values[at], minlength=int(np.prod(scout_grid.shape))).reshape(scout_grid.shape)
    return total * np.prod(grid.spacing_mm) / np.prod(scout_grid.spacing_mm)


@functools.lru_cache(maxsize=1)
def _system():
    """Sparse projector [angle x detector, pixel]: each pixel falls on two detectors by linear interpolation."""
    n = SCOUT_PIXELS
    detectors = int(np.ceil(n * np.sqrt(2))) + 3
    y, x = np.mgrid[:n, :n] - (n - 1) / 2
    rows, columns, values = [], [], []
    for k, angle in enumerate(np.pi * (np.arange(ANGLES) + 0.5) / ANGLES):
        s = (x * np.cos(angle) + y * np.sin(angle)).ravel() + (detectors - 1) / 2
        low = np.floor(s).astype(int)
        for detector, weight in ((low, 1 - (s - low)), (low + 1, s - low)):
            rows.append(k * detectors + detector)
            columns.append(np.arange(n * n))
            values.append(weight)
    parts = (np.concatenate(values).astype(np.float32), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_matrix(parts, shape=(ANGLES * detectors, n * n)), detectors


def project(images):
    """Parallel-beam line integrals [angle, detector, slice] of attenuation images [slice, y, x] in 1/mm."""
    system, detectors = _system()
    flat = np.ascontiguousarray(images.reshape(len(images), -1).T, np.float32)
    return (SCOUT_MM * (system @ flat)).reshape(ANGLES, detectors, -1)


def _spread(rays):
    """Sum over angles of the ray through each pixel: [slice, y, x]."""
    system, detectors = _system()
    flat = system.T @ np.ascontiguousarray(rays.reshape(ANGLES * detectors, -1), np.float32)
    return flat.T.reshape(-1, SCOUT_PIXELS, SCOUT_PIXELS)


def reconstruct(rays):
    """Filtered back-projection (ramp with a Hann window) of line integrals: attenuation images [slice, y, x] in 1/mm."""
    size = fft.next_fast_len(2 * rays.shape[1])
    f = fft.rfftfreq(size)
    ramp = f * (0.5 + 0.5 * np.cos(2 * np.pi * f)) / SCOUT_MM
    filtered = fft.irfft(fft.rfft(rays, size, axis=1) * ramp[:, None].astype(np.float32), size, axis=1)[:, : rays.shape[1]]
    return _spread(filtered) * (np.pi / ANGLES)


def _onto(images, scout_grid, grid):
    """Smooth values of scout images on the scan's grid: linear along z, cubic in plane."""
    rows = _cubic((grid.axis(1) - scout_grid.origin_mm[1]) / SCOUT_MM)
    columns = _cubic((grid.axis(2) - scout_grid.origin_mm[0]) / SCOUT_MM)
    count = len(images)
    wide = images.astype(np.float32).reshape(-1, SCOUT_PIXELS) @ columns.T  # [slice and y, x]
    wide = np.ascontiguousarray(wide.reshape(count, SCOUT_PIXELS, -1).transpose(1, 0, 2)).reshape(SCOUT_PIXELS, -1)
    full = (rows @ wide).reshape(len(rows), count, -1).transpose(1, 0, 2)
    place = (grid.axis(0) - scout_grid.origin_mm[2]) / scout_grid.spacing_mm[0]
    low = np.clip(place.astype(int), 0, count - 2)
    share = (place - low)[:, None, None].astype(np.float32)
    return np.stack([full[i] + t * (full[i + 1] - full[i]) for i, t in zip(low, share)])


def _cubic(place):
    """Weights [to, from] of Catmull-Rom interpolation at fractional pixels, constant outside."""
    place = np.clip(place, 0, SCOUT_PIXELS - 1)
    t = np.abs(place[:, None] - np.arange(SCOUT_PIXELS)[None])
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = np.where(t < 1, near, np.where(t < 2, far, 0.0))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)

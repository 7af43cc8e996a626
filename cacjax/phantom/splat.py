"""Small structures (arteries, calcium) as moving point samples: deposited on the host, then blurred by two sparse matrix products.

Every (sample, slice, instant) triple inside the slice profile is deposited bilinearly on a fine in-plane lattice, and the lattice is
carried to the image by a Gaussian whose variance is that of the scanner less that of the deposit. Mass is conserved by construction,
the sum does not depend on the order, and nothing is compiled.
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse

from cacjax.phantom import motion

BLOCK = 16  # slices handled at a time, to bound memory
STILL_INSTANTS, MOVING_INSTANTS = 2, 6
_REACH = 3.0  # of the in-plane standard deviation


class Samples(NamedTuple):
    """Points of one structure: position [n, 3] mm in the scanner, beat [n, 3] mm at full contraction, amplitude [n] HU mm3."""

    position: np.ndarray
    beat: np.ndarray
    amplitude: np.ndarray

    def take(self, chosen):
        """The samples that `chosen` (mask or indices) picks."""
        return Samples(self.position[chosen], self.beat[chosen], self.amplitude[chosen])


class Optics(NamedTuple):
    """Blur of the scanner: sigma_mm in plane, thickness_mm and soft edge (sigma, mm) of the slice profile, lattice step in sigmas."""

    sigma_mm: float
    thickness_mm: float
    edge_mm: float
    fineness: float = 0.7


def splat(samples: Samples, grid, timing, optics: Optics, gated: bool):
    """Blurred contribution of the samples: (window, image), window = (slices, rows, columns) of the scan that `image` fills.

    Returns None if nothing reaches the scan.
    """
    course = _course(timing, MOVING_INSTANTS if not gated else STILL_INSTANTS)
    low, high = _slice_range(samples, grid, course, optics)
    reached = (high >= 0) & (low < grid.shape[0]) & (high >= low)
    if not reached.any():
        return None
    samples, low, high = samples.take(reached), low[reached], high[reached]
    window = _window(samples, grid, course, optics, low, high)
    if any(w.stop <= w.start for w in window):
        return None
    image = np.zeros([w.stop - w.start for w in window], np.float32)
    for start in range(window[0].start, window[0].stop, BLOCK):
        stop = min(start + BLOCK, window[0].stop)
        here = (high >= start) & (low < stop)
        if here.any():
            block = (samples.take(here), np.maximum(low[here], start), np.minimum(high[here], stop - 1))
            image[start - window[0].start : stop - window[0].start] = _block(block, (start, stop), window, grid, course, optics)
    return window, image


class _Course(NamedTuple):
    """Per slice and instant [z, s]: contraction and rigid offset [z, s, 3] in mm."""

    shrink: np.ndarray
    offset: np.ndarray


def _course(timing, instants):
    spread = (np.arange(instants) + 0.5) / instants - 0.5
    time = timing.time_s[:, None] + timing.window_s * spread
    breath = motion.breathing_mm(time, timing.breath)
    offset = np.repeat(timing.shift_mm[:, None], instants, 1)
    offset[..., 2] += timing.lift_mm - breath
    offset[..., 1] += 0.2 * breath
    return _Course(motion.contraction(time, timing.rr_s).astype(np.float32), offset.astype(np.float32))


def _slice_range(samples, grid, course, optics):
    """First and last slice [n] whose profile a sample can reach at any instant."""
    dz, z0 = grid.spacing_mm[0], grid.origin_mm[2]
    reach = 0.5 * optics.thickness_mm + 1.88 * optics.edge_mm
    ends = [c * samples.beat[:, 2] for c in (course.shrink.min(), course.shrink.max())]
    bottom = samples.position[:, 2] + np.minimum(*ends) + course.offset[..., 2].min() - reach
    top = samples.position[:, 2] + np.maximum(*ends) + course.offset[..., 2].max() + reach
    low, high = np.ceil((bottom - z0) / dz).astype(int), np.floor((top - z0) / dz).astype(int)
    return np.maximum(low, 0), np.minimum(high, grid.shape[0] - 1)


def _extent(samples, course, axis):
    """Lowest and highest coordinate that any sample takes along axis (0 = x)."""
    ends = [samples.position[:, axis] + c * samples.beat[:, axis] for c in (course.shrink.min(), course.shrink.max())]
    offset = course.offset[..., axis]
    return min(e.min() for e in ends) + offset.min(), max(e.max() for e in ends) + offset.max()


def _window(samples, grid, course, optics, low, high):
    spans = [slice(int(low.min()), int(high.max()) + 1)]
    for array_axis, axis in ((1, 1), (2, 0)):
        first, last = _extent(samples, course, axis)
        step, origin = grid.spacing_mm[array_axis], grid.origin_mm[axis]
        margin = _REACH * optics.sigma_mm
        i, j = int(np.floor((first - margin - origin) / step)), int(np.ceil((last + margin - origin) / step)) + 1
        spans.append(slice(max(i, 0), min(j, grid.shape[array_axis])))
    return tuple(spans)


def _block(block, span, window, grid, course, optics):
    """The image of `window` for the slices span = (start, stop)."""
    samples, low, high = block
    step = optics.fineness * optics.sigma_mm
    bounds = [_extent(samples, course, axis) for axis in (0, 1)]
    counts = [int((last - first) / step) + 3 for first, last in bounds]
    pairs = _pairs(low, high)
    place = _Lattice(span[0], span[1] - span[0], [b[0] for b in bounds], step, counts)
    deposits = [_deposit(samples, *pairs, t, grid, course, optics, place) for t in range(course.shrink.shape[1])]
    index, weight = (np.concatenate([part for deposit in deposits for part in deposit[k]]) for k in (0, 1))
    lattice = np.bincount(index, weight, minlength=place.slices * counts[0] * counts[1]).astype(np.float32)
    rows = _blur(grid.axis(1)[window[1]], bounds[1][0] + step * np.arange(counts[1]), step, optics)
    columns = _blur(grid.axis(2)[window[2]], bounds[0][0] + step * np.arange(counts[0]), step, optics)
    half = (rows @ lattice.reshape(counts[1], -1)).reshape(-1, counts[0])  # [y and slice, lattice x]
    return (columns @ np.ascontiguousarray(half.T)).reshape(-1, rows.shape[0], place.slices).transpose(2, 1, 0)


class _Lattice(NamedTuple):
    """Fine in-plane lattice, memory order [y, slice, x]: origin (x, y) and step in mm, counts (x, y)."""

    first_slice: int
    slices: int
    origin: list
    step: float
    counts: list


def _pairs(low, high):
    """All (sample, slice) pairs with low <= slice <= high: two index arrays."""
    counts = high - low + 1
    sample = np.repeat(np.arange(len(low)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    return sample, np.arange(len(sample)) - first + low[sample]


def _deposit(samples, sample, k, instant, grid, course, optics, place):
    """Lattice indices and weights of all pairs at one instant, each as a list of four arrays (the corners)."""
    height = samples.position[sample, 2] + course.shrink[k, instant] * samples.beat[sample, 2] + course.offset[k, instant, 2]
    profile = _profile(height - (grid.origin_mm[2] + k * grid.spacing_mm[0]), optics)
    seen = np.flatnonzero(profile > 1e-7)
    sample, k = sample[seen], k[seen]
    weight = samples.amplitude[sample] * profile[seen] / course.shrink.shape[1]
    moved = samples.position[sample, :2] + course.shrink[k, instant, None] * samples.beat[sample, :2] + course.offset[k, instant, :2]
    cell = np.maximum((moved - place.origin) / place.step, 0).astype(np.float32)
    whole = cell.astype(np.int64)
    fu, fv = (cell - whole).T
    width = place.counts[0]
    below = place.slices * width
    index = whole[:, 1] * below + (k - place.first_slice) * width + whole[:, 0]
    shares = ((1 - fv) * (1 - fu), (1 - fv) * fu, fv * (1 - fu), fv * fu)
    return [index + step for step in (0, 1, below, below + 1)], [weight * share for share in shares]


def _profile(distance, optics):
    """Slice sensitivity 1/mm at a distance from the slice centre: a box with soft edges."""
    half, edge = 0.5 * optics.thickness_mm, optics.edge_mm
    return (_cdf((distance + half) / edge) - _cdf((distance - half) / edge)) / optics.thickness_mm


def _cdf(x):
    t = np.clip(0.5 + x * (1 / 3.76), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _blur(to_mm, from_mm, step, optics):
    """Sparse matrix [to, from] of the Gaussian that is left after the bilinear deposit (variance step^2 / 6), 1/mm."""
    variance = optics.sigma_mm**2 - step**2 / 6
    distance = to_mm[:, None] - from_mm[None]
    density = np.exp(-0.5 * distance**2 / variance) / np.sqrt(2 * np.pi * variance)
    density[np.abs(distance) > _REACH * optics.sigma_mm] = 0.0
    return sparse.csr_matrix(density.astype(np.float32))

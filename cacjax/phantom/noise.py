"""Quantum noise with the texture of a reconstruction kernel, and the edge boost of sharp kernels. Host only, one stream per slice."""

import numpy as np
from scipy import fft

# kernel -> (cut-off 1/mm, exponent of the ramp): noise power rises with frequency before the apodisation takes over.
KERNELS = {"soft": (0.42, 0.6), "sharp": (0.75, 0.9)}
BOOST, BOOST_SIGMA_MM = 0.45, 0.55
LATERAL = 0.3  # rays from the side are weakest, so their noise, which varies along y, is stronger
_STREAM = 100_000


def add_noise(image, grid, protocol, scan_seed: int, relative_sd):
    """Add noise of SD protocol.noise_hu x relative_sd [z, y, x] to image [z, y, x] in place.

    Neighbouring slices share noise as overlapping reconstructions do; each slice of white noise is a function of the scan seed and the
    slice number only.
    """
    overlap = protocol.thickness_mm / grid.spacing_mm[0]
    reach = int(np.ceil(overlap))
    weights = np.clip(1 - np.abs(np.arange(-reach, reach + 1)) / (overlap + 1e-6), 0, 1)
    weights = (weights / np.sqrt((weights**2).sum())).astype(np.float32)
    spectrum = _spectrum(grid, protocol.kernel)
    kept = {}
    for k in range(grid.shape[0]):
        total = 0.0
        for j in np.flatnonzero(weights):
            source = k + j - reach
            if source not in kept:
                kept[source] = _slice(scan_seed, source, grid.shape[1:], spectrum)
            total = total + weights[j] * kept[source]
        kept = {q: v for q, v in kept.items() if q >= k - reach}
        image[k] += protocol.noise_hu * relative_sd[k] * total


def _frequency(grid):
    fy = fft.fftfreq(grid.shape[1], grid.spacing_mm[1])[:, None]
    return np.hypot(fy, fft.rfftfreq(grid.shape[2], grid.spacing_mm[2])[None]).astype(np.float32)


def _spectrum(grid, kernel):
    """Amplitude per frequency of unit-variance noise."""
    cutoff, power = KERNELS[kernel]
    cutoff = min(cutoff, 0.45 / max(grid.spacing_mm[1:])) if max(grid.spacing_mm[1:]) > 1.2 else cutoff
    f = _frequency(grid)
    amplitude = (f + 0.01) ** power * np.exp(-((f / cutoff) ** 2))
    lateral = fft.fftfreq(grid.shape[1], grid.spacing_mm[1])[:, None] ** 2 / (f * f + 1e-6)
    amplitude *= 1 + LATERAL * lateral
    whole = np.concatenate([amplitude, amplitude[:, 1:-1]], 1)
    return amplitude / np.sqrt(np.mean(whole**2))


def _slice(scan_seed, number, shape, spectrum):
    g = np.random.Generator(np.random.Philox(key=[scan_seed, _STREAM + number]))
    white = g.standard_normal(shape, dtype=np.float32)
    return fft.irfft2(fft.rfft2(white) * spectrum, s=shape)


def boost_edges(image, grid):
    """Overshoot of a sharp kernel, image [z, y, x] in place."""
    f2 = _frequency(grid) ** 2
    gain = 1 + BOOST * (1 - np.exp(-2 * np.pi**2 * BOOST_SIGMA_MM**2 * f2)) * np.exp(-f2 / 0.81)
    for k in range(len(image)):
        image[k] = fft.irfft2(fft.rfft2(image[k]) * gain, s=image[k].shape)

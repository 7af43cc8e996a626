"""Random tone curves, which let a network learn from unenhanced scans what contrast medium changes."""

import numpy as np
from scipy import ndimage

# Knots in HU, with tissue between -50 and 130 HU resolved finely.
KNOTS = (-1000.0, -200.0, -50.0, 0.0, 30.0, 60.0, 130.0, 250.0, 500.0, 1000.0, 3000.0)
ANCHOR_HU = -100.0  # fat stays where it is, whatever the curve
SLOPE_SD = 0.4  # of the logarithm of each slope
LIFT = (0.7, 600.0)  # share of curves that lift soft tissue as contrast medium does, largest lift in HU
UNTOUCHED, DIRECT = 0.25, 0.35  # shares; the rest applies the curve to the smoothed image
SMOOTH_PX = 1.2
NOISE = (0.5, 25.0)  # share of touched samples that get noise, largest sd in HU


def curve(rng: np.random.Generator, *, lift: bool) -> np.ndarray:
    """Draw the values in HU of a random increasing curve at KNOTS; it maps -100 HU to itself.

    Slopes are log-normal around 1 (air to lung: 1). With `lift`, 70 % of curves rise by a further 0-600 HU between 0
    and 60 HU: unenhanced blood and muscle take the values they have after contrast medium.
    """
    slopes = np.exp(rng.normal(0.0, SLOPE_SD, len(KNOTS) - 1))
    slopes[0] = 1.0
    rises = slopes * np.diff(KNOTS)
    if lift and rng.random() < LIFT[0]:
        rises[3:5] += rng.uniform(0.0, LIFT[1]) * rng.dirichlet((2.0, 2.0))
    values = np.concatenate([[0.0], np.cumsum(rises)])
    return values - np.interp(ANCHOR_HU, KNOTS, values) + ANCHOR_HU


def change(hu: np.ndarray, rng: np.random.Generator, *, lift: bool) -> np.ndarray:
    """Change the tones of plane patches [planes, y, x, slab] or a block [z, y, x]: HU in, float32 HU out.

    A quarter is left as it is; 35 % get a random curve; 40 % get the change that the curve makes to the smoothed image,
    so that noise is not amplified; half of the changed ones get white noise of 0-25 HU. `lift=False` is the plain
    jitter of slopes, the control for what contrast-like curves add.
    """
    image, mode = hu.astype(np.float32), rng.random()
    if mode < UNTOUCHED:
        return image
    values = curve(rng, lift=lift)
    if mode < UNTOUCHED + DIRECT:
        image = np.interp(image, KNOTS, values).astype(np.float32)
    else:
        smooth = ndimage.gaussian_filter(image, (0, SMOOTH_PX, SMOOTH_PX, 0)[: image.ndim])
        image += np.interp(smooth, KNOTS, values).astype(np.float32) - smooth
    if rng.random() < NOISE[0]:
        image += np.float32(rng.uniform(0.0, NOISE[1])) * rng.standard_normal(image.shape, dtype=np.float32)
    return image

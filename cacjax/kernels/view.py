"""The contrast-removing view: an enhanced scan shown to a network as the non-contrast CT that it learned from. HU [z, y, x].

Ours, beyond Zhai 2022: blood and what is darker is drawn down to unenhanced blood, what is brighter keeps its distance to it, and
thin slices are averaged to the thickness of non-contrast CT. It needs the mean of the ascending aorta, which the scan threshold
needs too, and no label. Scores, thresholds and region growing go on reading the scan itself.
"""

import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float32, Integer

from cacjax.kernels.shapes import HU, Scalar

NAMES = ("none", "contrast_removed")
BLOOD_HU = 45.0  # unenhanced
ENHANCED_HU = 130.0  # a brighter aortic mean is contrast medium
SLAB_MM = 3.0  # thickness of the slices that the source network saw


def slab_weights(step_mm: Scalar, slab_mm: Scalar = SLAB_MM) -> tuple[float, ...]:
    """Weights of the neighbouring slices in a slab around each slice, by overlap; odd in number, (1.0,) for thick slices."""
    reach = int(np.ceil((slab_mm / step_mm - 1) / 2 - 1e-6)) if step_mm < slab_mm else 0
    edges = (np.arange(-reach, reach + 2) - 0.5) * step_mm
    overlap = np.diff(np.clip(edges, -slab_mm / 2, slab_mm / 2)) if reach else np.ones(1)
    return tuple(float(w) for w in overlap / overlap.sum())


def remove_contrast(
    hu: HU, aorta_hu: Scalar, weights: tuple[float, ...], slices: Integer[ArrayLike, ""] | None = None
) -> Float32[Array | np.ndarray, "z y x"]:
    """The view of a scan; numpy or JAX arrays alike. aorta_hu: mean of the ascending aorta; a scan that is not enhanced
    (below 130 HU, or NaN) stays as it is.

    0 to aorta_hu becomes 0 to 45 HU, darker stays, brighter moves down by aorta_hu - 45 HU. weights: see `slab_weights`. slices: how
    many of the first ones are real; those beyond the ends are the end ones.
    """
    xp, hu = hu.__array_namespace__(), hu.astype(np.float32)
    enhanced = aorta_hu >= ENHANCED_HU
    top = xp.where(enhanced, aorta_hu, ENHANCED_HU).astype(np.float32)
    toned = xp.minimum(hu, 0) + xp.clip(hu, 0, top) * (BLOOD_HU / top) + xp.maximum(hu - top, 0)
    last, number, reach = (len(hu) if slices is None else slices) - 1, np.arange(len(hu)), len(weights) // 2
    seen = sum(w * toned[xp.clip(number + k - reach, 0, last)] for k, w in enumerate(weights))
    return xp.where(enhanced, seen, hu)

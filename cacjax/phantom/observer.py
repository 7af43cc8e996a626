"""What a human observer would mark on a simulated scan, and the scores of those marks."""

import numpy as np
from scipy import ndimage

NATIVE_THRESHOLD_HU = 130.0
VISIBLE_SD = 2.5  # calcium shows where it is above so many standard deviations of the noise
TRACE_HU, PEAK_HU, MIN_VOXELS = 12.0, 25.0, 3  # calcium a voxel must hold; calcium at the peak of a lesion; its size
_WEIGHTS = (130, 200, 300, 400)
ARTERIES = {"LAD": 1, "LCX": 2, "RCA": 3}
_ROI_HALF_MM = 8.0


def aortic_roi(hu, anatomy, grid, timing):
    """Mean and standard deviation in HU of a box in the ascending aorta at the level of the left ostium.

    The box is moved into the scan where the aorta lies at its border.
    """
    centre = 0.6 * np.asarray(anatomy["ao"][2], float) + 0.4 * np.asarray(anatomy["ao"][3], float)
    moved = timing.rotation @ (centre - timing.centre_mm) + timing.centre_mm + timing.translation_mm
    moved[2] += timing.lift_mm
    box = []
    for axis in range(3):
        step, size = grid.spacing_mm[axis], grid.shape[axis]
        half = max(1, int(_ROI_HALF_MM / step))
        at = int(np.clip(round((moved[2 - axis] - grid.origin_mm[2 - axis]) / step), half, size - half))
        box.append(slice(at - half, at + half))
    roi = hu[tuple(box)].astype(np.float64)
    return float(roi.mean()), float(roi.std())


def mark(scan, threshold_hu: float, contrast: bool):
    """Label uint8 [z, y, x]: voxels at or above the threshold that belong to a true deposit, in components of 3 voxels or more.

    Components are 26-connected on native scans and 6-connected with contrast, where lesions touch bright blood.
    """
    label = np.zeros(scan.hu.shape, np.uint8)
    box = _box(scan.calcium > TRACE_HU)
    hu, calcium, cls = scan.hu[box], scan.calcium[box], scan.cls[box]
    marked = np.where((hu >= threshold_hu) & (calcium > TRACE_HU), cls, 0).astype(np.uint8)
    component, count = ndimage.label(marked > 0, ndimage.generate_binary_structure(3, 1 if contrast else 3))
    if count:
        on = component > 0
        sizes = np.bincount(component[on], minlength=count + 1)
        peaks = np.zeros(count + 1)
        np.maximum.at(peaks, component[on], calcium[on])
        dropped = (sizes < MIN_VOXELS) | (peaks < PEAK_HU)
        dropped[0] = False
        marked[dropped[component]] = 0
    label[box] = marked
    return label


def visible(coronary, noise_hu: float):
    """Mask [z, y, x] of the coronary calcium that can be seen in axial slices, whatever its HU value.

    Voxels whose noise-free calcium, in HU, is above 2.5 standard deviations of the scan's noise, in slices with at least 3 of them.
    """
    seen = coronary > VISIBLE_SD * noise_hu
    return seen & (seen.sum((1, 2), keepdims=True) >= MIN_VOXELS)


def _box(mask):
    """Slices of the smallest box around a mask [z, y, x]; empty if it is."""
    spans = []
    for others in ((1, 2), (0, 2), (0, 1)):
        at = np.flatnonzero(mask.any(others))
        spans.append(slice(at[0], at[-1] + 1) if len(at) else slice(0, 0))
    return tuple(spans)


def agatston(hu, mask, spacing_mm) -> float:
    """Agatston score of a mask [z, y, x]: per slice, 8-connected areas >= 1 mm2 times 1-4 for the peak, times dz / 3 mm."""
    dz, dy, dx = spacing_mm
    total = 0.0
    for k in np.flatnonzero(mask.any((1, 2))):
        area, count = ndimage.label(mask[k], np.ones((3, 3)))
        peak = ndimage.maximum(hu[k], area, np.arange(1, count + 1))
        mm2 = np.bincount(area.ravel(), minlength=count + 1)[1:] * dy * dx
        total += float((mm2 * np.digitize(peak, _WEIGHTS) * (mm2 >= 1.0)).sum()) * dz / 3.0
    return total


def scores(hu, label, spacing_mm) -> dict:
    """Agatston score, volume mm3 and pseudo-mass (sum of HU x mm3) per artery and in total: three dicts."""
    voxel = float(np.prod(spacing_mm))
    masks = {name: label == value for name, value in ARTERIES.items()} | {"total": (label >= 1) & (label <= 3)}
    return {
        "agatston": {k: agatston(hu, m, spacing_mm) for k, m in masks.items()},
        "volume_mm3": {k: float(m.sum() * voxel) for k, m in masks.items()},
        "pseudo_mass": {k: float(hu[m].astype(np.float64).sum() * voxel) for k, m in masks.items()},
    }

"""No network: what intensity alone makes of enhanced scans, which any network has to surpass."""

import numpy as np

from cacjax.classes import CORONARY
from cacjax.evaluation import metrics
from cacjax.files import manifest, scan
from cacjax.kernels import reduction


def measure(folder, margins_hu) -> dict:
    """{margin in HU: figures as `uda.measure` gives them} of a manifest's scans: all that lies in the true heart, so much above the scan
    threshold, is coronary calcium, with reduction of false positives as published."""
    found = {margin: [] for margin in margins_hu}
    for row in manifest.read(folder):
        image = scan.read(row.scan)
        turned, real, heart = scan.oriented(image, scan.read_mask(row.mask, image), scan.read_mask(row.heart, image) > 0)
        spacing_mm = scan.spacing_mm(turned.affine)
        for margin, kept in found.items():
            bright = ((turned.hu >= row.threshold_hu + margin) & heart).astype(np.uint8)
            mask, _ = reduction.grow(bright, turned.hu, row.threshold_hu, heart, spacing_mm)
            kept.append((metrics.count_voxels(np.asarray(mask) > 0, np.isin(real, CORONARY)), float(np.prod(spacing_mm))))
    return {margin: figures(*zip(*kept)) for margin, kept in found.items()}


def figures(counts, voxels_mm3) -> dict:
    """Means over scans and pooled figures of voxel counts; no average precision, since nothing is ranked."""
    pooled = metrics.add(counts)
    return {
        "sensitivity": float(np.mean([metrics.sensitivity(count) for count in counts])),
        "fp_mm3": float(np.mean([count.fp * voxel_mm3 for count, voxel_mm3 in zip(counts, voxels_mm3)])),
        "f1": float(np.mean([metrics.f1(count) for count in counts])),
        "sensitivity_pooled": metrics.sensitivity(pooled),
        "f1_pooled": metrics.f1(pooled),
        "ap_pooled": None,
        "counts": [list(count) for count in counts],
    }

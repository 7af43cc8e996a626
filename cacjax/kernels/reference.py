"""The reference standard of labels: which labelled voxels are a lesion, and of which artery. On the host; arrays are [z, y, x]."""

import numpy as np
from scipy import ndimage

from cacjax.classes import CALCIUM_HU, CORONARY


def settle(label: np.ndarray, hu: np.ndarray, voxel_mm3: float, least_mm3: float) -> np.ndarray:
    """Coronary labels, uint8: 6-connected components of labelled voxels above 130 HU that are larger than `least_mm3`, each with the class
    of most of its voxels, ties to the smallest; everything else 0 (Zhang 2018, section 3.1; Wolterink 2016)."""
    real = np.isin(label, CORONARY) & (hu > CALCIUM_HU)
    part, n = ndimage.label(real)
    votes = np.stack([np.bincount(part[label == c], minlength=n + 1) for c in CORONARY], 1) if n else np.zeros((1, len(CORONARY)), int)
    kind = np.where(np.bincount(part.ravel(), minlength=n + 1) * voxel_mm3 > least_mm3, np.array(CORONARY)[votes.argmax(1)], 0)
    kind[0] = 0
    return kind.astype(np.uint8)[part]

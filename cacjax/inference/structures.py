"""The heart's structures by a segmentation network: probabilities on its own grid, made finer before the choice (Bruns 2022). [z, y, x]."""

import numpy as np
from scipy import ndimage

from cacjax.classes import AORTA
from cacjax.kernels import grids, spatial


def segmenter(config, predict):
    """`Task.segment` upon predict(state, hu) -> probabilities [classes, z, y, x] on the network's grid; config.data.grid describes that.

    Of the heart and of the aorta the largest connected part is kept.
    """

    def segment(state, hu, spacing_mm):
        coarse, index = grids.resample(hu, spacing_mm, config.data.grid)
        probability = np.array(predict(state, coarse))
        label = probability.argmax(0)
        keep = largest((label > 0) & (label != AORTA)) | largest(label == AORTA)
        probability[0][~ndimage.binary_dilation(keep)] = 1.0  # a voxel around what is kept stays, for the interpolation
        return _choose(probability, index, hu.shape, keep)

    return segment


def _choose(probability, index, shape, keep):
    """Most probable class of each voxel of the scan, uint8, worked out in the box around `keep`. index: see `grids.resample`."""
    found = np.zeros(shape, np.uint8)
    if not keep.any():
        return found
    corners = np.argwhere(keep)
    ends = np.stack([index[:3, :3] @ (corner + step) + index[:3, 3] for corner, step in ((corners.min(0), -1), (corners.max(0), 1))])
    low = np.clip(np.floor(ends[0]).astype(int), 0, shape)
    high = np.clip(np.ceil(ends[1]).astype(int) + 1, 0, shape)
    best = np.zeros(high - low, np.float32)
    label = np.zeros(high - low, np.uint8)
    for number, each in enumerate(probability):
        each = np.asarray(spatial.resample_to(each, index, grids.scaling([1, 1, 1], low), high - low))
        label[each > best] = number
        np.maximum(best, each, out=best)
    found[tuple(map(slice, low, high))] = label
    return found


def largest(mask):
    """The largest 6-connected part of a mask; an empty mask as it is."""
    parts, count = ndimage.label(mask)
    return mask if count < 2 else parts == 1 + np.bincount(parts.ravel())[1:].argmax()

"""The heart of a scan, from a mask or from a segmentation network, before anything is detected. Arrays [z, y, x].

A network brings the structures below; the heart is all of them but the aorta. Bruns 2022 has the first six. The rest within the
pericardium, mostly fat, is where the coronary arteries run: without it the heart, dilated by 5 mm, misses some of them.
"""

import itertools
import pathlib
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from cacjax.files import scan
from cacjax.kernels import spatial
from cacjax.report import pictures

STRUCTURES = ("background", "LV cavity", "RV", "LA", "RA", "LV myocardium", "ascending aorta", "rest within the pericardium")
LV_CAVITY, LA, AORTA = (STRUCTURES.index(name) for name in ("LV cavity", "LA", "ascending aorta"))
LEAST_ML = 50.0  # of a heart that a network finds: less is a mistake, or a scan of something else


class Heart(NamedTuple):
    """mask: bool on the scan's own grid; structures: uint8 (indices of STRUCTURES) there, or None; classes: how many of STRUCTURES
    were looked for, 0 for a mask; source: "mask" or "network"."""

    mask: np.ndarray
    structures: np.ndarray | None
    classes: int
    source: str


def find(given, image):
    """The `Heart` of a Scan, or None where nothing is given.

    given: a mask as path or array, or a segmentation network (config, predict). Raises ScanError `grid_mismatch`, `empty_heart`, or
    `no_heart` where the network finds none.
    """
    if given is None:
        return None
    if isinstance(given, tuple):
        return _segmented(given, image)
    mask = as_mask(given, image) > 0
    if not mask.any():
        raise scan.ScanError("empty_heart", f"{image.path}: expected a heart mask with voxels in it, got an empty one")
    return Heart(mask, None, 0, "mask")


def as_mask(mask, image):
    """A mask [z, y, x] on the grid of `image` from a path or an array. Raises ScanError `grid_mismatch`."""
    if isinstance(mask, str | pathlib.Path):
        return scan.read_mask(mask, image)
    mask = np.asarray(mask)
    if mask.shape != image.hu.shape:
        text = f"{image.path}: expected a mask of shape {image.hu.shape}, got {mask.shape}"
        raise scan.ScanError("grid_mismatch", text)
    return mask


def _segmented(segmenter, image):
    structures = segment(segmenter, image)
    mask = is_heart(structures)
    found_ml = float(mask.sum() * np.prod(scan.spacing_mm(image.affine)) / 1000)
    if found_ml < LEAST_ML:
        text = f"{image.path}: expected a heart of at least {LEAST_ML:g} ml, the network found {found_ml:.0f} ml"
        raise scan.ScanError("no_heart", text)
    return Heart(mask, structures, int(segmenter[0].model.classes), "network")


def segment(segmenter, image):
    """Structures (uint8) of a Scan on its own grid: probabilities on the network's grid, made finer before the choice (Bruns 2022).

    segmenter: (config, predict) of a heart network. Of the heart and of the aorta the largest connected part is kept.
    """
    config, predict = segmenter
    turned = scan.oriented(image)
    hu, affine = coarsen(turned.hu, turned.affine, config.spacing_mm)
    probability = np.array(predict(hu))
    label = probability.argmax(0)
    keep = largest(is_heart(label)) | largest(label == AORTA)
    probability[0][~ndimage.binary_dilation(keep)] = 1.0  # a voxel around what is kept stays, for the interpolation
    return scan.restore(_choose(probability, affine, turned, keep), image)


def is_heart(structures):
    """Where structures are the heart's, bool."""
    return (structures > 0) & (structures != AORTA)


def _choose(probability, affine, turned, keep):
    """Most probable class of each voxel of the scan, worked out in the box around `keep`."""
    found = np.zeros(turned.hu.shape, np.uint8)
    if not keep.any():
        return found
    to_scan = np.linalg.inv(turned.affine) @ affine
    corners = np.argwhere(keep)
    ends = np.stack([to_scan[:3, :3] @ (corner + step) + to_scan[:3, 3] for corner, step in ((corners.min(0), -1), (corners.max(0), 1))])
    low = np.clip(np.floor(ends[0]).astype(int), 0, found.shape)
    high = np.clip(np.ceil(ends[1]).astype(int) + 1, 0, found.shape)
    box_affine = turned.affine.copy()
    box_affine[:3, 3] += turned.affine[:3, :3] @ low
    best = np.zeros(high - low, np.float32)
    label = np.zeros(high - low, np.uint8)
    for number, each in enumerate(probability):
        each = np.asarray(spatial.resample_to(each, affine, box_affine, high - low))
        label[each > best] = number
        np.maximum(best, each, out=best)
    found[tuple(map(slice, low, high))] = label
    return found


def describe(heart, image):
    """What a record says of a `Heart`: where it is from, and the volume in ml of every structure that a network found."""
    if heart.structures is None:
        return {"from": heart.source}
    voxel_ml = np.prod(scan.spacing_mm(image.affine)) / 1000
    counts = np.bincount(heart.structures.ravel(), minlength=len(STRUCTURES))
    return {"from": heart.source, "structures_ml": {name: float(n * voxel_ml) for name, n in zip(STRUCTURES[1:], counts[1:])}}


def write(structures, image, threshold, out, name):
    """Write the heart, its structures numbered, to <name>_heart.nii.gz, and a picture of all that was found and of the measured box.

    threshold: as the record shows it; the heart's file serves as a heart mask.
    """
    scan.write_mask(np.where(structures == AORTA, 0, structures), image, out / f"{name}_heart.nii.gz")
    box = np.zeros(structures.shape, np.uint8)
    if "box" in threshold:
        box[tuple(slice(low, high) for low, high in zip(*threshold["box"]))] = 1
    turned, structures, box = scan.oriented(image, structures, box)
    draw(out / f"{name}_heart.png", turned, structures, box, threshold_hu=threshold["hu"], title=f"{name}: {_say(threshold)}")


def _say(threshold):
    text = f"threshold {threshold['hu']:.0f} HU, {threshold['from']}"
    return f"{text}; {threshold['mean_hu']:.0f} ± {threshold['sd_hu']:.0f} HU, {threshold['where']}" if "mean_hu" in threshold else text


def draw(path, turned, structures, box, *, threshold_hu, title):
    """Draw three cuts through the middle of the measured `box`, or of the heart: bare above, structures and box below. Writes a PNG."""
    spacing_mm = scan.spacing_mm(turned.affine)
    middle = [int(at.mean()) for at in np.nonzero(box if box.any() else structures)]
    figure, axes = pictures.canvas(2, 3, title)
    window = pictures.hu_window(threshold_hu)
    for axis, (upper, lower) in enumerate(axes.T):
        cut = [np.take(volume, middle[axis], axis) for volume in (turned.hu, structures, box)]
        sides = [mm for other, mm in enumerate(spacing_mm) if other != axis]
        image, marks, outline = cut if axis == 0 else (each[::-1] for each in cut)
        for panel in (upper, lower):
            pictures.draw(panel, image, sides, window, ("axial", "coronal", "sagittal")[axis], "AP" if axis == 2 else "RL")
        pictures.mark(lower, marks, pictures.COLOURS)
        pictures.mark(lower, outline, ("white",))
    found = [number for number in np.unique(structures) if number]
    pictures.legend(figure, [(STRUCTURES[number], pictures.COLOURS[number - 1]) for number in found])
    pictures.save(figure, path)


def coarsen(hu, affine, spacing_mm):
    """(HU float32, affine) of a scan at a spacing: means of whole blocks of voxels, then linear between them.

    Noise averages out as in the thicker slices that the network learned from; a finer spacing than the scan's is only interpolated.
    """
    old_mm = scan.spacing_mm(affine)
    whole = [max(1, int(new / old + 1e-6)) for new, old in zip(spacing_mm, old_mm, strict=True)]
    padded = np.pad(np.asarray(hu, np.float32), [(0, -n % w) for n, w in zip(hu.shape, whole)], mode="edge")
    blocks = padded.reshape(*itertools.chain(*((n // w, w) for n, w in zip(padded.shape, whole)))).mean((1, 3, 5))
    block_affine = affine @ _scaling(whole, [(w - 1) / 2 for w in whole])
    step = [new / (old * w) for new, old, w in zip(spacing_mm, old_mm, whole)]
    shape = [max(1, round(n / s)) for n, s in zip(blocks.shape, step)]
    new_affine = block_affine @ _scaling(step, [0, 0, 0])
    return np.asarray(spatial.resample_to(blocks, block_affine, new_affine, shape)), new_affine


def _scaling(factors, shift):
    matrix = np.diag([*factors, 1.0]).astype(float)
    matrix[:3, 3] = shift
    return matrix


def largest(mask):
    """The largest 6-connected part of a mask; an empty mask as it is."""
    parts, count = ndimage.label(mask)
    return mask if count < 2 else parts == 1 + np.bincount(parts.ravel())[1:].argmax()

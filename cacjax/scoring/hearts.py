"""The heart of a scan, from a mask or from a segmentation network, before anything is detected. Arrays [z, y, x].

A network brings the structures of `cacjax.classes.STRUCTURES`; the heart is all of them but the aorta. Without the rest within the
pericardium the heart, dilated by 5 mm, misses some coronary arteries.
"""

import pathlib
from typing import NamedTuple

import numpy as np

from cacjax.classes import AORTA, STRUCTURES
from cacjax.files import scan
from cacjax.kernels import anatomy

CHAMBERS = 6  # classes of a network that tells them apart
NOT_CHECKED = {"heart_not_checked": "no heart network looked at the scan: whether a heart is in view was not checked"}


class Heart(NamedTuple):
    """mask: bool on the scan's own grid; structures: uint8 (indices of STRUCTURES) there, or None; classes: how many of STRUCTURES
    were looked for, 0 for a mask; source: "mask" or "network"; flags: {code: note}."""

    mask: np.ndarray
    structures: np.ndarray | None
    classes: int
    source: str
    flags: dict = {}  # noqa: RUF012


def find(given, image):
    """The `Heart` of a Scan, or None where nothing is given.

    given: a mask as path or array, or the run of a segmentation network (config, task, state). Raises ScanError `grid_mismatch`,
    `empty_heart`, or `no_heart` where what the network finds can be none (see `cacjax.kernels.anatomy`).
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


def _segmented(run, image):
    turned, classes = scan.oriented(image), int(run.config.model.classes)
    spacing_mm = scan.spacing_mm(turned.affine)
    structures = run.task.segment(run.state, turned.hu, spacing_mm)
    mask = (structures > 0) & (structures != AORTA)
    cut, heart_ml = bool(mask[[0, -1]].any()), float(mask.sum() * np.prod(spacing_mm) / 1000)
    parts = {"structures": structures, "spacing_mm": spacing_mm} if classes >= CHAMBERS else {}
    if against := anatomy.contradictions(heart_ml, anatomy.lung_share(mask, turned.hu, spacing_mm), cut=cut, **parts):
        raise scan.ScanError("no_heart", f"{image.path}: what the network found is no heart: {'; '.join(against)}")
    mask, structures = (scan.restore(each, image) for each in (mask, structures))
    return Heart(mask, structures, classes, "network", anatomy.CUT if cut else {})


def describe(heart, image):
    """What a record says of a `Heart`: where it is from, and the volume in ml of every structure that a network found."""
    if heart is None:
        return {"from": "none: detection was not limited to the heart"}
    if heart.structures is None:
        return {"from": heart.source}
    voxel_ml = np.prod(scan.spacing_mm(image.affine)) / 1000
    counts = np.bincount(heart.structures.ravel(), minlength=len(STRUCTURES))
    return {"from": heart.source, "structures_ml": {name: float(n * voxel_ml) for name, n in zip(STRUCTURES[1:], counts[1:])}}

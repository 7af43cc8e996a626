"""Labels from the marks of a reader: the calcifications that a point lies on, and whether their score is in the category that was reported.

Gogin 2021, "Ground truth generation": connected components of voxels above 130 HU that are connected to the annotated positions; scans
whose Agatston score falls into another category than the reported one are reviewed.
"""

import csv
from typing import NamedTuple

import numpy as np

from cacjax.classes import CALCIUM_HU, CLASSES
from cacjax.kernels import grids, lesions, scores

CAC = CLASSES.index("CAC")
SNAP_MM = 2.0
RULE = "gogin"
FILE = "review.csv"


class Review(NamedTuple):
    """A scan whose labels from marks disagree with its reported category; the fields are the columns of review.csv."""

    scan: str
    split: str
    reported: str
    found: str
    agatston: float
    marks: int
    on_calcium: int


def label(hu, affine, marks) -> tuple[np.ndarray, int]:
    """(CAC, 7, in every 6-connected component of voxels >= 130 HU that a mark lies on, uint8 [z, y, x]; how many marks lie on one).

    hu [z, y, x]; affine: array order to LPS mm; marks: (x, y, z) in LPS mm, [n, 3]. A mark beside calcium counts for the nearest voxel of
    it within 2 mm.
    """
    bright = np.asarray(hu) >= CALCIUM_HU
    component = grids.cut(lesions.label(grids.pad(bright, fill=False), connectivity=6)[0], bright.shape)
    inverse = np.linalg.inv(affine)
    points = np.asarray(marks) @ inverse[:3, :3].T + inverse[:3, 3]
    touched = [found for point in points if (found := _nearest(component, point, affine))]
    return np.where(np.isin(component, touched), CAC, 0).astype(np.uint8), len(touched)


def _nearest(component, point, affine):
    """The component of the voxel nearest to a point (in voxels) within SNAP_MM, 0 where there is none."""
    reach = SNAP_MM / np.linalg.norm(affine[:3, :3], axis=0)
    low = np.clip(np.ceil(point - reach - 1e-9).astype(int), 0, component.shape)
    high = np.clip(np.floor(point + reach + 1e-9).astype(int) + 1, low, component.shape)
    found = component[tuple(map(slice, low, high))]
    at = np.argwhere(found > 0)
    if not len(at):
        return 0
    squared = np.square((at + low - point) @ affine[:3, :3].T).sum(1)
    near = squared.argmin()
    return int(found[tuple(at[near])]) if squared[near] <= SNAP_MM**2 + 1e-9 else 0


def agatston(mask, hu, spacing_mm) -> float:
    """Agatston score of a mask [z, y, x] (bool) by the rule of Gogin 2021."""
    padded = grids.pad(np.asarray(mask, bool), fill=False), grids.pad(np.asarray(hu, np.float32), fill=grids.NO_HU)
    return float(scores.score(*padded, tuple(float(s) for s in spacing_mm), RULE).agatston[0])


def category(score: float) -> str:
    """The risk category A to E of an Agatston score."""
    return scores.SCHEMES[RULE].names[scores.category(score, scheme=RULE)]


def review(name, split, reported, mask, hu, spacing_mm, marks, on_calcium) -> Review | None:
    """The `Review` of a scan, None where its category is the reported one, or none was reported."""
    score = agatston(mask > 0, hu, spacing_mm)
    found = category(score)
    return Review(name, split, reported, found, round(score, 2), len(marks), on_calcium) if reported and found != reported else None


def write(folder, rows, mode="a") -> None:
    """Write `Review` rows to review.csv in a folder; mode "w" begins it."""
    with (folder / FILE).open(mode, newline="") as file:
        csv.writer(file).writerows([Review._fields] * (mode == "w") + rows)


def remind(folder) -> str:
    """What to say of the scans that are to be reviewed; empty where there are none."""
    path = folder / FILE
    lines = len(path.read_text().splitlines()) - 1 if path.exists() else 0
    return f"{lines} scans whose labels from marks are in another category than reported, see {path}" if lines > 0 else ""

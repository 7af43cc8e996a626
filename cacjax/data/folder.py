"""A folder of scans with a manifest.csv as a cohort, resampled to the network's grid.

Settings: manifest (its path or its folder's), grid (see cacjax.kernels.grids, whose functions scoring resamples by, too), labels
(what masks hold: "classes" 0-7, "overlay", the published codes 8, 9, 10, 15, 52-58, or "structures", 0-7 as in
cacjax.classes.STRUCTURES; or "marks": no mask, but points on calcium in the file that the column `marks` names, see cacjax.files.marks).
A row names its split; its domain may be left to the split's name. Rows that cannot be used are listed in rejected.csv beside the
prepared records; scans whose marks give another category (A to E) than the column `category` says, in review.csv.
"""

import collections
import csv
import functools
import hashlib
import pathlib
import sys
from typing import NamedTuple

import numpy as np

from cacjax import classes
from cacjax.data import marks, records
from cacjax.files import manifest, scan
from cacjax.files import marks as marks_file
from cacjax.kernels import grids

REJECTED, MARKS = "rejected.csv", "marks"
CLASSES = {i: i for i in range(len(classes.CLASSES))}
OVERLAY = {0: 0, 8: 1, 9: 2, 10: 3, 15: 4, 52: 4, 54: 4, 55: 4, 56: 4, 57: 4, 53: 5, 58: 6}  # Zhai 2022, official code
STRUCTURES = {i: i for i in range(len(classes.STRUCTURES))}
LABELS = {"classes": CLASSES, "overlay": OVERLAY, "structures": STRUCTURES, MARKS: {}}


class Rejected(NamedTuple):
    """A row that cannot be used; the fields are the columns of rejected.csv."""

    scan: str
    split: str
    reason: str
    message: str


class ScanFolder(records.Cohort):
    """tensorflow-datasets builder of the scans that a manifest names."""

    def _split_generators(self, dl_manager):
        splits, path = collections.defaultdict(list), self.builder_config.settings["manifest"]
        for row in manifest.read(path):
            splits[row.cells.get("split") or "unnamed"].append(row)
        if not splits:
            raise manifest.ManifestError(f"{path}: no rows, expected one for each scan")
        _write_rejected(_rejected_path(self), [])
        if self.builder_config.settings["labels"] == MARKS:
            marks.write(_rejected_path(self).parent, [], mode="w")
        return {name: self._generate_examples(name, rows) for name, rows in splits.items()}

    def _generate_examples(self, split, rows):
        config, path, rejected, used = self.builder_config, _rejected_path(self), [], 0
        work = functools.partial(make, settings=config.settings)
        for result in records.run(work, rows, workers=config.workers, title=f"scans {split}", progress=config.progress):
            if isinstance(result, Rejected):
                rejected.append(result)
                _write_rejected(path, [result], mode="a")
            else:
                record, review = result
                if review:
                    marks.write(path.parent, [review])
                yield used, record
                used += 1
        if not used:
            raise manifest.ManifestError(
                f"{config.settings['manifest']}: none of the {len(rows)} rows of split {split!r} can be used, "
                f"the first because: {rejected[0].message} (all: {path})"
            )


def settings(data) -> dict:
    """Return what shapes the cohort's records, as plain JSON values; ValueError or ManifestError if unusable."""
    found = manifest.locate(data["manifest"])
    if found is None:
        raise manifest.ManifestError(f"data.manifest: expected a {manifest.NAME} or its folder, got {data['manifest']!r}")
    labels, grid = data["labels"], records.grid_of(data)
    if labels not in LABELS:
        raise ValueError(f"data.labels must be one of {', '.join(LABELS)}, got {labels!r}")
    return {"kind": "folder", "manifest": str(found.absolute()), "content": _content(found), "grid": grid, "labels": labels}


def _content(path) -> str:
    """Return a digest of the manifest and of its files' sizes and times: a changed folder is prepared anew."""
    digest = hashlib.sha256(path.read_bytes())
    for row in manifest.read(path):
        marked = row.manifest.parent / row.cells[MARKS] if row.cells.get(MARKS) else None
        for file in (row.scan, row.mask, row.heart, marked):
            digest.update(repr([_stamp(part) for part in _parts(file)]).encode())
    return digest.hexdigest()[:12]


def _parts(path) -> list[pathlib.Path]:
    """Return the files that a path stands for: itself, or the files of a DICOM folder."""
    if path is None or not path.exists():
        return []
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _stamp(path) -> tuple:
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns


def make_builder(settings: dict, *, name: str, root, workers: int, progress: bool) -> ScanFolder:
    """Return the builder of a cohort under `root`."""
    config = records.CohortConfig(name=name, settings=settings, workers=workers, progress=progress)
    return ScanFolder(config=config, data_dir=str(root))


def remind(builder) -> None:
    """Say on stderr how many rows of the manifest were left out, and where the reasons are."""
    path = _rejected_path(builder)
    if text := marks.remind(path.parent):
        print(text, file=sys.stderr)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if rows:
        reasons = collections.Counter(row["reason"] for row in rows)
        text = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        name = builder.builder_config.settings["manifest"]
        print(f"{name}: {len(rows)} rows left out ({text}), see {path}", file=sys.stderr)


def _rejected_path(builder) -> pathlib.Path:
    return pathlib.Path(builder.data_path.parent) / REJECTED


def _write_rejected(path, rows, mode="w") -> None:
    with path.open(mode, newline="") as file:
        csv.writer(file).writerows([Rejected._fields] * (mode == "w") + rows)


def make(row: manifest.Row, *, settings: dict) -> tuple[dict, marks.Review | None] | Rejected:
    """Return the record of a manifest row on the network's grid and whether its labels need a review, or why there is none. Raises
    nothing."""
    try:
        return _record(row, settings)
    except scan.ScanError as error:
        reason, message = error.code, str(error)
    except (OSError, ValueError) as error:
        reason, message = type(error).__name__, str(error)
    return Rejected(row.cells["scan"], row.cells.get("split", ""), reason, message)


def _record(row, settings):
    split, domain = row.cells.get("split", ""), row.cells.get("domain", "")
    if not split:
        raise ValueError(f"{row.scan}: expected the name of a split in the manifest, got an empty cell")
    domain = domain or ("target" if split.startswith("target") else "source")
    if domain not in records.DOMAINS:
        raise ValueError(f"{row.scan}: expected domain {' or '.join(records.DOMAINS)}, got {domain!r}")
    image = scan.read(row.scan)
    mask, review = _labels(row, image, settings["labels"])
    heart = None if row.heart is None else scan.read_mask(row.heart, image) > 0
    hu, mask, heart, affine = to_grid(image, mask, heart, settings["grid"])
    values = {"threshold_hu": row.threshold_hu, "aorta_hu": row.aorta_hu, "protocol": row.cells.get("protocol", "")}
    return records.make_record(row.name, hu, mask, heart, affine, domain=domain, **values), review


def _labels(row, image, labels):
    """(Classes on the scan's grid or None, `marks.Review` or None)."""
    if labels != MARKS:
        return None if row.mask is None else to_classes(scan.read_mask(row.mask, image), LABELS[labels]), None
    if not row.cells.get(MARKS):
        return None, None
    points = marks_file.read(row.manifest.parent / row.cells[MARKS], row.name)
    mask, on_calcium = marks.label(image.hu, image.affine, points)
    told = row.name, row.cells.get("split", ""), row.cells.get("category", "")
    return mask, marks.review(*told, mask, image.hu, scan.spacing_mm(image.affine), points, on_calcium)


def to_grid(image: scan.Scan, mask, heart, grid: dict):
    """Return (hu float32, mask uint8, heart uint8, affine) on a network's grid (see cacjax.kernels.grids), slices towards the head.

    The affine holds the spacing that results, of a spline near the asked one. mask and heart [z, y, x] may be None, and stay so.
    """
    given = [m for m in (mask, heart) if m is not None]
    image, *given = scan.oriented(image, *given) if given else (scan.oriented(image),)
    hu, index = grids.resample(image.hu, scan.spacing_mm(image.affine), grid)
    there = [grids.labels_on(m, scan.spacing_mm(image.affine), grid, index, hu.shape) for m in given]
    mask, heart = (None if m is None else there.pop(0) for m in (mask, heart))
    return np.asarray(hu), mask, heart, image.affine @ index


def to_classes(mask: np.ndarray, classes: dict[int, int]) -> np.ndarray:
    """Map the values of a mask to classes, uint8; ValueError naming values that have no class."""
    table = np.full(2**16, 255, np.uint8)  # one entry per int16, addressed as uint16
    table[np.array(list(classes), np.int16).view(np.uint16)] = list(classes.values())
    mask = np.asarray(mask).astype(np.int16)
    found = table[mask.view(np.uint16)]
    if found.max(initial=0) == 255:
        unknown = np.unique(mask[found == 255]).tolist()
        raise ValueError(f"mask holds {unknown[:5]}, expected values among {sorted(classes)} (see data.labels)")
    return found

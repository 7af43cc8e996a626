"""Calcifications as a reader marks them: a CSV of points in LPS mm (columns x_mm, y_mm, z_mm; and scan, where it holds several)."""

import csv

import numpy as np

AXES = ("x_mm", "y_mm", "z_mm")


def read(path, scan: str) -> np.ndarray:
    """The marks (x, y, z) in LPS mm of a scan, float64 [n, 3]. Rows of other scans are left out; an empty file is a scan without calcium.

    Raises ValueError naming the file, the line and what was expected, OSError for a file that cannot be read.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        if not set(AXES) <= set(table.fieldnames or ()):
            raise ValueError(f"{path}: expected columns {', '.join(AXES)}, got {', '.join(table.fieldnames or ()) or 'an empty file'}")
        points = [_point(row, path, table.line_num) for row in table if row.get("scan", scan) == scan]
    return np.array(points, np.float64).reshape(-1, 3)


def _point(row, path, line):
    try:
        point = [float(row[axis]) for axis in AXES]
    except (TypeError, ValueError):
        point = [np.nan]
    if not np.isfinite(point).all():
        raise ValueError(f"{path}, line {line}: expected three numbers of mm, got {[row[axis] for axis in AXES]}")
    return point

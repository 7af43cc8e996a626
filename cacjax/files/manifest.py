"""manifest.csv: which scans a folder holds, their masks, hearts and thresholds. Paths are relative to the file.

Columns: scan, mask, heart, split, domain, protocol, threshold_hu, aorta_hu, marks, category. Only `scan` must be there and filled;
other columns are kept.
"""

import csv
import io
import math
import os
import pathlib
from typing import NamedTuple

from cacjax.files.atomic import replace

NAME = "manifest.csv"
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".dcm", ".zip")


class Row(NamedTuple):
    """One scan: its unique name, its paths and HU values (None where not given), all its cells as text, and the manifest's own path."""

    name: str
    scan: pathlib.Path
    mask: pathlib.Path | None
    heart: pathlib.Path | None
    threshold_hu: float | None
    aorta_hu: float | None
    cells: dict
    manifest: pathlib.Path


class ManifestError(ValueError):
    """A manifest that cannot be used; the message names the file, the line and what was expected."""


def locate(path):
    """The manifest that `path` is or holds, or None."""
    path = pathlib.Path(path)
    if path.name == NAME and os.path.isfile(path):
        return path
    return path / NAME if os.path.isfile(path / NAME) else None


def read(path):
    """Rows of the manifest that `path` is or holds, in file order. Raises ManifestError."""
    found = locate(path)
    if found is None:
        raise ManifestError(f"{path}: expected a {NAME} or a folder that holds one")
    try:
        with open(found, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            columns, lines = table.fieldnames or (), [(table.line_num, cells) for cells in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{found}: expected a table in UTF-8 that can be read, got {type(error).__name__}: {error}") from None
    if "scan" not in columns:
        raise ManifestError(f"{found}: expected a column named scan, got {', '.join(columns) or 'an empty file'}")
    rows = [_row(cells, found, number) for number, cells in lines]
    return [row._replace(name=name) for row, name in zip(rows, names([row.cells["scan"] for row in rows]))]


def write(folder, rows, *, overwrite=False):
    """Write dict `rows` of the same columns to the manifest of a folder; returns its path. Raises ManifestError where another is there,
    unless `overwrite`."""
    path, text = pathlib.Path(folder) / NAME, io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    if not overwrite and path.exists() and path.read_text(encoding="utf-8") != text.getvalue():
        raise ManifestError(f"{path}: expected no manifest there, or the one that would be written; move it away to have it made anew")
    replace(path, lambda aside: aside.write_text(text.getvalue(), encoding="utf-8"))
    return path


def names(paths):
    """A short, unique name for each path: its stem; where stems collide, its folders too; then a number."""
    pieces = [stem(path).split("/") for path in paths]
    short = ["_".join(parts[-1:]) for parts in pieces]
    longer = ["_".join(parts) if short.count(name) > 1 else name for parts, name in zip(pieces, short)]
    return unique(longer)


def unique(given):
    """The given names, the second of a kind as name-2, the third as name-3, skipping what is taken."""
    taken, out = set(), []
    for name in given:
        number, free = 1, name
        while free in taken or (number > 1 and free in given):
            number += 1
            free = f"{name}-{number}"
        taken.add(free)
        out.append(free)
    return out


def stem(path):
    """The path as text with forward slashes, without the suffix of an image file and without ., .. and root parts."""
    parts = [part for part in pathlib.PurePath(path).parts if part not in ("/", ".", "..")]
    text = "/".join(parts) or "scan"
    for suffix in SUFFIXES:
        if text.lower().endswith(suffix) and len(text) > len(suffix):
            return text[: -len(suffix)]
    return text


def _row(cells, manifest, number):
    cells = {key: (value or "").strip() for key, value in cells.items() if isinstance(key, str)}
    if not cells["scan"]:
        raise ManifestError(f"{manifest}, line {number}: expected the path of a scan, got an empty cell")
    paths = {key: manifest.parent / cells[key] if cells.get(key) else None for key in ("scan", "mask", "heart")}
    values = {key: _number(cells.get(key, ""), key, manifest, number) for key in ("threshold_hu", "aorta_hu")}
    return Row(name="", **paths, **values, cells=cells, manifest=manifest)


def _number(text, column, manifest, line):
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ManifestError(f"{manifest}, line {line}: expected a number of HU in {column}, got {text!r}")
    return value

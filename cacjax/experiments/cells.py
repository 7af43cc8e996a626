"""What the restoration of HU in cells gives (Gogin 2021, "Pre-processing"), without a network: calcium kept, noise let through."""

import json
from typing import NamedTuple

import numpy as np

from cacjax.classes import CALCIUM_HU, CORONARY
from cacjax.experiments import ensemble
from cacjax.files import manifest, scan
from cacjax.kernels import cells, grids
from cacjax.report import pictures, tables

MULTIPLE = ensemble.MULTIPLE
BOOTSTRAPS = 2000
SIDES_MM = (2.5, 3.0)
MEASURES = {
    "kept": "calcified cells at 130 HU",
    "scans_with_calcium": "calcified scans with such a cell",
    "noise": "other heart cells at 130 HU, a scan",
}
SHOWN = ("restored", *MEASURES.values())
CAPTION = """Cells of 2.5 or 3 mm of gated phantoms.
Calcified: holds a voxel of true coronary calcium. Other: in the true pericardium, without calcium of any kind. 95 % interval by bootstrap
over the scans."""


class Column(NamedTuple):
    """A row: how HU are restored."""

    restore: str


class Experiment(NamedTuple):
    """No networks; the rows."""

    networks: dict
    columns: tuple[Column, ...]


SIZES = ensemble.SIZES
EXPERIMENTS = {"ensemble-cells": Experiment({}, tuple(Column(restore) for restore in cells.RESTORE))}


def of_size(experiment, size) -> Experiment:
    """The same at every size."""
    del size
    return experiment


def identity(column) -> dict:
    """What tells a row from others."""
    return {"restored": column.restore}


begin = ensemble.begin


def test(experiment, size, test_folder, folder, scans) -> None:
    """Count the scans' cells by every rule."""
    del size, scans
    counted = {column.restore: [] for column in experiment.columns}
    for row in manifest.read(test_folder):
        image = scan.read(row.scan)
        spacing_mm = scan.spacing_mm(image.affine)
        masks = (scan.read_mask(row.mask, image), np.isin(scan.read_mask(row.mask, image), CORONARY), scan.read_mask(row.heart, image) > 0)
        for restore, kept in counted.items():
            grid = {"kind": "cells", "sides_mm": SIDES_MM, "restore": restore}
            low, index = grids.resample(image.hu, spacing_mm, grid)
            any_kind, coronary, heart = (grids.labels_on(mask, spacing_mm, grid, index, low.shape) > 0 for mask in masks)
            bright = np.asarray(low) >= CALCIUM_HU
            kept.append([int(each.sum()) for each in (coronary, coronary & bright, heart & ~any_kind & bright)])
    tables.write_json(folder / "cells.json", counted)


def measure(column, folder) -> dict:
    """[calcified cells, those at 130 HU, other cells at 130 HU] of every scan."""
    return {"counts": json.loads((folder / "cells.json").read_text())[column.restore]}


def summary(experiment, results) -> list[dict]:
    """The rows of the table, of the first seed: all seeds have the same scans."""
    rows = []
    for i, column in enumerate(experiment.columns):
        counts = np.array(results[0]["columns"][i]["counts"], float)
        drawn = np.random.default_rng(0).integers(0, len(counts), (BOOTSTRAPS, len(counts)))
        row, resampled = identity(column) | {"n": len(counts)} | figures(counts[None]), figures(counts[drawn])
        for name in MEASURES:
            row |= dict(zip((f"{name}_low", f"{name}_high"), map(float, np.quantile(resampled[name], (0.025, 0.975)))))
            row |= {name: float(row[name][0]), f"published_{name}": None}
        rows.append(row)
    return rows


def figures(counts) -> dict:
    """MEASURES of counts [samples, scans, 3]."""
    calcified, bright, noise = np.moveaxis(counts, -1, 0)
    with_calcium = np.maximum((calcified > 0).sum(1), 1)
    kept = bright.sum(1) / np.maximum(calcified.sum(1), 1)
    return {"kept": kept, "scans_with_calcium": ((calcified > 0) & (bright > 0)).sum(1) / with_calcium, "noise": noise.mean(1)}


def shown(row) -> dict:
    """A row as the terminal and table.md show it."""
    cell = lambda name, digits: f"{row[name]:.{digits}f} [{row[f'{name}_low']:.{digits}f}, {row[f'{name}_high']:.{digits}f}]"  # noqa: E731
    return dict(zip(SHOWN, (row["restored"], cell("kept", 3), cell("scans_with_calcium", 3), cell("noise", 1))))


def draw(path, rows) -> None:
    """The picture of the table."""
    pictures.intervals(path, [row["restored"] for row in rows], rows, MEASURES)

"""The networks that ship with the package, on held-out scans of all kinds: what a user meets who has a scan and nothing else.

Beside the scans scored by both networks stand the same with the true heart and the true threshold in their place, which says what finding
these loses; scans without a heart must not be scored.
"""

import json
from typing import NamedTuple

import numpy as np

from cacjax.classes import AORTA
from cacjax.evaluation import agreement
from cacjax.experiments import commands
from cacjax.experiments.commands import Network, Size
from cacjax.files import manifest, scan
from cacjax.kernels import scores
from cacjax.report import pictures, tables

TEST_SEED = 600_000  # far from the patients of the training cohorts
MULTIPLE, BOOTSTRAPS, CALCIFIED = 1, 2000, 0.6
PROTOCOLS = {  # of the held-out scans, each with its scenes in turn (see cacjax.phantom.scenes)
    "chest": ("chest", "chest:wide+sharp", "chest:moving", "chest:arms_down+thin_plaques", "chest:wide+streaks"),
    "cardiac": ("cardiac", "cardiac:sharp", "cardiac:wide", "cardiac:moving", "cardiac:thin_plaques"),
    "rtp": ("rtp", "rtp:wide", "rtp:arms_down+thin_plaques", "rtp:sharp", "rtp:wide+arms_up"),
    "ccta": ("ccta", "ccta:wide", "ccta:moving", "ccta:thin_plaques", "ccta:sharp"),
    "without": ("chest:abdomen", "ccta:abdomen", "chest:neck", "rtp:head"),
}
HEARTS = {"network": "found by network", "true": "true, and threshold"}
MEASURES = {"kappa": "kappa", "accuracy": "category accuracy", "f1": "pooled F1", "fp_mm3": "FP mm³ a scan"}
SHOWN = ("scans", "heart", "scored", "heart Dice", "wide", "sensitivity", "FP mm³", "pooled F1", "kappa", "category accuracy", "ICC")
CAPTION = """Scans of the scanner's own matrix, wide patients, hard kernels, motion, streaks, arms and thin plaques of the aorta in turn;
without: abdomen, neck, head. Heart Dice: mean (least) of all that the pericardium holds but the aorta; wide: mean over patients of 350
to 500 mm. Sensitivity: mean over scans with coronary calcium; FP: mean over all; kappa: linear, of risk categories; in brackets 95 %
intervals by bootstrap over the scans. Refused scans are left out of all but the number scored."""


class Column(NamedTuple):
    """A row: a group of PROTOCOLS, and whose heart and threshold."""

    scans: str
    heart: str


class Experiment(NamedTuple):
    """Networks by name and the rows made of them."""

    networks: dict[str, Network]
    columns: tuple[Column, ...]


SIZES = {"tiny": Size(("tiny",), (), 40, ())}
EXPERIMENTS = {
    "shipped": Experiment(
        {"detector": Network("second.py", ("scenes",)), "heart": Network("heart.py", ("whole", "scenes"))},
        (*(Column(name, heart) for name in PROTOCOLS if name != "without" for heart in HEARTS), Column("without", "network")),
    )
}


def of_size(experiment, size) -> Experiment:
    """The experiment; it has one size."""
    del size
    return experiment


def identity(column) -> dict:
    """What tells a column's row from others."""
    return {"scans": column.scans, "heart": HEARTS[column.heart]}


def begin(experiment, size, test_folder, scans) -> None:
    """Make the held-out scans of every group, unless they are there."""
    del experiment, size
    for name, protocols in PROTOCOLS.items():
        if not (test_folder / name / "manifest.csv").exists():
            made = ["--out", str(test_folder / name), "--protocol", ",".join(protocols), "--n", str(scans), "--seed", str(TEST_SEED)]
            share = ["--calcified", str(CALCIFIED)] if name != "without" else []
            commands.run(f"make held-out scans: {name}", [["cacjax.phantom", *made, *share, "--structures", "--workers", "2"]], None)


def test(experiment, size, test_folder, folder, scans) -> None:
    """Score the held-out scans by both networks and by the detector alone, compare with the truth."""
    del size, scans
    detector, heart = (str(folder / "networks" / name) for name in ("detector", "heart"))
    found = {"network": ["--heart", heart, "--threshold-hu", "auto"], "true": []}
    for name in dict.fromkeys(column.scans for column in experiment.columns):
        arms = {column.heart: folder / "scores" / name / column.heart for column in experiment.columns if column.scans == name}
        score = ["cacjax.score", str(test_folder / name), "--workdir", detector, "--no-pictures", "--resume"]
        for arm, out in arms.items():  # exit code 1: some were refused
            commands.run(f"score {name}, {HEARTS[arm]}", [[*score, *found[arm], "--out", str(out)]], None, allowed=(0, 1))
        if name != "without":
            out = ["--predictions", *(f"{arm}={out}" for arm, out in arms.items()), "--out", str(folder / "evaluation" / name)]
            commands.run("evaluate", [["cacjax.evaluate", *out, "--reference", str(test_folder / name)]], None, allowed=(0, 1))
        tables.write_json(folder / "hearts" / f"{name}.json", hearts(test_folder / name, arms["network"]))


def hearts(test_folder, out) -> dict:
    """{scan: Dice of the heart that was found, without the aorta, None where the scan was refused}."""
    found = {}
    for row in manifest.read(test_folder):
        path = out / f"{row.name}_heart.nii.gz"
        found[row.name] = None
        if path.exists():
            image = scan.read(row.scan)
            ours, real = (scan.read_mask(each, image) for each in (path, test_folder / f"{row.name}_structures.nii.gz"))
            ours, real = ours > 0, (real > 0) & (real != AORTA)
            found[row.name] = float(2 * (ours & real).sum() / max(ours.sum() + real.sum(), 1))
    return found


def measure(column, folder) -> dict:
    """One row of one seed: what every scan that was scored gave, and the hearts of all."""
    dice = json.loads((folder / "hearts" / f"{column.scans}.json").read_text())
    if column.scans == "without":
        return {"scans": [name for name, value in dice.items() if value is not None], "n": len(dice), "dice": {}}
    record = json.loads((folder / "evaluation" / column.scans / "evaluation.json").read_text())["scans"]
    final = [row for row in record if (row["arm"], row["stage"], row["artery"]) == (column.heart, "final", "CAC")]
    counts = [[row["counts"]["voxels"][part] for part in ("tp", "fp", "fn")] for row in final]
    agatston = [[row[f"{whose}_agatston"] for whose in ("found", "reference")] for row in final]
    volumes = {"fp_mm3": [row["fp_mm3"] for row in final], "sensitivity": [row["sensitivity"] for row in final]}
    names = [row["scan"] for row in final]
    return {
        "scans": names,
        "n": len(dice),
        "dice": dice if column.heart == "network" else {},
        "counts": counts,
        "agatston": agatston,
    } | volumes


def summary(experiment, results) -> list[dict]:
    """The rows of the table, scans of all seeds together."""
    return [summarise(column, [result["columns"][i] for result in results]) for i, column in enumerate(experiment.columns)]


def summarise(column, measured) -> dict:
    """The row of a column."""
    joined = lambda name: [value for one in measured for value in one[name]]  # noqa: E731
    scored, n = joined("scans"), sum(one["n"] for one in measured)
    row = identity(column) | {"seeds": len(measured), "n": n, "scored": len(scored)}
    dice = [(name, value) for one in measured for name, value in one["dice"].items() if value is not None]
    wide = [value for name, value in dice if "wide" in name]
    row |= {
        "dice": mean([value for _, value in dice]),
        "dice_least": min((value for _, value in dice), default=None),
        "dice_wide": mean(wide),
    }
    row |= dict.fromkeys((*MEASURES, "sensitivity", "icc", *(f"{name}_{end}" for name in MEASURES for end in ("low", "high"))))
    if column.scans == "without" or not scored:
        return row
    counts, agatston, fp_mm3 = (np.array(joined(name), float) for name in ("counts", "agatston", "fp_mm3"))
    row["sensitivity"] = mean([value for value, (tp, _, fn) in zip(joined("sensitivity"), counts) if tp + fn])
    row["icc"] = agreement.icc_a1(agatston).value if len(agatston) > 1 else None
    row |= {name: value if np.isfinite(value) else None for name, value in figures(counts, agatston, fp_mm3).items()}
    drawn = np.random.default_rng(0).integers(0, len(counts), (BOOTSTRAPS, len(counts)))
    resampled = [figures(counts[at], agatston[at], fp_mm3[at]) for at in drawn]
    for name in MEASURES:
        known = [one[name] for one in resampled if np.isfinite(one[name])]  # no kappa where all are of one category
        ends = map(float, np.quantile(known, (0.025, 0.975))) if known else (None, None)
        row |= dict(zip((f"{name}_low", f"{name}_high"), ends))
    return row


def figures(counts, agatston, fp_mm3) -> dict:
    """MEASURES of scans: voxels [n, 3] (true and false positive, false negative), scores [n, 2] (found, true), volumes [n]."""
    tp, fp, fn = counts.sum(0)
    table = agreement.confusion(*scores.category(agatston).T, len(scores.SCHEMES["default"].names))
    values = agreement.kappa(table).value, agreement.accuracy(table), 2 * tp / max(2 * tp + fp + fn, 1), fp_mm3.mean()
    return dict(zip(MEASURES, map(float, values)))


def mean(values):
    """The mean, or None of nothing."""
    return float(np.mean(values)) if len(values) else None


def shown(row) -> dict:
    """A row as the terminal and table.md show it."""
    known = lambda name, digits=2: "" if row[name] is None else f"{row[name]:.{digits}f}"  # noqa: E731
    between = lambda name: "" if row[f"{name}_low"] is None else f" [{known(f'{name}_low')}, {known(f'{name}_high')}]"  # noqa: E731
    cells = {
        "scored": f"{row['scored']} of {row['n']}",
        "heart Dice": known("dice") and f"{known('dice')} ({known('dice_least')})",
        "wide": known("dice_wide"),
        "sensitivity": known("sensitivity"),
        "FP mm³": known("fp_mm3", 1),
        "pooled F1": known("f1") + between("f1"),
        "kappa": known("kappa") + between("kappa"),
        "category accuracy": known("accuracy"),
        "ICC": known("icc", 3),
    }
    return {name: row[name] for name in ("scans", "heart")} | cells


def draw(path, rows) -> None:
    """The picture of the table."""
    rows = [row | {f"published_{name}": None for name in MEASURES} for row in rows if row["kappa"] is not None]
    pictures.intervals(path, [f"{row['scans']}, heart {row['heart']}" for row in rows], rows, MEASURES)

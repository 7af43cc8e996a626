"""Gogin 2021, Table 1: single networks and their ensemble, trained on three sets, on held-out scans with categories in equal parts."""

import json
from typing import NamedTuple

import numpy as np

from cacjax.evaluation import agreement
from cacjax.experiments import commands
from cacjax.experiments.commands import Network, Size
from cacjax.files import manifest, scan
from cacjax.kernels import grids, scores
from cacjax.report import pictures, tables

TEST_SEED = 700_000  # far from the patients of the training cohorts
BOOTSTRAPS, MEMBERS, CATEGORIES = 2000, 5, 5
MULTIPLE = CATEGORIES  # of held-out scans: as many of each
SCHEME = "gogin"
CONTROLS = {"nothing": "no calcium anywhere", "everything": "all that reaches 130 HU in the true pericardium"}
MEASURES = ("accuracy", "c_index", "c_index_printed", "kappa", "icc", "within_one")
SHOWN = ("trained on", "networks", "category accuracy", "C-index", "as printed", "kappa", "ICC", "within one", "over its members")
CAPTION = """Single networks: mean (SD) of five. In brackets beside: 95 % interval by bootstrap over
the scans; after it, the published figure. Over its members: accuracy and C-index of the ensemble less the mean of its members', resampled
together. Controls need no network."""


class Column(NamedTuple):
    """A row of Table 1. network: that is trained, "" for a control; arm: "single", "ensemble" or one of CONTROLS. published: C-index and
    category accuracy, or None."""

    trained_on: str
    network: str
    arm: str
    published: tuple[float, float] | None = None


class Experiment(NamedTuple):
    """Networks by name and the rows made of them."""

    networks: dict[str, Network]
    columns: tuple[Column, ...]


SIZES = {
    "tiny": Size(("tiny",), (40, 182, 182), 25, (3.0, 0.66, 0.66)),
    "small": Size(("small",), (48, 218, 218), 100, (3.0, 0.66, 0.66)),
    "published": Size((), (48, 364, 364), 100, (3.0, 0.66, 0.66)),
}
EXPERIMENTS = {
    "ensemble-table1": Experiment(
        {name: Network("ensemble.py", (name,)) for name in ("j1", "j2", "ad")},
        (
            Column("J1", "j1", "single", (0.932, 0.832)),
            Column("J1", "j1", "ensemble", (0.939, 0.847)),
            Column("J1 + J2", "j2", "single", (0.943, 0.849)),
            Column("J1 + J2", "j2", "ensemble", (0.944, 0.847)),
            Column("J1 + J2 + AD", "ad", "single", (0.949, 0.864)),
            Column("J1 + J2 + AD", "ad", "ensemble", (0.951, 0.857)),
            Column("-", "", "nothing"),
            Column("-", "", "everything"),
        ),
    )
}


def of_size(experiment, size) -> Experiment:
    """The experiment at a size: of the tiny one, whose cohort has J1 alone, the rows of that."""
    if size.words != ("tiny",):
        return experiment
    kept = tuple(column for column in experiment.columns if column.network in ("", "j1"))
    return Experiment({"j1": experiment.networks["j1"]}, kept)


def identity(column) -> dict:
    """What tells a column's row from others."""
    return {"trained_on": column.trained_on, "networks": CONTROLS.get(column.arm, column.arm)}


def test(experiment, size, test_folder, folder, scans) -> None:
    """Score the held-out scans by every ensemble and every member, compare with the truth."""
    del size, scans
    score = ["cacjax.score", str(test_folder), "--no-pictures", "--resume"]
    for name in experiment.networks:
        of_run = ["--workdir", str(folder / "networks" / name), "--out"]
        words = [[*score, *of_run, str(folder / "scores" / name)]]
        singles = [[*of_run, str(folder / "scores" / f"{name}_{k}"), f"--scoring.member={k}"] for k in range(1, MEMBERS + 1)]
        words += [[*score, *single, "--scores-only"] for single in singles]
        commands.run(f"score by {name} and its members", words, folder / "side_by_side.log")
    arms = [f"{name}={folder / 'scores' / name}" for name in experiment.networks]
    evaluated = ["--predictions", *arms, "--reference", str(test_folder), "--out", str(folder / "evaluation")]
    commands.run("evaluate", [["cacjax.evaluate", *evaluated]], None)
    tables.write_json(folder / "controls.json", controls(test_folder))


def begin(experiment, size, test_folder, scans) -> None:
    """Make the held-out scans, unless they are there: as many patients of each category."""
    del experiment
    if not (test_folder / "manifest.csv").exists():
        made = ["--out", str(test_folder), "--protocol", "cardiac", "--seed", str(TEST_SEED), "--workers", "2", "--categories"]
        grid = ["--shape", *map(str, size.shape), "--spacing", *map(str, size.spacing_mm)]
        commands.run("make held-out scans", [["cacjax.phantom", *made, *[str(scans // CATEGORIES)] * CATEGORIES, *grid]], None)


def controls(test_folder) -> dict:
    """{scan: Agatston score} of what a system without a network would give, per control."""
    found = {"nothing": {}, "everything": {}}
    for row in manifest.read(test_folder):
        image = scan.read(row.scan)
        turned, inside = scan.oriented(image, scan.read_mask(row.heart, image) > 0)
        padded = grids.pad(inside, fill=False), grids.pad(turned.hu, fill=grids.NO_HU)
        found["nothing"][row.name] = 0.0
        found["everything"][row.name] = float(scores.score(*padded, scan.spacing_mm(turned.affine), "gogin").agatston[0])
    return found


def measure(column, folder) -> dict:
    """One row of one seed: the scans' names, their true Agatston scores, and those found by each network of the row."""
    record = json.loads((folder / "evaluation" / "evaluation.json").read_text())["scans"]
    final = [row for row in record if (row["stage"], row["artery"]) == ("final", "CAC")]
    real = {row["scan"]: row["reference_agatston"] for row in final}
    if not column.network:
        found = [json.loads((folder / "controls.json").read_text())[column.arm]]
    elif column.arm == "ensemble":
        found = [{row["scan"]: row["found_agatston"] for row in final if row["arm"] == column.network}]
    else:
        found = [_scores(folder / "scores" / f"{column.network}_{k}") for k in range(1, MEMBERS + 1)]
    missing = {name for each in found for name in real if name not in each}
    if missing:
        raise SystemExit(f"error: {column.trained_on}, {column.arm}: no score of {', '.join(sorted(missing)[:3])}; see {folder / 'scores'}")
    return {"scans": list(real), "reference": list(real.values()), "found": [[each[name] for name in real] for each in found]}


def _scores(folder) -> dict:
    """{scan: Agatston score of coronary calcium} of the records in a folder."""
    records = (json.loads(path.read_text()) for path in sorted(folder.glob("*.json")))
    rows = (row for record in records for row in record["rows"])
    return {row["scan"]: row["agatston"] for row in rows if row["status"] == "scored" and row["artery"] == "CAC"}


def summary(experiment, results) -> list[dict]:
    """The rows of the table, in the order of the columns; networks of all seeds together."""
    joined = [_join([result["columns"][i] for result in results]) for i in range(len(experiment.columns))]
    drawn = np.random.default_rng(0).integers(0, len(joined[0][0]), (BOOTSTRAPS, len(joined[0][0])))
    resampled = [{name: [] for name in MEASURES[:2]} for _ in joined]
    for at in drawn:
        for (real, found), kept in zip(joined, resampled):
            for name in kept:
                kept[name].append(np.mean([figure(name, each[at], real[at]) for each in found]))
    places = {(column.network, column.arm): i for i, column in enumerate(experiment.columns)}
    rows = []
    for i, column in enumerate(experiment.columns):
        members = places.get((column.network, "single")) if column.arm == "ensemble" else None
        of_members = None if members is None else (joined[members], resampled[members])
        rows.append(_row(column, joined[i], resampled[i], of_members) | {"seeds": len(results)})
    return rows


def _join(measured):
    """(true scores, list of found ones) of several seeds' networks on the same scans."""
    if any(one["scans"] != measured[0]["scans"] for one in measured):
        raise SystemExit("error: the seeds were measured on different scans")
    return np.array(measured[0]["reference"]), [np.array(found) for one in measured for found in one["found"]]


def _row(column, own, resampled, of_members) -> dict:
    real, found = own
    row = identity(column) | {"n": len(real)}
    for name in MEASURES:
        each = [figure(name, one, real) for one in found]
        row |= {name: float(np.mean(each)), f"{name}_sd": float(np.std(each, ddof=1)) if len(each) > 1 else None}
    for name, values in resampled.items():
        row |= dict(zip((f"{name}_low", f"{name}_high"), map(float, np.quantile(values, (0.025, 0.975)))))
        gain, low, high = None, None, None
        if of_members:
            gain = row[name] - float(np.mean([figure(name, one, real) for one in of_members[0][1]]))
            low, high = map(float, np.quantile(np.subtract(values, of_members[1][name]), (0.025, 0.975)))
        row |= {f"{name}_gain": gain, f"{name}_gain_low": low, f"{name}_gain_high": high}
    return row | dict(zip(("published_c_index", "published_accuracy"), column.published or (None, None)))


def figure(name, found, real) -> float:
    """A figure of MEASURES of found and true Agatston scores; accuracy, C-index and kappa are of their categories A to E."""
    if name == "icc":
        return agreement.icc_a1(np.stack([found, real], 1)).value
    found, real = (scores.category(values, scheme=SCHEME) for values in (found, real))
    if name == "accuracy":
        return float(np.mean(found == real))
    if name == "within_one":
        return float(np.mean(np.abs(found - real) <= 1))
    if name == "kappa":
        return agreement.kappa(agreement.confusion(found, real, CATEGORIES)).value
    return agreement.c_index(found, real, kind="printed" if name == "c_index_printed" else "harrell")


def shown(row) -> dict:
    """A row as the terminal and table.md show it."""
    spread = lambda name: "" if row[f"{name}_sd"] is None else f" ({row[f'{name}_sd']:.3f})"  # noqa: E731

    def cell(name):
        published = "" if row[f"published_{name}"] is None else f"; {row[f'published_{name}']:.3f}"
        return f"{row[name]:.3f}{spread(name)} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]{published}"

    def gain(name, title):
        return f"{title} {row[f'{name}_gain']:+.3f} [{row[f'{name}_gain_low']:+.3f}, {row[f'{name}_gain_high']:+.3f}]"

    return {
        "trained on": row["trained_on"],
        "networks": row["networks"],
        "category accuracy": cell("accuracy"),
        "C-index": cell("c_index"),
        "as printed": f"{row['c_index_printed']:.3f}",
        "kappa": f"{row['kappa']:.2f}",
        "ICC": "-" if np.isnan(row["icc"]) else f"{row['icc']:.3f}",
        "within one": f"{row['within_one']:.2f}",
        "over its members": "" if row["accuracy_gain"] is None else f"{gain('accuracy', 'accuracy')}, {gain('c_index', 'C-index')}",
    }


def draw(path, rows) -> None:
    """The picture of the table."""
    series = {"accuracy": "category accuracy", "c_index": "C-index (Harrell)"}
    names = [f"{row['trained_on']}, {row['networks']}".removeprefix("-, ") for row in rows]
    pictures.intervals(path, names, rows, series)

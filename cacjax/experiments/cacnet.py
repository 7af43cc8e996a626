"""Zhang 2018, Tables 1, 2 and 4 by cross-validation: detection by number and by volume, agreement of scores, and the ablation networks.

A fold's networks are trained on the other folds and score its scans. `--fold K` does one fold; folders of folds that were done elsewhere
(OUT/seed<N>/scores/*/*, OUT/seed<N>/networks) are copied into one OUT, where the same command without it makes the table of all.
"""

import csv
import json
from typing import NamedTuple

import numpy as np

from cacjax.classes import CALCIUM_HU, CORONARY
from cacjax.evaluation import agreement, metrics
from cacjax.experiments import commands
from cacjax.experiments.commands import Network, Size
from cacjax.files import manifest, scan
from cacjax.kernels import grids, lesions, scores
from cacjax.report import pictures, tables

SEED = 600_000  # of the first patient
FOLDS, CATEGORIES = 5, 5
MULTIPLE = CATEGORIES  # of scans: shares of the categories A to E
SHARES = (15, 10, 25, 25, 25)  # of a hundred
BOOTSTRAPS = 2000
RULE = "orcascore"
CONTROL = "above 130 HU in the true pericardium"
MEASURES = {
    "number_sensitivity": "sens. number",
    "number_ppv": "PPV number",
    "number_f1": "F1 number",
    "volume_sensitivity": "sens. volume",
    "volume_ppv": "PPV volume",
    "volume_f1": "F1 volume",
    "agatston_icc": "ICC Agatston",
    "volume_icc": "ICC volume",
    "right_artery": "right artery",
}
SHOWN = ("network", "calcium of", *MEASURES.values(), "F1 less")
CAPTION = """Pooled over the test scans of all folds; lesions are 6-connected. In brackets: 95 % interval by bootstrap over the
scans; after it, the published figure. Right artery: share of the true calcium that was found whose artery is right. F1 less: F1 by volume
of the row less that of CAC-Net, resampled together. The control needs no network."""


class Column(NamedTuple):
    """A row of a table: a form of the network ("" for the control), what of the calcium, and published figures by measure."""

    title: str
    form: str
    artery: str = "CAC"
    published: dict = {}  # noqa: RUF012


class Experiment(NamedTuple):
    """Networks by name, FORM/fold<K>, and the rows made of them."""

    networks: dict[str, Network]
    columns: tuple[Column, ...]


SIZES = {
    "tiny": Size(("tiny",), (48, 144, 144), 40, (3.0, 1.0, 1.0)),
    "small": Size(("small",), (48, 144, 144), 100, (3.0, 1.0, 1.0)),
    "published": Size((), (48, 512, 512), 130, (2.5, 0.4, 0.4)),
}


def _networks(forms):
    """A network for each form and fold; {scans} is the folder of all scans, whose manifest names the fold of each."""
    networks = {}
    for form in forms:
        for fold in range(FOLDS):
            train = ",".join(f"fold{k}" for k in range(FOLDS) if k != fold)
            settings = ("data.kind=folder", "data.manifest={scans}/manifest.csv", "data.folds=0", f"streams.train.split={train}")
            networks[f"{form}/fold{fold}"] = Network("cacnet.py", () if form == "cacnet" else (form,), settings)
    return networks


_TABLE1 = dict(zip(MEASURES, (0.905, 0.966, 0.935, 0.933, 0.960, 0.946, 0.986, 0.982)))
_ARTERIES = {"LAD": (0.981, 0.980), "LCX": (0.979, 0.978), "RCA": (0.971, 0.968)}
_TABLE4 = {
    "fcn3d": ("3D FCN", (0.860, 0.915, 0.875, 0.912, 0.893)),
    "unet3d": ("3D U-Net", (0.870, 0.933, 0.895, 0.923, 0.909)),
    "udensenet": ("U-DenseNet", (0.892, 0.954, 0.930, 0.949, 0.939)),
    "twofold": ("twofold U-Net", (0.895, 0.942, 0.928, 0.940, 0.934)),
    "cacnet": ("CAC-Net", (0.905, 0.966, 0.933, 0.960, 0.946)),
}
_PRINTED4 = ("number_sensitivity", "number_ppv", "volume_sensitivity", "volume_ppv", "volume_f1")
_WHOLE = (
    Column("CAC-Net", "cacnet", "CAC", _TABLE1),
    *(Column("CAC-Net", "cacnet", name, dict(zip(("agatston_icc", "volume_icc"), iccs))) for name, iccs in _ARTERIES.items()),
    Column(CONTROL, ""),
)
_PARTS = ("unet3d", "udensenet")


def _ablations(forms):
    return tuple(Column(_TABLE4[form][0], form, "CAC", dict(zip(_PRINTED4, _TABLE4[form][1]))) for form in forms)


EXPERIMENTS = {
    "cacnet-table1": Experiment(_networks(("cacnet",)), _WHOLE),
    "cacnet-table2": Experiment(_networks(("cacnet",)), _WHOLE),  # the same networks: of Table 2 are the columns of ICC
    "cacnet-table4": Experiment(_networks(_TABLE4), (*_ablations(_TABLE4), Column(CONTROL, ""))),
    "cacnet-parts": Experiment(_networks((*_PARTS, "cacnet")), (*_ablations(_PARTS), *_WHOLE)),  # the whole beside its two halves
}


def of_size(experiment, size) -> Experiment:
    """The experiment at a size: the same."""
    del size
    return experiment


def of_fold(experiment, fold: int) -> Experiment:
    """The part of an experiment that one fold needs."""
    return experiment._replace(networks={name: net for name, net in experiment.networks.items() if name.endswith(f"/fold{fold}")})


def identity(column) -> dict:
    """What tells a column's row from others."""
    return {"network": column.title, "calcium of": column.artery}


def begin(experiment, size, test_folder, scans) -> None:
    """Make the scans of all folds, and name in their manifest the fold of each: as many of every category in all folds as can be."""
    del experiment
    if (test_folder / "folds.json").exists():
        return
    numbers = [round(scans * share / sum(SHARES)) for share in SHARES]
    numbers[-1] += scans - sum(numbers)
    made = ["--out", str(test_folder), "--protocol", "cardiac", "--seed", str(SEED), "--workers", "2", "--categories", *map(str, numbers)]
    commands.run("make scans", [["cacjax.phantom", *made, "--shape", *map(str, size.shape), "--spacing", *map(str, size.spacing_mm)]], None)
    with open(test_folder / "truth.csv", newline="") as file:
        real = {row["scan"]: float(row["agatston"]) for row in csv.DictReader(file)}
    rows = manifest.read(test_folder)
    order = sorted(range(len(rows)), key=lambda i: (scores.category(real[rows[i].name]), i))
    fold = {rows[i].name: place % FOLDS for place, i in enumerate(order)}
    manifest.write(test_folder, [row.cells | {"split": f"fold{fold[row.name]}"} for row in rows], overwrite=True)
    tables.write_json(test_folder / "folds.json", fold)


def test(experiment, size, test_folder, folder, scans) -> None:
    """Score the scans of every fold by the networks that did not see them, and compare what has been scored with the truth."""
    del size, scans
    rows = manifest.read(test_folder)
    forms = list(dict.fromkeys(name.split("/")[0] for name in experiment.networks))
    for fold in sorted({name.split("/")[1] for name in experiment.networks}):
        held_out = [str(row.scan) for row in rows if row.cells["split"] == fold]
        score = ["cacjax.score", *held_out, "--no-pictures", "--resume"]
        words = [
            [*score, "--workdir", str(folder / "networks" / form / fold), "--out", str(folder / "scores" / form / fold)] for form in forms
        ]
        commands.run(f"score the scans of {fold}", words, folder / "side_by_side.log")
    scored = {}
    for form in forms:
        for fold in sorted({row.cells["split"] for row in rows}):
            there = [row for row in rows if row.cells["split"] == fold and (folder / "scores" / form / fold / f"{row.name}.json").exists()]
            if there:
                evaluate(there, form, fold, folder)
                scored |= {row.name: row for row in there}
    tables.write_json(folder / "controls.json", controls(scored.values()))


def evaluate(rows, form, fold, folder) -> None:
    """Compare the scores of a fold's scans with the truth."""
    reference = folder / "reference" / fold
    cells = [row.cells | {key: str(getattr(row, key).absolute()) for key in ("scan", "mask", "heart")} for row in rows]
    reference.mkdir(parents=True, exist_ok=True)
    manifest.write(reference, cells, overwrite=True)
    words = ["--predictions", f"{form}={folder / 'scores' / form / fold}", "--reference", str(reference), "--standard", "orcascore"]
    commands.run(f"evaluate {form}, {fold}", [["cacjax.evaluate", *words, "--out", str(folder / "evaluation" / form / fold)]], None)


def controls(rows) -> dict:
    """{scan: record, as `measure` reads them} of a system without a network: everything above 130 HU in the true pericardium."""
    found = {}
    for row in rows:
        image = scan.read(row.scan)
        label, heart = scan.read_mask(row.mask, image), scan.read_mask(row.heart, image) > 0
        hit, real = heart & (image.hu > CALCIUM_HU), np.isin(label, CORONARY)
        numbered = [np.asarray(lesions.label(mask, connectivity=6)[0]) for mask in (hit, real)]
        spacing_mm = scan.spacing_mm(image.affine)
        pads = [(grids.pad(mask, fill=False), grids.pad(image.hu, fill=grids.NO_HU)) for mask in (hit, real)]
        agatston = [float(scores.score(*pad, spacing_mm, RULE).agatston[0]) for pad in pads]
        counts = {"voxels": tuple(metrics.count_voxels(hit, real)), "lesions": tuple(metrics.count_lesions(*numbered)[0])}
        mm3 = [float(mask.sum() * np.prod(spacing_mm)) for mask in (real, hit)]
        found[row.name] = {**counts, "agatston": agatston[::-1], "mm3": mm3, "right": 0}
    return found


def measure(column, folder) -> dict:
    """{scan: its counts (tp, fp, fn) of voxels and lesions, true and found Agatston score and volume, voxels of the right artery} of one
    row of one seed, of the scans that were scored."""
    if not column.form:
        return json.loads((folder / "controls.json").read_text())
    found, right = {}, {}
    for path in sorted((folder / "evaluation" / column.form).glob("fold*/evaluation.json")):
        for row in json.loads(path.read_text())["scans"]:
            if row["stage"] != "final":
                continue
            counts = {name: tuple(row["counts"][name][key] for key in ("tp", "fp", "fn")) for name in ("voxels", "lesions")}
            if row["artery"] == column.artery:
                agatston, mm3 = ([row[f"{which}_{what}"] for which in ("reference", "found")] for what in ("agatston", "mm3"))
                found[row["scan"]] = {**counts, "agatston": agatston, "mm3": mm3, "right": 0}
            if row["artery"] in ("LAD", "LCX", "RCA"):
                right[row["scan"]] = right.get(row["scan"], 0) + counts["voxels"][0]
    if column.artery == "CAC":
        found = {name: figures | {"right": right.get(name, 0)} for name, figures in found.items()}
    if not found:
        raise SystemExit(f"error: no evaluation of {column.form} in {folder / 'evaluation'}")
    return found


def summary(experiment, results) -> list[dict]:
    """The rows of the table, in the order of the columns; scans of all seeds together."""
    joined = [[f for result in results for f in result["columns"][i].values()] for i in range(len(experiment.columns))]
    whole = next(i for i, column in enumerate(experiment.columns) if (column.form, column.artery) == ("cacnet", "CAC"))
    names = [[name for result in results for name in result["columns"][i]] for i in range(len(experiment.columns))]
    rows = []
    for i, column in enumerate(experiment.columns):
        drawn = np.random.default_rng(0).integers(0, len(joined[i]), (BOOTSTRAPS, len(joined[i])))
        values, spread = figures(joined[i]), _resampled(joined[i], drawn)
        row = identity(column) | {"seeds": len(results), "n": len(joined[i])}
        for name in MEASURES:
            low, high = np.nanquantile(spread[name], (0.025, 0.975)) if not np.isnan(spread[name]).all() else (np.nan, np.nan)
            row |= {name: values[name], f"{name}_low": low, f"{name}_high": high, f"published_{name}": column.published.get(name)}
        if i != whole and column.artery == "CAC" and names[i] == names[whole]:
            apart = spread["volume_f1"] - _resampled(joined[whole], drawn)["volume_f1"]
            row |= {"less": values["volume_f1"] - figures(joined[whole])["volume_f1"]}
            row |= dict(zip(("less_low", "less_high"), np.quantile(apart, (0.025, 0.975)).tolist()))
        rows.append(row)
    return rows


def _resampled(scans, drawn):
    """{measure: [bootstraps]}."""
    found = [figures([scans[i] for i in at]) for at in drawn]
    return {name: np.array([each[name] for each in found]) for name in MEASURES}


def figures(scans) -> dict:
    """{measure: value} of scans, pooled."""
    total = {kind: np.sum([each[kind] for each in scans], 0) for kind in ("voxels", "lesions")}
    found = {}
    for kind, name in (("lesions", "number"), ("voxels", "volume")):
        counts = metrics.Counts(*total[kind].tolist())
        ratios = metrics.sensitivity(counts), metrics.precision(counts), metrics.f1(counts)
        found |= {f"{name}_{what}": value for what, value in zip(("sensitivity", "ppv", "f1"), ratios)}
    for kind, name in (("agatston", "agatston_icc"), ("mm3", "volume_icc")):
        pairs = [each[kind] for each in scans]
        found[name] = agreement.icc_a1(pairs).value if len(pairs) > 1 else float("nan")
    hits = float(total["voxels"][0])
    return found | {"right_artery": sum(each["right"] for each in scans) / hits if hits else float("nan")}


def shown(row) -> dict:
    """A row of the table as text."""
    cells = {"network": row["network"], "calcium of": row["calcium of"]}
    for name, title in MEASURES.items():
        if name == "right_artery" and (row["calcium of"] != "CAC" or row["network"] == CONTROL):
            cells[title] = ""
            continue
        published = "" if row[f"published_{name}"] is None else f" ({row[f'published_{name}']:.3f})"
        cells[title] = f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]{published}"
    cells["F1 less"] = f"{row['less']:+.3f} [{row['less_low']:+.3f}, {row['less_high']:+.3f}]" if "less" in row else ""
    return cells


def draw(path, rows) -> None:
    """The picture of the table."""
    series = {name: MEASURES[name] for name in ("number_f1", "volume_f1", "agatston_icc")}
    pictures.intervals(path, [f"{row['network']}, {row['calcium of']}" for row in rows], rows, series)

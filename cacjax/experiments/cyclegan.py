"""van Velzen 2022: what two scans of a patient score, by removal of calcium and at 130 HU, with the controls that expose a bad network.

A network that finds the same anatomy in both scans reproduces well and measures nothing: beside every relative difference stands how much
of the map lies at true calcium and how it follows the true mass; each map is read without a gate, with the classifier's and with the true
one; the true map, and one that only smooths, take the network's place.
"""

import functools
import json
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from cacjax.classes import CORONARY
from cacjax.evaluation import maps
from cacjax.evaluation.pairs import read as read_pairs
from cacjax.experiments import commands
from cacjax.experiments.commands import Network, Size
from cacjax.files import manifest, scan, volume
from cacjax.phantom.observer import visible
from cacjax.report import pictures, tables

SEED = 800_000  # of the first patient
MULTIPLE, BOOTSTRAPS = 1, 1000
CALCIFIED = 0.8  # of the patients
SMOOTH_PX = 2.0  # of the Gaussian of SMOOTH
OBSERVER, TRUTH, SMOOTH = "observer, from 130 HU", "true map", "CT less its smoothed self, in the true heart"
AUTOMATIC = "two-stage"  # CNN, from 130 HU
GATES = {
    "none": "no gate",
    "classifier": "classifier",
    "lesions": "classifier, least lesion",
    "parts": "likely parts",
    "truth": "true slices",
}
MEASURES = {
    "difference": "rel. difference, concordant",
    "difference_own": "rel. difference, positive twice",
    "icc": "ICC",
    "sensitivity": "sensitivity",
    **{artery: artery for artery in maps.ARTERIES},
    "false_positive_rate": "FP scans",
    "sensitivity_at": "sens. at .14 FP",
    "near": "map within 3 mm",
    "spearman": "Spearman, true mass",
    "pearson": "Pearson, true mass",
    "removed": "removed",
    "free_hu": "HU on free slices",
    "kappa": "kappa, scaled",
    "accuracy": "same category",
}
SHOWN = ("network", "calcium", "gate", *MEASURES.values())
CAPTION = """Two scans of each of so many patients. Concordant: pairs with calcium from 130 HU in both scans, the same for every row;
positive twice: by the row itself. In brackets: 95 % interval by bootstrap over the pairs (of all seeds together); after it, the published
figure. Map: sum of map values, without the -10 HU rule; CT: the paper's sum of CT values where there is a map, with it. Least lesion:
connected parts of the map that add up to less than 2400 HU x mm³ do not count; likely parts: of the others those whose mean probability
by the classifier, weighted by the map, is .6. Sensitivity: of scans in which calcium can be seen; LAD, LCX, RCA: of the arteries in which
it can, by anything within 3 mm of it; at .14 FP: with the least mass that leaves so many scans without calcium positive. Map within 3 mm:
share of its sum at true coronary calcium. Removed: share of the true calcium. HU on free slices: mean of the map within the true heart.
Kappa, same category: of both scans' risk categories by (adjusted) Agatston scores, scaled by one factor to the mean of the observer's."""


class Column(NamedTuple):
    """A row: what is read (a network's name or one of OBSERVER, TRUTH, SMOOTH), its values ("map", "CT"), the gate, published figures."""

    title: str
    values: str
    gate: str
    published: dict = {}  # noqa: RUF012


class Experiment(NamedTuple):
    """Networks by name, and the rows made of them."""

    networks: dict[str, Network]
    columns: tuple[Column, ...]


SIZES = {
    "tiny": Size(("tiny",), (44, 144, 144), 20, (3.0, 1.0, 1.0)),
    "small": Size(("small",), (44, 144, 144), 160, (3.0, 1.0, 1.0)),
    "published": Size((), (44, 400, 400), 160, (3.0, 1.0, 1.0)),
}
_PUBLISHED = {"difference": 0.47, "icc": 0.85, "sensitivity": 0.83, "false_positive_rate": 0.14, "LAD": 0.92, "LCX": 0.67, "RCA": 0.57}
_MANUAL = {"difference": 0.89, "sensitivity": 0.69, "LAD": 0.85, "LCX": 0.58, "RCA": 0.36}
_BY_CNN = {"difference": 1.14, "sensitivity": 0.67, "LAD": 0.77, "LCX": 0.58, "RCA": 0.32}
_CONTROLS = (
    Column(OBSERVER, "CT", "none", _MANUAL),
    Column(TRUTH, "map", "truth"),
    Column(TRUTH, "CT", "truth"),
    Column(SMOOTH, "map", "none"),
)


def _rows(names):
    """The rows of networks: the published reading first."""
    kinds = [(values, gate) for values in ("CT", "map") for gate in ("classifier", "lesions", "parts", "none", "truth")]
    return tuple(Column(name, *kind, _PUBLISHED if (i, kind) == (0, kinds[0]) else {}) for i, name in enumerate(names) for kind in kinds)


def _weights(identity, sparsity):
    return Network("cyclegan.py", (), (f"weights.identity={identity}", f"weights.sparsity={sparsity}"), {"slices": "cyclegan/slices"})


_ONE = {"cyclegan": Network("cyclegan.py")}
_TWO_STAGE = {AUTOMATIC: Network("second.py", ("tiny", "rtp"), sized=False)}
_SWEEP = {f"alpha {a:g}, beta {b:g}": (a, b) for a, b in ((1, 0.001), (3, 0.001), (30, 0.001), (10, 0.1), (10, 1.0))}
EXPERIMENTS = {
    "cyclegan-pairs": Experiment(_ONE | _TWO_STAGE, (*_rows(("cyclegan",)), Column(AUTOMATIC, "CT", "none", _BY_CNN), *_CONTROLS)),
    "cyclegan-removal": Experiment(
        _ONE | {"removal": Network("cyclegan.py", ("removal",), (), {"slices": "cyclegan/slices"})},
        (*_rows(("cyclegan", "removal")), *_CONTROLS),
    ),
    "cyclegan-figure5": Experiment(
        _ONE | {name: _weights(*each) for name, each in _SWEEP.items()},
        tuple(Column(name, "CT", "classifier") for name in ("cyclegan", *_SWEEP)),
    ),
    "cyclegan-figure6": Experiment(
        _ONE,
        tuple(Column(name, "CT", gate) for name in ("cyclegan", "cyclegan, whole slices") for gate in ("classifier", "none")),
    ),
}
WIDE = ", whole slices"  # of a network's name: without its heart


def of_size(experiment, size) -> Experiment:
    """The experiment at a size: at the published one the two-stage CNN is the published, too."""
    if size.words or AUTOMATIC not in experiment.networks:
        return experiment
    return experiment._replace(networks=experiment.networks | {AUTOMATIC: Network("second.py", ("rtp",), sized=False)})


def identity(column) -> dict:
    """What tells a column's row from others."""
    return {"network": column.title, "calcium": column.values, "gate": GATES[column.gate]}


def begin(experiment, size, test_folder, scans) -> None:
    """Make the pairs, unless they are there: two scans of each patient, with the true map of coronary calcium."""
    del experiment
    if not (test_folder / "pairs.csv").exists():
        made = ["--out", str(test_folder), "--protocol", "rtp", "--pairs", "--maps", "--seed", str(SEED), "--n", str(scans)]
        grid = ["--calcified", str(CALCIFIED), "--shape", *map(str, size.shape), "--spacing", *map(str, size.spacing_mm)]
        commands.run("make pairs", [["cacjax.phantom", *made, *grid, "--workers", "2"]], None)


def test(experiment, size, test_folder, folder, scans) -> None:
    """Score all scans by every network, with its gate and rule and without both, and read what it takes for calcium."""
    del size, scans
    paths = [str(row.scan) for row in manifest.read(test_folder)]
    score, wide = ["cacjax.score", *paths, "--resume", "--no-pictures"], any(c.title.endswith(WIDE) for c in experiment.columns)
    for name in experiment.networks:
        own = [*score, "--workdir", str(folder / "networks" / name)]
        if name == AUTOMATIC:
            heart = folder / "networks" / "cyclegan" / "slices" / "heart"
            commands.run(f"score by {name}", [[*own, "--heart", str(heart), "--out", str(folder / "scores" / name)]], None)
            continue
        plain = ["--scoring.gate=none", "--scoring.floor_hu=-2000", "--scoring.least_lesion=0"]
        words = [[*own, "--out", str(folder / "scores" / name), "--save-probability"]]
        words += [[*own, "--out", str(folder / "scores" / f"{name}_all"), *plain]]
        if wide:
            words += [[*own, "--out", str(folder / "scores" / f"{name}{WIDE}"), "--save-probability", "--scoring.heart=False"]]
            words += [[*own, "--out", str(folder / "scores" / f"{name}{WIDE}_all"), *plain, "--scoring.heart=False"]]
        commands.run(f"score by {name}", words, folder / "side_by_side.log")
    titles = [t for t in dict.fromkeys(c.title for c in experiment.columns) if t not in (OBSERVER, AUTOMATIC, TRUTH, SMOOTH)]
    automatic = folder / "scores" / AUTOMATIC if AUTOMATIC in experiment.networks else None
    observed = {each["name"]: each for each in json.loads((test_folder / "truth.json").read_text())}
    with ThreadPoolExecutor(2) as pool:
        read = functools.partial(read_scan, folder=folder, titles=titles, observed=observed, automatic=automatic)
        readings = list(pool.map(read, manifest.read(test_folder)))
    pairs = [(pair.first, pair.second) for pair in read_pairs(test_folder / "pairs.csv")]
    tables.write_json(folder / "readings.json", {"pairs": pairs, "scans": {each["scan"]: each for each in readings}})
    arms = [f"{name}={folder / 'scores' / name}" for name in experiment.networks]
    evaluated = ["--predictions", *arms, "--pairs", str(test_folder / "pairs.csv"), "--out", str(folder / "evaluation")]
    commands.run("evaluate pairs", [["cacjax.evaluate", *evaluated]], None)
    picture(test_folder, folder, titles[0])


def read_scan(row, *, folder, titles, observed, automatic) -> dict:
    """What every network finds in one scan of the test folder: {"scan", "visible", "mass" (true), "found": {row: figures}}. automatic:
    folder of the scores of the two-stage CNN, None without it."""
    image = scan.read(row.scan)
    coronary = read_map(row.scan.parent / row.cells["coronary"])
    heart, label = scan.read_mask(row.heart, image) > 0, np.isin(scan.read_mask(row.mask, image), CORONARY)
    spacing_mm = scan.spacing_mm(image.affine)
    seen = visible(coronary, float(row.cells["noise_hu"]))
    arteries = maps.by_artery(seen, image.affine, observed[row.name]["lesions"], spacing_mm)
    see = functools.partial(maps.figures, hu=image.hu, real=coronary, heart=heart, spacing_mm=spacing_mm, seen=seen.any((1, 2)))
    see = functools.partial(see, arteries=arteries)
    marked = lambda mask, agatston: maps.mass_of(image.hu, mask, spacing_mm) | maps.found_in(arteries, mask) | {"agatston": agatston}  # noqa: E731
    smooth = np.clip(image.hu - ndimage.gaussian_filter(image.hu, (0, SMOOTH_PX, SMOOTH_PX)), 0, None) * heart
    clinical = float(observed[row.name]["agatston"]["total"])
    found = {OBSERVER: {"CT/none": marked(label, clinical)}, SMOOTH: see(smooth)}
    if automatic:
        mask = scan.read_mask(automatic / f"{row.name}_mask.nii.gz", image)
        found[AUTOMATIC] = {
            "CT/none": marked(np.isin(mask, CORONARY), agatston_of(json.loads((automatic / f"{row.name}.json").read_text())))
        }
    found[TRUTH] = see(np.where(coronary >= 1, coronary, 0))
    for title in titles:
        taken = _on(read_map(folder / "scores" / f"{title}_all" / f"{row.name}_map.nii.gz"), image.hu.shape)
        chance = _on(read_map(folder / "scores" / title / f"{row.name}_probability.nii.gz"), image.hu.shape)
        found[title] = see(taken, chance=chance[:, 0, 0])
        record = json.loads((folder / "scores" / title / f"{row.name}.json").read_text())
        gate = "parts" if record["scoring"]["gate"] == "parts" else "lesions" if record["scoring"]["least_lesion"] else "classifier"
        found[title][f"CT/{gate}"]["agatston"] = agatston_of(record)
    mass = float(coronary.sum() * np.prod(spacing_mm))
    return {"scan": row.name, "visible": bool(seen.any()), "mass": mass, "clinical": clinical, "found": found}


def agatston_of(record) -> float:
    """The Agatston score of all coronary calcium of a scan's record."""
    return float(next(row["agatston"] for row in record["rows"] if row["artery"] == "CAC"))


def read_map(path):
    """HU [z, y, x] of a map on disk."""
    return volume.load(path)[0]


def _on(slabs, shape):
    """Of slabs at a step of half the increment, as the published grid has them, those that are slices; at equal steps all."""
    step = 1 if len(slabs) == shape[0] else (len(slabs) + 1) // shape[0]
    return slabs[::step][: shape[0]]


def measure(column, folder) -> dict:
    """{"pairs": [[figures of both scans], ..], "concordant": [..]} of one row of one seed."""
    record = json.loads((folder / "readings.json").read_text())

    def of(name):
        each = record["scans"][name]
        found = each["found"][column.title][f"{column.values}/{column.gate}"] | {"true": each["mass"], "clinical": each["clinical"]}
        return {key: float(f"{value:.5g}") for key, value in found.items()} | {"visible": each["visible"]}

    at_130 = lambda name: record["scans"][name]["found"][OBSERVER]["CT/none"]["mass"] > 0  # noqa: E731
    return {"pairs": [[of(a), of(b)] for a, b in record["pairs"]], "concordant": [at_130(a) and at_130(b) for a, b in record["pairs"]]}


def summary(experiment, results) -> list[dict]:
    """The rows of the table, in the order of the columns; pairs of all seeds together. The bootstrap draws patients of all seeds."""
    rows = []
    for i, column in enumerate(experiment.columns):
        read = [result["columns"][i] for result in results]
        n, random = len(read[0]["pairs"]), np.random.default_rng(0)

        def over(drawn, read=read):
            pairs, concordant = ([each[name][k] for each in read for k in drawn] for name in ("pairs", "concordant"))
            return maps.over(pairs, np.array(concordant))

        values, spread = over(range(n)), [over(random.integers(0, n, n)) for _ in range(BOOTSTRAPS)]
        row = identity(column) | {"seeds": len(results), "n": n, "concordant": int(np.sum(read[0]["concordant"]))}
        for name in MEASURES:
            each = np.array([s[name] for s in spread])
            low, high = np.nanquantile(each, (0.025, 0.975)) if np.isfinite(each).any() else (np.nan, np.nan)
            row |= {name: values[name], f"{name}_low": low, f"{name}_high": high, f"published_{name}": column.published.get(name)}
        rows.append(row)
    return rows


def shown(row) -> dict:
    """A row of the table as text."""
    cells = {name: row[name] for name in ("network", "calcium", "gate")}
    for name, title in MEASURES.items():
        value, low, high = (np.nan if row[key] is None else row[key] for key in (name, f"{name}_low", f"{name}_high"))
        published = "" if row[f"published_{name}"] is None else f" ({row[f'published_{name}']:.2f})"
        cells[title] = "" if np.isnan(value) else f"{value:.3f} [{low:.3f}, {high:.3f}]{published}"
    return cells


def draw(path, rows) -> None:
    """The picture of the table."""
    series = {name: MEASURES[name] for name in ("difference", "sensitivity", "near", "spearman")}
    pictures.intervals(path, [f"{row['network']}, {row['calcium']}, {row['gate']}" for row in rows], rows, series)


def picture(test_folder, folder, title) -> None:
    """Scan, twin, map and true map of the scan with the median true mass of those that show calcium: FOLDER/twins.png."""
    scans = sorted((s["mass"], name) for name, s in json.loads((folder / "readings.json").read_text())["scans"].items() if s["visible"])
    row = next(row for row in manifest.read(test_folder) if row.name == scans[len(scans) // 2][1])
    image, real = scan.read(row.scan), read_map(row.scan.parent / row.cells["coronary"])
    taken = _on(read_map(folder / "scores" / f"{title}_all" / f"{row.name}_map.nii.gz"), image.hu.shape)
    turned, taken, real = scan.oriented(image, taken, real)
    text = f"{row.name}: {title}, no gate; slices with most of the map"
    pictures.twins(folder / "twins.png", turned.hu, taken, affine=turned.affine, title=text, truth=real)

"""Arms of predictions against a reference: masks of every scan read, measured, averaged, written as tables and pictures.

Arrays are [z, y, x] on the scan's grid. A record is a dict of one scan, arm, stage and artery; a row is an average over scans.
"""

import itertools
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from cacjax.classes import ARTERIES, CALCIUM_HU, CLASSES, CORONARY
from cacjax.evaluation import agreement, metrics, pictures, predictions
from cacjax.evaluation.predictions import STAGES
from cacjax.files import manifest, scan
from cacjax.kernels import grids
from cacjax.kernels.reference import settle
from cacjax.report import tables

TARGETS = {"CAC": CORONARY} | {CLASSES[number]: (number,) for number in ARTERIES}
OF_CORONARY = {number: CLASSES[number] for number in (1, 2, 3)}
KEYS = ("arm", "stage", "artery")
SUMMARY = (
    *KEYS,
    "over",
    "scans",
    "missing",
    *(f"{name}{end}" for name in metrics.METRICS for end in ("", "_sd")),
    *metrics.SCAN_METRICS,
)
SHOWN_METRICS = {
    "sensitivity": ("sensitivity", 2),
    "PPV": ("ppv", 2),
    "FP mm³": ("fp_mm3", 1),
    "F1": ("f1", 2),
    "AP": ("ap", 2),
    "lesion sens.": ("lesion_sensitivity", 2),
    "lesion PPV": ("lesion_ppv", 2),
    "1.5-5": ("lesion_sensitivity_1.5_to_5_mm3", 2),
    "5-20": ("lesion_sensitivity_5_to_20_mm3", 2),
    ">20 mm³": ("lesion_sensitivity_over_20_mm3", 2),
    "FP lesions": ("fp_lesions", 2),
    "lesion F1": ("lesion_f1", 2),
}
SHOWN = (*KEYS, "over", "n", *SHOWN_METRICS)
COUNTED = ("reference_mm3", "found_mm3", "reference_lesions", "found_lesions", "reference_agatston", "found_agatston")
COUNTED = (*COUNTED, "candidates", "reference_not_candidate")
FOUND_AS = {name: f"found_{name}_mm3" for name in (*OF_CORONARY.values(), "none")}
CONFUSION = ("arm", "scans", "reference", *FOUND_AS.values())
PER_SCAN = ("scan", *KEYS, "reason", *metrics.METRICS, *COUNTED)
WORDS = pictures.Words("reference", "found", "mm³", "coronary calcium as scored; orange: scans of outliers_<arm>.png")


class Standard(NamedTuple):
    """What is compared. connectivity: neighbours that make one lesion. least_mm3: coronary calcium alone, in the reference and in what was
    found, as `kernels.reference.settle` gives it; None: the labels as they are. unit: what "pooled" adds up, see `metrics.pool`."""

    connectivity: int = 26
    least_mm3: float | None = None
    unit: str = "voxels"


# orCaScore (Wolterink 2016): above 130 HU, 6 neighbours, each lesion by the majority of its labels. That smaller lesions are none is Zhang
# 2018, section 3.1; that a lesion is made of labelled voxels, rather than of all those above 130 HU around them, is an assumption.
STANDARDS = {"orcascore": Standard(6, 1.5, "volume")}


class Reference(NamedTuple):
    """One scan with its truth, all [z, y, x] on the scan's grid; `lesions` holds numbered lesions per target."""

    name: str
    scan: scan.Scan
    label: np.ndarray
    heart: np.ndarray | None
    candidates: np.ndarray
    lesions: dict
    threshold_hu: float
    voxel_mm3: float
    standard: Standard = Standard()

    def counted(self, label):
        """A class mask on the scan's grid with what counts by the standard."""
        least_mm3 = self.standard.least_mm3
        return label if least_mm3 is None else settle(label, self.scan.hu, self.voxel_mm3, least_mm3)


def evaluate(arms, reference, standard):
    """Compare every arm ({name: folder of predictions}) with the manifest `reference` by a Standard.

    Returns a dict: n, standard, missing (list of arm, scan and reason), scans (records), summary (rows), agreement (see `agreement.rows`),
    arteries (rows of `confusion`), and for the pictures panels and outliers ({arm: panels}). Raises ManifestError.
    """
    rows = manifest.read(reference)
    records, panels, pooled = [], [], {arm: [] for arm in arms}
    for row in tqdm(rows, unit="scan", disable=None):
        try:
            truth = load(row, standard)
        except scan.ScanError as error:
            records += [_missing(row.name, arm, f"reference: {error.code}") for arm in arms]
            continue
        found = {arm: compare(truth, folder, arm=arm) for arm, folder in arms.items()}
        for arm, (measured, ranking, _) in found.items():
            records += measured
            pooled[arm] += [ranking] if ranking else []
        ours = {arm: (mask, _note(measured)) for arm, (measured, _, mask) in found.items() if mask is not None}
        panels += pictures.of_scan(truth, ours)
    return {
        "n": len(rows),
        "standard": standard,
        "missing": sorted({(r["arm"], r["scan"], r["reason"]) for r in records if r["reason"]}),
        "scans": records,
        "summary": summarise(records, arms, pooled, standard.unit),
        "agreement": agreement.rows(records),
        "arteries": confusion(records, arms),
        "panels": panels,
        "outliers": outliers(rows, arms, records, standard),
    }


def load(row, standard):
    """The Reference of a manifest row by a standard. Raises ScanError for what cannot be read, and for a row without mask."""
    if row.mask is None:
        raise scan.ScanError("no_reference", f"{row.name}: the manifest names no mask")
    image = scan.read(row.scan)
    label = scan.read_mask(row.mask, image)
    heart = None if row.heart is None else scan.read_mask(row.heart, image) > 0
    settled = standard.least_mm3 is not None
    threshold_hu = CALCIUM_HU if row.threshold_hu is None or settled else row.threshold_hu
    candidates = image.hu > threshold_hu if settled else image.hu >= threshold_hu
    if heart is not None:
        candidates &= heart
    voxel_mm3 = float(np.prod(scan.spacing_mm(image.affine)))
    truth = Reference(row.name, image, label, heart, candidates, {}, threshold_hu, voxel_mm3, standard)
    label = truth.counted(label)
    numbered = {target: number_lesions(np.isin(label, classes), standard.connectivity) for target, classes in TARGETS.items()}
    return truth._replace(label=label, lesions=numbered)


def number_lesions(mask, connectivity):
    """Label image [z, y, x] of a boolean mask: 0 outside, 1..n per connected component (of 6, 18 or 26 neighbours)."""
    numbered, found = np.zeros(mask.shape, np.int32), grids.extent(mask)
    if found is not None:  # looked at where something is alone: what was never written takes no memory
        box = tuple(slice(first, last + 1) for first, last in zip(*found))
        neighbours = ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])
        ndimage.label(mask[box], neighbours, output=numbered[box])
    return numbered


def compare(truth, folder, *, arm):
    """One arm on one scan: (records per stage and target, ranking or None, final mask or None)."""
    try:
        record = predictions.read(folder, truth.name)
        masks, ranking = predictions.masks(record, truth, folder), predictions.ranking(record, truth, folder)
        masks = {stage: truth.counted(mask) for stage, mask in masks.items()}
    except scan.ScanError as error:
        return [_missing(truth.name, arm, error.code)], None, None
    scored, records = predictions.agatston(record, truth), []
    asked = targets(record, truth)
    for stage, mask in masks.items():
        for target in asked:
            one = {"scan": truth.name, "arm": arm, "stage": stage, "artery": target, "reason": ""}
            one |= measure(truth, mask, target=target)
            one["ap"] = predictions.precision_of(ranking, TARGETS[target])
            if target == "CAC" and set(OF_CORONARY.values()) <= set(asked):
                one["arteries_mm3"] = metrics.confusion_mm3(mask, truth.label, tuple(OF_CORONARY), truth.voxel_mm3)
            records.append(one | (scored.get(target, {}) if stage == "final" else {}))
    return records, ranking, masks.get("final")


def targets(record, truth):
    """Those of TARGETS that the prediction answers and the reference knows: calcium of an unknown artery says nothing about each, nor
    does a standard of coronary calcium about the rest."""
    answered = {row["artery"] for row in record["rows"]}
    unknown = set(OF_CORONARY.values()) if (truth.label == predictions.UNKNOWN).any() else set()
    if truth.standard.least_mm3 is not None:
        unknown |= TARGETS.keys() - {"CAC", *OF_CORONARY.values()}
    return [target for target in TARGETS if target in answered - unknown]


def measure(truth, found, *, target):
    """The metrics of one predicted class mask [z, y, x] for a target, with the counts to pool, a dict."""
    classes = TARGETS[target]
    hit, real = np.isin(found, classes), np.isin(truth.label, classes)
    pieces = number_lesions(hit, truth.standard.connectivity)
    ours, code = metrics.count_lesions(pieces, truth.lesions[target])
    sizes = metrics.count_sizes(pieces, truth.lesions[target], truth.voxel_mm3)
    measured = metrics.metrics(metrics.count_voxels(hit, real), ours, code, sizes, truth.voxel_mm3)
    measured["found_lesions"] = int(pieces.max(initial=0))
    if target == "CAC":
        measured["candidates"] = int(truth.candidates.sum())
        measured["reference_not_candidate"] = int((real & ~truth.candidates).sum())
    return measured


def _missing(name, arm, reason):
    return {"scan": name, "arm": arm, "stage": "final", "artery": "", "reason": reason}


def _note(records):
    row = next(r for r in records if (r["stage"], r["artery"]) == ("final", "CAC"))
    return f"whole scan: F1 {row['f1']:.2f}, false {row['fp_mm3']:.0f} mm³"


def summarise(records, arms, rankings, unit):
    """Summary rows: every arm, stage, target and kind of average. rankings: {arm: list of `predictions.ranking` per scan}; unit: of
    `metrics.pool`."""
    rows = []
    for arm, stage, target in itertools.product(arms, STAGES, TARGETS):
        ours = [r for r in records if (r["arm"], r["stage"], r["artery"]) == (arm, stage, target)]
        if not ours and (stage, target) != ("final", "CAC"):
            continue  # `score` was told to leave this stage out, or the system does not tell arteries apart
        missing = len({r["scan"] for r in records}) - len(ours)
        for over in metrics.OVER:
            row = {"arm": arm, "stage": stage, "artery": target, "over": over, "missing": missing} | metrics.average(ours, over, unit)
            if over == "pooled" and rankings[arm]:
                joined = [np.concatenate(part) for part in zip(*rankings[arm])]
                row["ap"] = predictions.precision_of(joined, TARGETS[target])
            rows.append(row)
    return rows


def confusion(records, arms):
    """Rows of CONFUSION, an artery of the reference or none each, for every arm that tells arteries apart: the volume that was found as
    each artery or none (`metrics.confusion_mm3`), over the scans whose arteries the reference knows."""
    rows = []
    for arm in arms:
        ours = [r["arteries_mm3"] for r in records if (r["arm"], r["stage"]) == (arm, "final") and "arteries_mm3" in r]
        total = np.sum(ours, 0).tolist() if ours else ()
        rows += [
            {"arm": arm, "scans": len(ours), "reference": name} | dict(zip(FOUND_AS.values(), row)) for name, row in zip(FOUND_AS, total)
        ]
    return rows


def outliers(rows, arms, records, standard):
    """Close-ups {arm: panels} of the scans whose volume of calcium is furthest from the reference, which are read once more."""
    wanted, found = {arm: pictures.furthest(records, arm) for arm in arms}, {}
    for row in rows:
        ours = [arm for arm in arms if row.name in wanted[arm]]
        truth = load(row, standard) if ours else None
        for arm in ours:
            masks = predictions.masks(predictions.read(arms[arm], row.name), truth, arms[arm])
            masks = {stage: truth.counted(mask) for stage, mask in masks.items()}
            numbered = number_lesions(np.isin(masks["final"], CORONARY), standard.connectivity)
            found[arm, row.name] = pictures.of_outlier(truth, masks["final"], numbered, masks.get("before"))
    return {arm: [panel for name in wanted[arm] for panel in found[arm, name]] for arm in arms}


def tell(result):
    """The tables for the terminal, as texts: of coronary calcium, of each artery, which were taken for which, of the agreement."""
    for wanted in (("CAC",), OF_CORONARY.values()):
        if rows := [shown(row) for row in result["summary"] if row["artery"] in wanted]:
            yield tables.table(rows, SHOWN)
    if result["arteries"]:
        yield tables.table(result["arteries"], CONFUSION, digits=0)
    yield tables.table([agreement.shown(row) for row in result["agreement"] if row["artery"] == "CAC"], agreement.SHOWN)


def shown(row):
    """A summary row as the terminal shows it: means with SD in brackets."""
    cells = {key: row[key] for key in (*KEYS, "over")} | {"n": row["scans"]}
    for title, (name, digits) in SHOWN_METRICS.items():
        value, sd = row[name], row[f"{name}_sd"]
        spread = "" if np.isnan(sd) else f" ({sd:.{digits}f})"
        cells[title] = None if np.isnan(value) else f"{value:.{digits}f}{spread}"
    return cells


def write(result, out, arms):
    """Write evaluation.csv (the summary), evaluation_scans.csv, agreement.csv, arteries.csv, evaluation.json and the pictures; returns the
    first."""
    tables.write_csv(out / "evaluation.csv", result["summary"], SUMMARY)
    tables.write_csv(out / "evaluation_scans.csv", result["scans"], PER_SCAN)
    tables.write_csv(out / "agreement.csv", result["agreement"], agreement.COLUMNS)
    tables.write_csv(out / "arteries.csv", result["arteries"], CONFUSION)
    record = {"predictions": {arm: str(folder) for arm, folder in arms.items()}, "n_scans": result["n"], "standard": result["standard"]}
    tables.write_json(out / "evaluation.json", record | {key: result[key] for key in ("summary", "agreement", "arteries", "scans")})
    if result["panels"]:
        pictures.comparison(out / "comparison.png", pictures.choose(result["panels"]), arms=tuple(arms))
    final = [r for r in result["scans"] if (r["stage"], r["artery"]) == ("final", "CAC")]
    points = {arm: [(r["scan"], r["reference_mm3"], r["found_mm3"]) for r in final if r["arm"] == arm] for arm in arms}
    named = {arm: [panel["scan"] for panel in found] for arm, found in result["outliers"].items()}
    pictures.scatter(out / "agreement.png", points, words=WORDS, named=named)
    scored = {row["arm"]: row for row in result["agreement"] if row.get("confusion") is not None}
    if scored:
        pictures.confusions(out / "categories.png", scored)
    for arm, found in result["outliers"].items():
        if found:
            pictures.outliers(out / f"outliers_{arm}.png", found, title=f"{arm}: the scans furthest from the reference")
    return out / "evaluation.csv"

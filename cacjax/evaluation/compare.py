"""Arms of predictions against a reference: masks of every scan read, measured, averaged, written as tables and pictures.

Arrays are [z, y, x] on the scan's grid. A record is a dict of one scan, arm, stage and artery; a row is an average over scans.
"""

import itertools
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from cacjax.classes import ARTERIES, CALCIUM_HU, CLASSES, CORONARY
from cacjax.evaluation import agreement, metrics, pictures, predictions
from cacjax.evaluation.predictions import STAGES
from cacjax.files import manifest, scan
from cacjax.kernels import lesions
from cacjax.report import tables

TARGETS = {"CAC": CORONARY} | {CLASSES[number]: (number,) for number in ARTERIES}
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
    "1.5-5": ("lesion_sensitivity_1.5_to_5_mm3", 2),
    "5-20": ("lesion_sensitivity_5_to_20_mm3", 2),
    ">20 mm³": ("lesion_sensitivity_over_20_mm3", 2),
    "FP lesions": ("fp_lesions", 2),
    "lesion F1": ("lesion_f1", 2),
}
SHOWN = (*KEYS, "over", "n", *SHOWN_METRICS)
COUNTED = ("reference_mm3", "found_mm3", "reference_lesions", "found_lesions", "reference_agatston", "found_agatston")
COUNTED = (*COUNTED, "candidates", "reference_not_candidate")
PER_SCAN = ("scan", *KEYS, "reason", *metrics.METRICS, *COUNTED)
WORDS = pictures.Words("reference", "found", "mm³", "coronary calcium as scored; orange: scans of outliers_<arm>.png")


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


def evaluate(arms, reference, *, connectivity=26):
    """Compare every arm ({name: folder of predictions}) with the manifest `reference`.

    Returns a dict: n, missing (list of arm, scan and reason), scans (records), summary (rows), agreement (see `agreement.rows`), and for
    the pictures panels and outliers ({arm: panels}). Raises ManifestError.
    """
    rows = manifest.read(reference)
    records, panels, pooled = [], [], {arm: [] for arm in arms}
    for row in tqdm(rows, unit="scan", disable=None):
        try:
            truth = load(row, connectivity=connectivity)
        except scan.ScanError as error:
            records += [_missing(row.name, arm, f"reference: {error.code}") for arm in arms]
            continue
        found = {arm: compare(truth, folder, arm=arm, connectivity=connectivity) for arm, folder in arms.items()}
        for arm, (measured, ranking, _) in found.items():
            records += measured
            pooled[arm] += [ranking] if ranking else []
        ours = {arm: (mask, _note(measured)) for arm, (measured, _, mask) in found.items() if mask is not None}
        panels += pictures.of_scan(truth, ours)
    return {
        "n": len(rows),
        "missing": sorted({(r["arm"], r["scan"], r["reason"]) for r in records if r["reason"]}),
        "scans": records,
        "summary": summarise(records, arms, pooled),
        "agreement": agreement.rows(records),
        "panels": panels,
        "outliers": outliers(rows, arms, records, connectivity=connectivity),
    }


def load(row, *, connectivity):
    """The Reference of a manifest row. Raises ScanError for what cannot be read, and for a row without mask."""
    if row.mask is None:
        raise scan.ScanError("no_reference", f"{row.name}: the manifest names no mask")
    image = scan.read(row.scan)
    label = scan.read_mask(row.mask, image)
    heart = None if row.heart is None else scan.read_mask(row.heart, image) > 0
    threshold_hu = CALCIUM_HU if row.threshold_hu is None else row.threshold_hu
    candidates = image.hu >= threshold_hu
    if heart is not None:
        candidates &= heart
    numbered = {target: number_lesions(np.isin(label, classes), connectivity) for target, classes in TARGETS.items()}
    voxel_mm3 = float(np.prod(scan.spacing_mm(image.affine)))
    return Reference(row.name, image, label, heart, candidates, numbered, threshold_hu, voxel_mm3)


def number_lesions(mask, connectivity):
    """Label image [z, y, x] of a boolean mask: 0 outside, 1..n per connected component."""
    return np.asarray(lesions.label(mask, connectivity=connectivity)[0]) if mask.any() else np.zeros(mask.shape, np.int32)


def compare(truth, folder, *, arm, connectivity):
    """One arm on one scan: (records per stage and target, ranking or None, final mask or None)."""
    try:
        record = predictions.read(folder, truth.name)
        masks, ranking = predictions.masks(record, truth, folder), predictions.ranking(record, truth, folder)
    except scan.ScanError as error:
        return [_missing(truth.name, arm, error.code)], None, None
    scored, records = predictions.agatston(record, truth), []
    for stage, mask in masks.items():
        for target in targets(record, truth):
            one = {"scan": truth.name, "arm": arm, "stage": stage, "artery": target, "reason": ""}
            one |= measure(truth, mask, target=target, connectivity=connectivity)
            one["ap"] = predictions.precision_of(ranking, TARGETS[target])
            records.append(one | (scored.get(target, {}) if stage == "final" else {}))
    return records, ranking, masks.get("final")


def targets(record, truth):
    """Those of TARGETS that the prediction answers and the reference knows: calcium of an unknown artery says nothing about each."""
    answered = {row["artery"] for row in record["rows"]}
    unknown = {"LAD", "LCX", "RCA"} if (truth.label == predictions.UNKNOWN).any() else set()
    return [target for target in TARGETS if target in answered - unknown]


def measure(truth, found, *, target, connectivity):
    """The metrics of one predicted class mask [z, y, x] for a target, with the counts to pool, a dict."""
    classes = TARGETS[target]
    hit, real = np.isin(found, classes), np.isin(truth.label, classes)
    pieces = number_lesions(hit, connectivity)
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


def summarise(records, arms, rankings):
    """Summary rows: every arm, stage, target and kind of average. rankings: {arm: list of `predictions.ranking` per scan}."""
    rows = []
    for arm, stage, target in itertools.product(arms, STAGES, TARGETS):
        ours = [r for r in records if (r["arm"], r["stage"], r["artery"]) == (arm, stage, target)]
        if not ours and (stage, target) != ("final", "CAC"):
            continue  # `score` was told to leave this stage out, or the system does not tell arteries apart
        missing = len({r["scan"] for r in records}) - len(ours)
        for over in metrics.OVER:
            row = {"arm": arm, "stage": stage, "artery": target, "over": over, "missing": missing} | metrics.average(ours, over)
            if over == "pooled" and rankings[arm]:
                joined = [np.concatenate(part) for part in zip(*rankings[arm])]
                row["ap"] = predictions.precision_of(joined, TARGETS[target])
            rows.append(row)
    return rows


def outliers(rows, arms, records, *, connectivity):
    """Close-ups {arm: panels} of the scans whose volume of calcium is furthest from the reference, which are read once more."""
    wanted, found = {arm: pictures.furthest(records, arm) for arm in arms}, {}
    for row in rows:
        ours = [arm for arm in arms if row.name in wanted[arm]]
        truth = load(row, connectivity=connectivity) if ours else None
        for arm in ours:
            masks = predictions.masks(predictions.read(arms[arm], row.name), truth, arms[arm])
            numbered = number_lesions(np.isin(masks["final"], CORONARY), connectivity)
            found[arm, row.name] = pictures.of_outlier(truth, masks["final"], numbered, masks.get("before"))
    return {arm: [panel for name in wanted[arm] for panel in found[arm, name]] for arm in arms}


def tell(result):
    """The tables for the terminal, as texts: of coronary calcium, of each artery, of the agreement."""
    for wanted in (("CAC",), ("LAD", "LCX", "RCA")):
        if rows := [shown(row) for row in result["summary"] if row["artery"] in wanted]:
            yield tables.table(rows, SHOWN)
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
    """Write evaluation.csv (the summary), evaluation_scans.csv, agreement.csv, evaluation.json and the pictures; returns the first."""
    tables.write_csv(out / "evaluation.csv", result["summary"], SUMMARY)
    tables.write_csv(out / "evaluation_scans.csv", result["scans"], PER_SCAN)
    tables.write_csv(out / "agreement.csv", result["agreement"], agreement.COLUMNS)
    record = {"predictions": {arm: str(folder) for arm, folder in arms.items()}, "n_scans": result["n"]}
    tables.write_json(out / "evaluation.json", record | {key: result[key] for key in ("summary", "agreement", "scans")})
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

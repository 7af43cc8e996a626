"""Compare predictions with a reference: `python -m cacjax.evaluate --predictions [NAME=]OUT ... --reference DIR`.

DIR holds a manifest.csv with masks; OUT is what `cacjax.score` wrote. Per artery and in total, with and without
reduction of false positives: sensitivity, volume of false positives, F1 and average precision over voxels;
sensitivity, false ones per scan and F1 over lesions (evaluation.csv; definitions: cacjax/evaluation/metrics.py), averaged over
all scans, over those with calcium, and pooled; and how volumes, numbers of lesions, Agatston scores and risk categories
agree (agreement.csv; cacjax/evaluation/agreement.py). Pictures: comparison.png, agreement.png, and outliers_<arm>.png of the
scans furthest off. A scan without prediction is a row with a reason.
"""

import argparse
import itertools
import pathlib
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from cacjax.evaluation import agreement, metrics, predictions
from cacjax.evaluation import pictures as panels
from cacjax.evaluation.predictions import STAGES
from cacjax.files import manifest, scan
from cacjax.kernels import lesions
from cacjax.kernels.scores import CLASSES
from cacjax.report import tables
from cacjax.scoring.one_scan import NON_CONTRAST_HU

TARGETS = {"CAC": (1, 2, 3)} | {name: (number,) for number, name in enumerate(CLASSES) if number}
KEYS = ("arm", "fp_reduction", "artery")
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
    "FP mm³": ("fp_mm3", 1),
    "F1": ("f1", 2),
    "AP": ("ap", 2),
    "lesion sens.": ("lesion_sensitivity", 2),
    "FP lesions": ("fp_lesions", 2),
    "lesion F1": ("lesion_f1", 2),
}
SHOWN = ("arm", "FP red.", "artery", "over", "n", *SHOWN_METRICS)
COUNTED = ("reference_mm3", "found_mm3", "reference_lesions", "found_lesions", "reference_agatston", "found_agatston")
COUNTED = (*COUNTED, "candidates", "reference_not_candidate")
PER_SCAN = ("scan", *KEYS, "reason", *metrics.METRICS, *COUNTED)


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


def main(argv=None):
    """Evaluate what the command line names; returns the exit code: 1 when a reference or a prediction was missing."""
    options = parse(argv)
    arms = dict(options.predictions)
    try:
        result = evaluate(arms, options.reference, connectivity=options.connectivity)
    except manifest.ManifestError as error:
        raise SystemExit(f"error: {error}") from None
    out = pathlib.Path(options.out or next(iter(arms.values())))
    write(result, out, arms)
    for targets in (("CAC",), ("LAD", "LCX", "RCA")):
        print(tables.table([shown(row) for row in result["summary"] if row["artery"] in targets], SHOWN), end="\n\n")
    print(tables.table([agreement.shown(row) for row in result["agreement"] if row["artery"] == "CAC"], agreement.SHOWN), end="\n\n")
    missing = sorted({(row["arm"], row["scan"], row["reason"]) for row in result["scans"] if row["reason"]})
    for arm, name, reason in missing:
        print(f"{arm}, {name}: {reason}")
    print(f"{result['n_scans']} scans, {len(arms)} predictions, {len(missing)} missing; {out / 'evaluation.csv'}")
    return int(bool(missing) or not result["n_scans"])


def parse(argv):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(prog="python -m cacjax.evaluate", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add(
        "--predictions",
        nargs="+",
        required=True,
        type=_arm,
        metavar="[NAME=]OUT",
        help="folders that cacjax.score wrote, one per arm",
    )
    add("--reference", required=True, metavar="DIR", help="folder with a manifest.csv that names scans and masks")
    add("--out", help="folder for evaluation.csv and the rest (default: the first OUT)")
    add("--connectivity", type=int, choices=(6, 18, 26), default=26, help="neighbours that make one lesion (default: 26)")
    options = parser.parse_args(argv)
    for _, folder in options.predictions:
        if not folder.is_dir():
            parser.error(f"no folder {folder}: expected one that cacjax.score wrote")
    if len(dict(options.predictions)) < len(options.predictions):
        parser.error("expected a different NAME=OUT for each prediction, got the same name twice")
    return options


def _arm(text):
    name, found, folder = text.partition("=")
    return (name, pathlib.Path(folder)) if found else (pathlib.Path(text).name, pathlib.Path(text))


def evaluate(arms, reference, *, connectivity=26):
    """Compare every arm ({name: folder of predictions}) with the manifest `reference`.

    Returns a dict: n_scans, scans (one dict per scan, arm, stage and artery), summary (one per arm, stage, artery and
    kind of average), agreement (see `agreement.rows`), and for the pictures panels and outliers ({arm: panels}).
    Raises ManifestError.
    """
    rows = manifest.read(reference)
    scans, pictures, pooled = [], [], {arm: [] for arm in arms}
    for row in tqdm(rows, unit="scan", disable=None):
        try:
            truth = load(row, connectivity=connectivity)
        except scan.ScanError as error:
            scans += [_missing(row.name, arm, stage, f"reference: {error.code}") for arm in arms for stage in STAGES]
            continue
        found = {arm: compare(truth, folder, arm=arm, connectivity=connectivity) for arm, folder in arms.items()}
        for arm, (records, ranking, _) in found.items():
            scans += records
            pooled[arm] += [ranking] if ranking else []
        ours = {arm: (mask, _note(records)) for arm, (records, _, mask) in found.items() if mask is not None}
        pictures += panels.of_scan(truth, ours)
    return {
        "n_scans": len(rows),
        "scans": scans,
        "summary": summarise(scans, arms, pooled),
        "agreement": agreement.rows(scans),
        "panels": pictures,
        "outliers": outliers(rows, arms, scans, connectivity=connectivity),
    }


def outliers(rows, arms, scans, *, connectivity):
    """Close-ups {arm: panels} of the scans whose volume of calcium is furthest from the reference, which are read once more."""
    wanted, found = {arm: panels.furthest(scans, arm) for arm in arms}, {}
    for row in rows:
        ours = [arm for arm in arms if row.name in wanted[arm]]
        truth = load(row, connectivity=connectivity) if ours else None
        for arm in ours:
            masks, _ = predictions.masks(truth, arms[arm])
            numbered = number_lesions(np.isin(masks["mask"], TARGETS["CAC"]), connectivity)
            found[arm, row.name] = panels.of_outlier(truth, masks["mask"], numbered, masks.get("detected"))
    return {arm: [panel for name in wanted[arm] for panel in found[arm, name]] for arm in arms}


def summarise(scans, arms, rankings):
    """Summary rows: every arm, stage, target and kind of average. rankings: {arm: list of `predictions.ranking` per scan}."""
    rows = []
    for arm, stage, target in itertools.product(arms, STAGES.values(), TARGETS):
        ours = [r for r in scans if (r["arm"], r["fp_reduction"]) == (arm, stage)]
        if not ours:
            continue  # `score` was told to leave this stage out
        records = [r for r in ours if r["artery"] == target]
        for over in metrics.OVER:
            row = {"arm": arm, "fp_reduction": stage, "artery": target, "over": over}
            row |= {"missing": sum(bool(r["reason"]) for r in ours)} | metrics.average(records, over)
            if over == "pooled" and rankings[arm]:
                joined = [np.concatenate(part) for part in zip(*rankings[arm])]
                row["ap"] = predictions.precision_of(joined, TARGETS[target])
            rows.append(row)
    return rows


def load(row, *, connectivity):
    """The Reference of a manifest row. Raises ScanError for what cannot be read, and for a row without mask."""
    if row.mask is None:
        raise scan.ScanError("no_reference", f"{row.name}: the manifest names no mask")
    image = scan.read(row.scan)
    label = scan.read_mask(row.mask, image)
    heart = None if row.heart is None else scan.read_mask(row.heart, image) > 0
    threshold_hu = NON_CONTRAST_HU if row.threshold_hu is None else row.threshold_hu
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
    masks, reasons = predictions.masks(truth, folder)
    ranking, scored = predictions.ranking(truth, folder), predictions.agatston(truth, folder)
    records = [_missing(truth.name, arm, stage, reason) for stage, reason in reasons.items()]
    for stage, mask in masks.items():
        measured = measure(truth, mask, arm=arm, stage=stage, ranking=ranking, connectivity=connectivity)
        records += [record | (scored.get(record["artery"], {}) if stage == "mask" else {}) for record in measured]
    return records, ranking, masks.get("mask")


def measure(truth, found, *, arm, stage, ranking, connectivity):
    """Records of one predicted class mask [z, y, x], one per target, with the metrics and the counts to pool."""
    records = []
    for target, classes in TARGETS.items():
        hit = np.isin(found, classes)
        voxels = metrics.count_voxels(hit, np.isin(truth.label, classes))
        pieces = number_lesions(hit, connectivity)
        ours, code = metrics.count_lesions(pieces, truth.lesions[target])
        record = {"scan": truth.name, "arm": arm, "fp_reduction": STAGES[stage], "artery": target, "reason": ""}
        record |= metrics.metrics(voxels, ours, code, truth.voxel_mm3) | {"found_lesions": int(pieces.max(initial=0))}
        if target == "CAC":
            record["candidates"] = int(truth.candidates.sum())
            record["reference_not_candidate"] = int((np.isin(truth.label, classes) & ~truth.candidates).sum())
        record["ap"] = predictions.precision_of(ranking, classes)
        records.append(record)
    return records


def _missing(name, arm, stage, reason):
    return {"scan": name, "arm": arm, "fp_reduction": STAGES[stage], "artery": "", "reason": reason}


def _note(records):
    row = next(r for r in records if (r["fp_reduction"], r["artery"]) == ("yes", "CAC"))
    return f"whole scan: F1 {row['f1']:.2f}, false {row['fp_mm3']:.0f} mm³"


def shown(row):
    """A summary row as the terminal shows it: means with SD in brackets."""
    cells = {
        "arm": row["arm"],
        "FP red.": row["fp_reduction"],
        "artery": row["artery"],
        "over": row["over"],
        "n": row["scans"],
    }
    for title, (name, digits) in SHOWN_METRICS.items():
        value, sd = row[name], row[f"{name}_sd"]
        spread = "" if np.isnan(sd) else f" ({sd:.{digits}f})"
        cells[title] = None if np.isnan(value) else f"{value:.{digits}f}{spread}"
    return cells


def write(result, out, arms):
    """Write evaluation.csv (the summary), evaluation_scans.csv, agreement.csv, evaluation.json and the pictures."""
    tables.write_csv(out / "evaluation.csv", result["summary"], SUMMARY)
    tables.write_csv(out / "evaluation_scans.csv", result["scans"], PER_SCAN)
    tables.write_csv(out / "agreement.csv", result["agreement"], agreement.COLUMNS)
    record = {"predictions": {arm: str(folder) for arm, folder in arms.items()}}
    kept = ("n_scans", "summary", "agreement", "scans")
    tables.write_json(out / "evaluation.json", record | {key: result[key] for key in kept})
    if result["panels"]:
        panels.comparison(out / "comparison.png", panels.choose(result["panels"]), arms=tuple(arms))
    named = {arm: [panel["scan"] for panel in found] for arm, found in result["outliers"].items()}
    panels.volumes(out / "agreement.png", result["scans"], arms=tuple(arms), named=named)
    for arm, found in result["outliers"].items():
        if found:
            panels.outliers(out / f"outliers_{arm}.png", found, title=f"{arm}: the scans furthest from the reference")


if __name__ == "__main__":
    raise SystemExit(main())

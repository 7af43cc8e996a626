"""What `cacjax.score` wrote, read back beside the reference: masks, probability, Agatston scores. Arrays [z, y, x].

`truth` is a `cacjax.evaluate.Reference`, `folder` what was given as --out.
"""

import json

import numpy as np

from cacjax.evaluation import metrics
from cacjax.files import geometry, scan, volume
from cacjax.kernels import rules, scores
from cacjax.kernels.scores import CORONARY
from cacjax.scoring import one_scan, program

STAGES = {"mask": "yes", "detected": "no"}  # name of a file, and whether false positives are reduced in it


def masks(truth, folder):
    """({stage: classes}, {stage: reason}): what was predicted for a scan, and why not. Neither for what `score` was told to leave out."""
    found, reasons = {}, {}
    for stage in _stages(folder / f"{truth.name}.json"):
        try:
            found[stage] = scan.read_mask(path_of(folder, truth.name, stage), truth.scan)
        except scan.ScanError as error:
            reasons[stage] = error.code
    return found, reasons


def _stages(record):
    """Those that a scan was scored for: only the reduced one where --classify let alone what does not end in it."""
    try:
        classify = json.loads(record.read_text())["settings"]["classify"]
    except (OSError, ValueError, KeyError):
        classify = "all"
    return STAGES if classify == "all" else ("mask",)


def path_of(folder, name, stage):
    """Path of a mask that `cacjax.score` wrote. Raises ScanError with the reason from the record of a refused scan."""
    path, record = folder / f"{name}_{stage}.nii.gz", folder / f"{name}.json"
    if path.is_file():
        return path
    try:
        reason = f"refused: {json.loads(record.read_text())['reason']}"
    except (OSError, ValueError, KeyError):
        reason = "no_prediction"
    raise scan.ScanError(reason, f"{path}: expected a mask that cacjax.score wrote")


def ranking(truth, folder):
    """(probability of coronary calcium [n], class in the reference [n]) of the candidate voxels, or None where none was saved."""
    path = folder / f"{truth.name}_probability.nii.gz"
    if not path.is_file():
        return None
    probability, affine = volume.load(path)
    if not geometry.same_grid(probability.shape, affine, truth.scan.hu.shape, truth.scan.affine):
        raise scan.ScanError("grid_mismatch", f"{path}: expected the grid of {truth.scan.path}")
    return probability[truth.candidates], truth.label[truth.candidates]


def precision_of(ranking, classes):
    """Average precision of a ranking for coronary classes, NaN for others or without a ranking.

    The probability is that of coronary calcium as a whole: candidates of the other arteries, which it ranks high too, are left out.
    """
    if ranking is None or not set(classes) <= set(CORONARY):
        return float("nan")
    probability, label = ranking
    real = np.isin(label, classes)
    kept = real | ~np.isin(label, CORONARY)
    return metrics.average_precision(probability[kept], real[kept])


def agatston(truth, folder):
    """{artery: {"found_agatston", "reference_agatston"}}: the score in the record of `cacjax.score` beside that of the reference mask
    by the same rule; empty without such a record."""
    try:
        record = json.loads((folder / f"{truth.name}.json").read_text())
        rule, acquisition = rules.named(record["rule"]["name"]), record["acquisition"]
        found = {row["artery"]: row["agatston"] for row in record["rows"]}
    except (OSError, ValueError, KeyError):
        return {}
    rule, _ = one_scan.at_voltage(rule, acquisition["kvp"])
    turned, label = scan.oriented(truth.scan, truth.label)
    padded = program.pad(label, fill=0), program.pad(turned.hu, fill=program.NO_HU)
    real = scores.score(*padded, scan.spacing_mm(turned.affine), rule, slice_thickness_mm=acquisition["slice_thickness_mm"])
    real = dict(zip(real.names, real.agatston.tolist()))
    return {artery: {"found_agatston": found[artery], "reference_agatston": real[artery]} for artery in found.keys() & real}

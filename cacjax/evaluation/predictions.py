"""What `cacjax.score` wrote of one scan, read back beside the reference: masks by stage, probability, Agatston scores. Arrays [z, y, x].

`truth` is a `cacjax.evaluation.compare.Reference`, `folder` what was given as --out, `record` the <scan>.json in it.
"""

import json

import numpy as np

from cacjax.classes import CLASSES, CORONARY
from cacjax.evaluation import metrics
from cacjax.files import geometry, scan, volume
from cacjax.kernels import grids, own_rules, rules, scores, spatial

STAGES = ("final", "before")  # what is scored, and what was detected before false positives were reduced
UNKNOWN = CLASSES.index("CAC")  # coronary calcium of which nobody knows the artery


def read(folder, name):
    """The record of a scored scan. Raises ScanError for one that was refused, with its reason, and for none."""
    path = folder / f"{name}.json"
    try:
        record = json.loads(path.read_text())
        status, masks = record["status"], record.get("masks")
    except (OSError, ValueError, KeyError):
        raise scan.ScanError("no_prediction", f"{path}: expected the record of a scan that cacjax.score wrote") from None
    if status != "scored":
        raise scan.ScanError(f"refused: {record['reason']}", f"{path}: expected the record of a scored scan, got one that was refused")
    if not masks:
        raise scan.ScanError("no_masks", f"{path}: expected a record that names its masks, as cacjax.score writes it today")
    return record


def masks(record, truth, folder):
    """{stage: classes} on the reference's grid, of the stages that were saved; nearest neighbours where the system answers on a grid of
    its own. Raises ScanError for a file that cannot be read or does not fit."""
    load = _resampled if record.get("answer") else scan.read_mask
    return {stage: load(folder / record["masks"][stage], truth.scan) for stage in STAGES if stage in record["masks"]}


def _resampled(path, like):
    if not path.is_file():
        raise scan.ScanError("not_found", f"{path}: expected a file that cacjax.score wrote")
    array, affine = volume.load(path)
    axes, flips = geometry.turn(affine, like.affine)
    affine = geometry.turned_affine(affine, array.shape, axes, flips)
    array = geometry.turned(array, axes, flips)
    try:
        return np.asarray(spatial.resample_to(array, affine, like.affine, like.hu.shape, order=0, outside=0))
    except ValueError as error:
        raise scan.ScanError("grid_mismatch", f"{path}: expected the axes of {like.path}; {error}") from None


def ranking(record, truth, folder):
    """(probability of coronary calcium [n], class in the reference [n]) of the candidate voxels, or None where none was saved."""
    path = folder / f"{truth.name}_probability.nii.gz"
    if not path.is_file():
        return None
    if record.get("answer"):
        probability = _resampled(path, truth.scan)
    else:
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


def agatston(record, truth):
    """{artery: {"found_agatston", "reference_agatston", "category"}} by the record's main rule, the reference's mask scored by the same
    rule, as the record has it. Without arteries on either side only CAC."""
    name, acquisition = record["rules"][0]["name"], record["acquisition"]
    fields = {key: value for key, value in record["rules"][0].items() if key in rules.Rule._fields}
    rule = own_rules.from_fields(fields, f"the record of {truth.name}: rule {name}")
    found = {row["artery"]: row for row in record["rows"] if row["rule"] == name}
    turned, label = scan.oriented(truth.scan, truth.label)
    total_only = set(found) == {"CAC"} or (label == UNKNOWN).any()
    if total_only:
        label = np.isin(label, CORONARY).astype(label.dtype)  # as one artery: no other program, and nothing else is read
    padded = grids.pad(label, fill=0), grids.pad(turned.hu, fill=grids.NO_HU)
    real = scores.score(*padded, scan.spacing_mm(turned.affine), rule, slice_thickness_mm=acquisition["slice_thickness_mm"])
    real = {artery: score for artery, score in zip(real.names, real.agatston.tolist()) if artery == "CAC" or not total_only}
    return {
        artery: {"found_agatston": row["agatston"], "reference_agatston": real[artery], "category": row.get("category")}
        for artery, row in found.items()
        if artery in real
    }

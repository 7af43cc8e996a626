"""Detection metrics on host arrays: voxels, lesions, scans, and the average precision of a probability.

Source of the formulas: the evaluation code of Zhai 2022 (Front Cardiovasc Med 9:981901), which adds 1e-5 to numerator
and denominator, so that sensitivity and F1 of a scan without calcium and without findings are 1.
"""

from typing import NamedTuple

import numpy as np

EPSILON = 1e-5
OVER = ("all", "with calcium", "pooled")
SIZES_MM3 = {"1.5_to_5": (1.5, 5.0), "5_to_20": (5.0, 20.0), "over_20": (20.0, float("inf"))}  # of lesions, half-open
OF_SIZES = {size: f"lesion_sensitivity_{size}_mm3" for size in SIZES_MM3}
METRICS = ("sensitivity", "ppv", "fp_mm3", "f1", "ap", "lesion_sensitivity", "lesion_ppv", "fp_lesions", "lesion_f1")
METRICS = (*METRICS, "fp_lesions_code", "lesion_f1_code", *OF_SIZES.values())
SCAN_METRICS = ("scan_sensitivity", "scan_fpr", "scan_f1")


class Counts(NamedTuple):
    """True positives, false positives and false negatives: voxels, mm³, lesions or scans."""

    tp: float
    fp: float
    fn: float


def count_voxels(found, real):
    """Counts over two boolean arrays of one shape."""
    found, real = np.asarray(found, bool), np.asarray(real, bool)
    tp = int(np.count_nonzero(found & real))
    return Counts(tp, int(np.count_nonzero(found)) - tp, int(np.count_nonzero(real)) - tp)


def count_lesions(found_labels, real_labels):
    """(ours, authors') Counts over two label images: 0 outside, 1..n per lesion.

    A reference lesion is found if any found voxel lies in it. False lesions are those found ones that touch no
    reference (ours), or as many as the found ones exceed the hits (the code of Zhai 2022, which so charges
    for the pieces of a split lesion, and forgives where one piece covers two).
    """
    found_labels, real_labels = np.asarray(found_labels), np.asarray(real_labels)
    n_found, n_real = int(found_labels.max(initial=0)), int(real_labels.max(initial=0))
    both = (found_labels > 0) & (real_labels > 0)
    hits, touching = len(np.unique(real_labels[both])), len(np.unique(found_labels[both]))
    return Counts(hits, n_found - touching, n_real - hits), Counts(hits, max(n_found - hits, 0), n_real - hits)


def count_sizes(found_labels, real_labels, voxel_mm3):
    """{size: Counts} of the reference's lesions by their volume, of label images as `count_lesions` takes them: found and missed ones."""
    found_labels, real_labels = np.asarray(found_labels), np.asarray(real_labels)
    volume = np.bincount(real_labels.ravel())[1:] * voxel_mm3
    hit = np.zeros(len(volume) + 1, bool)
    hit[real_labels[found_labels > 0]] = True
    within = {size: (volume >= low) & (volume < high) for size, (low, high) in SIZES_MM3.items()}
    return {size: Counts(int((mask & hit[1:]).sum()), 0, int((mask & ~hit[1:]).sum())) for size, mask in within.items()}


def confusion_mm3(found, real, arteries, voxel_mm3):
    """Volume [n + 1, n + 1] that the reference gives to each of n arteries (rows) and that was found as each (columns), of two class masks;
    the last row and column: none of them. What is none in both is left out."""
    either = np.isin(real, arteries) | np.isin(found, arteries)
    rows, columns = ([*(mask[either] == c for c in arteries), ~np.isin(mask[either], arteries)] for mask in (real, found))
    return np.array([[np.count_nonzero(row & column) for column in columns] for row in rows]) * voxel_mm3


def count_scans(found, real):
    """(Counts, true negatives) over two boolean lists, one entry per scan."""
    counts = count_voxels(found, real)
    return counts, len(found) - sum(counts)


def add(counts):
    """The sum of a list of Counts."""
    return Counts(*(sum(values) for values in zip(*counts))) if counts else Counts(0, 0, 0)


def sensitivity(counts):
    """TP / (TP + FN); 1 without a reference."""
    return (counts.tp + EPSILON) / (counts.tp + counts.fn + EPSILON)


def precision(counts):
    """TP / (TP + FP); 1 without a finding."""
    return (counts.tp + EPSILON) / (counts.tp + counts.fp + EPSILON)


def f1(counts):
    """2 TP / (2 TP + FP + FN); 1 when there is neither reference nor finding."""
    return (2 * counts.tp + EPSILON) / (2 * counts.tp + counts.fp + counts.fn + EPSILON)


def average_precision(score, real):
    """Area below the precision-recall steps of `score` [n] against boolean `real` [n]; NaN without a positive.

    Equal scores form one step, so the order of the voxels does not matter. Voxels without a probability carry 0.
    """
    score, real = np.asarray(score, np.float64).ravel(), np.asarray(real, bool).ravel()
    if not real.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    score, hits = score[order], np.cumsum(real[order])
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True))
    recall = hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * hits[last] / (last + 1)))


def mean_sd(values):
    """(mean, sample SD) of the values that are not NaN; NaN where there are too few (none; fewer than two)."""
    values = np.asarray([value for value in values if not np.isnan(value)], np.float64)
    mean = float(values.mean()) if len(values) else float("nan")
    return mean, float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def metrics(voxels, lesions, lesions_code, sizes, voxel_mm3):
    """Record of one scan and target: the metrics, and the counts (of voxels and lesions) that pooling needs. sizes: of `count_sizes`;
    the sensitivity for a size that the reference lacks is NaN."""
    volume = Counts(*(n * voxel_mm3 for n in voxels))
    return {
        "sensitivity": sensitivity(voxels),
        "ppv": precision(voxels),
        "fp_mm3": voxels.fp * voxel_mm3,
        "f1": f1(voxels),
        "lesion_sensitivity": sensitivity(lesions),
        "lesion_ppv": precision(lesions),
        **{OF_SIZES[size]: sensitivity(counts) if sum(counts) else float("nan") for size, counts in sizes.items()},
        "fp_lesions": float(lesions.fp),
        "lesion_f1": f1(lesions),
        "fp_lesions_code": float(lesions_code.fp),
        "lesion_f1_code": f1(lesions_code),
        "reference_mm3": (voxels.tp + voxels.fn) * voxel_mm3,
        "found_mm3": (voxels.tp + voxels.fp) * voxel_mm3,
        "reference_lesions": lesions.tp + lesions.fn,
        "counts": {"voxels": voxels, "volume": volume, "lesions": lesions, "lesions_code": lesions_code, **sizes},
    }


def average(records, over, unit="voxels"):
    """Mean and SD of every metric over `records` of one target: "all", those "with calcium" of it, or "pooled" by unit."""
    if over == "pooled":
        return pool(records, unit)
    chosen = [r for r in records if over == "all" or r["reference_mm3"] > 0]
    summary = {"scans": len(chosen)}
    for name in METRICS:
        summary[name], summary[f"{name}_sd"] = mean_sd([record[name] for record in chosen])
    return summary


def pool(records, unit="voxels"):
    """The metrics of all scans taken as one, false positives per scan. unit: "voxels", or "volume", where a voxel of each scan weighs as
    many mm³ as it has. Average precision is NaN: it needs voxels."""
    kinds = (unit, "lesions", "lesions_code")
    total = {name: add([r["counts"][name] for r in records]) for name in (*kinds, *SIZES_MM3)}
    kinds, sizes = (total[name] for name in kinds), {size: total[size] for size in SIZES_MM3}
    pooled = metrics(*kinds, sizes, 1.0) if records else {}
    summary = {"scans": len(records)} | {f"{name}_sd": float("nan") for name in METRICS}
    summary |= {name: pooled.get(name, float("nan")) for name in METRICS}
    for name in ("fp_mm3", "fp_lesions", "fp_lesions_code"):
        summary[name] = mean_sd([record[name] for record in records])[0]
    return summary | scan_metrics(records)


def scan_metrics(records):
    """Sensitivity, false-positive rate (NaN where every scan has calcium) and F1 of telling which scans have calcium."""
    found, real = ([record[key] > 0 for record in records] for key in ("found_mm3", "reference_mm3"))
    counts, true_negatives = count_scans(found, real)
    negatives = counts.fp + true_negatives
    rate = counts.fp / negatives if negatives else float("nan")
    return {"scan_sensitivity": sensitivity(counts), "scan_fpr": rate, "scan_f1": f1(counts)}

"""What is told of a scored scan: scores as rows, lesions and the scoring rule as dicts. Arrays [z, y, x]."""

import jax
import numpy as np

from cacjax import lesions, rules, scan, scores
from cacjax.scores import CLASSES

SCHEME = "default"


def make_rows(totals):
    """Scores as rows, one dict per artery or region. Only coronary calcium as a whole has a risk category."""
    rows = []
    for k, name in enumerate(totals.names):
        agatston, mass_mg = float(totals.agatston[k]), float(totals.mass_mg[k])
        row = {"artery": name, "agatston": agatston, "volume_mm3": float(totals.volume_mm3[k])}
        row |= {"mass_mg": None if np.isnan(mass_mg) else mass_mg, "n_lesions": int(totals.n_lesions[k])}
        row["category"] = scores.SCHEMES[SCHEME].names[scores.category(agatston)] if name == "CAC" else None
        rows.append(row)
    return rows


def lesions_by_class(mask, hu, spacing_mm, affine):
    """Every 26-connected lesion of every class, largest first within a class: a list of dicts, see `list_lesions`."""
    listed = []
    for number in range(1, len(CLASSES)):
        labels, n = lesions.label(mask == number)
        if int(n):
            found = list_lesions(lesions.full_table(labels, n, hu, mask, spacing_mm), affine)
            found.sort(key=lambda lesion: -lesion["n_voxels"])
            listed += [{"artery": CLASSES[number], **lesion} for lesion in found]
    return listed


def list_lesions(found, affine):
    """Rows of a lesion table as dicts; `centre_mm` is the centre of the voxels in LPS mm, `affine` that of their grid."""
    found = jax.device_get(found)
    centre_mm = found.centroid.astype(np.float64) @ affine[:3, :3].T + affine[:3, 3]
    return [
        {
            "n_voxels": int(found.voxels[k]),
            "volume_mm3": float(found.volume_mm3[k]),
            "peak_hu": float(found.peak_hu[k]),
            "mean_hu": float(found.mean_hu[k]),
            "centre_mm": centre_mm[k].round(2).tolist(),
            "slices": int((found.area_mm2[k] > 0).sum()),
            "largest_area_mm2": float(found.area_mm2[k].max()),
            "touches_border": bool(found.touches_border[k]),
        }
        for k in range(int(found.n))
    ]


def describe_rule(name, rule, image):
    """The scoring rule in full, with what it comes to at this scan's spacing."""
    least = rules.min_voxels(rule, scan.spacing_mm(scan.oriented(image).affine))
    return {"name": name, **rule._asdict(), "minimum": rule.minimum._asdict(), "min_voxels": least}


def warnings(threshold, rule, image):
    """What a reader of the score should know about its threshold."""
    notes = []
    if image.acquisition.contrast and threshold["from"] == "assumed non-contrast":
        notes.append("the header names a contrast agent, but no scan threshold was given: enhanced blood may count as calcium")
    if rule.threshold_hu is not None and threshold["hu"] < rule.threshold_hu:
        notes.append(f"the mask starts at {threshold['hu']:g} HU, the rule counts from {rule.threshold_hu:g} HU")
    return notes

"""What is told of a scored scan: scores as rows, lesions and the scoring rule as dicts. Arrays [z, y, x]."""

import jax
import numpy as np

from cacjax.classes import CLASSES
from cacjax.files import scan
from cacjax.kernels import rules


def make_rows(rule, totals, category=None, map_hu=None):
    """Scores by a rule as rows, one dict per artery or region. Only coronary calcium as a whole has a risk category, a name.

    map_hu: HU x mm³ of the map within each row's calcium, where the system gives a map.
    """
    rows = []
    for k, name in enumerate(totals.names):
        agatston, mass_mg = float(totals.agatston[k]), float(totals.mass_mg[k])
        row = {"rule": rule, "artery": name, "agatston": agatston, "volume_mm3": float(totals.volume_mm3[k])}
        row |= {"mass_mg": None if np.isnan(mass_mg) else mass_mg, "n_lesions": int(totals.n_lesions[k])}
        row |= {"category": category if name == "CAC" else None, "map_hu_mm3": None if map_hu is None else float(map_hu[k])}
        rows.append(row)
    return rows


def lesions_by_class(found, affine, classes):
    """Every lesion of tables stacked by class, largest first within a class: a list of dicts, see `list_lesions`."""
    listed = []
    for number, label in enumerate(classes):
        entries = list_lesions(jax.tree.map(lambda field, k=number: field[k], found), affine)
        listed += [{"artery": CLASSES[label], **lesion} for lesion in sorted(entries, key=lambda lesion: -lesion["n_voxels"])]
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


def warnings(limit, named_rules, image):
    """What a reader of the scores should know about their threshold."""
    notes = []
    if image.acquisition.contrast and limit["from"] == "assumed non-contrast":
        notes.append("the header names a contrast agent, but no scan threshold was given: enhanced blood may count as calcium")
    for rule in named_rules.values():
        if rule.threshold_hu is not None and limit["hu"] < rule.threshold_hu:
            notes.append(f"the mask starts at {limit['hu']:g} HU, the rule counts from {rule.threshold_hu:g} HU")
    return notes

"""What is told of a scored scan: scores as rows, lesions and the scoring rule as dicts. Arrays [z, y, x]."""

import jax
import numpy as np

from cacjax.files import scan
from cacjax.kernels import rules
from cacjax.scoring import threshold

LEAST_ENHANCED_HU = 160.0  # a scan threshold above it is one of enhanced blood, not of another tube voltage


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
        row |= {"pseudo_mass": float(totals.pseudo_mass[k])}
        rows.append(row)
    return rows


def lesions_by_class(found, affine, names):
    """Every lesion of tables stacked by class, which have these names, largest first: a list of dicts, see `list_lesions`, each with its
    number, from 1, which pictures show."""
    listed = []
    for k, name in enumerate(names):
        listed += [{"artery": name, **lesion} for lesion in list_lesions(jax.tree.map(lambda field, k=k: field[k], found), affine)]
    return [{"number": n, **lesion} for n, lesion in enumerate(sorted(listed, key=lambda lesion: -lesion["n_voxels"]), 1)]


def list_lesions(found, affine):
    """Rows of a lesion table as dicts; `centre_mm` is the centre of the voxels in LPS mm, `affine` that of their grid."""
    found, voxel_mm3 = jax.device_get(found), float(np.prod(scan.spacing_mm(affine)))
    centre_mm = found.centroid.astype(np.float64) @ affine[:3, :3].T + affine[:3, 3]
    return [
        {
            "n_voxels": int(found.voxels[k]),
            "volume_mm3": int(found.voxels[k]) * voxel_mm3,
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


def flags_of(limit, asked, used, image):
    """Flags {code: note}: what a reader of the scores should know. asked, used: {name: rule} before and after the tube voltage is known."""
    kvp, notes = image.acquisition.kvp, {}
    if image.acquisition.contrast and limit["from"] not in ("option", "mean + 3 SD"):
        words = f"the header names a contrast agent, but scored from {limit['hu']:g} HU ({limit['from']}): enhanced blood may count"
        notes["contrast_agent"] = [words]
    if limit["hu"] > LEAST_ENHANCED_HU:
        notes["enhanced"] = [f"scored from {limit['hu']:.0f} HU, above enhanced blood: does not compare with scores of non-contrast CT"]
    for name, rule in used.items():
        usual, least = asked[name], counts_from(limit, rule)
        # Of regions the mask itself starts where the rule does.
        binds = rule.threshold_hu != usual.threshold_hu and (limit["hu"] <= threshold.native(rule) or least != counts_from(limit, usual))
        if kvp not in (None, rule.kvp):
            words = f"rule {name} has no limits for {kvp:g} kV: those of {rule.kvp:g} kV were used"
            notes.setdefault("kvp_not_in_rule", []).append(words)
        elif binds or rule.limits != usual.limits:
            words = f"at {kvp:g} kV rule {name} counts {_say(rule)}; at {usual.kvp:g} kV {_say(usual)}"
            notes.setdefault("kvp_limits", []).append(words)
        if limit["from"] == "option" and least > limit["hu"]:
            words = f"the mask starts at {limit['hu']:g} HU, as told, but rule {name} counts from {least:g} HU"
            notes.setdefault("rule_threshold", []).append(words)
    return {code: "; ".join(words) for code, words in notes.items()}


def _say(rule):
    least = "all of the mask" if rule.threshold_hu is None else f"from {rule.threshold_hu:g} HU"
    return f"{least}, weighed by {rule.limits}"


def counts_from(limit, rule):
    """The HU from which voxels count by a rule: the scan's threshold or, where it is higher, the rule's."""
    return limit["hu"] if rule.threshold_hu is None or limit["hu"] > threshold.native(rule) else rule.threshold_hu


def about(image):
    """What rows tell of their scan, None where its header does not: voltage, kernel, spacing (z x y x x), and whose it is."""
    header = image.acquisition
    spacing = " x ".join(f"{mm:.5g}" for mm in scan.spacing_mm(scan.oriented(image).affine))
    told = {"kvp": header.kvp, "kernel": header.kernel or None, "spacing_mm": spacing}
    return told | {"patient": header.patient_id or None, "study": header.study_uid or None, "series": header.series_uid or None}

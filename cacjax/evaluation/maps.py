"""How much of a calcium map is calcium, and what maps of two scans of a patient say of each other. Maps are [z, y, x] in HU.

A map of the same anatomy in both scans reproduces well and measures nothing: what agrees is read beside what is true. Two scans of a
patient are a pair of dicts: "mass" (HU x mm³), and of maps "total", "near", "removed", "free_hu" (see `figures`); "true", the true mass;
"visible", whether calcium can be seen; where known "agatston" and "clinical", what a reader scores, and by ARTERIES whether calcium that
can be seen there was found.
"""

import numpy as np
from scipy import ndimage, spatial

from cacjax.evaluation import agreement
from cacjax.kernels import scores

NEAR_MM, TRACE_HU = 3.0, 5.0  # a map so close to true calcium of so many HU is in the right place
LESION = 2400.0  # HU x mm³ of the least lesion of a map: 24 mm³ of 100 HU
LIKELY, LIKELY_PART = 0.5, 0.6  # probability of calcium by the classifier: of a slice, and of a part of a map
FLOOR_HU, SEES_HU = -10.0, (-50.0, 950.0)  # the rule of van Velzen 2022 for what is taken, and what its generator sees
FALSE_POSITIVES = 0.14  # of scans without calcium, as published
SCHEME = scores.SCHEMES["van_velzen"]
ARTERIES = ("LAD", "LCX", "RCA")


def figures(taken, *, hu, real, heart, spacing_mm, seen, chance=None, arteries=None) -> dict:
    """{values/gate: {"mass", "near", "total", "removed", "free_hu"}} of a map in HU; masses in HU x mm³. chance: of calcium in each slice,
    by the classifier, whose gate keeps those of `LIKELY`; gate "lesions": of these what adds up to `LESION` in 6-connected parts; gate
    "parts": of all slices such parts as a whole, of `LIKELY_PART`. arteries: {name: mask} as `found_in` wants them."""
    mm3, found = float(np.prod(spacing_mm)), {}
    close = around(real > TRACE_HU, spacing_mm)
    twin = np.clip(hu, *SEES_HU) - taken
    wanted = {"none": True, "truth": seen[:, None, None]}
    if chance is not None:
        kept = (chance >= LIKELY)[:, None, None]
        wanted |= {"classifier": kept, "lesions": massive(taken * kept, LESION / mm3) > 0}
        wanted["parts"] = massive(taken, LESION / mm3, chance[:, None, None]) > 0
    for values, map_hu in (("map", taken), ("CT", np.where(twin < FLOOR_HU, 0, taken))):
        for gate, where in wanted.items():
            gated = map_hu * where
            total = float(gated.sum() * mm3)
            each = {"mass": total if values == "map" else mass_of(hu, gated > 0, spacing_mm)["mass"], "total": total}
            each |= {"near": float((gated * close).sum() * mm3), "removed": float(np.minimum(gated, real).sum() * mm3)}
            empty = ~seen[:, None, None] & heart
            each |= {"free_hu": float(gated[empty].mean()) if empty.any() else 0.0}
            found[f"{values}/{gate}"] = each | found_in(arteries or {}, gated > 0)
    return found


def around(mask, spacing_mm):
    """What lies within `NEAR_MM` of a mask."""
    return ndimage.distance_transform_edt(~mask, sampling=spacing_mm) <= NEAR_MM if mask.any() else mask


def found_in(arteries, mask) -> dict:
    """{artery: whether anything of a mask is there} of {artery: mask of what is near calcium that can be seen in it}."""
    return {artery: bool((mask & near).any()) for artery, near in arteries.items()}


def by_artery(seen, affine, lesions, spacing_mm) -> dict:
    """{artery: what is near calcium that can be seen, a mask, in it}, of those that have some; it is of the artery of the nearest of
    `lesions`, dicts of "artery" and "centre_mm" (LPS). affine: array order to LPS."""
    lesions = [each for each in lesions if each["artery"] in ARTERIES]
    if not (seen.any() and lesions):
        return {}
    at, names = np.argwhere(seen), np.array([each["artery"] for each in lesions])
    nearest = spatial.cKDTree([each["centre_mm"] for each in lesions]).query(at @ affine[:3, :3].T + affine[:3, 3])[1]
    found = {}
    for artery in ARTERIES:
        mask = np.zeros(seen.shape, bool)
        mask[tuple(at[names[nearest] == artery].T)] = True
        if mask.any():
            found[artery] = around(mask, spacing_mm)
    return found


def massive(map_hu, least, chance=None):
    """A map without 6-connected parts that add up to less than `least` HU or have a mean chance (by the map) below `LIKELY_PART`."""
    parts, count = ndimage.label(map_hu > 0)
    sums = ndimage.sum(map_hu, parts, np.arange(count + 1))
    stays = sums >= least
    if chance is not None:
        stays &= ndimage.sum(map_hu * chance, parts, np.arange(count + 1)) >= LIKELY_PART * sums
    return np.where(stays[parts], map_hu, 0)


def mass_of(hu, mask, spacing_mm) -> dict:
    """{"mass"}: the sum of HU of a mask times mm³."""
    return {"mass": float(hu[mask].astype(np.float64).sum() * np.prod(spacing_mm))}


def over(pairs, concordant) -> dict:
    """{measure: value} of pairs of scans, NaN where there is none. concordant: bool [pairs], those that "difference" is over."""
    mass, scans = np.array([[each["mass"] for each in pair] for pair in pairs]), [each for pair in pairs for each in pair]
    flat, true = mass.ravel(), np.array([each["true"] for each in scans])
    seen, hit = (np.array([of(each) for each in scans]) for of in (lambda e: e["visible"], lambda e: e.get("total", e["mass"]) > 0))
    found = {"difference": difference(mass[concordant]), "difference_own": difference(mass[hit.reshape(-1, 2).all(1)])}
    found |= {"icc": agreement.icc_a1(mass).value if len(mass) > 1 and np.ptp(mass) else np.nan}
    found |= {"sensitivity": share(hit[seen]), "false_positive_rate": share(hit[~seen]), "sensitivity_at": sensitivity_at(flat, seen)}
    sums = {name: sum(each.get(name, np.nan) for each in scans) for name in ("near", "total", "removed", "true")}
    for name, of in (("near", "total"), ("removed", "true")):
        found[name] = sums[name] / sums[of] if sums[of] > 0 else np.nan
    found["spearman"] = agreement.spearman(flat, true).value if np.ptp(flat) else np.nan
    found["pearson"] = float(np.corrcoef(flat, true)[0, 1]) if np.ptp(flat) and np.ptp(true) else np.nan
    found |= {artery: share([each[artery] for each in scans if artery in each]) for artery in ARTERIES}
    return found | {"free_hu": float(np.mean([each.get("free_hu", np.nan) for each in scans]))} | categories(pairs)


def categories(pairs) -> dict:
    """Agreement of the categories of both scans' "agatston", once scores are scaled to the mean of the "clinical" ones (table 5)."""
    found, clinical = (np.array([[each.get(name, np.nan) for each in pair] for pair in pairs]) for name in ("agatston", "clinical"))
    if not np.isfinite(found).all() or not found.sum() > 0:
        return {"kappa": np.nan, "accuracy": np.nan}
    scaled = found * (clinical.mean() / found.mean())
    counts = agreement.confusion(*(scores.category(each, scheme=SCHEME) for each in scaled.T), len(SCHEME.names))
    return {"kappa": agreement.kappa(counts).value, "accuracy": agreement.accuracy(counts)}


def difference(mass) -> float:
    """Mean of |a - b| over the mean of a and b of pairs [n, 2]; 2 where one scan has none, or a sum of HU below 0; NaN of none."""
    if len(mass) == 0:
        return float("nan")
    mass = np.maximum(mass, 0)
    mean = mass.mean(1)
    return float(np.where(mean > 0, abs(mass[:, 0] - mass[:, 1]) / np.where(mean > 0, mean, 1), 2.0).mean())


def sensitivity_at(mass, seen, rate: float = FALSE_POSITIVES) -> float:
    """Share of the scans with calcium whose mass is above that of all but `rate` of those without; NaN where either is missing."""
    without = np.sort(mass[~seen])
    if not len(without) or not seen.any():
        return float("nan")
    return share(mass[seen] > max(without[len(without) - 1 - int(rate * len(without))], 0))


def share(hits) -> float:
    """Share of true values; NaN of none."""
    return float(np.mean(hits)) if len(hits) else float("nan")

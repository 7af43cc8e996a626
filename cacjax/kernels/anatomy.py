"""Whether what a network calls a heart can be one: its volume, the lungs beside it, the proportions and places of its parts. [z, y, x].

Axis 0 towards the head, 1 towards the back, 2 to the left. The limits are ours: those of 24 phantoms (six a protocol, seeds 700000 and
on: 580 to 950 ml, lung 16 to 39 %, LV cavity 13 to 23 % of the chambers, RV 27 to 33, LA 10 to 16, RA 14 to 19, LV myocardium 16 to 25;
LA 47 to 66 mm behind the RV, LV cavity 65 to 92 mm left of the RA, aorta 36 to 57 mm above the LV cavity), widened by two or more for
dilated, thick and turned hearts and for what a network mistakes.
"""

import functools

from cacjax.classes import AORTA, LA, LV_CAVITY, STRUCTURES

HEART_ML = (100.0, 2500.0)
LUNG_PCT = (10.0, 100.0)  # of what lies within BESIDE_MM of it in its own slices
BESIDE_MM, LUNG_HU = 15.0, (-950.0, -500.0)
STEP_MM = 3.0  # as far apart voxels are looked at
RV, RA, MYOCARDIUM = (STRUCTURES.index(name) for name in ("RV", "RA", "LV myocardium"))
SHARES_PCT = {LV_CAVITY: (4.0, 45.0), RV: (8.0, 55.0), LA: (3.0, 40.0), RA: (3.0, 40.0), MYOCARDIUM: (6.0, 50.0)}  # of all five
PLACES_MM = (  # how far the middle of one lies from that of the other along an axis
    (LA, "behind", RV, 1, (15.0, 130.0)),
    (LV_CAVITY, "left of", RA, 2, (20.0, 160.0)),
    (AORTA, "above", LV_CAVITY, 0, (5.0, 130.0)),
)
CUT = {"heart_cut": "the heart reaches the first or the last slice: calcium beyond it is not scored"}


def lung_share(heart, hu, spacing_mm):
    """Share of what lies within 15 mm beside a heart, bool, in its own slices, that is lung by its HU; 0 where nothing lies there.

    numpy or jax, traced or not; spacing_mm: plain numbers.
    """
    xp, steps = heart.__array_namespace__(), [max(1, round(STEP_MM / mm)) for mm in spacing_mm]
    heart, hu = (each[:: steps[0], :: steps[1], :: steps[2]] for each in (heart, hu))
    near = heart
    for axis in (1, 2):
        n, length = round(BESIDE_MM / (spacing_mm[axis] * steps[axis])), heart.shape[axis]
        wide = xp.pad(heart, [(n, n) if a == axis else (0, 0) for a in range(3)])
        shifted = (xp.moveaxis(xp.moveaxis(wide, axis, 0)[first : first + length], 0, axis) for first in range(2 * n + 1))
        near = functools.reduce(xp.logical_or, shifted, near)
    near = near & ~heart
    lung = (hu > LUNG_HU[0]) & (hu < LUNG_HU[1])
    return (near & lung).sum() / xp.maximum(near.sum(), 1)


def contradictions(heart_ml, share, *, structures=None, spacing_mm=None, cut: bool) -> list[str]:
    """What speaks against a heart, with its number and what was expected; [] where nothing does.

    heart_ml: its volume; share: `lung_share`. structures: indices of STRUCTURES of a network that tells the chambers apart, or None. cut:
    whether the scan ends within it; then nothing is said of parts that are small or missing, or of places.
    """
    found = [("volume", heart_ml, HEART_ML, "ml"), ("lung beside it", 100 * share, LUNG_PCT, "%")]
    if structures is not None:
        found += _shares(structures, cut) + ([] if cut else _places(structures, spacing_mm))
    text = "{} {:.0f} {}, expected {:g} to {:g}"
    return [text.format(name, value, unit, *limits) for name, value, limits, unit in found if not limits[0] <= value <= limits[1]]


def _shares(structures, cut):
    voxels = {number: int((structures == number).sum()) for number in SHARES_PCT}
    total = max(sum(voxels.values()), 1)
    limits = {number: (0.0 if cut else low, high) for number, (low, high) in SHARES_PCT.items()}
    return [(STRUCTURES[k], 100 * n / total, limits[k], "% of the chambers") for k, n in voxels.items()]


def _places(structures, spacing_mm):
    """Of structures that are there."""
    found = []
    for one, how, other, axis, limits in PLACES_MM:
        middles = [_middle(structures == number, axis) for number in (one, other)]
        if None not in middles:
            found.append((f"{STRUCTURES[one]} {how} {STRUCTURES[other]} by", (middles[0] - middles[1]) * spacing_mm[axis], limits, "mm"))
    return found


def _middle(mask, axis):
    """Mean position of a mask's voxels along an axis; None for an empty one."""
    counts = mask.sum(tuple(a for a in range(3) if a != axis))
    return float(counts @ range(len(counts)) / counts.sum()) if counts.any() else None

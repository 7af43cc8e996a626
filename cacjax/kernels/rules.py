"""Scoring rules by name: what counts as calcium, as a lesion, and how it is weighted. Small frozen records with their sources.

Implementations of "the Agatston score" differ in every one of these points, by up to a fifth of the score, so a score is only
reported together with the name of its rule. Limits are in HU, half-open (`200 <= peak < 300` weighs 2). A rule of one's own is a
`Rule`, or a dict of its fields as a TOML table or a record gives it (`own_rules`).
"""

import math
from typing import NamedTuple

LIMITS = (130.0, 200.0, 300.0, 400.0)
# Grani 2018, as used by MolloiLab/CalciumScoring.jl: limits of equal weight by tube voltage.
GRANI = (
    (70, (207.0, 318.0, 477.0, 636.0)),
    (80, (177.0, 271.0, 408.0, 544.0)),
    (100, (145.0, 222.0, 334.0, 446.0)),
    (120, (130.0, 199.0, 299.0, 399.0)),
    (135, (119.0, 183.0, 274.0, 364.0)),
)


class Minimum(NamedTuple):
    """Least component that counts: `value` in `unit` ("px", "area_mm2", "volume_mm3"); in voxels by `rounding`: "ceil" (this or more),
    "round" (to the nearest number of voxels) or "above" (more than this)."""

    value: float = 0.0
    unit: str = "px"
    rounding: str = "ceil"


class AtVoltage(NamedTuple):
    """Threshold and weight limits (None: those of the rule) at one tube voltage."""

    kvp: float
    threshold_hu: float
    limits: tuple | None = None


class Rule(NamedTuple):
    """One way to score.

    threshold_hu: candidates are >= this (`strict`: >); None takes the mask as it is. connectivity: 4 or 8 in the slice, 6, 18 or
    26 in 3D. minimum: of one component. peak: "slice" weighs each slice of a component by its own peak, "lesion" all by one.
    floor_weight: the least weight of a counted pixel. thickness: the score is times "increment" (slice increment / 3 mm), "tag"
    (slice thickness / 3 mm), "increment_rounded" (voxel volume / 3 rounded to 3 decimals, in place of area x increment / 3) or
    "none". whole_lesions: each lesion's score is rounded to an integer. by_kvp: other thresholds; `kvp` is the voltage that the
    record stands for.
    """

    source: str
    threshold_hu: float | None = 130.0
    strict: bool = False
    connectivity: int = 8
    minimum: Minimum = Minimum()
    peak: str = "slice"
    limits: tuple = LIMITS
    floor_weight: int = 0
    thickness: str = "increment"
    whole_lesions: bool = False
    kvp: float = 120.0
    by_kvp: tuple = ()


ONE_MM2 = Minimum(1.0, "area_mm2")

RULES = {
    "default": Rule(
        "Agatston 1990 as in van Praagh 2021 (doi:10.1002/mp.14912): reproduces its published phantom values",
        minimum=ONE_MM2,
        by_kvp=(AtVoltage(100, 147.0),),
    ),
    "agatston_1990": Rule("Agatston 1990: 3 mm slices, no factor", minimum=ONE_MM2, thickness="none"),
    "strict_130": Rule("Agatston 1990 with more than 130 HU, whatever the tube voltage", strict=True, minimum=ONE_MM2),
    "ge": Rule("van Praagh 2021, GE and literature: MATLAB labels with 4 neighbours", connectivity=4, minimum=ONE_MM2),
    "siemens": Rule("van Praagh 2021, syngo: no minimum", connectivity=4),
    "philips": Rule(
        "van Praagh 2021; its volume and mass threshold (112.5 HU) not modelled",
        connectivity=4,
        minimum=Minimum(0.5, "area_mm2"),
    ),
    "canon": Rule("van Praagh 2021", connectivity=4, minimum=Minimum(3)),
    "orcascore": Rule("Wolterink 2016, orCaScore reference standard", strict=True, connectivity=6),
    "calciumscoring_jl": Rule(
        "MolloiLab/CalciumScoring.jl; threshold round(378 exp(-0.009 kV))",
        threshold_hu=128.0,
        strict=True,
        minimum=Minimum(1.0, "area_mm2", "round"),
        limits=dict(GRANI)[120],
        thickness="none",
        by_kvp=tuple(AtVoltage(kvp, float(round(378 * math.exp(-0.009 * kvp))), limits) for kvp, limits in GRANI),
    ),
    "slicer_script": Rule(
        "3D Slicer community script (lassoan)",
        strict=True,
        connectivity=4,
        minimum=Minimum(1.0, "area_mm2", "round"),
        thickness="none",
    ),
    "brainsia": Rule(
        "BRAINSia/CardiacAgatstonMeasures: labels painted at the threshold",
        connectivity=6,
        thickness="none",
        by_kvp=(AtVoltage(80, 167.0, (167.0, 266.0, 408.0, 551.0)),),
    ),
    "lessmann": Rule(
        "Lessmann 2018, van Velzen 2020, Zhai 2022: 3D lesions of at least 1.5 mm3, weighted per slice",
        connectivity=26,
        minimum=Minimum(1.5, "volume_mm3"),
    ),
    "qurai": Rule(
        "qurAI calcium-scoring: as lessmann, mask taken as given, pixels below 130 HU weigh 1",
        threshold_hu=None,
        connectivity=26,
        minimum=Minimum(1.5, "volume_mm3"),
        floor_weight=1,
    ),
    "deepcac": Rule(
        "Zeleznik 2021, DeepCAC: mask taken as given, more than 3 px",
        threshold_hu=None,
        minimum=Minimum(4),
        thickness="increment_rounded",
    ),
    "ai_cac": Rule(
        "Raffi-Hagopian/AI-CAC: mask taken as given, more than 3 voxels, one peak a lesion, thickness from the tag",
        threshold_hu=None,
        connectivity=6,
        minimum=Minimum(4),
        peak="lesion",
        thickness="tag",
        whole_lesions=True,
    ),
    "dicom_viewer": Rule(
        "kcenon/dicom_viewer: 3D lesions, all their pixels make the area",
        connectivity=6,
        minimum=ONE_MM2,
        thickness="none",
    ),
    "adjusted": Rule(
        "van Velzen 2022: map-valued masks, every pixel below 200 HU weighs 1",
        threshold_hu=None,
        connectivity=26,
        floor_weight=1,
    ),
    "gogin": Rule("Gogin 2021: components of at least 3 px", connectivity=4, minimum=Minimum(3)),
}


def named(rule):
    """A rule by name, or the record itself. Raises KeyError that lists the names."""
    if isinstance(rule, Rule):
        return rule
    if rule not in RULES:
        raise KeyError(f"no scoring rule {rule!r}; there are {', '.join(sorted(RULES))}")
    return RULES[rule]


def at_kvp(rule, kvp):
    """The rule with its threshold and limits for this tube voltage. Raises ValueError where the rule's source gives none."""
    if kvp is None or kvp == rule.kvp:
        return rule
    for at in rule.by_kvp:
        if at.kvp == kvp:
            return rule._replace(threshold_hu=at.threshold_hu, limits=at.limits or rule.limits, kvp=float(kvp))
    known = sorted({rule.kvp, *(at.kvp for at in rule.by_kvp)})
    raise ValueError(f"kvp must be one of {known} for this rule ({rule.source}), got {kvp}")


def for_voltage(rule, kvp):
    """`at_kvp`, or the rule as it is where its source gives nothing for this tube voltage, as its `kvp` tells."""
    try:
        return at_kvp(rule, kvp)
    except ValueError:
        return rule


def at_threshold(rule, threshold_hu):
    """The rule with another threshold, as contrast-enhanced scans need; limits stay."""
    return rule._replace(threshold_hu=float(threshold_hu))


def min_voxels(rule, spacing_mm):
    """Smallest number of voxels of a component that counts, at least 1. Areas and volumes become counts as the rule rounds them."""
    value, unit, rounding = rule.minimum
    dz, dy, dx = (float(s) for s in spacing_mm)
    exact = value / {"px": 1.0, "area_mm2": dy * dx, "volume_mm3": dz * dy * dx}[unit]
    # 1 / (0.1 * 0.1) is not 100 in floating point.
    return max(1, {"ceil": math.ceil(exact - 1e-9), "round": round(exact), "above": math.floor(exact + 1e-9) + 1}[rounding])


def pixel_score(rule, spacing_mm, *, slice_thickness_mm=None):
    """Agatston units of one pixel of weight 1. Raises ValueError where the rule needs the slice thickness and none is given."""
    dz, dy, dx = (float(s) for s in spacing_mm)
    if rule.thickness == "increment_rounded":
        return round(dz * dy * dx / 3.0, 3)
    if rule.thickness == "tag" and slice_thickness_mm is None:
        raise ValueError(f"slice_thickness_mm must be given for this rule ({rule.source}), got None")
    return dy * dx * {"none": 1.0, "increment": dz / 3.0, "tag": (slice_thickness_mm or 0.0) / 3.0}[rule.thickness]

"""Contrast medium: HU of the blood in each compartment, as a bolus leaves it, and what does not mix."""

import numpy as np

IODINE_GAIN = {70: 1.90, 80: 1.62, 90: 1.42, 100: 1.26, 120: 1.0}  # of a tube voltage in kVp, against 120
# Aorta and its root, left ventricle, left atrium, coronary lumen, pulmonary veins, right ventricle, pulmonary arteries, superior caval
# vein, right atrium, other veins.
BLOOD = ("art", "lv", "la", "lumen", "pvn", "right", "pulm", "svc", "ra", "ven")
AROUND_ROOT = ("lv", "la", "lumen", "pvn")
TIMING_SD, TIMING = 0.06, (0.85, 1.15)  # of a compartment against the root: the bolus is seen before, at or after its peak


def native(anatomy: dict) -> dict:
    """HU of every compartment of a scan without contrast medium: one blood, which has nothing to mix with."""
    blood, myocardium = float(anatomy["hu_tis"][2]), float(anatomy["hu_tis"][3])
    return dict.fromkeys(BLOOD, blood) | {"myo": myocardium, "mix": 0.0, "streams": 0.0}


def enhanced(g: np.random.Generator, kvp: int) -> dict:
    """HU of the compartments of a CT angiogram.

    The right heart holds what follows the bolus, between unenhanced blood and the dense blood of the superior caval vein; mix: amplitude
    of their mixture in the right ventricle; streams: how much denser threads of caval blood are than the right atrium that they run in.
    """
    arterial = float(np.clip(g.normal(430, 70), 280, 620) * (IODINE_GAIN[kvp] / 1.35) ** 0.35)
    veins, caval = g.uniform(60, 160), arterial * g.uniform(0.5, 2.4)
    right = min(veins + (caval - veins) * g.beta(2, 3), 0.9 * arterial)
    around = {name: float(arterial * np.clip(g.normal(1, TIMING_SD), *TIMING)) for name in AROUND_ROOT}
    return around | {
        "art": arterial,
        "right": right,
        "pulm": 0.5 * (right + arterial) * g.uniform(0.8, 1.1),
        "svc": caval,
        "ra": right * g.uniform(0.7, 1.15),
        "ven": veins,
        "myo": g.normal(98, 12),
        "mix": 0.10 * right,
        "streams": max(caval - right, 0.0) * g.uniform(0.2, 1.0),
    }

"""Random patients: covariates, tissue values, the shape of the chest, and the whole patient with coronary tree and calcium.

Coordinates are LPS millimetres. Every array of the anatomy dict has the same shape for every patient, so one compiled
renderer serves all. Each purpose has its own counter-based random stream: a change in one does not move the others.
"""

from typing import NamedTuple

import numpy as np

from cacjax.phantom.calcium import place_calcium
from cacjax.phantom.carriers import extra_curves, fat_sleeves, spread_fat_over
from cacjax.phantom.coronary import coronary_tree
from cacjax.phantom.heart import WAVE_ROWS
from cacjax.phantom.landmarks import make_room, sample_heart, sample_vessels
from cacjax.phantom.metal import place_metal

COHORTS = ("screening", "cardiac", "angiography", "rtp")
FEMALE_SHARE = {"screening": 0.41, "cardiac": 0.45, "rtp": 1.0}
AGE = {"screening": (62, 5, 55, 75), "cardiac": (59, 11, 35, 85), "rtp": (57, 10, 30, 82)}  # mean, sd, lowest, highest


class Patient(NamedTuple):
    """anatomy: dict of floats and float32 arrays; tree: list of segments (curves.segment); calcium: dict of samples and lesions;
    metal: dict of samples, see `metal.place_metal`, of the cohort "angiography", else None."""

    anatomy: dict
    tree: list
    calcium: dict
    metal: dict | None


def stream(seed: int, purpose: int) -> np.random.Generator:
    """The patient's random stream for one purpose.

    101 anatomy, 111 surface detail, 112 fat, 202 tree, 303 calcium, 404 protocol, 505 timing, 606 place of the grid, 707 contrast
    medium, 717 its streaks, 727 those of metal, 808 metal, 909 breathing.
    """
    return np.random.Generator(np.random.Philox(key=[seed, purpose]))


def sample_patient(seed: int, cohort: str = "screening") -> Patient:
    """One random patient of a cohort ("screening", "cardiac", "angiography", "rtp"); the same seed gives the same patient bit for bit."""
    anatomy = sample_anatomy(seed, cohort)
    tree = coronary_tree(anatomy, stream(seed, 202))
    anatomy["corsac"] = fat_sleeves(tree)
    anatomy["wave_weights"] = spread_fat_over(tree, anatomy, stream(seed, 112))
    tree = tree + extra_curves(anatomy)
    metal = place_metal(anatomy, tree, stream(seed, 808)) if cohort == "angiography" else None
    return Patient(anatomy, tree, place_calcium(anatomy, tree, cohort, stream(seed, 303)), metal)


def sample_anatomy(seed: int, cohort: str = "screening") -> dict:
    """The patient without coronary arteries: a dict of floats (female, age, bmi) and float32 arrays in mm and HU."""
    if cohort not in COHORTS:
        raise ValueError(f"cohort must be one of {', '.join(COHORTS)}, got {cohort!r}")
    g, detail = stream(seed, 101), stream(seed, 111)
    a = _covariates(g, "cardiac" if cohort == "angiography" else cohort)
    size = np.clip(g.normal(1.0 - 0.06 * a["female"], 0.045), 0.85, 1.13)
    a |= _chest_wall(g, a, size) | _tissue_values(g, a, size)
    pose, heart = sample_heart(g, a)
    a |= heart
    a |= sample_vessels(g, a, pose)
    a |= make_room(a)
    a |= _textures(g) | _breasts(a, detail) | _surface_waves(detail)
    a["parafat"] = np.clip(detail.normal(3.0 + 0.35 * (a["bmi"] - 26), 1.5), 0.5, 11)
    return {k: v if k in ("female", "age", "bmi") else _float32(v) for k, v in a.items()}


def _float32(value):
    if isinstance(value, tuple):
        return tuple(np.asarray(v, np.float32) for v in value)
    return np.asarray(value, np.float32)


def _covariates(g, cohort):
    """Sex, age and body mass index of a cohort."""
    female = float(g.random() < FEMALE_SHARE[cohort])
    ages = {name: np.clip(g.normal(mean, sd), low, high) for name, (mean, sd, low, high) in AGE.items()}
    return {"female": female, "age": float(ages[cohort]), "bmi": float(np.clip(g.normal(27.0, 4.2), 18.5, 42))}


def _chest_wall(g, a, size):
    """Cavity, wall layers, spine and ribs, mm."""
    female, bmi = a["female"], a["bmi"]
    cavity = [127 * size * g.normal(1, 0.03), 86 * size * g.normal(1, 0.04) + 0.4 * (bmi - 26), g.normal(2.1, 0.08)]
    return {
        "cav": cavity,  # half width, half depth, superellipse exponent
        "wall": 15 * size,
        "musc": np.clip(g.normal(8 - 2 * female, 1.2), 3, 12),
        "fat": np.clip(10 + 1.35 * (bmi - 24) + 4 * female + g.normal(0, 2.5), 4, 48),
        "breast": [female * np.clip(g.normal(46 + 1.2 * (bmi - 26), 8), 20, 75), g.normal(85, 5), g.normal(-5, 12)],
        "yv": np.float32(cavity[1]) - 21 * size,  # centre of the vertebral bodies
        "vert": [17.5 * size, 14.5 * size, 26.0 * size, g.uniform(0, 26), 5.0 * size],  # half axes, period, phase, disc
        "rib": [26.5 * size, g.uniform(0, 26), 62 * size, 4.3 * size, 6.6 * size],  # period, phase, drop, half axes
    }


def _tissue_values(g, a, size):
    """HU of bone (trabecular, cortex, cartilage) and of fat, muscle, blood, myocardium, lung, liver."""
    age = a["age"]
    trabecular = np.clip(226 - 2.5 * (age - 25) + g.normal(0, 28), 45, 260)
    return {
        "hu_bone": [trabecular, g.normal(560, 70), g.normal(100, 15)],
        "cart_ca": np.clip((age - 45) / 40 * g.uniform(0.3, 1.5), 0, 1.3),
        "hu_tis": [g.normal(m, sd) for m, sd in ((-104, 4), (54, 4), (42, 3.5), (48, 3.5), (-868, 22), (57, 6))],
    }


def _plane_waves(g, n, wavelength_mm, log_sd=0.35):
    """Random wave vectors [n, 3] in rad/mm with log-normal wavelengths, and phases [n]."""
    direction = g.normal(size=(n, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    wavelength = wavelength_mm * np.exp(g.normal(0, log_sd, size=(n, 1)))
    return direction * (2 * np.pi / wavelength), g.uniform(0, 2 * np.pi, n)


def _textures(g):
    """Wave vectors and phases of the tissue textures and of the fields whose zero lines are lung vessels."""
    kinds = {"tx_lung": (10, 30.0), "tx_v1": (5, 46.0, 0.2), "tx_v2": (5, 46.0, 0.2), "tx_s1": (7, 17.0, 0.2)}
    kinds |= {"tx_s2": (7, 17.0, 0.2), "tx_bone": (12, 5.0), "tx_fat": (10, 17.0), "tx_myo": (8, 14.0)}
    return {name: _plane_waves(g, *kind) for name, kind in kinds.items()}


def _surface_waves(g, n=8):
    """Eight plane waves of 35-90 mm that all soft surfaces of the heart share, and each surface's own mixture of them."""
    vectors, phases = _plane_waves(g, n, 55.0, 0.25)
    return {"wave_vectors": vectors, "wave_phases": phases, "wave_weights": mixtures(g, len(WAVE_ROWS), n)}


def mixtures(g, rows, n):
    """Random weights [rows, n] that mix n unit plane waves into fields of unit root mean square."""
    weights = g.normal(size=(rows, n))
    return weights * np.sqrt(2.0 / np.sum(weights**2, axis=1, keepdims=True))


def _breasts(a, g):
    """Centres and semi-axes [2, 6] of the two breasts, mm: same patient, not mirror images."""
    radius, lateral, height = a["breast"]
    chest_y = -(a["cav"][1] + a["wall"] + a["musc"])
    sides = []
    for side in (-1.0, 1.0):
        r = radius * np.clip(g.normal(1.0, 0.07), 0.8, 1.2)
        centre = [side * (lateral + g.normal(0, 3)), chest_y + 4 - 0.15 * r + g.normal(0, 2), height + g.normal(0, 3)]
        sides.append([*centre, r + 12, r * 0.75 + 6 + g.normal(0, 2), r + 6])
    return {"breasts": sides}

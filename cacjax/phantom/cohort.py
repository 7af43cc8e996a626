"""Cohorts of synthetic scans: one scan, a scan-rescan pair, and a folder of files with their truth."""

from typing import NamedTuple

import numpy as np

from cacjax.phantom import observer, scenes
from cacjax.phantom.acquisition import COHORT_OF, Protocol, Scan, sample_protocol, sample_timing, simulate, split
from cacjax.phantom.anatomy import Patient, sample_patient, stream
from cacjax.phantom.calcium import with_thin_plaques
from cacjax.phantom.render import Grid

NETWORK_SPACING_MM = (1.5, 0.66, 0.66)
MATRIX = 512
# Slice thickness of scans that were resampled to the network's grid before use, as the published sites did.
RESAMPLED_MM = {"chest": 3.0, "cardiac": 3.0, "ccta": 0.8, "rtp": 3.0}
MIN_FWHM_PIXELS = 1.29
_HEART_MARGIN_MM = 4.0


class Phantom(NamedTuple):
    """One synthetic scan: hu int16, label uint8, heart bool (all in the pericardium), structures uint8 (see `layers.STRUCTURES`); calcium,
    what all calcium adds to the image, coronary, what that of the coronary arteries alone (classes 1-3) adds, and clean, the image,
    are float32, in HU and without noise; all [z, y, x].

    affine [4, 4] maps (z, y, x, 1) to LPS mm; truth: see `make_scan`.
    """

    hu: np.ndarray
    label: np.ndarray
    heart: np.ndarray
    structures: np.ndarray
    calcium: np.ndarray
    coronary: np.ndarray
    clean: np.ndarray
    affine: np.ndarray
    truth: dict


def make_scan(protocol: str, seed: int, *, scan_seed: int | None = None, shape=None, spacing_mm=None) -> Phantom:
    """One scan of patient `seed`; equal arguments give equal scans, bit for bit.

    protocol is "chest", "cardiac", "ccta" or "rtp", or one of these and a scene (see `scenes`), "chest:wide+sharp".

    Without shape and spacing_mm: the protocol's own matrix of 512 x 512. With either: a heart-centred grid as prepared for a network, by
    default 1.5 x .66 x .66 mm. `scan_seed` changes settings, timing, position and noise, not the patient. "rtp" breathes freely. Of a
    region without a heart the middle is that of the grid. truth: protocol, scene, seed, scan_seed, kvp, threshold_hu, aorta_hu,
    arterial_hu, noise_hu, contrast, thickness_mm, lesions (list of dicts, with the centroid of each in the scan, in LPS mm; see
    `marks_of`), agatston, volume_mm3 and pseudo_mass (dicts per artery and total, as marked), true_volume_mm3, true_mass_mg, age, bmi,
    female.
    """
    kind, scene = split(protocol)
    scan_seed = first_scan(seed) if scan_seed is None else scan_seed
    patient = _patient(seed, kind, scene)
    settings = scenes.acquired(sample_protocol(kind, patient.anatomy, scan_seed), scene, scan_seed)
    return _scan(patient, settings, seed, scan_seed, shape, spacing_mm, scene, **_free_breathing(kind, scan_seed))


def first_scan(seed: int) -> int:
    """The seed of a patient's first scan."""
    return seed * 31 + 7


def make_pair(protocol: str, seed: int, *, shape=None, spacing_mm=None) -> tuple[Phantom, Phantom]:
    """Two scans of one patient with the same settings: other noise, timing, heart rate, breath-hold and table position.

    The first is that of `make_scan`. "rtp": the first in free breathing, the second in deep inspiration (heart and diaphragm 14 mm lower).
    """
    kind, scene = split(protocol)
    patient = _patient(seed, kind, scene)
    first, second = first_scan(seed), first_scan(seed) + 1_000_003
    settings = scenes.acquired(sample_protocol(kind, patient.anatomy, first), scene, first)
    again = settings._replace(start_s=sample_protocol(kind, patient.anatomy, second).start_s)
    held = {"breath": (0.0, 4.0, 0.0), "lift_mm": -14.0} if kind == "rtp" else {}
    return (
        _scan(patient, settings, seed, first, shape, spacing_mm, scene, **_free_breathing(kind, first)),
        _scan(patient, again, seed, second, shape, spacing_mm, scene, **held),
    )


def _patient(seed, kind, scene):
    patient = sample_patient(seed, COHORT_OF[kind])
    if "wide" in scene:
        patient = patient._replace(anatomy=scenes.widened(patient.anatomy, seed))
    if "thin_plaques" in scene:
        patient = patient._replace(calcium=with_thin_plaques(patient.calcium, patient.tree, stream(seed, 711)))
    return patient


def _free_breathing(protocol, scan_seed):
    """How a patient breathes who is not told to hold the breath: the arguments of `sample_timing`, none but for "rtp"."""
    if protocol != "rtp":
        return {}
    g = stream(scan_seed, 909)
    return {"breath": (g.uniform(3, 7), g.uniform(3.2, 5.2), g.uniform(0, 6.28))}


def _scan(patient: Patient, settings: Protocol, seed, scan_seed, shape, spacing_mm, scene, **breathing) -> Phantom:
    centre = np.zeros(3) if scenes.region_of(scene) else heart_centre(patient)
    if shape is None and spacing_mm is None:
        grid = _native_grid(settings)
    else:
        spacing_mm = tuple(float(s) for s in spacing_mm or NETWORK_SPACING_MM)
        settings, grid = _resampled(settings, shape or (80, 208, 208), spacing_mm, centre, breathing.get("lift_mm", 0.0), scan_seed)
    timing = sample_timing(settings, grid, centre, scan_seed, **breathing)
    scan = simulate(patient, settings, grid, timing, scan_seed, scene=scene)
    if scenes.region_of(scene):
        mean, sd = settings.blood["art"], settings.noise_hu
    else:
        mean, sd = observer.aortic_roi(scan.hu, patient.anatomy, grid, timing)
    threshold = mean + 3 * sd if settings.contrast else observer.NATIVE_THRESHOLD_HU
    label = observer.mark(scan, threshold, settings.contrast)
    truth = _truth(patient, settings, scan, label, grid) | {
        "scene": "+".join(scene),
        "threshold_hu": threshold,
        "aorta_hu": mean,
        "aorta_sd": sd,
    }
    truth = {"seed": seed, "scan_seed": scan_seed} | truth
    return Phantom(scan.hu, label, scan.heart, scan.structures, scan.calcium, scan.coronary, scan.clean, affine_of(grid), truth)


def marks_of(truth: dict) -> np.ndarray:
    """Where a reader clicks: centroids (x, y, z) in LPS mm of the coronary lesions that can be seen, float [n, 3]."""
    clicked = [lesion["centre_mm"] for lesion in truth["lesions"] if lesion["visible"] and lesion["cls"] <= 3]
    return np.array(clicked, np.float64).reshape(-1, 3)


def heart_centre(patient: Patient):
    """Middle [3] in mm of the box that holds the coronary arteries."""
    points = np.concatenate([seg["c"] for seg in patient.tree if seg["cls"] <= 3])
    return 0.5 * (points.min(0) + points.max(0))


def _native_grid(settings: Protocol) -> Grid:
    pixel, dz = settings.fov_mm / MATRIX, settings.increment_mm
    bottom, top = settings.z_range_mm
    corner = [c - pixel * (MATRIX - 1) / 2 for c in settings.centre_mm]
    return Grid((int((top - bottom) / dz) + 1, MATRIX, MATRIX), (dz, pixel, pixel), (*corner, bottom))


def _resampled(settings: Protocol, shape, spacing_mm, centre, lift_mm, scan_seed):
    """Settings and heart-centred grid (within some mm) of a scan that was resampled to `spacing_mm`."""
    g = stream(scan_seed, 606)
    middle = centre + g.uniform(-1, 1, 3) * _HEART_MARGIN_MM * np.array([1, 1, 0.5]) + [0, 0, lift_mm]
    origin = [middle[2 - k] - spacing_mm[k] * (shape[k] - 1) / 2 for k in (2, 1, 0)]
    thickness = max(RESAMPLED_MM[settings.kind], spacing_mm[0] if spacing_mm[0] > 3 else 0.0)
    quieter = {"sharp": 0.75, "soft": 0.9 if settings.contrast else 1.0}[settings.kernel]
    if settings.kind == "chest":
        quieter *= np.sqrt(settings.thickness_mm / thickness)
    fwhm = max(settings.fwhm_mm, MIN_FWHM_PIXELS * max(spacing_mm[1:]))
    settings = settings._replace(thickness_mm=thickness, fwhm_mm=fwhm, noise_hu=settings.noise_hu * quieter)
    return settings, Grid(tuple(int(s) for s in shape), spacing_mm, tuple(origin))


def affine_of(grid: Grid):
    """float64 [4, 4]: affine @ (z, y, x, 1) = (X, Y, Z, 1) in LPS mm."""
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = grid.spacing_mm
    affine[:3, 3], affine[3, 3] = grid.origin_mm, 1.0
    return affine


def _truth(patient, settings, scan: Scan, label, grid):
    anatomy, c = patient.anatomy, patient.calcium
    known = lambda i: {"visible": scan.seen.get(i, 0) >= 3, "centre_mm": scan.centres_mm.get(i)}  # noqa: E731
    lesions = [lesion | known(lesion["id"]) for lesion in c["lesions"]]
    coronary = c["cls"] <= 3
    return {
        "protocol": settings.kind,
        "kvp": settings.kvp,
        "contrast": settings.contrast,
        "kernel": settings.kernel,
        "arterial_hu": settings.blood["art"] if settings.contrast else 0.0,
        "noise_hu": float(settings.noise_hu),
        "thickness_mm": settings.thickness_mm,
        "age": anatomy["age"],
        "bmi": anatomy["bmi"],
        "female": bool(anatomy["female"]),
        "lesions": lesions,
        "true_volume_mm3": float(c["dV"][coronary].sum()),
        "true_mass_mg": float((c["dV"] * c["c"])[coronary].sum() / 1000),
    } | observer.scores(scan.hu, label, grid.spacing_mm)

"""Scanning a patient: protocols as published sites run them, contrast, timing, and the simulated image with its exact calcium map."""

from typing import NamedTuple

import numpy as np

from cacjax.phantom import beam, contrast, motion, noise, scenes, streaks
from cacjax.phantom.anatomy import stream
from cacjax.phantom.lumen import vessel_samples, wall_mm
from cacjax.phantom.observer import VISIBLE_SD
from cacjax.phantom.render import Grid, render, tissue_at
from cacjax.phantom.splat import Optics, Samples, splat

PROTOCOLS = ("chest", "cardiac", "ccta", "rtp")
COHORT_OF = {"chest": "screening", "cardiac": "cardiac", "ccta": "angiography", "rtp": "rtp"}
FWHM = 2.3548
HU_PER_DENSITY = 1.30  # HU per mg/cm3 of hydroxyapatite at 120 kVp
CALCIUM_GAIN = {70: 1.59, 80: 1.37, 90: 1.24, 100: 1.14, 120: 1.0, 140: 0.92}
WALL_HU, WASHOUT_MM = 45.0, 110.0
PLEURA_MM = 1.0  # from the lungs' cavity, up to where the pericardium is drawn; native scans call heart what is beyond it, too


class Protocol(NamedTuple):
    """One acquisition. Lengths mm, times s; blood: HU per compartment (see `contrast`); washout: HU lost per mm along a contrasted artery;
    hardening: against that of a usual filter; noise_per_mm: share by which noise grows with every mm below the aortic root."""

    kind: str
    kvp: int
    contrast: bool
    gated: bool
    fov_mm: float
    thickness_mm: float
    increment_mm: float
    centre_mm: tuple
    z_range_mm: tuple
    kernel: str
    fwhm_mm: float
    noise_hu: float
    window_s: float
    rr_s: float
    phase: float
    start_s: float
    table_mm_s: float
    blood: dict
    washout: float
    hardening: float
    noise_per_mm: float


class Scan(NamedTuple):
    """hu, clean, calcium, coronary float32 [z, y, x]; cls uint8: class of the largest calcium contribution; structures: see `layers`;
    seen, centres_mm: of lesions by number, see `simulate`; timing: when each slice was seen."""

    hu: np.ndarray
    clean: np.ndarray
    calcium: np.ndarray
    coronary: np.ndarray
    cls: np.ndarray
    heart: np.ndarray
    structures: np.ndarray
    seen: dict
    centres_mm: dict
    timing: motion.Timing


def split(protocol: str) -> tuple[str, tuple[str, ...]]:
    """(kind, words of its scene) of a protocol such as "chest" or "chest:wide+sharp" (see `scenes`). Raises ValueError for another."""
    kind, colon, scene = protocol.partition(":")
    words = tuple(scene.split("+")) if colon else ()
    if kind not in PROTOCOLS or set(words) - set(scenes.SCENES):
        expected = f"one of {', '.join(PROTOCOLS)}, and after a colon, with + between, any of {', '.join(scenes.SCENES)}"
        raise ValueError(f"protocol must be {expected}, got {protocol!r}")
    return kind, words


def sample_protocol(kind: str, anatomy: dict, scan_seed: int) -> Protocol:
    """A random acquisition of one kind ("chest", "cardiac", "ccta", "rtp") for a patient."""
    if kind not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {kind!r}")
    g = stream(scan_seed, 404)
    settings = {"chest": _chest, "cardiac": _cardiac, "ccta": _ccta, "rtp": _rtp}[kind](g, anatomy["bmi"])
    settings = {"kind": kind, "kvp": 120, "contrast": False, "gated": False, "kernel": "soft", "phase": 0.0, "table_mm_s": 0.0} | settings
    rr = 60.0 / settings.pop("rate")
    bolus = _bolus(scan_seed, settings["kvp"]) if settings["contrast"] else _no_bolus(anatomy)
    return Protocol(rr_s=rr, start_s=g.uniform(0, rr), **settings, **bolus)


def _chest(g, bmi):
    thickness = float(g.choice([1.0, 1.25, 2.0, 2.5, 3.0], p=[0.08, 0.2, 0.4, 0.2, 0.12]))
    kernel = str(g.choice(["soft", "sharp"], p=[0.7, 0.3]))
    fwhm, louder = {"soft": (g.uniform(0.95, 1.25), 1.0), "sharp": (g.uniform(0.65, 0.8), 2.3)}[kernel]
    return {
        "kvp": int(g.choice([120, 140], p=[0.85, 0.15])),
        "fov_mm": float(np.clip(g.normal(345 + 3 * (bmi - 26), 18), 280, 450)),
        "thickness_mm": thickness,
        "increment_mm": {1.0: 0.8, 1.25: 1.25, 2.0: 1.8, 2.5: 2.0, 3.0: 2.5}[thickness],
        "centre_mm": (0.0, 4.0),
        "z_range_mm": (-130.0, 150.0),
        "kernel": kernel,
        "fwhm_mm": fwhm,
        "noise_hu": g.uniform(15, 27) * louder * (2.0 / thickness) ** 0.5 * np.exp(0.022 * (bmi - 26)),
        "window_s": g.uniform(0.25, 0.40),
        "table_mm_s": g.uniform(28, 60),
        "rate": float(np.clip(g.normal(70, 11), 48, 105)),
    }


def _cardiac(g, bmi):
    return {
        "gated": True,
        "fov_mm": float(g.uniform(155, 250)),
        "thickness_mm": 3.0,
        "increment_mm": 1.5,
        "centre_mm": (20.0, -24.0),
        "z_range_mm": (-72.0, 66.0),
        "fwhm_mm": g.uniform(0.85, 1.05),
        "noise_hu": g.uniform(15, 24) * np.exp(0.02 * (bmi - 26)),
        "window_s": 0.135,
        "phase": 0.75,
        "rate": float(np.clip(g.normal(62, 8), 45, 85)),
    }


def _ccta(g, bmi):
    choices = ([70, 80, 90, 100, 120], [0.16, 0.22, 0.18, 0.27, 0.17]) if bmi < 31 else ([100, 120], [0.4, 0.6])
    return _cardiac(g, bmi) | {
        "contrast": True,
        "kvp": int(g.choice(choices[0], p=choices[1])),
        "fov_mm": float(g.uniform(130, 225)),
        "thickness_mm": 0.6,
        "increment_mm": 0.4,
        "centre_mm": (22.0, -24.0),
        "z_range_mm": (-66.0, 62.0),
        "fwhm_mm": g.uniform(0.62, 0.80),
        "noise_hu": g.uniform(20, 36) * np.exp(0.012 * (bmi - 26)),
        "window_s": 0.066,
        "phase": 0.72,
    }


def _rtp(g, bmi):
    return {
        "fov_mm": float(g.uniform(470, 700)),
        "thickness_mm": 3.0,
        "increment_mm": 3.0,
        "centre_mm": (0.0, 10.0),
        "z_range_mm": (-150.0, 150.0),
        "fwhm_mm": g.uniform(1.25, 1.6),
        "noise_hu": g.uniform(10, 17) * np.exp(0.02 * (bmi - 26)),
        "window_s": g.uniform(0.3, 0.45),
        "table_mm_s": g.uniform(30, 48),
        "rate": float(np.clip(g.normal(70, 11), 48, 105)),
    }


def _no_bolus(anatomy):
    return {"blood": contrast.native(anatomy), "washout": 0.0, "hardening": 1.0, "noise_per_mm": 0.0}


def _bolus(scan_seed, kvp):
    """Blood and what comes with it; in some patients the lumen gets brighter along the artery, since the bolus is younger there."""
    g = stream(scan_seed, 707)
    blood = contrast.enhanced(g, kvp)
    return {"blood": blood, "washout": g.uniform(-0.6, 1.1), "hardening": g.uniform(0.8, 1.8), "noise_per_mm": g.uniform(0, 0.003)}


def sample_timing(protocol: Protocol, grid: Grid, centre_mm, scan_seed: int, *, breath=(0.0, 4.0, 0.0), lift_mm=0.0) -> motion.Timing:
    """When each slice is seen and how this breath-hold lies.

    Gated: jitter of 40 ms and a rigid step of .5-1 mm per 38 mm slab. Every breath-hold turns the heart by about 3 degrees and moves it
    by about 2 mm, so that two of them differ by 3-5 degrees and 3 mm.
    """
    g = stream(scan_seed, 505)
    z = grid.axis(0)
    rr = protocol.rr_s * float(np.clip(g.normal(1, 0.05), 0.85, 1.15))
    shift = np.zeros((len(z), 3))
    if protocol.gated:
        slab = motion.slab_index(z)
        jitter, steps = g.normal(0, 0.040, slab.max() + 1), g.normal(0, 0.43, (slab.max() + 1, 3))
        time = (protocol.phase * rr + g.normal(0, 0.02) + jitter)[slab]
        shift = steps[slab]
    else:
        time = protocol.start_s + (z - z[0]) / protocol.table_mm_s
    rotation = motion.sample_rotation(g, g.normal(0, 3.0))
    return motion.Timing(time, protocol.window_s, rr, shift, rotation, g.normal(0, 1.25, 3), np.asarray(centre_mm), breath, lift_mm)


def simulate(patient, protocol: Protocol, grid: Grid, timing: motion.Timing, noise_seed: int, *, scene: tuple = ()) -> Scan:
    """The scan of a patient. clean = noise-free image; calcium = its exact calcium part; clean - calcium = the healthy twin;
    coronary = what the coronary arteries alone add to calcium.
    scene: see `scenes`; its regions have no heart and no marked calcium. `seen` maps lesion number -> voxels with calcium
    above 2.5 noise SD, `centres_mm` -> its centroid in the image, (x, y, z) in LPS mm.
    """
    optics = Optics(protocol.fwhm_mm / FWHM, protocol.thickness_mm, 0.18 * protocol.thickness_mm + 0.15)
    psf = (optics.sigma_mm, protocol.thickness_mm / np.sqrt(12))
    couch = protocol.kind in ("chest", "rtp")
    within_mm, region = PLEURA_MM if protocol.contrast else np.inf, scenes.region_of(scene)
    if region:
        clean = scenes.draw(region, patient.anatomy, grid, protocol.blood, optics.sigma_mm, noise_seed)
        heart, structures, calcium, coronary, cls, seen, centres_mm = *_empty(grid), {}, {}
        rays = beam.Beam(np.zeros_like(clean), np.ones_like(clean))
    else:
        clean, heart, structures = render(patient.anatomy, grid, timing, protocol.blood, psf, couch, within_mm)
        _add_arteries(clean, patient, protocol, grid, timing, optics)
        if patient.metal:
            _add_metal(clean, patient, protocol, grid, timing, optics, noise_seed)
        calcium, coronary, cls, seen, centres_mm = _calcium(patient, protocol, grid, timing, optics)
        clean += calcium
        rays = beam.scan_beam(patient.anatomy, grid, timing, protocol, couch, calcium, timing.centre_mm)
    clean += rays.error_hu
    if protocol.contrast and not region:
        streaks.add(clean, grid, *streaks.of_caval_vein(patient.anatomy, protocol, grid, timing), stream(noise_seed, 717))
    if {"arms_down", "arms_up"} & set(scene):
        scenes.paint(clean, grid, optics.sigma_mm, scenes.arms(patient.anatomy, scene))
    hu = clean.copy()
    if protocol.kernel == "sharp":
        noise.boost_edges(hu, grid)
    if "streaks" in scene:
        hu += beam.streaks(patient.anatomy, grid, timing, protocol, couch, noise_seed)
    root_mm = 0.5 * (patient.anatomy["ao"][2, 2] + patient.anatomy["ao"][3, 2])
    below = 1 + protocol.noise_per_mm * np.maximum(root_mm - grid.axis(0), 0)
    noise.add_noise(hu, grid, protocol, noise_seed, rays.noise * below.astype(np.float32)[:, None, None])
    hu = np.clip(np.round(hu), -1024, 3071).astype(np.int16)
    return Scan(hu, clean, calcium, coronary, cls, heart, structures, seen, centres_mm, timing)


def _empty(grid):
    """heart, structures, calcium, coronary and cls of a scan without any."""
    return [np.zeros(grid.shape, kind) for kind in (bool, np.uint8, np.float32, np.float32, np.uint8)]


def _moving(points, beat, amplitude, timing):
    """Samples in the scanner: breath-hold pose applied to positions and to the direction of the beat."""
    position = motion.from_reference(points, timing)
    return Samples(position.astype(np.float32), (beat @ timing.rotation.T).astype(np.float32), amplitude.astype(np.float32))


def _add_arteries(image, patient, protocol, grid, timing, optics):
    step = max(0.40, 1.1 * optics.sigma_mm) if protocol.contrast else max(0.80, 1.5 * optics.sigma_mm)
    v = vessel_samples(patient.tree, patient.anatomy, max_step_mm=step)
    under, beat = tissue_at(patient.anatomy, v["pos"], protocol.blood)
    amplitude = ((_lumen_hu(v["s"], protocol) - WALL_HU) * v["cl"] + (WALL_HU - under) * v["co"]) * v["dV"]
    drawn = splat(_moving(v["pos"], beat, amplitude, timing), grid, timing, optics, protocol.gated)
    if drawn is not None:
        image[drawn[0]] += drawn[1]


def _lumen_hu(s_mm, protocol):
    """HU of the blood `s_mm` from the start of an artery."""
    return protocol.blood["lumen"] - protocol.washout * np.minimum(s_mm, WASHOUT_MM)


def _add_metal(image, patient, protocol, grid, timing, optics, scan_seed):
    """The patient's metal, and the streaks around what of it lies in a slice."""
    metal = patient.metal
    if not len(metal["dV"]):
        return
    under, beat = tissue_at(patient.anatomy, metal["pos"], protocol.blood)
    samples = _moving(metal["pos"], beat, (metal["hu"] - under) * metal["dV"], timing)
    if (drawn := splat(samples, grid, timing, optics._replace(fineness=0.5), protocol.gated)) is not None:
        image[drawn[0]] += drawn[1]
    streaks.add(image, grid, *streaks.of_metal(samples.position[metal["streaks"]], grid), stream(scan_seed, 727))


def calcium_samples(patient, protocol: Protocol, timing: motion.Timing) -> Samples:
    """All calcium as moving samples; amplitude = (its HU - the HU it replaces) x volume."""
    c = patient.calcium
    under, beat = tissue_at(patient.anatomy, c["pos"], protocol.blood)
    in_wall = c["rho"] < c["rl"] + wall_mm(c["rl"])
    replaced = np.where(c["rho"] < c["rl"], _lumen_hu(c["s"], protocol), np.where(in_wall, WALL_HU, under))
    return _moving(c["pos"], beat, (_calcium_hu(c, protocol) - replaced) * c["dV"], timing)


def _calcium_hu(calcium, protocol):
    """HU [n] of calcium samples."""
    return WALL_HU + HU_PER_DENSITY * CALCIUM_GAIN[protocol.kvp] * calcium["c"]


def share_above_lumen(patient, protocol: Protocol) -> float | None:
    """Share of the volume of coronary calcium that is brighter than the blood at its place in the artery; None without any."""
    c = patient.calcium
    coronary = c["cls"] <= 3
    above = coronary & (_calcium_hu(c, protocol) > _lumen_hu(c["s"], protocol))
    return float(c["dV"][above].sum() / c["dV"][coronary].sum()) if coronary.any() else None


def _calcium(patient, protocol, grid, timing, optics):
    """Sum of all lesions and of the coronary ones, the class that contributes most per voxel, how many voxels show each lesion, and where
    it is."""
    total, coronary, best = (np.zeros(grid.shape, np.float32) for _ in range(3))
    cls = np.zeros(grid.shape, np.uint8)
    seen, centres_mm, c = {}, {}, patient.calcium
    if len(c["pos"]) == 0:
        return total, coronary, cls, seen, centres_mm
    samples, optics = calcium_samples(patient, protocol, timing), optics._replace(fineness=0.5)
    for wanted in np.unique(c["cls"]):
        part = np.zeros(grid.shape, np.float32)
        for lesion in np.unique(c["lid"][c["cls"] == wanted]):
            drawn = splat(samples.take(c["lid"] == lesion), grid, timing, optics, protocol.gated)
            seen[int(lesion)] = 0 if drawn is None else int((drawn[1] > VISIBLE_SD * protocol.noise_hu).sum())
            if drawn is not None:
                part[drawn[0]] += drawn[1]
                centres_mm[int(lesion)] = _centroid_mm(*drawn, grid)
        total += part
        if wanted <= 3:
            coronary += part
        stronger = part > best
        cls[stronger], best[stronger] = wanted, part[stronger]
    return total, coronary, cls, seen, centres_mm


def _centroid_mm(window, image, grid):
    """Centroid (x, y, z) in LPS mm of what an image adds in a window of the grid; None where it adds nothing."""
    image = np.maximum(image, 0)  # calcium that is darker than the blood it replaces marks nothing
    total = float(image.sum(dtype=np.float64))
    if total == 0:
        return None
    sums = (image.sum(tuple({0, 1, 2} - {axis}), dtype=np.float64) for axis in range(3))
    z, y, x = (float(grid.axis(axis)[part] @ along / total) for axis, (part, along) in enumerate(zip(window, sums)))
    return [x, y, z]

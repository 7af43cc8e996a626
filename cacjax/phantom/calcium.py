"""Calcium: random lesions as rows of nodules in the coordinates of their vessel, as weighted point samples with a known mass.

The second calibration: more and smaller lesions than the first, and no density beyond what fits into a point's volume.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from cacjax.phantom.curves import at

ZERO_SHARE = {"screening": 0.17, "cardiac": 0.34, "angiography": 0.34, "rtp": 0.40}
SEGMENT_SHARE = {
    "LM": 0.06,
    "LAD": 0.43,
    "LCX": 0.155,
    "RCA": 0.265,
    "D1": 0.03,
    "D2": 0.015,
    "OM1": 0.025,
    "PDA": 0.02,
}
DENSITY = {1: 430, 2: 380, 3: 330}  # median in mg/cm3 in LAD, LCX and RCA
SPREAD_MM = {"RCA": 32.0, "LAD": 17.0, "LCX": 18.0}
MAX_LESIONS = 80
AORTIC_SHIFT = {"screening": 0.35, "cardiac": -0.35, "angiography": -0.35, "rtp": -0.4}
VALVES = {"AVL": -0.95, "MVA": -1.25}
MORE_VALVES = {"screening": 0.0, "cardiac": 0.0, "angiography": 0.6, "rtp": 0.0}
MAX_DENSITY = 950.0  # mg/cm3 of hydroxyapatite
CELL_MM = 0.8
FINEST_MM = 0.22
ARTERIES = ("background", "LAD", "LCX", "RCA", "TAC", "AV", "MV")


class Nodule(NamedTuple):
    """An ellipsoid in tube coordinates: half length, half width, half thickness in mm; density mg/cm3; angle in rad."""

    segment: str
    position_mm: float
    angle: float
    length: float
    width: float
    thickness: float
    density: float
    cls: int
    lesion: int


def place_calcium(anatomy: dict, tree: list, cohort: str, g: np.random.Generator) -> dict:
    """All calcium of a patient.

    Returns samples pos [n, 3] mm, dV [n] mm3, c [n] mg/cm3, cls [n] class 1-6, lid [n] lesion number, rho [n] distance from the
    vessel axis, rl [n] lumen radius (rho < rl: the sample replaces blood) and s [n] from the vessel's start in mm;
    sev: severity score or None;
    lesions: list of dicts (see `lesion_table`). mass in mg = sum(dV * c) / 1000.
    """
    carriers = {seg["name"]: seg for seg in tree}
    severity = sample_severity(anatomy["age"], ZERO_SHARE[cohort], g)
    nodules = _coronary_nodules(carriers, severity, g) if severity is not None else []
    extra = 0.5 * (-1.2 if severity is None else severity) + 0.6 * (anatomy["age"] - 60) / 9
    nodules += _aortic_nodules(carriers, AORTIC_SHIFT[cohort], extra, _count(nodules), g)
    for name, shift in VALVES.items():
        nodules += _valve_nodules(carriers[name], shift + MORE_VALVES[cohort], extra, _count(nodules), g)
    samples = _join([_sample(nodule, carriers[nodule.segment], g) for nodule in nodules])
    samples["dV"] = cap_overlap(samples["pos"], samples["dV"])
    return samples | {"sev": severity, "lesions": lesion_table(samples, nodules)}


def _count(nodules):
    return nodules[-1].lesion + 1 if nodules else 0


def sample_severity(age: float, zero_share: float, g) -> float | None:
    """None without coronary calcium; else the normal score of the patient's rank among those with calcium."""
    rank = norm.cdf(0.8 * g.normal() + 0.6 * np.clip((age - 60) / 9, -2.2, 2.2))
    if rank <= zero_share:
        return None
    return float(norm.ppf(np.clip((rank - zero_share) / (1 - zero_share), 1e-3, 1 - 1e-3)))


def _lognormal(g, median, log_sd, low, high):
    return float(np.clip(np.exp(g.normal(np.log(median), log_sd)), low, high))


def _coronary_nodules(carriers, severity, g):
    """1 + negative binomial(1.3) lesions; volumes of median exp(.35 + .30 severity) mm3, near the origin of their segment."""
    mean = np.exp(2.10 + 0.95 * severity)
    nodules = []
    for lesion in range(min(1 + g.negative_binomial(1.3, 1 / (1 + mean / 1.3)), MAX_LESIONS)):
        name = str(g.choice(list(SEGMENT_SHARE), p=list(SEGMENT_SHARE.values())))
        name = name if name in carriers else "LAD"
        first = 5 if name in ("LM", "RCA") else 4
        position = min(first + g.gamma(1.3, SPREAD_MM.get(name, 10.0)), 0.88 * carriers[name]["s"][-1])
        volume = _lognormal(g, np.exp(0.35 + 0.30 * severity), 1.85, 0.08, 480)
        density = np.clip(_lognormal(g, DENSITY[carriers[name]["cls"]], 0.42, 0, np.inf) * (max(volume, 0.3) / 8) ** 0.11, 110, 1050)
        nodules += _row(carriers[name], position, volume, density, g.uniform(0, 2 * np.pi), lesion, None, g)
    return nodules


def _aortic_nodules(carriers, shift, extra, first, g):
    """Plaques of the aortic wall, mostly in the arch and below; median 11 mm3."""
    if g.random() >= norm.cdf(shift + 0.8 * extra):
        return []
    aorta, nodules = carriers["AO"], []
    for lesion in range(1 + g.poisson(np.exp(1.0 + 0.5 * extra))):
        share = g.beta(3.2, 2.6) if g.random() < 0.85 else g.uniform(0, 0.3)
        position = np.clip(aorta["s"][-1] * share, 3, aorta["s"][-1] - 30)
        volume = _lognormal(g, np.exp(2.4 + 0.3 * extra), 1.3, 0.5, 500)
        density = _lognormal(g, 430, 0.4, 150, 1000)
        nodules += _row(aorta, position, volume, density, g.uniform(0, 2 * np.pi), first + lesion, 3.2, g)
    return nodules


def with_thin_plaques(calcium: dict, tree: list, g) -> dict:
    """A patient's calcium and 2 to 9 sheets in the wall of the aorta, from its root on down, .6 to 1 mm thick and 4 to 14 mm a side."""
    aorta, nodules = next(seg for seg in tree if seg["name"] == "AO"), []
    for lesion in range(int(g.integers(2, 10))):
        position, angle, density = g.uniform(3, aorta["s"][-1] - 30), g.uniform(0, 2 * np.pi), _lognormal(g, 480, 0.3, 200, 900)
        turn = 2.4 / float(at(aorta, np.float64(position))[3])
        for along in range(int(g.integers(1, 4))):
            for about in range(int(g.integers(1, 4))):
                where = position + 2.6 * along, angle + turn * about
                half_mm = g.uniform(0.3, 0.5)
                nodules.append(Nodule("AO", *where, 1.9, 1.7, half_mm, density * np.exp(g.normal(0, 0.1)), aorta["cls"], lesion))
    found, first = _join([_sample(nodule, aorta, g) for nodule in nodules]), len(calcium["lesions"])
    found["dV"] = cap_overlap(found["pos"], found["dV"])
    listed = [lesion | {"id": lesion["id"] + first} for lesion in lesion_table(found, nodules)]
    found["lid"] = found["lid"] + first
    joined = {key: np.concatenate([calcium[key], found[key]]) for key in found}
    return calcium | joined | {"lesions": calcium["lesions"] + listed}


def _valve_nodules(ring, shift, extra, first, g):
    """Deposits on the aortic valve or the mitral annulus; median 13 mm3."""
    if g.random() >= norm.cdf(shift + 0.55 * extra):
        return []
    nodules = []
    for lesion in range(1 + g.poisson(1.5)):
        volume = _lognormal(g, np.exp(2.6 + 0.3 * extra), 1.2, 0.8, 500)
        density = _lognormal(g, 430, 0.35, 150, 900)
        position, angle = g.uniform(3, ring["s"][-1] - 3), g.uniform(0, 6.28)
        nodules += _row(ring, position, volume, density, angle, first + lesion, 2.6, g)
    return nodules


def _row(carrier, position, volume, density, angle, lesion, widest, g):
    """A lesion as a row of nodules of about 14 mm3, each a little turned against the one before."""
    count, row = max(1, int(np.ceil(volume / 14.0))), []
    end = carrier["s"][-1]
    for _ in range(count):
        size = volume / count * np.exp(g.normal(0, 0.25))
        thickness = np.clip(0.42 * size ** (1 / 3) * np.exp(g.normal(0, 0.15)), 0.2, 1.05)
        limit = widest or min(0.8 * np.pi * float(at(carrier, np.float64(position))[3]), 2.4)
        width = np.clip(0.60 * size ** (1 / 3) * np.exp(g.normal(0, 0.2)), 0.25, limit)
        length = np.clip(3 * size / (4 * np.pi * thickness * width), 0.25, 4.5)
        local = density * np.exp(g.normal(0, 0.12))
        row.append(Nodule(carrier["name"], position, angle, length, width, thickness, local, carrier["cls"], lesion))
        position += 1.55 * length if position + 1.55 * length < end - 1 else -0.8 * length
        angle += g.normal(0, 0.55)
    return row


def _grid(nodule):
    """Offsets in half axes (-1.25 to 1.25) of the cell centres, and their numbers along length, width, thickness."""
    extents, most = np.array([nodule.length, nodule.width, nodule.thickness]), np.array([18, 14, 9])
    counts = np.clip(np.ceil(2.5 * extents / FINEST_MM).astype(int), [6, 6, 5], most)
    return np.meshgrid(*[(np.arange(n) + 0.5) / n * 2.5 - 1.25 for n in counts], indexing="ij"), counts


def _sample(nodule, carrier, g):
    """One nodule as cells: the boundary is warped by four sinusoids, the density falls by 45 % towards the rim."""
    (u, v, w), counts = _grid(nodule)
    wave, phase = g.uniform(0.8, 2.2, (4, 3)), g.uniform(0, 6.28, 4)
    warp = sum(np.sin(f[0] * 2 * u + f[1] * 2 * v + f[2] * 1.5 * w + q) for f, q in zip(wave, phase)) / 1.6
    radius2 = u * u + v * v + w * w
    filled = np.clip(0.5 - (radius2 + 0.28 * warp - 1) / 0.5, 0, 1)
    inside = filled > 0
    u, v, w, filled, radius2, warp = (q[inside] for q in (u, v, w, filled, radius2, warp))
    pos, rho, lumen, stretch = _place(nodule, carrier, u, v, w)
    volume = np.prod(2.5 * np.array([nodule.length, nodule.width, nodule.thickness]) / counts) * stretch * filled
    density = nodule.density * np.clip(1.12 - 0.45 * radius2 + 0.12 * warp, 0.2, 1.4)
    n = len(volume)
    samples = {"pos": pos, "dV": volume, "c": np.minimum(density, MAX_DENSITY), "cls": np.full(n, nodule.cls)}
    samples["s"] = np.clip(nodule.position_mm + nodule.length * u, 0, carrier["s"][-1])
    samples |= {"lid": np.full(n, nodule.lesion), "rho": rho, "rl": np.full(n, lumen)}
    return {k: q[volume > 1e-5] for k, q in samples.items()}


def _place(nodule, carrier, u, v, w):
    """Positions [n, 3] of offsets in half axes, their distance from the vessel axis, the lumen radius, the volume stretch."""
    centre, n, b, _ = at(carrier, nodule.position_mm + nodule.length * u)
    cos, sin = np.cos(nodule.angle), np.sin(nodule.angle)
    if nodule.segment in ("AVL", "MVA"):  # a leaflet or ring has no lumen: a plain ellipsoid along the curve
        across, out = (nodule.width * v)[:, None], (nodule.thickness * w)[:, None]
        pos = centre + across * (cos * n + sin * b) + out * (cos * b - sin * n)
        return pos, np.full(len(u), 9.0), 0.0, np.ones(len(u))
    lumen = float(at(carrier, np.float64(nodule.position_mm))[3])
    middle = lumen + (0.15 if nodule.segment == "AO" else 0.30)
    rho, turn = middle + nodule.thickness * w, nodule.angle + nodule.width / max(middle, 0.6) * v
    pos = centre + rho[:, None] * (np.cos(turn)[:, None] * n + np.sin(turn)[:, None] * b)
    return pos, rho, 0.0 if nodule.segment == "AO" else lumen, np.clip(rho / max(middle, 0.6), 0, 3)


def _join(parts):
    empty = {
        "pos": np.zeros((0, 3)),
        "dV": np.zeros(0),
        "c": np.zeros(0),
        "cls": np.zeros(0, int),
        "lid": np.zeros(0, int),
    }
    empty |= {"rho": np.zeros(0), "rl": np.zeros(0), "s": np.zeros(0)}
    return {k: np.concatenate([part[k] for part in [empty, *parts]]) for k in empty}


def cell_index(pos):
    """Number [n] of the 0.8 mm cell that holds each position [n, 3]."""
    cells = np.floor(pos / CELL_MM).astype(np.int64)
    return np.unique((cells[:, 0] * 4096 + cells[:, 1]) * 4096 + cells[:, 2], return_inverse=True)[1]


def cap_overlap(pos, volume):
    """Sample volumes scaled down where nodules overlap: a cell never holds more calcium than its own volume."""
    cell = cell_index(pos)
    total = np.bincount(cell, volume, minlength=1)
    return volume * np.minimum(1.0, CELL_MM**3 / np.maximum(total, 1e-9))[cell]


def lesion_table(samples, nodules):
    """Truth per lesion: id, cls, artery, segment, position_mm, volume_mm3, mass_mg, peak_mg_cm3."""
    heads = {nodule.lesion: nodule for nodule in reversed(nodules)}
    count = len(heads)
    volume = np.bincount(samples["lid"], samples["dV"], minlength=count)
    mass = np.bincount(samples["lid"], samples["dV"] * samples["c"], minlength=count) / 1000.0
    peak = np.zeros(count)
    np.maximum.at(peak, samples["lid"], samples["c"])
    return [
        {
            "id": i, "cls": heads[i].cls, "artery": ARTERIES[heads[i].cls], "segment": heads[i].segment,
            "position_mm": float(heads[i].position_mm), "volume_mm3": float(volume[i]), "mass_mg": float(mass[i]),
            "peak_mg_cm3": float(peak[i]),
        }
        for i in range(count)
    ]  # fmt: skip

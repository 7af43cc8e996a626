"""Blood and wall of the coronary arteries as weighted point samples, finer than any voxel."""

import numpy as np
from scipy.spatial import cKDTree

from cacjax.phantom.curves import STEP_MM, tube_distance

PARENTS = {"LCX": "LAD", "D1": "LAD", "D2": "LAD", "OM1": "LCX", "OM2": "LCX", "PDA": "RCA", "AM": "RCA"}


def wall_mm(radius):
    """Thickness of the arterial wall for a lumen radius, both in mm."""
    return 0.30 + 0.22 * radius


def vessel_samples(tree: list, anatomy: dict, *, max_step_mm: float) -> dict:
    """Samples of the coronary lumina and walls at most `max_step_mm` apart across the vessel.

    Returns pos [n, 3] mm, dV [n] mm3, cl [n] share in the lumen, co [n] share in lumen or wall, s [n] mm from the segment's start.
    Nothing is doubled where a branch leaves its parent, and nothing lies inside the aorta.
    """
    line = {seg["name"]: seg for seg in tree}
    parts = [_without_parent(_tube(seg, max_step_mm), seg["name"], line) for seg in tree if seg["cls"] <= 3]
    samples = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
    aorta = tube_distance(samples["pos"], anatomy["ao"][:6], anatomy["ao_r"][:6])
    samples["co"] = np.where(aorta < 1.3, samples["cl"], samples["co"])  # at the ostium the lumen opens into the aorta
    return {k: v[aorta > -0.2] for k, v in samples.items()}


def _tube(seg, max_step_mm):
    """A segment as discs of square cells; a cell at the rim counts with the share that is covered."""
    stride = 2 if max_step_mm >= 0.8 else 1
    c, n, b, r = (seg[k][::stride] for k in ("c", "n", "b", "r"))
    outer = r + wall_mm(r)
    half = 1.12 * outer
    count = int(np.clip(np.ceil(3.5 * r.max() / max_step_mm), 7, 13))
    u, v = np.meshgrid(*[(np.arange(count) + 0.5) / count * 2 - 1] * 2, indexing="ij")
    rho = half[:, None, None] * np.hypot(u, v)
    cell = (2 * half / count)[:, None, None]
    inside, covered = (np.clip(0.5 - (rho - radius[:, None, None]) / cell, 0, 1) for radius in (r, outer))
    keep = covered > 0
    disc = u[..., None] * n[:, None, None] + v[..., None] * b[:, None, None]
    pos = c[:, None, None] + half[:, None, None, None] * disc
    spread = {"dV": cell**2 * stride * STEP_MM, "s": seg["s"][::stride][:, None, None]}
    spread = {k: np.broadcast_to(value, rho.shape)[keep] for k, value in spread.items()}
    return {"pos": pos[keep], "cl": inside[keep], "co": covered[keep]} | spread


def _without_parent(samples, name, line):
    keep = np.ones(len(samples["s"]), bool)
    if PARENTS.get(name) in line:
        parent = line[PARENTS[name]]
        distance, nearest = cKDTree(parent["c"]).query(samples["pos"])
        keep &= distance > parent["r"][nearest] + 0.5
    if name == "LCX":
        keep &= cKDTree(line["LM"]["c"]).query(samples["pos"])[0] > 2.4
    return {k: v[keep] for k, v in samples.items()}

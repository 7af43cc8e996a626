"""Blood and wall of the coronary arteries as weighted point samples, finer than any voxel."""

import numpy as np
from scipy.spatial import cKDTree

from cacjax.phantom.curves import tube_distance

SAME_PLACE_MM = 1.6
NEIGHBOURS = 24  # stations of centre lines that may own a sample; 12 mm of one vessel


def wall_mm(radius):
    """Thickness of the arterial wall for a lumen radius, both in mm."""
    return 0.30 + 0.22 * radius


def vessel_samples(tree: list, anatomy: dict, *, max_step_mm: float) -> dict:
    """Samples of the coronary lumina and walls at most `max_step_mm` apart across the vessel.

    Returns pos [n, 3] mm, dV [n] mm3, cl [n] share in the lumen, co [n] share in lumen or wall, s [n] mm from the segment's start.
    Nothing is doubled where a vessel bends or a branch leaves its parent, and nothing lies inside the aorta.
    """
    segments = [seg for seg in tree if seg["cls"] <= 3]
    parts = [_tube(seg, max_step_mm) for seg in segments]
    number = np.repeat(np.arange(len(parts)), [len(part["s"]) for part in parts])
    samples = _owned({k: np.concatenate([part[k] for part in parts]) for k in parts[0]}, number, segments)
    aorta = tube_distance(samples["pos"], anatomy["ao"][:6], anatomy["ao_r"][:6])
    samples["co"] = np.where(aorta < 1.3, samples["cl"], samples["co"])  # at the ostium the lumen opens into the aorta
    return {k: v[aorta > -0.2] for k, v in samples.items()}


def _tube(seg, max_step_mm):
    """A segment as discs of square cells; a cell at the rim counts with the share that is covered.

    Discs of a bend spread on its outside and close up on its inside: a cell stands for as much length as lies between them there.
    """
    stride = 2 if max_step_mm >= 0.8 else 1
    bend = np.gradient(seg["t"], seg["s"], axis=0)[::stride]
    step = (np.gradient(seg["s"]) * stride)[::stride]
    c, n, b, r = (seg[k][::stride] for k in ("c", "n", "b", "r"))
    outer = r + wall_mm(r)
    half = 1.12 * outer
    count = int(np.clip(np.ceil(3.5 * r.max() / max_step_mm), 7, 13))
    u, v = np.meshgrid(*[(np.arange(count) + 0.5) / count * 2 - 1] * 2, indexing="ij")
    rho = half[:, None, None] * np.hypot(u, v)
    cell = (2 * half / count)[:, None, None]
    inside, covered = (np.clip(0.5 - (rho - radius[:, None, None]) / cell, 0, 1) for radius in (r, outer))
    offset = half[:, None, None, None] * (u[..., None] * n[:, None, None] + v[..., None] * b[:, None, None])
    length = step[:, None, None] * (1 - np.einsum("kijx,kx->kij", offset, bend))
    keep = (covered > 0) & (length > 0)
    spread = {"dV": cell**2 * length, "s": seg["s"][::stride][:, None, None]}
    spread = {k: np.broadcast_to(value, rho.shape)[keep] for k, value in spread.items()}
    return {"pos": (c[:, None, None] + offset)[keep], "cl": inside[keep], "co": covered[keep]} | spread


def _owned(samples, number, segments):
    """The samples that lie deepest where they were made: of tubes that overlap, or one that turns back, one piece fills the place."""
    centres, radii, along = (np.concatenate([seg[k] for seg in segments]) for k in ("c", "r", "s"))
    owner = np.repeat(np.arange(len(segments)), [len(seg["s"]) for seg in segments])
    distance, near = cKDTree(centres).query(samples["pos"], k=NEIGHBOURS)
    deepest = np.take_along_axis(near, np.argmin(distance - radii[near], axis=1)[:, None], 1)[:, 0]
    keep = (owner[deepest] == number) & (np.abs(along[deepest] - samples["s"]) < SAME_PLACE_MM)
    return {k: v[keep] for k, v in samples.items()}

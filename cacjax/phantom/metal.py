"""Metal in some of those who come to CT angiography: pacemaker leads, surgical clips, coronary stents, as point samples.

Bright and of a lesion's size, but no calcium: nothing of it is labelled.
"""

import numpy as np

from cacjax.phantom.curves import at, spline

SHARE = {"lead": 0.08, "clips": 0.10, "stent": 0.15}  # of the patients
LEAD_RADIUS_MM, LEAD_HU = 0.7, 5000.0  # the coil, half of it air
CLIP_MM, CLIP_HU = (4.0, 1.0, 1.0), 5000.0
MESH_MM, MESH_HU = 0.12, 3800.0  # struts cover a sixth of the wall
STEP_MM = 0.3
STENTED = ("LAD", "RCA", "LCX")


def place_metal(anatomy: dict, tree: list, g: np.random.Generator) -> dict:
    """Samples of a patient's metal: pos [n, 3] mm, dV [n] mm3, hu [n], and streaks [n], whether a sample makes them (stents do not)."""
    carriers = {seg["name"]: seg for seg in tree}
    drawn = {kind: g.random() < share for kind, share in SHARE.items()}
    parts = [_stent(carriers[str(g.choice(STENTED))], g)] if drawn["stent"] else []
    parts += [_lead(anatomy)] if drawn["lead"] else []
    parts += [_clip(carriers["LAD"], g) for _ in range(g.integers(3, 9))] if drawn["clips"] else []
    parts += [(np.zeros((0, 3)), np.zeros(0), 0.0, False)]
    each = lambda k: np.concatenate([np.full(len(part[1]), part[k]) for part in parts])  # noqa: E731
    return {"pos": np.concatenate([part[0] for part in parts]), "dV": np.concatenate([part[1] for part in parts])} | {
        "hu": each(2),
        "streaks": each(3).astype(bool),
    }


def _lead(anatomy):
    """From the superior caval vein through the right atrium to the apex of the right ventricle."""
    atrium, right = np.asarray(anatomy["ra"][:3], float), np.asarray(anatomy["rv"][:3], float)
    to_apex = 0.8 * float(anatomy["rv"][3]) * np.asarray(anatomy["frame"][0], float)
    line = spline(np.array([*np.asarray(anatomy["svc"], float), atrium, 0.5 * (atrium + right), right, right + to_apex]), 1.0)
    return *_tube(line, LEAD_RADIUS_MM), LEAD_HU, True


def _tube(line, radius_mm):
    """A full tube along a line [n, 3] as cubes of STEP_MM: (positions, volumes)."""
    u = np.arange(-radius_mm, radius_mm + STEP_MM / 2, STEP_MM)
    cube = np.stack(np.meshgrid(u, u, u, indexing="ij"), -1).reshape(-1, 3)
    ball = cube[np.linalg.norm(cube, axis=1) <= radius_mm]
    cells = np.unique(np.round((line[:, None] + ball).reshape(-1, 3) / STEP_MM).astype(int), axis=0)
    return cells * STEP_MM, np.full(len(cells), STEP_MM**3)


def _clip(lad, g):
    """A clip beside the left anterior descending artery, where a graft lies."""
    centre, n, b, radius = at(lad, np.float64(g.uniform(15, 0.8 * lad["s"][-1])))
    turn = g.uniform(0, 2 * np.pi)
    middle = centre + (radius + 2.0) * (np.cos(turn) * n + np.sin(turn) * b)
    axes = np.linalg.qr(g.normal(size=(3, 3)))[0]
    counts = [round(length / STEP_MM) for length in CLIP_MM]
    cells = [((np.arange(n) + 0.5) / n - 0.5) * length for n, length in zip(counts, CLIP_MM)]
    box = np.stack(np.meshgrid(*cells, indexing="ij"), -1).reshape(-1, 3)
    return middle + box @ axes, np.full(len(box), np.prod(CLIP_MM) / len(box)), CLIP_HU, True


def _stent(seg, g):
    """A mesh around the lumen of the proximal artery, 12 to 28 mm long."""
    start, length = g.uniform(6, 25), g.uniform(12, 28)
    s = np.arange(start, min(start + length, 0.8 * seg["s"][-1]), STEP_MM)
    centre, n, b, radius = at(seg, s)
    turn = np.arange(36) * (2 * np.pi / 36)
    around = np.cos(turn)[:, None] * n[:, None] + np.sin(turn)[:, None] * b[:, None]
    pos = centre[:, None] + radius[:, None, None] * around
    volume = np.broadcast_to(STEP_MM * MESH_MM * radius[:, None] * (2 * np.pi / 36), pos.shape[:2])
    return pos.reshape(-1, 3), volume.reshape(-1), MESH_HU, False

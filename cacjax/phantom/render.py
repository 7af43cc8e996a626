"""Drawing the large structures, tile by tile: the same compiled programs serve every size of scan.

Surfaces are smooth, so their distances are evaluated on a grid of about 2 mm and interpolated; the edges themselves are painted
at every voxel. A tile is SLICES slices by n x n grid cells; each of the m x m voxels of a cell is one call ("phase") of the painter.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cacjax.phantom import layers, motion
from cacjax.phantom.chest import chest_surfaces
from cacjax.phantom.mediastinum import heart_surfaces
from cacjax.phantom.surfaces import device, waves
from cacjax.phantom.thorax import vessel_waves

SLICES = 16
TILE_CELLS = 36
FIELD_STEP_MM = 2.2
HEART_BOX_MM = ((-82.0, 122.0), (-112.0, 72.0))  # x, y; outside of it only the chest is drawn
AROUND_HEART = ("cavity", "spine", "diaphragm", "diaphragm/w")  # fields of the chest that the heart's painter needs
SHARP_MM = 0.15  # edge blur where the tissue under a small structure is looked up
_REST = (np.eye(3, dtype=np.float32), np.zeros(3, np.float32), np.zeros(3, np.float32))


class Grid(NamedTuple):
    """Voxel centres of a scan: shape (z, y, x), spacing_mm (z, y, x), origin_mm (x, y, z) of voxel (0, 0, 0)."""

    shape: tuple
    spacing_mm: tuple
    origin_mm: tuple

    def axis(self, k):
        """Coordinates in mm along array axis k (0 = z)."""
        return self.origin_mm[2 - k] + self.spacing_mm[k] * np.arange(self.shape[k])


def render(anatomy: dict, grid: Grid, timing, blood: dict, psf_mm, couch: bool, within_mm: float = np.inf):
    """Draw everything but coronary arteries and calcium: (hu float32, heart bool, structures uint8 (see `layers`)), all [z, y, x].

    psf_mm: standard deviations (in plane, slice); blood: HU per compartment; couch: whether a couch lies under the patient; within_mm: how
    far from the lungs' cavity what is called heart goes at most: a surface may reach ribs, though nothing of it is drawn there.
    """
    m, n = max(1, int(FIELD_STEP_MM / max(grid.spacing_mm[1:]))), TILE_CELLS
    scene = _scene(anatomy, timing, blood, psf_mm, couch) | {"within": jnp.float32(within_mm)}
    drawn = np.empty(grid.shape, np.float32), np.zeros(grid.shape, bool), np.zeros(grid.shape, np.uint8)
    depth, height, width = grid.shape
    corners = [(k, i, j) for k in range(0, depth, SLICES) for i in range(0, height, n * m) for j in range(0, width, n * m)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda corner: _draw_tile(drawn, corner, grid, timing, scene, m, n), corners))
    return drawn


def _scene(anatomy, timing, blood, psf_mm, couch):
    """What all tiles share, on the device."""
    on_device = device(anatomy)
    on_device["dia"] = on_device["dia"] + jnp.float32(0.9 * timing.lift_mm)
    pose = (timing.rotation, timing.translation_mm, timing.centre_mm)
    return {
        "a": on_device,
        "blood": {k: jnp.float32(v) for k, v in blood.items()},
        "psf": tuple(jnp.float32(v) for v in psf_mm),
        "pose": tuple(jnp.asarray(v, jnp.float32) for v in pose),
        "couch": jnp.float32(couch),
    }


def _draw_tile(drawn, corner, grid, timing, scene, m, n):
    k, i, j = corner
    ks = np.minimum(np.arange(k, k + SLICES), grid.shape[0] - 1)
    z, y, x = (grid.axis(axis) for axis in range(3))
    node = np.arange(n + 1) * m
    ys, xs = y[0] + (i + node) * grid.spacing_mm[1], x[0] + (j + node) * grid.spacing_mm[2]
    p = [v.astype(np.float32) for v in np.broadcast_arrays(xs, ys[:, None], z[ks][:, None, None])]
    chest, fields = _tile_fields(p, ks, timing, scene, heart=_touches_heart(xs, ys), chest_first=j == 0)
    around = {name: chest[name] for name in AROUND_HEART}
    out = slice(k, min(k + SLICES, grid.shape[0]))
    for a in range(m):
        for b in range(m):
            rows, columns = _strided(i + a, n, m, grid.shape[1]), _strided(j + b, n, m, grid.shape[2])
            share = (np.float32(a / m), np.float32(b / m))
            tiles = (_paint_chest(chest, p, scene["a"], scene["psf"], scene["couch"], share),)
            if fields is not None:
                tiles = _paint_heart(*tiles, around, fields, scene["a"], scene["blood"], share, scene["within"])
            for whole, tile in zip(drawn, tiles):
                whole[out, rows, columns] = _fit(tile, whole[out, rows, columns].shape)


def _tile_fields(p, ks, timing, scene, *, heart, chest_first):
    """Fields of the chest and (or None) of the heart; two threads with different `chest_first` compile them side by side."""
    breath = motion.breathing_mm(timing.time_s[ks], timing.breath)
    work = {"chest": lambda: _chest_fields(scene["a"], p, _per_slice(breath), scene["psf"])}
    if heart:
        work["heart"] = lambda: _moving_fields(p, ks, timing, scene, breath)
    done = {name: work[name]() for name in sorted(work, reverse=not chest_first)}
    return done["chest"], done.get("heart")


def _per_slice(values):
    return np.asarray(values, np.float32)[:, None, None]


def _strided(start, n, m, end):
    return slice(start, min(start + n * m, end), m)


def _fit(tile, shape):
    return np.asarray(tile)[: shape[0], : shape[1], : shape[2]]


def _touches_heart(xs, ys):
    (x0, x1), (y0, y1) = HEART_BOX_MM
    return xs[-1] > x0 and xs[0] < x1 and ys[-1] > y0 and ys[0] < y1


def _moving_fields(p, ks, timing, scene, breath):
    """Heart surfaces at the instant of each slice; their edges are blurred by the motion within the exposure."""
    half = timing.window_s / 2
    at = [motion.contraction(timing.time_s[ks] + dt, timing.rr_s) for dt in (-half, 0.0, half)]
    shift = timing.shift_mm[ks] + np.array([0, 0, timing.lift_mm]) - breath[:, None] * np.array([0, 0, 1])
    q = [(p[i] - _per_slice(shift[:, i])).astype(np.float32) for i in range(3)]
    smear = (7.0 * (at[2] - at[0])) ** 2 / 12
    return _heart_fields(scene["a"], q, _per_slice(at[1]), _per_slice(smear), scene["pose"], scene["psf"])


@jax.jit
def _chest_fields(a, p, breath, psf):
    surfaces = chest_surfaces(p, a, breath)
    surfaces["end_plate"] = surfaces["body"][1]
    for name in ("fat", "lung", "bone"):
        surfaces["texture_" + name] = waves(p, *a["tx_" + name])
    return layers.sharpen(surfaces, psf, 0.0) | vessel_waves(p, a)


@jax.jit
def _heart_fields(a, p, shrink, smear, pose, psf):
    moving, still = heart_surfaces(p, a, shrink, pose)
    return layers.sharpen(moving, psf, smear) | layers.sharpen(still, psf, 0.0)


def _between(fields, share):
    """Bilinear values of nodes [.., n+1, n+1] at the fraction share = (y, x) of each of the n x n cells."""
    fy, fx = share

    def mix(v):
        upper, lower = v[..., :-1, :], v[..., 1:, :]
        rows = upper + fy * (lower - upper)
        return rows[..., :-1] + fx * (rows[..., 1:] - rows[..., :-1])

    return jax.tree.map(mix, fields)


@jax.jit
def _paint_chest(fields, p, a, psf, couch, share):
    f, q = _between((fields, tuple(p)), share)
    return layers.paint_chest(f, q, a, psf, couch)


@jax.jit
def _paint_heart(hu, chest, fields, a, blood, share, within):
    f = _between(fields, share) | _between(chest, share)
    f["mediastinum"] = jnp.maximum(f["mediastinum"], jnp.maximum(f["cavity"] + 0.2, 0.5 - f["spine"]))
    here = f["cavity"] < within
    return layers.paint_heart(hu, f, a, blood), (f["sac"] < 0) & here, layers.structures(f) * here


def tissue_at(anatomy: dict, points, blood: dict):
    """What lies at the points [n, 3] (mm, heart at rest) before arteries and calcium are drawn: (HU [n], beat displacement [n, 3]).

    The displacement is that of full contraction. Outside the mediastinum everything is taken for lung.
    """
    n = TILE_CELLS
    a, values = device(anatomy), {k: jnp.float32(v) for k, v in blood.items()}
    psf = (jnp.float32(SHARP_MM), jnp.float32(SHARP_MM))
    block, hu, moves = SLICES * n * n, [], []
    for start in range(0, len(points), block):
        piece = points[start : start + block]
        padded = np.resize(piece, (block, 3)).reshape(SLICES, n, n, 3).astype(np.float32)
        p = [np.pad(padded[..., i], ((0, 0), (0, 1), (0, 1)), mode="edge") for i in range(3)]
        hu.append(np.asarray(_tissue(a, p, values, psf))[: len(piece)])
        moves.append(np.asarray(_displacement(a, p))[: len(piece)])
    return np.concatenate(hu), np.concatenate(moves)


def _tissue(a, p, blood, psf):
    still = np.zeros((SLICES, 1, 1), np.float32)
    fields = _heart_fields(a, p, still, still, _REST, psf)
    far = np.full(p[0].shape, 50.0, np.float32)
    chest = dict(zip(AROUND_HEART, (-far, far, far, far)))
    lung = np.full((SLICES, p[0].shape[1] - 1, p[0].shape[2] - 1), -860.0, np.float32)
    hu, *_ = _paint_heart(lung, chest, fields, a, blood, (np.float32(0), np.float32(0)), np.float32(np.inf))
    return hu.reshape(-1)


@jax.jit
def _displacement(a, p):
    u = motion.beat_displacement(tuple(v[:, :-1, :-1] for v in p), a)
    return jnp.stack(u, -1).reshape(-1, 3)

"""Implicit surfaces of the heart region in one dict: chambers, vessels, airways, oesophagus, fat, as `render` paints them."""

import jax.numpy as jnp
import numpy as np

from cacjax.phantom.heart import great_vessels, heart_sdfs, paracardiac_fat_mm, pericardium_weight, sac_sdf
from cacjax.phantom.motion import beat_displacement, to_reference
from cacjax.phantom.surfaces import chains, ellipsoid, offset, smooth_union, union, waves

_IDENTITY = np.eye(3, dtype=np.float32)
# Branches of the arch: (start, end, radius); arteries start at the arch of this patient, veins at fixed places.
_ARCH_ARTERIES = (((2, 8, 6), (10, 10, 110), 4.2), ((10, 18, 4), (26, 22, 110), 4.8), ((-8, 2, 4), (-20, 8, 110), 6.5))
_ARCH_VEINS = (((-26, -20, 98), (-34, -6, 190), 6.8), ((-24, -24, 102), (34, -20, 150), 6.7))
_AIRWAYS = ((0, 1, 8.0, 6.5), (1, 2, 6.5, 5.0), (0, 3, 7.5, 6.0), (3, 4, 6.0, 5.0))  # rows of anatomy["bron"] and radii


def heart_surfaces(p, a, shrink, pose):
    """Surfaces of the heart region at scanner points `p` (full arrays, mm) for contraction `shrink` (broadcasts).

    Returns (moving, still): dicts name -> surface of what beats and what does not; plain fields "pericardium" (0-1), "fat" and
    "muscle" (unit textures) are in `moving` as arrays.
    """
    q = to_reference(p, pose)
    moved = q
    for _ in range(2):  # the displacement is that of a point at rest: one step leaves the right groove 7 mm from its artery
        u = beat_displacement(q, a)
        q = tuple(moved[i] - shrink * u[i] for i in range(3))
    chambers, vessels = heart_sdfs(q, a), great_vessels(q, a)
    moving = chambers | {k: v for k, v in vessels.items() if k != "root"}
    moving["sac"] = sac_sdf(q, a, chambers, vessels["root"])
    moving |= _details(q, a, moving)
    still = _still(p, a)
    moving["mediastinum"] = _fat_around(p, q, a, moving, still)
    moving["pericardium"] = pericardium_weight(q, a, chambers)
    moving["fat"], moving["muscle"] = waves(q, *a["tx_fat"]), waves(q, *a["tx_myo"])
    return moving, still


def _details(q, a, s):
    """Base plane, papillary muscles, and the walls and lumina of the two trunks where they leave the ventricles."""
    axis, to_right, third, mitral, apex = (a["frame"][i] for i in range(5))
    base = sum((q[i] - mitral[i]) * axis[i] for i in range(3))
    length, radius = jnp.sqrt(jnp.sum((apex - mitral) ** 2)), a["lvc"][4]
    middle = mitral + 0.48 * length * axis - to_right * radius * 0.45
    muscles = [ellipsoid(q, middle + sign * third * radius * 0.55, a["Rlv"], (13.0, 4.5, 5.0)) for sign in (-1.0, 1.0)]
    not_rv, pa, ao = -s["rv"][0] - 3.2, s["pa"], s["ao"]
    return {
        "base": (base, jnp.full_like(base, 0.25)),
        "papillary": union(muscles),
        "pa": (jnp.maximum(pa[0], not_rv), pa[1]),
        "pa_wall": (jnp.maximum(pa[0] - 1.0, not_rv), pa[1]),
        "ao_wall": (jnp.maximum(ao[0] - 1.3, -s["lvc"][0]), ao[1]),
    }


def _still(p, a):
    """Airways, oesophagus and the branches of the arch, which do not beat."""
    b, arch = a["bron"], a["ao"][5]
    oesophagus = jnp.sqrt((p[0] - a["eso"][0]) ** 2 + ((p[1] - a["eso"][1]) * 1.35) ** 2 + 1e-3) - 9.0
    tubes = chains(p, {
        "trachea": [(a["trachea"], (9.0, 9.0, 9.0))],
        "bronchi": [(b[np.array([i, j])], radii) for i, j, *radii in _AIRWAYS],
        "arch_arteries": [(jnp.stack([arch + np.array(s), 0.6 * arch + np.array(e)]), (r, 0.9 * r)) for s, e, r in _ARCH_ARTERIES],
        "arch_veins": [(np.array([s, e]), (r, 0.9 * r)) for s, e, r in _ARCH_VEINS],
    })  # fmt: skip
    return tubes | {"oesophagus": (oesophagus, jnp.zeros_like(oesophagus))}


def _fat_around(p, q, a, moving, still):
    """The mediastinum: everything in it joined smoothly with its fat, the thymic fat in front and the upper mediastinum."""
    front = ellipsoid(p, (4.0, 8.0 - a["cav"][1], 35.0), _IDENTITY, (19.0, 26.0, 75.0))
    top = ellipsoid(p, (0.0, 0.0, 150.0), _IDENTITY, (33.0, 34.0, 75.0))
    margins = {"ao": 4.0, "pa_wall": 3.0, "rlpa": 2.0, "svc": 4.0, "pv": 0.0}
    items = [offset(moving["sac"], paracardiac_fat_mm(q, a))] + [offset(moving[k], mm) for k, mm in margins.items()]
    items += [offset(still[k], mm) for k, mm in {"oesophagus": 3.0, "trachea": 2.5, "bronchi": 1.5}.items()]
    return smooth_union([*items, front, top], 5.0)

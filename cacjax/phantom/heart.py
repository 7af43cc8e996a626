"""Implicit surfaces of the heart, the great vessels and the fat around them, for points `p` in mm and an anatomy dict `a`."""

import jax.numpy as jnp
import numpy as np

from cacjax.phantom.landmarks import PULMONARY_VEIN_RADII
from cacjax.phantom.surfaces import chains, ellipsoid, offset, smooth_union, smoothstep, union, wave_basis

# Rows of anatomy["wave_weights"]: which mix of the shared plane waves (unit root mean square) shapes which surface.
WAVE_ROWS = ("lv", "lvc", "rv", "ra", "la", "epicardial", "paracardiac")
# Root mean square of the waves on each chamber wall, mm: peaks of 2-3 mm make real chambers, which are no ellipsoids.
WALL_WAVE_MM = {"lv": 1.0, "lvc": 0.9, "rv": 1.5, "ra": 1.6, "la": 1.6}
SLEEVE_MM = 4.5
_IDENTITY = np.eye(3, dtype=np.float32)


def wave_fields(p, a, rows):
    """Some of the patient's smooth random fields (names in WAVE_ROWS), unit root mean square, wavelengths 35-90 mm."""
    basis = wave_basis(p, a["wave_vectors"], a["wave_phases"])
    weights = [a["wave_weights"][WAVE_ROWS.index(row)] for row in rows]
    return [sum(w[i] * basis[i] for i in range(len(basis))) for w in weights]


def heart_sdfs(p, a):
    """Outer surfaces of the chambers and the left ventricular cavity: dict lv, lvc, rv, ra, la of surfaces."""
    rotation = a["Rlv"]
    tubes = chains(p, {name: [(a[name], a[name + "_r"])] for name in ("laa", "raa", "rvot")})
    smooth = {
        "lv": ellipsoid(p, a["lv"][:3], rotation, a["lv"][3:]),
        "lvc": ellipsoid(p, a["lvc"][:3], rotation, a["lvc"][3:]),
        "rv": smooth_union([ellipsoid(p, a["rv"][:3], rotation, a["rv"][3:]), tubes["rvot"]], 4.0),
        "ra": smooth_union([ellipsoid(p, a["ra"][:3], _IDENTITY, a["ra"][3:]), tubes["raa"]], 4.0),
        "la": smooth_union([ellipsoid(p, a["la"][:3], _IDENTITY, a["la"][3:]), tubes["laa"]], 3.0),
    }
    waves = wave_fields(p, a, smooth)
    return {name: offset(s, WALL_WAVE_MM[name] * wave) for (name, s), wave in zip(smooth.items(), waves)}


def atrial_body(p, a):
    """The left atrium without its appendage: the circumflex artery runs in the groove below it, under the appendage."""
    body = ellipsoid(p, a["la"][:3], _IDENTITY, a["la"][3:])
    return offset(body, WALL_WAVE_MM["la"] * wave_fields(p, a, ["la"])[0])


def great_vessels(p, a):
    """Vessel lumina: dict ascending (aorta and root), ao, pa, root (both trunks inside the sac), rlpa, svc, ivc, pv, cs of surfaces."""
    descending = list(zip(a["ao_seg"], a["ao_segr"]))
    tubes = chains(p, {
        "ascending": [(a["ao"][:4], a["ao_r"][:4])],
        "ao": descending,
        "trunk": [(a["pa"][:2], a["pa_r"][:2])],
        "pa": [(a["pa"], a["pa_r"])],
        "rlpa": [(a["rpa"], a["rpa_r"]), (a["lpa"], a["lpa_r"])],
        "svc": [(a["svc"], a["svc_r"])],
        "ivc": [(a["ivc"], a["ivc_r"])],
        "pv": [(vein, PULMONARY_VEIN_RADII) for vein in a["pv"]],
        "cs": [(a["cs"], (3.5, 4.0, 5.0))],
    })  # fmt: skip
    tubes["ao"] = union([tubes["ascending"], tubes["ao"]])
    tubes["root"] = union([tubes["ascending"], tubes.pop("trunk")])
    return tubes


def epicardial_fat_mm(p, a):
    """Thickness of the fat on the free walls: almost none in places, twice the patient's mean in others."""
    return a["efat"] * jnp.clip(0.85 + 0.75 * wave_fields(p, a, ["epicardial"])[0], 0.15, 2.2)


def sac_sdf(p, a, chambers, root):
    """The pericardial sac: chambers and roots joined smoothly (so the grooves fill with fat), plus the local thickness of the fat.

    chambers: heart_sdfs at p; root: great_vessels' "root". Arteries in anatomy["corsac"] get a sleeve of fat, else they cross lung.
    """
    items = [chambers[name] for name in ("lv", "rv", "ra", "la")] + [root]
    sac = offset(smooth_union(items, a["sac_k"]), epicardial_fat_mm(p, a))
    if "corsac" not in a:
        return sac
    sleeves = [(path, np.full(path.shape[0], SLEEVE_MM)) for path in a["corsac"]]
    return smooth_union([sac, chains(p, {"sleeves": sleeves})["sleeves"]], 2.5)


def paracardiac_fat_mm(p, a):
    """Thickness of the fat outside the sac: thick in front and towards the diaphragm, none where the heart lies on the lung."""
    apex_mm = p[2] - a["frame"][4, 2]
    front = smoothstep(-5.0, 45.0, a["frame"][3, 1] - 18.0 - p[1])
    low = 1.0 - smoothstep(0.0, 50.0, apex_mm)
    thickness = a["parafat"] * (0.15 + 1.1 * front + 0.7 * low) * (0.6 + wave_fields(p, a, ["paracardiac"])[0])
    return jnp.clip(thickness, 0.0, 14.0)


def pericardium_weight(p, a, chambers):
    """How visible the pericardium is, 0-1: only where fat lies on both of its sides."""
    inside = chambers["lv"][0]
    for name in ("rv", "ra", "la"):
        inside = jnp.minimum(inside, chambers[name][0])
    return smoothstep(1.2, 3.0, inside) * smoothstep(0.8, 2.5, paracardiac_fat_mm(p, a))

"""Painting: surfaces become Hounsfield units, one layer over the other, each edge drawn with the blur of the scanner.

`f` is a dict of fields on one grid: "name" holds a signed distance in mm, "name/w" its edge sharpness (1/mm) where that varies;
plain fields (textures, weights) have no sharpness. `psf_mm` = standard deviations (in plane, along z). `a` is the anatomy on the device.
"""

import jax.numpy as jnp

from cacjax.phantom.surfaces import blend, normal_cdf, smoothstep
from cacjax.phantom.thorax import lung_vessels

AIR_HU = -1000.0
STREAMS = (1.0, 2.8)  # of a texture of unit SD: where threads of dense blood begin, and where nothing dilutes them
# Classes of a segmentation by surface, as `paint_heart` puts one over the other; thin walls count to their chamber.
STRUCTURES = {"sac": 7, "ra": 4, "la": 3, "rv": 2, "lv": 5, "lvc": 1, "ascending": 6}


def sharpen(surfaces, psf_mm, extra_variance):
    """Surfaces -> fields: distances, and sharpness for those whose normal is not in the slice plane everywhere."""
    fields = {}
    for name, surface in surfaces.items():
        if not isinstance(surface, tuple):
            fields[name] = surface
            continue
        distance, nz2 = surface
        fields[name] = distance
        variance = psf_mm[0] ** 2 * (1 - nz2) + psf_mm[1] ** 2 * nz2 + extra_variance
        fields[name + "/w"] = jnp.broadcast_to(1.0 / jnp.sqrt(variance), distance.shape)
    return fields


def inside(f, name, grow_mm=0.0):
    """Coverage of the surface grown by `grow_mm`, 0-1."""
    return normal_cdf((grow_mm - f[name]) * f[name + "/w"])


def layer(f, name, low_mm, high_mm):
    """Coverage of `low_mm < distance < high_mm`."""
    return inside(f, name, high_mm) - inside(f, name, low_mm)


def paint_chest(f, p, a, psf_mm, couch):
    """HU of the chest without the heart region; p = full coordinates of the same grid, couch = 1 where there is one, else 0."""
    fat, muscle = a["hu_tis"][0], a["hu_tis"][1]
    hu = AIR_HU + jnp.zeros_like(f["skin"])
    hu = blend(hu, -930.0, couch * inside(f, "couch"))
    hu = blend(hu, -300.0, couch * layer(f, "couch", -1.8, 0.0))
    body_fat = fat + 4.0 * f["texture_fat"]
    hu = blend(hu, body_fat, inside(f, "skin"))
    hu = blend(hu, 20.0, layer(f, "skin", -2.0, 0.0))
    gland = smoothstep(6.0, 14.0, -f["breast"]) * smoothstep(0.2, 0.6, f["texture_lung"])
    hu = blend(hu, 35.0, 0.8 * gland)
    wall = inside(f, "muscle")
    hu = blend(hu, muscle - 70.0 * smoothstep(1.3, 2.0, f["texture_fat"]), wall)
    seam = f["muscle"] + a["musc"] * 0.62 + f["texture_lung"]
    half_mm = 0.7 + 1.2 * smoothstep(20.0, 70.0, jnp.abs(p[0]))
    seam = normal_cdf((half_mm - seam) / psf_mm[0]) - normal_cdf((-half_mm - seam) / psf_mm[0])
    hu = blend(hu, fat, 0.8 * wall * smoothstep(-0.6, 0.8, f["texture_lung"]) * seam)
    hu = blend(hu, fat, inside(f, "cavity", 0.6))
    hu = _paint_shoulder(hu, f, a, body_fat)
    hu = _paint_lung(hu, f, p, a, psf_mm)
    hu = blend(hu, _abdomen(f, p, a, psf_mm), inside(f, "diaphragm") * inside(f, "cavity"))
    return _paint_bones(hu, f, a)


def _paint_shoulder(hu, f, a, body_fat):
    trabecular, cortex = a["hu_bone"][0] + 22.0 * f["texture_bone"], a["hu_bone"][1]
    hu = blend(hu, body_fat, 0.95 * inside(f, "axilla"))
    hu = blend(hu, a["hu_tis"][0], 0.6 * inside(f, "scapula", 4.0))
    hu = blend(hu, trabecular, inside(f, "scapula"))
    return blend(hu, 0.9 * cortex, layer(f, "scapula", -1.3, 0.0))


def _paint_lung(hu, f, p, a, psf_mm):
    lung = a["hu_tis"][4] + 0.28 * p[1] + 16.0 * f["texture_lung"]
    branches, twigs = lung_vessels(p, f)
    sharpness = 1.0 / jnp.sqrt(psf_mm[0] ** 2 + 0.25 * psf_mm[1] ** 2)
    lung = blend(lung, 25.0, normal_cdf(-branches * sharpness))
    lung = blend(lung, 5.0, 0.9 * normal_cdf(-twigs * sharpness) * smoothstep(3.0, 12.0, -f["cavity"]))
    share = inside(f, "cavity", -1.2) * (1 - inside(f, "column", 4.0)) * (1.0 - inside(f, "diaphragm"))
    return blend(hu, lung, share)


def _abdomen(f, p, a, psf_mm):
    fat, liver = a["hu_tis"][0], a["hu_tis"][5]
    gas = normal_cdf((-34.0 - p[1]) / psf_mm[0])
    hu = blend(fat + jnp.zeros_like(f["liver"]), liver + 3.0 * f["texture_fat"], inside(f, "liver"))
    hu = blend(hu, 48.0, inside(f, "spleen"))
    hu = blend(hu, 20.0 - 960.0 * gas, inside(f, "stomach"))
    return blend(hu, 50.0, layer(f, "diaphragm", -2.5, 0.0))


def _paint_bones(hu, f, a):
    trabecular, cortex = a["hu_bone"][0] + 22.0 * f["texture_bone"], a["hu_bone"][1]
    spots = a["cart_ca"] * 260.0 * smoothstep(0.6, 1.4, f["texture_bone"]) * smoothstep(0.8, 2.4, -f["rib"])
    cartilage = f["cartilage"]
    rib = cartilage * (a["hu_bone"][2] + spots) + (1 - cartilage) * (0.9 * trabecular + 20.0)
    hu = blend(hu, rib, inside(f, "rib"))
    hu = blend(hu, cortex, (1 - cartilage) * layer(f, "rib", -1.2, 0.0))
    hu = blend(hu, 0.85 * trabecular, inside(f, "sternum"))
    hu = blend(hu, 0.5 * cortex, layer(f, "sternum", -1.0, 0.0))
    hu = blend(hu, trabecular, inside(f, "arch"))
    hu = blend(hu, cortex, layer(f, "arch", -1.4, 0.0))
    hu = blend(hu, 88.0, inside(f, "disc"))
    hu = blend(hu, trabecular, inside(f, "body"))
    hu = blend(hu, cortex * (0.8 - 0.35 * f["end_plate"]), layer(f, "body", -1.0, 0.1))
    hu = blend(hu, 22.0, inside(f, "canal"))
    return blend(hu, 36.0, inside(f, "canal", -3.2))


def paint_heart(hu, f, a, blood):
    """The heart region over the chest `hu`. f holds the heart's fields and "cavity", "spine", "diaphragm" of the chest.

    blood: HU of the compartments, see `contrast`.
    """
    fat, muscle = a["hu_tis"][0] + 5.0 * f["fat"], a["hu_tis"][1]
    myocardium = blood["myo"] + 3.0 * f["muscle"]
    off_spine = smoothstep(-0.4, 1.0, f["spine"])
    below = inside(f, "diaphragm")
    hu = blend(hu, fat, inside(f, "mediastinum") * (1 - below * smoothstep(1.0, 7.0, f["sac"])))

    def put(hu, value, name, grow_mm=0.0):
        return blend(hu, value, inside(f, name, grow_mm) * off_spine)

    hu = _paint_airways(hu, f, a, put)
    for value, name in (("pulm", "rlpa"), ("pvn", "pv"), ("svc", "svc"), ("ven", "ivc"), ("art", "arch_arteries"), ("svc", "arch_veins")):
        hu = put(hu, blood[value], name)
    hu = blend(hu, fat, inside(f, "sac") * (f["cavity"] < 1.0))
    hu = blend(hu, 15.0, layer(f, "sac", -0.45, 0.45) * (f["cavity"] < 0.0) * f["pericardium"])
    hu = put(hu, 0.8 * blood["ven"] + 8.0, "cs")
    streams = blood["streams"] * smoothstep(*STREAMS, 0.7 * (f["muscle"] + f["fat"]))
    mixing = {"ra": streams, "la": 0.0, "rv": blood["mix"] * f["muscle"] + 0.3 * streams}
    for name, wall_mm, value in (("ra", 2.0, "ra"), ("la", 1.8, "la"), ("rv", 3.2, "right")):
        hu = put(hu, myocardium, name)
        hu = put(hu, blood[value] + mixing[name], name, -wall_mm)
    hu = blend(hu, myocardium, inside(f, "lv") * smoothstep(-1.0, 2.0, f["base"]))
    hu = put(hu, blood["lv"], "lvc")
    hu = put(hu, myocardium, "papillary")
    for name, value in (("pa", "pulm"), ("ao", "art")):
        hu = put(hu, 0.9 * muscle, name + "_wall")
        hu = put(hu, blood[value], name)
    return blend(hu, myocardium, 0.55 * layer(f, "base", -0.9, 0.9) * inside(f, "lvc", -2.0))


def structures(f):
    """The class of STRUCTURES that a voxel belongs to, uint8; 0 where none."""
    label = jnp.zeros(f["sac"].shape, jnp.uint8)
    for name, number in STRUCTURES.items():
        inside_it = f[name] < 0
        label = jnp.where(inside_it & (f["base"] > 0.5) if name == "lv" else inside_it, number, label)
    return label.astype(jnp.uint8)


def _paint_airways(hu, f, a, put):
    hu = put(hu, 35.0, "oesophagus")
    hu = put(hu, -700.0, "oesophagus", 3.2 * a["eso"][2] - 9.0)
    hu = put(hu, 40.0, "trachea", 1.6)
    hu = put(hu, 30.0, "bronchi", 1.2)
    hu = put(hu, -995.0, "trachea")
    return put(hu, -990.0, "bronchi")

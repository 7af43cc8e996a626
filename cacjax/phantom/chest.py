"""Implicit surfaces of everything around the heart: skin, muscle, lungs, diaphragm, abdomen, spine, ribs, sternum, couch.

Points `p = (x, y, z)` are full arrays in mm; `a` is the anatomy dict on the device. Distances in mm, negative inside.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cacjax.phantom.surfaces import capsule, ellipsoid, smooth_union, smoothstep, union
from cacjax.phantom.thorax import breast_sdf, diaphragm_mm

_IDENTITY = np.eye(3, dtype=np.float32)
_SCAPULA_TURN = np.array([[np.cos(0.55), np.sin(0.55), 0], [-np.sin(0.55), np.cos(0.55), 0], [0, 0, 1]], np.float32)
COUCH_GAP_MM, COUCH_RADIUS_MM, COUCH_THICK_MM, COUCH_HALF_WIDTH_MM = 3.0, 420.0, 26.0, 205.0


def chest_surfaces(p, a, breath_mm):
    """All surfaces of the chest as a dict name -> (distance, nz2); breath_mm lifts the diaphragm (broadcasts).

    Besides surfaces: "cartilage" (share of rib that is cartilage, 0-1) as a plain field.
    """
    out = _envelopes(p, a) | _abdomen(p, a, breath_mm) | _spine(p, a)
    out |= _ribs(p, a, out["cavity"][0]) | _front_and_shoulder(p, a)
    return out


def _cylinder_normal(distance):
    return distance, jnp.zeros_like(distance)


def _superellipse(x, y, half_width, half_depth, centre_y, exponent):
    """First-order distance to |x/w|^n + |y/d|^n = 1, squarer at the back; x >= 0."""
    n = exponent + 0.75 * smoothstep(-30.0, 60.0, y)
    u, v = x / half_width, jnp.abs(y - centre_y) / half_depth
    un, vn = jnp.power(u + 1e-6, n - 1), jnp.power(v + 1e-6, n - 1)
    q = jnp.power(un * u + vn * v + 1e-9, 1.0 / n)
    k = jnp.power(q, 1 - n)
    slope = jnp.sqrt((un / half_width * k) ** 2 + (vn / half_depth * k) ** 2 + 1e-9)
    return (q - 1.0) / slope


def _envelopes(p, a):
    """Pleural cavity, muscle wall, breasts, skin, couch."""
    x, y, z = p
    side = jnp.abs(x)
    width, depth, exponent = a["cav"]
    narrow_x, narrow_y = 1 - 0.40 * smoothstep(20.0, 200.0, z), 1 - 0.32 * smoothstep(50.0, 200.0, z)
    cavity = _superellipse(side, y, width * narrow_x, depth * narrow_y, 2.0, exponent)
    outer = width + a["wall"] + a["musc"] * 1.1 - 6.0 * smoothstep(40.0, 200.0, z) + 14 * smoothstep(55.0, 140.0, z)
    muscle = _superellipse(side, y, outer, depth + a["wall"] + a["musc"] + 1.0, 4.0, exponent + 0.1)
    fat = a["fat"] * (0.75 + 0.35 * smoothstep(40.0, 130.0, side) + 0.2 * smoothstep(-40.0, 60.0, y))
    breast = breast_sdf(p, a)
    skin = smooth_union([_cylinder_normal(muscle - fat), breast], 6.0)[0]
    return {
        "cavity": _cylinder_normal(cavity),
        "muscle": _cylinder_normal(muscle),
        "skin": _cylinder_normal(skin),
        "breast": _cylinder_normal(breast[0]),
        "couch": _cylinder_normal(_couch(side, y, a)),
    }


def _couch(side, y, a):
    """A shallow trough of foam in a thin shell under the patient's back."""
    back = a["cav"][1] + a["wall"] + a["musc"] + 5.0 + 0.95 * a["fat"]
    top = back + COUCH_GAP_MM - side * side / (2 * COUCH_RADIUS_MM)
    thick = COUCH_THICK_MM * jnp.sqrt(jnp.clip(1 - (side / COUCH_HALF_WIDTH_MM) ** 2, 0.02, 1.0))
    inside = jnp.maximum(top - y, y - top - thick)
    return jnp.maximum(inside, side - COUCH_HALF_WIDTH_MM)


def _abdomen(p, a, breath_mm):
    """The diaphragm with liver, spleen and stomach below."""
    x, y, z = p[0], p[1], p[2] + breath_mm
    dome = (z - diaphragm_mm(x, y, a)) * 0.8
    slant = jnp.full_like(dome, 0.64)
    liver = jnp.maximum(dome + 2.0, (x - 30.0 - 0.35 * (y + 80)) * 0.9)
    spleen_at = (92.0, a["yv"] - 26.0, a["dia"][1] - 32.0)
    stomach_at = (58.0, -28.0, a["dia"][1] - 34.0)
    return {
        "diaphragm": (dome, slant),
        "liver": (liver, slant),
        "spleen": ellipsoid((x, y, z), spleen_at, _IDENTITY, (26.0, 42.0, 34.0)),
        "stomach": ellipsoid((x, y, z), stomach_at, _IDENTITY, (36.0, 36.0, 30.0)),
    }


def _spine(p, a):
    """A stack of vertebrae: body, disc, canal, arch with transverse and spinous processes; periodic along z."""
    x, y, z = p
    rx, ry, period, phase, disc = (a["vert"][i] for i in range(5))
    yv = a["yv"] + 10.0 * smoothstep(60.0, 260.0, jnp.abs(z + 20.0))
    level = z + phase - jnp.floor((z + phase) / period) * period - 0.5 * period
    flare = 1.0 + 0.10 * (level / (0.5 * period)) ** 2
    u, v = x / (rx * flare), (y - yv) / (ry * flare)
    q = jnp.sqrt(u * u + v * v + 1e-6)
    column = (q - 1.0) * q / jnp.sqrt((u / (rx * flare)) ** 2 + (v / (ry * flare)) ** 2 + 1e-9)
    canal = jnp.sqrt(x * x + ((y - yv - ry - 6.5) * 1.15) ** 2 + 1e-4) - 8.0
    side = jnp.maximum(column, -canal)
    plate = jnp.abs(level) - 0.5 * (period - disc)
    body = (jnp.maximum(side, plate), jnp.where(plate > side, 1.0, 0.0))
    arch = _vertebral_arch((x, y, level), canal, yv, ry, a)
    return {
        "column": _cylinder_normal(column),
        "body": body,
        "disc": (jnp.maximum(side + 0.8, -plate), 1.0 - body[1]),
        "canal": _cylinder_normal(canal),
        "arch": arch,
        "spine": _cylinder_normal(jnp.minimum(column, arch[0])),
    }


def _vertebral_arch(p, canal, yv, ry, a):
    x, y, level = p
    lamina = jnp.maximum(jnp.abs(canal - 3.2) - 2.6, (jnp.abs(level + 3.0) - 10.5) * 0.9)
    lamina = _cylinder_normal(jnp.maximum(lamina, -(y - yv - 4.0)))
    root = a["yv"] + ry
    transverse = capsule((jnp.abs(x), y, level), (10.0, root + 6.0, 0.0), (33.0, root + 17.0, 1.0), 5.4, 4.6)
    spinous = capsule(p, (0.0, root + 17.0, -1.0), (0.0, root + 44.0, -9.0), 3.2, 3.8)
    return union([lamina, transverse, spinous])


def _ribs(p, a, cavity):
    """All ribs as one periodic surface: nearly level at the spine, steep at the side; its front part is cartilage."""
    x, y, z = p
    angle = jnp.arctan2(jnp.abs(x), -(y - 2.0) + 1e-6)  # 0 in front, pi at the back
    period, phase, drop, half_depth, half_height = (a["rib"][i] for i in range(5))
    t = jnp.clip((angle - 0.55) / 2.2, 0.0, 1.0)
    tilt = x * (0.12 * phase / period - 0.06)  # nobody lies quite straight, so the two sides are cut at different levels
    height = z - drop * t * (1.6 - 0.6 * t) + 40.0 * jnp.clip(0.55 - angle, 0.0, 1.0) + phase + tilt
    height = height - jnp.floor(height / period) * period - 0.5 * period
    u, v = (cavity - a["wall"] * 0.52) / half_depth, height / half_height
    q = jnp.sqrt(u * u + v * v + 1e-6)
    slope = jnp.sqrt((u / half_depth) ** 2 + (v / half_height) ** 2 + 1e-9) / q
    distance = jnp.where(angle > 2.93, 10.0, (q - 1.0) / slope)
    return {"rib": (distance, (v / half_height) ** 2 / (q * slope) ** 2), "cartilage": jax.nn.sigmoid((0.72 - angle) / 0.03)}


def _front_and_shoulder(p, a):
    """Sternum, fat of the axilla, shoulder blade."""
    x, y, z = p
    side = (jnp.abs(x), y, z)
    narrow = 1 - 0.32 * smoothstep(50.0, 200.0, z)
    half_width, middle = 15.0 + 8.0 * smoothstep(45.0, 75.0, z), 2.0 - a["cav"][1] * narrow - a["wall"] * 0.45
    u, v = x / half_width, (y - middle - 0.004 * x * x) / 5.5
    q = jnp.sqrt(u * u + v * v + 1e-6)
    sternum = (q - 1.0) * q / jnp.sqrt((u / half_width) ** 2 + (v / 5.5) ** 2 + 1e-9)
    sternum = jnp.maximum(sternum, jnp.maximum(-45.0 - z, z - 105.0) * 0.9)
    axilla_at = (a["cav"][0] * 0.86 + a["wall"] + 6.0, -14.0, 125.0)
    scapula_at = (a["cav"][0] * 0.92, a["cav"][1] * 0.72 + 12.0, 108.0)
    return {
        "sternum": _cylinder_normal(sternum),
        "axilla": ellipsoid(side, axilla_at, _IDENTITY, (17.0, 34.0, 62.0)),
        "scapula": ellipsoid(side, scapula_at, _SCAPULA_TURN, (5.0, 40.0, 62.0)),
    }

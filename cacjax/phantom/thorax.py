"""Implicit surfaces of the chest outside the heart that differ between the two sides: breasts and lung vessels."""

import jax.numpy as jnp
import numpy as np

from cacjax.phantom.surfaces import ellipsoid, smoothstep, union, wave_basis

_IDENTITY = np.eye(3, dtype=np.float32)
_HILUM_MM = (34.0, 10.0, 30.0)
_TRUNK_WAVE_MM, _TWIG_WAVE_MM = 46.0, 17.0


def breast_sdf(p, a):
    """Both breasts: rows of anatomy["breasts"] [2, 6] are centre and semi-axes in mm; men have none (distance > 500)."""
    sides = [ellipsoid(p, a["breasts"][i, :3], _IDENTITY, a["breasts"][i, 3:]) for i in range(2)]
    distance, nz2 = union(sides)
    return jnp.where(a["breast"][0] > 1.0, distance, 999.0), nz2


def vessel_waves(p, a):
    """Sums of waves whose common zeros are lung vessels: dict of plain fields, smooth enough to be interpolated.

    Around the hilum the coordinates are compressed radially, so that the zero lines run outwards; the doubled angles of the same
    waves give a second, finer generation for nothing.
    """
    squeeze, (x, y, z), side, _ = _hilum(p)
    fan = (x * squeeze + 0.2 * x + 90.0 * side, y * squeeze + 0.2 * y, z * squeeze + 0.2 * z)
    out = {}
    for name in ("v1", "v2", "s1", "s2"):
        vectors, phases = a["tx_" + name]
        basis = wave_basis(fan if name[0] == "v" else p, vectors, phases)
        scale = np.float32(np.sqrt(2.0 / len(basis)))
        out["wave_" + name] = scale * sum(basis)
        if name[0] == "v":
            out["wave_twice_" + name] = scale * sum(2.0 * c * c - 1.0 for c in basis)
    return out


def _hilum(p):
    """Compression, offset from the nearer hilum, side, and distance from that hilum in mm."""
    side = jnp.where(p[0] < 0, -1.0, 1.0)
    x, y, z = p[0] - side * _HILUM_MM[0], p[1] - _HILUM_MM[1], p[2] - _HILUM_MM[2]
    hilum_mm = jnp.sqrt(x * x + y * y + z * z + 1.0)
    return 42.0 / (hilum_mm + 12.0), (x, y, z), side, hilum_mm


def diaphragm_mm(x, y, a):
    """Height of the diaphragm: a dome on each side, and the central tendon on which the heart rests."""
    right, left, middle = a["dia"][0], a["dia"][1], a["dia"][2]
    right = right - ((x + 60.0) / 78.0) ** 2 * 50.0 - ((y - 5.0) / 80.0) ** 2 * 55.0
    left = left - ((x - 72.0) / 62.0) ** 2 * 45.0 - ((y - 8.0) / 80.0) ** 2 * 55.0
    middle = middle - ((x - a["tendon"][0]) ** 2 + (y - a["tendon"][1]) ** 2) / 130.0
    return 7.0 * jnp.logaddexp(jnp.logaddexp(right / 7.0, left / 7.0), middle / 7.0)  # without creases


def lung_vessels(p, waves):
    """Distances in mm to the walls of (branches fanning out from the hila, fine twigs); negative inside; waves: `vessel_waves`."""
    squeeze, _, _, hilum_mm = _hilum(p)
    slope = np.float32(2 * np.pi / _TRUNK_WAVE_MM * 0.85) * (squeeze + 0.2)
    thick = _both_zero(waves, "v1", "v2") / slope - (0.8 + 3.2 * jnp.exp(-hilum_mm / 42.0))
    medium = _both_zero(waves, "twice_v1", "twice_v2") / (2.0 * slope) - (0.65 + 1.5 * jnp.exp(-hilum_mm / 60.0))
    fine = _both_zero(waves, "s1", "s2") / np.float32(2 * np.pi / _TWIG_WAVE_MM * 0.85)
    fine = fine - 1.25 * jnp.exp(-hilum_mm / 130.0) * smoothstep(10.0, 30.0, hilum_mm)
    return jnp.minimum(thick, medium), fine


def _both_zero(waves, first, second):
    return jnp.sqrt(waves["wave_" + first] ** 2 + waves["wave_" + second] ** 2 + 1e-4)

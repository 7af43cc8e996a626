"""Implicit surfaces of the chest outside the heart that differ between the two sides: breasts and lung vessels."""

import jax.numpy as jnp
import numpy as np

from cacjax.phantom.surfaces import ellipsoid, smoothstep, union

_IDENTITY = np.eye(3, dtype=np.float32)
_HILUM_MM = (34.0, 10.0, 30.0)
_TRUNK_WAVE_MM, _TWIG_WAVE_MM = 46.0, 17.0


def breast_sdf(p, a):
    """Both breasts: rows of anatomy["breasts"] [2, 6] are centre and semi-axes in mm; men have none (distance > 500)."""
    sides = [ellipsoid(p, a["breasts"][i, :3], _IDENTITY, a["breasts"][i, 3:]) for i in range(2)]
    distance, nz2 = union(sides)
    return jnp.where(a["breast"][0] > 1.0, distance, 999.0), nz2


def lung_vessels(p, a):
    """Distances in mm to the walls of (branches fanning out from the hila, fine twigs); negative inside.

    A vessel is where two random fields are both zero. Around the hilum their coordinates are compressed radially, so that the
    zero lines run outwards; the doubled angles of the same waves give a second, finer generation for nothing.
    """
    side = jnp.where(p[0] < 0, -1.0, 1.0)
    x, y, z = p[0] - side * _HILUM_MM[0], p[1] - _HILUM_MM[1], p[2] - _HILUM_MM[2]
    hilum_mm = jnp.sqrt(x * x + y * y + z * z + 1.0)
    squeeze = 42.0 / (hilum_mm + 12.0)
    fan = (x * squeeze + 0.2 * x + 90.0 * side, y * squeeze + 0.2 * y, z * squeeze + 0.2 * z)
    slope = np.float32(2 * np.pi / _TRUNK_WAVE_MM * 0.85) * (squeeze + 0.2)
    first, second = _zero_line(fan, a, ("tx_v1", "tx_v2"))
    thick = first / slope - (0.7 + 3.6 * jnp.exp(-(hilum_mm - 10.0) / 34.0))
    medium = second / (2.0 * slope) - (0.55 + 1.3 * jnp.exp(-(hilum_mm - 10.0) / 55.0))
    fine = _zero_line(p, a, ("tx_s1", "tx_s2"))[0] / np.float32(2 * np.pi / _TWIG_WAVE_MM * 0.85)
    fine = fine - 1.15 * jnp.exp(-hilum_mm / 130.0) * smoothstep(10.0, 30.0, hilum_mm)
    return jnp.minimum(thick, medium), fine


def _zero_line(p, a, names):
    """sqrt(f^2 + g^2) of two wave fields, and the same of the fields of twice the frequency."""
    once, twice = 0.0, 0.0
    for name in names:
        vectors, phases = a[name]
        n = vectors.shape[0]
        cos = [jnp.cos(sum(vectors[i, k] * p[k] for k in range(3)) + phases[i]) for i in range(n)]
        once += sum(cos) ** 2 * (2.0 / n)
        twice += sum(2.0 * c * c - 1.0 for c in cos) ** 2 * (2.0 / n)
    return jnp.sqrt(once + 1e-4), jnp.sqrt(twice + 1e-4)

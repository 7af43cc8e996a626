"""Heart beat, breathing and breath-hold position: how tissue moves while a scan is acquired. Lengths in mm, times in s.

The displacement of the beat is linear in the contraction, so one unit field per point serves every slice and every instant.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cacjax.phantom.surfaces import smoothstep

STEP_GROUP_MM = 38.0  # z coverage of one gated rotation


class Timing(NamedTuple):
    """When and where the tissue of each slice is: arrays over the slices [z] unless noted.

    time_s: mid exposure; window_s: length of the exposure (number); rr_s: heart period (number); shift_mm [z, 3]: rigid steps between
    the slabs of a gated scan; rotation [3, 3] and translation_mm [3]: breath-hold pose of the heart around `centre_mm`;
    breath: (amplitude mm, period s, phase); lift_mm: height of heart and diaphragm against the reference (number).
    """

    time_s: np.ndarray
    window_s: float
    rr_s: float
    shift_mm: np.ndarray
    rotation: np.ndarray
    translation_mm: np.ndarray
    centre_mm: np.ndarray
    breath: tuple
    lift_mm: float


def contraction(time_s, rr_s):
    """Share of the full contraction, 0 at end-diastole to 1 at end-systole, `time_s` after the R peak (numpy, any shape)."""
    t = np.mod(time_s, rr_s)
    systole_end = 0.30 + 0.10 * (rr_s - 0.9)
    squeeze = _smooth(0.03, systole_end, t)
    fill_start = systole_end + 0.06
    early = 0.68 * _smooth(fill_start, fill_start + 0.19, t)
    slow_s = max(rr_s - 0.13 - fill_start - 0.15, 0.05)
    slow = 0.14 * np.clip((t - fill_start - 0.15) / slow_s, 0.0, 1.0)  # diastasis is not perfectly still
    kick = 0.18 * _smooth(rr_s - 0.13, rr_s - 0.01, t)
    return np.clip(squeeze - early - slow - kick, 0.0, 1.0)


def _smooth(low, high, x):
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def breathing_mm(time_s, breath):
    """Height of the free-breathing wave at `time_s`; breath = (amplitude mm, period s, phase)."""
    amplitude, period, phase = breath
    return amplitude * np.sin(2 * np.pi * time_s / period + phase)


def beat_displacement(p, a):
    """Displacement (x, y, z) in mm of heart tissue at full contraction; multiply by `contraction`.

    A pull towards the apex (more at the lateral mitral annulus and the right groove) and a radial squeeze, fading outside the heart.
    """
    axis, to_right, mitral, apex = a["frame"][0], a["frame"][1], a["frame"][3], a["frame"][4]
    r = [p[i] - mitral[i] for i in range(3)]
    along = sum(r[i] * axis[i] for i in range(3))
    sideways = sum(r[i] * to_right[i] for i in range(3))
    level = 1.0 - along / jnp.sqrt(jnp.sum((apex - mitral) ** 2))  # 1 at the base plane, 0 at the apex
    q = [r[i] - along * axis[i] for i in range(3)]
    rho = jnp.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2 + 1e-4)
    right = jax.nn.sigmoid((sideways - 24.0) / 7.0)
    lateral = jax.nn.sigmoid((-sideways - 8.0) / 6.0) * jnp.clip(level + 0.2, 0.0, 1.0)
    fade = 1.0 - smoothstep(75.0, 120.0, jnp.sqrt(r[0] ** 2 + r[1] ** 2 + r[2] ** 2))
    base = jnp.where(level < 1, jnp.clip(level, 0.0, 1.0), jnp.exp(-jnp.clip(level - 1.0, 0.0, 8.0) / 0.7))
    pull = (a["motion"][0] * (0.85 + 0.65 * lateral) + a["motion"][1] * 1.15 * right) * base * fade
    squeeze = (a["motion"][2] + a["motion"][3] * right) * jnp.clip(rho / 28.0, 0.0, 1.0) * fade
    squeeze = squeeze * jnp.exp(-jnp.clip(rho - 45.0, 0.0, 99.0) / 20.0)
    squeeze = squeeze * smoothstep(-0.1, 0.3, level) * (1 - smoothstep(1.0, 1.5, level)) / rho
    return tuple(pull * axis[i] - squeeze * q[i] for i in range(3))


def heart_weight(p, centre_mm):
    """How far the breath-hold pose carries a point along: 1 within 75 mm of the heart, 0 beyond 130 mm."""
    return 1.0 - smoothstep(75.0, 130.0, jnp.sqrt(sum((p[i] - centre_mm[i]) ** 2 for i in range(3)) + 1e-6))


def to_reference(p, pose):
    """Scanner points (x, y, z) -> the heart's reference position; pose = (rotation [3, 3], translation [3], centre [3])."""
    rotation, translation, centre = pose
    weight = heart_weight(p, centre)
    d = [p[i] - centre[i] - translation[i] for i in range(3)]
    back = [sum(rotation[k, i] * d[k] for k in range(3)) + centre[i] for i in range(3)]
    return tuple(p[i] + weight * (back[i] - p[i]) for i in range(3))


def from_reference(points, timing):
    """Reference points [n, 3] -> their scanner position in this breath-hold (numpy); inverse of `to_reference` near the heart."""
    distance = np.linalg.norm(points - timing.centre_mm, axis=1, keepdims=True)
    weight = 1.0 - _smooth(75.0, 130.0, distance)
    moved = (points - timing.centre_mm) @ timing.rotation.T + timing.centre_mm + timing.translation_mm
    return points + weight * (moved - points)


def slab_index(z_mm):
    """Number of the gated rotation that acquires each slice."""
    return ((z_mm - z_mm[0]) // STEP_GROUP_MM).astype(int)


def sample_rotation(g, angle_deg):
    """Rotation matrix by `angle_deg` around a random axis (Rodrigues)."""
    axis = g.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(angle_deg)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross

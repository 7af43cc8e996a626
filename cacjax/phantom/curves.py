"""Space curves on the host: smoothing splines, rotation-minimising frames and look-up by arc length."""

import numpy as np
from scipy.interpolate import splev, splprep

STEP_MM = 0.5


def unit(v):
    """The vector [3] divided by its length."""
    return v / np.linalg.norm(v)


def across(v, axis):
    """Unit vector of the part of `v` that is perpendicular to the unit vector `axis`."""
    return unit(v - (v @ axis) * axis)


def arc_length(points):
    """Cumulative length [n] in mm along points [n, 3], starting at 0."""
    return np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]


def spline(points, smooth_mm2):
    """A smoothing cubic through points [n, 3], resampled every 0.5 mm; `smooth_mm2` is the mean squared deviation allowed."""
    points = np.asarray(points, float)
    points = points[np.r_[True, np.linalg.norm(np.diff(points, axis=0), axis=1) > 0.3]]
    knots, _ = splprep(points.T, s=smooth_mm2 * len(points), k=min(3, len(points) - 1))
    fine = np.stack(splev(np.linspace(0, 1, 2000), knots), 1)
    s = arc_length(fine)
    stations = np.arange(0, s[-1], STEP_MM)
    return np.stack([np.interp(stations, s, fine[:, k]) for k in range(3)], 1)


def frame(points):
    """Tangent, normal, binormal [..., n, 3] of curves [..., n, 3], turning as little as possible (double reflection, Wang 2008)."""
    tangent = np.gradient(points, axis=-2)
    tangent /= np.linalg.norm(tangent, axis=-1, keepdims=True) + 1e-9
    first = tangent[..., :1, :]
    start = np.where(np.abs(first[..., 2:]) < 0.99, [0.0, 0.0, 1.0], [0.0, 1.0, 0.0])
    start = start - np.sum(start * first, -1, keepdims=True) * first
    normal = np.zeros_like(points)
    normal[..., 0, :] = (start / np.linalg.norm(start, axis=-1, keepdims=True))[..., 0, :]
    steps = np.diff(points, axis=-2)
    for i in range(points.shape[-2] - 1):
        step = steps[..., i, :]
        turned = _reflect(tangent[..., i, :], step)
        normal[..., i + 1, :] = _reflect(_reflect(normal[..., i, :], step), tangent[..., i + 1, :] - turned)
    return tangent, normal, np.cross(tangent, normal)


def _reflect(v, plane):
    dot, length2 = np.einsum("...i,...i", plane, v), np.einsum("...i,...i", plane, plane)
    return v - (2.0 * dot / (length2 + 1e-12))[..., None] * plane


def segment(name, points, radius_mm, calcium_class, axes=None):
    """A carrier of calcium: dict name, c centre [n,3], s arc length [n], t n b frame [n,3], r lumen radius [n], cls (int)."""
    t, n, b = axes or frame(points)
    return {
        "name": name,
        "c": points,
        "s": arc_length(points),
        "t": t,
        "n": n,
        "b": b,
        "r": radius_mm,
        "cls": calcium_class,
    }


def at(seg, s_mm):
    """Centre, normal, binormal [..., 3] and radius [...] of a segment at arc lengths `s_mm` (clipped to its ends)."""
    index = np.interp(s_mm, seg["s"], np.arange(len(seg["s"])))
    low = np.minimum(index.astype(int), len(seg["s"]) - 2)
    share = index - low

    def mix(values):
        weight = share[..., None] if values.ndim == 2 else share
        return values[low] + weight * (values[low + 1] - values[low])

    return mix(seg["c"]), mix(seg["n"]), mix(seg["b"]), mix(seg["r"])


def tube_distance(points, path, radii):
    """Distance [n] in mm from points [n, 3] to the wall of a tube along path [m, 3] with radii [m]; negative inside."""
    path, radii = np.asarray(path, float), np.asarray(radii, float)
    nearest = np.full(len(points), np.inf)
    for start, end, r0, r1 in zip(path[:-1], path[1:], radii[:-1], radii[1:]):
        axis = end - start
        t = np.clip((points - start) @ axis / (axis @ axis), 0, 1)
        distance = np.linalg.norm(points - start - t[:, None] * axis, axis=1)
        nearest = np.minimum(nearest, distance - r0 - t * (r1 - r0))
    return nearest

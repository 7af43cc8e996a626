"""What depends on the finished tree: the fat that follows the arteries, and the carriers of calcium outside the coronaries."""

import numpy as np

from cacjax.phantom.courses import frame_of_heart
from cacjax.phantom.curves import across, arc_length, segment, spline, unit
from cacjax.phantom.heart import WAVE_ROWS


def fat_sleeves(tree):
    """Two paths [2, 8, 3] whose fat sleeves keep the arteries out of the lung: along LCX-LM-LAD and along the RCA."""
    line = {seg["name"]: seg["c"] for seg in tree}
    lcx, lad, rca = line["LCX"], line["LAD"], line["RCA"]
    left = [
        _nth(lcx, 70),
        _nth(lcx, 36),
        _nth(lcx, 18),
        line["LM"][-1],
        _nth(line["LM"], 8),
        line["LM"][-1],
        _nth(lad, 24),
        _nth(lad, 50),
    ]
    right = rca[np.linspace(6, len(rca) - 1, 8).astype(int)]
    return np.stack([np.stack(left), right]).astype(np.float32)


def _nth(points, i):
    return points[min(i, len(points) - 1)]


def spread_fat_over(tree, anatomy, g, candidates=16):
    """Wave weights [rows, n] whose epicardial row, the best of 16 random ones, leaves most fat under the arteries."""
    weights = np.array(anatomy["wave_weights"], np.float32)
    points = np.concatenate([seg["c"][::6] for seg in tree])
    basis = np.cos(points @ anatomy["wave_vectors"].T + anatomy["wave_phases"])
    draws = g.normal(size=(candidates, weights.shape[1]))
    draws *= np.sqrt(2.0 / np.sum(draws**2, axis=1, keepdims=True))
    thin = np.quantile(basis @ draws.T, 0.1, axis=0)
    weights[WAVE_ROWS.index("epicardial")] = draws[np.argmax(thin)]
    return weights


def extra_curves(anatomy):
    """Carriers of calcium outside the coronaries: aortic wall (class 4), aortic-valve leaflets (5), mitral annulus (6)."""
    return [_aortic_wall(anatomy), _aortic_valve(anatomy), _mitral_annulus(anatomy)]


def _aortic_wall(anatomy):
    points, radii = np.asarray(anatomy["ao"], float)[2:], np.asarray(anatomy["ao_r"], float)[2:]
    line = spline(points, 0.2)
    along, s = arc_length(points), arc_length(line)
    return segment("AO", line, np.interp(s, along * (s[-1] / along[-1]), radii), 4)


def _aortic_valve(anatomy):
    """A closed three-lobed curve across the root."""
    points = np.asarray(anatomy["ao"], float)
    axis = unit(points[3] - points[1])
    first = unit(np.cross(axis, [0, 0, 1.0]))
    angle = np.linspace(0, 2 * np.pi, 200)[:, None]
    lobe = np.abs(np.sin(1.5 * angle))
    radius = 0.62 * float(anatomy["ao_r"][1]) + 3.5 * lobe
    ring = np.cos(angle) * first + np.sin(angle) * np.cross(axis, first)
    return segment("AVL", points[1] + radius * ring + 2 * lobe * axis, np.full(200, 0.6), 5)


def _mitral_annulus(anatomy):
    """The posterior 240 degrees of a ring of 0.78 of the cavity's radius, opposite the aortic root."""
    long_axis, _, mitral, *_ = frame_of_heart(anatomy)
    to_aorta = across(np.asarray(anatomy["ao"][1], float) - mitral, long_axis)
    angle = np.deg2rad(np.linspace(60, 300, 200))[:, None]
    ring = np.cos(angle) * to_aorta + np.sin(angle) * np.cross(long_axis, to_aorta)
    return segment("MVA", mitral + 1.5 * long_axis + 0.78 * float(anatomy["lvc"][4]) * ring, np.full(200, 0.8), 6)

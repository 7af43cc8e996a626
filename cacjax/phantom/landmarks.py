"""Random pose and sizes of the heart and the great vessels: the numbers behind the surfaces of heart.py, mm in LPS."""

from typing import NamedTuple

import numpy as np

from cacjax.phantom.curves import unit

HEART_CENTRE = np.array([22.0, -30.0, 0.0])


class Pose(NamedTuple):
    """Similarity map of the model heart into the patient."""

    scale: float
    rotation: np.ndarray
    shift: np.ndarray

    def __call__(self, point, weight=1.0):
        """The patient's position of a model landmark; `weight` below 1 ties it partly to the chest."""
        point = np.asarray(point, float)
        moved = HEART_CENTRE + self.shift + self.scale * ((point - HEART_CENTRE) @ self.rotation.T)
        return (1 - weight) * point + weight * moved

    def path(self, *landmarks):
        """Landmarks (x, y, z) or (x, y, z, weight) mapped to an array [n, 3]."""
        return np.stack([self(v[:3], *v[3:]) for v in landmarks])


def _euler(rx, ry, rz):
    (cx, cy, cz), (sx, sy, sz) = np.cos([rx, ry, rz]), np.sin([rx, ry, rz])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _sample_pose(g, a):
    """Scale 0.9-1.28, but never larger than the room between sternum and spine; rotations of 6, 6, 9 degrees."""
    scale = np.clip(g.normal(1.08 - 0.06 * a["female"] + 0.004 * (a["bmi"] - 26), 0.055), 0.9, 1.28)
    front, back = 6.0 - a["cav"][1], a["yv"] - a["vert"][1] - 7.0
    rotation = _euler(*np.deg2rad(g.normal(0, [6, 6, 9])))
    shift = g.normal(0, [5, 1.2, 6]) + np.array([0, 0.5 * (front + back) + 30.0, 0])
    return Pose(min(scale, (back - front) / 110.0), rotation, shift)


def sample_heart(g, a):
    """The pose, and a dict of the chambers: ellipsoids as [centre, semi-axes], chains as points and radii."""
    pose = _sample_pose(g, a)
    mitral, apex = pose([30, -10, 6]), pose([76, -64, -36])
    long_axis = unit(apex - mitral)
    left, right = mitral + 0.46 * (apex - mitral), pose([12, -52, -14])
    to_right = unit(right - left - (right - left) @ long_axis * long_axis)
    rotation = np.stack([long_axis, to_right, np.cross(long_axis, to_right)])
    heart = {"frame": np.stack([*rotation, mitral, apex, right]), "Rlv": rotation}
    heart |= _ventricles(g, pose, left, right, np.linalg.norm(apex - mitral), long_axis, a["female"])
    return pose, heart | _atria(g, pose, heart)


def _jitter(g, sd=0.05):
    return np.clip(g.normal(1, sd), 0.85, 1.18)


def _ventricles(g, pose, left, right, length, long_axis, female):
    wall = np.clip(g.normal(9.3 - 0.8 * female, 1.1), 7, 13)
    radius = 33 * pose.scale * _jitter(g)
    cavity = [0.56 * length - wall, radius - wall, radius - wall]
    return {
        "lv": [*left, 0.56 * length, radius, radius * _jitter(g, 0.03)],
        "lvc": [*(left - 1.5 * long_axis), *cavity],
        "hyp": wall,
        "rv": [*right, *(np.array([44, 23, 36]) * pose.scale * [_jitter(g), _jitter(g), _jitter(g)])],
        "rvot": pose.path((6, -54, 6), (14, -57, 22), (20, -55, 38)),
        "rvot_r": np.array([17, 15, 13.0]) * pose.scale,
    }


def _atria(g, pose, heart):
    right, left = np.array([21, 24, 30]) * pose.scale, np.array([30, 19, 23]) * pose.scale
    return {
        "ra": [*pose([-30, -20, -4]), *(right * [_jitter(g), _jitter(g), _jitter(g)])],
        "raa": pose.path((-25, -34, 10), (-22, -44, 20), (-17, -50, 27)),
        "raa_r": np.array([12, 9, 5.0]) * pose.scale,
        "la": [*pose([14, 7, 14]), *(left * [_jitter(g, 0.08), _jitter(g, 0.08), _jitter(g, 0.08)])],
        "laa": _lift(pose.path((34, -8, 22), (48, -22, 26), (51, -34, 23)), np.array([9, 7.5, 5.0]) * pose.scale, heart),
        "laa_r": np.array([9, 7.5, 5.0]) * pose.scale,
    }


def _lift(points, radii, heart, room_mm=6.0):
    """The appendage moved off the left ventricle: the circumflex artery and its fat need room between the two."""
    centre, semi_axes, rotation = np.array(heart["lv"][:3]), np.array(heart["lv"][3:]), heart["Rlv"]
    for _ in range(6):
        body = (points - centre) @ rotation.T / semi_axes
        q = np.linalg.norm(body, axis=1, keepdims=True)
        slope = (body / semi_axes) @ rotation / q
        steep = np.linalg.norm(slope, axis=1, keepdims=True)
        short = np.maximum(radii[:, None] + room_mm - (q - 1) / steep, 0)
        points = points + short * slope / steep
    return points


def sample_vessels(g, a, pose):
    """Aorta, pulmonary arteries and veins, caval veins, airways, oesophagus, and what the fat and the motion need."""
    vessels = _aorta(g, a, pose)
    trunk = np.clip(g.normal(13.2, 1.2), 10, 17)
    vessels |= _pulmonary(pose, trunk) | _veins(pose)
    vessels["efat"] = np.clip(g.normal(3.0 + 0.16 * (a["bmi"] - 26), 1.1), 0.8, 8)
    vessels["sac_k"] = np.clip(g.normal(7.5, 0.8), 5.5, 10)
    vessels["trachea"] = [[-2, 10, 150.0], [-4, 16, 92], [-5, 18, 82]]
    vessels["bron"] = [[-5, 18, 82.0], [-30, 20, 58], [-50, 22, 40], [26, 22, 62], [48, 28, 44]]
    vessels["eso"] = [6 + g.normal(0, 3), a["yv"] - 26, g.uniform(0, 1)]
    vessels["dia"] = [-26 + g.normal(0, 6), -38 + g.normal(0, 6), _lowest(a) + 16.0]  # right and left dome, central tendon
    vessels["tendon"] = 0.5 * (np.array(a["rv"][:2]) + np.array(a["lv"][:2]))
    vigour = np.clip(g.normal(1, 0.18), 0.55, 1.5)
    vessels["motion"] = vigour * np.array([9.0, 17.0, 3.2, 1.6])  # mm: long axis, right groove, squeeze left, squeeze right
    return vessels


def _lowest(a):
    """Height of the lower surface of the ventricles."""
    reach = [a[k][2] - np.linalg.norm(a["Rlv"][:, 2] * np.array(a[k][3:])) for k in ("lv", "rv")]
    return min(reach)


def make_room(a):
    """The left atrium flattened and moved forward where it would overlap the descending aorta; returns the changed entry."""
    la, aorta_front = np.array(a["la"]), a["ao"][9, 1] - a["ao_r"][9] - 2.0
    overlap = np.clip(la[1] + la[4] - aorta_front, 0, 14)
    la[1], la[4] = la[1] - 0.6 * overlap, la[4] - 0.4 * overlap
    return {"la": la}


def _aorta(g, a, pose):
    """A chain of 13 capsules from the outflow tract to the abdomen; the descending part lies on the spine."""
    older = a["age"] - 60
    up = np.clip(g.normal(16.6 - 1.2 * a["female"] + 0.06 * older, 1.6), 12, 23)
    down = np.clip(g.normal(12.2 - 0.9 * a["female"] + 0.04 * older, 1.2), 9, 17)
    x, y = g.normal(24, 3), a["yv"]
    rising = pose.path((18, -28, 6), (6, -34, 22), (0, -37, 33), (-7, -38, 52, 0.9), (-9, -33, 72, 0.8), (-2, -14, 95, 0.5))
    arch = [pose([12, 14, 98], 0.3), [x - 3, y - 24, 84], [x, y - 17, 60]]
    falling = [[x, y - 17, 10], [x - 3, y - 16, -40], [x - 12, y - 20, -90], [x - 18, y - 22, -150]]
    points = np.array([*rising, *arch, *falling], np.float32)
    radii = [10.5, 13.0, up + 1.2, up, up, up - 1, down + 1.5, down + 0.5, down, down, down - 0.4, down - 0.8, down - 1]
    radii = np.array(radii, np.float32)
    segments, ends = np.stack([points[3:-1], points[4:]], 1), np.stack([radii[3:-1], radii[4:]], 1)
    return {"ao": points, "ao_r": radii, "ao_seg": segments, "ao_segr": ends}


def _pulmonary(pose, trunk):
    return {
        "pa": pose.path((20, -55, 37), (24, -44, 52), (22, -28, 62, 0.9), (17, -14, 65, 0.9)),
        "pa_r": [trunk, trunk + 0.5, trunk, trunk - 1],
        "rpa": pose.path((17, -14, 64, 0.9), (-4, -8, 58, 0.9), (-28, -5, 53, 0.8), (-46, 4, 42, 0.7), *_RIGHT_HILUM),
        "rpa_r": [11, 10.5, 9.5, 7.5, 6.5, 4.5, 2.5],
        "lpa": pose.path((17, -14, 65, 0.9), (38, 2, 66, 0.9), (52, 14, 56, 0.8), (58, 20, 36, 0.7), *_LEFT_HILUM),
        "lpa_r": [11, 10, 8.5, 7, 6, 4.5, 2.5],
        "pv": np.stack([pose.path(*vein) for vein in _PULMONARY_VEINS]),
    }


# The lower-lobe arteries go on behind the bronchi; each pulmonary vein bends and thins out into the lung: (x, y, z, weight).
_RIGHT_HILUM = ((-51, 16, 22, 0.7), (-56, 30, -4, 0.6), (-66, 48, -34, 0.4))
_LEFT_HILUM = ((61, 28, 18, 0.7), (66, 40, -6, 0.6), (76, 56, -34, 0.4))
_PULMONARY_VEINS = (
    ((-10, 8, 18), (-38, 8, 24, 0.8), (-56, -4, 30, 0.6), (-76, -24, 36, 0.4)),
    ((36, 10, 20), (54, 10, 26, 0.8), (68, -4, 34, 0.6), (84, -26, 40, 0.4)),
    ((-8, 12, 5), (-36, 22, -4, 0.8), (-54, 38, -16, 0.6), (-70, 56, -30, 0.4)),
    ((36, 14, 6), (54, 28, -3, 0.8), (68, 46, -16, 0.6), (82, 62, -30, 0.4)),
)
PULMONARY_VEIN_RADII = np.array([7.5, 5.5, 3.6, 1.8], np.float32)


def _veins(pose):
    return {
        "svc": pose.path((-26, -22, 100, 0.6), (-29, -19, 60, 0.8), (-31, -17, 20)),
        "svc_r": [8, 8.5, 9.5],
        "ivc": pose.path((-26, -10, -22), (-24, -4, -45, 0.8), (-20, 2, -90, 0.4)),
        "ivc_r": [11, 11.5, 12],
        "cs": pose.path((44, 14, -4), (24, 15, -14), (-4, 4, -18)),
    }

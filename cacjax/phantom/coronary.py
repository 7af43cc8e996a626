"""The coronary tree on the surface of one heart."""

import numpy as np

from cacjax.phantom import grooves
from cacjax.phantom.courses import frame_of_heart, groove_courses
from cacjax.phantom.curves import STEP_MM, across, frame, segment, spline, tube_distance, unit
from cacjax.phantom.grooves import LA, LV, POINTS, RA, RV
from cacjax.phantom.surfaces import device

# Calcium class, radius at the start and at the end in mm.
VESSELS = {
    "LM": (1, 2.25, 2.2), "LAD": (1, 1.85, 0.85), "LCX": (2, 1.7, 0.8), "RCA": (3, 1.95, 1.2), "PDA": (3, 1.15, 0.6),
    "D1": (1, 1.1, 0.55), "D2": (1, 1.0, 0.5), "OM1": (2, 1.15, 0.55), "OM2": (2, 1.0, 0.5), "AM": (3, 0.95, 0.5),
}  # fmt: skip
MAX_BRANCHES, MAX_STEPS = 5, 13
STRAIGHTEN_MM2 = 0.05  # mean squared deviation that the last smoothing may make
OSTIUM_LEFT, OSTIUM_RIGHT = (0.93, 0.30, 0.05), (-0.35, -0.93, 0.0)


def coronary_tree(anatomy, g):
    """Up to ten segments (curves.segment) in the order LM, LAD, LCX, RCA, PDA, D1, D2, OM1, OM2, AM; g: numpy generator."""
    heart = device(anatomy)
    trunks, vessel_size = _trunks(anatomy, groove_courses(anatomy, heart), g)
    trunks = {name: c for name, c in trunks.items() if len(c) >= 8}
    plans = _branch_plans(trunks, anatomy, g)
    trunks = _clear_trunks(_wind(trunks, g), vessel_size, heart)
    branches = _clear(_wind(_branches(plans, trunks, heart), g), vessel_size, heart)
    return _dress(trunks | branches, vessel_size)


def _ostium(anatomy, direction):
    """The point on the aortic root in a direction, and the direction made perpendicular to the root."""
    points, radii = np.asarray(anatomy["ao"], float), np.asarray(anatomy["ao_r"], float)
    axis = unit(points[3] - points[1])
    outwards = across(np.array(direction), axis)
    return points[2] + 2.0 * axis + outwards * (radii[2] - 0.5), outwards


def _left_ostium(anatomy):
    """The left ostium, turned backwards in steps of 8 degrees until the left main passes behind the pulmonary trunk."""
    x, y, z = OSTIUM_LEFT
    for angle in np.deg2rad(np.arange(0, 56, 8)):
        turned = (x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle), z)
        start, outwards = _ostium(anatomy, turned)
        way = start + np.outer([0, 3, 6], outwards)
        if tube_distance(way, anatomy["pa"], anatomy["pa_r"]).min() > 3.5:
            break
    return start, outwards


def _trunks(anatomy, groove, g):
    """Centre lines of LM, LAD, LCX, RCA and, in right-dominant hearts, PDA; and the patient's vessel size factor."""
    long_axis = frame_of_heart(anatomy)[0]
    anterior, inferior, left, right = groove
    start, outwards = _left_ostium(anatomy)
    fork = start + outwards * 11 * np.clip(g.normal(1, 0.25), 0.5, 1.6) + np.array([0, 0, -1.5])
    size = np.clip(g.normal(1 - 0.09 * anatomy["female"], 0.1), 0.75, 1.25)
    anterior = anterior[1:]
    anterior = anterior[(anterior - fork) @ long_axis > 6]
    line = spline(np.vstack([start - 3 * outwards, start, (start + fork) / 2, fork, anterior]), 0.5)
    split = int(np.argmin(np.linalg.norm(line - fork, axis=1)))
    curves = {"LM": line[: split + 1], "LAD": line[split:]}
    curves["LCX"] = _circumflex(fork, unit(line[split] - line[max(split - 6, 0)]), left, np.clip(g.normal(0.85, 0.15), 0.45, 1.0))
    curves["RCA"] = _right_coronary(anatomy, right)
    inferior = inferior[2:13]
    inferior = inferior[(inferior - curves["RCA"][-1]) @ long_axis > 5]
    if len(inferior) > 4:
        curves["PDA"] = spline(np.vstack([curves["RCA"][-1], inferior[:9]]), 0.5)
    return curves, size


def _circumflex(fork, heading, groove, share):
    """From the fork into the left groove, of which it follows `share` (0.45-1)."""
    groove = groove[max(np.argmin(np.linalg.norm(groove - fork, axis=1)), 1) :]
    groove = groove[np.linalg.norm(groove - fork, axis=1) > 9]
    bend = fork + 3.5 * heading + np.array([0, 2, -2.5])
    return spline(np.vstack([fork, bend, groove[: int(len(groove) * share)]]), 0.6)


def _right_coronary(anatomy, groove):
    start, outwards = _ostium(anatomy, OSTIUM_RIGHT)
    groove = groove[np.linalg.norm(groove - start, axis=1) > 12]
    return spline(np.vstack([start - 3 * outwards, start, start + 6 * outwards, groove]), 0.6)


def _branches(plans, trunks, heart):
    """Centre lines of the planned branches, walked on the ventricular walls from where they leave their parents."""
    count = range(len(plans))
    vectors, apart = np.zeros((3, MAX_BRANCHES, 3), np.float32), np.zeros((MAX_BRANCHES, grooves.FIELDS), np.float32)
    vectors[1:, :, 0] = 1.0
    jitter, wall = np.zeros((MAX_STEPS, MAX_BRANCHES, 3), np.float32), np.zeros(MAX_BRANCHES, int)
    for i, plan in enumerate(plans):
        vectors[:, i] = _departure(plan, trunks[plan["parent"]])
        jitter[: len(plan["jitter"]), i] = plan["jitter"]
        wall[i], apart[i, list(plan["apart"])] = plan["wall"], 1.0
    walked = np.asarray(grooves.march(*vectors, jitter, wall, apart, heart), float)
    paths = [np.vstack([vectors[0, i], walked[: len(plans[i]["jitter"]), i]]) for i in count]
    return {plans[i]["name"]: spline(paths[i], 0.25) for i in count}


def _departure(plan, parent):
    """Start, first heading and lasting heading [3] of a branch."""
    i = min(int(plan["at_mm"] / STEP_MM), len(parent) - 2)
    along = unit(parent[min(i + 4, len(parent) - 1)] - parent[i])
    return parent[i], unit(0.6 * along + plan["towards"]), plan["towards"]


def _branch_plans(curves, anatomy, g):
    long_axis, to_right, *_ = frame_of_heart(anatomy)
    side, plans = -to_right, []
    for name, at_mm in (("D1", 22), ("D2", 42)):
        if g.random() < 0.9:
            at_mm *= g.uniform(0.8, 1.2)
            towards = 0.55 * long_axis + 0.8 * side
            plans.append(_plan(name, "LAD", at_mm, towards, g.uniform(35, 60), LV, (RV, LA, grooves.TRUNK), g))
    if g.random() < 0.9:
        at_mm, towards = g.uniform(14, 30), 0.9 * long_axis + 0.2 * side
        plans.append(_plan("OM1", "LCX", at_mm, towards, g.uniform(40, 65), LV, (LA,), g))
    if g.random() < 0.6 and len(curves["LCX"]) > 90:
        at_mm = g.uniform(38, 44)
        plans.append(_plan("OM2", "LCX", at_mm, 0.9 * long_axis, g.uniform(30, 50), LV, (LA,), g))
    middle, towards = 0.45 * STEP_MM * len(curves["RCA"]), 0.8 * long_axis + 0.5 * to_right
    plans.append(_plan("AM", "RCA", middle, towards, g.uniform(35, 60), RV, (RA, LV), g))
    return plans


def _plan(name, parent, at_mm, towards, length_mm, wall, apart, g):
    """Where a branch leaves its parent, where it heads, and one random nudge per 5 mm."""
    jitter = g.normal(size=(int(length_mm / 5), 3))
    plan = {"name": name, "parent": parent, "at_mm": at_mm, "towards": towards}
    return plan | {"jitter": jitter, "wall": wall, "apart": apart}


def _wind(curves, g):
    """Curves with two small sinusoids across (0.1-0.7 mm, period 14-26 mm) that vanish at both ends; the LM stays straight."""
    lengths = [len(c) for c in curves.values()]
    rows = _padded(list(curves.values()))
    _, normals, binormals = frame(rows)
    s = np.arange(POINTS) * STEP_MM
    for i, name in enumerate(curves):
        if name == "LM":
            continue
        amplitude = g.uniform(0.1, 0.7)
        first, second = (np.sin(2 * np.pi * s / g.uniform(14, 26) + g.uniform(0, 6)) for _ in range(2))
        fade = amplitude * np.clip(np.minimum(s, STEP_MM * (lengths[i] - 1) - s) / 8, 0, 1)
        rows[i] += (fade * first)[:, None] * normals[i] + (0.6 * fade * second)[:, None] * binormals[i]
    return {name: rows[i, :n] for i, (name, n) in enumerate(zip(curves, lengths))}


def _padded(curves, rows=None):
    """Curves of several lengths as rows [rows, 400, 3]; the last point and the last curve are repeated."""
    points = [np.pad(c[:POINTS], ((0, max(POINTS - len(c), 0)), (0, 0)), mode="edge") for c in curves]
    return np.stack(points + points[-1:] * ((rows or len(curves)) - len(curves)))


def _clear(curves, vessel_size, heart):
    """The curves pushed out of chambers and great vessels; always ten rows, so that one program serves every patient."""
    lengths, names = [len(c) for c in curves.values()], list(curves)
    spare = len(VESSELS) - len(names)
    radius = np.array([0.9 * VESSELS[name][1] * vessel_size for name in names] + [1.0] * spare, np.float32)
    fixed, in_aorta = (np.array([n if name in ("LAD", "RCA") else 1 for name in names] + [1] * spare) for n in (8, 16))
    last = np.array([n - 1 for n in lengths] + [POINTS - 1] * spare)
    rows = _padded(list(curves.values()), len(VESSELS)).astype(np.float32)
    rows = np.asarray(grooves.keep_clear(rows, radius, fixed, in_aorta, last, heart), float)
    return {name: rows[i, :n] for i, (name, n) in enumerate(zip(names, lengths))}


def _clear_trunks(curves, vessel_size, heart):
    """The same for the trunks: LM and LAD move as one curve, LCX and PDA stay tied to where they leave."""
    split = len(curves["LM"])
    whole = {"LAD": np.vstack([curves["LM"], curves["LAD"][1:]])} | {k: c for k, c in curves.items() if k not in ("LM", "LAD")}
    whole = _clear({k: c[:POINTS] for k, c in whole.items()}, vessel_size, heart)
    left = whole.pop("LAD")
    cleared = {"LM": left[:split], "LAD": left[split - 1 :]} | whole
    for name, origin in (("LCX", left[split - 1]), ("PDA", cleared["RCA"][-1])):
        if name in cleared:
            fade = np.exp(-STEP_MM * np.arange(len(cleared[name])) / 6.0)[:, None]
            cleared[name] = cleared[name] + fade * (origin - cleared[name][0])
    return cleared


def _dress(curves, vessel_size):
    """Segments with frames, and radii that fall with the power 0.8 of the relative length.

    Pushed curves have knots, sharper than an artery is wide, where samples of blood would pile up: splines take them out.
    """
    curves = {name: spline(c, STRAIGHTEN_MM2) for name, c in curves.items()}
    lengths = [len(c) for c in curves.values()]
    axes = frame(_padded(list(curves.values())))
    segments = []
    for i, (name, n) in enumerate(zip(curves, lengths)):
        cls, first, last = VESSELS[name]
        radius = vessel_size * (first + (last - first) * np.linspace(0, 1, n) ** 0.8)
        segments.append(segment(name, curves[name], radius, cls, [v[i, :n] for v in axes]))
    return segments

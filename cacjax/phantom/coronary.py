"""The coronary tree on the surface of one heart, the fat that follows it, and the other carriers of calcium."""

import numpy as np

from cacjax.phantom import grooves
from cacjax.phantom.curves import STEP_MM, across, arc_length, frame, segment, spline, unit
from cacjax.phantom.grooves import LA, LV, POINTS, RA, RV
from cacjax.phantom.heart import WAVE_ROWS
from cacjax.phantom.surfaces import device

# Calcium class, radius at the start and at the end in mm.
VESSELS = {
    "LM": (1, 2.25, 2.2), "LAD": (1, 1.85, 0.85), "LCX": (2, 1.7, 0.8), "RCA": (3, 1.95, 1.2), "PDA": (3, 1.15, 0.6),
    "D1": (1, 1.1, 0.55), "D2": (1, 1.0, 0.5), "OM1": (2, 1.15, 0.55), "OM2": (2, 1.0, 0.5), "AM": (3, 0.95, 0.5),
}  # fmt: skip
STATIONS = 16
MAX_BRANCHES, MAX_STEPS = 5, 13
OSTIUM_LEFT, OSTIUM_RIGHT = (0.93, 0.30, 0.05), (-0.35, -0.93, 0.0)


def coronary_tree(anatomy, g):
    """Up to ten segments (curves.segment) in the order LM, LAD, LCX, RCA, PDA, D1, D2, OM1, OM2, AM; g: numpy generator."""
    heart = device(anatomy)
    curves, vessel_size = _trunks(anatomy, _grooves(anatomy, heart), g)
    curves |= _branches(curves, anatomy, heart, g)
    curves = {name: c for name, c in curves.items() if len(c) >= 8}
    lengths = np.array([min(len(c), POINTS) for c in curves.values()])
    winding = _tortuous(list(curves), _padded(curves.values()), lengths, g)
    return _segments(list(curves), winding, lengths, vessel_size, heart)


def _frame_of_heart(anatomy):
    long_axis, to_right, _, mitral, apex, right = np.asarray(anatomy["frame"], float)
    return long_axis, to_right, mitral, apex, right


def _grooves(anatomy, heart):
    """Four runs of 16 points: anterior and inferior between the ventricles, left and right between atrium and ventricle."""
    guesses = [*_interventricular_guesses(anatomy), _left_guess(anatomy), _right_guess(anatomy)]
    first, second = np.repeat([LV, LV, LV, RV], STATIONS), np.repeat([RV, RV, LA, RA], STATIONS)
    on_wall = np.repeat([True, False, False, False], STATIONS)
    points = np.concatenate(guesses).astype(np.float32)
    settled = grooves.settle_grooves(points, first, second, on_wall, heart)
    return np.asarray(settled, float).reshape(4, STATIONS, 3)


def _upwards(long_axis):
    return across(np.array([0, -0.55, 0.83]), long_axis)


def _interventricular_guesses(anatomy):
    long_axis, to_right, mitral, apex, _ = _frame_of_heart(anatomy)
    length, up = np.linalg.norm(apex - mitral), _upwards(long_axis)
    u = np.linspace(-2, length * 1.03, STATIONS)
    radius = 38 * np.sqrt(np.maximum(0.05, 1 - ((u - 0.46 * length) / (0.60 * length)) ** 2))[:, None]
    spine = mitral + u[:, None] * long_axis
    return [spine + radius * (0.55 * to_right + side * 0.83 * up) for side in (1, -1)]


def _left_guess(anatomy):
    """A circle of 36 mm around the mitral ring, from above the left main over the side wall to below."""
    long_axis, to_right, mitral, *_ = _frame_of_heart(anatomy)
    up, side = _upwards(long_axis), unit(-to_right)
    start = unit(0.9 * up + 0.45 * side)
    turn = unit(np.cross(long_axis, start) * np.sign(np.cross(long_axis, up) @ side))
    angle = np.deg2rad(np.linspace(-20, 175, STATIONS))[:, None]
    return mitral + 2 * long_axis + 36 * (np.cos(angle) * start + np.sin(angle) * turn)


def _right_guess(anatomy):
    """A circle of 34 mm around the tricuspid ring, from the front to below."""
    right_atrium = np.asarray(anatomy["ra"][:3], float)
    axis = unit(_frame_of_heart(anatomy)[4] - right_atrium)
    up = across(np.array([0, -0.2, 1.0]), axis)
    front = np.cross(axis, up)
    front = front * np.sign(front @ np.array([-0.5, -0.8, 0]))
    angle = np.deg2rad(np.linspace(15, 205, STATIONS))[:, None]
    return right_atrium + 20 * axis + 34 * (np.cos(angle) * up + np.sin(angle) * front)


def _ostium(anatomy, direction):
    """The point on the aortic root in a direction, and the direction made perpendicular to the root."""
    points, radii = np.asarray(anatomy["ao"], float), np.asarray(anatomy["ao_r"], float)
    axis = unit(points[3] - points[1])
    outwards = across(np.array(direction), axis)
    return points[2] + 2.0 * axis + outwards * (radii[2] - 0.5), outwards


def _trunks(anatomy, groove, g):
    """Centre lines of LM, LAD, LCX, RCA and, in right-dominant hearts, PDA; and the patient's vessel size factor."""
    long_axis = _frame_of_heart(anatomy)[0]
    anterior, inferior, left, right = groove
    start, outwards = _ostium(anatomy, OSTIUM_LEFT)
    fork = start + outwards * 11 * np.clip(g.normal(1, 0.25), 0.5, 1.6) + np.array([0, 0, -1.5])
    size = np.clip(g.normal(1 - 0.09 * anatomy["female"], 0.1), 0.75, 1.25)
    anterior = anterior[1:]
    anterior = anterior[(anterior - fork) @ long_axis > 6]
    line = spline(np.vstack([start - 3 * outwards, start, (start + fork) / 2, fork, anterior]), 0.5)
    split = int(np.argmin(np.linalg.norm(line - fork, axis=1)))
    curves = {"LM": line[: split + 1], "LAD": line[split:]}
    curves["LCX"] = _circumflex(
        fork, unit(line[split] - line[max(split - 6, 0)]), left, np.clip(g.normal(0.85, 0.15), 0.45, 1.0)
    )
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


def _branches(curves, anatomy, heart, g):
    """Diagonals, obtuse marginals and the acute marginal, walked on the ventricular walls."""
    plans = _branch_plans(curves, anatomy, g)
    starts, headings, towards, jitter = (np.zeros((MAX_BRANCHES, 3)) for _ in range(4))
    towards[:], headings[:] = (1.0, 0.0, 0.0), (1.0, 0.0, 0.0)
    jitter = np.zeros((MAX_STEPS, MAX_BRANCHES, 3))
    wall, apart = np.zeros(MAX_BRANCHES, int), np.zeros((MAX_BRANCHES, 6))
    for i, plan in enumerate(plans):
        starts[i], headings[i], towards[i] = plan["start"], plan["heading"], plan["towards"]
        jitter[: len(plan["jitter"]), i] = plan["jitter"]
        wall[i], apart[i, list(plan["apart"])] = plan["wall"], 1.0
    f32 = np.float32
    walked = grooves.march(f32(starts), f32(headings), f32(towards), f32(jitter), wall, f32(apart), heart)
    walked = np.asarray(walked, float)
    return {
        plan["name"]: spline(np.vstack([plan["start"], walked[: len(plan["jitter"]), i]]), 0.25)
        for i, plan in enumerate(plans)
    }


def _branch_plans(curves, anatomy, g):
    long_axis, to_right, *_ = _frame_of_heart(anatomy)
    side, plans = -to_right, []
    for name, at_mm in (("D1", 22), ("D2", 42)):
        if g.random() < 0.9:
            at_mm *= g.uniform(0.8, 1.2)
            towards = 0.55 * long_axis + 0.8 * side
            plans.append(_plan(name, curves["LAD"], at_mm, towards, g.uniform(35, 60), LV, (RV, LA, grooves.TRUNK), g))
    if g.random() < 0.9:
        at_mm, towards = g.uniform(14, 30), 0.9 * long_axis + 0.2 * side
        plans.append(_plan("OM1", curves["LCX"], at_mm, towards, g.uniform(40, 65), LV, (LA,), g))
    if g.random() < 0.6 and len(curves["LCX"]) > 90:
        at_mm = g.uniform(38, 44)
        plans.append(_plan("OM2", curves["LCX"], at_mm, 0.9 * long_axis, g.uniform(30, 50), LV, (LA,), g))
    middle, towards = 0.45 * STEP_MM * len(curves["RCA"]), 0.8 * long_axis + 0.5 * to_right
    plans.append(_plan("AM", curves["RCA"], middle, towards, g.uniform(35, 60), RV, (RA, LV), g))
    return plans


def _plan(name, parent, at_mm, towards, length_mm, wall, apart, g):
    """Where a branch leaves its parent, where it heads, and one random nudge per 5 mm."""
    i = min(int(at_mm / STEP_MM), len(parent) - 2)
    along = unit(parent[min(int(at_mm / STEP_MM) + 4, len(parent) - 1)] - parent[i])
    jitter = g.normal(size=(int(length_mm / 5), 3))
    heading = unit(0.6 * along + towards)
    return {
        "name": name,
        "start": parent[i],
        "heading": heading,
        "towards": towards,
        "jitter": jitter,
        "wall": wall,
        "apart": apart,
    }


def _padded(curves):
    """Curves of several lengths as rows of 400 points; the last point is repeated."""
    return np.stack([np.pad(c[:POINTS], ((0, POINTS - min(len(c), POINTS)), (0, 0)), mode="edge") for c in curves])


def _tortuous(names, curves, lengths, g):
    """Two small sinusoids across each course (0.1-0.7 mm, period 14-26 mm) that vanish at both ends; the LM stays straight."""
    _, normals, binormals = frame(curves)
    s = np.arange(POINTS) * STEP_MM
    for i, name in enumerate(names):
        if name == "LM":
            continue
        amplitude = g.uniform(0.1, 0.7)
        first, second = (np.sin(2 * np.pi * s / g.uniform(14, 26) + g.uniform(0, 6)) for _ in range(2))
        fade = amplitude * np.clip(np.minimum(s, STEP_MM * (lengths[i] - 1) - s) / 8, 0, 1)
        curves[i] += (fade * first)[:, None] * normals[i] + (0.6 * fade * second)[:, None] * binormals[i]
    return curves


def _segments(names, curves, lengths, vessel_size, heart):
    """Clear the curves of the chambers and dress them with frames and radii (a power 0.8 of the relative length)."""
    first, last = (np.array([VESSELS[name][k] for name in names])[:, None] * vessel_size for k in (1, 2))
    share = np.clip(np.arange(POINTS)[None] / (lengths[:, None] - 1), 0, 1)
    radius = first + (last - first) * share**0.8
    fixed = np.array([8 if name in ("LM", "RCA") else 1 for name in names])
    padding = len(VESSELS) - len(names)  # always ten rows: one compiled program for every patient
    rows = np.pad(curves, ((0, padding), (0, 0), (0, 0)), mode="edge").astype(np.float32)
    clear = np.broadcast_to(0.9 * first, radius.shape)
    grow = lambda v: np.pad(v, [(0, padding)] + [(0, 0)] * (v.ndim - 1), mode="edge")  # noqa: E731
    rows = grooves.keep_clear(rows, grow(clear).astype(np.float32), grow(fixed), grow(lengths - 1), heart)
    rows = np.asarray(rows, float)
    axes = frame(rows)
    return [
        segment(name, rows[i, :n], radius[i, :n], VESSELS[name][0], [v[i, :n] for v in axes])
        for i, (name, n) in enumerate(zip(names, lengths))
    ]


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
    long_axis, _, mitral, *_ = _frame_of_heart(anatomy)
    to_aorta = across(np.asarray(anatomy["ao"][1], float) - mitral, long_axis)
    angle = np.deg2rad(np.linspace(60, 300, 200))[:, None]
    ring = np.cos(angle) * to_aorta + np.sin(angle) * np.cross(long_axis, to_aorta)
    return segment("MVA", mitral + 1.5 * long_axis + 0.78 * float(anatomy["lvc"][4]) * ring, np.full(200, 0.8), 6)

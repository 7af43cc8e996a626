"""What a scan shows beside the usual: wide patients, arms in view, thin plaques, hard kernels, motion, streaks, regions without a heart.

A protocol is "chest" or, with a scene, "chest:abdomen" or "chest:wide+arms_down". Points in mm, x to the left, y to the back, z to the
head; a region's own middle is the origin. Shapes are blended one over the other with the blur of the scanner, each in the box that holds
it. Host only, numpy.
"""

from typing import NamedTuple

import numpy as np

from cacjax.phantom.anatomy import stream

REGIONS = ("abdomen", "neck", "head")
SCENES = (*REGIONS, "wide", "arms_down", "arms_up", "thin_plaques", "sharp", "moving", "streaks")
AIR_HU, BRAIN_HU, BONE_HU, TOOTH_HU = -1000.0, 36.0, 750.0, 1900.0


class Shape(NamedTuple):
    """A tube (of one point: a ball) between two ends (x, y, z) in mm, stretched along the axes by `stretch`; HU inside of it."""

    hu: float
    start: tuple
    end: tuple
    radius: float
    stretch: tuple = (1.0, 1.0, 1.0)


def widened(anatomy: dict, seed: int) -> dict:
    """A patient with more fat, 350 to 500 mm from side to side, and noisier by it."""
    fat = np.float32(stream(seed, 707).uniform(32, 85))
    bmi = min(anatomy["bmi"] + max(0.0, float(fat - anatomy["fat"])) / 1.35, 48.0)
    return anatomy | {"fat": fat, "bmi": bmi}


def region_of(scene: tuple) -> str:
    """The region without a heart that a scene shows, or ""."""
    return next((word for word in scene if word in REGIONS), "")


def acquired(settings, scene: tuple, seed: int):
    """A `Protocol` as a scene has it: "sharp", a hard kernel with 25 to 30 HU of noise; "moving", a fast heart not at rest."""
    g = stream(seed, 709)
    fwhm_mm, noise_hu, phase, rr_s, longer = g.uniform(0.62, 0.78), g.uniform(25, 30), g.uniform(0.1, 0.5), g.uniform(0.55, 0.75), 1.6
    if "sharp" in scene:
        settings = settings._replace(kernel="sharp", fwhm_mm=fwhm_mm, noise_hu=noise_hu)
    if "moving" in scene:
        settings = settings._replace(phase=phase, rr_s=rr_s, window_s=longer * settings.window_s)
    return settings


def paint(hu, grid, psf_mm, shapes):
    """Blend shapes over HU [z, y, x], in place."""
    for shape in shapes:
        ends, size = np.array([shape.start, shape.end]), shape.radius * np.array(shape.stretch)
        low, high = ends.min(0) - size - 3 * psf_mm, ends.max(0) + size + 3 * psf_mm
        box = tuple(slice(*np.searchsorted(grid.axis(k), [low[2 - k], high[2 - k]])) for k in range(3))
        z, y, x = (grid.axis(k)[box[k]].astype(np.float32) for k in range(3))
        distance = _distance((x, y[:, None], z[:, None, None]), shape)
        hu[box] += (shape.hu - hu[box]) * np.clip(0.5 - distance / (3.76 * psf_mm), 0, 1)


def _distance(p, shape):
    """First-order distance in mm to a tube, negative inside."""
    stretch = np.array(shape.stretch)
    start, axis = np.array(shape.start) / stretch, (np.array(shape.end) - shape.start) / stretch
    d = [p[i] / stretch[i] - start[i] for i in range(3)]
    along = np.clip(sum(d[i] * axis[i] for i in range(3)) / (axis @ axis + 1e-6), 0, 1)
    away = [d[i] - along * axis[i] for i in range(3)]
    q = np.sqrt(sum(each * each for each in away) + 1e-6)
    slope = np.sqrt(sum((each / stretch[i]) ** 2 for i, each in enumerate(away)) + 1e-9) / q
    return (q - shape.radius) / slope


def arms(anatomy: dict, scene: tuple) -> list[Shape]:
    """Two arms beside the chest, or from the shoulders up: skin, fat, muscle, the humerus with its marrow."""
    fat, muscle = float(anatomy["hu_tis"][0]), float(anatomy["hu_tis"][1])
    wide = float(anatomy["cav"][0] + anatomy["wall"] + 1.1 * anatomy["musc"] + 1.1 * anatomy["fat"])
    thick = 36.0 + 0.3 * float(anatomy["fat"])
    found = []
    for side in (-1, 1):
        top, bottom = (wide + thick - 12, 22, 135), (wide + thick + 10, 30, -400)
        if "arms_up" in scene:
            top, bottom = (wide - 25, 25, 125), (wide - 5, 5, 400)
        start, end = (side * top[0], *top[1:]), (side * bottom[0], *bottom[1:])
        parts = ((20.0, thick), (fat, thick - 2), (muscle, 0.8 * thick), (0.9 * BONE_HU, 11.5), (float(anatomy["hu_bone"][0]), 7.5))
        found += [Shape(hu, start, end, radius) for hu, radius in parts]
    return found


def draw(region: str, anatomy: dict, grid, blood: dict, psf_mm, seed: int):
    """HU [z, y, x] of a region without a heart, on no couch."""
    hu = np.full(grid.shape, AIR_HU, np.float32)
    shapes = {"abdomen": _abdomen, "neck": _neck, "head": _head}[region](stream(seed, 708), anatomy, blood)
    paint(hu, grid, psf_mm, shapes)
    return hu


def _column(at_y, low, high, anatomy, *, radius):
    """Vertebrae with discs, canal and spinous processes from `low` to `high` mm."""
    trabecular, cortex = (float(v) for v in anatomy["hu_bone"][:2])
    period = 2.0 * radius
    found = []
    for z in np.arange(low, high, period):
        for hu, shrink in ((cortex, 0.0), (trabecular, 1.6)):
            found.append(Shape(hu, (0, at_y, z), (0, at_y, z + period - 7), radius - shrink, (1.25, 1.0, 0.4)))
        found.append(Shape(85.0, (0, at_y, z + period - 4), (0, at_y, z + period - 3), radius - 1, (1.2, 1.0, 0.3)))
        found.append(Shape(0.8 * cortex, (0, at_y + radius + 16, z), (0, at_y + radius + 36, z - 6), 4.0))
        found += [Shape(0.7 * cortex, (0, at_y + radius + 8, z), (s * 2 * radius, at_y + radius + 10, z), 4.5) for s in (-1, 1)]
    canal = Shape(25.0, (0, at_y + radius + 7, low - 50), (0, at_y + radius + 7, high + 50), 7.5)
    return [*found, canal]


def _plaques(g, vessel, count, *, size):
    """Calcium in the wall of a tube."""
    found = []
    for _ in range(count):
        t, angle = g.uniform(0, 1), g.uniform(0, 2 * np.pi)
        middle = np.array(vessel.start) + t * (np.array(vessel.end) - vessel.start)
        at = middle + vessel.radius * np.array([np.cos(angle), np.sin(angle), 0])
        found.append(Shape(g.uniform(250, 1100), tuple(at), tuple(at + [0, 0, g.uniform(0, 3 * size)]), g.uniform(0.5, 1.0) * size))
    return found


def _abdomen(g, anatomy, blood):
    """Abdomen and pelvis from the liver to the hips: organs, bowel with gas or oral contrast, iliac bones, plaques of aorta and iliacs."""
    fat, muscle, _, _, _, liver = (float(v) for v in anatomy["hu_tis"])
    wide = float(anatomy["cav"][0] + anatomy["wall"]) + 4
    thick, deep = float(anatomy["fat"]), 0.72 * wide
    enhanced = blood["mix"] > 0
    organ = lambda hu, more: hu + (more if enhanced else 0.0)  # noqa: E731
    found = []
    for hu, less in ((20.0, 0.0), (fat, 2.0), (muscle, thick), (fat, thick + g.uniform(9, 14))):
        radius = wide + thick - less
        found.append(Shape(hu, (0, 0, -900), (0, 0, 900), radius, (1.0, (deep + thick - less) / radius, 1.0)))
    cortex, trabecular = float(anatomy["hu_bone"][1]), float(anatomy["hu_bone"][0])
    found += [Shape(muscle, (s * 45, deep - 48, -250), (s * 38, deep - 40, 120), 22.0) for s in (-1, 1)]
    for s in (-1, 1):  # hips, iliac bones, lowest ribs
        found += [Shape(cortex, (s * 92, 0, -205), (s * 92, 0, -204), 25.0), Shape(trabecular, (s * 92, 0, -205), (s * 92, 0, -204), 22.5)]
        for hu, shrink in ((cortex, 0.0), (trabecular, 2.0)):
            found.append(Shape(hu, (s * 72, 45, -165), (s * 108, 5, -80), 32.0 - 3 * shrink, ((16 - shrink) / 32, 1.0, 1.0)))
        for z in (70, 98, 126):
            found.append(Shape(cortex, (s * 30, deep - 12, z + 20), (s * (wide - 9), 0, z - 20), 5.0))
            found.append(Shape(cortex, (s * (wide - 9), 0, z - 20), (s * 0.6 * wide, -0.75 * deep, z - 45), 5.0))
    found.append(Shape(organ(liver, 60), (-62, -4, 95), (-20, -30, 105), 58.0, (1.1, 1.0, 1.2)))
    found.append(Shape(organ(48.0, 75), (86, 30, 100), (86, 30, 125), 28.0, (1.0, 1.5, 1.2)))
    for s in (-1, 1):
        kidney = (s * 64, 32, 35 + 12 * s)
        found += [
            Shape(organ(32.0, 150), kidney, (kidney[0], 32, kidney[2] + 45), 26.0),
            Shape(fat, kidney, (*kidney[:2], kidney[2] + 35), 9.0),
        ]
    for _ in range(int(g.integers(25, 45))):  # bowel
        at = np.array([g.uniform(-0.7, 0.7) * wide, g.uniform(-0.72, -0.05) * deep, g.uniform(-190, 60)])
        to, radius = at + g.normal(0, 22, 3), g.uniform(9, 20)
        filled = g.choice([20.0, 40.0, AIR_HU, g.uniform(150, 450)], p=[0.4, 0.25, 0.25, 0.1])
        found += [Shape(40.0, tuple(at), tuple(to), radius), Shape(filled, tuple(at), tuple(to), radius - 2.5)]
    found.append(Shape(8.0, (0, -25, -180), (0, -20, -165), 34.0, (1.2, 1.0, 1.0)))
    vessels = [Shape(blood["art"], (6, deep - 74, -45), (8, deep - 76, 900), g.uniform(9, 13))]
    vessels += [Shape(blood["art"], (6, deep - 74, -45), (s * 52, deep - 90, -160), g.uniform(5, 7)) for s in (-1, 1)]
    veins = [Shape(blood["ven"], (-22, deep - 70, -60), (-24, deep - 74, 900), 11.0)]
    plaques = [plaque for vessel in vessels for plaque in _plaques(g, _to_view(vessel), int(g.integers(0, 12)), size=3.0)]
    return found + veins + vessels + plaques + _column(deep - 40, -150, 220, anatomy, radius=18.0)


def _to_view(vessel):
    """The part of a vessel up to 200 mm."""
    return vessel if vessel.end[2] < 200 else vessel._replace(end=(*vessel.end[:2], 200))


def _neck(g, anatomy, blood):
    """Neck, shoulders and, below, the tops of the lungs."""
    fat, muscle, lung = (float(anatomy["hu_tis"][k]) for k in (0, 1, 4))
    found = []
    for hu, less in ((20.0, 0.0), (fat, 2.0), (muscle, 8.0 + 0.2 * float(anatomy["fat"]))):
        found.append(Shape(hu, (0, 5, -900), (0, 5, 900), 66.0 - less, (1.0, 1.05, 1.0)))
        found.append(Shape(hu, (-130, 15, -140), (130, 15, -140), 92.0 - less, (1.0, 0.95, 1.0)))
    for s in (-1, 1):
        found += [
            Shape(0.7 * BONE_HU, (s * 15, -60, -110), (s * 150, -25, -85), 6.5),
            Shape(BONE_HU, (s * 165, 15, -120), (s * 165, 15, -119), 24),
        ]
        found.append(Shape(200.0, (s * 165, 15, -120), (s * 165, 15, -119), 21))
        found += [Shape(lung, (s * 52, 20, -300), (s * 42, 20, -135), 36.0)]
        found.append(Shape(120.0 if blood["mix"] == 0 else 190.0, (s * 17, -22, -55), (s * 20, -20, -20), 9.0))
        carotid = Shape(blood["art"], (s * 26, -8, -120), (s * 30, 0, 150), 3.6)
        jugular = Shape(blood["ven"], (s * 36, -6, -120), (s * 38, 4, 150), 5.5)
        found += [jugular, carotid, *_plaques(g, carotid, int(g.integers(0, 4)), size=1.6)]
    airway = Shape(AIR_HU, (0, -14, -300), (0, -12, 130), 9.0)
    return found + _jaw(g, -58.0, 70.0) + _column(26.0, -280, 130, anatomy, radius=11.0) + [airway]


def _jaw(g, front, z):
    """A lower jaw whose front lies at y and z, and its teeth, some with metal."""
    found = [Shape(BONE_HU, (s * 46, front + 66, z + 35), (s * 13, front, z), 6.5) for s in (-1, 1)]
    found.append(Shape(BONE_HU, (-13, front, z), (13, front, z), 6.5))
    for angle in np.linspace(-1.3, 1.3, 13):
        at = 26 * np.sin(angle), front + 28 - 26 * np.cos(angle)
        found.append(Shape(3000.0 if g.uniform() < 0.15 else TOOTH_HU, (*at, z + 12), (*at, z + 24), 3.2))
    return found


def _head(g, anatomy, blood):
    """Skull, brain with its ventricles, eyes, sinuses, jaw and teeth; the neck below."""
    fat, muscle = (float(anatomy["hu_tis"][k]) for k in (0, 1))
    size, middle = g.uniform(0.93, 1.07), (0.0, 0.0, 30.0)
    found = [Shape(muscle, (0, 25, -900), (0, 10, -40), 60.0), Shape(muscle, (0, -30, -75), (0, -35, 0), 52.0, (1.05, 1.0, 1.0))]
    for hu, radius in ((20.0, 81.0), (fat, 79.0), (BONE_HU, 76.0), (300.0, 73.5), (BONE_HU, 71.5), (BRAIN_HU, 69.5)):
        found.append(Shape(hu, middle, middle, radius * size, (1.0, 1.22, 1.08)))
    for s in (-1, 1):
        found += [Shape(8.0, (s * 10, -22, 45), (s * 16, 25, 50), 6.0), Shape(AIR_HU, (s * 26, -66, -30), (s * 26, -62, -20), 14.0)]
        found += [Shape(20.0, (s * 32, -88, 2), (s * 32, -87, 2), 12.0), Shape(0.6 * BONE_HU, (s * 62, -5, -25), (s * 60, 18, -30), 13.0)]
    found.append(Shape(BRAIN_HU + (60.0 if blood["mix"] > 0 else 12.0), (0, 75, -10), (0, 60, 95), 3.5))
    found += [Shape(AIR_HU, (0, -80, -25), (0, -60, -18), 8.0), Shape(AIR_HU, (0, -20, -300), (0, -25, -40), 10.0)]
    return found + _jaw(g, -75.0, -90.0) + _column(20.0, -320, -55, anatomy, radius=11.0)

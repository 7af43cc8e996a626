"""The scan threshold: mean + 3 SD of the blood in the ascending aorta of an enhanced scan (Zhai 2022, section 2.1), measured or given.

The authors drew a box of about 35 x 36 x 44 voxels, 14 to 18 mm a side, at the level of the left coronary's origin. Here it lies around
the voxel deepest inside the segmented aorta, just above the root, and only what is well inside of it counts. A network without the
aorta's class gives the eroded left ventricular cavity and left atrium instead. Arrays [z, y, x] on the scan's own grid.
"""

import pathlib
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from cacjax.classes import AIR_HU, AORTA, CALCIUM_HU, LA, LV_CAVITY, STRUCTURES
from cacjax.files import scan
from cacjax.kernels import grids
from cacjax.kernels.view import ENHANCED_HU
from cacjax.scoring import body

AUTO = "auto"
OF_SYSTEM = ("scan", "scan_whole")
DEVIATIONS = 3.0
HALF_MM = 8.0  # of the box
DEEP_MM = 3.0  # what is nearer to the wall does not count: partial volume, calcium of the wall, error of the segmentation
LEAST_DEPTH_MM = 6.0  # half the width of what can be an ascending aorta: adults' are 20 mm wide or more
ERODED_MM = 5.0
MOST_SD = 5.0  # from the median, of what counts as blood
LEAST_ML = 0.5
# A quarter at most of the coronary calcium of the phantom's patients is brighter than this, at any tube voltage, by its density alone.
BRIGHT_LUMEN_HU = 800.0
# Non-contrast scans: a core of bright voxels as large as this is blood, not bone (see `bright_core_ml`).
ENHANCED_CORE_ML, CORE_MM = 20.0, 6.0
FLAGS = {
    "bright_lumen": f"the scan threshold is at or above {BRIGHT_LUMEN_HU:g} HU: most calcium is not brighter than the lumen",
    "contrast_enhanced": "no scan threshold was given, but the scan looks contrast-enhanced: blood counts as calcium",
}


class Pool(NamedTuple):
    """Blood in HU: mean and standard deviation over n_voxels; where it lies in words, and as a box (first, one past the last voxel)."""

    mean_hu: float
    sd_hu: float
    n_voxels: int | None
    where: str
    box: tuple | None


def check(given, of_system, heart, roi):
    """Raises ValueError for a scan threshold that cannot be chosen: neither a number nor "auto", "auto" without a heart network, or any for
    a system whose threshold is fixed."""
    if isinstance(given, str) and given != AUTO:
        raise ValueError(f"threshold_hu must be a number of HU or {AUTO!r}, got {given!r}")
    if given == AUTO and roi is None and not isinstance(heart, tuple):
        raise ValueError(f"threshold_hu {AUTO!r} needs a heart network: python -m cacjax.train --config heart.py:whole")
    if isinstance(of_system, str) and of_system not in OF_SYSTEM:
        raise ValueError(f"scoring.threshold must be a number of HU or one of {', '.join(OF_SYSTEM)}, got {of_system!r}")
    if not isinstance(of_system, str) and (given is not None or roi is not None):
        raise ValueError(f"this system counts from {of_system:g} HU in every scan: expected no scan threshold, got {given or roi}")


def choose(given, of_system, image, heart, *, roi=None, regions=None, native_hu=CALCIUM_HU):
    """The scan threshold as the record shows it, and flags (keys of FLAGS): ({"hu", "from", and what was measured}, [..]).

    given: HU, "auto" or None; of_system: "scan", "scan_whole" (what is measured is cut to whole HU, as the authors' code has it), or the
    fixed HU of a system; heart: a `hearts.Heart` or None; roi: a file in the authors' layout (see `read_roi`). regions: where alone
    scores are read, or None. native_hu: of non-contrast CT. Raises ScanError `no_aorta` where "auto" finds none, `contrast_enhanced`
    where nothing is given and the network's blood is enhanced.
    """
    native, whole = {"hu": native_hu, "from": "assumed non-contrast"}, of_system == "scan_whole"
    if not isinstance(of_system, str):
        return {"hu": float(of_system), "from": "the system"}, _check_native(image, heart, regions)
    if roi is not None:
        record = _from_pool(read_roi(roi), native, whole)
    elif given == AUTO:
        record = _from_pool(measure(image, heart), native, whole)
    elif given is not None:
        record = {"hu": float(given), "from": "option"}
    else:
        return native, _check_native(image, heart, regions)
    return record, ["bright_lumen"] if record["hu"] >= BRIGHT_LUMEN_HU else []


def native(rule):
    """The HU from which a rule counts in non-contrast CT."""
    least = CALCIUM_HU if rule.threshold_hu is None else rule.threshold_hu
    return float(np.nextafter(np.float32(least), np.float32(np.inf)) if rule.strict else least)


def _from_pool(pool, native, truncate):
    found = {key: value for key, value in pool._asdict().items() if value is not None}
    if pool.mean_hu < ENHANCED_HU:
        return native | {"from": "not enhanced"} | found
    hu = pool.mean_hu + DEVIATIONS * pool.sd_hu
    return {"hu": float(int(hu)) if truncate else hu, "from": "mean + 3 SD"} | found


def _check_native(image, heart, regions):
    """Flags of a scan that is taken for non-contrast. Raises ScanError `contrast_enhanced` where a network measures enhanced blood."""
    if heart is not None and heart.structures is not None:
        pool = _blood(image, heart.structures)
        if pool is not None and pool.mean_hu >= ENHANCED_HU:
            text = f"{image.path}: blood at {pool.mean_hu:.0f} HU ({pool.where}) and no scan threshold; try --threshold-hu auto"
            raise scan.ScanError("contrast_enhanced", text)
        return []
    inside = regions > 0 if regions is not None else None if heart is None else heart.mask
    return ["contrast_enhanced"] if bright_core_ml(image, inside) >= ENHANCED_CORE_ML else []


def measure(image, heart):
    """`Pool` of a `hearts.Heart` that a network found. Raises ScanError `no_aorta` where there is nothing to measure."""
    wanted = STRUCTURES[AORTA] if heart.classes > AORTA else "left ventricle or atrium"
    pool = _ascending(image, heart.structures) if heart.classes > AORTA else _blood(image, heart.structures)
    if pool is None and heart.classes > AORTA:
        blood = _blood(image, heart.structures)  # gated scans may end below the aorta; unless blood is enhanced that does not matter
        pool = blood if blood is not None and blood.mean_hu < ENHANCED_HU else None
    if pool is None:
        text = f"{image.path}: no {wanted} in view to measure; expected a scan threshold in HU or the region of interest of an aorta"
        raise scan.ScanError("no_aorta", text)
    return pool


def _ascending(image, structures):
    """`Pool` in the aorta, or None where it is not in view."""
    spacing_mm = scan.spacing_mm(image.affine)
    here = ndimage.find_objects((structures == AORTA).astype(np.uint8))
    if not here:
        return None
    # What lies beyond the scan is no wall.
    inside = np.pad(structures[here[0]] == AORTA, 1)
    inside = _open_ends(inside, here[0], structures.shape)
    depth = ndimage.distance_transform_edt(inside, spacing_mm)[1:-1, 1:-1, 1:-1]
    if depth.max() < LEAST_DEPTH_MM:
        return None
    first = np.array([part.start for part in here[0]])
    middle = first + np.unravel_index(depth.argmax(), depth.shape)
    half = np.maximum(1, np.round(HALF_MM / np.array(spacing_mm))).astype(int)
    low, high = np.maximum(middle - half, 0), np.minimum(middle + half + 1, structures.shape)
    deep = np.zeros(structures.shape, bool)
    deep[here[0]] = depth >= DEEP_MM
    box = tuple(map(slice, low, high))
    return _pool(image.hu[box][deep[box]], spacing_mm, STRUCTURES[AORTA], (low.tolist(), high.tolist()))


def _open_ends(padded, here, shape):
    """A padded mask whose padding repeats it where the box `here` ends with the scan."""
    for axis, (part, n) in enumerate(zip(here, shape)):
        view = np.moveaxis(padded, axis, 0)
        if part.start == 0:
            view[0] = view[1]
        if part.stop == n:
            view[-1] = view[-2]
    return padded


def _blood(image, structures):
    """`Pool` of the left ventricular cavity and the left atrium without their outer 5 mm, or None where too little is in view."""
    spacing_mm = scan.spacing_mm(image.affine)
    chambers = np.isin(structures, (LV_CAVITY, LA))
    here = ndimage.find_objects(chambers.astype(np.uint8))
    if not here:
        return None
    inside = np.pad(chambers[here[0]], 1)
    core = ndimage.distance_transform_edt(inside, spacing_mm)[1:-1, 1:-1, 1:-1] > ERODED_MM
    return _pool(image.hu[here[0]][core], spacing_mm, "LV cavity and LA, eroded by 5 mm", None)


def _pool(values, spacing_mm, where, box):
    values = values.astype(np.float64)
    if values.size:  # fat and calcium within the outline are no blood, and would widen the SD (1.4826 median deviations are one)
        off = np.abs(values - np.median(values))
        values = values[off <= max(MOST_SD * 1.4826 * np.median(off), 1.0)]
    if values.size * np.prod(spacing_mm) < 1000 * LEAST_ML:
        return None
    return Pool(float(values.mean()), float(values.std()), int(values.size), where, box)


def bright_core_ml(image, inside=None):
    """Volume in ml of the largest region of bright voxels that are 6 mm or more inside of it, of means over cells of 3 mm.

    An enhanced heart and its vessels have a core of tens of millilitres; ribs and sternum next to none. inside: bool [z, y, x], a heart to
    look in, so that bones do not count at all; without one it is the front of the body, where no vertebra is.
    """
    image, inside = (scan.oriented(image), None) if inside is None else scan.oriented(image, inside)
    spacing_mm = scan.spacing_mm(image.affine)
    hu = image.hu if inside is None else np.where(inside, image.hu, np.float32(AIR_HU))
    cells, _ = grids.coarsen(hu, spacing_mm, (body.CELL_MM,) * 3)
    bright = cells >= ENHANCED_HU
    if inside is None:
        bright &= body.front(body.of(hu, spacing_mm)[0])
    core = ndimage.distance_transform_edt(np.pad(bright, 1)) * body.CELL_MM >= CORE_MM
    parts, _ = ndimage.label(core)
    return float(np.bincount(parts.ravel())[1:].max(initial=0) * body.CELL_MM**3 / 1000)


def read_roi(path):
    """`Pool` of a file in the authors' layout: one row of numbers, the seventh and eighth of which are mean and SD of the region in HU.

    Raises ScanError `bad_roi`.
    """
    path = pathlib.Path(path)
    try:
        numbers = [float(word) for word in path.read_text().split()]
        mean_hu, sd_hu = numbers[6:8]
    except (OSError, ValueError) as error:
        text = f"{path}: expected a row of 8 or more numbers, the seventh and eighth the mean and SD of the aorta in HU: {error}"
        raise scan.ScanError("bad_roi", text) from None
    if not (np.isfinite(mean_hu) and sd_hu >= 0):
        raise scan.ScanError("bad_roi", f"{path}: expected a finite mean and an SD of 0 or more, got {mean_hu} and {sd_hu}")
    return Pool(mean_hu, sd_hu, None, f"file {path.name}", None)

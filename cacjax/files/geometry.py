"""Patient geometry of a scan: its affine, the checks that refuse it with a reason code, exact changes of axes.

Arrays are `[z, y, x]`; patient coordinates are LPS mm (x to the patient's left, y to the back, z to the head).
`affine` float64 [4, 4] takes array indices to patient coordinates: `affine @ (z, y, x, 1) = (X, Y, Z, 1)`. Its first
three columns are the steps along the array's axes, in array order.
"""

import itertools
from typing import NamedTuple

import numpy as np

REASONS = {
    "not_found": "nothing is at the path",
    "empty_folder": "the folder or zip holds no scan",
    "unreadable": "the file cannot be opened or parsed",
    "unknown_format": "the file is neither DICOM, a zip of DICOM, NIfTI, MHA/MHD nor NRRD",
    "not_dicom": "a file named .dcm, or a zip without DICOM inside, is not DICOM",
    "truncated": "the file ends before its voxels do",
    "corrupt": "the content contradicts itself: a checksum, an encoding, the byte order, a zip with one name twice",
    "too_large": "more voxels, or more bytes to unpack, than any scan has",
    "bad_header": "a header value that the geometry or the Hounsfield units need is absent or impossible",
    "bad_geometry": "what a header says of the grid contradicts itself or is no grid of a CT in mm",
    "rescale": "the slope or intercept that makes Hounsfield units of stored values is impossible",
    "unsupported_transfer_syntax": "the compression of the DICOM pixels cannot be decoded",
    "multiframe": "enhanced multi-frame DICOM is not read",
    "not_ct": "the modality is not CT, or the images are screenshots, or all are localizers",
    "not_hu": "the values are not Hounsfield units: not finite, constant, or another quantity",
    "not_hounsfield": "air and soft tissue are not where Hounsfield units have them",
    "not_volume": "one slice, a two-dimensional image, a time series or a colour image",
    "several_series": "several CT series and none chosen",
    "series_not_found": "no CT series matches the chosen one",
    "several_scans": "one scan was asked for and the path holds several",
    "mixed_geometry": "the slices of one series differ in matrix size, pixel spacing or orientation",
    "duplicate_slice": "two slices lie at one position",
    "missing_slice": "a gap between slices is a multiple of the increment",
    "uneven_increment": "the distance between slices varies",
    "gantry_tilt": "the slices are stacked along a line that is not their normal",
    "shear": "the axes of the grid are not at right angles, or a slice lies beside its stack",
    "grid_mismatch": "a mask does not lie on the grid of its scan",
    "reader_crashed": "the process that read the scan ended: the file is damaged in a way that the image library does not survive",
    "reader_timeout": "reading took longer than the time limit",
    "reader_memory": "reading needed more memory than the limit",
}

FLAGS = {"lossy_compression": "the pixels were compressed with loss, which moves single voxels by tens of HU"}

# Two slices nearer than this are one position: positions are written to at least 0.01 mm, and no CT reconstructs nearer.
DUPLICATE_MM = 0.01
# An increment may differ from the median by 1 % (a lesion's volume changes as much) or by what rounding makes of it:
# twice half the last decimal, 0.1 mm where a scanner writes positions to one decimal (0.625 becomes 0.6 or 0.7).
INCREMENT_FRACTION = 0.01
ROUNDED_MM = (0.1, 0.01)
# A gap within a tenth of an increment of a multiple >= 2 of it is lost slices; any other odd gap is an uneven increment.
GAP_FRACTION = 0.1
# Tables sag and headers are rounded: below a tenth of a degree a stack drifts by less than a pixel over a chest.
TILT_DEG = 0.1
# A slice this far beside the line through its stack is seen as moved; a third of the finest CT pixel.
LATERAL_MM = 0.1
# Cosine between two axes: direction cosines written to three decimals are right to about this.
COSINE = 2e-3
# Grids are one if no corner differs by more than a tenth of a voxel: float32 NIfTI headers keep far better.
GRID_VOXELS = 0.1
# Voxels of CT, from micro-CT to the thickest slices, and how far a scanner's origin can be.
SPACING_MM = (0.01, 100.0)
FARTHEST_MM = 1e5


class ScanError(ValueError):
    """A scan that cannot be read or must not be scored. `code` is a key of REASONS (or of the caller's own)."""

    def __init__(self, code, message):
        super().__init__(code, message)
        self.code, self.message = code, message

    def __str__(self):
        return f"{self.message} [{self.code}]"


class Acquisition(NamedTuple):
    """What the headers say of how a scan was made; "" or None where they say nothing. flags: keys of FLAGS, doubts about its values."""

    modality: str = ""
    series_uid: str = ""
    kvp: float | None = None
    slice_thickness_mm: float | None = None
    kernel: str = ""
    contrast: bool | None = None
    description: str = ""
    manufacturer: str = ""
    patient_id: str = ""
    study_uid: str = ""
    flags: tuple[str, ...] = ()


class Scan(NamedTuple):
    """hu: float32 [z, y, x], HU. affine: float64 [4, 4], array indices to LPS mm. path: where it was read from."""

    hu: np.ndarray
    affine: np.ndarray
    acquisition: Acquisition
    path: str


def refuse(code, path, found, expected, advice):
    """ScanError that names the file, what was found, what was expected and what to do; can be printed whatever the file's name."""
    return ScanError(code, f"{path}: {found}; expected {expected}. {advice}".encode("utf-8", "backslashreplace").decode())


def spacing_mm(affine):
    """(dz, dy, dx) of an affine, mm. Raises ValueError where one is not positive and finite."""
    steps = np.linalg.norm(np.asarray(affine, np.float64)[:3, :3], axis=0)
    if not (np.isfinite(steps).all() and (steps > 0).all()):
        raise ValueError(f"spacing_mm must be positive, got {tuple(float(step) for step in steps)}")
    return tuple(float(step) for step in steps)


def check_affine(affine, path):
    """Raises ScanError: `bad_header` for spacings that are no lengths, `bad_geometry` for lengths and places that no CT has, `shear` for
    axes that are not at right angles."""
    try:
        axes = affine[:3, :3] / spacing_mm(affine)
    except ValueError as error:
        advice = "Write the file again with its voxel size in the header."
        raise refuse("bad_header", path, str(error), "three positive lengths in mm", advice) from None
    worst = np.abs(axes.T @ axes - np.eye(3)).max()
    if worst > COSINE:
        found = f"the grid's axes meet at {np.degrees(np.arccos(min(worst, 1))):.2f} degrees"
        advice = "Resample it to an orthogonal grid, or score the original slices."
        raise refuse("shear", path, found, "right angles (a sheared grid moves lesions)", advice)
    steps, origin = spacing_mm(affine), affine[:3, 3]
    if min(steps) < SPACING_MM[0] or max(steps) > SPACING_MM[1] or not np.abs(origin).max() <= FARTHEST_MM:
        found = f"voxels of {rounded(steps)} mm from {rounded(origin)} mm"
        expected = f"{SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm, within {FARTHEST_MM:g} mm"
        raise refuse("bad_geometry", path, found, expected, "Write the file again in mm, from the original series.")


def stack(positions, orientation, pixel_mm, names, path):
    """Order and affine of parallel slices, from their positions alone.

    positions: [n, 3] LPS mm of the first pixel of each slice. orientation: [2, 3], the directions of growing column and
    of growing row (ImageOrientationPatient). pixel_mm: (dy, dx). names: n file names. Returns (order [n], affine) with
    slices ascending along the normal (columns x rows). Raises ScanError with the codes of the checks in this module.
    """
    along_x, along_y, normal = _frame(orientation, path)
    if len(names) < 2:
        advice = "Give the folder that holds the whole series."
        raise refuse("not_volume", path, "the series has 1 slice", "at least 2", advice)
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    positions, heights, names = positions[order], heights[order], [names[i] for i in order]
    _check_duplicates(heights, names, path)
    _check_line(positions, normal, names, path)
    _check_increments(heights, names, path)
    affine = np.eye(4)
    affine[:3, 0] = normal * (heights[-1] - heights[0]) / (len(names) - 1)
    affine[:3, 1], affine[:3, 2], affine[:3, 3] = along_y * pixel_mm[0], along_x * pixel_mm[1], positions[0]
    return order, affine


def _frame(orientation, path):
    """Unit vectors along x, y and the normal; exactly orthogonal, since headers are rounded."""
    lengths = np.linalg.norm(orientation, axis=1)
    cosine = float(orientation[0] @ orientation[1])
    if not np.isfinite(orientation).all() or np.abs(lengths - 1).max() > 1e-2 or abs(cosine) > COSINE:
        found = f"ImageOrientationPatient {rounded(orientation.ravel())} has lengths {rounded(lengths)}, cosine {cosine:.4f}"
        advice = "Export the original slices from the scanner or PACS again."
        raise refuse("shear", path, found, "two unit vectors at right angles", advice)
    along_x = orientation[0] / lengths[0]
    normal = np.cross(along_x, orientation[1])
    normal /= np.linalg.norm(normal)
    return along_x, np.cross(normal, along_x), normal


def _check_duplicates(heights, names, path):
    same = np.flatnonzero(np.diff(heights) < DUPLICATE_MM)
    if not len(same):
        return
    pairs = ", ".join(f"{names[i]} and {names[i + 1]} at {heights[i]:.3f} mm" for i in same[:3])
    more = f" and {len(same) - 3} more pairs" if len(same) > 3 else ""
    expected = f"one slice at each position (at least {DUPLICATE_MM} mm apart)"
    advice = "Remove the copies; if the series holds several phases, export one of them."
    raise refuse("duplicate_slice", path, pairs + more, expected, advice)


def _check_line(positions, normal, names, path):
    """The slices must be stacked along their normal, each on the line."""
    height = (positions - positions[0]) @ normal
    beside = positions - positions[0] - height[:, None] * normal
    drift = beside[-1] / height[-1]
    residual = np.linalg.norm(beside - height[:, None] * drift, axis=1)
    worst = int(residual.argmax())
    if residual[worst] > LATERAL_MM:
        found = f"{names[worst]} lies {residual[worst]:.2f} mm beside the line through the first and last slice"
        advice = "Remove the stray slice's series, or export the original axial series."
        raise refuse("shear", path, found, f"at most {LATERAL_MM} mm", advice)
    degrees, shift_mm = np.degrees(np.arctan(np.linalg.norm(drift))), np.linalg.norm(beside[-1])
    if degrees > TILT_DEG and shift_mm > LATERAL_MM:
        found = f"gantry tilted by {degrees:.2f} degrees (the last slice lies {shift_mm:.2f} mm beside the first)"
        advice = "Export a reconstruction without tilt, or resample it to an orthogonal grid first."
        raise refuse("gantry_tilt", path, found, f"at most {TILT_DEG} degrees", advice)


def _check_increments(heights, names, path):
    gaps = np.diff(heights)
    increment = float(np.median(gaps))
    coarse = np.allclose(heights * 10, np.round(heights * 10), atol=1e-3)
    limit = max(ROUNDED_MM[0] if coarse else ROUNDED_MM[1], INCREMENT_FRACTION * increment) + 1e-6
    folds = np.round(gaps / increment)
    lost = np.flatnonzero((folds >= 2) & (np.abs(gaps - folds * increment) <= limit + GAP_FRACTION * increment))
    if len(lost):
        places = ", ".join(f"{gaps[i]:.3f} mm between {names[i]} and {names[i + 1]}" for i in lost[:3])
        found = f"{int((folds[lost] - 1).sum())} of {int(folds.sum()) + 1} slices are missing: {places}"
        advice = "Export the series again in full."
        raise refuse("missing_slice", path, found, f"the increment of {increment:.3f} mm everywhere", advice)
    worst = int(np.abs(gaps - increment).argmax())
    if abs(gaps[worst] - increment) > limit:
        found = f"the slices are {gaps.min():.3f} to {gaps.max():.3f} mm apart"
        found += f" ({gaps[worst]:.3f} mm between {names[worst]} and {names[worst + 1]})"
        advice = "Export one reconstruction with a constant increment."
        raise refuse("uneven_increment", path, found, f"{increment:.3f} mm within {limit:.3f} mm", advice)


def rounded(values):
    """Numbers as messages show them: six digits."""
    return tuple(float(f"{float(value):.6g}") for value in values)


def same_grid(shape, affine, other_shape, other_affine):
    """Whether two grids coincide: equal shapes, and no corner apart by more than a tenth of the smallest spacing."""
    if tuple(shape) != tuple(other_shape):
        return False
    ends = np.array(list(itertools.product(*((0, n - 1) for n in shape))), np.float64)
    apart = np.linalg.norm(ends @ (affine - other_affine)[:3, :3].T + (affine - other_affine)[:3, 3], axis=1)
    return bool(apart.max() <= GRID_VOXELS * min(spacing_mm(affine)))


def turn(affine, target=None):
    """(axes, flips): how to permute, then flip, an array with `affine` so that its axes best follow those of `target`.

    target: affine or None for the canonical frame, axis 0 to the head, 1 to the back, 2 to the left.
    """
    canonical = np.eye(3)[:, ::-1]
    goal = canonical if target is None else target[:3, :3] / spacing_mm(target)
    cosines = goal.T @ (affine[:3, :3] / spacing_mm(affine))
    axes = max(itertools.permutations(range(3)), key=lambda axes: sum(abs(cosines[i, a]) for i, a in enumerate(axes)))
    return axes, tuple(i for i, a in enumerate(axes) if cosines[i, a] < 0)


def turned(array, axes, flips):
    """Permute and flip the first three axes of an array; exact, later axes (channels) stay."""
    rest = tuple(range(3, array.ndim))
    return np.ascontiguousarray(np.flip(array.transpose(axes + rest), flips))


def turned_affine(affine, shape, axes, flips):
    """The affine of `turned(array, axes, flips)` for an array of this shape."""
    result = affine[:, [*axes, 3]].astype(np.float64)
    for i in flips:
        result[:, 3] += result[:, i] * (shape[axes[i]] - 1)
        result[:, i] *= -1
    return result


def oriented(scan, *arrays):
    """The scan with axis 0 towards the head, 1 towards the back, 2 to the left: flipped and permuted, never resampled.

    arrays: [z, y, x, ...] on the scan's grid, turned alike. Returns a Scan, or (Scan, *arrays) where arrays are given.
    Raises ValueError for an array that is not on the grid.
    """
    for array in arrays:
        _check_shape(array, scan.hu.shape)
    axes, flips = turn(scan.affine)
    affine = turned_affine(scan.affine, scan.hu.shape, axes, flips)
    result = scan._replace(hu=turned(scan.hu, axes, flips), affine=affine)
    return (result, *(turned(np.asarray(array), axes, flips) for array in arrays)) if arrays else result


def restore(array, scan):
    """Inverse of `oriented`: an array [z, y, x, ...] on the grid of `oriented(scan)` back on the scan's own, exactly."""
    axes, flips = turn(scan.affine)
    _check_shape(array, tuple(scan.hu.shape[a] for a in axes))
    rest = tuple(range(3, np.ndim(array)))
    return np.ascontiguousarray(np.flip(np.asarray(array), flips).transpose(tuple(np.argsort(axes)) + rest))


def _check_shape(array, shape):
    if tuple(np.shape(array)[:3]) != tuple(shape):
        raise ValueError(f"array must start with the grid's shape {tuple(shape)}, got {np.shape(array)}")

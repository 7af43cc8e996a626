"""Scans in and masks out: DICOM folders and zips, NIfTI, MHA/MHD and NRRD, with the geometry that belongs to the voxels.

    for source in find(["folder/of/scans", "one.nii.gz", "series.zip"]):
        scan = read(source)                        # hu [z, y, x] float32, affine to LPS mm; ScanError says why not
        write_mask(scan.hu >= 130, scan, "mask.nii.gz")                         # on the grid of the input

`find` reads headers only and never raises: what cannot be scored is a Source with its ScanError. In a folder of scans each
NIfTI, MHA, MHD or NRRD file, each zip and each folder that holds DICOM files is a scan. Files named `*_scored`, `*_regions`,
`*_detected` or `*_probability` (with any suffix) belong to a scan and are none themselves, unless they are given by name; `*_label`,
`*_heart` and `*_mask` do where there is a scan or a record of that name, and are scans where there is none. Hidden files are passed
over, and so are files of other kinds. REASONS lists the codes.
"""

import os
import pathlib
import re
import sys
from typing import NamedTuple

import numpy as np

from cacjax.files import dicom, geometry, hounsfield, manifest, volume
from cacjax.files.dicom import write_dicom
from cacjax.files.geometry import FLAGS, REASONS, Acquisition, Scan, ScanError, oriented, refuse, restore, spacing_mm
from cacjax.files.regular import size_of, unreadable
from cacjax.files.series import arrange, check_slice, select

__all__ = [
    "FLAGS",
    "REASONS",
    "Acquisition",
    "Scan",
    "ScanError",
    "Source",
    "find",
    "oriented",
    "read",
    "read_mask",
    "restore",
    "spacing_mm",
    "write_dicom",
    "write_image",
    "write_mask",
]

COMPANION = re.compile(r"(.*)_(label|heart|mask|scored|regions|detected|probability)(\.[^.]+){1,2}", re.IGNORECASE)
OWN = ("scored", "regions", "detected", "probability")
# Files made of a name add to it, and file systems take 255 bytes.
MOST_NAME_BYTES = 120
CHOICES = ("several_series", "series_not_found")


class Source(NamedTuple):
    """One scan that `find` met. name: unique among those found, fit for file names. error: why it cannot be read."""

    name: str
    path: str
    series_uid: str | None
    error: ScanError | None


def find(paths, *, series=None):
    """Sources of the scans at paths (one, or a list), by path within each; folders are walked. Raises nothing.

    series: which CT series of a DICOM folder or zip: its UID, the end of its UID, or a part of its description.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found = {}
    for path in paths:
        for source in _sources(pathlib.Path(path), series):
            found.setdefault((os.path.abspath(source.path), source.series_uid), source)
    return named(list(found.values()))


def _sources(path, series):
    if not os.path.isdir(path):
        return [_source(path, series)]
    companions = []
    found = list(_walk(path, series, set(), companions))
    names = {source.name for source in found}
    found += [_source(entry, series) for entry in companions if _stem(COMPANION.fullmatch(entry.name)[1]) not in names]
    found.sort(key=lambda source: source.path)
    if found:
        return found
    advice = "Give a DICOM folder or zip, a NIfTI, MHA or NRRD file, or a folder of those."
    return [_failed(path, refuse("empty_folder", path, "the folder holds files but no scan", "a scan", advice))]


def _walk(folder, series, seen, companions):
    """Sources of a folder and of those inside it; `seen` holds the real paths entered, against links in circles. companions: gets the
    files that are named as what belongs to a scan."""
    if os.path.realpath(folder) in seen:
        return
    seen.add(os.path.realpath(folder))
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        yield _failed(folder, unreadable(folder, error))
        return
    if not entries:
        yield _failed(folder, refuse("empty_folder", folder, "the folder is empty", "a scan", "Export the scan again."))
    yield from _dicom_sources(folder, series)
    for entry in entries:
        companion = COMPANION.fullmatch(entry.name)
        if os.path.isdir(entry):
            yield from _walk(entry, series, seen, companions)
        elif not (volume.suffix(entry) or entry.suffix.lower() == ".zip"):
            continue
        elif companion is None:
            yield _source(entry, series)
        elif companion[2].lower() not in OWN and not os.path.exists(entry.with_name(f"{companion[1]}.json")):
            companions.append(entry)


def _dicom_sources(folder, series):
    """The scan of the DICOM files in a folder, or, where each of them is lost, one failure per series.

    A file that is lost before it names its series is of the only one, if there is one; what is not DICOM at all is of none.
    """
    try:
        slices = [item for item in dicom.headers(folder) if not (item.error and volume.suffix(item.name))]
    except ScanError as error:
        yield _failed(folder, error)
        return
    if any(item.error is None for item in slices):
        yield _source(folder, series, slices)
        return
    lost = {}
    for item in slices:
        key = item.error.code == "not_dicom" if item.header is None else item.header.SeriesInstanceUID
        lost.setdefault(key, []).append(item)
    of_series = [key for key in lost if not isinstance(key, bool)]
    if False in lost and len(of_series) == 1:
        lost[of_series[0]] += lost.pop(False)
    for items in lost.values():
        alone = len(lost) == 1 and len(items) > 1
        more = f" ({len(items) - 1} more files like it)" if len(items) > 1 else ""
        yield _failed(folder if alone else folder / items[0].name, ScanError(items[0].error.code, items[0].error.message + more))


def _source(path, series, slices=None):
    """Source of one scan, all of its headers checked."""
    try:
        sys.audit("cacjax.files.scan", str(path))  # see `reading`: where a reader process is, should it end here
        return Source(_stem(path), str(path), _check(path, series, slices), None)
    except ScanError as error:
        return _failed(path, error)
    except Exception as error:  # damaged headers raise many kinds, and one scan must not stop a batch
        return _failed(path, unreadable(path, error))


def _failed(path, error):
    return Source(_stem(path), str(path), None, error)


def _check(path, series, slices=None):
    """SeriesInstanceUID of a scan, None for one without. Raises ScanError where its headers refuse it."""
    if os.path.isdir(path):
        return _arranged(path, series, slices).acquisition.series_uid
    size_of(path)
    if volume.suffix(path):
        volume.inspect(path)
        return None
    return _arranged(path, series, slices).acquisition.series_uid


def _arranged(path, choice, slices=None):
    """The Series in a folder or zip."""
    if os.path.isfile(path) and path.suffix.lower() != ".zip":
        raise _single(path)
    slices = dicom.headers(path) if slices is None else slices
    return arrange(select(slices, path, choice), path)


def _single(path):
    """The ScanError for a file that is no volume: at best one slice of a scan."""
    item = dicom.header(path)
    if item is None:
        advice = "Convert it to one of these, or give the folder that holds the scan."
        return refuse("unknown_format", path, "a file of another kind", "DICOM, zip, NIfTI, MHA or NRRD", advice)
    select([item], path)
    check_slice(item, path)
    advice = "Give the folder that holds its series."
    return refuse("not_volume", path, "one slice of a series", "a folder of slices", advice)


def _stem(path):
    """Name of a scan after its file or folder, fit for file names."""
    name = pathlib.Path(path).resolve().name if str(path) in (".", "..") else pathlib.Path(path).name
    ending = next((s for s in (*volume.SUFFIXES, ".zip", *dicom.SUFFIXES) if name.lower().endswith(s)), "")
    return re.sub(r"[^\w.+-]", "_", name[: len(name) - len(ending)]) or "scan"


def named(sources):
    """Sources with unique names, short enough for what files add: those that share one take their folder's before it, then a number."""
    names = [_stem(source.path) for source in sources]
    parents = [_stem(pathlib.Path(source.path).absolute().parent) for source in sources]
    longer = [f"{parent}_{name}" if names.count(name) > 1 else name for parent, name in zip(parents, names)]
    return [source._replace(name=name) for source, name in zip(sources, manifest.unique([_short(name) for name in longer]))]


def _short(name):
    whole = os.fsencode(name)
    return name if len(whole) <= MOST_NAME_BYTES else whole[:MOST_NAME_BYTES].decode(errors="ignore")


def read(source, *, series=None):
    """Read one scan: a Source, or a path that holds one. series: as in `find`, also settles a `several_series` Source.

    Slices ascend along their normal; the affine says where that points. Returns a Scan; raises ScanError, nothing else.
    """
    if not isinstance(source, Source):
        source = _only(source, series)
    if source.error is not None and not (series is not None and source.error.code in CHOICES):
        raise source.error
    path = pathlib.Path(source.path)
    try:
        hu, affine, acquisition = _voxels(path, source.series_uid if series is None else series)
    except ScanError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error
    hounsfield.check(hu, path)
    return Scan(hu, affine, acquisition, source.path)


def _only(path, series):
    sources = find([path], series=series)
    if len(sources) == 1:
        return sources[0]
    names = ", ".join(source.name for source in sources[:5]) + (", ..." if len(sources) > 5 else "")
    raise refuse("several_scans", path, f"{len(sources)} scans ({names})", "one", "Give the path of one of them.")


def _voxels(path, choice):
    if volume.suffix(path) and not os.path.isdir(path):
        array, affine = volume.load(path)
        return array.astype(np.float32), affine, Acquisition()
    found = _arranged(path, choice)
    return dicom.pixels(found.slices, path), found.affine, found.acquisition


def read_mask(path, like):
    """Read a mask or label map onto the grid of the Scan `like`: int16 [z, y, x].

    Axes in another order or direction are turned, exactly; nothing is resampled. Raises ScanError: `grid_mismatch` where
    the grids differ, `bad_header` for values that are no whole numbers of int16, or what hinders reading the file.
    """
    path = pathlib.Path(path)
    size_of(path)
    if not volume.suffix(path):
        raise refuse("unknown_format", path, "a file of another kind", " ".join(volume.SUFFIXES), "Convert the mask.")
    array, affine = volume.load(path)
    axes, flips = geometry.turn(affine, like.affine)
    affine = geometry.turned_affine(affine, array.shape, axes, flips)
    array = geometry.turned(array, axes, flips)
    if not geometry.same_grid(array.shape, affine, like.hu.shape, like.affine):
        found, expected = (_grid(*g) for g in ((array.shape, affine), (like.hu.shape, like.affine)))
        advice = "Resample the mask onto the scan with nearest neighbour, or draw it on this very scan."
        raise refuse("grid_mismatch", path, f"a mask of {found}", f"the scan's {expected} ({like.path})", advice)
    result = array.astype(np.int16)
    if not (result == array).all():
        raise refuse("bad_header", path, "values that are no whole numbers", "labels of int16", "Give a label map.")
    return result


def _grid(shape, affine):
    spacing, origin = ([round(float(v), 4) for v in values] for values in (spacing_mm(affine), affine[:3, 3]))
    return f"{' x '.join(map(str, shape))} voxels of {spacing} mm [z, y, x] from {origin}"


def write_mask(mask, scan, path):
    """Write a mask or label map on the grid of its Scan: its origin, spacing and direction. Atomic.

    mask: [z, y, x] bool or integers of -32768..65535, as on `scan.hu`. path: .nii.gz, .nii, .mha or .nrrd.
    Raises ValueError for another shape, type or suffix.
    """
    mask = np.asarray(mask)
    if mask.shape != scan.hu.shape:
        raise ValueError(f"mask must have the scan's shape {scan.hu.shape}, got {mask.shape}")
    if mask.dtype != bool and not np.issubdtype(mask.dtype, np.integer):
        raise ValueError(f"mask must be bool or integer, got {mask.dtype}")
    low, high = (int(mask.min()), int(mask.max())) if mask.size else (0, 0)
    fits = [kind for kind in (np.uint8, np.int16, np.uint16) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max]
    if not fits:
        raise ValueError(f"labels must fit uint8, int16 or uint16, got {low} to {high}")
    volume.save(mask.astype(fits[0]), scan.affine, path)


def write_image(hu, affine, path, dtype=np.int16):
    """Write values [z, y, x] on the grid of `affine`, atomically; rounded and clipped where dtype is of integers.

    dtype: uint8, int16, uint16, int32 or float32. path: .nii.gz, .nii, .mha or .nrrd. Raises ValueError otherwise.
    """
    hu = np.asarray(hu)
    if np.issubdtype(dtype, np.integer) and hu.dtype != dtype:
        bounds = np.iinfo(dtype)
        hu = np.clip(np.round(hu.astype(np.float64)), bounds.min, bounds.max)
    volume.save(hu.astype(dtype), affine, path)

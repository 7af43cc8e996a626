"""One CT series out of the DICOM files of a folder or zip: chosen, checked, put in order.

A series is all CT images of one SeriesInstanceUID. Localizers, screenshots and other modalities are passed over beside it.
Its geometry follows from slice positions alone, never from SliceThickness. Slices lost at either end of a series leave
no gap, so no reader can notice them.
"""

import os
from typing import NamedTuple

import numpy as np
from pydicom import uid

from cacjax.files.dicom import NEEDED
from cacjax.files.geometry import Acquisition, ScanError, check_affine, refuse, stack
from cacjax.files.layout import MOST_VOXELS, check_rescale
from cacjax.files.pixel_data import CT_IMAGES, sop_class, transfer_syntax

# RescaleType of values in Hounsfield units, or unspecified; spectral maps have others (MGML, ED, Z_EFF).
HU_TYPES = ("HU", "US", "")
# Syntaxes that may lose something, and those of them that always do.
LOSSY = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless)
MAYBE_LOSSY = (uid.JPEG2000, uid.HTJ2K)
# What the CT image module demands (PS3.3, C.8.2.1), and the number of bits that GDCM reads rightly.
WHOLE = {
    "NumberOfFrames": (1, 1),
    "SamplesPerPixel": (1, 1),
    "BitsAllocated": (16, 16),
    "BitsStored": (8, 16),
    "PixelRepresentation": (0, 1),
}
MOST_PIXELS = 8192
NO_CONTRAST = ("NO", "NONE", "WITHOUT", "NO CONTRAST", "WITHOUT CONTRAST", "NON CONTRAST", "NATIVE")


class Series(NamedTuple):
    """Slices ascending along their normal, the affine of their stack, what their headers say."""

    slices: list
    affine: np.ndarray
    acquisition: Acquisition


def _text(data, tag):
    value = data.get(tag)
    values = [value] if isinstance(value, str) or not np.iterable(value) else value
    return " ".join("" if v is None else str(v) for v in values).strip()


def _kind(data):
    """The word CT for a CT image, else words for what it is."""
    modality = _text(data, "Modality") or "no modality"
    if modality != "CT":
        return modality
    if "LOCALIZER" in _text(data, "ImageType").upper().split():
        return "CT localizer"
    screenshot = sop_class(data) not in (*CT_IMAGES, "") or int(data.get("SamplesPerPixel", 1) or 1) != 1
    return "CT screenshot or report" if screenshot or "SeriesInstanceUID" not in data else "CT"


def select(slices, path, series=None):
    """The slices of the one CT series, or of the one that `series` names: a UID, the unique end of one, or a unique part
    of a description. Raises ScanError `not_ct`, `several_series`, `series_not_found`, `bad_header` for a file of that series that is no
    CT image, or that of a slice that is lost."""
    groups = {}
    for item in slices:
        if item.header is not None and _kind(item.header) == "CT":
            groups.setdefault(_text(item.header, "SeriesInstanceUID"), []).append(item)
    lost = [item.error for item in slices if item.header is None]
    if not groups:
        raise lost[0] if lost else _no_ct(slices, path)
    chosen = groups if series is None else _matches(groups, str(series))
    if len(chosen) != 1:
        found = f"{len(groups)} CT series: {_listing(groups)}" + (f"; {series!r} picks {len(chosen)}" if series else "")
        code = "several_series" if chosen else "series_not_found"
        advice = "Choose one with series=: its UID, the end of it, or a part of its description that no other has."
        raise refuse(code, path, found, "one", advice)
    ((key, members),) = chosen.items()
    strays = [item for item in slices if item.header is not None and _strays(item.header, key)]
    if strays:
        found = (
            f"{strays[0].name} is {_kind(strays[0].header)}, SeriesInstanceUID {_text(strays[0].header, 'SeriesInstanceUID') or 'absent'}"
        )
        advice = "Export the series again, or take the file out if it belongs to no scan."
        raise refuse("bad_header", path, found, f"{len(members)} CT images of one series and nothing else of it", advice)
    lost = [item.error for item in members if item.error] + lost
    if lost:
        more = f" ({len(lost) - 1} more files like it)" if len(lost) > 1 else ""
        raise ScanError(lost[0].code, lost[0].message + more)
    return members


def _strays(data, series_uid):
    """Whether a file that is no CT image by its header is of a series of them all the same, so that a slice would be lost."""
    if _kind(data) in ("CT", "CT localizer"):
        return False
    own = _text(data, "SeriesInstanceUID")
    return own == series_uid or (not own and sop_class(data) in CT_IMAGES)


def _matches(groups, series):
    ways = (
        lambda key: key == series,
        lambda key: key.endswith(series),
        lambda key: series.lower() in _text(groups[key][0].header, "SeriesDescription").lower(),
    )
    picked = ({key: members for key, members in groups.items() if way(key)} for way in ways)
    return next((found for found in picked if found), {})


def _listing(groups):
    lines = [f'{k} "{_text(v[0].header, "SeriesDescription")}" {len(v)} slices' for k, v in sorted(groups.items())]
    return "; ".join(lines)


def _no_ct(slices, path):
    counts = {}
    for item in slices:
        kind = _kind(item.header)
        counts[kind] = counts.get(kind, 0) + 1
    if not counts:
        return refuse("empty_folder", path, "no DICOM image", "a CT series", "Give the folder that holds the slices.")
    found = ", ".join(f"{count} x {kind}" for kind, count in sorted(counts.items()))
    return refuse("not_ct", path, found, "CT images (Modality CT)", "Give the axial CT series.")


def arrange(members, path):
    """Check the slices of one series and put them in order: Series. Raises ScanError with the codes of `geometry`."""
    for item in members:
        check_slice(item, os.path.join(path, item.name))
    _check_alike(members, path)
    count = len(members) * int(members[0].header.Rows) * int(members[0].header.Columns)
    if count > MOST_VOXELS:
        raise refuse("too_large", path, f"{count} voxels in {len(members)} slices", f"at most {MOST_VOXELS}", "Choose one series of it.")
    data, names = [item.header for item in members], [item.name for item in members]
    positions = np.array([d.ImagePositionPatient for d in data], np.float64)
    orientation = np.array([d.ImageOrientationPatient for d in data], np.float64).mean(0).reshape(2, 3)
    pixel_mm = tuple(float(value) for value in data[0].PixelSpacing)
    order, affine = stack(positions, orientation, pixel_mm, names, path)
    check_affine(affine, path)
    flags = ("lossy_compression",) if any(_lossy(item) for item in data) else ()
    return Series([members[i] for i in order], affine, _acquisition(data[0])._replace(flags=flags))


def check_slice(item, where):
    """Raises ScanError for one Slice: its own fault, or `multiframe`, `bad_header`, `rescale`, `too_large` or `not_hu` where its place, its
    pixels or its units cannot be known."""
    data = item.header
    if item.fault is not None:
        raise item.fault
    if int(data.get("NumberOfFrames", 1) or 1) > 1 or sop_class(data) in CT_IMAGES[1:]:
        advice = "Convert it to single-frame CT images or NIfTI (for instance with dcm2niix)."
        raise refuse("multiframe", where, f"{data.get('NumberOfFrames', 1)} frames in one file", "one", advice)
    absent = [tag for tag in NEEDED if data.get(tag) in (None, "")]
    if absent:
        advice = "Export the original images; some anonymisers remove these."
        raise refuse("bad_header", where, f"{', '.join(absent)} absent", "all of them in a CT image", advice)
    counts = {"PixelSpacing": 2, "ImagePositionPatient": 3, "ImageOrientationPatient": 6}
    for tag in NEEDED:
        values = np.atleast_1d(np.array(data.get(tag), np.float64))
        finite = np.isfinite(values).all() or tag.startswith("Rescale")  # these have a code of their own
        fits = len(values) == counts.get(tag, 1) and finite
        if not fits or (tag in ("PixelSpacing", "Rows", "Columns") and values.min() <= 0):
            found = f"{tag} {data.get(tag)}"
            expected = f"{counts.get(tag, 1)} finite number(s), positive for sizes"
            raise refuse("bad_header", where, found, expected, "Export the series again.")
    check_rescale(float(data.RescaleSlope), float(data.RescaleIntercept), ("RescaleSlope", "RescaleIntercept"), where)
    _check_pixels(data, where)
    if _text(data, "RescaleType").upper() not in HU_TYPES:
        advice = "Give the series in Hounsfield units, not a spectral map."
        raise refuse("not_hu", where, f"RescaleType {data.RescaleType}", "HU", advice)


def _check_pixels(data, where):
    """Raises ScanError `bad_header` or `too_large` for pixels that are not those of a CT image."""
    advice = "Export the original CT images again."
    defaults = {"NumberOfFrames": 1, "SamplesPerPixel": 1}
    for tag, (low, high) in WHOLE.items():
        value = data.get(tag) if data.get(tag) not in (None, "") else defaults.get(tag)
        if value is None or not low <= int(value) <= high:
            expected = f"{low} to {high}" if low < high else str(low)
            raise refuse("bad_header", where, f"{tag} {'absent' if value is None else value}", expected, advice)
    if int(data.get("HighBit", data.BitsStored - 1)) != data.BitsStored - 1:
        found = f"HighBit {data.HighBit} with BitsStored {data.BitsStored}"
        raise refuse("bad_header", where, found, f"HighBit {data.BitsStored - 1}", advice)
    if (_text(data, "PhotometricInterpretation") or "MONOCHROME2") != "MONOCHROME2":
        found = f"PhotometricInterpretation {data.PhotometricInterpretation}"
        raise refuse("bad_header", where, found, "MONOCHROME2, bright for dense", advice)
    if max(data.Rows, data.Columns) > MOST_PIXELS:
        raise refuse("too_large", where, f"Rows {data.Rows}, Columns {data.Columns}", f"at most {MOST_PIXELS}", advice)


def _lossy(data):
    syntax, told = transfer_syntax(data), _text(data, "LossyImageCompression")
    return told == "01" or syntax in LOSSY or (syntax in MAYBE_LOSSY and told != "00")


def _check_alike(members, path):
    """All slices have the matrix, pixel spacing and orientation of the first."""
    limits = {"Rows": 0, "Columns": 0, "PixelSpacing": 1e-4, "ImageOrientationPatient": 1e-3}
    first = members[0]
    for item in members[1:]:
        for tag, limit in limits.items():
            ours, theirs = (np.atleast_1d(np.array(s.header.get(tag), np.float64)) for s in (first, item))
            if np.abs(ours - theirs).max() > limit:
                found = f"{tag} is {first.header.get(tag)} in {first.name} and {item.header.get(tag)} in {item.name}"
                advice = "Export one reconstruction; the series mixes several."
                raise refuse("mixed_geometry", path, found, "one value in all slices", advice)


def _acquisition(data):
    def number(tag):
        return float(data.get(tag)) if data.get(tag) not in (None, "") else None

    agent = _text(data, "ContrastBolusAgent")
    return Acquisition(
        modality=_text(data, "Modality"),
        series_uid=_text(data, "SeriesInstanceUID"),
        kvp=number("KVP"),
        slice_thickness_mm=number("SliceThickness"),
        kernel=_text(data, "ConvolutionKernel"),
        contrast=agent.upper() not in NO_CONTRAST if agent else None,
        description=_text(data, "SeriesDescription"),
        manufacturer=_text(data, "Manufacturer"),
        patient_id=_text(data, "PatientID"),
        study_uid=_text(data, "StudyInstanceUID"),
    )

"""DICOM files of a folder or zip: headers through pydicom, pixels through SimpleITK (GDCM); a series out.

A file is DICOM by its content, not its name. What is not DICOM is passed over, unless it is named so: then it may be a
slice that was lost on the way, and it is kept with its error.
"""

import contextlib
import functools
import math
import os
import pathlib
import re
import shutil
import struct
import tempfile
import warnings
import zipfile
from typing import Any, NamedTuple

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom import uid

from cacjax.files.geometry import ScanError, check_affine, refuse, spacing_mm

SUFFIXES = (".dcm", ".dicom", ".ima")
CT_IMAGES = (uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage)
NEEDED = (
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "RescaleSlope",
    "RescaleIntercept",
)
TAGS = (
    *NEEDED,
    "SOPClassUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "Modality",
    "ImageType",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "RescaleType",
    "KVP",
    "SliceThickness",
    "ConvolutionKernel",
    "ContrastBolusAgent",
    "Manufacturer",
)
NATIVE = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian)
PIXEL_DATA = (0x7FE0, 0x0010)
OWN_NAME = r"IM\d{4,}\.dcm"
INTERCEPT_HU = -1024


class Slice(NamedTuple):
    """One file. name: in its folder or zip. header: the TAGS it has, None where none can be trusted. error: why it is lost."""

    name: str
    header: Any
    error: ScanError | None = None


def headers(path):
    """Slices of a folder (not of those inside it) or of a zip (all of it): DICOM, and files that claim to be.

    Raises ScanError `unreadable` for a zip that cannot be opened.
    """
    with _listed(path) as entries:
        found = [_header(path, name, *entry) for name, entry in entries]
    return [item for item in found if item is not None]


@contextlib.contextmanager
def _listed(path):
    """Pairs (name, (function that opens it, size in bytes)), by name, without hidden files (macOS adds `._name`)."""
    if os.path.isdir(path):
        files = sorted(entry.name for entry in os.scandir(path) if entry.is_file() and not entry.name.startswith("."))
        places = [os.path.join(path, name) for name in files]
        yield [(n, (functools.partial(open, p, "rb"), os.path.getsize(p))) for n, p in zip(files, places)]
        return
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise refuse("unreadable", path, str(error), "a whole zip archive", "Copy or download it again.") from None
    with archive:
        infos = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename)
        seen = [i for i in infos if not any(part.startswith((".", "__MACOSX")) for part in i.filename.split("/"))]
        yield [(i.filename, (functools.partial(archive.open, i), i.file_size)) for i in seen]


def header(path):
    """The Slice of one file, or None where it neither is DICOM nor is named like it."""
    path = pathlib.Path(path)
    return _header(path.parent, path.name, functools.partial(open, path, "rb"), path.stat().st_size)


def _header(path, name, opened, size):
    where = os.path.join(path, name)
    try:
        with opened() as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = stream.read(140)
            if not _is_dicom(start):
                return Slice(name, None, _stranger(where, start)) if name.lower().endswith(SUFFIXES) else None
            stream.seek(0)
            data = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=list(TAGS))
            if sop_class(data) == uid.MediaStorageDirectoryStorage:
                return None
            whole, cut = _cut(stream, data, size)
            list(data)  # parses the values here, where a bad one has a file name and a long one must not warn
    except Exception as error:  # pydicom and zipfile raise many kinds on damaged bytes
        short = isinstance(error, EOFError | struct.error | zipfile.BadZipFile)
        code, found = "truncated" if short else "unreadable", f"{type(error).__name__}: {error}"
        return Slice(name, None, refuse(code, where, found, "a DICOM header", "Export or copy the series again."))
    error = cut and refuse("truncated", where, cut, "pixels to the end", "Export or copy the series again.")
    return Slice(name, data if whole else None, error or None)


def _is_dicom(start):
    """The prefix of DICOM part 10, or, as older exports have it, a data set that starts at once with group 0008."""
    bare = start[:2] == b"\x08\x00" and start[3:4] == b"\x00" and len(start) == 140
    return start[128:132] == b"DICM" or (bare and (start[4:6].isalpha() or start[6:8] == b"\0\0"))


def _stranger(where, start):
    """ScanError for a file named .dcm that is not DICOM."""
    if not start.strip(b"\0"):
        return refuse("truncated", where, f"it is empty after {len(start)} bytes", "a DICOM image", "Copy it again.")
    advice = "Remove it if it belongs to no scan, or export the series again."
    if start.startswith(b"version https://git-lfs"):
        advice = "It is a Git LFS pointer: fetch the file with `git lfs pull`."
    found = f"it starts with {start[:16]!r} and has no DICM prefix"
    return refuse("not_dicom", where, found, "a DICOM file, as its name says", advice)


def _cut(stream, data, size):
    """(whether the header is whole, what is missing): a file whose reading stopped before the pixels, "" if all is there.

    A header without pixels after it is whole in a report, and cut in an image; a cut one may tell a wrong series.
    """
    syntax = transfer_syntax(data)
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        return True, ""
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    head = stream.read(8)
    if len(head) < 8 or struct.unpack_from(order + "HH", head) != PIXEL_DATA:
        image = "Rows" in data or sop_class(data) in CT_IMAGES or "SeriesInstanceUID" not in data
        return not image, "the file ends before its pixels" if image else ""
    explicit = head[4:6] in (b"OB", b"OW")  # no implicit length looks so, since "O" is odd and lengths are even
    length = stream.read(4).ljust(4, b"\0") if explicit else head[4:]
    (length,) = struct.unpack(order + "I", length)
    if length == 0xFFFFFFFF:
        return True, "" if _fragments_end(stream, size) else "the compressed pixels have no end"
    counts = (int(data.get(tag, 1) or 1) for tag in ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames"))
    wanted = max(length, math.prod(counts) * int(data.get("BitsAllocated", 16)) // 8)
    here = min(size - stream.tell(), length)
    return True, "" if here >= wanted else f"{here} of {wanted} bytes of pixels are there"


def _fragments_end(stream, size):
    """Whether the fragments of compressed pixels are all there, closed by their delimiter."""
    while True:
        head = stream.read(8)
        if len(head) < 8:
            return False
        group, element, length = struct.unpack("<HHI", head)
        if (group, element) == (0xFFFE, 0xE0DD):
            return True
        if (group, element) != (0xFFFE, 0xE000) or stream.tell() + length > size:
            return False
        stream.seek(length, os.SEEK_CUR)


def sop_class(data):
    """SOPClassUID of a header, "" where absent."""
    return data.get("SOPClassUID") or getattr(data, "file_meta", {}).get("MediaStorageSOPClassUID", "")


def transfer_syntax(data):
    """TransferSyntaxUID of a header; implicit little endian, the default, where absent."""
    return getattr(data, "file_meta", {}).get("TransferSyntaxUID", uid.ImplicitVRLittleEndian)


def pixels(slices, path):
    """Voxels of slices in the folder or zip `path`: float32 [z, y, x] HU, each with its own slope and intercept.

    Raises ScanError for what GDCM cannot decode.
    """
    first = slices[0].header
    hu = np.empty((len(slices), int(first.Rows), int(first.Columns)), np.float32)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetOutputPixelType(sitk.sitkFloat32)
    with _on_disk(slices, path) as files:
        for i, (item, file) in enumerate(zip(slices, files)):
            reader.SetFileName(str(file))
            try:
                image = reader.Execute()  # a name, for the view does not keep its image alive
                hu[i] = sitk.GetArrayViewFromImage(image)[0]
            except (RuntimeError, ValueError) as error:
                raise _undecoded(item, path, error) from None
    return hu


def _undecoded(item, path, error):
    syntax = transfer_syntax(item.header)
    found = f"{syntax.name}: {str(error).strip().splitlines()[-1]}"
    code = "unreadable" if syntax in NATIVE else "unsupported_transfer_syntax"
    advice = "Decompress the series (for instance with `gdcmconv --raw` or dcmdjpeg)."
    return refuse(code, os.path.join(path, item.name), found, "pixels that GDCM decodes", advice)


@contextlib.contextmanager
def _on_disk(slices, path):
    """Files of the slices in their order; those of a zip are unpacked one at a time into a folder that is then removed."""
    if os.path.isdir(path):
        yield [os.path.join(path, item.name) for item in slices]
        return
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        yield (_unpacked(archive, item, pathlib.Path(folder) / "slice.dcm", path) for item in slices)


def _unpacked(archive, item, file, path):
    try:
        file.write_bytes(archive.read(item.name))
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
        where = os.path.join(path, item.name)
        raise refuse("truncated", where, str(error), "a whole zip member", "Copy the zip again.") from None
    return file


def write_dicom(hu, affine, folder, *, description, seed, kvp=120.0, contrast=False):
    """Write a CT series, one file IMnnnn.dcm per index of axis 0; UIDs follow from seed and description.

    hu: [z, y, x], rounded to whole HU within -32768..31743. affine: array indices to LPS mm with axis 0 along the normal.
    folder: made; may hold the IMnnnn.dcm of an earlier run, which is replaced, and nothing else (FileExistsError).
    Reading gives ascending positions along x cross y, so a left-handed affine comes back with axis 0 flipped.
    Raises ScanError `shear` for axes that are not at right angles. Returns the paths.
    """
    check_affine(affine, folder)
    folder = pathlib.Path(folder)
    if folder.is_dir() and not all(re.fullmatch(OWN_NAME, entry.name) for entry in folder.iterdir()):
        raise FileExistsError(f"{folder} must be empty or hold a series of IMnnnn.dcm only, found other files")
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        for index, image in enumerate(np.asarray(hu)):
            data = _template(description, seed, kvp, contrast)
            _place(data, index, image, np.asarray(affine, np.float64))
            data.save_as(part / f"IM{index + 1:04d}.dcm", enforce_file_format=True)
        if folder.is_dir():
            shutil.rmtree(folder)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sorted(folder.iterdir())


def _template(description, seed, kvp, contrast):
    """What all slices of a written series share. Dates are fixed, so equal calls write equal bytes."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = uid.CTImageStorage
    for level in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(data, level, uid.generate_uid(entropy_srcs=[level, description, str(seed)]))
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = "PHANTOM", f"PHANTOM{seed}", "", ""
    data.StudyDate = data.SeriesDate = data.ContentDate = "20000101"
    data.StudyTime = data.SeriesTime = data.ContentTime = "000000"
    data.StudyID, data.SeriesNumber, data.AcquisitionNumber, data.AccessionNumber = "1", 1, 1, ""
    data.ReferringPhysicianName, data.Manufacturer, data.SeriesDescription = "", "cacjax", description
    data.Modality, data.ImageType, data.PatientPosition = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], "HFS"
    data.PositionReferenceIndicator, data.ConvolutionKernel, data.KVP = "", "", kvp
    if contrast:
        data.ContrastBolusAgent = "CONTRAST"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = INTERCEPT_HU, 1, "HU"
    return data


def _place(data, index, image, affine):
    """Give one slice its place in the patient and its pixels."""
    steps = np.array(spacing_mm(affine))
    axes = affine[:3, :3] / steps
    name = uid.generate_uid(entropy_srcs=[data.SeriesInstanceUID, str(index)])
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = name
    data.InstanceNumber, data.SliceThickness = index + 1, _decimal(steps[0])
    data.ImagePositionPatient = [_decimal(value) for value in affine[:3, 3] + index * affine[:3, 0]]
    data.ImageOrientationPatient = [_decimal(value) for value in (*axes[:, 2], *axes[:, 1])]
    data.PixelSpacing = [_decimal(steps[1]), _decimal(steps[2])]
    data.Rows, data.Columns = image.shape
    stored = np.clip(np.round(image.astype(np.float32)) - INTERCEPT_HU, -32768, 32767)
    data.PixelData = stored.astype("<i2").tobytes()


def _decimal(value):
    """A DICOM decimal string, 16 characters at most."""
    return pydicom.valuerep.DSfloat(float(value), auto_format=True)

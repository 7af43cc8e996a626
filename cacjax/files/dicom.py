"""DICOM files of a folder or zip: headers through pydicom, pixels through SimpleITK (GDCM); a series out.

A file is DICOM by its content, not its name. What is not DICOM is passed over, unless it is named so: then it may be a
slice that was lost on the way, and it is kept with its error.
"""

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

from cacjax.files import archive, pixel_data
from cacjax.files.geometry import ScanError, check_affine, refuse, spacing_mm
from cacjax.files.pixel_data import NATIVE, sop_class, transfer_syntax

SUFFIXES = (".dcm", ".dicom", ".ima")
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
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "LossyImageCompression",
    "RescaleType",
    "KVP",
    "SliceThickness",
    "ConvolutionKernel",
    "ContrastBolusAgent",
    "Manufacturer",
    "PatientID",
    "StudyInstanceUID",
)
OWN_NAME = r"IM\d{4,}\.dcm"
INTERCEPT_HU = -1024


class Slice(NamedTuple):
    """One file. name: in its folder or zip. header: the TAGS it has, None where none can be trusted. error: why it is lost. fault: what
    in it contradicts itself, which matters where it belongs to the scan."""

    name: str
    header: Any
    error: ScanError | None = None
    fault: ScanError | None = None


def headers(path):
    """Slices of a folder (not of those inside it) or of a zip (all of it): DICOM, and files that claim to be.

    Raises ScanError as `archive.entries` does: `unreadable` for what cannot be opened, `corrupt`, `too_large`.
    """
    with archive.entries(path) as files:
        found = [_header(path, file) for file in files]
    return [item for item in found if item is not None]


def header(path):
    """The Slice of one file, or None where it neither is DICOM nor is named like it."""
    path = pathlib.Path(path)
    return _header(path.parent, archive.entry(path.parent, path.name))


def _header(path, file):
    name, where = file.name, os.path.join(path, file.name)
    if file.error is not None:
        return Slice(name, None, file.error)
    try:
        with file.open() as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = stream.read(pixel_data.HEAD_BYTES)
            if not _is_dicom(start):
                return Slice(name, None, _stranger(where, start)) if name.lower().endswith(SUFFIXES) else None
            pixel_data.check_deflated(stream, start, where)
            stream.seek(0)
            data = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=list(TAGS))
            if sop_class(data) == uid.MediaStorageDirectoryStorage:
                return None
            found = pixel_data.inspect(stream, start, data, file.size, where)
            list(data)  # parses the values here, where a bad one has a file name and a long one must not warn
    except ScanError as error:
        return Slice(name, None, error)
    except Exception as error:  # pydicom and zipfile raise many kinds on damaged bytes
        short = isinstance(error, EOFError | struct.error | zipfile.BadZipFile)
        code, found = "truncated" if short else "unreadable", f"{type(error).__name__}: {error}"
        return Slice(name, None, refuse(code, where, found, "a DICOM header", "Export or copy the series again."))
    return Slice(name, data if found.whole else None, found.cut, found.fault or None)


def _is_dicom(start):
    """The prefix of DICOM part 10, or, as older exports have it, a data set that starts at once with group 0008."""
    bare = start[:2] == b"\x08\x00" and start[3:4] == b"\x00" and len(start) >= 140
    return start[128:132] == b"DICM" or (bare and (start[4:6].isalpha() or start[6:8] == b"\0\0"))


def _stranger(where, start):
    """ScanError for a file named .dcm that is not DICOM."""
    if not start[:128].strip(b"\0") and b"DICM".startswith(start[128:].rstrip(b"\0")):
        return refuse("truncated", where, f"it is empty after {len(start)} bytes", "a DICOM image", "Copy it again.")
    advice = "Remove it if it belongs to no scan, or export the series again."
    if start.startswith(b"version https://git-lfs"):
        advice = "It is a Git LFS pointer: fetch the file with `git lfs pull`."
    found = f"it starts with {start[:16]!r} and has no DICM prefix"
    return refuse("not_dicom", where, found, "a DICOM file, as its name says", advice)


def pixels(slices, path):
    """Voxels of slices in the folder or zip `path`: float32 [z, y, x] HU, each with its own slope and intercept.

    GDCM gets a file of the pixels and the checked values that they need, for one damaged length elsewhere can take it all memory.
    Raises ScanError for what GDCM cannot decode.
    """
    first = slices[0].header
    hu = np.empty((len(slices), int(first.Rows), int(first.Columns)), np.float32)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetOutputPixelType(sitk.sitkFloat32)
    with archive.opener(path) as opened, tempfile.TemporaryDirectory() as folder:
        copied = os.path.join(folder, "slice.dcm")
        reader.SetFileName(copied)
        for i, item in enumerate(slices):
            _copy(opened, item, path, copied)
            try:
                image = reader.Execute()  # a name, for the view does not keep its image alive
                hu[i] = sitk.GetArrayViewFromImage(image)[0]
            except (RuntimeError, ValueError) as error:
                raise _undecoded(item, path, error) from None
    return hu


def _copy(opened, item, path, copied):
    """Write the pixels of a slice, and what must be known to decode them, to the file `copied`."""
    try:
        with opened(item.name) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = pydicom.dcmread(stream, force=True, specific_tags=["PixelData"]).PixelData
            while stream.read(1 << 20):  # a zip compares its checksum at the end
                pass
    except Exception as error:  # pydicom and zipfile raise many kinds on damaged bytes
        code, where = "corrupt" if "CRC" in str(error) else "truncated", os.path.join(path, item.name)
        raise refuse(code, where, f"{type(error).__name__}: {error}", "a whole file", "Copy the scan again.") from None
    syntax = transfer_syntax(item.header)
    native, big = syntax in NATIVE, syntax == uid.ExplicitVRBigEndian
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax if big or not native else uid.ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = uid.CTImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.Modality, data.PhotometricInterpretation, data.SamplesPerPixel = "CT", "MONOCHROME2", 1
    for tag in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "RescaleSlope", "RescaleIntercept"):
        setattr(data, tag, item.header[tag].value)
    data.HighBit = data.BitsStored - 1
    data.add_new("PixelData", "OW" if native else "OB", stored)
    data["PixelData"].is_undefined_length = not native
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a decimal that is too long, and is written as it is
        data.save_as(copied, implicit_vr=False, little_endian=not big)


def _undecoded(item, path, error):
    syntax = transfer_syntax(item.header)
    found = f"{syntax.name}: {str(error).strip().splitlines()[-1]}"
    code = "unreadable" if syntax in NATIVE else "unsupported_transfer_syntax"
    advice = "Decompress the series (for instance with `gdcmconv --raw` or dcmdjpeg)."
    return refuse(code, os.path.join(path, item.name), found, "pixels that GDCM decodes", advice)


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

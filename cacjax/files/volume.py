"""Scans and masks in one file, NIfTI, MHA/MHD and NRRD, read and written through SimpleITK with an affine in array order.

ITK reads a cut NIfTI as zeros and turns its NaN into 0 without a word, so both are looked for in the file itself.
"""

import gzip
import math
import os
import pathlib
import struct
import zlib

import numpy as np
import SimpleITK as sitk

from cacjax.files.atomic import replace
from cacjax.files.geometry import check_affine, refuse

SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr")
# A header and its voxels in two files cannot be replaced in one step, so .mhd and .nhdr are read only.
WRITABLE = (".nii.gz", ".nii", ".mha", ".nrrd")
# First four bytes of a NIfTI header, its length -> (offset and format of the dimensions, of datatype and bits, of the
# start of the voxels). NIfTI-1 and NIfTI-2 standards, nifti1.h and nifti2.h.
NIFTI_FIELDS = {348: ((40, "8h"), (70, "2h"), (108, "f")), 540: ((16, "8q"), (12, "2h"), (168, "q"))}
NIFTI_FLOATS = {16: "f4", 64: "f8"}
CHUNK_BYTES = 1 << 24


def suffix(path):
    """The suffix of SUFFIXES that a path ends in, in lower case, or ""."""
    name = pathlib.Path(path).name.lower()
    return next((ending for ending in SUFFIXES if name.endswith(ending)), "")


def inspect(path):
    """Read a header only. Returns (reader, affine). Raises ScanError for geometry or files that cannot be read."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _explained(error, path) from None
    size, channels = reader.GetSize(), reader.GetNumberOfComponents()
    if len(size) != 3 or min(size) < 2 or channels != 1:
        found = f"size {' x '.join(map(str, size))} with {channels} value(s) per voxel"
        advice = "Give one volume: a phase of a time series, or the series a slice is from."
        raise refuse("not_volume", path, found, "three sizes of at least 2 and one value per voxel", advice)
    affine = affine_of(reader)
    check_affine(affine, path)
    return reader, affine


def _explained(error, path):
    """The ScanError for what ITK says of a header."""
    text = str(error).strip().splitlines()[-1]
    if os.path.getsize(path) == 0:
        return refuse("truncated", path, "the file has 0 bytes", "a header and voxels", "Copy the file again.")
    if "orthonormal" in text:
        advice = "Resample it to an orthogonal grid, or score the original slices."
        return refuse("shear", path, "the header's axes are not at right angles", "an orthogonal grid", advice)
    if "spacing" in text.lower():
        advice = "Write the file again with its voxel size in the header."
        return refuse("bad_header", path, text, "three positive lengths in mm", advice)
    advice = "Check that the file is what its name says, and copy it again."
    return refuse("unreadable", path, text, f"a {suffix(path)} header", advice)


def affine_of(image):
    """Affine of an ITK image or reader: columns in array order [z, y, x], LPS mm."""
    affine = np.eye(4)
    steps = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, :3], affine[:3, 3] = steps[:, ::-1], image.GetOrigin()
    return affine


def load(path):
    """Read a volume. Returns (array [z, y, x] in the file's own type, affine). Raises ScanError."""
    reader, affine = inspect(path)
    if suffix(path) in (".nii", ".nii.gz"):
        _check_nifti(path)
    try:
        return sitk.GetArrayFromImage(reader.Execute()), affine
    except RuntimeError as error:
        raise _cut(path, str(error).strip().splitlines()[-1]) from None


def _cut(path, found):
    expected = "voxels as the header describes them"
    return refuse("truncated", path, f"the header can be read, the voxels not ({found})", expected, "Copy it again.")


def _check_nifti(path):
    """Raises ScanError `truncated` where voxels are absent, `not_hu` where float voxels are not finite."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    with (gzip.open if zipped else open)(path, "rb") as file:
        try:
            start, voxel_bytes, kind = _nifti_layout(file.read(540), path)
            if kind is None and _length(path, zipped) == start + voxel_bytes:
                return
            file.seek(start)
            _check_voxels(file, voxel_bytes, kind, path)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _cut(path, f"{type(error).__name__}: {error}") from None


def _nifti_layout(head, path):
    """(start of the voxels, their bytes, dtype if they are floats) as a NIfTI header says."""
    for order in "<>":
        (length,) = struct.unpack_from(f"{order}i", head.ljust(4, b"\0"))
        if length in NIFTI_FIELDS and len(head) >= length:
            dims, (kind, bits), (start,) = (struct.unpack_from(order + f, head, at) for at, f in NIFTI_FIELDS[length])
            count = math.prod(dims[1 : dims[0] + 1])
            return int(start), count * bits // 8, NIFTI_FLOATS.get(kind) and order + NIFTI_FLOATS[kind]
    raise _cut(path, "no NIfTI header of 348 or 540 bytes")


def _length(path, zipped):
    """Bytes of the file; for gzip those that its last four bytes promise (of its last member, modulo 4 GiB)."""
    if not zipped:
        return os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        return struct.unpack("<I", file.read(4))[0]


def _check_voxels(file, voxel_bytes, kind, path):
    left, strange = voxel_bytes, 0
    while left > 0:
        chunk = file.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise _cut(path, f"{left} of {voxel_bytes} bytes are absent")
        left -= len(chunk)
        if kind:
            count = len(chunk) // np.dtype(kind).itemsize
            strange += int((~np.isfinite(np.frombuffer(chunk, kind, count))).sum())
    if strange:
        advice = "Fill them with -1000 HU (air) if they lie outside the field of view."
        raise refuse("not_hu", path, f"{strange} voxels are NaN or infinite", "finite Hounsfield units", advice)


def save(array, affine, path):
    """Write [z, y, x] on the grid of `affine`, atomically: a reader sees the old file or the whole new one.

    array: uint8, int16, uint16, int32 or float32. path: ends in .nii.gz, .nii, .mha or .nrrd, else ValueError.
    """
    path = pathlib.Path(path)
    ending = suffix(path)
    if ending not in WRITABLE:
        raise ValueError(f"path must end in one of {', '.join(WRITABLE)}, got {path.name!r}")
    if np.ndim(array) != 3:
        raise ValueError(f"array must be [z, y, x], got shape {np.shape(array)}")
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    steps = np.asarray(affine, np.float64)[:3, 2::-1]
    lengths = np.linalg.norm(steps, axis=0)
    image.SetSpacing(lengths.tolist())
    image.SetDirection((steps / lengths).ravel().tolist())
    image.SetOrigin(np.asarray(affine, np.float64)[:3, 3].tolist())
    replace(path, lambda aside: sitk.WriteImage(image, str(aside), useCompression=ending in (".mha", ".nrrd")))

"""Scans and masks in one file, NIfTI, MHA/MHD and NRRD, with an affine in array order.

Headers are checked here (`nifti`, `text_headers`) before the image library sees a value of them: a header that it does not expect can
end the process. Files are written through the library.
"""

import errno
import os
import pathlib
import tempfile

import numpy as np
import SimpleITK as sitk

from cacjax.files import layout, nifti, text_headers
from cacjax.files.atomic import replace
from cacjax.files.geometry import check_affine, refuse

SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr")
# A header and its voxels in two files cannot be replaced in one step, so .mhd and .nhdr are read only.
WRITABLE = (".nii.gz", ".nii", ".mha", ".nrrd")
NIFTI_STARTS = (352, 544)  # of the voxels in the files that ITK writes, NIfTI-1 and NIfTI-2


def suffix(path):
    """The suffix of SUFFIXES that a path ends in, in lower case, or ""."""
    name = pathlib.Path(path).name.lower()
    return next((ending for ending in SUFFIXES if name.endswith(ending)), "")


def inspect(path):
    """Read a header only. Returns (Layout, affine). Raises ScanError for geometry or files that cannot be read."""
    ending = suffix(path)
    parse = nifti.layout if ending.startswith(".nii") else text_headers.meta if ending.startswith(".m") else text_headers.nrrd
    found = parse(path)
    affine = _geometry(found, path)
    check_affine(affine, path)
    return found, affine


def _geometry(found, path):
    """The affine as the image library reads it from the header that was written anew."""
    with tempfile.TemporaryDirectory() as folder:
        copied = os.path.join(folder, f"header{found.suffix}")
        pathlib.Path(copied).write_bytes(found.header)
        reader = sitk.ImageFileReader()
        reader.SetFileName(copied)
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise _explained(error, path) from None
        return affine_of(reader)


def _explained(error, path):
    """The ScanError for what ITK says of a header."""
    text = str(error).strip().splitlines()[-1]
    if "orthonormal" in text:
        advice = "Resample it to an orthogonal grid, or score the original slices."
        return refuse("shear", path, "the header's axes are not at right angles", "an orthogonal grid", advice)
    advice = "Write the file again with its voxel size and directions in the header."
    return refuse("bad_header", path, text, "three axes with positive lengths in mm", advice)


def affine_of(image):
    """Affine of an ITK image or reader: columns in array order [z, y, x], LPS mm."""
    affine = np.eye(4)
    steps = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, :3], affine[:3, 3] = steps[:, ::-1], image.GetOrigin()
    return affine


def load(path):
    """Read a volume. Returns (array [z, y, x] in the file's own type, affine). Raises ScanError."""
    found, affine = inspect(path)
    return layout.voxels(found, path), affine


def save(array, affine, path):
    """Write [z, y, x] on the grid of `affine`, atomically: a reader sees the old file or the whole new one.

    array: uint8, int16, uint16, int32 or float32. path: ends in .nii.gz, .nii, .mha or .nrrd, else ValueError. OSError: a full disk.
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

    def write(aside):
        sitk.WriteImage(image, str(aside), useCompression=ending in (".mha", ".nrrd"))
        if ending in (".nii", ".nii.gz") and not _is_whole(aside, ending == ".nii.gz", array.nbytes):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    replace(path, write)


def _is_whole(path, zipped, voxel_bytes):
    """Whether a NIfTI file that ITK wrote, which is silent on a full disk, is all there: by its length, for gzip that in its last bytes."""
    with open(path, "rb") as file:
        length = file.seek(0, os.SEEK_END)
        if zipped:
            file.seek(-min(4, length), os.SEEK_END)
            length = int.from_bytes(file.read(), "little")
    return (length - voxel_bytes) % 2**32 in NIFTI_STARTS

"""Clean scans that the corpus starts from, and the place where an input is made of one. Arrays [z, y, x], patient coordinates LPS mm."""

import gzip
import pathlib
import shutil
import zipfile
from typing import NamedTuple

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom import uid

from cacjax.files import scan

SHAPE, SPACING_MM, ORIGIN_MM = (12, 96, 96), (3.0, 2.5, 2.5), (-118.75, -97.5, 1200.5)
# Calcium: first and last voxel + 1 along z, y, x; HU; the weight of its peak (Agatston 1990).
INSERTS = (
    ((2, 5), (40, 44), (44, 49), 160, 1),
    ((4, 6), (50, 53), (52, 54), 250, 2),
    ((6, 9), (36, 38), (54, 60), 350, 3),
    ((8, 11), (56, 60), (44, 47), 700, 4),
)
FORMATS = ("dicom", "zip", "nii", "nii.gz", "nrrd", "mha", "mhd")


class Clean(NamedTuple):
    """hu: int16 [z, y, x]; affine: array indices to LPS mm."""

    hu: np.ndarray
    affine: np.ndarray


def synthetic():
    """A small chest: air, skin fat, soft tissue, lungs, a table, and INSERTS."""
    z, y, x = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")

    def ellipse(at_y, at_x, half_y, half_x):
        return ((y - at_y) / half_y) ** 2 + ((x - at_x) / half_x) ** 2 < 1

    hu = np.full(SHAPE, -1000.0)
    hu[(y >= 80) & (y < 83) & (x >= 12) & (x < 84)] = -150  # table
    hu[ellipse(46 + z / 4, 48, 33, 42)] = -95
    hu[ellipse(46 + z / 4, 48, 29, 38)] = 45
    hu[ellipse(44, 25, 18 - z / 2, 11) | ellipse(46, 71, 17 - z / 2, 11)] = -840
    hu += np.random.default_rng(20).normal(0, 10, SHAPE)
    for (z0, z1), (y0, y1), (x0, x1), value, _ in INSERTS:
        hu[z0:z1, y0:y1, x0:x1] = value
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.diag(SPACING_MM)[::-1], ORIGIN_MM
    return Clean(hu.round().astype(np.int16), affine)


def agatston():
    """The Agatston score of `synthetic`, worked out from INSERTS."""
    voxels = [(z1 - z0) * (y1 - y0) * (x1 - x0) * weight for (z0, z1), (y0, y1), (x0, x1), _, weight in INSERTS]
    return sum(voxels) * SPACING_MM[1] * SPACING_MM[2] * SPACING_MM[0] / 3.0


def real(path):
    """A scan from files, e.g. that of the QRM phantom."""
    found = scan.read(path)
    return Clean(found.hu.astype(np.int16), found.affine)


class Place:
    """Where an input is made: its folder, the clean scan, its random numbers."""

    def __init__(self, folder, clean, rng):
        self.folder, self.rng, (self.hu, self.affine) = pathlib.Path(folder), rng, clean
        self.folder.mkdir(parents=True)

    def pick(self, *values):
        """One of the values, by chance."""
        return values[int(self.rng.integers(len(values)))]

    def dicom(self, name="ct", *, hu=None, affine=None, change=None, only=None, seed=1):
        """A DICOM folder. change(data, index) edits the data set of a slice; only: the slices that it edits, all where None."""
        folder = self.folder / name
        scan.write_dicom(self._hu(hu), self.affine if affine is None else affine, folder, description="Ca score 3.0", seed=seed, kvp=120.0)
        if change:
            edit(folder, change, only)
        return folder

    def one(self):
        """The number of one slice, as a list, by chance; never the first or the last."""
        return [int(self.rng.integers(1, len(self.hu) - 1))]

    def some(self):
        """One slice, by chance, or all of them."""
        return self.pick(self.one(), None)

    def zip(self, folder, name="ct.zip"):
        """A folder as a zip in its place."""
        with zipfile.ZipFile(self.folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.iterdir()):
                archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED, 1)
        shutil.rmtree(folder)
        return self.folder / name

    def volume(self, name, *, hu=None, affine=None, dtype=np.int16, compress=False):
        """A volume in one file, or two for .mhd and .nhdr, in whatever format the name says."""
        image = sitk.GetImageFromArray(np.ascontiguousarray(self._hu(hu).astype(dtype)))
        steps = (self.affine if affine is None else affine)[:3, 2::-1]
        lengths = np.linalg.norm(steps, axis=0)
        image.SetSpacing(lengths.tolist())
        image.SetDirection((steps / lengths).ravel().tolist())
        image.SetOrigin((self.affine if affine is None else affine)[:3, 3].tolist())
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(path), useCompression=compress)
        return path

    def any(self, name="scan", *, hu=None, affine=None, formats=FORMATS):
        """The scan in a format by chance."""
        ending = self.pick(*formats)
        if ending in ("dicom", "zip"):
            folder = self.dicom(name, hu=hu, affine=affine)
            return folder if ending == "dicom" else self.zip(folder, f"{name}.zip")
        compress = ending in ("nrrd", "mha", "mhd") and bool(self.rng.integers(2))
        return self.volume(f"{name}.{ending}", hu=hu, affine=affine, dtype=self.pick(np.int16, np.int32, np.float32), compress=compress)

    def _hu(self, hu):
        return self.hu if hu is None else np.asarray(hu)


def edit(folder, change, only=None):
    """Rewrite slices of a DICOM folder: change(data, index), for the indices in `only` or all."""
    for index, path in enumerate(slices(folder)):
        if only is None or index in only:
            data = pydicom.dcmread(path)
            change(data, index)
            data.save_as(path, enforce_file_format=True)


def slices(folder):
    """The files of a DICOM folder that `Place.dicom` wrote, in their order along the patient."""
    return sorted(pathlib.Path(folder).glob("IM*"))


def put(**values):
    """A change of `edit` that sets tags by keyword; None deletes."""

    def change(data, index):
        for tag, value in values.items():
            if value is None:
                delattr(data, tag)
            else:
                setattr(data, tag, value)

    return change


def plant(folder, tag, text, only=None):
    """Give a tag of a written series a text that pydicom would not write, by bytes."""
    room = b"%-16d" % 7777777777777777
    edit(folder, lambda data, index: data.add_new(tag, "LO", room.decode()), only)
    element = pydicom.datadict.tag_for_keyword(tag).to_bytes(4, "big")
    group, number = element[:2][::-1], element[2:][::-1]
    vr = pydicom.datadict.dictionary_VR(tag).encode()
    head = group + number
    patch(folder, head + b"LO\x10\0" + room, head + vr + b"\x10\0" + text.encode().ljust(16), only)


def patch(folder, old, new, only=None):
    """Replace bytes in the files of a series. Raises ValueError where they are not there."""
    for index, path in enumerate(slices(folder)):
        if only is None or index in only:
            content = path.read_bytes()
            if old not in content:
                raise ValueError(f"{path}: expected the bytes {old!r}")
            path.write_bytes(content.replace(old, new, 1))


def claim(folder, syntax, only=None):
    """Let the files of a series name another transfer syntax than the one that they are in."""
    for index, path in enumerate(slices(folder)):
        if only is None or index in only:
            meta = pydicom.filereader.read_file_meta_info(path)
            content = path.read_bytes()
            rest = content[132 + 12 + meta.FileMetaInformationGroupLength :]
            meta.TransferSyntaxUID = syntax
            with open(path, "wb") as file:
                file.write(b"\0" * 128 + b"DICM")
                pydicom.filewriter.write_file_meta_info(file, meta)
                file.write(rest)


def zipped(path):
    """A file as .gz in its place."""
    target = path.with_name(path.name + ".gz")
    target.write_bytes(gzip.compress(path.read_bytes(), 1, mtime=0))
    path.unlink()
    return target


def new_uid(place, *words):
    """A UID that follows from words and the place's case."""
    return uid.generate_uid(entropy_srcs=[str(place.folder.name), *map(str, words)])

"""Scans as they should be scored: every format, orientation and name; and values that are no Hounsfield units, in any of them."""

import os
import struct

import numpy as np
from corpus.clean import zipped
from corpus.kinds import family, kind
from scipy.spatial.transform import Rotation

from cacjax.files import geometry

VOLUMES = {name.replace(".", "_"): name for name in ("nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd")}
IN_ONE = ("nii", "nii.gz", "nrrd", "mha")


@family("format", VOLUMES | {"dicom": "dicom", "zip": "zip"}, "same")
def format_of(place, ending):
    return place.any(formats=(ending,))


@kind("same")
def nii_scaled(place):
    """Stored as uint16 with slope and intercept."""
    path, slope = place.volume("scan.nii", hu=(np.maximum(place.hu, -1024) + 1024) * 2, dtype=np.uint16), np.float32(0.5)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([slope, -1024], "<f4").tobytes()
    path.write_bytes(content)
    return place.pick(zipped, lambda path: path)(path)


@kind("same")
def nii_2(place):
    """NIfTI-2, in either byte order."""
    order = place.pick("<", ">")
    header, (nz, ny, nx), steps = bytearray(544), place.hu.shape, place.affine[:3, 2::-1]
    rows = np.column_stack([steps, place.affine[:3, 3]]) * np.array([-1, -1, 1])[:, None]
    fields = [(0, "i", 540), (4, "8s", b"n+2\0\r\n\x1a\n"), (12, "2h", 4, 16), (16, "8q", 3, nx, ny, nz, 1, 1, 1, 1)]
    fields += [(104, "4d", 1, *np.linalg.norm(steps, axis=0)), (168, "q", 544), (176, "2d", 1, 0), (344, "2i", 0, 1), (500, "i", 2)]
    for at, form, *values in fields + [(400 + 32 * i, "4d", *row) for i, row in enumerate(rows)]:
        struct.pack_into(order + form, header, at, *values)
    path = place.folder / "scan.nii"
    path.write_bytes(header + place.hu.astype(order + "i2").tobytes())
    return place.pick(zipped, lambda path: path)(path)


@kind("same")
def big_endian(place):
    """Voxels of an MHA or NRRD in the other byte order, as its header says."""
    path = place.volume(place.pick("scan.mha", "scan.nrrd"), hu=place.hu.byteswap())
    content = path.read_bytes()
    content = content.replace(b"ByteOrderMSB = False", b"ByteOrderMSB = True", 1).replace(b"endian: little", b"endian: big", 1)
    path.write_bytes(content)
    return path


# ---- fields of view


@family("view", {"square": None, "round": -2048, "circle": -3024, "clipped": -1024, "air": -1000}, "same")
def view(place, outside):
    """Cut down to all that is bright and 10 to 40 voxels around, or filled outside of a circle, or clipped at -1024 HU."""
    bright = np.argwhere(place.hu >= 130)
    low, high = bright.min(0), bright.max(0) + 1
    if outside is None:
        margin = place.rng.integers(10, 40, 2)
        box = tuple(slice(max(0, a - m), b + m) for a, b, m in zip(low[1:], high[1:], margin))
        affine = place.affine.copy()
        affine[:3, 3] += affine[:3, 1] * box[0].start + affine[:3, 2] * box[1].start
        return place.any(hu=place.hu[:, *box], affine=affine)
    if outside == -1024:
        return place.any(hu=np.maximum(place.hu, outside))
    y, x = np.ogrid[: place.hu.shape[1], : place.hu.shape[2]]
    middle, radius = (low + high)[1:] / 2, np.linalg.norm((high - low)[1:]) / 2 + place.rng.integers(5, 20)
    return place.any(hu=np.where((y - middle[0]) ** 2 + (x - middle[1]) ** 2 > radius**2, outside, place.hu))


@kind("same")
def orientation(place):
    """Axes in another order and direction."""
    axes, flips = tuple(place.rng.permutation(3).tolist()), np.flatnonzero(place.rng.integers(0, 2, 3)).tolist()
    turned = geometry.turned_affine(place.affine, place.hu.shape, axes, flips)
    hu = geometry.turned(place.hu, axes, flips)
    return place.any(hu=hu, affine=turned)


@kind("same")
def oblique(place):
    """Turned in space by up to 20 degrees, somewhere else."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(place.rng.uniform(-0.2, 0.2, 3)).as_matrix() @ place.affine[:3, :3]
    affine[:3, 3] = place.rng.uniform(-2000, 2000, 3)
    return place.any(affine=affine)


NAMES = {
    "latin_1": os.fsdecode(b"M\xfcller"),
    "long": "x" * 230,
    "umlaut": "Müller 李",
    "space": " a  b ",
    "newline": "a\nb",
    "quote": "a'b\"c`$(d)",
    "dots": "a..b.",
    "percent": "%s%n{0}",
}


@family("named", NAMES, "same")
def named(place, name):
    """A name of a file, or of the folder that it is in."""
    name = name if place.pick(True, False) else f"{name}/scan"
    path = place.any("plain", formats=("dicom", "zip", *IN_ONE))
    target = place.folder / (name + path.name.removeprefix("plain"))
    target.parent.mkdir(exist_ok=True)
    return path.rename(target)


@family("companion", {name: name for name in ("heart", "mask", "label", "regions", "detected", "probability")}, "same")
def companion(place, word):
    """A scan, given by name, which is called as a mask that belongs to one."""
    return place.any(f"P2_{word}", formats=IN_ONE)


# ---- values that are no Hounsfield units


def window(hu):
    """As on a screen: -160 to 240 HU on 0 to 255."""
    return np.clip((hu + 160.0) * 255 / 400, 0, 255).round()


VALUES = {
    "plus_1024": lambda hu: hu + 1024,
    "times_10": lambda hu: hu * 10,
    "window": window,
    "mask": lambda hu: np.where(hu > 0, 255, 0),
    "negated": lambda hu: -hu,
    "unit": lambda hu: (hu + 1024.0) / 4095,
    "noise": lambda hu: np.random.default_rng(0).integers(-1024, 3071, hu.shape),
    "constant": lambda hu: np.full_like(hu, 40),
    "zeros": lambda hu: np.zeros_like(hu),
}


@family("values", VALUES, "refused", "not_hounsfield", "not_hu")
def values(place, change):
    hu = change(place.hu.astype(np.float32))
    fits = np.int16 if np.abs(hu).max() < 32767 and hu.max() > 1 else np.float32
    if fits == np.int16 and place.pick(True, False):
        return place.any(hu=hu)
    unsigned = np.uint16 if fits == np.int16 and hu.min() >= 0 else fits
    return place.volume(f"scan.{place.pick(*IN_ONE)}", hu=hu, dtype=place.pick(fits, unsigned, np.float32))


@family("floats", {"huge": 1e30, "nan": np.nan, "infinite": -np.inf}, "refused", "not_hounsfield", "not_hu")
def floats(place, value):
    """Some voxels, or all, of values that no scanner gives."""
    hu = place.hu.astype(np.float32)
    some = place.rng.random(hu.shape) < place.pick(1.0, 0.01, 2 / hu.size)
    some[tuple(place.rng.integers(hu.shape))] = True
    hu[some] = value
    return place.volume(f"scan.{place.pick(*IN_ONE)}", hu=hu, dtype=np.float32)

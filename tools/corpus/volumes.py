"""Headers of NIfTI, MHA and NRRD that say what cannot be, or what the file does not hold."""

import gzip
import struct

import numpy as np
from corpus.clean import zipped
from corpus.kinds import family, kind

# ---- NIfTI: offsets and formats of nifti1.h

NIFTI = {
    "slope_nan": [(112, "f", np.nan)],
    "slope_infinite": [(112, "f", np.inf)],
    "slope_minus": [(112, "f", -1.0)],
    "slope_huge": [(112, "f", 1e30)],
    "inter_nan": [(112, "2f", 1.0, np.nan)],
    "inter_infinite": [(112, "2f", 1.0, -np.inf)],
    "inter_huge": [(112, "2f", 1.0, 1e30)],
    "metres": [(123, "B", 1)],
    "microns": [(123, "B", 3)],
    "offset_0": [(108, "f", 0.0)],
    "offset_348": [(108, "f", 348.0)],
    "offset_nan": [(108, "f", np.nan)],
    "offset_beyond": [(108, "f", 1e9)],
    "offset_minus": [(108, "f", -352.0)],
    "type_float": [(70, "2h", 16, 32)],
    "type_byte": [(70, "2h", 2, 8)],
    "type_odd": [(70, "2h", 16, 16)],
    "type_unknown": [(70, "2h", 77, 16)],
    "type_colour": [(70, "2h", 128, 24)],
    "magic": [(344, "4s", b"ni1\0")],
    "no_magic": [(344, "4s", b"\0\0\0\0")],
    "length": [(0, "i", 347)],
    "srow_0": [(280, "4f", 0, 0, 0, 0)],
    "srow_nan": [(280, "f", np.nan)],
    "srow_infinite": [(300, "f", np.inf)],
    "srow_huge": [(280, "f", 1e30)],
    "pixdim_0": [(76, "4f", 1, 0, 0, 0), (252, "2h", 0, 0)],
    "pixdim_minus": [(80, "3f", -1, -1, -1), (252, "2h", 0, 0)],
    "dims_minus": [(42, "h", -96)],
    "dims_0": [(42, "h", 0)],
    "dims_many": [(40, "4h", 3, 32767, 32767, 32767)],
    "rank_0": [(40, "h", 0)],
    "rank_9": [(40, "h", 9)],
    "phases": [(40, "5h", 4, 96, 96, 6, 2)],
}
NIFTI_CODES = (
    "rescale",
    "bad_header",
    "bad_geometry",
    "corrupt",
    "truncated",
    "shear",
    "not_volume",
    "unreadable",
    "too_large",
    "not_hounsfield",
    "not_hu",
)


@family("nii", NIFTI, "refused", *NIFTI_CODES)
def nii(place, changes):
    """A field of the header that cannot be, or that the file belies."""
    return plant(place, changes)


@kind("refused", "bad_geometry", "shear")
def nii_shear(place):
    """A sform whose axes are not at right angles."""
    return plant(place, [(284, "f", float(place.rng.uniform(0.3, 1.5)))])


@kind("refused", "bad_geometry", "bad_header")
def nii_forms_differ(place):
    """sform and qform tell two spacings."""
    factor = 0.7 / 0.488
    steps = place.affine[:3, 2::-1] * (factor, factor, 1)
    rows = np.column_stack([steps, place.affine[:3, 3]]) * np.array([-1, -1, 1])[:, None]
    return plant(place, [(280 + 16 * i, "4f", *row) for i, row in enumerate(rows)])


def plant(place, changes):
    path = place.volume("scan.nii")
    content = bytearray(path.read_bytes())
    for at, form, *values in changes:
        struct.pack_into("<" + form, content, at, *values)
    path.write_bytes(content)
    return place.pick(zipped, lambda path: path)(path)


# ---- headers of text

META = {
    "DimSize": ("a b c", "10 10", "-1 96 96", "0 0 0", "99999 99999 99999", "96 96 1000000000000", "1e3 96 12", "", "nan nan nan"),
    "NDims": ("100000", "0", "-3", "abc", "2", "4", "99999999999", ""),
    "ElementType": ("MET_NONSENSE", "", "MET_STRING", "MET_FLOAT", "MET_DOUBLE_ARRAY", "MET_OTHER"),
    "ElementSpacing": ("0 0 0", "-1 -1 -1", "nan nan nan", "a b c", "inf 1 1", "1"),
    "TransformMatrix": ("0 0 0 0 0 0 0 0 0", "nan 0 0 0 1 0 0 0 1", "1 0 0 0 1 0 .5 0 1", "a"),
    "Offset": ("nan 0 0", "inf 0 0", "a b c"),
    "ElementDataFile": ("nothing.raw", "", "LIST", "/dev/zero", "%d.raw 1 100000 1", "LOCAL LOCAL"),
    "CompressedData": ("True",),
    "BinaryData": ("False",),
    "BinaryDataByteOrderMSB": ("True",),
}
NRRD = {
    "sizes": ("a b c", "10 10", "-1 96 96", "0 0 0", "99999 99999 99999", "96 96 1000000000000", ""),
    "dimension": ("100000", "0", "-3", "abc", "2", "4"),
    "type": ("nonsense", "float", "block", ""),
    "encoding": ("gzip", "bzip2", "ascii", "hex", "nonsense"),
    "endian": ("big", "middle"),
    "space directions": ("(0,0,0) (0,0,0) (0,0,0)", "(nan,0,0) (0,1,0) (0,0,1)", "(1,0,0) (.5,1,0) (0,0,1)", "none", "a"),
    "space origin": ("(nan,0,0)", "(inf,0,0)"),
}


@family("mha", {key: (f"{key} = ", texts) for key, texts in META.items()}, "refused")
def mha(place, variant):
    """A line of an MHA header that cannot be, or that the file belies."""
    return reword(place.volume("scan.mha"), variant[0], place.pick(*variant[1]))


@family("nrrd", {key.replace(" ", "_"): (f"{key}: ", texts) for key, texts in NRRD.items()}, "refused")
def nrrd(place, variant):
    """The same of NRRD."""
    return reword(place.volume("scan.nrrd"), variant[0], place.pick(*variant[1]))


def reword(path, start, text):
    """Give the line of a header that begins so another value."""
    lines, voxels = split(path)
    (at,) = (i for i, line in enumerate(lines) if line.startswith(start.encode()))
    lines[at] = (start + text).encode()
    path.write_bytes(b"\n".join(lines) + voxels)
    return path


def split(path):
    """(lines of the header, the rest with what parts it from them) of an MHA or NRRD file."""
    content = path.read_bytes()
    end = content.index(b"\n\n") if path.suffix == ".nrrd" else content.index(b"\n", content.index(b"ElementDataFile"))
    return content[:end].split(b"\n"), content[end:]


@kind("answer")
def lines_lost(place):
    """Lines of a header lost, twice there, or in another order."""
    path = place.volume(place.pick("scan.mha", "scan.nrrd"))
    lines, voxels = split(path)
    at = int(place.rng.integers(len(lines)))
    how = place.pick("lost", "twice", "shuffled", "cut")
    if how == "shuffled":
        lines = [lines[i] for i in place.rng.permutation(len(lines))]
    else:
        lines[at : at + 1] = {"lost": [], "twice": [lines[at]] * 2, "cut": [lines[at][: len(lines[at]) // 2]]}[how]
    path.write_bytes(b"\n".join(lines) + voxels)
    return path


@kind("refused")
def mhd_no_raw(place):
    """The file with the voxels is absent, short, or a folder."""
    path = place.volume("scan.mhd")
    raw = path.with_suffix(".raw")
    how = place.pick("absent", "short", "folder")
    content = raw.read_bytes()
    raw.unlink()
    if how == "short":
        raw.write_bytes(content[:-100])
    elif how == "folder":
        raw.mkdir()
    return path


# ---- compressed


@kind("refused", "corrupt", "truncated")
def gzip_checksum(place):
    """The checksum of a .nii.gz is not that of its content."""
    path = place.volume("scan.nii.gz")
    content = bytearray(path.read_bytes())
    content[-8 + int(place.rng.integers(4))] ^= 1 << int(place.rng.integers(8))
    path.write_bytes(content)
    return path


@kind("refused", "corrupt", "unreadable", "truncated")
def gzip_not(place):
    """Named .nii.gz and no gzip: noise, or another gzip inside."""
    path = place.folder / "scan.nii.gz"
    path.write_bytes(place.pick(place.rng.bytes(5000), gzip.compress(gzip.compress(b"\0" * 9999, mtime=0), mtime=0)))
    return path


@kind("either")
def gzip_tail(place):
    """Something behind the end of a .nii.gz."""
    path = place.volume("scan.nii.gz")
    path.write_bytes(path.read_bytes() + place.pick(b"\0" * 100, b"tail", gzip.compress(b"more", mtime=0)))
    return path


@kind("refused", "corrupt", "not_hounsfield", "not_hu")
def order_swapped(place):
    """Voxels in the other byte order than the header says."""
    return place.volume(f"scan.{place.pick('nii', 'nii.gz', 'nrrd', 'mha')}", hu=place.hu.byteswap())

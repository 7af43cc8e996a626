"""Headers of NIfTI-1 and NIfTI-2 in one file: every value that geometry and voxels hang on is checked (nifti1.h, nifti2.h)."""

import struct

import numpy as np

from cacjax.files.geometry import check_affine, refuse, rounded, same_grid, spacing_mm
from cacjax.files.layout import Layout, check_rescale, check_sizes, unpack
from cacjax.files.regular import opened, size_of

# Offset and format of each field, by the header's length, which is also its first value.
FIELDS = {
    348: {
        "dim": (40, "8h"),
        "datatype": (70, "h"),
        "bitpix": (72, "h"),
        "pixdim": (76, "8f"),
        "vox_offset": (108, "f"),
        "scl_slope": (112, "f"),
        "scl_inter": (116, "f"),
        "xyzt_units": (123, "B"),
        "qform_code": (252, "h"),
        "sform_code": (254, "h"),
        "quatern": (256, "6f"),
        "srow": (280, "12f"),
        "magic": (344, "4s"),
    },
    540: {
        "dim": (16, "8q"),
        "datatype": (12, "h"),
        "bitpix": (14, "h"),
        "pixdim": (104, "8d"),
        "vox_offset": (168, "q"),
        "scl_slope": (176, "d"),
        "scl_inter": (184, "d"),
        "xyzt_units": (500, "i"),
        "qform_code": (344, "i"),
        "sform_code": (348, "i"),
        "quatern": (352, "6d"),
        "srow": (400, "12d"),
        "magic": (4, "4s"),
    },
}
SCALING = ("scl_slope", "scl_inter", "vox_offset")
MAGIC = {348: b"n+1\0", 540: b"n+2\0"}
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
COLOURS = (128, 2304)
UNITS = {1: "metres", 3: "microns"}
AGAIN = "Write the file again from the original series."


def layout(path):
    """The Layout of a NIfTI file, packed or not as its first bytes say. Raises ScanError."""
    head, packed = _start(path)
    order, length = _order(head, path)
    fields = {name: struct.unpack_from(order + form, head, at) for name, (at, form) in FIELDS[length].items()}
    fields = {name: value if len(value) > 1 else value[0] for name, value in fields.items()}
    if fields["magic"] != MAGIC[length]:
        raise _bad(path, "magic", fields["magic"], f"{MAGIC[length]!r}, header and voxels in one file")
    sizes = _sizes(fields["dim"], path)
    channels = 3 if fields["datatype"] in COLOURS else 1
    check_sizes(sizes, channels, path)
    kind = TYPES.get(fields["datatype"])
    if kind is None or fields["bitpix"] != 8 * int(kind[1]):
        raise _bad(path, "datatype and bitpix", (fields["datatype"], fields["bitpix"]), "a number of 8 to 64 bits and its size")
    start = fields["vox_offset"]
    least = length + 4
    if not least <= start < 1 << 31 or start != int(start):
        raise _bad(path, "vox_offset", start, f"at least {least}, where the voxels can start")
    _check_geometry(fields, sizes, path)
    slope, intercept = _rescale(fields, path)
    about = {"packed": "file" if packed else "", "header": _copy(fields), "suffix": ".nii"}
    return Layout(sizes, order + kind, str(path), int(start), **about, slope=slope, intercept=intercept)


def _start(path):
    """(the first 544 bytes, whether the file is packed)."""
    with opened(path) as file:
        head = file.read(544)
        if head[:2] != b"\x1f\x8b":
            return head, False
        file.seek(0)
        return next(unpack(file, size_of(path), path), b"")[:544], True


def _order(head, path):
    for order in "<>":
        (length,) = struct.unpack_from(f"{order}i", head.ljust(4, b"\0"))
        if length in FIELDS and len(head) >= length:
            return order, length
    code = "truncated" if len(head) < 348 and head[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c", b"") else "unreadable"
    found = f"it starts with {head[:16]!r}, {len(head)} bytes of a header"
    raise refuse(code, path, found, "a NIfTI header of 348 or 540 bytes", "Check that the file is what its name says, and copy it again.")


def _bad(path, name, found, expected):
    return refuse("bad_header", path, f"{name} is {found}", expected, AGAIN)


def _sizes(dim, path):
    if not 1 <= dim[0] <= 7:
        raise _bad(path, "dim[0]", dim[0], "1 to 7 axes")
    sizes = list(dim[1 : dim[0] + 1])
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)


def _rescale(fields, path):
    """(slope, intercept), None where the values are meant as they are: slope 0 says so (nifti1.h), and so do 1 and 0."""
    slope, intercept = fields["scl_slope"], fields["scl_inter"]
    if slope == 0 and intercept == 0:
        return None, None
    check_rescale(slope, intercept, ("scl_slope", "scl_inter"), path)
    return (None, None) if (slope, intercept) == (1, 0) else (slope, intercept)


def _check_geometry(fields, sizes, path):
    """pixdim, qform and sform must each be possible, and must agree."""
    unit = fields["xyzt_units"] & 7
    lengths = np.array(fields["pixdim"][1:4])
    if unit in UNITS:
        told = f"lengths {rounded(lengths)} in {UNITS[unit]} (xyzt_units {fields['xyzt_units']})"
        raise refuse("bad_geometry", path, told, "mm (xyzt_units 2)", "Write the file again in mm.")
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise _bad(path, "pixdim (spacing)", rounded(lengths), "three positive lengths in mm")
    placed = {"qform": _qform, "sform": _sform}
    affines = {name: of(fields) for name, of in placed.items() if fields[f"{name}_code"] > 0}
    for name, affine in affines.items():
        _check_affine(affine, name, path)
    if "sform" in affines and not np.allclose(steps := spacing_mm(affines["sform"])[::-1], lengths, rtol=1e-3, atol=0):
        raise _differ(path, f"srow has voxels of {rounded(steps)} mm, pixdim of {rounded(lengths)} mm")
    if len(affines) == 2 and not same_grid(sizes[::-1], affines["sform"], sizes[::-1], affines["qform"]):
        one, other = (rounded(affines[name][:3].ravel()) for name in ("sform", "qform"))
        raise _differ(path, f"sform is {one}, qform is {other}")


def _check_affine(affine, name, path):
    if not np.isfinite(affine).all() or not np.linalg.norm(affine[:3, :3], axis=0).all():
        raise refuse("bad_geometry", path, f"{name} is {rounded(affine[:3].ravel())}", "finite numbers, no axis of length 0", AGAIN)
    check_affine(affine, path)


def _differ(path, found):
    advice = "Keep the right one: copy it onto the other with the tool that wrote the file."
    return refuse("bad_geometry", path, found, "one grid in both", advice)


def _sform(fields):
    """RAS affine of array axes [z, y, x] after srow_x, srow_y, srow_z."""
    affine = np.eye(4)
    affine[:3] = np.reshape(fields["srow"], (3, 4)).astype(np.float64)[:, [2, 1, 0, 3]]
    return affine


def _qform(fields):
    """RAS affine of array axes [z, y, x] after the quaternion (nifti1.h, method 2)."""
    b, c, d, *origin = map(float, fields["quatern"])
    a = np.sqrt(max(1 - b * b - c * c - d * d, 0.0))
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * b * c - 2 * a * d, 2 * b * d + 2 * a * c],
            [2 * b * c + 2 * a * d, a * a + c * c - b * b - d * d, 2 * c * d - 2 * a * b],
            [2 * b * d - 2 * a * c, 2 * c * d + 2 * a * b, a * a + d * d - c * c - b * b],
        ]
    )
    steps = np.array(fields["pixdim"][1:4], np.float64) * (1, 1, -1 if fields["pixdim"][0] < 0 else 1)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = (turn * steps)[:, ::-1], origin
    return affine


def _copy(fields):
    """A NIfTI-1 header of the checked fields and nothing else: no scaling, no extension. The image library reads no NIfTI-2."""
    copied = bytearray(352)
    for name, (at, form) in FIELDS[348].items():
        value = fields[name] if name not in SCALING else 0
        struct.pack_into("<" + form, copied, at, *(value if isinstance(value, tuple) else (value,)))
    struct.pack_into("<i", copied, 0, 348)
    copied[FIELDS[348]["magic"][0] :] = MAGIC[348] + bytes(4)
    struct.pack_into("<f", copied, FIELDS[348]["vox_offset"][0], 352)
    return bytes(copied)

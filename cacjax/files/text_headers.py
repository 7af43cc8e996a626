"""Headers of MHA, MHD, NRRD and NHDR: lines of text before the voxels, or beside them. Every value that is used is checked."""

import math
import os
import re

from cacjax.files.geometry import refuse
from cacjax.files.layout import Layout, check_rescale, check_sizes
from cacjax.files.regular import opened

MOST_BYTES = 1 << 20
AGAIN = "Write the file again from the original series."
META_TYPES = {"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4", "ULONG": "u4"}
META_TYPES |= {"LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8"}
# Fields of one meaning under several names (MetaIO documentation), and how many numbers they have.
LENGTHS = ("ElementSpacing", "ElementSize", "spacings")
META_GEOMETRY = {"ElementSpacing": 3, "ElementSize": 3, "Offset": 3, "Position": 3, "Origin": 3}
META_GEOMETRY |= {"TransformMatrix": 9, "Rotation": 9, "Orientation": 9}
NRRD_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
NRRD_SPACES = ("right-anterior-superior", "left-anterior-superior", "left-posterior-superior", "ras", "las", "lps")
NRRD_SPACES += ("scanner-xyz", "3d-right-handed", "3d-left-handed")
NRRD_FIELDS = {"dimension", "type", "block size", "encoding", "endian", "content", "min", "max", "old min", "old max", "data file"}
NRRD_FIELDS |= {"line skip", "byte skip", "number", "sample units", "sizes", "spacings", "thicknesses", "axis mins", "axis maxs"}
NRRD_FIELDS |= {"centers", "centerings", "labels", "units", "kinds", "space", "space dimension", "space units", "space origin"}
NRRD_FIELDS |= {"space directions", "measurement frame", "oldmin", "oldmax", "blocksize", "axismins", "axismaxs", "sampleunits"}
NRRD_ENCODINGS = {"raw": "", "gzip": "voxels", "gz": "voxels"}
NRRD_KINDS = ("domain", "space", "???", "none")


def _bad(path, name, found, expected, advice=AGAIN):
    return refuse("bad_header", path, f"{name} is {found!r:.80}", expected, advice)


def _lines(path, is_last):
    """(the lines of a header, the byte after it): up to the line that `is_last`, which comes with them."""
    with opened(path) as file:
        text, lines = file.read(MOST_BYTES), []
    if not text:
        raise refuse("truncated", path, "the file has 0 bytes", "a header and voxels", "Copy the file again.")
    at = 0
    while at < len(text):
        end = text.find(b"\n", at)
        end = len(text) if end < 0 else end
        lines.append(text[at:end].decode("latin-1").strip())
        at = end + 1
        if is_last(lines[-1]):
            break
    return lines, min(at, len(text))


def _fields(lines, pattern, path):
    """{name: value} of header lines. Raises ScanError `bad_header` for a line of another form, or a name with two values."""
    fields = {}
    for line in filter(None, lines):
        found = re.fullmatch(pattern, line)
        if found is None:
            raise _bad(path, "a line of the header", line, "a name and its value")
        name, value = found.groups()
        if fields.setdefault(name, value) != value:
            raise _bad(path, name, (fields[name], value), "one value", AGAIN)
    return fields


def _whole(path, name, text, count=None):
    """Whole numbers of a field. Raises ScanError `bad_header` for other text, or another count of them."""
    if not re.fullmatch(r"[+-]?\d{1,12}(\s+[+-]?\d{1,12})*", text or ""):
        raise _bad(path, name, text, "whole numbers")
    numbers = tuple(int(word) for word in text.split())
    if count is not None and len(numbers) != count:
        raise _bad(path, name, text, f"{count} whole number(s)")
    return numbers


def _numbers(path, name, text, count):
    """Finite numbers of a field, those of LENGTHS positive, as text. Raises ScanError `bad_header`."""
    words, kind = text.split(), "positive" if name in LENGTHS else "finite"
    try:
        numbers = [float(word) for word in words]
        fits = len(words) == count and all(map(math.isfinite, numbers)) and (kind == "finite" or min(numbers) > 0)
    except ValueError:
        fits = False
    if not fits:
        raise _bad(path, name, text, f"{count} {kind} numbers")
    return " ".join(words)


def _data_file(path, name):
    """The file of voxels that a header names; a list or pattern of several is not read."""
    if "%" in name or name.split(" ")[0] in ("LIST", ""):
        raise _bad(path, "the file of the voxels", name, "one file", "Write header and voxels into one file (.mha, .nrrd).")
    return os.path.join(os.path.dirname(path), name)


def meta(path):
    """The Layout of an MHA or MHD file. Raises ScanError."""
    path = str(path)
    lines, end = _lines(path, lambda line: line.startswith("ElementDataFile"))
    if not any(line.startswith("NDims") for line in lines):
        found = f"it starts with {lines[0][:16]!r}"
        advice = "Check that the file is what its name says, and copy it again."
        raise refuse("unreadable", path, found, "lines such as NDims = 3", advice)
    fields = _fields(lines, r"([^=]+?)\s*=\s*(.*)", path)  # ITK adds names such as 0008|0060
    absent = [name for name in ("NDims", "DimSize", "ElementType", "ElementDataFile") if not fields.get(name)]
    if absent:
        raise _bad(path, ", ".join(absent), "", "a value")
    (count,) = _whole(path, "NDims", fields["NDims"], 1)
    if not 1 <= count <= 10:
        raise _bad(path, "NDims", fields["NDims"], "3")
    sizes = _whole(path, "DimSize", fields["DimSize"], count)
    check_sizes(sizes, _whole(path, "ElementNumberOfChannels", fields.get("ElementNumberOfChannels", "1"), 1)[0], path)
    kind = META_TYPES.get(fields["ElementType"].removeprefix("MET_"))
    if kind is None:
        raise _bad(path, "ElementType", fields["ElementType"], "a type of numbers such as MET_SHORT")
    if not _true(path, fields, "BinaryData", "True"):
        raise _bad(path, "BinaryData", fields["BinaryData"], "True: voxels as bytes, not as text")
    swapped = _true(path, fields, "BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False"))
    packed = _true(path, fields, "CompressedData", "False")
    many = {name: _whole(path, name, fields[name], 1)[0] for name in ("CompressedDataSize", "HeaderSize") if name in fields}
    if many.get("CompressedDataSize", 0) < 0 or many.get("HeaderSize", 0) < -1 or (packed and many.get("HeaderSize", 0) < 0):
        raise _bad(path, "CompressedDataSize, HeaderSize", many, "numbers of bytes")
    _check_meta_values(fields, path)
    local = fields["ElementDataFile"].upper() == "LOCAL"
    data = path if local else _data_file(path, fields["ElementDataFile"])
    start = many.get("HeaderSize") or (end if local else 0)
    about = {"packed": "voxels" if packed else "", "packed_bytes": many.get("CompressedDataSize") or None, "suffix": ".mha"}
    return Layout(sizes, ("><"[not swapped]) + kind, data, start, header=_meta_header(fields, sizes, path), **about)


def _true(path, fields, name, default):
    value = fields.get(name, default)
    if value.lower() not in ("true", "false", "1", "0"):
        raise _bad(path, name, value, "True or False")
    return value.lower() in ("true", "1")


def _check_meta_values(fields, path):
    """Raises ScanError `rescale` for values that are meant as others, `bad_geometry` for lengths that are not in mm."""
    names = ("ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset")
    slope, intercept = (float(_numbers(path, name, fields.get(name, default), 1)) for name, default in zip(names, "10"))
    check_rescale(slope, intercept, names, path)
    if (slope, intercept) != (1, 0):
        found = f"{names[0]} is {slope:g}, {names[1]} is {intercept:g}"
        raise refuse("rescale", path, found, "1 and 0", "Write the Hounsfield units themselves.")
    if fields.get("DistanceUnits", "mm") not in ("mm", "?"):
        raise refuse("bad_geometry", path, f"DistanceUnits is {fields['DistanceUnits']}", "mm", "Write the file again in mm.")


def _meta_header(fields, sizes, path):
    values = {name: _numbers(path, name, fields[name], count) for name, count in META_GEOMETRY.items() if name in fields}
    if not values.keys() & {"ElementSpacing", "ElementSize"}:
        raise _bad(path, "ElementSpacing", "", "three lengths in mm", "Write the file again with its voxel size in the header.")
    lines = ["ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False"]
    lines += [f"{name} = {value}" for name, value in values.items()]
    lines += [f"DimSize = {' '.join(map(str, sizes))}", "ElementType = MET_SHORT", "ElementDataFile = LOCAL", ""]
    return "\n".join(lines).encode()


def nrrd(path):
    """The Layout of an NRRD or NHDR file. Raises ScanError."""
    path = str(path)
    lines, end = _lines(path, lambda line: not line)
    if not re.fullmatch(r"NRRD000[1-5]", lines[0]):
        advice = "Check that the file is what its name says, and copy it again."
        raise refuse("unreadable", path, f"it starts with {lines[0][:16]!r}", "NRRD0001 to NRRD0005", advice)
    fields = _fields([line for line in lines[1:] if not line.startswith("#") and ":=" not in line], r"([^:=]+):\s*(.*)", path)
    fields = {
        name.strip().lower().replace("datafile", "data file").replace("byteskip", "byte skip"): v.strip() for name, v in fields.items()
    }
    if unknown := sorted(fields.keys() - NRRD_FIELDS):
        raise _bad(path, "a field", unknown[0], "one of the NRRD format, or a key with :=")
    (count,) = _whole(path, "dimension", fields.get("dimension"), 1)
    if not 1 <= count <= 16:
        raise _bad(path, "dimension", count, "3")
    sizes = _whole(path, "sizes", fields.get("sizes"), count)
    kinds = fields.get("kinds", "domain").lower().split()
    check_sizes(sizes, 1 if all(kind in NRRD_KINDS for kind in kinds) else kinds, path)
    kind = next((kind for kind, names in NRRD_TYPES.items() if fields.get("type", "").lower() in names), None)
    if kind is None:
        raise _bad(path, "type", fields.get("type"), "a type of numbers such as short")
    order = {"little": "<", "big": ">"}.get(fields.get("endian", "little" if kind[1] == "1" else "").lower())
    if order is None:
        raise _bad(path, "endian", fields.get("endian"), "little or big")
    packed = NRRD_ENCODINGS.get(fields.get("encoding", "").lower())
    if packed is None:
        raise _bad(path, "encoding", fields.get("encoding"), "raw or gzip", "Write the file again with one of these.")
    skip = _whole(path, "byte skip", fields.get("byte skip", "0"), 1)[0]
    if skip < (0 if packed else -1) or (packed and skip) or fields.get("line skip", "0") != "0":
        raise _bad(path, "byte skip, line skip", (skip, fields.get("line skip", "0")), "0, or a byte skip of raw voxels")
    detached = fields.get("data file")
    data, first = (path, end) if detached is None else (_data_file(path, detached), 0)
    about = {"packed": packed, "header": _nrrd_header(fields, sizes, path), "suffix": ".nrrd"}
    return Layout(sizes, order + kind, data, -1 if skip < 0 else first + skip, **about)


def _nrrd_header(fields, sizes, path):
    lines = ["NRRD0004", "type: short", "dimension: 3"]
    if "space" in fields:
        if fields["space"].lower() not in NRRD_SPACES:
            raise _bad(path, "space", fields["space"], ", ".join(NRRD_SPACES))
        lines.append(f"space: {fields['space']}")
    lines.append(f"sizes: {' '.join(map(str, sizes))}")
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", "") + fields.get("units", ""))) - {"mm", "millimeter", ""}
    if units:
        raise refuse("bad_geometry", path, f"lengths in {', '.join(units)}", "mm", "Write the file again in mm.")
    if "space directions" in fields and ("space" in fields or "space dimension" in fields):
        lines += [] if "space" in fields else ["space dimension: 3"]
        lines.append(f"space directions: {_vectors(fields, 'space directions', 3, path)}")
    elif "spacings" in fields:
        lines.append(f"spacings: {_numbers(path, 'spacings', fields['spacings'], 3)}")
    else:
        advice = "Write the file again with its voxel size in the header."
        raise _bad(path, "space directions with space", fields.get("space directions"), "the axes of the voxels in mm", advice)
    if "space origin" in fields:
        lines.append(f"space origin: {_vectors(fields, 'space origin', 1, path)}")
    return "\n".join([*lines, "endian: little", "encoding: raw", "", ""]).encode()


def _vectors(fields, name, count, path):
    vectors = re.findall(r"\(([^()]*)\)", fields[name])
    if len(vectors) != count or re.sub(r"\([^()]*\)", "", fields[name]).strip():
        raise _bad(path, name, fields[name], f"{count} vector(s) of three numbers")
    return " ".join("(" + ",".join(_numbers(path, name, v.replace(",", " "), 3).split()) + ")" for v in vectors)

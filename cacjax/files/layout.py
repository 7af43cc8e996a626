"""How a file of one volume keeps its voxels, and the voxels themselves, read in bounded memory and checked to their last byte.

The image library never sees such a file. It gets a header of a few lines that is written anew from values that were checked,
and answers with the geometry; the voxels are read here.
"""

import math
import os
import zlib
from typing import Any, NamedTuple

import numpy as np

from cacjax.files.geometry import refuse
from cacjax.files.regular import opened, size_of

# 1024 slices of 1024 x 1024: what a header may ask for at most.
MOST_VOXELS = 1 << 30
# DEFLATE packs 258 bytes into 2 bits at best (RFC 1951), so a file cannot hold more than this many times its size.
MOST_PACKED = 1032
CHUNK_BYTES = 1 << 22
COPY = "Copy the file again."


class Layout(NamedTuple):
    """Where the voxels of a volume are, and how they are written.

    sizes: (x, y, z). dtype: of one voxel, with its byte order. data: the file that holds them. start: their first byte in it, or, where
    the whole file is packed, in what it unpacks to; -1: they are its end. packed: "" as they are, "file" or "voxels" by gzip or zlib.
    packed_bytes: of packed voxels, None to the end. slope, intercept: voxel x slope + intercept, None where the values are meant as
    they are. header: the same geometry for the image library, as `suffix`.
    """

    sizes: tuple[int, ...]
    dtype: Any
    data: str
    start: int
    packed: str
    header: bytes
    suffix: str
    packed_bytes: int | None = None
    slope: float | None = None
    intercept: float | None = None


def check_sizes(sizes, channels, path):
    """Raises ScanError: `bad_header` for sizes that are none, `not_volume` for what is not one value on three axes, `too_large`."""
    told = " x ".join(map(str, sizes)) or "none"
    if not sizes or min(sizes) < 1:
        raise refuse("bad_header", path, f"sizes {told}", "positive whole numbers", "Write the file again.")
    if len(sizes) != 3 or min(sizes) < 2 or channels != 1:
        found = f"size {told} with {channels} value(s) per voxel"
        advice = "Give one volume: a phase of a time series, or the series a slice is from."
        raise refuse("not_volume", path, found, "three sizes of at least 2 and one value per voxel", advice)
    if math.prod(sizes) > MOST_VOXELS:
        expected = f"at most {MOST_VOXELS} voxels"
        raise refuse(
            "too_large", path, f"size {told}: {math.prod(sizes)} voxels", expected, "Crop it to the heart, or write the file again."
        )


def check_rescale(slope, intercept, names, path):
    """Raises ScanError `rescale` for a slope or intercept that no CT has, naming which of them and its value."""
    for name, value, low, high in ((names[0], slope, 1e-3, 100.0), (names[1], intercept, -32768.0, 32767.0)):
        if not low <= value <= high:  # not so either for NaN
            advice = "Export the series again, with Hounsfield units = stored value x slope + intercept."
            raise refuse("rescale", path, f"{name} is {value:g}", f"{low:g} to {high:g}", advice)


def voxels(layout, path):
    """The voxels [z, y, x] in the file's own type (float where a slope scales them). Raises ScanError: `truncated`, `corrupt` for packed
    bytes that are damaged, `bad_header` for more bytes than the header tells of, `not_hu` for floats that are not finite."""
    read = _unpacked if layout.packed else _plain
    flat = read(layout, np.dtype(layout.dtype), math.prod(layout.sizes), path)
    array = flat.astype(flat.dtype.newbyteorder("="), copy=False).reshape(layout.sizes[::-1])
    if array.dtype.kind == "f":
        _check_finite(array, path)
    if layout.slope is None:
        return array
    scaled = array.astype(np.float64) * layout.slope + layout.intercept
    return scaled.astype(array.dtype if array.dtype.kind == "f" else np.float32)


def _check_finite(array, path):
    strange = sum(int((~np.isfinite(plane)).sum()) for plane in array)
    if strange:
        advice = "Fill them with -1000 HU (air) if they lie outside the field of view."
        raise refuse("not_hu", path, f"{strange} voxels are NaN or infinite", "finite Hounsfield units", advice)


def _plain(layout, dtype, count, path):
    size, wanted = _bytes_of(layout, path), count * dtype.itemsize
    start = layout.start if layout.start >= 0 else size - wanted
    if start < 0 or size - start < wanted:
        raise _cut(path, f"{max(size - max(start, 0), 0)} of {wanted} bytes of voxels are there")
    if size - start > wanted:
        raise _excess(path, wanted, size - start)
    with opened(layout.data) as file:
        file.seek(start)
        return np.fromfile(file, dtype, count)


def _unpacked(layout, dtype, count, path):
    """As `_plain`, of bytes in gzip or zlib, whose checksums are read and compared."""
    offset, skip = (0, layout.start) if layout.packed == "file" else (layout.start, 0)
    wanted = skip + count * dtype.itemsize
    here = _bytes_of(layout, path) - offset
    if layout.packed_bytes is not None and here < layout.packed_bytes:
        raise _cut(path, f"{here} of {layout.packed_bytes} packed bytes are there")
    here = here if layout.packed_bytes is None else layout.packed_bytes
    if here * MOST_PACKED < wanted:
        raise _cut(path, f"{max(here, 0)} packed bytes cannot hold {wanted}")
    flat = np.empty(count, dtype)
    into, at = flat.view(np.uint8), -skip
    with opened(layout.data) as file:
        file.seek(offset)
        for part in unpack(file, here, path):
            if at + len(part) > len(into):
                raise _excess(path, len(into), f"more than {len(into)}")
            begin = max(-at, 0)
            if begin < len(part):
                into[at + begin : at + len(part)] = np.frombuffer(part, np.uint8)[begin:]
            at += len(part)
    if at < len(into):
        raise _cut(path, f"{max(at, 0)} of {len(into)} bytes of voxels are there")
    return flat


def _bytes_of(layout, path):
    """Size of the file that holds the voxels; of another than the header's, its absence is that of the voxels."""
    if str(layout.data) != str(path) and not os.path.exists(layout.data):
        raise _cut(path, f"there is no file {layout.data}")
    return size_of(layout.data)


def unpack(file, here, path):
    """What `here` bytes of a file in gzip (of one member or several) or zlib unpack to, in parts of at most CHUNK_BYTES.

    Raises ScanError `truncated` where they end too soon, `corrupt` for what is no such stream or has another checksum.
    """
    engine, packed = zlib.decompressobj(47), b""
    while True:
        if not packed:
            packed = file.read(min(CHUNK_BYTES, here))
            here -= len(packed)
            if not packed:
                raise _cut(path, "the packed voxels end too soon")
        try:
            part = engine.decompress(packed, CHUNK_BYTES)
        except zlib.error as error:
            advice = "Copy the file again, or write it anew from the original series."
            raise refuse("corrupt", path, str(error), "bytes in gzip or zlib as they were written", advice) from None
        packed = engine.unconsumed_tail
        if part:
            yield part
        if engine.eof:
            packed = engine.unused_data or file.read(min(CHUNK_BYTES, here))
            here -= 0 if engine.unused_data else len(packed)
            if not packed.strip(b"\0"):  # tapes pad with zeros
                return
            engine = zlib.decompressobj(47)


def _cut(path, found):
    expected = "voxels as the header describes them"
    return refuse("truncated", path, f"the header can be read, the voxels not ({found})", expected, COPY)


def _excess(path, wanted, found):
    advice = "Its voxel type or its sizes are not those of its voxels: write the file again."
    return refuse("bad_header", path, f"{found} bytes of voxels", f"the {wanted} that its header tells of", advice)

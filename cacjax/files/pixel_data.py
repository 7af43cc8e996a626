"""The pixels of one DICOM file before they are decoded: whether all are there, and are as the header says that they are.

Faults told here are those at which a decoder guesses, or reads on without end.
"""

import math
import struct
import zlib
from typing import NamedTuple

from pydicom import uid

from cacjax.files.archive import MOST_BYTES
from cacjax.files.geometry import ScanError, refuse

PIXEL_DATA = (0x7FE0, 0x0010)
NATIVE = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian)
CT_IMAGES = (uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage)
# What the first fragment must be, by transfer syntax (PS3.5, annexes A.4 and G); those of JPEG by their frame header (ITU-T T.81, B.1).
STREAMS = {uid.RLELossless: "RLE"} | dict.fromkeys((uid.JPEG2000Lossless, uid.JPEG2000), "JPEG 2000")
STREAMS |= dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), "JPEG-LS") | {
    uid.JPEGBaseline8Bit: "JPEG",
    uid.JPEGExtended12Bit: "JPEG",
}
STREAMS |= dict.fromkeys((uid.JPEGLossless, uid.JPEGLosslessSV1), "lossless JPEG")
FRAMES = {0xC0: "JPEG", 0xC1: "JPEG", 0xC2: "JPEG", 0xC3: "lossless JPEG", 0xF7: "JPEG-LS"}
# Some archives pad files to a block; more than that after the pixels is no part of an image.
MOST_PADDING = 1 << 16
HEAD_BYTES = 1 << 13
EXPORT = "Export or copy the series again."


class Found(NamedTuple):
    """whole: whether the header is. cut: ScanError for pixels that are not all there, or cannot be. fault: for what contradicts the header;
    it counts where the file belongs to the scan."""

    whole: bool = True
    cut: ScanError | None = None
    fault: ScanError | None = None


def transfer_syntax(data):
    """TransferSyntaxUID of a header; implicit little endian, the default, where absent."""
    return getattr(data, "file_meta", {}).get("TransferSyntaxUID", uid.ImplicitVRLittleEndian)


def sop_class(data):
    """SOPClassUID of a header, "" where absent."""
    return data.get("SOPClassUID") or getattr(data, "file_meta", {}).get("MediaStorageSOPClassUID", "")


def _start(head):
    """Where the data set begins after the file meta information, None where this cannot be told."""
    if head[128:140] != b"DICM\x02\0\0\0UL\x04\0":
        return None
    return 144 + struct.unpack_from("<I", head.ljust(144, b"\0"), 140)[0]


def check_deflated(stream, head, where):
    """Raises ScanError `too_large` for a deflated data set that no image has. Leaves the stream wherever it read to."""
    start = _start(head)
    if str(uid.DeflatedExplicitVRLittleEndian).encode() not in head[:start] or start is None:
        return
    stream.seek(start)
    engine, size, packed = zlib.decompressobj(-15), 0, b""
    while size <= MOST_BYTES and not engine.eof and (packed := packed or stream.read(1 << 20)):
        size += len(engine.decompress(packed, 1 << 22))
        packed = engine.unconsumed_tail
    if size > MOST_BYTES:
        raise refuse("too_large", where, f"more than {MOST_BYTES} bytes once inflated", "one CT image", EXPORT)


def inspect(stream, head, data, size, where):
    """Found of a file whose reading stopped before the pixels. head: its first HEAD_BYTES. size: of the file.

    A header without pixels after it is whole in a report, and cut in an image; a cut one may tell a wrong series.
    """
    syntax = transfer_syntax(data)
    if size > MOST_BYTES:
        return Found(fault=refuse("too_large", where, f"{size} bytes", f"at most {MOST_BYTES} in one CT image", EXPORT))
    if fault := _syntax_fault(head, syntax, where):
        return Found(fault=fault) if "SOPClassUID" in data else Found(False, fault)
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        return Found()
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    start = stream.read(8)
    if len(start) < 8 or struct.unpack_from(order + "HH", start) != PIXEL_DATA:
        image = "Rows" in data or sop_class(data) in CT_IMAGES or "SeriesInstanceUID" not in data
        return Found(not image, _cut(where, "the file ends before its pixels")) if image else Found()
    explicit = start[4:6] in (b"OB", b"OW")  # no implicit length looks so, since "O" is odd and lengths are even
    length = stream.read(4).ljust(4, b"\0") if explicit else start[4:]
    (length,) = struct.unpack(order + "I", length)
    if (length == 0xFFFFFFFF) != (syntax not in NATIVE):
        pixels = "in fragments" if length == 0xFFFFFFFF else f"{length} bytes as they are"
        return Found(fault=_not_as_said(where, syntax, f"pixels {pixels}"))
    return _fragments(stream, size, syntax, where) if length == 0xFFFFFFFF else _native(stream, data, size, length, order, where)


def _native(stream, data, size, length, order, where):
    rows, columns, samples, frames, bits = (int(data.get(tag) or 1) for tag in COUNTED)
    expected = math.prod((rows, columns, samples, frames)) * bits // 8
    here, wanted = min(size - stream.tell(), length), max(length, expected)
    if here < wanted:
        return Found(cut=_cut(where, f"{here} of {wanted} bytes of pixels are there"))
    if frames == 1 and length - expected >= columns * max(bits, 8) // 8:
        found = f"{length} bytes of pixels, where Rows {rows}, Columns {columns} and BitsAllocated {bits} make {expected}"
        return Found(fault=refuse("bad_header", where, found, "as many as the header says", EXPORT))
    return Found(fault=_rest_fault(stream, stream.tell() + length, size, order, where))


COUNTED = ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated")


def _fragments(stream, size, syntax, where):
    """Found of compressed pixels: their fragments must be all there, closed by their delimiter, and be what the syntax says."""
    first, told = True, None
    while True:
        head = stream.read(8)
        group, element, length = struct.unpack("<HHI", head) if len(head) == 8 else (0, 0, 0)
        if (group, element) == (0xFFFE, 0xE0DD):
            return Found(fault=told or _rest_fault(stream, stream.tell(), size, "<", where))
        if (group, element) != (0xFFFE, 0xE000) or stream.tell() + length > size:
            return Found(cut=_cut(where, "the compressed pixels have no end"))
        after = stream.tell() + length
        if not first and told is None:
            kind, expected = _kind(stream.read(min(length, 1 << 16))), STREAMS.get(syntax)
            told = _not_as_said(where, syntax, f"pixels in {kind}") if expected and kind != expected else False
        stream.seek(after)
        first = False


def _kind(stream):
    """What a first fragment is, in words of STREAMS."""
    if stream.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")):
        return "JPEG 2000"
    if len(stream) >= 8 and stream[:2] != b"\xff\xd8":
        segments, offset = struct.unpack_from("<II", stream)
        return "RLE" if 1 <= segments <= 15 and offset == 64 else "no known code"
    at = 2
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        if stream[at + 1] in FRAMES:
            return FRAMES[stream[at + 1]]
        at += 1 if stream[at + 1] == 0xFF else 2 + struct.unpack_from(">H", stream, at + 2)[0]
    return "no known code"


def _rest_fault(stream, end, size, order, where):
    """ScanError for bytes after the `end` of the pixels that are no data elements, None for others: zeros are read as elements."""
    rest = size - end
    if rest <= MOST_PADDING:
        return None
    stream.seek(end)
    head = stream.read(8)
    if len(head) < 8 or struct.unpack_from(order + "H", head)[0] >= PIXEL_DATA[0]:
        return None
    return refuse("corrupt", where, f"{rest} bytes after the pixels that are no data elements", "the end of the file", EXPORT)


def _syntax_fault(head, syntax, where):
    """ScanError where the data set is written in another way than its transfer syntax says, else None."""
    start = _start(head)
    first = b"" if start is None else head[start : start + 6]
    if len(first) < 6 or syntax == uid.DeflatedExplicitVRLittleEndian:
        return None
    big = int.from_bytes(first[:2], "big") < int.from_bytes(first[:2], "little")
    explicit = first[4:6].isalpha() and first[4:6].isupper()
    if (big, explicit) == (syntax == uid.ExplicitVRBigEndian, syntax != uid.ImplicitVRLittleEndian):
        return None
    ways = ("explicit" if explicit else "implicit", "big" if big else "little")
    return _not_as_said(where, syntax, f"a data set in {ways[0]} VR, {ways[1]} endian")


def _not_as_said(where, syntax, found):
    return refuse("bad_header", where, found, f"what TransferSyntaxUID {syntax} ({syntax.name}) says", EXPORT)


def _cut(where, found):
    return refuse("truncated", where, found, "pixels to the end", EXPORT)

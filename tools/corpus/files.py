"""What lies on a disk besides good files: links, pipes, devices, files that may not be read, archives, manifests."""

import os
import pathlib
import shutil
import struct
import zipfile
import zlib

from corpus.clean import slices
from corpus.kinds import family, kind

GIB = 1 << 30


@kind("refused", "unreadable")
def link_to_itself(place):
    """A link to itself in a good folder."""
    folder = place.dicom()
    (folder / place.pick("x.dcm", "IM9999")).symlink_to(folder / "x.dcm")
    if not os.path.lexists(folder / "x.dcm"):
        (folder / "x.dcm").symlink_to("x.dcm")
    return folder


@kind("refused")
def link_astray(place):
    """A scan that is a link to itself, or to nothing."""
    path = place.folder / place.pick("scan", "scan.dcm", "scan.nii.gz", "scan.zip", "scan.mha")
    path.symlink_to(place.pick(path.name, "nothing"))
    return path


@kind("same")
def linked(place):
    """A link to a good scan, or a folder of links to good slices."""
    real = place.any("real", formats=("dicom", "zip", "nii.gz", "mha"))
    if real.is_dir() and place.pick(True, False):
        (place.folder / "links").mkdir()
        for path in slices(real):
            (place.folder / "links" / path.name).symlink_to(path)
        return place.folder / "links"
    link = place.folder / ("link" + "".join(real.suffixes))
    link.symlink_to(real)
    return link


@kind("refused", "unreadable")
def forbidden(place):
    """A folder or file that may not be read."""
    path = place.any(formats=("dicom", "zip", "nii.gz", "nrrd", "mha"))
    path = place.pick(path, slices(path)[2]) if path.is_dir() else path
    path.chmod(0)
    return path if path.parent == place.folder else path.parent


@kind("refused", "unreadable", "bad_manifest")
def forbidden_manifest(place):
    """A manifest that may not be read, or in a folder that may not be."""
    place.volume("study/scan.nii.gz")
    (place.folder / "study/manifest.csv").write_text("scan\nscan.nii.gz\n")
    folder = place.folder / "study"
    place.pick(folder, folder / "manifest.csv").chmod(0)
    return place.pick(folder, folder / "manifest.csv")


@kind("refused")
def pipe(place):
    """A named pipe, given itself or in a good folder."""
    if place.pick(True, False):
        folder = place.dicom()
        os.mkfifo(folder / "x.dcm")
        return folder
    path = place.folder / place.pick("scan", "scan.dcm", "scan.nii.gz", "scan.nii", "scan.nrrd", "scan.mha", "scan.zip")
    os.mkfifo(path)
    return path


@kind("refused")
def endless(place):
    """A link to a device that never ends, given itself or in a good folder."""
    if place.pick(True, False):
        folder = place.dicom()
        (folder / "x.dcm").symlink_to("/dev/zero")
        return folder
    path = place.folder / place.pick("scan", "x.dcm", "scan.nii.gz", "scan.nii", "scan.nrrd", "scan.mha", "scan.zip")
    path.symlink_to(place.pick("/dev/zero", "/dev/urandom"))
    return path


@kind("refused")
def odd_path(place):
    """No scan at all."""
    path = place.folder / place.pick("nothing", "folder", "folder.nii.gz", "deep", "empty.dcm", "text.txt")
    if path.suffix in (".dcm", ".txt"):
        path.write_text("" if path.suffix == ".dcm" else "hello")
    elif path.name == "deep":
        (path / "a/b/c").mkdir(parents=True)
        return path / "a/b"
    elif path.name != "nothing":
        path.mkdir()
    return path


# ---- archives


@kind("refused")
def zip_twice(place):
    """The same name twice, with the same content or another."""
    folder = place.dicom()
    files = slices(folder)
    at = place.one()[0]
    path = place.zip(folder)
    with zipfile.ZipFile(path) as archive:
        content = archive.read(archive.namelist()[0]) if place.pick(True, False) else archive.read(files[at].name)
    with zipfile.ZipFile(path, "a") as archive:
        archive.fp.seek(archive.start_dir)
        archive.NameToInfo.clear()
        archive.writestr(zipfile.ZipInfo(files[at].name), content)
    return path


@kind("refused")
def zip_bomb(place):
    """One slice of a zip is followed by 3 or 10 GB of zeros, in a few MB."""
    folder = place.dicom()
    files = slices(folder)
    members = {path.name: (path.read_bytes(), 0) for path in files}
    last = files[place.one()[0]].name
    members[last] = (members[last][0], place.pick(3, 10) * GIB)
    shutil.rmtree(folder)
    return write_zip(place.folder / "bomb.zip", members)


@kind("refused")
def gzip_bomb(place):
    """A .nii.gz with 3 GB of zeros behind its voxels, or a header that promises as much."""
    path = place.volume("scan.nii")
    content = bytearray(path.read_bytes())
    path.unlink()
    if place.pick(True, False):
        struct.pack_into("<4h", content, 40, 3, 1024, 1024, 1536)
    body, length, check = deflated(bytes(content), 3 * GIB)
    bomb = place.folder / "bomb.nii.gz"
    bomb.write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + b"".join(body) + struct.pack("<II", check, length % (1 << 32)))
    return bomb


def deflated(start, zeros):
    """(pieces, length, checksum) of `start` and so many zeros, deflated: the zeros by a piece that repeats."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = bytes(1 << 24)
    pieces, check = [packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)], zlib.crc32(start)
    if zeros:
        again = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
        for _ in range(zeros // len(piece)):
            pieces.append(again)
            check = zlib.crc32(piece, check)
    return [*pieces, packer.flush()], len(start) + zeros, check


def write_zip(path, members):
    """A zip, of {name: (content, zeros behind it)}, with the sizes in 64 bits where they need it."""
    directory = b""
    with open(path, "wb") as file:
        for name, (start, zeros) in members.items():
            pieces, length, check = deflated(start, zeros)
            packed, at, large = sum(map(len, pieces)), file.tell(), length >= 1 << 32
            extra = struct.pack("<HHQQ", 1, 16, length, packed) if large else b""
            sizes = (0xFFFFFFFF, 0xFFFFFFFF) if large else (packed, length)
            common = struct.pack("<HHHHHIIIHH", 45, 0, 8, 0, 33, check, *sizes, len(name), len(extra))
            file.write(b"PK\3\4" + common + name.encode() + extra)
            file.writelines(pieces)
            directory += b"PK\1\2" + struct.pack("<H", 45) + common + struct.pack("<HHHII", 0, 0, 0, 0, at) + name.encode() + extra
        at = file.tell()
        file.write(directory + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(directory), at, 0))
    return path


@kind("refused", "unreadable", "truncated", "corrupt")
def zip_encrypted(place):
    """A zip whose members say that they are encrypted."""
    path = place.zip(place.dicom())
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place_of = content.find(mark)
        while place_of >= 0:
            content[place_of + at] |= 1
            place_of = content.find(mark, place_of + 4)
    path.write_bytes(content)
    return path


@kind("refused")
def zip_of_no_scan(place):
    """A zip of text, of nothing, of a zip, or no zip."""
    path, how = place.folder / "scan.zip", place.pick("text", "nothing", "zip", "none", "volume")
    if how == "none":
        path.write_bytes(b"PK\3\4 and no more")
        return path
    with zipfile.ZipFile(path, "w") as archive:
        if how == "text":
            archive.writestr("readme.txt", "hello")
        elif how == "zip":
            archive.write(place.zip(place.dicom(), "inner.zip"), "inner.zip")
        elif how == "volume":
            archive.writestr("scan.nii", b"\0" * 400)
    return path


@kind("same")
def zip_of_folders(place):
    """Slices in folders of a zip, with what macOS adds, stored or deflated, and names that point outside."""
    folder = place.dicom()
    path = place.folder / "scan.zip"
    above = place.pick("", "../", "/", "a/b/")
    with zipfile.ZipFile(path, "w", place.pick(zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)) as archive:
        for file in slices(folder):
            archive.writestr(zipfile.ZipInfo(f"{above}series/{file.name}"), file.read_bytes())
        archive.writestr(zipfile.ZipInfo("__MACOSX/series/._IM0001.dcm"), b"\0\5\x16\7")
    shutil.rmtree(folder)
    return path


# ---- manifests

MANIFESTS = {
    "no_column": b"image\nscan.nii.gz\n",
    "empty": b"",
    "binary": bytes(range(256)),
    "nothing_there": b"scan\nother.nii.gz\n",
    "empty_cell": b"scan,domain\n,x\n",
    "threshold": b"scan,threshold_hu\nscan.nii.gz,inf\n",
    "heart": b"scan,heart\nscan.nii.gz,absent.nii.gz\n",
    "utf_16": "scan\nscan.nii.gz\n".encode("utf-16"),
    "nul": b"scan\nscan\0.nii.gz\n",
    "long_name": b"scan\n" + b"x" * 5000 + b".nii.gz\n",
}


@family("manifest", MANIFESTS, "refused")
def manifest(place, content):
    place.volume("study/scan.nii.gz")
    (place.folder / "study/manifest.csv").write_bytes(content)
    return place.folder / "study"


@kind("same")
def good_manifest(place):
    path = place.any("study/scan", formats=("nii.gz", "mha"))
    encoding = place.pick("utf-8", "utf-8-sig")
    (path.parent / "manifest.csv").write_text(f"scan,domain\n{path.name},source\n", encoding=encoding)
    return path.parent


@kind("same")
def folder_of_one(place):
    """A folder that holds one scan, its mask, and other files."""
    path = place.any("study/scan", formats=("nii.gz", "mha", "nrrd"))
    shutil.copy(path, path.with_name("scan_mask" + "".join(path.suffixes)))
    (path.parent / "notes.txt").write_text("hello")
    return pathlib.Path(path.parent)

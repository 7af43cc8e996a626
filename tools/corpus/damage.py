"""Damage by chance: files cut short, bits turned over in headers and voxels."""

from corpus.clean import slices
from corpus.kinds import kind

CUT = ("truncated", "corrupt", "unreadable", "not_dicom", "bad_header")
PLAIN = ("nii", "nrrd", "mha")
IN_ONE_FILE = ("zip", "nii", "nii.gz", "nrrd", "mha")


def turn_bit(place, path, low, high):
    """Turn over one bit between two bytes of a file."""
    content = bytearray(path.read_bytes())
    content[int(place.rng.integers(low, high))] ^= 1 << int(place.rng.integers(8))
    path.write_bytes(content)


def cut(place, path):
    """Cut a file somewhere, as often as not near one of its ends."""
    size = path.stat().st_size
    left = place.pick(
        int(place.rng.integers(size)), int(place.rng.integers(min(size, 500))), size - 1 - int(place.rng.integers(min(size, 20)))
    )
    with open(path, "r+b") as file:
        file.truncate(left)


@kind("refused", *CUT)
def cut_file(place):
    """A file cut short: a volume, a zip."""
    path = place.any(formats=IN_ONE_FILE)
    cut(place, path)
    return path


@kind("refused", *CUT)
def cut_slice(place):
    """One slice of a series cut short."""
    folder = place.dicom()
    cut(place, slices(folder)[int(place.rng.integers(len(place.hu)))])
    return folder


@kind("refused", *CUT)
def cut_slices(place):
    """Every slice of a series cut short: one scan, one row."""
    folder = place.dicom()
    for path in slices(folder):
        cut(place, path)
    return folder


@kind("answer")
def header_bit(place):
    """A bit of a header turned over."""
    if place.pick(True, False):
        folder = place.dicom()
        path = slices(folder)[int(place.rng.integers(len(place.hu)))]
        turn_bit(place, path, 128, path.stat().st_size - 2 * place.hu[0].size)
        return folder
    path = place.volume(f"scan.{place.pick(*PLAIN)}")
    turn_bit(place, path, 0, path.stat().st_size - 2 * place.hu.size)
    return path


@kind("about")
def voxel_bit(place):
    """A bit of a voxel turned over, where nothing can tell."""
    path = place.dicom() if place.pick(True, False) else place.volume(f"scan.{place.pick(*PLAIN)}")
    target, count = (slices(path)[place.one()[0]], place.hu[0].size) if path.is_dir() else (path, place.hu.size)
    size = target.stat().st_size
    turn_bit(place, target, size - 2 * count, size)
    return path


@kind("either")
def packed_bit(place):
    """A bit of compressed voxels turned over, behind what names the file: its checksum tells."""
    path = place.any(formats=("nii.gz", "zip"))
    size = path.stat().st_size
    turn_bit(place, path, 40, size)
    return path


@kind("either")
def compressed_bit(place):
    """The same of NRRD and MHA, whose voxels are compressed by zlib."""
    path = place.volume(f"scan.{place.pick('nrrd', 'mha')}", compress=True)
    size = path.stat().st_size
    turn_bit(place, path, size - size // 2, size)
    return path


@kind("answer")
def noise(place):
    """Noise with the start of a good file, or none."""
    path = place.any(formats=IN_ONE_FILE)
    start = path.read_bytes()[: place.pick(0, 4, 64, 400)]
    path.write_bytes(start + place.rng.bytes(int(place.rng.integers(1, 20000))))
    return path


@kind("answer")
def bytes_lost(place):
    """Bytes taken out of, put into, or zeroed within a file."""
    path = place.any(formats=(*PLAIN, "nii.gz", "zip", "dicom"))
    target = slices(path)[place.one()[0]] if path.is_dir() else path
    content, length = target.read_bytes(), int(place.rng.integers(1, 300))
    at = int(place.rng.integers(len(content)))
    between = place.pick(b"", b"\0" * length, place.rng.bytes(2 * length))
    target.write_bytes(content[:at] + between + content[at + length :])
    return path

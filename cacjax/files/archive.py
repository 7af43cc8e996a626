"""The files of a DICOM folder or zip: regular ones only, by name, and of an archive no more bytes than a study has."""

import contextlib
import functools
import itertools
import os
import zipfile
from collections.abc import Callable
from typing import NamedTuple

from cacjax.files.geometry import ScanError, refuse
from cacjax.files.regular import opened, size_of, unreadable

# One file: 16 times the largest CT image, 4096 x 4096. All of an archive: some 16,000 slices of 512 x 512.
MOST_BYTES = 1 << 29
MOST_UNPACKED = 1 << 33


class Entry(NamedTuple):
    """One file of a folder or zip. open: a context manager of its bytes. error: why it cannot be opened."""

    name: str
    open: Callable | None
    size: int
    error: ScanError | None = None


@contextlib.contextmanager
def entries(path):
    """Entries of a folder (not of those inside it) or of a zip (all of it), by name, without hidden files (macOS adds `._name`).

    Raises ScanError: `unreadable` for what cannot be opened, `corrupt` for a zip with one name twice, `too_large`.
    """
    if os.path.isdir(path):
        try:
            names = sorted(name for name in os.listdir(path) if not name.startswith("."))
        except OSError as error:
            raise unreadable(path, error) from None
        yield [entry(path, name) for name in names if not os.path.isdir(os.path.join(path, name))]
        return
    with _zip(path) as archive:
        infos = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename)
        seen = [info for info in infos if not any(map(_is_hidden, info.filename.split("/")))]
        twice = [one.filename for one, other in itertools.pairwise(seen) if one.filename == other.filename]
        if twice:
            advice = "Unpack it, see which of them belongs to the scan, and give that folder."
            raise refuse("corrupt", path, f"{len(twice)} name(s) twice, such as {twice[0]}", "each file once", advice)
        total = sum(info.file_size for info in seen)
        if total > MOST_UNPACKED:
            found = f"{len(seen)} files of {total} bytes together"
            raise refuse("too_large", path, found, f"at most {MOST_UNPACKED}", "Give the scan alone: a folder, or a zip of one series.")
        yield [Entry(i.filename, functools.partial(archive.open, i), i.file_size) for i in seen]


def _is_hidden(part):
    return part.startswith((".", "__MACOSX")) and part not in (".", "..")  # nothing is unpacked by its name


def entry(folder, name):
    """The Entry of one file in a folder."""
    place = os.path.join(folder, name)
    try:
        return Entry(name, functools.partial(opened, place), size_of(place))
    except ScanError as error:
        return Entry(name, None, 0, ScanError("unreadable", error.message))


@contextlib.contextmanager
def _zip(path):
    size_of(path)
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises many kinds on damaged bytes
        raise refuse("unreadable", path, str(error), "a whole zip archive", "Copy or download it again.") from None
    with archive:
        yield archive


@contextlib.contextmanager
def opener(path):
    """A function that opens a file of a folder or zip, by its name in it, for reading bytes."""
    if os.path.isdir(path):
        yield lambda name: opened(os.path.join(path, name))
        return
    with _zip(path) as packed:
        yield packed.open

"""Arrays that a network made of a record, in files of their own: an interrupted or repeated training reads them."""

import functools
import pathlib
import zlib

import numpy as np

from cacjax.files.atomic import replace


def path_of(folder: pathlib.Path, record: dict) -> pathlib.Path:
    """Return the file of a record, named by a checksum of its scan."""
    return folder / f"{zlib.crc32(np.ascontiguousarray(record['hu'])):08x}.npy"


def save(array: np.ndarray, path: pathlib.Path) -> None:
    """Write an array, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, functools.partial(_write, array))


def _write(array, path):
    with path.open("wb") as file:  # np.save appends .npy to a name
        np.save(file, array)

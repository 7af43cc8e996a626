"""Records with a heart: where none is known, what a heart network finds, kept in files. Arrays are [z, y, x]."""

import functools
import pathlib
import sys
import zlib

import numpy as np
import tqdm

from cacjax.files.atomic import replace


class WithHearts:
    """The records of a source, each with "heart" (uint8) from the files that `find` has written, where it had none."""

    def __init__(self, source, folder):
        self.source, self.folder = source, folder

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        record = self.source[index]
        return record if np.any(record["heart"]) else record | {"heart": _load(_file(self.folder, record), record["hu"].shape)}


def find(source, segment, folder):
    """`source`, or, where a record has no heart, a source whose records have what `segment` finds in them.

    segment(hu, spacing_mm) -> structures [z, y, x], above 0 within the heart. Raises ValueError where it finds none.
    """
    folder, lacking = pathlib.Path(folder), []
    seconds = 0.1 if sys.stderr.isatty() else 10
    for i in tqdm.tqdm(range(len(source)), "hearts", unit="scan", mininterval=seconds):
        record = source[i]
        if np.any(record["heart"]):
            continue
        lacking.append(i)
        if not (path := _file(folder, record)).exists():
            folder.mkdir(parents=True, exist_ok=True)
            heart = np.asarray(segment(np.asarray(record["hu"], np.float32), tuple(record["spacing_mm"]))) > 0
            if not heart.any():
                raise ValueError(f"the heart network finds no heart in scan {record['id']}: leave it out, or give it a heart mask")
            replace(path, functools.partial(_save, heart))
    return WithHearts(source, folder) if lacking else source


def _file(folder, record):
    return folder / f"{zlib.crc32(np.ascontiguousarray(record['hu'])):08x}.npy"


def _save(heart, path):
    with path.open("wb") as file:  # np.save appends .npy to a name
        np.save(file, np.packbits(heart))


def _load(path, shape):
    return np.unpackbits(np.load(path), count=int(np.prod(shape))).reshape(shape)

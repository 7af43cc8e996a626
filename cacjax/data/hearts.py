"""Records with a heart: where none is known, what a heart network finds, kept in files. Arrays are [z, y, x]."""

import pathlib
import sys

import numpy as np
import tqdm

from cacjax.data import kept


class WithHearts:
    """The records of a source, each with "heart" (uint8) from the files that `find` has written, where it had none."""

    def __init__(self, source, folder):
        self.source, self.folder = source, folder

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        record = self.source[index]
        if np.any(record["heart"]):
            return record
        shape = np.shape(record["hu"])
        return record | {"heart": np.unpackbits(np.load(kept.path_of(self.folder, record)), count=int(np.prod(shape))).reshape(shape)}


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
        if not (path := kept.path_of(folder, record)).exists():
            heart = np.asarray(segment(np.asarray(record["hu"], np.float32), tuple(record["spacing_mm"]))) > 0
            if not heart.any():
                raise ValueError(f"the heart network finds no heart in scan {record['id']}: leave it out, or give it a heart mask")
            kept.save(np.packbits(heart), path)
    return WithHearts(source, folder) if lacking else source

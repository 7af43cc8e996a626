"""Records with what a trained network detects in them: where a second stage learns what the first one mistakes for calcium.

The voxels of each scan lie in a file of their own, named by a checksum of the scan: an interrupted or repeated training reads them.
"""

import pathlib
import sys

import numpy as np
import tqdm

from cacjax.classes import AIR_HU, CALCIUM_HU
from cacjax.data import kept, scans
from cacjax.kernels import grids


class Detected:
    """Records of a source with "detected": flat indices (int32, ascending) of voxels, from the files that `detect` has written."""

    def __init__(self, source, folder):
        self.source, self.folder = source, folder

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        record = self.source[index]
        return record | {"detected": np.load(kept.path_of(self.folder, record))}


def detect(source, find, folder, *, seen: str = "none") -> Detected:
    """Detect on every scan of `source` that has no file in `folder` yet; voxels from 130 HU up count.

    find(hu, wanted) -> labels of the wanted voxels, 0 where there is no calcium; all [z, y, x], padded as `grids.pad` does, hu float32.
    seen: the view that it looks through (see cacjax.kernels.view). Raises ValueError where it detects nothing but calcium: there is
    nothing that a second stage could take away.
    """
    folder, mistaken = pathlib.Path(folder), 0
    seconds = 0.1 if sys.stderr.isatty() else 10
    for record in tqdm.tqdm((source[i] for i in range(len(source))), "first stage", len(source), unit="scan", mininterval=seconds):
        if not (path := kept.path_of(folder, record)).exists():
            kept.save(_voxels(record, find, seen), path)
        mistaken += np.count_nonzero(np.asarray(record["label"]).ravel()[np.load(path)] == 0)
    if not mistaken:
        raise ValueError(f"the first stage takes nothing but calcium for calcium in all {len(source)} scans: no second stage is needed")
    return Detected(source, folder)


def _voxels(record, find, seen):
    hu = np.asarray(record["hu"])
    shown = grids.pad(scans.as_seen(record, seen).astype(np.float32), fill=AIR_HU)
    label = np.asarray(find(shown, grids.pad(hu >= CALCIUM_HU, fill=False)))
    return np.flatnonzero(grids.cut(label, hu.shape)).astype(np.int32)

"""Records with what a trained network detects in them: where a second stage learns what the first one mistakes for calcium.

The voxels of each scan lie in a file of their own, named by a checksum of the scan: an interrupted or repeated training reads them.
"""

import functools
import pathlib
import sys
import zlib

import numpy as np
import tqdm

from cacjax.classes import AIR_HU, CALCIUM_HU
from cacjax.data import scans
from cacjax.files.atomic import replace
from cacjax.kernels import grids


class Detected:
    """Records of a source with "detected": flat indices (int32, ascending) of voxels, from the files that `detect` has written."""

    def __init__(self, source, folder):
        self.source, self.folder = source, folder

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        record = self.source[index]
        return record | {"detected": np.load(_file(self.folder, record))}


def detect(source, find, folder, *, seen: str = "none") -> Detected:
    """Detect on every scan of `source` that has no file in `folder` yet; voxels from 130 HU up count.

    find(hu, wanted) -> labels of the wanted voxels, 0 where there is no calcium; all [z, y, x], padded as `grids.pad` does, hu float32.
    seen: the view that it looks through (see cacjax.kernels.view). Raises ValueError where it detects nothing but calcium: there is
    nothing that a second stage could take away.
    """
    folder, mistaken = pathlib.Path(folder), 0
    folder.mkdir(parents=True, exist_ok=True)
    seconds = 0.1 if sys.stderr.isatty() else 10
    for record in tqdm.tqdm((source[i] for i in range(len(source))), "first stage", len(source), unit="scan", mininterval=seconds):
        if not (path := _file(folder, record)).exists():
            voxels = _voxels(record, find, seen)
            replace(path, functools.partial(_save, voxels))
        mistaken += np.count_nonzero(np.asarray(record["label"]).ravel()[np.load(path)] == 0)
    if not mistaken:
        raise ValueError(f"the first stage takes nothing but calcium for calcium in all {len(source)} scans: no second stage is needed")
    return Detected(source, folder)


def _voxels(record, find, seen):
    hu = np.asarray(record["hu"])
    shown = grids.pad(scans.as_seen(record, seen).astype(np.float32), fill=AIR_HU)
    label = np.asarray(find(shown, grids.pad(hu >= CALCIUM_HU, fill=False)))
    return np.flatnonzero(grids.cut(label, hu.shape)).astype(np.int32)


def _file(folder, record):
    return folder / f"{zlib.crc32(np.ascontiguousarray(record['hu'])):08x}.npy"


def _save(voxels, path):
    with path.open("wb") as file:  # np.save appends .npy to a name
        np.save(file, voxels)

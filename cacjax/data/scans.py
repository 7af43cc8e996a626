"""The scans that samples are drawn from: decoded and indexed once, kept in memory, and which of them are in memory at a step.

Arrays are [z, y, x]; HU are int16; labels are uint8 (cacjax.classes.CLASSES). What is in memory follows from (seed, step) alone.
"""

import collections
import functools
import threading
import zlib
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from cacjax.classes import CALCIUM_HU, CLASSES, CORONARY
from cacjax.kernels import grids, view

HEART_MARGIN = (2, 6, 6)  # voxels around the heart's bounding box: the epicardial arteries lie on its border
DETECTED = "detected_negative"  # what a first network takes for calcium and is none: records then have "detected"


class IndexedScan(NamedTuple):
    """A decoded scan with what sampling needs: voxel lists are ascending flat indices, int32.

    starts[name][z] is the position in voxels[name] of the first voxel of slice z; shape [z + 1]. heart: its mask, uint8; centre: its
    middle (y, x), of the scan where no heart is known.
    """

    id: str
    hu: np.ndarray
    label: np.ndarray
    box: np.ndarray
    voxels: dict[str, np.ndarray]
    starts: dict[str, np.ndarray]
    heart: np.ndarray
    centre: tuple[int, int]


def heart_box(heart: np.ndarray) -> np.ndarray:
    """Return the heart's bounding box with a margin, int [2, 3] (first, one past the last); the whole scan if empty."""
    found, margin = grids.extent(heart), np.array(HEART_MARGIN)
    if found is None:
        return np.array([(0, 0, 0), heart.shape])
    return np.stack([np.maximum(found[0] - margin, 0), np.minimum(found[1] + 1 + margin, heart.shape)])


def middle(heart: np.ndarray) -> tuple[int, int]:
    """The heart's centre of mass (y, x), rounded; the middle of the scan if empty."""
    at = np.nonzero(heart)[1:] if heart.any() else np.array(heart.shape[1:])[:, None] / 2
    return tuple(round(float(np.mean(along))) for along in at)


def index_scan(record: dict, seen: str = "none") -> IndexedScan:
    """List the voxels of every stratum of one record, once per scan in memory. seen: the view that samples are cut from."""
    hu, label = np.asarray(record["hu"]), np.asarray(record["label"])
    heart = np.asarray(record["heart"])
    box = heart_box(heart)
    threshold = np.nan_to_num(record.get("threshold_hu", np.nan), nan=CALCIUM_HU)  # the scan's own; none known: the classical one
    bright, inside = hu >= CALCIUM_HU, np.zeros(hu.shape, bool)
    inside[tuple(slice(low, high) for low, high in box.T)] = True
    voxels = {"bright": bright, "bright_in_heart": bright & inside, "candidate_in_heart": (hu >= threshold) & inside}
    coronary = np.isin(label, CORONARY)
    voxels |= {"calcium": label > 0, "coronary": coronary, "other_calcium": (label > 0) & ~coronary}
    voxels |= {"bright_negative": bright & (label == 0)}
    voxels = {name: np.flatnonzero(mask).astype(np.int32) for name, mask in voxels.items()}
    voxels |= {CLASSES[c]: voxels["coronary"][label.ravel()[voxels["coronary"]] == c] for c in CORONARY}
    detected = np.asarray(record.get("detected", ()), np.int32)
    voxels[DETECTED] = detected[label.ravel()[detected] == 0]
    edges = np.arange(hu.shape[0] + 1) * (hu.shape[1] * hu.shape[2])
    starts = {name: np.searchsorted(voxels[name], edges) for name in ("bright", "calcium", "coronary")}
    return IndexedScan(as_text(record["id"]), as_seen(record, seen), label, box, voxels, starts, heart, middle(heart))


def as_seen(record: dict, seen: str) -> np.ndarray:
    """The HU of a record, int16 [z, y, x], as a network sees them in a view (see cacjax.kernels.view)."""
    hu = np.asarray(record["hu"])
    if seen == "none":
        return hu
    weights = view.slab_weights(float(record["spacing_mm"][0]))
    return np.rint(view.remove_contrast(hu, record["aorta_hu"], weights)).astype(np.int16)


def as_text(value) -> str:
    """A text of a record, which may be stored as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


class ScanCache:
    """The last `capacity` scans asked for, decoded and indexed; every scan is decoded by one thread only."""

    def __init__(self, sources: dict, capacity: int):
        self.sources, self.capacity = sources, capacity
        self._held, self._lock = collections.OrderedDict(), threading.Lock()

    def __reduce__(self):
        return ScanCache, (self.sources, self.capacity)  # a worker process starts with an empty cache

    def get(self, split: str, index: int, *, labelled: bool, seen: str = "none") -> IndexedScan:
        """Return scan `index` of `split` as seen in a view; ValueError if labels are asked of a scan that has none."""
        key = (split, index, seen)
        with self._lock:
            future, mine = self._held.get(key), False
            if future is None:
                future, mine = Future(), True
                self._held[key] = future
            self._held.move_to_end(key)
            while len(self._held) > self.capacity:
                self._held.popitem(last=False)
        if mine:
            self._fill(key, future)
        scan, has_labels = future.result()
        if labelled and not has_labels:
            raise ValueError(f"scan {scan.id} of split {split!r} has no mask, but a labelled stream draws from it")
        return scan

    def _fill(self, key: tuple, future: Future) -> None:
        try:
            record = self.sources[key[0]][key[1]]
            future.set_result((index_scan(record, key[2]), bool(record.get("labelled", True))))
        except BaseException as error:
            with self._lock:
                self._held.pop(key, None)
            future.set_exception(error)


@functools.lru_cache(maxsize=64)
def scans_of_period(period: int, *, total: int, in_memory: int, seed: int, tag: str) -> tuple[int, ...]:
    """Return the scans in memory in swap period `period`: seeded permutations, cut into groups of `in_memory`.

    Every pass over the scans uses each at most once (Zhai 2022 replaces all five before an epoch). `tag` names the
    splits, so that streams of one domain share their scans. Follows from the arguments alone.
    """
    if in_memory == 0 or in_memory >= total:
        return tuple(range(total))
    around, group = divmod(period, total // in_memory)
    order = np.random.default_rng([seed, zlib.crc32(tag.encode()), around]).permutation(total)
    return tuple(int(i) for i in order[group * in_memory : (group + 1) * in_memory])

"""Where training patches and cubes are cut: strata of voxels, the scans in memory at a step, and the sample around a voxel.

Arrays are [z, y, x]; HU are int16; labels are uint8 classes (0 background, 1-3 coronary, 4-6 aorta and valves).
Everything here is numpy and a pure function of (records, specification, index, generator): no state is carried.
"""

import collections
import functools
import threading
import zlib
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from cacjax.kernels import view

BRIGHT_HU = 130  # the classical calcium threshold
AIR_HU = -1000  # outside the scan
HEART_MARGIN = (2, 6, 6)  # voxels around the heart's bounding box: the epicardial arteries lie on its border
MIN_SLICE_CALCIUM = 3  # a slice counts as calcified from this many labelled voxels (Zhai 2022, official code)

SLICE_STRATA = ("bright_in_slice", "anywhere_in_slice", "calcium_in_slice")
DETECTED = "detected_negative"  # what a first network takes for calcium and is none: records then have "detected"
SCAN_STRATA = ("coronary", "calcium", "candidate_in_heart", "bright_in_heart", "bright", "heart_box", "anywhere")
SCAN_STRATA += ("bright_negative", DETECTED)
LABELLED_STRATA = ("coronary", "calcium", "bright_negative", DETECTED, "calcium_in_slice")
PLANES = ("axial", "coronal", "sagittal")


class StreamSpec(NamedTuple):
    """One named sequence of samples.

    splits: names of the sources drawn from. strata: (name, share) pairs; shares add up to 1 and are taken by a sample's
    position in its minibatch, so that they are exact where share * minibatch is whole. patch: output size n; margin:
    half of the receptive field minus one, so the input has n + 2 * margin pixels. planes: orientations of a patch; none: a
    cube of n voxels a side instead, moved to lie within the scan. slab: adjacent axial slices as channels. jitter_px: the
    window's largest shift in y and x. tone: chance that `tone_augment` sees a sample; tone_lift: whether its curves may
    lift soft tissue like contrast does. scans_in_memory: scans drawn from at a time (0: all of them), replaced every
    `swap_every` steps (0: never). labelled: samples carry "label". view: how the network sees enhanced scans (see
    cacjax.kernels.view); strata are those of the scan as it is.
    """

    splits: tuple[str, ...]
    strata: tuple[tuple[str, float], ...] = (
        ("coronary", 0.4),
        ("calcium", 0.1),
        ("bright_in_heart", 0.2),
        ("bright", 0.2),
        ("anywhere", 0.1),
    )
    patch: int = 25
    margin: int = 65
    planes: tuple[str, ...] = ("axial",)
    slab: int = 1
    jitter_px: int = 0
    labelled: bool = True
    tone: float = 0.0
    tone_lift: bool = True
    scans_in_memory: int = 0
    swap_every: int = 0
    view: str = "none"


class IndexedScan(NamedTuple):
    """A decoded scan with what sampling needs: voxel lists are ascending flat indices, int32.

    starts[name][z] is the position in voxels[name] of the first voxel of slice z; shape [z + 1].
    """

    id: str
    hu: np.ndarray
    label: np.ndarray
    box: np.ndarray
    voxels: dict[str, np.ndarray]
    starts: dict[str, np.ndarray]


def check_spec(name: str, spec: StreamSpec) -> None:
    """Raise ValueError naming the stream and what is wrong with its specification."""
    wrong = [s for s, _ in spec.strata if s not in SLICE_STRATA + SCAN_STRATA]
    if wrong:
        raise ValueError(f"stream {name}: unknown stratum {wrong[0]!r}, expected one of {SLICE_STRATA + SCAN_STRATA}")
    if abs(sum(share for _, share in spec.strata) - 1) > 1e-6:
        raise ValueError(f"stream {name}: shares of the strata must add up to 1, got {spec.strata}")
    needs = [s for s, _ in spec.strata if s in LABELLED_STRATA]
    if needs and not spec.labelled:
        raise ValueError(f"stream {name}: stratum {needs[0]!r} needs labels, but the stream is not labelled")
    if not set(spec.planes) <= set(PLANES):
        raise ValueError(f"stream {name}: planes must be among {PLANES}, got {spec.planes}")
    if spec.slab % 2 == 0 or (spec.slab > 1 and tuple(spec.planes) != ("axial",)):
        raise ValueError(f"stream {name}: slab must be odd, and 1 unless the plane is axial, got {spec.slab}")
    if spec.margin and not spec.planes:
        raise ValueError(f"stream {name}: a cube (no planes) has margin 0, got {spec.margin}")
    if spec.view not in view.NAMES:
        raise ValueError(f"stream {name}: view must be one of {view.NAMES}, got {spec.view!r}")
    if spec.patch < 1 or min(spec.margin, spec.jitter_px, spec.scans_in_memory, spec.swap_every) < 0:
        raise ValueError(f"stream {name}: patch must be positive, margin, jitter and memory not negative, got {spec}")


def heart_box(heart: np.ndarray) -> np.ndarray:
    """Return the heart's bounding box with a margin, int [2, 3] (first, one past the last); the whole scan if empty."""
    box = np.array([(0, 0, 0), heart.shape])
    for axis, margin in enumerate(HEART_MARGIN):
        hit = np.flatnonzero(heart.any(axis=tuple(a for a in range(3) if a != axis)))
        if len(hit):
            box[:, axis] = max(hit[0] - margin, 0), min(hit[-1] + 1 + margin, heart.shape[axis])
    return box


def index_scan(record: dict, seen: str = "none") -> IndexedScan:
    """List the voxels of every stratum of one record, once per scan in memory. seen: the view that patches are cut from."""
    hu, label = np.asarray(record["hu"]), np.asarray(record["label"])
    box = heart_box(np.asarray(record["heart"]))
    threshold = np.nan_to_num(record.get("threshold_hu", np.nan), nan=BRIGHT_HU)  # the scan's own; none known: the classical one
    bright, inside = hu >= BRIGHT_HU, np.zeros(hu.shape, bool)
    inside[tuple(slice(low, high) for low, high in box.T)] = True
    voxels = {"bright": bright, "bright_in_heart": bright & inside, "candidate_in_heart": (hu >= threshold) & inside}
    voxels |= {"calcium": label > 0, "coronary": (label > 0) & (label <= 3), "bright_negative": bright & (label == 0)}
    voxels = {name: np.flatnonzero(mask).astype(np.int32) for name, mask in voxels.items()}
    detected = np.asarray(record.get("detected", ()), np.int32)
    voxels[DETECTED] = detected[label.ravel()[detected] == 0]
    edges = np.arange(hu.shape[0] + 1) * (hu.shape[1] * hu.shape[2])
    starts = {name: np.searchsorted(voxels[name], edges) for name in ("bright", "calcium")}
    return IndexedScan(_text(record["id"]), as_seen(record, seen), label, box, voxels, starts)


def as_seen(record: dict, seen: str) -> np.ndarray:
    """The HU of a record, int16 [z, y, x], as a network sees them in a view (see cacjax.kernels.view)."""
    hu = np.asarray(record["hu"])
    if seen == "none":
        return hu
    weights = view.slab_weights(float(record["spacing_mm"][0]))
    return np.rint(view.remove_contrast(hu, record["aorta_hu"], weights)).astype(np.int16)


def _text(value) -> str:
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


def stratum_of(position: float, strata: tuple[tuple[str, float], ...]) -> str:
    """Return the stratum at `position` in [0, 1) of the minibatch."""
    edges = np.round(np.cumsum([share for _, share in strata]), 9)
    return strata[min(int(np.searchsorted(edges, position, side="right")), len(strata) - 1)][0]


def point_in_scan(stratum: str, scan: IndexedScan, rng: np.random.Generator) -> tuple[int, int, int] | None:
    """Draw a voxel (z, y, x) of a scan-first stratum, uniformly; None if the scan has none."""
    if stratum in ("anywhere", "heart_box"):
        low, high = scan.box if stratum == "heart_box" else (np.zeros(3, int), np.array(scan.hu.shape))
        return tuple(int(v) for v in rng.integers(low, high))
    voxels = scan.voxels[stratum]
    return _unravel(voxels[rng.integers(len(voxels))], scan.hu.shape) if len(voxels) else None


def point_in_slices(stratum: str, scans: list[IndexedScan], rng: np.random.Generator):
    """Draw (scan, voxel): first a slice among those of all scans, then a voxel in it, both uniformly (Zhai 2022).

    Slices without a candidate are not drawn at all, which has the distribution of drawing again. None if none is left.
    """
    if stratum == "anywhere_in_slice":
        z, scan = _pick_slice(scans, np.arange(sum(len(s.hu) for s in scans)), rng)
        return scan, (z, int(rng.integers(scan.hu.shape[1])), int(rng.integers(scan.hu.shape[2])))
    name, minimum = ("bright", 1) if stratum == "bright_in_slice" else ("calcium", MIN_SLICE_CALCIUM)
    counts = np.concatenate([np.diff(s.starts[name]) for s in scans])
    candidates = np.flatnonzero(counts >= minimum)
    if not len(candidates):
        return None
    z, scan = _pick_slice(scans, candidates, rng)
    return scan, _unravel(scan.voxels[name][rng.integers(*scan.starts[name][z : z + 2])], scan.hu.shape)


def _pick_slice(scans, candidates, rng):
    z = int(candidates[rng.integers(len(candidates))])
    for scan in scans:
        if z < len(scan.hu):
            return z, scan
        z -= len(scan.hu)
    raise AssertionError("a candidate slice lies behind the last scan")


def _unravel(flat: int, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    plane, x = divmod(int(flat), shape[2])
    return *divmod(plane, shape[1]), x


def paste_window(out: np.ndarray, plane: np.ndarray, row: int, col: int) -> None:
    """Copy the part of `plane` under `out` [n, n], whose pixel (n // 2, n // 2) is (row, col); the rest stays."""
    top, left = row - out.shape[0] // 2, col - out.shape[1] // 2
    r0, r1 = max(top, 0), min(top + out.shape[0], plane.shape[0])
    c0, c1 = max(left, 0), min(left + out.shape[1], plane.shape[1])
    if r0 < r1 and c0 < c1:
        out[r0 - top : r1 - top, c0 - left : c1 - left] = plane[r0:r1, c0:c1]


def plane_through(volume: np.ndarray, plane: str, point: tuple[int, int, int]):
    """Return (2-D view, row, column) of the plane through `point`: axial (y, x), coronal (z, x), sagittal (z, y)."""
    z, y, x = point
    if plane == "axial":
        return volume[z], y, x
    return (volume[:, y], z, x) if plane == "coronal" else (volume[:, :, x], z, y)


def sample_shapes(spec: StreamSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of what `cut_sample` returns: "hu" [planes, n + 2m, n + 2m, slab] and "label" [planes, n, n]; of a cube both [n, n, n]."""
    n, size, planes = spec.patch, spec.patch + 2 * spec.margin, len(spec.planes)
    shapes = {"hu": (planes, size, size, spec.slab), "label": (planes, n, n)} if planes else dict.fromkeys(("hu", "label"), (n, n, n))
    return shapes if spec.labelled else {"hu": shapes["hu"]}


def cut_sample(scan: IndexedScan, point: tuple[int, int, int], spec: StreamSpec) -> dict[str, np.ndarray]:
    """Cut {"hu": int16, "label": uint8} around a voxel; shapes as `sample_shapes` says, "label" only if the stream is labelled.

    Outside the scan planes have -1000 HU and class 0. The arrays are new, never views of the scan in memory.
    """
    shapes = sample_shapes(spec)
    if not spec.planes:
        return {part: cut_cube(getattr(scan, part), point, spec.patch) for part in shapes}
    hu = np.full(shapes["hu"], AIR_HU, np.int16)
    for i, plane in enumerate(spec.planes):
        for channel in range(spec.slab):
            z = point[0] + channel - spec.slab // 2
            if 0 <= z < len(scan.hu):
                paste_window(hu[i, :, :, channel], *plane_through(scan.hu, plane, (z, *point[1:])))
    if not spec.labelled:
        return {"hu": hu}
    label = np.zeros(shapes["label"], np.uint8)
    for i, plane in enumerate(spec.planes):
        paste_window(label[i], *plane_through(scan.label, plane, point))
    return {"hu": hu, "label": label}


def cut_cube(volume: np.ndarray, point: tuple[int, int, int], side: int) -> np.ndarray:
    """Cut a cube around a voxel, moved to lie within the volume; where that is smaller, its last voxels are repeated."""
    low = [int(np.clip(p - side // 2, 0, max(n - side, 0))) for p, n in zip(point, volume.shape)]
    block = volume[tuple(slice(a, a + side) for a in low)]
    return np.pad(block, [(0, side - n) for n in block.shape], mode="edge")

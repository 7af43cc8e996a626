"""Where training samples are cut: strata of voxels and slices, and the patches or block around a voxel.

Arrays are [z, y, x]; HU are int16; labels are uint8 (cacjax.classes.CLASSES). Everything here is numpy and a pure function of (scan,
specification, position, generator): no state is carried.
"""

from typing import NamedTuple

import numpy as np

from cacjax.classes import AIR_HU, CLASSES, CORONARY, OUTSIDE_HU
from cacjax.data.augment import AUGMENTATIONS
from cacjax.data.scans import DETECTED, IndexedScan
from cacjax.kernels import view

MIN_SLICE_CALCIUM = 3  # a slice counts as calcified from this many labelled voxels (Zhai 2022, official code)
IN_SLICE = {"bright_in_slice": ("bright", 1), "calcium_in_slice": ("calcium", MIN_SLICE_CALCIUM), "calcium_slice": ("coronary", 1)}
IN_SLICE |= {"large_calcium_slice": ("coronary", 10)}
ARTERY = "artery"  # coronary calcium, the artery first, each that has some as often
WHOLE = "whole_scan"  # about the middle of a scan, every scan once in an epoch
WHOLE_SLICES = ("calcium_slice", "large_calcium_slice", "clean_slice")
SLICE_STRATA = ("bright_in_slice", "anywhere_in_slice", "calcium_in_slice", *WHOLE_SLICES)
SCAN_STRATA = ("coronary", "calcium", "other_calcium", "candidate_in_heart", "bright_in_heart", "bright", "heart_box", "anywhere")
SCAN_STRATA += ("bright_negative", ARTERY, DETECTED, WHOLE)
LABELLED_STRATA = ("coronary", ARTERY, "calcium", "other_calcium", "bright_negative", DETECTED, "calcium_in_slice", *WHOLE_SLICES)
PLANES = ("axial", "coronal", "sagittal")


class Cut(NamedTuple):
    """What is cut around a voxel, sizes in voxels (z, y, x).

    Without planes a block of `size` (a cube, a crop, a slice, a whole volume), moved to lie within the scan, with `margin` more of the
    scan on both sides in its HU. With planes a square patch through the voxel in each of these orientations: size (slab, n, n), slab
    being adjacent axial slices as channels, and margin (0, m, m): half of the receptive field minus one.
    """

    size: tuple[int, int, int]
    margin: tuple[int, int, int] = (0, 0, 0)
    planes: tuple[str, ...] = ()


class StreamSpec(NamedTuple):
    """One named sequence of samples.

    splits: names of the sources drawn from. cut: what is cut around a voxel. strata: (name, share) pairs; shares add up to 1 and
    are taken by a sample's position in its minibatch, so that they are exact where share * minibatch is whole; of "whole_scan" each
    minibatch of a step (each member of an ensemble) takes all scans in an order of its own, again in every epoch. bins: samples of strata
    of slices come from one of so many equal parts of the heart's extent in z (`bin_at`; 0: from anywhere). one_scan: the
    share of pairs (see `bin_at`) whose two samples come from one scan, which has slices of all strata. jitter_px: the
    window's largest shift in y and x. labelled: samples carry "label"; heart: they carry "heart", not with planes. augment:
    (name, chance) pairs of `augment.AUGMENTATIONS`, in order. scans_in_memory: scans drawn from at a time (0: all of them), replaced
    every `swap_every` steps (0: never). view: how the network sees enhanced scans (see cacjax.kernels.view); strata are those of the scan
    as it is. axes: mesh axis of each number of the stream's count ("": none; axes that the mesh lacks are none); (): the last number over
    "data".
    """

    splits: tuple[str, ...]
    cut: Cut
    strata: tuple[tuple[str, float], ...] = (
        ("coronary", 0.4),
        ("calcium", 0.1),
        ("bright_in_heart", 0.2),
        ("bright", 0.2),
        ("anywhere", 0.1),
    )
    bins: int = 0
    one_scan: float = 0.0
    jitter_px: int = 0
    labelled: bool = True
    heart: bool = False
    augment: tuple[tuple[str, float], ...] = ()
    scans_in_memory: int = 0
    swap_every: int = 0
    view: str = "none"
    axes: tuple[str, ...] = ()


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
    if (spec.bins or spec.one_scan) and not {s for s, _ in spec.strata} <= set(SLICE_STRATA):
        raise ValueError(f"stream {name}: bins and pairs of one scan need strata among {SLICE_STRATA}, got {spec.strata}")
    if not 0 <= spec.one_scan <= 1:
        raise ValueError(f"stream {name}: one_scan must be a share from 0 to 1, got {spec.one_scan}")
    wrong = [s for s, _ in spec.augment if s not in AUGMENTATIONS]
    if wrong:
        raise ValueError(f"stream {name}: unknown augmentation {wrong[0]!r}, expected one of {', '.join(AUGMENTATIONS)}")
    if spec.view not in view.NAMES:
        raise ValueError(f"stream {name}: view must be one of {view.NAMES}, got {spec.view!r}")
    if min(spec.jitter_px, spec.bins, spec.scans_in_memory, spec.swap_every) < 0:
        raise ValueError(f"stream {name}: jitter, bins and memory must not be negative, got {spec}")
    _check_cut(name, spec.cut)


def _check_cut(name, cut):
    if not set(cut.planes) <= set(PLANES):
        raise ValueError(f"stream {name}: planes must be among {PLANES}, got {cut.planes}")
    if min(cut.size) < 1 or min(cut.margin) < 0:
        raise ValueError(f"stream {name}: a cut's size must be positive and its margin not negative, got {cut}")
    (slab, *sides), (around, *margins) = cut.size, cut.margin
    if cut.planes and (len({*sides}) > 1 or len({*margins}) > 1 or around):
        raise ValueError(f"stream {name}: patches must be square, size (slab, n, n) and margin (0, m, m), got {cut}")
    if cut.planes and (slab % 2 == 0 or (slab > 1 and tuple(cut.planes) != ("axial",))):
        raise ValueError(f"stream {name}: slab must be odd, and 1 unless the plane is axial, got {slab}")


def mesh_axes(spec: StreamSpec, count: tuple[int, ...]) -> tuple[str, ...]:
    """Return the mesh axis that each number of `count` is split over, "" for none."""
    return tuple(spec.axes) or ("",) * (len(count) - 1) + ("data",)


def stratum_of(position: float, strata: tuple[tuple[str, float], ...]) -> str:
    """Return the stratum at `position` in [0, 1) of the minibatch."""
    edges = np.round(np.cumsum([share for _, share in strata]), 9)
    return strata[min(int(np.searchsorted(edges, position, side="right")), len(strata) - 1)][0]


def bin_at(bins: int, *, seed: int, step: int, position: int, minibatch: int) -> int:
    """Return the bin that the sample at `position` of a minibatch is drawn from.

    Both halves of a minibatch, and all streams with as many bins, have the same sequence of bins at a step: sample i of the first half
    and sample i of the second lie at one height of the heart.
    """
    return int(np.random.default_rng([seed, bins, step, pair_of(position, minibatch)]).integers(bins))


def pair_of(position: int, minibatch: int) -> int:
    """Return the pair of a sample: it and the one at its place in the other half of the minibatch."""
    return position % -(-minibatch // 2)


def scan_in_turn(scans: int, *, seed: int, member: int, number: int) -> int:
    """Which of so many scans is sample `number` of a member: each once in an epoch, shuffled anew for every member and epoch."""
    epoch, place = divmod(number, scans)
    return int(np.random.default_rng([seed, member, epoch]).permutation(scans)[place])


def point_in_scan(stratum: str, scan: IndexedScan, rng: np.random.Generator) -> tuple[int, int, int] | None:
    """Draw a voxel (z, y, x) of a scan-first stratum, uniformly; None if the scan has none."""
    if stratum == WHOLE:
        return tuple(n // 2 for n in scan.hu.shape)
    if stratum in ("anywhere", "heart_box"):
        low, high = scan.box if stratum == "heart_box" else (np.zeros(3, int), np.array(scan.hu.shape))
        return tuple(int(v) for v in rng.integers(low, high))
    if stratum == ARTERY:
        present = [CLASSES[c] for c in CORONARY if len(scan.voxels[CLASSES[c]])]
        stratum = present[rng.integers(len(present))] if present else "coronary"
    voxels = scan.voxels[stratum]
    return _unravel(voxels[rng.integers(len(voxels))], scan.hu.shape) if len(voxels) else None


def point_in_slices(stratum: str, scans: list[IndexedScan], rng: np.random.Generator, place: tuple[int, int] | None = None):
    """Draw (scan, voxel): first a slice among those of all scans, then a voxel in it, both uniformly (Zhai 2022). None if there is none."""
    slices = slices_of(stratum, scans, place)
    if not len(slices):
        return None
    number, z = slices[rng.integers(len(slices))]
    return scans[number], point_in_slice(stratum, scans[number], int(z), rng)


def slices_of(stratum: str, scans: list[IndexedScan], place: tuple[int, int] | None = None) -> np.ndarray:
    """Return (number of the scan, z) of the slices of scans that a slice stratum draws from, int [n, 2].

    place: (bin, bins), to draw slices from that bin of the heart's extent, or from the nearest that has candidates (both, where two are
    as near). Slices without a candidate are not drawn at all, which has the distribution of drawing again.
    """
    candidates = np.concatenate([holding(stratum, scan) for scan in scans])
    if place:
        chosen, bins = place
        number = np.concatenate([bin_of_slices(scan, bins) for scan in scans])
        away = np.where(candidates & (number >= 0) & (number < bins), abs(number - chosen), bins)
        candidates = (away == away.min()) & (away < bins)
    slices = np.concatenate([np.column_stack([np.full(len(scan.hu), i), np.arange(len(scan.hu))]) for i, scan in enumerate(scans)])
    return slices[candidates]


def point_in_slice(stratum: str, scan: IndexedScan, z: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """Draw a voxel (z, y, x) of a slice that a slice stratum draws from, uniformly; of WHOLE_SLICES the heart's middle in y and x."""
    if stratum in WHOLE_SLICES:
        return z, *scan.centre
    if stratum == "anywhere_in_slice":
        rows, columns = scan.hu.shape[1:]
        return z, int(rng.integers(rows)), int(rng.integers(columns))
    name, _ = IN_SLICE[stratum]
    return _unravel(scan.voxels[name][rng.integers(*scan.starts[name][z : z + 2])], scan.hu.shape)


def holding(stratum: str, scan: IndexedScan) -> np.ndarray:
    """Return whether each slice of a scan is a candidate of a stratum, bool [z]."""
    if stratum == "anywhere_in_slice":
        return np.ones(len(scan.hu), bool)
    if stratum == "clean_slice":
        return np.diff(scan.starts["calcium"]) == 0
    name, least = IN_SLICE[stratum]
    return np.diff(scan.starts[name]) >= least


def bin_of_slices(scan: IndexedScan, bins: int) -> np.ndarray:
    """Return the bin of each slice, int [z]: `bins` equal parts of the heart's box (of the scan, where no heart is known).

    Slices outside of the box get numbers outside of 0..bins - 1.
    """
    low, high = scan.box[:, 0]
    return (np.arange(len(scan.hu)) - low) * bins // (high - low)


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
    """Shapes of what `cut_sample` returns, of a cut of size (z, y, x) and margin (a, b, c).

    With planes "hu" [planes, y + 2b, x + 2c, z] and "label" [planes, y, x], else "hu" [z + 2a, y + 2b, x + 2c], "label" and "heart"
    [z, y, x].
    """
    size, margin, planes = spec.cut
    slab, *plane = (n + 2 * m for n, m in zip(size, margin))
    shapes = {"hu": (len(planes), *plane, slab), "label": (len(planes), *size[1:])} if planes else {"hu": (slab, *plane), "label": size}
    carried = {"hu": True, "label": spec.labelled, "heart": spec.heart and not planes}
    shapes |= {"heart": size}
    return {part: tuple(shapes[part]) for part, wanted in carried.items() if wanted}


def cut_sample(scan: IndexedScan, point: tuple[int, int, int], spec: StreamSpec) -> dict[str, np.ndarray]:
    """Cut {"hu": int16, "label": uint8, "heart": uint8} around a voxel; shapes and which of them as `sample_shapes` says.

    Outside the scan planes have OUTSIDE_HU and class 0. The arrays are new, never views of the scan in memory.
    """
    shapes, (size, margin, planes) = sample_shapes(spec), spec.cut
    if not planes:
        return {part: cut_block(getattr(scan, part), point, size, margin if part == "hu" else (0, 0, 0)) for part in shapes}
    sample = {"hu": np.full(shapes["hu"], OUTSIDE_HU, np.int16)}
    for i, plane in enumerate(planes):
        for channel in range(size[0]):
            z = point[0] + channel - size[0] // 2
            if 0 <= z < len(scan.hu):
                paste_window(sample["hu"][i, :, :, channel], *plane_through(scan.hu, plane, (z, *point[1:])))
    if spec.labelled:
        sample["label"] = np.zeros(shapes["label"], np.uint8)
        for i, plane in enumerate(planes):
            paste_window(sample["label"][i], *plane_through(scan.label, plane, point))
    return sample


def cut_block(volume: np.ndarray, point: tuple[int, int, int], size, margin=(0, 0, 0)) -> np.ndarray:
    """Cut a block [z, y, x] of `size` voxels around a voxel, moved to lie within the volume, and `margin` voxels more on each side.

    Where the volume is smaller than the block its last voxels are repeated; the margin reads -1000 HU beyond volume and block.
    """
    low = [int(np.clip(p - s // 2, 0, max(n - s, 0))) for p, s, n in zip(point, size, volume.shape)]
    block = volume[tuple(slice(max(a - m, 0), a + s + m) for a, s, m in zip(low, size, margin))]
    block = np.pad(block, [(0, max(s - n, 0)) for s, n in zip(size, volume.shape)], mode="edge")
    if not any(margin):
        return block
    before = [max(m - a, 0) for a, m in zip(low, margin)]
    widths = [(b, s + 2 * m - n - b) for b, s, m, n in zip(before, size, margin, block.shape)]
    return np.pad(block, widths, constant_values=int(AIR_HU))

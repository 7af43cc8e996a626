"""Lesions: connected components, their table, and growing with reduction of false positives. Arrays are [z, y, x].

Everything runs on the device with static shapes. Sums of HU are exact (`exact`); only the last step is float32.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float32, Int32, UInt8

from cacjax.classes import ARTERIES
from cacjax.kernels import bits, groups, neighbours, runs
from cacjax.kernels.exact import HU_UNIT, digits, hu_of_runs, undigits
from cacjax.kernels.shapes import HU, Labels, Mask, Scalar, Shape, Spacing

N_CLASSES = 1 + len(ARTERIES)  # with background
CAPACITIES = (512, 4096, 65536, 1 << 20)
STEPS = ("threshold", "grow", "size", "heart", "specks")


class Lesions(NamedTuple):
    """A table of lesions in label order, rows of which the first `n` are in use; check `overflow` (n > capacity).

    artery: class of most voxels, ties to the smallest, 0 if none. centroid: (z, y, x) in voxels. low, high: box, high exclusive.
    touches_border: cut by the edge of the volume. area_mm2, slice_peak_hu: all pixels of the lesion in that slice (peak -inf where
    none), no slices where not asked for (`by_slice=False`). Unused rows have 0 voxels.
    """

    n: Int32[Array, ""]
    overflow: Bool[Array, ""]
    voxels: Int32[Array, " rows"]
    volume_mm3: Float32[Array, " rows"]
    artery: UInt8[Array, " rows"]
    peak_hu: Float32[Array, " rows"]
    sum_hu: Float32[Array, " rows"]
    mean_hu: Float32[Array, " rows"]
    centroid: Float32[Array, "rows 3"]
    low: Int32[Array, "rows 3"]
    high: Int32[Array, "rows 3"]
    touches_border: Bool[Array, " rows"]
    area_mm2: Float32[Array, "rows z"]
    slice_peak_hu: Float32[Array, "rows z"]


class Removed(NamedTuple):
    """What each step of `grow` took away (0 where the step is off).

    below_threshold, cut_by_heart: voxels of the detection; too_small, too_large, outside_heart, specks: components.
    """

    below_threshold: Int32[Array, ""]
    too_small: Int32[Array, ""]
    too_large: Int32[Array, ""]
    outside_heart: Int32[Array, ""]
    cut_by_heart: Int32[Array, ""]
    specks: Int32[Array, ""]


@functools.partial(jax.jit, static_argnames=("connectivity", "buckets"))
def label(mask: Mask, *, connectivity: int = 26, buckets: tuple = runs.BUCKETS) -> tuple[Int32[Array, "z y x"], Int32[Array, ""]]:
    """Connected components of a mask: labels and their number, as `scipy.ndimage.label`, order included.

    connectivity 4 or 8: every slice for itself, numbers run on from slice to slice; 6, 18, 26: 3D. Raises ValueError on any other,
    and on 2^31 voxels or more.
    """
    mask = mask.astype(bool)

    def work(found, packed):
        component, n = neighbours.components(found, packed, mask.shape, connectivity=connectivity)
        return runs.paint(component, found, packed, shape=mask.shape), n

    return runs.over(mask, work, buckets=buckets)


@functools.partial(jax.jit, static_argnames=("capacity", "by_slice"))
def table(
    labels: Labels, n: Scalar, hu: HU, artery: Labels, spacing_mm: Spacing, *, capacity: int = CAPACITIES[0], by_slice: bool = True
) -> Lesions:
    """`Lesions` of labels 1..n. artery: classes, 0..6. Rows beyond capacity are dropped and flagged; see `full_table`.

    by_slice: also area and peak of each lesion in each slice, 8 bytes each: a million lesions of 256 slices would be 2 GB.
    """
    before = jnp.pad(labels[:, :, :-1], ((0, 0), (0, 0), (1, 0)))
    spacing_mm = jnp.asarray(spacing_mm, jnp.float32)

    def work(found, packed):
        row = jnp.where(found.valid, labels[runs.place(found, labels.shape)] - 1, capacity)
        return _measure(found, packed.n, row, hu, artery, capacity, by_slice)

    return as_table(n, capacity, runs.over(labels > 0, work, breaks=labels != before), spacing_mm, labels.shape)


@functools.partial(jax.jit, static_argnames=("connectivity", "capacity", "by_slice"))
def find(
    mask: Mask,
    hu: HU,
    artery: Labels,
    spacing_mm: Spacing,
    *,
    connectivity: int = 26,
    capacity: int = CAPACITIES[0],
    by_slice: bool = True,
) -> Lesions:
    """`label` and `table` at once, without the volume of labels, which costs more than all the rest; options of both."""
    mask = mask.astype(bool)

    def work(found, packed):
        component, n = neighbours.components(found, packed, mask.shape, connectivity=connectivity)
        return n, _measure(found, packed.n, jnp.where(component > 0, component - 1, capacity), hu, artery, capacity, by_slice)

    n, measured = runs.over(mask, work)
    return as_table(n, capacity, measured, jnp.asarray(spacing_mm, jnp.float32), mask.shape)


def full_table(labels: Labels, n: Scalar, hu: HU, artery: Labels, spacing_mm: Spacing, *, by_slice: bool = True) -> Lesions:
    """`table` with the smallest capacity that holds all n lesions (n is read on the host)."""
    capacity = next((c for c in CAPACITIES if c >= int(n)), int(n))
    return table(labels, n, hu, artery, spacing_mm, capacity=capacity, by_slice=by_slice)


def _measure(found, n, row, hu, artery, capacity, by_slice):
    read = functools.partial(hu_of_runs, hu=hu)
    hu_sum, peak = runs.in_chunks(read, found.word, runs.bits(found), n=n)
    return measure(found, n, row, hu_sum, peak, shape=hu.shape, rows=capacity, artery=artery, by_slice=by_slice)


def measure(
    found: runs.Runs,
    n: Scalar,
    row: Int32[Array, " runs"],
    hu_sum: Int32[Array, " runs"],
    peak: Float32[Array, " runs"],
    *,
    shape: Shape,
    rows: int,
    artery: Labels | None = None,
    by_slice: bool = True,
):
    """What `as_table` makes lesions of: sums and maxima of the first n runs by their rows, `rows` or more where they are in none.

    hu_sum, peak: of each run (`exact.hu_of_runs`). A tuple of integer sums [rows, fields], integer maxima [rows, 6], peaks [rows], and
    by slice voxels and peaks [rows, z], or [rows, 0].
    """
    depth = shape[0] if by_slice else 0
    row = jnp.minimum(row, rows)
    empty = (
        jnp.zeros((5 + 6 + (N_CLASSES - 1 if artery is not None else 0), rows + 1), jnp.int32),
        jnp.full((6, rows + 1), -(2**31) + 1, jnp.int32),
        jnp.full((rows + 1,), -jnp.inf, jnp.float32),
        jnp.zeros((rows + 1, depth), jnp.int32),
        jnp.full((rows + 1, depth), -jnp.inf, jnp.float32),
    )

    def step(state, row, hu_sum, peak, *run):
        found = runs.Runs(*run)
        sums, tops, peaks, areas, slice_peaks = state
        z, y, x = runs.place(found, shape)
        ones = runs.bits(found)
        length = runs.popcount(ones)
        moments = (length * z, length * y, length * (2 * x + length - 1))
        fields = [length, *digits(hu_sum, 4)] + [part for moment in moments for part in digits(moment, 2)]
        fields += [] if artery is None else _votes(found.word, ones, artery)
        at = row.astype(jnp.uint32), z.astype(jnp.uint32)
        return (
            groups.at(sums, row).add(jnp.concatenate(fields), mode="promise_in_bounds").reshape(sums.shape),
            groups.at(tops, row).max(jnp.concatenate([z, y, x + length - 1, -z, -y, -x]), mode="promise_in_bounds").reshape(tops.shape),
            peaks.at[at[0]].max(peak, mode="promise_in_bounds"),
            areas.at[at].add(length, mode="promise_in_bounds") if by_slice else areas,
            slice_peaks.at[at].max(peak, mode="promise_in_bounds") if by_slice else slice_peaks,
        )

    sums, tops, *rest = runs.fold_chunks(step, empty, row, hu_sum, peak, *found, n=n)
    return sums[:, :-1].T, tops[:, :-1].T, *(part[:-1] for part in rest)


def _votes(at, ones, classes):
    """Voxels of classes 1..6 in each run, a list of int32 [capacity]."""
    values, ones = bits.windows(classes, at, ones)
    planes = lax.optimization_barrier([runs.pack((values >> bit) & 1)[:, 0] for bit in range(3)])
    of_class = ([p if c >> bit & 1 else ~p for bit, p in enumerate(planes)] for c in range(1, N_CLASSES))
    return [runs.popcount(functools.reduce(jnp.bitwise_and, parts, ones)) for parts in of_class]


def as_table(n, capacity, measured, spacing_mm, shape):
    """`Lesions` of what `measure` measured; artery 0 where it was not asked about arteries."""
    sums, tops, peaks, areas, slice_peaks = measured
    voxels = sums[:, 0]
    some = jnp.maximum(voxels, 1)
    sum_hu = undigits(sums[:, 1:5]) * HU_UNIT
    moments = undigits(sums[:, 5:11].reshape(-1, 3, 2)) / some[:, None] * jnp.array([1.0, 1.0, 0.5])
    votes = jnp.pad(sums[:, 11:], ((0, 0), (1, 0)))
    artery = votes.argmax(1)  # 0 where none has a vote
    low, high = -tops[:, 3:], tops[:, :3] + 1
    used = voxels > 0
    low, high = jnp.where(used[:, None], low, 0), jnp.where(used[:, None], high, 0)
    return Lesions(
        n=jnp.asarray(n, jnp.int32),
        overflow=jnp.asarray(n) > capacity,
        voxels=voxels,
        volume_mm3=voxels * jnp.prod(spacing_mm),
        artery=artery.astype(jnp.uint8),
        peak_hu=peaks,
        sum_hu=sum_hu,
        mean_hu=sum_hu / some,
        centroid=moments,
        low=low,
        high=high,
        touches_border=used & ((low == 0) | (high == jnp.array(shape))).any(1),
        area_mm2=areas * (spacing_mm[1] * spacing_mm[2]),
        slice_peak_hu=slice_peaks,
    )


def grow(
    detected: Labels,
    hu: HU,
    threshold_hu: Scalar,
    heart: Mask | None,
    spacing_mm: Spacing,
    *,
    mode: str = "paper",
    min_mm3: Scalar = 1.0,
    max_mm3: Scalar = 500.0,
    least_share: Scalar = 0.0,
    in_heart: Scalar = 0.5,
    steps: tuple[str, ...] = STEPS,
) -> tuple[UInt8[Array, "z y x"], Removed]:
    """Reduction of false positives (Zhai 2022, section 3.2): (artery-labelled mask, `Removed`).

    detected: classes 0..6. heart: already dilated, or None. Steps can be left out:
    "threshold" drops detected voxels below the threshold; "grow" takes every component of voxels >= threshold that holds a detected
    voxel, and of which at least the share `least_share` is detected, and gives it all the class of most of them (without it lesions are
    components of the detection and keep their classes); "size", "heart", and "specks" depend on the mode.
    paper: 6-connected; volumes of min_mm3..max_mm3, both inclusive, remain; a lesion remains, uncut, if the share in_heart of it is in the
    heart (0: one voxel, as the paper reads, which would keep ribs within 5 mm of it).
    authors_code: 26-connected; more than ceil(max_mm3 / voxel) voxels are removed; voxels outside the heart are cut away; then components
    of at most 2 voxels ("specks", this mode only) are removed. Raises ValueError on another mode or step.
    """
    if mode not in ("paper", "authors_code"):
        raise ValueError(f"mode must be 'paper' or 'authors_code', got {mode!r}")
    if set(steps) - set(STEPS):
        raise ValueError(f"steps must be among {STEPS}, got {tuple(steps)}")
    on = tuple(s for s in STEPS if s in steps and (s != "heart" or heart is not None))
    voxel_mm3 = jnp.prod(jnp.asarray(spacing_mm, jnp.float32))
    least = jnp.ceil(min_mm3 / voxel_mm3 * (1 - 1e-6))  # a part in a million: float32 must not drop a lesion of exactly the limit
    most = jnp.floor(max_mm3 / voxel_mm3 * (1 + 1e-6)) if mode == "paper" else jnp.ceil(max_mm3 / voxel_mm3 * (1 - 1e-6))
    heart = None if heart is None else heart.astype(bool)
    grown, removed = _grow(detected, hu, threshold_hu, heart, least, most, (least_share, in_heart), mode=mode, steps=on)
    if mode == "authors_code":
        grown, removed = _cut(grown, heart, removed, steps=on)
    return grown, removed


@functools.partial(jax.jit, static_argnames=("mode", "steps"))
def _grow(detected, hu, threshold_hu, heart, least, most, shares, *, mode, steps):
    detected = detected.astype(jnp.uint8)
    above = hu >= threshold_hu
    candidates = above if "grow" in steps else (detected > 0) & (above if "threshold" in steps else True)
    packed, in_paper = runs.find(candidates), mode == "paper"

    def work(found):
        component, _ = neighbours.components(found, packed, hu.shape, connectivity=6 if in_paper else 26)
        capacity = component.shape[0]

        def tally(sums, row, *run):
            part = runs.Runs(*run)
            ones = runs.bits(part)
            inside = ones
            if in_paper and "heart" in steps:
                values, moved = bits.windows(heart, part.word, ones)
                inside = runs.pack(values)[:, 0] & moved
            fields = [runs.popcount(ones), runs.popcount(inside), *_votes(part.word, ones, detected)]
            return groups.at(sums, row).add(jnp.concatenate(fields), mode="promise_in_bounds").reshape(sums.shape)

        row = jnp.where(found.valid, component - 1, capacity)
        empty = jnp.zeros((N_CLASSES + 1, capacity + 1), jnp.int32)
        tallied = runs.fold_chunks(tally, empty, row, *found, n=packed.n)[:, :-1]
        size, in_heart, votes = tallied[0], tallied[1], tallied[2:]
        lesion = (votes.max(0) > 0) & (votes.sum(0) >= shares[0] * size)
        small = lesion & (size < least) & ("size" in steps and in_paper)
        large = lesion & (size > most) & ("size" in steps)
        outside = lesion & ~small & ~large & (in_heart < jnp.maximum(1, shares[1] * size)) & ("heart" in steps and in_paper)
        value = jnp.where(lesion & ~small & ~large & ~outside, 1 + jnp.argmax(votes, 0), 0).astype(jnp.uint8)
        painted = runs.paint(jnp.where(found.valid, value[component - 1], 0), found, packed, shape=hu.shape)
        return painted, *(gone.sum(dtype=jnp.int32) for gone in (small, large, outside))

    painted, small, large, outside = runs.in_bucket(work, packed)
    if "grow" not in steps:
        painted = jnp.where(painted > 0, detected, 0).astype(jnp.uint8)
    below = _count((detected > 0) & ~candidates)
    return painted, Removed(below, small, large, outside, jnp.int32(0), jnp.int32(0))


def _count(mask):
    # By words: several times faster on CPU than a sum of bools.
    return runs.popcount(runs.pack(mask)).sum(dtype=jnp.int32)


@functools.partial(jax.jit, static_argnames=("steps",))
def _cut(grown, heart, removed, *, steps):
    if "heart" in steps:
        removed = removed._replace(cut_by_heart=_count((grown > 0) & ~heart))
        grown = jnp.where(heart, grown, 0)
    if "specks" not in steps:
        return grown, removed
    packed = runs.find(grown > 0)

    def work(found):
        component, _ = neighbours.components(found, packed, grown.shape, connectivity=26)
        capacity = component.shape[0]
        row = jnp.where(found.valid, component - 1, capacity)
        size = jnp.zeros((capacity,), jnp.int32).at[row].add(runs.popcount(runs.bits(found)), mode="drop")
        kept = jnp.where(found.valid, size[component - 1] > 2, False).astype(jnp.uint8)
        return runs.paint(kept, found, packed, shape=grown.shape), ((size > 0) & (size <= 2)).sum(dtype=jnp.int32)

    kept, specks = runs.in_bucket(work, packed)
    return grown * kept, removed._replace(specks=specks)

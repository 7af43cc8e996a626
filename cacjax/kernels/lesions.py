"""Lesions: connected components and their table. Arrays are [z, y, x].

Everything runs on the device with static shapes. Sums of HU are exact (`exact`); only the last step is float32.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float32, Int32, UInt8, UInt32

from cacjax.classes import ARTERIES
from cacjax.kernels import bits, groups, neighbours, runs
from cacjax.kernels.exact import HU_UNIT, digits, hu_of_runs, undigits
from cacjax.kernels.shapes import HU, Labels, Mask, Scalar, Shape, Spacing

N_CLASSES = 1 + len(ARTERIES)  # with background
CAPACITIES = (512, 4096, 65536, 1 << 20)


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
        fields += [] if artery is None else votes(found.word, ones, artery)
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


def votes(at: Int32[Array, " runs"], ones: UInt32[Array, " runs"], classes: Labels) -> list:
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

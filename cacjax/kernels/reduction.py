"""Reduction of false positives: what is detected grows to lesions, and what can be no calcium of a heart falls. [z, y, x]."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int32, UInt8

from cacjax.kernels import bits, groups, lesions, neighbours, runs
from cacjax.kernels.shapes import HU, Labels, Mask, Scalar, Spacing

STEPS = ("threshold", "grow", "size", "heart", "specks")


class Removed(NamedTuple):
    """What each step of `grow` took away (0 where the step is off).

    below_threshold, cut_by_heart: voxels of the detection; too_small, too_large, outside_heart, unsure, specks: components.
    """

    below_threshold: Int32[Array, ""]
    too_small: Int32[Array, ""]
    too_large: Int32[Array, ""]
    outside_heart: Int32[Array, ""]
    unsure: Int32[Array, ""]
    cut_by_heart: Int32[Array, ""]
    specks: Int32[Array, ""]


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
    sure: Mask | None = None,
    steps: tuple[str, ...] = STEPS,
) -> tuple[UInt8[Array, "z y x"], Removed]:
    """Reduction of false positives (Zhai 2022, section 3.2): (artery-labelled mask, `Removed`).

    detected: classes 0..6. heart: already dilated, or None. Steps can be left out:
    "threshold" drops detected voxels below the threshold; "grow" takes every component of voxels >= threshold that holds a detected
    voxel, and of which at least the share `least_share` is detected, and gives it all the class of most of them (without it lesions are
    components of the detection and keep their classes); "size", "heart", and "specks" depend on the mode.
    paper: 6-connected; volumes of min_mm3..max_mm3, both inclusive, remain; a lesion remains, uncut, if the share in_heart of it is in the
    heart (0: one voxel, as the paper reads, which would keep ribs within 5 mm of it).
    sure: voxels of which a lesion needs one, in every mode; None: none is asked for.
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
    grown, removed = _grow(detected, hu, threshold_hu, heart, sure, least, most, (least_share, in_heart), mode=mode, steps=on)
    if mode == "authors_code":
        grown, removed = _cut(grown, heart, removed, steps=on)
    return grown, removed


@functools.partial(jax.jit, static_argnames=("mode", "steps"))
def _grow(detected, hu, threshold_hu, heart, sure, least, most, shares, *, mode, steps):
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
            inside = _within(heart, part.word, ones) if in_paper and "heart" in steps else ones
            certain = ones if sure is None else _within(sure, part.word, ones)
            fields = [*map(runs.popcount, (ones, inside, certain)), *lesions.votes(part.word, ones, detected)]
            return groups.at(sums, row).add(jnp.concatenate(fields), mode="promise_in_bounds").reshape(sums.shape)

        row = jnp.where(found.valid, component - 1, capacity)
        empty = jnp.zeros((lesions.N_CLASSES + 2, capacity + 1), jnp.int32)
        tallied = runs.fold_chunks(tally, empty, row, *found, n=packed.n)[:, :-1]
        (size, in_heart, certain), votes = tallied[:3], tallied[3:]
        left, gone = (votes.max(0) > 0) & (votes.sum(0) >= shares[0] * size), []
        small, large = (size < least) & ("size" in steps and in_paper), (size > most) & ("size" in steps)
        outside = (in_heart < jnp.maximum(1, shares[1] * size)) & ("heart" in steps and in_paper)
        for falls in (small, large, outside, certain == 0):
            gone.append((left & falls).sum(dtype=jnp.int32))
            left &= ~falls
        value = jnp.where(left, 1 + jnp.argmax(votes, 0), 0).astype(jnp.uint8)
        return runs.paint(jnp.where(found.valid, value[component - 1], 0), found, packed, shape=hu.shape), *gone

    painted, *gone = runs.in_bucket(work, packed)
    if "grow" not in steps:
        painted = jnp.where(painted > 0, detected, 0).astype(jnp.uint8)
    return painted, Removed(_count((detected > 0) & ~candidates), *gone, jnp.int32(0), jnp.int32(0))


def _within(mask, at, ones):
    """Those of the ones of words that lie in a mask."""
    values, moved = bits.windows(mask, at, ones)
    return runs.pack(values)[:, 0] & moved


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

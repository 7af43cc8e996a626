"""Detection by a network that classifies candidates: which voxels of a scan can count, and what becomes of their classes. [z, y, x].

The network sees its own grid; everything after it happens on the acquired grid, because a resampled peak is not a peak.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cacjax.classes import CALCIUM_HU, OUTSIDE_HU
from cacjax.kernels import grids, reduction, region_growing, spatial, view
from cacjax.task import Case, Detector, Finding, Plan

CLASSIFY = ("all", "threshold", "mask")  # voxels >= Arrays.least_hu, those >= Case.threshold_hu, those that can end in the mask
FP_REDUCTION = ("paper", "authors_code", "lessmann", "none")
CHOICES = {"classify": CLASSIFY, "fp_reduction": FP_REDUCTION, "view": view.NAMES}
MARGIN_MM = 5.0  # around the heart's box, where the detector still looks
BALL_STEP = 8
LONG = 2**23  # voxels to look at from which detection on a CPU takes minutes
NO_VIEW = {"view_not_applied": "the detector saw the scan as it is: its view needs the mean of the aorta, and none was given"}


class Arrays(NamedTuple):
    """What is known of a scan beforehand: `cacjax.kernels.grids.Grids`; the rows of the `spatial.Ball` that dilates the heart, or
    None; candidates are >= least_hu."""

    grids: grids.Grids
    ball: Any
    least_hu: np.float32


class How(NamedTuple):
    """What makes another program. network: padded shape of what the network sees; longest: side of the box to look at there. reach: of the
    ball. slab: weights of the contrast-removing view, () for none."""

    network: tuple
    longest: int
    reach: tuple | None
    fp_reduction: str
    in_heart: float
    least_probability: float
    classify: str
    slab: tuple


def detector(config, predict, halo=None) -> Detector:
    """A `Detector` of the classes 1 to 6 upon predict(state, hu, wanted, longest=N) -> (label uint8, P(coronary calcium)), both on the
    network's grid; all that is wanted lies in a box of which no side is longer than N voxels. halo: voxels [3] there around one that its
    class depends on; None where it is not known.

    config.scoring: fp_reduction "paper", "authors_code", "lessmann" or "none"; heart_dilation_mm; least_probability: P(coronary calcium) of
    which a lesion needs a voxel, with the first two; classify: "all" voxels from 130 HU up,
    those from the scan "threshold" up, or those that can end in the "mask": the same mask ever faster, but then nothing is known of what
    was detected before reduction; view: how the detector sees enhanced scans. Raises ValueError for what is none of these.
    """
    scoring, network_mm = config.scoring, tuple(config.data.grid.spacing_mm)
    for key, options in CHOICES.items():
        if scoring[key] not in options:
            raise ValueError(f"scoring.{key} must be one of {', '.join(options)}, got {scoring[key]!r}")
    if scoring.least_probability and scoring.fp_reduction in ("none", "lessmann"):
        found = f"got {scoring.fp_reduction!r}; without it: scoring.least_probability=0"
        raise ValueError(f"scoring.least_probability needs fp_reduction paper or authors_code, {found}")
    slab = () if scoring.view == "none" else view.slab_weights(network_mm[0])

    def plan(shape, spacing_mm, affine, heart, threshold_hu, aorta_hu) -> Plan:
        del affine
        ball, reach, box = None, None, None
        if heart is not None:
            ball, reach = spatial.ball(scoring.heart_dilation_mm, spacing_mm, grids.padded(shape), step=BALL_STEP)
            network = spatial.zoomed_shape(shape, spacing_mm, network_mm)
            box = grids.box_around(heart, network, network_mm, margin_mm=MARGIN_MM)
        around = None if halo is None else np.add(halo, (len(slab) // 2, 0, 0))
        between, network, longest = grids.join(shape, spacing_mm, network_mm, box, halo=around)
        least_hu = min(CALCIUM_HU, threshold_hu) if scoring.classify == "all" else threshold_hu
        kept = scoring.fp_reduction, float(scoring.in_heart), float(scoring.least_probability)
        how = How(network, min(longest, max(network)), reach, *kept, scoring.classify, slab)
        long = bool(np.prod(between.box[1] - between.box[0]) > LONG)
        return Plan(Arrays(between, ball, np.float32(least_hu)), how, long, flags=NO_VIEW if slab and aorta_hu is None else {})

    def find(state, case, how) -> Finding:
        network_hu, wanted, around = _prepare(case, how)
        label, probability = predict(state, network_hu, wanted, longest=how.longest)
        return _conclude(case, how, label, probability, around)._replace(hu=case.hu)

    return Detector(plan, find)


@functools.partial(jax.jit, static_argnums=1)
def _prepare(case: Case, how: How):
    """HU on the network's grid, its voxels to classify (bool), and the dilated heart or None."""
    (between, ball, _), hu = case.plan, case.hu
    network_hu = hu if between.to_network is None else spatial.sample(hu, between.to_network)
    if how.slab:
        network_hu = view.remove_contrast(network_hu, case.aorta_hu, how.slab, between.network_shape[0])
    network_hu = jnp.where(_within(how.network, 0, between.network_shape), network_hu, OUTSIDE_HU)
    around = None if case.heart is None else spatial.spread(case.heart, ball, reach=how.reach)
    wanted = _can_count(case, how, around)
    if between.to_scan is not None:
        wanted = spatial.touched(wanted, between.to_scan, how.network)
    return network_hu, wanted & _within(how.network, *between.box), around


def _can_count(case, how, around):
    """Voxels of the scan whose class is asked for."""
    if how.classify == "all":
        return case.hu >= case.plan.least_hu
    if how.classify == "threshold" or how.fp_reduction in ("none", "lessmann"):
        return case.hu >= case.threshold_hu
    # Only voxels of lesions that the reduction keeps whatever their class. The authors' code counts votes before it cuts.
    steps = reduction.STEPS if how.fp_reduction == "paper" else ("threshold", "grow", "size")
    everything = (case.hu >= case.threshold_hu).astype(jnp.uint8)
    options = {"mode": how.fp_reduction, "in_heart": how.in_heart, "steps": steps}
    return reduction.grow(everything, case.hu, case.threshold_hu, around, case.spacing_mm, **options)[0] > 0


def _within(shape, low, high):
    """Bool of a shape: voxels from low to high - 1 along each axis."""
    low, high = jnp.broadcast_to(low, 3), jnp.broadcast_to(high, 3)
    z, y, x = ((jnp.arange(n) >= low[i]) & (jnp.arange(n) < high[i]) for i, n in enumerate(shape))
    return z[:, None, None] & y[:, None] & x


@functools.partial(jax.jit, static_argnums=1)
def _conclude(case: Case, how: How, label, probability, around) -> Finding:
    """Classes on the scan's grid, cut at the scan threshold, false positives reduced; `hu` is left to the caller."""
    for array in (label, probability):
        if tuple(array.shape) != how.network:
            raise ValueError(f"a network must answer on the grid that it was asked on, {how.network}, got {tuple(array.shape)}")
    if case.plan.grids.to_scan is not None:
        label, probability = (spatial.sample(each, case.plan.grids.to_scan) for each in (label, probability))
    detected = jnp.where(case.hu >= case.plan.least_hu, label, 0).astype(jnp.uint8)
    probability = jnp.where(case.hu >= case.threshold_hu, probability, 0)
    if how.fp_reduction == "none":
        mask, removed = jnp.where(case.hu >= case.threshold_hu, detected, 0), {}
    elif how.fp_reduction == "lessmann":
        mask, removed = region_growing.grow(detected, case.hu, case.threshold_hu, case.spacing_mm)
    else:
        sure = probability >= how.least_probability if how.least_probability else None
        options = {"mode": how.fp_reduction, "in_heart": how.in_heart, "sure": sure}
        mask, removed = reduction.grow(detected, case.hu, case.threshold_hu, around, case.spacing_mm, **options)
        removed = removed._asdict()
    if how.classify != "all":  # what was not even classified is not counted
        return Finding(mask, None, probability=probability)
    return Finding(mask, None, probability=probability, before=detected, counts=removed)

"""Detection and scoring of one scan as one compiled program, from Hounsfield units to tables. Arrays [z, y, x].

Scans are padded to a few shapes, and everything else that differs between scans (spacing, thresholds, heart, how both grids lie,
what the rule comes to) is an argument: a second scan of a like size compiles nothing. A capacity that does not hold all lesions
is told by the tables (`overflow`), and `tabulate` counts again with a larger one; nothing is lost.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cacjax.inference.planes import AIR_HU
from cacjax.kernels import lesions, runs, scores, spatial, view
from cacjax.task import Prediction

SIDES = (32, 64, 64)  # sides of scans are rounded up to multiples of these
BALL_STEP = 4
NO_HU = -32768.0  # of what a scan is padded with: below every threshold
N_CLASSES = len(scores.CLASSES) - 1
CLASSIFY = ("all", "threshold", "mask")  # voxels >= Case.least_hu, those >= Case.threshold_hu, those that can end in the mask


class Grids(NamedTuple):
    """How the scan's grid and the network's lie to each other; plans are None where they are one. Sizes int32 [3].

    shape, network_shape: without padding. box: lowest and highest + 1 voxel of the network's grid to look at, [2, 3].
    """

    shape: Any
    spacing_mm: Any
    network_shape: Any
    box: Any
    to_network: Any
    to_scan: Any


class Case(NamedTuple):
    """One scan as the program takes it. hu: float32, padded; heart: bool, not dilated, or None, and the rows of the
    `spatial.Ball` that dilates it; candidates are >= least_hu, what counts is >= threshold_hu; aorta_hu: mean of the ascending
    aorta, NaN where unknown; numbers: see `scores.Numbers`."""

    hu: Any
    heart: Any
    ball: Any
    grids: Grids
    least_hu: Any
    threshold_hu: Any
    aorta_hu: Any
    numbers: scores.Numbers


class How(NamedTuple):
    """What makes another program. network: padded shape of the network's grid. reach: of the ball. reduction: "paper",
    "authors_code", "none". classify: one of CLASSIFY. capacity: lesions per class; buckets: see `scores.count`; slab: weights of
    the contrast-removing view, () for none. The rest is of the rule."""

    network: tuple
    reach: tuple
    reduction: str
    classify: str
    connectivity: int
    peak: str
    whole_lesions: bool
    capacity: int = lesions.CAPACITIES[0]
    buckets: tuple = runs.BUCKETS[:3]
    slab: tuple = ()


class Tables(NamedTuple):
    """Totals [6] by class, risk category of coronary calcium, and the 26-connected lesions of each class, [6, capacity]."""

    totals: scores.Totals
    category: jax.Array
    lesions: lesions.Lesions


class Found(NamedTuple):
    """Classes of calcium before and after reduction of false positives (uint8) and P(coronary calcium) (float32), on the padded
    grid of the scan; what was removed; tables."""

    mask: jax.Array
    detected: jax.Array
    probability: jax.Array
    removed: lesions.Removed
    tables: Tables


def padded(shape):
    """The shape that scans of this shape are padded to."""
    return tuple(-(-n // side) * side for n, side in zip(shape, SIDES, strict=True))


def pad(volume, *, fill):
    """A volume (host) with `fill` behind its last voxels, to the shape that `padded` gives."""
    return np.pad(volume, [(0, m - n) for n, m in zip(volume.shape, padded(volume.shape))], constant_values=fill)


def join_grids(shape, spacing_mm, network_mm, box):
    """(`Grids` of a scan, padded shape of the network's grid). box: of the network's grid, None for all of it."""
    network = spatial.zoomed_shape(shape, spacing_mm, network_mm)
    to_network, to_scan = None, None
    if network != tuple(shape):
        there, true_mm = spatial.plan(shape, network, spacing_mm, network_mm, order=3)
        back, _ = spatial.plan(network, shape, true_mm, spacing_mm, order=0)
        to_network, to_scan = spatial.lengthen(there, padded(network)), spatial.lengthen(back, padded(shape))
    box = np.array(((0, 0, 0), network) if box is None else box, np.int32)
    sizes = np.array(shape, np.int32), np.array(spacing_mm, np.float32), np.array(network, np.int32)
    return Grids(*sizes, box, to_network, to_scan), padded(network)


def traceable(predict):
    """A detector's predict(hu, wanted) as an argument of a compiled program: the arrays that it holds are no constants."""
    if isinstance(predict, functools.partial):
        return jax.tree_util.Partial(predict.func, *predict.args, **predict.keywords)
    return jax.tree_util.Partial(predict)


@functools.partial(jax.jit, static_argnums=2)
def detect_and_score(predict, case, how):
    """`Found` of one `Case`, all in one program. predict: see `traceable`."""
    network_hu, wanted, around = _prepare(case, how)
    return _conclude(case, how, check(predict(network_hu, wanted), how.network), around)


@functools.partial(jax.jit, static_argnums=1)
def prepare(case, how):
    """First part of `detect_and_score`: HU on the network's grid, its voxels to classify (bool), and the dilated heart or None."""
    return _prepare(case, how)


@functools.partial(jax.jit, static_argnums=1)
def conclude(case, how, prediction, around):
    """Last part of `detect_and_score`, after the `Prediction`."""
    return _conclude(case, how, prediction, around)


@functools.partial(jax.jit, static_argnums=2)
def tabulate(mask, case, how):
    """`Tables` of a mask of classes."""
    return _tabulate(mask, case, how)


def over_scans(how, mesh):
    """A compiled (predict, cases) -> Found of stacked cases, which are shared out over the first axis of a mesh, each device
    taking its scans one after another."""
    axis = jax.sharding.PartitionSpec(mesh.axis_names[0])

    def shard(predict, cases):
        return lax.map(lambda case: detect_and_score(predict, case, how), cases)

    everywhere = jax.sharding.PartitionSpec()
    return jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=(everywhere, axis), out_specs=axis, check_vma=False))


def _prepare(case, how):
    grids, hu = case.grids, case.hu
    network_hu = hu if grids.to_network is None else spatial.sample(hu, grids.to_network)
    if how.slab:
        network_hu = view.remove_contrast(network_hu, case.aorta_hu, how.slab, grids.network_shape[0])
    network_hu = jnp.where(_within(how.network, 0, grids.network_shape), network_hu, AIR_HU)
    around = None if case.heart is None else spatial.spread(case.heart, case.ball, reach=how.reach)
    wanted = _can_count(case, how, around)
    if grids.to_scan is not None:
        wanted = spatial.touched(wanted, grids.to_scan, how.network)
    return network_hu, wanted & _within(how.network, *grids.box), around


def _can_count(case, how, around):
    """Voxels of the scan whose class is asked for."""
    if how.classify == "all":
        return case.hu >= case.least_hu
    if how.classify == "threshold" or how.reduction == "none":
        return case.hu >= case.threshold_hu
    # Only voxels of lesions that the reduction keeps whatever their class. The authors' code counts votes before it cuts.
    steps = lesions.STEPS if how.reduction == "paper" else ("threshold", "grow", "size")
    everything = (case.hu >= case.threshold_hu).astype(jnp.uint8)
    options = {"mode": how.reduction, "steps": steps}
    return lesions.grow(everything, case.hu, case.threshold_hu, around, case.grids.spacing_mm, **options)[0] > 0


def _within(shape, low, high):
    """Bool of a shape: voxels from low to high - 1 along each axis."""
    low, high = jnp.broadcast_to(low, 3), jnp.broadcast_to(high, 3)
    z, y, x = ((jnp.arange(n) >= low[i]) & (jnp.arange(n) < high[i]) for i, n in enumerate(shape))
    return z[:, None, None] & y[:, None] & x


def _conclude(case, how, prediction, around):
    label, probability = prediction.label, prediction.p_cac
    if case.grids.to_scan is not None:
        label, probability = (spatial.sample(each, case.grids.to_scan) for each in (label, probability))
    detected = jnp.where(case.hu >= case.least_hu, label, 0).astype(jnp.uint8)
    probability = jnp.where(case.hu >= case.threshold_hu, probability, 0)
    if how.reduction == "none":
        mask, removed = jnp.where(case.hu >= case.threshold_hu, detected, 0), lesions.Removed(*[jnp.int32(0)] * 6)
    else:
        spacing_mm = case.grids.spacing_mm
        mask, removed = lesions.grow(detected, case.hu, case.threshold_hu, around, spacing_mm, mode=how.reduction)
    return Found(mask, detected, probability, removed, _tabulate(mask, case, how))


def _tabulate(mask, case, how):
    kind = {"n_regions": N_CLASSES, "connectivity": how.connectivity, "peak": how.peak, "buckets": how.buckets}
    totals = scores.count(mask, case.hu, case.numbers, **kind)

    def of_class(number):
        return lesions.find(mask == number, case.hu, mask, case.grids.spacing_mm, capacity=how.capacity)

    def none(number):
        del number
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

    numbers = jnp.arange(1, N_CLASSES + 1, dtype=mask.dtype)
    shapes = jax.eval_shape(of_class, numbers[0])
    found = lax.map(lambda number: lax.cond((mask == number).any(), of_class, none, number), numbers)
    category = scores.risk(totals, case.numbers, whole_lesions=how.whole_lesions)
    return Tables(totals, category, border(found, case.grids.shape))


def border(found, shape):
    """A lesion table that tells which lesions touch the edge of the scan, not that of the padded volume."""
    return found._replace(touches_border=(found.voxels > 0) & ((found.low == 0) | (found.high == shape)).any(-1))


def ample(tables, how):
    """`How` with capacities that hold what overflowed in `tables` (host), or None where nothing did."""
    if not (tables.totals.overflow or tables.lesions.overflow.any()):
        return None
    most = int(tables.lesions.n.max())
    capacity = next((c for c in lesions.CAPACITIES if c >= most), most)
    buckets = (runs.whole_chunks(int(tables.totals.runs)),) if tables.totals.overflow else how.buckets
    return how._replace(capacity=max(capacity, how.capacity), buckets=buckets)


def check(prediction, shape):
    """Raise ValueError where a network answers on another grid than it was asked; returns the Prediction."""
    for array in (prediction.label, prediction.p_cac):
        if tuple(array.shape) != tuple(shape):
            raise ValueError(f"prediction must have the network grid's shape {tuple(shape)}, got {tuple(array.shape)}")
    return Prediction(*prediction)

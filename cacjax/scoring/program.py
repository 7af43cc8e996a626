"""Detection and scoring of one scan as one compiled program, from Hounsfield units to tables, for any system. Arrays [z, y, x].

Scans are padded to a few shapes, and everything else that differs between scans (spacing, thresholds, heart, what the system planned,
what the rules come to) is an argument: a second scan of a like size compiles nothing. A capacity that does not hold all lesions is told
by the tables (`overflow`), and `complete` counts again with a larger one; nothing is lost.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cacjax.kernels import lesions, runs, scores
from cacjax.scoring import compiled


class Kind(NamedTuple):
    """What of a scoring rule makes another program."""

    connectivity: int
    peak: str
    whole_lesions: bool


class How(NamedTuple):
    """What makes another program. plan: `Plan.how` of the system; kinds: of every rule; classes: `Detector.classes`; capacity: lesions per
    class; buckets: see `scores.count`."""

    plan: tuple
    kinds: tuple[Kind, ...]
    classes: tuple[int, ...]
    capacity: int = lesions.CAPACITIES[0]
    buckets: tuple = scores.BUCKETS


class Reading(NamedTuple):
    """How the answer is read, arguments of the program. shape (int32 [3]), spacing_mm (float32 [3]): of its grid, without padding;
    numbers: `scores.Numbers` of every rule."""

    shape: Any
    spacing_mm: Any
    numbers: tuple


class Tables(NamedTuple):
    """Of every rule the totals by class [k] and the risk category of coronary calcium; of the first rule the voxels that it counts, as
    words of a mask (`bits.pack`), and the lesions of each class, [k, capacity], of these voxels alone (those that `Totals.n_lesions`
    counts); the digits [k, 4] of the sum of the `Finding.map`, or None."""

    totals: tuple
    categories: tuple
    scored: Any
    lesions: lesions.Lesions
    map_hu: Any


@functools.partial(jax.jit, static_argnums=(0, 4))
def detect_and_score(find, state, case, reading, how):
    """(`Finding`, `Tables`) of one `Case`, all in one program. find: `Detector.find`. Where scores read the scan itself, the Finding's hu
    is left out: the caller has it."""
    finding = find(state, case, how.plan)
    tables = _tabulate(finding, reading, how)
    return finding._replace(hu=None) if finding.hu is case.hu else finding, tables


@functools.partial(jax.jit, static_argnums=2)
def tabulate(finding, reading, how):
    """`Tables` of a `Finding`."""
    return _tabulate(finding, reading, how)


def over_scans(find, how, mesh):
    """A compiled (state, cases, readings) -> (Finding, Tables) of stacked cases, which are shared out over the first axis of a mesh, each
    device taking its scans one after another."""
    axis, everywhere = jax.sharding.PartitionSpec(mesh.axis_names[0]), jax.sharding.PartitionSpec()

    def shard(state, cases, readings):
        return lax.map(lambda each: detect_and_score(find, state, *each, how), (cases, readings))

    return jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=(everywhere, axis, axis), out_specs=axis, check_vma=False))


def compute(detector, state, case, reading, how, *, long, decided_by=None):
    """(`Finding`, `Tables`, {stage: seconds} of what had to be done before) by one program, or, where that would stay silent for minutes,
    in steps under a progress bar; and tables whose capacity holds everything. decided_by: text that says what system the detector is of,
    see `compiled.call`."""
    if long and jax.default_backend() == "cpu":
        finding = detector.find(state, case, how.plan)
        tables, seconds = _tables(finding._replace(timings_s={}), reading, how)
    else:
        told = None if decided_by is None else f"{decided_by}\n{how}"
        given = detector.find, state, case, reading, how
        (finding, tables), seconds = compiled.call(detect_and_score, *given, static=(0, 4), decided_by=told)
    finding = finding if finding.hu is not None else finding._replace(hu=case.hu)
    tables, more = complete(tables, finding._replace(timings_s={}), reading, how)
    return finding, tables, _added(seconds, more)


def tables_of(finding, reading, how):
    """(`Tables` of a `Finding` whose capacity holds everything, seconds as in `compute`)."""
    tables, seconds = _tables(finding, reading, how)
    tables, more = complete(tables, finding, reading, how)
    return tables, _added(seconds, more)


def complete(tables, finding, reading, how):
    """Tables on the host, counted again with capacities that hold everything where theirs did not; and seconds as in `compute`."""
    seconds = {}
    while more := ample(tables := jax.device_get(tables), how):  # what overflows in the scores has no lesions yet
        tables, took = _tables(finding, reading, more)
        how, seconds = more, _added(seconds, took)
    return tables, seconds


def _tables(finding, reading, how):
    return compiled.call(tabulate, finding, reading, how, static=(2,), decided_by=str(how))


def _added(*parts):
    return {stage: round(sum(part.get(stage, 0) for part in parts), 4) for stage in dict.fromkeys(itertools.chain(*parts))}


def _tabulate(finding, reading, how):
    regions = _regions(finding.label, how.classes)

    def of_rule(read, hu, numbers, kind):
        options = {"n_regions": len(how.classes), "connectivity": kind.connectivity, "peak": kind.peak, "buckets": how.buckets}
        return read(regions, hu, numbers, **options)

    first, *others = zip(reading.numbers, how.kinds)
    lists = functools.partial(scores.count_and_list, spacing_mm=reading.spacing_mm, capacity=how.capacity)
    totals, scored, found = of_rule(lists, finding.hu, *first)
    totals = (totals, *(of_rule(scores.count, finding.hu, *each) for each in others))
    risk = functools.partial(scores.risk, classes=how.classes)
    categories = tuple(risk(t, n, whole_lesions=kind.whole_lesions) for t, n, kind in zip(totals, reading.numbers, how.kinds))
    map_hu = None
    if finding.map is not None:  # every voxel of the label counts
        everything = reading.numbers[0]._replace(threshold_hu=jnp.float32(-jnp.inf), least=jnp.int32(1))
        map_hu = of_rule(scores.count, finding.map, everything, how.kinds[0]).hu
    return Tables(totals, categories, scored, _border(found, reading.shape), map_hu)


def _regions(label, classes):
    """A label whose class classes[i] is i + 1."""
    if classes == tuple(range(1, len(classes) + 1)):
        return label
    return sum(((label == number) * np.uint8(i) for i, number in enumerate(classes, 1)), jnp.zeros_like(label))


def _border(found, shape):
    """A lesion table that tells which lesions touch the edge of the scan, not that of the padded volume."""
    return found._replace(touches_border=(found.voxels > 0) & ((found.low == 0) | (found.high == shape)).any(-1))


def scored_label(tables, label):
    """A label [z, y, x] on the host, 0 where the first rule does not count a voxel."""
    on = np.unpackbits(np.ascontiguousarray(tables.scored, "<u4").view(np.uint8), axis=-1, count=label.shape[-1], bitorder="little")
    return label * on


def ample(tables, how):
    """`How` with capacities that hold what overflowed in `tables` (host), or None where nothing did."""
    runs_needed = max((int(totals.runs) for totals in tables.totals if totals.overflow), default=0)
    if not (runs_needed or tables.lesions.overflow.any()):
        return None
    most = int(tables.lesions.n.max())
    capacity = next((c for c in lesions.CAPACITIES if c >= most), most)
    buckets = (runs.roomy(runs_needed),) if runs_needed else how.buckets
    return how._replace(capacity=max(capacity, how.capacity), buckets=buckets)

"""Calcium scores by named rules, and risk categories. Arrays are [z, y, x], HU, spacing (dz, dy, dx) in mm.

The device returns whole numbers (weighted pixels, voxels, and HU sums in words, see `exact.digits`); the host turns them into
Agatston units, mm3 and mg in float64, so that the last digits do not depend on the device.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64, Integer, Real, UInt32

from cacjax.classes import ARTERIES, CLASSES, CORONARY
from cacjax.kernels import exact, groups, lesions, neighbours, rules, runs
from cacjax.kernels.shapes import HU, Labels, Mask, Scalar, Spacing

BUCKETS = (1 << 14,)  # capacities for runs of candidates; what is beyond, few scans have, the host counts again


class Totals(NamedTuple):
    """Whole numbers by region: `weighted_px` (pixels times weight), `voxels`, `hu` (digits of the sum of HU in units of
    1/1024 HU), `whole` (sum of the scores of components, each rounded), `components` and `n_lesions` (3D, 26-connected under 2D
    rules) that count. `runs` is the number of runs of candidates; where `overflow` is true it is beyond the capacity and the
    others are 0."""

    weighted_px: Int32[Array, " k"]
    voxels: Int32[Array, " k"]
    hu: Int32[Array, "k 4"]
    whole: Int32[Array, " k"]
    components: Int32[Array, " k"]
    n_lesions: Int32[Array, " k"]
    runs: Int32[Array, ""]
    overflow: Bool[Array, ""]


class Numbers(NamedTuple):
    """What a rule comes to on one scan, plain numbers, so that they can be arguments of a compiled program.

    threshold_hu: candidates are >= this. least: voxels of a component that counts. limits, floor_weight: see `weights`. unit:
    Agatston units of a pixel of weight 1, only used to round the scores of components. steps: totals from which on each
    risk category begins, but the first: weighted pixels, or `whole` for a rule of whole lesions.
    """

    threshold_hu: Float32[ArrayLike, ""]
    least: Int32[ArrayLike, ""]
    limits: Float32[ArrayLike, " 4"]
    floor_weight: Int32[ArrayLike, ""]
    unit: Float32[ArrayLike, ""]
    steps: Int32[ArrayLike, " steps"]


class Scores(NamedTuple):
    """Scores by row: Agatston units, mm3, mg (nan without a mass factor), lesions in 3D, pseudo-mass (HU x mm3)."""

    names: tuple
    agatston: Float64[np.ndarray, " k"]
    volume_mm3: Float64[np.ndarray, " k"]
    mass_mg: Float64[np.ndarray, " k"]
    n_lesions: Int64[np.ndarray, " k"]
    pseudo_mass: Float64[np.ndarray, " k"]


def score(
    arteries: Labels | Mask, hu: Real[ArrayLike, "_ _ _"], spacing_mm: Spacing, rule: str | rules.Rule = "default", **options
) -> Scores:
    """Scores of LAD, LCX, RCA, TAC, AV, MV and CAC (= LAD + LCX + RCA) under a rule (name or record); of CAC alone for a bool mask.

    arteries: classes 0..6. Every class is scored for itself: where two touch they are two lesions. Options as `score_regions`.
    """
    arteries = jnp.asarray(arteries)
    if arteries.dtype == bool:
        return score_regions(arteries.astype(jnp.uint8), hu, spacing_mm, rule, n_regions=1, **options)._replace(names=("CAC",))
    return by_artery(score_regions(arteries, hu, spacing_mm, rule, n_regions=len(ARTERIES), **options))


def score_regions(
    regions: Labels,
    hu: Real[ArrayLike, "_ _ _"],
    spacing_mm: Spacing,
    rule: str | rules.Rule = "default",
    *,
    n_regions: int | None = None,
    mass_factor: Scalar | None = None,
    kvp: Scalar | None = None,
    threshold_hu: Scalar | None = None,
    slice_thickness_mm: Scalar | None = None,
) -> Scores:
    """Scores of regions 1..n_regions (default: the largest label), one row each; candidates are cut at the region's edge.

    dz of spacing_mm is the slice increment, never the SliceThickness tag. mass_factor: mg hydroxyapatite per cm3 and HU. kvp:
    takes the rule's limits for that tube voltage. threshold_hu: replaces the rule's. Raises KeyError on an unknown rule,
    ValueError on spacing that is not positive or on what the rule needs and does not get.
    """
    if min(spacing_mm) <= 0:
        raise ValueError(f"spacing_mm must be positive, got {tuple(spacing_mm)}")
    if regions.shape != hu.shape:
        raise ValueError(f"regions and hu must have one shape, got {regions.shape} and {hu.shape}")
    rule = rules.at_kvp(rules.named(rule), kvp)
    rule = rule if threshold_hu is None else rules.at_threshold(rule, threshold_hu)
    unit = rules.pixel_score(rule, spacing_mm, slice_thickness_mm=slice_thickness_mm)
    n_regions = int(np.max(regions, initial=0)) if n_regions is None else n_regions
    arguments = (jnp.asarray(regions), jnp.asarray(hu), numbers(rule, spacing_mm, unit))
    kind = {"n_regions": n_regions, "connectivity": rule.connectivity, "peak": rule.peak}
    found = jax.device_get(count(*arguments, **kind))
    if found.overflow:
        found = jax.device_get(count(*arguments, buckets=(runs.roomy(int(found.runs)),), **kind))
    return from_totals(found, spacing_mm, rule, unit, mass_factor=mass_factor)


def from_totals(found: Totals, spacing_mm: Spacing, rule: rules.Rule, unit: Scalar, *, mass_factor: Scalar | None = None) -> Scores:
    """`Scores` of regions from `Totals` on the host."""
    voxel_mm3 = float(np.prod(np.asarray(spacing_mm, np.float64)))
    agatston = found.whole.astype(np.float64) if rule.whole_lesions else found.weighted_px * float(unit)
    factor = np.nan if mass_factor is None else mass_factor
    pseudo_mass = exact.undigits(found.hu) * exact.HU_UNIT * voxel_mm3
    names = tuple(str(i) for i in range(1, len(agatston) + 1))
    mass_mg = pseudo_mass * factor / 1000.0
    return Scores(names, agatston, found.voxels * voxel_mm3, mass_mg, found.n_lesions.astype(np.int64), pseudo_mass)


def by_artery(each: Scores, classes: tuple[int, ...] = ARTERIES) -> Scores:
    """Scores of regions 1, 2, .., which are `classes`, under the names of these, and their sum over the coronary ones as CAC."""
    named = [i for i, number in enumerate(classes) if CLASSES[number] != "CAC"]
    names = (*(CLASSES[classes[i]] for i in named), "CAC")
    return Scores(names, *(np.append(field[named], field[_coronary(classes)].sum()) for field in each[1:]))


def volume_sum(digits: Int32[ArrayLike, "k 4"], spacing_mm: Spacing, classes: tuple[int, ...] = ARTERIES) -> Float64[np.ndarray, " rows"]:
    """HU x mm³, float64, in the rows of `by_artery`, of digits [k, 4] of the sum of HU as `Totals` has them."""
    value = exact.undigits(digits) * exact.HU_UNIT * float(np.prod(np.asarray(spacing_mm, np.float64)))
    named = [i for i, number in enumerate(classes) if CLASSES[number] != "CAC"]
    return np.append(value[named], value[_coronary(classes)].sum())


def _coronary(classes):
    return np.array([i for i, number in enumerate(classes) if number in CORONARY], int)


def numbers(rule: rules.Rule, spacing_mm: Spacing, unit: Scalar, *, scheme: str = "default") -> Numbers:
    """The `Numbers` of a rule record at this spacing; unit: `rules.pixel_score` of both."""
    threshold = np.float32(-np.inf if rule.threshold_hu is None else rule.threshold_hu)
    if rule.strict:
        threshold = np.nextafter(threshold, np.float32(np.inf))
    least, limits = rules.min_voxels(rule, spacing_mm), np.array(rule.limits, np.float32)
    steps = _first_totals(SCHEMES[scheme], 1.0 if rule.whole_lesions else float(unit))
    return Numbers(threshold, np.int32(least), limits, np.int32(rule.floor_weight), np.float32(unit), steps)


def _first_totals(scheme, unit):
    """The least whole numbers that, times the unit, lie in each category but the first: exact, whatever the unit."""
    near = np.floor(np.array(scheme.limits, np.float64) / unit)[:, None] + np.arange(-1, 3)
    reached = np.array([[category(n * unit, scheme=scheme) > i for n in row] for i, row in enumerate(near)])
    return np.clip(near[np.arange(len(near)), reached.argmax(1)], 0, 2**31 - 1).astype(np.int32)


def risk(found: Totals, numbers: Numbers, *, classes: tuple[int, ...] = ARTERIES, whole_lesions: bool = False) -> Int32[Array, ""]:
    """Risk category of coronary calcium, from `Totals` of regions that are `classes` on the device."""
    totals = found.whole if whole_lesions else found.weighted_px
    return (totals[_coronary(classes)].sum() >= numbers.steps).sum(dtype=jnp.int32)


@functools.partial(jax.jit, static_argnames=("n_regions", "connectivity", "peak", "buckets"))
def count(regions: Labels, hu: HU, numbers: Numbers, *, n_regions: int, connectivity: int, peak: str, buckets: tuple = BUCKETS) -> Totals:
    """`Totals` of regions 1..n_regions; only connectivity and the place of the peak make another program.

    buckets: capacities for runs of candidates, beyond `runs.CHUNK` multiples of it; check `overflow`.
    """
    return _read(regions, hu, numbers, n_regions, connectivity, peak, buckets)[0]


@functools.partial(jax.jit, static_argnames=("n_regions", "connectivity", "peak", "capacity", "buckets"))
def count_and_list(
    regions: Labels,
    hu: HU,
    numbers: Numbers,
    spacing_mm: Spacing,
    *,
    n_regions: int,
    connectivity: int,
    peak: str,
    capacity: int = lesions.CAPACITIES[0],
    buckets: tuple = BUCKETS,
) -> tuple[Totals, UInt32[Array, "z y words"], lesions.Lesions]:
    """`count`; the voxels that it counts as a mask in words (`bits.pack`), of all regions together; and tables of the lesions that it
    counts, [n_regions, capacity], of these voxels alone. artery: 0."""
    totals, marked, measured = _read(regions, hu, numbers, n_regions, connectivity, peak, buckets, capacity)
    table = lesions.as_table(totals.n_lesions, capacity, measured, jnp.asarray(spacing_mm, jnp.float32), hu.shape)
    by_region = (field if field.ndim == 0 else field.reshape(n_regions, capacity, *field.shape[1:]) for field in table[2:])
    return totals, marked, lesions.Lesions(*table[:2], *by_region)


def _read(regions, hu, numbers, n_regions, connectivity, peak, buckets, capacity=0):
    """(`Totals`, words of a mask of what counts, what `lesions.measure` measured, `capacity` rows for each region)."""
    # Regions lie one above the other with an empty slice between: one labelling serves all, and none joins another.
    depth, height, width = hu.shape[0] + 1, hu.shape[1], hu.shape[2]
    candidates, in_3d = hu >= numbers.threshold_hu, connectivity in (6, 18, 26)

    def layer(region):
        return jnp.pad(runs.pack((regions == region) & candidates), ((0, 1), (0, 0), (0, 0)))

    words = lax.map(layer, jnp.arange(1, n_regions + 1, dtype=regions.dtype))
    packed = runs.index(words.reshape(-1, words.shape[-1]))
    stack = (n_regions * depth, height, width)

    def work(found):
        joined = neighbours.components_of_each(found, packed, stack, *((connectivity,) if in_3d else (connectivity, 26)))
        component, lesion = joined[0][0], joined[-1][0]
        z = runs.place(found, stack)[0]
        region = jnp.where(found.valid, z // depth, n_regions)
        ones = runs.bits(found)
        length = runs.popcount(ones)
        in_scan = jnp.where(found.valid, found.word - region * (words[0].size), 0)
        hu_sum, top = runs.in_chunks(lambda words, ones: exact.hu_of_runs(words, ones, hu), in_scan, ones)
        counted = groups.spread(groups.total, component, length) >= numbers.least
        part = groups.parts(component, z) if in_3d and peak == "slice" else component
        weight = weights(groups.spread(groups.top, part, top), numbers.limits, numbers.floor_weight)
        fields = [length * weight, length, *exact.digits(hu_sum, 4)]
        kept = jnp.where(counted, region, n_regions)
        sums = jnp.zeros((n_regions, 6), jnp.int32).at[kept].add(jnp.stack(fields, 1), mode="drop")
        whole = jnp.round(groups.spread(groups.total, component, length * weight) * numbers.unit).astype(jnp.int32)
        tally = jnp.stack([groups.first(component) * whole, groups.first(component)], 1)
        tally = jnp.zeros((n_regions, 2), jnp.int32).at[kept].add(tally, mode="drop")
        # Lesions are numbered from region to region: dense numbers of those that count, and how many come before each region.
        number = neighbours.only(kept < n_regions, lesion)
        last = jnp.zeros((n_regions,), jnp.int32).at[kept].max(number, mode="drop")
        before = jnp.pad(lax.cummax(last), (1, 0))
        n_lesions = jnp.diff(before)
        # A component is whole runs, and regions do not overlap: no bit comes twice.
        marked = jnp.zeros((words[0].size,), jnp.uint32).at[in_scan].add(jnp.where(counted, ones, 0))
        totals = sums[:, 0], sums[:, 1], sums[:, 2:], tally[:, 0], tally[:, 1], n_lesions
        if not capacity:
            return totals, marked, ()
        row = number - 1 - before[kept]
        row = jnp.where((number > 0) & (row < capacity), kept * capacity + row, n_regions * capacity)
        found = found._replace(word=in_scan)
        return totals, marked, lesions.measure(found, packed.n, row, hu_sum, top, shape=hu.shape, rows=n_regions * capacity)

    # The runs of all regions together are no more than the voxels; that many, several scans' worth, are for the host to retry.
    sizes = tuple(b for b in buckets if b < hu.size) or (runs.whole_chunks(hu.size),)
    totals, marked, measured = runs.in_bucket(work, packed, sizes)
    return Totals(*totals, packed.n, packed.n > sizes[-1]), marked.reshape(words[0].shape)[:-1], measured


def weights(
    peak_hu: Float[ArrayLike, "*shape"], limits: tuple | Float[ArrayLike, " 4"], floor_weight: Integer[ArrayLike, ""] = 0
) -> Int32[Array, "*shape"]:
    """Density weight 0..4 of a peak: how many of the four limits it reaches, at least floor_weight."""
    reached = (peak_hu[..., None] >= jnp.asarray(limits, jnp.float32)).sum(-1, dtype=jnp.int32)
    return jnp.maximum(reached, floor_weight)


def of_lesions(table: lesions.Lesions, spacing_mm: Spacing, rule: str | rules.Rule = "default", **options) -> Float64[np.ndarray, " rows"]:
    """Agatston units of each row of a table (host), each slice weighted by its own peak.

    They add up to the total of a 3D rule; a rule that drops small components keeps less. Options as `rules.pixel_score`.
    """
    rule = rules.named(rule)
    unit = rules.pixel_score(rule, spacing_mm, **options) / (float(spacing_mm[1]) * float(spacing_mm[2]))
    peak = np.asarray(table.slice_peak_hu)
    peak = peak.max(1, keepdims=True) if rule.peak == "lesion" else peak
    weight = (peak[..., None] >= np.array(rule.limits)).sum(-1)
    return (np.asarray(table.area_mm2, np.float64) * np.maximum(weight, rule.floor_weight)).sum(1) * unit


class Scheme(NamedTuple):
    """Risk categories: `names` in ascending order; a score > limits[i] (>= where `closed`) is in category i + 1 or above."""

    names: tuple[str, ...]
    limits: tuple[float, ...]
    closed: bool = False


SCHEMES = {
    "default": Scheme(("0", "1-10", "11-100", "101-400", ">400"), (0, 10, 100, 400)),
    "four": Scheme(("0", "1-100", "101-400", ">400"), (0, 100, 400)),
    "deepcac": Scheme(("0", "1-100", "101-300", ">300"), (0, 100, 300)),
    "lessmann": Scheme(("0-10", "11-100", "101-1000", ">1000"), (10, 100, 1000)),
    "van_velzen": Scheme(("I", "II", "III", "IV"), (10, 100, 400)),
    "gogin": Scheme(("A", "B", "C", "D", "E"), (0, 10, 100, 400)),
    "words": Scheme(("None", "Minimal", "Mild", "Moderate", "Severe"), (0, 10, 100, 400)),
    "cac_drs": Scheme(("0", "1-99", "100-299", ">=300"), (float(np.nextafter(0, 1)), 100, 300), closed=True),
}


def category(
    agatston: Real[ArrayLike, "..."] | list, *, scheme: str | Scheme = "default", round_first: bool = False
) -> int | Integer[np.ndarray, "..."]:
    """Number of the risk category, 0 upwards, of a score or an array of scores; `scheme` (name or record) has the words.

    Scores are not rounded: 0.7 is calcium and so not in "0"; 10.5 is above 10. round_first rounds as integer reports do.
    """
    if not isinstance(scheme, Scheme):
        if scheme not in SCHEMES:
            raise KeyError(f"no scheme {scheme!r}; there are {', '.join(sorted(SCHEMES))}")
        scheme = SCHEMES[scheme]
    limits = np.asarray(scheme.limits, np.float64)
    values = np.asarray(agatston, np.float64)
    values = np.round(values) if round_first else values
    found = np.searchsorted(limits, values, side="right" if scheme.closed else "left")
    return found if found.ndim else int(found)

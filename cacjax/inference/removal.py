"""Calcium by removal, from a scan to its map: heart, slices with calcium, what is taken out of them, back to the scan (van Velzen 2022).

Volumes are [z, y, x], slices [b, y, x]. The answer lies on slabs along z and on the scan's own pixels.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cacjax.classes import AIR_HU, CLASSES, CORONARY
from cacjax.inference import steps, windows
from cacjax.kernels import anatomy, grids, lesions, slabs
from cacjax.task import Detector, Finding, Plan, is_traced

CAC = CLASSES.index("CAC")
AT_ONCE = 4  # slices that the networks see at a time
GATES = ("classifier", "parts", "map", "none")


class Seen(NamedTuple):
    """How a network sees HU: clipped to low..high, which become 0..1; then less `shift`, times `scale`."""

    low: float
    high: float
    shift: float = 0.0
    scale: float = 1.0

    @property
    def span(self) -> float:
        """HU from 0 to 1."""
        return self.high - self.low

    def normalise(self, hu):
        """0..1 of HU."""
        return (jnp.clip(jnp.asarray(hu, jnp.float32), self.low, self.high) - self.low) / self.span

    def shown(self, x):
        """What the first layer is given."""
        return (x - self.shift) * self.scale


class Parts(NamedTuple):
    """The networks, each of a State: heart, HU [1, z, y, x] -> probabilities [1, z, y, x, 2]; gate, HU [b, y, x, k] of slices with so
    many neighbours on either side, and heart [b, y, x] -> P(calcium) [b]; remove, HU and heart [b, y, x] -> maps in HU [b, y, x]."""

    heart: Callable
    gate: Callable
    neighbours: int
    remove: Callable


class Arrays(NamedTuple):
    """What is known of a scan beforehand: `slabs.Matrices` to slabs, along z alone, back in the plane, to the grid of the heart network
    (None where it is not asked); which voxel (z, y, x) of the heart's grid each slab voxel takes; first voxels of the heart's windows
    and how many there are; first row and column of the window where no heart is asked; mm³ of a slab voxel."""

    there: Any
    along_z: Any
    back: Any
    to_heart: Any
    from_heart: Any
    corners: Any
    count: Any
    first: Any
    voxel_mm3: Any


def coronary_slices(label):
    """Which of labels [b, y, x] show coronary calcium."""
    return jnp.isin(label, jnp.array(CORONARY)).any((-2, -1))


def detector(config, heart_config, parts: Parts) -> Detector:
    """A `Detector` of coronary calcium as a whole by what is taken out of slices.

    config.scoring: heart, whether it is limited to the heart (that is given, else found); gate, "classifier" (slices are empty whose
    probability of calcium is below least_probability), "parts" (connected parts of the map fall as a whole whose mean probability, weighted
    by the map, is), "map" (slices are empty whose map adds up to less than least_sum, HU x mm²) or "none"; window,
    pixels of a slice that the networks see about the heart, wide, without a heart; floor_hu, where the twin is darker nothing is taken
    (None: everywhere); least_hu, from which a map is calcium; least_lesion, HU x mm³ that connected parts of a map add up to, before that.
    config.data.grid: kind "slabs".
    """
    scoring, grid, seen = config.scoring, config.data.grid, Seen(**config.seen)
    if scoring.gate not in GATES:
        raise ValueError(f"scoring.gate must be one of {', '.join(GATES)}, got {scoring.gate!r}")
    size = scoring.window if scoring.heart else scoring.wide
    heart_grid, looked = heart_config.data.grid, heart_config.window

    def plan(shape, spacing_mm, affine, heart, threshold_hu, aorta_hu) -> Plan:
        del threshold_hu, aorta_hu
        old, new_mm = grids.padded(shape), tuple(grid.spacing_mm)
        first = slabs.plan(shape, spacing_mm, new_mm, thickness_mm=grid.thickness_mm)
        count = tuple(int(n) for n in first.there.shape)
        found = slabs.plan(shape, spacing_mm, new_mm, thickness_mm=grid.thickness_mm, sizes=(old, grids.padded(count)))
        along_z = slabs.plan(
            shape, spacing_mm, (new_mm[0], *spacing_mm[1:]), thickness_mm=grid.thickness_mm, sizes=(old, (grids.padded(count)[0], *old[1:]))
        )
        origin, to_heart, corners, how = (np.eye(4), None, np.zeros((1, 3), np.int32), "none")
        if scoring.heart and heart is not None:
            how = "given"
        elif scoring.heart:
            own = slabs.plan(shape, spacing_mm, heart_grid.spacing_mm, thickness_mm=heart_grid.thickness_mm)
            theirs = tuple(int(n) for n in own.there.shape)
            sizes = old, tuple(max(n, looked.window) for n in grids.padded(theirs))
            own = slabs.plan(shape, spacing_mm, heart_grid.spacing_mm, thickness_mm=heart_grid.thickness_mm, sizes=sizes)
            origin, to_heart, how = own.index, own.there, "found"
            corners = np.array(windows.corners(theirs, (looked.window,) * 3, (looked.overlap,) * 3), np.int32)
        step = np.linalg.inv(origin) @ found.index
        limits = shape if to_heart is None else to_heart.shape
        nearest = [
            np.clip(np.floor(np.arange(n) * step[a, a] + step[a, 3] + 0.5), 0, limits[a] - 1) for a, n in enumerate(grids.padded(count))
        ]
        most = -(-len(corners) // 32) * 32
        arrays = Arrays(
            found.there,
            along_z.there,
            found.back,
            to_heart,
            tuple(at.astype(np.int32) for at in nearest),
            np.pad(corners, ((0, most - len(corners)), (0, 0))),
            np.int32(len(corners)),
            np.array(count[1:], np.int32) // 2,
            np.float32(np.prod(new_mm)),
        )
        own_mm = (new_mm[0], *(float(mm) for mm in spacing_mm[1:]))
        return Plan(arrays, (how,), long=True, shape=(count[0], *shape[1:]), spacing_mm=own_mm, affine=affine @ along_z.index)

    def find(state, case, how) -> Finding:
        traced = is_traced(state, case)
        laps = steps.Laps(silent=traced)
        arrays = case.plan
        volume = laps.lap("slabs", _resample(case.hu, arrays.there))
        inside = laps.lap("heart network", _inside(volume.shape, find_heart(state, case, how[0], traced), arrays))
        first, counts = _place(volume, inside, arrays, how=how[0], new_mm=tuple(grid.spacing_mm))
        pictures, masks = _windows(volume, inside, first, size=size)
        wanted = masks.any((1, 2))
        kept, probability = wanted, None
        if scoring.gate in ("classifier", "parts"):
            shown = with_neighbours(pictures, parts.neighbours)
            probability = _over(parts.gate, state, wanted, (shown, masks), jnp.zeros(len(pictures)), traced=traced, title="slices")
            probability = laps.lap("classifier", probability)
        if scoring.gate == "classifier":
            kept = wanted & (probability >= scoring.least_probability)
        found = _over(parts.remove, state, kept, (pictures, masks), jnp.zeros(pictures.shape), traced=traced, title="remove")
        found = laps.lap("generator", found)
        found = jnp.where(masks & kept[:, None, None], found, 0.0)
        if scoring.least_lesion or scoring.gate == "parts":
            least = scoring.least_hu, scoring.least_lesion, scoring.least_probability
            found = _lesions(found, probability if scoring.gate == "parts" else None, arrays.voxel_mm3, least=least)
        if scoring.gate == "parts":
            kept &= (found > 0).any((1, 2))
        calcium = _clean(found, pictures, low=seen.low, high=seen.high, floor_hu=scoring.floor_hu)
        if scoring.gate == "map":
            kept &= calcium.sum((1, 2)) * float(np.prod(grid.spacing_mm[1:])) >= scoring.least_sum
            calcium = jnp.where(kept[:, None, None], calcium, 0.0)
        finding = _back(calcium, first, case.hu, arrays, shape=volume.shape, least_hu=scoring.least_hu)
        if probability is not None:
            finding = finding._replace(probability=jnp.broadcast_to(probability[:, None, None], finding.label.shape))
        counts |= {"slices_with_heart": wanted.sum(), "slices_kept": kept.sum()}
        return laps.lap("back", finding._replace(counts=counts)) if traced else _timed(finding, counts, laps)

    def find_heart(state, case, how, traced):
        """Heart mask on the grid that `Arrays.from_heart` reads; None: not asked."""
        if how == "none":
            return None
        if how == "given":
            return case.heart
        coarse, arrays = _resample(case.hu, case.plan.to_heart), case.plan
        window = {"window": (looked.window,) * 3, "classes": 2}
        sums = windows.add_up(parts.heart, state, coarse, arrays.to_heart.shape, arrays.corners, arrays.count, traced=traced, **window)
        return _largest(sums, jnp.asarray(arrays.to_heart.shape))

    return Detector(plan, find, classes=(CAC,), own_heart=scoring.heart)


def _timed(finding, counts, laps):
    finding = laps.lap("back", finding._replace(counts=counts))
    return finding._replace(timings_s=laps.seconds)


@jax.jit
def _resample(volume, matrices):
    return slabs.resample(jnp.maximum(volume, AIR_HU), matrices, fill=AIR_HU)


@jax.jit
def _largest(sums, shape):
    """The largest 6-connected part of where the heart is likelier than not, within a shape."""
    inside = [jnp.arange(n) < m for n, m in zip(sums.shape, shape)]
    mask = (sums[..., 1] > sums[..., 0]) & inside[0][:, None, None] & inside[1][:, None] & inside[2]
    number, _ = lesions.label(mask, connectivity=6)
    sizes = jnp.zeros(mask.size // 2 + 2, jnp.int32).at[number.ravel()].add(1).at[0].set(0)
    return mask & (number == sizes.argmax())


@functools.partial(jax.jit, static_argnums=0)
def _inside(shape, heart, arrays):
    """The heart on slabs, bool; everything where `heart` is None."""
    mask = jnp.ones(shape, bool)
    if heart is not None:
        for axis, at in enumerate(arrays.from_heart):
            heart = jnp.take(heart, at, axis)
        mask = heart
    within = [jnp.arange(n) < m for n, m in zip(shape, jnp.asarray(arrays.there.shape))]
    return mask & within[0][:, None, None] & within[1][:, None] & within[2]


@functools.partial(jax.jit, static_argnames=("how", "new_mm"))
def _place(volume, inside, arrays, *, how, new_mm):
    """(row and column of the middle of the window, counts) of a heart on slabs; of one that is given no share of lung."""
    pixels = inside.sum((1, 2))
    ends = pixels[jnp.array([0, 0])].at[1].set(pixels[arrays.there.shape[0] - 1])
    counts = {"heart_ml": inside.sum() * (arrays.voxel_mm3 / 1000), "heart_reaches_end": (ends > 0).any()}
    if how == "found":
        counts["lung_share"] = anatomy.lung_share(inside, volume, new_mm)
    if how == "none":
        return arrays.first, {}
    along = [inside.sum((0, 2)), inside.sum((0, 1))]
    middle = [(jnp.arange(len(n)) * n).sum() / jnp.maximum(n.sum(), 1) for n in along]
    return jnp.round(jnp.stack(middle)).astype(jnp.int32), counts


@functools.partial(jax.jit, static_argnames="size")
def _windows(volume, inside, middle, *, size):
    """(HU, heart) of a window of every slab about a middle, [z, size, size]; air and no heart beyond the slab."""
    around, at = ((0, 0), (size, size), (size, size)), (0, *(middle + size - size // 2))
    shape = (len(volume), size, size)
    return tuple(
        lax.dynamic_slice(jnp.pad(each, around, constant_values=fill), at, shape) for each, fill in ((volume, AIR_HU), (inside, 0))
    )


def with_neighbours(volume, number):
    """[z, y, x, 2 number + 1] of HU [z, y, x]: slices from `number` before each to as many behind it; air beyond the ends."""
    wide = jnp.pad(volume, ((number, number), (0, 0), (0, 0)), constant_values=AIR_HU)
    return jnp.stack([lax.slice_in_dim(wide, at, at + len(volume)) for at in range(2 * number + 1)], -1)


def _over(network, state, wanted, pictures, empty, *, traced, title):
    """What a network gives of the wanted pictures, AT_ONCE at a time; what is `empty` elsewhere."""
    order, count = jnp.argsort(~wanted, stable=True), wanted.sum()
    order = jnp.pad(order, (0, -len(order) % AT_ONCE), constant_values=len(wanted))  # behind the last: read as the last, not written

    def some(number, carry):
        return _some(network, state, pictures, order, number, carry)

    batches = -(-count // AT_ONCE)
    if traced:
        found = lax.fori_loop(0, batches, some, empty)
    else:
        found = steps.advance(lambda n, _, c: some(n, c), batches, empty, traced=False, every=1, unit="batch", title=title)
    return jnp.where(wanted.reshape(-1, *[1] * (found.ndim - 1)), found, 0)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=5)
def _some(network, state, pictures, order, number, carry):
    own = lax.dynamic_slice(order, (number * AT_ONCE,), (AT_ONCE,))
    return carry.at[own].set(network(state, *(jnp.take(each, own, 0, mode="clip") for each in pictures)), mode="drop")


@functools.partial(jax.jit, static_argnames=("low", "high", "floor_hu"))
def _clean(found, pictures, *, low, high, floor_hu):
    """Maps in HU, 0 where the twin, as the generator sees it, is darker than a floor."""
    return found if floor_hu is None else jnp.where(jnp.clip(pictures, low, high) - found < floor_hu, 0.0, found)


@functools.partial(jax.jit, static_argnames="least")
def _lesions(calcium, probability, voxel_mm3, *, least):
    """Maps [z, y, x] in HU without what is no calcium, and without 6-connected parts that add up to too little or whose mean probability,
    weighted by the map, is too low. probability: of slices, [z], or None. least: (HU, HU x mm³, probability)."""
    least_hu, least_lesion, least_probability = least
    calcium = jnp.where(calcium >= least_hu, calcium, 0.0)
    number, _ = lesions.label(calcium > 0, connectivity=6)
    of_parts = lambda values: jnp.zeros(calcium.size // 2 + 2).at[number].add(values)  # noqa: E731
    sums = of_parts(calcium)
    stays = sums * voxel_mm3 >= least_lesion
    if probability is not None:
        stays &= of_parts(calcium * probability[:, None, None]) >= least_probability * sums
    return jnp.where(stays[number], calcium, 0.0)


@functools.partial(jax.jit, static_argnames=("shape", "least_hu"))
def _back(calcium, middle, hu, arrays, *, shape, least_hu):
    """The Finding of maps in windows: on slabs along z, on the scan's own pixels in the plane."""
    size = calcium.shape[-1]
    wide = jnp.zeros((shape[0], shape[1] + 2 * size, shape[2] + 2 * size), calcium.dtype)
    wide = lax.dynamic_update_slice(wide, calcium, (0, *(middle + size - size // 2)))
    map_hu = slabs.resample(wide[:, size:-size, size:-size], arrays.back, fill=0.0)
    label = jnp.where(map_hu >= least_hu, CAC, 0).astype(jnp.uint8)
    return Finding(label, slabs.resample(jnp.maximum(hu, AIR_HU), arrays.along_z, fill=grids.NO_HU), jnp.where(label > 0, map_hu, 0.0))

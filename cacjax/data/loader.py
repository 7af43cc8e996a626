"""Records -> Grain -> host batches of patches or cubes whose content follows from (seed, step) alone.

A loader at step k equals a loader started at step k, for any number of threads, worker processes and hosts: sample i of
a stream has its own random numbers (folded from the seed, the stream's name and i), and the scans in memory follow from
the step. So resuming needs the step and nothing else.
"""

import math
import weakref
import zlib
from collections.abc import Iterator, Mapping

import grain
import numpy as np
from absl import flags
from scipy import ndimage

from cacjax.data import sampling
from cacjax.data.sampling import StreamSpec

STEPS = 2**31  # nominal length of a stream; indices are computed, nothing is allocated

# Tone curves: knots in HU, with tissue between -50 and 130 HU resolved finely.
TONE_KNOTS = (-1000.0, -200.0, -50.0, 0.0, 30.0, 60.0, 130.0, 250.0, 500.0, 1000.0, 3000.0)
TONE_ANCHOR = -100.0  # fat stays where it is, whatever the curve
TONE_SLOPE_SD = 0.4  # of the logarithm of each slope
TONE_LIFT = (0.7, 600.0)  # share of curves that lift soft tissue as contrast medium does, largest lift in HU
TONE_UNTOUCHED, TONE_DIRECT = 0.25, 0.35  # shares; the rest applies the curve to the smoothed image
TONE_SMOOTH_PX = 1.2
TONE_NOISE = (0.5, 25.0)  # share of touched patches that get noise, largest sd in HU


def tone_curve(rng: np.random.Generator, *, lift: bool = True) -> np.ndarray:
    """Draw the values in HU of a random increasing curve at TONE_KNOTS; it maps -100 HU to itself.

    Slopes are log-normal around 1 (air to lung: 1). With `lift`, 70 % of curves rise by a further 0-600 HU between 0
    and 60 HU: unenhanced blood and muscle take the values they have after contrast medium.
    """
    slopes = np.exp(rng.normal(0.0, TONE_SLOPE_SD, len(TONE_KNOTS) - 1))
    slopes[0] = 1.0
    rises = slopes * np.diff(TONE_KNOTS)
    if lift and rng.random() < TONE_LIFT[0]:
        rises[3:5] += rng.uniform(0.0, TONE_LIFT[1]) * rng.dirichlet((2.0, 2.0))
    values = np.concatenate([[0.0], np.cumsum(rises)])
    return values - np.interp(TONE_ANCHOR, TONE_KNOTS, values) + TONE_ANCHOR


def tone_augment(hu: np.ndarray, rng: np.random.Generator, *, lift: bool = True) -> np.ndarray:
    """Change the tones of a patch [planes, y, x, slab] or a cube [z, y, x]: HU in, float32 HU out.

    A quarter is left as it is; 35 % get a random curve; 40 % get the change that the curve makes to the smoothed image,
    so that noise is not amplified; half of the changed ones get white noise of 0-25 HU. `lift=False` is the plain
    jitter of slopes, the control for what contrast-like curves add.
    """
    image, mode = hu.astype(np.float32), rng.random()
    if mode < TONE_UNTOUCHED:
        return image
    values = tone_curve(rng, lift=lift)
    if mode < TONE_UNTOUCHED + TONE_DIRECT:
        image = np.interp(image, TONE_KNOTS, values).astype(np.float32)
    else:
        smooth = ndimage.gaussian_filter(image, (0, TONE_SMOOTH_PX, TONE_SMOOTH_PX, 0)[: image.ndim])
        image += np.interp(smooth, TONE_KNOTS, values).astype(np.float32) - smooth
    if rng.random() < TONE_NOISE[0]:
        image += np.float32(rng.uniform(0.0, TONE_NOISE[1])) * rng.standard_normal(image.shape, dtype=np.float32)
    return image


class Sampler:
    """Maps (index of a sample, its generator) to the sample; what Grain's `random_map` calls."""

    def __init__(self, spec: StreamSpec, count: tuple[int, ...], cache: sampling.ScanCache, *, seed: int):
        self.spec, self.count, self.cache, self.seed = spec, count, cache, seed
        self.scans = [(split, i) for split in spec.splits for i in range(len(cache.sources[split]))]

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw stratum, voxel and patch of sample `index`; its place in the minibatch decides the stratum."""
        position = (int(index) % self.count[-1] + rng.random()) / self.count[-1]
        stratum = sampling.stratum_of(position, self.spec.strata)
        scan, point = self._point(stratum, int(index) // math.prod(self.count), rng)
        if self.spec.jitter_px:
            shift = rng.integers(-self.spec.jitter_px, self.spec.jitter_px + 1, 2)
            point = (point[0], *(int(v) for v in np.clip(point[1:] + shift, 0, np.array(scan.hu.shape[1:]) - 1)))
        sample = sampling.cut_sample(scan, point, self.spec)
        if self.spec.tone and rng.random() < self.spec.tone:
            toned = tone_augment(sample["hu"], rng, lift=self.spec.tone_lift)
            sample["hu"] = np.clip(np.rint(toned), -32768, 32767).astype(np.int16)
        return sample

    def _point(self, stratum: str, step: int, rng: np.random.Generator):
        """Return (scan, voxel) from the scans in memory, or from any other scan when none of these has a candidate."""
        inside = self.in_memory(step)
        if stratum in sampling.SLICE_STRATA:
            found = sampling.point_in_slices(stratum, [self._scan(i) for i in inside], rng)
            if found:
                return found
        others = sorted(set(range(len(self.scans))) - set(inside))
        for i in [*rng.permutation(inside), *rng.permutation(others)]:
            scan = self._scan(int(i))
            if stratum in sampling.SLICE_STRATA:
                found = sampling.point_in_slices(stratum, [scan], rng)
            else:
                point = sampling.point_in_scan(stratum, scan, rng)
                found = None if point is None else (scan, point)
            if found:
                return found
        raise ValueError(f"no scan of splits {self.spec.splits} has a voxel for stratum {stratum!r}")

    def in_memory(self, step: int) -> tuple[int, ...]:
        """Return the positions in `self.scans` of the scans that samples of `step` are drawn from."""
        period = step // self.spec.swap_every if self.spec.swap_every else 0
        return sampling.scans_of_period(
            period,
            total=len(self.scans),
            in_memory=self.spec.scans_in_memory,
            seed=self.seed,
            tag="+".join(self.spec.splits),
        )

    def _scan(self, i: int) -> sampling.IndexedScan:
        return self.cache.get(*self.scans[i], labelled=self.spec.labelled, seen=self.spec.view)


def make_loader(
    sources: Mapping,
    streams: Mapping[str, tuple[StreamSpec, tuple[int, ...]]],
    *,
    seed: int,
    step: int = 0,
    num_threads: int = 4,
    num_workers: int = 0,
    prefetch: int = 4,
    process_index: int = 0,
    process_count: int = 1,
    cache_scans: int | None = None,
) -> Iterator[dict[str, dict[str, np.ndarray]]]:
    """Return an endless iterator of {stream: {"hu": int16 [*count, ...], "label": uint8 [*count, ...]}}: see sampling.sample_shapes.

    sources: split -> anything with len() and [i] that yields records (see cacjax.data.cohorts). streams: name ->
    (StreamSpec, count per step, e.g. (20, 16) for 20 minibatches of 16). The last axis of every count is divided among
    the processes: process p of n gets rows [p * B / n, (p + 1) * B / n) of each minibatch. `num_workers` > 0 uses
    worker processes (each with its own scans in memory; the caller needs an `if __name__ == "__main__"` guard).
    `prefetch` counts steps. cache_scans: scans kept decoded, default as the streams need; give it when
    scans_in_memory is 0 and the scans do not fit in memory.

    Close the iterator when done. Raises ValueError for a specification that cannot be met.
    """
    _check(sources, streams, process_index, process_count)
    cache = sampling.ScanCache(sources, cache_scans or _cache_size(sources, streams))
    parts = [_stream(name, spec, count, cache, seed=seed, shard=(process_index, process_count)) for name, (spec, count) in streams.items()]
    steps = grain.experimental.ZipMapDataset(parts)[step:]
    threads = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch if num_threads else 0)
    dataset = steps.to_iter_dataset(threads)
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl flags
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    batches = iter(dataset)
    result = _named(batches, tuple(streams), copy=bool(num_workers))
    weakref.finalize(result, batches.close)  # an abandoned loader leaves no threads, processes or shared memory
    return result


def _named(batches, names: tuple[str, ...], *, copy: bool):
    """Name the streams of each step. Copies leave shared memory; otherwise the arrays are new already."""
    try:
        for parts in batches:
            if copy:
                parts = [{key: np.array(value) for key, value in part.items()} for part in parts]
            yield dict(zip(names, parts))
    finally:
        batches.close()


def _stream(name, spec, count, cache, *, seed, shard):
    """Return the MapDataset of one stream: element k is this process's rows of step k."""
    index, processes = shard
    folded = int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])
    samples = grain.MapDataset.range(STEPS * math.prod(count)).seed(folded)
    rows = samples.random_map(Sampler(spec, count, cache, seed=seed)).batch(count[-1] // processes)
    rows = rows[index::processes]  # after batching: element i is a run of neighbouring rows of minibatch i
    for size in reversed(count[:-1]):
        rows = rows.batch(size)
    return rows


def _check(sources, streams, process_index, process_count) -> None:
    if not streams:
        raise ValueError("streams is empty, expected at least one {name: (StreamSpec, count)}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be in [0, {process_count}), got {process_index}")
    for name, (spec, count) in streams.items():
        sampling.check_spec(name, spec)
        for split in spec.splits:
            if split not in sources:
                raise ValueError(f"stream {name}: no split {split!r} among {sorted(sources)}")
            if not len(sources[split]):
                raise ValueError(f"stream {name}: split {split!r} has no records")
        if not spec.splits or not count or min(count) < 1 or count[-1] % process_count:
            raise ValueError(
                f"stream {name}: needs a split and a positive count whose last number is a multiple of "
                f"{process_count} processes, got splits {spec.splits}, count {count}"
            )


def _cache_size(sources, streams) -> int:
    """Return the number of scans that this and the next swap period use, over all streams."""
    sizes = {}
    for spec, _ in streams.values():
        total = sum(len(sources[split]) for split in spec.splits)
        held = 2 * spec.scans_in_memory if spec.swap_every else spec.scans_in_memory
        sizes[spec.splits] = max(sizes.get(spec.splits, 0), min(held or total, total))
    return sum(sizes.values()) + 1

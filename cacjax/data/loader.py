"""Records -> Grain -> host batches of patches, slices or blocks whose content follows from (seed, step) alone.

A loader at step k equals a loader started at step k, for any number of threads, worker processes and hosts: sample i of
a stream has its own random numbers (folded from the seed, the stream's name and i), and the scans in memory follow from
the step. So resuming needs the step and nothing else.
"""

import functools
import math
import weakref
import zlib
from collections.abc import Iterator, Mapping

import grain
import numpy as np
from absl import flags

from cacjax.data import sampling, scans
from cacjax.data.augment import AUGMENTATIONS
from cacjax.data.sampling import StreamSpec

STEPS = 2**31  # nominal length of a stream; indices are computed, nothing is allocated
KEPT = 128  # answers to which slices of the scans in memory a stratum draws from: one a stratum and bin


class Sampler:
    """Maps (index of a sample, its generator) to the sample; what Grain's `random_map` calls."""

    def __init__(self, spec: StreamSpec, count: tuple[int, ...], cache: scans.ScanCache, *, seed: int):
        self.spec, self.count, self.cache, self.seed = spec, count, cache, seed
        self.scans = [(split, i) for split in spec.splits for i in range(len(cache.sources[split]))]
        # To look through hundreds of scans for each sample would take longer than a step.
        self._slices = functools.lru_cache(KEPT)(self._slices_of)

    def __reduce__(self):
        return functools.partial(Sampler, seed=self.seed), (self.spec, self.count, self.cache)  # to a worker process

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw stratum, voxel and cut of sample `index`; its place in the minibatch decides the stratum and the bin."""
        spec, minibatch = self.spec, self.count[-1]
        step, place = int(index) // math.prod(self.count), int(index) % minibatch
        stratum = sampling.stratum_of((place + rng.random()) / minibatch, spec.strata)
        if stratum == sampling.WHOLE:
            member, turn = int(index) % math.prod(self.count) // minibatch, {"seed": self.seed, "number": step * minibatch + place}
            scan = self._scan(sampling.scan_in_turn(len(self.scans), member=member, **turn))
            point = sampling.point_in_scan(stratum, scan, rng)
        else:
            scan, point = self._point(stratum, step, place, rng)
        if spec.jitter_px:
            shift = rng.integers(-spec.jitter_px, spec.jitter_px + 1, 2)
            point = (point[0], *(int(v) for v in np.clip(point[1:] + shift, 0, np.array(scan.hu.shape[1:]) - 1)))
        sample = sampling.cut_sample(scan, point, spec)
        for name, chance in spec.augment:
            if rng.random() < chance:
                sample = AUGMENTATIONS[name](sample, rng)
        return sample

    def _point(self, stratum: str, step: int, place: int, rng: np.random.Generator):
        """Return (scan, voxel) from the scans in memory, or from any other scan when none of these has a candidate."""
        draw = functools.partial(sampling.point_in_slices, stratum, rng=rng, place=self._bin(step, place))
        if (scan := self._shared(step, place)) and (found := draw([scan])):
            return found
        inside = self.in_memory(step)
        if stratum in sampling.SLICE_STRATA and len(slices := self._slices(inside, stratum, self._bin(step, place))):
            number, z = slices[rng.integers(len(slices))]
            scan = self._scan(inside[number])
            return scan, sampling.point_in_slice(stratum, scan, int(z), rng)
        others = sorted(set(range(len(self.scans))) - set(inside))
        for i in [*rng.permutation(inside), *rng.permutation(others)]:
            scan = self._scan(int(i))
            if stratum in sampling.SLICE_STRATA:
                found = draw([scan])
            else:
                point = sampling.point_in_scan(stratum, scan, rng)
                found = None if point is None else (scan, point)
            if found:
                return found
        raise ValueError(f"no scan of splits {self.spec.splits} has a voxel for stratum {stratum!r}")

    def _slices_of(self, inside: tuple[int, ...], stratum: str, place: tuple[int, int] | None) -> np.ndarray:
        return sampling.slices_of(stratum, [self._scan(i) for i in inside], place)

    def _shared(self, step: int, place: int) -> scans.IndexedScan | None:
        """Return the scan that both samples of a pair come from, None where they need not."""
        if not self.spec.one_scan:
            return None
        rng = np.random.default_rng([self.seed, step, sampling.pair_of(place, self.count[-1])])
        if rng.random() >= self.spec.one_scan:
            return None
        order = (self._scan(int(i)) for i in rng.permutation(self.in_memory(step)))
        return next((scan for scan in order if all(sampling.holding(s, scan).any() for s, _ in self.spec.strata)), None)

    def _bin(self, step: int, place: int) -> tuple[int, int] | None:
        """Return (bin, number of bins) of a sample, None where the stream has none."""
        bins = self.spec.bins
        return (sampling.bin_at(bins, seed=self.seed, step=step, position=place, minibatch=self.count[-1]), bins) if bins else None

    def in_memory(self, step: int) -> tuple[int, ...]:
        """Return the positions in `self.scans` of the scans that samples of `step` are drawn from."""
        period = step // self.spec.swap_every if self.spec.swap_every else 0
        return scans.scans_of_period(
            period,
            total=len(self.scans),
            in_memory=self.spec.scans_in_memory,
            seed=self.seed,
            tag="+".join(self.spec.splits),
        )

    def _scan(self, i: int) -> scans.IndexedScan:
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
    (StreamSpec, count per step, e.g. (20, 16) for 20 minibatches, or members of an ensemble, of 16 samples, each with random numbers of
    its own). The last axis of every count is divided among
    the processes: process p of n gets rows [p * B / n, (p + 1) * B / n) of each minibatch. `num_workers` > 0 uses
    worker processes (each with its own scans in memory; the caller needs an `if __name__ == "__main__"` guard).
    `prefetch` counts steps. cache_scans: scans kept decoded, default as the streams need; give it when
    scans_in_memory is 0 and the scans do not fit in memory.

    Close the iterator when done. Raises ValueError for a specification that cannot be met.
    """
    _check(sources, streams, process_index, process_count)
    cache = scans.ScanCache(sources, cache_scans or _cache_size(sources, streams))
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
        if len(sampling.mesh_axes(spec, count)) != len(count):
            raise ValueError(f"stream {name}: axes must name a mesh axis for each number of count {count}, got {spec.axes}")
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

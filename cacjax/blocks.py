"""Blocks of scans for 3-D networks: batches to train on, and whole scans window by window. Volumes [z, y, x], batches [b, z, y, x].

A batch follows from (seed, step) alone, so a resumed training needs the step and nothing else. A stream is a mapping with the keys
split, count (samples per step), patch (side in voxels), strata (see cacjax.sampling: what lies in the middle of a block, as far as the
scan's border allows), scans_in_memory and swap_every.
"""

import functools
import itertools
import zlib
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from cacjax import sampling


def example_batch(streams: Mapping) -> dict:
    """Shapes of what `make_loader` yields."""

    def shapes(stream):
        shape = (*stream.count, *[stream.patch] * 3)
        return {"hu": jax.ShapeDtypeStruct(shape, jnp.float32), "label": jax.ShapeDtypeStruct(shape, jnp.uint8)}

    return {name: shapes(stream) for name, stream in streams.items()}


def make_loader(sources: Mapping, streams: Mapping, *, seed, step=0, process_index=0, process_count=1) -> Iterator:
    """Yield {stream: {"hu": int16 [b, n, n, n], "label": uint8 [b, n, n, n]}} of step, step + 1, ..: this process's rows.

    sources: split -> records (see cacjax.datasets). Raises ValueError for a stream that cannot be drawn.
    """
    for name, stream in streams.items():
        if stream.split not in sources or not len(sources[stream.split]):
            raise ValueError(f"stream {name}: no records of split {stream.split!r} among {sorted(sources)}")
        if stream.count[-1] % process_count:
            raise ValueError(f"stream {name}: count must be a multiple of {process_count} processes, got {stream.count}")
    cache = sampling.ScanCache(sources, sum(len(source) for source in sources.values()))
    for now in itertools.count(step):
        yield {name: _batch(name, stream, cache, (seed, now), (process_index, process_count)) for name, stream in streams.items()}


def _batch(name, stream, cache, when, share):
    (seed, step), (process, processes) = when, share
    (count,), total = stream.count, len(cache.sources[stream.split])
    period = step // stream.swap_every if stream.swap_every else 0
    held = sampling.scans_of_period(period, total=total, in_memory=stream.scans_in_memory, seed=seed, tag=stream.split)
    mine = range(process * count // processes, (process + 1) * count // processes)
    rngs = [np.random.default_rng([seed, zlib.crc32(name.encode()), step, row]) for row in mine]
    samples = [_sample(cache, stream, held, (row + rng.random()) / count, rng) for row, rng in zip(mine, rngs)]
    return {key: np.stack([sample[key] for sample in samples]) for key in ("hu", "label")}


def _sample(cache, stream, held, position, rng):
    stratum = sampling.stratum_of(position, stream.strata)
    for index in rng.permutation(held):
        scan = cache.get(stream.split, int(index), labelled=True)
        point = sampling.point_in_scan(stratum, scan, rng)
        if point is not None:
            return {"hu": cut(scan.hu, point, stream.patch), "label": cut(scan.label, point, stream.patch)}
    raise ValueError(f"no scan in memory has a voxel for stratum {stratum!r}")


def cut(volume: np.ndarray, point, side: int) -> np.ndarray:
    """A cube around `point`, moved to lie within the volume; where that is smaller, its last voxels are repeated."""
    low = [int(np.clip(p - side // 2, 0, max(n - side, 0))) for p, n in zip(point, volume.shape)]
    block = volume[tuple(slice(a, a + side) for a in low)]
    return np.pad(block, [(0, side - n) for n in block.shape], mode="edge")


def slide(network, hu: np.ndarray, *, window: int, overlap: int, grain: int = 8) -> np.ndarray:
    """Mean probabilities [classes, z, y, x] of a network over windows of a scan that overlap by `overlap` voxels at least.

    network: hu [1, z, y, x] -> probabilities [1, z, y, x, classes]. Sides shorter than the window are rounded up to multiples of `grain`
    by repeating the last voxels: scans of a like size compile nothing.
    """
    hu = np.asarray(hu, np.float32)
    sides = [min(window, -(-n // grain) * grain) for n in hu.shape]
    padded = np.pad(hu, [(0, max(side - n, 0)) for side, n in zip(sides, hu.shape)], mode="edge")
    total, times = None, np.zeros(padded.shape, np.float32)
    for corner in itertools.product(*(_starts(n, side, overlap) for n, side in zip(padded.shape, sides))):
        here = tuple(slice(a, a + side) for a, side in zip(corner, sides))
        found = np.moveaxis(np.asarray(network(padded[here][None]))[0], -1, 0)
        total = np.zeros((len(found), *padded.shape), np.float32) if total is None else total
        total[(slice(None), *here)] += found
        times[here] += 1
    return (total / times)[(slice(None), *(slice(0, n) for n in hu.shape))]


def _starts(n, side, overlap):
    """First voxels of windows spread evenly over n voxels."""
    count = 1 + -(-(n - side) // max(side - overlap, 1))
    return np.linspace(0, n - side, count).round().astype(int).tolist()


@functools.partial(jax.jit, static_argnums=0)
def probabilities(model, variables, hu):
    """Class probabilities [b, z, y, x, classes] of HU [b, z, y, x]."""
    return jax.nn.softmax(model.apply(variables, normalise(hu)))


def normalise(hu):
    """HU as Bruns 2022's code has them: clipped to [-1024, 3071] and divided by 4096, channel added."""
    return (jnp.clip(hu.astype(jnp.float32), -1024.0, 3071.0) / 4096.0)[..., None]

"""Runs of ones in a 3D mask, which `links` joins to components: the engine under `lesions` and `scores`.

A mask [z, y, x] is packed into 32-bit words; a node is a maximal run of ones inside one word, numbered in raster order, so the
smallest node of a component holds its first voxel and dense labels come out in the order of `scipy.ndimage.label`.
Everything after packing costs what the runs cost. Their number is known only on the device, so each program carries one branch
per capacity (`BUCKETS`, and one that holds any mask of the shape) and `lax.switch` takes the smallest that fits: nothing is lost
and nothing returns to the host. Every branch is compiled, so there are few. Work goes chunk by chunk, of `CHUNK` runs or what a
CPU's cache holds, so that a branch for many runs, whose memory is set aside even where it is not taken, stays near 100 bytes a run,
and only chunks with runs in them are worked on.
Small branches never touch the whole mask again; in large ones a prefix of all words answers faster. A mask of few voxels is
not even packed as a whole (`over`): one pass at the speed of memory finds the groups of rows that hold any, and only those are kept.
What is a chain of dependent steps (running maxima, joining) is one scalar loop on a CPU and parallel rounds elsewhere
(`lax.platform_dependent`). Counts are int32: at most 2^31 - 1 voxels.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Int32, Integer, Shaped, UInt32

from cacjax.kernels.bits import WORD, bisect, pack, popcount, running_max, select, sum_before, take, unpack, up_to
from cacjax.kernels.shapes import Shape

BUCKETS = (1 << 14, 1 << 20)
GROUP, KEPT, _AT_ONCE = 32, 512, 32  # rows kept or left out together; such groups that a sparse mask may fill; packed at once
_LEAST_CHUNK = 1 << 9
CHUNK, CACHED = 1 << 18, 1 << 13  # slots: at most in one piece; of them those that stay in the cache of a CPU
_SPARSE = 64  # a branch is small where it has this many words of the mask a run, and rows are no longer than this


class Mask(NamedTuple):
    """A packed mask: its words, runs before each row (`heads`), their number `n`.

    starts: first bits of runs where they are not simply those of the ones in each word (see `find`), else None.
    group: None where the rows are those of the volume, z*y. Else the groups of `GROUP` rows that are kept, ascending;
    slot: the place of every group of the volume among them, that of an empty one (KEPT) where it is not kept.
    """

    words: UInt32[Array, "rows words"]
    starts: UInt32[Array, "rows words"] | None
    heads: Int32[Array, " rows"]
    n: Int32[Array, ""]
    group: Int32[Array, " kept"] | None = None
    slot: Int32[Array, " groups"] | None = None


class Runs(NamedTuple):
    """Runs in raster order: flat index of the word, first and last bit in it, and whether the slot is in use."""

    word: Int32[Array, " capacity"]
    start: Int32[Array, " capacity"]
    stop: Int32[Array, " capacity"]
    valid: Bool[Array, " capacity"]


def find(mask: Bool[Array, "z y x"], breaks: Bool[Array, "z y x"] | None = None) -> Mask:
    """The packed runs of a mask; where `breaks` is true a new run begins even inside a row of ones."""
    if mask.size >= 1 << 31:
        raise ValueError(f"mask must have fewer than 2^31 voxels, got {mask.shape}")
    width = -(-mask.shape[-1] // WORD)
    return index(pack(mask).reshape(-1, width), None if breaks is None else pack(breaks).reshape(-1, width))


def over(mask: Bool[Array, "z y x"], work: Callable, *, breaks: Bool[Array, "z y x"] | None = None, buckets: tuple = BUCKETS):
    """`work(runs, packed)` on the runs of a mask and its `Mask`, in the smallest bucket that holds them; breaks: see
    `find`. On a CPU the rows of a mask of which few hold a voxel are read just once: there packing all is what takes the time."""
    shape = mask.shape[0] * mask.shape[1], -(-mask.shape[2] // WORD)

    def dense(buckets):
        packed = find(mask, breaks)
        return in_bucket(lambda runs: work(runs, packed), packed, capacities(shape, buckets))

    if shape[0] <= KEPT * GROUP or jax.default_backend() != "cpu":
        return dense(buckets)
    full = _grouped(mask)
    full = lax.optimization_barrier(lax.reduce(full, np.bool_(False), lax.bitwise_or, (1,))).any(1)
    few = _keep(mask, breaks, lax.optimization_barrier(full))
    capacity, *more = sorted(buckets)
    fits = (full.sum(dtype=jnp.int32) <= KEPT) & (few.n <= capacity)
    return lax.cond(fits, lambda: work(_compact(few, capacity), few), lambda: dense(tuple(more)))


def _grouped(mask):
    """A mask [z, y, x] as [groups, GROUP, x]."""
    rows = mask.reshape(-1, mask.shape[-1])
    return jnp.pad(rows, ((0, -rows.shape[0] % GROUP), (0, 0))).reshape(-1, GROUP, mask.shape[-1])


def _keep(mask, breaks, full):
    """The `Mask` of the first KEPT groups of rows that are `full` [groups], and an empty one behind them."""
    group = jnp.nonzero(full, size=KEPT + 1, fill_value=full.size)[0].astype(jnp.int32)
    slot = jnp.full((full.size,), KEPT, jnp.int32).at[group].set(jnp.arange(KEPT + 1, dtype=jnp.int32), mode="drop")
    width = -(-mask.shape[-1] // WORD)
    volumes = [_grouped(volume) for volume in (mask, breaks) if volume is not None]

    def some(i, state):
        at = lax.dynamic_slice_in_dim(group, i * _AT_ONCE, _AT_ONCE)
        words = [pack(volume.at[at].get(mode="fill", fill_value=False)).reshape(-1, width) for volume in volumes]
        parts = *words, popcount(_first_bits(*words)).sum(1, dtype=jnp.int32)
        return tuple(lax.dynamic_update_slice_in_dim(all, part, i * _AT_ONCE * GROUP, 0) for all, part in zip(state, parts))

    rows = (KEPT + 1) * GROUP
    state = (*(jnp.zeros((rows, width), jnp.uint32) for _ in volumes), jnp.zeros((rows,), jnp.int32))
    n = jnp.minimum(full.sum(dtype=jnp.int32), KEPT)
    *words, totals = lax.fori_loop(0, (n + _AT_ONCE - 1) // _AT_ONCE, some, state)
    starts = None if breaks is None else _first_bits(*words)
    return Mask(words[0], starts, *_heads(totals, width), group, slot)


def index(words: UInt32[Array, "rows words"], breaks: UInt32[Array, "rows words"] | None = None) -> Mask:
    """`find` on packed words and breaks."""
    words = lax.optimization_barrier(words)
    starts = None if breaks is None else lax.optimization_barrier(_first_bits(words, breaks))
    totals = popcount(_first_bits(words) if starts is None else starts).sum(1, dtype=jnp.int32)
    return Mask(words, starts, *_heads(totals, words.shape[1]))


def _heads(totals, width):
    """Runs before each row, and all, from those of each row."""
    heads = sum_before(totals, most=width * WORD)
    return lax.optimization_barrier((heads, heads[-1] + totals[-1]))


def _first_bits(words, breaks=None):
    apart = ~(words << 1)
    return words & (apart if breaks is None else apart | breaks)


def starts_of(mask: Mask, word: Int32[Array, "..."] | None = None) -> UInt32[Array, "..."]:
    """First bits of runs: of all words, or of those at flat indices."""
    every = mask.words if mask.starts is None else mask.starts
    some = every if word is None else take(every.ravel(), word)
    return _first_bits(some) if mask.starts is None else some


def capacities(shape: tuple[int, int], buckets: tuple = BUCKETS) -> tuple[int, ...]:
    """Bucket sizes for a packed mask of this [rows, words] shape; the last holds every possible mask. Whole chunks. A bucket of more than
    a quarter of that would save little and be a branch more."""
    bound = shape[0] * shape[1] * WORD // 2
    return tuple(map(whole_chunks, [b for b in sorted(buckets) if 4 * b <= bound] + [bound]))


def roomy(n: int) -> int:
    """A capacity for n runs that more or less of them share: of a few sizes, lest each number compile anew."""
    return max(whole_chunks(n), CHUNK)


def whole_chunks(n: int) -> int:
    """A capacity of at least n: beyond one chunk, whole chunks."""
    size = next((size for size in (CHUNK, CACHED) if n > size), 1)
    return -(-n // size) * size


def in_bucket(work: Callable, mask: Mask, sizes: tuple[int, ...] | None = None):
    """`work(runs)` on the runs of a `Mask`, in the smallest bucket that holds them; its results must not depend on the capacity.

    sizes: ascending, default `capacities`. Where the largest does not hold all runs the results are zeros: compare `mask.n`.
    """
    sizes = capacities(mask.words.shape) if sizes is None else sizes
    index = (mask.n > jnp.asarray(np.array(sizes, np.int32))).sum(dtype=jnp.int32)
    branches = [lambda size=size: work(_compact(mask, size)) for size in sizes]
    nothing = jax.eval_shape(branches[0])
    return lax.switch(index, [*branches, lambda: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), nothing)])


def in_chunks(work: Callable, *arrays: Shaped[Array, "capacity ..."], n: Int32[Array, ""] | None = None):
    """`work(*arrays)` on arrays, a chunk at a time; a tree of arrays [capacity, ..].

    n: how many slots are in use (default all); chunks beyond are not worked on and come out as zeros.
    """
    capacity = arrays[0].shape[0]
    if _chunk(capacity) == capacity:
        return work(*arrays)
    kinds = jax.eval_shape(work, *(jax.ShapeDtypeStruct((_chunk(capacity), *a.shape[1:]), a.dtype) for a in arrays))
    empty = jax.tree.map(lambda a: jnp.zeros((capacity, *a.shape[1:]), a.dtype), kinds)

    def step(results, start, *parts):
        return jax.tree.map(lambda all, part: lax.dynamic_update_slice_in_dim(all, part, start, 0), results, work(*parts))

    return _over_chunks(step, empty, arrays, n)


def fold_chunks(step: Callable, carry, *arrays: Shaped[Array, "capacity ..."], n: Int32[Array, ""] | None = None):
    """`carry = step(carry, *arrays)` over arrays, a chunk at a time; chunks beyond slot n are left out."""
    if _chunk(arrays[0].shape[0]) == arrays[0].shape[0]:
        return step(carry, *arrays)
    return _over_chunks(lambda state, start, *parts: step(state, *parts), carry, arrays, n)


def _over_chunks(step, state, arrays, n):
    size = _chunk(arrays[0].shape[0])
    chunks = arrays[0].shape[0] // size

    def body(i, state):
        return step(state, i * size, *(lax.dynamic_slice_in_dim(a, i * size, size) for a in arrays))

    return lax.fori_loop(0, chunks if n is None else jnp.minimum((n + size - 1) // size, chunks), body, state)


def _chunk(capacity):
    """Slots worked on at once: on a CPU, where work on empty slots takes time, an eighth of a bucket, but no more than its cache holds."""
    if jax.default_backend() != "cpu":
        return min(capacity, CHUNK)
    part = min(max(capacity // 8, _LEAST_CHUNK), CACHED)
    return part if capacity % part == 0 else capacity


def kept(mask: Mask, word: Int32[Array, "*shape"]) -> Int32[Array, "*shape"]:
    """Where in `mask.words` words of the volume lie, by their flat index."""
    return word if mask.slot is None else _regrouped(mask.slot, word, mask.words.shape[1])


def _in_volume(mask, word):
    """Flat index in the volume of words of `mask.words`: the other way round."""
    return word if mask.group is None else _regrouped(mask.group, word, mask.words.shape[1])


def _regrouped(places, word, width):
    row, column = split(word, width)
    group, within = split(row, GROUP)
    return ((take(places, group).astype(jnp.uint32) * GROUP + within) * width + column).astype(jnp.int32)


def split(at: Integer[Array, "*shape"], size: int) -> tuple[UInt32[Array, "*shape"], UInt32[Array, "*shape"]]:
    """Quotient and remainder of whole numbers from 0 up: without the sign they are shifts where size is a power of two."""
    at = at.astype(jnp.uint32)
    return at // size, at % size


def is_small(mask: Mask, capacity: int) -> bool:
    """Whether a branch for this many runs does without a pass over all words of the mask."""
    return capacity * _SPARSE <= mask.words.size and mask.words.shape[1] <= _SPARSE


def runs_before(mask: Mask) -> Int32[Array, " words"]:
    """Runs before each word: one pass over the mask, for large branches."""
    return lax.optimization_barrier(sum_before(popcount(starts_of(mask).ravel()), most=WORD))


def _compact(mask, capacity):
    """The first `capacity` runs: row from the heads, word within the row, bits by popcounts in the word."""
    node = jnp.arange(capacity, dtype=jnp.int32)
    if is_small(mask, capacity):
        found = in_chunks(lambda node: _locate(mask, node, *_words_of_few(mask, node)), node, n=mask.n)
    else:
        before = runs_before(mask)
        filled = jnp.append(mask.heads[1:], mask.n) > mask.heads
        marks = jnp.zeros((capacity,), jnp.int32).at[jnp.where(filled, mask.heads, capacity)]
        row = running_max(marks.max(jnp.arange(mask.heads.size, dtype=jnp.int32), mode="drop"), jnp.minimum(mask.n, capacity))
        found = in_chunks(lambda *part: _locate(mask, part[0], *_words_of_many(mask, before, *part)), node, row, n=mask.n)
    return Runs(*lax.optimization_barrier(found))


def _words_of_few(mask, node):
    """Word of each run and its rank in it: a bisection on the heads, then all words of its row."""
    width = mask.words.shape[1]
    row = bisect(node, mask.heads.size, lambda at: mask.heads[at] <= node)
    counts = popcount(starts_of(mask, row[:, None] * width + jnp.arange(width)))
    ends = jnp.cumsum(counts, 1)
    rank = node - mask.heads[row]
    word = jnp.minimum((ends <= rank[:, None]).sum(1, dtype=jnp.int32), width - 1)
    earlier = jnp.where(jnp.arange(width) < word[:, None], counts, 0).sum(1, dtype=jnp.int32)
    return row * width + word, rank - earlier


def _words_of_many(mask, before, node, row):
    """Word of each run and its rank in it: a bisection on the prefix of the words of its row."""
    width = mask.words.shape[1]
    word = row * width + bisect(node, width, lambda at: take(before, row * width + at) <= node)
    return word, node - take(before, word)


def _locate(mask, node, word, rank):
    valid = node < mask.n
    word, rank = jnp.where(valid, word, 0), jnp.where(valid, rank, 0)
    starts, ones = starts_of(mask, word), take(mask.words.ravel(), word)
    start = select(starts, rank)
    stops = (ones & ~((ones & ~starts) >> 1)) >> start.astype(jnp.uint32)
    word = jnp.where(valid, _in_volume(mask, word), 0)
    return word, start, start + popcount((stops & (~stops + 1)) - 1) * valid, valid


def place(runs: Runs, shape: Shape) -> tuple[Int32[Array, " n"], Int32[Array, " n"], Int32[Array, " n"]]:
    """(z, y, x) of the first voxel of each run in a volume of this shape."""
    row, column = split(runs.word, -(-shape[2] // WORD))
    z, y, x = *split(row, shape[1]), column * WORD
    return z.astype(jnp.int32), y.astype(jnp.int32), x.astype(jnp.int32) + runs.start


def bits(runs: Runs) -> UInt32[Array, " n"]:
    """The ones of each run inside its word; 0 where the slot is not in use."""
    ones = up_to(runs.stop) & ~((jnp.uint32(1) << runs.start.astype(jnp.uint32)) - 1)
    return jnp.where(runs.valid, ones, jnp.uint32(0))


def paint(values: Shaped[Array, " n"], runs: Runs, mask: Mask, *, shape: Shape) -> Shaped[Array, "{shape[0]} {shape[1]} {shape[2]}"]:
    """A volume with `values` on the voxels of each run and 0 elsewhere; the dtype of `values`."""
    words = shape[0] * shape[1] * mask.words.shape[1]
    if values.shape[0] < words:
        on = (bits(runs)[:, None] >> jnp.arange(WORD, dtype=jnp.uint32)) & 1 == 1
        rows = jnp.zeros((words, WORD), values.dtype)
        rows = rows.at[runs.word].add(jnp.where(on, values[:, None], 0), mode="promise_in_bounds")
    else:
        node = runs_before(mask)[:, None] + popcount(starts_of(mask).reshape(-1, 1) & up_to(jnp.arange(WORD))) - 1
        on = unpack(mask.words.reshape(-1, 1), WORD)
        rows = jnp.where(on, values[jnp.clip(node, 0, values.shape[0] - 1)], 0)
    return rows.reshape(shape[0], shape[1], -1)[:, :, : shape[2]]

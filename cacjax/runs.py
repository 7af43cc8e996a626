"""Runs of ones in a 3D mask and the union-find that joins them: the engine under `lesions` and `scores`.

A mask [z, y, x] is packed into 32-bit words; a node is a maximal run of ones inside one word, numbered in raster order, so the
smallest node of a component holds its first voxel and dense labels come out in the order of `scipy.ndimage.label`.
Everything after packing costs what the runs cost. Their number is known only on the device, so each program carries one branch
per capacity (`BUCKETS`, and one that holds any mask of the shape) and `lax.switch` takes the smallest that fits: nothing is lost
and nothing returns to the host. Work on more than `CHUNK` runs goes chunk by chunk, so that a branch for many runs, whose memory
is set aside even where it is not taken, stays near 100 bytes a run, and only chunks with runs in them are worked on.
Small branches never touch the whole mask again; in large ones a prefix of all words answers faster. A mask of few voxels is not
even packed as a whole (`over`): one pass at the speed of memory finds the groups of rows that hold any, and only those are kept. What is a chain of
dependent steps (joining, running maxima) is one scalar loop on a CPU and parallel rounds elsewhere (`lax.platform_dependent`).
Counts are int32: at most 2^31 - 1 voxels.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cacjax import union
from cacjax.words import WORD, bisect, pack, popcount, running_max, running_sum, select, unpack, up_to

BUCKETS = (1 << 12, 1 << 16, 1 << 20, 1 << 22)
GROUP, KEPT = 32, 512  # rows that are kept or left out together; groups that a sparse mask may fill
_AT_ONCE = 32  # groups packed at once
_LEAST_CHUNK = 1 << 9
CONNECTIVITY = (4, 8, 6, 18, 26)
CHUNK = 1 << 18
_SPARSE = 64  # a branch is small where it has this many words of the mask a run, and rows are no longer than this


class Mask(NamedTuple):
    """A packed mask: `words` uint32 [rows, words], runs before each row (`heads`, [rows]), their number `n`.

    starts: first bits of runs where they are not simply those of the ones in each word (see `find`), else None.
    group: None where the rows are those of the volume, z*y. Else the groups of `GROUP` rows that are kept, ascending, int32 [KEPT + 1];
    slot: the place of every group of the volume among them, that of an empty one (KEPT) where it is not kept.
    """

    words: jax.Array
    starts: jax.Array | None
    heads: jax.Array
    n: jax.Array
    group: jax.Array | None = None
    slot: jax.Array | None = None


class Runs(NamedTuple):
    """Runs in raster order, [capacity] each: flat index of the word, first and last bit in it, and whether the slot is in use."""

    word: jax.Array
    start: jax.Array
    stop: jax.Array
    valid: jax.Array


def find(mask, breaks=None):
    """The packed runs of a bool mask [z, y, x]; where `breaks` (same shape) is true a new run begins even inside a row of ones."""
    if mask.size >= 1 << 31:
        raise ValueError(f"mask must have fewer than 2^31 voxels, got {mask.shape}")
    width = -(-mask.shape[-1] // WORD)
    return index(pack(mask).reshape(-1, width), None if breaks is None else pack(breaks).reshape(-1, width))


def over(mask, work, *, breaks=None, buckets=BUCKETS):
    """`work(runs, packed)` on the runs of a bool mask [z, y, x] and its `Mask`, in the smallest bucket that holds them; breaks: see
    `find`. Where at most `KEPT` groups of rows hold a voxel and the first bucket their runs, the other rows are read just once."""
    shape = mask.shape[0] * mask.shape[1], -(-mask.shape[2] // WORD)

    def dense():
        packed = find(mask, breaks)
        return in_bucket(lambda runs: work(runs, packed), packed, capacities(shape, buckets))

    if shape[0] <= KEPT * GROUP:
        return dense()
    full = _grouped(mask)
    full = lax.optimization_barrier(lax.reduce(full, np.bool_(False), lax.bitwise_or, (1,))).any(1)
    few = _keep(mask, breaks, lax.optimization_barrier(full))
    capacity = min(buckets)
    fits = (full.sum(dtype=jnp.int32) <= KEPT) & (few.n <= capacity)
    return lax.cond(fits, lambda: work(_compact(few, capacity), few), dense)


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


def index(words, breaks=None):
    """`find` on packed words [rows, words] and breaks of the same shape."""
    words = lax.optimization_barrier(words)
    starts = None if breaks is None else lax.optimization_barrier(_first_bits(words, breaks))
    totals = popcount(_first_bits(words) if starts is None else starts).sum(1, dtype=jnp.int32)
    return Mask(words, starts, *_heads(totals, words.shape[1]))


def _heads(totals, width):
    """Runs before each row, and all, from those of each row."""
    ends = running_sum(totals, most=width * WORD)
    return lax.optimization_barrier((ends - totals, ends[-1]))


def _first_bits(words, breaks=np.uint32(0)):
    return words & (~(words << 1) | breaks)


def _starts(mask, word=None):
    """First bits of runs: of all words, or of those at flat indices."""
    every = mask.words if mask.starts is None else mask.starts
    some = every if word is None else every.ravel()[word]
    return _first_bits(some) if mask.starts is None else some


def capacities(shape, buckets=BUCKETS):
    """Bucket sizes for a packed mask of this [rows, words] shape; the last holds every possible mask. Whole chunks."""
    bound = shape[0] * shape[1] * WORD // 2
    return tuple(map(whole_chunks, [b for b in sorted(buckets) if b < bound] + [bound]))


def whole_chunks(n):
    """A capacity of at least n: n itself up to one chunk, beyond that whole chunks."""
    return n if n <= CHUNK else -(-n // CHUNK) * CHUNK


def in_bucket(work, mask, sizes=None):
    """`work(runs)` on the runs of a `Mask`, in the smallest bucket that holds them; its results must not depend on the capacity.

    sizes: ascending, default `capacities`. Where the largest does not hold all runs the results are zeros: compare `mask.n`.
    """
    sizes = capacities(mask.words.shape) if sizes is None else sizes
    index = (mask.n > jnp.asarray(np.array(sizes, np.int32))).sum(dtype=jnp.int32)
    branches = [lambda size=size: work(_compact(mask, size)) for size in sizes]
    nothing = jax.eval_shape(branches[0])
    return lax.switch(index, [*branches, lambda: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), nothing)])


def in_chunks(work, *arrays, n=None):
    """`work(*arrays)` on arrays [capacity, ..], a chunk at a time; a tree of arrays [capacity, ..].

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


def fold_chunks(step, carry, *arrays, n=None):
    """`carry = step(carry, *arrays)` over arrays [capacity, ..], a chunk at a time; chunks beyond slot n are left out."""
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
    """Slots worked on at once: on a CPU, where work on empty slots takes time, an eighth of a smaller bucket."""
    if capacity > CHUNK:
        return CHUNK
    part = max(capacity // 8, _LEAST_CHUNK)
    return part if jax.default_backend() == "cpu" and capacity % part == 0 else capacity


def _kept(mask, word):
    """Where in `mask.words` words of the volume lie, by their flat index."""
    if mask.slot is None:
        return word
    row, column = jnp.divmod(word, mask.words.shape[1])
    return (mask.slot[row // GROUP] * GROUP + row % GROUP) * mask.words.shape[1] + column


def _in_volume(mask, word):
    """Flat index in the volume of words of `mask.words`: the other way round."""
    if mask.group is None:
        return word
    row, column = jnp.divmod(word, mask.words.shape[1])
    return (mask.group[row // GROUP] * GROUP + row % GROUP) * mask.words.shape[1] + column


def _is_small(mask, capacity):
    return capacity * _SPARSE <= mask.words.size and mask.words.shape[1] <= _SPARSE


def _before(mask):
    """Runs before each word, int32 [words]: one pass over the mask, for large branches."""
    counts = popcount(_starts(mask).ravel())
    return lax.optimization_barrier(running_sum(counts, most=WORD) - counts)


def _compact(mask, capacity):
    """The first `capacity` runs: row from the heads, word within the row, bits by popcounts in the word."""
    node = jnp.arange(capacity, dtype=jnp.int32)
    if _is_small(mask, capacity):
        found = in_chunks(lambda node: _locate(mask, node, *_words_of_few(mask, node)), node, n=mask.n)
    else:
        before = _before(mask)
        filled = jnp.append(mask.heads[1:], mask.n) > mask.heads
        marks = jnp.zeros((capacity,), jnp.int32).at[jnp.where(filled, mask.heads, capacity)]
        row = running_max(marks.max(jnp.arange(mask.heads.size, dtype=jnp.int32), mode="drop"))
        found = in_chunks(lambda *part: _locate(mask, part[0], *_words_of_many(mask, before, *part)), node, row, n=mask.n)
    return Runs(*lax.optimization_barrier(found))


def _words_of_few(mask, node):
    """Word of each run and its rank in it: a bisection on the heads, then all words of its row."""
    width = mask.words.shape[1]
    row = bisect(node, mask.heads.size, lambda at: mask.heads[at] <= node)
    counts = popcount(_starts(mask, row[:, None] * width + jnp.arange(width)))
    ends = jnp.cumsum(counts, 1)
    rank = node - mask.heads[row]
    word = jnp.minimum((ends <= rank[:, None]).sum(1, dtype=jnp.int32), width - 1)
    earlier = jnp.where(jnp.arange(width) < word[:, None], counts, 0).sum(1, dtype=jnp.int32)
    return row * width + word, rank - earlier


def _words_of_many(mask, before, node, row):
    """Word of each run and its rank in it: a bisection on the prefix of the words of its row."""
    width = mask.words.shape[1]
    word = row * width + bisect(node, width, lambda at: before[row * width + at] <= node)
    return word, node - before[word]


def _locate(mask, node, word, rank):
    valid = node < mask.n
    word, rank = jnp.where(valid, word, 0), jnp.where(valid, rank, 0)
    starts, ones = _starts(mask, word), mask.words.ravel()[word]
    start = select(starts, rank)
    stops = (ones & ~((ones & ~starts) >> 1)) >> start.astype(jnp.uint32)
    return _in_volume(mask, word), start, start + popcount((stops & (~stops + 1)) - 1) * valid, valid


def place(runs, shape):
    """(z, y, x) of the first voxel of each run in a volume of this shape, int32 [capacity]."""
    width = -(-shape[2] // WORD)
    row = runs.word // width
    return row // shape[1], row % shape[1], (runs.word % width) * WORD + runs.start


def bits(runs):
    """The ones of each run inside its word, uint32; 0 where the slot is not in use."""
    ones = up_to(runs.stop) & ~((jnp.uint32(1) << runs.start.astype(jnp.uint32)) - 1)
    return jnp.where(runs.valid, ones, jnp.uint32(0))


def components(runs, mask, shape, *, connectivity):
    """Dense component numbers from 1 in raster order, int32 [capacity] (0 where not in use), and how many there are."""
    if connectivity not in CONNECTIVITY:
        raise ValueError(f"connectivity must be one of {CONNECTIVITY}, got {connectivity!r}")
    node = jnp.arange(runs.word.shape[0], dtype=jnp.int32)
    link = functools.partial(_link, mask, shape, connectivity, _ranks(runs, mask))
    parent, edges = lax.optimization_barrier(in_chunks(link, node, *runs, n=mask.n))
    number, n = union.number(parent, edges, mask.n)
    return jnp.where(runs.valid, number, 0), n


def _ranks(runs, mask):
    """`rank(word, bit)`: the last run that starts at or before that bit of that word, of which there is one."""
    capacity = runs.word.shape[0]
    if _is_small(mask, capacity):
        words = jnp.where(runs.valid, runs.word, np.iinfo(np.int32).max)

        def is_before(at, word, bit):
            return (words[at] < word) | ((words[at] == word) & (runs.start[at] <= bit))

        return lambda word, bit: bisect(word, capacity, lambda at: is_before(at, word, bit))
    before = _before(mask)

    def rank(word, bit):
        at = _kept(mask, word)
        return before[at] + popcount(_starts(mask, at) & up_to(bit)) - 1

    return rank


def _link(mask, shape, connectivity, rank, node, *run):
    """Initial parents (a run that goes on from the word before hangs on it) and at most 4 edges a run, a tuple of int32 [capacity].

    Two runs in neighbouring rows touch exactly when the first voxel of one lies inside the other, the other grown by one voxel
    to the right where diagonals count. So each run asks about its own first voxel only, in the rows around it.
    """
    runs, width = Runs(*run), mask.words.shape[1]
    read = lambda word: mask.words.ravel()[_kept(mask, word)]  # noqa: E731
    column = runs.word % width
    z, y = (runs.word // width) // shape[1], (runs.word // width) % shape[1]
    bit = runs.start.astype(jnp.uint32)
    carries = (column > 0) & (read(jnp.maximum(runs.word - 1, 0)) >> 31 == 1)

    def touch(dz, dy, diagonal):
        inside = runs.valid & (z + dz >= 0) & (z + dz < shape[0]) & (y + dy >= 0) & (y + dy < shape[1])
        other = jnp.where(inside, runs.word + (dz * shape[1] + dy) * width, 0)
        ones = read(other)
        if diagonal:
            carried = jnp.where(column > 0, read(jnp.maximum(other - 1, 0)) >> 31, jnp.uint32(0))
            ones = ones | (ones << 1) | carried
        return inside & ((ones >> bit) & 1 == 1), other

    faces = [touch(0, -1, connectivity in (8, 18, 26)), touch(0, 1, connectivity in (8, 18, 26))]
    if connectivity in (6, 18, 26):
        faces += [touch(-1, 0, connectivity != 6), touch(1, 0, connectivity != 6)]
    if connectivity in (18, 26):
        faces = _add_corners(faces, touch, connectivity == 26)
    edges = tuple(jnp.where(hit, rank(at, runs.start), node) for hit, at in faces)
    return jnp.where(runs.valid & (runs.start == 0) & carries, node - 1, node), edges


def _add_corners(faces, touch, diagonal):
    """Edges to rows across a corner. One is needed only where both rows that share a face with it miss: it takes a free slot."""
    missed = [~hit for hit, _ in faces]
    for dz, dy, slot, other in ((-1, -1, 2, 0), (-1, 1, 1, 2), (1, 1, 3, 1), (1, -1, 0, 3)):
        hit, at = touch(dz, dy, diagonal)
        use = hit & missed[slot] & missed[other]
        faces[slot] = (faces[slot][0] | use, jnp.where(use, at, faces[slot][1]))
    return faces


def paint(values, runs, mask, *, shape):
    """A volume [z, y, x] with `values` [capacity] on the voxels of each run and 0 elsewhere; the dtype of `values`."""
    words = shape[0] * shape[1] * mask.words.shape[1]
    if values.shape[0] < words:
        on = (bits(runs)[:, None] >> jnp.arange(WORD, dtype=jnp.uint32)) & 1 == 1
        rows = jnp.zeros((words, WORD), values.dtype)
        rows = rows.at[runs.word].add(jnp.where(on, values[:, None], 0), mode="promise_in_bounds")
    else:
        node = _before(mask)[:, None] + popcount(_starts(mask).reshape(-1, 1) & up_to(jnp.arange(WORD))) - 1
        on = unpack(mask.words.reshape(-1, 1), WORD)
        rows = jnp.where(on, values[jnp.clip(node, 0, values.shape[0] - 1)], 0)
    return rows.reshape(shape[0], shape[1], -1)[:, :, : shape[2]]

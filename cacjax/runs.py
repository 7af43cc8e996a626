"""Runs of ones in a 3D mask and the union-find that joins them: the engine under `lesions` and `scores`.

A mask [z, y, x] is packed into 32-bit words; a node is a maximal run of ones inside one word, numbered in raster order, so the
smallest node of a component holds its first voxel and dense labels come out in the order of `scipy.ndimage.label`.
Everything after packing costs what the runs cost. Their number is known only on the device, so each program carries one branch
per capacity (`BUCKETS`, and one that holds any mask of the shape) and `lax.switch` takes the smallest that fits: nothing is lost
and nothing returns to the host. Work on more than `CHUNK` runs goes chunk by chunk, so that a branch for many runs, whose memory
is set aside even where it is not taken, stays near 100 bytes a run. Counts are int32: at most 2^31 - 1 voxels.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BUCKETS = (1 << 12, 1 << 16, 1 << 20, 1 << 22)
CONNECTIVITY = (4, 8, 6, 18, 26)
CHUNK = 1 << 20
WORD = 32
_BLOCK = 256


class Mask(NamedTuple):
    """A packed mask: `words` and `starts` (first bits of runs) uint32 [z*y, words], runs `before` each word, their number `n`."""

    words: jax.Array
    starts: jax.Array
    before: jax.Array
    n: jax.Array


class Runs(NamedTuple):
    """Runs in raster order, [capacity] each: flat index of the word, first and last bit in it, and whether the slot is in use."""

    word: jax.Array
    start: jax.Array
    stop: jax.Array
    valid: jax.Array


def pack(mask):
    """Bool [..., x] to uint32 [..., ceil(x / 32)]; bit i of word j is voxel 32 j + i, padding is 0."""
    pad = -mask.shape[-1] % WORD
    if pad:
        mask = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, pad)])
    bits = mask.reshape(*mask.shape[:-1], -1, WORD).astype(jnp.uint32)
    return (bits << jnp.arange(WORD, dtype=jnp.uint32)).sum(-1, dtype=jnp.uint32)


def unpack(words, width):
    """uint32 [..., words] to bool [..., width]."""
    bits = (words[..., None] >> jnp.arange(WORD, dtype=jnp.uint32)) & 1
    return bits.reshape(*words.shape[:-1], -1)[..., :width] == 1


def by_words(volume):
    """A volume [z, y, x] as [words, 32]: the voxels of each word of its packed mask (padding 0)."""
    pad = -volume.shape[-1] % WORD
    return jnp.pad(volume, ((0, 0), (0, 0), (0, pad))).reshape(-1, WORD)


def popcount(words):
    """Number of ones in each word, int32."""
    return lax.population_count(words).astype(jnp.int32)


def find(mask, breaks=None):
    """The packed runs of a bool mask [z, y, x]; where `breaks` (same shape) is true a new run begins even inside a row of ones."""
    if mask.size >= 1 << 31:
        raise ValueError(f"mask must have fewer than 2^31 voxels, got {mask.shape}")
    width = -(-mask.shape[-1] // WORD)
    return index(pack(mask).reshape(-1, width), None if breaks is None else pack(breaks).reshape(-1, width))


def index(words, breaks=None):
    """`find` on packed words [rows, words] and breaks of the same shape."""
    words = lax.optimization_barrier(words)
    starts = words & ~(words << 1)
    if breaks is not None:
        starts = starts | (words & breaks)
    counts = popcount(starts)
    within = _dot_counts(counts, np.triu(np.ones((counts.shape[1],) * 2, np.float32), 1))
    total = counts.sum(1, dtype=jnp.int32)
    ends = running_sum(total)
    return Mask(words, starts, *lax.optimization_barrier((within + (ends - total)[:, None], ends[-1])))


def running_sum(counts):
    """Inclusive sum of small counts [n], int32. Blocks go through a triangular matrix: a cumsum is slow on CPU."""
    n = counts.shape[0]
    if n < 4 * _BLOCK:
        return jnp.cumsum(counts, dtype=jnp.int32)
    blocks = jnp.pad(counts, (0, -n % _BLOCK)).reshape(-1, _BLOCK)
    sums = _dot_counts(blocks, np.triu(np.ones((_BLOCK, _BLOCK), np.float32)))
    carry = jnp.cumsum(sums[:, -1], dtype=jnp.int32) - sums[:, -1]
    return (sums + carry[:, None]).ravel()[:n]


def _dot_counts(counts, matrix):
    # Exact: every partial sum is an integer below 2^24.
    return jnp.dot(counts.astype(jnp.float32), matrix, precision=lax.Precision.HIGHEST).astype(jnp.int32)


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


def in_chunks(work, *arrays):
    """`work(*arrays)` on arrays [capacity, ..], a chunk at a time; a tree of arrays [capacity, ..]."""
    if arrays[0].shape[0] <= CHUNK:
        return work(*arrays)
    split = tuple(a.reshape(-1, CHUNK, *a.shape[1:]) for a in arrays)
    joined = lax.map(lambda parts: work(*parts), split)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), joined)


def fold_chunks(step, carry, *arrays):
    """`carry = step(carry, *arrays)` over arrays [capacity, ..], a chunk at a time."""
    if arrays[0].shape[0] <= CHUNK:
        return step(carry, *arrays)
    split = tuple(a.reshape(-1, CHUNK, *a.shape[1:]) for a in arrays)
    return lax.scan(lambda state, parts: (step(state, *parts), None), carry, split)[0]


def _compact(mask, capacity):
    """The first `capacity` runs: row from a scatter of row numbers, word by bisection in the row, bits by popcounts in the word."""
    rows = mask.words.shape[0]
    heads = mask.before[:, 0]
    filled = jnp.append(heads[1:], mask.n) > heads
    marks = jnp.zeros((capacity,), jnp.int32)
    marks = marks.at[jnp.where(filled, heads, capacity)].max(jnp.arange(rows, dtype=jnp.int32), mode="drop")
    found = in_chunks(functools.partial(_locate, mask), jnp.arange(capacity, dtype=jnp.int32), lax.cummax(marks))
    return Runs(*lax.optimization_barrier(found))


def _locate(mask, node, row):
    valid, width = node < mask.n, mask.words.shape[1]
    before = mask.before.ravel()
    word = row * width
    for step in (1 << np.arange((width - 1).bit_length()))[::-1].tolist():
        ahead = jnp.minimum(word + step, row * width + width - 1)
        word = jnp.where(before[ahead] <= node, ahead, word)
    rank = jnp.where(valid, node - before[word], 0)
    starts = mask.starts.ravel()[word]
    ones = mask.words.ravel()[word]
    stops = ones & ~((ones & ~starts) >> 1)
    return jnp.where(valid, word, 0), _select(starts, rank), _select(stops, rank), valid


def _select(words, rank):
    """Position of set bit number `rank` (from 0) of each word, by bisection on popcounts."""
    position = jnp.zeros_like(rank)
    for step in (16, 8, 4, 2, 1):
        below = popcount((words >> position.astype(jnp.uint32)) & jnp.uint32((1 << step) - 1))
        beyond = rank >= below
        rank = jnp.where(beyond, rank - below, rank)
        position = jnp.where(beyond, position + step, position)
    return position


def place(runs, shape):
    """(z, y, x) of the first voxel of each run in a volume of this shape, int32 [capacity]."""
    width = -(-shape[2] // WORD)
    row = runs.word // width
    return row // shape[1], row % shape[1], (runs.word % width) * WORD + runs.start


def bits(runs):
    """The ones of each run inside its word, uint32; 0 where the slot is not in use."""
    upto = (jnp.uint32(2) << runs.stop.astype(jnp.uint32)) - 1
    ones = upto & ~((jnp.uint32(1) << runs.start.astype(jnp.uint32)) - 1)
    return jnp.where(runs.valid, ones, jnp.uint32(0))


def components(runs, mask, shape, *, connectivity):
    """Dense component numbers from 1 in raster order, int32 [capacity] (0 where not in use), and how many there are."""
    if connectivity not in CONNECTIVITY:
        raise ValueError(f"connectivity must be one of {CONNECTIVITY}, got {connectivity!r}")
    link = functools.partial(_link, mask, shape, connectivity)
    parent, edges = lax.optimization_barrier(in_chunks(link, jnp.arange(runs.word.shape[0], dtype=jnp.int32), *runs))
    parent = lax.platform_dependent(parent, edges, mask.n, cpu=_unite_serial, default=_unite_parallel)
    roots = (parent == jnp.arange(parent.shape[0], dtype=jnp.int32)) & runs.valid
    rank = running_sum(roots.astype(jnp.int32))
    return jnp.where(runs.valid, rank[parent], 0), rank[-1]


def _link(mask, shape, connectivity, node, *run):
    """Initial parents (a run that goes on from the word before hangs on it) and at most 4 edges a run, a tuple of int32 [capacity].

    Two runs in neighbouring rows touch exactly when the first voxel of one lies inside the other, the other grown by one voxel
    to the right where diagonals count. So each run asks about its own first voxel only, in the rows around it.
    """
    runs, width = Runs(*run), mask.words.shape[1]
    words, before, starts = mask.words.ravel(), mask.before.ravel(), mask.starts.ravel()
    column = runs.word % width
    z, y = (runs.word // width) // shape[1], (runs.word // width) % shape[1]
    bit = runs.start.astype(jnp.uint32)
    carries = (column > 0) & (words[jnp.maximum(runs.word - 1, 0)] >> 31 == 1)

    def touch(dz, dy, diagonal):
        inside = runs.valid & (z + dz >= 0) & (z + dz < shape[0]) & (y + dy >= 0) & (y + dy < shape[1])
        other = jnp.where(inside, runs.word + (dz * shape[1] + dy) * width, 0)
        ones = words[other]
        if diagonal:
            carried = jnp.where(column > 0, words[jnp.maximum(other - 1, 0)] >> 31, jnp.uint32(0))
            ones = ones | (ones << 1) | carried
        return inside & ((ones >> bit) & 1 == 1), other

    faces = [touch(0, -1, connectivity in (8, 18, 26)), touch(0, 1, connectivity in (8, 18, 26))]
    if connectivity in (6, 18, 26):
        faces += [touch(-1, 0, connectivity != 6), touch(1, 0, connectivity != 6)]
    if connectivity in (18, 26):
        faces = _add_corners(faces, touch, connectivity == 26)
    upto = (jnp.uint32(2) << bit) - 1
    edges = tuple(jnp.where(hit, before[at] + popcount(starts[at] & upto) - 1, node) for hit, at in faces)
    return jnp.where(runs.valid & (runs.start == 0) & carries, node - 1, node), edges


def _add_corners(faces, touch, diagonal):
    """Edges to rows across a corner. One is needed only where both rows that share a face with it miss: it takes a free slot."""
    missed = [~hit for hit, _ in faces]
    for dz, dy, slot, other in ((-1, -1, 2, 0), (-1, 1, 1, 2), (1, 1, 3, 1), (1, -1, 0, 3)):
        hit, at = touch(dz, dy, diagonal)
        use = hit & missed[slot] & missed[other]
        faces[slot] = (faces[slot][0] | use, jnp.where(use, at, faces[slot][1]))
    return faces


def _unite_serial(parent, edges, n):
    """Union by following parents, the larger root under the smaller; one thread, tight scalar loops (CPU)."""

    def root(parent, node):
        return lax.while_loop(lambda i: parent[i] != i, lambda i: parent[i], node)

    def join(node, parent):
        for slot in edges:
            other = slot[node]
            a, b = root(parent, node), root(parent, other)
            low = jnp.minimum(a, b)
            parent = parent.at[jnp.maximum(a, b)].set(low).at[node].set(low).at[other].set(low)
        return parent

    parent = lax.fori_loop(0, n, join, parent)
    # Parents are smaller than children, so one ascending pass makes every node point at its root.
    return lax.fori_loop(0, n, lambda i, f: f.at[i].set(f[f[i]]), parent)


def _unite_parallel(parent, edges, n):
    """Hook all edges at once by scatter-min, shorten all paths by pointer jumps, until nothing changes (GPU, TPU)."""
    del n

    def sweep(state):
        parent, _ = state
        new, apart = parent, jnp.array(False)
        for slot in edges:
            across = parent[slot]
            apart |= jnp.any(parent != across)
            new = new.at[jnp.maximum(parent, across)].min(jnp.minimum(parent, across), mode="promise_in_bounds")
        for _ in range(3):
            new = new[new]
        return new, apart | jnp.any(new != parent)

    return lax.while_loop(lambda state: state[1], sweep, (parent, jnp.array(True)))[0]


def paint(values, runs, mask, *, shape):
    """A volume [z, y, x] with `values` [capacity] on the voxels of each run and 0 elsewhere; the dtype of `values`."""
    words = mask.words.size
    if values.shape[0] < words:
        on = (bits(runs)[:, None] >> jnp.arange(WORD, dtype=jnp.uint32)) & 1 == 1
        rows = jnp.zeros((words, WORD), values.dtype)
        rows = rows.at[runs.word].add(jnp.where(on, values[:, None], 0), mode="promise_in_bounds")
    else:
        upto = (jnp.uint32(2) << jnp.arange(WORD, dtype=jnp.uint32)) - 1
        node = mask.before.reshape(-1, 1) + popcount(mask.starts.reshape(-1, 1) & upto) - 1
        on = unpack(mask.words.reshape(-1, 1), WORD)
        rows = jnp.where(on, values[jnp.clip(node, 0, values.shape[0] - 1)], 0)
    return rows.reshape(shape[0], shape[1], -1)[:, :, : shape[2]]

"""Plane networks on whole scans: the intensities they see, and detection of the voxels that are asked for.

The class of a voxel depends only on the planes through it, and a plane can be computed on any rectangle, reading its neighbours
as halo. So every plane is computed on the smallest rectangle around its wanted voxels (rounded up to one of a few sizes, each
compiled once for all orientations), and only the feature vectors of wanted voxels are kept. Everything has static shapes: the
same code runs inside a larger compiled program, or step by step under a progress bar.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from cacjax import runs
from cacjax.models.dilated import margin
from cacjax.task import Prediction

AIR_HU = -1000.0
FEATURE_BYTES = 2**29  # bound on the feature vectors of one chunk of wanted voxels
BLOCK = 4096  # voxels classified at once
PLANES_AT_ONCE = {"cpu": 1}  # on CPU one plane at a time stays in the cache; 16 elsewhere
LEAST_SIDE, GROWTH = 32, 1.5  # of the sizes of rectangles: cost goes up by at most this factor per side; each is compiled
STEP = 32  # rectangles between two looks at the progress bar
NONE = -1


class Wanted(NamedTuple):
    """Wanted voxels of one chunk, packed as `runs.pack` does: `words` uint32 [z, y, words] and, per word, the rank of its first one
    (how many stand `before` it); all ranks are below `n`."""

    words: jax.Array
    before: jax.Array
    n: jax.Array


class Work(NamedTuple):
    """Rectangles to compute, in order of size and kind, [planes of all orientations]: `position` of the plane, `row` and `column`
    where the rectangle begins (in the turned plane where it is turned). `bounds` [sizes * KINDS + 1]: where each size and kind
    begins, and where the last one ends."""

    position: jax.Array
    row: jax.Array
    column: jax.Array
    bounds: jax.Array


KINDS = 6  # axial, coronal, sagittal, and the same turned (rows for columns) where they are higher than wide


def normalise(hu):
    """Network intensities (clip(HU, -1000, 3000) - 130) / 1130 in float32 (Zhai 2022's code)."""
    return (jnp.clip(hu.astype(jnp.float32), -1000.0, 3000.0) - 130.0) / 1130.0


def predict(model, params, hu, wanted=None, *, slab: int = 1) -> Prediction:
    """Classify the wanted voxels of a scan; background elsewhere.

    model: a `Dilated` network; hu: [z, y, x] Hounsfield units on its grid; wanted: bool [z, y, x], None for all voxels. Traced
    arrays make it a part of the caller's program; with others it runs in steps and shows its progress after some seconds.
    """
    hu = jnp.asarray(hu)
    wanted = jnp.ones(hu.shape, bool) if wanted is None else jnp.asarray(wanted, bool)
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((params, hu, wanted)))
    return Prediction(*(_compute if traced else _compute_in_steps)(model, slab, params, hu, wanted), hu)


def _compute(model, slab, params, hu, wanted):
    def one(number, found):
        chunk = _chunk(packed, number, capacity)
        work = _survey(model, chunk, hu.shape)
        rows = _look(model, slab, params, hu, chunk, work, 0, work.bounds[-1], _no_rows(model, capacity))
        return _classify(model, params, rows, chunk, found)

    capacity = _capacity(model, hu.shape)
    packed = _pack(wanted)
    return lax.fori_loop(0, _count_chunks(packed.n, capacity), one, _nothing(hu.shape))


def _compute_in_steps(model, slab, params, hu, wanted):
    """`_compute` as a loop on the host."""
    capacity = _capacity(model, hu.shape)
    packed = _pack(wanted)
    found = _nothing(hu.shape)
    for number in range(int(_count_chunks(packed.n, capacity))):
        chunk = _chunk(packed, number, capacity)
        work = _survey(model, chunk, hu.shape)
        rows, total = _no_rows(model, capacity), int(work.bounds[-1])
        with tqdm(total=total, unit="plane", desc="detect", disable=None, delay=5, leave=False) as progress:
            for first in range(0, total, STEP):
                last = min(first + STEP, total)
                rows = jax.block_until_ready(_look(model, slab, params, hu, chunk, work, first, last, rows))
                progress.update(last - first)
        found = _classify(model, params, rows, chunk, found)
    return found


def _nothing(shape):
    return jnp.zeros(shape, jnp.uint8), jnp.zeros(shape, jnp.float32)


def _no_rows(model, capacity):
    return jnp.zeros((model.planes * capacity, model.width), jnp.float32)


def _capacity(model, shape):
    """Voxels of a chunk: a whole number of blocks."""
    allowed = FEATURE_BYTES // (4 * model.planes * model.width)
    return -(-min(allowed, int(np.prod(shape))) // BLOCK) * BLOCK


@jax.jit
def _pack(wanted):
    words = runs.pack(wanted)
    counts = runs.popcount(words)
    ends = jnp.cumsum(counts.ravel(), dtype=jnp.int32)
    return Wanted(words, ends.reshape(words.shape) - counts, ends[-1])


def _count_chunks(n, capacity):
    return -(-n // (capacity - runs.WORD))


@functools.partial(jax.jit, static_argnums=2)
def _chunk(packed, number, capacity):
    """The words of which the first wanted voxel falls into chunk `number`; what a word has beyond fits into the capacity."""
    start = number * (capacity - runs.WORD)
    inside = (packed.before >= start) & (packed.before < start + capacity - runs.WORD)
    words, before = jnp.where(inside, packed.words, 0), packed.before - start
    # The words before may have taken the first ranks.
    return Wanted(words, before, jnp.where(inside, before + runs.popcount(words), 0).max())


def sizes(shape):
    """Sides (height <= width) that rectangles in planes of a volume of this shape are rounded up to, by ascending cost."""
    halo, longest = 98, max(shape)  # what the layers of the published network read around a rectangle, on average
    least = min(LEAST_SIDE, longest)
    steps = max(1, int(np.ceil(np.log((longest + halo) / (least + halo)) / np.log(GROWTH))))
    even = (least + halo) * ((longest + halo) / (least + halo)) ** (np.arange(1, steps + 1) / steps) - halo
    ladder = sorted({least, *(min(longest, -(-int(side) // 8) * 8) for side in even)} | {longest})
    # Very long ones are rare and take the size of less long ones.
    pairs = [(a, b) for j, b in enumerate(ladder) for a in ladder[max(0, j - 2) : j + 1]]
    return sorted(pairs, key=lambda side: (side[0] + halo) * (side[1] + halo))


@functools.partial(jax.jit, static_argnums=(0, 2))
def _survey(model, chunk, shape):
    """The `Work` that a chunk of a volume makes."""
    zy = (chunk.words != 0).any(2)
    zx, yx = (runs.unpack(lax.reduce(chunk.words, np.uint32(0), lax.bitwise_or, (dim,)), shape[2]) for dim in (1, 0))
    sides = np.array(sizes(shape))
    fields = []
    for orientation, (rows, columns) in enumerate([(zy, zx), (zy.T, yx), (zx.T, yx.T)][: model.planes]):
        (row, height), (column, width) = _span(rows), _span(columns)
        turned = height > width
        low, high = jnp.minimum(height, width), jnp.maximum(height, width)
        size = ((low[:, None] <= sides[:, 0]) & (high[:, None] <= sides[:, 1])).argmax(1)
        kind = jnp.where(height > 0, size * KINDS + turned * 3 + orientation, len(sides) * KINDS)
        start = jnp.where(turned, column, row), jnp.where(turned, row, column)
        fields.append((kind, jnp.arange(len(row)), *start))
    kind, *places = (jnp.concatenate(field).astype(jnp.int32) for field in zip(*fields))
    order = jnp.argsort(kind)
    bounds = jnp.searchsorted(kind[order], jnp.arange(len(sides) * KINDS + 1)).astype(jnp.int32)
    return Work(*(place[order] for place in places), bounds)


def _span(hits):
    """First hit and distance to the end of the last one in each row of bools [n, m]; 0 and 0 where there is none."""
    first, beyond = hits.argmax(1), hits.shape[1] - hits[:, ::-1].argmax(1)
    return first, jnp.where(hits.any(1), beyond - first, 0)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=8)
def _look(model, slab, params, hu, chunk, work, first, last, rows):
    """Feature vectors of rectangles first..last - 1, written to the `rows` [orientations * capacity, width] of wanted voxels."""
    weights = _weights(model, params)
    at_once = PLANES_AT_ONCE.get(jax.default_backend(), 16)
    capacity = rows.shape[0] // model.planes
    outer = jnp.pad(hu, slab // 2, constant_values=AIR_HU)

    def one_kind(number, rows, size):
        start, stop = (jnp.clip(bound, first, last) for bound in (work.bounds[number], work.bounds[number + 1]))
        kind = number % KINDS
        own = {"params": {"subnets_0": jax.tree.map(lambda leaf: leaf[kind], weights)}}

        def some(i, rows):
            item = jnp.minimum(start + i * at_once + jnp.arange(at_once), stop - 1)
            cut = functools.partial(_cut, outer, chunk, kind, size, margin(model.dilations), slab)
            planes, rank = jax.vmap(cut)(work.position[item], work.row[item], work.column[item])
            features = model.apply(own, normalise(planes), 0, method="plane")
            row = jnp.where(rank == NONE, rows.shape[0], kind % 3 * capacity + rank)
            return rows.at[row.ravel()].set(features.reshape(-1, features.shape[-1]), mode="drop")

        return lax.fori_loop(0, -(-(stop - start) // at_once), some, rows)

    # A loop per size: inside a conditional the rows would be copied for every rectangle.
    for index, size in enumerate(sizes(hu.shape)):
        rows = lax.fori_loop(index * KINDS, (index + 1) * KINDS, functools.partial(one_kind, size=size), rows)
    return rows


def _weights(model, params):
    """Parameters of the subnets by kind, stacked: turned planes take turned kernels."""
    straight = [params["params"][f"subnets_{index}"] for index in range(model.planes)]
    straight += straight[:1] * (3 - model.planes)
    turned = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1) if leaf.ndim == 4 else leaf, straight)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *straight, *turned)


def _cut(outer, chunk, kind, size, m, slab, position, row, column):
    """(HU [h + 2m, w + 2m, slab], rank of each pixel [h, w] among the chunk's voxels or NONE) of one rectangle.

    outer: the volume with slab // 2 voxels of air around it.
    """
    half = slab // 2
    longest = max(outer.shape) - 2 * half
    height, width = size

    def of(orientation):
        plane = jnp.moveaxis(lax.dynamic_slice_in_dim(outer, position, slab, orientation), orientation, -1)
        plane = plane[half : plane.shape[0] - half, half : plane.shape[1] - half]
        rank = _rank(chunk, position, orientation)[: plane.shape[0], : plane.shape[1]]
        more = [longest - n for n in rank.shape]
        plane = jnp.pad(plane, [(m, m + more[0]), (m, m + more[1]), (0, 0)], constant_values=AIR_HU)
        return plane, jnp.pad(rank, [(0, more[0]), (0, more[1])], constant_values=NONE)

    plane, rank = lax.switch(kind % 3, [functools.partial(of, orientation) for orientation in range(3)])
    plane, rank = jnp.where(kind < 3, plane, plane.swapaxes(0, 1)), jnp.where(kind < 3, rank, rank.T)
    plane = lax.dynamic_slice(plane, (row, column, 0), (height + 2 * m, width + 2 * m, slab))
    return plane, lax.dynamic_slice(rank, (row, column), (height, width))


def _rank(chunk, position, orientation):
    """Ranks of the voxels of one plane, [rows, columns], NONE where not wanted; columns of x are whole words."""
    if orientation < 2:
        words, before = (lax.dynamic_index_in_dim(a, position, orientation, keepdims=False) for a in (chunk.words, chunk.before))
        return _ranks(words, before)
    words, before = (lax.dynamic_index_in_dim(a, position // runs.WORD, 2, keepdims=False) for a in (chunk.words, chunk.before))
    bit = (position % runs.WORD).astype(jnp.uint32)
    below = (jnp.uint32(1) << bit) - 1
    return jnp.where((words >> bit) & 1 == 1, before + runs.popcount(words & below), NONE)


def _ranks(words, before):
    """Ranks [.., words * 32] of the voxels of packed words."""
    below = (jnp.uint32(1) << jnp.arange(runs.WORD, dtype=jnp.uint32)) - 1
    rank = before[..., None] + runs.popcount(words[..., None] & below)
    return jnp.where(words[..., None] & (below + 1) != 0, rank, NONE).reshape(*words.shape[:-1], -1)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=4)
def _classify(model, params, rows, chunk, found):
    """Labels and P(CAC) with those of a chunk added."""
    capacity = rows.shape[0] // model.planes
    rows = rows.reshape(model.planes, capacity, model.width)

    def block(i, out):
        features = lax.dynamic_slice_in_dim(rows, i * BLOCK, BLOCK, 1).swapaxes(0, 1).reshape(1, 1, BLOCK, -1)
        probability = jax.nn.softmax(model.apply(params, features, method="classify")[0, 0])
        values = probability.argmax(-1).astype(jnp.uint8), probability[:, 1:4].sum(-1)
        return tuple(lax.dynamic_update_slice_in_dim(a, v, i * BLOCK, 0) for a, v in zip(out, values))

    none = jnp.zeros(capacity, jnp.uint8), jnp.zeros(capacity, jnp.float32)
    values = lax.fori_loop(0, -(-chunk.n // BLOCK), block, none)
    rank = _ranks(chunk.words, chunk.before)[..., : found[0].shape[2]]
    return tuple(jnp.where(rank == NONE, old, value[rank]) for old, value in zip(found, values))

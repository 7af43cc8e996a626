"""Where planes are computed: wanted voxels packed into words, and rectangles around those of each plane, by size and form.

A form is how a rectangle is computed, each compiled once: its size is rounded up to one of a few, and either all layers of the network
cover it or, where few of its pixels are wanted, only the first layers do. Planes higher than wide are turned. Everything has static
shapes.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cacjax.classes import AIR_HU
from cacjax.kernels import runs
from cacjax.models.dilated import doubling, margin, middle_pixels

LEAST_SIDE, GROWTH = 32, 1.5  # of the sizes of rectangles: cost goes up by at most this factor per side; each is compiled
SINGLE_COST = {"cpu": 1.8}  # of a pixel computed for one voxel against one of a rectangle; where it was not measured: rectangles only
NONE = -1


class Wanted(NamedTuple):
    """Wanted voxels of one chunk, packed as `runs.pack` does: `words` uint32 [z, y, words] and, per word, the rank of its first one
    (how many stand `before` it); all ranks are below `n`."""

    words: jax.Array
    before: jax.Array
    n: jax.Array


class Work(NamedTuple):
    """Rectangles to compute, in order of form and kind, [planes of all orientations]: `position` of the plane, `row` and `column`
    where the rectangle begins (in the turned plane where it is turned). `bounds` [forms * KINDS + 1]: where each form and kind
    begins, and where the last one ends."""

    position: jax.Array
    row: jax.Array
    column: jax.Array
    bounds: jax.Array


class Form(NamedTuple):
    """How a rectangle is computed: its size, and for how many voxels one by one behind the first layers; 0: all of it in all layers."""

    height: int
    width: int
    most: int


KINDS = 6  # axial, coronal, sagittal, and the same turned (rows for columns) where they are higher than wide


@jax.jit
def pack(wanted) -> Wanted:
    """All wanted voxels, bool [z, y, x], as one chunk."""
    words = runs.pack(wanted)
    counts = runs.popcount(words)
    ends = jnp.cumsum(counts.ravel(), dtype=jnp.int32)
    return Wanted(words, ends.reshape(words.shape) - counts, ends[-1])


def count_chunks(n, capacity):
    """Chunks of at most `capacity` voxels that n voxels make."""
    return -(-n // (capacity - runs.WORD))


@functools.partial(jax.jit, static_argnums=2)
def chunk_of(packed, number, capacity) -> Wanted:
    """The words of which the first wanted voxel falls into chunk `number`; what a word has beyond fits into the capacity."""
    start = number * (capacity - runs.WORD)
    inside = (packed.before >= start) & (packed.before < start + capacity - runs.WORD)
    words, before = jnp.where(inside, packed.words, 0), packed.before - start
    # The words before may have taken the first ranks.
    return Wanted(words, before, jnp.where(inside, before + runs.popcount(words), 0).max())


def sizes(longest):
    """Sides (height <= width) that rectangles of up to `longest` pixels are rounded up to, by ascending cost."""
    halo = 98  # what the layers of the published network read around a rectangle, on average
    least = min(LEAST_SIDE, longest)
    steps = max(1, int(np.ceil(np.log((longest + halo) / (least + halo)) / np.log(GROWTH))))
    even = (least + halo) * ((longest + halo) / (least + halo)) ** (np.arange(1, steps + 1) / steps) - halo
    ladder = sorted({least, *(min(longest, -(-int(side) // 8) * 8) for side in even)} | {longest})
    # Long ones are rare and take the size of less long ones.
    pairs = [(a, b) for j, b in enumerate(ladder) for a in ladder[max(0, j - 1) : j + 1]]
    return sorted(pairs, key=lambda side: (side[0] + halo) * (side[1] + halo))


def forms(model, longest) -> list[Form]:
    """How rectangles of up to `longest` pixels are computed: squares for few voxels, whose first layers cost little, then all sizes for
    many."""
    wholes = [Form(*side, 0) for side in sizes(longest)]
    start, single = doubling(model.dilations), _single(model)
    if start == len(model.dilations) or single is None:
        return wholes
    squares = (form for form in wholes if form.height == form.width)
    return [form._replace(most=max(1, int(_layers(model, form)[start:].sum() / single))) for form in squares] + wholes


def _single(model):
    """What a voxel costs one by one, in pixels of a layer, behind the first layers; None where it was not measured."""
    cost = SINGLE_COST.get(jax.default_backend())
    return cost and cost * middle_pixels(model.dilations)


def _layers(model, form):
    """Pixels that each layer computes for all of a rectangle."""
    halos = 2 * (margin(model.dilations) - np.cumsum(model.dilations))
    return (form.height + halos) * (form.width + halos)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def survey(model, chunk, shape, longest) -> Work:
    """The rectangles around what is wanted of a volume of this shape, none of which has a side of more than `longest`."""
    zy = (chunk.words != 0).any(2)
    zx, yx = (runs.unpack(lax.reduce(chunk.words, np.uint32(0), lax.bitwise_or, (dim,)), shape[2]) for dim in (1, 0))
    of_words = runs.popcount(chunk.words)
    voxels = of_words.sum((1, 2)), of_words.sum((0, 2)), runs.unpack(chunk.words, shape[2]).sum((0, 1))
    all_forms = forms(model, longest)
    fields = []
    for orientation, (rows, columns) in enumerate([(zy, zx), (zy.T, yx), (zx.T, yx.T)][: model.planes]):
        (row, height), (column, width) = _span(rows), _span(columns)
        turned = height > width
        form = _cheapest(model, all_forms, jnp.minimum(height, width), jnp.maximum(height, width), voxels[orientation])
        kind = jnp.where(height > 0, form * KINDS + turned * 3 + orientation, len(all_forms) * KINDS)
        start = jnp.where(turned, column, row), jnp.where(turned, row, column)
        fields.append((kind, jnp.arange(len(row)), *start))
    kind, *places = (jnp.concatenate(field).astype(jnp.int32) for field in zip(*fields))
    order = jnp.argsort(kind)
    bounds = jnp.searchsorted(kind[order], jnp.arange(len(all_forms) * KINDS + 1)).astype(jnp.int32)
    return Work(*(place[order] for place in places), bounds)


def _cheapest(model, all_forms, low, high, voxels):
    """Index of the form in which each rectangle (shorter and longer side, wanted voxels) costs least."""
    start, single = doubling(model.dilations), _single(model)
    heights, widths, most = np.array(all_forms).T
    pixels = np.array([(_layers(model, form)[:start] if form.most else _layers(model, form)).sum() for form in all_forms], np.float32)
    cost = pixels + (most > 0) * np.float32(single or 0) * voxels[:, None]
    fits = (low[:, None] <= heights) & (high[:, None] <= widths) & ((most == 0) | (voxels[:, None] <= most))
    return jnp.where(fits, cost, np.inf).argmin(1)


def _span(hits):
    """First hit and distance to the end of the last one in each row of bools [n, m]; 0 and 0 where there is none."""
    first, beyond = hits.argmax(1), hits.shape[1] - hits[:, ::-1].argmax(1)
    return first, jnp.where(hits.any(1), beyond - first, 0)


def cut(outer, chunk, kind, size, m, slab, planes, position, row, column):
    """(HU [h + 2m, w + 2m, slab], rank of each pixel [h, w] among the chunk's voxels or NONE) of one rectangle.

    outer: the volume with slab // 2 voxels of air around it. planes: how many orientations there are.
    """
    half = slab // 2
    longest = max(outer.shape) - 2 * half
    height, width = size

    def of(orientation):
        plane = jnp.moveaxis(lax.dynamic_slice_in_dim(outer, position, slab, orientation), orientation, -1)
        plane = plane[half : plane.shape[0] - half, half : plane.shape[1] - half]
        rank = rank_in_plane(chunk, position, orientation)[: plane.shape[0], : plane.shape[1]]
        more = [longest - n for n in rank.shape]
        plane = jnp.pad(plane, [(m, m + more[0]), (m, m + more[1]), (0, 0)], constant_values=AIR_HU)
        return plane, jnp.pad(rank, [(0, more[0]), (0, more[1])], constant_values=NONE)

    plane, rank = lax.switch(kind % 3, [functools.partial(of, orientation) for orientation in range(planes)])
    plane, rank = jnp.where(kind < 3, plane, plane.swapaxes(0, 1)), jnp.where(kind < 3, rank, rank.T)
    plane = lax.dynamic_slice(plane, (row, column, 0), (height + 2 * m, width + 2 * m, slab))
    return plane, lax.dynamic_slice(rank, (row, column), (height, width))


def rank_in_plane(chunk, position, orientation):
    """Ranks of the voxels of one plane, [rows, columns], NONE where not wanted; columns of x are whole words."""
    if orientation < 2:
        words, before = (lax.dynamic_index_in_dim(a, position, orientation, keepdims=False) for a in (chunk.words, chunk.before))
        return ranks(words, before)
    words, before = (lax.dynamic_index_in_dim(a, position // runs.WORD, 2, keepdims=False) for a in (chunk.words, chunk.before))
    bit = (position % runs.WORD).astype(jnp.uint32)
    below = (jnp.uint32(1) << bit) - 1
    return jnp.where((words >> bit) & 1 == 1, before + runs.popcount(words & below), NONE)


def ranks(words, before):
    """Ranks [.., words * 32] of the voxels of packed words."""
    below = (jnp.uint32(1) << jnp.arange(runs.WORD, dtype=jnp.uint32)) - 1
    rank = before[..., None] + runs.popcount(words[..., None] & below)
    return jnp.where(words[..., None] & (below + 1) != 0, rank, NONE).reshape(*words.shape[:-1], -1)

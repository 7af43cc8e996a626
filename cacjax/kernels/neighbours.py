"""Which runs of a packed mask touch, and the numbers of the components that they make (`runs`, `union`)."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Int32

from cacjax.kernels import union_find
from cacjax.kernels.bits import bisect, popcount, running_sum, take, up_to
from cacjax.kernels.runs import Mask, Runs, in_chunks, is_small, kept, runs_before, split, starts_of
from cacjax.kernels.shapes import Shape

CONNECTIVITY = (4, 8, 6, 18, 26)
# Rows around a run, (z, y): those that share a face with its own, which have a slot each, and one across a corner for each slot. A corner
# needs asking about only where its slot's face and that of the slot `_BESIDE` it, which both share a face with the corner, are missed.
_FACES = ((0, -1), (0, 1), (-1, 0), (1, 0))
_CORNERS = ((1, -1), (-1, 1), (-1, -1), (1, 1))
_BESIDE = (3, 2, 0, 1)


def components(runs: Runs, mask: Mask, shape: Shape, *, connectivity: int) -> tuple[Int32[Array, " capacity"], Int32[Array, ""]]:
    """Dense component numbers from 1 in raster order (0 where not in use), and how many there are."""
    return components_of_each(runs, mask, shape, connectivity)[0]


def components_of_each(runs: Runs, mask: Mask, shape: Shape, *connectivity: int) -> list:
    """`components` by each connectivity, all in one pass over what lies around the runs."""
    for each in connectivity:
        if each not in CONNECTIVITY:
            raise ValueError(f"connectivity must be one of {CONNECTIVITY}, got {each!r}")
    node = jnp.arange(runs.word.shape[0], dtype=jnp.int32)
    link = functools.partial(_link, mask, shape, connectivity, _words(runs, mask), _ranks(runs, mask))
    parent, *edges = in_chunks(link, node, *runs, n=mask.n)
    numbers = (union_find.number(parent, slots, mask.n) for slots in edges)
    return [(lax.select(runs.valid, number, jnp.zeros_like(number)), n) for number, n in numbers]


def only(used: Bool[Array, " capacity"], component: Int32[Array, " capacity"]) -> Int32[Array, " capacity"]:
    """Dense numbers, in the same order, of the components with a run that is `used`; 0 at every other run, of these components, too."""
    some = jnp.zeros_like(component).at[jnp.where(used, component - 1, component.size)].max(1, mode="drop")
    return jnp.where(used, running_sum(some, most=1)[component - 1], 0)


def _ranks(runs, mask):
    """`rank(word, bit)`: the last run that starts at or before that bit of that word, of which there is one."""
    capacity = runs.word.shape[0]
    if is_small(mask, capacity):
        words = jnp.where(runs.valid, runs.word, np.iinfo(np.int32).max)

        def is_before(at, word, bit):
            there = take(words, at)
            return (there < word) | ((there == word) & (take(runs.start, at) <= bit))

        return lambda word, bit: bisect(word, capacity, lambda at: is_before(at, word, bit))
    before = runs_before(mask)

    def rank(word, bit):
        at = kept(mask, word)
        return take(before, at) + popcount(starts_of(mask, at) & up_to(bit)) - 1

    return rank


def _words(runs, mask):
    """`words(at)`: those words of the volume, and the same with the right neighbours of their ones."""
    words, width = mask.words.ravel(), mask.words.shape[1]

    def grow(ones, before):
        return ones | (ones << 1) | (before >> 31)

    def few(at):
        at = kept(mask, at)
        before = lax.select(split(at, width)[1] > 0, take(words, jnp.maximum(at - 1, 0)), jnp.zeros(at.shape, jnp.uint32))
        return take(words, at), grow(take(words, at), before)

    if is_small(mask, runs.word.shape[0]):
        return few
    every = grow(mask.words, jnp.pad(mask.words[:, :-1], ((0, 0), (1, 0)))).ravel()
    return lambda at: (take(words, kept(mask, at)), take(every, kept(mask, at)))


def _link(mask, shape, connectivity, words, rank, node, *run):
    """Initial parents (a run that goes on from the word before hangs on it) and, for each connectivity, at most 4 edges a run: a tuple
    of int32 [capacity].

    Two runs in neighbouring rows touch exactly when the first voxel of one lies inside the other, the other grown by one voxel
    to the right where diagonals count. So each run asks about its own first voxel only.
    """
    runs, width = Runs(*run), mask.words.shape[1]
    z, y = (part.astype(jnp.int32) for part in split(split(runs.word, width)[0], shape[1]))
    dz, dy = np.array(_FACES + _CORNERS, np.int32).T[:, : _rows(max(connectivity, key=_rows)), None]
    step = (dz * shape[1] + dy) * width
    inside = runs.valid & ((z + dz).astype(jnp.uint32) < shape[0]) & ((y + dy).astype(jnp.uint32) < shape[1])
    first = jnp.uint32(1) << runs.start.astype(jnp.uint32)
    straight, grown = (inside & (each & first != 0) for each in words(jnp.where(inside, runs.word + step, 0)))
    hits, steps = zip(*(_slots(each, straight, grown, step) for each in connectivity))
    hits, steps = jnp.concatenate(hits), jnp.concatenate(steps)
    ends = jnp.where(hits, rank(jnp.where(hits, runs.word + steps, 0), jnp.broadcast_to(runs.start, hits.shape)), node)
    carried = runs.valid & (runs.start == 0) & (split(runs.word, width)[1] > 0)
    before = take(mask.words.ravel(), kept(mask, jnp.where(carried, runs.word - 1, 0)))
    bounds = np.cumsum([0, *(min(_rows(each), len(_FACES)) for each in connectivity)])
    edges = (tuple(ends[i] for i in range(*pair)) for pair in itertools.pairwise(bounds))
    return jnp.where(carried & (before >> 31 == 1), node - 1, node), *edges


def _rows(connectivity):
    """How many rows around a run a connectivity asks about: of the faces within the slice, of all faces, or of all."""
    return {4: 2, 8: 2, 6: 4}.get(connectivity, 8)


def _slots(connectivity, straight, grown, step):
    """(whether a run has an edge, words to the row that it leads to), both [slots, n], from which rows [rows, n] a run touches."""
    rows, n = _rows(connectivity), straight.shape[1]
    face = (straight if connectivity in (4, 6) else grown)[: min(rows, 4)]
    step = np.broadcast_to(step[:rows], (rows, n))
    if rows < 8:
        return face, step
    corner = (straight if connectivity == 18 else grown)[4:]
    use = corner & ~face & ~jnp.stack([face[i] for i in _BESIDE])
    return face | use, jnp.where(use, step[4:], step[:4])

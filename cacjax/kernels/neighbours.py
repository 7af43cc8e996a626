"""Which runs of a packed mask touch, and the numbers of the components that they make (`runs`, `union`)."""

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int32, UInt32

from cacjax.kernels import union_find
from cacjax.kernels.bits import bisect, popcount, running_sum, take, up_to
from cacjax.kernels.runs import Mask, Runs, in_chunks, is_small, kept, runs_before, split, starts_of
from cacjax.kernels.shapes import Shape

CONNECTIVITY = (4, 8, 6, 18, 26)
# Rows around a run, (z, y): those that share a face with its own; and those across a corner, with the places of the two of the
# former that both share a face with. A corner needs asking about only where both of these are missed: it takes the place of the first.
_FACES = ((0, -1), (0, 1), (-1, 0), (1, 0))
_CORNERS = ((-1, -1, 2, 0), (-1, 1, 1, 2), (1, 1, 3, 1), (1, -1, 0, 3))


def components(runs: Runs, mask: Mask, shape: Shape, *, connectivity: int) -> tuple[Int32[Array, " capacity"], Int32[Array, ""]]:
    """Dense component numbers from 1 in raster order (0 where not in use), and how many there are."""
    if connectivity not in CONNECTIVITY:
        raise ValueError(f"connectivity must be one of {CONNECTIVITY}, got {connectivity!r}")
    node = jnp.arange(runs.word.shape[0], dtype=jnp.int32)
    touched = in_chunks(functools.partial(_touched, mask, shape, connectivity, _grown(runs, mask)), *runs, n=mask.n)
    link = functools.partial(_link, mask, shape, connectivity, _ranks(runs, mask))
    parent, edges = in_chunks(link, node, touched, *runs, n=mask.n)
    number, n = union_find.number(parent, edges, mask.n)
    return jnp.where(runs.valid, number, 0), n


def only(
    counted: UInt32[Array, "z y words"], component: Int32[Array, " capacity"], runs: Runs
) -> tuple[Int32[Array, " capacity"], Int32[Array, ""]]:
    """Dense numbers, in the same order, of the components with a run in `counted` (whole runs as `bits.pack` has them), and how many there
    are; 0 at every other run, of these components, too."""
    used = runs.valid & ((take(counted.ravel(), runs.word) >> runs.start.astype(jnp.uint32)) & 1 == 1)
    some = jnp.zeros_like(component).at[jnp.where(used, component - 1, component.size)].max(1, mode="drop")
    number = running_sum(some, most=1)
    return jnp.where(used, number[component - 1], 0), number[-1]


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


def _grown(runs, mask):
    """`grown(word)`: the ones of that word of the volume and their right neighbours."""

    def grow(ones, before):
        return ones | (ones << 1) | (before >> 31)

    if is_small(mask, runs.word.shape[0]):
        words, width = mask.words.ravel(), mask.words.shape[1]

        def grown(word):
            at = kept(mask, word)
            return grow(take(words, at), jnp.where(split(at, width)[1] > 0, take(words, jnp.maximum(at - 1, 0)), jnp.uint32(0)))

        return grown
    every = grow(mask.words, jnp.pad(mask.words[:, :-1], ((0, 0), (1, 0)))).ravel()
    return lambda word: take(every, kept(mask, word))


def _rows_around(connectivity):
    """(faces, corners) of a connectivity."""
    return _FACES[:2] if connectivity in (4, 8) else _FACES, _CORNERS if connectivity in (18, 26) else ()


def _touched(mask, shape, connectivity, grown, *run):
    """Which of the rows around it (`_rows_around`, faces first) hold a neighbour of the first voxel of each run: bits, uint32.

    Two runs in neighbouring rows touch exactly when the first voxel of one lies inside the other, the other grown by one voxel
    to the right where diagonals count. So each run asks about its own first voxel only.
    """
    runs, width = Runs(*run), mask.words.shape[1]
    z, y = split(split(runs.word, width)[0], shape[1])
    faces, corners = _rows_around(connectivity)
    touched = jnp.zeros(runs.word.shape, jnp.uint32)
    for i, (dz, dy, *_) in enumerate(faces + corners):
        inside = runs.valid & (True, z < shape[0] - 1, z > 0)[dz] & (True, y < shape[1] - 1, y > 0)[dy]
        at = jnp.where(inside, runs.word + (dz * shape[1] + dy) * width, 0)
        diagonal = connectivity in (8, 26) or (connectivity == 18 and i < len(faces))
        ones = grown(at) if diagonal else take(mask.words.ravel(), kept(mask, at))
        touched |= jnp.where(inside, (ones >> runs.start.astype(jnp.uint32)) & 1, 0) << i
    return touched


def _link(mask, shape, connectivity, rank, node, touched, *run):
    """Initial parents (a run that goes on from the word before hangs on it) and at most 4 edges a run, a tuple of int32 [capacity]."""
    runs, width = Runs(*run), mask.words.shape[1]
    faces, corners = _rows_around(connectivity)
    hits = [(touched >> i) & 1 == 1 for i in range(len(faces + corners))]
    steps = [jnp.full(node.shape, (dz * shape[1] + dy) * width) for dz, dy in faces]
    missed = [~hit for hit in hits[: len(faces)]]
    for hit, (dz, dy, first, second) in zip(hits[len(faces) :], corners):
        use = hit & missed[first] & missed[second]
        hits[first] |= use
        steps[first] = jnp.where(use, (dz * shape[1] + dy) * width, steps[first])
    edges = tuple(jnp.where(hit, rank(jnp.where(hit, runs.word + step, 0), runs.start), node) for hit, step in zip(hits, steps))
    carried = runs.valid & (runs.start == 0) & (split(runs.word, width)[1] > 0)
    before = take(mask.words.ravel(), kept(mask, jnp.where(carried, runs.word - 1, 0)))
    return jnp.where(carried & (before >> 31 == 1), node - 1, node), edges

"""Masks as 32-bit words, and counting on them: what `runs` is made of. Bit i of word j of a row is voxel 32 j + i."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Int32, Integer, Shaped, UInt32

from cacjax.kernels.shapes import Volume

WORD = 32
_BLOCK = 32


def pack(mask: Bool[Array, "*rows x"] | Integer[Array, "*rows x"]) -> UInt32[Array, "*rows (x+31)//32"]:
    """A mask (zeros and ones) as words; bit i of word j is voxel 32 j + i, padding is 0."""
    pad = -mask.shape[-1] % WORD
    if pad:
        mask = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, pad)])
    # Four bytes at once: the product brings their last bits together at bit 24. Three times faster than 32 shifts on CPU.
    fours = lax.bitcast_convert_type(mask.reshape(*mask.shape[:-1], -1, WORD // 4, 4).astype(jnp.uint8), jnp.uint32)
    nibbles = ((fours * jnp.uint32(0x01020408)) >> 24) & 15
    return (nibbles << (4 * jnp.arange(WORD // 4, dtype=jnp.uint32))).sum(-1, dtype=jnp.uint32)


def unpack(words: UInt32[Array, "*rows words"], width: int) -> Bool[Array, "*rows {width}"]:
    """The first `width` voxels of each row of words: `pack` the other way round."""
    bits = (words[..., None] >> jnp.arange(WORD, dtype=jnp.uint32)) & 1
    return bits.reshape(*words.shape[:-1], -1)[..., :width] == 1


def windows(volume: Volume, words: Integer[Array, " n"], ones: UInt32[Array, " n"]) -> tuple[Shaped[Array, "n 32"], UInt32[Array, " n"]]:
    """Voxels of words of the packed mask of a volume: values, and `ones` moved to their places in them.

    words: flat index of each word; ones: its bits. Values at bits that are 0 are of other voxels.
    """
    flat, (rows, offset) = volume.ravel(), jnp.divmod(words, -(-volume.shape[2] // WORD))
    flat = jnp.pad(flat, (0, max(WORD - flat.size, 0)))
    wanted = rows * volume.shape[2] + offset * WORD
    base = jnp.minimum(wanted, flat.size - WORD)
    values = jax.vmap(lambda at: lax.dynamic_slice(flat, (at,), (WORD,)))(base)
    # The gather is to be done once, not in every reduction that reads it; XLA:CPU looks through the barrier (jax 0.10.2).
    return lax.optimization_barrier(values), ones << (wanted - base).astype(jnp.uint32)


def take(values: Shaped[Array, " n"], at: Integer[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """values[at] of a flat array at places known to lie inside: on CPU the usual care for others costs more than the reading."""
    return values.at[at.astype(jnp.uint32)].get(mode="promise_in_bounds")


def popcount(words: UInt32[Array, "*shape"]) -> Int32[Array, "*shape"]:
    """Number of ones in each word."""
    return lax.population_count(words).astype(jnp.int32)


def running_sum(counts: Int32[Array, " n"], *, most: int) -> Int32[Array, " n"]:
    """Inclusive sum of counts of 0..most."""
    return _sum(counts, most, own=True)


def sum_before(counts: Int32[Array, " n"], *, most: int) -> Int32[Array, " n"]:
    """`running_sum` without the count at the place itself. Not their difference: unlike reshapes in one fusion are slow on CPU."""
    return _sum(counts, most, own=False)


def _sum(counts, most, own):
    """Blocks go through a triangular matrix: a cumsum is slow on CPU."""
    n = counts.shape[0]
    if n < 4 * _BLOCK or most * _BLOCK > 1 << 24:  # float32 holds whole numbers up to there
        return jnp.cumsum(counts, dtype=jnp.int32) - (0 if own else counts)
    blocks = jnp.pad(counts, (0, -n % _BLOCK)).reshape(-1, _BLOCK).astype(jnp.float32)
    triangle = np.triu(np.ones((_BLOCK, _BLOCK), np.float32), 0 if own else 1)
    sums = jnp.dot(blocks, triangle, precision=lax.Precision.HIGHEST)
    totals = sums[:, -1] if own else sums[:, -1] + blocks[:, -1]
    carry = _sum(totals.astype(jnp.int32), most * _BLOCK, own=False)
    return (sums.astype(jnp.int32) + carry[:, None]).ravel()[:n]


def running_max(values: Int32[Array, " size"], n: Integer[ArrayLike, ""]) -> Int32[Array, " size"]:
    """Largest of the first n values, none below 0, up to each of them; what comes after them is of no use."""

    def step(i, state):
        top = jnp.maximum(state[0], lax.dynamic_index_in_dim(values, i, keepdims=False))
        return top, lax.dynamic_update_index_in_dim(state[1], top, i, 0)

    def serial(values, n):
        return lax.fori_loop(0, n, step, (jnp.int32(0), values))[1]

    return lax.platform_dependent(values, n, cpu=serial, default=lambda values, n: lax.cummax(values))


def bisect(like: Int32[Array, "*shape"], n: int, holds: Callable) -> Int32[Array, "*shape"]:
    """The last of 0..n-1 at which `holds(at)` is true (it is at 0, and never again after it has failed), for each of `like`."""
    bits = (n - 1).bit_length()

    def step(i, last):
        ahead = jnp.minimum(last + (1 << (bits - 1 - i)), n - 1)
        return jnp.where(holds(ahead), ahead, last)

    # A loop: unrolled, each step would be fused into all that follow and computed again in each.
    return lax.fori_loop(0, bits, step, jnp.zeros_like(like))


def select(words: UInt32[Array, "*shape"], rank: Int32[Array, "*shape"]) -> Int32[Array, "*shape"]:
    """Position of set bit number `rank` (from 0) of each word, by bisection on popcounts."""
    position = jnp.zeros_like(rank)
    for step in (16, 8, 4, 2, 1):
        below = popcount((words >> position.astype(jnp.uint32)) & jnp.uint32((1 << step) - 1))
        beyond = rank >= below
        rank = jnp.where(beyond, rank - below, rank)
        position = jnp.where(beyond, position + step, position)
    return position


def up_to(bit: Integer[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """A word with ones from bit 0 to this one."""
    return (jnp.uint32(2) << bit.astype(jnp.uint32)) - 1

"""Axial slices as two-dimensional networks see them: random views, patches, pools of earlier ones. Arrays are [b, y, x], of k adjacent
slices as channels [b, y, x, k]."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float32, PRNGKeyArray, Real

from cacjax.classes import AIR_HU

SIGMA_PX = 0.5  # of the Gaussian that smooths or, taken away, amplifies noise
REACH = 2  # pixels, beyond which that Gaussian is nothing

PLAIN = {"noise": False, "flips": False, "degrees": 0.0}  # of `view`: the middle of each slice as it is

Slices = Real[ArrayLike, "b y x"]


class Pool(NamedTuple):
    """Earlier slices [most, y, x, k] that a discriminator sees again, and how many of them are in use."""

    slices: Any
    count: Any


def smoothed(hu: Slices, sigma_px: float = SIGMA_PX) -> Float32[Array, "b y x"]:
    """A Gaussian over each slice; beyond its edges the edge goes on."""
    weight = np.exp(-0.5 * (np.arange(-REACH, REACH + 1) / sigma_px) ** 2)
    weight = (weight / weight.sum()).astype(np.float32)
    hu = jnp.asarray(hu, jnp.float32)
    for axis in (1, 2):
        n = hu.shape[axis]
        around = jnp.pad(hu, [(REACH, REACH) if a == axis else (0, 0) for a in range(3)], mode="edge")
        hu = sum(w * lax.slice_in_dim(around, i, i + n, axis=axis) for i, w in enumerate(weight))
    return hu


def with_other_noise(hu: Real[ArrayLike, "b y x k"], key: PRNGKeyArray) -> Float32[Array, "b y x k"]:
    """Each sample as it is, smoothed, or with its noise amplified, a third of the chance each (van Velzen 2022, section 2.3)."""
    kind = jax.random.randint(key, (len(hu), 1, 1, 1), 0, 3)
    smooth = jax.vmap(smoothed, -1, -1)(hu)
    return jnp.where(kind == 0, hu, jnp.where(kind == 1, smooth, 2 * hu - smooth))


def flipped(stack: Real[ArrayLike, "b y x k"], key: PRNGKeyArray) -> Real[Array, "b y x k"]:
    """Each of a stack of pictures left to right, top to bottom, each with a chance of one half."""
    for axis, one in zip((1, 2), jax.random.split(key)):
        turn = jax.random.bernoulli(one, 0.5, (len(stack), 1, 1, 1))
        stack = jnp.where(turn, jnp.flip(stack, axis), stack)
    return stack


def turned(hu: Real[ArrayLike, "b y x k"], labels: Real[ArrayLike, "b y x n"], key: PRNGKeyArray, *, degrees: float, size: int):
    """A window of `size` pixels at a random place of each sample, turned by up to so many degrees: (hu, labels), [b, size, size, k or n].

    HU linearly, -1000 beyond the slice; labels (of one type) by the nearest pixel, 0 beyond it.
    """
    b, height, width, _ = hu.shape
    angle_key, place_key = jax.random.split(key)
    angle = jnp.deg2rad(jax.random.uniform(angle_key, (b, 1, 1), minval=-degrees, maxval=degrees))
    room = jnp.array([height - size, width - size])
    shift = jax.random.uniform(place_key, (b, 2)) * room - room / 2
    along = jnp.arange(size) - (size - 1) / 2
    y, x = along[:, None], along[None]
    rows = jnp.cos(angle) * y - jnp.sin(angle) * x + (height - 1) / 2 + shift[:, 0, None, None]
    columns = jnp.sin(angle) * y + jnp.cos(angle) * x + (width - 1) / 2 + shift[:, 1, None, None]

    def of_slice(picture, label, row, column):
        of_channel = lambda hu: jax.scipy.ndimage.map_coordinates(hu, [row, column], 1, mode="constant", cval=AIR_HU)  # noqa: E731
        hu = jax.vmap(of_channel, -1, -1)(picture)
        at = [jnp.round(each).astype(jnp.int32) for each in (row, column)]
        inside = (at[0] >= 0) & (at[0] < height) & (at[1] >= 0) & (at[1] < width)
        return hu, jnp.where(inside[..., None], label[at[0], at[1]], 0)

    return jax.vmap(of_slice)(jnp.asarray(hu, jnp.float32), jnp.asarray(labels), rows, columns)


def middle(stack: Real[ArrayLike, "b y x k"], size: int) -> Real[Array, "b size size k"]:
    """The window of `size` pixels in the middle of pictures."""
    top, left = ((n - size) // 2 for n in stack.shape[1:3])
    return jnp.asarray(stack)[:, top : top + size, left : left + size]


def touched(mask: Bool[ArrayLike, "b y x"], shape: tuple[int, int]) -> Bool[Array, "b _ _"]:
    """Which of `shape` equal parts of each slice hold a pixel of a mask; parts overlap where they are no whole pixels."""
    counts = jnp.asarray(mask, jnp.int32)
    for axis, parts in zip((1, 2), shape):
        n, number = counts.shape[axis], np.arange(parts)
        sums = jnp.pad(counts.cumsum(axis), [(1, 0) if a == axis else (0, 0) for a in range(3)])
        high, low = (jnp.take(sums, at, axis) for at in (-(-(number + 1) * n // parts), number * n // parts))
        counts = ((high - low) > 0).astype(jnp.int32)
    return counts > 0


def within(mask: Bool[ArrayLike, "b y x"], reach_px: int) -> Bool[Array, "b y x"]:
    """Pixels at most so far from one of a mask in its slice."""
    along = np.arange(-reach_px, reach_px + 1)
    disc = (along[:, None] ** 2 + along**2 <= reach_px**2).astype(np.float32)[..., None, None]
    hits = lax.conv_general_dilated(
        jnp.asarray(mask, jnp.float32)[..., None], disc, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return hits[..., 0] > 0.5


def exchange(pool: Pool, slices: Real[Array, "b y x k"], key: PRNGKeyArray) -> tuple[Pool, Real[Array, "b y x k"]]:
    """(pool, slices) after each of these came into the pool where it has room, else, every second time, in place of an earlier one, which
    is given back instead (Shrivastava 2017, as Zhu 2017 has it)."""
    most, given = len(pool.slices), []
    for one, own in zip(slices, jax.random.split(key, len(slices))):
        swap_key, place_key = jax.random.split(own)
        room = pool.count < most
        swap = ~room & jax.random.bernoulli(swap_key)
        place = jnp.where(room, pool.count, jax.random.randint(place_key, (), 0, most))
        there = lax.dynamic_index_in_dim(pool.slices, place, keepdims=False)
        given.append(jnp.where(swap, there, one))
        kept = jnp.where(room | swap, one, there)
        pool = Pool(lax.dynamic_update_index_in_dim(pool.slices, kept, place, 0), pool.count + room)
    return pool, jnp.stack(given)


def view(sample: dict, key: PRNGKeyArray, *, size: int, noise: bool, flips: bool, degrees: float) -> dict:
    """What a network sees of a sample {"hu" [b, k, y, x], "label", "heart" [b, 1, y, x]} of slices with their neighbours: windows {"hu"
    [b, size, size, k], "label", "heart" [b, size, size]}, with other noise, turned, flipped, all at random."""
    noise_key, turn_key, flip_key = jax.random.split(key, 3)
    hu = jnp.moveaxis(sample["hu"], 1, -1).astype(jnp.float32)
    hu = with_other_noise(hu, noise_key) if noise else hu
    labels = jnp.stack([sample["label"][:, 0], sample["heart"][:, 0]], -1).astype(jnp.uint8)
    if degrees:
        hu, labels = turned(hu, labels, turn_key, degrees=degrees, size=size)
    stack = middle(jnp.concatenate([hu, labels.astype(jnp.float32)], -1), size)
    stack = flipped(stack, flip_key) if flips else stack
    return {"hu": stack[..., :-2], "label": stack[..., -2].astype(jnp.uint8), "heart": stack[..., -1] > 0}

"""3-D networks on whole scans, window by window. Volumes [z, y, x], batches [b, z, y, x].

Where windows overlap, a voxel counts for more the farther it is from its window's edge: a window that cuts a heart in two sees a part of
it and says background, and must not outvote the one that sees all of it.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cacjax.inference import steps


def slide(network, hu: np.ndarray, *, window: int, overlap: int, grain: int = 8) -> np.ndarray:
    """Mean probabilities [classes, z, y, x] of a network over windows of a scan that overlap by `overlap` voxels at least, by `weights`.

    network: hu [1, z, y, x] -> probabilities [1, z, y, x, classes]. Sides shorter than the window are rounded up to multiples of `grain`
    by repeating the last voxels: scans of a like size compile nothing.
    """
    hu = np.asarray(hu, np.float32)
    sides = [min(window, -(-n // grain) * grain) for n in hu.shape]
    padded = np.pad(hu, [(0, max(side - n, 0)) for side, n in zip(sides, hu.shape)], mode="edge")
    corners = list(itertools.product(*(_starts(n, side, overlap) for n, side in zip(padded.shape, sides))))

    def one(number, _, sums):
        here = tuple(slice(a, a + side) for a, side in zip(corners[number], sides))
        found = np.moveaxis(np.asarray(network(padded[here][None]))[0], -1, 0)
        total, weight = sums or (np.zeros((len(found), *padded.shape), np.float32), np.zeros(padded.shape, np.float32))
        total[(slice(None), *here)] += found * own
        weight[here] += own
        return total, weight

    own = weights(sides)
    total, weight = steps.advance(one, len(corners), None, traced=False, every=1, unit="window", title="segment")
    return (total / weight)[(slice(None), *(slice(0, n) for n in hu.shape))]


def _starts(n, side, overlap):
    """First voxels of windows spread evenly over n voxels."""
    count = 1 + -(-(n - side) // max(side - overlap, 1))
    return np.linspace(0, n - side, count).round().astype(int).tolist()


def weights(sides) -> np.ndarray:
    """What each voxel of a window counts, float32 of these sides: along each axis falling evenly from 1 amid it to its edges."""
    ramps = [np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)) / ((n + 1) // 2) for n in sides]
    return functools.reduce(np.multiply.outer, ramps).astype(np.float32)


def corners(shape, window, overlap) -> list[tuple[int, int, int]]:
    """First voxels of windows spread evenly over a scan, which overlap by `overlap` voxels (z, y, x) at least; one where it is smaller."""
    return list(itertools.product(*(_starts(max(n, side), side, least) for n, side, least in zip(shape, window, overlap, strict=True))))


def add_up(network, state, hu, shape, firsts, count, *, window, classes: int, traced: bool):
    """Sums [z, y, x, classes] of a network's probabilities, times `weights`, over windows of a padded scan: pure, the memory of one window
    beside them.

    network: (state, hu [1, z, y, x]) -> probabilities [1, z, y, x, classes], the same function for every scan: it is compiled once.
    shape: int32 [3], without padding, beyond which the last voxels are repeated. firsts: `corners`, int32 [most, 3], of which the first
    `count` are in use.
    """
    hu, sums = jax.jit(functools.partial(_edged, classes=classes))(hu, shape)

    def one(number, sums):
        return _add_window(network, window, state, hu, jnp.asarray(firsts), number, sums)

    if traced:
        return lax.fori_loop(0, count, one, sums)
    return steps.advance(lambda n, _, sums: one(n, sums), count, sums, traced=False, every=1, unit="window", title="detect")


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=6)
def _add_window(network, window, state, hu, firsts, number, sums):
    at = (*firsts[number], 0)
    found = network(state, lax.dynamic_slice(hu, at[:3], window)[None])[0] * weights(window)[..., None]
    return lax.dynamic_update_slice(sums, lax.dynamic_slice(sums, at, found.shape) + found, at)


def _edged(hu, shape, *, classes):
    for axis in range(3):
        hu = jnp.take(hu, jnp.minimum(jnp.arange(hu.shape[axis]), shape[axis] - 1), axis)
    return hu, jnp.zeros((*hu.shape, classes))


@functools.partial(jax.jit, static_argnums=0)
def probabilities(model, variables, hu):
    """Class probabilities [b, z, y, x, classes] of HU [b, z, y, x]."""
    return jax.nn.softmax(model.apply(variables, normalise(hu)))


def normalise(hu):
    """HU as Bruns 2022's code has them: clipped to [-1024, 3071] and divided by 4096, channel added."""
    return (jnp.clip(hu.astype(jnp.float32), -1024.0, 3071.0) / 4096.0)[..., None]

"""Plane networks on whole scans: the intensities they see, and detection tile by tile.

The class of a voxel depends only on the planes through it, so any part of a scan can be computed apart with the same result: a scan
is cut into tiles of whole slices, and each tile runs every plane once, reading real neighbours as halo.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cacjax.models.dilated import margin
from cacjax.task import Prediction

AIR_HU = -1000.0
XY_BUCKET, Z_BUCKET = 32, 16  # sides are rounded up to these, so that scans of like size share one compiled program
TILE_BYTES = 2**31  # bound on one tile's feature vectors
PLANES_AT_ONCE = {"cpu": 1}  # on CPU one plane at a time stays in the cache; 16 elsewhere


def normalise(hu):
    """Network intensities (clip(HU, -1000, 3000) - 130) / 1130 in float32 (Zhai 2022's code)."""
    return (jnp.clip(hu.astype(jnp.float32), -1000.0, 3000.0) - 130.0) / 1130.0


def predict(model, params, hu, box=None, *, slab: int = 1) -> Prediction:
    """Classify the voxels of a scan inside `box`; background elsewhere.

    model: a `Dilated` network; hu: [z, y, x] Hounsfield units on its grid; box: ((z0, y0, x0), (z1, y1, x1)), None for all.
    """
    shape = np.array(hu.shape)
    low, high = (np.zeros(3, int), shape) if box is None else np.clip(np.asarray(box), 0, shape)
    sides = high - low
    if (sides <= 0).any():
        return Prediction(np.zeros(shape, np.uint8), np.zeros(shape, np.float32), hu)
    depth = _tile_depth(model, sides)
    padded_sides = np.array([-(-sides[0] // depth) * depth, *(-(-sides[1:] // XY_BUCKET) * XY_BUCKET)])
    block = _halo(np.asarray(hu), low, padded_sides, margin(model.dilations))
    tiles = [_classify_tile(model, params, _tile(block, z, depth, model), slab) for z in range(0, padded_sides[0], depth)]
    label, p_cac = (np.concatenate([np.asarray(tile[i]) for tile in tiles]) for i in range(2))
    inside = tuple(slice(a, b) for a, b in zip(low, high))
    keep = tuple(slice(0, side) for side in sides)
    out = Prediction(np.zeros(shape, np.uint8), np.zeros(shape, np.float32), hu)
    out.label[inside], out.p_cac[inside] = label[keep], p_cac[keep]
    return out


def _tile_depth(model, sides) -> int:
    """Slices per tile: the whole box where the memory bound allows it, rounded up to a bucket."""
    slice_bytes = 4 * model.planes * model.width * int(np.prod(-(-sides[1:] // XY_BUCKET) * XY_BUCKET))
    allowed = max(TILE_BYTES // slice_bytes // Z_BUCKET, 1) * Z_BUCKET
    return min(allowed, -(-int(sides[0]) // Z_BUCKET) * Z_BUCKET)


def _halo(hu, low, sides, m):
    """Cut the box out of a scan with m voxels around it; air outside the scan."""
    start, stop = low - m, low + sides + m
    before, after = np.maximum(-start, 0), np.maximum(stop - hu.shape, 0)
    inner = hu[tuple(slice(max(a, 0), max(b, 0)) for a, b in zip(start, stop))]
    return np.pad(inner, list(zip(before, after)), constant_values=AIR_HU)


def _tile(block, z, depth, model):
    return jnp.asarray(block[z : z + depth + 2 * margin(model.dilations)])


@functools.partial(jax.jit, static_argnums=(0, 3))
def _classify_tile(model, params, block, slab):
    """Classes and P(CAC) of a tile from its block [depth + 2m, h + 2m, w + 2m] in Hounsfield units."""
    m = margin(model.dilations)
    x = normalise(block)
    features = jnp.concatenate([_plane_maps(model, params, x, index, m, slab) for index in range(model.planes)], axis=-1)
    logits = lax.map(lambda f: model.apply(params, f[None], method="classify")[0], features)
    probability = jax.nn.softmax(logits)
    return probability.argmax(-1).astype(jnp.uint8), probability[..., 1:4].sum(-1)


def _plane_maps(model, params, x, index, m, slab):
    """Features [depth, h, w, width] of one orientation: 0 axial, 1 coronal, 2 sagittal."""
    sides = [side - 2 * m for side in x.shape]
    stack = jnp.moveaxis(x, index, 0)
    half = slab // 2

    def one(position):
        plane = lax.dynamic_slice_in_dim(stack, position + m - half, slab)
        return model.apply(params, jnp.moveaxis(plane, 0, -1)[None], index, method="plane")[0]

    maps = lax.map(one, jnp.arange(sides[index]), batch_size=PLANES_AT_ONCE.get(jax.default_backend(), 16))
    return jnp.moveaxis(maps, 0, index)

"""Plane networks on whole scans: the intensities they see, and detection of the voxels that are asked for.

The class of a voxel depends only on the planes through it, and a plane can be computed on any rectangle, reading its neighbours
as halo. So every plane is computed on the smallest rectangle around its wanted voxels (rounded up to one of a few sizes, each
compiled once for all orientations), and only the feature vectors of wanted voxels are kept. Where these are few, only the first
layers cover the rectangle: the others, whose dilations double, are computed for each voxel at the pixels that it depends on
(`Dilated.late`). Everything has static shapes: the same code runs inside a larger compiled program, or step by step under a
progress bar.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cacjax.classes import AIR_HU, CALCIUM_HU
from cacjax.inference import rectangles, steps
from cacjax.inference.rectangles import KINDS, NONE
from cacjax.models.dilated import doubling, margin
from cacjax.task import is_traced

FEATURE_BYTES = 2**29  # bound on the feature vectors of one chunk of wanted voxels
BLOCK = 4096  # voxels classified at once
PLANES_AT_ONCE = {"cpu": 1}  # on CPU one plane at a time stays in the cache; 16 elsewhere
STEP = 32  # rectangles between two looks at the progress bar


def normalise(hu):
    """Network intensities (clip(HU, -1000, 3000) - 130) / 1130 in float32 (Zhai 2022's code)."""
    return (jnp.clip(hu.astype(jnp.float32), -1000.0, 3000.0) - 130.0) / 1130.0


def predict(model, params, hu, wanted=None, *, longest: int = 0, slab: int = 1, stored: str = "float32", ancestor: bool = False):
    """Classify the wanted voxels of a scan, background elsewhere: (label uint8, P(classes 1 to 3) float32), both [z, y, x].

    model: a `Dilated` network; hu: [z, y, x] Hounsfield units on its grid; wanted: bool [z, y, x], None for all voxels; longest: side
    of a box that holds all of these, where it is known to be less than the scan's: fewer sizes of rectangles are compiled then;
    stored: kind of the feature vectors that wait for the main head ("float16" as in Zhai 2022's code); ancestor: as Lessmann 2018 reads
    scans, by the mean of the main head's and the auxiliary heads' average probabilities, without single voxels at 130 HU or more.
    Traced arrays make it a part of the caller's program; with others it runs in steps and shows its progress after some seconds.
    """
    hu = jnp.asarray(hu)
    wanted = jnp.ones(hu.shape, bool) if wanted is None else jnp.asarray(wanted, bool)
    traced = is_traced(params, hu, wanted)
    capacity, packed = _capacity(model, hu.shape), rectangles.pack(wanted)
    longest = min(longest or max(hu.shape), max(hu.shape))

    def one(number, found):
        chunk = rectangles.chunk_of(packed, number, capacity)
        work = rectangles.survey(model, chunk, hu.shape, longest)
        look = functools.partial(_look, model, slab, longest, params, hu, chunk, work)
        kind = {"traced": traced, "every": STEP, "unit": "plane", "title": "detect"}
        rows = steps.advance(look, work.bounds[-1], _no_rows(model, capacity, stored), **kind)
        return _classify(model, ancestor, params, rows, chunk, found)

    label, probability = steps.repeat(one, rectangles.count_chunks(packed.n, capacity), _nothing(hu.shape), traced=traced)
    return without_single_voxels(jnp.where(hu >= CALCIUM_HU, label, 0)) if ancestor else label, probability


def halo(model, slab: int) -> tuple[int, int, int]:
    """Voxels around one that its class depends on, along z, y, x."""
    m = max(margin(model.dilations), slab // 2, 1)
    return (max(slab // 2, 1) if model.planes == 1 else m), m, m


def without_single_voxels(label):
    """The label uint8 [z, y, x] less the voxels that have background on all 26 sides, whatever the classes."""
    around = lax.reduce_window((label > 0).astype(jnp.int32), 0, lax.add, (3, 3, 3), (1, 1, 1), "SAME")
    return jnp.where(around > 1, label, 0).astype(label.dtype)


def _nothing(shape):
    return jnp.zeros(shape, jnp.uint8), jnp.zeros(shape, jnp.float32)


def _no_rows(model, capacity, stored):
    return jnp.zeros((model.planes * capacity, model.width), stored)


def _capacity(model, shape):
    """Voxels of a chunk: a whole number of blocks."""
    allowed = FEATURE_BYTES // (4 * model.planes * model.width)
    return -(-min(allowed, int(np.prod(shape))) // BLOCK) * BLOCK


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=9)
def _look(model, slab, longest, params, hu, chunk, work, first, last, rows):
    """Feature vectors of rectangles first..last - 1, written to the `rows` [orientations * capacity, width] of wanted voxels."""
    weights = _weights(model, params)
    at_once = PLANES_AT_ONCE.get(jax.default_backend(), 16)
    capacity = rows.shape[0] // model.planes
    outer = jnp.pad(hu, slab // 2, constant_values=AIR_HU)

    def one_kind(number, rows, form):
        start, stop = (jnp.clip(bound, first, last) for bound in (work.bounds[number], work.bounds[number + 1]))
        kind = number % KINDS
        own = {"params": {"subnets_0": jax.tree.map(lambda leaf: leaf[kind], weights)}}

        def some(i, rows):
            item = jnp.minimum(start + i * at_once + jnp.arange(at_once), stop - 1)
            cut = functools.partial(rectangles.cut, outer, chunk, kind, form[:2], margin(model.dilations), slab, model.planes)
            planes, rank = jax.vmap(cut)(work.position[item], work.row[item], work.column[item])
            features, rank = (_singly if form.most else _wholly)(model, own, normalise(planes), rank, form)
            return rows.at[jnp.where(rank == NONE, rows.shape[0], kind % 3 * capacity + rank)].set(features.astype(rows.dtype), mode="drop")

        return lax.fori_loop(0, -(-(stop - start) // at_once), some, rows)

    # A loop per form: inside a conditional the rows would be copied for every rectangle.
    for index, form in enumerate(rectangles.forms(model, longest)):
        rows = lax.fori_loop(index * KINDS, (index + 1) * KINDS, functools.partial(one_kind, form=form), rows)
    return rows


def _wholly(model, own, planes, rank, form):
    """(features, rank) of every pixel of rectangles."""
    del form
    features = model.apply(own, planes, 0, method="plane")
    return features.reshape(-1, features.shape[-1]), rank.ravel()


def _singly(model, own, planes, rank, form):
    """(features, rank) of the wanted pixels of rectangles, at most `form.most` of each."""
    start = doubling(model.dilations)
    maps = model.apply(own, planes, 0, start, method="early")
    side = 2 * margin(model.dilations[start:]) + 1

    def of_one(maps, rank):
        flat = rank.ravel()
        pixels = jnp.nonzero(flat != NONE, size=form.most, fill_value=flat.size)[0]

        def one(i, features):
            corner = pixels[i] // form.width, pixels[i] % form.width, 0
            window = lax.dynamic_slice(maps, corner, (side, side, maps.shape[-1]))
            return features.at[i].set(model.apply(own, window[None], 0, start, method="late")[0])

        features = lax.fori_loop(0, (flat != NONE).sum(), one, jnp.zeros((form.most, model.width), maps.dtype))
        return features, jnp.where(pixels < flat.size, flat[pixels], NONE)

    features, rank = lax.map(lambda pair: of_one(*pair), (maps, rank))
    return features.reshape(-1, model.width), rank.ravel()


def _weights(model, params):
    """Parameters of the subnets by kind, stacked: turned planes take turned kernels."""
    straight = [params["params"][f"subnets_{index}"] for index in range(model.planes)]
    straight += straight[:1] * (3 - model.planes)
    turned = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1) if leaf.ndim == 4 else leaf, straight)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *straight, *turned)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=5)
def _classify(model, averaged, params, rows, chunk, found):
    """Labels and P(CAC) with those of a chunk added."""
    capacity = rows.shape[0] // model.planes
    rows = rows.reshape(model.planes, capacity, model.width)

    def block(i, out):
        features = lax.dynamic_slice_in_dim(rows, i * BLOCK, BLOCK, 1).swapaxes(0, 1).reshape(1, 1, BLOCK, -1).astype(jnp.float32)
        probability = jax.nn.softmax(model.apply(params, features, method="classify")[0, 0])
        if averaged:
            planes = jax.nn.softmax(model.apply(params, features, method="auxiliary_logits")[0, :, 0])
            probability = 0.5 * (probability + planes.mean(0))
        values = probability.argmax(-1).astype(jnp.uint8), probability[:, 1:4].sum(-1)
        return tuple(lax.dynamic_update_slice_in_dim(a, v, i * BLOCK, 0) for a, v in zip(out, values))

    none = jnp.zeros(capacity, jnp.uint8), jnp.zeros(capacity, jnp.float32)
    values = lax.fori_loop(0, -(-chunk.n // BLOCK), block, none)
    rank = rectangles.ranks(chunk.words, chunk.before)[..., : found[0].shape[2]]
    return tuple(jnp.where(rank == NONE, old, value[rank]) for old, value in zip(found, values))

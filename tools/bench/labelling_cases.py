"""Cases of labelling: connected components and the lesion table against scipy, scikit-image, cc3d and (on a GPU) cupyx.

Masks (masks.py): blobs, as a detector leaves them, and thorax, all bone and noise from 130 HU, at 512 x 512 x 256; percolation and
spiral, which nobody scores, at 512 x 512 x 64; ccta, a whole phantom scan from its scan threshold up. Connectivity 8 is every slice
for itself. Milliseconds, compilation left out, the mask already where it is worked on. Counts of components are compared on the way; a
difference ends the program with an error.

  ours_ms         from the bool mask to the component number of every run of voxels, on the device (a sum over all keeps them alive)
  dense_ms        the same and the int32 volume of labels, as the others write it (`lesions.label`)
  scipy_ms skimage_ms cc3d_ms cupyx_ms
                  their label volume; null where absent or, as scikit-image by slices, not offered. cc3d goes slice by slice for 8
  table_ms        from the mask to the table of lesions (`lesions.find`): voxels, volume, HU sum, peak, box, centroid, artery, per-slice
                  area and peak; without the last two, here and by cc3d, where components are more than 65,536 ("by_slice": false)
  cc3d_table_ms   cc3d's labels and the same table by numpy on the voxels of the foreground
"""

import functools
import importlib.util
import statistics
from typing import NamedTuple

import cc3d
import jax
import jax.numpy as jnp
import masks
import numpy as np
from race import take_turns
from scipy import ndimage
from skimage import measure

import cacjax.phantom
from cacjax.kernels import lesions, neighbours, runs

DEPTHS = {"blobs": 256, "thorax": 256, "percolation": 64, "spiral": 64, "ccta": None}
CONNECTIVITY = (8, 6, 18, 26)
SPACING_MM = (1.5, 0.4, 0.4)
COLUMNS = ("ours_ms", "dense_ms", "scipy_ms", "skimage_ms", "cc3d_ms", "cupyx_ms", "table_ms", "cc3d_table_ms")
MOST_BY_SLICE = lesions.CAPACITIES[2]  # a million lesions in 256 slices would be 2 GB


@functools.partial(jax.jit, static_argnames="connectivity")
def number_runs(mask, *, connectivity):
    """Number of components, and the sum over runs of component times voxels (modulo 2^32)."""

    def work(found, packed):
        component, n = neighbours.components(found, packed, mask.shape, connectivity=connectivity)
        return n, (component * runs.popcount(runs.bits(found))).sum()

    return runs.over(mask, work)


def structure(connectivity: int) -> np.ndarray:
    """The 3 x 3 x 3 neighbourhood of scipy."""
    if connectivity == 8:
        return np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))]).astype(bool)
    return ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])


def label_cc3d(mask, connectivity):
    """Labels and how many there are: of the volume, or for 8 lists of both by slice."""
    if connectivity != 8:
        return cc3d.connected_components(mask, connectivity=connectivity, return_N=True)
    return list(zip(*(cc3d.connected_components(plane, connectivity=8, return_N=True) for plane in mask)))


def table_cc3d(mask, hu, artery, connectivity, *, by_slice=True):
    """The columns of `lesions.Lesions` by cc3d and numpy, on the voxels of the foreground; by_slice False: not area and peak by slice."""
    labels, n = label_cc3d(mask, connectivity)
    at = np.flatnonzero(mask)
    z, y, x = np.unravel_index(at, mask.shape)
    if connectivity == 8:
        before = np.cumsum([0, *n])
        k, n = np.concatenate([plane[plane > 0] for plane in labels]) - 1 + before[z], int(before[-1])
    else:
        k = labels.ravel()[at].astype(np.int64) - 1
    values, depth = hu.ravel()[at], mask.shape[0]
    voxels = np.bincount(k, minlength=n)
    sums = [np.bincount(k, weights=a, minlength=n) for a in (values, z, y, x)]
    votes = np.bincount(k * lesions.N_CLASSES + artery.ravel()[at], minlength=n * lesions.N_CLASSES).reshape(n, -1)[:, 1:]
    peak, area, slice_peak = np.full(n, -np.inf, np.float32), None, None
    if by_slice:
        slice_peak = np.full(n * depth, -np.inf, np.float32)
        np.maximum.at(slice_peak, k * depth + z, values.astype(np.float32))
        slice_peak = slice_peak.reshape(n, depth)
        peak = slice_peak.max(1) if n else peak
        area = np.bincount(k * depth + z, minlength=n * depth).reshape(n, depth) * (SPACING_MM[1] * SPACING_MM[2])
    else:
        np.maximum.at(peak, k, values.astype(np.float32))
    low, high = np.full((3, n), 2**31 - 1, np.int32), np.zeros((3, n), np.int32)
    for i, axis in enumerate((z, y, x)):
        np.minimum.at(low[i], k, axis.astype(np.int32))
        np.maximum.at(high[i], k, axis.astype(np.int32) + 1)
    kind = np.where(votes.any(1), 1 + votes.argmax(1), 0)
    return n, voxels, voxels * np.prod(SPACING_MM), sums[0], peak, low, high, np.stack(sums[1:]) / voxels, kind, area, slice_peak


def contenders(mask, hu, artery, connectivity):
    """{column: function that returns the number of components, once all is done}."""
    on_device = [jnp.asarray(a) for a in (mask, hu, artery)]
    count = int(number_runs(on_device[0], connectivity=connectivity)[0])
    kind = {"connectivity": connectivity, "capacity": next((c for c in lesions.CAPACITIES if c >= count), count)}
    by_slice = count <= MOST_BY_SLICE

    def table():
        return jax.block_until_ready(lesions.find(*on_device, SPACING_MM, by_slice=by_slice, **kind)).n

    chosen = {
        "ours_ms": lambda: jax.block_until_ready(number_runs(on_device[0], connectivity=connectivity))[0],
        "dense_ms": lambda: jax.block_until_ready(lesions.label(on_device[0], connectivity=connectivity))[1],
        "scipy_ms": lambda: ndimage.label(mask, structure(connectivity))[1],
        "cc3d_ms": lambda: np.sum(label_cc3d(mask, connectivity)[1]),
        "table_ms": table,
        "cc3d_table_ms": lambda: table_cc3d(mask, hu, artery, connectivity, by_slice=by_slice)[0],
    }
    if connectivity != 8:
        steps = {6: 1, 18: 2, 26: 3}[connectivity]
        chosen["skimage_ms"] = lambda: measure.label(mask, connectivity=steps, return_num=True)[1]
    if jax.default_backend() == "gpu" and importlib.util.find_spec("cupy"):
        import cupy
        from cupyx.scipy import ndimage as cupy_ndimage

        there, around = cupy.asarray(mask), cupy.asarray(structure(connectivity))
        chosen["cupyx_ms"] = lambda: int(cupy_ndimage.label(there, around)[1])
    return chosen


class Case(NamedTuple):
    """A mask at a connectivity; quick: a tiny one."""

    name: str
    connectivity: int
    quick: bool

    @property
    def key(self) -> dict:
        """The columns that tell a row from the others."""
        return {"case": self.name, "connectivity": self.connectivity}

    def measure(self, rounds: int) -> dict:
        """The other columns: every contender runs once before, then once in each round."""
        mask, hu, artery = arrays(self.name, self.quick)
        chosen = contenders(mask, hu, artery, self.connectivity)
        counts = {name: int(work()) for name, work in chosen.items()}
        if len(set(counts.values())) > 1:
            raise SystemExit(f"numbers of components differ: {counts}")
        taken, count = take_turns(chosen, rounds), counts["ours_ms"]
        about = {"shape": mask.shape, "voxels": int(mask.sum()), "components": count, "by_slice": count <= MOST_BY_SLICE, "rounds": rounds}
        return about | {name: round(statistics.median(taken[name]) * 1e3, 3) if name in taken else None for name in COLUMNS}


def cases(options):
    """Every mask at every connectivity."""
    return (Case(name, connectivity, options.quick) for name in DEPTHS for connectivity in CONNECTIVITY)


@functools.lru_cache(maxsize=1)
def arrays(name, quick):
    """(mask, hu, artery) of a mask; quick: 9 slices of 64 x 64, the phantom on a coarse grid."""
    rng = np.random.default_rng(2)
    if name == "ccta":
        scan = cacjax.phantom.make_scan("ccta", 1, **({"shape": (12, 48, 48), "spacing_mm": (6.0, 3.0, 3.0)} if quick else {}))
        hu = np.asarray(scan.hu, np.int16)
        mask = hu >= scan.truth["threshold_hu"]
    else:
        mask = getattr(masks, name)(*((9, 64) if quick else (DEPTHS[name], 512)))
        hu = masks.with_hu(mask)
    return mask, hu, np.where(mask, rng.integers(1, 5, mask.shape, dtype=np.uint8), np.uint8(0))

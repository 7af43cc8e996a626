"""Time connected components and the lesion table against scipy, scikit-image, cc3d and (on a GPU) cupyx.

    python tools/bench/labelling.py [--out r.json] [--quick] [--rounds 5] [--cases blobs thorax]

Cases (masks.py): blobs, as a detector leaves them, and thorax, all bone and noise from 130 HU, at 512 x 512 x 256; percolation and
spiral, which nobody scores, at 512 x 512 x 64; ccta, a whole phantom scan from its scan threshold up. Connectivity 8 is every slice
for itself. Every contender takes its turn in each round; the figures are medians in milliseconds, compilation left out, the mask
already where it is worked on. Counts of components are compared on the way; a difference ends the program with an error.

  ours_ms         from the bool mask to the component number of every run of voxels, on the device (a sum over all keeps them alive)
  dense_ms        the same and the int32 volume of labels, as the others write it (`lesions.label`)
  scipy_ms skimage_ms cc3d_ms cupyx_ms
                  their label volume; null where absent or, as scikit-image by slices, not offered. cc3d goes slice by slice for 8
  table_ms        from the mask to the table of lesions (`lesions.find`): voxels, volume, HU sum, peak, box, centroid, artery, per-slice
                  area and peak; without the last two, here and by cc3d, where components are more than 65,536 ("by_slice": false)
  cc3d_table_ms   cc3d's labels and the same table by numpy on the voxels of the foreground

JSON: {"device", "cores", "versions", "date", "command", "rows": [{"case", "connectivity", "shape", "voxels", "components",
"by_slice", "rounds", "load", and the columns above}]}; load: the averages of the last 1, 5 and 15 minutes before the row was timed
(more than 1 to start with: other work shared the machine). Where --out exists, rows of the same case and connectivity are replaced
and the others kept, if device, cores and versions are the same; else the program stops before it times anything.
"""

import argparse
import datetime
import functools
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import sys
import time

import cc3d
import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage
from skimage import measure

import cacjax.phantom
from cacjax.kernels import lesions, neighbours, runs

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import masks

CASES = {"blobs": 256, "thorax": 256, "percolation": 64, "spiral": 64, "ccta": None}
CONNECTIVITY = (8, 6, 18, 26)
SPACING_MM = (1.5, 0.4, 0.4)
COLUMNS = ("ours_ms", "dense_ms", "scipy_ms", "skimage_ms", "cc3d_ms", "cupyx_ms", "table_ms", "cc3d_table_ms")
MOST_BY_SLICE = lesions.CAPACITIES[2]  # a million lesions in 256 slices would be 2 GB
PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "scikit-image", "connected-components-3d")


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


def race(chosen, rounds):
    """(median milliseconds by column, number of components); every function runs once before, then once in each round."""
    counts = {name: int(work()) for name, work in chosen.items()}
    if len(set(counts.values())) > 1:
        raise SystemExit(f"numbers of components differ: {counts}")
    times = {name: [] for name in chosen}
    for _ in range(rounds):
        for name, work in chosen.items():
            began = time.perf_counter()
            work()
            times[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(taken) for name, taken in times.items()}, counts["ours_ms"]


def case(name, quick):
    """(mask, hu, artery) of a case; quick: 8 slices of 64 x 64, the phantom on a coarse grid."""
    rng = np.random.default_rng(2)
    if name == "ccta":
        scan = cacjax.phantom.make_scan("ccta", 1, **({"shape": (12, 48, 48), "spacing_mm": (6.0, 3.0, 3.0)} if quick else {}))
        hu = np.asarray(scan.hu, np.int16)
        mask = hu >= scan.truth["threshold_hu"]
    else:
        mask = getattr(masks, name)(*((9, 64) if quick else (CASES[name], 512)))
        hu = masks.with_hu(mask)
    return mask, hu, np.where(mask, rng.integers(1, 5, mask.shape, dtype=np.uint8), np.uint8(0))


def device() -> str:
    """The accelerator, or the processor's name."""
    if jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    info = pathlib.Path("/proc/cpuinfo")
    named = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return named[0] if named else platform.processor() or platform.machine()


def show(row) -> None:
    """One line of a row: times, and how many times faster than each."""
    times = " ".join(f"{name.removesuffix('_ms')} {row[name]:.1f}" for name in COLUMNS if row[name] is not None)
    others = [name for name in ("scipy", "skimage", "cc3d", "cupyx") if row[f"{name}_ms"]]
    ratios = [f"{name} {row[f'{name}_ms'] / row['ours_ms']:.2f}x" for name in others]
    if row["table_ms"]:
        ratios.append(f"table {row['cc3d_table_ms'] / row['table_ms']:.2f}x")
    print(f"{row['case']:12} {row['connectivity']:2}  {times}  |  {', '.join(ratios)}", flush=True)


def earlier_rows(path, result) -> dict:
    """{(case, connectivity): row} of the file at path, none where there is no file; SystemExit if not of the same device and versions."""
    if path is None or not path.exists():
        return {}
    earlier = json.loads(path.read_text())
    for name in ("device", "cores", "versions"):
        if earlier[name] != result[name]:
            raise SystemExit(f"{path} has {name} {earlier[name]}, this run {result[name]}: write to another file")
    return {(row["case"], row["connectivity"]): row for row in earlier["rows"]}


def main() -> None:
    """Run the cases, print a line for each, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, help="write the rows to this JSON file")
    parser.add_argument("--quick", action="store_true", help="tiny masks: shows that all runs, says nothing of speed")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which the median is taken (default: %(default)s)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--connectivity", nargs="+", type=int, choices=CONNECTIVITY, default=CONNECTIVITY, help="default: all")
    options = parser.parse_args()
    result = {
        "device": device(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES},
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]),
    }
    kept = earlier_rows(options.out, result)
    for name in options.cases:
        mask, hu, artery = case(name, options.quick)
        for connectivity in options.connectivity:
            load = [round(average, 2) for average in os.getloadavg()]
            times, count = race(contenders(mask, hu, artery, connectivity), options.rounds)
            about = {"case": name, "connectivity": connectivity, "shape": mask.shape, "voxels": int(mask.sum()), "components": count}
            about |= {"by_slice": count <= MOST_BY_SLICE, "rounds": options.rounds, "load": load}
            row = about | {column: times.get(column) and round(times[column], 3) for column in COLUMNS}
            show(row)
            kept[name, connectivity] = row
            if options.out:  # after every row: what was measured stays, should the next one be cut short
                options.out.write_text(json.dumps(result | {"rows": list(kept.values())}, indent=1) + "\n")


if __name__ == "__main__":
    main()

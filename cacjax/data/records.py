"""The record that every cohort stores, and the processes that make records.

{"id": text, "hu": int16 [z, y, x], "label": uint8 [z, y, x] (see data.labels), "heart": uint8 [z, y, x] (empty: unknown),
"affine": float64 [4, 4] (array order to LPS mm), "spacing_mm": float32 [3], "threshold_hu", "aorta_hu": float32 (NaN:
unknown), "domain": "source" or "target", "protocol": text, "labelled": bool (false: `label` is empty for want of a
mask)}. All arrays lie on the network's grid.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from cacjax.kernels import cells, grids

DOMAINS = ("source", "target")
SHARD = 64  # records in a file


@dataclasses.dataclass
class CohortConfig(tfds.core.BuilderConfig):
    """What a builder makes (`settings`, which name it) and how (`workers`, `progress`, which do not)."""

    settings: dict = dataclasses.field(default_factory=dict)
    workers: int = 0
    progress: bool = True


class Cohort(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A tensorflow-datasets builder of records, which writes each as it is made.

    Its own writer gathers a split before it writes: beyond 1 GB, some 40 scans, in buckets that need TensorFlow.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Records on the network's grid."}  # noqa: RUF012  (read by tfds)
    url_infos = None  # nothing is downloaded; looking for a list of downloads would need importlib_resources

    def _info(self):
        return info(self)

    def _download_and_prepare(self, dl_manager, download_config):
        here = self._info()  # of the folder that is renamed when all is written
        writer = tfds.core.SequentialWriter(here, max_examples_per_shard=SHARD, file_format="array_record")
        for split, examples in self._split_generators(dl_manager).items():
            writer.initialize_splits([split])
            for _, record in examples:
                writer.add_examples({split: [record]})
        writer.close_all()
        self.info.set_splits(here.splits)


def info(builder) -> tfds.core.DatasetInfo:
    """Return what tensorflow-datasets keeps of a cohort: its settings as JSON, the features, and that order is kept."""
    config = builder.builder_config
    text = json.dumps(config.settings) if config else ""
    return tfds.core.DatasetInfo(builder=builder, description=text, features=features(), disable_shuffling=True)


def features() -> tfds.features.FeaturesDict:
    """Return the stored form of a record; arrays as raw bytes, which is 22 times faster to write than lists."""

    def volume(dtype):
        return tfds.features.Tensor(shape=(None, None, None), dtype=dtype, encoding="bytes")

    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "hu": volume(np.int16),
            "label": volume(np.uint8),
            "heart": volume(np.uint8),
            "affine": tfds.features.Tensor(shape=(4, 4), dtype=np.float64, encoding="bytes"),  # lists keep 32 bits
            "spacing_mm": tfds.features.Tensor(shape=(3,), dtype=np.float32),
            "threshold_hu": tfds.features.Scalar(np.float32),
            "aorta_hu": tfds.features.Scalar(np.float32),
            "domain": tfds.features.Text(),
            "protocol": tfds.features.Text(),
            "labelled": tfds.features.Scalar(np.bool_),
        }
    )


def make_record(name: str, hu, label, heart, affine, *, domain, protocol, threshold_hu=None, aorta_hu=None) -> dict:
    """Return a record. hu [z, y, x] in HU is rounded to int16; label or heart may be None (then zeros)."""
    empty = np.zeros(hu.shape, np.uint8)
    affine = np.asarray(affine, np.float64)
    return {
        "id": name,
        "hu": np.clip(np.rint(hu), -32768, 32767).astype(np.int16),
        "label": empty if label is None else np.asarray(label, np.uint8),
        "heart": empty if heart is None else (np.asarray(heart) > 0).astype(np.uint8),
        "affine": affine,
        "spacing_mm": np.linalg.norm(affine[:3, :3], axis=0).astype(np.float32),
        "threshold_hu": np.float32(np.nan if threshold_hu is None else threshold_hu),
        "aorta_hu": np.float32(np.nan if aorta_hu is None else aorta_hu),
        "domain": domain,
        "protocol": protocol,
        "labelled": label is not None,
    }


def grid_of(data) -> dict:
    """Return the network's grid of a cohort (see cacjax.kernels.grids), plain JSON values; ValueError for what is none."""
    grid = data["grid"]
    if grid["kind"] == "cells":
        sides_mm = [float(s) for s in grid["sides_mm"]]
        if not sides_mm or min(sides_mm) <= 0 or grid["restore"] not in cells.RESTORE:
            expected = f"positive sides_mm and restore among {', '.join(cells.RESTORE)}"
            raise ValueError(f"data.grid: expected {expected}, got {sides_mm}, {grid['restore']!r}")
        return {"kind": "cells", "sides_mm": sides_mm, "restore": grid["restore"]}
    if grid["kind"] == "native":
        return {"kind": "native"}
    kind, spacing_mm = grid["kind"], [float(s) for s in grid["spacing_mm"]]
    if kind not in grids.KINDS or len(spacing_mm) != 3 or min(spacing_mm) <= 0:
        expected = f"a kind among {', '.join(grids.KINDS)} and three positive spacing_mm"
        raise ValueError(f"data.grid: expected {expected}, got {kind!r}, {spacing_mm}")
    thickness = {"thickness_mm": float(grid["thickness_mm"])} if kind == "slabs" else {}
    if min(thickness.values(), default=1) <= 0:
        raise ValueError(f"data.grid: expected a positive thickness_mm, got {grid['thickness_mm']}")
    return {"kind": kind, "spacing_mm": spacing_mm} | thickness


def run(work: Callable, jobs: Iterable, *, workers: int, title: str, progress: bool) -> Iterator:
    """Yield work(job) for every job, in order, made by `workers` fresh processes (0: this one), with the time left."""
    jobs = list(jobs)
    results = map(work, jobs) if workers == 0 else _in_processes(work, jobs, min(workers, len(jobs)))
    seconds = 0.1 if sys.stderr.isatty() else 10  # between updates: a log file is not a terminal
    yield from tqdm.tqdm(results, title, len(jobs), unit="scan", disable=not progress, mininterval=seconds)


def _in_processes(work, jobs, workers):
    """Keep two jobs per worker under way, no more: finished records are large."""
    spawn = multiprocessing.get_context("spawn")  # forking after JAX has started can deadlock
    waiting = collections.deque()
    with concurrent.futures.ProcessPoolExecutor(workers, spawn, initializer=_start_worker) as pool:
        try:
            for job in itertools.chain(jobs, [None] * 2 * workers):
                waiting.append(None if job is None else pool.submit(work, job))
                if len(waiting) > 2 * workers and (future := waiting.popleft()):
                    yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker() -> None:
    """Keep a worker off the accelerator, which belongs to the process that trains; Ctrl-C is for that one, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # the main module, which a fresh process imports first, may have read the variable already
        sys.modules["jax"].config.update("jax_platforms", "cpu")

"""The phantom cohort: scans of digital thoraces with known calcium, made on the network's grid.

Settings: seed, shape (voxels), grid (its spacing_mm: phantoms are made on it, so that its kind changes nothing; but of kind "cells" or
"slabs" they are made at acquired_mm), splits {name: {protocol, count, calcified, categories, paired}}; a protocol may be several with
commas between, taken in turn, each with a scene or without one, "chest:abdomen" (see cacjax.phantom.scenes). A split whose name starts with
"target" is of the target domain, any other of the source. calcified: the share of a split's patients that are drawn again until they have
calcium (half of a screening cohort has none). categories: in place of a count, how many patients of each category A to E, see
cacjax.phantom.pool. paired: two scans of each of the `count` patients, see cacjax.phantom.make_pair, as SPLIT-0000a and SPLIT-0000b.
labels: "classes" of calcium, "structures", 0-7 as in cacjax.classes.STRUCTURES, "marks": CAC in what a point on each lesion gives, see
cacjax.data.marks (scans that come out in another category are in review.csv), or "visible": CAC where coronary calcium can be seen, at any
HU value, see cacjax.phantom.observer.visible; that of the aorta and the valves is background.
"""

import functools
import hashlib
import itertools
import pathlib
import sys
import zlib

import numpy as np

import cacjax.phantom
from cacjax.classes import CLASSES, CORONARY
from cacjax.data import marks, records
from cacjax.kernels import grids
from cacjax.phantom import acquisition, cohort, observer, pool

LABELS = ("classes", "structures", "marks", "visible")
DECIDE_NOTHING = ("__init__", "__main__", "check", "folder", "picture")  # modules of cacjax.phantom that no scan depends on


class PhantomCohort(records.Cohort):
    """tensorflow-datasets builder of phantom scans."""

    def _split_generators(self, dl_manager):
        if self.builder_config.settings.get("labels") == "marks":
            marks.write(_folder(self), [], mode="w")
        config = self.builder_config
        how = {"workers": config.workers, "progress": config.progress}
        jobs = {split: [(split, *job) for job in enumerate(seeds(config.settings, split, **how))] for split in config.settings["splits"]}
        # All splits by the same processes, which take long to start: one split after another is written, in this order.
        work = functools.partial(make, settings=config.settings)
        made = records.run(work, itertools.chain(*jobs.values()), title="phantom scans", **how)
        wanted = {split: len(part) for split, part in jobs.items()} | {list(jobs)[-1]: None}  # the last takes the rest, which ends them
        return {split: self._generate_examples(itertools.islice(made, wanted[split])) for split in jobs}

    def _generate_examples(self, made):
        for number, (record, review) in enumerate(itertools.chain.from_iterable(made)):
            if review:
                marks.write(_folder(self), [review])
            yield number, record


def settings(data) -> dict:
    """Return what shapes the cohort's records, as plain JSON values; ValueError for what cannot be made.

    Values that change nothing (no share of calcified patients, scans without pairs, labels that are classes) are left out: cohorts keep
    their digests.
    """
    splits = {name: _split(name, part) for name, part in data["splits"].items()}
    if not splits:
        raise ValueError("data.splits is empty, expected {name: {protocol, count, calcified, categories, paired}}")
    paired = [name for name, part in splits.items() if "paired" in part and domain(name) == "source"]
    if paired and data["folds"]:
        raise ValueError(f"data.folds: two scans of a patient may come into different folds, got paired splits {', '.join(paired)}")
    labels = data["labels"]
    if labels not in LABELS:
        raise ValueError(f"data.labels of phantoms must be one of {', '.join(LABELS)}, got {labels!r}")
    grid = records.grid_of(data)
    if grid["kind"] in ("cells", "native", "slabs"):
        grid = {"spacing_mm": [float(s) for s in data["acquired_mm"]]} | ({"grid": grid} if grid["kind"] != "native" else {})
    grid = {"shape": [int(n) for n in data["shape"]], "spacing_mm": grid["spacing_mm"]} | {k: grid[k] for k in grid.keys() & {"grid"}}
    made = {"kind": "phantom", "seed": int(data["seed"]), "splits": splits, "generator": _generator(), **grid}
    return made | ({"labels": labels} if labels != LABELS[0] else {})


def _split(name, data) -> dict:
    """The plain settings of a split; ValueError for what cannot be made."""
    categories, share = [int(n) for n in data["categories"]], float(data["calcified"])
    part = {"protocol": data["protocol"], "count": sum(categories) or int(data["count"])}
    part |= ({"calcified": share} if share else {}) | ({"categories": categories} if categories else {})
    part |= {"paired": True} if data["paired"] else {}
    for protocol in part["protocol"].split(","):
        try:
            acquisition.split(protocol)
        except ValueError as error:
            raise ValueError(f"data.splits.{name}: {error}") from None
    if part["count"] < 1 or not 0 <= share <= 1:
        expected = "a positive count and a share of calcified patients from 0 to 1"
        raise ValueError(f"data.splits.{name}: expected {expected}, got {part}")
    if categories and (len(categories) != 5 or min(categories) < 0 or share or "," in part["protocol"]):
        raise ValueError(f"data.splits.{name}: expected five numbers of patients, one protocol and no share of calcified, got {part}")
    return part


def _generator() -> str:
    """Return a digest of the code that decides a scan: scans of an older phantom are not taken for scans of this one."""
    files = sorted(pathlib.Path(cacjax.phantom.__file__).parent.glob("*.py"))
    files = [file for file in files if file.stem not in DECIDE_NOTHING]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def make_builder(settings: dict, *, name: str, root, workers: int, progress: bool) -> PhantomCohort:
    """Return the builder of a cohort under `root`."""
    config = records.CohortConfig(name=name, settings=settings, workers=workers, progress=progress)
    return PhantomCohort(config=config, data_dir=str(root))


def remind(builder) -> None:
    """Say on stderr which scans are to be reviewed."""
    if text := marks.remind(_folder(builder)):
        print(text, file=sys.stderr)


def _folder(builder):
    return pathlib.Path(builder.data_path.parent)


def patient_seed(seed: int, split: str, number: int) -> int:
    """Return the seed of a patient: splits have ranges of their own, whatever other splits there are."""
    return seed + 100_000 * (zlib.crc32(split.encode()) % 10_000) + number


def seeds(settings: dict, split: str, *, workers: int, progress: bool) -> list[int]:
    """The seeds of a split's patients; those that may be drawn again are so when their scan is made."""
    part = settings["splits"][split]
    first = patient_seed(settings["seed"], split, 0)
    if "categories" not in part:
        return [first + number for number in range(part["count"])]
    spread = functools.partial(records.run, workers=workers, title=f"patients of {split}", progress=progress)
    return pool.draw(part["categories"], first, part["protocol"], spread=spread)


def domain(split: str) -> str:
    """The domain of a split's scans, "source" or "target"."""
    return "target" if split.startswith("target") else "source"


def make(job: tuple[str, int, int], *, settings: dict) -> list[tuple[dict, marks.Review | None]]:
    """The record of each scan of a patient, and whether its labels need a review; follows from the arguments alone. job: (split, number,
    seed)."""
    split, number, seed = job
    part = settings["splits"][split]
    protocols = part["protocol"].split(",")
    protocol = protocols[number % len(protocols)]
    if pool.drawn_again(number, part.get("calcified", 0.0)):
        seed = pool.calcified_seed(seed, protocol)
    grid, name = {"shape": tuple(settings["shape"]), "spacing_mm": tuple(settings["spacing_mm"])}, f"{split}-{number:04d}"
    if "paired" not in part:
        return [_record(cacjax.phantom.make_scan(protocol, seed, **grid), name, settings, split, protocol)]
    pair = cacjax.phantom.make_pair(protocol, seed, **grid)
    return [_record(scan, name + arm, settings, split, protocol) for scan, arm in zip(pair, "ab")]


def _record(scan, name, settings, split, protocol):
    """(Record on the network's grid, `marks.Review` or None)."""
    spacing_mm = tuple(settings["spacing_mm"])
    label, review = _label(scan, spacing_mm, settings.get("labels", LABELS[0]), name, split)
    hu, heart, affine = scan.hu, scan.heart, scan.affine
    if grid := settings.get("grid"):
        hu, index = grids.resample(scan.hu, spacing_mm, grid)
        label, heart = (grids.labels_on(each, spacing_mm, grid, index, hu.shape) for each in (label, heart))
        hu, affine = np.asarray(hu), affine @ index
    about = {"protocol": protocol, "threshold_hu": scan.truth["threshold_hu"], "aorta_hu": scan.truth["aorta_hu"]}
    return records.make_record(name, hu, label, heart, affine, domain=domain(split), **about), review


def _label(scan, spacing_mm, labels, name, split):
    """(Label on the scan's own grid, `marks.Review` or None)."""
    if labels == "visible":
        seen = observer.visible(scan.coronary, scan.truth["noise_hu"])
        return np.where(seen, np.uint8(CLASSES.index("CAC")), np.uint8(0)), None
    if labels != "marks":
        return scan.structures if labels == "structures" else scan.label, None
    points = cohort.marks_of(scan.truth)
    label, on_calcium = marks.label(scan.hu, scan.affine, points)
    reported = marks.category(marks.agatston(np.isin(scan.label, CORONARY), scan.hu, spacing_mm))
    return label, marks.review(name, split, reported, label, scan.hu, spacing_mm, points, on_calcium)

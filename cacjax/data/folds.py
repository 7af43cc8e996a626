"""Folds of a cohort for cross-validation: in each as many scans of every risk category as can be.

Settings: folds (0: none), fold (the one that is tested), seed. Categories are those of the Agatston score by the rule and the scheme
"default" of each record's labels; they are worked out once and kept beside the prepared cohort, in categories.json.
"""

import json
import sys
import zlib

import numpy as np
import tqdm

from cacjax.classes import CLASSES, CORONARY
from cacjax.data import scans
from cacjax.files.atomic import replace
from cacjax.kernels import grids, scores

FILE = "categories.json"
UNLABELLED = -1  # in place of a category
UNKNOWN = CLASSES.index("CAC")  # coronary, artery unknown


class Part:
    """Some records of a source, by their numbers."""

    def __init__(self, source, numbers):
        self.source, self.numbers = source, [int(n) for n in numbers]

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        return self.source[self.numbers[index]]


def check(data) -> None:
    """Raise ValueError for settings that give no folds, before anything is prepared."""
    folds, fold = data["folds"], data["fold"]
    if folds < 0 or folds == 1 or not 0 <= fold < max(folds, 1):
        raise ValueError(f"data.folds must be 0 (none) or at least 2, and data.fold from 0 to one less, got folds {folds}, fold {fold}")
    if folds and data["labels"] == "structures":
        raise ValueError("data.folds need labels of calcium, got data.labels 'structures'")


def divide(sources: dict, data, path, *, progress: bool) -> dict:
    """Return {split: source} with every split NAME of the source domain in two: NAME without fold `data.fold`, and NAME_test, which is it.

    path: where the categories are kept. Raises ValueError where a split has fewer records than there are folds, or NAME_test exists.
    """
    if not path.exists():
        found = {name: _categories(source, name, progress) for name, source in sources.items() if _is_source(source)}
        replace(path, lambda aside: aside.write_text(json.dumps(found)))
    parts = dict(sources)
    for name, categories in json.loads(path.read_text()).items():
        if len(categories) < data["folds"] or f"{name}_test" in sources:
            expected = f"at least {data['folds']} records in split {name}, and no split {name}_test"
            raise ValueError(f"data.folds: expected {expected}, got {len(categories)} records, splits {sorted(sources)}")
        tested = deal(categories, data["folds"], seed=(data["seed"], zlib.crc32(name.encode()))) == data["fold"]
        parts[name], parts[f"{name}_test"] = (Part(sources[name], np.flatnonzero(mask)) for mask in (~tested, tested))
    return parts


def deal(categories, folds: int, *, seed) -> np.ndarray:
    """Return the fold of each record, int [n]: shuffled within categories, then dealt like cards, one category after the other.

    Folds differ by at most one record in every category, and in all.
    """
    order = np.random.default_rng(seed).permutation(len(categories))
    order = order[np.argsort(np.asarray(categories)[order], kind="stable")]
    fold = np.empty(len(order), int)
    fold[order] = np.arange(len(order)) % folds
    return fold


def category(record: dict) -> int:
    """Return the risk category of a record, 0 to 4; -1 if it is not labelled."""
    if not record["labelled"]:
        return UNLABELLED
    label = np.asarray(record["label"])
    label = grids.pad(np.isin(label, CORONARY) if (label == UNKNOWN).any() else label, fill=0)
    hu = grids.pad(np.asarray(record["hu"], np.float32), fill=grids.NO_HU)
    found = scores.score(label, hu, tuple(float(s) for s in record["spacing_mm"]))
    return scores.category(found.agatston[found.names.index("CAC")])


def _categories(source, name, progress):
    seconds = 0.1 if sys.stderr.isatty() else 10
    numbers = tqdm.tqdm(range(len(source)), f"categories {name}", unit="scan", disable=not progress, mininterval=seconds)
    return [category(source[i]) for i in numbers]


def _is_source(source):
    return scans.as_text(source[0]["domain"]) == "source"

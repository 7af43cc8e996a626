"""Folds: stratified by risk category, every scan tested once, the same whenever they are asked for."""

import json

import numpy as np
import pytest

from cacjax.data import folds


@pytest.mark.parametrize("k", [2, 3, 5])
def test_folds_share_every_category_and_test_every_record_once(k):
    categories = np.random.default_rng(k).integers(-1, 5, 47)
    fold = folds.deal(categories, k, seed=(1, 2))
    counts = np.array([[np.sum(categories[fold == i] == c) for c in range(-1, 5)] for i in range(k)])
    assert set(fold) == set(range(k)) and (np.ptp(counts, 0) <= 1).all() and np.ptp(counts.sum(1)) <= 1
    np.testing.assert_array_equal(folds.deal(categories, k, seed=(1, 2)), fold)
    assert (folds.deal(categories, k, seed=(1, 3)) != fold).any()


def scan(pixels: int, peak_hu: int, *, label: int = 1, domain="source") -> dict:
    """Slices of 3 mm with one lesion of so many square mm."""
    shape = (2, 8, 60)
    hu, mask = np.zeros(shape, np.int16), np.zeros(shape, np.uint8)
    hu[1, 2, :pixels], mask[1, 2, :pixels] = peak_hu, label
    hu[1, 6, :60] = 900  # bone
    return {"hu": hu, "label": mask, "spacing_mm": np.float32([3, 1, 1]), "labelled": True, "domain": domain}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (scan(0, 0), 0),
        (scan(10, 150), 1),  # 10 mm2 of weight 1: 10
        (scan(11, 150), 2),
        (scan(40, 250), 2),  # weight 2: 80
        (scan(60, 450), 3),  # weight 4: 240
        (scan(60, 450, label=5), 0),  # of the aortic valve
        (scan(60, 120), 0),  # too dark
        (scan(60, 450) | {"labelled": False}, -1),
    ],
)
def test_category_is_that_of_the_coronary_agatston_score(record, expected):
    assert folds.category(record) == expected


def test_source_splits_only_are_divided_by_what_is_kept(tmp_path):
    sources = {"a": [scan(n, 150) for n in (0, 0, 20, 20)], "target": [scan(0, 0, domain="target")]}
    data = {"folds": 2, "fold": 1, "seed": 5}
    parts = folds.divide(sources, data, tmp_path / folds.FILE, progress=False)
    assert json.loads((tmp_path / folds.FILE).read_text()) == {"a": [0, 0, 2, 2]} and len(list(tmp_path.iterdir())) == 1
    assert set(parts) == {"a", "a_test", "target"} and parts["target"] is sources["target"]
    assert [sorted(folds.category(parts[name][i]) for i in range(2)) for name in ("a", "a_test")] == [[0, 2], [0, 2]]
    with pytest.raises(ValueError, match="no split a_test, got 4 records"):
        folds.divide(sources | {"a_test": sources["a"]}, data, tmp_path / folds.FILE, progress=False)


@pytest.mark.parametrize(
    "change", [{"folds": 1}, {"folds": -1}, {"folds": 3, "fold": 3}, {"fold": 1}, {"folds": 2, "labels": "structures"}]
)
def test_settings_that_give_no_folds_are_named(change):
    with pytest.raises(ValueError, match=r"data\.folds"):
        folds.check({"folds": 0, "fold": 0, "labels": "classes"} | change)

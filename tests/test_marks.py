"""Labels from the marks of a reader: which calcium a point lies on, scans whose category disagrees, the CSV and the cohorts."""

import csv

import numpy as np
import pytest

from cacjax.data import cohorts, marks
from cacjax.files import marks as file
from cacjax.phantom import pool
from cacjax.phantom.cohort import make_scan, marks_of
from configs import phantom_data

SPACING = (3.0, 0.5, 0.5)
AFFINE = np.array([[0, 0, 0.5, -10], [0, 0.5, 0, 20], [3.0, 0, 0, 100], [0, 0, 0, 1.0]])  # (z, y, x) to LPS mm


def at(z, y, x):
    """LPS mm of a voxel."""
    return (AFFINE @ [z, y, x, 1])[:3]


def drawn():
    """A lesion over two slices, one beside it that touches it by an edge, one far off, and a voxel below the threshold."""
    hu = np.zeros((4, 20, 20), np.float32)
    hu[1, 4:6, 4:6] = hu[2, 5, 5:8] = 200
    hu[2, 6, 8] = 300
    hu[1, 14:16, 14:17] = 130
    hu[3, 10, 3] = 129.9
    return hu


def test_a_mark_takes_the_component_that_it_lies_on():
    label, on_calcium = marks.label(drawn(), AFFINE, [at(1, 4, 4)])
    expected = np.zeros(label.shape, np.uint8)
    expected[1, 4:6, 4:6] = expected[2, 5, 5:8] = 7
    np.testing.assert_array_equal(label, expected)
    assert on_calcium == 1 and label.dtype == np.uint8


def test_a_mark_beside_calcium_counts_within_two_millimetres():
    """The nearest voxel, in mm: 4 pixels of .5 mm are near, 5 are not, and a slice of 3 mm is not."""
    found = lambda *points: marks.label(drawn(), AFFINE, [at(*point) for point in points])  # noqa: E731
    assert found((1, 14, 20))[0].sum() == 7 * 6 and found((1, 14, 20.4))[1] == 0
    assert found((0, 15, 15))[1] == 0 and found((1.6, 15, 15))[1] == 1
    assert found((2, 6, 7.6))[0][2, 6, 8] == 7 and found((2, 6, 7.6))[0][2, 5, 7] == 0  # the nearer of two
    assert found((3, 10, 3))[1] == 0  # below 130 HU
    assert found((-50, 0, 0), (1, 14, 14), (1, 15, 16))[1] == 2
    label, on_calcium = marks.label(drawn(), AFFINE, np.empty((0, 3)))
    assert not label.any() and on_calcium == 0


def test_a_scan_in_another_category_is_reviewed():
    """4 + 3 pixels of 200 HU: 7 x .25 mm2 x 2 x 3 / 3 = 3.5, category B."""
    hu = drawn()
    label, _ = marks.label(hu, AFFINE, [at(1, 4, 4)])
    assert marks.agatston(label > 0, hu, SPACING) == pytest.approx(3.5)
    told = {"mask": label, "hu": hu, "spacing_mm": SPACING, "marks": [0], "on_calcium": 1}
    assert marks.review("s", "train", "B", **told) is None and marks.review("s", "train", "", **told) is None
    assert marks.review("s", "train", "A", **told) == ("s", "train", "A", "B", 3.5, 1, 1)


def test_marks_are_read_by_scan(tmp_path):
    path = tmp_path / "marks.csv"
    path.write_text("scan,x_mm,y_mm,z_mm\na,1,2,3\nb,4,5,6\na,-1.5,0,2e1\n")
    np.testing.assert_array_equal(file.read(path, "a"), [[1, 2, 3], [-1.5, 0, 20]])
    assert file.read(path, "none").shape == (0, 3)
    path.write_text("x_mm,y_mm,z_mm\n1,2,3\n")
    assert file.read(path, "any").shape == (1, 3)
    path.write_text("scan,x_mm,y_mm,z_mm\na,1,2,\n")
    with pytest.raises(ValueError, match=r"marks.csv, line 2: expected three numbers of mm"):
        file.read(path, "a")
    path.write_text("x,y,z\n")
    with pytest.raises(ValueError, match="expected columns x_mm, y_mm, z_mm, got x, y, z"):
        file.read(path, "a")


@pytest.fixture(scope="module")
def calcified():
    """A small gated scan with calcium."""
    return make_scan("cardiac", 89, shape=(24, 60, 60), spacing_mm=(3.0, 1.0, 1.0))


def test_marks_of_a_phantom_lie_on_its_calcium(calcified):
    points = marks_of(calcified.truth)
    label, on_calcium = marks.label(calcified.hu, calcified.affine, points)
    real = (calcified.label >= 1) & (calcified.label <= 3)
    assert 0 < on_calcium <= len(points) and real.any()  # a lesion can be seen and stay below 130 HU
    shared = (label > 0) & real
    assert shared.sum() >= 0.9 * real.sum() and shared.sum() >= 0.9 * (label > 0).sum()


def cells_of(kind, directory, **more):
    """The settings of a cohort of cells."""
    data = phantom_data.get_config().to_dict() | {"kind": kind, "directory": str(directory), "workers": 0, "labels": "marks"}
    data["grid"] = {"kind": "cells", "sides_mm": (2.5, 3.0), "restore": "max_components"}
    return data | more


def test_phantoms_become_cells_with_labels_from_marks(tmp_path, monkeypatch, calcified):
    monkeypatch.setattr("cacjax.data.phantom.cacjax.phantom.make_scan", lambda *a, **k: calcified, raising=False)
    splits = {"train": {"protocol": "cardiac", "count": 1, "calcified": 0.0, "categories": (), "paired": False}}
    data = cells_of("phantom", tmp_path, shape=(24, 60, 60), acquired_mm=(3.0, 1.0, 1.0), splits=splits)
    (record,) = cohorts.open(data, progress=False)["train"]
    assert record["hu"].shape == (24, 20, 20) and set(np.unique(record["label"])) == {0, 7}
    np.testing.assert_allclose(record["spacing_mm"], 3.0)
    np.testing.assert_allclose(record["affine"][:3, 3] - calcified.affine[:3, 3], [1.0, 1.0, 0], atol=1e-9)
    assert len(list(tmp_path.rglob(marks.FILE))) == 1


def test_a_folder_with_marks_becomes_cells(tmp_path, capsys, calcified):
    from cacjax.files.scan import write_image

    write_image(calcified.hu, calcified.affine, tmp_path / "a.nii.gz")
    write_image(calcified.hu, calcified.affine, tmp_path / "b.nii.gz")
    points = [["a", *point] for point in marks_of(calcified.truth).tolist()]
    named = [[f"{name}.nii.gz", "train", "marks.csv", "A"] for name in "ab"]
    for name, rows in (
        ("marks.csv", [["scan", "x_mm", "y_mm", "z_mm"], *points]),
        ("manifest.csv", [["scan", "split", "marks", "category"], *named]),
    ):
        with open(tmp_path / name, "w", newline="") as f:
            csv.writer(f).writerows(rows)
    data = cells_of("folder", tmp_path / "prepared", manifest=str(tmp_path))
    marked, clean = cohorts.open(data, progress=False)["train"]
    assert (marked["label"] == 7).any() and not clean["label"].any() and clean["labelled"]
    told = capsys.readouterr().err
    assert "1 scans whose labels from marks are in another category than reported" in told
    with open(told.split("see ")[1].split("\n")[0]) as f:
        (row,) = csv.DictReader(f)
    assert (row["scan"], row["reported"]) == ("a", "A") and row["found"] != "A"


def test_a_pool_is_drawn_from_in_turn(monkeypatch):
    monkeypatch.setattr(pool, "category", lambda seed, protocol: seed % 3)
    assert pool.draw((2, 0, 1, 0, 0), 9, "cardiac") == [9, 11, 12]
    with pytest.raises(ValueError, match="too few"):
        pool.draw((0, 0, 0, 1, 0), 0, "cardiac")


def test_categories_of_a_split_are_checked():
    from cacjax.data import phantom

    def wanted(**part):
        splits = {"a": {"protocol": "cardiac", "count": 0, "calcified": 0.0, "categories": (1, 2, 0, 0, 1), "paired": False} | part}
        return phantom.settings(cells_of("phantom", "x", shape=(4, 4, 4), acquired_mm=(3.0, 1.0, 1.0), splits=splits))["splits"]["a"]

    assert wanted()["count"] == 4
    for wrong in ({"categories": (1, 2)}, {"calcified": 0.5}, {"protocol": "cardiac,ccta"}, {"categories": (-1, 2, 0, 0, 1)}):
        with pytest.raises(ValueError, match="expected five numbers of patients"):
            wanted(**wrong)

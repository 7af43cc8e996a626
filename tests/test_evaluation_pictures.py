"""Pictures of an evaluation show the errors they should, where they are, with the right words."""

import numpy as np
import pytest
from matplotlib.image import imread

from cacjax.evaluation import pictures
from cacjax.evaluation.compare import Reference, number_lesions
from cacjax.evaluation.pictures import ERROR_COLOURS, OTHER_COLOUR, REFERENCE_COLOUR
from cacjax.files import scan

SPACING = (2.0, 1.0, 0.5)  # a voxel is 1 mm³
SHAPE = (8, 100, 160)


def count(picture, colour, *, near=0.02):
    """Pixels of a [h, w, 3] picture in 0..1 that are close to `colour`."""
    target = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    return int((np.abs(picture - target).max(-1) < near).sum())


def test_errors_by_hand():
    assert pictures.errors([0, 1, 2, 0], [0, 3, 0, 1]).tolist() == [0, 1, 2, 3]


def test_comparison_colours_errors(tmp_path):
    reference, found = np.zeros((60, 60), bool), np.zeros((60, 60), bool)
    reference[10:14, 10:14], found[10:14, 10:12], found[40:44, 40:44] = True, True, True
    panel = {
        "name": "s",
        "hu": np.zeros((60, 60)),
        "reference": reference,
        "found": {"before": found & False, "after": found},
    }
    panel |= {
        "spacing_mm": (0.7, 0.7),
        "threshold_hu": 130.0,
        "notes": {"after": "F1 0.33"},
    }
    pictures.comparison(tmp_path / "c.png", [panel], arms=("before", "after"))
    picture = imread(tmp_path / "c.png")[..., :3]
    assert all(count(picture, colour) > 20 for colour in ERROR_COLOURS)


def draw(**blocks):
    """Classes [z, y, x] with `name_class=(z, y, x, depth, height, width)` blocks."""
    mask = np.zeros(SHAPE, np.int16)
    for name, (z, y, x, depth, height, width) in blocks.items():
        mask[z : z + depth, y : y + height, x : x + width] = int(name[-1])
    return mask


@pytest.fixture
def truth():
    """LAD of 24 mm³, RCA of 8 mm³ of which 6 lie below the threshold of 300 HU, mitral valve of 12 mm³; feet first, as files have it."""
    label = draw(a_1=(2, 30, 40, 2, 3, 4), b_3=(6, 60, 100, 1, 2, 4), c_6=(4, 80, 20, 1, 3, 4))
    hu = np.where(label > 0, 500, 40).astype(np.float32)
    hu[6, 60:62, 100:103] = 200
    image = scan.Scan(hu, np.diag([*SPACING[::-1], 1.0])[:, [2, 1, 0, 3]], scan.Acquisition(), "t")
    lesions = {"CAC": number_lesions(np.isin(label, pictures.CORONARY), 26)}
    return Reference("t", image, label, None, hu >= 300, lesions, 300.0, 1.0)


def outlier(truth, found, detected, **options):
    return pictures.of_outlier(truth, found, number_lesions(np.isin(found, pictures.CORONARY), 26), detected, **options)


def test_what_was_missed_and_why(truth):
    """The whole LAD, which the network saw and reduction took; two thirds of the RCA lie below the threshold."""
    first, second = outlier(truth, draw(), draw(a_1=(2, 30, 40, 2, 3, 3)))
    assert first["title"] == "t, slice 3 of 8\nwhole scan: 0 mm³ found, 32 real"
    assert (first["caption"], first["why"]) == ("LAD: missed 24.0 of 24.0 mm³", "detected, then taken away by FP reduction")
    assert (second["caption"], second["why"]) == (
        "RCA: missed 8.0 of 8.0 mm³",
        "below the threshold: mean 275 HU, threshold 300",
    )
    assert (first["found"] == pictures.MISSED).sum() == 12 and (first["before"] == pictures.MISSED).sum() == 3
    assert first["hu"].shape == (40, 80), "40 mm"
    assert outlier(truth, draw(), draw())[0]["why"] == "not detected"
    assert outlier(truth, draw(), draw(a_4=(2, 30, 40, 2, 3, 4)))[0]["why"] == "detected as TAC"
    unknown = outlier(truth, draw(), None, count=1)[0]
    assert unknown["why"] == "" and unknown["before"] is None


def test_what_is_false_and_why(truth):
    """Calcium of the mitral valve called LCX, then soft tissue at the border; all real calcium was found."""
    real = np.where(truth.label == 6, 0, truth.label)
    found = real + draw(a_2=(4, 80, 20, 1, 3, 4), b_1=(7, 0, 157, 1, 1, 3))
    first, second = outlier(truth, found, found)
    assert first["caption"] == "LCX: false 12.0 of 12.0 mm³"
    assert first["why"] == "MV calcium in the reference; mean 500 HU, threshold 300"
    assert second["caption"] == "LAD: false 3.0 of 3.0 mm³" and second["hu"].shape == (40, 80)
    assert second["why"] == "nothing in the reference; mean 40 HU, threshold 300"
    assert (second["found"][0, -3:] == pictures.FALSE).all(), "a close-up at the border is moved, not cut"
    assert outlier(truth, real, real) == []


def test_a_wrong_artery_is_no_error_of_coronary_calcium(truth):
    found = np.where(truth.label == 1, 2, truth.label)
    assert outlier(truth, found, found) == []


def test_outliers_picture(truth, tmp_path):
    found = draw(a_1=(2, 30, 40, 2, 3, 2), b_2=(4, 80, 20, 1, 3, 4))
    shown = outlier(truth, found, None)
    bare = [panel | {"found": panel["found"] * 0, "reference": panel["reference"] * 0} for panel in shown]
    for name, rows in (("marked", shown), ("bare", bare)):
        pictures.outliers(tmp_path / f"{name}.png", rows, title="arm")
    marked, bare = (imread(tmp_path / f"{name}.png")[..., :3] for name in ("marked", "bare"))
    for colour in (*ERROR_COLOURS, REFERENCE_COLOUR, OTHER_COLOUR):
        assert count(marked, colour, near=0.25) > count(bare, colour, near=0.25) + 20, "more than the legend has"


def record(name, found, reference, **more):
    return {"scan": name, "arm": "x", "stage": "final", "artery": "CAC", "found_mm3": found, "reference_mm3": reference} | more


def test_furthest_holds_both_kinds():
    """Two with too much and two with too little by size; where one kind lacks, the other fills up; exact ones never."""
    records = [record(*r) for r in (("a", 90, 0), ("b", 80, 0), ("c", 70, 0), ("d", 0, 5), ("e", 0, 4), ("f", 0, 3), ("g", 9, 9))]
    assert pictures.furthest(records, "x") == ["a", "b", "d", "e"]
    assert pictures.furthest(records[:4], "x") == ["a", "b", "c", "d"]
    assert pictures.furthest(records[-1:], "x") == [] and pictures.furthest(records, "y") == []
    assert pictures.furthest([record("a", 9, 0, artery="LAD"), record("b", 9, 0, stage="before")], "x") == []


def test_scatter_picture(tmp_path):
    """Outliers are orange; an arm that finds nothing, one with a single scan and one without any are drawn all the same."""
    points = {"x": [(str(k), 12.0 * k, 10.0 * k) for k in range(6)], "y": [(str(k), 0.0, 0.0) for k in range(3)]}
    points |= {"z": [("1", 1.0, 5.0)], "none": []}
    words = pictures.Words("reference", "found", "mm³", "title")
    pictures.scatter(tmp_path / "a.png", points, words=words, named={"x": ["5"], "y": []})
    pictures.scatter(tmp_path / "b.png", points, words=words)
    marked, bare = (imread(tmp_path / name)[..., :3] for name in ("a.png", "b.png"))
    assert marked.shape == bare.shape and count(marked, pictures.OUTLIER_COLOUR, near=0.3) > count(bare, pictures.OUTLIER_COLOUR, near=0.3)


def test_categories_are_drawn_with_the_reference_down(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    written = []
    monkeypatch.setattr(Axes, "text", lambda self, x, y, count, **more: written.append((y, x, int(count))))
    counts = np.array([[5, 1, 0], [0, 4, 2], [0, 0, 3]])
    row = {"confusion": counts, "categories": ("A", "B", "C"), "accuracy": 0.8, "c_index": 0.9, "kappa": 0.7}
    pictures.confusions(tmp_path / "c.png", {"one": row, "two": row})
    assert written == [(i, j, counts[i, j]) for i in range(3) for j in range(3)] * 2
    assert (tmp_path / "c.png").stat().st_size > 3000

"""The table of pairs: figures of a map against drawings whose answer is known, controls that a bad network cannot pass."""

import numpy as np
import pytest

from cacjax.evaluation import maps
from cacjax.experiments import cyclegan
from cacjax.experiments.cyclegan import Column, Experiment

MM = (3.0, 1.0, 1.0)


def drawing():
    """(HU, true calcium, heart, slices that show it): a heart of 45 HU in fat of -90, calcium in one slice, half of it in fat."""
    hu, heart = np.full((4, 20, 20), -90.0), np.zeros((4, 20, 20), bool)
    heart[:, 4:16, 4:16], hu[:, 6:14, 6:14] = True, 45.0
    real = np.zeros(hu.shape)
    real[1, 8:12, 5:7] = 200.0  # columns 5 (fat) and 6 (blood)
    return hu + real, real, heart, np.array([False, True, False, False])


def test_figures_of_the_true_map():
    hu, real, heart, seen = drawing()
    found = maps.figures(real, hu=hu, real=real, heart=heart, spacing_mm=MM, seen=seen)
    whole = 8 * 200 * 3.0
    assert found["map/none"] == {"mass": whole, "total": whole, "near": whole, "removed": whole, "free_hu": 0.0}
    # The twin of what lies in fat is darker than -10 HU, once HU are clipped to -50: half of it is not taken; CT sums what is there.
    assert found["CT/none"]["total"] == whole / 2 and found["CT/none"]["mass"] == 4 * 245 * 3.0


def test_figures_tell_a_map_in_the_wrong_place():
    hu, real, heart, seen = drawing()
    edges = np.where(heart & (hu < 0), 10.0, 0.0)  # the same anatomy in every scan
    found = maps.figures(edges, hu=hu, real=real, heart=heart, spacing_mm=MM, seen=seen, chance=np.array([0.5, 0.4, 0.4, 0.9]))
    assert found["map/none"]["near"] < 0.3 * found["map/none"]["total"] and found["map/none"]["free_hu"] > 5
    per_slice = (edges[0] > 0).sum() * 10 * 3.0
    assert found["map/classifier"]["total"] == pytest.approx(2 * per_slice)
    assert found["map/truth"]["total"] == pytest.approx(edges[1].sum() * 3.0) and found["map/truth"]["free_hu"] == 0


def test_a_lesion_of_a_map_adds_up_to_something():
    """Parts of 24 and of 21 mm³ of 100 HU that touch by a corner alone, and one of 24 in two slices."""
    hu, real, heart, seen = drawing()
    taken = np.zeros(hu.shape)
    taken[1, 8, 5:13], taken[1, 9, 13:20] = 100.0, 100.0
    taken[2:4, 4, 4:8] = 100.0
    found = maps.figures(taken, hu=hu, real=real, heart=heart, spacing_mm=MM, seen=seen, chance=np.ones(4))
    assert found["map/classifier"]["total"] == 23 * 300 and found["map/lesions"]["total"] == 16 * 300
    gated = maps.figures(taken, hu=hu, real=real, heart=heart, spacing_mm=MM, seen=seen, chance=np.array([1, 1, 1, 0.4]))
    assert gated["map/lesions"]["total"] == 8 * 300
    assert gated["map/parts"]["total"] == 16 * 300  # of the one in two slices the mean is .7: it stays whole
    unlikely = maps.figures(taken, hu=hu, real=real, heart=heart, spacing_mm=MM, seen=seen, chance=np.array([1, 1, 0.7, 0.4]))
    assert unlikely["map/parts"]["total"] == unlikely["map/lesions"]["total"] == 8 * 300


def test_arteries_are_found_by_what_is_near_their_own_calcium():
    hu, real, heart, seen = drawing()
    real[3, 8:12, 12:14] = 200.0
    lesions = [{"artery": "LAD", "centre_mm": (5.5, 9.5, 3.0)}, {"artery": "RCA", "centre_mm": (12.5, 9.5, 9.0)}]
    lesions.append({"artery": "aorta", "centre_mm": (9.0, 9.5, 6.0)})
    affine = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1.0]])
    arteries = maps.by_artery(real > 0, affine, lesions, MM)
    assert arteries.keys() == {"LAD", "RCA"}
    np.testing.assert_array_equal(arteries["LAD"][1].any(0).nonzero()[0], np.arange(2, 10))
    assert not (arteries["LAD"] & arteries["RCA"]).any()
    figures = maps.figures(
        real * (np.arange(4) < 3)[:, None, None], hu=hu, real=real, heart=heart, spacing_mm=MM, seen=seen, arteries=arteries
    )
    assert figures["map/none"]["LAD"] is True and figures["map/none"]["RCA"] is False
    assert maps.by_artery(real > 900, affine, lesions, MM) == {}
    scans = [reading(1, true=1) | {"LAD": True, "RCA": False}, reading(1, true=1) | {"LAD": True}]
    over = maps.over([scans], np.array([True]))
    assert (over["LAD"], over["RCA"]) == (1.0, 0.0) and np.isnan(over["LCX"])


def reading(mass, *, true, visible=True, near=1.0):
    return {"mass": mass, "total": mass, "near": near * mass, "removed": min(mass, true), "free_hu": 0.1, "visible": visible, "true": true}


def test_measures_of_pairs():
    both = [
        [reading(100, true=100), reading(140, true=120)],
        [reading(40, true=50), reading(40, true=50)],
        [reading(0, true=10), reading(5, true=10)],
        [reading(0, true=0, visible=False), reading(3, true=0, visible=False)],
    ]
    found = maps.over(both, np.array([True, True, False, False]))
    assert found["difference"] == pytest.approx((40 / 120 + 0) / 2) and found["difference_own"] == pytest.approx((40 / 120 + 0) / 2)
    assert found["sensitivity"] == pytest.approx(5 / 6) and found["false_positive_rate"] == pytest.approx(1 / 2)
    assert found["near"] == 1 and found["removed"] == pytest.approx((100 + 120 + 40 + 40 + 0 + 5 + 0 + 0) / 340)
    assert found["sensitivity_at"] == pytest.approx(5 / 6)  # above 3, the larger of the two without calcium
    mass, seen = np.array([5.0, 4, 3, 2, 1, 0, 0, 0, 0, 0]), np.array([True, False, True, True] + [False] * 6)
    assert maps.sensitivity_at(mass, seen) == pytest.approx(1 / 3) and maps.sensitivity_at(mass, seen, 0.2) == 1
    missed = [[reading(0, true=100), reading(50, true=100)]]
    assert maps.over(missed, np.array([True]))["difference"] == 2.0  # nothing in one scan counts, and as the most that can be


def test_categories_are_those_of_scaled_scores():
    pair = lambda *scores: [reading(1, true=1) | {"agatston": s, "clinical": c} for s, c in scores]  # noqa: E731
    both = [pair((1, 10), (1, 10)), pair((30, 300), (50, 500)), pair((9, 90), (9, 90))]
    found = maps.categories(both)  # ten times as large: I I, III IV, II II
    assert found["accuracy"] == pytest.approx(2 / 3) and 0 < found["kappa"] < 1
    assert np.isnan(maps.categories([[reading(1, true=1)] * 2])["kappa"])


def test_a_table_has_a_row_for_every_column_and_its_intervals(monkeypatch):
    monkeypatch.setattr(cyclegan, "BOOTSTRAPS", 100)
    columns = (Column("network", "CT", "classifier", {"difference": 0.47}), Column(cyclegan.OBSERVER, "CT", "none"))
    random = np.random.default_rng(0)

    def column(spread):
        true = random.uniform(50, 500, 30)
        scans = [[reading(float(t * random.lognormal(0, spread)), true=float(t)) for _ in range(2)] for t in true]
        return {"pairs": scans, "concordant": [True] * 30}

    result = {"seed": 0, "columns": [column(0.1), column(0.6)]}
    rows = cyclegan.summary(Experiment({}, columns), [result])
    again = cyclegan.summary(Experiment({}, columns), [result] * 3)  # three readings of the same patients are no more patients
    for name in ("difference", "difference_low", "difference_high", "near_low", "n"):
        assert [row[name] for row in again] == pytest.approx([row[name] for row in rows])
    assert [row["network"] for row in rows] == ["network", cyclegan.OBSERVER] and rows[0]["published_difference"] == 0.47
    assert rows[0]["difference_high"] < rows[1]["difference_low"] and rows[0]["spearman"] > rows[1]["spearman"]
    assert set(cyclegan.shown(rows[0])) == set(cyclegan.SHOWN) and "(0.47)" in cyclegan.shown(rows[0])["rel. difference, concordant"]


def test_slabs_at_half_the_increment_are_read_where_slices_lie():
    slabs = np.arange(7)[:, None, None] * np.ones((1, 2, 2))
    np.testing.assert_array_equal(cyclegan._on(slabs, (4, 2, 2))[:, 0, 0], [0, 2, 4, 6])
    np.testing.assert_array_equal(cyclegan._on(slabs, (7, 2, 2)), slabs)

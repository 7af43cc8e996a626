"""Detection metrics against published figures and hand counts."""

import itertools

import numpy as np
import pytest

from cacjax.evaluation import metrics
from cacjax.evaluation.metrics import Counts


def test_published_scan_counts():
    """Van Velzen 2022: 73 of 88 scans with calcium found, 21 of 150 without it called positive: 0.83, 0.14, F1 0.80."""
    found = np.repeat([True, False, True, False], [73, 15, 21, 129])
    real = np.repeat([True, True, False, False], [73, 15, 21, 129])
    counts, true_negatives = metrics.count_scans(found, real)
    assert (counts, true_negatives) == (Counts(73, 21, 15), 129)
    assert metrics.sensitivity(counts) == pytest.approx(0.83, abs=0.005)
    assert counts.fp / (counts.fp + true_negatives) == pytest.approx(0.14)
    assert metrics.f1(counts) == pytest.approx(0.80, abs=0.005)


def test_f1_is_the_harmonic_mean():
    """All F1 printed for CAC-Net are the harmonic mean of sensitivity and precision."""
    counts = Counts(30, 20, 10)
    s, p = metrics.sensitivity(counts), metrics.precision(counts)
    assert (s, p) == (pytest.approx(0.75), pytest.approx(0.6))
    assert metrics.f1(counts) == pytest.approx(2 * s * p / (s + p), abs=1e-6)


@pytest.mark.parametrize(("counts", "sensitivity", "f1"), [((0, 0, 0), 1, 1), ((0, 5, 0), 1, 2e-6), ((0, 0, 5), 2e-6, 2e-6)])
def test_empty_scans_as_published(counts, sensitivity, f1):
    counts = Counts(*counts)
    assert metrics.sensitivity(counts) == pytest.approx(sensitivity, abs=1e-7)
    assert metrics.f1(counts) == pytest.approx(f1, abs=1e-7)


def test_lesions_by_hand():
    """Two pieces find A, B is missed, a third piece touches nothing; the published code takes a split for an error."""
    real = np.array([1, 1, 1, 1, 1, 0, 0, 2, 0, 0, 0])
    found = np.array([1, 0, 2, 0, 0, 0, 0, 0, 0, 3, 3])
    ours, authors = metrics.count_lesions(found, real)
    assert ours == Counts(tp=1, fp=1, fn=1)
    assert authors == Counts(tp=1, fp=2, fn=1)
    assert metrics.count_lesions(np.zeros(4, int), np.zeros(4, int)) == (Counts(0, 0, 0), Counts(0, 0, 0))


def test_average_precision_by_hand():
    """Ranks + - + -: precision 1 at recall 1/2 and 2/3 at recall 1."""
    assert metrics.average_precision([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert np.isnan(metrics.average_precision([0.5], [0]))


def test_average_precision_of_ties_does_not_depend_on_order():
    """Two positives and two negatives at .5 form one step: precision 1/2 at recall 1, after one sure hit."""
    rows = [(0.9, 1), (0.5, 1), (0.5, 0), (0.5, 1), (0.5, 0)]
    expected = 1 / 3 * 1 + 2 / 3 * 3 / 5
    for order in itertools.permutations(rows):
        score, real = zip(*order)
        assert metrics.average_precision(score, real) == pytest.approx(expected)


def test_mean_and_sample_sd_skip_undefined_scans():
    assert metrics.mean_sd([1.0, float("nan"), 3.0]) == (2.0, pytest.approx(2**0.5))
    mean, sd = metrics.mean_sd([4.0])
    assert mean == 4.0 and np.isnan(sd)


def test_sensitivity_by_the_size_of_a_lesion():
    """Lesions of 1, 2, 5, 19, 20 and 40 voxels of 1 mm3; found: a voxel of the second, the fourth and the last."""
    sizes = (1, 2, 5, 19, 20, 40)
    real = np.repeat(np.arange(len(sizes) + 1), (3, *sizes))
    found = np.zeros_like(real)
    for number, lesion in enumerate((2, 4, 6), 1):
        found[np.flatnonzero(real == lesion)[0]] = number
    counted = metrics.count_sizes(found, real, 1.0)
    assert counted == {"1.5_to_5": Counts(1, 0, 0), "5_to_20": Counts(1, 0, 1), "over_20": Counts(1, 0, 1)}
    kinds = metrics.count_voxels(found > 0, real > 0), *metrics.count_lesions(found, real)
    record = metrics.metrics(*kinds, counted, 1.0)
    assert record["lesion_sensitivity_5_to_20_mm3"] == pytest.approx(0.5, abs=1e-4) and record["lesion_ppv"] == record["ppv"] == 1
    none = metrics.metrics(*kinds, metrics.count_sizes(found, np.zeros_like(real), 1.0), 1.0)
    assert np.isnan(none["lesion_sensitivity_over_20_mm3"])
    pooled = metrics.pool([record | {"reference_mm3": 1.0}, none | {"reference_mm3": 0.0}])
    assert pooled["lesion_sensitivity_1.5_to_5_mm3"] == pytest.approx(1) and pooled["ppv"] == pytest.approx(1)

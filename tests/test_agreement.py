"""Agreement against published and hand-computed values, and what must hold for any pairs."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cacjax.evaluation import agreement

SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
GOLDEN = [[20, 2, 0, 0], [1, 15, 3, 0], [0, 2, 10, 1], [0, 0, 1, 8]]
COHEN = [[88, 14, 18], [10, 40, 10], [2, 6, 12]]
CAC_RISK = [[62, 11, 0, 0], [6, 395, 2, 0], [0, 13, 260, 1], [0, 2, 9, 152]]
DEEPCAC = [[59, 24, 0, 1], [32, 94, 11, 3], [4, 8, 37, 20], [0, 1, 7, 95]]
A, B = [10, 50, 100, 400], [14, 40, 130, 350]
# Volumes of scans in mm³: whole voxels, so that squares of differences do not underflow.
volume = st.integers(0, 20000).map(lambda n: n / 8)
volumes = st.lists(st.tuples(volume, volume), min_size=2, max_size=30).map(lambda pairs: np.array(pairs).T)


def test_icc_of_shrout_and_fleiss():
    """The textbook value, and McGraw and Wong's interval as other software prints it."""
    found = agreement.icc_a1(SHROUT_FLEISS)
    assert found == pytest.approx((0.289764, 0.018787, 0.761084, ""), abs=1e-6)
    assert agreement.icc_a1([(2, 4), (4, 6), (6, 8)]).value == pytest.approx(2 / 3)


@given(volumes)
def test_icc_is_symmetric_and_lies_in_its_interval(pairs):
    found, swapped = agreement.icc_a1(pairs.T), agreement.icc_a1(pairs[::-1].T)
    if np.ptp(pairs) == 0:
        assert np.isnan(found.value) and found.reason == "all values are equal"
        return
    if found.reason:
        assert np.ptp(pairs.sum(0)) == 0 and np.ptp(pairs.sum(1)) == 0, "only where all means are equal"
        return
    assert found.value == pytest.approx(swapped.value, abs=1e-9) and found.value <= 1 and found.low <= found.high
    assert found.value <= 0 or found.low - 1e-9 <= found.value <= found.high + 1e-9
    moved = agreement.icc_a1(4.0 * pairs.T + 16.0)
    assert moved.value == pytest.approx(found.value, abs=1e-6), "the unit and its zero do not matter"


@pytest.mark.parametrize(("raters", "shift"), [(2, 0.5), (5, 0.0)])
def test_interval_of_icc_covers(raters, shift):
    """Of 400 samples with SD 2 between subjects, `shift` between raters, error 1, about 95 % of the intervals hold 4 / (5 + shift²)."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        subjects, shifts = 2 * rng.normal(size=(25, 1)), shift * rng.normal(size=(1, raters))
        found = agreement.icc_a1(subjects + shifts + rng.normal(size=(25, raters)))
        held += found.low <= 4 / (5 + shift**2) <= found.high
    assert 0.92 <= held / 400 <= 0.98


@pytest.mark.parametrize(
    ("counts", "weights", "expected"),
    [
        (GOLDEN, "linear", 0.862445),
        (COHEN, "none", 0.4915),
        (COHEN, [[0, 1, 3], [1, 0, 6], [3, 6, 0]], 0.3478),
        (COHEN, "linear", 0.4737),
        (COHEN, "quadratic", 0.4545),
        (CAC_RISK, "linear", 0.9457),
        (CAC_RISK, "none", 0.9282),
        (CAC_RISK, "quadratic", 0.9633),
        (DEEPCAC, "none", 0.6177872074014817),
        (DEEPCAC, "linear", 0.7548828025),
        (DEEPCAC, "quadratic", 0.857000),
    ],
)
def test_kappa_as_published(counts, weights, expected):
    """Cohen 1968 with his own weights, the risk categories of PMC9530804, the notebook of DeepCAC; others computed elsewhere."""
    found = agreement.kappa(counts, weights=weights)
    assert found.value == pytest.approx(expected, abs=6e-5)
    assert found.low < found.value < found.high
    assert agreement.kappa(np.transpose(counts), weights=np.transpose(weights) if isinstance(weights, list) else weights) == (
        pytest.approx(found)
    )


def test_interval_of_kappa():
    """.9296 to .9617 for the 916 scans of PMC9530804, by the same formula in statsmodels."""
    assert agreement.kappa(CAC_RISK)[1:3] == pytest.approx((0.9296, 0.9617), abs=6e-5)


def test_accuracy_and_confusion():
    assert agreement.accuracy(DEEPCAC) == pytest.approx(0.7196969697)
    assert agreement.confusion([0, 1, 1, 2], [0, 1, 2, 2], 3).tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    perfect = agreement.kappa(np.diag([3, 1, 4]))
    assert perfect[:3] == pytest.approx((1, 1, 1))
    assert agreement.kappa([[4, 0], [0, 0]]).reason == "both use one and the same category"


def test_relative_differences():
    """By hand, and the "all" columns of van Velzen 2022, Table 3, from its counts and its mean over positive pairs."""
    assert agreement.relative_differences(A, B) == pytest.approx([0.333333, 0.222222, 0.260870, 0.133333], abs=1e-6)
    for concordant, mean, discordant, expected in ((26, 0.61, 5, 0.834), (5, 0.35, 6, 1.250)):
        a = [(2 + mean) / (2 - mean)] * concordant + [3.0] * discordant + [0.0]
        b = [1.0] * concordant + [0.0] * discordant + [0.0]
        assert agreement.relative_differences(a, b).mean() == pytest.approx(mean)
        assert agreement.relative_differences(a, b, over="any").mean() == pytest.approx(expected, abs=1e-3)


def test_limits_that_widen_with_the_mean():
    limits = agreement.bland_altman(A, B)
    assert limits.slope == pytest.approx(2.506213, abs=1e-6) and limits.coefficient == pytest.approx(6.156501, abs=1e-6)
    assert limits.bias == pytest.approx((-4 + 10 - 30 + 50) / 4)
    assert limits.half_width([0, 100]) == pytest.approx([0, 61.56501], abs=1e-5)
    assert pytest.approx(4.930, abs=1e-3) == agreement.HALF_NORMAL * 2.007, "Sevrukov 2005: 4.930 sqrt(Agatston)"


def test_linear_limits_are_least_squares():
    limits = agreement.bland_altman(A, B, shape="linear")
    slope, base = np.polyfit((np.array(A) + B) / 2, np.abs(np.subtract(A, B)), 1)
    assert (limits.slope, limits.base) == pytest.approx((slope, agreement.HALF_NORMAL * base))
    assert limits.half_width(100) == pytest.approx(agreement.HALF_NORMAL * (base + 100 * slope))
    assert limits.half_width(-1e6) == 0


def test_limits_hold_95_of_100():
    """Differences whose SD is 2 sqrt(mean), as the model says: the limits are 1.96 of that, and hold 95 % of new pairs."""
    rng = np.random.default_rng(0)
    mean = rng.exponential(100, 20000)
    difference = 2 * np.sqrt(mean) * rng.normal(size=mean.size)
    limits = agreement.bland_altman(mean + difference / 2 + 50, mean - difference / 2 + 50)
    assert limits.bias == pytest.approx(0, abs=0.5)
    limits = agreement.bland_altman(np.maximum(mean + difference / 2, 0), np.maximum(mean - difference / 2, 0))
    assert limits.coefficient == pytest.approx(1.96 * 2, rel=0.02)
    assert np.mean(np.abs(difference) <= limits.half_width(mean)) == pytest.approx(0.95, abs=0.005)


def test_c_index():
    true, found = [0, 0, 1, 1, 2, 2, 3, 4], [0, 1, 1, 0, 2, 3, 3, 4]
    assert agreement.c_index(found, true) == pytest.approx(0.90)
    assert agreement.c_index(found, true, kind="printed") == pytest.approx(0.75)
    perfect = np.repeat(np.arange(5), (20, 20, 20, 19, 19))
    assert agreement.c_index(perfect, perfect, kind="printed") == pytest.approx(0.808121, abs=1e-6)
    assert agreement.c_index(perfect, perfect) == 1
    assert np.isnan(agreement.c_index([1, 2], [3, 3]))


def test_c_index_of_deepcac_and_of_censored_times():
    """The 396 pairs of categories of DeepCAC; six censored times as in Harrell's definition (a high risk is an early event)."""
    found, expert = (np.repeat(axis, np.ravel(DEEPCAC)) for axis in np.indices((4, 4)).reshape(2, -1))
    assert agreement.c_index(found, expert) == pytest.approx(0.891532, abs=1e-6)
    time, risk, event = [5, 6, 6, 8, 10, 12], np.array([3, 2, 3, 2, 1, 1]), [1, 1, 0, 1, 0, 1]
    assert agreement.c_index(-risk, time, event=event) == pytest.approx(9 / 11)


@given(volumes)
def test_c_index_counts_pairs(pairs):
    """Every pair in a loop: 1 for the right order, a half for a tie in what was found."""
    found, reference = pairs
    points = [(1 if f < g else 0.5 if f == g else 0) for f, r in zip(found, reference) for g, s in zip(found, reference) if r < s]
    assert agreement.c_index(found, reference) == pytest.approx(np.mean(points) if points else np.nan, nan_ok=True)


@given(volumes)
def test_spearman_is_pearson_of_mid_ranks(pairs):
    result = agreement.spearman(*pairs)
    if np.ptp(pairs, axis=1).min() == 0:
        assert np.isnan(result.value) and "values are equal" in result.reason
        return
    ranks = [(row[:, None] > row).sum(1) + (row[:, None] == row).sum(1) / 2 for row in pairs]
    assert result.value == pytest.approx(np.corrcoef(ranks)[0, 1], abs=1e-9)
    squeezed = agreement.spearman(np.sqrt(pairs[0]), pairs[1] ** 2)
    assert squeezed.value == pytest.approx(result.value, abs=1e-9), "only the order matters"


def test_interval_of_spearman_covers():
    """Of 400 samples from a normal pair, about 95 % of the intervals hold its rank correlation, 6/pi asin(rho/2)."""
    rng, rho = np.random.default_rng(1), 0.7
    true = 6 / np.pi * np.arcsin(rho / 2)
    held = 0
    for _ in range(400):
        x, y = rng.normal(size=(2, 40))
        found = agreement.spearman(x, rho * x + np.sqrt(1 - rho**2) * y)
        held += found.low <= true <= found.high
    assert 0.92 <= held / 400 <= 0.98


@settings(max_examples=50)
@given(volumes, st.sampled_from(["sqrt", "linear"]))
def test_limits_mirror(pairs, shape):
    """Swapped lists turn the sign of the bias and leave the width; the width of doubled volumes grows as f says."""
    there, back = agreement.bland_altman(*pairs, shape=shape), agreement.bland_altman(*pairs[::-1], shape=shape)
    assume(not there.reason)
    assert back.bias == pytest.approx(-there.bias, abs=1e-9) and back.coefficient == pytest.approx(there.coefficient, abs=1e-9)
    grown = agreement.bland_altman(*(4 * pairs), shape=shape)
    assert grown.coefficient == pytest.approx(there.coefficient * (2 if shape == "sqrt" else 1), rel=1e-6, abs=1e-9)


def test_what_is_not_defined_has_a_reason():
    nothing = np.zeros(5)
    assert agreement.icc_a1(np.zeros((5, 2))).reason == "all values are equal"
    assert agreement.spearman(nothing, np.arange(5)).reason == "all found values are equal"
    assert agreement.bland_altman(nothing, nothing).reason == "all values are 0"
    assert agreement.bland_altman([1, 2], [2, 1], shape="linear").reason == "all means are equal"
    row = agreement.measure(nothing, nothing)
    assert np.isnan(row["icc"]) and row["bias"] == 0 and row["n_both_positive"] == 0
    assert row["reason"] == "all found values are equal; all values are equal; all values are 0"
    assert agreement.measure([1.0], [2.0]) == {"n": 1, "reason": "fewer than two scans"}


@pytest.mark.parametrize("compare", [agreement.spearman, agreement.bland_altman, agreement.relative_differences, agreement.c_index])
def test_what_cannot_be_meant_is_refused(compare):
    for lists, text in (
        (([], []), "at least two pairs, got 0"),
        (([1], [2]), "at least two pairs, got 1"),
        (([1, 2], [1, 2, 3]), r"equal length, got shapes \(2,\) and \(3,\)"),
        (([1, np.nan], [1, 2]), "expected finite numbers"),
    ):
        with pytest.raises(ValueError, match=text):
            compare(*lists)


def test_tables_that_cannot_be_meant_are_refused():
    with pytest.raises(ValueError, match=r"expected means of at least 0, got -1\.5"):
        agreement.bland_altman([-1, 2], [-2, 3])
    for bad in ([[1, 2]], [[0, 0], [0, 0]], [[1, -1], [0, 1]]):
        with pytest.raises(ValueError, match=r"expected counts \[K, K\]"):
            agreement.kappa(bad)
    for bad in ([[1, 2]], [1, 2], [[1], [2]], [[1, 2], [np.inf, 3]]):
        with pytest.raises(ValueError, match="expected finite ratings"):
            agreement.icc_a1(bad)
    with pytest.raises(ValueError, match="equal length"):
        agreement.confusion([1, 2], [1], 3)


def test_rows_by_hand():
    """Arms, stages and arteries apart; scans without prediction and classes that are no arteries left out."""

    def record(arm, artery, found, reference, lesions, **more):
        numbers = {"found_mm3": found, "reference_mm3": reference, "found_lesions": lesions[0], "reference_lesions": lesions[1]}
        return {"arm": arm, "stage": "final", "artery": artery, **numbers, **more}

    records = [
        record("x", "CAC", a, b, (1 + k, k), found_agatston=2.0 * a, reference_agatston=2.0 * b) for k, (a, b) in enumerate(zip(A, B))
    ]
    records += [record("x", "AV", 1.0, 2.0, (1, 1)), {"arm": "x", "stage": "final", "artery": "", "reason": "no_prediction"}]
    records += [record("y", "LAD", 1.0, 2.0, (0, 1))]
    rows = agreement.rows(records)
    assert [(row["arm"], row["artery"], row["quantity"]) for row in rows] == [
        *(("x", "CAC", name) for name in ("volume_mm3", "lesions", "agatston")),
        *(("y", "LAD", name) for name in ("volume_mm3", "lesions")),
    ]
    volume, lesions, agatston, alone, _ = rows
    assert volume["coefficient"] == pytest.approx(6.156501, abs=1e-6) and volume["relative_difference"] == pytest.approx(0.237440, abs=1e-6)
    assert (volume["spearman"], lesions["bias"], volume["n"]) == (pytest.approx(1.0), 1.0, 4)
    assert agatston["bias"] == 2 * volume["bias"] and agatston["icc"] == pytest.approx(volume["icc"])
    # 20, 100, 200, 800 against 28, 80, 260, 700: the same categories, 2, 2, 3, 4.
    assert agatston["kappa"] == agatston["accuracy"] == agatston["c_index"] == 1
    assert np.diag(agatston["confusion"]).tolist() == [0, 0, 2, 1, 1]
    assert alone["reason"] == "fewer than two scans"

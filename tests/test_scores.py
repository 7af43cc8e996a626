"""Published numeric cases of calcium scoring: a scanned phantom, unit tests of other projects, small arrays."""

import csv
import pathlib

import jax
import numpy as np
import pytest
from scipy import ndimage

from cacjax.kernels import bits, lesions, rules, scores

QRM = pathlib.Path(__file__).parents[1] / "../shared/data/qrm-cci-canon"
SHAPE = (4, 40, 32)  # one shape: few programs
HALF = (3.0, 0.5, 0.5)


def blocks(*parts, background=0):
    """HU with blocks: (slice or slices, rows, columns, HU)."""
    hu = np.full(SHAPE, background, np.float32)
    for z, y, x, value in parts:
        hu[z, y, x] = value
    return hu


def score(hu, spacing_mm, rule="default", **options):
    """(Agatston, volume, mass, lesions) with everything a candidate, as class 1."""
    found = scores.score_regions(np.ones(hu.shape, np.uint8), hu, spacing_mm, rule, n_regions=1, **options)
    return tuple(float(field[0]) for field in found[1:])


FOUR = (slice(2, 6), slice(2, 6))


@pytest.mark.skipif(not QRM.exists(), reason="the scan of the phantom is not here")
def test_scanned_phantom_reproduces_published_scores():
    sitk = pytest.importorskip("SimpleITK")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(QRM / "dicom")))
    image = reader.Execute()
    hu = sitk.GetArrayFromImage(image)[18:27].astype(np.float32)
    regions = sitk.GetArrayFromImage(sitk.ReadImage(str(QRM / "insert_regions.nii.gz")))[18:27]
    found = scores.score_regions(regions, hu, image.GetSpacing()[::-1], mass_factor=0.72204771044)
    with open(QRM / "reference_scores.csv") as file:
        rows = list(csv.DictReader(file))
    for ours, name in ((found.agatston, "agatston"), (found.volume_mm3, "volume_mm3"), (found.mass_mg, "mass_mg")):
        published = np.array([float(row[f"FQM_{name}"]) for row in rows])
        np.testing.assert_allclose(ours, published, rtol=1e-5, atol=0, err_msg=name)
    assert found.agatston[[5, 8]].tolist() == [0, 0] and found.n_lesions.tolist() == [1, 1, 1, 1, 1, 0, 1, 1, 0]


VIEWER = [
    # kcenon/dicom_viewer, calcium_scorer_test.cpp
    (blocks((1, *FOUR, 150)), HALF, 4, 12, 1),
    (blocks((1, *FOUR, 500)), HALF, 16, 12, 1),
    (blocks((slice(0, 3), *FOUR, 250)), HALF, 24, 36, 1),
    (blocks((0, *FOUR, 180), (2, slice(12, 16), slice(12, 16), 350)), HALF, 16, 24, 2),
    (blocks((2, *FOUR, 150), (3, *FOUR, 350)), HALF, 16, 24, 1),
    (blocks((1, slice(2, 8), slice(2, 8), 200)), HALF, 18, 27, 1),
    (blocks((slice(0, 3), slice(2, 22), slice(2, 22), 400)), HALF, 1200, 900, 1),
    (blocks((1, *FOUR, 130)), (1, 1, 1), 16, 16, 1),
    (blocks((1, *FOUR, 129)), (1, 1, 1), 0, 0, 0),
    (blocks((1, 4, 4, 200)), (3, 0.3, 0.3), 0, 0, 0),
    (blocks((slice(0, 2), slice(2, 5), slice(2, 5), 200)), (2, 1, 1), 36, 36, 1),
]


@pytest.mark.parametrize(("hu", "spacing", "agatston", "volume", "count"), VIEWER)
def test_dicom_viewer_cases(hu, spacing, agatston, volume, count):
    found = score(hu, spacing, "dicom_viewer")
    assert found[0] == pytest.approx(agatston, rel=1e-12) and found[1] == pytest.approx(volume, rel=1e-12)
    assert found[3] == count


def test_dicom_viewer_mass():
    assert score(blocks((1, 4, 4, 200)), (1, 1, 1), "dicom_viewer", mass_factor=0.001)[2] == pytest.approx(0.0002, rel=1e-9)
    assert np.isnan(score(blocks(), (1, 1, 1))[2])


def test_weights():
    peaks = np.array([0, 100, 129, 130, 150, 199, 200, 250, 299, 300, 350, 399, 400, 500, 1000], np.float32)
    assert scores.weights(peaks, rules.LIMITS).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert scores.weights(peaks, rules.LIMITS, 1).tolist() == [1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]


# CalciumScoring.jl: rows x columns x slices in its tests.
def test_calciumscoring_jl():
    hu = blocks((slice(0, 2), slice(0, 4), slice(0, 2), 400))
    half = (0.5, 0.5, 0.5)
    assert score(hu, half, "calciumscoring_jl", mass_factor=0.75)[:3] == pytest.approx((16, 2, 0.6), rel=1e-7)
    default = rules.RULES["calciumscoring_jl"]._replace(thickness="increment")
    assert score(hu, half, default)[0] == pytest.approx(2.6667, abs=1e-4)
    assert score(blocks(), half, "calciumscoring_jl", mass_factor=0.75) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize(("height", "kvp"), [(260, 135), (280, 120), (310, 100), (400, 80)])
def test_calciumscoring_jl_voltages(height, kvp):
    hu = blocks((slice(0, 2), slice(0, 4), slice(2, 5), height))
    assert score(hu, (0.5, 0.5, 0.5), "calciumscoring_jl", kvp=kvp)[0] == 12


def test_voltages():
    rule = rules.RULES["calciumscoring_jl"]
    assert [rules.at_kvp(rule, kvp).threshold_hu for kvp in (120, 100, 80, 135, 70)] == [128, 154, 184, 112, 201]
    assert rules.at_kvp(rules.RULES["default"], 100).threshold_hu == 147
    assert rules.at_kvp(rules.RULES["default"], None).threshold_hu == 130
    with pytest.raises(ValueError, match=r"kvp must be one of \[100, 120.0\]"):
        rules.at_kvp(rules.RULES["default"], 90)
    assert rules.for_voltage(rules.RULES["default"], 100).threshold_hu == 147
    assert rules.for_voltage(rules.RULES["default"], 90) == rules.RULES["default"]
    hu = blocks((0, *FOUR, 129))
    assert score(hu, HALF, "calciumscoring_jl")[:2] == (0, 12)  # in the volume, with weight 0


def variant(**changes):
    return rules.RULES["default"]._replace(**changes)


CORNER = blocks((0, 2, slice(2, 5), 250), (0, 3, slice(5, 8), 250))
TWO = blocks((slice(0, 2), *FOUR, 450))
STACK = blocks((0, *FOUR, 150), (1, *FOUR, 350))
CAP = blocks((0, *FOUR, 250), (1, 3, slice(3, 5), 250))
SQUARE = blocks((0, slice(2, 8), slice(2, 8), 130))
ROW = blocks((0, 2, slice(2, 5), 250))
DISCRIMINATING = {
    "A >=": (SQUARE, HALF, variant(), (9, 27)),
    "A >": (SQUARE, HALF, variant(strict=True), (0, 0)),
    "D 8": (CORNER, HALF, variant(), (3, 4.5)),
    "D 4": (CORNER, HALF, variant(connectivity=4), (0, 0)),
    "E4": (blocks((0, slice(2, 4), slice(2, 4), 250)), HALF, variant(), (2, 3)),
    "E3": (ROW, HALF, variant(), (0, 0)),
    "E3 no minimum": (ROW, HALF, "siemens", (1.5, 2.25)),
    "F raw": (TWO, (1.5, 0.5, 0.5), variant(thickness="none"), (32, 12)),
    "F increment": (TWO, (1.5, 0.5, 0.5), variant(), (16, 12)),
    "G slice": (STACK, HALF, variant(), (16, 24)),
    "G lesion": (STACK, HALF, variant(connectivity=6, peak="lesion"), (24, 24)),
    "G slice of a lesion": (STACK, HALF, variant(connectivity=6), (16, 24)),
    "H 2D": (CAP, HALF, variant(), (8, 12)),
    "H 3D": (CAP, HALF, "lessmann", (9, 13.5)),
}


@pytest.mark.parametrize("case", list(DISCRIMINATING))
def test_small_arrays_tell_rules_apart(case):
    hu, spacing, rule, expected = DISCRIMINATING[case]
    assert score(hu, spacing, rule)[:2] == pytest.approx(expected, rel=1e-12)


def test_pieces_of_a_lesion_in_one_slice_share_a_peak():
    # A 3D arch: two feet in slice 0, one of them bright, joined in slice 1.
    arch = blocks((0, *FOUR, 150), (0, slice(2, 6), slice(10, 14), 450), (1, slice(2, 6), slice(2, 14), 150))
    assert score(arch, HALF, "brainsia")[0] == (32 * 4 + 48) * 0.25
    assert score(arch, HALF, "default")[0] == (16 + 16 * 4 + 48) * 0.25
    assert score(arch, HALF, "default")[3] == 1  # one lesion in 3D under a 2D rule too


def test_ai_cac_takes_the_tag_and_whole_lesions():
    hu = blocks((0, 2, slice(2, 7), 250))
    with pytest.raises(ValueError, match="slice_thickness_mm must be given"):
        score(hu, HALF, "ai_cac")
    mask = (hu > 0).astype(np.uint8)
    found = scores.score(mask > 0, hu, (1.5, 0.5, 0.5), "ai_cac", slice_thickness_mm=3.0)
    assert found.agatston[0] == 2.0  # 5 px x 0.25 mm2 x 2 = 2.5, to even


def test_masks_as_given_and_rounded_factors():
    hu = blocks((0, 2, slice(2, 7), 90), (2, 2, slice(2, 7), 350))
    mask = (hu > 0).astype(np.uint8)
    spacing = (2.5, 0.68, 0.68)
    assert scores.score(mask > 0, hu, spacing, "deepcac").agatston[0] == pytest.approx(5 * 3 * 0.385)
    assert scores.score(mask > 0, hu, spacing, "adjusted").agatston[0] == pytest.approx(5 * (1 + 3) * 0.68**2 * 2.5 / 3)


def test_gogin_golden_value():
    hu = blocks((0, slice(2, 4), slice(2, 4), 250), (0, 10, slice(2, 4), 150))
    assert score(hu, HALF, "gogin")[0] == 2.0
    assert score(hu, (2.5, 0.5, 0.5), "gogin")[0] == pytest.approx(1.6667, abs=1e-4)
    assert score(hu, HALF, "siemens")[0] == 2.5


def test_arteries_are_scored_apart_and_add_up():
    arteries = np.zeros(SHAPE, np.uint8)
    hu = blocks((0, slice(2, 6), slice(2, 10), 250), (1, *FOUR, 450), (3, slice(20, 24), slice(20, 24), 450))
    arteries[0, 2:6, 2:6], arteries[0, 2:6, 6:10], arteries[1], arteries[3] = 1, 3, 4, 2
    hu[0, 3, 3] = 350  # LAD touches RCA: peaks stay apart
    found = scores.score(arteries, hu, HALF)
    assert found.names == ("LAD", "LCX", "RCA", "TAC", "AV", "MV", "CAC")
    assert found.agatston.tolist() == [12, 16, 8, 16, 0, 0, 36]
    assert found.n_lesions.tolist() == [1, 1, 1, 1, 0, 0, 3]
    whole = scores.score(arteries > 0, hu, HALF)
    assert whole.names == ("CAC",) and whole.agatston.tolist() == [24 + 16 + 16]


def test_last_region_does_not_join_the_next():
    regions = np.zeros(SHAPE, np.uint8)
    regions[-1, 2:6, 2:6], regions[0, 2:6, 2:6] = 1, 2
    found = scores.score_regions(regions, blocks((slice(None), *FOUR, 250)), HALF, "lessmann")
    assert found.n_lesions.tolist() == [1, 1] and found.agatston.tolist() == [8, 8]


@pytest.mark.parametrize("rule", sorted(rules.RULES))
def test_rules_on_noise_equal_the_plain_loop(rule):
    rng = np.random.default_rng(5)
    hu = rng.normal(120, 110, SHAPE).astype(np.float32)
    mask = rng.random(SHAPE) < 0.3
    spacing = (2.0, 0.613, 0.7)  # no lesion of exactly n + 1/2
    found = scores.score(mask, hu, spacing, rule, mass_factor=0.8, slice_thickness_mm=2.5)
    expected = plain_score(mask, hu, spacing, rules.RULES[rule])
    np.testing.assert_allclose([found.agatston[0], found.volume_mm3[0], found.mass_mg[0]], expected, rtol=1e-5)


def plain_score(mask, hu, spacing, rule):
    """Independent of the package: a loop over scipy's components."""
    if rule.threshold_hu is not None:
        mask = mask & (hu > rule.threshold_hu if rule.strict else hu >= rule.threshold_hu)
    rank = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}[rule.connectivity]
    structure = ndimage.generate_binary_structure(3, rank)
    if rule.connectivity in (4, 8):
        structure[[0, 2]] = False
    labels, n = ndimage.label(mask, structure)
    dz, dy, dx = spacing
    agatston, voxels, total = 0.0, 0, 0.0
    for k in range(1, n + 1):
        part = labels == k
        if part.sum() < rules.min_voxels(rule, spacing):
            continue
        lesion = 0.0
        for z in np.unique(np.nonzero(part)[0]):
            peak = hu[part].max() if rule.peak == "lesion" else hu[z][part[z]].max()
            weight = max(sum(peak >= limit for limit in rule.limits), rule.floor_weight)
            factor = {"none": 1, "increment": dz / 3, "tag": 2.5 / 3, "increment_rounded": round(dz * dy * dx / 3, 3) / dy / dx}
            lesion += part[z].sum() * dy * dx * weight * factor[rule.thickness]
        agatston += round(lesion) if rule.whole_lesions else lesion
        voxels, total = voxels + part.sum(), total + hu[part].astype(np.float64).sum()
    volume = dz * dy * dx
    return agatston, voxels * volume, total * volume * 0.8 / 1000


def test_more_runs_than_the_capacity_are_counted_too():
    regions, hu = np.ones(SHAPE, np.uint8), blocks((slice(None), slice(None), slice(0, 32, 2), 250))
    rule = rules.RULES["siemens"]
    numbers = scores.numbers(rule, HALF, 0.25)
    few = scores.count(regions, hu, numbers, n_regions=1, connectivity=4, peak="slice", buckets=(64, 512))
    assert bool(few.overflow) and int(few.runs) == 4 * 40 * 16
    assert score(hu, HALF, "siemens")[0] == 4 * 40 * 16 * 0.25 * 2


@pytest.mark.parametrize("rule", ["default", "orcascore", "lessmann"])
def test_marked_and_listed_is_what_is_counted(rule):
    """Of two regions of noise, against scipy: lesions join across what does not count, of which nothing is measured; alone it is no
    lesion."""
    rng = np.random.default_rng(7)
    hu, regions = rng.normal(110, 60, SHAPE).astype(np.float32), rng.integers(0, 3, (4, 5, 4)).repeat(8, 1).repeat(8, 2)
    rule = rules.RULES[rule]
    numbers = scores.numbers(rule, HALF, 0.25)
    options = {"n_regions": 2, "connectivity": rule.connectivity, "peak": rule.peak}
    totals, marked, listed = scores.count_and_list(regions, hu, numbers, HALF, **options)
    totals, listed = jax.device_get((totals, listed))
    structure = ndimage.generate_binary_structure(3, {8: 2, 6: 1, 26: 3}[rule.connectivity])
    structure[[0, 2]] &= rule.connectivity != 8
    expected = np.zeros(SHAPE, bool)
    for number in (1, 2):
        labels, _ = ndimage.label((regions == number) & (hu >= numbers.threshold_hu), structure)
        expected |= (np.bincount(labels.ravel()) >= numbers.least)[labels] & (labels > 0)
    on = np.asarray(bits.unpack(marked, SHAPE[2]))
    np.testing.assert_array_equal(on, expected)
    assert totals.voxels.tolist() == [(on & (regions == number)).sum() for number in (1, 2)]
    jax.tree.map(np.testing.assert_array_equal, scores.count(regions, hu, numbers, **options), totals)
    joined = ndimage.generate_binary_structure(3, 1 if rule.connectivity == 6 else 3)
    for k in range(2):
        labels, _ = ndimage.label((regions == k + 1) & (hu >= numbers.threshold_hu), joined)
        counted = on & (regions == k + 1)
        some = np.unique(labels[counted])
        assert listed.n[k] == totals.n_lesions[k] == len(some) > 1 and not listed.voxels[k, len(some) :].any()
        assert listed.voxels[k, : len(some)].tolist() == ndimage.sum(counted, labels, some).astype(int).tolist()
        assert listed.peak_hu[k, : len(some)].tolist() == ndimage.maximum(np.where(counted, hu, -9999), labels, some).tolist()
        assert listed.area_mm2[k].sum() == counted.sum() * HALF[1] * HALF[2] and not listed.overflow[k]


def test_errors_name_what_was_got():
    hu = blocks()
    with pytest.raises(KeyError, match="no scoring rule 'agaston'"):
        score(hu, HALF, "agaston")
    with pytest.raises(ValueError, match="spacing_mm must be positive"):
        score(hu, (0.0, 0.5, 0.5))
    with pytest.raises(ValueError, match="one shape"):
        scores.score(np.ones((1, 2, 3), np.uint8), hu, HALF)
    with pytest.raises(KeyError, match="no scheme"):
        scores.category(1, scheme="fifths")


def test_minimum_sizes():
    sizes = {name: rules.min_voxels(rules.RULES[name], (3.0, 0.488, 0.488)) for name in ("default", "philips", "canon", "lessmann")}
    assert sizes == {"default": 5, "philips": 3, "canon": 3, "lessmann": 3}
    assert rules.min_voxels(rules.RULES["default"], (3.0, 0.1, 0.1)) == 100
    assert rules.min_voxels(rules.RULES["calciumscoring_jl"], (3.0, 0.488, 0.488)) == 4
    assert rules.min_voxels(rules.RULES["siemens"], (3.0, 0.488, 0.488)) == 1


def test_categories():
    words = scores.SCHEMES["words"].names
    named = [words[scores.category(s, scheme="words")] for s in (0, 1, 5, 10, 11, 50, 100, 101, 250, 400, 401)]
    assert named == ["None"] + 3 * ["Minimal"] + 3 * ["Mild"] + 3 * ["Moderate"] + ["Severe"]
    assert [scores.category(s, scheme="words") for s in (4, 16, 1200)] == [1, 2, 4]
    assert [scores.category(s, scheme="deepcac") for s in (0, 1260.875, 127.82, 318.395, 184.8)] == [0, 3, 2, 3, 2]
    assert scores.category(np.array([0, 0.7, 10, 10.5, 400.5])).tolist() == [0, 1, 1, 2, 4]
    assert [scores.category(s, round_first=True) for s in (0.4, 10.4, 10.6)] == [0, 1, 2]
    assert scores.category([0, 10, 11, 1000, 1001], scheme="lessmann").tolist() == [0, 0, 1, 2, 3]
    assert scores.category([0, 0.1, 99.9, 100, 299, 300], scheme="cac_drs").tolist() == [0, 1, 1, 2, 2, 3]


def test_lesion_rows_add_up_to_the_score():
    hu = blocks((slice(0, 3), *FOUR, 250), (1, slice(20, 25), slice(20, 25), 450))
    labels, n = lesions.label(hu >= 130)
    table = lesions.table(labels, n, hu, np.ones(SHAPE, np.uint8), HALF, capacity=512)
    rows = scores.of_lesions(table, HALF, "lessmann")
    assert rows[: int(n)].tolist() == [24, 25] and rows.sum() == score(hu, HALF, "lessmann")[0]

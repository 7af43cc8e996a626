"""Detection metrics against hand counts, and the evaluation of predictions against a reference folder."""

import csv
import itertools
import json

import numpy as np
import pytest
import SimpleITK as sitk

from cacjax import evaluate
from cacjax.evaluation import metrics
from cacjax.evaluation.metrics import Counts
from cacjax.files import scan


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


SPACING = (2.0, 1.0, 0.5)  # a voxel is 1 mm³
SHAPE = (4, 16, 16)


def write_image(path, array):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(image, str(path))


def draw(**boxes):
    """A class mask with `name_label=(z, y, x, size)` runs of voxels along x."""
    mask = np.zeros(SHAPE, np.int16)
    for name, (z, y, x, size) in boxes.items():
        mask[z, y, x : x + size] = int(name[-1])
    return mask


@pytest.fixture
def cohort(tmp_path):
    """Scan a: 6 voxels LAD, 2 voxels RCA. Scan b: no calcium. Two arms: `old` finds nothing, `new` has known errors."""
    reference, old, new = (tmp_path / name for name in ("reference", "old", "new"))
    for folder in (reference, old, new):
        folder.mkdir()
    truth = {"a": draw(a_1=(1, 4, 4, 6), b_3=(2, 10, 2, 2)), "b": draw()}
    for name, mask in truth.items():
        hu = np.full(SHAPE, 40, np.int16)
        hu[:, 2:14, 2:14] = 300
        write_image(reference / f"{name}.nii.gz", hu)
        write_image(reference / f"{name}_label.nii.gz", mask)
        for stage in ("mask", "detected"):
            write_image(old / f"{name}_{stage}.nii.gz", draw())
    rows = [f"{name}.nii.gz,{name}_label.nii.gz,200" for name in truth]
    (reference / "manifest.csv").write_text("\n".join(["scan,mask,threshold_hu", *rows]) + "\n")
    write_image(new / "a_detected.nii.gz", draw(a_1=(1, 4, 4, 3), b_2=(2, 10, 2, 1), c_1=(3, 1, 1, 5), d_4=(0, 0, 0, 9)))
    write_image(new / "a_mask.nii.gz", draw(a_1=(1, 4, 4, 6), b_2=(2, 10, 2, 2)))
    write_image(new / "b_detected.nii.gz", draw(a_1=(1, 4, 4, 2)))
    write_image(new / "b_mask.nii.gz", draw(a_1=(1, 4, 4, 2)))
    return tmp_path


def summary(out, *, table="evaluation", **keys):
    """The one row of a written table with these cells."""
    with open(out / f"{table}.csv") as file:
        (row,) = [r for r in csv.DictReader(file) if all(r[k] == v for k, v in keys.items())]
    return row


def test_masks_drawn_by_hand(cohort, capsys):
    """TP 4, FP 5, FN 4 before and TP 8, FP 0, FN 0 after reduction on scan a; FP 2 on scan b; RCA called LCX misses RCA."""
    out = cohort / "out"
    arms = [f"before={cohort / 'old'}", f"after={cohort / 'new'}"]
    assert evaluate.main(["--predictions", *arms, "--reference", str(cohort / "reference"), "--out", str(out)]) == 0
    row = summary(out, arm="after", fp_reduction="no", artery="CAC", over="pooled")
    assert (float(row["sensitivity"]), float(row["fp_mm3"])) == (pytest.approx(0.5, abs=1e-5), pytest.approx(3.5))
    assert float(row["f1"]) == pytest.approx(2 * 4 / (2 * 4 + 7 + 4), abs=1e-5)
    assert float(row["lesion_sensitivity"]) == pytest.approx(1) and float(row["fp_lesions"]) == 1
    row = summary(out, arm="after", fp_reduction="yes", artery="CAC", over="all")
    assert float(row["f1"]) == pytest.approx(0.5, abs=1e-5) and float(row["f1_sd"]) == pytest.approx(0.5**0.5, abs=1e-4)
    assert float(row["fp_mm3"]) == pytest.approx(1) and float(row["fp_mm3_sd"]) == pytest.approx(2**0.5)
    row = summary(out, arm="after", fp_reduction="yes", artery="RCA", over="with calcium")
    assert row["scans"] == "1" and float(row["sensitivity"]) == pytest.approx(0, abs=1e-5)
    row = summary(out, arm="after", fp_reduction="yes", artery="LCX", over="all")
    assert float(row["sensitivity"]) == 1 and float(row["fp_mm3"]) == pytest.approx(1)
    row = summary(out, arm="before", fp_reduction="yes", artery="CAC", over="all")
    assert float(row["f1"]) == pytest.approx(0.5, abs=1e-5), "never finding anything is right on scans without calcium"
    assert float(summary(out, arm="before", fp_reduction="yes", artery="CAC", over="with calcium")["f1"]) < 1e-4
    row = summary(out, arm="after", fp_reduction="yes", artery="CAC", over="pooled")
    assert [float(row[f"scan_{name}"]) for name in ("sensitivity", "fpr", "f1")] == pytest.approx([1, 1, 2 / 3], abs=1e-5)
    shown = capsys.readouterr().out
    assert "| after" in shown and "2 scans, 2 predictions, 0 missing" in shown
    assert all((out / f"{name}.png").stat().st_size > 10_000 for name in ("comparison", "agreement", "outliers_before", "outliers_after"))
    assert json.loads((out / "evaluation.json").read_text())["n_scans"] == 2


def test_missing_predictions_are_rows_with_a_reason(cohort, capsys):
    """A refused scan tells why, an absent one that it is absent, one on another grid that it does not fit."""
    new, reference = cohort / "new", cohort / "reference"
    (new / "b_mask.nii.gz").unlink()
    (new / "b_detected.nii.gz").unlink()
    (new / "b.json").write_text(json.dumps({"status": "refused", "reason": "missing_slice"}))
    (new / "a_detected.nii.gz").unlink()
    write_image(new / "a_mask.nii.gz", np.zeros((4, 16, 15), np.int16))
    assert evaluate.main(["--predictions", str(new), "--reference", str(reference)]) == 1
    with open(new / "evaluation_scans.csv") as file:
        reasons = {(row["scan"], row["fp_reduction"]): row["reason"] for row in csv.DictReader(file)}
    missing = "refused: missing_slice"
    assert reasons == {
        ("a", "yes"): "grid_mismatch",
        ("a", "no"): "no_prediction",
        ("b", "yes"): missing,
        ("b", "no"): missing,
    }
    row = summary(new, fp_reduction="yes", artery="CAC", over="all")
    assert (row["scans"], row["missing"], row["f1"]) == ("0", "2", "")
    assert "new, b: refused: missing_slice" in capsys.readouterr().out


def test_what_was_left_out_on_purpose_is_not_missing(cohort, capsys):
    """`score --classify mask` (or threshold) writes no mask before reduction: no row, no complaint, no failure."""
    new, reference = cohort / "new", cohort / "reference"
    for name in ("a", "b"):
        (new / f"{name}_detected.nii.gz").unlink()
        (new / f"{name}.json").write_text(json.dumps({"status": "scored", "reason": "", "settings": {"classify": "mask"}}))
    assert evaluate.main(["--predictions", str(new), "--reference", str(reference)]) == 0
    assert "0 missing" in capsys.readouterr().out
    with open(new / "evaluation_scans.csv") as file:
        assert {row["fp_reduction"] for row in csv.DictReader(file)} == {"yes"}
    with open(new / "evaluation.csv") as file:
        assert {row["fp_reduction"] for row in csv.DictReader(file)} == {"yes"}


def test_a_folder_that_is_not_there_is_told_and_not_made(cohort, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--predictions", f"new={cohort / 'nwe'}", "--reference", str(cohort / "reference")])
    assert "nwe: expected one that cacjax.score wrote" in capsys.readouterr().err and not (cohort / "nwe").exists()


def test_average_precision_over_candidates(cohort):
    """Voxels at 200 HU or more are ranked: 8 real ones at .9, 8 false ones at .95 before them, the rest at 0."""
    reference, new = cohort / "reference", cohort / "new"
    truth = draw(a_1=(1, 4, 4, 6), b_3=(2, 10, 2, 2))
    probability = np.where(truth > 0, 0.9, 0.0)
    probability[3, 5, 4:12] = 0.95
    probability[0, 0, :] = 1.0  # 40 HU: no candidates
    like = scan.read(reference / "a.nii.gz")
    scan.write_image(probability, like.affine, new / "a_probability.nii.gz", np.float32)
    scan.write_image(probability * 0, like.affine, new / "b_probability.nii.gz", np.float32)
    evaluate.main(["--predictions", str(new), "--reference", str(reference)])
    row = summary(new, fp_reduction="no", artery="CAC", over="pooled")
    assert float(row["ap"]) == pytest.approx(8 / 16, abs=1e-4)
    assert float(summary(new, fp_reduction="yes", artery="CAC", over="with calcium")["ap"]) == pytest.approx(8 / 16, abs=1e-4)
    ap = {artery: summary(new, fp_reduction="no", artery=artery, over="pooled")["ap"] for artery in ("LAD", "LCX", "RCA", "AV")}
    assert float(ap["LAD"]) == pytest.approx(6 / 14) and float(ap["RCA"]) == pytest.approx(2 / 10), "the other artery is left out"
    assert ap["LCX"] == "" and ap["AV"] == ""


def test_agreement_by_hand(cohort, capsys):
    """CAC before reduction 9 for 8 and 2 for 0 mm³: differences 1 and 2 at means 8.5 and 1; lesions 3 for 2 and 1 for 0."""
    out = cohort / "out"
    arms = [f"old={cohort / 'old'}", f"new={cohort / 'new'}"]
    evaluate.main(["--predictions", *arms, "--reference", str(cohort / "reference"), "--out", str(out)])
    row = summary(out, table="agreement", arm="new", fp_reduction="no", artery="CAC", quantity="volume_mm3")
    assert (row["n"], float(row["bias"]), float(row["spearman"])) == ("2", 1.5, pytest.approx(1))
    assert float(row["coefficient"]) == pytest.approx(2.4565 * (8.5**0.5 + 2) / 9.5, abs=1e-4)
    assert float(row["relative_difference"]) == pytest.approx(1 / 8.5) and row["n_both_positive"] == "1"
    row = summary(out, table="agreement", arm="new", fp_reduction="no", artery="CAC", quantity="lesions")
    assert float(row["bias"]) == 1 and row["kappa"] == ""
    row = summary(out, table="agreement", arm="new", fp_reduction="yes", artery="RCA", quantity="volume_mm3")
    assert float(row["bias"]) == -1 and row["spearman"] == "" and row["reason"] == "all found values are equal"
    row = summary(out, table="agreement", arm="old", fp_reduction="no", artery="CAC", quantity="volume_mm3")
    assert row["spearman"] == "" and float(row["icc"]) == pytest.approx(0), "(0, 8) and (0, 0): raters differ as much as scans"
    with open(out / "agreement.csv") as file:
        assert {row["quantity"] for row in csv.DictReader(file)} == {"volume_mm3", "lesions"}, "no record, no Agatston score"
    assert "Spearman" in capsys.readouterr().out


def test_agatston_of_the_reference_by_the_rule_of_the_record(cohort):
    """At 300 HU and slices of 2 mm: LAD 6 px of 0.5 mm² x 3 x 2/3 = 6, RCA 2; Agatston 1990 has no 2/3: 9 and 3."""
    new, out = cohort / "new", cohort / "out"
    for name, rule, scores in (("a", "agatston_1990", (9.5, 3.0, 12.5)), ("b", "default", (2.0, 0.0, 2.0))):
        rows = [{"artery": artery, "agatston": score} for artery, score in zip(("LAD", "RCA", "CAC"), scores)]
        record = {"rule": {"name": rule}, "acquisition": {"kvp": None, "slice_thickness_mm": None}, "rows": rows}
        (new / f"{name}.json").write_text(json.dumps(record))
    evaluate.main(["--predictions", str(new), "--reference", str(cohort / "reference"), "--out", str(out)])
    written = json.loads((out / "evaluation.json").read_text())
    known = {(r["scan"], r["artery"]): r["reference_agatston"] for r in written["scans"] if "reference_agatston" in r}
    assert known == {
        ("a", "LAD"): pytest.approx(9),
        ("a", "RCA"): pytest.approx(3),
        ("a", "CAC"): pytest.approx(12),
        **{("b", artery): 0 for artery in ("LAD", "RCA", "CAC")},
    }
    (row,) = [r for r in written["agreement"] if (r["artery"], r["quantity"]) == ("CAC", "agatston")]
    assert row["bias"] == pytest.approx(1.25) and row["fp_reduction"] == "yes"
    # 12 and 12.5 are "11-100"; 0 and 2 are "0" and "1-10".
    assert row["confusion"][0] == [0, 1, 0, 0, 0] and row["confusion"][2] == [0, 0, 1, 0, 0]
    assert (row["accuracy"], row["c_index"], row["categories"][1]) == (0.5, 1.0, "1-10")
    assert row["kappa"] == pytest.approx(1 - (1 / 8) / ((2 + 1 + 1 + 0) / 16))

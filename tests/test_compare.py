"""Predictions compared with a reference folder, end to end through the command line: masks drawn by hand, records as `score` writes."""

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk

from cacjax import evaluate
from cacjax.classes import CLASSES
from cacjax.evaluation import compare
from cacjax.files import scan
from cacjax.kernels import lesions, rules
from cacjax.report import tables

SPACING = (2.0, 1.0, 0.5)  # a voxel is 1 mm³
SHAPE = (4, 16, 16)


FILES = {"final": "mask", "before": "detected"}


def write_image(path, array, spacing=SPACING, origin=(0.0, 0.0, 0.0)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    image.SetOrigin(origin[::-1])
    sitk.WriteImage(image, str(path))


def predict(folder, name, *, rule="default", agatston=None, **masks):
    """What `cacjax.score` writes of a scan: masks by stage, and the record that names them.

    agatston: {artery: score}, default 0 each. rule: a name, or the fields of a rule of one's own.
    """
    rule = rule if isinstance(rule, dict) else {"name": rule} | tables.plain(rules.RULES[rule])
    files = {stage: f"{name}_{FILES[stage]}.nii.gz" for stage in masks}
    for stage, mask in masks.items():
        write_image(folder / files[stage], mask)
    agatston = agatston or dict.fromkeys((*CLASSES[1:7], "CAC"), 0.0)
    rows = [
        {"scan": name, "status": "scored", "rule": rule["name"], "artery": artery, "agatston": score} for artery, score in agatston.items()
    ]
    record = {"scan": name, "status": "scored", "reason": "", "masks": files, "rules": [rule], "rows": rows}
    write_record(folder, name, record | {"acquisition": {"kvp": None, "slice_thickness_mm": None}})


def write_record(folder, name, record):
    (folder / f"{name}.json").write_text(json.dumps(record))


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
        predict(old, name, final=draw(), before=draw())
    rows = [f"{name}.nii.gz,{name}_label.nii.gz,200" for name in truth]
    (reference / "manifest.csv").write_text("\n".join(["scan,mask,threshold_hu", *rows]) + "\n")
    before = draw(a_1=(1, 4, 4, 3), b_2=(2, 10, 2, 1), c_1=(3, 1, 1, 5), d_4=(0, 0, 0, 9))
    predict(new, "a", final=draw(a_1=(1, 4, 4, 6), b_2=(2, 10, 2, 2)), before=before)
    predict(new, "b", final=draw(a_1=(1, 4, 4, 2)), before=draw(a_1=(1, 4, 4, 2)))
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
    row = summary(out, arm="after", stage="before", artery="CAC", over="pooled")
    assert (float(row["sensitivity"]), float(row["fp_mm3"])) == (pytest.approx(0.5, abs=1e-5), pytest.approx(3.5))
    assert float(row["f1"]) == pytest.approx(2 * 4 / (2 * 4 + 7 + 4), abs=1e-5)
    assert float(row["lesion_sensitivity"]) == pytest.approx(1) and float(row["fp_lesions"]) == 1
    row = summary(out, arm="after", stage="final", artery="CAC", over="all")
    assert float(row["f1"]) == pytest.approx(0.5, abs=1e-5) and float(row["f1_sd"]) == pytest.approx(0.5**0.5, abs=1e-4)
    assert float(row["fp_mm3"]) == pytest.approx(1) and float(row["fp_mm3_sd"]) == pytest.approx(2**0.5)
    row = summary(out, arm="after", stage="final", artery="RCA", over="with calcium")
    assert row["scans"] == "1" and float(row["sensitivity"]) == pytest.approx(0, abs=1e-5)
    row = summary(out, arm="after", stage="final", artery="LCX", over="all")
    assert float(row["sensitivity"]) == 1 and float(row["fp_mm3"]) == pytest.approx(1)
    row = summary(out, arm="before", stage="final", artery="CAC", over="all")
    assert float(row["f1"]) == pytest.approx(0.5, abs=1e-5), "never finding anything is right on scans without calcium"
    assert float(summary(out, arm="before", stage="final", artery="CAC", over="with calcium")["f1"]) < 1e-4
    row = summary(out, arm="after", stage="final", artery="CAC", over="pooled")
    assert [float(row[f"scan_{name}"]) for name in ("sensitivity", "fpr", "f1")] == pytest.approx([1, 1, 2 / 3], abs=1e-5)
    shown = capsys.readouterr().out
    assert "| after" in shown and "2 scans, 2 predictions, 0 missing" in shown
    assert all((out / f"{name}.png").stat().st_size > 10_000 for name in ("comparison", "agreement", "outliers_before", "outliers_after"))
    assert json.loads((out / "evaluation.json").read_text())["n_scans"] == 2
    taken = {name: summary(out, table="arteries", arm="after", reference=name) for name in ("LAD", "LCX", "RCA", "none")}
    cells = {name: [float(row[f"found_{as_what}_mm3"]) for as_what in taken] for name, row in taken.items()}
    assert cells == {"LAD": [6, 0, 0, 0], "LCX": [0] * 4, "RCA": [0, 2, 0, 0], "none": [2, 0, 0, 0]} and "found_none_mm3" in shown


def test_missing_predictions_are_rows_with_a_reason(cohort, capsys):
    """A refused scan tells why, an absent one that it is absent, one on another grid that it does not fit."""
    old, new, reference = (cohort / name for name in ("old", "new", "reference"))
    write_record(new, "b", {"status": "refused", "reason": "missing_slice", "rows": [{"status": "refused"}]})
    write_image(new / "a_mask.nii.gz", np.zeros((4, 16, 15), np.int16))
    (old / "a.json").unlink()
    (old / "b_detected.nii.gz").unlink()
    assert evaluate.main(["--predictions", str(new), str(old), "--reference", str(reference)]) == 1
    with open(new / "evaluation_scans.csv") as file:
        reasons = {(row["arm"], row["scan"]): row["reason"] for row in csv.DictReader(file)}
    assert reasons == {
        ("new", "a"): "grid_mismatch",
        ("new", "b"): "refused: missing_slice",
        ("old", "a"): "no_prediction",
        ("old", "b"): "not_found",
    }
    row = summary(new, arm="new", stage="final", artery="CAC", over="all")
    assert (row["scans"], row["missing"], row["f1"]) == ("0", "2", "")
    assert "new, b: refused: missing_slice" in capsys.readouterr().out


def test_a_stage_that_was_not_asked_for_is_not_missing(cohort, capsys):
    """A record without the mask before reduction: no row, no complaint, no failure."""
    new, reference = cohort / "new", cohort / "reference"
    for name in ("a", "b"):
        predict(new, name, final=draw())
    assert evaluate.main(["--predictions", str(new), "--reference", str(reference)]) == 0
    assert "0 missing" in capsys.readouterr().out
    for table in ("evaluation_scans", "evaluation"):
        with open(new / f"{table}.csv") as file:
            assert {row["stage"] for row in csv.DictReader(file)} == {"final"}


def test_records_of_earlier_versions_are_told(cohort, capsys):
    new, reference = cohort / "new", cohort / "reference"
    for name in ("a", "b"):
        write_record(new, name, {"status": "scored", "reason": "", "settings": {"classify": "mask"}})
    assert evaluate.main(["--predictions", str(new), "--reference", str(reference)]) == 1
    assert "new, a: no_masks" in capsys.readouterr().out


def test_calcium_of_an_unknown_artery_counts_in_total_only(cohort):
    """An arm that answers CAC alone finds 6 of the 8 voxels; its Agatston score stands against LAD and RCA together, 6 + 2."""
    new, reference, out = cohort / "new", cohort / "reference", cohort / "out"
    predict(new, "a", final=draw(a_7=(1, 4, 4, 6)), agatston={"CAC": 6.0})
    predict(new, "b", final=draw(), agatston={"CAC": 0.0})
    assert evaluate.main(["--predictions", str(new), "--reference", str(reference), "--out", str(out)]) == 0
    row = summary(out, stage="final", over="pooled")
    assert row["artery"] == "CAC" and float(row["sensitivity"]) == pytest.approx(6 / 8, abs=1e-5) and float(row["fp_mm3"]) == 0
    row = summary(out, table="agreement", quantity="agatston")
    assert row["artery"] == "CAC" and float(row["bias"]) == pytest.approx(-1)
    assert len((out / "arteries.csv").read_text().splitlines()) == 1, "nothing to tell apart"


def test_a_reference_of_unknown_arteries_says_nothing_about_each(cohort):
    """It holds 8 voxels in scan a, all found, one as RCA: right in total, and right or wrong for RCA nobody knows."""
    new, reference, out = cohort / "new", cohort / "reference", cohort / "out"
    write_image(reference / "a_label.nii.gz", draw(a_7=(1, 4, 4, 6), b_7=(2, 10, 2, 2)))
    assert evaluate.main(["--predictions", str(new), "--reference", str(reference), "--out", str(out)]) == 0
    with open(out / "evaluation_scans.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["artery"] for row in rows if row["scan"] == "a"} == {"CAC", "TAC", "AV", "MV"}
    (row,) = (row for row in rows if (row["scan"], row["stage"], row["artery"]) == ("a", "final", "CAC"))
    assert float(row["f1"]) == pytest.approx(1) and float(row["reference_agatston"]) == pytest.approx(8)


def test_an_answer_on_its_own_grid_is_compared_on_the_reference(cohort):
    """Slabs of 1 mm in slices of 2 mm, and turned: the middle one of three, at 2 mm, is slice 1, the last at 3 mm lies next to slice 2."""
    new, reference, out = cohort / "new", cohort / "reference", cohort / "out"
    slabs = np.zeros((3, 16, 16), np.int16)
    slabs[1, 4, 4:10] = slabs[2, 10, 2:4] = 7
    for name, mask in (("a", slabs), ("b", slabs * 0)):
        predict(new, name, final=draw(), agatston={"CAC": 0.0})
        image = sitk.GetImageFromArray(np.flip(mask, 2))
        image.SetSpacing((0.5, 1.0, 1.0))
        image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))
        image.SetOrigin((7.5, 0.0, 1.0))
        sitk.WriteImage(image, str(new / f"{name}_mask.nii.gz"))
        record = json.loads((new / f"{name}.json").read_text())
        write_record(new, name, record | {"answer": {"shape": [3, 16, 16], "spacing_mm": [1.0, 1.0, 0.5]}})
    assert evaluate.main(["--predictions", str(new), "--reference", str(reference), "--out", str(out)]) == 0
    row = summary(out, stage="final", artery="CAC", over="with calcium")
    assert float(row["sensitivity"]) == pytest.approx(6 / 8, abs=1e-5) and float(row["fp_mm3"]) == 0


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
    row = summary(new, stage="before", artery="CAC", over="pooled")
    assert float(row["ap"]) == pytest.approx(8 / 16, abs=1e-4)
    assert float(summary(new, stage="final", artery="CAC", over="with calcium")["ap"]) == pytest.approx(8 / 16, abs=1e-4)
    ap = {artery: summary(new, stage="before", artery=artery, over="pooled")["ap"] for artery in ("LAD", "LCX", "RCA", "AV")}
    assert float(ap["LAD"]) == pytest.approx(6 / 14) and float(ap["RCA"]) == pytest.approx(2 / 10), "the other artery is left out"
    assert ap["LCX"] == "" and ap["AV"] == ""


def test_agreement_by_hand(cohort, capsys):
    """CAC before reduction 9 for 8 and 2 for 0 mm³: differences 1 and 2 at means 8.5 and 1; lesions 3 for 2 and 1 for 0."""
    out = cohort / "out"
    arms = [f"old={cohort / 'old'}", f"new={cohort / 'new'}"]
    evaluate.main(["--predictions", *arms, "--reference", str(cohort / "reference"), "--out", str(out)])
    row = summary(out, table="agreement", arm="new", stage="before", artery="CAC", quantity="volume_mm3")
    assert (row["n"], float(row["bias"]), float(row["spearman"])) == ("2", 1.5, pytest.approx(1))
    assert float(row["coefficient"]) == pytest.approx(2.4565 * (8.5**0.5 + 2) / 9.5, abs=1e-4)
    assert float(row["relative_difference"]) == pytest.approx(1 / 8.5) and row["n_both_positive"] == "1"
    row = summary(out, table="agreement", arm="new", stage="before", artery="CAC", quantity="lesions")
    assert float(row["bias"]) == 1 and row["kappa"] == ""
    row = summary(out, table="agreement", arm="new", stage="final", artery="RCA", quantity="volume_mm3")
    assert float(row["bias"]) == -1 and row["spearman"] == "" and row["reason"] == "all found values are equal"
    row = summary(out, table="agreement", arm="old", stage="before", artery="CAC", quantity="volume_mm3")
    assert row["spearman"] == "" and float(row["icc"]) == pytest.approx(0), "(0, 8) and (0, 0): raters differ as much as scans"
    assert "Spearman" in capsys.readouterr().out


def test_agatston_of_the_reference_by_a_rule_of_ones_own(cohort):
    """From 300 HU, limits of 250 and more, no 2/3: LAD 6 px of 0.5 mm² x 4 = 12, RCA too small."""
    own = {"name": "mine", "source": "", "minimum": {"value": 3}, "limits": [250, 260, 270, 280], "thickness": "none", "min_voxels": 3}
    new = cohort / "new"
    for name in "ab":
        predict(new, name, rule=own, final=draw())
    evaluate.main(["--predictions", str(new), "--reference", str(cohort / "reference")])
    written = json.loads((new / "evaluation.json").read_text())
    known = {r["artery"]: r["reference_agatston"] for r in written["scans"] if r["scan"] == "a" and "reference_agatston" in r}
    assert (known["LAD"], known["RCA"], known["CAC"]) == (12, 0, 12)


def test_agatston_of_the_reference_by_the_rule_of_the_record(cohort):
    """At 300 HU and slices of 2 mm: LAD 6 px of 0.5 mm² x 3 x 2/3 = 6, RCA 2; Agatston 1990 has no 2/3: 9 and 3."""
    new, out = cohort / "new", cohort / "out"
    for name, rule, mask, scores in (("a", "agatston_1990", 6, (9.5, 3.0, 12.5)), ("b", "default", 2, (2.0, 0.0, 2.0))):
        predict(new, name, rule=rule, agatston=dict(zip(("LAD", "RCA", "CAC"), scores)), final=draw(a_1=(1, 4, 4, mask)))
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
    assert row["bias"] == pytest.approx(1.25) and row["stage"] == "final"
    # 12 and 12.5 are "11-100"; 0 and 2 are "0" and "1-10".
    assert row["confusion"][0] == [0, 1, 0, 0, 0] and row["confusion"][2] == [0, 0, 1, 0, 0]
    assert (row["accuracy"], row["c_index"], row["categories"][1]) == (0.5, 1.0, "1-10")
    assert row["kappa"] == pytest.approx(1 - (1 / 8) / ((2 + 1 + 1 + 0) / 16))


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_lesions_are_numbered_as_on_the_device(connectivity):
    mask = np.zeros((12, 40, 50), bool)
    assert not compare.number_lesions(mask, connectivity).any()
    mask[3:9, 5:30, 11:44] = np.random.default_rng(0).random((6, 25, 33)) < 0.3
    numbered, _ = lesions.label(mask, connectivity=connectivity)
    np.testing.assert_array_equal(compare.number_lesions(mask, connectivity), numbered)

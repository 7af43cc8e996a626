"""A miniature in orCaScore's layout as a cohort, and against predictions by the challenge's rules."""

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk

from cacjax import evaluate
from cacjax.data import cohorts, orcascore
from cacjax.files import manifest

SHAPE = (4, 12, 16)
SPACING = {"TRV1P1": (2.0, 1.0, 0.5), "TRV1P2": (2.0, 1.0, 1.0)}  # voxels of 1 and 2 mm³
TRAINING, TEST = ("TRV1P1", "TRV1P2", "TRV1P10", "TRV2P1"), ("TEV1P1", "VAV1P1")


def write(path, array, case, *, compressed=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING.get(case, (3.0, 0.4, 0.4))[::-1])
    image.SetOrigin((-80.0, -90.0, 35.5))
    sitk.WriteImage(image, str(path), useCompression=compressed)


def draw(**runs):
    """A class mask with `name_label=(z, y, x, size)` runs of voxels along x."""
    mask = np.zeros(SHAPE, np.int16)
    for name, (z, y, x, size) in runs.items():
        mask[z, y, x : x + size] = int(name[-1])
    return mask


LABELS = {
    "TRV1P1": draw(a_1=(1, 4, 2, 6), b_2=(1, 4, 8, 1), c_3=(2, 8, 2, 2), small_1=(3, 2, 2, 1), dim_2=(0, 6, 2, 3)),
    "TRV1P2": draw(a_3=(1, 4, 4, 1)),
}


def volume(case):
    hu = np.random.default_rng([ord(c) for c in case]).integers(131, 900, SHAPE).astype(np.int16)
    hu[0, 6, 2:5] = 130
    return hu


@pytest.fixture
def challenge(tmp_path):
    """Four training cases of two vendors with angiograms and references, two test cases without, one in lower case, some compressed."""
    images, references = tmp_path / "Training_set" / "Images", tmp_path / "Training_set" / "Reference standard"
    for case in TRAINING:
        write(images / f"{case}CTI.mhd", volume(case), case, compressed=case == "TRV1P2")
        write(images / f"{case}CTAI.mhd", volume("angiogram"), "")
        write(references / f"{case}R.mhd", LABELS.get(case, draw()), case)
    for case in TEST:
        write(tmp_path / "Test_set" / "Images" / (f"{case}CTI.mhd" if case[0] == "T" else f"{case}cti.mhd".lower()), volume(case), case)
    return tmp_path


def test_the_set_comes_back_in_its_order(challenge, capsys):
    orcascore.main([str(challenge)])
    assert "4 exams, 2 test; 2 without reference" in capsys.readouterr().out
    data = {"kind": "folder", "directory": str(challenge / "prepared"), "workers": 0, "manifest": str(challenge)}
    data |= {"grid": {"kind": "native"}, "labels": "classes", "folds": 0, "fold": 0}
    sources = cohorts.open(data, progress=False)
    training, test = list(sources["exams"]), list(sources["test"])
    assert [record["id"].decode() for record in training] == [f"{case}CTI" for case in TRAINING]
    assert [record["id"].decode() for record in test] == ["TEV1P1CTI", "vav1p1cti"]
    for case, record in zip(TRAINING + TEST, training + test):
        np.testing.assert_array_equal(record["hu"], volume(case))
        np.testing.assert_array_equal(record["label"], LABELS.get(case, draw()))
        np.testing.assert_allclose(record["spacing_mm"], SPACING.get(case, (3.0, 0.4, 0.4)), rtol=1e-6)
        np.testing.assert_allclose(record["affine"][:3, 3], (-80.0, -90.0, 35.5))
    assert all(record["labelled"] for record in training) and not any(record["labelled"] for record in test)


def test_what_is_missing_or_twice_there_is_told(challenge, tmp_path):
    orcascore.main([str(challenge)])
    orcascore.main([str(challenge)])  # the same again
    (challenge / manifest.NAME).write_text("scan\nmine.nii.gz\n")
    with pytest.raises(SystemExit, match=r"manifest.csv: expected no manifest there"):
        orcascore.main([str(challenge)])
    assert (challenge / manifest.NAME).read_text() == "scan\nmine.nii.gz\n"
    (challenge / "Training_set" / "Reference standard" / "TRV2P1R.mhd").unlink()
    with pytest.raises(SystemExit, match=r"expected a reference for each training scan, found none of TRV2P1R.mhd"):
        orcascore.main([str(challenge)])
    write(challenge / "copy" / "trv1p1cti.mhd", volume("TRV1P1"), "TRV1P1")
    with pytest.raises(SystemExit, match=r"expected one such file of case TRV1P1"):
        orcascore.main([str(challenge)])
    with pytest.raises(SystemExit, match=r"Reference standard: expected non-contrast scans named as TRV1P1CTI.mhd"):
        orcascore.main([str(challenge / "Training_set" / "Reference standard")])


FOUND = {
    "TRV1P1CTI": draw(
        a_1=(1, 4, 2, 4), c_2=(2, 8, 2, 2), false_1=(3, 6, 2, 2), corner_1=(3, 7, 4, 2), small_1=(0, 1, 1, 1), other_4=(0, 9, 2, 5)
    ),
    "TRV1P2CTI": draw(),
}


def predict(folder, names, *, arteries=("LAD", "LCX", "RCA", "TAC", "CAC")):
    """What `cacjax.score` writes of scans."""
    folder.mkdir()
    for name in names:
        mask = FOUND.get(name, draw())
        write(
            folder / f"{name}_mask.nii.gz", mask if "LAD" in arteries else np.isin(mask, (1, 2, 3)) * np.int16(7), name.removesuffix("CTI")
        )
        rows = [{"scan": name, "status": "scored", "rule": "orcascore", "artery": artery, "agatston": 1.0} for artery in arteries]
        record = {"scan": name, "status": "scored", "reason": "", "masks": {"final": f"{name}_mask.nii.gz"}, "rows": rows}
        record |= {"rules": [{"name": "orcascore"}], "acquisition": {"kvp": None, "slice_thickness_mm": None}}
        (folder / f"{name}.json").write_text(json.dumps(record))


def read(path, **keys):
    with open(path) as file:
        return [row for row in csv.DictReader(file) if all(row[k] == v for k, v in keys.items())]


def test_evaluation_by_the_challenges_rules(challenge, capsys):
    """LAD of 7 mm³, one of it labelled LCX: 4 are found. RCA of 2 mm³ is found as LCX, another of one voxel, 2 mm³, is not. False: two
    lesions of 2 mm³ that share an edge. What is 1 mm³, has 130 HU or is aortic does not count on either side."""
    orcascore.main([str(challenge)])
    ours, total, out = challenge / "ours", challenge / "total", challenge / "out"
    predict(ours, [f"{case}CTI" for case in TRAINING])
    predict(total, [f"{case}CTI" for case in TRAINING], arteries=("CAC",))
    command = ["--predictions", str(ours), str(total), "--reference", str(challenge), "--standard", "orcascore", "--out", str(out)]
    assert evaluate.main(command) == 1, "two test cases have no reference"
    told = capsys.readouterr().out
    assert "ours, TEV1P1CTI: reference: no_reference" in told and "| total" not in told[told.index("found_LAD_mm3") :].split("\n\n")[0]
    for arm in ("ours", "total"):
        (row,) = read(out / "evaluation.csv", arm=arm, artery="CAC", over="pooled")
        by_number = [float(row[f"lesion_{name}"]) for name in ("sensitivity", "ppv", "f1")]
        assert by_number == pytest.approx([2 / 3, 2 / 4, 4 / 7], abs=1e-5)
        by_volume = [float(row[name]) for name in ("sensitivity", "ppv", "f1")]
        assert by_volume == pytest.approx([6 / 11, 6 / 10, 12 / 21], abs=1e-5), "a voxel of the second scan weighs twice"
    (row,) = read(out / "evaluation.csv", arm="ours", artery="LAD", over="pooled")
    assert [float(row[name]) for name in ("sensitivity", "ppv", "lesion_ppv")] == pytest.approx([4 / 7, 4 / 8, 1 / 3], abs=1e-5)
    assert {row["artery"] for row in read(out / "evaluation.csv")} == {"CAC", "LAD", "LCX", "RCA"}
    table = read(out / "arteries.csv")
    cells = {row["reference"]: [float(row[f"found_{name}_mm3"]) for name in ("LAD", "LCX", "RCA", "none")] for row in table}
    assert cells == {"LAD": [4, 0, 0, 3], "LCX": [0, 0, 0, 0], "RCA": [0, 2, 0, 2], "none": [4, 0, 0, 0]}
    assert {(row["arm"], row["scans"]) for row in table} == {("ours", "4")}
    written = json.loads((out / "evaluation.json").read_text())
    assert written["arteries"][2]["found_LCX_mm3"] == 2 and written["standard"]["least_mm3"] == 1.5

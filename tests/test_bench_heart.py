"""What tools/bench/heart_cases.py measures: a network that is right, one that is not, and seeds that it was trained on."""

import importlib
import pathlib
import types

import numpy as np
import pytest

from cacjax.classes import AORTA, STRUCTURES
from cacjax.data import phantom as cohort
from cacjax.files import scan
from cacjax.inference import structures
from cacjax.phantom import make_scan

SPACING_MM = (3.0, 2.2, 2.2)


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pathlib.Path(__file__).parent.parent / "tools" / "bench"))
        yield importlib.import_module("heart_cases")


@pytest.fixture(scope="module")
def ccta():
    """A phantom marked with a lesion of two voxels in the myocardium, and one of three in a corner."""
    made = make_scan("ccta", 11, shape=(40, 72, 72), spacing_mm=SPACING_MM)
    z, y, x = np.argwhere(made.structures == STRUCTURES.index("LV myocardium"))[0]
    label = np.zeros_like(made.label)
    label[z, y, x : x + 2], label[0, 0, :3] = 1, 2
    label[0, -1, :3] = 4  # of the aorta: no coronary calcium
    return made._replace(label=label)


def says(found, phantom, classes=8):
    """Stands in for the run of a network on the phantom's own grid that gives these structures."""
    image = scan.Scan(phantom.hu.astype(np.float32), phantom.affine, "", None)
    one_hot = np.moveaxis(np.eye(classes, dtype=np.float32)[scan.oriented(image, found)[1]], -1, 0)
    grid = {"kind": "linear", "spacing_mm": SPACING_MM}
    config = types.SimpleNamespace(data=types.SimpleNamespace(grid=grid), model=types.SimpleNamespace(classes=classes))
    task = types.SimpleNamespace(segment=structures.segmenter(config, lambda state, hu: one_hot))
    return types.SimpleNamespace(config=config, task=task, state=None)


def test_the_truth_is_found_faultless(bench, ccta):
    record = bench.measure(says(ccta.structures, ccta), ccta)
    assert set(record["dice"]) == {*STRUCTURES[1:], "whole heart"}
    assert min(record["dice"].values()) > 0.999
    assert abs(record["mean_error_hu"]) < 10 and abs(record["threshold_error_hu"]) < 40 and abs(record["outline_error_hu"]) < 5
    voxel_mm3 = np.prod(SPACING_MM)
    assert record["mm3"] == pytest.approx(5 * voxel_mm3) and record["lesions"] == 2
    for held in record["inside"].values():
        assert held == {"mm3": pytest.approx(2 * voxel_mm3), "lesions": 1}


def test_a_shifted_heart_without_aorta(bench, ccta):
    """Dice by hand, no blood of an aorta, and in the table what there is."""
    wrong = np.roll(np.where(ccta.structures == AORTA, 0, ccta.structures), 4, 1)
    record = bench.measure(says(wrong, ccta), ccta)
    a, b = bench.in_heart(wrong), bench.in_heart(ccta.structures)
    assert record["dice"]["whole heart"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=0.01)
    assert record["dice"]["ascending aorta"] == 0
    assert all(record[key] is None for key in bench.ERRORS)
    row = {"protocol": "ccta", "scans": 2} | bench.summarise([record, record])
    assert row["aorta"] == {"measured": 0} and row["calcium"]["scans"] == 2
    assert row["dice"]["whole heart"]["sd"] == 0 and row["calcium"]["mm3"] == pytest.approx(2 * record["mm3"], abs=1e-3)
    text = importlib.import_module("table").heart([row])
    assert "| error of the threshold, HU, against the phantom's box | - |" in text
    assert f"| Dice, whole heart | {record['dice']['whole heart']:.3f} ± 0.000 |" in text


def test_lesions_within_a_dilated_outline(bench):
    """Three lesions in a row at 1 mm: 4 mm off, half of it within 5 mm, and far off."""
    outline, coronary = np.zeros((2, 4, 40), bool), np.zeros((2, 4, 40), bool)
    outline[:, :, :5] = True  # dilated: to x = 9
    coronary[0, 1, [8, 9, 20]] = True
    coronary[1, 3, 9:11], coronary[0, 1, 9] = True, False
    found = bench.holding(coronary, {"network": outline}, (1.0, 1.0, 1.0))
    assert (found["mm3"], found["lesions"]) == (4, 3)
    assert found["inside"]["network"] == {"mm3": 2, "lesions": 2}


def test_a_scan_of_the_training_is_refused(bench, monkeypatch):
    config = importlib.import_module("configs.heart").get_config("tiny,whole")
    run = types.SimpleNamespace(config=config, task=types.SimpleNamespace(segment=len))
    monkeypatch.setattr(bench, "load", lambda workdir: run)
    first = cohort.patient_seed(config.data.seed, "source_train", 0)
    monkeypatch.setattr(bench, "SEED", first - 2)
    with pytest.raises(SystemExit, match=rf"trained on patients \[{first}\]"):
        bench.cases(types.SimpleNamespace(workdir="w", n=3))
    assert len(bench.cases(types.SimpleNamespace(workdir="w", n=2))) == 4
    with pytest.raises(SystemExit, match="needs --workdir"):
        bench.cases(types.SimpleNamespace(workdir=None, n=2))

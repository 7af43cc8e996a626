"""The scan threshold: measured in the aorta of phantoms with known contrast, read from a file, and what is flagged or refused."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import stand_in, stand_in_heart

from cacjax import score as score_module
from cacjax.classes import AORTA
from cacjax.files import scan
from cacjax.files.geometry import Acquisition
from cacjax.phantom import make_scan
from cacjax.scoring import hearts, one_scan, threshold

SPACING = (1.5, 0.66, 0.66)


def image_of(hu, affine=None):
    affine = np.array([[0, 0, SPACING[2], 0], [0, SPACING[1], 0, 0], [SPACING[0], 0, 0, 0], [0, 0, 0, 1.0]]) if affine is None else affine
    return scan.Scan(hu=np.asarray(hu, np.float32), affine=affine, path="p", acquisition=Acquisition())


def heart_of(structures, classes=8):
    return hearts.Heart((structures > 0) & (structures != AORTA), structures, classes, "network")


def phantom(protocol, seed):
    """(Scan, Heart with the true structures, truth) of a heart-centred phantom."""
    made = make_scan(protocol, seed, shape=(72, 160, 160), spacing_mm=SPACING)
    return image_of(made.hu, made.affine), heart_of(made.structures), made.truth


@pytest.fixture(scope="module")
def ccta():
    return phantom("ccta", 11)


@pytest.fixture(scope="module")
def native():
    return phantom("cardiac", 12)


@pytest.mark.parametrize("seed", [11, 23])
def test_threshold_of_a_phantom_is_that_of_its_own_region(ccta, seed):
    """The truth reads a box at the known course of the aorta; ours lies where the segmentation is deepest. Within 12 HU of each other."""
    image, heart, truth = ccta if seed == 11 else phantom("ccta", seed)
    found, flags = threshold.choose("auto", "scan", image, heart)
    assert found["hu"] == pytest.approx(truth["threshold_hu"], abs=12) and found["mean_hu"] == pytest.approx(truth["aorta_hu"], abs=8)
    assert found["hu"] == found["mean_hu"] + 3 * found["sd_hu"]
    assert (found["from"], found["where"], flags) == ("mean + 3 SD", "ascending aorta", [])
    low, high = found["box"]
    box = tuple(map(slice, low, high))
    assert (heart.structures[box] == AORTA).mean() > 0.9 and found["n_voxels"] > 3000
    assert threshold.choose("auto", "scan_whole", image, heart)[0]["hu"] == int(found["hu"])


def test_without_the_aortas_class_the_left_chambers_are_measured(ccta):
    image, heart, truth = ccta
    six = heart_of(np.where(heart.structures < AORTA, heart.structures, 0), classes=6)
    found, _ = threshold.choose("auto", "scan", image, six)
    assert found["where"].startswith("LV cavity and LA") and "box" not in found
    assert found["mean_hu"] == pytest.approx(truth["arterial_hu"], rel=0.18)  # 15 % of bolus timing


def test_a_scan_that_is_not_enhanced_keeps_the_rules_threshold(native):
    image, heart, truth = native
    found, flags = threshold.choose("auto", "scan", image, heart)
    assert (found["hu"], found["from"], flags) == (130.0, "not enhanced", [])
    assert found["mean_hu"] == pytest.approx(truth["aorta_hu"], abs=5)


def tube(radius_mm=14.0, hu=400.0, top=40):
    """A vertical aorta of 400 HU with a wall of 900 HU, calcium all around, up to slice `top` of 40; (Scan, structures)."""
    y, x = (np.indices((80, 80)) - 39.5) * SPACING[1]
    inside = np.broadcast_to(np.hypot(y, x) < radius_mm, (40, 80, 80)).copy()
    inside[:8], inside[top:] = False, False
    noise = np.random.default_rng(0).normal(0, 10, inside.shape)
    wall = np.broadcast_to(np.abs(np.hypot(y, x) - radius_mm) < 1.5, inside.shape)
    volume = np.where(wall, 900.0, np.where(inside, hu, 0.0)) + noise
    return image_of(volume), np.where(inside, AORTA, 0).astype(np.uint8)


def test_the_wall_does_not_count_and_the_scans_end_is_no_wall():
    image, structures = tube(radius_mm=9.0)
    pool = threshold.measure(image, heart_of(structures))
    assert pool.mean_hu == pytest.approx(400, abs=1) and pool.sd_hu == pytest.approx(10, abs=0.5)
    # 10.5 mm of aorta at the top of the scan: half of its height is deep enough only if the vessel goes on.
    image, structures = tube()
    structures[:33] = 0
    low, high = threshold.measure(image, heart_of(structures)).box
    assert high[0] == 40 and low[0] >= 32


def test_fat_and_calcium_within_the_outline_do_not_count():
    image, structures = tube()
    plain = threshold.measure(image, heart_of(structures))
    low, _ = plain.box
    spots = image.hu.copy()
    spots[low[0] : low[0] + 2, 38:41, 38:41], spots[low[0] + 3, 38:40, 38:40] = -80, 1200
    pool = threshold.measure(image_of(spots), heart_of(structures))
    assert (pool.mean_hu, pool.sd_hu) == pytest.approx((plain.mean_hu, plain.sd_hu), abs=0.2)
    assert pool.n_voxels == plain.n_voxels - 22


@pytest.mark.parametrize("structures", [np.zeros((40, 80, 80), np.uint8), tube(radius_mm=4.0)[1]], ids=["none", "too thin"])
def test_no_aorta_is_refused(structures):
    with pytest.raises(scan.ScanError, match=r"no ascending aorta in view.*\[no_aorta\]"):
        threshold.choose("auto", "scan", tube()[0], heart_of(structures))
    with pytest.raises(scan.ScanError, match="no left ventricle"):
        threshold.choose("auto", "scan", tube()[0], heart_of(structures, classes=6))


def test_an_aorta_out_of_view_matters_in_enhanced_scans_alone(ccta, native):
    """Blood of the left chambers that is not enhanced says that no threshold is to be measured; enhanced, it is no aorta."""
    without = [(image, heart_of(np.where(heart.structures == AORTA, 0, heart.structures))) for image, heart, _ in (native, ccta)]
    found, flags = threshold.choose("auto", "scan", *without[0])
    assert (found["hu"], found["from"], flags) == (130.0, "not enhanced", []) and found["where"].startswith("LV cavity and LA")
    with pytest.raises(scan.ScanError, match="no ascending aorta in view"):
        threshold.choose("auto", "scan", *without[1])


def test_region_in_the_authors_layout(tmp_path):
    """A row whose seventh and eighth numbers are mean and SD; the authors' code takes whole HU."""
    path = tmp_path / "scan.txt"
    path.write_text("10 45 20 56 3 47 403.0 20.25\n")
    found, flags = threshold.choose(None, "scan", None, None, roi=path)
    assert (found["hu"], found["mean_hu"], found["where"], flags) == (463.75, 403.0, "file scan.txt", [])
    assert threshold.choose(900.0, "scan_whole", None, None, roi=path)[0]["hu"] == 463
    for text in ("1 2 3 4 5 6 400", "1 2 3 4 5 6 mean 20", "1 2 3 4 5 6 400 -3"):
        path.write_text(text)
        with pytest.raises(scan.ScanError, match="bad_roi"):
            threshold.read_roi(path)
    with pytest.raises(scan.ScanError, match="bad_roi"):
        threshold.read_roi(tmp_path / "none.txt")


def test_a_lumen_brighter_than_calcium_is_flagged(tmp_path):
    (tmp_path / "p.txt").write_text("0 0 0 0 0 0 760 20")
    assert threshold.choose(None, "scan", None, None, roi=tmp_path / "p.txt")[1] == ["bright_lumen"]
    assert threshold.choose(799.0, "scan", None, None)[1] == [] and threshold.choose(800.0, "scan", None, None)[1] == ["bright_lumen"]


def test_an_enhanced_scan_taken_for_non_contrast(ccta, native):
    """Refused where blood was measured, flagged where only the scan or a heart mask is at hand; a native scan is neither."""
    image, heart, _ = ccta
    with pytest.raises(scan.ScanError, match=r"no scan threshold.*\[contrast_enhanced\]"):
        threshold.choose(None, "scan", image, heart)
    mask = hearts.Heart(heart.mask, None, 0, "mask")
    for known in (None, mask):
        assert threshold.choose(None, "scan", image, known)[1] == ["contrast_enhanced"]
        assert threshold.choose(None, "scan", native[0], known)[1] == []
    assert threshold.choose(None, "scan", native[0], native[1])[1] == []
    assert threshold.choose(130.0, "scan", image, None)[1] == []  # given on purpose
    small = np.zeros(image.hu.shape, np.int16)
    small[tuple(n // 2 for n in small.shape)] = 1
    assert threshold.choose(None, "scan", image, None, regions=small)[1] == []  # what lies outside of given regions does not count
    assert threshold.choose(None, "scan", image, None, regions=heart.mask.astype(np.int16))[1] == ["contrast_enhanced"]


def test_bones_are_no_blood():
    """A body of spongy bone at 200 HU, as large as vertebrae get, beside a pool of blood of the same brightness."""
    hu = np.zeros((40, 120, 120))
    hu[4:24, 20:70, 20:80] = 200  # 30 x 33 x 40 mm
    assert threshold.bright_core_ml(image_of(hu)) < threshold.ENHANCED_CORE_ML
    hu[:, 15:105, 15:105] = 200  # 60 mm a side
    assert threshold.bright_core_ml(image_of(hu)) > 3 * threshold.ENHANCED_CORE_ML


def test_options_that_cannot_be():
    with pytest.raises(ValueError, match="'auto', got 'automatic'"):
        threshold.check("automatic", "scan", None, None)
    with pytest.raises(ValueError, match="needs a heart network"):
        threshold.check("auto", "scan", np.ones((2, 2, 2)), None)
    threshold.check("auto", "scan", None, "roi.txt")
    with pytest.raises(ValueError, match="counts from 130 HU in every scan"):
        threshold.check(200.0, 130.0, None, None)
    with pytest.raises(ValueError, match=r"scoring\.threshold must be a number"):
        threshold.check(None, "scans", None, None)
    with pytest.raises(SystemExit):
        score_module.parse(["scan", "--workdir", "w", "--out", "o", "--threshold-hu", "auto"])
    with pytest.raises(SystemExit):
        score_module.parse(["scan", "--workdir", "w", "--out", "o", "--threshold-hu", "high"])


def test_from_the_command_line(tmp_path, monkeypatch, ccta, native):
    """A network that knows the truth: the measured threshold is scored with, recorded and drawn; reasons stand in the table."""
    structures = {ccta[0].hu.shape: None}

    def marks(hu, wanted):
        label = ((hu >= 700) & wanted).astype(jnp.uint8)
        return label, label.astype(jnp.float32)

    found = stand_in_heart(None, SPACING)
    found = found._replace(task=found.task._replace(segment=lambda state, hu, spacing_mm: structures["now"]))
    detector = stand_in(marks, SPACING, fp_reduction="none")
    monkeypatch.setattr(score_module, "_load", lambda path, ability, *what: {"segment": found, "detector": detector}[ability])
    (tmp_path / "run").mkdir()

    def run(case, *more):
        image, heart, _ = case
        structures["now"] = heart.structures
        scan.write_image(image.hu, image.affine, tmp_path / "p.nii.gz", np.int16)
        out = tmp_path / "out"
        options = "--workdir", "w", "--out", str(out), *map(str, more)
        code = score_module.main([str(tmp_path / "p.nii.gz"), *options])
        with open(out / "scores.csv") as file:
            reasons = {row["reason"] for row in csv.DictReader(file)}
        return code, reasons, json.loads((out / "p.json").read_text())

    code, reasons, record = run(ccta, "--heart", tmp_path / "run", "--threshold-hu", "auto")
    expected = threshold.choose("auto", "scan", ccta[0], ccta[1])[0]
    assert (code, reasons) == (0, {"enhanced heart_cut"}) and record["threshold"]["hu"] == pytest.approx(expected["hu"])
    assert record["threshold"]["n_voxels"] == expected["n_voxels"] and record["threshold"]["box"] == list(expected["box"])
    assert (tmp_path / "out" / "p_heart.png").stat().st_size > 10_000
    assert run(ccta, "--heart", tmp_path / "run")[:2] == (1, {"contrast_enhanced"})
    code, reasons, record = run(ccta)
    assert (code, reasons, record["status"]) == (0, {"contrast_enhanced heart_not_checked"}, "scored")
    assert threshold.FLAGS["contrast_enhanced"] in record["notes"]
    assert run(native, "--heart", tmp_path / "run")[:2] == (0, {"heart_cut"})
    (tmp_path / "rois").mkdir()
    (tmp_path / "rois" / "p.txt").write_text("0 0 0 0 0 0 800 20")
    code, reasons, record = run(ccta, "--aorta-roi", tmp_path / "rois")
    assert (code, reasons, record["threshold"]["hu"]) == (0, {"enhanced bright_lumen heart_not_checked"}, 860)
    assert record["settings"]["aorta_roi"] == str(tmp_path / "rois" / "p.txt")


def test_the_measured_mean_serves_the_view(ccta):
    """A detector whose view needs the aorta's mean gets the measured one."""
    image, heart, _ = ccta

    def marks(hu, wanted):
        return wanted.astype(jnp.uint8), wanted.astype(jnp.float32)

    detector = stand_in(marks, SPACING, view="contrast_removed", fp_reduction="none")
    segmenter = stand_in_heart(None, SPACING)
    segmenter = segmenter._replace(task=segmenter.task._replace(segment=lambda state, hu, spacing_mm: heart.structures))
    record = one_scan.score(image, detector=detector, heart=segmenter, threshold_hu="auto").record
    assert record["aorta_hu"] == pytest.approx(record["threshold"]["mean_hu"]) and record["flags"] == ["enhanced", "heart_cut"]
    unknown = one_scan.score(image, detector=detector, threshold_hu=300.0).record
    assert unknown["aorta_hu"] is None and "view_not_applied" in unknown["flags"]

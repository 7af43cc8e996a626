"""Synthetic scans: exact calcium, honest labels, repeatable noise, pairs of one patient, files that read back."""

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk

from cacjax.evaluation import pairs
from cacjax.files import manifest
from cacjax.files import scan as files
from cacjax.phantom import folder, make_pair, make_scan, observer, pool
from cacjax.phantom.__main__ import main
from cacjax.phantom.acquisition import Optics, calcium_samples, sample_protocol, sample_timing, simulate
from cacjax.phantom.anatomy import sample_patient
from cacjax.phantom.beam import SCOUT_MM, SCOUT_PIXELS, harden, project, reconstruct
from cacjax.phantom.motion import contraction
from cacjax.phantom.noise import add_noise
from cacjax.phantom.render import Grid
from cacjax.phantom.splat import Samples, splat

SMALL = {"shape": (24, 72, 72), "spacing_mm": (3.0, 1.5, 1.5)}
WITH_CALCIUM, WITHOUT_CALCIUM = 11, 5  # seeds of the cardiac cohort


@pytest.fixture(scope="module")
def ccta():
    return make_scan("ccta", WITH_CALCIUM, **SMALL)


@pytest.fixture(scope="module")
def chest_pair():
    return make_pair("chest", WITH_CALCIUM, **SMALL)


def test_equal_seeds_give_equal_scans(ccta):
    again = make_scan("ccta", WITH_CALCIUM, **SMALL)
    for first, second in zip(ccta[:7], again[:7]):
        np.testing.assert_array_equal(first, second)
    assert ccta.truth == again.truth


def test_types_and_truth_are_complete(ccta):
    assert (ccta.hu.dtype, ccta.label.dtype, ccta.heart.dtype) == (np.int16, np.uint8, bool)
    assert ccta.calcium.dtype == ccta.coronary.dtype == ccta.clean.dtype == np.float32
    wanted = {"protocol", "seed", "scan_seed", "kvp", "threshold_hu", "aorta_hu", "arterial_hu", "noise_hu", "contrast", "thickness_mm"}
    assert wanted | {"lesions", "agatston", "volume_mm3"} <= set(ccta.truth)
    assert json.loads(json.dumps(ccta.truth)) == ccta.truth
    assert ccta.truth["aorta_hu"] == pytest.approx(ccta.truth["arterial_hu"], rel=0.15)


def test_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match=r"must be one of chest, cardiac, ccta, rtp, and after a colon.*got 'pet'"):
        make_scan("pet", 0)


def test_healthy_twin_is_the_scan_without_calcium():
    patient = sample_patient(WITH_CALCIUM, "cardiac")
    ill, healthy = (scan_of(who) for who in (patient, only(patient, slice(0))))
    assert ill.calcium.max() > 100 and not healthy.calcium.any()
    hardening = np.abs(ill.clean - ill.calcium - healthy.clean)  # calcium also hardens the beam
    assert hardening.max() < 8 and hardening.mean() < 0.5


@pytest.mark.parametrize("gated", [True, False])
def test_calcium_image_holds_all_its_mass(gated):
    patient = sample_patient(WITH_CALCIUM, "cardiac")
    protocol = sample_protocol("cardiac" if gated else "chest", patient.anatomy, 3)
    grid = Grid((80, 150, 150), (2.0, 1.0, 1.0), (-50.0, -105.0, -80.0))
    timing = sample_timing(protocol, grid, (22.0, -30.0, 0.0), 3)
    if not gated:  # a moving sample is seen by more or fewer slices: mass is only kept while it rests
        timing = timing._replace(rr_s=1e6, time_s=np.zeros(80), window_s=0.01)
    samples = calcium_samples(patient, protocol, timing)
    inside = samples.take((np.abs(samples.position[:, 2]) < 60) & (samples.position[:, 1] < 30))
    window, image = splat(inside, grid, timing, Optics(0.6, 3.0, 0.69), gated)
    tolerance = 0.03 if gated else 0.01  # jumps between the slabs of a gated scan double or drop a little
    assert image.sum() * 2.0 == pytest.approx(inside.amplitude.sum(), rel=tolerance)
    assert all(w.stop <= n for w, n in zip(window, grid.shape))


def test_a_point_is_drawn_where_it_is_with_the_right_width():
    grid = Grid((5, 41, 41), (1.0, 0.5, 0.5), (-10.0, -10.0, -2.0))
    still = sample_timing(sample_protocol("cardiac", sample_patient(0, "cardiac").anatomy, 0), grid, (0, 0, 0), 0)
    still = still._replace(shift_mm=np.zeros((5, 3)), rr_s=1e6, time_s=np.zeros(5), window_s=0.0)
    point = Samples(np.array([[1.13, -2.07, 0.2]], np.float32), np.zeros((1, 3), np.float32), np.array([100.0], np.float32))
    (_, rows, columns), image = splat(point, grid, still, Optics(0.6, 1.0, 0.33, 0.5), True)
    plane, x, y = image.sum(0), grid.axis(2)[columns], grid.axis(1)[rows]
    mean_x, mean_y = (plane.sum(0) * x).sum() / plane.sum(), (plane.sum(1) * y).sum() / plane.sum()
    spread = np.sqrt((plane.sum(0) * (x - mean_x) ** 2).sum() / plane.sum())
    np.testing.assert_allclose([mean_x, mean_y, spread], [1.13, -2.07, 0.6], atol=0.03)
    assert plane.sum() * 0.25 == pytest.approx(100.0, rel=0.01)


def test_label_holds_only_calcium_above_the_threshold(ccta, chest_pair):
    for scan in (ccta, *chest_pair):
        assert (scan.label > 0).any() and scan.label.max() <= 6
        assert scan.hu[scan.label > 0].min() >= scan.truth["threshold_hu"]
        assert scan.calcium[scan.label > 0].min() > observer.TRACE_HU


def test_no_calcium_no_label():
    scan = make_scan("cardiac", WITHOUT_CALCIUM, **SMALL)
    assert not any(lesion["artery"] in ("LAD", "LCX", "RCA") for lesion in scan.truth["lesions"])
    assert not np.isin(scan.label, (1, 2, 3)).any() and scan.truth["agatston"]["total"] == 0


def test_the_coronary_map_leaves_out_the_aorta_and_the_valves(chest_pair):
    for scan in chest_pair:
        rest = scan.calcium - scan.coronary
        assert rest.min() > -1e-3 and (rest[scan.label > 3] > 0).all() and (scan.label > 3).any() and scan.coronary.max() > 100
    patient = sample_patient(WITH_CALCIUM, "screening")
    for kept, whole in ((lambda cls: cls <= 3, True), (lambda cls: cls > 3, False)):
        scan = scan_of(only(patient, kept(patient.calcium["cls"])))
        assert scan.calcium.max() > 100
        np.testing.assert_array_equal(scan.coronary, scan.calcium if whole else 0)


def only(patient, kept):
    """The patient with some of the calcium samples."""
    return patient._replace(calcium=patient.calcium | {k: v[kept] for k, v in patient.calcium.items() if k not in ("lesions", "sev")})


def scan_of(patient):
    """A coarse native scan of a patient."""
    protocol = sample_protocol("cardiac", patient.anatomy, 3)._replace(thickness_mm=6.0, fwhm_mm=4.5)
    grid = Grid((20, 48, 48), (6.0, 3.5, 3.5), (-62.0, -112.0, -60.0))
    return simulate(patient, protocol, grid, sample_timing(protocol, grid, (22.0, -30.0, 0.0), 3), 0)


def test_pair_shares_the_patient_but_not_the_noise(chest_pair):
    first, second = chest_pair
    assert first.truth["true_mass_mg"] == second.truth["true_mass_mg"] and first.truth["kvp"] == second.truth["kvp"]
    noise = [(scan.hu - scan.clean)[4:-4, 8:-8, 8:-8].ravel() for scan in chest_pair]
    assert abs(np.corrcoef(*noise)[0, 1]) < 0.05
    assert 0.3 < np.corrcoef(first.clean.ravel(), second.clean.ravel())[0, 1] < 0.9999


@pytest.mark.parametrize("protocol", ["rtp", "cardiac"])
def test_a_scan_is_the_first_of_its_pair(protocol):
    grid = {"shape": (12, 36, 36), "spacing_mm": (6.0, 3.0, 3.0)}
    alone, (first, second) = make_scan(protocol, WITH_CALCIUM, **grid), make_pair(protocol, WITH_CALCIUM, **grid)
    for one, other in zip(alone, first):
        np.testing.assert_equal(one, other)
    assert (first.hu != second.hu).any()


def test_noise_has_the_asked_strength_and_streams_per_slice():
    protocol = sample_protocol("cardiac", sample_patient(0, "cardiac").anatomy, 0)._replace(noise_hu=20.0)
    whole = np.zeros((6, 128, 128), np.float32)
    grid, even = Grid((6, 128, 128), (1.5, 0.66, 0.66), (0.0, 0.0, 0.0)), np.ones((6, 1, 1), np.float32)
    add_noise(whole, grid, protocol, 9, even)
    assert whole.std() == pytest.approx(20.0, rel=0.03)
    neighbours = np.corrcoef(whole[0].ravel(), whole[1].ravel())[0, 1]
    assert 0.5 < neighbours < 0.8 and abs(np.corrcoef(whole[0].ravel(), whole[5].ravel())[0, 1]) < 0.05


def test_beam_reconstructs_a_disc_and_darkens_between_two():
    y, x = np.mgrid[:SCOUT_PIXELS, :SCOUT_PIXELS] - (SCOUT_PIXELS - 1) / 2
    disc = 0.02 * (np.hypot(x, y) < 20).astype(np.float32)[None]
    assert reconstruct(project(disc))[0, 30:42, 30:42].mean() == pytest.approx(0.02, rel=0.03)
    dense = 0.01 * ((np.hypot(x - 12, y) < 4) | (np.hypot(x + 12, y) < 4)).astype(np.float32)[None]
    error = reconstruct(harden(project(disc + dense), project(dense), 0.014))[0] * 5e4
    middle, aside = error[34:38, 34:38].mean(), error[50:54, 34:38].mean()
    assert middle < -2 and middle < aside - 2 and SCOUT_MM > 0


def test_the_heart_contracts_once_per_beat():
    t = np.linspace(0, 0.9, 91)
    course = contraction(t, 0.9)
    assert course.max() > 0.95 and course[0] < 0.02 and course[-1] < 0.02 and 0.2 < t[course.argmax()] < 0.4
    np.testing.assert_allclose(course, contraction(t + 1.8, 0.9), atol=1e-6)


def test_calcium_shows_above_the_noise_and_in_three_voxels_of_a_slice():
    coronary = np.full((3, 4, 4), 24.9, np.float32)
    coronary[0, 0, :2], coronary[1, 0, :3], coronary[1, 3, 3], coronary[2, 1, 1:4] = 90.0, 26.0, 25.0, 25.0
    expected = np.zeros((3, 4, 4), bool)
    expected[1, 0, :3] = True
    np.testing.assert_array_equal(observer.visible(coronary, 10.0), expected)


def test_agatston_of_a_drawn_lesion():
    hu, mask = np.full((3, 10, 10), 50.0), np.zeros((3, 10, 10), bool)
    mask[1, 2:4, 2:5], hu[1, 2:4, 2:5], hu[1, 2, 2] = True, 150.0, 310.0  # 6 voxels of .25 mm2, peak weight 3
    mask[2, 8, 8], hu[2, 8, 8] = True, 900.0  # below 1 mm2
    assert observer.agatston(hu, mask, (3.0, 0.5, 0.5)) == pytest.approx(6 * 0.25 * 3)


@pytest.mark.parametrize("file_format", folder.FORMATS)
def test_written_scan_reads_back_on_the_same_grid(ccta, tmp_path, file_format):
    folder.write_scan(ccta, tmp_path, "scan", file_format)
    read = files.read(tmp_path / ("scan" if file_format == "dicom" else "scan.nii.gz"))
    np.testing.assert_array_equal(read.hu, ccta.hu)
    np.testing.assert_allclose(read.affine, ccta.affine, atol=1e-4)
    np.testing.assert_array_equal(files.read_mask(tmp_path / "scan_label.nii.gz", read), ccta.label)


def test_command_writes_a_cohort(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--n", "1", "--protocol", "ccta", "--seed", str(WITH_CALCIUM)]
    assert main([*arguments, "--shape", "16", "36", "36", "--spacing", "6", "3.5", "3.5"]) == 0
    assert "wrote 1 ccta scans" in capsys.readouterr().out
    with open(tmp_path / "manifest.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["domain"] == "target" and all((tmp_path / row[k]).is_file() for k in ("scan", "mask", "heart"))
    assert (tmp_path / "ccta_00011.png").is_file()
    (truth,) = json.loads((tmp_path / "truth.json").read_text())
    assert float(row["threshold_hu"]) == pytest.approx(truth["threshold_hu"])


def test_command_writes_pairs_with_maps(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--n", "2", "--protocol", "rtp", "--calcified", "0.5", "--pairs", "--maps"]
    assert main([*arguments, "--shape", "12", "40", "40", "--spacing", "6", "3.5", "3.5"]) == 0
    assert "wrote 4 rtp scans" in capsys.readouterr().out
    with open(tmp_path / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    again = f"rtp_{pool.calcified_seed(1, 'rtp'):05d}"
    assert [row["patient"] for row in rows] == ["rtp_00000"] * 2 + [again] * 2
    assert [row["arm"] for row in rows] == ["free breathing", "breath hold"] * 2
    pairs_listed = pairs.read(tmp_path / "pairs.csv")
    assert [pair[:3] for pair in pairs_listed] == [(p, f"{p}a", f"{p}b") for p in ("rtp_00000", again)]
    assert [row.name for row in manifest.read(tmp_path)] == [name for pair in pairs_listed for name in pair[1:3]]
    scan = files.read(tmp_path / rows[3]["scan"])
    expected = make_pair("rtp", int(rows[3]["seed"]), shape=(12, 40, 40), spacing_mm=(6.0, 3.5, 3.5))[1]
    np.testing.assert_array_equal(scan.hu, expected.hu)
    map_hu = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / rows[3]["coronary"])))
    np.testing.assert_array_equal(map_hu, expected.coronary, strict=True)
    assert {t["name"] for t in json.loads((tmp_path / "truth.json").read_text())} == {row.name for row in manifest.read(tmp_path)}
    with open(tmp_path / "truth.csv", newline="") as file:
        assert {row["scan"] for row in csv.DictReader(file)} == {row.name for row in manifest.read(tmp_path)}


def test_command_without_a_task_says_what_it_needs(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "give --out DIR, --check or --figure" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--shape", "0", "10", "10"], ["--spacing", "1", "0", "1"], ["--n", "0"], ["--calcified", "1.5"]])
def test_a_grid_or_number_that_cannot_be_is_told(wrong, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path / "scans"), *wrong])
    assert wrong[0] in capsys.readouterr().err and not (tmp_path / "scans").exists()

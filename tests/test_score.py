"""The whole way from files to scores through the command line, with a stand-in for the trained detector."""

import ast
import csv
import importlib
import json
import pathlib
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import shrink, stand_in
from ml_collections import ConfigDict
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

import cacjax
from cacjax import score as score_module
from cacjax import train
from cacjax.classes import CLASSES
from cacjax.files import scan
from cacjax.report import pictures, tables
from cacjax.scoring import batch, one_scan
from cacjax.training import workdir

QRM = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "qrm-cci-canon"
MASS_FACTOR = 0.72204771044
SPACING = (3.0, 0.5, 0.5)
SHAPE = (6, 40, 48)


def calcified(seed=0):
    """Calcium at 250 HU on 40 HU: 4x4 pixels on slice 2 (8 Agatston units), 2x2 on slice 4 (2 units)."""
    hu = np.random.default_rng(seed).normal(40, 5, SHAPE).round()
    hu[2, 10:14, 20:24] = 250
    hu[4, 30:32, 8:10] = 250
    return hu.astype(np.int16)


def write_nifti(path, array, spacing=SPACING):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def write_dicom(folder, hu, *, skip=(), storage=CTImageStorage, tilt_deg=0.0, kvp=120):
    """An axial series of `hu`, feet first in `folder`; `skip` slices are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for z, image in enumerate(hu):
        if z in skip:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = storage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header = pydicom.Dataset()
        header.file_meta = meta
        header.SOPClassUID, header.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
        header.SeriesInstanceUID, header.StudyInstanceUID, header.FrameOfReferenceUID = series, study, frame
        header.Modality = "CT" if storage == CTImageStorage else "MR"
        header.ImageType, header.InstanceNumber, header.PatientID = ["ORIGINAL", "PRIMARY", "AXIAL"], z + 1, "p"
        header.ImagePositionPatient = [0, 0, z * SPACING[0]]
        turn = np.deg2rad(tilt_deg)
        header.ImageOrientationPatient = [1, 0, 0, 0, float(np.cos(turn)), float(np.sin(turn))]
        header.PixelSpacing, header.SliceThickness, header.KVP = list(SPACING[1:]), SPACING[0], kvp
        header.Rows, header.Columns, header.SamplesPerPixel = *image.shape, 1
        header.PhotometricInterpretation, header.PixelRepresentation = "MONOCHROME2", 1
        header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
        header.RescaleSlope, header.RescaleIntercept, header.RescaleType = 1, 0, "HU"
        header.PixelData = image.astype(np.int16).tobytes()
        header.save_as(folder / f"{z:03}.dcm", enforce_file_format=True)
    return folder


def marks_bright(hu, wanted):
    """Stands in for a trained network: LAD where HU >= 200 among the wanted voxels, P(CAC) grows with HU."""
    label = ((hu >= 200) & wanted).astype(jnp.uint8)
    return label, jnp.clip(hu / 400, 0, 1) * label


@pytest.fixture
def detector(monkeypatch):
    """The stand-in, also for the command line, on a grid that is the scan's own."""
    monkeypatch.setattr(score_module, "load_detector", lambda workdir, scoring: stand_in(marks_bright, SPACING, **scoring))
    return stand_in(marks_bright, SPACING)


def rows_of(out):
    with open(out / "scores.csv") as file:
        return list(csv.DictReader(file))


def run(*arguments):
    return score_module.main([str(argument) for argument in arguments])


@pytest.mark.skipif(not QRM.exists(), reason="the scan of the QRM phantom is not on this machine")
def test_qrm_phantom_reproduces_published_scores(tmp_path, capsys):
    """Nine inserts of known calcium, real scanner: Agatston, volume and mass of van Praagh 2021, zeros included."""
    regions = QRM / "insert_regions.nii.gz"
    out = tmp_path / "out"
    assert run(QRM / "dicom", "--regions", regions, "--mass-factor", MASS_FACTOR, "--out", out) == 0
    with open(QRM / "reference_scores.csv") as file:
        published = list(csv.DictReader(file))
    rows = rows_of(out)
    assert [row["artery"] for row in rows] == [str(k) for k in range(1, 10)]
    record = json.loads((out / "dicom.json").read_text())
    for row, full, truth in zip(rows, record["rows"], published):
        for name in ("agatston", "volume_mm3", "mass_mg"):
            expected = float(truth[f"FQM_{name}"])
            assert full[name] == pytest.approx(expected, rel=1e-5), truth["insert"]
            assert row[name] == str(float(f"{full[name]:.5g}"))
    assert "402.93" in capsys.readouterr().out
    assert (rows[0]["threshold_hu"], rows[0]["kvp"], rows[0]["kernel"]) == ("130.0", "120.0", "FC12")
    assert rows[0]["spacing_mm"] == "3 x 0.488 x 0.488" and rows[0]["series"].endswith(".786246") and rows[0]["reason"] == ""
    assert_shown_as_scored(out, "dicom", rule="default")
    assert [lesion["n_voxels"] for lesion in record["lesions"]] == [423, 303, 234, 115, 82, 48, 13], "largest first"
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "dicom_mask.nii.gz")))
    assert (mask == 3).sum() == 23, "what is found goes on being written, too"


def assert_shown_as_scored(out, name, *, rule):
    """The voxels of <name>_scored.nii.gz and the list of lesions add up to each row of the rule."""
    record, image = json.loads((out / f"{name}.json").read_text()), sitk.ReadImage(str(out / f"{name}_scored.nii.gz"))
    scored, voxel_mm3 = sitk.GetArrayFromImage(image), np.prod(image.GetSpacing())
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(out / f"{name}_mask.nii.gz")))
    assert np.array_equal(scored[scored > 0], mask[scored > 0]) and all(lesion["n_voxels"] > 0 for lesion in record["lesions"])
    rows = [row for row in record["rows"] if row["rule"] == rule and row["artery"] != "CAC"]
    for row in rows:
        number = CLASSES.index(row["artery"]) if row["artery"] in CLASSES else int(row["artery"])
        lesions = [lesion for lesion in record["lesions"] if lesion["artery"] == row["artery"]]
        assert row["volume_mm3"] == pytest.approx((scored == number).sum() * voxel_mm3, rel=1e-6)
        assert row["volume_mm3"] == pytest.approx(sum(lesion["volume_mm3"] for lesion in lesions), rel=1e-12)
        assert row["n_lesions"] == len(lesions)
    assert rows and sum(row["volume_mm3"] for row in rows) > 0


def test_bad_scans_are_rows_and_do_not_stop_the_batch(tmp_path, detector, capsys):
    """A missing slice, a tilted gantry, an MR series, an empty folder, a truncated file, a text file, and one good scan."""
    good = write_dicom(tmp_path / "good", calcified())
    gap = write_dicom(tmp_path / "gap", calcified(), skip=(3,))
    tilted = write_dicom(tmp_path / "tilted", calcified(), tilt_deg=15)
    mr = write_dicom(tmp_path / "mr", calcified(), storage=MRImageStorage)
    empty = tmp_path / "empty"
    empty.mkdir()
    cut = write_nifti(tmp_path / "cut.nii.gz", calcified())
    cut.write_bytes(cut.read_bytes()[:2000])
    text = tmp_path / "text.dcm"
    text.write_text("not a scan\n")
    paths = [gap, tilted, mr, empty, cut, text, good]
    out = tmp_path / "out"
    assert run(*paths, "--workdir", tmp_path, "--out", out) == 1
    rows = rows_of(out)
    refused = [row for row in rows if row["status"] == "refused"]
    assert [row["scan"] for row in refused] == ["gap", "tilted", "mr", "empty", "cut", "text"]
    assert all(row["reason"] in scan.REASONS for row in refused), refused
    assert "internal_error" not in {row["reason"] for row in refused}
    assert {row["scan"]: row["agatston"] for row in rows if row["artery"] == "CAC"} == {"good": "10.0"}
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0].startswith("device: cpu")
    assert "7 scans: 1 scored, 6 refused" in shown.out.splitlines()[-1]


def test_scores_lesions_and_files(tmp_path, detector):
    """Two squares by hand: 16 px and 4 px of 0.25 mm² at weight 2, slices of 3 mm, mass factor 1."""
    path = write_nifti(tmp_path / "p.nii.gz", calcified())
    out = tmp_path / "out"
    assert run(path, "--workdir", tmp_path, "--out", out, "--mass-factor", 1, "--save-probability") == 0
    rows = {row["artery"]: row for row in rows_of(out)}
    assert float(rows["CAC"]["agatston"]) == pytest.approx(10)
    assert float(rows["CAC"]["volume_mm3"]) == pytest.approx(20 * 0.75)
    assert float(rows["CAC"]["mass_mg"]) == pytest.approx(20 * 0.75 * 250 / 1000)
    assert (rows["CAC"]["n_lesions"], rows["LAD"]["n_lesions"], rows["RCA"]["n_lesions"]) == ("2", "2", "0")
    record = json.loads((out / "p.json").read_text())
    assert (record["status"], record["threshold"]["hu"], record["threshold"]["from"]) == (
        "scored",
        130,
        "assumed non-contrast",
    )
    assert record["heart"]["from"] == "none: detection was not limited to the heart"
    first = record["lesions"][0]
    assert first["artery"] == "LAD" and first["n_voxels"] == 16 and first["peak_hu"] == 250
    assert first["centre_mm"] == pytest.approx([21.5 * 0.5, 11.5 * 0.5, 6.0])
    assert record["masks"] == {"final": "p_mask.nii.gz", "scored": "p_scored.nii.gz", "before": "p_detected.nii.gz"}
    assert {"cacjax", "jax", "device"} <= record["versions"].keys()
    assert {"read", "detect_and_score"} <= record["timings_s"].keys()
    mask = sitk.ReadImage(str(out / "p_mask.nii.gz"))
    assert mask.GetSpacing() == pytest.approx(SPACING[::-1])
    assert np.array_equal(sitk.GetArrayFromImage(mask) > 0, calcified() == 250)
    assert {p.name for p in out.iterdir()} == {
        "scores.csv",
        *(f"p{suffix}" for suffix in (".json", ".png")),
        *(f"p_{stage}.nii.gz" for stage in ("mask", "scored", "detected", "probability")),
    }


def test_a_run_is_restored_once(tmp_path, monkeypatch):
    """Until its folder has another checkpoint, or other settings are asked for."""
    monkeypatch.setattr(workdir, "load", lambda path, scoring: stand_in(marks_bright, SPACING, **scoring))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    first = score_module.load_detector(tmp_path)
    assert score_module.load_detector(tmp_path) is first
    other = score_module.load_detector(tmp_path, {"classify": "mask"})
    assert other.config.scoring.classify == "mask" != first.config.scoring.classify
    assert score_module.load_detector(tmp_path) is first
    (tmp_path / "checkpoints" / "2").mkdir()
    assert score_module.load_detector(tmp_path) is not first


def test_seconds_are_told_stage_by_stage():
    scored = [{"timings_s": {"start": 1.0, "write": 0.25}}, {"timings_s": {"write": 0.5}}]
    assert batch.spent([*scored, {"status": "refused"}, {"timings_s": {"write": 9.0}, "kept": True}]) == "seconds: start 1.0, write 0.8"
    assert batch.spent([]) == "seconds: none"


def test_start_and_import_are_parts_of_the_life_of_a_process():
    began = time.perf_counter()
    words = "from cacjax import backend; print(backend.seconds_so_far())"
    told = ast.literal_eval(subprocess.run([sys.executable, "-c", words], capture_output=True, text=True).stdout)
    assert told["import"] > 0 and (sys.platform != "linux" or told["start"] > 0)
    assert sum(told.values()) < time.perf_counter() - began + 0.02  # a tick of the kernel's clock


def test_several_rules_are_rows_of_one_mask(tmp_path, detector):
    """A pixel of 0.25 mm² beside the squares: the default rule wants 1 mm² of it, syngo's does not; either way it is in the mask."""
    hu = calcified()
    hu[0, 0:2, 0] = 250
    path = write_nifti(tmp_path / "p.nii.gz", hu)
    assert run(path, "--workdir", tmp_path, "--out", tmp_path, "--rule", "default,siemens", "--scheme", "van_velzen") == 0
    rows = {(row["rule"], row["artery"]): row for row in rows_of(tmp_path)}
    assert len(rows) == 2 * 7 and {name: float(rows[name, "CAC"]["agatston"]) for name in ("default", "siemens")} == {
        "default": 10,
        "siemens": 11,
    }
    assert (rows["default", "CAC"]["category"], rows["siemens", "CAC"]["category"]) == ("I", "II")
    record = json.loads((tmp_path / "p.json").read_text())
    assert [rule["name"] for rule in record["rules"]] == ["default", "siemens"]
    found, scored = (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"p_{stage}.nii.gz"))) for stage in ("mask", "scored"))
    assert ((found > 0).sum(), (scored > 0).sum()) == (22, 20), "shown is what the first rule counts"
    with pytest.raises(SystemExit):
        run(path, "--workdir", tmp_path, "--out", tmp_path, "--rule", "default,agatsten")


def branched():
    """Besides, two squares in slices 1 and 3 joined by one voxel, a voxel alone, and one at 140 HU that touches a square by a corner."""
    hu = calcified()
    hu[1, 20:24, 30:34] = hu[3, 20:24, 30:34] = 300
    hu[2, 22, 33] = 300
    hu[0, 0, 0] = 300
    hu[4, 32, 10] = 140
    return hu


@pytest.mark.parametrize(("rule", "detected", "given"), [("default", 52, 53), ("orcascore", 54, 55), ("lessmann", 53, 54)])
def test_what_is_scored_is_what_is_shown(tmp_path, detector, monkeypatch, rule, detected, given):
    """Mask, list, picture and rows, detected or given, a minimum in the slice, none or in 3D; no lesion where a region has none."""
    drawn = []
    monkeypatch.setattr(pictures, "overlay", lambda path, hu, mask, **options: drawn.append((mask, options["title"])))
    hu, regions = branched(), np.ones(SHAPE, np.int16)
    regions[:, 30:] = 4
    regions[:, :, :5] = 2
    regions[0, 0, 0] = 1
    path, drawn_regions = write_nifti(tmp_path / "p.nii.gz", hu), write_nifti(tmp_path / "regions.nii.gz", regions)
    for source, voxels in ((("--workdir", tmp_path), detected), (("--regions", drawn_regions), given)):
        assert run(path, *source, "--out", tmp_path, "--rule", rule, "--scoring.fp_reduction=none") == 0
        assert_shown_as_scored(tmp_path, "p", rule=rule)
        scored = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "p_scored.nii.gz")))
        mask, title = drawn.pop()
        assert np.array_equal(mask, scored) and f"scored by rule {rule} from 130 HU" in title
        assert (scored > 0).sum() == voxels
        assert ("heart_not_checked" in title) == (source[0] == "--workdir")  # who sees the picture alone is told, too
    assert {row["artery"]: row["n_lesions"] for row in rows_of(tmp_path)}["2"] == "0"
    write_nifti(drawn_regions, np.zeros(SHAPE, np.int16))
    assert run(path, "--regions", drawn_regions, "--out", tmp_path) == 1 and rows_of(tmp_path)[0]["reason"] == "empty_regions"


def test_a_tube_voltage_that_changes_the_score_is_a_flag(tmp_path, detector):
    """At 100 kV the default rule counts from 147 HU, nothing to a threshold of 200 HU, of enhanced blood; no rule here knows 90 kV."""
    hu = calcified()
    hu[2, 10:14, 24:28] = 140
    folder, regions = write_dicom(tmp_path / "s", hu, kvp=100), write_nifti(tmp_path / "r.nii.gz", np.ones(SHAPE, np.int16))

    def flagged(*options, rule="default"):
        assert run(folder, *options, "--out", tmp_path / "out", "--rule", rule) == 0
        row, record = rows_of(tmp_path / "out")[-1], json.loads((tmp_path / "out" / "s.json").read_text())
        assert row["reason"] == " ".join(record["flags"]) and len(record["flags"]) == len(record["notes"])
        return row["reason"], row["threshold_hu"], float(row["agatston"])

    given = "--regions", regions
    assert flagged(*given) == ("kvp_limits", "147.0", 10)
    assert flagged("--workdir", tmp_path) == ("kvp_limits heart_not_checked", "147.0", 10)
    assert flagged("--workdir", tmp_path, "--threshold-hu", 200) == ("enhanced heart_not_checked", "200.0", 10)
    assert flagged(*given, rule="strict_130") == ("kvp_not_in_rule", "130.0", 18)
    assert flagged(*given, "--threshold-hu", 100, rule="calciumscoring_jl") == ("kvp_limits rule_threshold", "154.0", 10)
    write_dicom(tmp_path / "s", hu, kvp=120)
    assert flagged(*given) == ("", "130.0", 18)


def test_rows_say_how_and_of_whom(tmp_path):
    """Every cell, numbers with five digits; a scan without a header leaves what it does not say empty."""
    spacing = (3.0, 1 / 3, 1 / 3)
    folder, path = write_dicom(tmp_path / "s", calcified()), write_nifti(tmp_path / "p.nii.gz", calcified(), spacing)
    of_dicom = write_nifti(tmp_path / "s_regions.nii.gz", np.ones(SHAPE, np.uint8))
    of_nifti = write_nifti(tmp_path / "p_regions.nii.gz", np.ones(SHAPE, np.uint8), spacing)
    (dicom,), (nifti,) = (
        (run(source, "--regions", regions, "--out", tmp_path / "out"), rows_of(tmp_path / "out"))[1]
        for source, regions in ((folder, of_dicom), (path, of_nifti))
    )
    header = pydicom.dcmread(folder / "000.dcm")
    assert (dicom["patient"], dicom["study"], dicom["series"]) == ("p", header.StudyInstanceUID, header.SeriesInstanceUID)
    assert (dicom["kvp"], dicom["spacing_mm"], dicom["threshold_hu"]) == ("120.0", "3 x 0.5 x 0.5", "130.0")
    assert all(nifti[name] == "" for name in ("kvp", "kernel", "patient", "study", "series"))
    assert (nifti["spacing_mm"], nifti["agatston"], nifti["volume_mm3"]) == ("3 x 0.33333 x 0.33333", "3.5556", "5.3333")
    full = json.loads((tmp_path / "out" / "p.json").read_text())["rows"][-1]
    assert full["agatston"] == pytest.approx(32 / 9, rel=1e-6) and full["agatston"] != 3.5556


def test_scores_grow_by_a_scan_at_a_time(tmp_path, detector, monkeypatch):
    """What is in scores.csv when the next scan begins; nothing is written again before the end."""
    paths, seen = [write_nifti(tmp_path / f"{name}.nii.gz", calcified()) for name in "abc"], []
    real = one_scan.score
    monkeypatch.setattr(one_scan, "score", lambda *args, **options: (seen.append(rows_of(tmp_path)), real(*args, **options))[1])
    assert run(*paths, "--workdir", tmp_path, "--out", tmp_path) == 0
    final = rows_of(tmp_path)
    assert [len(rows) for rows in seen] == [0, 7, 14] and seen == [final[: len(rows)] for rows in seen]


def test_mask_lies_on_the_input_grid_whatever_its_axes(tmp_path, detector):
    """A scan stored head first and left to right flipped: the mask lies where the calcium is, the score does not change."""
    hu = calcified()[::-1, :, ::-1]
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing(SPACING[::-1])
    image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, -1))
    sitk.WriteImage(image, str(tmp_path / "p.nii.gz"))
    assert run(tmp_path / "p.nii.gz", "--workdir", tmp_path, "--out", tmp_path) == 0
    mask = sitk.ReadImage(str(tmp_path / "p_mask.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(mask) > 0, hu == 250)
    assert mask.GetDirection() == image.GetDirection()
    assert {row["artery"]: row["agatston"] for row in rows_of(tmp_path)}["CAC"] == "10.0"


def test_heart_and_threshold_of_a_manifest(tmp_path, detector):
    """The manifest's heart keeps one square; its threshold of 300 HU leaves nothing of the other scan. Only its rows are scored."""
    heart = np.zeros(SHAPE, np.uint8)
    heart[2, 12, 22] = 1
    for name in ("a", "b", "ignored"):
        write_nifti(tmp_path / f"{name}.nii.gz", calcified())
    write_nifti(tmp_path / "a_heart.nii.gz", heart)
    lines = ["scan,heart,threshold_hu", "a.nii.gz,a_heart.nii.gz,", "b.nii.gz,,300"]
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    assert run(tmp_path, "--workdir", tmp_path, "--out", out) == 0
    totals = {row["scan"]: float(row["agatston"]) for row in rows_of(out) if row["artery"] == "CAC"}
    assert totals == {"a": 8.0, "b": 0.0}
    record = json.loads((out / "b.json").read_text())
    assert record["threshold"] == {"hu": 300.0, "from": "manifest"}


def test_a_system_with_a_threshold_of_its_own_leaves_that_of_a_manifest(tmp_path, monkeypatch):
    own = stand_in(marks_bright, SPACING)
    own.config.scoring = ConfigDict(own.config.scoring.to_dict() | {"threshold": 130.0})
    monkeypatch.setattr(score_module, "load_detector", lambda workdir, scoring: own)
    write_nifti(tmp_path / "a.nii.gz", calcified())
    (tmp_path / "manifest.csv").write_text("scan,threshold_hu\na.nii.gz,300\n")
    assert run(tmp_path, "--workdir", tmp_path, "--out", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "a.json").read_text())["threshold"]["hu"] == 130.0
    with pytest.raises(ValueError, match="expected no scan threshold, got 200"):  # who asks for one is told
        score_module.score(tmp_path / "a.nii.gz", detector=own, threshold_hu=200.0)


def test_reduction_grows_and_is_optional(tmp_path, detector):
    """A voxel at 150 HU beside the square is not detected, but grown into; --scoring.fp_reduction=none leaves the detection as it is."""
    hu = calcified()
    hu[2, 10, 24] = 150
    path = write_nifti(tmp_path / "p.nii.gz", hu)
    assert run(path, "--workdir", tmp_path, "--out", tmp_path / "paper") == 0
    assert run(path, "--workdir", tmp_path, "--out", tmp_path / "none", "--scoring.fp_reduction=none") == 0
    counts = {}
    for out in ("paper", "none"):
        for stage in ("mask", "detected"):
            image = sitk.ReadImage(str(tmp_path / out / f"p_{stage}.nii.gz"))
            counts[out, stage] = int((sitk.GetArrayFromImage(image) > 0).sum())
    assert counts == {("paper", "mask"): 21, ("paper", "detected"): 20, ("none", "mask"): 20, ("none", "detected"): 20}


def test_what_is_classified_changes_no_score(tmp_path, detector, monkeypatch):
    """Of a speck too small to count `mask` asks no class, `threshold` does; only `all` knows what was detected. Pictures name arteries."""
    overlay, named = pictures.overlay, []
    monkeypatch.setattr(pictures, "overlay", lambda *args, **options: (named.append(options["names"]), overlay(*args, **options)))
    hu = calcified()
    hu[5, 20, 20] = 300
    path = write_nifti(tmp_path / "p.nii.gz", hu)
    totals, specks = {}, {}
    for kind in ("all", "threshold", "mask"):
        out = tmp_path / kind
        assert run(path, "--workdir", tmp_path, "--out", out, "--save-probability", f"--scoring.classify={kind}") == 0
        totals[kind] = [row["agatston"] for row in rows_of(out)]
        specks[kind] = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "p_probability.nii.gz")))[5, 20, 20]
        assert (out / "p_detected.nii.gz").exists() == (kind == "all")
    assert totals["all"] == totals["threshold"] == totals["mask"] and float(totals["all"][-1]) == 10
    assert specks == {"all": 0.75, "threshold": 0.75, "mask": 0}
    assert len(named) == 3 and all(names[1] == "LAD" for names in named)


def test_resume_keeps_finished_scans_with_the_same_settings(tmp_path, detector, capsys):
    """A refused scan is tried again, a kept one stays in the table, other settings score again."""
    path = write_nifti(tmp_path / "a.nii.gz", calcified())
    broken = tmp_path / "b.nii.gz"
    broken.write_bytes(b"")
    common = (path, broken, "--workdir", tmp_path, "--out", tmp_path)
    assert run(*common) == 1
    before = rows_of(tmp_path)
    stamp = (tmp_path / "a_mask.nii.gz").stat().st_mtime_ns
    assert run(*common, "--resume") == 1
    assert (tmp_path / "a_mask.nii.gz").stat().st_mtime_ns == stamp and rows_of(tmp_path) == before
    write_nifti(broken, calcified(1))
    assert run(*common, "--resume") == 0
    assert {row["scan"] for row in rows_of(tmp_path) if row["status"] == "scored"} == {"a", "b"}
    assert run(*common, "--resume", "--scoring.fp_reduction=none") == 0
    assert (tmp_path / "a_mask.nii.gz").stat().st_mtime_ns != stamp
    assert "a: kept from an earlier run" in capsys.readouterr().err


def test_an_unexpected_error_is_a_row_with_its_traceback(tmp_path, detector, monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("no such luck")

    path = write_nifti(tmp_path / "a.nii.gz", calcified())
    assert run(path, "--workdir", tmp_path, "--out", tmp_path) == 0
    monkeypatch.setattr(one_scan, "detect", fails)
    assert run(path, "--workdir", tmp_path, "--out", tmp_path) == 1
    record = json.loads((tmp_path / "a.json").read_text())
    assert (record["reason"], record["message"]) == ("internal_error", "RuntimeError: no such luck")
    assert "in fails" in record["traceback"]
    assert not (tmp_path / "a_mask.nii.gz").exists(), "a mask of the earlier run would look like this run's"


def test_python_interface(tmp_path, detector):
    """The same as the command line, from Python, for a path or a scan in memory; scan in, arrays out."""
    path = write_nifti(tmp_path / "p.nii.gz", calcified())
    result = cacjax.score(path, detector=detector)
    assert {row["artery"]: row["agatston"] for row in result.rows}["CAC"] == pytest.approx(10)
    assert result.mask.shape == SHAPE and result.mask.sum() == 20
    far = np.zeros(SHAPE, bool)
    far[0, 0, 0] = True
    again = cacjax.score(scan.read(path), detector=detector, heart=far)
    assert {row["artery"]: row["agatston"] for row in again.rows}["CAC"] == 0
    with pytest.raises(scan.ScanError, match="heart mask with voxels"):
        cacjax.score(path, detector=detector, heart=far & False)
    with pytest.raises(ValueError, match="expected a detector"):
        one_scan.score(path)
    with pytest.raises(ValueError, match="rule must be one of"):
        cacjax.score(path, detector=detector, rule="agatsten")


def test_a_trained_run_scores(tmp_path, records):
    """Two steps of the real source system at toy width, then its checkpoint through the command line and from Python."""
    config = shrink(importlib.import_module("configs.lessmann").get_config("tiny"), steps=2)
    train.train(config, tmp_path / "run")
    path = write_nifti(tmp_path / "p.nii.gz", calcified())
    assert run(path, "--workdir", tmp_path / "run", "--out", tmp_path / "out", "--save-probability") == 0
    record = json.loads((tmp_path / "out" / "p.json").read_text())
    assert record["system"] == "lessmann" and record["scoring"]["fp_reduction"] == "paper"
    assert record["settings"]["checkpoint"][0] == 2
    result = cacjax.score(path, workdir=tmp_path / "run")
    assert result.rows == [{k: v for k, v in row.items() if k not in ("scan", "status", "reason")} for row in record["rows"]]
    assert 0 < result.probability.max() <= 1 and (result.probability[calcified() < 130] == 0).all()


def test_settings_of_the_system_are_its_own(tmp_path, records, capsys):
    """Another value, a key that the system lacks, one of another kind: told with what there is, before a scan is read."""
    config = shrink(importlib.import_module("configs.lessmann").get_config("tiny"), steps=2)
    train.train(config, tmp_path / "run")
    path = write_nifti(tmp_path / "p.nii.gz", calcified())
    common = (path, "--workdir", tmp_path / "run", "--out", tmp_path)
    assert run(*common, "--scoring.fp_reduction=none", "--scoring.heart_dilation_mm=3") == 0
    scoring = json.loads((tmp_path / "p.json").read_text())["scoring"]
    assert (scoring["fp_reduction"], scoring["heart_dilation_mm"], scoring["classify"]) == ("none", 3.0, "all")
    for word, told in (
        ("--scoring.tau_hu=2", "whose scoring has ancestor, classify, .*, view, and no tau_hu"),
        ("--scoring.fp_reduction=papr", "must be one of paper, authors_code, lessmann, none"),
        ("--scoring.heart_dilation_mm=wide", "must be a float"),
        ("--scoring.view", "expected --scoring.KEY=VALUE"),
    ):
        with pytest.raises(SystemExit, match=told):
            run(*common, word)


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(SystemExit, match=r"holds no run.*cacjax\.train"):
        run(tmp_path, "--workdir", tmp_path, "--out", tmp_path)


def test_a_coarser_network_grid_comes_back_to_the_scan(tmp_path):
    """The network sees 1.5 mm slices of 1 mm pixels; its marks return to the acquired grid, cut at the acquired threshold."""
    path = write_nifti(tmp_path / "p.nii.gz", calcified())
    seen = {}

    def predict(network_hu, wanted):
        seen["wanted"] = jnp.shape(wanted)
        return marks_bright(network_hu, wanted)

    result = cacjax.score(path, detector=stand_in(predict, (1.5, 1.0, 1.0)))
    assert seen["wanted"] == (32, 128, 128)  # 12 x 20 x 24, padded
    assert 0 < (result.before > 0).sum() <= 20
    assert np.array_equal(result.mask > 0, calcified() == 250)
    assert result.rows[0].keys() <= set(tables.COLUMNS)

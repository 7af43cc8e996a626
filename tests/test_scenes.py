"""What phantoms show beside the chest: wide patients, arms, and regions without a heart."""

import csv

import numpy as np
import pytest
from scipy import ndimage

from cacjax.files import scan
from cacjax.phantom import __main__ as command
from cacjax.phantom import acquisition, make_scan, scenes
from cacjax.phantom.anatomy import sample_patient, stream
from cacjax.phantom.calcium import with_thin_plaques

GRID = {"shape": (8, 84, 84), "spacing_mm": (6.0, 6.0, 6.0)}


def width_mm(found):
    """Of the body in the middle slice, arms included."""
    return float(np.ptp(np.flatnonzero((found.hu[4] > -300).any(0))) + 1) * 6.0


def test_the_command_knows_every_scene():
    assert command.SCENES == scenes.SCENES
    assert acquisition.split("chest:wide+sharp") == ("chest", ("wide", "sharp")) and acquisition.split("rtp") == ("rtp", ())
    for wrong in ("chest:", "chest:leg", "neck"):
        with pytest.raises(ValueError, match=r"one of chest, cardiac, ccta, rtp, and after a colon, with \+ between, any of abdomen.*got"):
            acquisition.split(wrong)


def test_a_wide_patient_and_arms_change_what_is_around_the_heart_alone():
    """350 to 500 mm from side to side; with arms down as wide, and between the arms the voxels are those without."""
    usual, wide, down, up = (make_scan(f"rtp{scene}", 5, **GRID) for scene in ("", ":wide", ":arms_down", ":arms_up"))
    assert width_mm(usual) < 350 <= width_mm(wide) <= 500 and 400 <= width_mm(down) <= 504 and width_mm(up) == width_mm(usual)
    np.testing.assert_array_equal(down.structures, usual.structures)
    np.testing.assert_array_equal(down.hu[:, :, 30:54], usual.hu[:, :, 30:54])
    assert down.truth["scene"] == "arms_down" and usual.truth["scene"] == ""
    assert (down.clean > 150).sum() > (usual.clean > 150).sum() + 2 * 8 * 2  # humeri
    assert wide.heart.sum() == pytest.approx(usual.heart.sum(), rel=0.02)


@pytest.mark.parametrize("region", scenes.REGIONS)
def test_a_region_without_a_heart(region):
    """No heart, nothing marked, bone and soft tissue; another patient is another; a network's strata find their way."""
    found, other = (make_scan(f"ccta:{region}", seed, **GRID) for seed in (5, 6))
    assert not (found.heart.any() or found.structures.any() or found.label.any() or found.calcium.any() or found.truth["agatston"]["total"])
    assert (found.clean > 130).sum() > 20 and 0.01 < ((found.clean > 0) & (found.clean < 110)).mean() < 0.6
    assert found.clean.min() > -1000.1 and (found.clean != other.clean).any()


def test_scenes_from_the_command_line(tmp_path):
    options = ["--protocol", "chest", "--scene", "head", "--n", "1", "--shape", "8", "40", "40", "--spacing", "9", "6", "6"]
    assert command.main(["--out", str(tmp_path), *options]) == 0
    (row,) = csv.DictReader((tmp_path / "manifest.csv").read_text().splitlines())
    assert row["scan"] == "chest_head_00000.nii.gz" and scan.read(tmp_path / row["scan"]).hu.shape == (8, 40, 40)


def test_patients_take_several_protocols_in_turn(tmp_path, capsys):
    options = ["--n", "3", "--shape", "4", "20", "20", "--spacing", "9", "9", "9", "--scene", "streaks", "--out", str(tmp_path)]
    assert command.main(["--protocol", "rtp,chest:wide", *options]) == 0
    rows = list(csv.DictReader((tmp_path / "manifest.csv").read_text().splitlines()))
    wanted = ["rtp_streaks_00000", "chest_wide_streaks_00001", "rtp_streaks_00002"]
    assert [row["scan"] for row in rows] == [f"{name}.nii.gz" for name in wanted]
    assert [row["protocol"] for row in rows] == ["rtp", "chest", "rtp"]
    for wrong, told in (("rtp,leg", "got 'leg:streaks'"), ("rtp,chest", "--categories needs one protocol")):
        with pytest.raises(SystemExit):
            command.main(["--protocol", wrong, *options, *(["--categories", "1", "1", "1", "1", "1"] if "leg" not in wrong else [])])
        assert told in capsys.readouterr().err


def test_thin_plaques_lie_in_the_wall_of_the_aorta_alone():
    """Sheets of a millimetre or less about the lumen's edge; what else the patient has stays as it is."""
    patient = sample_patient(7)
    calcium = with_thin_plaques(patient.calcium, patient.tree, stream(7, 711))
    n, known = len(patient.calcium["pos"]), len(patient.calcium["lesions"])
    np.testing.assert_array_equal(calcium["pos"][:n], patient.calcium["pos"])
    assert calcium["lesions"][:known] == patient.calcium["lesions"] and 2 <= len(calcium["lesions"]) - known <= 9
    assert set(calcium["cls"][n:]) == {4} and [lesion["id"] for lesion in calcium["lesions"]] == list(range(len(calcium["lesions"])))
    assert all(lesion["volume_mm3"] > 1 for lesion in calcium["lesions"][known:])
    (aorta,) = (seg for seg in patient.tree if seg["name"] == "AO")
    for lesion in calcium["lesions"][known:]:
        rho = calcium["rho"][n:][calcium["lid"][n:] == lesion["id"]]
        radius = np.interp(lesion["position_mm"], aorta["s"], aorta["r"])
        assert np.ptp(rho) < 1.9 and abs(rho.mean() - radius - 0.15) < 0.5


def test_hard_kernels_motion_and_streaks_change_the_image_alone():
    """A hard kernel overshoots at the heart's edge, motion blurs it, streaks add to the noise; labels of the heart stay."""
    small = {"shape": (4, 160, 160), "spacing_mm": (3.0, 1.0, 1.0)}
    usual, sharp, moving, streaked = (make_scan(f"cardiac{scene}", 5, **small) for scene in ("", ":sharp", ":moving", ":streaks"))
    assert sharp.truth["kernel"] == "sharp" and 15 < sharp.truth["noise_hu"] <= 30 and usual.truth["kernel"] == "soft"
    beside = lambda scan: ndimage.maximum_filter(scan.clean < -600, (1, 5, 5))  # noqa: E731
    over_hu = {scan.truth["kernel"]: (scan.hu - scan.clean)[(scan.clean > 0) & beside(scan)].mean() for scan in (usual, sharp)}
    assert over_hu["sharp"] > 10 > abs(over_hu["soft"])
    assert 0.01 < (moving.structures != usual.structures)[usual.heart].mean() < 0.6
    np.testing.assert_array_equal(streaked.clean, usual.clean)
    added = (streaked.hu.astype(float) - usual.hu)[usual.hu > -300]
    assert 5 < added.std() < 40 and abs(added.mean()) < 3

"""What phantoms show beside the chest: wide patients, arms, and regions without a heart."""

import csv

import numpy as np
import pytest

from cacjax.files import scan
from cacjax.phantom import __main__ as command
from cacjax.phantom import acquisition, make_scan, scenes

GRID = {"shape": (16, 84, 84), "spacing_mm": (6.0, 6.0, 6.0)}


def width_mm(found):
    """Of the body in the middle slice, arms included."""
    return float(np.ptp(np.flatnonzero((found.hu[8] > -300).any(0))) + 1) * 6.0


def test_the_command_knows_every_scene():
    assert command.SCENES == scenes.SCENES
    assert acquisition.split("chest:neck") == ("chest", "neck") and acquisition.split("rtp") == ("rtp", "")
    for wrong in ("chest:", "chest:leg", "neck"):
        with pytest.raises(ValueError, match=r"one of chest, cardiac, ccta, rtp, or with one of abdomen.* after a colon, got"):
            acquisition.split(wrong)


def test_a_wide_patient_and_arms_change_what_is_around_the_heart_alone():
    """350 to 500 mm from side to side; with arms down as wide, and between the arms the voxels are those without."""
    usual, wide, down, up = (make_scan(f"rtp{scene}", 5, **GRID) for scene in ("", ":wide", ":arms_down", ":arms_up"))
    assert width_mm(usual) < 350 <= width_mm(wide) <= 500 and 400 <= width_mm(down) <= 504 and width_mm(up) == width_mm(usual)
    np.testing.assert_array_equal(down.structures, usual.structures)
    np.testing.assert_array_equal(down.hu[:, :, 30:54], usual.hu[:, :, 30:54])
    assert down.truth["scene"] == "arms_down" and usual.truth["scene"] == ""
    assert (down.clean > 150).sum() > (usual.clean > 150).sum() + 2 * 16 * 2  # humeri
    assert wide.heart.sum() == pytest.approx(usual.heart.sum(), rel=0.02)


@pytest.mark.parametrize("region", scenes.REGIONS)
def test_a_region_without_a_heart(region):
    """No heart, nothing marked, bone and soft tissue; another patient is another; a network's strata find their way."""
    found, other = (make_scan(f"ccta:{region}", seed, **GRID) for seed in (5, 6))
    assert not (found.heart.any() or found.structures.any() or found.label.any() or found.calcium.any() or found.truth["agatston"]["total"])
    assert (found.clean > 130).sum() > 40 and 0.01 < ((found.clean > 0) & (found.clean < 110)).mean() < 0.6
    assert found.clean.min() > -1000.1 and (found.clean != other.clean).any()


def test_scenes_from_the_command_line(tmp_path):
    options = ["--protocol", "chest", "--scene", "head", "--n", "1", "--shape", "8", "40", "40", "--spacing", "9", "6", "6"]
    assert command.main(["--out", str(tmp_path), *options]) == 0
    (row,) = csv.DictReader((tmp_path / "manifest.csv").read_text().splitlines())
    assert row["scan"] == "chest_head_00000.nii.gz" and scan.read(tmp_path / row["scan"]).hu.shape == (8, 40, 40)

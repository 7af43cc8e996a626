"""Files are whole or absent, tables read well, and pictures show what they should."""

import json
import math

import numpy as np
import pytest

from cacjax.files import manifest
from cacjax.report import pictures, result, tables
from cacjax.training import workdir


def disc(shape, centre, radius, spacing_mm):
    """A ball of `radius` mm as a boolean [z, y, x]."""
    grid = np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing_mm)], indexing="ij")
    return sum((g - c * s) ** 2 for g, c, s in zip(grid, centre, spacing_mm)) <= radius**2


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "out" / "a.json"
    tables.write_json(path, {"n": 1})
    with pytest.raises(ZeroDivisionError):
        tables.replace(path, lambda aside: (aside.write_text("half"), 1 / 0))
    assert json.loads(path.read_text()) == {"n": 1}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_json_takes_arrays_and_never_writes_nan(tmp_path):
    tables.write_json(tmp_path / "a.json", {"a": np.arange(2), "b": np.float32(0.5), "c": math.nan, "d": (np.int64(3), None)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [0, 1], "b": 0.5, "c": None, "d": [3, None]}


def test_table_aligns_numbers_and_names():
    text = tables.table([{"artery": "LAD", "agatston": 12.345}, {"artery": "CAC", "agatston": None}], ("artery", "agatston"))
    assert text.splitlines() == [
        "| artery | agatston |",
        "|--------|---------:|",
        "| LAD    |    12.35 |",
        "| CAC    |        - |",
    ]


def test_busiest_slices_are_apart_and_fall():
    mask = np.zeros((12, 4, 4), np.uint8)
    mask[5, :2], mask[6, :1], mask[9, 0, 0] = 1, 1, 1
    box = (slice(0, 12),) * 3
    assert pictures.busiest(mask, box, 3, (1.5, 1, 1)) == [9, 5]
    assert pictures.busiest(mask, box, 1, (1.5, 1, 1)) == [5]
    assert len(pictures.busiest(np.zeros_like(mask), box, 3, (1.5, 1, 1))) == 3


def test_overlay_shows_each_artery_in_its_colour(tmp_path):
    """Both arteries' colours are in the picture; that of an empty mask has none."""
    from matplotlib.image import imread

    spacing = (1.5, 0.7, 0.7)
    heart = disc((40, 96, 96), (20, 48, 48), 26, spacing)
    hu = np.where(heart, 400, -80).astype(np.float32)
    mask = np.zeros(hu.shape, np.uint8)
    mask[disc(hu.shape, (25, 40, 60), 3, spacing)], mask[disc(hu.shape, (15, 60, 30), 3, spacing)] = 1, 3
    hu[mask > 0] = 900
    names = ("background", "LAD", "LCX", "RCA")
    grid = {"affine": np.array([[0, 0, 0.7, 0], [0, 0.7, 0, 0], [1.5, 0, 0, 0], [0, 0, 0, 1.0]]), "names": names}
    pictures.overlay(tmp_path / "a.png", hu, mask, **grid, threshold_hu=450.0, heart=heart, title="a")
    pictures.overlay(tmp_path / "b.png", hu, mask * 0, **grid)
    marked, bare = (imread(tmp_path / name)[..., :3] for name in ("a.png", "b.png"))
    assert count(marked, "#ff2d55") > 50 and count(marked, "#32d74b") > 50 and count(marked, "#ffd60a") == 0
    assert count(bare, "#ff2d55") == 0


def test_who_sees_a_picture_alone_reads_that_phantoms_trained_its_networks():
    notes = ["contrast medium", workdir.SHIPPED["research_only"], "a note without a flag"]
    assert result.doubts({"flags": [], "notes": notes[2:]}) == ""
    assert result.doubts({"flags": ["enhanced"], "notes": notes[::2]}) == "\nflags: enhanced"
    over = result.doubts({"flags": ["enhanced", "research_only"], "notes": notes})
    assert over == f"\nflags: enhanced, research_only\n{notes[1]}" and "trained on digital phantoms; research only" in over


def test_every_lesion_is_in_some_slice_and_has_its_number(tmp_path, monkeypatch):
    """Thirteen lesions in eleven slices: two of one slice, one that a slice of another shows; more slices than a row takes."""
    affine = np.array([[0, 0, 0.7, -30], [0, 0.7, 0, -20], [2.0, 0, 0, -100], [0, 0, 0, 1.0]])
    mask = np.zeros((50, 64, 64), np.uint8)
    at = [(4 * k + 2, 20 + k, 30) for k in range(11)] + [(2, 50, 50), (7, 50, 50)]
    spans = [1] * 12 + [5]
    for (z, y, x), n in zip(at, spans):
        mask[z - n // 2 : z + n // 2 + 1, y - 1 : y + 2, x - 1 : x + 2] = 1
    centres = [affine[:3, :3] @ place + affine[:3, 3] for place in at]
    lesions = [{"number": k, "centre_mm": c.tolist(), "slices": n} for k, (c, n) in enumerate(zip(centres, spans), 1)]
    told, titles = [], []
    number, draw = pictures.number, pictures.draw
    monkeypatch.setattr(pictures, "number", lambda *args: (told.append(args[1]), number(*args)))
    monkeypatch.setattr(pictures, "draw", lambda *args: (titles.append(args[4]), draw(*args)))
    pictures.overlay(tmp_path / "a.png", np.zeros(mask.shape), mask, affine=affine, names=("background", "LAD"), lesions=lesions)
    assert sorted(n for places in told[:-1] for n, _, _ in places) == [*range(1, 14)] and len(told[-1]) == 13
    assert titles[:2] == ["z -16.0 mm", f"{9 * 0.49:.1f} mm² marked"] and len(told) == 12


def count(picture, colour):
    """Pixels of a [h, w, 3] picture in 0..1 that are close to `colour`."""
    target = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    return int((np.abs(picture - target).max(-1) < 0.02).sum())


def test_manifest_names_and_errors(tmp_path):
    assert manifest.names(["a/p.nii.gz", "b/p.nii.gz", "q.nii", "r.v2.nii.gz"]) == ["a_p", "b_p", "q", "r.v2"]
    assert manifest.unique(["a", "a", "a-2"]) == ["a", "a-3", "a-2"]
    path = tmp_path / "manifest.csv"
    path.write_text("scan,mask,heart,threshold_hu,note\np.nii.gz,,h.nii.gz,210.5,kept\n")
    (row,) = manifest.read(tmp_path)
    assert (row.name, row.scan, row.mask, row.heart) == ("p", tmp_path / "p.nii.gz", None, tmp_path / "h.nii.gz")
    assert (row.threshold_hu, row.aorta_hu, row.cells["note"]) == (210.5, None, "kept")
    path.write_text("scan,threshold_hu\np.nii.gz,high\n")
    with pytest.raises(manifest.ManifestError, match=r"manifest.csv, line 2: expected a number of HU in threshold_hu, got 'high'"):
        manifest.read(path)
    path.write_text("image\np.nii.gz\n")
    with pytest.raises(manifest.ManifestError, match="expected a column named scan, got image"):
        manifest.read(path)

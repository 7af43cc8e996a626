"""The body of a scan, what lies outside of it, and where blood can be."""

import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pydicom
import pytest
from conftest import stand_in
from scipy import ndimage

from cacjax.files import scan
from cacjax.files.geometry import Acquisition
from cacjax.scoring import body, one_scan, threshold

SPACING_MM = (2.5, 1.5, 1.5)


def thorax(shape=(24, 200, 240)):
    """A body of 300 x 210 mm with lungs, a spine, calcium in the heart, on a table, with electrodes: {name: mask}, HU."""
    y, x = np.mgrid[: shape[1], : shape[2]]
    inside = ((y - 95) / 70) ** 2 + ((x - 120) / 100) ** 2 < 1
    flat = {
        "body": inside,
        "lungs": ((y - 95) / 42) ** 2 + ((abs(x - 120) - 46) / 30) ** 2 < 1,
        "table": (abs(y - 168) < 2) & (abs(x - 120) < 110),
        "foam": (y > 169) & (y < 185) & (abs(x - 120) < 110),
        "electrode": (abs(y - 21) < 4) & (abs(x - 120) < 4),  # on the skin
        "snap": (abs(y - 10) < 3) & (abs(x - 70) < 3),
        "spine": (abs(y - 132) < 14) & (abs(x - 120) < 16),
    }
    masks = {name: np.broadcast_to(mask, shape).copy() for name, mask in flat.items()}
    for name in ("electrode", "snap"):
        masks[name][:10], masks[name][14:] = False, False
    masks["calcium"] = np.zeros(shape, bool)
    masks["calcium"][12, 80:84, 118:122] = True
    hu = np.full(shape, -1000.0, np.float32)
    for name, value in {"body": 40, "lungs": -860, "table": 60, "foam": -900, "electrode": 900, "snap": 2000}.items():
        hu[masks[name]] = value
    hu[masks["calcium"]] = 500
    return masks, hu


def image_of(hu):
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]], affine[3, 3] = SPACING_MM, 1.0
    return scan.Scan(hu=hu, affine=affine, path="p", acquisition=Acquisition())


def test_outside_of_the_body_nothing_is_bright():
    masks, hu = thorax()
    found = body.clear(hu, SPACING_MM)
    for name in ("table", "electrode", "snap"):
        away = masks[name] & ~np.roll(masks["body"], -2, 1)  # of the electrode what sticks out by more than a cell
        assert away.any() and (found[away] <= body.WATER_HU).all(), name
    assert (found[masks["foam"]] == -900).all() and (found[masks["lungs"]] == hu[masks["lungs"]]).all()
    inner = ndimage.binary_erosion(masks["body"], iterations=5)
    assert (found[inner] == hu[inner]).all()
    np.testing.assert_array_equal(body.clear(np.full_like(hu, -1000), SPACING_MM), -1000)  # no body
    np.testing.assert_array_equal(body.clear(hu[:, 60:120, 60:180], SPACING_MM), hu[:, 60:120, 60:180])  # fills the field of view


def test_electrodes_are_scored_by_no_system():
    """A detector that takes all that is bright, without a heart and with one: the calcium in the heart is all that is left."""
    masks, hu = thorax()
    detector = stand_in(lambda hu, wanted: ((3 * wanted).astype(jnp.uint8), wanted.astype(jnp.float32)), SPACING_MM, fp_reduction="none")
    calcium_mm3 = masks["calcium"].sum() * np.prod(SPACING_MM)
    assert ((hu >= 130).sum() - masks["calcium"].sum()) > 200
    for heart in (None, ndimage.binary_dilation(masks["calcium"], iterations=9)):
        result = one_scan.score(image_of(hu), detector=detector, heart=heart)
        assert result.rows[-1]["volume_mm3"] == pytest.approx(calcium_mm3)


def test_dense_vertebrae_are_no_blood(monkeypatch):
    """A spine of spongy bone at 220 HU, 48 x 40 mm and unbroken; as much in the heart's place is blood."""
    masks, hu = thorax((80, 200, 240))
    image = image_of(np.where(masks["spine"], np.float32(220), hu))
    blood = image_of(np.where(np.roll(masks["spine"], -50, 1), np.float32(220), hu))
    choose = lambda image: threshold.choose(None, "scan", image, None)[1]  # noqa: E731
    assert choose(image) == [] and choose(blood) == ["contrast_enhanced"]
    monkeypatch.setattr(body, "FRONT", 1.0)
    assert choose(image) == ["contrast_enhanced"]


SLICES = pathlib.Path(os.environ.get("CACJAX_DATA_SLICES", pathlib.Path(__file__).parents[2] / "shared/data/real-slices"))
ENHANCED = {"A002304_19001231-076", "A056642_19010107-111"}


@pytest.mark.skipif(not SLICES.is_dir(), reason="needs CACJAX_DATA_SLICES, single slices of patients")
def test_spines_of_patients_are_no_blood(monkeypatch):
    """Slices of real patients, each as a slab of 72 mm: the enhanced two are flagged, and not the spines of the other three."""
    flagged = {1.0: set(), body.FRONT: set()}
    for path in sorted(SLICES.glob("*.dcm")):
        header = pydicom.dcmread(path)
        hu = header.pixel_array * np.float32(header.RescaleSlope) + np.float32(header.RescaleIntercept)
        affine = np.zeros((4, 4))
        affine[[2, 1, 0], [0, 1, 2]], affine[3, 3] = (3.0, *map(float, header.PixelSpacing)), 1.0
        image = scan.Scan(hu=np.repeat(hu[None], 24, 0), affine=affine, path=path.stem, acquisition=Acquisition())
        for front, names in flagged.items():
            monkeypatch.setattr(body, "FRONT", front)
            if threshold.choose(None, "scan", image, None)[1]:
                names.add(path.stem)
    whole, front = flagged.values()
    assert front == ENHANCED and len(whole - ENHANCED) == 2

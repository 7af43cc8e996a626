"""Calcium without a threshold: the unit tests of MolloiLab/CalciumScoring.jl and a partial-volume drawing."""

import jax
import numpy as np
import pytest
from scipy import ndimage, stats

from cacjax.kernels import integrated

PATCH = (
    [[10, 30, 135, 145, 5, 150, 100, 80, 9], [9, 40, 135, 130, 5, 150, 190, 80, 9], [10, 100, 100, 130, 5, 9, 0, 80, 18]]
    + [[4, 40, 135, -10, 5, 150, 100, 0, 9], [10, 0, 189, 130, 5, 150, 40, 80, 22]],
    [[196.569, 207.709, 177.004, 207.147, 178.809], [207.359, 211.824, 0, 168.913, 202.965]]
    + [[160.564, 0, 208.593, 214.862, 220.32], [158.685, 188.71, 226.872, 202.076, 226.995]]
    + [[186.996, 212.137, 185.208, 228.175, 234.261]],
    3.71766204174398,
)
SLICE = (
    [[0, 46, 58, 123, 133, 104, 65, 7], [19, 25, 20, 125, 163, 83, -22, -134], [127, 99, 65, 104, 139, 57, -51, -102]]
    + [[123, 88, 112, 140, 104, 57, 46, 34], [122, 31, 71, 121, 93, 83, 101, 72], [97, 24, 59, 99, 68, 27, 22, 52]]
    + [[0, 22, 29, 72, 80, 54, 28, 72], [0, 17, -20, 15, 42, 61, 80, 83], [0, 66, 14, -3, 11, 54, 110, 148]]
    + [[0, 121, 127, 102, 103, 93, 118, 167]],
    [[153.984, 185.388, 176.888, 168.15, 165.752], [155.811, 161.226, 160.228, 183.94, 151.235]]
    + [[149.247, 196.509, 167.052, 158.717, 230.236], [174.404, 184.419, 177.621, 149.801, 182.128]]
    + [[161.85, 192.528, 160.222, 178.946, 176.578]],
    1.45804182641349,
)


def test_integrated_of_a_block():
    hu = np.full((4, 4, 4), -1024.0)
    hu[1:3, 1:3, 1:3] = 800
    limits = {"background_hu": -1024.0, "object_hu": 800.0}
    assert float(integrated.integrated_voxels(hu, **limits)) == pytest.approx(8, rel=1e-6)
    found = integrated.integrated(hu, **limits, spacing_mm=(0.5, 0.5, 0.5), density=10.0)
    assert [float(value) for value in found] == pytest.approx([1, 10], rel=1e-6)


def test_integrated_in_two_slices():
    """As published: 4 x 4 x 2 with the inner 2 x 2 of both slices filled."""
    hu = np.full((2, 4, 4), -1024.0)
    hu[:, 1:3, 1:3] = 800
    found = integrated.integrated(hu, background_hu=-1024.0, object_hu=800.0, spacing_mm=(0.5, 0.5, 0.5), density=10.0)
    assert [float(value) for value in found] == pytest.approx([1, 10], rel=1e-6)


def test_volume_fraction():
    hu = np.array([[400, 300], [200, 100], [0, 0]])
    limits = {"tissue_hu": 100.0, "calcium_hu": 400.0}
    assert float(integrated.volume_fraction(hu, **limits)) == pytest.approx(4 / 3, rel=1e-6)
    both = np.stack([hu, hu])
    assert float(integrated.volume_fraction(both, **limits)) == pytest.approx(8 / 3, rel=1e-6)
    found = integrated.by_volume_fraction(hu, **limits, spacing_mm=(1.0, 1.0, 0.5), density=1.5)
    assert [float(value) for value in found] == pytest.approx([2 / 3, 1], rel=1e-6)
    assert float(integrated.volume_fraction(np.zeros((3, 3)), tissue_hu=0.0, calcium_hu=400.0)) == 0


@pytest.mark.parametrize(("hu", "patch", "expected", "slices"), [(*PATCH, 1), (*SLICE, 2)])
def test_spatially_weighted(hu, patch, expected, slices):
    hu, patch = np.array(hu), np.array(patch)
    weight = stats.norm.cdf(hu, patch.mean(), patch.std(ddof=1))
    plus = np.array([[0, 0.2, 0], [0.2, 0.2, 0.2], [0, 0.2, 0]])
    alone = ndimage.convolve(weight, plus, mode="constant").sum()
    found = float(jax.jit(integrated.spatially_weighted)(np.stack([hu] * slices), patch))
    assert found == pytest.approx(slices * alone, rel=1e-5)
    assert found == pytest.approx(expected, rel=1e-5)


def test_blur_does_not_change_them():
    """A blurred block loses volume at 130 HU and none of what is integrated."""
    hu = np.full((24, 24, 24), 40.0)
    hu[10:14, 10:14, 10:14] = 500
    blurred = ndimage.gaussian_filter(hu, 1.5)
    assert (blurred >= 130).sum() != 64
    for image in (hu, blurred):
        assert float(integrated.integrated_voxels(image, background_hu=40.0, object_hu=500.0)) == pytest.approx(64, rel=1e-3)
        assert float(integrated.volume_fraction(image, tissue_hu=40.0, calcium_hu=500.0)) == pytest.approx(64, rel=1e-3)

"""Resampling and dilation against scipy; slabs, fitting and grids against small drawings."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from cacjax.kernels import spatial

SPACING = (3.0, 0.5, 0.4)


def volume(shape=(7, 19, 23)):
    return np.random.default_rng(1).normal(0, 800, shape).astype(np.float32)


@pytest.mark.parametrize(("order", "tolerance"), [(0, 0), (1, 1e-3), (3, 0.05)])
@pytest.mark.parametrize("new", [(1.5, 0.66, 0.66), (4.1, 0.3, 0.4)])
def test_resample_equals_zoom(order, tolerance, new):
    hu = volume()
    ours, true = spatial.resample(hu, SPACING, new, order=order)
    theirs = ndimage.zoom(hu.astype(np.float64), np.array(SPACING) / new, order=order, mode="nearest")
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)
    np.testing.assert_allclose(true, np.array(SPACING) * (np.array(hu.shape) - 1) / (np.array(ours.shape) - 1))


CT_SHAPE, CT_MM = (37, 61, 53), (2.5, 0.683594, 0.683594)


def ct():
    """An int16 chest-like volume with air, steep edges, noise and metal."""
    rng = np.random.default_rng(3)
    hu = np.where(ndimage.gaussian_filter(rng.normal(size=CT_SHAPE), 4) > 0, 60, -950) + rng.normal(0, 25, CT_SHAPE)
    hu[rng.random(CT_SHAPE) < 0.01] = 3071
    return hu.round().clip(-1024, 3071).astype(np.int16)


@pytest.mark.parametrize(("order", "tolerance"), [(0, 0), (1, 1e-3), (3, 0.05)])
def test_resample_of_ct_equals_simpleitk_and_scipy(order, tolerance):
    """The same samples from three programs; ITK is asked for the grid that is returned as true."""
    sitk = pytest.importorskip("SimpleITK")
    hu = ct()
    ours, true_mm = spatial.resample(jnp.asarray(hu), CT_MM, (1.5, 0.66, 0.66), order=order)
    image = sitk.GetImageFromArray(hu.astype(np.float64))
    image.SetSpacing(CT_MM[::-1])
    kind = {0: sitk.sitkNearestNeighbor, 1: sitk.sitkLinear, 3: sitk.sitkBSpline}[order]
    origin, direction = (0.0,) * 3, np.eye(3).ravel().tolist()
    theirs = sitk.GetArrayFromImage(sitk.Resample(image, ours.shape[::-1], sitk.Transform(), kind, origin, true_mm[::-1], direction))
    zoomed = ndimage.zoom(hu.astype(np.float64), np.array(CT_MM) / (1.5, 0.66, 0.66), order=order, mode="nearest")
    np.testing.assert_allclose(ours, zoomed, rtol=0, atol=tolerance)
    # ITK mirrors at the edges where scipy repeats them, and drops samples that rounding puts a hair outside of the last voxel.
    inner = np.s_[16:-16, 16:-16, 16:-16] if order == 3 else np.s_[:-1, :-1, :-1]
    np.testing.assert_allclose(np.asarray(ours)[inner], theirs[inner], rtol=0, atol=tolerance)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_a_lengthened_plan_gives_the_same(order):
    hu = ct()
    new = spatial.zoomed_shape(hu.shape, CT_MM, (1.5, 0.66, 0.66))
    axes, _ = spatial.plan(hu.shape, new, CT_MM, (1.5, 0.66, 0.66), order=order)
    long = spatial.lengthen(axes, [n + 9 for n in new])
    padded = np.pad(hu, ((0, 5), (0, 3), (0, 11)), constant_values=-32768)
    found = np.asarray(spatial.sample(padded, long))[: new[0], : new[1], : new[2]]
    np.testing.assert_allclose(found, spatial.sample(hu, axes), rtol=0, atol=2e-3 if order else 0)


def test_slabs_of_ct_equal_a_plain_mean():
    hu = ct()
    slabs, _ = spatial.slab_average(jnp.asarray(hu), 2.5, thickness_mm=2.5, slab_mm=5.0, slab_step_mm=2.5)
    np.testing.assert_allclose(slabs, (hu[:-1].astype(np.float64) + hu[1:]) / 2, rtol=0, atol=1e-3)


@pytest.mark.parametrize("new", [(1.5, 0.66, 0.66), (4.1, 1.7, 0.3)])
def test_touched_is_what_nearest_samples_read(new):
    shape = (9, 21, 70)
    rng = np.random.default_rng(2)
    network = spatial.zoomed_shape(shape, SPACING, new)
    axes, _ = spatial.plan(network, shape, new, SPACING, order=0)
    wanted = rng.random(shape) < 0.05
    expected = np.zeros(network, bool)
    z, y, x = np.nonzero(wanted)
    expected[axes[0].first[z], axes[1].first[y], axes[2].first[x]] = True
    np.testing.assert_array_equal(spatial.touched(jnp.asarray(wanted), axes, network), expected)
    more = spatial.lengthen(axes, (12, 30, 80))
    padded = np.pad(wanted, ((0, 3), (0, 9), (0, 10)))
    np.testing.assert_array_equal(spatial.touched(jnp.asarray(padded), more, network), expected)


def test_resample_of_one_slice_and_to_one_voxel():
    hu = volume((1, 4, 3))
    ours, true = spatial.resample(hu, SPACING, (1.5, 9.0, 0.4), order=3)
    assert ours.shape == (2, 1, 3) and true == (1.5, 9.0, 0.4)
    np.testing.assert_allclose(ours[1, 0], hu[0, 0], atol=1e-3)


def test_resample_there_and_back_is_on_the_old_grid():
    hu = np.broadcast_to(np.arange(19, dtype=np.float32)[:, None], (7, 19, 23)) * 10
    there, spacing = spatial.resample(hu, SPACING, (1.5, 0.33, 0.4))
    back, true = spatial.resample(there, spacing, SPACING, shape=hu.shape)
    np.testing.assert_allclose(back, hu, atol=1e-3)
    np.testing.assert_allclose(true, SPACING)


def test_resample_keeps_a_mask_exact():
    mask = volume() > 300
    labels = spatial.resample(mask, SPACING, (1.5, 0.66, 0.66), order=0)[0]
    assert set(np.unique(labels)) == {0, 1}


def test_resample_errors():
    with pytest.raises(ValueError, match="order must be 0, 1 or 3, got 2"):
        spatial.resample(volume(), SPACING, SPACING, order=2)
    with pytest.raises(ValueError, match="spacings must be positive"):
        spatial.resample(volume(), SPACING, (0, 1, 1))


def affine(spacing, origin):
    """Columns in array order (z, y, x), rows X, Y, Z."""
    matrix = np.zeros((4, 4))
    matrix[2, 0], matrix[1, 1], matrix[0, 2], matrix[3, 3] = *spacing, 1
    matrix[:3, 3] = origin
    return matrix


def test_resample_to_follows_the_affines():
    z, y, x = np.indices((6, 8, 9)).astype(np.float32)
    ramp = z * 3 + 100 * y * 0.5 + 10000 * x * 0.4  # one unit a mm along each axis
    to = affine((1.5, 1.0, -0.8), (2.8, 0.5, 3.0))  # x runs backwards
    ours = spatial.resample_to(ramp, affine(SPACING, (0, 0, 0)), to, (4, 3, 4))
    k, j, i = np.indices((4, 3, 4))
    np.testing.assert_allclose(ours, (3 + 1.5 * k) + 100 * (0.5 + j) + 10000 * (2.8 - 0.8 * i), rtol=1e-5)
    there = affine(SPACING, (-0.8, 0, 0))
    beyond = spatial.resample_to(ramp, affine(SPACING, (0, 0, 0)), there, ramp.shape, order=0, outside=-1024)
    assert (beyond[:, :, :2] == -1024).all()
    np.testing.assert_array_equal(beyond[:, :, 2:], ramp[:, :, :7])


def test_resample_to_refuses_turned_grids():
    turned = affine(SPACING, (0, 0, 0))[:, [0, 2, 1, 3]]
    with pytest.raises(ValueError, match="share their axes"):
        spatial.resample_to(volume(), affine(SPACING, (0, 0, 0)), turned, (3, 3, 3))


def test_slabs_weigh_by_overlap():
    hu = np.arange(1, 7, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)
    slabs, first = spatial.slab_average(hu, 1.0, slab_mm=3.0, slab_step_mm=1.5)
    # [0, 3]: 1 2 3; [1.5, 4.5]: half of 2, 3, 4, half of 5; [3, 6]: 4 5 6.
    np.testing.assert_allclose(slabs[:, 0, 0], [2, 3.5, 5], rtol=1e-6)
    assert first == 1.0
    # Slices of 0.6 mm every 0.4 mm overlap: each counts by its own part in the slab.
    thick, first = spatial.slab_average(hu, 0.4, thickness_mm=0.6, slab_mm=1.0, slab_step_mm=1.0)
    expected = [(0.6 * 1 + 0.6 * 2 + 0.2 * 3) / 1.4, (0.4 * 3 + 0.6 * 4 + 0.4 * 5) / 1.4]
    np.testing.assert_allclose(thick[:, 0, 0], expected, rtol=1e-6)
    assert first == pytest.approx(0.2)
    with pytest.raises(ValueError, match="at least one slab"):
        spatial.slab_average(hu, 0.4)


def test_fit_cuts_pads_and_goes_back():
    hu = volume((4, 7, 5))
    there, start = spatial.fit(hu, (6, 4, 5), fill=-1024)
    assert there.shape == (6, 4, 5) and start == (-1, 1, 0)
    np.testing.assert_array_equal(there[1:5], hu[:, 1:5])
    assert (there[0] == -1024).all()
    back, _ = spatial.fit(there, hu.shape, fill=0, start=[-s for s in start])
    np.testing.assert_array_equal(back[:, 1:5], hu[:, 1:5])
    assert (back[:, 0] == 0).all()


@pytest.mark.parametrize(
    ("radius", "spacing"),
    [(5.0, (1.0, 1.0, 1.0)), (5.0, (1.5, 0.8, 0.66)), (2.0, (3.0, 0.1, 0.5)), (0.0, (1.0, 1.0, 1.0)), (0.9, (1.0, 0.3, 0.45))],
)
def test_dilate_equals_the_distance_transform(radius, spacing):
    rng = np.random.default_rng(0)
    mask = rng.random((9, 21, 70)) < 0.002
    mask[0, 0, 0] = mask[-1, -1, -1] = mask[4, 10, 31] = True
    expected = ndimage.distance_transform_edt(~mask, sampling=spacing) <= radius
    np.testing.assert_array_equal(spatial.dilate(jnp.asarray(mask), radius, spacing), expected)


def test_dilate_empty_full_and_thin():
    for shape in ((1, 1, 1), (2, 1, 33)):
        assert not spatial.dilate(np.zeros(shape, bool), 3.0, SPACING).any()
        assert spatial.dilate(np.ones(shape, bool), 3.0, SPACING).all()
    with pytest.raises(ValueError, match="radius_mm must be >= 0"):
        spatial.dilate(np.ones((1, 1, 1), bool), -1, SPACING)

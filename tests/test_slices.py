"""What two-dimensional networks see of slices, and the grid of slabs, against definitions written out here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from cacjax.kernels import grids, losses, slabs, slices, spatial

KEY = jax.random.key(3)


def picture(b=2, size=24, seed=0):
    return np.random.default_rng(seed).normal(0, 100, (b, size, size)).astype(np.float32)


def test_smoothing_is_a_gaussian_and_amplifying_undoes_it():
    hu = picture()
    found = slices.smoothed(hu)
    np.testing.assert_allclose(found, ndimage.gaussian_filter(hu, (0, 0.5, 0.5), mode="nearest", truncate=4), atol=0.1)
    kinds = np.asarray(slices.with_other_noise(np.repeat(hu[:1, ..., None], 60, 0), KEY))[..., 0]
    which = [[bool(np.allclose(k, each, atol=1e-3)) for each in (hu[0], found[0], 2 * hu[0] - found[0])] for k in kinds]
    assert (np.sum(which, 1) == 1).all() and np.sum(which, 0).min() > 8


def test_labels_turn_and_flip_with_their_pictures():
    hu = picture()
    label = (hu > 50).astype(np.uint8)[..., None]
    same, marks = slices.turned(hu[..., None], label, KEY, degrees=0.0, size=24)
    np.testing.assert_allclose(same[..., 0], hu, atol=1e-2)
    np.testing.assert_array_equal(marks, label)
    smooth = ndimage.gaussian_filter(hu, (0, 3, 3)) * 30
    turned, marks = slices.turned(smooth[..., None], (smooth > 0).astype(np.uint8)[..., None], KEY, degrees=15.0, size=16)
    turned = np.asarray(turned)[..., 0]
    inside = turned > -900
    assert np.mean((turned > 0) == (np.asarray(marks)[..., 0] > 0), where=inside) > 0.97
    stack = np.concatenate([hu[..., None], label], -1)
    flipped = np.asarray(slices.flipped(np.repeat(stack[:1], 40, 0), KEY))
    np.testing.assert_array_equal(flipped[..., 0] > 50, flipped[..., 1] > 0)
    ways = {tuple(np.allclose(each[..., 0], hu[0][::a, ::b]) for a in (1, -1) for b in (1, -1)) for each in flipped}
    assert len(ways) == 4


def test_rotation_is_by_the_angle():
    hu = np.full((1, 41, 41), -1000, np.float32)
    hu[0, 20, 20:36] = 1000  # a bar to the right of the middle
    turned, _ = slices.turned(np.repeat(hu[..., None], 50, 0), np.zeros((50, 41, 41, 1), np.uint8), KEY, degrees=15.0, size=41)
    tips = [np.argwhere(each > 0) - 20 for each in np.asarray(turned)[..., 0]]
    angles = [np.degrees(np.arctan2(*tip[np.hypot(*tip.T) > 8].mean(0))) for tip in tips]
    assert max(np.abs(angles)) < 16 and max(angles) > 8 and min(angles) < -8


@pytest.mark.parametrize(("size", "parts"), [(24, 6), (224, 26), (23, 5)])
def test_parts_of_a_slice_that_a_mask_touches(size, parts):
    mask = np.random.default_rng(0).random((2, size, size)) > 0.995
    found = np.asarray(slices.touched(mask, (parts, parts)))
    for i in range(parts):
        for j in range(parts):
            rows, columns = (slice(k * size // parts, -(-(k + 1) * size // parts)) for k in (i, j))
            np.testing.assert_array_equal(found[:, i, j], mask[:, rows, columns].any((1, 2)))


def test_within_is_a_disc():
    mask = np.zeros((1, 15, 15), bool)
    mask[0, 7, 7] = True
    far = ndimage.distance_transform_edt(~mask[0])
    np.testing.assert_array_equal(slices.within(mask, 3)[0], far <= 3)


def test_a_pool_fills_first_and_gives_back_earlier_ones():
    pool = slices.Pool(jnp.zeros((3, 2, 2, 1)), jnp.zeros((), jnp.int32))
    seen, swapped = [], 0
    for step in range(40):
        new = jnp.full((2, 2, 2, 1), 1.0 + step) + jnp.arange(2)[:, None, None, None] / 10
        pool, given = slices.exchange(pool, new, jax.random.key(step))
        for one, back in zip(np.asarray(new)[:, 0, 0, 0], np.asarray(given)[:, 0, 0, 0]):
            if len(seen) < 3:
                assert back == one  # it has room
            elif back != one:
                assert back in seen
                seen.remove(back)
                swapped += 1
            if len(seen) < 3:
                seen.append(one)
        assert sorted(np.asarray(pool.slices)[: int(pool.count), 0, 0, 0].tolist()) == sorted(seen)
    assert 20 < swapped < 57  # of 77, each with a chance of a half


def test_area_under_the_curve_counts_pairs():
    random = np.random.default_rng(1)
    values, kind = random.integers(0, 9, 60).astype(np.float32), random.integers(0, 3, 60)
    pairs = [(a > b) + 0.5 * (a == b) for a in values[kind == 1] for b in values[kind == 2]]
    assert float(losses.area_under_curve(values, kind == 1, kind == 2)) == pytest.approx(np.mean(pairs), abs=1e-6)


@pytest.mark.parametrize("spacing_mm", [(3.0, 1.0, 1.0), (1.25, 0.7, 0.7), (2.5, 0.9, 0.8), (5.0, 1.4, 1.4)])
def test_slabs_along_z_and_pixels_between_middles(spacing_mm):
    shape = (12, 30, 26)
    found = slabs.plan(shape, spacing_mm, (1.5, 1.0, 1.0), thickness_mm=3.0)
    hu = np.random.default_rng(0).normal(0, 300, shape).astype(np.float32)
    if spacing_mm[0] < 5:
        expected, first_mm = spatial.slab_average(hu, spacing_mm[0])
        np.testing.assert_allclose(np.einsum("ij,jyx->iyx", found.there.z, hu), expected, atol=1e-3)
        assert found.index[0, 3] * spacing_mm[0] == pytest.approx(first_mm)
    planes = np.meshgrid(*(np.arange(n) * mm for n, mm in zip(shape, spacing_mm)), indexing="ij")
    ramp = (2 * planes[0] + 3 * planes[1] - planes[2]).astype(np.float32)  # what is linear stays: so the index is right
    taken = np.asarray(slabs.resample(ramp, found.there, fill=0.0))
    at = np.stack(np.meshgrid(*(np.arange(n) for n in taken.shape), indexing="ij"), -1) @ found.index[:3, :3].T + found.index[:3, 3]
    expected = at * spacing_mm @ np.array([2, 3, -1])
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(taken[inner], expected[inner], atol=2.0 * max(spacing_mm[0], 1.5))
    off = (taken - expected)[inner]
    assert abs(off[:, 0, 0] - off[:, -1, -1]).max() < 0.5  # by less than a pixel of 1 mm anywhere in the plane
    back = np.asarray(slabs.resample(taken, found.back, fill=0.0))
    assert back.shape == (len(taken), *shape[1:])
    np.testing.assert_allclose(back[:, 3:-3, 3:-3].mean(), taken[:, 3:-3, 3:-3].mean(), atol=1.0)


def test_padding_changes_nothing_and_a_thin_scan_is_one_slab():
    shape, spacing_mm = (9, 40, 44), (2.0, 0.8, 0.8)
    hu = np.random.default_rng(0).normal(0, 300, shape).astype(np.float32)
    plain = slabs.plan(shape, spacing_mm, (1.5, 1.0, 1.0), thickness_mm=3.0)
    count = tuple(int(n) for n in plain.there.shape)
    padded = slabs.plan(shape, spacing_mm, (1.5, 1.0, 1.0), thickness_mm=3.0, sizes=(grids.padded(shape), grids.padded(count)))
    whole = slabs.resample(grids.pad(hu, fill=grids.NO_HU), padded.there, fill=-1000.0)
    np.testing.assert_allclose(grids.cut(whole, count), slabs.resample(hu, plain.there, fill=0.0), atol=1e-3)
    assert (np.asarray(whole)[count[0] :] == -1000).all() and (np.asarray(whole)[:, :, count[2] :] == -1000).all()
    assert slabs.plan((1, 8, 8), (0.6, 1.0, 1.0), (1.5, 1.0, 1.0), thickness_mm=3.0).there.z.shape == (1, 1)

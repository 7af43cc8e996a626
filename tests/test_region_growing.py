"""Lessmann's growing of lesions: his rules on arrays drawn here, and a loop over scipy's labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cacjax.kernels import region_growing

ONE = (1.0, 1.0, 1.0)
CUBE = np.ones((3, 3, 3))


def blank(shape=(6, 20, 40)):
    return np.zeros(shape, np.uint8), np.zeros(shape, np.float32)


@pytest.mark.parametrize(("detected_voxels", "grows"), [(3, True), (4, True), (5, True), (2, False)])
def test_a_quarter_of_the_component_is_enough(detected_voxels, grows):
    detected, hu = blank()
    hu[2, 2, 2:14], hu[4, 10, 3:9] = 130, 129  # 12 voxels; below the threshold
    detected[2, 2, 2 : 2 + detected_voxels], detected[4, 10, 3:9] = 2, 1
    grown, removed = region_growing.grow(detected, hu, 130, ONE)
    # Of two voxels nothing is left, whatever they fill.
    np.testing.assert_array_equal(grown, np.where(hu >= 130, 2, 0) if grows else 0)
    assert int(removed["below_threshold"]) == 6 and int(removed["too_small"]) == 1 - grows


def test_a_lesion_that_fills_too_little_stays_as_it_is():
    detected, hu = blank()
    hu[2, 2, 2:15] = 200  # 13 voxels: three are less than a quarter
    detected[2, 2, 4:7] = 3
    grown, _ = region_growing.grow(detected, hu, 130, ONE)
    np.testing.assert_array_equal(grown, detected)


def test_one_lesion_has_to_fill_the_quarter_not_all_together():
    detected, hu = blank()
    hu[2, 2, 2:22] = 200  # 20 voxels: two lesions of 4 are a fifth each
    detected[2, 2, 3:7] = detected[2, 2, 10:14] = 1
    np.testing.assert_array_equal(region_growing.grow(detected, hu, 130, ONE)[0], detected)
    detected[2, 2, 14] = 1
    np.testing.assert_array_equal(region_growing.grow(detected, hu, 130, ONE)[0], hu > 0)


def test_lesions_are_of_one_class_and_the_majority_names_what_grows():
    detected, hu = blank()
    hu[2, 2, 2:14] = 200
    detected[2, 2, 2:9] = [1, 1, 1, 2, 2, 2, 2]
    np.testing.assert_array_equal(region_growing.grow(detected, hu, 130, ONE)[0], np.where(hu > 0, 2, 0))


@pytest.mark.parametrize(("spacing_mm", "grows"), [((4.0, 5.0, 5.0), True), ((4.0, 5.0, 5.06), False)])
def test_components_above_10_000_mm3_are_left_alone(spacing_mm, grows):
    detected, hu = blank()
    hu[1:3, 4:9, 5:15] = 300  # 100 voxels of 100 mm3, or of 101.2: 10,000 mm3 are 99 of these, rounded up
    detected[1, 4:9, 5:15] = 1
    grown, _ = region_growing.grow(detected, hu, 130, spacing_mm)
    assert int((grown > 0).sum()) == (100 if grows else 50)


@pytest.mark.parametrize(("spacing_mm", "kept"), [(ONE, 3), ((1.0, 0.5, 0.5), 9), ((1.0, 1.0, 0.35), 7)])
def test_small_lesions(spacing_mm, kept):
    """Of at most 2 voxels, or 2 mm3 rounded up to voxels: 8 of .25 mm3, 6 of .35."""
    for size in range(1, 12):
        detected, hu = blank()
        hu[3, 3, 3 : 3 + size] = 200
        detected[hu > 0] = 1
        assert bool(np.asarray(region_growing.grow(detected, hu, 130, spacing_mm)[0]).any()) == (size >= kept)


def grow_by_hand(detected, hu, threshold_hu, spacing_mm):
    """Independent: lesion after lesion in raster order, as the published loop goes."""
    voxel_mm3, mask = float(np.prod(spacing_mm)), np.where(hu >= threshold_hu, detected, 0)
    labels, n = ndimage.label(mask > 0, CUBE)
    for k in range(1, n + 1):
        if (labels == k).sum() <= max(2, np.ceil(2 / voxel_mm3)):
            mask[labels == k] = 0
    component, _ = ndimage.label(hu >= threshold_hu, CUBE)
    lesions = []
    for number in range(1, 7):
        labels, n = ndimage.label(mask == number, CUBE)
        lesions += [labels == k for k in range(1, n + 1)]
    grown = mask.copy()
    for lesion in sorted(lesions, key=lambda one: np.flatnonzero(one)[0]):
        whole = component == component[lesion][0]
        if lesion.sum() / whole.sum() >= 0.25 and whole.sum() <= np.ceil(10_000 / voxel_mm3):
            grown[whole] = 1 + np.bincount(grown[whole], minlength=7)[1:].argmax()
    return grown


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), density=st.sampled_from([0.05, 0.1, 0.2]), share=st.sampled_from([0.2, 0.6]))
def test_random(seed, density, share):
    rng = np.random.default_rng(seed)
    shape, spacing_mm = (6, 20, 40), (1.5, 1.2, 1.0)
    hu = np.where(rng.random(shape) < density, 200, 0).astype(np.float32)
    detected = (np.repeat(rng.integers(1, 4, (6, 20, 10)), 4, 2) * (rng.random(shape) < share)).astype(np.uint8)
    grown, _ = region_growing.grow(detected, hu, 130.0, spacing_mm)
    np.testing.assert_array_equal(grown, grow_by_hand(detected, hu, 130, spacing_mm))

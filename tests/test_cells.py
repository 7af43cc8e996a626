"""Cells: which voxels they hold, what of their HU they keep, the way back. Against pencil and scipy."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cacjax.kernels import cells, grids

SIDES = (2.5, 3.0)


def naive(hu, found, restore):
    """HU of cells by scipy, where every cell holds voxel centres and slices are cells."""
    number = np.ravel_multi_index(np.broadcast_arrays(*np.ix_(*(axis.cell for axis in found.axes))), found.shape).ravel()
    size = int(np.prod(found.shape))
    low = np.bincount(number, hu.ravel(), size) / np.bincount(number, minlength=size)
    bright = hu >= 130
    if restore == "max_components":
        area, _ = ndimage.label(bright, ndimage.generate_binary_structure(3, 1) & np.array([0, 1, 0], bool)[:, None, None])
        bright &= (np.bincount(area.ravel()) >= 3)[area]
    if restore == "mean":
        count = np.bincount(number, bright.ravel(), size)
        low = np.where(count > 0, np.bincount(number, (hu * bright).ravel(), size) / np.maximum(count, 1), low)
    elif restore != "none":
        np.maximum.at(low, number[bright.ravel()], hu[bright])
    return low.reshape(found.shape)


@pytest.mark.parametrize("restore", cells.RESTORE)
def test_what_a_cell_keeps(restore):
    hu = np.random.default_rng(0).normal(60, 60, (4, 23, 30)).astype(np.float32)
    found = cells.plan(hu.shape, (3.0, 0.7, 0.9), SIDES)
    assert found.spacing_mm == (3.0, 3.0, 3.0) and found.shape == (4, 6, 9)
    np.testing.assert_allclose(cells.coarse(hu, found.axes, restore=restore), naive(hu, found, restore), rtol=1e-5, atol=1e-3)


def test_three_pixels_of_one_slice_are_restored_and_two_are_not():
    hu = np.zeros((2, 6, 12), np.float32)
    hu[0, 1, 1:3] = 500  # two pixels
    hu[1, 1, 1] = 500  # and one above: no third in their slice
    hu[0, 1, 7:9], hu[0, 2, 8] = (140, 300), 150  # three
    hu[1, 0, 6], hu[1, 1, 7], hu[1, 2, 8] = 500, 500, 500  # three that touch by corners alone
    found = cells.plan(hu.shape, (3.0, 0.5, 0.5), SIDES)
    low = np.asarray(cells.coarse(hu, found.axes))
    np.testing.assert_allclose(low[:, 0], [[2 * 500 / 36, 300], [500 / 36, 1500 / 36]], rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(cells.coarse(hu, found.axes, restore="max"))[:, 0], [[500, 300], [500, 500]])
    with pytest.raises(ValueError, match="restore must be one of max_components, max, mean, none, got 'best'"):
        cells.coarse(hu, found.axes, restore="best")


@pytest.mark.parametrize(
    "increment, side, number",
    [(3, 3, 8), (2.98, 2.98, 8), (2.5, 2.5, 8), (2.7, 2.5, 9), (2.75, 2.5, 9), (2.8, 3, 8), (1.5, 2.5, 5), (0.3, 2.5, 1), (5, 3, 14)],
)
def test_the_nearer_side_and_slices_that_are_cells(increment, side, number):
    """Eight slices; one within 1 % of a side stays as it is, and the true spacing is told."""
    found = cells.plan((8, 4, 4), (increment, 1.0, 1.0), SIDES)
    assert found.spacing_mm[0] == side and found.shape[0] == number
    assert found.spacing_mm[1:] == ((3.0, 3.0) if side > 2.75 else (2.5, 2.5))


def test_slices_are_weighted_by_how_much_of_a_cell_they_fill():
    """Slices of 1.5 mm in cells of 2.5: 1.5 + 1.0, .5 + 1.5 + .5, ..; a cell keeps the maximum of the slices whose middle it holds."""
    hu = np.broadcast_to(np.array([0.0, 30, 60, 90, 120])[:, None, None], (5, 2, 2)).astype(np.float32)
    found = cells.plan(hu.shape, (1.5, 1.25, 1.25), SIDES)
    np.testing.assert_allclose(np.asarray(cells.coarse(hu, found.axes))[:, 0, 0], [12, (15 + 90 + 45) / 2.5, (90 + 180) / 2.5], rtol=1e-6)
    assert found.axes[0].cell.tolist() == [0, 0, 1, 2, 2]


def test_thick_slices_give_cells_without_a_centre_what_lies_there():
    hu = np.array([0.0, 600.0], np.float32)[:, None, None] * np.ones((2, 4, 4), np.float32)
    found = cells.plan(hu.shape, (5.0, 1.0, 1.0), SIDES)  # edges at 3, 6, 9, 10 mm: the second cell is 2 : 1 of both slices
    low = np.asarray(cells.coarse(hu, found.axes))[:, 0, 0]
    assert found.shape == (4, 2, 2) and low.tolist() == [0, 200, 600, 600]
    assert found.axes[0].cell.tolist() == [0, 2]


def test_calcium_is_looked_up_whole():
    """Whatever the spacing, the cells that calcium lies in hold all of it."""
    rng = np.random.default_rng(1)
    for spacing_mm in ((3.0, 0.4, 0.4), (1.5, 0.7, 0.7), (5.0, 1.1, 1.3), (0.5, 3.0, 3.0), (2.5, 2.5, 2.5)):
        label = (rng.random((12, 20, 24)) < 0.01) * rng.integers(1, 8, (12, 20, 24)).astype(np.uint8)
        found = cells.plan(label.shape, spacing_mm, SIDES)
        low = np.asarray(cells.classes(label, found.axes))
        back = np.asarray(cells.look_up(low > 0, found.axes))
        assert back.shape == label.shape and back[label > 0].all() and low.dtype == np.uint8


def test_coronary_calcium_goes_before_other_in_a_cell():
    label = np.array([2, 4, 7, 6, 5, 0], np.uint8)[None, None]
    found = cells.plan(label.shape, (3.0, 3.0, 1.5), SIDES)
    assert np.asarray(cells.classes(label, found.axes)).ravel().tolist() == [2, 7, 5]


def test_padding_changes_nothing():
    """Neither voxels behind the scan nor cells behind the last, which repeat it."""
    hu = np.random.default_rng(2).normal(60, 60, (7, 37, 41)).astype(np.float32)
    found = cells.plan(hu.shape, (2.0, 0.8, 0.8), SIDES)
    wide = cells.plan(hu.shape, (2.0, 0.8, 0.8), SIDES, padded=grids.padded(hu.shape), lengthen=True)
    plain = np.asarray(cells.coarse(hu, found.axes))
    low = np.asarray(cells.coarse(grids.pad(hu, fill=grids.NO_HU), wide.axes))
    assert wide.shape == found.shape == plain.shape and all(n % m == 0 for n, m in zip(low.shape, cells.SIDES))
    np.testing.assert_array_equal(low[tuple(map(slice, plain.shape))], plain)
    np.testing.assert_array_equal(low[-1], low[plain.shape[0] - 1])
    back = np.asarray(cells.look_up(jnp.asarray(low), wide.axes))
    np.testing.assert_array_equal(grids.cut(back, hu.shape), cells.look_up(plain, found.axes))


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 60)] * 3),
    spacing_mm=st.tuples(*[st.floats(0.3, 6.0)] * 3),
)
def test_every_voxel_lies_in_a_cell_and_every_cell_has_one(shape, spacing_mm):
    found = cells.plan(shape, spacing_mm, SIDES)
    for axis, number, voxels, s, mm in zip(found.axes, found.shape, shape, spacing_mm, found.spacing_mm):
        assert axis.voxel.min() >= 0 and axis.voxel.max() < voxels and axis.voxel.shape[0] == number
        assert axis.inside.any(1).all()
        np.testing.assert_allclose(axis.share.sum(1), 1, rtol=1e-5)
        assert np.array_equal(axis.cell, np.minimum(((np.arange(voxels) + 0.5) * s / mm + 1e-9).astype(int), number - 1))
    with pytest.raises(ValueError, match="must be positive"):
        cells.plan(shape, (0.0, 1.0, 1.0), SIDES)


def test_a_grid_of_cells_knows_where_it_lies():
    """The first cell of 3 mm holds voxels 0 to 3 of .75 mm: its centre is voxel 1.5."""
    hu = np.zeros((3, 8, 8), np.float32)
    low, index = grids.resample(hu, (3.0, 0.75, 0.75), {"kind": "cells", "sides_mm": SIDES, "restore": "none"})
    assert low.shape == (3, 2, 2)
    np.testing.assert_allclose(index @ [0, 0, 0, 1], [0, 1.5, 1.5, 1])
    np.testing.assert_allclose(index @ [2, 1, 1, 1], [2, 5.5, 5.5, 1])

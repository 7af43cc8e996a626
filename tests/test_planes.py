"""Whole-scan inference: equal to the network on single patches, whatever the box and the tiling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cacjax.data import sampling, scans
from cacjax.inference import planes, rectangles
from cacjax.models.dilated import Dilated, margin

MODELS = {
    "three orientations": (Dilated(width=2, dilations=(1, 2), hidden=4), 1),
    "axial slab": (Dilated(width=2, dilations=(1, 2), hidden=4, planes=1), 3),
    "few voxels one by one": (Dilated(width=2, dilations=(1, 2, 4, 8, 1), hidden=4), 1),
}


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    model, slab = MODELS[request.param]
    params = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, model.planes, n := 2 * margin(model.dilations) + 1, n, slab)))
    hu = np.random.default_rng(0).integers(-1000, 900, (6, 9, 11)).astype(np.int16)
    return model, params, hu, slab, planes.predict(model, params, hu, slab=slab)


def test_normalise():
    np.testing.assert_allclose(planes.normalise(jnp.array([-2000, 130, 1260, 5000])), [-1, 0, 1, 2870 / 1130], rtol=1e-6)


def cut_of(model, slab):
    """What the network needs to see of a voxel."""
    m = margin(model.dilations)
    return sampling.Cut((slab, 1, 1), (0, m, m), sampling.PLANES[: model.planes])


def test_every_voxel_equals_its_patch(case):
    """Training cuts patches by `sampling`, scoring runs whole planes: both must see the same orientations."""
    model, params, hu, slab, (label, p_cac) = case
    zeros = np.zeros(hu.shape, np.uint8)
    scan = scans.index_scan({"id": "a", "hu": hu, "label": zeros, "heart": zeros})
    spec = sampling.StreamSpec(("a",), cut_of(model, slab))
    for point in [(0, 0, 0), (2, 5, 7), (5, 8, 10), (3, 0, 10)]:
        patch = sampling.cut_sample(scan, point, spec)["hu"]
        logits = model.apply(params, planes.normalise(jnp.asarray(patch[None])))[0][0, 0, 0]
        probability = jax.nn.softmax(logits)
        assert label[point] == probability.argmax()
        assert p_cac[point] == pytest.approx(float(probability[1:4].sum()), abs=1e-5)


@pytest.fixture
def wanted(case):
    """A few scattered voxels, some at the edges."""
    mask = np.random.default_rng(1).random(case[2].shape) < 0.05
    mask[0, 0, 0] = mask[-1, -1, -1] = mask[0, -1, 4] = True
    return mask


def deviation(found, whole, wanted):
    """Largest difference in probability from what the whole says of the wanted voxels, and nothing of others; inf where a class differs."""
    if (np.asarray(found[0]) != np.where(wanted, whole[0], 0)).any():
        return np.inf
    return np.abs(np.asarray(found[1]) - np.where(wanted, whole[1], 0)).max()


def test_wanted_voxels_only_and_as_in_the_whole(case, wanted):
    model, params, hu, slab, whole = case
    assert deviation(planes.predict(model, params, hu, wanted, slab=slab), whole, wanted) <= 1e-6


def test_a_box_that_is_smaller_than_the_scan(case):
    """Fewer sizes of rectangles, the same answer."""
    model, params, hu, slab, whole = case
    wanted = np.zeros(hu.shape, bool)
    wanted[2:, 5:9, 6:10] = np.random.default_rng(2).random((4, 4, 4)) < 0.5
    assert len(rectangles.forms(model, 4)) < len(rectangles.forms(model, 300))
    assert deviation(planes.predict(model, params, hu, wanted, slab=slab, longest=4), whole, wanted) <= 1e-6


def test_part_of_a_larger_program(case, wanted):
    model, params, hu, slab, whole = case
    program = jax.jit(lambda params, hu, wanted: planes.predict(model, params, hu, wanted, slab=slab))
    assert deviation(program(params, hu, wanted), whole, wanted) <= 1e-6
    assert deviation(program(params, hu, wanted & False), whole, wanted & False) <= 1e-6


def test_chunks_and_sizes_change_nothing(case, wanted, monkeypatch):
    """Feature vectors of 64 voxels at a time, rectangles of many sizes, blocks and looks of a few."""
    model, params, hu, slab, whole = case
    for name, value in {"FEATURE_BYTES": 64 * 4 * 2 * model.planes, "BLOCK": 16, "STEP": 5}.items():
        monkeypatch.setattr(planes, name, value)
    for name, value in {"LEAST_SIDE": 2, "GROWTH": 1.02}.items():
        monkeypatch.setattr(rectangles, name, value)
    jax.clear_caches()
    assert rectangles.sizes(max(hu.shape)) == [(2, 2), (2, 8), (8, 8), (8, 11), (11, 11)]
    assert deviation(planes.predict(model, params, hu, wanted, slab=slab), whole, wanted) <= 1e-6
    everything = wanted | True
    assert deviation(planes.predict(model, params, hu, everything, slab=slab), whole, everything) <= 1e-6
    jax.clear_caches()


def test_features_are_rounded_where_they_are_kept_in_half_precision(case):
    """Section 12, line 14, of the specification: what the authors' code does before the main head, and nothing else."""
    model, params, hu, slab, whole = case
    scan = scans.index_scan({"id": "a", "hu": hu, "label": np.zeros(hu.shape, np.uint8), "heart": np.zeros(hu.shape, np.uint8)})
    spec = sampling.StreamSpec(("a",), cut_of(model, slab))
    points = [(0, 0, 0), (2, 5, 7), (5, 8, 10), (3, 0, 10), (1, 4, 4)]
    patches = np.stack([sampling.cut_sample(scan, point, spec)["hu"] for point in points])
    features = model.apply(params, planes.normalise(jnp.asarray(patches)), method="features")
    logits = model.apply(params, features.astype(jnp.float16).astype(jnp.float32), method="classify")[:, 0, 0]
    found = planes.predict(model, params, hu, slab=slab, stored="float16")
    there = np.asarray(found[1])[tuple(np.transpose(points))]
    np.testing.assert_allclose(there, jax.nn.softmax(logits)[:, 1:4].sum(-1), atol=1e-6)
    assert 1e-6 < np.abs(np.asarray(found[1]) - whole[1]).max() < 1e-2


def test_the_ancestor_averages_over_orientations_and_drops_single_voxels(case):
    """Lessmann 2018: half of the mean of the auxiliary heads and half of the main head; 130 HU and more; no voxel alone among 26."""
    model, params, hu, slab, whole = case
    zeros = np.zeros(hu.shape, np.uint8)
    scan = scans.index_scan({"id": "a", "hu": hu, "label": zeros, "heart": zeros})
    points = np.argwhere(hu >= 130)[::7]
    crops = np.stack([sampling.cut_sample(scan, tuple(point), sampling.StreamSpec(("a",), cut_of(model, slab)))["hu"] for point in points])
    main, auxiliary = model.apply(params, planes.normalise(jnp.asarray(crops)))
    expected = 0.5 * jax.nn.softmax(main[:, 0, 0]) + 0.5 * jax.nn.softmax(auxiliary[:, :, 0, 0]).mean(1)
    label, probability = (np.asarray(each) for each in planes.predict(model, params, hu, slab=slab, ancestor=True))
    at = tuple(points.T)
    np.testing.assert_allclose(probability[at], expected[:, 1:4].sum(-1), atol=1e-5)
    assert np.abs(probability - np.asarray(whole[1])).max() > 1e-3
    assert not label[hu < 130].any()
    kept = label[at] > 0
    np.testing.assert_array_equal(label[at][kept], expected.argmax(-1)[kept])


def test_single_voxels():
    label = np.zeros((3, 5, 6), np.uint8)
    label[0, 0, 0], label[1, 1, 1] = 1, 2  # touch at a corner
    label[2, 4, 5] = 3
    expected = label.copy()
    expected[2, 4, 5] = 0
    np.testing.assert_array_equal(planes.without_single_voxels(jnp.asarray(label)), expected)


def test_planes_at_once_change_nothing(case, wanted, monkeypatch):
    model, params, hu, slab, whole = case
    monkeypatch.setattr(planes, "PLANES_AT_ONCE", {})
    jax.clear_caches()
    assert deviation(planes.predict(model, params, hu, wanted, slab=slab), whole, wanted) <= 1e-6
    jax.clear_caches()


def test_rectangles_hold_what_is_wanted():
    """One rectangle per plane with wanted voxels, around all of them, rounded up by less than the whole plane."""
    wanted = np.zeros((40, 150, 170), bool)
    wanted[3, 20:30, 100:104] = wanted[3, 40, 90] = wanted[20, 140, 5] = True
    model = MODELS["three orientations"][0]
    work, forms = rectangles.survey(model, rectangles.pack(jnp.asarray(wanted)), wanted.shape, 170), rectangles.forms(model, 170)
    bounds = np.asarray(work.bounds)
    total = sum(wanted.any((1, 2))) + sum(wanted.any((0, 2))) + sum(wanted.any((0, 1)))
    assert bounds[-1] == total
    covered = np.zeros((3, *wanted.shape), bool)
    for number in range(len(bounds) - 1):
        size, kind = forms[number // 6][:2], number % 6
        for i in range(bounds[number], bounds[number + 1]):
            plane = np.moveaxis(covered[kind % 3], kind % 3, 0)[work.position[i]]
            plane = plane.T if kind >= 3 else plane
            row, column = (min(int(start), max(n - side, 0)) for start, n, side in zip((work.row[i], work.column[i]), plane.shape, size))
            plane[row : row + size[0], column : column + size[1]] = True
    assert all((cover & wanted).sum() == wanted.sum() for cover in covered)
    assert covered[0].sum() < 0.3 * 2 * 150 * 170

"""Whole-scan inference: equal to the network on single patches, whatever the box and the tiling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cacjax import planes, sampling
from cacjax.models.dilated import Dilated

MODELS = {"three orientations": (Dilated(width=2, dilations=(1, 2), hidden=4), 1),
          "axial slab": (Dilated(width=2, dilations=(1, 2), hidden=4, planes=1), 3)}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    model, slab = MODELS[request.param]
    params = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, model.planes, 7, 7, slab)))
    hu = np.random.default_rng(0).integers(-1000, 900, (6, 9, 11)).astype(np.int16)
    return model, params, hu, slab, planes.predict(model, params, hu, slab=slab)


def test_normalise():
    np.testing.assert_allclose(planes.normalise(jnp.array([-2000, 130, 1260, 5000])), [-1, 0, 1, 2870 / 1130], rtol=1e-6)


def test_every_voxel_equals_its_patch(case):
    """Training cuts patches by `sampling`, scoring runs whole planes: both must see the same orientations."""
    model, params, hu, slab, prediction = case
    zeros = np.zeros(hu.shape, np.uint8)
    scan = sampling.index_scan({"id": "a", "hu": hu, "label": zeros, "heart": zeros})
    spec = sampling.StreamSpec(("a",), patch=1, margin=3, planes=sampling.PLANES[: model.planes], slab=slab)
    for point in [(0, 0, 0), (2, 5, 7), (5, 8, 10), (3, 0, 10)]:
        patch = sampling.cut_sample(scan, point, spec)["hu"]
        logits = model.apply(params, planes.normalise(jnp.asarray(patch[None])))[0][0, 0, 0]
        probability = jax.nn.softmax(logits)
        assert prediction.label[point] == probability.argmax()
        assert prediction.p_cac[point] == pytest.approx(float(probability[1:4].sum()), abs=1e-5)


def test_box_limits_the_work_and_changes_nothing_inside(case):
    model, params, hu, slab, whole = case
    box = ((1, 2, 3), (5, 9, 8))
    inside = tuple(slice(a, b) for a, b in zip(*box))
    part = planes.predict(model, params, hu, box, slab=slab)
    np.testing.assert_allclose(part.p_cac[inside], whole.p_cac[inside], atol=1e-6)
    np.testing.assert_array_equal(part.label[inside], whole.label[inside])
    outside = np.ones(hu.shape, bool)
    outside[inside] = False
    assert not part.label[outside].any() and not part.p_cac[outside].any()


def test_tiling_changes_nothing(case, monkeypatch):
    model, params, hu, slab, whole = case
    monkeypatch.setattr(planes, "Z_BUCKET", 4)
    monkeypatch.setattr(planes, "TILE_BYTES", 1)
    tiled = planes.predict(model, params, hu, slab=slab)
    np.testing.assert_allclose(tiled.p_cac, whole.p_cac, atol=1e-6)
    np.testing.assert_array_equal(tiled.label, whole.label)


def test_planes_at_once_change_nothing(case, monkeypatch):
    model, params, hu, slab, whole = case
    monkeypatch.setattr(planes, "PLANES_AT_ONCE", {})
    jax.clear_caches()
    several = planes.predict(model, params, hu, slab=slab)
    np.testing.assert_allclose(several.p_cac, whole.p_cac, atol=1e-6)


def test_empty_box_gives_background(case):
    model, params, hu, slab, _ = case
    nothing = planes.predict(model, params, hu, ((2, 2, 2), (2, 5, 5)), slab=slab)
    assert not nothing.label.any() and nothing.label.shape == hu.shape

"""The contrast-removing view: values drawn by hand, slabs as `spatial` averages them, the same in training and in scoring."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import stand_in

from cacjax.data import scans
from cacjax.kernels import spatial, view
from cacjax.scoring import one_scan

SPACING_MM = (1.5, 0.9, 0.9)


def scan():
    return np.random.default_rng(0).integers(-900, 900, (6, 8, 10)).astype(np.int16)


def test_blood_becomes_unenhanced_and_calcium_keeps_its_distance():
    hu = np.array([-1000, 0, 200, 400, 530, 1400], np.int16).reshape(1, 1, -1)
    seen = view.remove_contrast(hu, 400.0, (1.0,))
    np.testing.assert_allclose(seen.ravel(), [-1000, 0, 22.5, 45, 175, 1045], rtol=1e-6)


@pytest.mark.parametrize("step_mm", [0.5, 0.6, 1.0, 1.5, 2.0, 3.0, 5.0])
def test_slab_has_the_thickness_of_the_source(step_mm):
    weights = view.slab_weights(step_mm)
    assert len(weights) % 2 and sum(weights) == pytest.approx(1) and weights == pytest.approx(weights[::-1])
    hu = scan() * 0 + np.arange(6)[:, None, None] ** 2 + 500
    seen = view.remove_contrast(hu, 140.0, weights)[:, 0, 0] + 140 - 45
    reach = len(weights) // 2
    expected, first_mm = spatial.slab_average(jnp.asarray(hu), step_mm, slab_mm=max(3.0, step_mm), slab_step_mm=step_mm)
    if first_mm / step_mm == pytest.approx(reach):  # slabs that are centred on slices
        np.testing.assert_allclose(seen[reach : reach + len(expected)], expected[:, 0, 0], rtol=1e-5)


@pytest.mark.parametrize("aorta_hu", [np.nan, 45.0, 129.0])
def test_a_scan_that_is_not_enhanced_stays_as_it_is(aorta_hu):
    np.testing.assert_array_equal(view.remove_contrast(scan(), aorta_hu, view.slab_weights(1.5)), scan())


def test_training_and_scoring_see_the_same():
    """Patches of the sampler and planes of the pipeline, whose volume is padded, hold the same intensities."""
    hu, label = scan(), np.zeros((6, 8, 10), np.uint8)
    record = {"id": "a", "hu": hu, "label": label, "heart": label, "aorta_hu": np.float32(400), "spacing_mm": np.float32(SPACING_MM)}
    trained = scans.index_scan(record, "contrast_removed").hu

    def predict(seen, wanted):
        return jnp.zeros(seen.shape, jnp.uint8), seen  # tells what it sees in place of a probability

    detector = stand_in(predict, SPACING_MM, view="contrast_removed", fp_reduction="none").task.detector
    case, plan = one_scan.make_case(detector, hu.astype(np.float32), SPACING_MM, np.eye(4), None, 130.0, 400.0)
    seen = np.asarray(detector.find((), case, plan.how).probability)[:6, :8, :10]
    np.testing.assert_allclose(seen[hu >= 130], trained[hu >= 130], atol=0.51)
    assert (hu >= 130).sum() > 100 and not plan.flags
    plan = detector.plan(hu.shape, SPACING_MM, np.eye(4), None, 130.0, None)
    assert "view_not_applied" in plan.flags

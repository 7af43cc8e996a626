"""The contrast-removing view: values drawn by hand, slabs as `spatial` averages them, the same in training and in scoring."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from cacjax.data import sampling
from cacjax.kernels import scores, spatial, view
from cacjax.kernels.rules import RULES, pixel_score
from cacjax.scoring import one_scan, program
from cacjax.scoring import record as summary
from cacjax.task import Prediction

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
    assert not summary.describe_view("contrast_removed", aorta_hu)["applied"]


def test_training_and_scoring_see_the_same():
    """Patches of the sampler and planes of the pipeline, whose volume is padded, hold the same intensities."""
    hu, label = scan(), np.zeros((6, 8, 10), np.uint8)
    record = {"id": "a", "hu": hu, "label": label, "heart": label, "aorta_hu": np.float32(400), "spacing_mm": np.float32(SPACING_MM)}
    trained = sampling.index_scan(record, "contrast_removed").hu
    rule = RULES["default"]
    numbers = scores.numbers(rule, SPACING_MM, pixel_score(rule, SPACING_MM))
    config, reduction = type("Config", (), {"spacing_mm": SPACING_MM}), {"mode": "none", "dilation_mm": 0.0, "classify": "all"}
    look = summary.describe_view("contrast_removed", 400.0)
    case, how = one_scan.make_case(hu.astype(np.float32), None, SPACING_MM, 130.0, numbers, config, rule, reduction, look)

    def predict(seen, wanted):
        return Prediction(jnp.zeros(seen.shape, jnp.uint8), seen, seen)  # tells what it sees in place of a probability

    found = program.detect_and_score(program.traceable(functools.partial(predict)), case, how)
    seen = np.asarray(found.probability)[:6, :8, :10]
    np.testing.assert_allclose(seen[hu >= 130], trained[hu >= 130], atol=0.51)
    assert (hu >= 130).sum() > 100


def test_a_view_without_the_mean_of_the_aorta_is_noted():
    look = summary.describe_view("contrast_removed", None)
    assert not look["applied"] and "mean of the aorta" in look["notes"][0]

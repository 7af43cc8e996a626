"""Losses against hand calculations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cacjax.kernels import losses


def test_cross_entropy_of_uniform_logits_is_log_classes():
    assert losses.cross_entropy(jnp.zeros((2, 3, 7)), jnp.zeros((2, 3), jnp.uint8)) == pytest.approx(np.log(7), rel=1e-6)


def test_cross_entropy_weights_are_normalised():
    logits = jnp.array([[2.0, 0.0], [0.0, 0.0]])
    single = [np.log1p(np.exp(-2.0)), np.log(2.0)]
    value = losses.cross_entropy(logits, jnp.array([0, 1]), weights=jnp.array([3.0, 1.0]))
    assert value == pytest.approx((3 * single[0] + single[1]) / 4, rel=1e-6)


def test_double_softmax_is_bounded():
    """The published code feeds probabilities into a cross-entropy: with 7 classes it stays in [log(e + 6) - 1, log(e + 6)]."""
    right, wrong = jnp.array([[100.0, *[0.0] * 6]]), jnp.array([[0.0, 100.0, *[0.0] * 5]])
    best = losses.cross_entropy(right, jnp.array([0]), double_softmax=True)
    worst = losses.cross_entropy(wrong, jnp.array([0]), double_softmax=True)
    assert best == pytest.approx(np.log(np.e + 6) - 1, rel=1e-5)
    assert worst == pytest.approx(np.log(np.e + 6), rel=1e-5)


def test_candidate_weights():
    weights = losses.candidate_weights(jnp.array([0, 2, 0]), jnp.array([-50.0, -50.0, 107.0]), calcium=4.0, bright=1.0, rest=0.1)
    np.testing.assert_allclose(weights, [0.1, 4.0, 1.0])


def test_critic_loss_falls_as_source_values_rise_above_target_values():
    assert losses.critic_loss(jnp.array([3.0, 1.0]), jnp.array([0.5, 0.5])) == -1.5


def test_gradient_penalty_by_hand():
    """A linear critic with slope 3 in one direction has (3 - 1)^2 wherever it is asked; one of slope 1 has none."""
    source, target = np.random.default_rng(0).normal(size=(2, 5, 4, 4, 2)).astype(np.float32)
    for slope, expected in ((3.0, 4.0), (1.0, 0.0)):
        penalty = losses.gradient_penalty(lambda x, k=slope: k * x[:, 0, 0, 0], source, target, jax.random.key(0))
        np.testing.assert_allclose(penalty, expected, atol=1e-5)
    square = losses.gradient_penalty(lambda x: jnp.square(x[:, 0, 0, 0]), source * 0 + 2, source * 0 + 2, jax.random.key(0))
    np.testing.assert_allclose(square, 9.0, rtol=1e-5)


def test_mmd_by_hand():
    """Two points a distance d apart: every squared distance is 0 or d^2, so the bandwidth is d^2 * 2 / 2 / 4."""
    value = losses.maximum_mean_discrepancy(jnp.array([[0.0]]), jnp.array([[3.0]]))
    kernels = sum(np.exp(-9.0 / (9.0 / 4 * 2**i)) for i in range(5))
    assert value == pytest.approx(2 * 5 - 2 * kernels, rel=1e-6)


def test_mmd_of_equal_rows_is_zero_not_nan():
    assert losses.maximum_mean_discrepancy(jnp.ones((4, 2)), jnp.ones((4, 2))) == 0


@pytest.mark.parametrize(("source", "target", "share"), [([3, 2], [1, 0], 1), ([0, 1], [1, 0], 0.5), ([0, 0], [5], 0), ([2, 0], [1], 0.5)])
def test_share_of_pairs_that_a_critic_orders_rightly(source, target, share):
    assert losses.told_apart(jnp.array(source, jnp.float32), jnp.array(target, jnp.float32)) == share

"""Optimisers against the formulas that PyTorch documents; what a step and a validation leave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cacjax import optimise
from cacjax.task import State, answering


def along(gradient, stats=None):
    """An objective with this gradient, which leaves `stats` behind."""

    def objective(params, before):
        loss = sum(jnp.vdot(g, params[name]) for name, g in gradient.items())
        return loss, ({"loss": loss}, before if stats is None else stats)

    return objective


def test_rmsprop_has_torch_semantics():
    rng = np.random.default_rng(0)
    p, v = np.array([0.5, -0.2, 0.0]), np.zeros(3)
    optimiser = optimise.rmsprop(5e-3, weight_decay=5e-4)
    net = optimise.start(optimiser, {"w": jnp.asarray(p, jnp.float32)})
    for _ in range(20):
        g = rng.normal(size=3) * 1e-4
        net, _ = optimise.descend(net, along({"w": jnp.asarray(g, jnp.float32)}), optimiser)
        g = g + 5e-4 * p
        v = 0.99 * v + 0.01 * g * g
        p = p - 5e-3 * g / (np.sqrt(v) + 1e-8)
    np.testing.assert_allclose(net.params["w"], p, rtol=1e-5)


def test_adam_decays_kernels_and_not_biases():
    optimiser = optimise.adam(1e-3, weight_decay=0.1)
    net = optimise.start(optimiser, {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
    net, _ = optimise.descend(net, along(jax.tree.map(jnp.zeros_like, net.params)), optimiser)
    assert np.all(net.params["kernel"] < 1) and np.all(net.params["bias"] == 1)


def test_a_step_keeps_statistics_and_metrics():
    optimiser = optimise.adam(1e-3)
    net = optimise.start(optimiser, {"w": jnp.ones(2)}, {"mean": jnp.zeros(2)})
    net, metrics = optimise.descend(net, along({"w": jnp.array([1.0, 2.0])}, {"mean": jnp.ones(2)}), optimiser)
    assert metrics["loss"] == 3 and net.stats["mean"].tolist() == [1, 1] and net.best == ()


def test_the_best_of_several_validations_stays():
    net = optimise.start(optimise.adam(1e-3), {"w": jnp.zeros(())}, {"mean": jnp.zeros(())}, validated=True)
    for i, value in enumerate([0.3, 0.5, 0.4, 0.5]):
        net = optimise.keep_best(net._replace(params={"w": jnp.float32(i)}, stats={"mean": jnp.float32(-i)}), value)
    value, params, stats = net.best
    assert (value, params["w"], stats["mean"], net.params["w"]) == (0.5, 1, -1, 3)
    answer = answering(State(0, {"net": net})).nets["net"]
    assert (answer.params["w"], answer.stats["mean"], answer.opt, answer.best) == (1, -1, (), ())


def test_clip_bounds_every_leaf():
    clipped = optimise.clip({"a": jnp.array([-3.0, 0.05]), "b": jnp.array(0.2)}, 0.1)
    np.testing.assert_allclose(clipped["a"], [-0.1, 0.05])
    assert clipped["b"] == pytest.approx(0.1)


def test_learning_rate_schedule():
    rate = optimise.learning_rate(peak=1.0, steps=100, warmup=4, drop_at=0.75, drop=0.1)
    assert [float(rate(s)) for s in (0, 3, 50, 74, 75, 99)] == pytest.approx([0.25, 1, 1, 1, 0.1, 0.1])


def test_spectral_limits_the_largest_singular_value_and_leaves_small_kernels():
    rng = np.random.default_rng(0)
    large, small, bias = rng.normal(size=(3, 3, 4, 5)), 0.01 * rng.normal(size=(3, 3, 4, 5)), rng.normal(size=5)
    after = optimise.spectral({"a": jnp.asarray(large), "b": jnp.asarray(small), "c": jnp.asarray(bias)}, iterations=60)
    scale = np.linalg.svd(large.reshape(-1, 5), compute_uv=False)[0]
    np.testing.assert_allclose(after["a"], large / scale, rtol=1e-4)
    np.testing.assert_array_equal(after["b"], jnp.asarray(small))
    np.testing.assert_array_equal(after["c"], jnp.asarray(bias))

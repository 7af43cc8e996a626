"""Networks: published parameter counts, receptive field, batch statistics by domain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cacjax.models import conv, dilated, winograd
from cacjax.models.critic import Critic
from cacjax.models.dilated import PUBLISHED_DILATIONS, Dilated, centre, doubling, margin


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def test_published_parameter_counts():
    shapes = jax.eval_shape(Dilated().init, jax.random.key(0), jnp.zeros((1, 3, 155, 155, 1)))["params"]
    assert count(shapes) == 212_348
    assert count({k: v for k, v in shapes.items() if k.startswith("subnets")}) == 198_336
    assert count(shapes["classifier"]) == 13_319
    critic = jax.eval_shape(Critic().init, jax.random.key(0), jnp.zeros((2, 25, 25, 96)))
    assert count(critic) == 942_653


def test_published_shapes():
    model = Dilated()
    x = jnp.zeros((2, 3, 155, 155, 1))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    main, auxiliary = jax.eval_shape(model.apply, variables, x)
    assert main.shape == (2, 1, 1, 7) and auxiliary.shape == (2, 3, 25, 25, 7)
    assert 2 * margin(PUBLISHED_DILATIONS) + 1 == 131


@pytest.fixture(scope="module")
def small():
    model = Dilated(width=2, dilations=(1, 2), hidden=4, planes=3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 11, 11, 1)), jnp.float32)
    return model, x, jax.jit(model.init)(jax.random.key(1), x)


def test_centre_sees_its_receptive_field_and_nothing_else(small):
    model, x, variables = small
    gradient = jax.grad(lambda x: model.apply(variables, x)[0].sum())(x)
    seen = np.abs(np.asarray(gradient)).max((0, 1, 4)) > 0
    expected = np.zeros((11, 11), bool)
    expected[2:9, 2:9] = True
    np.testing.assert_array_equal(seen, expected)


def test_head_on_the_map_equals_head_at_the_centre(small):
    model, x, variables = small
    features = model.apply(variables, x, method="features")
    whole = model.apply(variables, features, method="classify")
    np.testing.assert_allclose(centre(whole), model.apply(variables, x)[0], rtol=1e-5, atol=1e-6)


DOUBLING = [(PUBLISHED_DILATIONS, 3), ((1, 1, 2, 4, 8, 16), 3), ((1, 4, 1, 1), 1), ((1, 4, 6), 3), ((1, 2), 2)]


@pytest.mark.parametrize(("dilations", "start"), DOUBLING)
def test_the_middle_alone_is_the_middle_of_all(dilations, start):
    """Values and gradients, where dilations double and where they do not."""
    assert doubling(dilations) == start
    model = Dilated(width=3, dilations=dilations, hidden=4)
    n = 2 * margin(dilations) + 4
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, n, n, 1)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(1), x)

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def compute(params, method):
        maps = model.apply(params, x, method=method)
        return jnp.square(centre(maps)).sum(), centre(maps)

    (ours, slope), (whole, expected) = (
        (value[1], grad) for value, grad in (compute(params, method) for method in ("features_at_centre", "features"))
    )
    np.testing.assert_allclose(ours, whole, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), slope, expected)
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slope["params"]["subnets_2"])) > 0


def test_planes_have_their_own_weights(small):
    model, x, variables = small
    same = jnp.repeat(x[:, :1], 3, axis=1)
    features = model.apply(variables, same, method="features")
    assert features.shape == (2, 5, 5, 6)
    assert not np.allclose(features[..., :2], features[..., 2:4])


def test_initial_weights_stay_in_torch_bounds(small):
    _, _, variables = small
    conv = variables["params"]["subnets_0"]["Conv_1"]
    bound = 1 / np.sqrt(9 * 2)
    assert np.abs(conv["kernel"]).max() <= bound and np.abs(conv["bias"]).max() <= bound
    assert np.abs(conv["kernel"]).max() > bound / 2
    assert not np.any(variables["params"]["classifier"]["Conv_0"]["bias"])


def test_critic_by_domain_equals_two_calls_and_jointly_does_not():
    critic = Critic((3, 2, 1))
    source, target = np.random.default_rng(0).normal(size=(2, 4, 9, 9, 5)).astype(np.float32)
    both = jnp.concatenate([source, target + 1])
    variables = jax.jit(critic.init)(jax.random.key(0), both)
    apart = [critic.apply(variables, part) for part in (source, target + 1)]
    np.testing.assert_allclose(critic.apply(variables, both, 2), jnp.concatenate(apart), rtol=1e-4, atol=1e-5)
    assert np.abs(critic.apply(variables, both, 1) - jnp.concatenate(apart)).max() > 1e-2


def test_elu_in_float32_against_float64():
    x = np.concatenate([-np.logspace(-9, 2, 500), [-np.inf, -0.0, 0, 1e-9, 3, np.inf]]).astype(np.float32)
    value, pull = jax.vjp(dilated.elu, x)
    exact = np.where(x > 0, x, np.expm1(np.minimum(x, 0).astype(np.float64)))
    np.testing.assert_array_equal(np.isinf(value), x == np.inf)
    np.testing.assert_allclose(value, exact, rtol=0, atol=6e-8)
    np.testing.assert_allclose(pull(np.ones_like(x))[0], np.where(x > 0, 1, exact + 1), rtol=0, atol=6e-8)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_arranged_gradients_are_those_of_the_convolution(dilation, stride):
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=s).astype(np.float32) for s in ((2, 10, 11, 3), (3, 3, 3, 4)))
    ours, plain = (jax.vjp(lambda x, k, f=f: f(x, k, dilation, stride), x, kernel) for f in (conv.arranged, conv.convolution))
    slope = rng.normal(size=plain[0].shape).astype(np.float32)
    for a, b in zip((ours[0], *ours[1](slope)), (plain[0], *plain[1](slope))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape, dilation", [((2, 9, 8), 1), ((1, 14, 13), 2), ((1, 10, 9), 1), ((2, 28, 20), 3)])
def test_winograd_equals_the_convolution(shape, dilation):
    rng = np.random.default_rng(1)
    x, kernel = rng.normal(size=(*shape, 5)).astype(np.float32), rng.normal(size=(3, 3, 5, 4)).astype(np.float32)
    plain, pull = jax.vjp(lambda k: conv.convolution(x, k, dilation), kernel)
    slope = rng.normal(size=plain.shape).astype(np.float32)
    np.testing.assert_allclose(winograd.convolve(x, kernel, dilation), plain, atol=1e-5 * np.abs(plain).max())
    gradient = pull(slope)[0]
    np.testing.assert_allclose(winograd.kernel_gradient(x, slope, dilation), gradient, atol=1e-5 * np.abs(gradient).max())


def test_wide_layers_go_by_sums_of_rows_in_parts(monkeypatch):
    """What the CPU form does with many samples and channels: the same numbers, forward and backward."""
    monkeypatch.setattr(conv, "CACHED", 2 * 14 * 14 * 64)
    rng = np.random.default_rng(2)
    x, kernel = rng.normal(size=(4, 14, 14, 64)).astype(np.float32), rng.normal(size=(3, 3, 64, 64)).astype(np.float32)
    assert conv.suits_winograd(x.shape, kernel.shape, 1, least=64)
    plain, pull = jax.vjp(conv.convolution, x, kernel)
    ours, pull_ours = jax.vjp(conv.arranged, x, kernel)
    for a, b in zip((ours, *pull_ours(plain)), (plain, *pull(plain))):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())

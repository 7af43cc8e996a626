"""The U-Net: numbers of parameters, its pieces against XLA's own, both ranks, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cacjax.models import conv3d, unet
from cacjax.models.unet import UNet


def parameters(model, shape):
    """How many parameters a network has for volumes of a shape."""
    made = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(made["params"]))


@pytest.mark.parametrize("model, number", [(UNet(), 1_627_073), (UNet(levels=5), 6_560_321), (UNet(width=8), 407_265)])
def test_parameters_are_those_of_the_specification(model, number):
    assert parameters(model, (1, 48, 80, 80, 1)) == number


def test_plain_blocks_lack_the_shortcuts_and_heads_add_one_each():
    whole, plain, headed = (parameters(UNet(2, 3, **more), (1, 8, 8, 8, 1)) for more in ({}, {"residual": False}, {"heads": 1}))
    assert whole - plain == 1 * 2 + 2 * 4 + 4 * 8 + 8 * 4 + 4 * 2
    assert headed - whole == 4 + 1


@pytest.mark.parametrize("sides", [(8, 12, 16), (12, 16)])
def test_both_ranks_and_every_head(sides):
    model, x = UNet(2, 3, outputs=4, heads=1, first_bias=-3.0), jnp.zeros((2, *sides, 1))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    fine, coarse = jax.jit(model.apply)(variables, x)
    assert fine.shape == (2, *sides, 4) and coarse.shape == (2, *(n // 2 for n in sides), 4)
    assert variables["params"]["Pointwise_0"]["bias"].tolist() == [-3.0] * 4
    with pytest.raises(ValueError, match="sides must be multiples of 4"):
        model.apply(variables, jnp.zeros((1, *(n + 2 for n in sides), 1)))


def test_doubling_is_a_convolution_of_the_nearest_voxel_twice_with_its_gradients():
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 3, 4, 5, 6), (3, 3, 3, 6, 2)))

    def plain(x, kernel):
        wide, axes = x.repeat(2, 1).repeat(2, 2).repeat(2, 3), ("NDHWC", "DHWIO", "NDHWC")
        return lax.conv_general_dilated(wide, kernel, (1, 1, 1), [(1, 1)] * 3, dimension_numbers=axes)

    ours, theirs = conv3d.doubled(x, kernel), plain(x, kernel)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    slope = jnp.asarray(rng.normal(size=ours.shape), jnp.float32)
    both = [jax.vjp(f, x, kernel)[1](slope) for f in (conv3d.doubled, plain)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *both)


def test_halving_keeps_the_largest_of_eight():
    x = np.random.default_rng(1).normal(size=(2, 4, 6, 8, 3)).astype(np.float32)
    expected = x.reshape(2, 2, 2, 3, 2, 4, 2, 3).max((2, 4, 6))
    np.testing.assert_array_equal(unet.halved(jnp.asarray(x)), expected)


def test_normalisation_learns_its_averages_and_uses_them():
    x = jnp.asarray(np.random.default_rng(2).normal(3, 2, (4, 4, 4, 4, 2)), jnp.float32)
    layer = unet.Normalisation()
    variables = layer.init(jax.random.key(0), x, True)
    assert variables["batch_stats"]["mean"].tolist() == [0, 0]
    y, changed = layer.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.mean((0, 1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((0, 1, 2, 3)), 1, atol=1e-4)
    mean, variance = x.mean((0, 1, 2, 3)), x.var((0, 1, 2, 3))
    np.testing.assert_allclose(changed["batch_stats"]["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["var"], 0.9 + 0.1 * variance, rtol=1e-5)
    answered = layer.apply({"params": variables["params"], "batch_stats": changed["batch_stats"]}, x, False)
    np.testing.assert_allclose(answered, (x - 0.1 * mean) / np.sqrt(0.9 + 0.1 * variance + 1e-5), rtol=1e-4, atol=1e-5)

"""Domain-specific normalisation: folding is exact, matching gives the target the source's moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cacjax.models import moments
from cacjax.models.conv import convolution
from cacjax.models.dilated import Dilated
from cacjax.tasks import uda

MODEL = Dilated(width=4, dilations=(1, 2), hidden=3, planes=2)


@pytest.fixture(scope="module")
def networks():
    """(generator, heads, source input, brighter and noisier target input)."""
    rng = np.random.default_rng(0)
    source = rng.normal(size=(3, 2, 20, 20, 1)).astype(np.float32)
    target = 1.0 + 2.0 * rng.normal(size=source.shape).astype(np.float32)
    generator, heads = uda.split(jax.jit(MODEL.init)(jax.random.key(0), source))
    return generator, heads, source, target


def features(generator, heads, x):
    return MODEL.apply(uda.join(generator, heads), x, method="features")


def test_identity_changes_nothing(networks):
    generator, heads, source, _ = networks
    same = moments.fold(generator, moments.identity(generator))
    np.testing.assert_array_equal(features(same, heads, source), features(generator, heads, source))


def test_folding_scales_and_shifts_behind_the_convolution(networks):
    generator, _, source, _ = networks
    affine = jax.tree.map(lambda x: x + 0.5, moments.identity(generator))
    folded = moments.fold(generator, affine)["subnets_1"]["Conv_0"]
    layer = generator["subnets_1"]["Conv_0"]
    expected = 1.5 * (convolution(source[:, 1], layer["kernel"]) + layer["bias"]) + 0.5
    np.testing.assert_allclose(convolution(source[:, 1], folded["kernel"]) + folded["bias"], expected, atol=1e-5)


def test_matching_gives_target_features_the_moments_of_the_source(networks):
    generator, heads, source, target = networks
    affine = moments.match(generator, MODEL.dilations, jnp.asarray(source), jnp.asarray(target))
    matched = features(moments.fold(generator, affine), heads, target)
    ours, plain, theirs = (x.mean((0, 1, 2)) for x in (matched, features(generator, heads, target), features(generator, heads, source)))
    assert np.abs(ours - theirs).max() < 0.1 < np.abs(plain - theirs).max()


def test_matching_a_domain_with_itself_is_the_identity(networks):
    generator, _, source, _ = networks
    affine = moments.match(generator, MODEL.dilations, jnp.asarray(source), jnp.asarray(source))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), affine, moments.identity(generator))

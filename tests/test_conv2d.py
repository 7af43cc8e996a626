"""Layers of slices: every form of a convolution equals sums over its taps, with gradients; published parameter counts and patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cacjax.models import conv, conv2d
from cacjax.models.conv2d import Conv2D
from cacjax.models.patchgan import PatchGAN, field
from cacjax.models.resnet import EncoderDecoder
from configs.cyclegan import PATCH_22, PATCH_70

SMALL_JUDGE = {"width": 8, "layers": PATCH_22, "last": 1, "norm": False}
SLICES = {"width": 64, "blocks": 6, "bias": False, "padding": "reflect"}
COUNTS = {  # what, its settings, rank of its input: parameters
    "heart": (EncoderDecoder, {"width": 16, "blocks": 9, "classes": 2, "bias": False}, 3, 2_147_986),
    "generator": (EncoderDecoder, SLICES | {"classes": 1, "last_bias": -4.0}, 2, 7_828_865),
    "gate": (EncoderDecoder, SLICES | {"classes": 2, "head": "mean"}, 2, 7_457_218),
    "small": (EncoderDecoder, SLICES | {"width": 8, "blocks": 2, "ends": 3, "classes": 1, "skips": True, "last_bias": -4.0}, 2, 50_169),
    "judge": (PatchGAN, {}, 2, 2_763_585),
    "small judge": (PatchGAN, SMALL_JUDGE, 2, 20_097),
}
LAYERS = [(step, size, padding) for step, size in (("same", 3), ("same", 7), ("down", 3)) for padding in ("zero", "reflect")]


def by_definition(x, kernel, *, stride=1):
    """Convolution without padding: the pixels that a kernel covers at each place, times the kernel."""
    rows, columns = (stride * np.arange((n - k) // stride + 1)[:, None] + np.arange(k) for n, k in zip(x.shape[1:3], kernel.shape))
    return jnp.einsum("byixjc,ijcf->byxf", x[:, rows][:, :, :, columns], kernel)


def transposed(x, kernel):
    """Pixel i times tap k falls at 2 i + k - 1 (PyTorch's padding 1, output_padding 1): pixels between zeros, the kernel turned."""
    b, height, width, c = x.shape
    between = jnp.zeros((b, 2 * height + 2, 2 * width + 2, c)).at[:, 1:-1:2, 1:-1:2].set(x)
    return by_definition(between, kernel[::-1, ::-1])


def drawn(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def assert_same(ours, known, *arguments):
    """Values and gradients of all arguments, to a hundred-thousandth of the largest."""

    def both(function, *arguments):
        value, pull = jax.vjp(function, *arguments)
        (slope,) = drawn(value.shape)
        return value, *pull(slope)

    for a, b in zip(*(jax.jit(both, static_argnums=0)(function, *arguments) for function in (ours, known))):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(("step", "size", "padding"), LAYERS)
def test_a_layer_equals_its_definition(step, size, padding):
    x, kernel, bias = drawn((2, 8, 10, 3), (size, size, 3, 4), (4,))
    layer = Conv2D(4, size, step, padding=padding)

    def known(x, kernel, bias):
        around = ((0, 0), *[(size // 2, size // 2)] * 2, (0, 0))
        padded = jnp.pad(x, around, mode="reflect" if padding == "reflect" else "constant")
        return by_definition(padded, kernel, stride=2 if step == "down" else 1) + bias

    ours = lambda x, kernel, bias: layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)  # noqa: E731
    assert_same(ours, known, x, kernel, bias)


def test_a_transposed_layer_equals_its_definition():
    x, kernel, bias = drawn((2, 5, 7, 3), (3, 3, 3, 4), (4,))
    ours = lambda x, kernel, bias: Conv2D(4, 3, "up").apply({"params": {"kernel": kernel, "bias": bias}}, x)  # noqa: E731
    assert_same(ours, lambda x, kernel, bias: transposed(x, kernel) + bias, x, kernel, bias)
    assert_same(conv2d.by_phases, transposed, x, kernel)
    assert_same(conv2d.by_adjoint, transposed, x, kernel)


def test_what_other_devices_run_is_the_same(monkeypatch):
    """XLA's own forms, of `valid` and of `doubled`."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, kernel = drawn((1, 6, 7, 2), (3, 3, 2, 3))
    assert_same(conv2d.valid, by_definition, x, kernel)
    assert_same(conv2d.doubled, transposed, x, kernel)


@pytest.mark.parametrize("features", [1, 3])
def test_by_taps_equals_its_definition(monkeypatch, features):
    x, kernel = drawn((2, 9, 10, 5), (3, 3, 5, features))
    assert_same(conv2d.by_taps, by_definition, x, kernel)
    taken = []
    monkeypatch.setattr(conv2d, "by_taps", lambda x, kernel: taken.append(kernel.shape) or by_definition(x, kernel))
    assert_same(conv2d.valid, by_definition, x, kernel)
    assert taken  # few outputs go by taps, and many do not:
    taken.clear()
    assert_same(conv2d.valid, by_definition, *drawn((1, 9, 10, 5), (3, 3, 5, 8)))
    assert not taken


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (3, 1)])
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, (0, 1)), (1, (2, 0)), (2, 0)])
def test_arranged_of_kernels_that_are_not_square(shape, stride, padding):
    """Gradients pad by what the kernel reaches along each axis; a padding beyond it crops."""
    x, kernel = drawn((2, 8, 9, 3), (*shape, 3, 4))
    assert_same(*(lambda x, k, f=f: f(x, k, 1, stride, padding) for f in (conv.arranged, conv.convolution)), x, kernel)


def test_arranged_pads_each_axis_of_a_wide_layer():
    """Where sums of rows are taken."""
    x, kernel = drawn((1, 12, 16, 64), (3, 3, 64, 64))
    assert conv.suits_winograd(x.shape, kernel.shape, 1, (1, 0), least=64)
    assert_same(*(lambda x, k, f=f: f(x, k, 1, 1, (1, 0)) for f in (conv.arranged, conv.convolution)), x, kernel)


@pytest.mark.parametrize("name", COUNTS)
def test_published_parameter_counts(name):
    kind, settings, rank, expected = COUNTS[name]
    shapes = jax.eval_shape(kind(**settings).init, jax.random.key(0), jnp.zeros((1, *[32] * rank, 1)))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


def test_patches_of_a_discriminator():
    """Their size in pixels, how many a slice has, and that each sees its own pixels alone."""
    assert field(PATCH_70, 4) == 70 and field(PATCH_22, 1) == 22
    of_224 = jax.eval_shape(PatchGAN().init_with_output, jax.random.key(0), jnp.zeros((1, 224, 224, 1)))[0]
    assert of_224.shape == (1, 26, 26, 1)
    judge, x = PatchGAN(**SMALL_JUDGE), jnp.ones((1, 64, 64, 1))
    params = jax.tree.map(lambda a: drawn(a.shape)[0], jax.eval_shape(judge.init, jax.random.key(0), x))
    seen = np.abs(jax.jit(jax.grad(lambda x: judge.apply(params, x)[0, 7, 7, 0]))(x)[0, ..., 0]) > 0
    assert seen.any(0).sum() == seen.any(1).sum() == 22


def test_sides_that_are_no_multiples_of_four_come_back():
    model = EncoderDecoder(width=2, blocks=1, ends=3, classes=1, skips=True, padding="reflect")
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 17, 22, 1)))
    assert logits.shape == (1, 17, 22, 1)

"""CAC-Net: parameters, pieces against PyTorch's definitions, the reference standard, what `find` answers, resume, shards, refusals."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import small_record
from scipy import ndimage

from cacjax import backend, train
from cacjax.data import cohorts
from cacjax.data.reference import Settled, settle
from cacjax.data.sampling import Cut, StreamSpec, point_in_scan
from cacjax.data.scans import index_scan
from cacjax.files.scan import ScanError
from cacjax.inference import windows
from cacjax.kernels import grids
from cacjax.models import unet
from cacjax.models.cacnet import FORMS, CACNet
from cacjax.models.dropout import Dropout
from cacjax.models.udensenet import DenseBlock, UDenseNet
from cacjax.task import Case, build
from cacjax.tasks import cacnet
from configs import cacnet as configured


def parameters(model, shape):
    made = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(made["params"]))


def test_parameters_are_those_of_the_specification():
    assert parameters(UDenseNet(), (1, 64, 64, 1)) == 707_856
    assert parameters(CACNet(), (1, 32, 32, 32, 1)) == 24_375_652
    assert parameters(unet.UNet(16, 6, 4, heads=4, **unet.ZHANG), (1, 32, 32, 32, 192)) == 23_667_796


@pytest.mark.parametrize("form", FORMS)
def test_every_form_answers_every_voxel(form):
    """Shapes alone: what they compute is in test_cacnet_steps.py."""
    model = CACNet(form, 1, 2, flat=2)
    x = jax.ShapeDtypeStruct((2, 8, 32, 32, 1), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    for learning in (False, True):
        answer = lambda v, x, on=learning: model.apply(v, x, on, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})[0]  # noqa: E731
        heads = jax.eval_shape(answer, variables, x)
        sides = [(8, 32, 32), (8, 16, 16), (8, 8, 8), (4, 4, 4), (2, 2, 2)][: 1 if form in ("udensenet", "fcn3d") else 5]
        assert [head.shape for head in heads] == [(2, *side, 4) for side in sides]
    with pytest.raises(ValueError, match="multiples of 8 x 32 x 32"):
        model.init(jax.random.key(0), jnp.zeros((2, 4, 32, 32, 1)))


def test_slices_at_once_are_slices_alone():
    """Outside of training, by running moments; in training a slice's answer is not its own."""
    model = CACNet("udensenet", 1, dropout=0.0, flat=2)
    x = jax.random.normal(jax.random.key(1), (2, 8, 32, 32, 1))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    _, changed = jax.jit(lambda v, x: model.apply(v, x, True, mutable=["batch_stats"]))(variables, x)
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), variables["batch_stats"], changed["batch_stats"]))
    answer = jax.jit(lambda v, x: model.apply(v, x)[0])
    np.testing.assert_allclose(answer(variables | changed, x)[:1], answer(variables | changed, x[:1]), atol=1e-5)


def test_a_dense_block_is_what_is_printed():
    """Against each layer written out: normalised, 1x1, rectified, normalised, 3x3, rectified; the gradient as well."""
    block = DenseBlock(3, 2, 0.0, "bn_conv_relu")
    x = jax.random.normal(jax.random.key(1), (2, 6, 5, 3)) + 1
    params = jax.tree.map(
        lambda a: a + 0.1 * jax.random.normal(jax.random.key(2), a.shape), block.init(jax.random.key(0), x, True)["params"]
    )

    def normal(y, scale, shift):
        return (y - y.mean((0, 1, 2))) / jnp.sqrt(y.var((0, 1, 2)) + 1e-5) * scale + shift

    def plain(params, x):
        seen = x
        for i in range(3):
            y = jax.nn.relu(normal(seen, params[f"scale_{i}"], params[f"shift_{i}"]) @ params[f"narrow_{i}"])
            y = normal(y, params[f"norm_{i}"]["scale"], params[f"norm_{i}"]["bias"])
            axes = ("NHWC", "HWIO", "NHWC")
            y = jax.nn.relu(jax.lax.conv_general_dilated(y, params[f"wide_{i}"], (1, 1), "SAME", dimension_numbers=axes))
            seen = jnp.concatenate([seen, y], -1)
        return seen[..., 3:]

    ours = lambda params, x: block.apply({"params": params}, x, True, mutable=["batch_stats"])[0]  # noqa: E731
    slope = jax.random.normal(jax.random.key(3), plain(params, x).shape)
    for a, b in zip(*(jax.tree.leaves((f(params, x), jax.vjp(f, params, x)[1](slope))) for f in (ours, plain))):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_enlarging_is_linear_between_middles():
    x = np.arange(4.0)[None, :, None]
    np.testing.assert_allclose(unet.enlarged(x, (2,))[0, :, 0], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], atol=1e-6)
    y = jax.random.normal(jax.random.key(0), (1, 3, 2, 5, 2))
    np.testing.assert_allclose(unet.enlarged(y, (1, 4, 2)), jax.image.resize(y, (1, 3, 8, 10, 2), "linear"), atol=1e-5)


def test_groups_have_mean_0_and_variance_1():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 16)) * 3 + 1
    layer = unet.GroupNormalisation()
    y = layer.apply(layer.init(jax.random.key(0), x), x).reshape(2, -1, 8, 2)
    np.testing.assert_allclose(y.mean((1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((1, 3)), 1, atol=1e-3)


def test_computing_again_changes_neither_names_nor_gradients():
    """Names of both networks, gradients of the one that compiles soon."""
    x = jax.random.normal(jax.random.key(1), (2, 8, 16, 1))
    for kind in (functools.partial(UDenseNet, 1), functools.partial(unet.UNet, 2, 2, **unet.ZHANG)):
        names = [jax.tree.structure(jax.eval_shape(kind(remat=remat).init, jax.random.key(0), x)) for remat in (False, True)]
        assert names[0] == names[1]
    kept, again = kind(), kind(remat=True)
    variables = jax.jit(kept.init)(jax.random.key(0), x)

    def slope(model):
        total = lambda params: jnp.square(model.apply({"params": params}, x, True)).sum()  # noqa: E731
        return jax.jit(jax.grad(total))(variables["params"])

    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slope(kept)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), slope(kept), slope(again))


@pytest.mark.parametrize(("rate", "shape"), [(0.5, (50, 8, 40)), (0.5, (80, 200, 1)), (0.3, (50, 8, 40))])
def test_dropout_keeps_its_share_and_the_mean(rate, shape):
    """No number's fate is that of its neighbours; the gradient passes where the value did; nothing outside of training."""
    drop = lambda x, key, **how: Dropout(rate, **how).apply({}, x, rngs={"dropout": key})  # noqa: E731
    x = jnp.full(shape, 3.0)
    y, slope = jax.jit(jax.value_and_grad(lambda x, key: drop(x, key).sum()))(x, jax.random.key(1))
    np.testing.assert_allclose(float(y) / x.size, 3, rtol=0.03)
    kept = np.asarray(slope) > 0
    np.testing.assert_allclose(slope, kept / (1 - rate), rtol=1e-6)
    flat = kept.reshape(-1).astype(float) - (1 - rate)
    for lag in (1, 2, shape[-1], 32):
        assert abs((flat[lag:] * flat[:-lag]).mean()) < 4 * rate * (1 - rate) / np.sqrt(x.size)
    assert (np.asarray(drop(x, jax.random.key(2))) > 0).ravel().tolist() != kept.ravel().tolist()
    np.testing.assert_array_equal(drop(x, jax.random.key(1), deterministic=True), x)


def test_computing_again_takes_less_memory():
    """With the options of programs that train; without them XLA:CPU puts both computations together, and keeps what it would without."""
    x = jax.ShapeDtypeStruct((2, 64, 64, 4), jnp.float32)

    def kept_bytes(remat, options):
        model = unet.UNet(4, 2, remat=remat, **unet.ZHANG)
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        slope = jax.grad(lambda variables, x: jnp.square(model.apply(variables, x, True)).sum())
        return jax.jit(slope, compiler_options=options).lower(variables, x).compile().memory_analysis().temp_size_in_bytes

    options = backend.TRAINING[jax.default_backend()]
    assert kept_bytes(True, options) < 0.8 * kept_bytes(False, options)


def test_weights_of_the_heads_are_halved_and_add_up_to_1():
    np.testing.assert_allclose(cacnet.supervision(5), np.array([16, 8, 4, 2, 1]) / 31)
    assert cacnet.supervision(1).tolist() == [1]


def test_the_reference_standard_is_by_components():
    """Above 130 HU, larger than 1.5 mm3, each component its most frequent artery."""
    label, hu = np.zeros((3, 6, 6), np.uint8), np.full((3, 6, 6), 50)
    label[0, 0, :4], hu[0, 0, :4] = (1, 1, 1, 2), 300
    label[1, 3, 3], hu[1, 3, 3] = 3, 400
    label[2, 5, :3], hu[2, 5, :3] = 2, 130
    label[0, 5, :3], hu[0, 5, :3] = 5, 500
    expected = np.zeros_like(label)
    expected[0, 0, :4] = 1
    np.testing.assert_array_equal(settle(label, hu, 1.0, 1.5), expected)
    np.testing.assert_array_equal(settle(label, hu, 0.5, 1.5), expected)
    assert not settle(label, hu, 0.375, 1.5).any() and not settle(np.zeros_like(label), hu, 1.0, 1.5).any()
    settled = Settled([{"label": label, "hu": hu, "spacing_mm": np.ones(3)}], 1.5)
    assert len(settled) == 1
    np.testing.assert_array_equal(settled[0]["label"], expected)


def test_arteries_are_drawn_as_often_as_each_other():
    label = np.zeros((2, 8, 8), np.uint8)
    label[0], label[1, 0, 0] = 1, 3
    scan = index_scan({"id": "a", "hu": np.full(label.shape, 200, np.int16), "label": label, "heart": np.zeros_like(label)})
    rng = np.random.default_rng(0)
    drawn = [label[point_in_scan("artery", scan, rng)] for _ in range(200)]
    assert 70 < drawn.count(3) < 130 and set(drawn) == {1, 3}
    assert StreamSpec(("a",), Cut((1, 1, 1)), (("artery", 1.0),)).labelled


@pytest.fixture(scope="module")
def small():
    """(config, task, state) of the config's test variant, of the form that compiles soonest."""
    config = configured.get_config("test,udensenet")
    task = build(config)
    batch = {"train": {"hu": jnp.zeros((2, 8, 32, 32), jnp.int16), "label": jnp.zeros((2, 8, 32, 32), jnp.uint8)}}
    return config, task, jax.jit(lambda key: task.init(key, batch, {}))(jax.random.key(0))


def case_of(task, hu, spacing_mm=(3.0, 1.0, 1.0)):
    plan = task.detector.plan(hu.shape, spacing_mm, np.eye(4), None, 130.0, None)
    numbers = jnp.array(hu.shape, jnp.int32), jnp.array(spacing_mm, jnp.float32)
    padded = jnp.asarray(grids.pad(np.asarray(hu, np.float32), fill=grids.NO_HU))
    return Case(padded, *numbers, None, jnp.float32(130), jnp.float32(np.nan), plan.arrays), plan


@pytest.mark.parametrize("shape", [(2, 20, 33), (40, 70, 24)])
def test_components_have_one_artery_and_small_ones_are_gone(small, shape):
    """Thin, wide and tall scans, in one program and in steps; against scipy. Arteries are told by HU."""
    config, _, state = small

    def seen(_, hu):
        dense = (hu > 200).astype(jnp.float32)
        return jnp.stack([0.1 + 0 * hu, 0.1 + 0 * hu, 1 - dense, dense], -1) / 1.2

    detector = cacnet.detector(config, seen)
    hu = np.random.default_rng(0).choice([40.0, 130.0, 131.0, 300.0], shape, p=[0.6, 0.1, 0.1, 0.2])
    task = type("T", (), {"detector": detector})
    program = jax.jit(detector.find, static_argnums=2)
    for spacing_mm in ((3.0, 1.0, 1.0), (1.0, 0.5, 0.5)):
        case, plan = case_of(task, hu, spacing_mm)
        finding = detector.find(state, case, plan.how)
        np.testing.assert_array_equal(finding.label, program(state, case, plan.how).label)
        found = grids.cut(finding.label, shape)
        voted = np.where(hu > 130, np.where(hu > 200, 3, 2), 0).astype(np.uint8)
        np.testing.assert_array_equal(found, settle(voted, hu, float(np.prod(spacing_mm)), config.least_mm3))
        assert not np.asarray(finding.label)[tuple(slice(n, None) for n in shape)].any()
        np.testing.assert_array_equal(found > 0, (found > 0) & (ndimage.label(hu > 130)[0] > 0))


def test_lesions_of_which_half_is_detected_are_whole(small):
    """LAD where a voxel is above 200 HU, as the network of this test says; components above 130 HU against scipy."""
    config = small[0].copy_and_resolve_references().unlock()
    config.scoring.least_share = 0.5
    seen = lambda _, hu: jnp.stack([1.0 * (hu <= 200), 1.0 * (hu > 200), 0 * hu, 0 * hu], -1)  # noqa: E731
    detector = cacnet.detector(config, seen)
    hu = np.random.default_rng(1).choice([40.0, 150.0, 300.0], (8, 32, 32), p=[0.8, 0.1, 0.1])
    case, plan = case_of(type("T", (), {"detector": detector}), hu, (1.0, 1.0, 1.0))
    parts, number = ndimage.label(hu > 130)
    expected = np.zeros(hu.shape, np.uint8)
    for part in range(1, number + 1):
        mask = parts == part
        if mask.sum() > config.least_mm3 and 2 * (hu[mask] > 200).sum() >= mask.sum():
            expected[mask] = 1
    np.testing.assert_array_equal(grids.cut(detector.find(small[2], case, plan.how).label, hu.shape), expected)
    assert (expected[hu == 150] > 0).any() and (expected[hu == 300] == 0).any()


def test_windows_cover_everything_and_their_mean_is_the_network():
    shape, window = (5, 70, 33), (4, 32, 32)
    firsts = windows.corners(shape, window, (2, 16, 16))
    hu = jnp.asarray(np.random.default_rng(0).normal(size=grids.padded(shape)), jnp.float32)
    network = lambda state, hu: jnp.stack([hu, 1 - hu], -1)  # noqa: E731
    arguments = hu, jnp.array(shape), jnp.array(firsts), jnp.int32(len(firsts))
    sums = windows.add_up(network, (), *arguments, window=window, classes=2, traced=False)
    inside = tuple(slice(0, n) for n in shape)
    weight = np.asarray(sums.sum(-1))[inside]
    assert weight.min() > 0
    np.testing.assert_allclose(np.asarray(sums)[inside][..., 0] / weight, np.asarray(hu)[inside], atol=1e-4)


def test_what_cannot_be_seen_or_configured_is_refused(small):
    _, task, _ = small
    with pytest.raises(ScanError, match="at least 2 slices, got 1"):
        case_of(task, np.zeros((1, 32, 32)))
    for key, value, message in (("window", (8, 32, 20), "multiples of"), ("overlap", (8, 0, 0), "less than the window")):
        wrong = configured.get_config("test")
        with wrong.unlocked():
            wrong.scoring[key] = value
        with pytest.raises(ValueError, match=message):
            build(wrong)
    with pytest.raises(ValueError, match="unknown variant 'small,tiny'"):
        configured.get_config("small,tiny")


def test_steps_learn(small):
    _, task, state = small
    rng = np.random.default_rng(0)
    label = (rng.random((2, 8, 32, 32)) < 0.1) * rng.integers(1, 4, (2, 8, 32, 32))
    batch = {"train": {"hu": jnp.asarray(200 * (label > 0), jnp.int16), "label": jnp.asarray(label, jnp.uint8)}}
    step = jax.jit(task.train_step)
    losses = []
    for number in range(12):
        state, metrics = step(state, batch, jax.random.key(number))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.05 and set(metrics) == {"loss", "dice_LAD", "dice_LCX", "dice_RCA", "dice_CAC"}


def test_two_steps_stop_resume_equals_four(tmp_path, monkeypatch):
    """Bit for bit, dropout included."""
    monkeypatch.setattr(cohorts, "open", lambda config: {"exams": [small_record(i, shape=(8, 32, 32)) for i in range(3)]})

    def trained(steps, name):
        config = configured.get_config("test")
        with config.unlocked():
            config.steps, config.model.dropout, config.model.form = steps, 0.5, "udensenet"  # which compiles soonest
            config.optimiser.rate.last = config.optimiser.rate.peak  # a cosine to its end is another one for other steps
        return train.train(config, tmp_path / name)

    unbroken, _ = trained(4, "unbroken"), trained(2, "broken")
    jax.tree.map(np.testing.assert_array_equal, unbroken, trained(4, "broken"))


SHARDED = """
import sys
sys.path.insert(0, {root!r})
import cacjax, jax, jax.numpy as jnp, numpy as np
from cacjax import train
from cacjax.task import build
from cacjax.tasks import cacnet
from cacjax.training.streams import example_batch, streams_of
from configs import cacnet as configured
config = configured.get_config("test,udensenet")  # the part with moments over a batch
task, streams = build(config), streams_of(config.streams, build(config))
rng = np.random.default_rng(0)
batch = jax.tree.map(lambda s: rng.integers(0, 4 if s.dtype == np.uint8 else 400, s.shape).astype(s.dtype), example_batch(streams))
start = jax.device_get(task.init(jax.random.key(0), example_batch(streams), {{}}))
jax.config.update("jax_enable_x64", True)  # Adam's first step divides a gradient by its own size: float32's rounding would show
cacnet.normalise = lambda hu, inner=cacnet.normalise: inner(hu).astype(jnp.float64)
start = jax.tree.map(lambda a: a.astype(np.float64) if a.dtype == np.float32 else a, start)
ends = []
for devices in (2, 1):
    mesh = train.make_mesh(streams, devices)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = train.batch_shardings(streams, mesh)
    step = jax.jit(task.train_step, in_shardings=(everywhere, placed, everywhere), out_shardings=everywhere)
    state = start
    for i in range(2):
        state, _ = step(state, train.place(batch, placed), jax.random.key(i))
    ends.append(jax.device_get(state.nets))
assert len(train.make_mesh(streams, 2).devices.ravel()) == 2
worst = max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), *ends)))
moved = max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), ends[0], start.nets)))
assert worst < 1e-5 < 1e-4 < moved, (worst, moved)
"""


def test_two_devices_equal_one():
    """Moments of batch normalisation are those of the whole batch."""
    root = pathlib.Path(__file__).parent.parent
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SHARDED.format(root=str(root))], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

"""The second stage: its network, the patches it sees, whole scans, what it learns from, and scores with both stages."""

import importlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import begin, example_of, shrink, small_record
from scipy import ndimage

import cacjax
from cacjax import train
from cacjax.data import detected, loader, sampling, scans
from cacjax.inference import patches
from cacjax.models.undilated import Undilated, pool
from cacjax.task import build
from cacjax.tasks import lessmann
from cacjax.training import workdir
from configs import second

FIELD = patches.Field(65, 42.9, (1.5, 0.66, 0.66))


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def test_published_parameter_counts():
    """The port's 956,522 with means and deviations; the ancestor's has two sets of kernels (22,872 each) less."""
    shapes = [jax.eval_shape(Undilated(norm=norm).init, jax.random.key(0), jnp.zeros((1, 3, 65, 65, 1))) for norm in ("after", "before")]
    assert [count(shape) for shape in shapes] == [956_522, 956_522 - 2 * 22_872]


def test_order_of_normalisation_and_activation():
    """In training the last hidden layer is normalised by the batch: before ReLU a part of it is cut off, after ReLU it has mean 0."""
    x = jnp.asarray(np.random.default_rng(0).random((16, 3, 65, 65, 1)), jnp.float32)
    for norm in ("after", "before"):
        model = Undilated((2, 2, 2, 2), hidden=8, dropout=0.0, norm=norm)
        variables = jax.jit(model.init)(jax.random.key(0), x)
        variables["params"]["Dense_1"]["kernel"] = jnp.ones((8, 2))
        logits = model.apply(variables, x, True, mutable=["batch_stats"])[0].mean()
        assert (abs(logits) < 1e-4) if norm == "after" else (logits > 1)


def test_batch_statistics_in_training_and_running_ones_outside():
    model = Undilated((2, 2, 2, 2), hidden=4, dropout=0.0)
    x = jnp.asarray(np.random.default_rng(0).random((4, 3, 65, 65, 1)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    step = jax.jit(lambda v: model.apply(v, x, True, mutable=["batch_stats"]))
    trained, changed = step(variables)
    for _ in range(150):
        changed = step({"params": variables["params"]} | changed)[1]
    alone = model.apply({"params": variables["params"]} | changed, x[:1])
    np.testing.assert_allclose(alone, trained[:1], atol=1e-3)
    assert np.abs(model.apply(variables, x[:1]) - alone).max() > 1e-2


def test_pooling_leaves_out_an_odd_last_row():
    np.testing.assert_array_equal(pool(jnp.arange(15.0).reshape(1, 3, 5, 1))[0, :, :, 0], [[6, 8]])


@pytest.fixture(scope="module")
def volume():
    """HU [z, y, x] with structure, smaller than a patch along z and x."""
    rng = np.random.default_rng(0)
    return np.rint(ndimage.gaussian_filter(rng.normal(0, 4000, (20, 80, 40)), 1.5)).astype(np.int16)


def test_patches_are_those_of_the_ancestor(volume):
    """Section 10 of the specification: 42.9 mm from end to end, whatever the spacing; the planes with z upside down; interpolated linearly,
    -1000 HU at every sample outside of the volume (`map_coordinates` interpolates nothing there); (HU + 800) / 2000."""
    point = np.array([9, 41, 21])
    reach = np.linspace(-21.45, 21.45, 65)
    seen = patches.look(patches.crop(jnp.asarray(volume, jnp.float32), *(jnp.array([p]) for p in point), FIELD.margin), FIELD)
    assert FIELD.margin == 33 and seen.shape == (1, 3, 65, 65, 1)
    for i, (rows, columns) in enumerate([(0, 1), (0, 2), (1, 2)]):
        at = [np.full((65, 65), float(p)) for p in point]
        at[rows] = at[rows] + (reach if i == 2 else reach[::-1])[:, None] / FIELD.spacing_mm[rows]
        at[columns] = at[columns] + reach / FIELD.spacing_mm[columns]
        expected = np.clip((ndimage.map_coordinates(volume.astype(float), at, order=1, cval=-1000) + 800) / 2000, 0, 1)
        np.testing.assert_allclose(seen[0, i, :, :, 0], expected, atol=1e-5)


@pytest.fixture(scope="module")
def small(volume):
    """(network, variables that call half of them calcium, voxels that are asked for: more than a block)."""
    model = Undilated((2, 2, 2, 2), hidden=4)
    variables = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 3, 65, 65, 1)))
    asked = np.random.default_rng(1).random(volume.shape) < 0.002
    asked[0, 0, 0] = asked[-1, -1, -1] = asked[3, -1, 0] = True
    seen = patches.look(patches.crop(jnp.asarray(volume, jnp.float32), *jnp.asarray(np.argwhere(asked).T), FIELD.margin), FIELD)
    gap = np.diff(model.apply(variables, seen))
    variables["params"]["Dense_1"]["bias"] = jnp.array([np.median(gap), 0.0])
    return model, variables, asked


def test_whole_scans_say_what_single_patches_say(volume, small):
    """Training cuts crops by `sampling`, scoring reads them from the whole scan: the same decision for every voxel."""
    model, variables, asked = small
    found = np.asarray(patches.probability(model, variables, volume.astype(np.float32), asked, FIELD))
    zeros = np.zeros(volume.shape, np.uint8)
    scan = scans.index_scan({"id": "a", "hu": volume, "label": zeros, "heart": zeros})
    spec = sampling.StreamSpec(("a",), build(second.get_config()).cut(second.get_config().streams.train))
    points = np.argwhere(asked)
    crops = np.stack([sampling.cut_sample(scan, tuple(point), spec)["hu"] for point in points])
    single = jax.nn.softmax(model.apply(variables, patches.look(crops, FIELD)))[:, 1]
    assert len(points) > patches.BLOCK["cpu"] and 5 < (single > 0.5).sum() < len(points) - 5
    np.testing.assert_allclose(found[tuple(points.T)], single, atol=1e-6)
    np.testing.assert_array_equal(found[tuple(points.T)] > 0.5, single > 0.5)
    assert (found[~asked] == patches.UNDECIDED).all()


def test_traced_equals_in_steps(volume, small, monkeypatch):
    model, variables, asked = small
    hu = volume.astype(np.float32)
    whole = jax.jit(lambda v, h, a: patches.probability(model, v, h, a, FIELD))(variables, hu, asked)
    monkeypatch.setattr(patches, "STEP", 1)
    np.testing.assert_array_equal(whole, patches.probability(model, variables, hu, asked, FIELD))


def test_nothing_asked_is_nothing_decided(volume, small):
    found = patches.probability(*small[:2], volume.astype(np.float32), np.zeros(volume.shape, bool), FIELD)
    assert (np.asarray(found) == patches.UNDECIDED).all()


def test_half_of_a_minibatch_is_calcium_and_the_rest_is_mistaken_or_bright():
    """Shares by the place in a minibatch of 20: 10 positive, 8 of what the first stage detects, 2 other bright voxels."""
    record = small_record(0)
    record["hu"][5, :, 0] = 700
    record["detected"] = np.flatnonzero((record["hu"] == 700) | (record["label"] > 0))
    stream = second.get_config().streams.train
    spec = sampling.StreamSpec(("s",), sampling.Cut((1, 1, 1)), stream.strata)
    batches = loader.make_loader({"s": [record]}, {"train": (spec, (20,))}, seed=0, num_threads=0)
    hu, label = (next(batches)["train"][part].reshape(20) for part in ("hu", "label"))
    assert (label[:10] > 0).all() and not label[10:].any()
    assert (hu[10:18] == 700).all() and (hu[18:] >= 130).all()


def test_detections_are_made_once(tmp_path):
    calls, records = [], [small_record(i) for i in range(2)]

    def find(hu, wanted):
        calls.append(1)
        return np.where(wanted & (hu < 400), 4, np.where(wanted, 1, 0))

    for _ in range(2):
        found = detected.detect(records, find, tmp_path)
    assert len(calls) == len(found) == 2
    for raw, record in zip(records, found):
        np.testing.assert_array_equal(record["detected"], np.flatnonzero(raw["hu"] >= 130))
    perfect = lambda hu, wanted: np.where(wanted & (hu == 400), 1, 0)  # noqa: E731
    with pytest.raises(ValueError, match="nothing but calcium"):
        detected.detect(records, perfect, tmp_path / "other")


@pytest.fixture(scope="module")
def toy():
    """(config, task, state at the start) at toy widths."""
    config = shrink(second.get_config("tiny"))
    return config, build(config), begin(config)


def test_a_step_moves_the_second_stage_only(toy):
    config, task, state = toy
    rng = np.random.default_rng(0)
    draw = lambda s: rng.integers(0, 4 if s.dtype == np.uint8 else 400, s.shape).astype(s.dtype)  # noqa: E731
    batch = jax.tree.map(draw, example_of(config))
    after, metrics = jax.jit(task.train_step)(state, batch, jax.random.key(2))
    assert after.step == 1 and np.isfinite(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, state.stages, after.stages)
    for part in ("params", "stats"):
        pairs = zip(*(jax.tree.leaves(getattr(s.nets["second"], part)) for s in (state, after)))
        assert all(np.any(a != b) for a, b in pairs)


def test_rejected_voxels_become_background_and_probabilities_multiply(toy, monkeypatch):
    state = toy[2]
    hu = small_record(0)["hu"].astype(np.float32)
    probability = np.random.default_rng(0).random(hu.shape).astype(np.float32)
    label = np.random.default_rng(1).integers(0, 7, hu.shape).astype(np.uint8)

    def decide(model, variables, seen, asked, field):
        np.testing.assert_array_equal(asked, label > 0)
        return jnp.where(asked, probability, patches.UNDECIDED)

    config = shrink(second.get_config("tiny"))
    monkeypatch.setattr(lessmann, "make", lambda config: types.SimpleNamespace(predict=lambda *_: (label, probability)))
    monkeypatch.setattr(patches, "probability", decide)
    classes, p_cac = build(config).predict(state, hu)
    np.testing.assert_array_equal(classes, np.where(probability > 0.5, label, 0))
    np.testing.assert_allclose(p_cac, probability * np.where(label > 0, probability, 0.5), rtol=1e-6)


@pytest.mark.parametrize("first", ["lessmann", "uda"])
def test_a_run_upon_another_scores_with_both_stages(first, records, tmp_path):
    """The main command's function on a trained first stage, then `score`: the second stage takes away, and adds nothing."""
    config = shrink(importlib.import_module(f"configs.{first}").get_config("tiny"), steps=2)
    train.train(config, tmp_path / "first")
    config = shrink(second.get_config("tiny"), steps=2)
    with config.unlocked():
        config.stages.first.workdir = str(tmp_path / "first")
    state = train.train(config, tmp_path / "second")
    assert config.stages.first.task == first and len(list((tmp_path / "second" / "detected").iterdir())) == 3
    assert not (tmp_path / "second" / "first").exists()
    before = workdir.load(tmp_path / "first").state
    for name, net in before.nets.items():
        jax.tree.map(np.testing.assert_array_equal, net.params, state.stages["first"].nets[name].params)
    image = sitk.GetImageFromArray(records["source_train"][0]["hu"])
    image.SetSpacing((0.66, 0.66, 1.5))
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    scoring = {"fp_reduction": "none"}
    alone, both = (cacjax.score(tmp_path / "scan.nii.gz", workdir=tmp_path / name, scoring=scoring) for name in ("first", "second"))
    assert alone.before.any() and (both.before[both.before != alone.before] == 0).all()
    assert (both.probability <= alone.probability).all() and both.probability.any()


def test_settings_that_do_not_fit_the_first_stage_are_told():
    config = second.get_config("tiny")
    with config.unlocked():
        config.scoring.view = "contrast_removed"
    with pytest.raises(ValueError, match="view must be that of the first stage, 'none'"):
        build(config)
    config = second.get_config("tiny")
    with config.unlocked():
        config.model.norm = "sideways"
    with pytest.raises(ValueError, match=r"model\.norm must be one of after, before"):
        build(config)

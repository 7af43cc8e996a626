"""Calcium CycleGAN: what a step changes, resume with its pools and stages, shards, records without a heart, what is refused."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import begin, example_of

from cacjax.data import cohorts, hearts
from cacjax.task import build
from cacjax.train import train
from configs import cyclegan, slices


def record(seed, *, shape=(8, 24, 24)):
    """A scan of a heart in fat, with coronary calcium in one slice, bone, and a heart mask."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(-90, 8, shape)
    heart = np.zeros(shape, np.uint8)
    heart[1:-1, 4:-4, 4:-4] = 1
    hu[heart > 0] += 130
    label = np.zeros(shape, np.uint8)
    label[2 + seed % 3, 8:12, 9:13] = 7
    hu[label > 0] = 300
    hu[:, :2] = 400
    identity = {"id": f"scan{seed}", "domain": "source", "protocol": "rtp", "spacing_mm": np.array([3.0, 1.0, 1.0], np.float32)}
    known = {"affine": np.diag([3.0, 1.0, 1.0, 1.0]), "threshold_hu": 130.0, "aorta_hu": 45.0}
    return identity | known | {"hu": hu.round().astype(np.int16), "label": label, "heart": heart}


@pytest.fixture
def scans(monkeypatch):
    splits = {name: [record(i + k) for i in range(3)] for k, name in enumerate(("train", "held_out", "source_train"))}
    monkeypatch.setattr(cohorts, "open", lambda config: splits)
    return splits


def config_of(variant="test", **options):
    config = cyclegan.get_config(variant).copy_and_resolve_references().unlock()
    config.update(options)
    return config.lock()


def drawn(config, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda s: random.integers(0, 2 if s.dtype == np.uint8 else 400, s.shape).astype(s.dtype), example_of(config))


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def test_warm_up_moves_the_discriminators_alone():
    config = config_of()
    task, first = build(config), begin(config)
    step = jax.jit(task.train_step)
    second, _ = step(first, drawn(config), jax.random.key(0))
    third, metrics = step(second, drawn(config, 1), jax.random.key(1))
    for name in ("remove", "insert", "average", "pool_free", "pool_calcified"):
        assert same(first.nets[name], second.nets[name]), name
        assert not same(second.nets[name], third.nets[name]), name
    for name in ("free", "calcified"):
        assert not same(first.nets[name].params, second.nets[name].params), name
    assert int(third.nets["pool_free"].params.count) == 2 and all(np.isfinite(v) for v in metrics.values())
    assert {"adversarial", "cycle", "identity_hu", "map_hu", "judge_free", "judge_calcified"} <= metrics.keys()
    _, told = jax.jit(task.validate)(third, {"held_out": drawn(config)["train"]})
    assert {"validation_patch_auc", "validation_near_calcium", "validation_free_slices_hu"} <= told.keys()


def test_resume_is_exact_with_pools_and_stages(scans, tmp_path):
    unbroken = train(config_of(), tmp_path / "unbroken")
    config = config_of(steps=2).copy_and_resolve_references().unlock()
    config.stages.slices.workdir = str(tmp_path / "unbroken" / "slices")
    train(config, tmp_path / "broken")
    with config.unlocked():
        config.steps = 4
    resumed = train(config, tmp_path / "broken")
    assert int(resumed.step) == 4 and set(resumed.stages["slices"].stages) == {"heart"}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(unbroken), jax.device_get(resumed))
    text = (tmp_path / "unbroken" / "metrics.jsonl").read_text()
    assert text.count("validation_patch_auc") == 2 and text.count('"map_hu"') == 4


def test_records_without_a_heart_get_one(tmp_path):
    source, calls = [record(0), record(1) | {"heart": np.zeros((8, 24, 24), np.uint8)}], []

    def segment(hu, spacing_mm):
        calls.append(spacing_mm)
        return np.where(hu > 0, 5, 0)

    found = hearts.find(source, segment, tmp_path)
    np.testing.assert_array_equal(found[1]["heart"], source[1]["hu"] > 0)
    np.testing.assert_array_equal(found[0]["heart"], source[0]["heart"])
    assert len(hearts.find(source, segment, tmp_path)) == 2 and len(calls) == 1  # the second time from the file
    assert hearts.find(source[:1], segment, tmp_path) is not None
    with pytest.raises(ValueError, match="finds no heart in scan scan1"):
        hearts.find(source[1:], lambda hu, mm: np.zeros(hu.shape), tmp_path / "other")


def test_the_classifier_keeps_the_best_of_its_validations():
    config = slices.get_config("test")
    task, state = build(config), begin(config)
    batch = drawn(config)
    better, metrics = task.validate(state, {"held_out": batch["train"]})
    assert set(metrics) == {f"validation_{name}" for name in ("accuracy", "f1", "sensitivity", "false_positive_rate")}
    assert float(better.nets["average"].best[0]) == pytest.approx(float(metrics["validation_f1"]))


def test_the_average_of_the_classifier_answers():
    config = slices.get_config("test").copy_and_resolve_references().unlock()
    config.average = 0.75
    task, state = build(config), begin(config)
    before = state.nets["average"].params
    state, _ = task.train_step(state, drawn(config), jax.random.key(0))
    mixed = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, before, state.nets["classifier"].params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.nets["average"].params, mixed)


def test_what_cannot_be_is_refused():
    for words in ("small,tiny", "large", "small,removal,extra"):
        with pytest.raises(ValueError, match="unknown variant"):
            cyclegan.get_config(words)
    with pytest.raises(ValueError, match="unknown variant"):
        slices.get_config("large")
    config = config_of().copy_and_resolve_references().unlock()
    config.streams.train.count = (3,)
    with pytest.raises(ValueError, match="even count"):
        build(config)
    config = config_of().copy_and_resolve_references().unlock()
    config.scoring.gate = "oracle"
    with pytest.raises(ValueError, match="must be one of classifier, parts, map, none"):
        build(config)


PROGRAM = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import cacjax, jax, numpy as np
from conftest import begin
from test_cyclegan import config_of, drawn
from cacjax import train
from cacjax.task import build
from cacjax.training.streams import streams_of
config = config_of()
task, streams, start, ends = build(config), streams_of(config.streams, build(config)), jax.device_get(begin(config)), []
for devices in (2, 1):
    mesh = train.make_mesh(streams, devices)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shardings = train.batch_shardings(streams, mesh)
    step = jax.jit(task.train_step, in_shardings=(everywhere, shardings, everywhere), out_shardings=(everywhere, everywhere))
    state = start
    for i in range(2):
        state, _ = step(state, train.place(drawn(config, i), shardings), jax.random.key(i))
    ends.append(jax.device_get(state.nets))
    assert len(mesh.devices.ravel()) == devices
apart = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a, np.float64) - b).max()), *ends)
assert max(jax.tree.leaves(apart)) < 1e-5, apart
"""


def test_two_devices_equal_one():
    tests = pathlib.Path(__file__).parent
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    program = PROGRAM.format(tests=str(tests), root=str(tests.parent))
    run = functools.partial(subprocess.run, capture_output=True, text=True)
    done = run([sys.executable, "-c", program], env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr[-3000:]

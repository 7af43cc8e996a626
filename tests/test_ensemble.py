"""The five-U-Net ensemble: its step against PyTorch, members that are networks of their own, best epochs, devices, votes and scores."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import example_of, small_record
from ml_collections import ConfigDict

from cacjax import train
from cacjax.data import cohorts
from cacjax.files.scan import ScanError
from cacjax.kernels import cells, losses
from cacjax.scoring import compiled, one_scan
from cacjax.task import Task, answering, build
from cacjax.tasks import ensemble
from cacjax.training.workdir import Run
from configs import ensemble as published

HERE = pathlib.Path(__file__).parent
SPACING = (3.0, 0.75, 0.75)


def config_of(**settings) -> ConfigDict:
    """The config's variant "test" with settings."""
    config = published.get_config("test")
    config.update_from_flattened_dict(settings)
    return config


def splits():
    """Records of cells; the middle of each is calcium."""
    made = [small_record(i, shape=(8, 8, 8)) for i in range(5)]
    return {"j1": made[:3], "validation": made[3:]}


@pytest.fixture
def records(monkeypatch):
    """Those records in place of every cohort."""
    monkeypatch.setattr(cohorts, "open", lambda config: splits())


@pytest.mark.parametrize(
    "variant, size, split",
    [("", (48, 80, 80), "j1,j2,ad"), ("j1", (48, 80, 80), "j1"), ("small,j2", (40, 40, 40), "j1,j2"), ("tiny", (40, 40, 40), "j1")],
)
def test_variants(variant, size, split):
    config = published.get_config(variant)
    assert config.streams.train.size == size and config.streams.train.split == split
    assert sum(config.data.splits.validation.categories) == config.validation.held_out.count[0]
    with pytest.raises(ValueError, match="unknown variant 'small,tiny'"):
        published.get_config("small,tiny")


def test_cohorts_are_those_of_the_paper():
    parts = published.get_config().data.splits
    assert {name: sum(part.categories) for name, part in parts.items()} == {"j1": 80, "validation": 20, "j2": 322, "ad": 361}


def test_dice_by_hand():
    p, g = np.array([[0.5, 1.0, 0.0], [0.0, 0.0, 0.0]], np.float32), np.array([[1, 1, 0], [0, 0, 0]], bool)
    np.testing.assert_allclose(losses.squared_dice(p, g), [(2 * 1.5 + 1) / (1.25 + 2 + 1), 1])


def test_steps_equal_torch_in_float64(monkeypatch):
    """Losses and parameters (to a millionth of a step) of two members after three steps, recorded by tools/bench/record_ensemble.py."""
    monkeypatch.setattr(ensemble, "normalise", lambda hu: ((jnp.clip(hu, -300.0, 800.0) + 300) / 1100)[..., None])  # not float32
    with np.load(HERE / "ensemble_steps.npz") as arrays:
        known = dict(arrays)
    config = config_of(**{"model.levels": 3, "cross_entropy.share": 0.0})
    with config.unlocked():
        config.optimiser = ConfigDict({"peak": 1e-2, "warmup": 0, "drop_at": 1.0, "drop": 1.0})
        config.streams.train.count, config.streams.train.size, config.scoring.votes = (2, 2), (8, 8, 12), 1
    task = build(config)

    def tree(part, m):
        out = {}
        for name, value in known.items():
            if name.startswith(f"{part}/{m}/"):
                *path, leaf = name.split("/")[2:]
                place = out
                for key in path:
                    place = place.setdefault(key, {})
                place[leaf] = value
        return out

    state = task.init(jax.random.key(0), example_of(config), {})
    with jax.enable_x64(True):
        first = jax.tree.map(lambda *a: jnp.stack(a).astype(float), *(tree("first", m) for m in range(2)))
        state = jax.tree.map(lambda a: a.astype(float) if a.dtype == jnp.float32 else a, state)
        state = state._replace(nets={"members": state.nets["members"]._replace(params=first)})
        step = jax.jit(task.train_step)
        for k in range(3):
            state, metrics = step(state, {"train": {"hu": known["hu"][k].astype(float), "label": known["label"][k]}}, jax.random.key(0))
            for m in range(2):
                np.testing.assert_allclose(metrics[f"loss/member_{m + 1}"], known[f"loss/{m}"][k], rtol=1e-8)
        for m in range(2):
            net, last = jax.tree.map(lambda a, m=m: a[m], state.nets["members"]), tree("last", m)
            for ours in (net.params, net.stats):
                jax.tree_util.tree_map_with_path(
                    lambda path, a, last=last: np.testing.assert_allclose(
                        a, _at(last, path) if path[-1].key != "var" else unbiased(_at(last, path), a), rtol=1e-7, atol=2e-8
                    ),
                    ours,
                )


def _at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


def unbiased(theirs, ours):
    """PyTorch's running variance has n / (n - 1) of ours in what it adds to the first 1; the levels' numbers of voxels differ."""
    start = 0.9**3
    for n in (2 * 8 * 8 * 12, 2 * 4 * 4 * 6, 2 * 2 * 2 * 3):
        if np.allclose((theirs - start) * (n - 1) / n + start, ours, rtol=1e-7):
            return (theirs - start) * (n - 1) / n + start
    return theirs


def test_a_member_is_a_network_of_its_own():
    """In the stack or alone, with the same key and samples."""
    config, alone = config_of(), config_of(**{"scoring.votes": 1})
    with alone.unlocked():
        alone.streams.train.count = (1, 2)
    task, single = build(config), build(alone)
    keys = jax.random.split(jax.random.key(3), 5)
    rng = np.random.default_rng(0)
    batch = {"hu": rng.normal(60, 150, (5, 2, 8, 8, 8)).round(), "label": rng.integers(0, 8, (5, 2, 8, 8, 8)).astype(np.uint8)}
    state = task.init(jax.random.key(3), example_of(config), {})
    other = single.init(jax.random.key(3), example_of(alone), {})
    other = other._replace(nets={"members": jax.tree.map(lambda a: a[3:4], state.nets["members"])})
    assert not np.array_equal(*(np.asarray(state.nets["members"].params["Block_0"]["Kernel3_0"]["kernel"])[i] for i in (0, 1)))
    step, lone = jax.jit(task.train_step), jax.jit(single.train_step)
    for _ in range(2):
        state, metrics = step(state, {"train": batch}, keys[0])
        other, own = lone(other, {"train": jax.tree.map(lambda a: a[3:4], batch)}, keys[0])
    np.testing.assert_allclose(metrics["loss/member_4"], own["loss/member_1"], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[3], b[0], rtol=1e-5, atol=1e-6), state.nets["members"], other.nets["members"])


def test_what_is_no_coronary_calcium_is_learned_where_the_scan_could_count_it():
    """The cross-entropy beside the Dice: calcium, cells near the threshold and the rest each with its weight; valves count as cells."""
    config, rng = config_of(**{"scoring.votes": 1, "cross_entropy.weights.rest": 0.25}), np.random.default_rng(0)
    with config.unlocked():
        config.streams.train.count = (1, 2)
    task = build(config)
    hu = rng.normal(60, 150, (1, 2, 8, 8, 8)).round().astype(np.float32)
    label = np.where(rng.random(hu.shape) < 0.3, rng.integers(1, 8, hu.shape), 0).astype(np.uint8)
    state = task.init(jax.random.key(3), example_of(config), {})
    _, metrics = jax.jit(task.train_step)(state, {"train": {"hu": hu, "label": label}}, jax.random.key(0))
    net = jax.tree.map(lambda a: a[0], state.nets["members"])
    variables = {"params": net.params, "batch_stats": net.stats}
    logits, _ = ensemble.network(config).apply(variables, ensemble.normalise(hu[0]), True, mutable=["batch_stats"])
    p, real = jax.nn.sigmoid(logits[..., 0]), np.isin(label[0], (1, 2, 3, 7))
    weights = np.where(real, 10, np.where(hu[0] >= 107, 1, 0.25))
    expected = -(weights * np.log(np.where(real, p, 1 - p))).sum() / weights.sum()
    found = metrics["loss/member_1"] - (1 - metrics["dice/member_1"])
    assert found == pytest.approx(config.cross_entropy.share * expected, rel=1e-4)


def test_every_member_keeps_its_own_best():
    config = config_of()
    task = build(config)
    state = task.init(jax.random.key(0), example_of(config), {})
    batch = {"held_out": {name: np.stack([record[name] for record in splits()["validation"]]) for name in ("hu", "label")}}
    validate = jax.jit(task.validate)
    state, first = validate(state, batch)
    net = state.nets["members"]
    worse = jax.tree.map(lambda a: a.at[1].set(a[1] * 0 + 9), net.params)  # of member 2
    better = jax.tree.map(lambda a: a.at[2].set(a[2] * 0), worse)  # member 3 says .5 everywhere; see below
    state, second = validate(state._replace(nets={"members": net._replace(params=better)}), batch)
    best = state.nets["members"].best
    for i in range(5):
        a, b = (float(metrics[f"validation_dice/member_{i + 1}"]) for metrics in (first, second))
        assert best[0][i] == max(a, b)
        kept = better if b > a else net.params
        jax.tree.map(lambda x, y, i=i: np.testing.assert_array_equal(x[i], y[i]), best[1], kept)
    jax.tree.map(np.testing.assert_array_equal, answering(state).nets["members"].params, best[1])


def test_resuming_equals_going_on_with_best_epochs(records, tmp_path):
    whole = train.train(config_of(), tmp_path / "whole")
    train.train(config_of(steps=2), tmp_path / "parts")
    parts = train.train(config_of(), tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole), jax.device_get(parts))
    assert np.isfinite(whole.nets["members"].best[0]).all() and int(whole.step) == 4
    lines = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all((f"validation_dice/member_{i}" in line) == (line["step"] % 2 == 0) for line in lines for i in range(1, 6))
    assert (tmp_path / "parts" / "curves.png").stat().st_size > 5000


def test_a_member_that_is_not_finite_is_named(records, tmp_path, monkeypatch):
    overlap = ensemble.overlap
    monkeypatch.setattr(ensemble, "overlap", lambda logits, label: overlap(logits, label) / jnp.where(label.max() > 90, 0.0, 1.0))
    real = train.batches_of

    def batches(streams, *more):
        for k, batch in enumerate(real(streams, *more)):
            if "train" in batch and k == 2:
                batch["train"] |= {"label": np.where(np.arange(5)[:, None, None, None, None] == 3, 99, batch["train"]["label"])}
            yield batch

    monkeypatch.setattr(train, "batches_of", batches)
    with pytest.raises(FloatingPointError, match=r"step 3: dice/member_4 = inf, loss/member_4 = -inf; the last good"):
        train.train(config_of(), tmp_path / "run")


def test_one_two_five_and_eight_devices_give_the_same(tmp_path):
    program = f"""
import sys; sys.path[:0] = [{str(HERE.parent)!r}, {str(HERE)!r}]
import cacjax, jax, numpy as np
from cacjax import train
from cacjax.data import cohorts
from test_ensemble import config_of, splits
cohorts.open = lambda config: splits()
every, all_of = jax.devices(), jax.devices
out = []
for n, shape in ((1, (1, 1)), (2, (1, 2)), (5, (5, 1)), (8, (5, 1))):
    jax.devices = lambda *a, n=n: every[:n]
    state = train.train(config_of(steps=2), {str(tmp_path)!r} + f"/{{n}}")
    kernel = state.nets["members"].params["Block_0"]["Kernel3_0"]["kernel"]
    assert tuple(kernel.sharding.mesh.shape.values()) == shape, (n, kernel.sharding.mesh)
    out.append(jax.device_get(state.nets["members"]))
for other in out[1:]:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), out[0], other)
print("same")
"""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True)
    assert done.returncode == 0 and "same" in done.stdout, done.stderr[-3000:]


def run_of(probability, **scoring) -> Run:
    """A run whose members answer with these probabilities [members, z, y, x] of the first cells, 0 beyond."""
    config = config_of(**{f"scoring.{key}": value for key, value in scoring.items()})

    def predict(state, hu):
        del state
        wide = [(0, n - m) for n, m in zip(hu.shape, probability.shape[1:])]
        return jnp.pad(jnp.asarray(probability, jnp.float32), [(0, 0), *wide])

    return Run(config, Task(None, None, None, detector=ensemble.detector(config, predict)), ())


def scan_of(hu, spacing_mm=SPACING):
    """An axial scan."""
    from cacjax.files.scan import Acquisition, Scan

    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]], affine[3, 3] = spacing_mm, 1
    empty = Acquisition()
    return Scan(np.asarray(hu, np.float32), affine, empty._replace(kvp=120), "drawn")


def lesions():
    """Cells of 4 x 4 pixels: calcium in the cells (0, 0, 0) and (1, 1, 1), two bright pixels in (1, 0, 2)."""
    hu = np.zeros((3, 8, 12), np.float32)
    hu[0, 0:2, 0:3] = 250  # 6 px
    hu[1, 4, 4:8], hu[1, 5, 4] = 400, 129  # 4 px, and one that does not count
    hu[1, 0, 8:10] = 500  # 2 px: no component of three
    return hu


VOTES = np.zeros((5, 3, 2, 3))
VOTES[:3, 0, 0, 0] = VOTES[1:, 1, 0, 2] = 0.5  # three and four for it
VOTES[:2, 1, 1, 1] = 1.0  # two are too few


def test_the_majority_votes_and_the_scan_scores():
    """6 px x .5625 mm2 x weight 2 x 3 / 3, and the pair below the minimum of three pixels."""
    result = one_scan.score(scan_of(lesions()), detector=run_of(VOTES))
    expected = np.zeros((3, 8, 12), np.uint8)
    expected[0, 0:2, 0:3] = expected[1, 0, 8:10] = 7
    np.testing.assert_array_equal(result.mask, expected)
    (row,) = result.rows
    assert row["artery"] == "CAC" and row["rule"] == "gogin" and row["category"] == "B"
    assert row["agatston"] == pytest.approx(6 * 0.75**2 * 2) and row["n_lesions"] == 1
    assert result.record["counts"] == {"cells_with_calcium": 2, "cells_in_dispute": 3}
    assert result.record["notes"][-1] == "cells of 3 x 3 x 3 mm"
    assert {"read", "cells", "networks", "vote", "detect_and_score"} <= result.record["timings_s"].keys()
    np.testing.assert_allclose(result.probability[0, :4, :4], 0.3)


def test_fewer_votes_and_single_members():
    two = one_scan.score(scan_of(lesions()), detector=run_of(VOTES, votes=2))
    assert two.rows[0]["agatston"] == pytest.approx(0.75**2 * (6 * 2 + 4 * 4)) and two.rows[0]["category"] == "C"
    alone = one_scan.score(scan_of(lesions()), detector=run_of(VOTES[:1], member=1))
    assert alone.rows[0]["agatston"] == pytest.approx(0.75**2 * (6 * 2 + 4 * 4))
    for scoring in ({"votes": 0}, {"votes": 6}, {"member": 6}):
        with pytest.raises(ValueError, match=r"member from 0 \(all\) and votes from 1 to 5"):
            build(config_of(**{f"scoring.{key}": value for key, value in scoring.items()}))


def test_a_heart_limits_only_where_it_is_asked_for():
    heart = np.zeros((3, 8, 12), np.uint8)
    heart[1] = 1
    score = lambda **scoring: one_scan.score(scan_of(lesions()), detector=run_of(VOTES, **scoring), heart=heart).rows[0]["agatston"]  # noqa: E731
    assert score() == score(within_heart=True, heart_dilation_mm=3.0) > 0 == score(within_heart=True, heart_dilation_mm=0.0)


def test_a_member_answers_alone_as_in_the_vote(records, tmp_path):
    """`--scoring.member` of a trained run: predictions of the network that the stack holds."""
    train.train(config_of(steps=2), tmp_path)
    from cacjax.training.workdir import load

    every = load(tmp_path)
    hu = jnp.asarray(splits()["j1"][0]["hu"], jnp.float32)
    stacked = every.task.predict(every.state, hu)
    assert stacked.shape == (5, 8, 8, 8)
    alone = load(tmp_path, {"member": "4"})
    np.testing.assert_allclose(alone.task.predict(alone.state, hu)[0], stacked[3], rtol=1e-5)


SHAPES = [((9, 40, 41), (5.0, 0.9, 0.9)), ((400, 8, 8), (0.5, 3.0, 3.0)), ((1, 33, 65), (3.0, 0.3, 0.3)), ((2, 1, 1), (2.5, 3.0, 3.0))]


@pytest.mark.parametrize("shape, spacing_mm", SHAPES)
def test_thin_tall_and_odd_scans_are_scored(shape, spacing_mm):
    hu = np.random.default_rng(0).normal(60, 60, shape).round()
    found = cells.plan(shape, spacing_mm, (2.5, 3.0))
    everything = one_scan.score(scan_of(hu, spacing_mm), detector=run_of(np.ones((5, *found.shape))))
    np.testing.assert_array_equal(everything.mask, np.where(hu >= 130, 7, 0))


def random_grid(random):
    """(shape, spacing in mm) of a scan: thin, tall or neither, any side, increments of .3 to 5 mm, pixels of .3 to 3 mm."""
    slices = random.choice([random.integers(1, 10), random.integers(10, 65), random.integers(300, 401)], p=(0.3, 0.6, 0.1))
    sides = random.integers(1, 97 if slices > 64 else 193, 2)
    pixel_mm = np.exp(random.uniform(np.log(0.3), np.log(3.0)))
    return (int(slices), *map(int, sides)), (float(np.exp(random.uniform(np.log(0.3), np.log(5.0)))), pixel_mm, pixel_mm)


def test_random_shapes_are_scored():
    """Where every cell is calcium, what reaches 130 HU is the answer, whatever the grid: `CACJAX_SHAPES=500 pytest -k random_shapes`."""
    for case in range(int(os.environ.get("CACJAX_SHAPES", "2"))):
        random = np.random.default_rng([19, case])
        shape, spacing_mm = random_grid(random)
        hu = random.normal(60, 60, shape).round()
        found = cells.plan(shape, spacing_mm, (2.5, 3.0))
        scored = one_scan.score(scan_of(hu, spacing_mm), detector=run_of(np.ones((5, *found.shape))))
        np.testing.assert_array_equal(scored.mask, np.where(hu >= 130, 7, 0), err_msg=f"{shape}, {spacing_mm} mm")
        assert np.isfinite(scored.rows[0]["agatston"]), (shape, spacing_mm)
        if case % 50 == 49:
            jax.clear_caches()  # each program takes memory maps, of which a process has not enough for hundreds
            compiled.forget()


def test_what_is_no_chest_is_refused():
    detector = run_of(VOTES).task.detector
    with pytest.raises(ScanError, match="at most 8388608 cells, got 1200 x 1000 x 1000 mm") as refused:
        detector.plan((400, 512, 512), (3.0, 1.953125, 1.953125), np.eye(4), None, 130.0, None)
    assert refused.value.code == "too_large"

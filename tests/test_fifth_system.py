"""A fifth system, whole, in this file: two stages, the first validated, the second with stacked members, which answers on slabs with a map.

The file is its config, too: `python -m cacjax.train --config tests/test_fifth_system.py --workdir W`. Nothing else is edited for it.
"""

import csv
import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import SimpleITK as sitk
from ml_collections import ConfigDict

from cacjax import evaluate, score, train
from cacjax.data.sampling import Cut
from cacjax.kernels import grids
from cacjax.optimise import adam, descend, keep_best, start
from cacjax.task import Detector, Finding, Plan, Task, beginning
from cacjax.training.workdir import load
from configs import phantom_data


# the system: begin
def get_config(variant: str = "") -> ConfigDict:
    """First the level of tissue, then two members that learn what is brighter than that."""

    def part(name, count, axes, **more):
        stream = {"split": "train", "patch": 4, "count": count, "axes": axes, "strata": (("calcium", 0.5), ("anywhere", 0.5))}
        stream |= {"jitter_px": 0, "labelled": True, "augment": (), "view": "none", "scans_in_memory": 0, "swap_every": 0}
        config = {"task": "tests.test_fifth_system", "part": name, "seed": 0, "steps": 4, "log_every": 1, "checkpoint_every": 2}
        data = phantom_data.get_config().to_dict() | {"kind": "folder", "manifest": variant, "workers": 0}
        data["grid"] = {"kind": "spline", "spacing_mm": (1.5, 1.0, 1.0)}
        return config | {"stages": {}, "streams": {"train": stream}, "data": data} | more

    first = part("level", (4,), ("data",), workdir="", validate_every=2)
    first["validation"] = {"held_out": first["streams"]["train"] | {"split": "test"}}
    scoring = {"rule": "default,adjusted", "scheme": "van_velzen", "threshold": "scan", "votes": 2}
    return ConfigDict(part("members", (2, 4), ("model", "data"), stages={"level": first}, scoring=scoring)).lock()


def make(config) -> Task:
    """The task of either part."""
    optimiser, cut = adam(0.3), lambda stream: Cut((stream.patch,) * 3)

    def mean_hu(batch, params, stats):
        loss = (jnp.square(batch["hu"] / 100 - params["level"]) * (batch["label"] == 0)).mean()
        return loss, ({"loss": loss}, stats)

    def brighter(batch, params, stats):
        logit = params["slope"] * (batch["hu"] / 100 - params["limit"])
        loss = jnp.logaddexp(0, jnp.where(batch["label"] > 0, -logit, logit)).mean()
        return loss, ({"loss": loss}, stats)

    def train_step(state, batch, key):
        one = lambda net, batch: descend(net, functools.partial(brighter if members else mean_hu, batch), optimiser)  # noqa: E731
        net, metrics = (jax.vmap(one) if members else one)(state.nets[config.part], batch["train"])
        return state._replace(step=state.step + 1, nets={config.part: net}), jax.tree.map(jnp.mean, metrics)

    def validate(state, batch):
        fit = -mean_hu(batch["held_out"], state.nets["level"].params, {})[0]
        return state._replace(nets={"level": keep_best(state.nets["level"], fit)}), {"validation_fit": fit}

    def init(key, batch, stages):
        if not members:
            return beginning({"level": start(optimiser, {"level": jnp.float32(0)}, validated=True)})
        params = {"slope": jnp.array([2.0, 3.0]), "limit": jnp.array([1.5, 1.8])}
        return beginning({"members": jax.vmap(functools.partial(start, optimiser))(params)}, stages)

    def plan(shape, spacing_mm, affine, heart, threshold_hu, aorta_hu) -> Plan:
        slabs, thick = grids.scaling([2, 1, 1], [0.5, 0, 0]), np.multiply(spacing_mm, [2, 1, 1])
        return Plan((), (config.scoring.votes,), shape=(shape[0] // 2, *shape[1:]), spacing_mm=tuple(thick), affine=affine @ slabs)

    def find(state, case, how) -> Finding:
        hu = case.hu.reshape(-1, 2, *case.hu.shape[1:]).mean(1)
        of_each = state.nets["members"].params
        votes = (hu / 100 > of_each["limit"][:, None, None, None]).sum(0)
        label = jnp.where((votes >= how[0]) & (hu >= case.threshold_hu), 7, 0).astype(jnp.uint8)
        return Finding(label, hu, map=jnp.maximum(hu - 100 * state.stages["level"].nets["level"].params["level"], 0))

    members = config.part == "members"
    if not members:
        return Task(init, train_step, cut, validate=validate)
    return Task(init, train_step, cut, detector=Detector(plan, find, (7,)), spread={"members": "model"})


# the system: end


def test_it_is_small():
    lines = pathlib.Path(__file__).read_text().split("# the system: ")[1].splitlines()[1:]
    assert len([line for line in lines if line.strip()]) <= 60


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A folder of four scans with calcium of 400 HU in tissue of 40 HU, masks, and a manifest; prepared data stay in it."""
    folder, rng = tmp_path_factory.mktemp("scans"), np.random.default_rng(0)
    rows = ["scan,mask,split,domain"]
    for i, split in enumerate(("train", "train", "test", "test")):
        hu, label = rng.normal(40, 5, (12, 20, 22)).round().astype(np.int16), np.zeros((12, 20, 22), np.uint8)
        at = (slice(4, 8), slice(5 + i, 9 + i), slice(6, 10))
        hu[at], label[at] = 400, 1
        for name, array in ((f"s{i}.nii.gz", hu), (f"s{i}_mask.nii.gz", label)):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((1.0, 1.0, 1.5))
            sitk.WriteImage(image, str(folder / name))
        rows.append(f"s{i}.nii.gz,s{i}_mask.nii.gz,{split},source")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(scans):
    """(state, workdir) of an unbroken training, by the function behind the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACJAX_DATA_DIR", str(scans / "prepared"))
        return train.train(get_config(str(scans)), scans / "run"), scans / "run"


def test_it_trains_and_goes_on_where_it_was_stopped(scans, trained, monkeypatch):
    monkeypatch.setenv("CACJAX_DATA_DIR", str(scans / "prepared"))
    for steps in (2, 4):
        config = get_config(str(scans))
        with config.unlocked():
            config.steps = steps
        resumed = train.train(config, scans / "broken")
    jax.tree.map(np.testing.assert_array_equal, trained[0], resumed)
    assert resumed.nets["members"].params["limit"].shape == (2,) and resumed.step == 4


def test_the_best_of_the_validations_is_what_the_next_stage_reads(trained):
    state, workdir = trained
    level = load(workdir / "level").state.nets["level"]
    rows = [json.loads(line) for line in (workdir / "level" / "metrics.jsonl").read_text().splitlines()]
    fits = {row["step"]: row["validation_fit"] for row in rows if "validation_fit" in row}
    assert sorted(fits) == [2, 4] and level.best[0] == max(fits.values())
    assert state.stages["level"].nets["level"].params == level.best[1] and state.stages["level"].nets["level"].opt == ()
    assert (workdir / "level" / "curves.png").exists()


def test_it_scores_and_evaluates(scans, trained):
    """By the one checkpoint alone: rows of coronary calcium by two rules, on slabs of 3 mm, with the map's HU; every lesion is found."""
    out = scans / "out"
    (trained[1] / "level").rename(scans / "away")
    assert score.main([str(scans), "--workdir", str(trained[1]), "--out", str(out)]) == 0
    with open(out / "scores.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rule"], row["artery"]) for row in rows] == [("default", "CAC"), ("adjusted", "CAC")] * 4
    assert {float(row["volume_mm3"]) for row in rows} == {2 * 4 * 4 * 3.0} and {row["category"] for row in rows} == {"III"}
    level = float(trained[0].stages["level"].nets["level"].params["level"])
    assert float(rows[0]["map_hu_mm3"]) == pytest.approx((400 - 100 * level) * 96, rel=5e-5)
    mask = sitk.ReadImage(str(out / "s0_mask.nii.gz"))
    assert mask.GetSpacing() == (1.0, 1.0, 3.0) and sitk.GetArrayFromImage(mask).max() == 7
    assert json.loads((out / "s0.json").read_text())["answer"] == {"shape": [6, 20, 22], "spacing_mm": [3.0, 1.0, 1.0]}
    assert score.main([str(scans / "s0.nii.gz"), "--workdir", str(trained[1]), "--out", str(scans / "none"), "--scoring.votes=3"]) == 0
    with open(scans / "none" / "scores.csv") as file:
        assert {row["agatston"] for row in csv.DictReader(file)} == {"0.0"}
    assert evaluate.main(["--predictions", f"fifth={out}", "--reference", str(scans), "--out", str(scans / "evaluation")]) == 0
    with open(scans / "evaluation" / "evaluation.csv") as file:
        found = [row for row in csv.DictReader(file) if row["over"] == "pooled"]
    assert [row["artery"] for row in found] == ["CAC"] and float(found[0]["f1"]) == pytest.approx(1)


def test_members_lie_on_a_mesh_axis_of_their_own(scans, trained):
    """Four simulated devices, two members by two halves of the batch: the same state."""
    root = pathlib.Path(__file__).parent.parent
    program = f"""
import sys; sys.path[:0] = [{str(root)!r}, {str(root / "tests")!r}]
import cacjax, jax, numpy as np, pickle
from cacjax import train
from tests.test_fifth_system import get_config
config = get_config({str(scans)!r})
with config.unlocked():
    config.stages.level.workdir = {str(scans / "away")!r}
state = train.train(config, {str(scans / "four")!r})
assert dict(state.nets["members"].params["limit"].sharding.mesh.shape) == {{"model": 2, "data": 2}}
assert state.nets["members"].params["limit"].sharding.spec == jax.sharding.PartitionSpec("model")
print("limit", *np.asarray(state.nets["members"].params["limit"]).tolist())
"""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "CACJAX_DATA_DIR": str(scans / "prepared"), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    limits = [float(word) for word in done.stdout.split("limit")[-1].split()]
    np.testing.assert_allclose(limits, trained[0].nets["members"].params["limit"], rtol=1e-5)

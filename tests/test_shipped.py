"""Networks without their training: what ships with the package answers without a training folder, and says what it is."""

import importlib
import json

import jax
import numpy as np
import pytest
from conftest import shrink, small_record

from cacjax import score, train
from cacjax.data import cohorts
from cacjax.experiments import commands, shipped
from cacjax.training import workdir
from tools import ship


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Training folders of a toy detector and a toy heart network, as `tools/ship.py` expects them."""
    folder = tmp_path_factory.mktemp("networks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohorts, "open", lambda config: {"source_train": [small_record(i) for i in range(3)]})
        for name, config in (("detector", "lessmann"), ("heart", "heart")):
            train.train(shrink(importlib.import_module(f"configs.{config}").get_config("tiny"), steps=2), folder / name)
    return folder


def test_what_is_shipped_answers_as_what_was_trained(trained, tmp_path, capsys):
    ship.main([str(trained), "--out", str(tmp_path / "shipped")])
    assert capsys.readouterr().out.count(" MB") == 2
    for name in ("detector", "heart"):
        run, shipped = (workdir.load(folder / name) for folder in (trained, tmp_path / "shipped"))
        assert shipped.config.to_dict() == run.config.to_dict() and shipped.decided_by == run.decided_by and not run.flags
        assert "research only" in shipped.flags["research_only"]
        ours, theirs = (jax.tree.leaves(each.state.nets) for each in (shipped, run))
        assert len(ours) < len(theirs)  # no optimiser
        for net, full in zip(shipped.state.nets.values(), run.state.nets.values()):
            jax.tree.map(np.testing.assert_array_equal, (net.params, net.stats), (full.params, full.stats))
    written = (tmp_path / "shipped" / "heart" / "weights.npz").read_bytes()
    ship.main([str(trained), "--out", str(tmp_path / "again")])
    assert (tmp_path / "again" / "heart" / "weights.npz").read_bytes() == written


def test_a_network_in_the_others_place_is_told(trained, tmp_path, capsys):
    for name, other in (("detector", "heart"), ("heart", "detector")):
        (tmp_path / name).symlink_to(trained / other)
    with pytest.raises(SystemExit):
        ship.main([str(tmp_path), "--out", str(tmp_path / "shipped")])
    assert "is a run of heart.py, which is no detector network" in capsys.readouterr().err


def test_weights_of_another_network_are_refused(trained, tmp_path):
    ship.main([str(trained), "--out", str(tmp_path)])
    path = tmp_path / "heart" / "config.json"
    config = json.loads(path.read_text())
    config["model"]["width"] += 1
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="holds other arrays than the networks"):
        workdir.load(tmp_path / "heart")


@pytest.mark.parametrize(
    ("words", "heart", "threshold"),
    [
        ([], "heart", "auto"),
        (["--threshold-hu", "500"], "heart", 500.0),
        (["--aorta-roi", "roi.txt"], "heart", None),
        (["--heart", "mask.nii.gz"], "mask.nii.gz", None),
    ],
)
def test_a_scan_and_nothing_else(words, heart, threshold):
    """What is not given the networks that ship with the package find and measure."""
    options = score.parse(["scan.nii.gz", "--out", "out", *words])
    assert options.workdir == str(score.SHIPPED / "detector")
    assert options.heart == (str(score.SHIPPED / "heart") if heart == "heart" else heart) and options.threshold_hu == threshold


@pytest.mark.parametrize("variant", ["scenes", "tiny,scenes,quick", "tiny,scenes,rtp", "tiny,quick,rtp"])
def test_words_that_each_bring_scans_of_their_own_are_one(variant):
    for config in ("lessmann", "second"):
        with pytest.raises(ValueError, match="expected one of quick, rtp and scenes"):
            importlib.import_module(f"configs.{config}").get_config(variant)


@pytest.mark.parametrize("words", [["--workdir", "runs/mine"], ["--regions", "regions.nii.gz"]])
def test_whoever_names_a_run_or_regions_gets_these(words):
    options = score.parse(["scan.nii.gz", "--out", "out", *words])
    assert options.heart is None and options.threshold_hu is None and (options.workdir or "runs/mine") == "runs/mine"


def write(path, record):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def test_the_table_by_hand(tmp_path):
    """Two scans of two are scored with the true heart, one with the network's, which refuses the other; one of three without a heart is
    scored, which must not be."""
    chest, of_true, without = (shipped.Column(*names) for names in (("chest", "network"), ("chest", "true"), ("without", "network")))
    write(tmp_path / "hearts" / "chest.json", {"chest_1": 0.9, "chest_wide_2": None})
    write(tmp_path / "hearts" / "without.json", {"chest_abdomen_1": None, "chest_head_2": 0.0, "chest_neck_3": None})
    row = {"stage": "final", "artery": "CAC", "fp_mm3": 6.0, "sensitivity": 0.5, "counts": {"voxels": {"tp": 5, "fp": 2, "fn": 5}}}
    first, second = row | {"scan": "chest_1", "found_agatston": 50.0, "reference_agatston": 20.0}, row | {"scan": "chest_wide_2"}
    second |= {"found_agatston": 0.0, "reference_agatston": 5.0, "counts": {"voxels": {"tp": 0, "fp": 0, "fn": 0}}, "fp_mm3": 0.0}
    scans = [first | {"arm": "network"}, first | {"arm": "true"}, second | {"arm": "true"}]
    scans.append({"scan": "chest_wide_2", "arm": "network", "stage": "final", "artery": "", "reason": "no_heart"})
    write(tmp_path / "evaluation" / "chest" / "evaluation.json", {"scans": scans})
    experiment = shipped.Experiment({}, (chest, of_true, without))
    measured = [shipped.measure(column, tmp_path) for column in experiment.columns]
    rows = shipped.summary(experiment, [{"seed": 0, "columns": measured}])
    told = [shipped.shown(each) for each in rows]
    assert [each["scored"] for each in told] == ["1 of 2", "2 of 2", "1 of 3"]
    assert [each["heart Dice"] for each in told] == ["0.90 (0.90)", "", ""]
    assert (rows[0]["f1"], rows[0]["fp_mm3"], rows[1]["fp_mm3"], rows[1]["sensitivity"]) == (10 / 17, 6.0, 3.0, 0.5)
    assert rows[0]["accuracy"] == 1.0 and rows[1]["accuracy"] == 0.5 and told[2]["kappa"] == ""
    shipped.draw(tmp_path / "table.png", rows)
    assert (tmp_path / "table.png").stat().st_size > 5000


def test_scans_may_be_refused_and_commands_may_not_fail(tmp_path, monkeypatch):
    """Held-out scans are made and scored by commands that can be run by hand; exit code 1 says that some were refused."""
    seen = []
    monkeypatch.setattr(commands, "call", lambda command, output: seen.append(command) or int(command[0] == "cacjax.score"))
    monkeypatch.setattr(shipped, "hearts", lambda *_: {})
    experiment = shipped.EXPERIMENTS["shipped"]
    (tmp_path / "networks" / "heart").mkdir(parents=True)
    shipped.begin(experiment, None, tmp_path / "test", 5)
    shipped.test(experiment, None, tmp_path / "test", tmp_path, 5)
    made, scored = ([each for each in seen if each[0] == name] for name in ("cacjax.phantom", "cacjax.score"))
    assert len(made) == len(shipped.PROTOCOLS) and len(scored) == len(experiment.columns)
    assert [("--heart" in each, "auto" in each) for each in scored].count((True, True)) == len(shipped.PROTOCOLS)
    for each in scored:
        score.parse(each[1:])
    with pytest.raises(SystemExit, match="a command above ended with exit code 1"):
        commands.run("score", [["cacjax.score"]], None)

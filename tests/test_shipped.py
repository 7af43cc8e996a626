"""Networks without their training: what ships with the package answers without a training folder, and says what it is."""

import importlib
import json

import jax
import numpy as np
import pytest
from conftest import shrink

from cacjax import score, train
from cacjax.training import workdir
from tools import ship


@pytest.fixture
def trained(records, tmp_path):
    """Training folders of a toy detector and a toy heart network, as `tools/ship.py` expects them."""
    for name, config in (("detector", "lessmann"), ("heart", "heart")):
        train.train(shrink(importlib.import_module(f"configs.{config}").get_config("tiny"), steps=2), tmp_path / "networks" / name)
    return tmp_path / "networks"


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
    (trained / "heart").rename(trained / "spare")
    (trained / "detector").rename(trained / "heart")
    (trained / "spare").rename(trained / "detector")
    with pytest.raises(SystemExit):
        ship.main([str(trained), "--out", str(tmp_path / "shipped")])
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


@pytest.mark.parametrize("words", [["--workdir", "runs/mine"], ["--regions", "regions.nii.gz"]])
def test_whoever_names_a_run_or_regions_gets_these(words):
    options = score.parse(["scan.nii.gz", "--out", "out", *words])
    assert options.heart is None and options.threshold_hu is None and (options.workdir or "runs/mine") == "runs/mine"

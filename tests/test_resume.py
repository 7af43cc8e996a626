"""Two steps, stop, resume equals four steps, bit for bit, for every config; interruption and NaN lose nothing."""

import importlib
import json
import os
import pathlib
import re
import signal

import jax
import numpy as np
import pytest
from conftest import shrink

from cacjax import train
from cacjax.data import cohorts
from cacjax.training.workdir import load

CONFIGS = sorted(p.stem for p in (train.ROOT / "configs").glob("*.py") if "config.task" in p.read_text() or '"task"' in p.read_text())
CONFIGS.remove("ensemble")  # tests/test_ensemble.py: its records are whole scans, and it is validated
CONFIGS.remove("cacnet")  # tests/test_cacnet.py: its samples are crops
CONFIGS.remove("slices")  # a stage of the next
CONFIGS.remove("cyclegan")  # tests/test_cyclegan.py: its samples have hearts, and it is validated


def config_of(name, *, variant="tiny", **options):
    return shrink(importlib.import_module(f"configs.{name}").get_config(variant), **options)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", CONFIGS)
def test_two_steps_stop_resume_equals_four(name, records, tmp_path):
    unbroken = train.train(config_of(name, steps=4), tmp_path / "unbroken")
    train.train(config_of(name, steps=2), tmp_path / "broken")
    resumed = train.train(config_of(name, steps=4), tmp_path / "broken")
    assert resumed.step == 4
    assert_equal(unbroken, resumed)
    steps = [json.loads(line)["step"] for line in (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    assert (tmp_path / "broken" / "curves.png").stat().st_size > 1000


def test_published_form_runs(records, tmp_path):
    """The config as published, with its three orientations and slice-wise sampling, at toy widths."""
    state = train.train(config_of("uda", variant="", steps=2), tmp_path)
    assert state.step == 2 and (tmp_path / "source" / "checkpoints").is_dir()


def test_interrupt_saves_and_the_same_command_continues(records, tmp_path, monkeypatch):
    unbroken = train.train(config_of("lessmann", steps=4), tmp_path / "unbroken")
    config, real = config_of("lessmann", steps=4), train.place

    def interrupt_at_third(batch, shardings, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(batch, shardings)

    monkeypatch.setattr(train, "place", interrupt_at_third)
    with pytest.raises(KeyboardInterrupt, match="after step 3"):
        train.train(config, tmp_path / "broken")
    monkeypatch.setattr(train, "place", real)
    assert_equal(unbroken, train.train(config, tmp_path / "broken"))


def test_an_interrupt_before_the_first_step_stops_at_once(records, tmp_path, monkeypatch):
    """What comes before the steps may take minutes (a second stage's detection) and has nothing to save."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs behind it ignore interrupts
    monkeypatch.setattr(cohorts, "open", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt) as stop:
            train.train(config_of("lessmann", steps=4), tmp_path)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert "after step" not in str(stop.value) and not (tmp_path / "metrics.jsonl").exists()


def test_nan_stops_with_the_step_and_keeps_the_last_good_checkpoint(records, tmp_path, monkeypatch):
    real = train.place

    def spoil_third(batch, shardings, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 3:
            batch = jax.tree.map(lambda x: x.astype(np.float32) * np.nan if x.dtype != np.uint8 else x, batch)
        return real(batch, shardings)

    monkeypatch.setattr(train, "place", spoil_third)
    with pytest.raises(FloatingPointError, match="step 3: loss = nan"):
        train.train(config_of("lessmann", steps=4), tmp_path)
    config, _, state, *_ = load(tmp_path)
    assert state.step == 2 and config.task == "lessmann"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_other_settings_in_the_same_workdir_are_refused(records, tmp_path):
    train.train(config_of("lessmann", steps=2), tmp_path)
    other = config_of("lessmann", steps=2)
    with other.unlocked():
        other.seed = 7
    with pytest.raises(ValueError, match="seed: 0 -> 7"):
        train.train(other, tmp_path)


def test_source_workdir_is_taken_instead_of_training_one(records, tmp_path):
    train.train(config_of("lessmann", steps=2), tmp_path / "given")
    config = config_of("uda", steps=2)
    with config.unlocked():
        config.stages.source.workdir = str(tmp_path / "given")
    train.train(config, tmp_path / "uda")
    assert not (tmp_path / "uda" / "source").exists()


def test_restore_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load(tmp_path / "nothing")


def test_loaded_run_predicts(records, tmp_path):
    train.train(config_of("lessmann", steps=2), tmp_path)
    config, task, state, *_ = load(tmp_path)
    label, p_cac = task.predict(state, records["source_train"][0]["hu"].astype(np.float32))
    assert label.shape == p_cac.shape == (6, 20, 24) and 0 <= p_cac.min() <= p_cac.max() <= 1
    assert tuple(config.data.grid.spacing_mm) == (1.5, 0.66, 0.66)


def test_another_fold_in_the_same_workdir_is_refused(records, tmp_path):
    """Its data may grow, but another fold would train on what was tested; the number of steps may change."""
    train.train(config_of("lessmann", steps=2), tmp_path)
    other = config_of("lessmann", steps=3)
    with other.unlocked():
        other.data.seed = 5
    assert train.train(other, tmp_path).step == 3
    with other.unlocked():
        other.data.folds, other.data.fold = 5, 1
    with pytest.raises(ValueError, match=r"data\.fold: 0 -> 1, data\.folds: 0 -> 5"):
        train.train(other, tmp_path)


def test_a_run_of_an_earlier_version_is_refused_with_what_to_do(records, tmp_path):
    train.train(config_of("lessmann", steps=2), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in settings.items() if key not in ("scoring", "stages")}))
    with pytest.raises(ValueError, match=r"config\.json lacks the setting .*: it is of another version of cacjax; train the run anew"):
        load(tmp_path)
    upon = config_of("second", steps=2)
    with upon.unlocked():
        upon.stages.first.workdir = str(tmp_path)
    with pytest.raises(ValueError, match="of another version of cacjax"):
        train.train(upon, tmp_path / "second")


def test_config_names_resolve_from_any_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shipped = str(pathlib.Path(train.ROOT) / "configs" / "uda.py")
    assert train.resolve(["x", "--config", "uda.py:tiny", "--workdir", "w"]) == ["x", f"--config={shipped}:tiny", "--workdir", "w"]
    assert train.resolve(["x", "--config=uda.py"]) == ["x", f"--config={shipped}"]
    known = r"there are: cacnet\.py, cyclegan\.py, ensemble\.py, heart\.py, lessmann\.py, second\.py, slices\.py, uda\.py"
    with pytest.raises(SystemExit, match=known):
        train.resolve(["x", "--config=nothing.py"])


WRONG = [
    ("uda", "critic.statistics", "joit", "critic.statistics must be one of"),
    ("uda", "stages.source.task", "heart", "must be a run of lessmann.py, got one of heart.py"),
    ("second", "stages.first.task", "heart", "must be a run of lessmann.py or uda.py, got one of heart.py"),
]


@pytest.mark.parametrize(("name", "key", "value", "told"), WRONG)
def test_a_wrong_setting_is_told_and_leaves_no_folder(name, key, value, told, tmp_path):
    config = config_of(name)
    with config.unlocked():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=re.escape(told)):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()

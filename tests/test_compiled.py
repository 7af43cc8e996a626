"""Programs that are kept: a second process makes none, and what is damaged, foreign or of other settings is made anew."""

import os
import pathlib
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shrink

from cacjax.scoring import compiled, program
from cacjax.task import build
from cacjax.training.workdir import abstract_state
from configs import lessmann, uda

ROOT = pathlib.Path(__file__).parent.parent


@jax.jit
def shift(pair, by):
    return pair[0] + by, {"twice": 2 * pair[1]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where programs are kept; the process holds none."""
    monkeypatch.setenv(compiled.FOLDER, str(tmp_path / "programs"))
    compiled.forget()
    yield tmp_path / "programs"
    compiled.forget()


def run(by=3, told="settings", size=4):
    """The stages that a call needed; its answer must be right."""
    given = (jnp.arange(size), jnp.ones(size)), jnp.int32(by)
    (moved, more), seconds = compiled.call(shift, *given, decided_by=told)
    np.testing.assert_array_equal(moved, np.arange(size) + by)
    np.testing.assert_array_equal(more["twice"], 2 * np.ones(size))
    return set(seconds)


def test_made_once_then_held_then_loaded(folder):
    assert run() == {"trace", "compile"} and run(by=5) == set()
    compiled.forget()
    assert run(by=7) == {"load"} and run() == set()
    assert run(told="others") == run(size=5) == {"trace", "compile"}
    assert len(list(folder.iterdir())) == 3


def test_nothing_is_kept_of_what_cannot_be_told(folder, monkeypatch):
    assert run(told=None) == set() and not folder.exists()
    monkeypatch.setenv(compiled.FOLDER, "")
    assert run() == {"trace", "compile"} and run() == set() and not folder.exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "foreign", "no program"])
def test_what_is_wrong_is_made_anew(folder, damage):
    run()
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    told, parts = pickle.loads(whole[32:])
    body = pickle.dumps(("another", parts) if damage == "foreign" else (told, (b"none", *parts[1:])))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    signed = compiled.hashlib.sha256(body).digest() + body
    path.write_bytes({"empty": b"", "cut": whole[:-9], "flipped": bytes(flipped)}.get(damage, signed))
    compiled.forget()
    assert run() == {"trace", "compile"}
    compiled.forget()
    assert run() == {"load"}


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(folder):
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file")
    assert run() == {"trace", "compile"} and run() == set()


def test_those_used_longest_ago_go_first(folder, monkeypatch):
    monkeypatch.setattr(compiled, "MOST", 2)
    run(told="a"), run(told="b")
    for path in folder.iterdir():
        os.utime(path, (1, 1))  # long ago: a file's time moves in steps of milliseconds
    compiled.forget()
    run(told="a"), run(told="c")
    compiled.forget()
    assert run(told="a") == {"load"} and run(told="b") == {"trace", "compile"}


def test_another_process_traces_nothing(folder):
    """Real tables: of a mask with one lesion, by two processes at once, of which one makes the program, and by one after them; also where
    JAX's cache has the program."""
    words = [sys.executable, "-c", TABLES]
    subprocess.run(words, cwd=ROOT, capture_output=True, env=os.environ | {compiled.FOLDER: ""})
    both = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate()[0] for process in both]
    last = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    answers = [answer.split() for answer in (*answers, last.stdout)]
    assert [answer[:2] for answer in answers] == [["1", "27"]] * 3, last.stderr[-2000:]
    assert sorted(answer[2:] for answer in answers[:2]) == [["compile", "trace"], ["load"]] and answers[2][2:] == ["load"]
    assert len(list(folder.iterdir())) == 1  # and no lock is left
    assert program.tabulate.__qualname__ in pickle.loads(next(folder.iterdir()).read_bytes()[32:])[0]


def test_a_network_and_what_was_adapted_from_it_share_their_programs():
    """What is told, and the arrays that a program takes, are of the network alone; another width or setting is another program."""
    config = shrink(uda.get_config("tiny"))
    assert decisive(config) == decisive(config.stages.source) == decisive(shrink(lessmann.get_config("tiny,tone")))
    with config.unlocked():
        config.scoring.classify = "mask"
    assert decisive(config) != decisive(config.stages.source)
    assert decisive(config)[1:] == decisive(config.stages.source)[1:]


def decisive(config):
    """(what a run's detector tells, the arrays that it takes of the state: structure and kinds)."""
    detector = build(config).detector
    weights = jax.eval_shape(detector.weights, abstract_state(config, build(config)))
    return detector.decided_by, jax.tree.structure(weights), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(weights)]


TABLES = """
import numpy as np
from cacjax.kernels import rules, scores
from cacjax.scoring import program
from cacjax.task import Finding
label = np.zeros((6, 20, 24), np.uint8)
label[1:4, 5:8, 6:9] = 1
rule = rules.RULES["default"]
reading = program.Reading(np.array(label.shape, np.int32), np.ones(3, np.float32), (scores.numbers(rule, (1, 1, 1), 1.0),))
how = program.How((), (program.Kind(rule.connectivity, rule.peak, rule.whole_lesions),), (1,))
tables, seconds = program.tables_of(Finding(label, np.float32(label) * 300), reading, how)
print(tables.lesions.n[0], tables.lesions.voxels[0].max(), *sorted(seconds))
"""

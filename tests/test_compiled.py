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

from cacjax.scoring import compiled, program

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
    """Real tables: of a mask with one lesion, by a process of its own and by two at once; also where JAX's cache has the program."""
    words = [sys.executable, "-c", TABLES]
    subprocess.run(words, cwd=ROOT, capture_output=True, env=os.environ | {compiled.FOLDER: ""})
    first = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    others = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [first.stdout, *(other.communicate()[0] for other in others)]
    assert [answer.split()[:2] for answer in answers] == [["1", "27"]] * 3, first.stderr[-2000:]
    assert [answer.split()[2:] for answer in answers] == [["compile", "trace"], ["load"], ["load"]]
    assert program.tabulate.__qualname__ in pickle.loads(next(folder.iterdir()).read_bytes()[32:])[0]


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

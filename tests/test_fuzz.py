"""The corpus: a hundred cases through the real program; what is made of a program that crashes, hangs, drops and guesses."""

import csv
import hashlib
import importlib
import os
import pathlib
import subprocess
import sys

import pytest

TOOLS = pathlib.Path(__file__).resolve().parents[1] / "tools"
STAND_IN = """
import csv, json, os, pathlib, sys, time
words = sys.argv[1:]
out = pathlib.Path(words[words.index("--out") + 1])
out.mkdir(parents=True)
file = open(out / "scores.csv", "w")
print("scan,status,reason,agatston", file=file, flush=True)
for number, path in enumerate(words[: words.index("--workdir")]):
    says = open(path, "rb").read(40).decode("latin-1") if path.endswith(".txt") else "scored,,2100"
    if says == "crash": os._exit(139)
    if says == "gives up": sys.exit("error: what one scan did")
    if says == "hang": time.sleep(60)
    if says == "grow": kept = b"1" * 300_000_000; time.sleep(60)
    name = "synthetic" if path.endswith("synthetic.nii.gz") else f"n{number}"
    (out / f"{name}.json").write_text(json.dumps({"scan": name, "path": path}))
    for _ in range({"silent": 0, "twice": 2}.get(says, 1)):
        print(f"{name},{says if ',' in says else 'scored,,2100'}", file=file, flush=True)
print("1 scans: 1 scored")
"""
SAYS = {  # name: (what must become of it, what the stand-in says or does, outcome)
    "good": ("same", "scored,,2100.0", "right"),
    "guessed": ("same", "scored,,2000.0", "wrong score"),
    "turned_away": ("same", "refused,bad_header,", "refused wrongly"),
    "let_in": ("refused", "scored,,2100.0", "scored wrongly"),
    "another_code": ("refused", "refused,not_ct,", "other code"),
    "own_code": ("refused", "refused,rescale,", "right"),
    "traceback": ("refused", "refused,internal_error,", "internal error"),
    "unflagged": ("flagged", "scored,,2100.0", "not flagged"),
    "flagged": ("flagged", "scored,lossy,2100.0", "right"),
    "nearly": ("about", "scored,,2900.0", "right"),
    "far": ("about", "scored,,0.0", "wrong score"),
    "dropped": ("same", "silent", "missing"),
    "doubled": ("either", "twice", "doubled"),
    "crashes": ("refused", "crash", "ended"),
    "gives_up": ("either", "gives up", "ended"),
    "hangs": ("answer", "hang", "hang"),
    "grows": ("answer", "grow", "memory"),
}


@pytest.fixture
def fuzz(monkeypatch):
    """tools/fuzz.py."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("fuzz")


def test_a_hundred_cases(tmp_path):
    """No batch ends, nothing hangs or is lost, no score is wrong, nothing is scored that must be refused."""
    command = [sys.executable, TOOLS / "fuzz.py", "--seed", "1", "--cases", "100", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]


def test_each_outcome_is_told(fuzz, monkeypatch, tmp_path, capsys):
    """A program that crashes, hangs, drops and guesses: every case gets its own outcome, and a second call does nothing again."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(fuzz.program, "COMMAND", (sys.executable, str(tmp_path / "stand_in.py")))
    monkeypatch.setattr(fuzz.program, "make_run", lambda workdir: workdir)
    monkeypatch.setattr(fuzz.program, "START_S", 3)
    monkeypatch.setattr(fuzz.program, "SCAN_S", 0)

    def maker(says):
        def make(place):
            (place.folder / "input.txt").write_text(says)
            return place.folder / "input.txt"

        return make

    kinds = {name: fuzz.Kind(maker(says), must, ("rescale",)) for name, (must, says, _) in SAYS.items()}
    monkeypatch.setattr(fuzz, "KINDS", kinds)
    words = ["--seed", "3", "--cases", str(len(SAYS)), "--memory-mb", "250", "--out", str(tmp_path / "out")]
    assert fuzz.main(words) == 1
    with open(tmp_path / "out/outcomes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"]: row["outcome"] for row in rows} == {name: outcome for name, (_, _, outcome) in SAYS.items()}
    kept = {path.name for path in (tmp_path / "out/cases").iterdir()}
    assert kept == {f"{int(row['case']):06}" for row in rows if row["outcome"] in fuzz.WRONG}
    capsys.readouterr()
    monkeypatch.setattr(fuzz.program, "COMMAND", ("/bin/false",))
    assert fuzz.main(words) == 1 and "| crashes" in capsys.readouterr().out
    assert fuzz.main([*words, "--kind", "good"]) == 1  # its batch was ended by another
    with pytest.raises(SystemExit, match="choose another --out"):
        fuzz.main(["--seed", "4", *words[2:]])


def test_only_what_is_asked_for(fuzz, tmp_path):
    options = fuzz.parse(["--cases", str(2 * len(fuzz.KINDS)), "--kind", "mha_*", "pipe", "--out", str(tmp_path)])
    cases = fuzz.choose(options, ("synthetic", "real"))
    assert {case.kind for case in cases} == {"pipe", *(name for name in fuzz.KINDS if name.startswith("mha_"))}
    assert len(cases) == 2 * len({case.kind for case in cases}) and {case.scan for case in cases} == {"synthetic", "real"}


def content(path):
    """What a folder holds: names, links, and sums of files."""
    found = {}
    for entry in sorted(path.rglob("*")):
        regular = entry.is_file() and not entry.is_symlink()
        found[os.fsencode(entry.relative_to(path))] = hashlib.sha256(entry.read_bytes()).digest() if regular else entry.lstat().st_mode
    return found


def test_a_case_follows_from_its_seed_and_number(fuzz, tmp_path):
    """Every kind makes an input, the same from the same numbers; of all kinds together most change with the seed."""
    scans, differ = {"synthetic": fuzz.clean.synthetic()}, 0
    for index, kind in enumerate(fuzz.KINDS):
        if kind.startswith("forbidden") or kind.endswith("bomb"):
            continue
        case, made = fuzz.Case(index, kind, "synthetic"), {}
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            folder = tmp_path / name / f"{index:06}"
            assert os.path.lexists(fuzz.make(case, scans, folder, seed)) or kind in ("odd_path", "manifest_nothing_there")
            made[name] = content(folder)
        assert made["a"] == made["b"], kind
        differ += made["a"] != made["c"]
    assert differ > len(fuzz.KINDS) / 3

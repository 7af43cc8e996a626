"""Nothing of a batch is lost: hostile files, kills, full disks, two processes, Ctrl-C.

`CACJAX_KILLS=20 pytest tests/test_batch.py -k kill` kills a batch at 20 random moments; 3 are the default.
"""

import csv
import errno
import gzip
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from cacjax import score as score_module
from cacjax.files import atomic, reading, scan
from cacjax.report import result as files
from cacjax.report import tables
from cacjax.scoring import jobs, one_scan

AFFINE = np.diag([3, 0.5, 0.5, 1.0])
SHAPE = (6, 40, 48)
# What a reader process does over a scan of this name; Python imports sitecustomize at its start.
HOSTILE = """
import os, pathlib, signal, time
from cacjax.files import scan

def hostile(name):
    if name.startswith("segfault"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("hang"):
        time.sleep(1000)
    if name.startswith("flood"):
        bytearray(1 << 40)

def check(path, *rest, real=scan._check):
    hostile(pathlib.Path(path).name.removeprefix("header_"))
    return real(path, *rest)

def read(source, real=scan.read):
    hostile(source.name)
    found = real(source)
    if folder := os.environ.get("TELL_WHAT_IS_READ"):
        pathlib.Path(folder, source.name).touch()
    return found

scan._check, scan.read = check, read
"""


def volume(seed=0):
    """Calcium at 250 HU on 40 HU, 8 Agatston units, with air around it."""
    hu = np.random.default_rng(seed).normal(40, 5, SHAPE).round()
    hu[:, :4] = -1000
    hu[2, 10:14, 20:24] = 250
    return hu


def write(path, seed=0):
    scan.write_image(volume(seed), AFFINE, path)
    return path


@pytest.fixture
def regions(tmp_path):
    scan.write_image(volume() == 250, AFFINE, tmp_path / "drawn.nii.gz", np.uint8)
    return tmp_path / "drawn.nii.gz"


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HOSTILE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def run(*arguments):
    return score_module.main([os.fspath(argument) if isinstance(argument, os.PathLike) else str(argument) for argument in arguments])


def rows_of(out):
    with open(out / "scores.csv") as file:
        return list(csv.DictReader(file))


def reasons(out):
    return {row["scan"]: row["reason"] for row in rows_of(out)}


def test_a_reader_imports_nothing_that_computes():
    program = "import sys, cacjax.files.reading; print({'jax', 'flax', 'scipy', 'matplotlib'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"


def test_what_ends_a_reader_is_one_row(tmp_path, regions, hostile):
    """A crash, a hang and a flood, over headers and over voxels, in a folder: a row each, the others are scored."""
    names = ["a", "header_hang", "header_segfault", "flood", "hang", "segfault", "z"]
    for name in names:
        write(tmp_path / "in" / f"{name}.nii.gz")
    out = tmp_path / "out"
    assert run(tmp_path / "in", "--regions", regions, "--out", out, "--reader-seconds", 4, "--scores-only") == 1
    lost = {"segfault": "reader_crashed", "hang": "reader_timeout", "flood": "reader_memory"}
    assert reasons(out) == {name: lost.get(name.removeprefix("header_"), "") for name in names}
    assert {row["agatston"] for row in rows_of(out) if row["status"] == "scored"} == {"8.0"}
    message = json.loads((out / "header_segfault.json").read_text())["message"]
    assert "header_segfault.nii.gz" in message and "SIGSEGV" in message
    assert set(lost.values()) <= scan.REASONS.keys()


@pytest.mark.parametrize(("message", "code"), [("BitsAllocated is 8", "bad_header"), ("std::bad_alloc", "reader_memory")])
def test_a_want_of_memory_is_told_by_the_error_not_by_a_tag(message, code):
    assert reading._told(scan.ScanError("bad_header", message)).code == code


def test_a_header_that_the_image_library_does_not_survive(tmp_path, regions):
    header = "ObjectType = Image\nNDims = 100000\nBinaryData = True\nDimSize = 10 10 10\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "bad.mha").write_bytes(header.encode() + bytes(2000))
    out = tmp_path / "out"
    assert run(tmp_path / "bad.mha", write(tmp_path / "a.nii.gz"), "--regions", regions, "--out", out, "--scores-only") == 1
    assert {name: bool(reason) for name, reason in reasons(out).items()} == {"bad": True, "a": False}


def test_a_reader_has_no_more_memory_than_its_limit(tmp_path):
    """A header that promises 10 GB, before 1 GB of zeros: the reader takes less than 1 GiB."""
    head = bytearray(gzip.decompress(write(tmp_path / "a.nii.gz").read_bytes())[:352])
    head[42:48] = np.array([2000, 2000, 1250], "<i2").tobytes()
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(64):
            file.write(bytes(16 << 20))
    with reading.Readers(seconds=100) as readers:
        pid = readers._readers[0]._process.pid
        (source,) = readers.find(tmp_path / "bomb.nii.gz")
        (answer,) = readers.read([(source, {})])
        assert isinstance(answer, scan.ScanError)
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        assert int(status.partition("VmHWM:")[2].split()[0]) < 1 << 20


def test_the_next_scan_is_read_while_one_is_computed(tmp_path, regions, hostile, monkeypatch):
    paths, told = [write(tmp_path / f"{name}.nii.gz") for name in "ab"], tmp_path / "told"
    told.mkdir()
    monkeypatch.setenv("TELL_WHAT_IS_READ", str(told))
    real, seen = one_scan.score, []

    def computes(image, **options):
        for _ in range(600):
            if (told / "b").exists():
                break
            time.sleep(0.1)
        seen.append((told / "b").exists())
        return real(image, **options)

    monkeypatch.setattr(one_scan, "score", computes)
    assert run(*paths, "--regions", regions, "--out", tmp_path / "out", "--scores-only") == 0
    assert seen == [True, True]
    timings = json.loads((tmp_path / "out" / "a.json").read_text())["timings_s"]
    assert timings["read"] > 0 and timings["wait"] >= 0


def test_names_that_no_file_system_takes(tmp_path, regions):
    """A path of bytes that are no UTF-8, a folder's name of 240 characters: outputs have names that do, records are plain JSON."""
    latin = os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller.nii.gz")
    write(tmp_path / "a.nii.gz").rename(latin)
    long = tmp_path / ("x" * 240)
    scan.write_dicom(volume(), AFFINE, long, description="long", seed=1)
    out = tmp_path / "out"
    run(latin, long, "--regions", regions, "--out", out)
    first, second = rows_of(out)
    assert first["scan"] == "M_ller" and (second["status"], second["agatston"]) == ("scored", "8.0")
    assert (out / f"{second['scan']}_mask.nii.gz").exists()
    record = json.loads((out / "M_ller.json").read_text())
    assert record["path"].endswith("M\\xfcller.nii.gz")
    json.dumps(record, ensure_ascii=False).encode("utf-8")


def test_long_names_are_stable_and_apart():
    one, other = jobs._fit("x" * 300), jobs._fit("x" * 301)
    assert one != other and one == jobs._fit("x" * 300) and max(len(one), len(other)) <= 160
    assert len(jobs._fit("é" * 200).encode()) <= 160
    assert jobs._apart(["p", "p_heart", "q"]) == ["p", "p_heart-2", "q"]


def test_every_input_has_a_row(tmp_path, regions):
    """A link to a scan, the same path twice, a manifest that is no text, one whose scan is not there."""
    path = write(tmp_path / "a.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to(path)
    for name, content in (("m1", b"scan\nM\xfcller.nii.gz\n"), ("m2", b"scan\nnone.nii.gz\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.csv").write_bytes(content)
    given = [path, tmp_path / "link.nii.gz", path, tmp_path / "m1", tmp_path / "m2"]
    assert run(*given, "--regions", regions, "--out", tmp_path / "out", "--scores-only") == 1
    rows = rows_of(tmp_path / "out")
    assert [row["reason"] for row in rows] == ["", "", "", "bad_manifest", "not_found"]
    assert len({row["scan"] for row in rows}) == 5


def test_a_manifest_that_may_not_be_read_is_a_row(tmp_path, regions, monkeypatch):
    """Nor the folder that it is in; this may run as root, who may read everything."""
    for name in ("locked", "folder"):
        write(tmp_path / name / "a.nii.gz")
        (tmp_path / name / "manifest.csv").write_text("scan\na.nii.gz\n")
    real, denied = jobs.manifest.locate, PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def locate(path):
        if "folder" in str(path):
            raise denied
        return real(path)

    def read(_):
        raise denied

    monkeypatch.setattr(jobs.manifest, "locate", locate)
    monkeypatch.setattr(jobs.manifest, "read", read)
    given = tmp_path / "locked", tmp_path / "folder"
    assert run(*given, "--regions", regions, "--out", tmp_path / "out", "--scores-only") == 1
    assert [row["reason"] for row in rows_of(tmp_path / "out")] == ["bad_manifest", ""]
    assert "Permission denied" in next((tmp_path / "out").glob("*locked.json")).read_text()


def test_no_output_takes_the_place_of_an_input(tmp_path, regions):
    """OUT is the folder that the scan and its heart lie in, and the heart has the name of an output."""
    write(tmp_path / "in" / "p.nii.gz")
    heart = tmp_path / "in" / "p_heart.nii.gz"
    scan.write_image(np.ones(SHAPE), AFFINE, heart, np.uint8)
    before = heart.read_bytes()
    (tmp_path / "in" / "manifest.csv").write_text("scan,heart\np.nii.gz,p_heart.nii.gz\n")
    for _ in range(2):
        assert run(tmp_path / "in", "--regions", regions, "--out", tmp_path / "in") == 0
        assert heart.read_bytes() == before and len(rows_of(tmp_path / "in")) == 1


@pytest.mark.parametrize("kind", ["file", "below_a_file", "not_made", "latin", "taken"])
def test_an_out_that_cannot_be_used_is_one_line(tmp_path, regions, kind, monkeypatch, capsys):
    (tmp_path / "file").write_text("kept")
    latin = os.fsdecode(os.fsencode(tmp_path) + b"/\xfc")
    out = {"file": "file", "below_a_file": "file/out", "not_made": "/proc/out", "latin": latin, "taken": "taken"}[kind]
    monkeypatch.setattr(jobs.scan, "named", None)  # no work is done
    with atomic.owned(tmp_path / "taken"):
        assert run(regions, "--regions", regions, "--out", tmp_path / out) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: --out ") and shown.err.count("\n") == 1 and not shown.out
    assert kind != "taken" or f"process {os.getpid()} is writing to it" in shown.err
    assert (tmp_path / "file").read_text() == "kept"


def test_a_disk_that_is_full_from_the_start(tmp_path, regions, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    assert run(regions, "--regions", regions, "--out", tmp_path / "out") == 2
    assert "No space left on device" in capsys.readouterr().err and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("stage", ["masks", "record"])
def test_a_disk_that_fills_in_the_middle(tmp_path, regions, monkeypatch, capsys, stage):
    """The second of three scans cannot be written: the first stays, nothing of the second does, one line says it; then the rest."""
    common = *(write(tmp_path / f"{name}.nii.gz") for name in "abc"), "--regions", regions, "--out", tmp_path / "out"
    module, name = (files, "write") if stage == "masks" else (tables, "write_json")
    real, calls = getattr(module, name), []

    def fills(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fills)
        assert run(*common) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "No space left on device" in line and "--resume" in line
    assert [row["scan"] for row in rows_of(tmp_path / "out")] == ["a"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.json", "a.png", "a_mask.nii.gz", "a_scored.nii.gz", "scores.csv"}
    assert run(*common, "--resume") == 0 and [row["scan"] for row in rows_of(tmp_path / "out")] == ["a", "b", "c"]


def test_a_mask_that_does_not_fit_on_the_disk_is_no_half_mask(tmp_path):
    """ITK says nothing of a NIfTI file that it could not write to its end."""
    program = (
        "import resource, sys, numpy as np; from cacjax.files import volume\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "volume.save(np.random.default_rng(0).integers(0, 999, (40, 100, 100)).astype(np.int16), np.eye(4), sys.argv[1])"
    )
    for name in ("a.nii", "a.nii.gz"):
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path / name)], capture_output=True, text=True)
        assert done.returncode == 1 and "OSError" in done.stderr and not list(tmp_path.iterdir())


def test_a_row_that_does_not_fit_leaves_whole_rows(tmp_path):
    """The row of a scan is longer than what is left of the disk: the table ends with the one before."""
    program = (
        "import resource, sys; from cacjax.report import tables\n"
        "tables.write_csv(sys.argv[1], [{'a': 1}], ['a']); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "tables.append_csv(sys.argv[1], [{'a': 'x' * 2000}], ['a'])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.csv")], capture_output=True, text=True)
    assert done.returncode == 1 and "OSError" in done.stderr and (tmp_path / "a.csv").read_text().split() == ["a", "1"]


@pytest.mark.parametrize("moment", ["finding", "computing", "writing"])
def test_ctrl_c_leaves_a_table(tmp_path, regions, monkeypatch, moment):
    """At any moment; what an earlier run finished stays in it, and of a scan that is not done nothing is there."""
    common = *(write(tmp_path / f"{name}.nii.gz") for name in "abc"), "--regions", regions, "--out", tmp_path / "out"

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    def at(module, name, call):
        real, calls = getattr(module, name), []
        return lambda *a, **o: (calls.append(1), interrupted() if len(calls) == call else real(*a, **o))[1]

    module, name = {"finding": (reading.Readers, "find"), "computing": (one_scan, "score"), "writing": (files, "write")}[moment]
    for more, expected in ((), ["a"]), (("--resume",), ["a", "b"]):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, at(module, name, 2))
            with pytest.raises(SystemExit, match="--resume continues"):
                run(*common, *more)
        assert [row["scan"] for row in rows_of(tmp_path / "out")] == ([] if moment == "finding" else expected)
        assert not {path.name[0] for path in (tmp_path / "out").iterdir()} & {".", "c"}
    assert run(*common, "--resume") == 0 and len(rows_of(tmp_path / "out")) == 3


def test_half_files_of_killed_processes_are_removed(tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True).stdout.strip()
    for name in (f".{ended}.a.png", f".{os.getpid()}.b.png", "c.png"):
        (tmp_path / name).touch()
    with atomic.owned(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {f".{os.getpid()}.b.png", "c.png", atomic.LOCK}
    assert {path.name for path in tmp_path.iterdir()} == {f".{os.getpid()}.b.png", "c.png"}


def test_a_kill_at_any_moment_loses_nothing(tmp_path, regions):
    """Killed, resumed and killed again at random moments, in the end the table is that of a run in peace, byte by byte."""
    inputs = [str(write(tmp_path / "in" / f"p{k}.nii.gz", seed=k)) for k in range(6)]
    (tmp_path / "in" / "broken.nii.gz").write_bytes(b"")
    command = [sys.executable, "-m", "cacjax.score", *inputs, str(tmp_path / "in" / "broken.nii.gz"), "--regions", str(regions), "--out"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    began = time.monotonic()
    assert subprocess.run([*command, str(tmp_path / "peace")], **quiet).returncode == 1
    seconds, out, seed = time.monotonic() - began, tmp_path / "out", int(time.time())
    expected, draw, finished = (tmp_path / "peace" / "scores.csv").read_bytes(), random.Random(seed), 0
    for kill in range(int(os.environ.get("CACJAX_KILLS", "3"))):
        if finished:
            out = tmp_path / f"out{kill}"
        process = subprocess.Popen([*command, str(out), "--resume"], **quiet)
        try:
            process.wait(draw.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        finished = process.wait() == 1
        told = f"kill {kill} of seed {seed}"
        for path in out.glob("[!.]*.json"):
            assert json.loads(path.read_text())["rows"], told
        for path in out.glob("[!.]*.nii.gz"):
            assert gzip.decompress(path.read_bytes()), told
        if (out / "scores.csv").exists():
            whole = (out / "scores.csv").read_bytes().rpartition(b"\n")[0].splitlines()
            assert set(whole) <= set(expected.splitlines()) and len(set(whole)) == len(whole), told
    assert subprocess.run([*command, str(out), "--resume"], **quiet).returncode == 1
    assert (out / "scores.csv").read_bytes() == expected, f"seed {seed}"
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "peace").iterdir()}


def test_a_reader_ends_with_its_batch(tmp_path):
    """Also where the batch is killed, and over a scan that hangs."""
    program = "from cacjax.files import reading; import time; r = reading.Readers(); r._readers[0].ask('find', '/', None, {})\n"
    program += "print(r._readers[0]._process.pid, flush=True); time.sleep(100)"
    batch = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pid = int(batch.stdout.readline())
    batch.kill()
    batch.wait()
    deadline = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(pid)


def _alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

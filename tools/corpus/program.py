"""Run the program on inputs that may end, hang or bloat it, and tell how it ended.

`python tools/corpus/program.py COMMAND...` runs a command for which the permissions of files hold even where the superuser starts it.
"""

import ctypes
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "cacjax.score")
START_S, SCAN_S, POLL_S = 300, 10, 0.2  # limits of time: of a batch, and of each scan in it
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, PR_CAPBSET_DROP = 1, 2, 24  # linux/capability.h, linux/prctl.h


class End(NamedTuple):
    """How a run of the program ended: "" as it should, else "ended", "hang" or "memory"; the most memory that it took, in MB."""

    how: str
    peak_mb: float


def make_run(workdir) -> pathlib.Path:
    """A folder of the system `bright`, made by a process of its own, for JAX takes its time and memory."""
    subprocess.run([sys.executable, ROOT / "tools/corpus/bright.py", workdir], env=environment(), check=True)
    return workdir


def environment() -> dict:
    """The variables of a process that can import cacjax and the corpus."""
    return {"JAX_PLATFORMS": "cpu"} | os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tools")))}


def score(paths, workdir, out, memory_mb, more=()) -> End:
    """Run the program on the inputs."""
    remove(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, *COMMAND, *map(str, paths), "--workdir", str(workdir), "--out", str(out), *more]
    with open(out.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(), start_new_session=True)
        try:
            return watch(process, START_S + SCAN_S * len(paths), memory_mb)
        finally:
            if process.poll() is None:
                end_session(process)


def drop_override() -> None:
    """Let the permissions of files hold for the superuser, too."""
    library = ctypes.CDLL(None)
    if sys.platform == "linux":
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            library.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def watch(process, limit_s, memory_mb) -> End:
    """Wait for a process that leads a session, and kill the session at its limits."""
    start, peak = time.monotonic(), 0.0
    while process.poll() is None:
        peak = max(peak, memory_of(process.pid))
        how = "hang" if time.monotonic() - start > limit_s else "memory" if peak > memory_mb else ""
        if how:
            end_session(process)
            return End(how, peak)
        time.sleep(POLL_S)
    return End("" if process.returncode in (0, 1) else "ended", peak)


def end_session(process) -> None:
    """Kill a process and what it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def memory_of(session) -> float:
    """MB that the processes of a session take, what they share counted once; 0 where the system does not tell."""
    total = 0
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(path.name)) == session:
                pss = re.search(r"^Pss: *(\d+)", (path / "smaps_rollup").read_text(), re.MULTILINE)
                total += int(pss[1])
        except (OSError, TypeError):  # it has ended meanwhile
            continue
    return total / 1000


def remove(path) -> None:
    """Remove a folder, whatever the modes of what is in it."""
    if path.is_dir():
        for folder, _, _ in os.walk(path):
            os.chmod(folder, 0o700)
            for entry in os.scandir(folder):
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)
        shutil.rmtree(path)


if __name__ == "__main__":
    drop_override()
    os.execv(sys.argv[1], sys.argv[1:])

"""Set up cacjax and run it: `python3 tools/do.py train` or `python3 tools/do.py test`.

Needs python3 (3.11 or later) and pip, nothing else. The first call makes `.venv` beside this folder and installs cacjax with the
extra for the accelerator that it finds; later calls skip that until pyproject.toml changes. Words after the command go on to it.

  train   the main job on the embedded phantom: train, adapt, score, evaluate      (options: --config.seed N, --seeds N, --out DIR)
  test    ruff and the tests
  python  run the prepared python                                                 (as in: do.py python -m cacjax.score --help)

CACJAX_ACCELERATOR=cpu|cuda12|cuda13|tpu overrides the choice of the accelerator.
"""

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def find_accelerator() -> str:
    """Return the extra to install: "cuda13", "cuda12", "tpu" or "cpu"."""
    if chosen := os.environ.get("CACJAX_ACCELERATOR"):
        return chosen
    if pathlib.Path("/dev/accel0").exists():
        return "tpu"
    if not shutil.which("nvidia-smi"):
        return "cpu"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = re.match(r"\d+", subprocess.run(query, capture_output=True, text=True).stdout)
    major = int(driver.group()) if driver else 0
    return "cuda13" if major >= 580 else "cuda12" if major >= 525 else "cpu"


def make_venv() -> None:
    """Create .venv, also where the system's python lacks the venv package (Debian, Ubuntu)."""
    if PYTHON.exists():
        return
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if made.returncode == 0:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    bootstrap = ROOT / "build" / "virtualenv"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", str(bootstrap), "virtualenv"], check=True)
    environment = os.environ | {"PYTHONPATH": str(bootstrap)}
    subprocess.run([sys.executable, "-m", "virtualenv", "-q", str(VENV)], check=True, env=environment)


def install(extras: list[str]) -> None:
    """Install cacjax with `extras` into .venv, unless that very set was installed before."""
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + sys.version.encode()).hexdigest()
    stamp = VENV / "cacjax-installed"
    parts = stamp.read_text().split() if stamp.exists() else []
    have = set(parts[1:]) if parts[:1] == [wanted] else set()
    if parts[:1] == [wanted] and set(extras) <= have:
        return
    make_venv()
    every = sorted(have | set(extras))
    target = f"{ROOT}[{','.join(every)}]" if every else str(ROOT)
    print(f"do.py: installing cacjax into {VENV} (extras: {', '.join(every) or 'none'}) ...", flush=True)
    subprocess.run([str(PYTHON), "-m", "pip", "install", "-q", "-e", target], check=True)
    stamp.write_text(" ".join([wanted, *every]))


def run(*command: str) -> None:
    """Run a command of the prepared python, showing it first; leave with its exit code if it fails."""
    print(f"\n$ python {' '.join(command)}", flush=True)
    done = subprocess.run([str(PYTHON), *command], cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    """Prepare the environment and run the command asked for."""
    if sys.version_info < (3, 11):  # noqa: UP036 (this file runs before anything is installed)
        sys.exit(f"cacjax needs Python 3.11 or later, this is {sys.version.split()[0]}")
    command, *words = sys.argv[1:] or ["--help"]
    if command not in ("train", "test", "python"):
        sys.exit(__doc__)
    accelerator = find_accelerator()
    extras = [] if accelerator == "cpu" else [accelerator]
    install(extras + (["test"] if command == "test" else []))
    if accelerator == "cpu":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if command == "train":
        run("-m", "cacjax.experiments", "uda-quick", "--out", "runs/quickstart", *words)
    elif command == "test":
        run("-m", "ruff", "check", ".")
        run("-m", "pytest", *(words or ("-n", "2", "--dist", "loadfile")))  # files in turn by two processes
    else:
        sys.exit(subprocess.run([str(PYTHON), *words]).returncode)


if __name__ == "__main__":
    main()

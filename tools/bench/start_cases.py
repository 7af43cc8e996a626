"""Case of a start: `python -m cacjax.score` on one CCTA as a process of its own, from its first import to its end.

The first process finds empty caches of programs and of compilations; what it takes longer than the second stands as compile_s, and the
row times those that follow. Weights are random; the scan is a phantom with its heart and its threshold, as in score_cases.py.
"""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
import uda_torch
from race import Case
from score_cases import QUICK, SEED, SHAPE

from configs import uda as uda_config

ROOT = pathlib.Path(__file__).resolve().parents[2]


def cases(options):
    """Generator of the case; the device is that of JAX_PLATFORMS."""
    if options.only not in "first score":
        return
    shape = QUICK if options.quick else SHAPE
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        torch.manual_seed(0)
        np.savez(folder / "weights.npz", **uda_torch.arrays(uda_torch.Dilated()))
        call(folder, "tools/import_torch.py", "dilated", folder / "weights.npz", "--out", folder / "run")
        grid = ("--shape", *shape, "--spacing", *uda_config.get_config().data.grid.spacing_mm)
        call(folder, "-m", "cacjax.phantom", "--out", folder / "scans", "--protocol", "ccta", "--n", 1, "--seed", SEED, *grid)
        words = ("-m", "cacjax.score", folder / "scans", "--workdir", folder / "run", "--out", folder / "scores", "--scoring.classify=mask")
        score = functools.partial(call, folder, *words)
        first, second = timed(score), timed(score)
        size = "x".join(map(str, shape))
        yield Case("first score", f"CCTA {size}, a second process from start to end", score, None, None, compile_s=first - second)


def call(folder, *words) -> None:
    """Run python with these words and its caches in `folder`; ends the program where that fails."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
        "CACJAX_PROGRAMS": str(folder / "programs"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} ended with exit code {done.returncode}:\n{done.stdout}{done.stderr}")


def timed(work) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began

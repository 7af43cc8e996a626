"""Two processes that share a training (jax.distributed) take the steps that one process takes."""

import json
import pathlib
import socket
import subprocess
import sys

import numpy as np

PROGRAM = """
import sys
workdir, rank, count, port = sys.argv[1], *map(int, sys.argv[2:])
sys.path.insert(0, {tests!r})
import conftest, jax
jax.distributed.initialize(f"localhost:{{port}}", count, rank)
from cacjax import train
from cacjax.data import cohorts
from configs import uda
records = [conftest.small_record(i) for i in range(5)]
cohorts.open = lambda config: {{"source_train": records[:3], "target_train": records[3:]}}
train.train(conftest.shrink(uda.get_config(""), steps=2), workdir)
"""


def metrics_of(workdir, count):
    """The records in metrics.jsonl of a training by `count` processes with one device each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    program = PROGRAM.format(tests=str(pathlib.Path(__file__).parent))
    command = [sys.executable, "-c", program, str(workdir)]
    started = [subprocess.Popen([*command, str(rank), str(count), str(port)]) for rank in range(count)]
    assert [process.wait(timeout=600) for process in started] == [0] * count
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_as_one(tmp_path):
    alone, together = metrics_of(tmp_path / "one", 1), metrics_of(tmp_path / "two", 2)
    assert [row["step"] for row in together] == [1, 2]
    for a, b in zip(alone, together):
        for name in ("gap", "gap_fresh", "loss_classification", "loss_generator"):
            np.testing.assert_allclose(b[name], a[name], rtol=1e-4, atol=1e-5)

"""A system without a network: all that reaches the scan's threshold is coronary calcium. So a scan has one score on any grid.

`python tools/corpus/bright.py DIR` makes a folder that `python -m cacjax.score --workdir DIR` takes, where tools/ can be imported from.
"""

import pathlib
import sys

import jax.numpy as jnp
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from cacjax.task import Detector, Finding, Plan, Task, beginning
from cacjax.training.workdir import checkpoints, keep_config

CAC = 7


def make(config) -> Task:
    """The task; it cannot be trained."""

    def plan(shape, spacing_mm, affine, heart, threshold_hu, aorta_hu) -> Plan:
        return Plan((), ())

    def find(state, case, how) -> Finding:
        return Finding(jnp.where(case.hu >= case.threshold_hu, CAC, 0).astype(jnp.uint8), case.hu)

    def init(key, batch, stages):
        return beginning({})

    return Task(init, None, None, detector=Detector(plan, find, (CAC,)))


def write_run(workdir) -> None:
    """Config and checkpoint, which holds nothing."""
    workdir = pathlib.Path(workdir).absolute()
    scoring = {"rule": "default", "scheme": "default", "threshold": "scan"}
    empty = {"stages": {}, "streams": {}, "data": {}}
    workdir.mkdir(parents=True, exist_ok=True)
    keep_config(ConfigDict({"task": "corpus.bright", "seed": 0, "scoring": scoring} | empty), workdir)
    with checkpoints(workdir) as manager:
        if manager.latest_step() is None:
            manager.save(0, args=ocp.args.StandardSave(beginning({})))
            manager.wait_until_finished()


if __name__ == "__main__":
    write_run(sys.argv[1])

"""The train step on eight simulated devices equals the step on one."""

import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = """
import jax, numpy as np, sys
sys.path[:0] = [{tests!r}, {root!r}]
import cacjax
from conftest import begin, example_of, shrink
from cacjax import train
from cacjax.task import build
from cacjax.training.streams import streams_of
from configs import {config} as module
assert len(jax.devices()) == 8
config = shrink(module.get_config(""), batch=8)
if "source" in config.stages:
    with config.unlocked():
        config.pretrain_blocks = 0
rng = np.random.default_rng(0)
draw = lambda s: rng.integers(0, 4 if s.dtype == np.uint8 else 400, s.shape).astype(s.dtype)
batches = [jax.tree.map(draw, example_of(config)) for _ in range(2)]
task = build(config)
streams = streams_of(config.streams, task)
start = jax.device_get(begin(config))
if {exact}:  # RMSprop's first step divides a gradient by its own size: float32's rounding, which differs by processor, would show
    jax.config.update("jax_enable_x64", True)
    from cacjax.tasks import uda
    uda.normalise = lambda hu, inner=uda.normalise: inner(hu).astype(np.float64)
    start = jax.tree.map(lambda a: a.astype(np.float64) if a.dtype == np.float32 else a, start)
ends = []
for mesh in (train.make_mesh(streams, 8), train.make_mesh(streams, 1)):
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shardings = train.batch_shardings(streams, mesh)
    step = jax.jit(task.train_step, in_shardings=(everywhere, shardings, everywhere), out_shardings=(everywhere, everywhere))
    state = start
    for i, batch in enumerate(batches):
        state, metrics = step(state, train.place(batch, shardings), jax.random.key(i))
    ends.append((jax.device_get(state), len(mesh.devices.ravel())))
(a, many), (b, one) = ends
assert (many, one) == (8, 1)
named = jax.tree_util.tree_leaves_with_path(a.nets)
names = [jax.tree_util.keystr(path) for path, _ in named]
# A bias before batch normalisation has a true gradient of zero; RMSprop turns its rounding noise into a step. It reaches no output.
idle = [".params" in n and "'critic'" in n and "Conv" in n and "bias" in n for n in names]
differences = [float(np.abs(x - y).max()) for (_, x), y in zip(named, jax.tree.leaves(b.nets))]
worst = max((d, n) for d, n, i in zip(differences, names, idle) if not i)
assert worst[0] < {limit}, worst
assert max([d for d, i in zip(differences, idle) if i], default=0) < 1e-3
"""


# The second stage takes the largest of four pixels: where two are almost equal, rounding decides which of them a gradient goes to. With
# statistics of each device's own samples it would differ by more than .1.
@pytest.mark.parametrize(("config", "limit"), [("lessmann", 1e-5), ("uda", 1e-5), ("second", 5e-3)])
def test_eight_devices_equal_one(config, limit):
    tests = pathlib.Path(__file__).parent
    program = PROGRAM.format(tests=str(tests), root=str(tests.parent), config=config, limit=limit, exact=config == "uda")
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]

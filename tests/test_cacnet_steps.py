"""What CAC-Net's training optimises: losses, Dice, parameters and running statistics after two steps equal PyTorch's, recorded.

The recorded values (tests/cacnet_steps.npz) come from tools/bench/record_cacnet.py, in float64; the task's own step runs in it, too.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import example_of

from cacjax.task import build
from cacjax.tasks import cacnet
from configs import cacnet as published
from tools.bench import record_cacnet as recorder

HERE = pathlib.Path(__file__).parent
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # compiling takes most of the time


def config_of(form):
    """The config at the recorded sizes."""
    config = published.get_config("test" if form == "cacnet" else f"test,{form}")
    with config.unlocked():
        config.steps = recorder.STEPS
        config.model.update(recorder.MODEL)
        config.cross_entropy.share = 0.0  # the published loss
        config.optimiser = {"rate": recorder.RATE, "weight_decay": recorder.DECAY}
        (config.streams.train.count, *_), size = (recorder.SHAPE[:1],), recorder.SHAPE[1:]
        config.streams.train.size = config.scoring.window = size
        config.scoring.overlap = (0, 0, 0)
    return config


@pytest.mark.parametrize("form", recorder.FORMS)
def test_steps_equal_torch_in_float64(monkeypatch, form):
    """Parameters to a millionth of a step."""
    monkeypatch.setattr(cacnet, "normalise", lambda hu: ((jnp.clip(hu, -1024.0, 3071.0) + 1024) / 4095)[..., None])  # not float32
    with np.load(HERE / "cacnet_steps.npz") as arrays:
        known = dict(arrays)
    config = config_of(form)
    task = build(config)
    shapes = jax.eval_shape(lambda key: task.init(key, example_of(config), {}), jax.random.key(0))
    with jax.enable_x64(True):
        state = jax.tree.map(lambda a: jnp.zeros(a.shape, float if a.dtype == jnp.float32 else a.dtype), shapes)
        net = state.nets["network"]
        stats = jax.tree_util.tree_map_with_path(lambda path, a: a + (path[-1].key == "var"), net.stats)
        net = net._replace(params=jax.tree.map(jnp.asarray, recorder.drawn(shapes.nets["network"].params)), stats=stats)
        state, step = state._replace(nets={"network": net}), jax.jit(task.train_step, compiler_options=QUICKLY)
        for k in range(recorder.STEPS):
            batch = {"hu": known["hu"][k].astype(float), "label": known["label"][k]}
            state, metrics = step(state, {"train": batch}, jax.random.key(0))
            np.testing.assert_allclose(metrics["loss"], known[f"{form}/loss"][k], rtol=1e-9)
            dice = [metrics[f"dice_{name}"] for name in ("LAD", "LCX", "RCA", "CAC")]
            np.testing.assert_allclose(dice, known[f"{form}/dice"][k], rtol=1e-8)
    net, start = jax.device_get(state.nets["network"]), f"{form}/last/"
    last = {
        "/".join(key.key for key in path): recorder.thinned(value)
        for tree in (net.params, net.stats)
        for path, value in jax.tree_util.tree_leaves_with_path(tree)
    }
    assert {start + name for name in last} == {name for name in known if name.startswith(start)}
    for name, value in last.items():
        np.testing.assert_allclose(value, known[start + name], rtol=1e-7, atol=1e-8, err_msg=name)

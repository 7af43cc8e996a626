"""What calcium CycleGAN's training optimises: every metric, parameters and running statistics after three steps equal PyTorch's, recorded.

The recorded values (tests/cyclegan_steps.npz) come from tools/bench/record_cyclegan.py, in float64; the task's own step runs in it, too.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import example_of

from cacjax.inference.removal import Seen
from cacjax.task import Net, build
from tools.bench import record_cyclegan as recorder

HERE = pathlib.Path(__file__).parent
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # compiling takes most of the time


def beginning(shapes):
    """The State that PyTorch began with, in float64."""
    state = jax.tree.map(lambda a: jnp.zeros(a.shape, float if a.dtype == jnp.float32 else a.dtype), shapes)
    nets = dict(state.nets)
    for name in recorder.NETWORKS:
        params = jax.tree.map(jnp.asarray, recorder.drawn(shapes.nets[name].params, name))
        stats = jax.tree_util.tree_map_with_path(lambda path, a: a + (path[-1].key == "var"), nets[name].stats)
        nets[name] = nets[name]._replace(params=params, stats=stats)
    return state._replace(nets=nets | {"average": Net(nets["remove"].params, nets["remove"].stats)})


def flat(name, net):
    """{"network/layer/kernel": array} of what counts of a network."""
    pairs = [("/".join(key.key for key in path), a) for tree in net[:2] for path, a in jax.tree_util.tree_leaves_with_path(tree)]
    return {f"{name}/{key}": np.asarray(value) for key, value in pairs if recorder.kept(name, key)}


@pytest.mark.parametrize("form", recorder.FORMS)
def test_steps_equal_torch_in_float64(monkeypatch, form):
    """Running statistics are those of one call of each generator, on what it works on."""
    exact = lambda seen, hu: (jnp.clip(hu.astype(float), seen.low, seen.high) - seen.low) / seen.span  # noqa: E731
    monkeypatch.setattr(Seen, "normalise", exact)  # not float32
    with np.load(HERE / "cyclegan_steps.npz") as arrays:
        known = dict(arrays)
    config = recorder.config_of(form)
    task = build(config)
    shapes = jax.eval_shape(lambda key: task.init(key, example_of(config), {}), jax.random.key(0))
    with jax.enable_x64(True):
        state = beginning(shapes)
        average = flat("remove", state.nets["average"])
        step = jax.jit(task.train_step, compiler_options=QUICKLY)
        for k in range(recorder.STEPS):
            hu, heart = (known[name][k][:, None] for name in ("hu", "heart"))
            batch = {"train": {"hu": hu.astype(float), "heart": heart, "label": np.zeros_like(heart)}}
            state, metrics = step(state, batch, jax.random.key(0))
            of_step = {name: value[k] for name, value in known.items() if name.startswith(f"{form}/metrics/")}
            assert set(of_step) == {f"{form}/metrics/{name}" for name in metrics}
            resting = k < config.discriminator.warmup
            for name, value in metrics.items():
                if resting and not name.startswith("judge"):
                    assert value == 0, name  # of generators that rest
                    continue
                np.testing.assert_allclose(value, of_step[f"{form}/metrics/{name}"], rtol=1e-9, err_msg=name)
            if not resting:
                decay, now = config.generator.average, flat("remove", state.nets["remove"])
                average = {name: decay * value + (1 - decay) * now[name] for name, value in average.items()}
    nets = jax.device_get(state.nets)
    last = {key: value for name in recorder.NETWORKS for key, value in flat(name, nets[name]).items()}
    start = f"{form}/last/"
    assert {start + name for name in last} == {name for name in known if name.startswith(start)}
    for name, value in last.items():
        np.testing.assert_allclose(recorder.thinned(value), known[start + name], rtol=1e-7, atol=1e-8, err_msg=name)
    for name, value in flat("remove", nets["average"]).items():
        np.testing.assert_allclose(value, average[name], rtol=1e-9, atol=1e-12, err_msg=name)

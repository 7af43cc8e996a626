"""Read PyTorch weights in the key layout of Zhai's published code into a run that `score` and `train` take.

    python tools/import_torch.py dilated SOURCE.pth --out runs/source [--check ARRAYS.npz]
    python tools/import_torch.py generator G_15.pth --out runs/adapted --source runs/source
    python tools/import_torch.py critic D.pth --out runs/adapted
    python tools/import_torch.py undilated SECOND.pth --out runs/second --source runs/adapted
    python tools/import_torch.py generator G_15.pth --check ARRAYS.npz

`dilated` (the whole first-stage network) makes a finished run of lessmann.py. `generator` (its three subnets), `neck` (its main head) and
`critic` change the run in --out; where there is none, they make a run of uda.py at step 0 from the source run in --source, from which
`train` adapts, with the schedule and the loss of that code (uda.py:code). `undilated` (the second stage) makes a finished run of
second.py, with the run in --source as its first stage. Widths follow from the arrays, and features of a scan are stored in float16, as
there. FILE is a state dict as torch.save wrote it (read with weights_only=True, which runs no code), or an .npz of the same keys, which
needs no torch.

--check runs the network in FILE on `x` [b, c, h, w] float32 as PyTorch takes it and compares with `y`: features of the generator; logits
of dilated and probabilities of neck, at the centre or as a map, whichever shape y has; values of the critic; probabilities [b, 2] of
undilated for patches as its code cuts them (see cacjax.inference.patches.look). It prints the largest differences and fails above 1e-4,
and then nothing is written. It needs no --out. A run is written whole or not at all.
"""

import argparse
import os
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from cacjax.models.critic import Critic
from cacjax.models.dilated import PUBLISHED_DILATIONS, Dilated, centre
from cacjax.models.undilated import EPS, SIZES, Undilated
from cacjax.score import load_detector
from cacjax.task import Net, build
from cacjax.training.streams import example_batch, streams_of
from cacjax.training.workdir import checkpoints, keep_config, load
from configs import lessmann
from configs import second as rejection
from configs import uda as adaptation

TOLERANCE = 1e-4
STORED = "float16"  # kind of a scan's features, as in the published code
NECK = {"conv1": "Conv_0", "conv2": "Conv_1"}
CONV, NORM, LINEAR = {"weight": "kernel", "bias": "bias"}, {"weight": "scale", "bias": "bias"}, {"weight": "kernel", "bias": "bias"}
LASAGNE = {"beta": "bias", "gamma": "scale", "mu": "mean", "denom": "var"}  # denom is the inverse standard deviation
STATISTICS = ("mean", "var")
IGNORED = ("running_mean", "running_var", "num_batches_tracked")  # the critic normalises with the batch in hand


def read(path) -> dict:
    """A state dict as numpy arrays by key."""
    path = pathlib.Path(path)
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return dict(arrays)
    try:
        import torch
    except ImportError:
        how = "pip install torch --index-url https://download.pytorch.org/whl/cpu"
        raise SystemExit(f"error: reading {path} needs PyTorch: {how} (or give an .npz of the same keys)") from None
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"{path} holds {type(state).__name__}, expected a state dict: tensors by key")
    return {key: value.numpy() for key, value in state.items()}


def places(kind: str, layers: int = 7) -> dict:
    """{key in the state dict: path in our parameters}; `layers`: convolutions of a critic."""
    modules = {}
    if kind in ("generator", "dilated"):
        for plane in range(3):
            for layer in range(len(PUBLISHED_DILATIONS) + 1):
                modules[f"subnets.{plane}.{2 * layer}"] = (f"subnets_{plane}", f"Conv_{layer}"), CONV
    if kind == "dilated":
        modules |= {f"auxClassifier{plane}.1": ((f"auxiliary_{plane}", "Conv_0"), CONV) for plane in range(3)}
    if kind in ("dilated", "neck"):
        modules |= {name: (("classifier", ours), CONV) for name, ours in NECK.items()}
    if kind == "critic":
        for layer in range(layers):
            modules[f"module_seq.{3 * layer}"] = (f"Conv_{layer}",), CONV
            modules[f"module_seq.{3 * layer + 1}"] = (f"BatchNorm_{layer}",), NORM
        modules[f"module_seq.{3 * layers + 1}"] = ("Dense_0",), LINEAR
    if kind == "undilated":
        kernel = {"weight": "kernel"}
        for plane in range(3):
            for layer in range(len(SIZES)):
                modules[f"subnets.{plane}.{4 * layer}"] = (f"conv_{plane}_{layer}",), kernel
                modules[f"subnets.{plane}.{4 * layer + 2}"] = (f"norm_{plane}_{layer}",), LASAGNE
        modules |= {"classifier.1": (("Dense_0",), kernel), "classifier.3": (("norm",), LASAGNE), "classifier.4": (("Dense_1",), LINEAR)}
    return {f"{key}.{part}": (*path, ours) for key, (path, parts) in modules.items() for part, ours in parts.items()}


def convert(kind: str, state: dict) -> dict:
    """Parameters for `network(kind, ...)`; raises ValueError that names every key that is missing, unknown or of another shape."""
    state = {key: np.asarray(value) for key, value in state.items() if not key.endswith(IGNORED)}
    where = places(kind, sum(value.ndim == 4 for value in state.values()))
    wrong = [f"{key}: missing" for key in where if key not in state]
    wrong += [f"{key}: found {state[key].shape}, expected no such key" for key in state if key not in where]
    if wrong:
        raise ValueError(f"not the state dict of a {kind}:\n  " + "\n  ".join(wrong))
    params = unflatten_dict({path: _ours(path, state[key]) for key, path in where.items()})
    _check_shapes(kind, params, state, where)
    if kind == "undilated":
        params["Dense_0"]["kernel"] = _channels_last(params["Dense_0"]["kernel"], params["conv_0_3"]["kernel"].shape[-1])
    return params


def _ours(path, value):
    """An array as we keep it: axes in our order, variances for inverse standard deviations."""
    if path[-1] == "var":
        return (value.astype(np.float64) ** -2 - EPS).astype(np.float32)
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _channels_last(kernel, channels):
    """The weights [3 * channels * h * w, hidden] of flattened maps in the order of [3, h, w, channels]."""
    side = round((len(kernel) / 3 / channels) ** 0.5)
    return kernel.reshape(3, channels, side, side, -1).transpose(0, 2, 3, 1, 4).reshape(kernel.shape)


def variables(params) -> dict:
    """What flax takes: parameters, and apart from them the statistics of layers, if there are any."""
    parts = {"params": {}, "batch_stats": {}}
    for path, value in flatten_dict(params).items():
        parts["batch_stats" if path[-1] in STATISTICS else "params"][path] = value
    return {name: unflatten_dict(part) for name, part in parts.items() if part}


def _check_shapes(kind, params, state, where):
    model, sample = network(kind, params)
    collections = jax.eval_shape(model.init, jax.random.key(0), sample).values()
    expected = {path: leaf for tree in collections for path, leaf in flatten_dict(tree).items()}
    wrong = []
    for key, path in where.items():
        ours = expected[path]
        shape = (ours.shape[3], ours.shape[2], *ours.shape[:2]) if len(ours.shape) == 4 else ours.shape[::-1]
        if state[key].shape != shape:
            wrong.append(f"{key}: found {state[key].shape}, expected {shape}")
    if wrong:
        raise ValueError(f"not the state dict of a {kind}:\n  " + "\n  ".join(wrong))


def network(kind: str, params):
    """The network that parameters belong to, by their widths, and the shape of an input."""
    if kind == "critic":
        names = [f"Conv_{layer}" for layer in range(sum(name.startswith("Conv") for name in params))]
        side = 2 * len(names) + round(params["Dense_0"]["kernel"].shape[0] ** 0.5)
        channels = tuple(params[name]["kernel"].shape[-1] for name in names)
        return Critic(channels), jax.ShapeDtypeStruct((2, side, side, params["Conv_0"]["kernel"].shape[2]), jnp.float32)
    if kind == "undilated":
        widths = tuple(params[f"conv_0_{layer}"]["kernel"].shape[-1] for layer in range(len(SIZES)))
        return Undilated(widths, params["Dense_0"]["kernel"].shape[-1]), jax.ShapeDtypeStruct((1, 3, 65, 65, 1), jnp.float32)
    options = {}
    if "classifier" in params:
        first, second = (params["classifier"][name]["kernel"].shape for name in NECK.values())
        options = {"width": first[2] // 3, "hidden": first[3], "classes": second[3]}
    if "subnets_0" in params:
        options["width"] = params["subnets_0"]["Conv_0"]["kernel"].shape[3]
    return Dilated(**options), jax.ShapeDtypeStruct((1, 3, 155, 155, 1), jnp.float32)


def compute(kind: str, params, x, shape):
    """What PyTorch's network of that kind gives for x [b, c, h, w], as an array of `shape`."""
    model, _ = network(kind, params)
    run = jax.jit(lambda x, **options: model.apply(variables(params), x, **options), static_argnames="method")
    if kind == "critic":
        return np.asarray(run(x.transpose(0, 2, 3, 1))).reshape(shape)
    if kind == "undilated":
        return np.asarray(jax.nn.softmax(run(x[..., None]))).reshape(shape)
    maps = x.transpose(0, 2, 3, 1) if kind == "neck" else run(x[..., None], method="features")
    if kind != "generator":
        maps = run(maps if len(shape) == 4 and shape[-1] > 1 else centre(maps), method="classify")
    if kind == "neck":
        maps = jax.nn.softmax(maps)
    return np.asarray(maps).transpose(0, 3, 1, 2).reshape(shape)


def check(kind: str, params, path) -> None:
    """Compare with recorded values; raises ValueError where they differ by more than 1e-4."""
    with np.load(path) as arrays:
        if not {"x", "y"} <= set(arrays):
            raise ValueError(f"{path} holds {sorted(arrays)}, expected x and y")
        x, y = arrays["x"].astype(np.float32), arrays["y"]
    difference = np.abs(compute(kind, params, x, y.shape) - y).max()
    relative = difference / max(np.abs(y).max(), np.finfo(np.float32).tiny)
    print(f"largest difference {difference:.2e} absolute, {relative:.2e} of the largest value")
    if not difference <= TOLERANCE:
        raise ValueError(f"{path}: differs by {difference:.2e}, expected at most {TOLERANCE:g}")


def make_run(kind: str, params, out, source):
    """(config, State) of the run that the parameters go into."""
    if kind == "dilated":
        config, (model, _) = lessmann.get_config(), network("dilated", params)
        config.model.update({"width": model.width, "hidden": model.hidden, "classes": model.classes, "stored": STORED})
        return config, _finished(config, begun(config), "detector", params={"params": params})
    if kind == "undilated":
        return _second_stage(params, source)
    if (pathlib.Path(out) / "config.json").exists():
        config, _, state, *_ = load(out)
    elif source:
        config, state = _adaptation(source, params if kind == "critic" else None)
    else:
        raise ValueError(f"{kind} is part of a system: give --source, a run of lessmann.py, or an --out that holds a run")
    return config, state._replace(nets=state.nets | _replaced(kind, params, state.nets))


def begun(config, stages=None):
    """The State of a run before its first step; stages: {name: State} of earlier ones."""
    task = build(config)
    return task.init(jax.random.key(0), example_batch(streams_of(config.streams, task)), stages or {})


def _finished(config, state, name, **arrays):
    """A State at the last step, with these arrays in one of its networks."""
    return state._replace(step=jnp.asarray(config.steps, jnp.int32), nets=state.nets | {name: state.nets[name]._replace(**arrays)})


def _stage(source):
    """(config with its workdir, State) of the run of an earlier stage."""
    config, _, state, *_ = load_detector(source)
    return ConfigDict(config.to_dict() | {"workdir": str(pathlib.Path(source).absolute())}), state


def _second_stage(params, source):
    if not source:
        raise ValueError("undilated is a second stage: give --source, the run of the first")
    config, (model, _), whole = rejection.get_config(), network("undilated", params), variables(params)
    first, state = _stage(source)
    with config.unlocked():
        config.stages.first = first
        config.data.grid = first.data.grid.copy_and_resolve_references()
        config.scoring.view = config.streams.train.view = first.scoring.view
        config.model.update({"widths": model.widths, "hidden": model.hidden})
    return config, _finished(config, begun(config, {"first": state}), "second", params=whole["params"], stats=whole["batch_stats"])


def _adaptation(source, critic):
    config, (before, state) = adaptation.get_config("code"), _stage(source)
    with config.unlocked():
        config.stages.source, config.model = before, before.model.copy_and_resolve_references()
        config.model.stored = STORED
        if critic:
            config.critic.channels = network("critic", critic)[0].channels
    return config, begun(config, {"source": state})


def _replaced(kind, params, nets) -> dict:
    """The network of a run that holds these parameters, with them; its optimiser starts afresh."""
    name = "critic" if kind == "critic" else "detector" if "detector" in nets else {"generator": "generator", "neck": "heads"}[kind]
    if name not in nets:
        raise ValueError(f"the run in --out holds {', '.join(nets)}, expected one that holds a {name}")
    net = nets[name]
    whole = name in ("critic", "detector")
    new = {"params": net.params["params"] | params} if whole else net.params | params
    shapes = [jax.tree.map(lambda a: tuple(a.shape), tree) for tree in (net.params, new)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the run in --out has another {kind}: found {shapes[1]}, expected {shapes[0]}")
    return {name: Net(new, net.stats, jax.tree.map(jnp.zeros_like, net.opt))}


def save(out, config, state) -> None:
    """Write a run beside `out`, then put it in its place."""
    out = pathlib.Path(out).absolute()
    made, old = out.with_name(f"{out.name}.importing"), out.with_name(f"{out.name}.replaced")
    shutil.rmtree(made, ignore_errors=True)
    keep_config(config, made)
    with checkpoints(made) as manager:
        manager.save(int(state.step), args=ocp.args.StandardSave(state))
    if out.exists():
        os.rename(out, old)
    os.rename(made, out)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    """Import what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("generator", "dilated", "neck", "critic", "undilated"), help="which network FILE holds")
    parser.add_argument("file", metavar="FILE", help="state dict (.pth), or the same as .npz")
    parser.add_argument("--out", help="folder of the run; without one nothing is written, only checked")
    parser.add_argument("--source", help="run of the source network, for a new run of uda.py, or of the first stage, for one of second.py")
    parser.add_argument("--check", metavar="ARRAYS.npz", help="compare with the y that PyTorch gave for x")
    options = parser.parse_args()
    if not (options.out or options.check):
        parser.error("nothing to do: give --out DIR, --check ARRAYS.npz or both")
    try:
        params = convert(options.kind, read(options.file))
        if options.check:
            check(options.kind, params, options.check)
        if not options.out:
            return
        config, state = make_run(options.kind, params, options.out, options.source)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    save(options.out, config, state)
    print(f"wrote {options.out}: a run of {config.task}.py at step {int(state.step)}")


if __name__ == "__main__":
    main()

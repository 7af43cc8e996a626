"""Train a system: `python -m cacjax.train --config uda.py --workdir runs/uda`.

--config names a file in configs/ (or a path), with a variant after a colon: uda.py:tiny. Any key of it can be overridden:
--config.seed=1 --config.critic.clip=0.05. The same command continues an interrupted run from its last checkpoint (also after
Ctrl-C). WORKDIR gets config.json, metrics.jsonl, TensorBoard events, learning curves (curves.png) and checkpoints/.
"""

import functools
import importlib
import json
import math
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import app, flags, logging
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import ConfigDict, config_flags

from cacjax.data import cohorts, detected, loader, sampling
from cacjax.task import State, Task
from cacjax.training.progress import Interrupt, Progress

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESUMABLE_CHANGES = ("steps", "log_every", "checkpoint_every", "data", "source_workdir", "source")


def train(config: ConfigDict, workdir) -> State:
    """Train `config.task` to `config.steps`, continuing from the newest checkpoint in `workdir`; return the last state.

    Raises FloatingPointError when a metric is no longer finite, naming the step; the last good checkpoint stays. Ctrl-C or SIGTERM
    saves a checkpoint and raises KeyboardInterrupt.
    """
    workdir = pathlib.Path(workdir).absolute()
    if config.get("source_workdir"):
        with config.unlocked():
            config.source = read_config(config.source_workdir)
    task = build(config)  # a wrong setting is told before anything is written or trained
    keep_config(config, workdir)
    source = source_state(config, workdir)
    mesh = make_mesh(config)
    everywhere = NamedSharding(mesh, PartitionSpec())
    shardings = batch_shardings(config, mesh)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    abstract = abstract_state(config, everywhere)
    step_fn = jax.jit(
        lambda state, batch: task.train_step(state, batch, jax.random.fold_in(step_key, state.step)),
        in_shardings=(everywhere, shardings),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )
    with checkpoints(workdir) as manager:
        if (last := manager.latest_step()) is None:
            last = 0
            init = functools.partial(task.init, batch=example_batch(config))
            state = jax.jit(lambda key, source: init(key, source=source), out_shardings=everywhere)(init_key, source)
        else:
            state = manager.restore(last, args=ocp.args.StandardRestore(abstract))
        if last >= config.steps:
            return state
        batches = make_batches(config, last, records_of(config, source, workdir))
        shown = Progress(workdir, name=config.task, start=last, stop=config.steps, every=config.log_every)
        with Interrupt() as interrupt, shown as progress:
            for step in range(last + 1, config.steps + 1):
                batch = place(progress.waiting(batches), shardings)
                state, metrics = step_fn(state, batch)
                progress.step(step, metrics)
                if step % config.checkpoint_every == 0 or step == config.steps or interrupt.asked:
                    progress.flush()  # raises when a metric is not finite, before anything is saved
                    manager.save(step, args=ocp.args.StandardSave(state))
                if interrupt.asked:
                    break
            manager.wait_until_finished()
        if interrupt.asked:
            raise KeyboardInterrupt(f"stopped after step {step}; the same command continues from there")
    return state


def source_state(config, workdir) -> State | None:
    """The source network's state that an adaptation starts from: restored, or trained first in WORKDIR/source."""
    if "source" not in config:
        return None
    if config.source_workdir:
        return restore(config.source_workdir)[1]
    with config.source.unlocked():
        config.source.seed = config.seed
    return jax.device_get(train(config.source, workdir / "source"))


def restore(workdir) -> tuple[ConfigDict, State]:
    """Read the config and the newest checkpoint of a run.

    Raises FileNotFoundError naming what is missing, ValueError where the config lacks a setting that this version reads.
    """
    workdir = pathlib.Path(workdir).absolute()
    config = read_config(workdir)
    with checkpoints(workdir) as manager:
        step = manager.latest_step()
        if step is None:
            raise FileNotFoundError(f"{workdir} holds no finished checkpoint: run the training command again to continue it")
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        try:
            abstract = abstract_state(config, device)
        except AttributeError as error:
            text = f"lacks the setting {error}: it is of another version of cacjax; train the run anew, or use that version"
            raise ValueError(f"{workdir / 'config.json'} {text}") from None
        return config, manager.restore(step, args=ocp.args.StandardRestore(abstract))


def read_config(workdir) -> ConfigDict:
    """The config of a run; FileNotFoundError where there is none."""
    path = pathlib.Path(workdir).absolute() / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path.parent} holds no run: expected {path}; train one with python -m cacjax.train")
    return ConfigDict(json.loads(path.read_text(), object_hook=_tuples))


def load(workdir):
    """Return (config, predict) of a trained run; predict(hu [z, y, x], box=None) -> Prediction."""
    config, state = restore(workdir)
    return config, functools.partial(build(config).predict, state)


def build(config) -> Task:
    """The task that a config names."""
    return importlib.import_module(f"cacjax.tasks.{config.task}").make(config)


def streams_of(config) -> dict:
    """{name: (sampling.StreamSpec, count)} of a config's streams, cut as its task wants them."""
    cut = build(config).cut(config)

    def spec(stream):
        own = {k: v for k, v in stream.items() if k not in ("count", "split")}
        return sampling.StreamSpec(splits=(stream.split,), **own, **cut), tuple(stream.count)

    return {name: spec(stream) for name, stream in config.streams.items()}


def example_batch(config) -> dict:
    """Shapes of one batch: per stream "hu", and "label" if it is labelled, [*count, ...] as `sampling.sample_shapes` says."""
    dtypes = {"hu": jnp.float32, "label": jnp.uint8}

    def shapes(spec, count):
        return {part: jax.ShapeDtypeStruct((*count, *shape), dtypes[part]) for part, shape in sampling.sample_shapes(spec).items()}

    return {name: shapes(*stream) for name, stream in streams_of(config).items()}


def abstract_state(config, sharding):
    """Shapes of the State that `config` trains, placed by `sharding`: what a restore needs."""
    key = jax.random.key(0)
    source = abstract_state(config.source, sharding) if "source" in config else None
    shapes = jax.eval_shape(lambda s: build(config).init(key, example_batch(config), s), source)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def make_mesh(config):
    """A mesh over all devices, or over as many as divide every batch; the step is one program over it."""
    devices = jax.devices()
    count = math.gcd(len(devices), *(stream.count[-1] for stream in config.streams.values()))
    if count < len(devices):
        print(f"using {count} of {len(devices)} devices: the batch sizes have no larger common divisor", file=sys.stderr)
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count])


def batch_shardings(config, mesh) -> dict:
    """Each stream's samples are split over the mesh along the last axis of its count."""

    def of(stream):
        return NamedSharding(mesh, PartitionSpec(*[None] * (len(stream.count) - 1), "data"))

    return {name: {part: of(config.streams[name]) for part in arrays} for name, arrays in example_batch(config).items()}


def records_of(config, source, workdir) -> dict:
    """{split: records}; where a stream asks for it, with what the source network detects, which is kept in WORKDIR/detected."""
    records = cohorts.open(config)
    asking = {stream.split: stream.view for stream in config.streams.values() if sampling.DETECTED in dict(stream.strata)}
    for split, seen in asking.items():
        predict = functools.partial(build(config.source).predict, source)
        records = records | {split: detected.detect(records[split], predict, workdir / "detected", seen=seen)}
    return records


def make_batches(config, step: int, records):
    """The loader of a config's streams from {split: records}, at the position that follows from `step`."""
    return loader.make_loader(
        records,
        streams_of(config),
        seed=config.seed,
        step=step,
        num_threads=config.data.loader.threads,
        num_workers=config.data.loader.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def place(batch, shardings):
    """Put this process's share of a batch onto the mesh."""
    return jax.tree.map(lambda x, s: jax.make_array_from_process_local_data(s, x), batch, shardings)


def checkpoints(workdir) -> ocp.CheckpointManager:
    """The run's checkpoints: the newest three, written in the background, complete or not at all."""
    options = ocp.CheckpointManagerOptions(max_to_keep=3, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(workdir / "checkpoints", options=options)


def keep_config(config, workdir) -> None:
    """Write config.json; raise ValueError when the run in `workdir` was started with other settings."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.json"
    text = json.dumps(config.to_dict(), indent=2)
    if path.exists():
        old, new = json.loads(path.read_text()), json.loads(text)
        changed = [k for k in old.keys() | new.keys() if old.get(k) != new.get(k) and k not in RESUMABLE_CHANGES]
        if changed:
            pairs = ", ".join(f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(changed))
            raise ValueError(f"{workdir} holds a run with other settings ({pairs}); choose another --workdir or delete it")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _tuples(record: dict) -> dict:
    """JSON turns tuples into lists; a config holds tuples."""
    freeze = lambda v: tuple(map(freeze, v)) if isinstance(v, list) else v  # noqa: E731
    return {key: freeze(value) for key, value in record.items()}


def resolve(arguments: list[str]) -> list[str]:
    """Let `--config uda.py:tiny` name a file in configs/ from any directory; both `--config X` and `--config=X`."""
    out = []
    for word in arguments:
        if out and out[-1] == "--config":
            out[-1] = f"--config={_config_path(word)}"
        elif word.startswith("--config="):
            out.append(f"--config={_config_path(word.removeprefix('--config='))}")
        else:
            out.append(word)
    return out


def _config_path(word: str) -> str:
    name, colon, variant = word.partition(":")
    here, shipped = pathlib.Path(name), ROOT / "configs" / name
    if not here.exists() and not shipped.exists():
        known = ", ".join(sorted(p.name for p in (ROOT / "configs").glob("*.py") if "task" in p.read_text()))
        sys.exit(f"no config {name!r} here or in {ROOT / 'configs'}; there are: {known}")
    return f"{here if here.exists() else shipped}{colon}{variant}"


def main(_) -> None:
    """Train what the command line asks for."""
    logging.set_verbosity(logging.WARNING)  # Orbax and Grain speak of every checkpoint and worker
    if flags.FLAGS.distributed:
        jax.distributed.initialize()
    devices = jax.devices()
    print(f"training on {len(devices)} x {devices[0].device_kind}", flush=True)
    try:
        train(flags.FLAGS.config, flags.FLAGS.workdir)
    except KeyboardInterrupt as stop:
        sys.exit(f"{stop}" or "interrupted")
    except (FloatingPointError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


def cli() -> None:
    """Entry point of the command line."""
    sys.path.insert(0, str(ROOT))
    config_flags.DEFINE_config_file("config", None, "Config file and variant, such as uda.py:tiny.")
    flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, config.")
    flags.DEFINE_bool("distributed", False, "Join a run of several processes (jax.distributed.initialize).")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, argv=resolve(sys.argv), flags_parser=_parse)


def _parse(arguments):
    """Parse flags; a key that the config does not have ends the program with the name that was probably meant."""
    try:
        return app.parse_flags_with_usage(arguments)
    except AttributeError as error:
        given = [word for word in arguments if word.startswith("--config.")]
        meant = str(error).strip("'\"").split("\\n")[-1].split("\n")[-1]
        sys.exit(f"error: no such key in the config, in {' '.join(given)}: {meant}")


if __name__ == "__main__":
    cli()

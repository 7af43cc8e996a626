"""Train a system: `python -m cacjax.train --config uda.py --workdir runs/uda`.

--config names a file in configs/ (or a path), with a variant after a colon: uda.py:tiny. Any key of it can be overridden:
--config.seed=1 --config.critic.clip=0.05. Earlier stages that the config names are trained first, in WORKDIR/<stage>, unless
--config.stages.<stage>.workdir names a run of them. The same command continues an interrupted run from its last checkpoint (also after
Ctrl-C). WORKDIR gets config.json, metrics.jsonl, TensorBoard events, learning curves (curves.png) and checkpoints/.
"""

import difflib
import itertools
import math
import pathlib
import runpy
import sys

import jax
import orbax.checkpoint as ocp
from absl import app, flags, logging
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import ConfigDict, config_flags

from cacjax import backend
from cacjax.data import cohorts
from cacjax.data.sampling import mesh_axes
from cacjax.task import State, Task, build
from cacjax.training.progress import Interrupt, Progress
from cacjax.training.streams import batches_of, example_batch, streams_of
from cacjax.training.workdir import abstract_state, checkpoints, keep_config, load, of_this_version, read_config

ROOT = pathlib.Path(__file__).resolve().parent.parent


def train(config: ConfigDict, workdir) -> State:
    """Train `config.task` to `config.steps`, continuing from the newest checkpoint in `workdir`; return the last state.

    Raises FloatingPointError when a metric is no longer finite or the task's check finds fault with a step, naming the step; the last good
    checkpoint stays. Ctrl-C or SIGTERM saves a checkpoint and raises KeyboardInterrupt.
    """
    workdir = pathlib.Path(workdir).absolute()
    adopt_stages(config)
    task = build(config)  # a wrong setting is told before anything is written or trained
    keep_config(config, workdir)
    stages = {name: stage_state(stage, config.seed, workdir / name) for name, stage in config.stages.items()}
    streams = streams_of(config.streams, task)
    mesh = make_mesh(streams, len(jax.devices()))
    shapes = abstract_state(config, task, stages)
    placed, batch_placed = state_shardings(shapes, task, mesh), batch_shardings(streams, mesh)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    step_fn = jax.jit(
        lambda state, batch: task.train_step(state, batch, jax.random.fold_in(step_key, state.step)),
        in_shardings=(placed, batch_placed),
        out_shardings=(placed, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
        compiler_options=backend.TRAINING.get(jax.default_backend()),
    )
    with checkpoints(workdir) as manager:
        if (last := manager.latest_step()) is None:
            last, example = 0, example_batch(streams)
            state = jax.jit(lambda key, stages: task.init(key, example, stages), out_shardings=placed)(init_key, stages)
        else:
            wanted = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed)
            state = manager.restore(last, args=ocp.args.StandardRestore(wanted))
        if last >= config.steps:
            return state
        records = cohorts.open(config)
        if task.prepare:
            records = task.prepare(records, stages, workdir)
        batches = batches_of(streams, records, config, last)
        validate = validation(config, task, records, mesh, placed, last) if task.validate else None
        shown = Progress(workdir, name=config.task, start=last, stop=config.steps, every=config.log_every, check=task.check)
        with Interrupt() as interrupt, shown as progress, jax.set_mesh(mesh):
            for step in range(last + 1, config.steps + 1):
                batch = place(progress.waiting(batches), batch_placed)
                state, metrics = step_fn(state, batch)
                if validate and step % config.validate_every == 0:
                    state, more = validate(state)
                    metrics = metrics | more
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


def adopt_stages(config) -> None:
    """Put the own config of each earlier stage that is a run already in the place of the one that it would be trained with."""
    for name, stage in config.stages.items():
        if stage.workdir:
            own = ConfigDict(read_config(stage.workdir).to_dict() | {"workdir": stage.workdir})
            with of_this_version(stage.workdir), config.unlocked():
                build(own)
                config.stages[name] = own
        else:
            adopt_stages(stage)


def stage_state(stage, seed, workdir) -> State:
    """The state of an earlier stage: restored from its run, or trained first."""
    if stage.workdir:
        return jax.device_get(load(stage.workdir).state)
    with stage.unlocked():
        stage.seed = seed
    return jax.device_get(train(stage, workdir))


def validation(config, task, records, mesh, placed, last):
    """validate(state) -> (state, metrics) on the next batch of `config.validation`; the n-th validation of a run sees the n-th batch."""
    streams = streams_of(config.validation, task)
    batch_placed = batch_shardings(streams, mesh)
    batches = batches_of(streams, records, config, last // config.validate_every)
    everywhere = NamedSharding(mesh, PartitionSpec())
    sharded = {"in_shardings": (placed, batch_placed), "out_shardings": (placed, everywhere), "donate_argnums": 0}
    compiled = jax.jit(task.validate, **sharded)
    return lambda state: compiled(state, place(next(batches), batch_placed))


def make_mesh(streams, devices: int):
    """A mesh over all devices, or over as many as divide every batch; the step is one program over it.

    Its axes are "data", and before it each further one that a stream's `axes` name, each as long as divides what lies along it: of all
    such shapes the one that uses most devices, and of these the one with fewest along "data".
    """
    along = {}
    for spec, count in streams.values():
        for name, number in zip(mesh_axes(spec, count), count):
            if name:
                along[name] = math.gcd(along.get(name, 0), number)
    names = sorted(along, key=lambda name: name == "data")
    divisors = ([n for n in range(1, along[name] + 1) if along[name] % n == 0] for name in names)
    sides = max((s for s in itertools.product(*divisors) if math.prod(s) <= devices), key=lambda s: (math.prod(s), s))
    shape, count = dict(zip(names, sides)), math.prod(sides)
    if count < devices:
        print(f"using {count} of {devices} devices: the batch sizes have no larger common divisor", file=sys.stderr)
    axis_types = (AxisType.Auto,) * len(shape)
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=axis_types, devices=jax.devices()[:count])


def batch_shardings(streams, mesh) -> dict:
    """How each stream's samples are split over the mesh."""

    def of(spec, count):
        return NamedSharding(mesh, PartitionSpec(*(name if name in mesh.axis_names else None for name in mesh_axes(spec, count))))

    return {name: dict.fromkeys(arrays, of(*streams[name])) for name, arrays in example_batch(streams).items()}


def state_shardings(shapes: State, task: Task, mesh):
    """Where each array of a State lies: everywhere, or, of the networks in `Task.spread`, a member or some on each part of the mesh."""

    def of(name):
        axis = task.spread.get(name)
        return NamedSharding(mesh, PartitionSpec(axis) if axis in mesh.axis_names else PartitionSpec())

    everywhere = jax.tree.map(lambda _: of(None), shapes)
    return everywhere._replace(nets={name: jax.tree.map(lambda _, n=name: of(n), net) for name, net in shapes.nets.items()})


def place(batch, shardings):
    """Put this process's share of a batch onto the mesh."""
    return jax.tree.map(lambda x, s: jax.make_array_from_process_local_data(s, x), batch, shardings)


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
    """Parse flags; a mistake ends the program with one line that names what there is instead."""
    try:
        return flags.FLAGS(arguments)
    except (AttributeError, KeyError) as error:
        sys.exit(f"error: {_no_such_key(arguments) or error}")
    except flags.Error as error:  # of a config that raises, such as for an unknown variant, its traceback
        last = str(error).strip().splitlines()[-1].strip()
        sys.exit(f"error: {last.removeprefix('ValueError: ')}")


def _no_such_key(arguments):
    """What to say of the first --config.KEY=VALUE whose KEY the config does not have."""
    path, *variant = next(word for word in arguments if word.startswith("--config=")).removeprefix("--config=").split(":")
    config = runpy.run_path(path)["get_config"](*variant)
    for word in arguments:
        keys = word.removeprefix("--config.").partition("=")[0].split(".") if word.startswith("--config.") else ()
        node = config
        for key in keys:
            if not isinstance(node, ConfigDict) or key not in node:
                there = [str(name) for name in node] if isinstance(node, ConfigDict) else []
                near = "".join(f'did you mean "{name}"? ' for name in difflib.get_close_matches(key, there, 1, 0.75))
                return f"no such key in the config, {key!r} of {word}: {near}there are {', '.join(sorted(there)) or 'none below it'}"
            node = node[key]
    return None


if __name__ == "__main__":
    cli()

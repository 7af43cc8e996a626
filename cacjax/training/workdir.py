"""The folder of a run: config.json, checkpoints, and the run read back: its config, its task, its state.

In place of checkpoints a folder may hold what answering needs alone, as one file: the networks that ship with the package.
"""

import ast
import contextlib
import json
import pathlib
import re
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from cacjax.files.atomic import replace
from cacjax.task import State, Task, answering, build
from cacjax.training.streams import example_batch, streams_of

RESUMABLE_CHANGES = ("steps", "log_every", "checkpoint_every", "data", "scoring", "stages")
DECISIVE_DATA = ("folds", "fold")  # what of "data" is no resumable change
CONFIG, WEIGHTS = "config.json", "weights.npz"
SHIPPED = {"research_only": "found by the networks that ship with cacjax, trained on digital phantoms; research only"}


class Run(NamedTuple):
    """A trained run. decided_by: text of all settings that decide what its programs are, None where there may be others. flags: {code:
    note} of every score that it gives."""

    config: ConfigDict
    task: Task
    state: State
    decided_by: str | None = None
    flags: dict = {}  # noqa: RUF012


def load(workdir, scoring=None) -> Run:
    """The newest checkpoint of a run, or its WEIGHTS, ready to answer. scoring: {key: value or text} in place of those of
    `config.scoring`.

    Raises FileNotFoundError naming what is missing, ValueError where the config lacks a setting that this version reads, or
    config.scoring a key of `scoring`.
    """
    workdir = pathlib.Path(workdir).absolute()
    config = read_config(workdir)
    if (workdir / WEIGHTS).exists():
        with of_this_version(workdir):
            override(config, scoring or {}, workdir)
            task = build(config)
        return Run(config, task, _read_weights(workdir, config, task), _decided_by(config), SHIPPED)
    with checkpoints(workdir) as manager:
        step = manager.latest_step()
        if step is None:
            raise FileNotFoundError(f"{workdir} holds no finished checkpoint: run the training command again to continue it")
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        with of_this_version(workdir):
            override(config, scoring or {}, workdir)
            task = build(config)
            abstract = abstract_state(config, task)
        placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract)
        return Run(config, task, manager.restore(step, args=ocp.args.StandardRestore(placed)), _decided_by(config))


def write_weights(run, folder) -> None:
    """Write what of a run is needed to answer to a folder, which `load` takes: config.json, and WEIGHTS, equal ones for equal weights."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(answering(run.state))}

    def write(aside):
        with aside.open("wb") as file:
            np.savez_compressed(file, **named)

    replace(folder / WEIGHTS, write)
    replace(folder / CONFIG, lambda aside: aside.write_text(json.dumps(run.config.to_dict(), indent=2) + "\n"))


def _read_weights(folder, config, task):
    """The State in WEIGHTS. Raises ValueError where it is of other networks than the config's."""
    wanted = answering(abstract_state(config, task))
    with np.load(folder / WEIGHTS) as file:
        given = {name: file[name] for name in file.files}
    shapes = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(wanted)}
    if shapes != {name: array.shape for name, array in given.items()}:
        raise ValueError(f"{folder / WEIGHTS} holds other arrays than the networks of config.json have: it is of another version of cacjax")
    return jax.tree_util.tree_map_with_path(lambda path, _: jax.numpy.asarray(given[jax.tree_util.keystr(path)]), wanted)


def _decided_by(config):
    """Of tasks by their dotted path, None: they are no modules of cacjax, whose version says what they do."""
    text = json.dumps(config.to_dict(), sort_keys=True, default=repr)
    return None if re.search(r'"task": "[^"]*\.', text) else text


@contextlib.contextmanager
def of_this_version(workdir):
    """Raise ValueError where what is done with a run's config finds that it lacks a setting."""
    try:
        yield
    except (AttributeError, KeyError) as error:
        text = f"lacks the setting {error}: it is of another version of cacjax; train the run anew, or use that version"
        raise ValueError(f"{pathlib.Path(workdir) / CONFIG} {text}") from None


def override(config, scoring, workdir) -> None:
    """Set keys of `config.scoring`. Raises ValueError for a key that the system lacks, or a value of another kind."""
    for key, value in scoring.items():
        if key not in config.scoring:
            raise ValueError(f"{workdir} holds a run of {config.task}, whose scoring has {', '.join(config.scoring)}, and no {key}")
        with config.unlocked(), config.ignore_type():
            config.scoring[key] = parsed(config.scoring[key], value, f"scoring.{key}")


def parsed(old, value, name):
    """A value given as text, of the kind of the setting that it replaces."""
    if not isinstance(value, str):
        return value
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        found = value
    if isinstance(old, float | str) and isinstance(found, int | float):  # a word may give way to a number, as of a threshold
        return float(found)
    if isinstance(old, str):
        return value
    if type(found) is not type(old):
        raise ValueError(f"{name} must be a {type(old).__name__} like {old!r}, got {value!r}")
    return found


def read_config(workdir) -> ConfigDict:
    """The config of a run; FileNotFoundError where there is none."""
    path = pathlib.Path(workdir).absolute() / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"{path.parent} holds no run: expected {path}; train one with python -m cacjax.train")
    return ConfigDict(json.loads(path.read_text(), object_hook=_tuples)).lock()


def _tuples(mapping):
    """JSON has lists only; settings are tuples."""

    def frozen(value):
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    return {key: frozen(value) for key, value in mapping.items()}


def keep_config(config, workdir) -> None:
    """Write config.json; raise ValueError when the run in `workdir` was started with other settings."""
    path, text = workdir / CONFIG, json.dumps(config.to_dict(), indent=2)
    if path.exists():
        old, new = _decisive(json.loads(path.read_text())), _decisive(json.loads(text))
        changed = [k for k in old.keys() | new.keys() if old.get(k) != new.get(k)]
        if changed:
            pairs = ", ".join(f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(changed))
            raise ValueError(f"{workdir} holds a run with other settings ({pairs}); choose another --workdir or delete it")
    replace(path, lambda aside: aside.write_text(text))


def _decisive(settings):
    """The settings that a run keeps from its first step on."""
    kept = {key: value for key, value in settings.items() if key not in RESUMABLE_CHANGES}
    return kept | {f"data.{key}": settings["data"].get(key) for key in DECISIVE_DATA if "data" in settings}


def checkpoints(workdir) -> ocp.CheckpointManager:
    """The run's checkpoints: the newest three, written in the background, complete or not at all."""
    options = ocp.CheckpointManagerOptions(max_to_keep=3, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(workdir / "checkpoints", options=options)


def abstract_state(config, task, stages=None):
    """Shapes of the State that `config` trains. stages: the states, or their shapes, of its earlier stages, where they are known."""
    if stages is None:
        stages = {name: abstract_state(stage, build(stage)) for name, stage in config.stages.items()}
    example = example_batch(streams_of(config.streams, task))
    return jax.eval_shape(lambda key, stages: task.init(key, example, stages), jax.random.key(0), stages)

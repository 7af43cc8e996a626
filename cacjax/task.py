"""What every system is made of. A new one is a module with `make(config) -> Task`; what a run can do is which fields that Task has.

Outside of a task everything is Hounsfield units and millimetres; only a task sees normalised numbers. Volumes are [z, y, x].
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Net(NamedTuple):
    """One network's arrays: parameters, running statistics ({} where there are none), optimiser state (() where it does not learn),
    and the best of the validations so far: (value, parameters, statistics), or ()."""

    params: Any
    stats: Any = {}  # noqa: RUF012  (a pytree without leaves)
    opt: Any = ()
    best: Any = ()


class State(NamedTuple):
    """Everything that training changes, arrays only: it jits, shards and saves as it is. stages: the states of earlier stages that
    this one needs to answer, without their optimisers, so that one checkpoint is the whole chain."""

    step: Any
    nets: dict[str, Net]
    stages: dict[str, "State"] = {}  # noqa: RUF012


class Plan(NamedTuple):
    """What a detector works out on the host before a voxel is seen.

    arrays: go to the device with the `Case`. how: static and hashable; another value is another program. long: detection takes
    minutes on a CPU, so it runs in steps under a progress bar there. notes: for the record; flags: {code: note} of what puts the answer
    in doubt. shape, spacing_mm, affine: of the grid that the answer lies on, where that is not the scan's own.
    """

    arrays: Any
    how: tuple
    long: bool = False
    notes: tuple[str, ...] = ()
    flags: dict[str, str] = {}  # noqa: RUF012
    shape: Any = None
    spacing_mm: Any = None
    affine: Any = None


class Case(NamedTuple):
    """One oriented scan as a compiled program takes it, every field an argument of it.

    hu: float32, padded as `cacjax.kernels.grids.pad` does. shape (int32 [3]), spacing_mm (float32 [3]): of the scan, unpadded. heart:
    bool, padded, or None. threshold_hu: what counts as calcium; aorta_hu: mean of the ascending aorta, NaN where unknown. plan:
    `Plan.arrays`.
    """

    hu: Any
    shape: Any
    spacing_mm: Any
    heart: Any
    threshold_hu: Any
    aorta_hu: Any
    plan: Any


class Finding(NamedTuple):
    """All that scoring, evaluation and report read of a system, on the answer's grid, padded.

    label: uint8, `cacjax.classes.CLASSES`: what is scored, every threshold and reduction already applied. hu: float32, what scores
    read. map: a second reading of the same label in HU (a calcium map: the scan less its calcium-free twin), or None. probability:
    P(coronary calcium), or None. before: label before false positives were reduced, or None. counts: {name: whole number} for the
    record; timings_s: {name: seconds} of parts of `find`, where it is not traced.
    """

    label: Any
    hu: Any
    map: Any = None
    probability: Any = None
    before: Any = None
    counts: dict = {}  # noqa: RUF012
    timings_s: dict = {}  # noqa: RUF012


class Detector(NamedTuple):
    """How a system finds calcium.

    plan(shape, spacing_mm, affine, heart, threshold_hu, aorta_hu) -> Plan: on the host, numpy; heart and aorta_hu may be None.
    find(weights, case, how) -> Finding: pure; traced it is a part of the caller's program, else it runs in steps under a progress bar.
    weights(state): what of a State `find` needs; all of it unless the system says otherwise. decided_by: text of all settings that
    decide what `find` does, None where it takes all of the config to say: two runs that tell the same share their programs.
    classes: the labels that it can answer, a row of scores each. check(counts) -> flags {code: note}: what the Finding's counts say
    against it, on the host; raises ScanError where it is none. own_heart: whether it finds the heart itself where none is given.
    """

    plan: Callable
    find: Callable
    classes: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    check: Callable | None = None
    weights: Callable = lambda state: state
    decided_by: str | None = None
    own_heart: bool = False


class Task(NamedTuple):
    """A system: pure functions, and what it cannot do is None.

    init(key, batch, stages) -> State. batch: shapes of `train_step`'s; stages: {name: State} of the config's earlier stages.
    train_step(state, batch, key) -> (State, metrics); batch: {stream: {"hu", "label"}}.
    cut(stream) -> `cacjax.data.sampling.Cut`: how samples of a stream of the config are cut from scans.
    validate(state, batch) -> (State, metrics), every `config.validate_every` steps; batch: {stream: ...} of `config.validation`.
    predict: the network on its own grid; only what builds upon this system calls it.
    detector: finds calcium (`score --workdir`). segment(state, hu, spacing_mm) -> `cacjax.classes.STRUCTURES`, uint8 [z, y, x], of an
    oriented scan (`score --heart`).
    prepare(records, stages, workdir) -> records: what training needs to know of the scans beforehand.
    check(metrics) -> why a step's metrics (plain numbers) must end the training, "" where they need not: on the host.
    spread: {net: mesh axis} of networks whose arrays are stacked along their first axis, a member each.
    """

    init: Callable
    train_step: Callable
    cut: Callable
    validate: Callable | None = None
    predict: Callable | None = None
    detector: Detector | None = None
    segment: Callable | None = None
    prepare: Callable | None = None
    check: Callable | None = None
    spread: dict = {}  # noqa: RUF012


def build(config) -> Task:
    """The task that `config.task` names: a module of cacjax/tasks/, or any other by its dotted path."""
    name = config.task
    try:
        module = importlib.import_module(name if "." in name else f"cacjax.tasks.{name}")
    except ModuleNotFoundError as error:
        text = f"config.task must name a module of cacjax/tasks/ or one by its dotted path, got {name!r}: {error}"
        raise ValueError(text) from None
    return module.make(config)


def beginning(nets: dict[str, Net], stages: dict[str, State] | None = None) -> State:
    """The State before the first step. stages: those that the task needs to answer; their optimisers are left behind."""
    kept = {name: answering(state) for name, state in (stages or {}).items()}
    return State(jnp.zeros((), jnp.int32), nets, kept)


def answering(state: State) -> State:
    """What of a State is needed to answer: no optimisers, and of a validated network its best parameters."""

    def of(net):
        params, stats = net.best[1:] if net.best else (net.params, net.stats)
        return Net(params, stats)

    return State(state.step, {name: of(net) for name, net in state.nets.items()}, {k: answering(s) for k, s in state.stages.items()})


def is_traced(*trees) -> bool:
    """Whether any array in these trees is an argument of a program that is being compiled."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))

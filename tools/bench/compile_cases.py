"""Cases of programs: how large each is, what tracing and compiling it takes, and how fast it runs, beside an earlier version of cacjax.

The scan is a phantom CCTA with its heart and its scan threshold; weights are random. One scan is scored by `whole`, that is
`detect_and_score` with false positives reduced as in the authors' code and only what can count classified, which needs all the others:
`label` and `find` (of the calcium), `grow` (of the detection), `count` (by the default rule) and `predict` (the network).

  lines           of StableHLO, as the compiler is given them
  trace_s compile_s
                  CPU seconds, no cache: from Python to StableHLO, and from there to a program
  warm_ms         CPU milliseconds of a call, median of the rounds
  before_...      the same of the version in the folder --against; its calls and ours take turns, each in a process of its own

The scan is made once, by this version, and read by both.
"""

import functools
import importlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np

SHAPES = ((80, 208, 208), (200, 512, 512))
QUICK = (24, 96, 96)
WORKS = ("label", "find", "grow", "count", "predict", "detect_and_score")
FIGURES = ("lines", "trace_s", "compile_s")
SEED = 900_011
ROOT = pathlib.Path(__file__).resolve().parents[2]


CAPTION = """## Programs

Lines of StableHLO, CPU time of tracing, of compiling and of a call once compiled, on a phantom CCTA; in brackets the version before
components were shared and branches fewer, both sides in turn (`tools/bench/compile_cases.py`), other work on the second core.
"""
SHOWN = ("program", "shape", "lines", "tracing, CPU s", "compiling, CPU s", "a call, CPU ms")
FORMS = {"lines": "{:.0f}", "trace_s": "{:.2f}", "compile_s": "{:.1f}", "warm_ms": "{:.1f}"}


def shown(row):
    """The cells of a row in a table: each figure now, and in brackets that of the version before."""
    return (
        row["work"],
        row["shape"],
        *(f"{form.format(row[name])} ({form.format(row['before_' + name])})" for name, form in FORMS.items()),
    )


class Case(NamedTuple):
    """A program at a shape, of the versions in `sides`: {prefix of the columns: folder}."""

    work: str
    shape: tuple
    sides: dict

    @property
    def key(self) -> dict:
        """The columns that tell a row from the others."""
        return {"work": self.work, "shape": "x".join(map(str, self.shape))}

    def measure(self, rounds: int) -> dict:
        """The other columns."""
        processes = {prefix: _process(folder, _scan_file(self.shape)) for prefix, folder in self.sides.items()}
        row = {prefix + name: value for prefix, process in processes.items() for name, value in _ask(process, self.work).items()}
        taken = {prefix: [] for prefix in processes}
        for _ in range(rounds):
            for prefix, process in processes.items():
                taken[prefix].append(_ask(process, ""))
        return row | {f"{prefix}warm_ms": round(statistics.median(values), 3) for prefix, values in taken.items()} | {"rounds": rounds}


def cases(options):
    """Every program at every shape."""
    sides = {"": ROOT} | ({"before_": options.against.resolve()} if options.against else {})
    shapes = (QUICK,) if options.quick else SHAPES
    return (Case(work, shape, sides) for shape in shapes for work in WORKS)


@functools.cache
@functools.cache
def _scan_file(shape):
    """A file of the phantom of a shape, for both sides."""
    import cacjax.phantom
    from configs import uda

    spacing_mm = tuple(uda.get_config().data.grid.spacing_mm)
    scan = cacjax.phantom.make_scan("ccta", SEED, shape=shape, spacing_mm=spacing_mm)
    path = pathlib.Path(tempfile.mkdtemp()) / "scan.npz"
    np.savez(path, hu=scan.hu, label=scan.label, heart=scan.heart, affine=scan.affine, threshold_hu=scan.truth["threshold_hu"])
    return path


def _process(folder, scan_file):
    """The process that measures with the version of cacjax in a folder on a scan; it ends with this one."""
    environment = os.environ | {"PYTHONPATH": str(folder), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    words = [sys.executable, __file__, str(scan_file)]
    return subprocess.Popen(words, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(process, line):
    """The answer of a process to a line: a program's name, its figures; an empty one, milliseconds of a call. Ends the program where there
    is none."""
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a process that measures has ended before its time")
    return json.loads(line)


def answer(scan_file):
    """Measure programs of the version that is imported, as `_ask` asks."""
    import jax

    made = programs(np.load(scan_file))
    for line in sys.stdin:
        if work := line.strip():
            run, given, found = compiled(*made[work])
            jax.block_until_ready(run(*given))
        else:
            began = time.process_time()
            jax.block_until_ready(run(*given))
            found = 1e3 * (time.process_time() - began)
        print(json.dumps(found), flush=True)


def compiled(program, given):
    """(the compiled program, its arguments, its figures); nothing that was traced before is used again."""
    import jax

    jax.clear_caches()
    began = time.process_time()
    lowered = jax.jit(program).lower(*given)
    traced = time.process_time()
    lines, before = lowered.as_text().count("\n"), time.process_time()
    run = lowered.compile()
    figures = lines, round(traced - began, 3), round(time.process_time() - before, 3)
    return run, given, dict(zip(FIGURES, figures))


def programs(scan):
    """{work: (function, arguments)} on a scan: hu, label and heart [z, y, x], affine, threshold_hu."""
    import jax
    import jax.numpy as jnp

    from cacjax.kernels import lesions, rules, scores
    from cacjax.scoring import one_scan, program
    from cacjax.task import Net, State, build
    from cacjax.tasks import lessmann, uda
    from configs import uda as uda_config

    config = uda_config.get_config()
    config.scoring.update({"fp_reduction": "authors_code", "classify": "mask"})
    spacing_mm = tuple(config.data.grid.spacing_mm)
    hu, label, heart, shape = scan["hu"].astype(np.float32), scan["label"], scan["heart"], scan["hu"].shape
    task, model = build(config), lessmann.network(config)
    crop = jnp.zeros((1, model.planes, 131, 131, 1))
    generator, heads = uda.split(jax.jit(model.init)(jax.random.key(0), crop))
    state = State(jnp.int32(0), {"generator": Net(generator), "heads": Net(heads)})
    case, plan = one_scan.make_case(task.detector, hu, spacing_mm, scan["affine"], heart, float(scan["threshold_hu"]))
    weighing = one_scan.Weighing({"default": rules.named("default")}, "default", None)
    reading, kinds, _ = one_scan.read_by(weighing, shape, spacing_mm)
    how = program.How(plan.how, kinds, task.detector.classes)
    weights = task.detector.weights(state) if hasattr(task.detector, "weights") else state  # an earlier version took all of it
    state, weights, case, reading = jax.device_put((state, weights, case, reading))
    label = jax.device_put(np.pad(label, [(0, m - n) for m, n in zip(case.hu.shape, shape)]))
    grow = getattr(lesions, "grow", None) or importlib.import_module("cacjax.kernels.reduction").grow  # lesions: an earlier version
    mask, kind = label > 0, {"n_regions": 6, "connectivity": kinds[0].connectivity, "peak": kinds[0].peak}
    return {
        "label": (functools.partial(lesions.label, connectivity=26), (mask,)),
        "find": (lesions.find, (mask, case.hu, label, case.spacing_mm)),
        "grow": (
            functools.partial(grow, mode="authors_code"),
            (label, case.hu, case.threshold_hu, case.heart, case.spacing_mm),
        ),
        "count": (functools.partial(scores.count, **kind), (label, case.hu, reading.numbers[0])),
        "predict": (task.predict, (state, case.hu, mask)),
        "detect_and_score": (
            lambda *given: program.detect_and_score(task.detector.find, *given, how),
            (weights, case, reading),
        ),
    }


if __name__ == "__main__":
    answer(sys.argv[1])

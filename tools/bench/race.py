"""Timing of contenders against each other: interleaved rounds, medians, the machine's ceiling from the same minutes, one row per case.

Columns: ours_s, published_s, tuned_s, ratio_published, ratio_tuned (PyTorch's time over ours), compile_s, peak_mb, roofline_share (least
time by FLOPs at the ceiling, over ours), flops (as direct convolutions), bytes (as the compiler counts them: a loop's body once),
ceiling, parts (which part of its work PyTorch was timed on), spread (least, largest),
cpu (CPU seconds of a call in all threads, which other work on the machine disturbs less).
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cacjax import backend


class Case(NamedTuple):
    """One row to be. The callables return when all is computed; None where there is no such contender.

    program: our compiled XLA program, of which operations and bytes are read; compile_s: what compiling it took; times: how often
    the callables do the work (seconds are per work); flops: of the work where the compiler cannot count them (loops). parts: which
    part of the work PyTorch does, whose seconds are scaled up; after: what then follows on the host, timed whole and added. lone: our own
    work on one member of an ensemble after another. rounds:
    of a work of many minutes, whose callables are warm; None: those of the command line, after one to warm up.
    """

    work: str
    case: str
    ours: Callable
    published: Callable | None
    tuned: Callable | None
    program: Any = None
    compile_s: float | None = None
    times: int = 1
    flops: float | None = None
    parts: float = 1.0
    after: Callable | None = None
    lone: Callable | None = None
    rounds: int | None = None

    @property
    def key(self) -> dict:
        """The columns that tell a row from the others."""
        return {"work": self.work, "case": self.case}

    def measure(self, rounds: int) -> dict:
        """Run every contender once to warm up where the case asks for it, then once in each round; the other columns of the row."""
        ceiling, rounds = ceiling_works(), self.rounds or rounds
        contenders = {name: getattr(self, name) for name in ("ours", "published", "tuned", "after", "lone")} | ceiling
        contenders = {name: work for name, work in contenders.items() if work}
        for work in (ceiling if self.rounds else contenders).values():
            work()
        cpu = {name: [] for name in contenders}
        taken = take_turns({name: noted(work, cpu[name]) for name, work in contenders.items()}, rounds)
        return figures(self, taken, rounds) | {"cpu": {name: statistics.median(seconds) for name, seconds in cpu.items()}}


def compiled(function, *arguments, training=False):
    """(compiled program, seconds that it took), never from the persistent cache. training: with the options of programs that train."""
    jax.config.update("jax_enable_compilation_cache", False)
    began = time.perf_counter()
    options = backend.TRAINING.get(jax.default_backend()) if training else None
    program = jax.jit(function, compiler_options=options).lower(*arguments).compile()
    took = time.perf_counter() - began
    jax.config.update("jax_enable_compilation_cache", True)
    return program, took


def noted(work, seconds: list):
    """The same callable, which adds the CPU seconds that it takes in all threads to a list."""

    def run():
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)

    return run


def take_turns(works, rounds: int) -> dict:
    """{name: seconds in each round} of {name: callable}, one after another in every round."""
    taken = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - began)
    return taken


def figures(case, taken, rounds) -> dict:
    """The columns of a case from the seconds that each contender took in each round."""
    per_work = {name: case.times if name in ("ours", "published", "tuned") else 1 for name in taken}
    per_work |= {name: per_work[name] * case.parts for name in ("published", "tuned") if name in taken}
    middle = {name: statistics.median(seconds) / per_work[name] for name, seconds in taken.items()}
    middle |= {name: middle[name] + middle.get("after", 0) for name in ("published", "tuned") if name in taken}
    ceiling = {"gflops": MATMUL_FLOPS / middle["matmul"] / 1e9, "gb_s": ADD_BYTES / middle["add"] / 1e9}
    flops, moved, peak_mb = count(case)
    least = max(flops / ceiling["gflops"] / 1e9, 0) if flops else None
    out = {"ours_s": middle["ours"]}
    for other in ("published", "tuned"):
        out[f"{other}_s"] = middle.get(other)
        out[f"ratio_{other}"] = middle[other] / middle["ours"] if other in middle else None
    if "lone" in middle:
        out |= {"lone_s": middle["lone"], "ours_over_lone": middle["ours"] / middle["lone"]}
    out |= {"compile_s": case.compile_s, "peak_mb": peak_mb, "roofline_share": least and least / middle["ours"]}
    out |= {"flops": flops, "bytes": moved, "ceiling": ceiling, "rounds": rounds, "precision": "float32", "parts": case.parts}
    out["spread"] = {name: [min(taken[name]) / per_work[name], max(taken[name]) / per_work[name]] for name in taken}
    return out


def count(case):
    """(FLOPs, bytes that operations read and write, peak MB) of one work of ours, as the compiler counts; None where it does not."""
    if case.program is None:
        return case.flops, None, None
    cost, memory = case.program.cost_analysis() or {}, case.program.memory_analysis()
    flops = case.flops or cost.get("flops", 0) / case.times or None
    peak = memory and (memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes) / 1e6
    return flops, cost.get("bytes accessed", 0) / case.times or None, peak


MATMUL = 2048
MATMUL_FLOPS = 2 * MATMUL**3
ADD = 2**25
ADD_BYTES = 3 * 4 * ADD


def ceiling_works() -> dict:
    """A float32 matrix product and a sum of two arrays larger than the caches: what the machine can do at that moment."""
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.normal(size=(MATMUL, MATMUL)).astype(np.float32))
    x = jnp.ones(ADD, jnp.float32)
    product, total = jax.jit(lambda a: jnp.matmul(a, a, precision="highest")), jax.jit(lambda x, y: x + y)
    return {"matmul": lambda: product(a).block_until_ready(), "add": lambda: total(x, x).block_until_ready()}

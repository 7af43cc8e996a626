"""Time cacjax against PyTorch and other libraries, measure its heart network, and write the rows as JSON.

    python tools/bench/run.py --system uda detect score start --out FILE.json [--device gpu] [--rounds 5] [--only TEXT]
    python tools/bench/run.py --system ensemble --out FILE.json [--device gpu]
    python tools/bench/run.py --system cacnet --out FILE.json [--device gpu]
    python tools/bench/run.py --system cyclegan --out FILE.json [--device gpu] [--only layers|small|published]
    python tools/bench/run.py --system labelling --rounds 7 --out FILE.json
    python tools/bench/run.py --system compile --out FILE.json [--against FOLDER]
    python tools/bench/run.py --system heart --workdir runs/heart --out FILE.json [--n 20]

Needs the extra `bench`; `taskset -c 0` before the command: one thread on all sides. What the rows hold is said in race.py,
labelling_cases.py, compile_cases.py, cyclegan_cases.py (layers) and heart_cases.py. All sides take turns in every
round; compiling and warming up stand apart; figures are medians. A row is written as soon as it is there, and a second call with the
same --out does what is missing; a file of another machine or other versions ends the program before anything is timed.

JSON: {"device", "versions", "date", "command", "rows"}; load, of each row: the averages of the last 1, 5 and 15 minutes before it was
timed (more than 1 to start with: other work shared the machine).
"""

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from cacjax.report.tables import write_json

PLATFORMS = {"cpu": "cpu", "gpu": "cuda"}
RACE = ("jax", "jaxlib", "flax", "torch", "numpy")
SYSTEMS = {  # system: packages that its figures depend on; what shares these shares a file
    **dict.fromkeys(("uda", "detect", "score", "start"), RACE),
    **dict.fromkeys(("ensemble", "cacnet", "cyclegan"), ("jax", "jaxlib", "flax", "optax", "torch", "numpy")),
    "labelling": ("jax", "jaxlib", "numpy", "scipy", "scikit-image", "connected-components-3d"),
    "compile": ("jax", "jaxlib", "flax", "numpy"),
    "heart": ("jax", "jaxlib", "flax", "numpy", "scipy"),
}


def parse(arguments) -> argparse.Namespace:
    """The command line; argparse ends the program on a mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=SYSTEMS, nargs="+", required=True, help="one, or several of the first four")
    parser.add_argument("--device", choices=PLATFORMS, default="cpu", help="default: %(default)s")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="JSON of the rows; extended where it exists")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which the median is taken (default: %(default)s)")
    parser.add_argument("--only", default="", help='only rows whose work contains this text (a mask and its neighbours: "blobs 26")')
    parser.add_argument("--quick", action="store_true", help="score, start, labelling, compile: tiny scans, which say nothing of speed")
    parser.add_argument("--against", type=pathlib.Path, help="compile: a checkout of an earlier version")
    parser.add_argument("--workdir", help="heart: run of a heart network: python -m cacjax.train --config heart.py:tiny,whole")
    parser.add_argument("--n", type=int, default=20, help="heart: scans of each protocol (default: %(default)s)")
    options = parser.parse_args(arguments)
    if len({SYSTEMS[system] for system in options.system}) > 1:
        parser.error(f"expected systems that share a file, got {', '.join(options.system)}: labelling, compile and heart stand alone")
    if min(options.rounds, options.n) < 1:
        parser.error(f"--rounds and --n must be at least 1, got {options.rounds} and {options.n}")
    options.device = PLATFORMS[options.device]
    return options


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine(device) -> str:
    """Name of the accelerator, or of the processor and its cores."""
    if device != "cpu":
        import jax

        return jax.devices()[0].device_kind
    info = pathlib.Path("/proc/cpuinfo")
    named = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return f"{named[0] if named else platform.machine()}, {cores()} cores"


def begin(options) -> dict:
    """The result with the rows that --out has already; SystemExit where those are of another machine or other versions."""
    packages = {name: importlib.metadata.version(name) for name in SYSTEMS[options.system[0]]}
    about = {"device": machine(options.device), "versions": {"python": platform.python_version()} | packages}
    earlier = json.loads(options.out.read_text()) if options.out.exists() else about | {"rows": []}
    for name, value in about.items():
        if earlier[name] != value:
            raise SystemExit(f"{options.out} has {name} {earlier[name]}, this run {value}: write to another file")
    command = " ".join(["python", *sys.argv])
    return about | {"date": datetime.date.today().isoformat(), "command": command, "rows": earlier["rows"]}


def show(name, row) -> None:
    """One line of a row."""
    times = [f"{column} {value:.4g}" for column, value in row.items() if value is not None and column.endswith(("_s", "_ms"))]
    ratios = [f"{value:.2f}x {column[6:]}" for column, value in row.items() if value is not None and column.startswith("ratio_")]
    print(f"{name}: {', '.join(times + ratios) or 'measured'}", flush=True)


def main(arguments=None) -> None:
    """Measure what the command line asks for."""
    options = parse(arguments)
    os.environ["JAX_PLATFORMS"] = options.device  # before JAX is imported, here and in what a case starts
    result = begin(options)
    for system in options.system:
        for case in importlib.import_module(f"{system}_cases").cases(options):
            name = " ".join(map(str, case.key.values()))
            if options.only not in name or any(case.key.items() <= row.items() for row in result["rows"]):
                continue
            load = [round(average, 2) for average in os.getloadavg()]
            result["rows"].append(case.key | {"load": load} | case.measure(options.rounds))
            show(name, result["rows"][-1])
            write_json(options.out, result)


if __name__ == "__main__":
    main()

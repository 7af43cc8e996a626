"""Race cacjax against PyTorch and write the rows as JSON.

    python tools/bench/run.py --system uda|detect|labelling|score|start|all .. --device cpu|gpu --out FILE.json [--rounds 5] [--only TEXT]

Needs the extra `bench`. Both sides take turns in every round; compiling and warming up stand apart; figures are medians; the
machine's ceiling is measured in the same rounds. A row is written as soon as it is there, and a second call with the same --out
does what is missing. Rows: work, case, ours_s, published_s, tuned_s, ratio_published, ratio_tuned (PyTorch's time over ours),
compile_s, peak_mb, roofline_share (least time by FLOPs at the ceiling, over ours), flops (as direct convolutions), bytes (as the
compiler counts them: a loop's body once), ceiling, parts (which part of its work PyTorch was timed on), spread (least, largest).
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

SYSTEMS = ("uda", "detect", "labelling", "score", "start")
PACKAGES = ("jax", "jaxlib", "flax", "torch", "numpy")
sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[2]), str(pathlib.Path(__file__).parent)]


def save(path, result) -> None:
    """Write the JSON whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, path)


def processor() -> str:
    """Name of the processor and the cores that this process may use."""
    info = pathlib.Path("/proc/cpuinfo")
    named = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{named[0] if named else platform.machine()}, {cores} cores"


def show(row) -> None:
    """One line of a row."""
    figures = [f"{row['ours_s']:.4g} s"]
    figures += [f"{row[f'ratio_{other}']:.2f}x {other}" for other in ("published", "tuned") if row.get(f"ratio_{other}")]
    print(f"{row['work']} ({row['case']}): {', '.join(figures)}", flush=True)


def main() -> None:
    """Race what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=(*SYSTEMS, "all"), nargs="+", default=["all"], help="one or more; default: all")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="default: %(default)s")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="JSON of the rows; extended where it exists")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which the median is taken (default: %(default)s)")
    parser.add_argument("--only", default="", help="only cases whose work contains this text")
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[options.device]

    import jax
    import race
    import torch

    import cacjax  # noqa: F401  (compiler options)

    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    result = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    result |= {
        "device": processor() if options.device == "cpu" else jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES},
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]),
    }
    done = {(row["work"], row["case"]) for row in result["rows"]}
    for system in SYSTEMS if "all" in options.system else options.system:
        for case in importlib.import_module(f"{system}_cases").cases({"cpu": "cpu", "gpu": "cuda"}[options.device], options.only):
            if options.only not in case.work or (case.work, case.case) in done:
                continue
            result["rows"].append(race.measure(case, rounds=options.rounds))
            show(result["rows"][-1])
            save(options.out, result)


if __name__ == "__main__":
    main()

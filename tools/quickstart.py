"""The main job on the embedded phantom: train on non-contrast CT, adapt to CCTA, score held-out CCTA, evaluate.

    python tools/quickstart.py [--out runs/quickstart] [--config.seed N] [--scans N]

Shows every command that it runs; each can be run by hand, and a second call continues where the first was stopped. Two source
networks are trained, without and with random tone curves, and each is adapted. OUT/evaluation holds the table, evaluation.csv and
comparison.png: the calcium found in target slices before and after adaptation.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

VARIANTS = {"plain": "uda.py:tiny", "tone": "uda.py:tiny,tone"}
GRID = ["--shape", "80", "208", "208", "--spacing", "1.5", "0.66", "0.66"]
TEST_SEED = 900_000  # far from the patients of the training cohort


def run(title: str, *commands: list[str], log: pathlib.Path | None = None) -> None:
    """Run each `python -m ...`, showing it first and the time after; several side by side on CPU, all but the first into `log`."""
    print(f"\n=== {title}", *(f"$ python -m {' '.join(command)}" for command in commands), sep="\n", flush=True)
    began = time.perf_counter()
    if len(commands) > 1 and os.environ.get("JAX_PLATFORMS") == "cpu":
        print(f"(side by side; {log} shows what the others say)", flush=True)
        with log.open("a") as file, ThreadPoolExecutor(2) as pool:
            outputs = [None] + [file] * (len(commands) - 1)
            codes = list(pool.map(call, commands, outputs))
    else:
        codes = [call(command, None) for command in commands]
    print(f"=== {title}: {time.perf_counter() - began:.0f} s", flush=True)
    if any(codes):
        sys.exit(max(codes))


def call(command: list[str], output) -> int:
    """Exit code of `python -m command`; what it prints goes to `output`, None: the terminal."""
    return subprocess.run([sys.executable, "-m", *command], stdout=output, stderr=output).returncode


def main() -> None:
    """Train, adapt, score, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/quickstart", help="folder of everything made (default: %(default)s)")
    parser.add_argument("--config.seed", dest="seed", type=int, default=0, help="seed of the training (default: %(default)s)")
    parser.add_argument("--scans", type=int, default=20, help="held-out CCTA scans (default: %(default)s)")
    options = parser.parse_args()
    out, began = pathlib.Path(options.out), time.perf_counter()
    runs, test = out / f"seed{options.seed}", out / "test"
    runs.mkdir(parents=True, exist_ok=True)
    log = runs / "side_by_side.log"
    seed = f"--config.seed={options.seed}"
    train = [["cacjax.train", "--config", config, "--workdir", str(runs / variant), seed] for variant, config in VARIANTS.items()]
    run("train and adapt, without and with tone curves", *train, log=log)
    if not (test / "manifest.csv").exists():
        size = ["--n", str(options.scans), "--seed", str(TEST_SEED), "--workers", "2", *GRID]
        run("make held-out CCTA", ["cacjax.phantom", "--out", str(test), "--protocol", "ccta", *size])
    arms = {}
    for variant in VARIANTS:
        arms |= {f"source_{variant}": runs / variant / "source", f"adapted_{variant}": runs / variant}
    out_of = {arm: runs / "scores" / arm for arm in arms}
    score = [
        ["cacjax.score", str(test), "--workdir", str(arms[arm]), "--out", str(out_of[arm]), "--save-probability", "--resume"]
        for arm in arms
    ]
    run("score before and after adaptation", *score, log=log)
    evaluation = ["--reference", str(test), "--out", str(runs / "evaluation")]
    run("evaluate", ["cacjax.evaluate", "--predictions", *(f"{arm}={path}" for arm, path in out_of.items()), *evaluation])
    print(f"\ndone in {(time.perf_counter() - began) / 60:.1f} minutes; look at {runs / 'evaluation' / 'comparison.png'}")


if __name__ == "__main__":
    main()

"""The main job on the embedded phantom: train on non-contrast CT, adapt to CCTA, score held-out CCTA, evaluate.

    python tools/quickstart.py [--out runs/quickstart] [--config.seed N] [--scans N]

Shows every command that it runs; each can be run by hand, and a second call continues where the first was stopped. Two source
networks are trained, without and with random tone curves, and each is adapted. OUT/evaluation holds the table, evaluation.csv and
comparison.png: the calcium found in target slices before and after adaptation.
"""

import argparse
import pathlib
import subprocess
import sys
import time

VARIANTS = {"plain": "uda.py:tiny", "tone": "uda.py:tiny,tone"}
GRID = ["--shape", "80", "208", "208", "--spacing", "1.5", "0.66", "0.66"]
TEST_SEED = 900_000  # far from the patients of the training cohort


def run(title: str, *command: str) -> None:
    """Run `python -m ...`, showing it first and its time after."""
    print(f"\n=== {title}\n$ python -m {' '.join(command)}", flush=True)
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command])
    print(f"=== {title}: {time.perf_counter() - began:.0f} s", flush=True)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    """Train, adapt, score, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/quickstart", help="folder of everything made (default: %(default)s)")
    parser.add_argument("--config.seed", dest="seed", type=int, default=0, help="seed of the training (default: %(default)s)")
    parser.add_argument("--scans", type=int, default=20, help="held-out CCTA scans (default: %(default)s)")
    options = parser.parse_args()
    out, began = pathlib.Path(options.out), time.perf_counter()
    runs, test = out / f"seed{options.seed}", out / "test"
    arms = {}
    for variant, config in VARIANTS.items():
        workdir = runs / variant
        seed = [f"--config.seed={options.seed}"]
        run(f"train and adapt ({variant})", "cacjax.train", "--config", config, "--workdir", str(workdir), *seed)
        arms[f"source_{variant}"], arms[f"adapted_{variant}"] = workdir / "source", workdir
    if not (test / "manifest.csv").exists():
        size = ["--n", str(options.scans), "--seed", str(TEST_SEED), "--workers", "2", *GRID]
        run("make held-out CCTA", "cacjax.phantom", "--out", str(test), "--protocol", "ccta", *size)
    for arm, workdir in arms.items():
        target = ["--workdir", str(workdir), "--out", str(runs / "scores" / arm)]
        run(f"score ({arm})", "cacjax.score", str(test), *target, "--save-probability", "--resume")
    predictions = [f"{arm}={runs / 'scores' / arm}" for arm in arms]
    evaluation = ["--reference", str(test), "--out", str(runs / "evaluation")]
    run("evaluate", "cacjax.evaluate", "--predictions", *predictions, *evaluation)
    print(f"\ndone in {(time.perf_counter() - began) / 60:.1f} minutes; look at {runs / 'evaluation' / 'comparison.png'}")


if __name__ == "__main__":
    main()

"""Take trained networks into the package, for `python -m cacjax.score SCAN --out OUT` without a training folder.

    python -m cacjax.experiments shipped --size small --out runs/shipped
    python tools/ship.py runs/shipped/seed0/networks

reads the runs `detector` and `heart` of that folder, and writes cacjax/shipped/{detector,heart}: config.json and weights.npz.
"""

import argparse
import pathlib

from cacjax import score
from cacjax.training import workdir

ABILITIES = {"detector": "detector", "heart": "segment"}  # what a run's Task must have


def main(argv=None) -> None:
    """Write the networks that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", help="folder that holds the training folders detector and heart")
    parser.add_argument("--out", default=str(score.SHIPPED), help="folder to write to (default: %(default)s)")
    options = parser.parse_args(argv)
    for name, ability in ABILITIES.items():
        run = workdir.load(pathlib.Path(options.networks) / name)
        if getattr(run.task, ability) is None:
            parser.error(f"{options.networks}/{name} is a run of {run.config.task}.py, which is no {name} network")
        folder = pathlib.Path(options.out) / name
        workdir.write_weights(run, folder)
        print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

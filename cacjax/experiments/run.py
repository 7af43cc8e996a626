"""One command per published table: train, score and evaluate every arm over seeds, and write ours beside the paper's.

    python -m cacjax.experiments uda-quick --out runs/quickstart                     two arms of Zhai 2022, minutes on a laptop
    python -m cacjax.experiments uda-table2 --size tiny --seeds 3 --out runs/table2  Zhai 2022, Table 2, and further arms
    python -m cacjax.experiments ensemble-table1 --size small --out runs/table1      Gogin 2021, Table 1
    python -m cacjax.experiments cacnet-table1 --size small --out runs/cacnet        Zhang 2018, Tables 1 and 2; cacnet-parts: ablations
    python -m cacjax.experiments cyclegan-pairs --size small --out runs/pairs        van Velzen 2022, Tables 3 and 4, with controls
    python -m cacjax.experiments ensemble-cells --size small --out runs/cells        what its cells keep of calcium and of noise
    python -m cacjax.experiments shipped --out runs/shipped                          the networks that ship with the package

Every command that it runs is shown and can be run by hand; called again it goes on where it was stopped. On CPU two trainings run
side by side. OUT/table.md, table.csv and results.json hold what all seeds so far give, with intervals by bootstrap over the scans, and
OUT/table.png draws it; OUT/seed<N>/evaluation has every seed's own tables and pictures. Seeds that were measured elsewhere join by
`--with THEIR/results.json`.
"""

import argparse
import datetime
import json
import os
import pathlib
import sys
import time
from importlib.metadata import version

import numpy as np

from cacjax.experiments import cacnet, cells, commands, cyclegan, ensemble, shipped, uda
from cacjax.report import tables

PACKAGES = ("cacjax", "jax", "jaxlib", "flax", "optax", "numpy")
MODULES = (uda, ensemble, cacnet, cyclegan, cells, shipped)
EXPERIMENTS = {name: module for module in MODULES for name in module.EXPERIMENTS}
NEXT = {  # experiment: what to look at and to try when it is done, {out} and {seed} as given
    "uda-quick": """
look at {out}/table.png and {out}/seed{seed}/evaluation/ccta/comparison.png; then try (yours in place of {out}/test/ccta):
  {python} -m cacjax.score {out}/test/ccta --workdir {out}/seed{seed}/networks/adapted --out {out}/scored   # scores, pictures, masks
  {python} -m cacjax.train --config heart.py:tiny,whole --workdir runs/heart   # finds heart and threshold of a CCTA: score --heart
  {python} -m cacjax.experiments uda-table2 --size tiny --out runs/table2   # all arms and controls, an hour or more""",
    "shipped": "\nto score with these in place of those that the package has: {python} tools/ship.py {out}/seed{seed}/networks",
}
SIZES = tuple(dict.fromkeys(size for module in MODULES for size in module.SIZES))


def main(argv=None) -> None:
    """Run the experiment that the command line names."""
    options = parse(argv)
    module, out = EXPERIMENTS[options.experiment], pathlib.Path(options.out)
    size = module.SIZES[options.size]
    experiment = module.of_size(module.EXPERIMENTS[options.experiment], size)
    experiment = experiment if options.fold is None else module.of_fold(experiment, options.fold)
    experiment = only(experiment, options.only) if options.only else experiment
    began, results = time.perf_counter(), elsewhere(options.others, options, module, experiment.columns)
    for seed in range(options.seed, options.seed + options.seeds):
        folder = out / f"seed{seed}"
        module.begin(experiment, size, out / "test", options.scans)
        commands.train(experiment.networks, size, folder, seed)
        module.test(experiment, size, out / "test", folder, options.scans)
        results.append({"seed": seed, "columns": [module.measure(column, folder) for column in experiment.columns]})
        write(module, experiment, results, options, out)  # what was measured stays, should the next be cut short
    rows = write(module, experiment, results, options, out)
    print(tables.table([module.shown(row) for row in rows], module.SHOWN))
    spent = f"{(time.perf_counter() - began) / 60:.1f} minutes on {os.cpu_count()} cores of together {matrix_product():.0f} GFLOP/s"
    print(f"\ndone in {spent}; {out / 'table.md'}, {out / 'table.png'}, {out / 'seed*'}")
    print(NEXT.get(options.experiment, "").format(out=out, seed=options.seed, python=interpreter()))


def only(experiment, names):
    """The experiment with the networks of these names, those that they need, and their rows and the rows without a network."""
    columns = [column for column in experiment.columns if hasattr(column, "network")]
    known = dict.fromkeys(column.network for column in columns if column.network)
    if unknown := [name for name in names if name not in known]:
        expected = ", ".join(known) or "none: this table has no rows by network"
        sys.exit(f"error: --only: expected networks of the table, {expected}; got {', '.join(unknown)}")
    wanted, waiting = set(), list(names)
    while waiting:
        wanted.add(name := waiting.pop())
        waiting += experiment.networks[name].needs.values()
    networks = {name: network for name, network in experiment.networks.items() if name in wanted}
    return experiment._replace(networks=networks, columns=tuple(each for each in columns if not each.network or each.network in wanted))


def matrix_product(side=2048) -> float:
    """Speed of NumPy's float32 matrix product on all cores, GFLOP/s, best of three: says what a time on this machine is worth elsewhere."""
    square, seconds = np.ones((side, side), np.float32), []
    for _ in range(3):
        began = time.perf_counter()
        square @ square
        seconds.append(time.perf_counter() - began)
    return 2e-9 * side**3 / min(seconds)


def interpreter() -> str:
    """How this Python is called here: by its place below the working directory, as `tools/do.py` sets one up there, else by its name."""
    path, here = pathlib.Path(sys.executable), pathlib.Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else "python"


def parse(argv):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS, help="which table")
    parser.add_argument("--out", required=True, help="folder of everything made")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="of the networks and scans (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="trainings per arm (default: %(default)s)")
    parser.add_argument("--config.seed", dest="seed", type=int, default=0, metavar="S", help="first seed (default: %(default)s)")
    parser.add_argument("--with", dest="others", nargs="+", default=[], metavar="JSON", help="results.json of other seeds, to be joined")
    parser.add_argument("--scans", type=int, metavar="N", help="held-out scans a protocol (default: by size)")
    parser.add_argument("--only", nargs="+", metavar="NETWORK", help="of the table's networks these alone, and those that they start from")
    parser.add_argument("--fold", type=int, metavar="K", help="of a cross-validation this fold alone, such as on one of several machines")
    options = parser.parse_args(argv)
    sizes = EXPERIMENTS[options.experiment].SIZES
    if options.size not in sizes:
        parser.error(f"{options.experiment} has the sizes {', '.join(sizes)}, got {options.size}")
    options.scans = options.scans or sizes[options.size].scans
    if options.scans % EXPERIMENTS[options.experiment].MULTIPLE:
        parser.error(
            f"--scans of {options.experiment} must be a multiple of {EXPERIMENTS[options.experiment].MULTIPLE}, got {options.scans}"
        )
    folds = getattr(EXPERIMENTS[options.experiment], "FOLDS", 0)
    if options.fold is not None and not 0 <= options.fold < folds:
        expected = f"a fold from 0 to {folds - 1}" if folds else "none, it has no folds"
        parser.error(f"--fold of {options.experiment}: expected {expected}, got {options.fold}")
    if not (options.seeds or options.others):
        parser.error("nothing to do: --seeds 0 needs --with")
    return options


def elsewhere(paths, options, module, columns) -> list[dict]:
    """The seeds in other runs' results.json. Ends the program where one is of another table or has a seed that is here already."""
    titles = [module.identity(column) for column in columns]
    own, results = range(options.seed, options.seed + options.seeds), []
    for path in paths:
        try:
            record = json.loads(pathlib.Path(path).read_text())
        except (OSError, ValueError) as error:
            sys.exit(f"error: {path} cannot be read: {error}; expected the results.json of another run")
        if not (isinstance(record, dict) and {"options", "rows", "results"} <= record.keys()):
            sys.exit(f"error: {path} is not a results.json that this command has written")
        for name in ("experiment", "size", "scans"):
            if record["options"][name] != getattr(options, name):
                sys.exit(f"error: {path} has {name} {record['options'][name]}, expected {getattr(options, name)}")
        if [{key: row.get(key) for key in titles[0]} for row in record["rows"]] != titles:
            sys.exit(f"error: {path} has other columns than {options.experiment} has now: measure its seeds again")
        for result in record["results"]:
            if result["seed"] in [*own, *(r["seed"] for r in results)]:
                sys.exit(f"error: {path} has seed {result['seed']}, which another file has or --seeds would train again")
            results.append(result)
    return results


def write(module, experiment, results, options, out) -> list[dict]:
    """Write table.csv, table.md, results.json and table.png to `out`; returns the rows of the table."""
    rows = module.summary(experiment, results)
    tables.write_csv(out / "table.csv", rows, tuple(rows[0]))
    lines = [f"| {' | '.join(module.SHOWN)} |", f"|{'---|' * len(module.SHOWN)}"]
    lines += [f"| {' | '.join(module.shown(row).values())} |" for row in rows]
    text = f"{options.experiment}, size {options.size}, {len(results)} seed(s), {options.scans} scans. {module.CAPTION}\n\n"
    tables.replace(out / "table.md", lambda aside: aside.write_text(text + "\n".join(lines) + "\n"))
    about = {"date": datetime.date.today().isoformat(), "versions": {name: version(name) for name in PACKAGES}}
    tables.write_json(out / "results.json", about | {"options": vars(options), "rows": rows, "results": results})
    module.draw(out / "table.png", rows)
    return rows


if __name__ == "__main__":
    main()

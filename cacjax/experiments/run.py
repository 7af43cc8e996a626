"""One command per published table: train, score and evaluate every arm over seeds, and write ours beside the paper's.

    python -m cacjax.experiments uda-quick --out runs/quickstart                     the main job, minutes on a laptop
    python -m cacjax.experiments uda-table2 --size tiny --seeds 3 --out runs/table2  Zhai 2022, Table 2, and further arms

Every command that it runs is shown and can be run by hand; called again it goes on where it was stopped. On CPU two trainings run
side by side. OUT/table.md, table.csv and results.json hold medians over the seeds so far with intervals by bootstrap over the scans,
OUT/arms.png draws them; OUT/seed<N>/evaluation has every seed's own tables and, for CCTA, comparison.png: the calcium found in some
slices by each network. Seeds that were measured elsewhere join by `--with THEIR/results.json`.
"""

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import numpy as np

from cacjax.experiments.uda import EXPERIMENTS, SIZES, distinct
from cacjax.report import pictures, tables

TEST_SEED = 900_000  # far from the patients of the training cohorts
BOOTSTRAPS = 2000
PACKAGES = ("cacjax", "jax", "jaxlib", "flax", "optax", "numpy")
EPSILON = 1e-5  # as in cacjax.evaluation.metrics
MEASURES = ("sensitivity", "fp_mm3", "f1", "sensitivity_pooled", "f1_pooled", "ap_pooled")
SHOWN = ("network", "scans", "FP red.", "sensitivity", "FP mm³", "F1", "pooled F1", "over its source", "AP")


def main(argv=None) -> None:
    """Run the experiment that the command line names."""
    options = parse(argv)
    size, out = SIZES[options.size], pathlib.Path(options.out)
    experiment = distinct(EXPERIMENTS[options.experiment], size)
    began, results = time.perf_counter(), elsewhere(options.others, options, experiment.columns)
    for seed in range(options.seed, options.seed + options.seeds):
        folder = out / f"seed{seed}"
        train(experiment.networks, size, folder, seed)
        for protocol in sorted({column.protocol for column in experiment.columns}):
            columns = [column for column in experiment.columns if column.protocol == protocol]
            test(experiment.networks, columns, size, out / "test" / protocol, folder, options.scans)
        results.append({"seed": seed, "columns": [measure(column, folder) for column in experiment.columns]})
        write(summary(experiment, results), results, options, out)  # what was measured stays, should the next be cut short
    rows = summary(experiment, results)
    write(rows, results, options, out)
    print(tables.table([shown(row) for row in rows], SHOWN))
    print(f"\ndone in {(time.perf_counter() - began) / 60:.1f} minutes; {out / 'table.md'}, {out / 'arms.png'}, {out / 'seed*'}")


def parse(argv):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS, help="which table")
    parser.add_argument("--out", required=True, help="folder of everything made")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="of the networks and scans (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="trainings per arm (default: %(default)s)")
    parser.add_argument("--config.seed", dest="seed", type=int, default=0, metavar="S", help="first seed (default: %(default)s)")
    parser.add_argument("--with", dest="others", nargs="+", default=[], metavar="JSON", help="results.json of other seeds, to be joined")
    parser.add_argument("--scans", type=int, metavar="N", help="held-out scans a protocol (default: 20 for tiny, else 40)")
    options = parser.parse_args(argv)
    options.scans = options.scans or SIZES[options.size].scans
    if not (options.seeds or options.others):
        parser.error("nothing to do: --seeds 0 needs --with")
    return options


def elsewhere(paths, options, columns) -> list[dict]:
    """The seeds in other runs' results.json. Ends the program where one is of another table or has a seed that is here already."""
    titles = [[column.title, column.protocol, "yes" if column.reduced else "no"] for column in columns]
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
        if [[row["network"], row["scans"], row["fp_reduction"]] for row in record["rows"]] != titles:
            sys.exit(f"error: {path} has other columns than {options.experiment} has now: measure its seeds again")
        for result in record["results"]:
            if result["seed"] in [*own, *(r["seed"] for r in results)]:
                sys.exit(f"error: {path} has seed {result['seed']}, which another file has or --seeds would train again")
            results.append(result)
    return results


def train(networks, size, folder, seed) -> None:
    """Train every network of one seed in FOLDER/networks/NAME, each after those that it needs."""
    trained, left = set(), {name: network for name, network in networks.items() if network.config}
    while left:
        ready = [name for name, network in left.items() if trained >= set(network.needs.values())]
        commands = [training(left.pop(name), size, folder / "networks", name, seed) for name in ready]
        run(f"train, seed {seed}: {', '.join(ready)}", commands, folder / "side_by_side.log")
        trained |= set(ready)


def training(network, size, root, name, seed) -> list[str]:
    """The words after `python -m` that train a network."""
    variant = ",".join((*size.words, *network.words))
    settings = [f"seed={seed}", *network.settings, *(f"stages.{stage}.workdir={root / needed}" for stage, needed in network.needs.items())]
    config = f"{network.config}:{variant}" if variant else network.config
    return ["cacjax.train", "--config", config, "--workdir", str(root / name), *(f"--config.{setting}" for setting in settings)]


def test(networks, columns, size, scans_folder, folder, scans) -> None:
    """Make the held-out scans of a protocol, score them for its columns, compare with the truth."""
    protocol = columns[0].protocol
    wanted = {column.network: networks[column.network] for column in columns}
    if not (scans_folder / "manifest.csv").exists():
        grid = ["--shape", *map(str, size.shape), "--spacing", *map(str, size.spacing_mm), "--workers", "2"]
        made = ["--out", str(scans_folder), "--protocol", protocol, "--n", str(scans), "--seed", str(TEST_SEED)]
        run(f"make held-out scans: {protocol}", [["cacjax.phantom", *made, *grid]], None)
    found = {name: folder / "scores" / protocol / name for name in wanted}
    unreduced = {column.network for column in columns if not column.reduced}
    # The phantom's heart is all that the pericardium holds, arteries included: dilated as chambers have to be, it would reach ribs.
    score = ["cacjax.score", str(scans_folder), "--save-probability", "--resume", "--scoring.heart_dilation_mm=0"]
    commands = [
        [*score, "--workdir", str(folder / "networks" / (name if network.config else network.needs["source"])), "--out", str(found[name])]
        + [f"--scoring.classify={'all' if name in unreduced else 'threshold'}", *(f"--scoring.{option}" for option in network.scoring)]
        for name, network in wanted.items()
    ]
    run(f"score {protocol} scans", commands, folder / "side_by_side.log")
    arms = [f"{name}={path}" for name, path in found.items()]
    out = str(folder / "evaluation" / protocol)
    run("evaluate", [["cacjax.evaluate", "--predictions", *arms, "--reference", str(scans_folder), "--out", out]], None)


def run(title, commands, log) -> None:
    """Run `python -m ...` commands, shown first; on CPU two at a time, all but the first into `log`. Ends the program on failure."""
    print(f"\n=== {title}", *(f"$ python -m {' '.join(command)}" for command in commands), sep="\n", flush=True)
    began = time.perf_counter()
    if len(commands) > 1 and os.environ.get("JAX_PLATFORMS") == "cpu":
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"(side by side; {log} has what all but the first of them say)", flush=True)
        with log.open("a") as file, ThreadPoolExecutor(2) as pool:
            codes = list(pool.map(call, commands, [None] + [file] * (len(commands) - 1)))
    else:
        codes = [call(command, None) for command in commands]
    print(f"=== {title}: {time.perf_counter() - began:.0f} s", flush=True)
    if any(codes):
        sys.exit(f"error: {title}: a command above ended with exit code {max(codes, key=abs)}")


def call(command, output) -> int:
    """Exit code of `python -m command`; what it prints goes to `output`, None: the terminal."""
    return subprocess.run([sys.executable, "-m", *command], stdout=output, stderr=output).returncode


def measure(column, folder) -> dict:
    """One column of one seed: averages over all scans, pooled figures, and each scan's voxel counts, from evaluation.json."""
    record = json.loads((folder / "evaluation" / column.protocol / "evaluation.json").read_text())
    wanted = {"arm": column.network, "stage": "final" if column.reduced else "before", "artery": "CAC"}
    pick = lambda rows, **more: [row for row in rows if all(row[k] == v for k, v in (wanted | more).items())]  # noqa: E731
    (mean,), (pooled,) = (pick(record["summary"], over=over) for over in ("all", "pooled"))
    counts = [row["counts"]["voxels"] for row in pick(record["scans"])]
    return {
        **{name: mean[name] for name in ("sensitivity", "fp_mm3", "f1")},
        **{f"{name}_pooled": pooled[name] for name in ("sensitivity", "f1", "ap")},
        "counts": [[count[part] for part in ("tp", "fp", "fn")] for count in counts],
    }


def summary(experiment, results) -> list[dict]:
    """The rows of the table, in the order of the columns."""
    measured = [[result["columns"][i] for result in results] for i in range(len(experiment.columns))]
    places = {(column.network, column.protocol, column.reduced): i for i, column in enumerate(experiment.columns)}

    def of_source(column):
        """What was measured of the network that a column's network started from, or None."""
        place = places.get((experiment.networks[column.network].needs.get("source"), column.protocol, column.reduced))
        return None if place is None else measured[place]

    return [summarise(column, own, of_source(column)) for column, own in zip(experiment.columns, measured)]


def summarise(column, measured, source=None) -> dict:
    """The row of a column: medians over the seeds, the interval of the pooled F1, how much more it is than the source network's on the
    same scans (None where the table has no such column), the published figures."""
    row = {"network": column.title, "scans": column.protocol, "fp_reduction": "yes" if column.reduced else "no"}
    row |= {"seeds": len(measured), "n": len(measured[0]["counts"])}
    for name in MEASURES:
        row[name] = float(np.median([np.nan if one[name] is None else one[name] for one in measured]))
    scores = resampled(measured)
    row["f1_low"], row["f1_high"] = interval(scores)
    row["f1_seeds"] = [one["f1_pooled"] for one in measured]
    gain = source and [own["f1_pooled"] - before["f1_pooled"] for own, before in zip(measured, source)]
    row["gain"] = source and float(np.median(gain))
    row["gain_low"], row["gain_high"] = interval(scores - resampled(source)) if source else (None, None)
    published = column.published or (None, None, None)
    return row | dict(zip(("published_sensitivity", "published_fp_mm3", "published_f1"), published))


def resampled(measured) -> np.ndarray:
    """Pooled F1 of each seed on scans drawn by bootstrap, the same ones in every call for as many scans, [seeds, BOOTSTRAPS]."""
    counts = np.asarray([one["counts"] for one in measured], np.float64)
    drawn = np.random.default_rng(0).integers(0, counts.shape[1], (BOOTSTRAPS, counts.shape[1]))
    tp, fp, fn = np.moveaxis(counts[:, drawn].sum(2), -1, 0)
    return (2 * tp + EPSILON) / (2 * tp + fp + fn + EPSILON)


def interval(scores, *, level=0.95) -> tuple[float, float]:
    """Interval of the median over the seeds of what `resampled` gives."""
    low, high = np.quantile(np.median(scores, axis=0), ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def shown(row) -> dict:
    """A row as the terminal and table.md show it: the published figure in brackets."""
    beside = lambda name, digits: "" if row[name] is None else f" ({row[name]:.{digits}f})"  # noqa: E731
    cells = {
        "network": row["network"],
        "scans": row["scans"],
        "FP red.": row["fp_reduction"],
        "sensitivity": f"{row['sensitivity']:.2f}{beside('published_sensitivity', 2)}",
        "FP mm³": f"{row['fp_mm3']:.1f}{beside('published_fp_mm3', 1)}",
        "F1": f"{row['f1']:.2f}{beside('published_f1', 2)}",
        "pooled F1": f"{row['f1_pooled']:.2f} [{row['f1_low']:.2f}, {row['f1_high']:.2f}]",
        "over its source": "" if row["gain"] is None else f"{row['gain']:+.2f} [{row['gain_low']:+.2f}, {row['gain_high']:+.2f}]",
        "AP": "" if np.isnan(row["ap_pooled"]) else f"{row['ap_pooled']:.2f}",
    }
    return cells


def write(rows, results, options, out) -> None:
    """Write table.csv, table.md, results.json and arms.png to `out`."""
    tables.write_csv(out / "table.csv", rows, tuple(rows[0]))
    lines = [f"| {' | '.join(SHOWN)} |", f"|{'---|' * len(SHOWN)}"]
    lines += [f"| {' | '.join(shown(row).values())} |" for row in rows]
    text = f"{options.experiment}, size {options.size}: medians over {rows[0]['seeds']} seed(s), {rows[0]['n']} scans. Published "
    text += "figures in brackets; sensitivity, FP and F1 are means over all scans; pooled F1 with its 95 % bootstrap\ninterval; "
    text += "over its source: how much more that is than the source network's on the same scans, resampled together.\n\n"
    tables.replace(out / "table.md", lambda aside: aside.write_text(text + "\n".join(lines) + "\n"))
    about = {"date": datetime.date.today().isoformat(), "versions": {name: version(name) for name in PACKAGES}}
    tables.write_json(out / "results.json", about | {"options": vars(options), "rows": rows, "results": results})
    pictures.arms(out / "arms.png", rows)


if __name__ == "__main__":
    main()

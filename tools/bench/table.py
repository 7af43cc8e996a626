"""Turn committed results into the pages of tools/results and a plot: `python tools/bench/table.py`.

Each page is made wholly from the JSON in tools/bench/results, of tools/bench/run.py or of cacjax.experiments, and from the words of
words.py, or of the cases, beside its tables. Rows that PyTorch wins stay in.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
import compile_cases
import words

from cacjax.experiments import cacnet as cacnet_table
from cacjax.experiments import cells as cells_table
from cacjax.experiments import cyclegan as cyclegan_table
from cacjax.experiments import ensemble as ensemble_table
from cacjax.experiments import shipped as shipped_table
from cacjax.experiments import uda as experiments
from cacjax.files.atomic import replace

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS, PAGES, PLOT = ROOT / "tools/bench/results", ROOT / "tools/results", ROOT / "tools/pictures/race.png"
WHOLE = "whole heart"
ERRORS = {
    "mean_error_hu": "aortic mean, HU, against the phantom's box",
    "threshold_error_hu": "threshold, HU, against the phantom's box",
    "outline_error_hu": "mean + 3 SD, HU, against true outlines",
}
HEARTS = {"network": "the network's heart", "true": "its true outlines", "true_published": "true outlines, published classes"}


def uda(rows) -> str:
    """The table of an experiment, and the seeds of each column behind it."""
    shown = [[str(cell) for cell in experiments.shown(row).values()] for row in rows]
    seeds = [f"- {row['network']}, {row['scans']}, FP reduced: {row['fp_reduction']}: " for row in rows]
    values = [" ".join(f"{value:.2f}" for value in row["f1_seeds"]) for row in rows]
    return markdown(experiments.SHOWN, shown) + "\n" + words.UDA_NOTE + "\n" + "".join(f"{a}{b}\n" for a, b in zip(seeds, values))


def experiment_table(module, result) -> str:
    """The table of an experiment, with what it says of its figures."""
    return module.CAPTION + "\n\n" + markdown(module.SHOWN, [list(module.shown(row).values()) for row in result["rows"]])


def experiment_source(result) -> str:
    """Versions and date of an experiment's results."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"{result['options']['scans']} scans; {versions}; {result['date']}:"


def seconds(value) -> str:
    """Seconds or milliseconds with three digits; a dash for None."""
    return "-" if value is None else f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def ratio(value, digits=2) -> str:
    """How many times longer the other takes; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}x"


def markdown(head, lines) -> str:
    """A table."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ("---",) * len(head), *lines))


def source(result) -> str:
    """What a result was measured on, and by what command."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"{result['device']}; {versions}; {result['date']}; `{result['command']}`:\n"


def race(rows) -> str:
    """The table of a race against PyTorch."""
    head = ("work", "case", "ours", "published / ours", "tuned / ours", "compile", "share of ceiling")
    lines = []
    for row in rows:
        share = "-" if row["roofline_share"] is None else f"{100 * row['roofline_share']:.0f} %"
        ratios = ratio(row["ratio_published"]), ratio(row["ratio_tuned"])
        lines.append((row["work"], row["case"], seconds(row["ours_s"]), *ratios, seconds(row["compile_s"]), share))
    return markdown(head, lines)


def labelling(rows) -> str:
    """The table of connected components against other libraries."""
    head = ("mask", "neighbours", "ours ms", "cc3d / ours", "scipy / ours", "table ms", "cc3d table / ours")
    lines = []
    for row in rows:
        ours, of_table = row["ours_ms"], row["table_ms"]
        labels = f"{ours:.1f}", ratio(row["cc3d_ms"] / ours), ratio(row["scipy_ms"] / ours, 1)
        lines.append((row["case"], str(row["connectivity"]), *labels, f"{of_table:.1f}", ratio(row["cc3d_table_ms"] / of_table)))
    return markdown(head, lines)


def heart(rows) -> str:
    """The table of a heart network: a column for each protocol."""
    head = ("", *(f"{row['protocol']}, {row['scans']} scans" for row in rows))
    lines = []
    for name in sorted(rows[0]["dice"], key=lambda name: name != WHOLE):
        lines.append((f"Dice, {name}", *("{mean:.3f} ± {sd:.3f}".format(**row["dice"][name]) for row in rows)))
    for key, said in ERRORS.items():
        cells = ["{mean:+.1f} ± {sd:.1f}, {most:.1f} at most".format(**row["aorta"][key]) if key in row["aorta"] else "-" for row in rows]
        lines.append((f"error of the {said}", *cells))
    lines.append(("scans with blood measured", *(f"{row['aorta']['measured']}" for row in rows)))
    lines.append(("coronary calcium: scans, lesions, mm3", *("{scans}, {lesions}, {mm3:.0f}".format(**row["calcium"]) for row in rows)))
    for name, said in HEARTS.items():
        held = [row["calcium"]["inside"][name] for row in rows]
        cells = ["-" if h["pct"] is None else f"{h['pct']:.1f} %, {h['lesions']} lesions" for h in held]
        lines.append((f"of it within {said}", *cells))
    return markdown(head, lines)


def pages(results) -> dict:
    """{file name: Markdown} of {file name: result}."""

    def section(name, table, before, after=None):
        return [before, source(results[name]), table(results[name]["rows"]), *([after] if after else [])]

    reached = [round(row["ceiling"]["gflops"]) for row in results["race_cpu.json"]["rows"]]
    speed = section("race_cpu.json", race, words.SPEED, words.RACE_NOTE.format(min(reached), max(reached)))
    speed += section("labelling_cpu.json", labelling, words.LABELLING, words.LABELLING_NOTE)
    hearts = [words.HEART]
    for name, title in words.HEART_TITLES.items():
        hearts += section(name, heart, title)
    if "compile_cpu.json" in results:  # of a machine with nothing else to do
        speed += section(
            "compile_cpu.json", lambda rows: markdown(compile_cases.SHOWN, map(compile_cases.shown, rows)), compile_cases.CAPTION
        )
    speed += section("ensemble_cpu.json", race, words.ENSEMBLE_RACE)
    speed += section("cacnet_cpu.json", race, words.CACNET_RACE)
    speed += section("cyclegan_cpu.json", race, words.CYCLEGAN_RACE)
    table1, cells = (results[f"ensemble_{name}.json"] for name in ("table1", "cells"))
    bright = results["ensemble_bright.json"]
    ensembles = [words.ENSEMBLE.format(experiment_source(table1)), experiment_table(ensemble_table, table1)]
    ensembles += [words.ENSEMBLE_BRIGHT.format(experiment_source(bright)), experiment_table(ensemble_table, bright), words.ENSEMBLE_CELLS]
    ensembles += [experiment_source(cells) + "\n", experiment_table(cells_table, cells)]
    flow = results["uda_flow.json"]
    adaptation = words.UDA_FLOW.format(experiment_source(flow)) + experiment_table(experiments, flow)
    adaptation += words.UDA + "\n" + uda(results["uda_table2.json"]["rows"])
    likely, pairs = (results[f"cyclegan_{name}.json"] for name in ("parts", "pairs"))
    removal = [words.CYCLEGAN.format(experiment_source(likely)), experiment_table(cyclegan_table, likely), words.CYCLEGAN_NOTE]
    removal += [words.CYCLEGAN_BEFORE.format(experiment_source(pairs)), experiment_table(cyclegan_table, pairs)]
    parts = results["cacnet_parts.json"]
    artery_by_artery = [words.CACNET.format(experiment_source(parts)), experiment_table(cacnet_table, parts)]
    others = {
        "cacnet.md": "\n".join(artery_by_artery),
        "heart.md": "\n".join(hearts),
        "uda.md": adaptation,
        "ensemble.md": "\n".join(ensembles),
        "shipped.md": words.SHIPPED.format(experiment_source(results["shipped.json"]))
        + experiment_table(shipped_table, results["shipped.json"]),
    }
    return {"speed.md": "\n".join(speed), "cyclegan.md": "\n".join(removal)} | others


def read(folder) -> dict:
    """{file name: result} of a folder."""
    return {path.name: json.loads(path.read_text()) for path in sorted(pathlib.Path(folder).glob("*.json"))}


def plot(rows, path) -> None:
    """Bars of both ratios per row of a race from the line at 1; to its left PyTorch is faster."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row["ratio_published"] or row["ratio_tuned"]]
    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(rows) + 1.2), layout="constrained")
    for shift, other in ((-0.2, "published"), (0.2, "tuned")):
        beyond = [(row[f"ratio_{other}"] or 1) - 1 for row in rows]
        axes.barh([i + shift for i in range(len(rows))], beyond, 0.38, left=1, label=f"PyTorch {other}")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 5, 10, 20, 50], labels=["0.5", "1", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [f"{row['work']}, {row['case']}" for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("PyTorch's time / cacjax's time")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Write the pages and the plot."""
    results = read(RESULTS)
    for name, text in pages(results).items():
        replace(PAGES / name, lambda aside, text=text: aside.write_text(text))
        print(PAGES / name)
    plot(results["race_cpu.json"]["rows"], PLOT)


if __name__ == "__main__":
    main()

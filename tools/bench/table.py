"""Turn committed results into the README's table and a plot.

    python tools/bench/table.py [--results tools/bench/results] [--readme README.md] [--plot tools/pictures/race.png]

Every JSON with `rows` of tools/bench/run.py in --results, in order of name. The table goes between the two marker lines in the README;
rows that PyTorch wins stay in it.
"""

import argparse
import json
import os
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

ROOT = pathlib.Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- race: begin (tools/bench/table.py) -->", "<!-- race: end -->"
HEAD = ("work", "case", "ours", "published / ours", "tuned / ours", "compile", "share of ceiling")


def read(folder) -> list:
    """The results [{device, versions, date, command, rows}] that have rows of a race."""
    found = [json.loads(path.read_text()) for path in sorted(pathlib.Path(folder).glob("*.json"))]
    return [result for result in found if result["rows"] and "ours_s" in result["rows"][0]]


def seconds(value) -> str:
    """Seconds or milliseconds with three digits; a dash for None."""
    return "-" if value is None else f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def ratio(value) -> str:
    """How many times longer PyTorch takes; a dash for None."""
    return "-" if value is None else f"{value:.2f}x"


def table(results) -> str:
    """Markdown: one table per result, what it ran on above it."""
    parts = []
    for result in results:
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        parts.append(f"{result['device']}; {versions}; {result['date']}; `{result['command']}`:\n")
        lines = [HEAD, ("---",) * len(HEAD)]
        for row in result["rows"]:
            share = "-" if row["roofline_share"] is None else f"{100 * row['roofline_share']:.0f} %"
            ratios = ratio(row["ratio_published"]), ratio(row["ratio_tuned"])
            lines.append((row["work"], row["case"], seconds(row["ours_s"]), *ratios, seconds(row["compile_s"]), share))
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(parts)


def put(readme, text) -> None:
    """Replace what stands between the markers; raises ValueError where they are missing."""
    old = readme.read_text()
    if BEGIN not in old or END not in old:
        raise ValueError(f"{readme} lacks the markers {BEGIN} and {END}")
    before, after = old.split(BEGIN)[0], old.split(END)[1]
    temporary = readme.with_suffix(".tmp")
    temporary.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
    os.replace(temporary, readme)


def plot(results, path) -> None:
    """Bars of both ratios per row from the line at 1; to its left PyTorch is faster."""
    rows = [row for result in results for row in result["rows"] if row["ratio_published"] or row["ratio_tuned"]]
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
    """Write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "tools/bench/results", help="folder of JSON files")
    parser.add_argument("--readme", type=pathlib.Path, default=ROOT / "README.md", help="file with the markers")
    parser.add_argument("--plot", type=pathlib.Path, default=ROOT / "tools/pictures/race.png", help="PNG to write")
    options = parser.parse_args()
    results = read(options.results)
    if not results:
        sys.exit(f"error: no results of tools/bench/run.py in {options.results}")
    try:
        put(options.readme, table(results))
    except ValueError as error:
        sys.exit(f"error: {error}")
    plot(results, options.plot)
    print(f"{sum(len(result['rows']) for result in results)} rows into {options.readme}, plot {options.plot}")


if __name__ == "__main__":
    main()

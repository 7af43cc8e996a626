"""Turn committed results into tools/results/speed.md, heart.md, uda.md, ensemble.md, cyclegan.md and a plot: `python tools/bench/table.py`.

Each page is made wholly from the JSON in tools/bench/results, of tools/bench/run.py or of cacjax.experiments, and from the words that
stand here beside its tables. Rows that PyTorch wins stay in.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from cacjax.experiments import cells as cells_table
from cacjax.experiments import cyclegan as cyclegan_table
from cacjax.experiments import ensemble as ensemble_table
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

SPEED = """# Speed

Written by `python tools/bench/table.py` from the JSON files in `tools/bench/results`.

## Against PyTorch

Our own PyTorch of the same networks (`tools/bench/uda_torch.py`), as published and tuned (no graph where nothing is trained, channels
last, `torch.compile`), both sides in turn in one run. A ratio below 1 means that PyTorch is faster. Share of ceiling: the least time by
operations, at what a product of matrices reached in the same rounds, over ours.
"""
RACE_NOTE = """The machine was shared with others: in these rounds a product of 2048 x 2048 matrices ran at {} to {} GFLOP/s; ratios and
shares compare what ran in the same rounds. The command ran twice: the rows from "whole-scan detection" on are of half an hour later. The
block of 200 + 10 updates ran once, everything else five times; PyTorch's dense pass of a whole scan was timed on a twentieth of its
planes and scaled by operations.

![both ratios of every row](../pictures/race.png)
"""
ENSEMBLE_RACE = """## The five-U-Net ensemble against PyTorch

A training step of five members, each with its own two volumes, against five networks of PyTorch (`tools/bench/ensemble_torch.py`), eager
and tuned (channels last, `torch.compile`), and one member of the published size.
"""
CYCLEGAN_RACE = """## Calcium CycleGAN against PyTorch

A training step of both generators and both discriminators, all terms of the loss (`tools/bench/cyclegan_torch.py`), on one thread, other
work on the second core. A published step is 2.04 TFLOP: 1.3 times eager would be more than a product of matrices reaches here.
"""
LABELLING = """## Connected components

Of 512 x 512 x 256 voxels (percolation and spiral: 64 slices; ccta: a phantom from its scan threshold up), medians of 7. Neighbours 8:
every slice for itself. Table: voxels, volume, HU sum, peak, box, centroid, artery and per-slice area and peak of every lesion, against
cc3d with numpy on the foreground (without the last two, on both sides, where components are more than 65,536).
`python tools/bench/run.py --system labelling --rounds 7 --out FILE.json` measures it; the file below is of its forerunner.
"""
LABELLING_NOTE = """The processor is of family 26. A run minutes after the (virtual) machine had started took up to twice as long on our
side (blobs 9.2 to 12.2x cc3d, thorax 1.2 to 1.4x, spiral .11 to .16x); whether programs were compiled or read from the cache made no
difference afterwards.
"""
HEART = """# The heart network

Written by `python tools/bench/table.py` from the JSON files in `tools/bench/results`.

`python tools/bench/run.py --system heart --workdir RUN --out FILE.json` measures a network on phantoms of each protocol that it never saw
(the scan at 0.66 mm in the plane, mean ± SD over scans; under 3 minutes on 2 cores for a network at 3 mm); the files below are of its
forerunner. The aorta's mean and threshold (mean + 3 SD) are those of a box of 16 mm where the ascending aorta is deepest, as
`--threshold-hu auto` takes them; voxels further than five robust SD from the median (fat at an outline, calcium) do not count. In
non-contrast scans the phantom's box is the worse reference: an aorta that moves leaves it in part. The heart is dilated by 5 mm as
published.
"""
HEART_TITLES = {
    "heart_cpu.json": """## heart.py:tiny,whole

`python -m cacjax.train --config heart.py:tiny,whole --workdir runs/heart` takes 4 to 6 minutes on 2 CPU cores. The variant `whole` adds two
classes to the published six: the ascending aorta, and the rest within the pericardium. Without the latter the dilated heart misses a
quarter of the coronary lesions of the phantom, even by its true outlines; with it none.
""",
    "heart_half_cpu.json": """## heart.py:half

The published network whole, 386,942 parameters and six classes, trained by
`python -m cacjax.train --config heart.py:half --workdir runs/heart_half` on voxels of 1.6 mm, in blocks that show as much of the body as
the published ones at 0.8 mm: 1200 steps of two blocks, about 50 minutes on 2 CPU cores (2.1 s a step, AMD EPYC of family 25); its Dice was
still rising when it ended. The published six classes have no aorta: left ventricle and atrium without their outer 5 mm are measured
instead, which with a run of `heart.py:tiny` gave 60 ± 19 HU more (`--only ccta`). `heart.py` itself, 10,000 steps of eight blocks of 128
voxels, takes 32 GB and was not run to its end.
""",
}

ENSEMBLE = """# Five U-Nets that vote, Gogin 2021

Written by `python tools/bench/table.py` from the JSON files in `tools/bench/results`.

## Table 1

`python -m cacjax.experiments ensemble-table1 --size small --out DIR` trains five members on each of three sets (phantoms by category:
J1 80, J1 + J2 402, J1 + J2 + AD 763, and 20 for the choice of the best epoch), and scores 100 held-out gated phantoms, drawn in equal
parts from the categories A to E by their true mass of calcium (by their Agatston scores they are 26, 9, 25, 20, 20).

Below the published figures, and not trained to the end: 500 steps of two volumes are 12 epochs of J1 and 1.3 of the largest set, which
so shows nothing of what more scans give; the paper does not print its number of steps. Every error of all three ensembles is a category
too high. In the scans furthest off (`outliers_ad.png` beside the evaluation) calcium of the aortic valve, the mitral valve and the aorta is
called coronary, as the paper found for the mitral valve, or parts of the LCX are missed. The ensemble is above the mean of its
members in every row, by less than its interval.
{}
"""
ENSEMBLE_CELLS = """
## What the cells keep

`python -m cacjax.experiments ensemble-cells --size small --out DIR`, of the same scans. The paper restores what the downsampling loses
and does not say how; `max_components` is ours (areas of three pixels of 130 HU and more, as its score counts). `max` and `mean` bring the
same cells to 130 HU and differ in how bright they are. The phantom's pericardium reaches ribs in part, which counts as other cells in
every row.
"""

CYCLEGAN = """# Calcium CycleGAN, van Velzen 2022

Written by `python tools/bench/table.py` from `tools/bench/results/cyclegan_pairs.json`.

## Two scans of a patient

`python -m cacjax.experiments cyclegan-removal --size small --out DIR`: 160 pairs of phantom scans for radiotherapy planning, one in free
breathing and one in breath-hold, 276 of the 320 scans with calcium that can be seen, 76 pairs with calcium from 130 HU in both. One seed.
`cyclegan` has all terms of the loss; `removal` is without the way back (second generator, second discriminator, cycle). The heart, the
gate and each GAN were trained by one command each, the stages of the whole.

What the rows say. The relative difference is about half of that at 130 HU, with the classifier's gate, with the true slices and with
none; but a worse map has a lower one (no gate .18; a smoothing filter .07), since the same anatomy makes the same false positives twice:
it counts only beside the three columns about true calcium. With the true slices in the gate's place these are .80, .95 and .98, with the
classifier .65, .80 and .93: the gate loses most. It keeps some slice of every scan, so that every scan without calcium is positive; by
the least mass that leaves .14 of these, .74 of the scans with calcium are found, at 130 HU .66. Of what is false without a gate, 24 % lies
on slices with calcium, 11 % at calcium of the aorta or a valve, and 7 % of the whole map outside of the true heart (`removal`, 80 scans).
The second generator, the second discriminator and the cycle change no column by more than its interval.
{}
"""
CYCLEGAN_NOTE = """The scan with the median mass of calcium, slices with most of the map, without a gate: scan, twin, map, true calcium.

![scan, twin, map and true calcium](../pictures/cyclegan.png)
"""

UDA = """# Adaptation, Zhai 2022, Table 2

Written by `python tools/bench/table.py` from `tools/bench/results/uda_table2.json`, which
`python -m cacjax.experiments uda-table2 --size small --seeds 3 --out DIR` measures: 40 phantom scans a protocol, about 45 minutes a seed on
2 CPU cores (AMD EPYC of family 26; up to twice that on older ones). Medians of three seeds; in brackets what is published (other data:
theirs are not public). Sensitivity, FP and F1 are means over all scans; pooled F1 with its 95 % bootstrap interval over scans; over its
source: gain in pooled F1 over the network that an arm started from, on the same scans, resampled together; AP: average precision over
voxels from the scan threshold up within the heart. The phantom's pericardium is the heart, not dilated.
"""
UDA_NOTE = """What was trained is `tiny`: one orientation, 16 channels, a critic of 5 layers; the published form was not. Source and
adaptation learn from the same cardiac scans, where the paper's source network comes from chest CT and meets cardiac CT only in the
adaptation.

Without adaptation F1 falls as published (.86 on non-contrast scans, .02 on CCTA without reduction of false positives, .76 with it). The
full method does not reliably beat its source network, nor what L_cls alone makes of it: it gains where the source network is weak (seed 1:
.60 to .85), gains nothing where that is good, and once it spoiled it (seed 2: .78 to .29). The critic by domain does better here than the
joint one. What serves CCTA best needs no critic: the contrast-removing view, random tone curves in source training and three orientations
reach .84 to .89 in every seed. At seed 2 the critics without batch statistics (gradient penalty, spectral norm) were born dead: no
adversarial training took place, and those medians are of two seeds.

Each seed's pooled F1 (network: seeds in order):
"""


def uda(rows) -> str:
    """The table of an experiment, and the seeds of each column behind it."""
    shown = [[str(cell) for cell in experiments.shown(row).values()] for row in rows]
    seeds = [f"- {row['network']}, {row['scans']}, FP reduced: {row['fp_reduction']}: " for row in rows]
    values = [" ".join(f"{value:.2f}" for value in row["f1_seeds"]) for row in rows]
    return markdown(experiments.SHOWN, shown) + "\n" + UDA_NOTE + "\n" + "".join(f"{a}{b}\n" for a, b in zip(seeds, values))


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
    speed = section("race_cpu.json", race, SPEED, RACE_NOTE.format(min(reached), max(reached)))
    speed += section("labelling_cpu.json", labelling, LABELLING, LABELLING_NOTE)
    hearts = [HEART]
    for name, title in HEART_TITLES.items():
        hearts += section(name, heart, title)
    speed += section("ensemble_cpu.json", race, ENSEMBLE_RACE)
    speed += section("cyclegan_cpu.json", race, CYCLEGAN_RACE)
    table1, cells = (results[f"ensemble_{name}.json"] for name in ("table1", "cells"))
    ensembles = [ENSEMBLE.format(experiment_source(table1)), experiment_table(ensemble_table, table1), ENSEMBLE_CELLS]
    ensembles += [experiment_source(cells) + "\n", experiment_table(cells_table, cells)]
    adaptation = UDA + "\n" + uda(results["uda_table2.json"]["rows"])
    pairs = results["cyclegan_pairs.json"]
    removal = [CYCLEGAN.format(experiment_source(pairs)), experiment_table(cyclegan_table, pairs), CYCLEGAN_NOTE]
    others = {"heart.md": "\n".join(hearts), "uda.md": adaptation, "ensemble.md": "\n".join(ensembles)}
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

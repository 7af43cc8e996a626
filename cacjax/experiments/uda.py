"""Zhai 2022: what the experiments compare (networks to train, columns with the published figures, sizes), and how that is measured."""

import itertools
import json
import sys
from typing import NamedTuple

import numpy as np

from cacjax.experiments import commands, margins
from cacjax.experiments.commands import Network
from cacjax.report import pictures, tables

TEST_SEED = 900_000  # far from the patients of the training cohorts
MULTIPLE = 1  # of which the number of held-out scans is one
BOOTSTRAPS = 2000
EPSILON = 1e-5  # as in cacjax.evaluation.metrics
MARGINS_HU = (0, 25, 50, 100, 150)
MEASURES = ("sensitivity", "fp_mm3", "f1", "f1_calcified", "fp_share_clean", "sensitivity_pooled", "f1_pooled", "ap_pooled")
CAPTION = """Medians over the seeds.
Published figures in brackets; sensitivity, FP and F1 are means over all scans; F1, CAC: over those with coronary calcium; FP, no CAC: share
of those without it in which something was found; pooled F1 with its 95 % bootstrap interval; over its source: how much more that is than
the source network's on the same scans, resampled together. No network: what in the true heart is so many HU above the scan threshold.
Oracle: trained on labelled CCTA."""
SHOWN = ("network", "scans", "FP red.", "sensitivity", "FP mm³", "F1", "F1, CAC", "FP, no CAC", "pooled F1", "over its source", "AP")


class Column(NamedTuple):
    """One column of a table: a network on held-out scans of a protocol, with or without reduction of false positives.

    published: sensitivity, FP volume in mm3 and F1, averaged over all scans, None where the paper does not print it. margin_hu: of no
    network (""), see cacjax.experiments.margins.
    """

    title: str
    network: str
    protocol: str
    reduced: bool
    published: tuple[float | None, float | None, float | None] = (None, None, None)
    margin_hu: int | None = None


class Experiment(NamedTuple):
    """Networks by name and the columns made of them."""

    networks: dict[str, Network]
    columns: tuple[Column, ...]


class Size(NamedTuple):
    """How large: the word of the configs, the grid of the held-out scans (voxels; mm), how many of them per protocol, and which arm
    has the statistics that its config has anyway, and so is the network `adapted`. adapting: settings of every adaptation."""

    words: tuple[str, ...]
    shape: tuple[int, int, int]
    adapted: str
    scans: int = 40
    spacing_mm: tuple[float, float, float] = (1.5, 0.66, 0.66)
    adapting: tuple[str, ...] = ()


# Three seeds in three hours on 2 cores, reckoned in CPU seconds. A step of a source network takes .104 (2,000 of them; three orientations
# three times that), a block .56 (.29 as in `tiny`). Of 7,200 a seed sources take 1,450, starts 460, scoring and scans 3,100: the rest is
# 14 adaptations of 250 blocks, 2,000 critic updates before the generator moves; its 150 at twice the rate go about as far as `tiny`'s 400.
POOLS = tuple(f"streams.pool_{domain}.count=(1,16)" for domain in ("source", "target"))
SMALL = (*POOLS, "pretrain_blocks=100", "steps=250", "critic.updates=20", "generator.rate=2e-4")
SIZES = {
    "tiny": Size(("tiny",), (80, 208, 208), "critic_joint", scans=20),
    "small": Size(("tiny",), (80, 208, 208), "critic_joint", adapting=SMALL),
    "published": Size((), (96, 256, 256), "critic_by_domain"),
}

QUICK = {
    "source": Network("lessmann.py", ("quick",)),
    "adapted": Network("uda.py", ("quick",), needs={"source": "source"}),
}
# A clipped critic's values differ by 1 between the domains, these by tens and hundreds: weighted to speak about as loud.
PENALISED = ("critic.statistics=none", "critic.constraint=gradient_penalty", "adversarial_weight=0.02")
SPECTRAL = ("critic.statistics=none", "critic.constraint=spectral", "adversarial_weight=0.002")
CHEST = ("data.splits.source_train.protocol=chest", "data.seed=2000")  # patients of their own, whom no cardiac scan shows
FLOW = {"source": "source_chest"}  # the paper's: chest CT first, labelled cardiac CT in the adaptation
WIDER = {  # the longest training first
    "full": Network("uda.py", needs=FLOW),
    "full_without_labels": Network("uda.py", settings=("classification_weight=0.0",), needs=FLOW),
    "full_without_adversary": Network("uda.py", settings=("adversarial_weight=0.0",), needs=FLOW),
    "adversarial_only": Network("uda.py", settings=("classification_weight=0.0",), needs={"source": "source"}),
    "classification_only": Network("uda.py", settings=("adversarial_weight=0.0",), needs={"source": "source"}),
    "critic_by_domain": Network("uda.py", settings=("critic.statistics=domain",), needs={"source": "source"}),
    "critic_joint": Network("uda.py", settings=("critic.statistics=joint",), needs={"source": "source"}),
    "generator_by_domain": Network(
        "uda.py", settings=("critic.statistics=joint", "generator.statistics=domain"), needs={"source": "source"}
    ),
    "gradient_penalty": Network("uda.py", settings=PENALISED, needs={"source": "source"}),
    "spectral": Network("uda.py", settings=SPECTRAL, needs={"source": "source"}),
    "source_view": Network(needs={"source": "source"}, scoring=("view=contrast_removed",)),
    "adapted_view": Network("uda.py", ("view",), needs={"source": "source"}),
    "source_3": Network("lessmann.py", ("three",)),
    "adapted_3": Network("uda.py", ("three",), needs={"source": "source_3"}),
    "source_ancestor": Network(needs={"source": "source_3"}, scoring=("ancestor=True", "fp_reduction=lessmann")),
    "source_chest": Network("lessmann.py", settings=CHEST),
    "adapted_chest": Network("uda.py", settings=CHEST, needs=FLOW),
    "oracle": Network("lessmann.py", settings=("data.splits.source_train.protocol=ccta",)),
    "source": Network("lessmann.py"),
    "adapted": Network("uda.py", needs={"source": "source"}),
    "source_tone": Network("lessmann.py", ("tone",)),
    "adapted_tone": Network("uda.py", needs={"source": "source_tone"}),
}


def both(title, network, published=((None,) * 3,) * 2):
    """The two CCTA columns of a network: without and with reduction of false positives."""
    return tuple(Column(title, network, "ccta", reduced, published[reduced]) for reduced in (False, True))


def arm(title, network):
    """The CCTA column of an arm that the paper does not have, with reduction of false positives: it is scored several times faster."""
    return Column(title, network, "ccta", True)


def no_network(margin_hu):
    """The column of a threshold alone."""
    return Column(f"no network, threshold + {margin_hu} HU", "", "ccta", True, margin_hu=margin_hu)


EXPERIMENTS = {
    "uda-quick": Experiment(QUICK, (arm("source network", "source"), arm("adapted", "adapted"))),
    "uda-table2": Experiment(
        WIDER,
        (
            Column("source network from chest CT", "source_chest", "chest", False, (0.89, 73.6, 0.66)),
            *both("source network from chest CT", "source_chest", ((0.41, 132.0, 0.16), (0.43, 0.58, 0.41))),
            *both("full method", "full", ((0.78, 64.5, 0.41), (0.80, 19.8, 0.66))),
            *both("full method without L_cls", "full_without_labels", ((0.68, 25.8, 0.49), (None,) * 3)),
            arm("full method without L_adv", "full_without_adversary"),
            *both("chest CT in source and adaptation", "adapted_chest", ((0.53, None, None), (None,) * 3)),
            *map(no_network, MARGINS_HU),
            arm("oracle", "oracle"),
            Column("source network", "source", "cardiac", False),
            *both("source network", "source"),
            *both("adapted", "adapted"),
            *both("adapted without L_cls", "adversarial_only"),
            arm("adapted without L_adv", "classification_only"),
            arm("critic by domain", "critic_by_domain"),
            arm("critic joint", "critic_joint"),
            arm("critic joint, generator by domain", "generator_by_domain"),
            arm("critic with gradient penalty", "gradient_penalty"),
            arm("critic with spectral norm", "spectral"),
            arm("source network, contrast removed", "source_view"),
            arm("adapted, contrast removed", "adapted_view"),
            arm("source network, tone curves", "source_tone"),
            arm("adapted, tone curves", "adapted_tone"),
            arm("source network, three orientations", "source_3"),
            arm("source network, three orientations, as Lessmann 2018", "source_ancestor"),
            arm("adapted, three orientations", "adapted_3"),
        ),
    ),
}


def of_size(experiment, size) -> Experiment:
    """The experiment with the size's settings, without the arm that at this size is the network `adapted`, which stands in its columns."""
    networks = {name: network for name, network in experiment.networks.items() if name != size.adapted}
    adapting = {name: each for name, each in networks.items() if each.config == "uda.py"}
    networks |= {name: each._replace(settings=size.adapting + each.settings) for name, each in adapting.items()}
    shown = (column._replace(network="adapted") if column.network == size.adapted else column for column in experiment.columns)
    return Experiment(networks, tuple(shown))


def identity(column) -> dict:
    """What tells a column's row from others."""
    return {"network": column.title, "scans": column.protocol, "fp_reduction": "yes" if column.reduced else "no"}


def begin(experiment, size, test_folder, scans) -> None:
    """Make the held-out scans of every protocol, unless they are there."""
    for protocol in sorted({column.protocol for column in experiment.columns}):
        if not (test_folder / protocol / "manifest.csv").exists():
            grid = ["--shape", *map(str, size.shape), "--spacing", *map(str, size.spacing_mm), "--workers", "2"]
            made = ["--out", str(test_folder / protocol), "--protocol", protocol, "--n", str(scans), "--seed", str(TEST_SEED)]
            commands.run(f"make held-out scans: {protocol}", [["cacjax.phantom", *made, *grid]], None)


def test(experiment, size, test_folder, folder, scans) -> None:
    """Score and evaluate the held-out scans of every protocol."""
    del size, scans
    scored = [column for column in experiment.columns if column.network]
    for protocol in sorted({column.protocol for column in scored}):
        columns = [column for column in scored if column.protocol == protocol]
        test_protocol(experiment.networks, columns, test_folder / protocol, folder)
    if wanted := {column.margin_hu for column in experiment.columns if not column.network}:
        tables.write_json(folder / "margins.json", margins.measure(test_folder / "ccta", sorted(wanted)))


def test_protocol(networks, columns, scans_folder, folder) -> None:
    """Score the held-out scans of a protocol for its columns, compare with the truth."""
    protocol = columns[0].protocol
    wanted = {column.network: networks[column.network] for column in columns}
    found = {name: folder / "scores" / protocol / name for name in wanted}
    unreduced = {column.network for column in columns if not column.reduced}
    # The phantom's heart is all that the pericardium holds, arteries included: dilated as chambers have to be, it would reach ribs.
    score = ["cacjax.score", str(scans_folder), "--save-probability", "--no-pictures", "--resume", "--scoring.heart_dilation_mm=0"]
    words = [
        [*score, "--workdir", str(folder / "networks" / (name if network.config else network.needs["source"])), "--out", str(found[name])]
        + [f"--scoring.classify={'all' if name in unreduced else 'threshold'}", *(f"--scoring.{option}" for option in network.scoring)]
        for name, network in wanted.items()
    ]
    commands.run(f"score {protocol} scans", words, folder / "side_by_side.log")
    arms = [f"{name}={path}" for name, path in found.items()]
    out = str(folder / "evaluation" / protocol)
    commands.run("evaluate", [["cacjax.evaluate", "--predictions", *arms, "--reference", str(scans_folder), "--out", out]], None)


def measure(column, folder) -> dict:
    """One column of one seed: averages over all scans, pooled figures, and each scan's voxel counts, from evaluation.json."""
    if not column.network:
        return json.loads((folder / "margins.json").read_text())[str(column.margin_hu)]
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
    refuse_twins(experiment, results)
    measured = [[result["columns"][i] for result in results] for i in range(len(experiment.columns))]
    places = {(column.network, column.protocol, column.reduced): i for i, column in enumerate(experiment.columns)}

    def of_source(column):
        """What was measured of the network that a column's network started from, or None."""
        needs = experiment.networks[column.network].needs if column.network else {}
        place = places.get((needs.get("source"), column.protocol, column.reduced))
        return None if place is None else measured[place]

    return [summarise(column, own, of_source(column)) for column, own in zip(experiment.columns, measured)]


def refuse_twins(experiment, results) -> None:
    """End the program where two networks have all figures of a seed in common: one of them was not trained as it says."""
    for result in results:
        for (a, one), (b, other) in itertools.combinations(zip(experiment.columns, result["columns"]), 2):
            if a.network and b.network and a.network != b.network and one == other:
                text = (
                    f"{a.title} and {b.title} have the same figures to the last digit: see the metrics.jsonl of {a.network} and {b.network}"
                )
                sys.exit(f"error: seed {result['seed']}: {text}")


def by_calcium(counts) -> dict:
    """Figures of the scans with and without coronary calcium, each group apart, from voxel counts; NaN for an empty group."""
    tp, fp, fn = np.asarray(counts, float).T
    calcified = tp + fn > 0
    f1 = (2 * tp + EPSILON) / (2 * tp + fp + fn + EPSILON)
    some = lambda values: float(values.mean()) if len(values) else np.nan  # noqa: E731
    return {"f1_calcified": some(f1[calcified]), "fp_share_clean": some(fp[~calcified] > 0)}


def summarise(column, measured, source=None) -> dict:
    """The row of a column: medians over the seeds, the interval of the pooled F1, how much more it is than the source network's on the
    same scans (None where the table has no such column), the published figures."""
    row = identity(column) | {"seeds": len(measured), "n": len(measured[0]["counts"])}
    apart = [one | by_calcium(one["counts"]) for one in measured]
    for name in MEASURES:
        row[name] = float(np.median([np.nan if one[name] is None else one[name] for one in apart]))
    scores = resampled(measured)
    row["f1_low"], row["f1_high"] = interval(scores)
    row["f1_seeds"] = [one["f1_pooled"] for one in measured]
    gain = source and [own["f1_pooled"] - before["f1_pooled"] for own, before in zip(measured, source)]
    row["gain"] = source and float(np.median(gain))
    row["gain_low"], row["gain_high"] = interval(scores - resampled(source)) if source else (None, None)
    return row | dict(zip(("published_sensitivity", "published_fp_mm3", "published_f1"), column.published))


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
    known = lambda name: "" if row[name] is None or np.isnan(row[name]) else f"{row[name]:.2f}"  # noqa: E731
    beside = lambda name, digits: "" if row[name] is None else f" ({row[name]:.{digits}f})"  # noqa: E731
    cells = {
        "network": row["network"],
        "scans": row["scans"],
        "FP red.": row["fp_reduction"],
        "sensitivity": f"{row['sensitivity']:.2f}{beside('published_sensitivity', 2)}",
        "FP mm³": f"{row['fp_mm3']:.1f}{beside('published_fp_mm3', 1)}",
        "F1": f"{row['f1']:.2f}{beside('published_f1', 2)}",
        "F1, CAC": known("f1_calcified"),
        "FP, no CAC": known("fp_share_clean"),
        "pooled F1": f"{row['f1_pooled']:.2f} [{row['f1_low']:.2f}, {row['f1_high']:.2f}]",
        "over its source": "" if row["gain"] is None else f"{row['gain']:+.2f} [{row['gain_low']:+.2f}, {row['gain_high']:+.2f}]",
        "AP": known("ap_pooled"),
    }
    return cells


def draw(path, rows) -> None:
    """The picture of the table."""
    pictures.arms(path, rows)

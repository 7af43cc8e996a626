"""Measure a trained heart network on phantoms that it never saw: outlines, the aorta's threshold, and the calcium that its heart holds.

    python tools/bench/heart.py --workdir runs/heart [--n 20] [--protocols ccta cardiac chest rtp] [--out results.json]

Patients --seed, --seed + 1, ..; a seed that the run was trained on ends the program. JSON: {"device", "versions", "date", "command",
"network", "rows"}, one row for each protocol:

  dice         by structure, as far as the network has classes, and of the whole heart (all but the aorta): mean, sd, least over scans
  aorta        scans in which `cacjax.scoring.threshold.measure` finds blood; mean_error_hu: its mean less that of the phantom's box;
               for scans with contrast medium also threshold_error_hu, of mean + 3 SD; outline_error_hu: mean + 3 SD less the same
               measured in the true outlines: mean, sd, and most, the largest of either sign
  calcium      marked coronary calcium of all scans, mm3 and lesions, and how much of it (pct), and how many lesions by half or more,
               lie within a heart dilated as `cacjax.score` does: that of the network; the true one of the same classes; the true one
               of the published classes
"""

import argparse
import datetime
import functools
import importlib.metadata
import pathlib
import platform
import sys

import numpy as np
import run
import tqdm
from scipy import ndimage

from cacjax import train
from cacjax.data import phantom as cohort
from cacjax.files import scan
from cacjax.files.geometry import Acquisition
from cacjax.kernels import spatial
from cacjax.phantom import make_scan
from cacjax.scoring import hearts, one_scan, threshold

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy")
PUBLISHED_CLASSES = 6
WHOLE = "whole heart"
ERRORS = {
    "mean_error_hu": "aortic mean, HU, against the phantom's box",
    "threshold_error_hu": "threshold, HU, against the phantom's box",
    "outline_error_hu": "mean + 3 SD, HU, against true outlines",
}
HEARTS = {"network": "the network's heart", "true": "its true outlines", "true_published": "true outlines, published classes"}


def measure(segmenter, phantom) -> dict:
    """{"dice", the keys of ERRORS, "mm3", "lesions", "inside"} of one `cacjax.phantom.Phantom`.

    segmenter: (config, predict) of a heart network.
    """
    classes = int(segmenter[0].model.classes)
    image = scan.Scan(phantom.hu.astype(np.float32), phantom.affine, f"seed {phantom.truth['seed']}", Acquisition())
    found = hearts.segment(segmenter, image)
    truth = np.where(phantom.structures < classes, phantom.structures, 0)
    masks = {name: (found == number, truth == number) for number, name in enumerate(hearts.STRUCTURES[:classes]) if number}
    masks[WHOLE] = hearts.is_heart(found), hearts.is_heart(truth)
    chambers = (phantom.structures > 0) & (phantom.structures < PUBLISHED_CLASSES)
    outlines = dict(zip(HEARTS, (*masks[WHOLE], chambers)))
    both = [hearts.Heart(mask, each, classes, "network") for mask, each in zip(masks[WHOLE], (found, truth))]
    record = {"dice": {name: dice(*pair) for name, pair in masks.items()}} | blood_errors(image, *both, phantom.truth)
    return record | holding(np.isin(phantom.label, (1, 2, 3)), outlines, scan.spacing_mm(image.affine))


def dice(a, b) -> float:
    """Overlap of two masks; NaN where both are empty."""
    both = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / both if both else float("nan")


def blood_errors(image, heart, true_heart, truth) -> dict:
    """ERRORS of what is measured in a `hearts.Heart`; None where there is no blood to measure, or no contrast medium."""
    errors = dict.fromkeys(ERRORS)
    try:
        pool, expected = (threshold.measure(image, each) for each in (heart, true_heart))
    except scan.ScanError:
        return errors
    threshold_hu, expected_hu = (each.mean_hu + threshold.DEVIATIONS * each.sd_hu for each in (pool, expected))
    errors |= {"mean_error_hu": pool.mean_hu - truth["aorta_hu"], "outline_error_hu": threshold_hu - expected_hu}
    return errors | ({"threshold_error_hu": threshold_hu - truth["threshold_hu"]} if truth["contrast"] else {})


def holding(coronary, outlines, spacing_mm) -> dict:
    """mm3 and number of lesions (26-connected) of coronary calcium [z, y, x], and of both what lies within each dilated outline."""
    voxel_mm3 = float(np.prod(spacing_mm))
    lesion, count = ndimage.label(coronary, np.ones((3, 3, 3)))
    sizes = np.bincount(lesion[coronary], minlength=count + 1)[1:]
    inside = {}
    for name, outline in outlines.items():
        reached = coronary & np.asarray(spatial.dilate(outline, one_scan.HEART_DILATION_MM, spacing_mm))
        held = np.bincount(lesion[reached], minlength=count + 1)[1:]
        inside[name] = {"mm3": float(held.sum() * voxel_mm3), "lesions": int((2 * held >= sizes).sum())}
    return {"mm3": float(sizes.sum() * voxel_mm3), "lesions": int(count), "inside": inside}


def summarise(protocol, records) -> dict:
    """The row of a protocol."""
    row = {"protocol": protocol, "scans": len(records), "dice": {}}
    for name in records[0]["dice"]:
        values = [record["dice"][name] for record in records]
        row["dice"][name] = {"mean": rounded(np.nanmean(values)), "sd": rounded(np.nanstd(values)), "least": rounded(np.nanmin(values))}
    errors = {key: [r[key] for r in records if r[key] is not None] for key in ERRORS}
    row["aorta"] = {"measured": len(errors["mean_error_hu"])}
    row["aorta"] |= {key: spread(values) for key, values in errors.items() if values}
    mm3, lesions = (sum(record[key] for record in records) for key in ("mm3", "lesions"))
    row["calcium"] = {"scans": sum(record["lesions"] > 0 for record in records), "mm3": rounded(mm3), "lesions": lesions, "inside": {}}
    for name in HEARTS:
        held, whole = (sum(record["inside"][name][key] for record in records) for key in ("mm3", "lesions"))
        row["calcium"]["inside"][name] = {"pct": rounded(100 * held / mm3) if mm3 else None, "lesions": whole}
    return row


def spread(values) -> dict:
    """Mean and standard deviation of errors in HU, and the largest of either sign."""
    return {"mean": rounded(np.mean(values)), "sd": rounded(np.std(values)), "most": rounded(np.abs(values).max())}


def rounded(value) -> float:
    """Three decimals."""
    return round(float(value), 3)


def table(rows) -> str:
    """Markdown: a column for each protocol."""
    lines = [["", *(f"{row['protocol']}, {row['scans']} scans" for row in rows)], ["---"] * (1 + len(rows))]
    for name in sorted(rows[0]["dice"], key=lambda name: name != WHOLE):
        lines.append([f"Dice, {name}", *("{mean:.3f} ± {sd:.3f}".format(**row["dice"][name]) for row in rows)])
    for key, said in ERRORS.items():
        cells = ["{mean:+.1f} ± {sd:.1f}, {most:.1f} at most".format(**row["aorta"][key]) if key in row["aorta"] else "-" for row in rows]
        lines.append([f"error of the {said}", *cells])
    lines.append(["scans with blood measured", *(f"{row['aorta']['measured']}" for row in rows)])
    lines.append(["coronary calcium: scans, lesions, mm3", *("{scans}, {lesions}, {mm3:.0f}".format(**row["calcium"]) for row in rows)])
    for name, said in HEARTS.items():
        held = [row["calcium"]["inside"][name] for row in rows]
        cells = ["-" if h["pct"] is None else f"{h['pct']:.1f} %, {h['lesions']} lesions" for h in held]
        lines.append([f"of it within {said}", *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def trained_on(data) -> set:
    """Seeds of the phantoms that a config's data hold; none for scans of a folder."""
    if data.kind != "phantom":
        return set()
    parts = [(split, part) for split, part in data.splits.items()]
    again = range(0, 100_000, 5_000)  # see cacjax.data.phantom.calcified_seed
    first = {cohort.patient_seed(data.seed, split, number) for split, part in parts for number in range(part.count)}
    return {seed + more for seed in first for more in again}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workdir", required=True, help="run of a heart network: python -m cacjax.train --config heart.py:tiny,whole")
    p.add_argument("--n", type=int, default=20, help="scans of each protocol (default: %(default)s)")
    p.add_argument("--protocols", nargs="+", choices=cohort.PROTOCOLS, default=["ccta", "cardiac", "chest", "rtp"], help="default: all")
    p.add_argument("--seed", type=int, default=500_000, help="of the first patient (default: %(default)s)")
    p.add_argument("--shape", type=int, nargs=3, metavar=("Z", "Y", "X"), default=(80, 208, 208), help="voxels (default: 80 208 208)")
    p.add_argument("--spacing", type=float, nargs=3, metavar=("DZ", "DY", "DX"), default=(1.5, 0.66, 0.66), help="default: 1.5 .66 .66 mm")
    p.add_argument("--out", type=pathlib.Path, help="write the rows to this JSON file")
    return p


def main(arguments=None) -> None:
    """Measure, print the table, write the JSON."""
    p = parser()
    options = p.parse_args(arguments)
    if options.n < 1:
        p.error(f"--n must be at least 1, got {options.n}")
    config, state = train.restore(options.workdir)
    if config.task != "heart":
        p.error(f"--workdir holds a run of {config.task}.py, expected heart.py")
    seeds = range(options.seed, options.seed + options.n)
    if known := trained_on(config.data).intersection(seeds):
        p.error(f"the run in --workdir was trained on patients {sorted(known)}: choose another --seed")
    grid = {"shape": tuple(options.shape), "spacing_mm": tuple(options.spacing)}
    segmenter = config, functools.partial(train.build(config).predict, state)
    rows, jobs = [], len(options.protocols) * options.n
    with tqdm.tqdm(total=jobs, desc="heart", unit="scan") as bar:
        for protocol in options.protocols:
            records = []
            for seed in seeds:
                records.append(measure(segmenter, make_scan(protocol, seed, **grid)))
                bar.update()
            rows.append(summarise(protocol, records))
    print(table(rows))
    if options.out:
        network = {"classes": config.model.classes, "spacing_mm": config.spacing_mm, "step": int(state.step), "seed": config.seed}
        versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
        about = {"device": run.processor(), "versions": versions, "date": datetime.date.today().isoformat()}
        run.save(options.out, about | {"command": " ".join(["python", *sys.argv]), "network": network, "rows": rows})


if __name__ == "__main__":
    main()

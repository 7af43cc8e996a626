"""Compare predictions with a reference: `python -m cacjax.evaluate --predictions [NAME=]OUT ... --reference DIR`.

DIR holds a manifest.csv with masks; OUT is what `cacjax.score` wrote. Per artery and in total, with and without
reduction of false positives: sensitivity, volume of false positives, F1 and average precision over voxels;
sensitivity, false ones per scan and F1 over lesions (evaluation.csv; definitions: cacjax/evaluation/metrics.py), averaged over
all scans, over those with calcium, and pooled; and how volumes, numbers of lesions, Agatston scores and risk categories
agree (agreement.csv; cacjax/evaluation/agreement.py). Which artery's calcium was taken for which: arteries.csv. Pictures:
comparison.png, agreement.png, and outliers_<arm>.png of the scans furthest off. A scan without prediction is a row with a reason.

`--standard orcascore` compares by that challenge's rules: coronary calcium above 130 HU in the reference as in what was found, lesions of
6 neighbours that are larger than 1.5 mm³, each of the artery of most of it, figures pooled by volume. Agatston scores of what was found
remain those that the predictions hold (by that challenge's: `cacjax.score --rule orcascore`).

With `--pairs pairs.csv` in place of a reference, two scans of one patient are compared (columns pair, first, second, named as in
scores.csv): reproducibility.csv, .json and .png; definitions: cacjax/evaluation/pairs.py.
"""

import argparse
import pathlib

from cacjax.evaluation import compare, pairs
from cacjax.files import manifest


def main(argv=None):
    """Evaluate what the command line names; returns the exit code: 1 when a reference or a prediction was missing."""
    options = parse(argv)
    arms = dict(options.predictions)
    room = pairs if options.pairs else compare
    try:
        result = pairs.evaluate(arms, options.pairs) if options.pairs else compare.evaluate(arms, options.reference, standard(options))
    except manifest.ManifestError as error:
        raise SystemExit(f"error: {error}") from None
    written = room.write(result, pathlib.Path(options.out or next(iter(arms.values()))), arms)
    for text in room.tell(result):
        print(text, end="\n\n")
    for arm, name, reason in result["missing"]:
        print(f"{arm}, {name}: {reason}")
    what = "pairs" if options.pairs else "scans"
    print(f"{result['n']} {what}, {len(arms)} predictions, {len(result['missing'])} missing; {written}")
    return int(bool(result["missing"]) or not result["n"])


def standard(options):
    """The `compare.Standard` that the command line asks for."""
    return compare.STANDARDS[options.standard] if options.standard else compare.Standard(options.connectivity)


def parse(argv):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(prog="python -m cacjax.evaluate", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add(
        "--predictions",
        nargs="+",
        required=True,
        type=_arm,
        metavar="[NAME=]OUT",
        help="folders that cacjax.score wrote, one per arm",
    )
    against = parser.add_mutually_exclusive_group(required=True)
    against.add_argument("--reference", metavar="DIR", help="folder with a manifest.csv that names scans and masks")
    against.add_argument(
        "--pairs", metavar="CSV", help="two scans of one patient a line: columns pair, first, second and, if wanted, group"
    )
    add("--out", help="folder for evaluation.csv and the rest (default: the first OUT)")
    lesions = parser.add_mutually_exclusive_group()
    lesions.add_argument("--connectivity", type=int, choices=(6, 18, 26), default=26, help="neighbours that make one lesion (default: 26)")
    lesions.add_argument("--standard", choices=sorted(compare.STANDARDS), help="compare what counts by this reference standard")
    options = parser.parse_args(argv)
    for _, folder in options.predictions:
        if not folder.is_dir():
            parser.error(f"no folder {folder}: expected one that cacjax.score wrote")
    if len(dict(options.predictions)) < len(options.predictions):
        parser.error("expected a different NAME=OUT for each prediction, got the same name twice")
    return options


def _arm(text):
    name, found, folder = text.partition("=")
    return (name, pathlib.Path(folder)) if found else (pathlib.Path(text).name, pathlib.Path(text))


if __name__ == "__main__":
    raise SystemExit(main())

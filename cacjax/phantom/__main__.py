"""`python -m cacjax.phantom`: write synthetic scans with known calcium, check their statistics, draw the README's figure."""

import argparse
import functools
import sys

PROTOCOLS = ("chest", "cardiac", "ccta", "rtp")
SCENES = ("abdomen", "neck", "head", "wide", "arms_down", "arms_up", "thin_plaques", "sharp", "moving", "streaks")
MOST_AGAIN = 5_000  # patients: beyond, one that is drawn again could be another one, see pool.AGAIN


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m cacjax.phantom", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--out", metavar="DIR", help="folder for the scans (with --check: for its tables)")
    p.add_argument("--scene", nargs="+", choices=SCENES, default=(), help="what else each shows, such as a region without a heart")
    p.add_argument("--n", type=int, default=4, help="number of patients")
    several = "with commas between, patients take them in turn, and a scene may follow: chest,chest:wide+sharp"
    p.add_argument("--protocol", default="ccta", help=f"how they are scanned: {', '.join(PROTOCOLS)}; {several}")
    p.add_argument("--seed", type=int, default=0, help="seed of the first patient; the next ones follow")
    p.add_argument(
        "--categories",
        type=int,
        nargs=5,
        metavar=("A", "B", "C", "D", "E"),
        help="in place of --n: how many patients of each category of Agatston scores (0, to 10, 100, 400, above), by true calcium mass",
    )
    p.add_argument(
        "--calcified",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="draw this share of the patients again until they have coronary calcium",
    )
    p.add_argument("--pairs", action="store_true", help="two scans of each patient, IDs ending in a and b, listed in pairs.csv")
    p.add_argument("--maps", action="store_true", help="also write the noise-free map of coronary calcium, ID_coronary.nii.gz, in HU")
    p.add_argument("--structures", action="store_true", help="also write the heart's structures, ID_structures.nii.gz")
    p.add_argument("--shape", type=int, nargs=3, metavar=("Z", "Y", "X"), help="matrix, centred on the heart (default: the scanner's own)")
    p.add_argument("--spacing", type=float, nargs=3, metavar=("DZ", "DY", "DX"), help="mm, with --shape (default 1.5 .66 .66)")
    p.add_argument("--format", choices=("nifti", "dicom"), default="nifti", help="file format of the scans")
    p.add_argument("--split", default="test", help="what the manifest calls them")
    p.add_argument("--workers", type=int, default=0, metavar="N", help="processes (0: this one)")
    p.add_argument("--check", action="store_true", help="repeat the statistics on --n patients per cohort beside published values")
    p.add_argument("--figure", metavar="FILE.png", help="draw one slice of every protocol side by side")
    return p


def main(arguments=None) -> int:
    """Run the command; returns its exit status."""
    p = parser()
    options = p.parse_args(arguments)
    if not (options.out or options.check or options.figure):
        p.error("nothing to do: give --out DIR, --check or --figure FILE.png")
    if options.categories and (min(options.categories) < 0 or not sum(options.categories)):
        p.error(f"--categories must be five numbers of patients, got {options.categories}")
    if not 0 <= options.calcified <= 1 or (options.calcified and (options.categories or options.n > MOST_AGAIN)):
        p.error(f"--calcified must be from 0 to 1, for at most {MOST_AGAIN} patients, without --categories, got {options.calcified}")
    if options.n < 1 or options.workers < 0:
        p.error(f"--n must be at least 1 and --workers at least 0, got {options.n} and {options.workers}")
    if min(options.shape or (1,)) < 1 or min(options.spacing or (1,)) <= 0:
        p.error(f"--shape and --spacing must be above 0, got {options.shape} and {options.spacing}")
    if options.out and not options.check:
        _split(p, options)
    if options.figure:
        _draw_figure(options)
    if options.check:
        _check(options)
    elif options.out:
        _write(options)
    return 0


def _split(p, options):
    """Protocols with their scenes in place of options.protocol; ends the program where there is none such."""
    from cacjax.phantom import acquisition

    scene = "+".join(options.scene)
    options.protocol = [f"{one}{'+' if ':' in one else ':'}{scene}" if scene else one for one in options.protocol.split(",")]
    try:
        for one in options.protocol:
            acquisition.split(one)
    except ValueError as error:
        p.error(f"--protocol: {error}")
    if options.categories and len(options.protocol) > 1:
        p.error("--categories needs one protocol")


def _draw_figure(options):
    from cacjax.phantom import make_scan, picture

    grid = {"shape": options.shape or (80, 256, 256), "spacing_mm": options.spacing}
    picture.protocols_figure([make_scan(protocol, options.seed, **grid) for protocol in PROTOCOLS], options.figure)
    print(f"wrote {options.figure}")


def _write(options):
    from cacjax.phantom import folder, pool

    seeds = range(options.seed, options.seed + options.n)
    if options.categories:
        spread = functools.partial(folder.spread, workers=options.workers)
        seeds = pool.draw(options.categories, options.seed, options.protocol[0], spread=spread)
    truths = folder.write_cohort(
        options.out,
        options.protocol,
        seeds,
        shape=options.shape,
        spacing_mm=options.spacing,
        file_format=options.format,
        split=options.split,
        workers=options.workers,
        calcified=options.calcified,
        pairs=options.pairs,
        maps=options.maps,
        structures=options.structures,
    )
    with_calcium = sum(t["agatston"]["total"] > 0 for t in truths)
    see = "manifest.csv and pairs.csv" if options.pairs else "manifest.csv"
    print(
        f"wrote {len(truths)} {', '.join(options.protocol)} scans to {options.out}, {with_calcium} with marked coronary calcium; see {see}"
    )


def _check(options):
    from cacjax.phantom import check

    check.run(options.n, options.seed, out=options.out, workers=options.workers)


if __name__ == "__main__":
    sys.exit(main())

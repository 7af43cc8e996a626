"""Detect and score calcium: `python -m cacjax.score SCAN... --workdir W --out OUT`.

A SCAN is a file, a DICOM folder or zip, a folder of those, or a folder with a manifest.csv, which brings hearts and
thresholds. N scans give N answers: a scan that cannot be scored is a row with a reason, and the exit code is 1; one whose
score was changed by its tube voltage, or is in doubt, has a reason, too (README: Your own scans). OUT holds scores.csv (one
row per scan, rule and artery) and, per scan, <scan>.json, <scan>_mask.nii.gz (what was found), <scan>_scored.nii.gz (of it
the voxels that the first rule counts, which <scan>.json lists and <scan>.png shows), <scan>_detected.nii.gz (before false
positives are reduced) and <scan>.png; from a heart network also <scan>_heart.nii.gz and <scan>_heart.png. Long detections
show their progress.

Without --workdir the networks that ship with the package detect and, unless --heart is given, find the heart and measure the threshold
(--threshold-hu auto, unless one is given): trained on digital phantoms alone, research only, as every score that they give says.

What the system itself does is set by --scoring.KEY=VALUE in place of its config's `scoring`, such as --scoring.least_probability=0;
a KEY that it lacks is answered with those that it has.
"""

import argparse
import collections
import pathlib
import re
import sys
import time
import types

from cacjax import backend
from cacjax.files import reading
from cacjax.kernels import rules, scores
from cacjax.report import tables
from cacjax.scoring import batch, one_scan, rulebook
from cacjax.scoring.jobs import gather
from cacjax.scoring.threshold import AUTO

SHIPPED = pathlib.Path(__file__).parent / "shipped"  # networks: detector, heart (tools/ship.py)
_last_runs = collections.deque(maxlen=4)


def main(argv=None, before=None):
    """Score what the command line names; returns the exit code: 1 when any scan was refused, 2 when results could not be written.

    before: {stage: seconds} that the process has taken so far, for the record of the first scan.
    """
    options, before = parse(argv), dict(before or {})
    out = pathlib.Path(options.out)
    try:
        with batch.output(out), reading.Readers(options.readers, seconds=options.reader_seconds, megabytes=options.reader_mb) as readers:
            print(f"device: {batch.describe_device()}", flush=True)
            jobs = gather(options, readers)
            began = time.perf_counter()
            runs = _runs(options)
            before["restore"] = round(time.perf_counter() - began, 4)
            records = batch.run(jobs, out, options, *runs, readers, before=before)
    except reading.ReaderError as error:
        raise SystemExit(f"error: {error}") from None
    except batch.OutputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command with --resume continues") from None
    rows = batch.all_rows(records)
    columns = [name for name in tables.SHOWN if name != "map_hu_mm3" or any(row.get(name) is not None for row in rows)]
    print(tables.table(rows, columns, digits=5 if options.regions else 2))
    print(batch.spent(records))
    refused = sum(record["status"] != "scored" for record in records)
    print(f"{len(records)} scans: {len(records) - refused} scored, {refused} refused; {out / batch.TABLE}")
    return int(refused > 0 or not records)


def parse(argv):
    """The command line as a namespace; argparse ends the program on a mistake, with the expected form."""
    description = __doc__.split("\n\n")
    parser = argparse.ArgumentParser(prog="python -m cacjax.score", description=description[0], epilog="\n".join(description[2:]))
    add = parser.add_argument
    add("scan", nargs="+", metavar="SCAN", help="file, DICOM folder or zip, folder of those, or folder with manifest.csv")
    add("--workdir", help="training folder: the newest checkpoint in it detects (default: networks that ship with the package)")
    add(
        "--out",
        required=True,
        help="folder for the results; files of the same scan are overwritten; exit code 2 where it cannot be written",
    )
    add("--regions", help="score these candidate regions instead of detecting: each label one row")
    add("--series", help="which CT series, where a folder holds several: UID, end of the UID, or part of the description")
    add("--heart", help="limit detection to this heart mask, or to what the heart network of this training folder finds (for all scans)")
    add(
        "--threshold-hu",
        type=_threshold,
        help='scan threshold in HU, or "auto": aortic mean + 3 SD as measured with the heart network (default: the manifest\'s, else 130)',
    )
    add("--aorta-roi", help="file with mean and SD of the aorta as 7th and 8th number (Zhai 2022), or a folder of them, <scan>.txt")
    add("--aorta-hu", type=float, help="mean HU of the ascending aorta, which some systems need (default: the manifest's)")
    own = "or FILE.toml:NAME, a table of your own (see cacjax/scoring/rulebook.py); all read one mask, the first is shown"
    add("--rule", type=_rules, metavar="RULE[,RULE]", help=f"scoring rules: {', '.join(rules.RULES)}; {own} (default: the system's)")
    add("--scheme", choices=tuple(scores.SCHEMES), help="risk categories (default: the system's)")
    add("--mass-factor", type=float, help="calcium calibration in mg per cm³ and HU; without it no mass is given")
    add("--scores-only", action="store_true", help="write scores and records, no masks and no pictures: sooner, but not to be evaluated")
    add("--no-pictures", action="store_true", help="write no pictures, which take longer than scoring a small scan")
    add("--save-probability", action="store_true", help="also write the probability of coronary calcium of every voxel classified")
    add("--readers", type=_positive, default=1, help="processes that read scans ahead, while others are scored (default: 1)")
    add("--reader-seconds", type=_positive, default=reading.SECONDS, help="limit for reading one scan (default: %(default)s)")
    add("--reader-mb", type=_positive, help="limit of memory for reading one scan, MB (default: 40 times its files, 700 at least)")
    add("--resume", action="store_true", help="keep scans that an earlier run finished with the same settings")
    words, scoring = split_scoring(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(words)
    options.scoring = scoring
    if not options.regions and not options.workdir:
        options.workdir = str(SHIPPED / "detector")
        options.heart, options.threshold_hu = or_shipped(options.heart, options.threshold_hu, options.aorta_roi)
    if options.threshold_hu == AUTO and not (options.heart and pathlib.Path(options.heart).is_dir()):
        parser.error("--threshold-hu auto needs --heart WORKDIR, the training folder of a heart network")
    return options


def or_shipped(heart, threshold_hu, aorta_roi):
    """(heart, threshold) for the detector that ships with the package: what is not given its heart network finds and measures."""
    if heart is None:
        heart, measured = str(SHIPPED / "heart"), AUTO if aorta_roi is None else None
        threshold_hu = measured if threshold_hu is None else threshold_hu
    return heart, threshold_hu


def split_scoring(words):
    """(the other words of a command line, {key: text} of its --scoring.key=value)."""
    found = {word: re.fullmatch(r"--scoring\.(\w+)=(.*)", word) for word in words if word.startswith("--scoring")}
    for word, match in found.items():
        if not match:
            raise SystemExit(f"error: expected --scoring.KEY=VALUE, got {word}")
    return [word for word in words if word not in found], {match[1]: match[2] for match in found.values()}


def _positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text}")
    return int(text)


def _threshold(text):
    return text if text == AUTO else float(text)


def _rules(text):
    try:
        return rulebook.find(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _runs(options):
    """(run that detects or None, run that finds the heart or what else is given as one). SystemExit where one cannot be used."""
    try:
        detector = None if options.regions else load_detector(options.workdir, options.scoring)
        return detector, load_heart(options.heart)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


def load_detector(workdir, scoring=None):
    """The run (config, task, state) of a system that detects calcium. scoring: in place of settings of its `config.scoring`."""
    return _load(workdir, "detector", "one that detects calcium, such as of lessmann.py or uda.py", scoring)


def load_heart(given):
    """The run of the heart network in the training folder `given`; what is no training folder comes back as it is."""
    is_run = isinstance(given, str | pathlib.Path) and pathlib.Path(given).is_dir()
    return _load(given, "segment", "one that finds the heart, of heart.py") if is_run else given


def _load(workdir, ability, expected, scoring=None):
    """A trained run whose Task has an ability. Raises ValueError for another, FileNotFoundError for none."""
    run = _restored(workdir, scoring or {})
    if getattr(run.task, ability) is None:
        raise ValueError(f"{workdir} holds a run of {run.config.task}.py, expected {expected}")
    return run


def _restored(workdir, scoring):
    """The newest checkpoint of a training folder, of the last few that were asked for; what has changed since is read anew."""
    from cacjax.training.workdir import load  # not needed to score given regions

    written = [path.stat().st_mtime_ns for path in (pathlib.Path(workdir) / "config.json",) if path.exists()]
    key = str(pathlib.Path(workdir).absolute()), repr(sorted(scoring.items())), written, batch.newest(workdir)
    for known, run in _last_runs:
        if known == key:
            return run
    _last_runs.append((key, load(workdir, scoring)))
    return _last_runs[-1][1]


def score(path_or_scan, *, workdir=None, scoring=None, detector=None, heart=None, **options):
    """Detect and score calcium in one scan, with the newest checkpoint of the training folder `workdir`; see `one_scan.score`.

    scoring: {key: value} in place of settings of the run's `config.scoring`. heart: also the training folder of a heart network. Without
    workdir, detector and regions the networks that ship with the package do all that is not given.
    """
    if workdir is None and detector is None and options.get("regions") is None:
        workdir = SHIPPED / "detector"
        heart, options["threshold_hu"] = or_shipped(heart, options.get("threshold_hu"), options.get("aorta_roi"))
    if workdir is not None and detector is None:
        detector = load_detector(workdir, scoring)
    return one_scan.score(path_or_scan, detector=detector, heart=load_heart(heart), **options)


class _Callable(types.ModuleType):
    """`cacjax.score(path)` is the function, although importing this module binds the same name to the module."""

    def __call__(self, path_or_scan, **options):
        return score(path_or_scan, **options)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    raise SystemExit(main(before=backend.seconds_so_far()))

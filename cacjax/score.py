"""Detect and score calcium: `python -m cacjax.score SCAN... --workdir W --out OUT`.

A SCAN is a file, a DICOM folder or zip, a folder of those, or a folder with a manifest.csv, which brings hearts and
thresholds. N scans give N answers: a scan that cannot be scored is a row with a reason, and the exit code is 1; one whose
score is in doubt has a reason, too. OUT holds scores.csv (one row per scan, rule and artery) and, per scan, <scan>.json,
<scan>_mask.nii.gz, <scan>_detected.nii.gz (before false positives are reduced) and <scan>.png; from a heart network also
<scan>_heart.nii.gz and <scan>_heart.png. Long detections show their progress.

What the system itself does is set by --scoring.KEY=VALUE in place of its config's `scoring`, such as --scoring.fp_reduction=none;
a KEY that it lacks is answered with those that it has.
"""

import argparse
import json
import pathlib
import re
import sys
import time
import traceback
import types

import jax
from tqdm import tqdm

import cacjax
from cacjax.files import scan
from cacjax.kernels import scores
from cacjax.report import result as files
from cacjax.report import tables
from cacjax.scoring import one_scan
from cacjax.scoring.jobs import gather
from cacjax.scoring.threshold import AUTO


def main(argv=None):
    """Score what the command line names; returns the exit code, 1 when any scan was refused."""
    options = parse(argv)
    print(f"device: {describe_device()}", flush=True)
    out = pathlib.Path(options.out)
    jobs = gather(options)
    try:
        detector = None if options.regions else load_detector(options.workdir, options.scoring)
        segmenter = load_heart(options.heart)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    try:
        records = run(jobs, out, options, detector, segmenter)
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command with --resume continues") from None
    rows = all_rows(records)
    columns = [name for name in tables.COLUMNS if name != "map_hu_mm3" or any(row.get(name) is not None for row in rows)]
    print(tables.table(rows, columns, digits=5 if options.regions else 2))
    refused = sum(record["status"] != "scored" for record in records)
    print(f"{len(records)} scans: {len(records) - refused} scored, {refused} refused; {out / 'scores.csv'}")
    return int(refused > 0 or not records)


def parse(argv):
    """The command line as a namespace; argparse ends the program on a mistake, with the expected form."""
    description = __doc__.split("\n\n")
    parser = argparse.ArgumentParser(prog="python -m cacjax.score", description=description[0], epilog=description[2])
    add = parser.add_argument
    add("scan", nargs="+", metavar="SCAN", help="file, DICOM folder or zip, folder of those, or folder with manifest.csv")
    add("--workdir", help="training folder: the newest checkpoint in it detects (not needed with --regions)")
    add("--out", required=True, help="folder for the results; files of the same scan are overwritten")
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
    add("--rule", type=_rules, metavar="NAME[,NAME]", help="scoring rules (see cacjax/kernels/rules.py; default: the system's)")
    add("--scheme", choices=tuple(scores.SCHEMES), help="risk categories (default: the system's)")
    add("--mass-factor", type=float, help="calcium calibration in mg per cm³ and HU; without it no mass is given")
    add("--scores-only", action="store_true", help="write scores and records, no masks and no pictures: sooner, but not to be evaluated")
    add("--save-probability", action="store_true", help="also write the probability of coronary calcium of every voxel classified")
    add("--resume", action="store_true", help="keep scans that an earlier run finished with the same settings")
    words, scoring = split_scoring(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(words)
    options.scoring = scoring
    if not options.regions and not options.workdir:
        parser.error("expected --workdir (a trained detector) or --regions (candidate regions to score)")
    if options.threshold_hu == AUTO and not (options.heart and pathlib.Path(options.heart).is_dir()):
        parser.error("--threshold-hu auto needs --heart WORKDIR, the training folder of a heart network")
    return options


def split_scoring(words):
    """(the other words of a command line, {key: text} of its --scoring.key=value)."""
    found = {word: re.fullmatch(r"--scoring\.(\w+)=(.*)", word) for word in words if word.startswith("--scoring")}
    for word, match in found.items():
        if not match:
            raise SystemExit(f"error: expected --scoring.KEY=VALUE, got {word}")
    return [word for word in words if word not in found], {match[1]: match[2] for match in found.values()}


def _threshold(text):
    return text if text == AUTO else float(text)


def _rules(text):
    try:
        return one_scan.names_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def describe_device():
    """The device that computes, in words, e.g. `cpu (8 x TFRT_CPU)`."""
    devices = jax.devices()
    return f"{devices[0].platform} ({len(devices)} x {devices[0].device_kind})"


def load_detector(workdir, scoring=None):
    """The run (config, task, state) of a system that detects calcium. scoring: in place of settings of its `config.scoring`."""
    return _load(workdir, "detector", "one that detects calcium, such as of lessmann.py or uda.py", scoring)


def load_heart(given):
    """The run of the heart network in the training folder `given`; what is no training folder comes back as it is."""
    is_run = isinstance(given, str | pathlib.Path) and pathlib.Path(given).is_dir()
    return _load(given, "segment", "one that finds the heart, of heart.py") if is_run else given


def _load(workdir, ability, expected, scoring=None):
    """A trained run whose Task has an ability. Raises ValueError for another, FileNotFoundError for none."""
    from cacjax.training.workdir import load  # not needed to score given regions

    run = load(workdir, scoring)
    if getattr(run.task, ability) is None:
        raise ValueError(f"{workdir} holds a run of {run.config.task}.py, expected {expected}")
    return run


def score(path_or_scan, *, workdir=None, scoring=None, detector=None, heart=None, **options):
    """Detect and score calcium in one scan, with the newest checkpoint of the training folder `workdir`; see `one_scan.score`.

    scoring: {key: value} in place of settings of the run's `config.scoring`. heart: also the training folder of a heart network.
    """
    if workdir is not None and detector is None:
        detector = load_detector(workdir, scoring)
    return one_scan.score(path_or_scan, detector=detector, heart=load_heart(heart), **options)


def run(jobs, out, options, detector, segmenter=None):
    """Score all jobs one after another; returns their records. Nothing that one scan does stops the next.

    scores.csv grows by the rows of a scan at a time, and is written whole at the end.
    """
    records, began = [], time.perf_counter()
    tables.write_csv(out / "scores.csv", [], tables.COLUMNS)
    try:
        with tqdm(jobs, unit="scan", disable=None) as progress:
            for job in progress:
                start = time.perf_counter()
                chosen = settings(job, options, detector)
                record = _kept(job, out, chosen) if options.resume else None
                records.append(record or score_one(job, out, options, chosen, detector, segmenter))
                tables.append_csv(out / "scores.csv", records[-1]["rows"], tables.COLUMNS)
                left = (time.perf_counter() - began) / len(records) * (len(jobs) - len(records))
                line = _line(records[-1], time.perf_counter() - start)
                progress.write(f"[{len(records)}/{len(jobs)}, ETA {left:.0f} s] {line}", file=sys.stderr)
    finally:
        tables.write_csv(out / "scores.csv", all_rows(records), tables.COLUMNS)
    return records


def all_rows(records):
    """The rows of all records, in order."""
    return [row for record in records for row in record["rows"]]


def score_one(job, out, options, chosen, detector, segmenter=None):
    """Score one job and write its files; the record is written last, so a complete record means complete files. chosen: `settings`."""
    for suffix in files.OUTPUTS:
        (out / f"{job.name}{suffix}").unlink(missing_ok=True)
    record = {"scan": job.name, "path": str(job.source.path), "settings": chosen, "versions": versions()}
    try:
        record |= _score_and_write(job, out, options, detector, segmenter)
    except scan.ScanError as error:
        record |= refusal(job, error.code, str(error))
    except Exception as error:
        record |= refusal(job, "internal_error", f"{type(error).__name__}: {error}")
        record["traceback"] = traceback.format_exc()
    tables.write_json(out / f"{job.name}.json", record)
    return record


def _score_and_write(job, out, options, detector, segmenter):
    if job.source.error is not None:
        raise job.source.error
    of_scan = {"threshold_hu": job.threshold_hu, "aorta_roi": job.aorta_roi, "aorta_hu": job.aorta_hu}
    of_scores = {"rule": options.rule, "scheme": options.scheme, "mass_factor": options.mass_factor}
    heart = segmenter if isinstance(segmenter, tuple) else job.heart
    result = one_scan.score(job.source, detector=detector, heart=heart, regions=options.regions, **of_scan, **of_scores)
    start = time.perf_counter()
    masks = {} if options.scores_only else files.write(result, out, job.name, save_probability=options.save_probability)
    timings = result.record["timings_s"] | {"write": time.perf_counter() - start}
    reason = " ".join(result.record["flags"])
    rows = [{"scan": job.name, "status": "scored", "reason": reason, **row} for row in result.rows]
    threshold = result.record["threshold"] | ({"from": job.threshold_from} if job.threshold_from else {})
    more = {"threshold": threshold, "masks": masks, "timings_s": timings, "rows": rows}
    return {"status": "scored", "reason": reason, **result.record, **more}


def refusal(job, code, message):
    """What the record of a refused scan says: status, reason code, message, and one row."""
    row = {"scan": job.name, "status": "refused", "reason": code}
    return {"status": "refused", "reason": code, "message": message, "rows": [row]}


def settings(job, options, detector):
    """All that decides a result, as plain values: --resume keeps a record only while these are equal."""
    of_options = ("regions", "rule", "scheme", "mass_factor", "save_probability", "scores_only", "workdir")
    of_job = ("heart", "aorta_roi", "threshold_hu", "threshold_from", "aorta_hu")
    chosen = {key: getattr(options, key) for key in of_options} | {key: getattr(job, key) for key in of_job}
    chosen |= {"scoring": detector and detector.config.scoring.to_dict(), "checkpoint": _newest(options.workdir)}
    chosen |= {"heart_checkpoint": _newest(options.heart), "modified": _modified(job.source.path)}
    return tables.plain(chosen)


def _newest(workdir):
    """Which checkpoint of a training folder is the newest: its step and when it was written, or None."""
    saved = pathlib.Path(workdir, "checkpoints").glob("*") if workdir else ()
    steps = [(int(path.name), _modified(path)) for path in saved if path.name.isdigit()]
    return max(steps, default=None)


def _modified(path):
    path = pathlib.Path(path)
    return path.stat().st_mtime if path.exists() else None


def versions():
    """Versions of the program and of what computes, and the device."""
    import numpy

    found = {"cacjax": cacjax.__version__, "jax": jax.__version__, "numpy": numpy.__version__}
    return found | {"python": sys.version.split()[0], "device": describe_device()}


def _kept(job, out, chosen):
    """The record of an earlier run if it was finished with the same settings, else None."""
    try:
        record = json.loads((out / f"{job.name}.json").read_text())
    except (OSError, ValueError):
        return None
    same = record.get("settings") == chosen and record.get("path") == str(job.source.path)
    return record | {"kept": True} if same and record.get("status") == "scored" else None


def _line(record, seconds):
    """The log line of one scan."""
    if record.get("kept"):
        return f"{record['scan']}: kept from an earlier run"
    if record["status"] != "scored":
        return f"{record['scan']}: refused ({record['reason']}): {record['message']}"
    total = next((row for row in record["rows"] if row["artery"] == "CAC"), None)
    notes = "".join(f" ({note})" for note in record.get("notes", ()))
    text = f"Agatston {total['agatston']:.1f} ({total['category']})" if total else f"{len(record['rows'])} regions"
    return f"{record['scan']}: {text}, {seconds:.1f} s{notes}"


class _Callable(types.ModuleType):
    """`cacjax.score(path)` is the function, although importing this module binds the same name to the module."""

    def __call__(self, path_or_scan, **options):
        return score(path_or_scan, **options)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    raise SystemExit(main())

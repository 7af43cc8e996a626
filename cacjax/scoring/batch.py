"""The batch: scans are read ahead by reader processes, scored one after another, and written; nothing that one scan does stops the next.

However the process ends, OUT holds whole files only: a scan's record is written after its masks and pictures, and `--resume` makes
scores.csv anew from the records. What cannot be written ends the batch, for it would be lost.
"""

import contextlib
import json
import os
import pathlib
import sys
import time
import traceback

import jax
import numpy
from tqdm import tqdm

import cacjax
from cacjax.files import atomic, scan
from cacjax.report import result as files
from cacjax.report import tables
from cacjax.scoring import one_scan

TABLE = "scores.csv"


class OutputError(Exception):
    """The folder of results cannot be written to; the message names it and says why and what to do."""


@contextlib.contextmanager
def output(out):
    """The folder of results, owned by this process, with a table in it. Raises OutputError where that cannot be."""
    with contextlib.ExitStack() as stack:
        with _telling(out, "give a folder that this process alone writes to"):
            if str(out).encode(errors="surrogateescape") != str(out).encode(errors="replace"):
                raise OSError(0, "its name is not in UTF-8")
            stack.enter_context(atomic.owned(out))
            if not (out / TABLE).exists():
                _write_table(out, [])
        yield


@contextlib.contextmanager
def _telling(out, advice):
    """Raises OutputError in place of an OSError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"--out {tables.plain(str(out))}: {error.strerror or error}; {advice}") from None


def run(jobs, out, options, detector, segmenter, readers, *, before=None):
    """Score all jobs; returns their records. Raises OutputError where results cannot be written any more: those so far are whole.

    before: {stage: seconds} that were spent before the first scan: the record of the first that is scored has them, too.

    The table has the rows of scans that are kept from the first moment, grows by those of a scan at a time, and is written whole, in the
    order of the jobs, at the end.
    """
    jobs = [_fitting(job, detector) for job in jobs]
    chosen = [settings(job, options, detector) for job in jobs]
    records = [_kept(job, out, each) if options.resume else None for job, each in zip(jobs, chosen)]
    left = sum(record is None for record in records)
    readings = readers.read((job.source, _masks(job, options, segmenter)) for job, record in zip(jobs, records) if record is None)
    began, done = time.perf_counter(), 0
    try:
        with _telling(out, "what was scored is whole; make room, then the same command with --resume continues"):
            _write_table(out, records)
            with tqdm(range(len(jobs)), unit="scan", disable=None) as progress:
                for k in progress:
                    start = time.perf_counter()
                    if records[k] is None:
                        records[k] = score_one(jobs[k], next(readings), out, options, chosen[k], detector, segmenter, before)
                        tables.append_csv(out / TABLE, records[k]["rows"], tables.COLUMNS, tables.DIGITS)
                        done, before = done + 1, None
                    eta = (time.perf_counter() - began) / max(done, 1) * (left - done)
                    line = _line(records[k], time.perf_counter() - start)
                    progress.write(f"[{k + 1}/{len(jobs)}, ETA {eta:.0f} s] {line}", file=sys.stderr)
            _write_table(out, records)
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk: the table has its rows, in the order in which they came
            _write_table(out, records)
        raise
    return records


def _fitting(job, detector):
    """A job without the threshold of a manifest where the system has its own for every scan."""
    fixed = detector is not None and not isinstance(detector.config.scoring.threshold, str)
    return job._replace(threshold_hu=None, threshold_from="") if fixed and job.threshold_from == "manifest" else job


def _write_table(out, records):
    tables.write_csv(out / TABLE, all_rows(record for record in records if record), tables.COLUMNS, tables.DIGITS)


def all_rows(records):
    """The rows of all records, in order."""
    return [row for record in records for row in record["rows"]]


def _masks(job, options, segmenter):
    """{name: path or None} of the masks that are read with a scan."""
    return {"regions": options.regions, "heart": None if isinstance(segmenter, tuple) else job.heart}


def score_one(job, reading, out, options, chosen, detector, segmenter=None, before=None):
    """Score one job and write its files, the record last, so that a complete record means complete files; returns the record.

    reading: a `reading.Reading`, or the ScanError that there is in its place. chosen: `settings`. Raises OSError for what cannot be
    written; then, as after Ctrl-C, none of its files stay.
    """
    _clear(job, out)
    record = {"scan": job.name, "path": str(job.source.path), "settings": chosen, "versions": versions()}
    try:
        record |= _answer(job, reading, out, options, detector, segmenter, before or {})
        tables.write_json(out / f"{job.name}.json", record)
    except BaseException:
        with contextlib.suppress(OSError):
            _clear(job, out)
        raise
    return tables.plain(record)


def _clear(job, out):
    for suffix in files.OUTPUTS:
        (out / f"{job.name}{suffix}").unlink(missing_ok=True)


def _answer(job, reading, out, options, detector, segmenter, before):
    """What the record says of a scan that was scored or refused, once its other files are written."""
    start = None
    try:
        result = _score(job, reading, options, detector, segmenter)
        start = time.perf_counter()
        how = {"save_probability": options.save_probability, "drawn": not options.no_pictures}
        masks = {} if options.scores_only else files.write(result, out, job.name, **how)
    except scan.ScanError as error:
        return refusal(job, error.code, str(error))
    except Exception as error:
        if start and isinstance(error, OSError):
            raise
        return refusal(job, "internal_error", f"{type(error).__name__}: {error}") | {"traceback": traceback.format_exc()}
    of_reading = {"read": round(reading.seconds, 4), "wait": round(reading.waited_s, 4)}
    timings = before | result.record["timings_s"] | of_reading | {"write": round(time.perf_counter() - start, 4)}
    reason = " ".join(result.record["flags"])
    rows = [{"scan": job.name, "status": "scored", "reason": reason, **row} for row in result.rows]
    threshold = result.record["threshold"] | ({"from": job.threshold_from} if job.threshold_from else {})
    more = {"threshold": threshold, "masks": masks, "timings_s": timings, "rows": rows}
    return {"status": "scored", "reason": reason, **result.record, **more}


def _score(job, reading, options, detector, segmenter):
    if isinstance(reading, scan.ScanError):
        raise reading
    of_scan = {"threshold_hu": job.threshold_hu, "aorta_roi": job.aorta_roi, "aorta_hu": job.aorta_hu}
    of_scores = {"rule": options.rule, "scheme": options.scheme, "mass_factor": options.mass_factor}
    heart = segmenter if isinstance(segmenter, tuple) else reading.masks["heart"]
    return one_scan.score(reading.scan, detector=detector, heart=heart, regions=reading.masks["regions"], **of_scan, **of_scores)


def spent(records):
    """One line that says what all scans of this run took, stage by stage."""
    parts = [record["timings_s"] for record in records if record.get("timings_s") and not record.get("kept")]
    stages = dict.fromkeys(stage for part in parts for stage in part)
    return "seconds: " + (", ".join(f"{stage} {sum(part.get(stage, 0) for part in parts):.1f}" for stage in stages) or "none")


def refusal(job, code, message):
    """What the record of a refused scan says: status, reason code, message, and one row."""
    row = {"scan": job.name, "status": "refused", "reason": code}
    return {"status": "refused", "reason": code, "message": message, "rows": [row]}


def settings(job, options, detector):
    """All that decides a result, as plain values: --resume keeps a record only while these are equal."""
    of_options = ("regions", "rule", "scheme", "mass_factor", "save_probability", "scores_only", "no_pictures", "workdir")
    of_job = ("heart", "aorta_roi", "threshold_hu", "threshold_from", "aorta_hu")
    chosen = {key: getattr(options, key) for key in of_options} | {key: getattr(job, key) for key in of_job}
    chosen |= {"scoring": detector and detector.config.scoring.to_dict(), "checkpoint": newest(options.workdir)}
    chosen |= {"heart_checkpoint": newest(options.heart), "modified": _modified(job.source.path)}
    return tables.plain(chosen)


def newest(workdir):
    """Which checkpoint of a training folder is the newest: its step and when it was written, or None where there is none."""
    if workdir and (weights := pathlib.Path(workdir, "weights.npz")).exists():
        return 0, _modified(weights)
    saved = pathlib.Path(workdir, "checkpoints").glob("*") if workdir else ()
    steps = [(int(path.name), _modified(path)) for path in saved if path.name.isdigit()]
    return max(steps, default=None)


def _modified(path):
    try:
        return os.stat(path).st_mtime
    except (OSError, ValueError):
        return None


def describe_device():
    """The device that computes, in words, e.g. `cpu (8 x TFRT_CPU)`."""
    devices = jax.devices()
    return f"{devices[0].platform} ({len(devices)} x {devices[0].device_kind})"


def versions():
    """Versions of the program and of what computes, and the device."""
    found = {"cacjax": cacjax.__version__, "jax": jax.__version__, "numpy": numpy.__version__}
    return found | {"python": sys.version.split()[0], "device": describe_device()}


def _kept(job, out, chosen):
    """The record of an earlier run if it was finished with the same settings, else None."""
    try:
        record = json.loads((out / f"{job.name}.json").read_text())
        same = record["settings"] == chosen and record["path"] == tables.plain(str(job.source.path)) and record["status"] == "scored"
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record | {"kept": True} if same else None


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

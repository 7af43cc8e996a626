"""Which scans a command line names, and what is known of each: its heart, its threshold, its aorta."""

import csv
import hashlib
import itertools
import os
import pathlib
from typing import NamedTuple

from cacjax.files import manifest, scan
from cacjax.report.result import OUTPUTS

MOST_BYTES = 160  # of a name: file systems take 255, a suffix and the name of a file that is being written take 40


class Job(NamedTuple):
    """One scan to score, under a name that no other scan of the run has."""

    name: str
    source: scan.Source
    heart: pathlib.Path | None
    threshold_hu: float | str | None
    threshold_from: str
    aorta_roi: pathlib.Path | None
    aorta_hu: float | None


def gather(options, readers):
    """Jobs in the order of the command line, at least one for each of its paths, found by `reading.Readers`. A manifest that cannot be
    read is one refused job."""
    jobs = []
    for is_manifest, paths in itertools.groupby(options.scan, key=_is_manifest):
        if is_manifest:
            jobs += [job for path in paths for job in _from_manifest(path, options, readers)]
        else:
            found = scan.named([source for path in paths for source in readers.find(path, series=options.series)])
            jobs += [_job(source.name, source, options) for source in found]
    names = _apart(manifest.unique([_fit(job.name) for job in jobs]), _inputs_in(options.out, jobs, options))
    return [job._replace(name=name) for job, name in zip(jobs, names)]


def _is_manifest(path):
    try:
        return bool(manifest.locate(path))
    except OSError:  # no permission, or a name that is too long: its reader tells
        return False


def _from_manifest(path, options, readers):
    try:
        rows = manifest.read(path)
    except (manifest.ManifestError, OSError, UnicodeError, csv.Error) as error:
        text = str(error) if isinstance(error, manifest.ManifestError) else f"{path}: expected a {manifest.NAME} in UTF-8, got {error}"
        refusal = scan.ScanError("bad_manifest", text)
        return [_job(manifest.stem(path).replace("/", "_"), scan.Source(str(path), str(path), None, refusal), options)]
    return [_job(row.name, _single(row, readers), options, row) for row in rows]


def _single(row, readers):
    """The one scan that a manifest row names; several or none make the row a refusal."""
    sources = readers.find(row.scan)
    if len(sources) == 1:
        return sources[0]
    text = f"{row.scan}: expected one scan for this row of {manifest.NAME}, found {len(sources)}"
    return scan.Source(row.name, str(row.scan), None, scan.ScanError("bad_manifest", text))


def _fit(name):
    """A name that a file system takes with every suffix of an output: cut where it is too long, with a checksum of the whole."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace").translate({0xFFFD: "_", 0: "_"}).lstrip(".") or "scan"
    whole = name.encode()
    if len(whole) <= MOST_BYTES:
        return name
    return f"{whole[: MOST_BYTES - 9].decode(errors='ignore')}-{hashlib.sha256(whole).hexdigest()[:8]}"


def _inputs_in(out, jobs, options):
    """Names of the files to be read that lie in the folder of results."""
    given = [path for job in jobs for path in (job.source.path, job.heart, job.aorta_roi)] + [options.regions]
    folders = ((os.path.realpath(os.path.dirname(path)), os.path.basename(path)) for path in given if path)
    return {name for folder, name in folders if folder == os.path.realpath(out)}


def _apart(names, taken=()):
    """The names, numbered where an output would have the name of another scan's, as <a>_heart.png has it of a scan a_heart, or one that is
    `taken`."""
    taken, out = set(taken), []
    for name in names:
        number, free = 1, name
        while taken & (wanted := {free + suffix for suffix in OUTPUTS}):
            number += 1
            free = f"{name}-{number}"
        taken |= wanted
        out.append(free)
    return out


def _job(name, source, options, row=None):
    heart = pathlib.Path(options.heart) if options.heart else row and row.heart
    aorta_hu = options.aorta_hu if options.aorta_hu is not None else row and row.aorta_hu
    roi = options.aorta_roi and pathlib.Path(options.aorta_roi)
    roi = roi / f"{name}.txt" if roi and roi.is_dir() else roi
    if options.threshold_hu is None and roi is None and row and row.threshold_hu is not None:
        return Job(name, source, heart, row.threshold_hu, "manifest", None, aorta_hu)
    return Job(name, source, heart, options.threshold_hu, "", roi, aorta_hu)

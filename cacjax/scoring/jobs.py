"""Which scans a command line names, and what is known of each: its heart, its threshold, its aorta."""

import itertools
import pathlib
from typing import NamedTuple

from cacjax.files import manifest, scan


class Job(NamedTuple):
    """One scan to score, under a name that no other scan of the run has."""

    name: str
    source: scan.Source
    heart: pathlib.Path | None
    threshold_hu: float | str | None
    threshold_from: str
    aorta_roi: pathlib.Path | None
    aorta_hu: float | None


def gather(options):
    """Jobs in the order of the command line. A manifest that cannot be read is one refused job."""
    jobs = []
    for is_manifest, paths in itertools.groupby(options.scan, key=lambda path: bool(manifest.locate(path))):
        if is_manifest:
            jobs += [job for path in paths for job in _from_manifest(path, options)]
        else:
            jobs += [_job(source.name, source, options) for source in scan.find(list(paths), series=options.series)]
    return [job._replace(name=name) for job, name in zip(jobs, manifest.unique([job.name for job in jobs]))]


def _from_manifest(path, options):
    try:
        rows = manifest.read(path)
    except manifest.ManifestError as error:
        refusal = scan.ScanError("bad_manifest", str(error))
        return [_job(manifest.stem(path).replace("/", "_"), scan.Source(str(path), str(path), None, refusal), options)]
    return [_job(row.name, _single(row), options, row) for row in rows]


def _single(row):
    """The one scan that a manifest row names; several or none make the row a refusal."""
    sources = scan.find([row.scan])
    if len(sources) == 1:
        return sources[0]
    text = f"{row.scan}: expected one scan for this row of {manifest.NAME}, found {len(sources)}"
    return scan.Source(row.name, str(row.scan), None, scan.ScanError("bad_manifest", text))


def _job(name, source, options, row=None):
    heart = pathlib.Path(options.heart) if options.heart else row and row.heart
    aorta_hu = options.aorta_hu if options.aorta_hu is not None else row and row.aorta_hu
    roi = options.aorta_roi and pathlib.Path(options.aorta_roi)
    roi = roi / f"{name}.txt" if roi and roi.is_dir() else roi
    if options.threshold_hu is None and roi is None and row and row.threshold_hu is not None:
        return Job(name, source, heart, row.threshold_hu, "manifest", None, aorta_hu)
    return Job(name, source, heart, options.threshold_hu, "", roi, aorta_hu)

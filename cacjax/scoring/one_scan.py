"""One scan on its way from files to scores, and the record of it; what is computed in between stands in `program`. Arrays [z, y, x]."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cacjax.classes import CALCIUM_HU, CLASSES
from cacjax.files import scan
from cacjax.kernels import grids, rules, scores
from cacjax.report.tables import plain
from cacjax.scoring import body, hearts, program, rulebook, threshold
from cacjax.scoring import record as told
from cacjax.task import Case, Finding


class Result(NamedTuple):
    """What scoring one scan gives; arrays lie on the scan's own grid, or on that of `answer` where this is not None.

    scan: as read. mask: classes (uint8) or regions (int16) that were found; scored: of these the voxels that the first rule counts, and
    no others. before: classes before false positives were reduced; probability: of coronary calcium, float32; map: a second reading of
    the mask in HU, float32; each None where the system gives none.
    heart: bool on the scan's grid, or None. rows: a dict per rule and artery, see `cacjax.report.tables.COLUMNS`. record: what else a
    user may ask (lesions, rules, threshold, timings), JSON-like. structures: what a heart network found, uint8; None without one.
    answer: the Scan that scores were read on.
    """

    scan: scan.Scan
    mask: np.ndarray
    scored: np.ndarray
    rows: list
    record: dict
    before: np.ndarray | None = None
    probability: np.ndarray | None = None
    map: np.ndarray | None = None
    heart: np.ndarray | None = None
    structures: np.ndarray | None = None
    answer: scan.Scan | None = None


class Weighing(NamedTuple):
    """How a mask is weighed: scoring rules by name, for the scan's tube voltage; the scheme of risk categories; mg per cm³ and HU."""

    rules: dict
    scheme: str
    mass_factor: float | None


class Clock:
    """Seconds per stage, for the record."""

    def __init__(self):
        self.seconds, self._last = {}, time.perf_counter()

    def lap(self, stage, value=None, apart=None):
        """Book the time since the last lap under `stage`, once `value` is computed, but what of it is booked `apart`; returns `value`."""
        value, apart = jax.block_until_ready(value), apart or {}
        now = time.perf_counter()
        self.seconds |= apart | {stage: round(now - self._last - sum(apart.values()), 4)}
        self._last = now
        return value


def score(
    path_or_scan,
    *,
    detector=None,
    heart=None,
    regions=None,
    threshold_hu=None,
    aorta_roi=None,
    aorta_hu=None,
    rule=None,
    scheme=None,
    mass_factor=None,
):
    """Detect and score calcium in one scan; returns a Result.

    path_or_scan: file, DICOM folder or zip, or a Scan. detector: the run (config, task, state) of a system that detects; or regions: a
    mask (path or [z, y, x] on the scan's grid) of candidates that are scored instead, each label a row. heart: mask (path or array) that
    detection is limited to, or the run of a heart network that finds it. threshold_hu: scan threshold, e.g. aortic mean + 3 SD of a CCTA;
    "auto" measures this with the heart network; not given: 130 HU. aorta_roi: a file with what was measured (see
    `threshold.read_roi`), which goes before threshold_hu. aorta_hu: mean of the ascending aorta; not given: as measured for the threshold.
    rule: scoring rules as `rulebook.find` takes them: all read the same mask; scheme: of risk categories; not given: those of the system.
    mass_factor: mg per cm³ and HU; without it there is no mass. Raises ScanError for a scan, masks or a threshold that cannot be used,
    ValueError for options that do not exist.
    """
    if detector is None and regions is None:
        raise ValueError("expected a detector, the workdir of a trained one, or regions to score, got none of them")
    of_system = {"rule": "default", "scheme": "default", "threshold": "scan"} if regions is not None else detector.config.scoring
    named, scheme = rulebook.find(rule or of_system["rule"]), scheme or of_system["scheme"]
    if scheme not in scores.SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(scores.SCHEMES)}, got {scheme!r}")
    threshold.check(threshold_hu, of_system["threshold"], heart, aorta_roi)
    clock = Clock()
    image = path_or_scan if isinstance(path_or_scan, scan.Scan) else scan.read(path_or_scan)
    regions = None if regions is None else hearts.as_mask(regions, image)
    clock.lap("read")
    heart = hearts.find(heart, image)
    clock.lap("heart")
    weighing = weigh(named, image, scheme, mass_factor)
    native_hu = CALCIUM_HU if regions is None else min(threshold.native(each) for each in weighing.rules.values())
    given = {"roi": aorta_roi, "regions": regions, "native_hu": native_hu}
    limit, doubts = threshold.choose(threshold_hu, of_system["threshold"], image, heart, **given)
    clock.lap("threshold")
    flags = {flag: scan.FLAGS[flag] for flag in image.acquisition.flags} | told.flags_of(limit, named, weighing.rules, image)
    flags |= {flag: threshold.FLAGS[flag] for flag in doubts} | (heart.flags if heart and regions is None else {})
    if regions is not None:
        result = score_regions(image, regions, limit, weighing, clock)
    else:
        aorta_hu = limit.get("mean_hu") if aorta_hu is None else aorta_hu
        result = detect(image, heart, limit, aorta_hu, detector, weighing, clock)
    record = {
        "path": str(image.path),
        "acquisition": image.acquisition._asdict(),
        "shape": list(image.hu.shape),
        "spacing_mm": list(scan.spacing_mm(image.affine)),
        "threshold": limit,
        "aorta_hu": aorta_hu,
        "rules": [told.describe_rule(name, each, image) for name, each in weighing.rules.items()],
        "mass_factor": mass_factor,
        "category_scheme": scores.SCHEMES[scheme],
        "heart": hearts.describe(heart, image) if regions is None else {"from": "not used: regions are given"},
    }
    flags |= result.record.pop("flags", {})
    record |= result.record | {"flags": list(flags), "timings_s": clock.seconds}
    record["notes"] = [*flags.values(), *result.record.get("notes", [])]
    more = {name: {"threshold_hu": told.counts_from(limit, each), **told.about(image)} for name, each in weighing.rules.items()}
    rows = [row | more[row["rule"]] for row in result.rows]
    return result._replace(rows=rows, record=plain(record), structures=heart and heart.structures)


def weigh(named, image, scheme, mass_factor):
    """`Weighing` of a scan by {name: rule}. Raises ScanError `rule_not_applicable` where a rule needs what the scan does not say, such as
    the slice thickness."""
    found = {name: rules.for_voltage(rule, image.acquisition.kvp) for name, rule in named.items()}
    for rule in found.values():
        try:
            rules.pixel_score(rule, scan.spacing_mm(image.affine), slice_thickness_mm=image.acquisition.slice_thickness_mm)
        except ValueError as error:
            raise scan.ScanError("rule_not_applicable", f"{image.path}: {error}") from None
    return Weighing(found, scheme, mass_factor)


def score_regions(image, regions, limit, weighing, clock):
    """Result of given candidate regions [z, y, x], a row per rule and label. Raises ScanError `empty_regions` where there is none."""
    turned, regions = scan.oriented(image, regions)
    labels = np.append(0, np.unique(regions[regions > 0])).astype(np.int16)
    names = tuple(str(label) for label in labels[1:])
    if not names:
        raise scan.ScanError("empty_regions", f"{image.path}: expected regions with labels above 0, got a mask without any")
    # Padded as for detection: a scan of a like size compiles nothing.
    hu = jnp.asarray(grids.pad(turned.hu, fill=grids.NO_HU))
    number = grids.pad(np.searchsorted(labels, np.maximum(regions, 0)).astype(np.int32), fill=0)
    finding = Finding(jnp.where(hu >= limit["hu"], number, 0), hu)
    spacing_mm = scan.spacing_mm(turned.affine)
    reading, kinds, units = read_by(weighing, turned.hu.shape, spacing_mm, image.acquisition.slice_thickness_mm)
    how = program.How((), kinds, tuple(range(1, len(names) + 1)))
    tables, apart = program.tables_of(finding, reading, how)
    clock.lap("score", tables, apart)
    rows = []
    for (name, rule), totals in zip(weighing.rules.items(), tables.totals):
        each = scores.from_totals(totals, spacing_mm, rule, units[name], mass_factor=weighing.mass_factor)
        rows += told.make_rows(name, each._replace(names=names))
    mask = np.asarray(finding.label)
    masks = (scan.restore(labels[grids.cut(each, turned.hu.shape)], image) for each in (mask, program.scored_label(tables, mask)))
    record = {"lesions": told.lesions_by_class(tables.lesions, turned.affine, names)}
    clock.lap("fetch")
    return Result(image, *masks, rows, record)


def detect(image, heart, limit, aorta_hu, run, weighing, clock):
    """Result of a system's run (config, task, state): what it finds, weighed by every rule; where no heart limits it, within the body."""
    turned, inside = scan.oriented(image, np.zeros_like(image.hu, bool) if heart is None else heart.mask)
    finder, acquired_mm = run.task.detector, scan.spacing_mm(turned.affine)
    unlimited = heart is None and not finder.own_heart
    hu = body.clear(turned.hu, acquired_mm) if unlimited else turned.hu
    case, plan = make_case(finder, hu, acquired_mm, turned.affine, None if heart is None else inside, limit["hu"], aorta_hu)
    own = plan.shape is None
    shape, spacing_mm, affine = (turned.hu.shape, acquired_mm, turned.affine) if own else (plan.shape, plan.spacing_mm, plan.affine)
    reading, kinds, units = read_by(weighing, shape, spacing_mm, image.acquisition.slice_thickness_mm)
    case, reading = clock.lap("prepare", jax.device_put((case, reading)))
    how = program.How(plan.how, kinds, finder.classes)
    weights, decided_by = finder.weights(run.state), finder.decided_by or run.decided_by
    finding, tables, apart = program.compute(finder, weights, case, reading, how, long=plan.long, decided_by=decided_by)
    clock.lap("detect_and_score", (finding, tables), apart)
    clock.seconds |= finding.timings_s
    counts = jax.device_get(finding.counts)
    flags = run.flags | plan.flags | (finder.check(counts) if finder.check else {})
    flags |= hearts.NOT_CHECKED if unlimited else {}
    rows = []
    for (name, rule), totals, category in zip(weighing.rules.items(), tables.totals, tables.categories):
        each = scores.from_totals(totals, spacing_mm, rule, units[name], mass_factor=weighing.mass_factor)
        map_hu = None if tables.map_hu is None else scores.volume_sum(tables.map_hu, spacing_mm, finder.classes)
        rows += told.make_rows(name, scores.by_artery(each, finder.classes), scores.SCHEMES[weighing.scheme].names[int(category)], map_hu)

    def back(each):
        each = None if each is None else grids.cut(each, shape)
        return each if each is None or not own else scan.restore(each, image)

    mask = np.asarray(finding.label)
    arrays = {"mask": mask, "scored": program.scored_label(tables, mask), "before": finding.before}
    arrays |= {"probability": finding.probability, "map": finding.map}
    answer = None if own else image._replace(hu=grids.cut(finding.hu, shape), affine=np.asarray(affine))
    record = {
        "lesions": told.lesions_by_class(tables.lesions, affine, [CLASSES[number] for number in finder.classes]),
        "system": run.config.task,
        "scoring": run.config.scoring.to_dict(),
        "counts": counts,
        "notes": list(plan.notes),
        "flags": flags,
    }
    if not own:
        record["answer"] = {"shape": list(shape), "spacing_mm": list(spacing_mm)}
    clock.lap("fetch")
    arrays = {name: back(each) for name, each in arrays.items()}
    return Result(image, rows=rows, record=record, heart=heart and heart.mask, answer=answer, **arrays)


def make_case(detector, hu, spacing_mm, affine, heart, threshold_hu, aorta_hu=None):
    """(`Case` on the host, `Plan`) of an oriented scan; heart: bool or None; threshold_hu: of the scan; aorta_hu: or None."""
    plan = detector.plan(hu.shape, spacing_mm, affine, heart, threshold_hu, aorta_hu)
    sizes = np.array(hu.shape, np.int32), np.array(spacing_mm, np.float32)
    padded = grids.pad(hu, fill=grids.NO_HU), None if heart is None else grids.pad(heart, fill=False)
    values = np.float32(threshold_hu), np.float32(np.nan if aorta_hu is None else aorta_hu)
    return Case(padded[0], *sizes, padded[1], *values, plan.arrays), plan


def read_by(weighing, shape, spacing_mm, thickness_mm=None):
    """(`program.Reading` on the host, kinds, {name: `rules.pixel_score`}) of the rules of a `Weighing` on a grid."""
    named = weighing.rules
    units = {name: rules.pixel_score(rule, spacing_mm, slice_thickness_mm=thickness_mm) for name, rule in named.items()}
    numbers = tuple(scores.numbers(rule, spacing_mm, units[name], scheme=weighing.scheme) for name, rule in named.items())
    kinds = tuple(program.Kind(rule.connectivity, rule.peak, rule.whole_lesions) for rule in named.values())
    return program.Reading(np.array(shape, np.int32), np.array(spacing_mm, np.float32), numbers), kinds, units

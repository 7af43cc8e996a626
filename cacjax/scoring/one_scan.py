"""One scan on its way from files to scores, and the record of it; what is computed in between stands in `program`. Arrays [z, y, x]."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cacjax.classes import CALCIUM_HU
from cacjax.files import scan
from cacjax.kernels import grids, lesions, rules, scores
from cacjax.report.tables import plain
from cacjax.scoring import hearts, program, threshold
from cacjax.scoring import record as told
from cacjax.task import Case


class Result(NamedTuple):
    """What scoring one scan gives; arrays lie on the scan's own grid, or on that of `answer` where this is not None.

    scan: as read. mask: classes (uint8) or regions (int16) that are scored. before: classes before false positives were reduced;
    probability: of coronary calcium, float32; map: a second reading of the mask in HU, float32; each None where the system gives none.
    heart: bool on the scan's grid, or None. rows: a dict per rule and artery, see `cacjax.report.tables.COLUMNS`. record: what else a
    user may ask (lesions, rules, threshold, timings), JSON-like. structures: what a heart network found, uint8; None without one.
    answer: the Scan that scores were read on.
    """

    scan: scan.Scan
    mask: np.ndarray
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

    def lap(self, stage, value=None):
        """Book the time since the last lap under `stage`, once `value` is computed; returns `value`."""
        value = jax.block_until_ready(value)
        now = time.perf_counter()
        self.seconds[stage], self._last = round(now - self._last, 4), now
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
    rule: name of a scoring rule, or several: all read the same mask; scheme: of risk categories; not given: those of the system.
    mass_factor: mg per cm³ and HU; without it there is no mass. Raises ScanError for a scan, masks or a threshold that cannot be used,
    ValueError for options that do not exist.
    """
    if detector is None and regions is None:
        raise ValueError("expected a detector, the workdir of a trained one, or regions to score, got none of them")
    of_system = {"rule": "default", "scheme": "default", "threshold": "scan"} if regions is not None else detector.config.scoring
    names, scheme = names_of(rule or of_system["rule"]), scheme or of_system["scheme"]
    if scheme not in scores.SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(scores.SCHEMES)}, got {scheme!r}")
    threshold.check(threshold_hu, of_system["threshold"], heart, aorta_roi)
    clock = Clock()
    image = path_or_scan if isinstance(path_or_scan, scan.Scan) else scan.read(path_or_scan)
    regions = None if regions is None else hearts.as_mask(regions, image)
    clock.lap("read")
    heart = hearts.find(heart, image)
    clock.lap("heart")
    weighing, notes = weigh(names, image, scheme, mass_factor)
    native_hu = CALCIUM_HU if regions is None else min(threshold.native(each) for each in weighing.rules.values())
    given = {"roi": aorta_roi, "regions": regions, "native_hu": native_hu}
    limit, flags = threshold.choose(threshold_hu, of_system["threshold"], image, heart, **given)
    clock.lap("threshold")
    notes += told.warnings(limit, weighing.rules, image) + [threshold.FLAGS[flag] for flag in flags]
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
        "flags": flags,
    }
    record |= result.record | {"notes": notes + result.record.get("notes", []), "timings_s": clock.seconds}
    return result._replace(record=plain(record), structures=heart and heart.structures)


def names_of(rule):
    """Names of scoring rules from one name, several with commas between, or a list. Raises ValueError for one that there is not."""
    names = rule.split(",") if isinstance(rule, str) else list(rule)
    for name in names:
        if name not in rules.RULES:
            raise ValueError(f"rule must be one of {', '.join(rules.RULES)}, got {name!r}")
    return names


def weigh(names, image, scheme, mass_factor):
    """(`Weighing` of a scan, notes). Raises ScanError `rule_not_applicable` where a rule needs what the scan does not say, such as the
    slice thickness."""
    found, notes = {}, []
    for name in names:
        found[name], more = rules.for_voltage(rules.named(name), image.acquisition.kvp)
        notes += more
        try:
            rules.pixel_score(found[name], scan.spacing_mm(image.affine), slice_thickness_mm=image.acquisition.slice_thickness_mm)
        except ValueError as error:
            raise scan.ScanError("rule_not_applicable", f"{image.path}: {error}") from None
    return Weighing(found, scheme, mass_factor), notes


def score_regions(image, regions, limit, weighing, clock):
    """Result of given candidate regions [z, y, x], a row per rule and label."""
    turned, regions = scan.oriented(image, regions)
    spacing_mm, thickness_mm = scan.spacing_mm(turned.affine), image.acquisition.slice_thickness_mm
    labels = np.append(0, np.unique(regions[regions > 0])).astype(np.int16)
    # Padded as for detection: a scan of a like size compiles nothing.
    hu = jnp.asarray(grids.pad(turned.hu, fill=grids.NO_HU))
    number = grids.pad(np.searchsorted(labels, np.maximum(regions, 0)).astype(np.int32), fill=0)
    mask = jnp.where(hu >= limit["hu"], number, 0)
    names, rows = tuple(str(label) for label in labels[1:]), []
    options = {"n_regions": len(names), "mass_factor": weighing.mass_factor, "slice_thickness_mm": thickness_mm}
    for name, rule in weighing.rules.items():
        totals = scores.score_regions(mask, hu, spacing_mm, rule, **options)
        rows += told.make_rows(name, totals._replace(names=names))
    clock.lap("score")
    no_artery = jnp.zeros(hu.shape, jnp.uint8)
    found = lesions.table(mask, len(names), hu, no_artery, spacing_mm, capacity=max(len(names), 1))
    found = program.border(found, np.array(turned.hu.shape))
    listed = [{"artery": name, **entry} for name, entry in zip(names, told.list_lesions(found, turned.affine))]
    clock.lap("lesions")
    return Result(image, scan.restore(labels[grids.cut(mask, turned.hu.shape)], image), rows, {"lesions": listed})


def detect(image, heart, limit, aorta_hu, run, weighing, clock):
    """Result of a system's run (config, task, state): what it finds, weighed by every rule."""
    turned, inside = scan.oriented(image, np.zeros_like(image.hu, bool) if heart is None else heart.mask)
    finder, acquired_mm = run.task.detector, scan.spacing_mm(turned.affine)
    case, plan = make_case(finder, turned.hu, acquired_mm, turned.affine, None if heart is None else inside, limit["hu"], aorta_hu)
    own = plan.shape is None
    shape, spacing_mm, affine = (turned.hu.shape, acquired_mm, turned.affine) if own else (plan.shape, plan.spacing_mm, plan.affine)
    thickness_mm = image.acquisition.slice_thickness_mm
    units = {name: rules.pixel_score(rule, spacing_mm, slice_thickness_mm=thickness_mm) for name, rule in weighing.rules.items()}
    reading, kinds = read_by(weighing.rules, units, shape, spacing_mm, weighing.scheme)
    case, reading = clock.lap("prepare", jax.device_put((case, reading)))
    how = program.How(plan.how, kinds, finder.classes)
    finding, tables = clock.lap("detect_and_score", program.compute(finder, run.state, case, reading, how, long=plan.long))
    clock.seconds |= finding.timings_s
    rows = []
    for (name, rule), totals, category in zip(weighing.rules.items(), tables.totals, tables.categories):
        each = scores.from_totals(totals, spacing_mm, rule, units[name], mass_factor=weighing.mass_factor)
        map_hu = None if tables.map_hu is None else scores.volume_sum(tables.map_hu, spacing_mm, finder.classes)
        rows += told.make_rows(name, scores.by_artery(each, finder.classes), scores.SCHEMES[weighing.scheme].names[int(category)], map_hu)

    def back(each):
        each = None if each is None else grids.cut(each, shape)
        return each if each is None or not own else scan.restore(each, image)

    arrays = {name: back(getattr(finding, "label" if name == "mask" else name)) for name in ("mask", "before", "probability", "map")}
    answer = None if own else image._replace(hu=grids.cut(finding.hu, shape), affine=np.asarray(affine))
    record = {
        "lesions": told.lesions_by_class(tables.lesions, affine, finder.classes),
        "system": run.config.task,
        "scoring": run.config.scoring.to_dict(),
        "counts": jax.device_get(finding.counts),
        "notes": list(plan.notes),
    }
    if not own:
        record["answer"] = {"shape": list(shape), "spacing_mm": list(spacing_mm)}
    clock.lap("fetch")
    return Result(image, rows=rows, record=record, heart=heart and heart.mask, answer=answer, **arrays)


def make_case(detector, hu, spacing_mm, affine, heart, threshold_hu, aorta_hu=None):
    """(`Case` on the host, `Plan`) of an oriented scan; heart: bool or None; threshold_hu: of the scan; aorta_hu: or None."""
    plan = detector.plan(hu.shape, spacing_mm, affine, heart, threshold_hu, aorta_hu)
    sizes = np.array(hu.shape, np.int32), np.array(spacing_mm, np.float32)
    padded = grids.pad(hu, fill=grids.NO_HU), None if heart is None else grids.pad(heart, fill=False)
    values = np.float32(threshold_hu), np.float32(np.nan if aorta_hu is None else aorta_hu)
    return Case(padded[0], *sizes, padded[1], *values, plan.arrays), plan


def read_by(named_rules, units, shape, spacing_mm, scheme):
    """(`program.Reading` on the host, kinds) of {name: rule} on a grid; units: {name: `rules.pixel_score`}."""
    numbers = tuple(scores.numbers(rule, spacing_mm, units[name], scheme=scheme) for name, rule in named_rules.items())
    kinds = tuple(program.Kind(rule.connectivity, rule.peak, rule.whole_lesions) for rule in named_rules.values())
    return program.Reading(np.array(shape, np.int32), np.array(spacing_mm, np.float32), numbers), kinds

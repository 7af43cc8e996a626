"""One scan on its way from files to scores, and the record of it; what is computed in between stands in `pipeline`. Arrays [z, y, x].

The network sees its own grid; everything after it happens on the acquired grid, because a resampled peak is not a peak.
"""

import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cacjax.files import scan
from cacjax.kernels import lesions, rules, scores, spatial
from cacjax.kernels.scores import CLASSES
from cacjax.kernels.view import NAMES as VIEWS
from cacjax.kernels.view import slab_weights
from cacjax.report import pictures, tables
from cacjax.scoring import hearts, program
from cacjax.scoring import record as summary
from cacjax.scoring import threshold as aorta
from cacjax.scoring.threshold import NON_CONTRAST_HU

FP_REDUCTION = ("paper", "authors_code", "none")
HEART_DILATION_MM = 5.0  # a ball of 10 mm diameter (Zhai 2022, section 2.5): coronary arteries lie on the heart's border
MARGIN_MM = HEART_DILATION_MM  # around the heart's box, where the detector still looks
LONG = 2**23  # voxels to look at from which detection on a CPU takes minutes, and is done in steps under a progress bar
NO_HEART = "none: detection was not limited to the heart"


class Result(NamedTuple):
    """What scoring one scan gives; arrays lie on the scan's own grid.

    scan: as read. mask: classes (uint8) or regions (int16) that are scored. detected: classes before false positives are
    reduced, cut at 130 HU like on non-contrast CT (the scan threshold is the first step of the reduction); None where not
    asked for. probability: of coronary calcium, float32, 0 where no candidate; both None for regions. heart: bool or None.
    rows: a dict per artery, see tables.COLUMNS. record: what else a user may ask (lesions, rule, threshold, timings), JSON-like.
    structures: what a heart network found, see hearts.STRUCTURES, uint8; None without one.
    """

    scan: scan.Scan
    mask: np.ndarray
    detected: np.ndarray | None
    probability: np.ndarray | None
    heart: np.ndarray | None
    rows: list
    record: dict
    structures: np.ndarray | None = None


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
    rule="default",
    mass_factor=None,
    fp_reduction="paper",
    heart_dilation_mm=HEART_DILATION_MM,
    classify="all",
    aorta_roi=None,
    aorta_hu=None,
    view=None,
):
    """Detect and score calcium in one scan; returns a Result.

    path_or_scan: file, DICOM folder or zip, or a Scan. detector: the pair (config, predict) that `cacjax.train.load` returns; or
    regions: a mask (path or [z, y, x] on the scan's grid) of candidates that are scored instead, each label a row. heart: mask
    (path or array) that detection is limited to, or the pair (config, predict) of a heart network that finds it: the detector looks
    in its box, and reduction of false positives drops what lies outside of it, dilated by heart_dilation_mm. threshold_hu: scan
    threshold, e.g. aortic mean + 3 SD of a CCTA; "auto" measures this with the heart network; not given: that of the rule.
    aorta_roi: a file with what was measured (see `threshold.read_roi`), which goes before threshold_hu. rule: name of a scoring rule.
    mass_factor: mg per cm³ and HU; without it there is no mass. fp_reduction: "paper", "authors_code", "none". classify: "all"
    voxels from 130 HU up, those from the scan "threshold" up, or those that can end in the "mask": the same mask ever faster, but
    then nothing is known of what was detected before reduction. aorta_hu: mean of the ascending aorta; not given: as measured for
    the threshold. view: how the detector sees the scan, a name of `cacjax.kernels.view.NAMES`; not given: that of its config. Raises
    ScanError for a scan, masks or a threshold that cannot be used, ValueError for options that do not exist.
    """
    _check_options(rule, fp_reduction, classify, detector, regions, view)
    aorta.check(threshold_hu, heart, aorta_roi)
    clock = Clock()
    image = path_or_scan if isinstance(path_or_scan, scan.Scan) else scan.read(path_or_scan)
    regions = None if regions is None else hearts.as_mask(regions, image)
    clock.lap("read")
    heart = hearts.find(heart, image)
    clock.lap("heart")
    rule_record, notes = at_voltage(rules.named(rule), image.acquisition.kvp)
    truncate = fp_reduction == "authors_code"
    threshold, flags = aorta.choose(threshold_hu, rule_record, image, heart, roi=aorta_roi, regions=regions, truncate=truncate)
    clock.lap("threshold")
    options = {
        "rule": rule_record,
        "mass_factor": mass_factor,
        "slice_thickness_mm": image.acquisition.slice_thickness_mm,
    }
    check_rule(rule_record, image)
    notes += summary.warnings(threshold, rule_record, image) + [aorta.FLAGS[flag] for flag in flags]
    if regions is not None:
        found = score_regions(image, regions, threshold, clock, **options)
    else:
        reduction = {"mode": fp_reduction, "dilation_mm": float(heart_dilation_mm), "classify": classify}
        look = summary.describe_view(view or detector[0].view, threshold.get("mean_hu") if aorta_hu is None else aorta_hu)
        notes += look.pop("notes")
        found = detect_and_score(image, heart, threshold, detector, clock, reduction=reduction, look=look, **options)
    record = {
        "path": str(image.path),
        "acquisition": image.acquisition._asdict(),
        "shape": list(image.hu.shape),
        "spacing_mm": list(scan.spacing_mm(image.affine)),
        "threshold": threshold,
        "rule": summary.describe_rule(rule, rule_record, image),
        "mass_factor": mass_factor,
        "category_scheme": scores.SCHEMES[summary.SCHEME],
        "flags": flags,
        "notes": notes,
    }
    record = tables.plain(record | found.record | {"timings_s": clock.seconds})
    return found._replace(record=record, structures=heart and heart.structures)


def _check_options(rule, fp_reduction, classify, detector, regions, view):
    if classify not in program.CLASSIFY:
        raise ValueError(f"classify must be one of {', '.join(program.CLASSIFY)}, got {classify!r}")
    if view is not None and view not in VIEWS:
        raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}")
    if fp_reduction not in FP_REDUCTION:
        raise ValueError(f"fp_reduction must be one of {', '.join(FP_REDUCTION)}, got {fp_reduction!r}")
    if rule not in rules.RULES:
        raise ValueError(f"rule must be one of {', '.join(rules.RULES)}, got {rule!r}")
    if detector is None and regions is None:
        raise ValueError("expected a detector, the workdir of a trained one, or regions to score, got none of them")


def at_voltage(rule, kvp):
    """(rule for this tube voltage, notes): a voltage that the rule does not know leaves it as it is, and is noted."""
    try:
        return rules.at_kvp(rule, kvp), []
    except ValueError as error:
        return rule, [f"limits of {rule.kvp:g} kV used: {error}"]


def check_rule(rule, image):
    """Raises ScanError `rule_not_applicable` where the rule needs what the scan does not say, such as the slice thickness."""
    try:
        rules.pixel_score(rule, scan.spacing_mm(image.affine), slice_thickness_mm=image.acquisition.slice_thickness_mm)
    except ValueError as error:
        raise scan.ScanError("rule_not_applicable", f"{image.path}: {error}") from None


def score_regions(image, regions, threshold, clock, **options):
    """Result of given candidate regions [z, y, x], one row per label."""
    turned, regions = scan.oriented(image, regions)
    spacing_mm = scan.spacing_mm(turned.affine)
    labels = np.append(0, np.unique(regions[regions > 0])).astype(np.int16)
    # Padded as for detection: a scan of a like size compiles nothing.
    hu = jnp.asarray(program.pad(turned.hu, fill=program.NO_HU))
    number = program.pad(np.searchsorted(labels, np.maximum(regions, 0)).astype(np.int32), fill=0)
    mask = jnp.where(hu >= threshold["hu"], number, 0)
    names = tuple(str(label) for label in labels[1:])
    totals = scores.score_regions(mask, hu, spacing_mm, n_regions=len(names), **options)
    clock.lap("score")
    no_artery = jnp.zeros(hu.shape, jnp.uint8)
    found = lesions.table(mask, len(names), hu, no_artery, spacing_mm, capacity=max(len(names), 1))
    found = program.border(found, np.array(turned.hu.shape))
    listed = [{"artery": name, **entry} for name, entry in zip(names, summary.list_lesions(found, turned.affine))]
    clock.lap("lesions")
    record = {"lesions": listed, "heart": {"from": "not used: regions are given"}, "fp_reduction": {"mode": "none"}}
    mask = scan.restore(labels[_cut(mask, turned.hu.shape)], image)
    return Result(image, mask, None, None, None, summary.make_rows(totals._replace(names=names)), record)


def detect_and_score(image, heart, threshold, detector, clock, *, reduction, look, rule, mass_factor, slice_thickness_mm):
    """Result of a detector (config, predict): detect, cut at the scan threshold, reduce false positives, score; heart: see `hearts`."""
    config, predict = detector
    turned, inside = scan.oriented(image, np.zeros_like(image.hu, bool) if heart is None else heart.mask)
    spacing_mm = scan.spacing_mm(turned.affine)
    unit = rules.pixel_score(rule, spacing_mm, slice_thickness_mm=slice_thickness_mm)
    numbers = scores.numbers(rule, spacing_mm, unit, scheme=summary.SCHEME)
    heart_inside = None if heart is None else inside
    case, how = make_case(turned.hu, heart_inside, spacing_mm, threshold["hu"], numbers, config, rule, reduction, look)
    predict = program.traceable(predict)
    case = clock.lap("prepare", jax.device_put(case))
    found = clock.lap("detect_and_score", compute(predict, case, how))
    tables = jax.device_get(found.tables)
    if more := program.ample(tables, how):
        tables = clock.lap("retry", jax.device_get(program.tabulate(found.mask, case, more)))
    totals = scores.by_artery(scores.from_totals(tables.totals, spacing_mm, rule, unit, mass_factor=mass_factor))
    record = {
        "lesions": summary.lesions_by_class(tables.lesions, turned.affine),
        "heart": {"from": NO_HEART} if heart is None else hearts.describe(heart, image) | {"dilated_mm": reduction["dilation_mm"]},
        "fp_reduction": {"mode": reduction["mode"], "removed": summary.removed(found.removed, reduction)},
        "network_spacing_mm": list(config.spacing_mm),
        "view": look,
    }
    arrays = found.mask, found.detected if reduction["classify"] == "all" else None, found.probability
    back = [None if each is None else scan.restore(_cut(each, turned.hu.shape), image) for each in arrays]
    clock.lap("fetch")
    return Result(image, *back, heart and heart.mask, summary.make_rows(totals, int(tables.category)), record)


def make_case(hu, heart, spacing_mm, threshold_hu, numbers, config, rule, reduction, look=None):
    """(`program.Case` on the host, `program.How`) of an oriented scan; heart: bool or None; look: see `record.describe_view`."""
    look = look or summary.describe_view("none", None)
    network_mm = tuple(config.spacing_mm)
    network = spatial.zoomed_shape(hu.shape, spacing_mm, network_mm)
    box = None if heart is None else box_around(heart, network, network_mm)
    grids, network = program.join_grids(hu.shape, spacing_mm, network_mm, box)
    rows, reach, padded_heart = None, None, None
    if heart is not None:
        rows, reach = spatial.ball(reduction["dilation_mm"], spacing_mm, program.padded(hu.shape), step=program.BALL_STEP)
        padded_heart = program.pad(heart, fill=False)
    least_hu = min(NON_CONTRAST_HU, threshold_hu) if reduction["classify"] == "all" else threshold_hu
    limits = np.float32(least_hu), np.float32(threshold_hu)
    aorta_hu = np.float32(np.nan if look["aorta_hu"] is None else look["aorta_hu"])
    case = program.Case(program.pad(hu, fill=program.NO_HU), padded_heart, rows, grids, *limits, aorta_hu, numbers)
    kind = rule.connectivity, rule.peak, rule.whole_lesions
    slab = () if look["name"] == "none" else slab_weights(network_mm[0])
    return case, program.How(network, reach, reduction["mode"], reduction["classify"], *kind, slab=slab)


def compute(predict, case, how):
    """`program.Found` by one program, or, where that would stay silent for minutes, in steps under a progress bar."""
    low, high = np.asarray(case.grids.box)
    if jax.default_backend() != "cpu" or np.prod(high - low) <= LONG:
        return program.detect_and_score(predict, case, how)
    network_hu, wanted, around = program.prepare(case, how)
    return program.conclude(case, how, program.check(predict(network_hu, wanted), how.network), around)


def _cut(volume, shape):
    return np.asarray(volume)[tuple(slice(0, n) for n in shape)]


def box_around(heart, shape, spacing_mm):
    """Box ((z0, y0, x0), (z1, y1, x1)), ends exclusive, around a heart mask plus a margin, on another grid."""
    low, high = [], []
    for axis, (size, step_mm) in enumerate(zip(shape, spacing_mm)):
        hit = np.flatnonzero(heart.any(tuple(other for other in range(3) if other != axis)))
        scale = (size - 1) / max(heart.shape[axis] - 1, 1)
        low.append(max(0, int(hit[0] * scale - MARGIN_MM / step_mm)))
        high.append(min(size, int(np.ceil(hit[-1] * scale + MARGIN_MM / step_mm)) + 1))
    return tuple(low), tuple(high)


def write(result, out, name, *, save_probability=False):
    """Write the masks of a Result and its picture to the folder `out` as <name>_mask.nii.gz and so on, not the record; and what a
    heart network found."""
    out = pathlib.Path(out)
    scan.write_mask(result.mask, result.scan, out / f"{name}_mask.nii.gz")
    if result.detected is not None:
        scan.write_mask(result.detected, result.scan, out / f"{name}_detected.nii.gz")
    if save_probability and result.probability is not None:
        scan.write_image(result.probability, result.scan.affine, out / f"{name}_probability.nii.gz", np.float32)
    arrays = (result.mask, result.mask if result.heart is None else result.heart)
    turned, mask, heart = scan.oriented(result.scan, *arrays)
    pictures.overlay(
        out / f"{name}.png",
        turned.hu,
        mask,
        spacing_mm=scan.spacing_mm(turned.affine),
        names=CLASSES if result.probability is not None else {label: str(label) for label in np.unique(mask)},
        threshold_hu=result.record["threshold"]["hu"],
        heart=None if result.heart is None else heart,
        title=caption(name, result),
    )
    if result.structures is not None:
        hearts.write(result.structures, result.scan, result.record["threshold"], out, name)


def caption(name, result):
    """One line over the picture: the scan, its total score, the threshold."""
    total = next((row for row in result.rows if row["artery"] == "CAC"), None)
    text = f"{name}: Agatston {total['agatston']:.1f}, category {total['category']}" if total else f"{name}: given regions"
    return f"{text}, voxels from {result.record['threshold']['hu']:.0f} HU"

"""One scan on its way from Hounsfield units to scores: resample, detect, label, reduce false positives, score. Arrays [z, y, x].

The network sees its own grid; everything after it happens on the acquired grid, because a resampled peak is not a peak.
"""

import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cacjax import lesions, report, rules, scan, scores, spatial, summary
from cacjax.scores import CLASSES

FP_REDUCTION = ("paper", "authors_code", "none")
NON_CONTRAST_HU = 130.0
HEART_DILATION_MM = 5.0  # a ball of 10 mm diameter (Zhai 2022, section 2.5): coronary arteries lie on the heart's border
MARGIN_MM = HEART_DILATION_MM  # around the heart's box, where the detector still looks
NO_HEART = "none: detection was not limited to the heart"


class Result(NamedTuple):
    """What scoring one scan gives; arrays lie on the scan's own grid.

    scan: as read. mask: classes (uint8) or regions (int16) that are scored. detected: classes before false positives are
    reduced, cut at 130 HU like on non-contrast CT (the scan threshold is the first step of the reduction).
    probability: of coronary calcium, float32, 0 where no candidate; both None for regions. heart: bool or None. rows:
    a dict per artery, see report.COLUMNS. record: what else a user may ask (lesions, rule, threshold, timings), JSON-like.
    """

    scan: scan.Scan
    mask: np.ndarray
    detected: np.ndarray | None
    probability: np.ndarray | None
    heart: np.ndarray | None
    rows: list
    record: dict


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
):
    """Detect and score calcium in one scan; returns a Result.

    path_or_scan: file, DICOM folder or zip, or a Scan. detector: the pair (config, predict) that `cacjax.train.load` returns; or
    regions: a mask (path or [z, y, x] on the scan's grid) of candidates that are scored instead, each label a row. heart: mask
    (path or array) that detection is limited to: the detector looks in its box, and reduction of false positives drops what
    lies outside of it, dilated by heart_dilation_mm. threshold_hu: scan threshold, e.g. aortic mean + 3 SD of a CCTA; not given:
    that of the rule. rule: name of a scoring rule. mass_factor: mg per cm³ and HU; without it there is no mass. fp_reduction:
    "paper", "authors_code", "none". Raises ScanError for a scan or masks that cannot be used, ValueError for options that do
    not exist.
    """
    _check_options(rule, fp_reduction, detector, regions)
    clock = Clock()
    image = path_or_scan if isinstance(path_or_scan, scan.Scan) else scan.read(path_or_scan)
    heart, regions = (None if mask is None else as_mask(mask, image) for mask in (heart, regions))
    if heart is not None and not heart.any():
        raise scan.ScanError("empty_heart", f"{image.path}: expected a heart mask with voxels in it, got an empty one")
    clock.lap("read")
    rule_record, notes = at_voltage(rules.named(rule), image.acquisition.kvp)
    threshold = choose_threshold(threshold_hu, rule_record)
    options = {
        "rule": rule_record,
        "mass_factor": mass_factor,
        "slice_thickness_mm": image.acquisition.slice_thickness_mm,
    }
    check_rule(rule_record, image)
    notes += summary.warnings(threshold, rule_record, image)
    if regions is not None:
        found = score_regions(image, regions, threshold, clock, **options)
    else:
        reduction = {"mode": fp_reduction, "dilation_mm": float(heart_dilation_mm)}
        found = detect_and_score(image, heart, threshold, detector, clock, reduction=reduction, **options)
    record = {
        "path": str(image.path),
        "acquisition": image.acquisition._asdict(),
        "shape": list(image.hu.shape),
        "spacing_mm": list(scan.spacing_mm(image.affine)),
        "threshold": threshold,
        "rule": summary.describe_rule(rule, rule_record, image),
        "mass_factor": mass_factor,
        "category_scheme": scores.SCHEMES[summary.SCHEME],
        "notes": notes,
    }
    return found._replace(record=report.plain(record | found.record | {"timings_s": clock.seconds}))


def _check_options(rule, fp_reduction, detector, regions):
    if fp_reduction not in FP_REDUCTION:
        raise ValueError(f"fp_reduction must be one of {', '.join(FP_REDUCTION)}, got {fp_reduction!r}")
    if rule not in rules.RULES:
        raise ValueError(f"rule must be one of {', '.join(rules.RULES)}, got {rule!r}")
    if detector is None and regions is None:
        raise ValueError("expected a detector, the workdir of a trained one, or regions to score, got none of them")


def as_mask(mask, image):
    """A mask [z, y, x] on the grid of `image` from a path or an array. Raises ScanError `grid_mismatch`."""
    if isinstance(mask, str | pathlib.Path):
        return scan.read_mask(mask, image)
    mask = np.asarray(mask)
    if mask.shape != image.hu.shape:
        text = f"{image.path}: expected a mask of shape {image.hu.shape}, got {mask.shape}"
        raise scan.ScanError("grid_mismatch", text)
    return mask


def at_voltage(rule, kvp):
    """(rule for this tube voltage, notes): a voltage that the rule does not know leaves it as it is, and is noted."""
    try:
        return rules.at_kvp(rule, kvp), []
    except ValueError as error:
        return rule, [f"limits of {rule.kvp:g} kV used: {error}"]


def choose_threshold(threshold_hu, rule):
    """The scan threshold as the record shows it: {"hu", "from"}; what is not given is that of the rule, or 130 HU."""
    if threshold_hu is not None:
        return {"hu": float(threshold_hu), "from": "option"}
    least = NON_CONTRAST_HU if rule.threshold_hu is None else rule.threshold_hu
    least = np.nextafter(np.float32(least), np.float32(np.inf)) if rule.strict else least
    return {"hu": float(least), "from": "assumed non-contrast"}


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
    hu = jnp.asarray(turned.hu)
    mask = jnp.where(hu >= threshold["hu"], np.searchsorted(labels, np.maximum(regions, 0)), 0)
    names = tuple(str(label) for label in labels[1:])
    totals = scores.score_regions(mask, hu, spacing_mm, n_regions=len(names), **options)
    clock.lap("score")
    no_artery = jnp.zeros(hu.shape, jnp.uint8)
    found = lesions.table(mask, len(names), hu, no_artery, spacing_mm, capacity=max(len(names), 1))
    listed = [{"artery": name, **entry} for name, entry in zip(names, summary.list_lesions(found, turned.affine))]
    clock.lap("lesions")
    record = {"lesions": listed, "heart": {"from": "not used: regions are given"}, "fp_reduction": {"mode": "none"}}
    mask = scan.restore(labels[np.asarray(mask)], image)
    return Result(image, mask, None, None, None, summary.make_rows(totals._replace(names=names)), record)


def detect_and_score(image, heart, threshold, detector, clock, *, reduction, **options):
    """Result of a detector (config, predict): detect, cut at the scan threshold, reduce false positives, score."""
    config, predict = detector
    turned, inside = scan.oriented(image, np.zeros_like(image.hu, bool) if heart is None else heart > 0)
    inside = None if heart is None else inside
    spacing_mm, hu = scan.spacing_mm(turned.affine), jnp.asarray(turned.hu)
    label, probability = detect(hu, predict, spacing_mm=spacing_mm, network_mm=tuple(config.spacing_mm), heart=inside)
    detected = jnp.where(hu >= min(NON_CONTRAST_HU, threshold["hu"]), label, 0)
    probability = clock.lap("detect", jnp.where(hu >= threshold["hu"], probability, 0))
    mask, removed = reduce(detected, hu, threshold["hu"], inside, spacing_mm, **reduction)
    clock.lap("fp_reduction", mask)
    totals = scores.score(mask, hu, spacing_mm, **options)
    clock.lap("score")
    listed = summary.lesions_by_class(mask, hu, spacing_mm, turned.affine)
    clock.lap("lesions")
    record = {
        "lesions": listed,
        "heart": {"from": NO_HEART} if heart is None else {"from": "mask", "dilated_mm": reduction["dilation_mm"]},
        "fp_reduction": {"mode": reduction["mode"], "removed": removed},
        "network_spacing_mm": list(config.spacing_mm),
    }
    back = [scan.restore(np.asarray(each), image) for each in (mask, detected, probability)]
    return Result(image, *back, heart, summary.make_rows(totals), record)


def detect(hu, predict, *, spacing_mm, network_mm, heart):
    """What the network says on its own grid, brought back by nearest neighbours: (class uint8, P(calcium) float32) on that of `hu`.

    heart: bool [z, y, x] on the host, whose box limits where the network looks, or None. Raises ValueError where the
    network answers on another grid than it was asked.
    """
    shape = spatial.zoomed_shape(hu.shape, spacing_mm, network_mm)
    if shape == hu.shape:  # a resampling that moves nothing
        network_hu, network_mm = hu, spacing_mm
    else:
        network_hu, network_mm = spatial.resample(hu, spacing_mm, network_mm, order=3)
    found = predict(network_hu, None if heart is None else box_around(heart, shape, network_mm))
    if found.label.shape != shape or found.p_cac.shape != shape:
        raise ValueError(f"prediction must have the network grid's shape {shape}, got {found.label.shape}")
    if shape == hu.shape:
        return jnp.asarray(found.label), jnp.asarray(found.p_cac)
    back = [
        spatial.resample(jnp.asarray(each), network_mm, spacing_mm, order=0, shape=hu.shape)[0]
        for each in (found.label, found.p_cac)
    ]
    return back[0].astype(jnp.uint8), back[1]


def box_around(heart, shape, spacing_mm):
    """Box ((z0, y0, x0), (z1, y1, x1)), ends exclusive, around a heart mask plus a margin, on another grid."""
    low, high = [], []
    for axis, (size, step_mm) in enumerate(zip(shape, spacing_mm)):
        hit = np.flatnonzero(heart.any(tuple(other for other in range(3) if other != axis)))
        scale = (size - 1) / max(heart.shape[axis] - 1, 1)
        low.append(max(0, int(hit[0] * scale - MARGIN_MM / step_mm)))
        high.append(min(size, int(np.ceil(hit[-1] * scale + MARGIN_MM / step_mm)) + 1))
    return tuple(low), tuple(high)


def reduce(detected, hu, threshold_hu, heart, spacing_mm, *, mode, dilation_mm):
    """(mask, what was removed) after reduction of false positives in `mode`; heart: bool, not dilated yet, or None."""
    if mode == "none":
        return jnp.where(hu >= threshold_hu, detected, 0), {}
    around = None if heart is None else spatial.dilate(jnp.asarray(heart), dilation_mm, spacing_mm)
    mask, removed = lesions.grow(detected, hu, threshold_hu, around, spacing_mm, mode=mode)
    return mask, {name: int(count) for name, count in removed._asdict().items()}


def write(result, out, name, *, save_probability=False):
    """Write the masks of a Result and its picture to the folder `out` as <name>_mask.nii.gz and so on; not the record."""
    out = pathlib.Path(out)
    scan.write_mask(result.mask, result.scan, out / f"{name}_mask.nii.gz")
    if result.detected is not None:
        scan.write_mask(result.detected, result.scan, out / f"{name}_detected.nii.gz")
    if save_probability and result.probability is not None:
        scan.write_image(result.probability, result.scan.affine, out / f"{name}_probability.nii.gz", np.float32)
    arrays = (result.mask, result.mask if result.heart is None else result.heart)
    turned, mask, heart = scan.oriented(result.scan, *arrays)
    report.overlay(
        out / f"{name}.png",
        turned.hu,
        mask,
        spacing_mm=scan.spacing_mm(turned.affine),
        names=CLASSES if result.detected is not None else {label: str(label) for label in np.unique(mask)},
        threshold_hu=result.record["threshold"]["hu"],
        heart=None if result.heart is None else heart,
        title=caption(name, result),
    )


def caption(name, result):
    """One line over the picture: the scan, its total score, the threshold."""
    total = next((row for row in result.rows if row["artery"] == "CAC"), None)
    text = f"{name}: Agatston {total['agatston']:.1f}, category {total['category']}" if total else f"{name}: given regions"
    return f"{text}, voxels from {result.record['threshold']['hu']:.0f} HU"

"""Pictures of an evaluation: calcium that arms found, made up and missed; the scans furthest off; one measurement against another.

Arrays are [z, y, x] on the scan's grid until `scan.oriented` turns them, see `cacjax.report.pictures`; `truth` is a `compare.Reference`.
A panel is a dict of small arrays and texts, cut from the scans one by one, so that a picture of many needs no memory for the scans.
"""

import itertools
from typing import NamedTuple

import numpy as np

from cacjax.classes import CLASSES, CORONARY
from cacjax.evaluation import agreement
from cacjax.files import scan
from cacjax.report import pictures as drawing
from cacjax.report import tables

REFERENCE_COLOUR, OTHER_COLOUR, OUTLIER_COLOUR = "#64d2ff", "#bf5af2", "#ff9500"
ERROR_COLOURS = ("#32d74b", "#ff2d55", "#ffd60a")
ERROR_NAMES = ("found", "false", "missed")
FALSE, MISSED = 2, 3
OTHER = {number: name for number, name in enumerate(CLASSES) if number and number not in CORONARY}
ZOOM_MM, ROOM_MM = 40.0, 16.0  # least side of a close-up, and how much larger than its lesion it is
TICKS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))


class Words(NamedTuple):
    """What `scatter` writes: names of both measurements, their unit, the title; alike: whether both were made in one way."""

    x: str
    y: str
    unit: str
    title: str
    alike: bool = False


def of_scan(truth, found):
    """What each arm found in the slice with most calcium, for `comparison`: a list of one dict, none without calcium.

    found: {arm: (classes, note below its name)}.
    """
    calcium, *masks = (np.isin(mask, CORONARY) for mask in (truth.label, *(mask for mask, _ in found.values())))
    if not calcium.any() or not found:
        return []
    turned, calcium, *masks = scan.oriented(truth.scan, calcium, *masks)
    spacing_mm = scan.spacing_mm(turned.affine)
    heart = None if truth.heart is None else scan.oriented(truth.scan, truth.heart)[1]
    box = drawing.field(calcium, heart, calcium.shape, spacing_mm)
    (z,) = drawing.busiest(calcium, box, 1, spacing_mm)
    cut = (z, *box[1:])
    panel = {
        "name": f"{truth.name}, slice {z + 1}",
        "hu": turned.hu[cut].copy(),
        "reference": calcium[cut].copy(),
        "found": {arm: mask[cut].copy() for arm, mask in zip(found, masks)},
        "notes": {arm: note for arm, (_, note) in found.items()},
        "calcium_mm3": calcium.sum() * truth.voxel_mm3,
    }
    return [panel | {"spacing_mm": spacing_mm[1:], "threshold_hu": truth.threshold_hu}]


def choose(panels, count=4):
    """Up to `count` panels from most to least calcium, spread evenly over the scans that have any."""
    ranked = sorted(panels, key=lambda panel: -panel["calcium_mm3"])
    picks = np.unique(np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int))
    return [ranked[k] for k in picks]


def comparison(path, panels, *, arms, title=""):
    """Draw one row per scan: image, reference, and what each arm found (green), made up (red) and missed (yellow).

    panels: list of dicts with `name`, `hu` [y, x], `reference` [y, x] bool, `found` {arm: [y, x] bool},
    `spacing_mm` (dy, dx), `threshold_hu` and `notes` {arm: text}: one axial slice each, oriented and cropped. arms:
    the order of the columns. Writes a PNG.
    """
    figure, axes = drawing.canvas(len(panels), 2 + len(arms), title)
    for row, panel in zip(axes, panels):
        window = drawing.hu_window(panel["threshold_hu"])
        for axis in row:
            drawing.draw(axis, panel["hu"], panel["spacing_mm"], window, "")
        row[0].set_title(panel["name"], **drawing.CAPTION)
        row[1].set_title("reference", **drawing.CAPTION)
        drawing.mark(row[1], panel["reference"].astype(np.uint8), (REFERENCE_COLOUR,))
        for axis, arm in zip(row[2:], arms):
            note = panel["notes"].get(arm, "")
            axis.set_title(f"{arm}\n{note}" if note else arm, **drawing.CAPTION)
            if arm in panel["found"]:
                drawing.mark(axis, errors(panel["found"][arm], panel["reference"]), ERROR_COLOURS)
    drawing.legend(figure, [("reference", REFERENCE_COLOUR), *zip(ERROR_NAMES, ERROR_COLOURS)])
    drawing.save(figure, path)


def errors(found, reference):
    """Where calcium is found and real (1), found only (2) or real only (3), else 0."""
    found, real = np.asarray(found) > 0, np.asarray(reference) > 0
    return np.where(found & real, 1, np.where(found, 2, np.where(real, 3, 0))).astype(np.uint8)


def furthest(records, arm, count=4):
    """Names of the scans whose volume of coronary calcium after reduction is furthest from the reference, the worst first.

    Half of them are the worst of those with too little, and half of those with too much, where there are as many.
    """
    ours = [r for r in records if (r["arm"], r["stage"], r["artery"]) == (arm, "final", "CAC")]
    excess = {r["scan"]: r["found_mm3"] - r["reference_mm3"] for r in ours}
    ranked = sorted((name for name in excess if excess[name]), key=lambda name: -abs(excess[name]))
    little, much = ([name for name in ranked if sign * excess[name] > 0][: count // 2] for sign in (-1, 1))
    picked = dict.fromkeys([*little, *much, *ranked])
    return sorted(list(picked)[:count], key=ranked.index)


def of_outlier(truth, found, found_lesions, detected, *, count=2):
    """Close-ups of the up to `count` lesions of one scan with most wrong voxels, for `outliers`: a list of dicts.

    found, detected: classes after and before reduction of false positives, detected None where that was not saved.
    found_lesions: numbered lesions of `found`. Wrong are the voxels that only the reference has, or only the prediction.
    """
    arrays = (truth.label, found, truth.lesions["CAC"], found_lesions, found if detected is None else detected)
    turned, label, found, real_lesions, found_lesions, before = scan.oriented(truth.scan, *arrays)
    real, hit = np.isin(label, CORONARY), np.isin(found, CORONARY)
    wrong, wrong_before = errors(hit, real), None if detected is None else errors(np.isin(before, CORONARY), real)
    spacing_mm = scan.spacing_mm(turned.affine)
    panels = []
    for z, lesion, kind in _worst(wrong, real_lesions, found_lesions, count):
        near, wide = _close_up(lesion[z], spacing_mm[1:]), drawing.field(lesion | real | hit, None, lesion.shape, spacing_mm)[1:]
        where = lesion & (wrong == kind)
        wrong_mm3, whole_mm3 = (float(voxels.sum() * truth.voxel_mm3) for voxels in (where, lesion))
        artery = CLASSES[np.bincount((label if kind == MISSED else found)[lesion]).argmax()]
        real_mm3, hit_mm3 = (float(mask.sum() * truth.voxel_mm3) for mask in (real, hit))
        panel = {
            "scan": truth.name,
            "title": f"{truth.name}, slice {z + 1} of {len(label)}\nwhole scan: {hit_mm3:.0f} mm³ found, {real_mm3:.0f} real",
            "caption": f"{artery}: {ERROR_NAMES[kind - 1]} {wrong_mm3:.1f} of {whole_mm3:.1f} mm³",
            "why": _why(turned.hu[where], label[where], None if detected is None else before[where], kind, truth.threshold_hu),
            "overview": turned.hu[z][wide].copy(),
            "corner": [inner.start - outer.start for inner, outer in zip(near, wide)],
            "hu": turned.hu[z][near].copy(),
            "reference": label[z][near].copy(),
            "found": wrong[z][near].copy(),
            "before": None if detected is None else wrong_before[z][near].copy(),
        }
        panels.append(panel | {"spacing_mm": spacing_mm[1:], "threshold_hu": truth.threshold_hu})
    return panels


def _worst(wrong, real_lesions, found_lesions, count):
    """(slice, lesion [z, y, x], kind of error) of each lesion with most wrong voxels, the worst first; the slice has most of them."""
    ranked = []
    for kind, number in ((FALSE, found_lesions), (MISSED, real_lesions)):
        ranked += [(int(n), k, kind) for k, n in enumerate(np.bincount(number[wrong == kind])) if k and n]
    for _, k, kind in sorted(ranked, reverse=True)[:count]:
        lesion = (found_lesions if kind == FALSE else real_lesions) == k
        yield int((lesion & (wrong == kind)).sum((1, 2)).argmax()), lesion, kind


def _close_up(lesion, spacing_mm):
    """Slices (rows, columns) of a square around a lesion [y, x], moved to lie within the image."""
    hits = np.nonzero(lesion)
    side_mm = max(ZOOM_MM, ROOM_MM + max(np.ptp(hit) * step for hit, step in zip(hits, spacing_mm)))
    cut = []
    for hit, step, size in zip(hits, spacing_mm, lesion.shape):
        side = min(size, round(side_mm / step))
        start = min(max(0, (hit.min() + hit.max() - side) // 2), size - side)
        cut.append(slice(int(start), int(start + side)))
    return tuple(cut)


def _why(hu, label, before, kind, threshold_hu):
    """What the wrong voxels of a lesion (lists of their HU and classes) tell about how they came to be missed or false."""
    if kind == FALSE:
        named = np.bincount(label).argmax()
        text = f"{OTHER[named]} calcium" if named in OTHER else "nothing"
        return f"{text} in the reference; mean {hu.mean():.0f} HU, threshold {threshold_hu:.0f}"
    if (hu < threshold_hu).mean() > 0.5:
        return f"below the threshold: mean {hu.mean():.0f} HU, threshold {threshold_hu:.0f}"
    if before is None:
        return ""
    named = np.bincount(before).argmax()
    texts = {number: f"detected as {name}" for number, name in OTHER.items()} | {0: "not detected"}
    return texts.get(int(named), "detected, then taken away by FP reduction")


def outliers(path, panels, *, title=""):
    """Draw one row per lesion: slice, close-up, reference, what was found, and what was detected before reduction. Writes a PNG.

    panels: as `of_outlier` makes them. Compare Zhai 2022, Figure 4.
    """
    from matplotlib.patches import Rectangle

    figure, axes = drawing.canvas(len(panels), 5, title)
    for row, panel in zip(axes, panels):
        window = drawing.hu_window(panel["threshold_hu"])
        drawing.draw(row[0], panel["overview"], panel["spacing_mm"], window, panel["title"])
        (y, x), (height, width) = panel["corner"], panel["hu"].shape
        row[0].add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, color=OUTLIER_COLOUR))
        real = panel["reference"]
        shown = (
            ("close-up", np.zeros_like(real), ERROR_COLOURS),
            ("reference", np.where(np.isin(real, CORONARY), 1, np.where(real > 0, 2, 0)), (REFERENCE_COLOUR, OTHER_COLOUR)),
            (f"{panel['caption']}\n{panel['why']}", panel["found"], ERROR_COLOURS),
            ("before FP reduction", panel["before"], ERROR_COLOURS),
        )
        for axis, (text, marked, colours) in zip(row[1:], shown):
            drawing.draw(axis, panel["hu"], panel["spacing_mm"], window, text if marked is not None else f"{text}: not saved")
            if marked is not None:
                drawing.mark(axis, marked, colours)
    entries = [("reference", REFERENCE_COLOUR), ("reference, not coronary", OTHER_COLOUR), *zip(ERROR_NAMES, ERROR_COLOURS)]
    drawing.legend(figure, entries)
    drawing.save(figure, path)


def scatter(path, points, *, words, named=None):
    """Draw one row per arm: one number against another on square root axes, and Bland-Altman with limits that widen. Writes a PNG.

    points: {arm: list of (name, x, y)}, numbers of at least 0. words: a `Words`. named: {arm: names} of what is drawn orange with its
    name. The limits lie about the bias, or, of two measurements in one way (`words.alike`), about 0. Compare Zhai 2022, Figure 3,
    and van Velzen 2022, Figure 8.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    most = max([1.0, *(value for ours in points.values() for _, *values in ours for value in values)])
    ticks = [0, *(tick for tick in TICKS if most / 50 <= tick <= most)]
    figure = Figure(figsize=(10, 3.6 * len(points) + 0.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for (left, right), (arm, ours) in zip(figure.subplots(len(points), 2, squeeze=False, sharex="col", sharey="col"), points.items()):
        names, (x, y) = [name for name, *_ in ours], np.array([values for _, *values in ours], float).reshape(-1, 2).T
        outlier = np.array([name in (named or {}).get(arm, ()) for name in names], bool)
        for axis, across, up in ((left, np.sqrt(x), np.sqrt(y)), (right, np.sqrt((x + y) / 2), y - x)):
            axis.scatter(across, up, s=20, c=np.where(outlier, OUTLIER_COLOUR, "#0a84ff"), alpha=0.7)
            axis.set(xticks=np.sqrt(ticks), xticklabels=ticks)
            axis.grid(alpha=0.3)
        for name, at in itertools.compress(zip(names, np.sqrt(np.stack([x, y], 1))), outlier):
            side, shift = ("left", 5) if at[0] < most**0.5 / 2 else ("right", -5)
            left.annotate(name[-16:], at, (shift, 3), ha=side, textcoords="offset points", fontsize=6)
        left.plot([0, most**0.5], [0, most**0.5], color="grey", lw=1, ls="--")
        left.set(yticks=np.sqrt(ticks), yticklabels=ticks, ylabel=f"{arm}: {words.y}, {words.unit}")
        right.set_ylabel(f"{words.y} - {words.x}, {words.unit}")
        right.axhline(0, color="grey", lw=1, ls="--")
        if len(ours) > 1:
            _limits(right, agreement.bland_altman(y, x), most, words)
            ranks, icc = agreement.spearman(y, x), agreement.icc_a1(np.stack([y, x], 1))
            agree = ranks.reason or f"Spearman {ranks.value:.2f}, ICC {icc.value:.2f}"
            left.set_title(f"n = {len(ours)}, both 0 in {int((x + y == 0).sum())}; {agree}", fontsize=9)
    figure.suptitle(words.title, fontsize=10)
    left.set_xlabel(f"{words.x}, {words.unit} (square root axes)")
    right.set_xlabel(f"mean of both, {words.unit} (square root axis)")
    tables.replace(path, lambda aside: figure.savefig(aside, format="png"))


def confusions(path, rows):
    """Draw the scans in each pair of risk categories, one panel per arm: the reference down, what was found across. Writes a PNG.

    rows: {arm: row of `agreement.rows` with its categories}. Compare Gogin 2021, Figure 4.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(rows), 4)
    figure = Figure(figsize=(3.4 * columns + 0.4, 3.6 * -(-len(rows) // columns)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(-(-len(rows) // columns), columns, squeeze=False).ravel()
    for axis in axes[len(rows) :]:
        axis.set_axis_off()
    for axis, (arm, row) in zip(axes, rows.items()):
        counts, names = np.asarray(row["confusion"]), row["categories"]
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for at, count in np.ndenumerate(counts):
            axis.text(at[1], at[0], count, ha="center", va="center", fontsize=9, color="white" if share[at] > 0.6 else "black")
        axis.set(xticks=range(len(names)), xticklabels=names, yticks=range(len(names)), yticklabels=names)
        axis.set(xlabel="found", ylabel="reference")
        figures = f"accuracy {row['accuracy']:.3f}, C-index {row['c_index']:.3f}, kappa {row['kappa']:.2f}"
        axis.set_title(f"{arm}, {int(counts.sum())} scans\n{figures}", fontsize=8)
    tables.replace(path, lambda aside: figure.savefig(aside, format="png"))


def _limits(axis, limits, most, words):
    root = np.linspace(0, most**0.5, 50)
    half, centre = limits.half_width(root**2), 0.0 if words.alike else limits.bias
    axis.axhline(limits.bias, color="#0a84ff", lw=1)
    axis.fill_between(root, centre - half, centre + half, color="#0a84ff", alpha=0.1)
    text = limits.reason or f"95 % limits ± {limits.coefficient:.1f} √mean"
    axis.set_title(f"bias {limits.bias:+.1f} {words.unit}, {text}", fontsize=9)

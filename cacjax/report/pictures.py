"""Pictures of scans and of found calcium. Arrays: [z, y, x], LPS axes.

"Oriented" means that z runs to the head, y to the back and x to the patient's left, so that a slice drawn with row 0
on top is seen from the feet, as radiologists hold it: the patient's right is on the left of the picture.
"""

import numpy as np

from cacjax.files import scan
from cacjax.files.atomic import replace

COLOURS = ("#ff2d55", "#ffd60a", "#32d74b", "#0a84ff", "#bf5af2", "#ff9f0a", "#64d2ff", "#ac8e68", "#ff6961")
CAPTION = {"color": "white", "fontsize": 8}
# Contrast-enhanced blood is at 200 to 600 HU: in a soft-tissue window it would hide the calcium.
WINDOWS = ((200.0, (-160.0, 440.0)), (float("inf"), (-200.0, 900.0)))
MAP_HU = (0.0, 150.0)  # window of a calcium map
NEAR_MM = 8.0  # a lesion's middle may lie beside it


def overlay(path, hu, mask, *, affine, names, lesions=(), threshold_hu=130.0, heart=None, title="", columns=4):
    """Draw the axial slices that show every lesion, bare above and marked below, beside a projection from the front.

    hu, mask, heart: [z, y, x], oriented; affine: of their grid. mask: 0 or an index into `names`, the class names with the background
    first. lesions: dicts with number, centre_mm and slices, as a record has them; without them the slices with most of the mask.
    threshold_hu: the scan threshold; it chooses the window (soft tissue, or wide for enhanced blood). heart: crops the picture to it.
    columns: slices beside the projection. Writes a PNG to `path`.
    """
    window, spacing_mm = hu_window(threshold_hu), scan.spacing_mm(affine)
    box = field(mask, heart, hu.shape, spacing_mm)
    places = placed(lesions, affine)
    picked = slices_of(places) or busiest(mask, box, columns, spacing_mm)
    bands = 1 + max(0, -(-(len(picked) - columns) // (columns + 1)))
    width = (len(picked) if bands == 1 else columns) + 1
    figure, axes = canvas(2 * bands, width, f"{title}\n{say(window)}")
    for axis in axes.flat:
        axis.axis("off")
    frontal, cells = (0, columns if bands > 1 else len(picked)), iter(np.ndindex(bands, width))
    for z in picked:
        band, column = next(cell for cell in cells if cell != frontal)
        view, marks = hu[z][box[1:]], mask[z][box[1:]]
        area_mm2 = float((marks > 0).sum() * spacing_mm[1] * spacing_mm[2])
        draw(axes[2 * band][column], view, spacing_mm[1:], window, height(z, box, affine), "RLAP")
        draw(axes[2 * band + 1][column], view, spacing_mm[1:], window, f"{area_mm2:.1f} mm² marked", "RLAP")
        mark(axes[2 * band + 1][column], marks, COLOURS)
        here = [(n, y - box[1].start, x - box[2].start) for n, reach, (at, y, x) in places if abs(at - z) <= reach]
        number(axes[2 * band + 1][column], here, marks, spacing_mm[1:])
    view, marks = _frontal(hu, mask, heart, box)
    for row in (0, 1):
        draw(axes[row][frontal[1]], view, (spacing_mm[0], spacing_mm[2]), window, "maximum, from the front", "RLHF")
    mark(axes[1][frontal[1]], marks, COLOURS)
    seen = [(n, box[0].stop - 1 - z, x - box[2].start) for n, _, (z, _, x) in places]
    number(axes[1][frontal[1]], seen, marks, (spacing_mm[0], spacing_mm[2]))
    found = [int(label) for label in np.unique(mask) if label]
    legend(figure, [(names[label], COLOURS[(label - 1) % len(COLOURS)]) for label in found])
    save(figure, path)


def placed(lesions, affine):
    """(number, slices on either side of its middle one that show it, its centre (z, y, x) in voxels) of every lesion of a record."""
    inverse = np.linalg.inv(affine)
    centres = [inverse[:3, :3] @ lesion["centre_mm"] + inverse[:3, 3] for lesion in lesions]
    return [(lesion["number"], (lesion["slices"] - 1) // 2, (round(at[0]), *at[1:])) for lesion, at in zip(lesions, centres)]


def slices_of(places):
    """The slices that show every lesion, head first: the middle one of each that no slice before it shows."""
    picked = []
    for _, reach, (z, _, _) in places:
        if all(abs(z - other) > reach for other in picked):
            picked.append(z)
    return sorted(picked, reverse=True)


def height(z, box, affine):
    """Where the middle of a slice lies along the body, in words."""
    middle = [z, *((side.start + side.stop - 1) / 2 for side in box[1:]), 1]
    return f"z {(affine @ middle)[2]:.1f} mm"


def say(window):
    """A window in words, as radiologists set it."""
    return f"window {window[1] - window[0]:.0f}, level {sum(window) / 2:.0f} HU"


def twins(path, hu, map_hu, *, affine, title="", heart=None, truth=None, columns=5):
    """Draw slices with most of a calcium map [z, y, x] in HU: the scan, its twin without that, the map, and a true one where it is known.

    Writes a PNG to `path`; see `overlay`.
    """
    spacing_mm = scan.spacing_mm(affine)
    box = field(map_hu > 0, heart, hu.shape, spacing_mm)
    picked = busiest(map_hu, box, columns, spacing_mm)
    kinds = {"scan": (hu, WINDOWS[0][1]), "twin": (hu - map_hu, WINDOWS[0][1]), "map": (map_hu, MAP_HU)}
    kinds |= {} if truth is None else {"true calcium": (truth, MAP_HU)}
    figure, axes = canvas(len(kinds), len(picked), f"{title}\nscan and twin: {say(WINDOWS[0][1])}; map: {say(MAP_HU)}")
    for row, (name, (volume, window)) in zip(axes, kinds.items()):
        for axis, z in zip(row, picked):
            draw(axis, volume[z][box[1:]], spacing_mm[1:], window, f"{name}, {height(z, box, affine)}", "RLAP")
    save(figure, path)


def busiest(mask, box, count, spacing_mm):
    """Up to `count` slices with most marked voxels (of HU: the largest sum), 3 mm apart or more, head first; else spread over the box."""
    area = mask.sum((1, 2)) if mask.dtype.kind == "f" else (mask > 0).sum((1, 2))
    picked = []
    for z in np.argsort(-area, kind="stable"):
        if len(picked) == count or area[z] == 0:
            break
        if all(abs(z - other) * spacing_mm[0] >= 3 for other in picked):
            picked.append(int(z))
    if picked:
        return sorted(picked, reverse=True)
    start, stop = box[0].start, box[0].stop
    return [int(z) for z in np.linspace(stop - 1, start, count + 2).round()[1:-1]]


def hu_window(threshold_hu):
    """(black, white) in HU that suit a scan with this threshold: soft tissue, or wide for enhanced blood."""
    return next(window for limit, window in WINDOWS if threshold_hu <= limit)


def field(mask, heart, shape, spacing_mm, *, margin_mm=12.0, least_mm=90.0):
    """Slices around the heart, or else around the marks, or else everything; at least `least_mm` wide."""
    inside = np.asarray(mask) > 0 if heart is None else (np.asarray(heart) > 0) | (np.asarray(mask) > 0)
    if not inside.any():
        return tuple(slice(0, n) for n in shape)
    box = []
    for axis, step in enumerate(spacing_mm):
        hit = np.flatnonzero(inside.any(tuple(a for a in range(3) if a != axis)))
        middle, half = (hit[0] + hit[-1]) / 2, (hit[-1] - hit[0] + 1) / 2 + margin_mm / step
        half = max(half, least_mm / 2 / step)
        box.append(slice(max(0, int(middle - half)), min(shape[axis], int(middle + half) + 1)))
    return tuple(box)


def _frontal(hu, mask, heart, box):
    """Maximum along y, head on top; only heart and marks count, so that ribs and spine do not cover them."""
    view, marks = np.asarray(hu[box], np.float32), np.asarray(mask[box])
    if heart is not None:
        view = np.where((np.asarray(heart[box]) > 0) | (marks > 0), view, -1000.0)
    return view.max(1)[::-1], marks.max(1)[::-1]


def arms(path, rows):
    """Draw one line per arm of an experiment: pooled F1 with interval and every seed, average precision, published F1. Writes a PNG.

    rows: as `cacjax.experiments.summarise` makes them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.42 * len(rows) + 1.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axis, y = figure.subplots(), np.arange(len(rows))[::-1]
    axis.hlines(y, [r["f1_low"] for r in rows], [r["f1_high"] for r in rows], color="#0a84ff", lw=5, alpha=0.25)
    for height, row in zip(y, rows):
        axis.plot(row["f1_seeds"], [height] * len(row["f1_seeds"]), "o", color="#0a84ff", ms=4, alpha=0.5)
    series = {"f1_pooled": ("pooled F1, median of the seeds (dots), 95 % interval over scans", "o", "#0a84ff")}
    series |= {"ap_pooled": ("average precision, pooled", "D", "#ff9f0a"), "published_f1": ("published mean F1", "x", "black")}
    for name, (label, marker, colour) in series.items():
        values = [np.nan if row[name] is None else row[name] for row in rows]
        if not np.isnan(values).all():
            axis.plot(values, y, marker, color=colour, label=label, ms=7, ls="")
    names = [f"{r['network']}, {r['scans']}{', FP reduced' if r['fp_reduction'] == 'yes' else ''}" for r in rows]
    axis.set(yticks=y, yticklabels=names, xlim=(-0.02, 1.02), ylim=(-0.6, len(rows) - 0.4))
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    replace(path, lambda aside: figure.savefig(aside, format="png"))


def intervals(path, names, rows, series):
    """Draw a panel per figure: its value in each row (named `names`), the interval, and the published value, a cross. Writes a PNG.

    series: {name: title}; a row has NAME, NAME_low, NAME_high and published_NAME, which may be None.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(series) + 2, 0.42 * len(rows) + 1.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    y = np.arange(len(rows))[::-1]
    for axis, (name, title) in zip(np.atleast_1d(figure.subplots(1, len(series), sharey=True)), series.items()):
        axis.hlines(y, [row[f"{name}_low"] for row in rows], [row[f"{name}_high"] for row in rows], color="#0a84ff", lw=5, alpha=0.25)
        axis.plot([row[name] for row in rows], y, "o", color="#0a84ff", label="ours, 95 % interval over the scans")
        published = [np.nan if row[f"published_{name}"] is None else row[f"published_{name}"] for row in rows]
        if not np.isnan(published).all():
            axis.plot(published, y, "x", color="black", label="published")
        axis.set(yticks=y, yticklabels=names, title=title, ylim=(-0.6, len(rows) - 0.4))
        axis.grid(axis="x", alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    replace(path, lambda aside: figure.savefig(aside, format="png"))


def canvas(rows, columns, title):
    """(figure, axes [rows, columns]) of a black picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * columns, 3.3 * rows + 0.6), dpi=110, facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title or " ", color="white", fontsize=10)
    return figure, figure.subplots(rows, columns, squeeze=False, subplot_kw={"xticks": (), "yticks": ()})  # ticks cost, hidden or not


def draw(axis, image, spacing_mm, window, title, sides="RL"):
    """A grey image [rows, columns] in true proportions, with a 20 mm bar. spacing_mm: (row, column); sides: letters of the left and the
    right edge, and of the upper and the lower one."""
    height, width = image.shape
    axis.imshow(
        image,
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        interpolation="nearest",
        aspect=spacing_mm[0] / spacing_mm[1],
    )
    axis.set_title(title, **CAPTION)
    axis.axis("off")
    for text, x, y in zip(sides, (0.03, 0.97, 0.5, 0.5), (0.5, 0.5, 0.97, 0.03)):
        axis.text(x, y, text, color="white", fontsize=8, va="center", ha="center", transform=axis.transAxes)
    bar = 20 / spacing_mm[1]
    axis.plot([0.05 * width, 0.05 * width + bar], [0.95 * height] * 2, color="white", lw=2)
    axis.text(0.05 * width, 0.93 * height, "20 mm", color="white", fontsize=6, va="bottom")


def number(axis, places, marks, spacing_mm):
    """Numbers (n, row, column) beside the marked pixel next to each place; none where none is within `NEAR_MM`."""
    marked = np.argwhere(marks > 0)
    for n, *place in places:
        away = np.linalg.norm((marked - place) * spacing_mm, axis=1)
        if len(away) and away.min() <= NEAR_MM:
            at = marked[away.argmin()][::-1]
            axis.annotate(str(n), at, (5, 5), textcoords="offset points", color="white", fontsize=7)


def mark(axis, marks, colours):
    """Outline the marked pixels along their edges and tint them, so that the calcium below stays visible."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb

    tint = np.zeros((*marks.shape, 4))
    for label in np.unique(marks[marks > 0]):
        colour = colours[(int(label) - 1) % len(colours)]
        tint[marks == label] = (*to_rgb(colour), 0.3)
        axis.add_collection(LineCollection(_edges(marks == label), colors=colour, linewidths=1.0))
    axis.imshow(tint, interpolation="nearest", aspect=axis.get_aspect())


def _edges(inside):
    """Line segments [(x0, y0), (x1, y1)] along the pixel borders of a boolean [rows, columns] image."""
    padded = np.pad(inside, 1)
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    flat = [((x - 0.5, y - 0.5), (x + 0.5, y - 0.5)) for y, x in zip(rows, columns)]
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    return flat + [((x - 0.5, y - 0.5), (x - 0.5, y + 0.5)) for y, x in zip(rows, columns)]


def legend(figure, entries):
    """Names (name, colour) below a black picture."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for name, colour in entries] or [Patch(color="black", label="no calcium found")]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False, labelcolor="white")


def save(figure, path):
    """Write a black picture as PNG."""
    replace(path, lambda aside: figure.savefig(aside, format="png", facecolor="black"))

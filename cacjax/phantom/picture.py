"""Pictures of synthetic scans: axial slices with the marked calcium and a coronal cut, and one slice of each protocol."""

import numpy as np
from matplotlib import colors
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cacjax.files.atomic import replace

NATIVE_WINDOW_HU, CONTRAST_WINDOW_HU = (-160, 300), (-150, 600)
CLASS_COLOURS = ("none", "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4")
CLASS_NAMES = ("", "LAD", "LCX", "RCA", "aorta", "aortic valve", "mitral")
AXIAL = 6


def window_of(scan):
    """Lowest and highest HU shown: soft tissue, wider with contrast."""
    return CONTRAST_WINDOW_HU if scan.truth["contrast"] else NATIVE_WINDOW_HU


def draw(scan, path):
    """One PNG of a scan: six axial slices (those with most calcium and the heart's range), a coronal cut, calcium overlaid."""
    figure = _figure(4, 2, 3.2)
    axes = figure.subplots(2, 4).ravel()
    for axis, k in zip(axes, slices_to_show(scan)):
        _axial(axis, scan, k)
    _coronal(axes[AXIAL], scan)
    _text(axes[AXIAL + 1], scan)
    _save(figure, path)


def slices_to_show(scan):
    """Indices of six slices: evenly through the heart, each moved to the slice with most marked voxels near it."""
    held = np.flatnonzero(scan.heart.any((1, 2)))
    low, high = (held[0], held[-1]) if len(held) else (0, len(scan.hu) - 1)
    edges = np.linspace(low, high + 1, AXIAL + 1).astype(int)
    marked = (scan.label > 0).sum((1, 2))
    chosen = []
    for first, last in zip(edges[:-1], np.maximum(edges[1:], edges[:-1] + 1)):
        part = marked[first:last]
        chosen.append(int(first + part.argmax()) if part.max() else int((first + last - 1) // 2))
    return chosen


def _axial(axis, scan, k):
    low, high = window_of(scan)
    axis.imshow(scan.hu[k], cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    _overlay(axis, scan.label[k])
    z = (scan.affine @ (k, 0, 0, 1))[2]
    axis.set_title(f"z = {z:.0f} mm", fontsize=7)
    axis.axis("off")


def _coronal(axis, scan):
    low, high = window_of(scan)
    row = int(np.average(np.arange(scan.hu.shape[1]), weights=scan.heart.sum((0, 2)) + 1e-6))
    dz, _, dx = np.linalg.norm(scan.affine[:3, :3], axis=0)
    axis.imshow(scan.hu[::-1, row], cmap="gray", vmin=low, vmax=high, aspect=dz / dx)
    _overlay(axis, scan.label[::-1, row - 3 : row + 4].max(1), aspect=dz / dx)
    axis.set_title("coronal", fontsize=7)
    axis.axis("off")


def _overlay(axis, label, **options):
    if label.any():
        shown = np.ma.masked_equal(label, 0)
        axis.imshow(shown, cmap=colors.ListedColormap(CLASS_COLOURS), vmin=0, vmax=6, interpolation="nearest", alpha=0.75, **options)


def _text(axis, scan):
    t = scan.truth
    lines = [
        f"{t['protocol']}, patient {t['seed']}, {t['kvp']} kV, {t['thickness_mm']:g} mm",
        f"noise {t['noise_hu']:.0f} HU, threshold {t['threshold_hu']:.0f} HU",
        f"Agatston {t['agatston']['total']:.0f}",
        f"true coronary mass {t['true_mass_mg']:.1f} mg",
        f"lesions {len(t['lesions'])}, visible {sum(lesion['visible'] for lesion in t['lesions'])}",
    ]
    for k, line in enumerate(lines):
        axis.text(0.0, 0.95 - 0.1 * k, line, fontsize=8, transform=axis.transAxes)
    for k, (name, colour) in enumerate(zip(CLASS_NAMES[1:], CLASS_COLOURS[1:])):
        axis.text(0.35 * (k % 3), 0.3 - 0.1 * (k // 3), name, color=colour, fontsize=8, transform=axis.transAxes)
    axis.axis("off")


def protocols_figure(scans, path):
    """One axial slice of each scan side by side, at the window of its protocol; below it the same with the marked calcium."""
    figure = _figure(len(scans), 2, 3.0)
    for (bare, marked), scan in zip(figure.subplots(2, len(scans), squeeze=False).T, scans):
        coronary = ((scan.label >= 1) & (scan.label <= 3)).sum((1, 2))
        k = int(coronary.argmax()) if coronary.any() else slices_to_show(scan)[AXIAL // 2]
        _axial(bare, scan._replace(label=np.zeros_like(scan.label)), k)
        _axial(marked, scan, k)
        low, high = window_of(scan)
        bare.set_title(f"{scan.truth['protocol']}  [{low}, {high}] HU", fontsize=8)
        marked.set_title("")
    _save(figure, path)


def _figure(columns, rows, inches):
    figure = Figure(figsize=(columns * inches, rows * inches), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure, path):
    replace(path, figure.savefig)

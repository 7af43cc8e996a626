"""The files of one scored scan: its masks, its pictures. Arrays [z, y, x]; `result` is a `cacjax.scoring.one_scan.Result`."""

import pathlib

import numpy as np

from cacjax.classes import AORTA, CLASSES, STRUCTURES
from cacjax.files import scan
from cacjax.report import pictures

SUFFIXES = {"final": "_mask.nii.gz", "scored": "_scored.nii.gz", "before": "_detected.nii.gz", "map": "_map.nii.gz"}
PROBABILITY, TWIN = "_probability.nii.gz", "_twin.nii.gz"
LEAST_HU = -1024  # a threshold that leaves nothing out
OUTPUTS = (".json", ".png", *SUFFIXES.values(), PROBABILITY, TWIN, "_twin.png", "_heart.nii.gz", "_heart.png")


def write(result, out, name, *, save_probability=False, drawn=True):
    """Write the masks of a Result and, where `drawn`, a picture of what is scored to the folder `out` as <name>_mask.nii.gz and so on, not
    the record; of a calcium map the twin without it, too; and what a heart network found. Returns {stage: file name} of the masks."""
    out, grid = pathlib.Path(out), result.answer or result.scan
    stages = {"final": result.mask, "scored": result.scored, "before": result.before, "map": result.map}
    masks = {stage: f"{name}{SUFFIXES[stage]}" for stage, array in stages.items() if array is not None}
    for stage, file in masks.items():
        if stage == "map":
            scan.write_image(result.map, grid.affine, out / file, np.float32)
            scan.write_image(np.rint(grid.hu - result.map).astype(np.int16), grid.affine, out / f"{name}{TWIN}")
        else:
            scan.write_mask(stages[stage], grid, out / file)
    if save_probability and result.probability is not None:
        scan.write_image(result.probability, grid.affine, out / f"{name}{PROBABILITY}", np.float32)
    if result.structures is not None:
        heart = np.where(result.structures == AORTA, 0, result.structures)  # the heart's file serves as a heart mask
        scan.write_mask(heart, result.scan, out / f"{name}_heart.nii.gz")
    if drawn:
        draw(result, grid, out, name)
    return masks


def draw(result, grid, out, name):
    """Draw what is scored to <name>.png; of a calcium map scan, twin and map to <name>_twin.png; what a heart network found."""
    heart = result.heart if result.answer is None else None
    turned, mask, around = scan.oriented(grid, result.scored, result.scored if heart is None else heart)
    classes = any(row["artery"] == "CAC" for row in result.rows)
    pictures.overlay(
        out / f"{name}.png",
        turned.hu,
        mask,
        affine=turned.affine,
        names=CLASSES if classes else {label: str(label) for label in np.unique(mask)},
        lesions=result.record["lesions"],
        threshold_hu=result.record["threshold"]["hu"],
        heart=None if heart is None else around,
        title=caption(name, result) + doubts(result.record) + whose(result.scan),
    )
    if result.structures is not None:
        draw_heart(result, out, name)
    if result.map is not None:
        total = next(row for row in result.rows if row["artery"] == "CAC")
        title = f"{name}: {total['map_hu_mm3']:.0f} HU x mm³ of calcium, what a generator takes out of the scan"
        turned, map_hu = scan.oriented(grid, result.map)
        pictures.twins(out / f"{name}_twin.png", turned.hu, map_hu, affine=turned.affine, title=title + whose(result.scan))


def caption(name, result):
    """One line over the picture: the scan, its total score, the first rule and the HU from which it counts."""
    total = next((row for row in result.rows if row["artery"] == "CAC"), None)
    text = f"{name}: Agatston {total['agatston']:.1f}, category {total['category']}" if total else f"{name}: given regions"
    first = result.rows[0] if result.rows else {"rule": result.record["rules"][0]["name"], "threshold_hu": result.record["threshold"]["hu"]}
    least = first["threshold_hu"]
    return f"{text}; scored by rule {first['rule']} {f'from {least:.0f} HU' if least > LEAST_HU else 'at any HU'}"


def doubts(record):
    """Lines over a picture: the flags of a record, which put its scores in doubt, and in words that they are of phantom networks."""
    told = dict(zip(record["flags"], record["notes"]))
    text = f"\nflags: {', '.join(told)}" if told else ""
    return text + (f"\n{told['research_only']}" if "research_only" in told else "")


def whose(image):
    """A further line over a picture: patient and series, where the file has them."""
    header = image.acquisition
    told = {"patient": header.patient_id, "series": header.description or header.series_uid}
    text = ", ".join(f"{word} {value}" for word, value in told.items() if value)
    return text and f"\n{text}"


def draw_heart(result, out, name):
    """Draw all structures that were found and the measured box to <name>_heart.png."""
    threshold, box = result.record["threshold"], np.zeros(result.structures.shape, np.uint8)
    if "box" in threshold:
        box[tuple(slice(low, high) for low, high in zip(*threshold["box"]))] = 1
    turned, structures, box = scan.oriented(result.scan, result.structures, box)
    title = f"{name}: {_say(threshold)}{doubts(result.record)}"
    draw_structures(out / f"{name}_heart.png", turned, structures, box, threshold_hu=threshold["hu"], title=title)


def _say(threshold):
    text = f"threshold {threshold['hu']:.0f} HU, {threshold['from']}"
    return f"{text}; {threshold['mean_hu']:.0f} ± {threshold['sd_hu']:.0f} HU, {threshold['where']}" if "mean_hu" in threshold else text


def draw_structures(path, turned, structures, box, *, threshold_hu, title):
    """Draw three cuts through the middle of the measured `box`, or of the heart: bare above, structures and box below. Writes a PNG."""
    spacing_mm = scan.spacing_mm(turned.affine)
    middle = [int(at.mean()) for at in np.nonzero(box if box.any() else structures)]
    figure, axes = pictures.canvas(2, 3, title)
    window = pictures.hu_window(threshold_hu)
    for axis, (upper, lower) in enumerate(axes.T):
        cut = [np.take(volume, middle[axis], axis) for volume in (turned.hu, structures, box)]
        sides = [mm for other, mm in enumerate(spacing_mm) if other != axis]
        image, marks, outline = cut if axis == 0 else (each[::-1] for each in cut)
        for panel in (upper, lower):
            pictures.draw(panel, image, sides, window, ("axial", "coronal", "sagittal")[axis], ("RLAP", "RLHF", "APHF")[axis])
        pictures.mark(lower, marks, pictures.COLOURS)
        pictures.mark(lower, outline, ("white",))
    found = [number for number in np.unique(structures) if number]
    pictures.legend(figure, [(STRUCTURES[number], pictures.COLOURS[number - 1]) for number in found])
    pictures.save(figure, path)

"""A folder of synthetic scans with labels, pictures, truth and a manifest that training and scoring read."""

import concurrent.futures
import csv
import functools
import itertools
import json
import multiprocessing
import pathlib
import tempfile

import numpy as np
import tqdm

from cacjax.files.atomic import replace
from cacjax.files.dicom import write_dicom
from cacjax.files.scan import write_image
from cacjax.phantom import picture, pool
from cacjax.phantom.cohort import Phantom, make_pair, make_scan, marks_of

FORMATS = ("nifti", "dicom")
MANIFEST = ["scan", "mask", "heart", "marks", "split", "domain", "protocol", "threshold_hu", "aorta_hu", "noise_hu", "kvp", "seed"]
OPTIONAL = ["patient", "arm", "coronary"]  # of pairs and with maps
ARMS = {"rtp": ("free breathing", "breath hold")}
PAIR = ["pair", "first", "second"]
MARKS = ["scan", "x_mm", "y_mm", "z_mm"]
LESION = ["id", "artery", "segment", "position_mm", "volume_mm3", "mass_mg", "peak_mg_cm3", "visible"]
SCAN = ["scan", "protocol", "seed", "kvp", "noise_hu", "thickness_mm", "threshold_hu", "agatston", "true_volume_mm3", "true_mass_mg"]


def write_cohort(
    out,
    protocols,
    seeds,
    *,
    shape=None,
    spacing_mm=None,
    file_format="nifti",
    split="test",
    workers=0,
    calcified=0.0,
    pairs=False,
    maps=False,
    structures=False,
):
    """Make one scan per seed, or a pair, and write them to the folder `out`; returns the list of truths. Progress goes to stderr. Patients
    take the protocols in turn.

    Writes ID.nii.gz (or the DICOM folder ID), ID_label.nii.gz, ID_heart.nii.gz, ID.png, manifest.csv, marks.csv (a point on every
    coronary lesion that can be seen, LPS mm), truth.csv (a row per scan and lesion; a scan without lesions has one row) and truth.json.
    calcified: share of the patients that are drawn again until they have coronary calcium. pairs: both scans of `make_pair`, IDs ending in
    a and b, and pairs.csv (see cacjax.evaluation.pairs); the manifest also has patient and arm. maps: ID_coronary.nii.gz, float32 HU, see
    `Phantom.coronary`; the manifest also has coronary. structures: ID_structures.nii.gz, the heart's (see
    `layers.STRUCTURES`). workers: processes, 0 = this one.
    """
    if file_format not in FORMATS:
        raise ValueError(f"file_format must be one of {', '.join(FORMATS)}, got {file_format!r}")
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    how = {"file_format": file_format, "pairs": pairs, "maps": maps, "structures": structures, "shape": shape, "spacing_mm": spacing_mm}
    turns = itertools.cycle(protocols)
    jobs = [(next(turns), seed, pool.drawn_again(number, calcified)) for number, seed in enumerate(seeds)]
    made = spread(functools.partial(_make_and_write, out, **how), jobs, workers)
    unit = "pair" if pairs else "scan"
    truths = [truth for patient in tqdm.tqdm(made, f"{', '.join(protocols)} {unit}s", len(jobs), unit=unit) for truth in patient]
    _write_manifest(out, truths, split)
    points = [(t["name"], *(round(mm, 2) for mm in point)) for t in truths for point in marks_of(t).tolist()]
    _write_csv(out / "marks.csv", MARKS, [dict(zip(MARKS, row)) for row in points])
    _write_truth(out, truths)
    if pairs:
        rows = [(first["patient"], first["name"], second["name"]) for first, second in zip(truths[::2], truths[1::2])]
        _write_csv(out / "pairs.csv", PAIR, [dict(zip(PAIR, row)) for row in rows])
    return truths


def spread(work, jobs, workers):
    """work(job) for every job, in order, by `workers` fresh processes (0: in this one)."""
    if workers == 0:
        yield from map(work, jobs)
        return
    spawn = multiprocessing.get_context("spawn")  # forking after JAX has started can deadlock
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(jobs)), spawn) as pool:
        yield from pool.map(work, jobs)


def scan_id(protocol: str, seed: int) -> str:
    """Name of a scan's files."""
    return f"{protocol.replace(':', '_').replace('+', '_')}_{seed:05d}"


def _make_and_write(out, job, *, file_format, pairs, maps, structures, **grid):
    """The truths of a patient's scans, with the names of what was written. job: (protocol, seed, whether to draw again until there is
    calcium)."""
    protocol, seed, again = job
    seed = pool.calcified_seed(seed, protocol) if again else seed
    patient, how = scan_id(protocol, seed), {"file_format": file_format, "maps": maps, "structures": structures}
    if not pairs:
        return [_write_one(make_scan(protocol, seed, **grid), out, patient, **how)]
    scans, arms = make_pair(protocol, seed, **grid), ARMS.get(protocol.partition(":")[0], ("first", "second"))
    truths = [_write_one(scan, out, patient + letter, **how) for scan, letter in zip(scans, "ab")]
    return [truth | {"patient": patient, "arm": arm} for truth, arm in zip(truths, arms)]


def _write_one(scan, out, name, *, file_format, maps, structures):
    write_scan(scan, out, name, file_format, maps=maps, structures=structures)
    picture.draw(scan, out / f"{name}.png")
    file = name if file_format == "dicom" else f"{name}.nii.gz"
    return scan.truth | {"name": name, "file": file} | ({"coronary": f"{name}_coronary.nii.gz"} if maps else {})


def write_scan(scan: Phantom, out, name: str, file_format: str = "nifti", *, maps: bool = False, structures: bool = False):
    """Image, label, heart mask and, where asked for, the map of coronary calcium and the heart's structures of one scan under `out`."""
    out = pathlib.Path(out)
    truth = scan.truth
    if file_format == "dicom":
        about = {"description": f"digital phantom {truth['protocol']}", "seed": truth["scan_seed"]}
        write_dicom(scan.hu, scan.affine, out / name, kvp=float(truth["kvp"]), contrast=truth["contrast"], **about)
    else:
        write_image(scan.hu, scan.affine, out / f"{name}.nii.gz")
    write_image(scan.label, scan.affine, out / f"{name}_label.nii.gz", np.uint8)
    write_image(scan.heart.astype(np.uint8), scan.affine, out / f"{name}_heart.nii.gz", np.uint8)
    if maps:
        write_image(scan.coronary, scan.affine, out / f"{name}_coronary.nii.gz", np.float32)
    if structures:
        write_image(scan.structures, scan.affine, out / f"{name}_structures.nii.gz", np.uint8)


def _write_manifest(out, truths, split):
    rows, columns = [], MANIFEST + [name for name in OPTIONAL if any(name in t for t in truths)]
    for t in truths:
        files = {"scan": t["file"], "mask": f"{t['name']}_label.nii.gz", "heart": f"{t['name']}_heart.nii.gz", "marks": "marks.csv"}
        domain = {"split": split, "domain": "target" if t["contrast"] else "source"}
        rows.append(files | domain | {k: t[k] for k in columns if k in t})
    _write_csv(out / "manifest.csv", columns, rows)


def _write_truth(out, truths):
    _replace(out / "truth.json", json.dumps(truths, indent=1))
    rows = []
    for t in truths:
        row = {"scan": t["name"], "agatston": t["agatston"]["total"]} | {k: t[k] for k in SCAN if k in t and k != "agatston"}
        rows += [row | {k: lesion[k] for k in LESION} for lesion in t["lesions"]] or [row]
    _write_csv(out / "truth.csv", SCAN + LESION, rows)


def _write_csv(path, columns, rows):
    with tempfile.TemporaryFile("w+", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        file.seek(0)
        _replace(path, file.read())


def _replace(path, text):
    replace(path, lambda aside: aside.write_text(text))

"""A folder of synthetic scans with labels, pictures, truth and a manifest that training and scoring read."""

import concurrent.futures
import csv
import functools
import json
import multiprocessing
import pathlib
import tempfile

import numpy as np
import tqdm

from cacjax.files.atomic import replace
from cacjax.files.dicom import write_dicom
from cacjax.files.scan import write_image
from cacjax.phantom import picture
from cacjax.phantom.cohort import Phantom, make_scan, marks_of

FORMATS = ("nifti", "dicom")
MANIFEST = ["scan", "mask", "heart", "marks", "split", "domain", "protocol", "threshold_hu", "aorta_hu", "noise_hu", "kvp", "seed"]
MARKS = ["scan", "x_mm", "y_mm", "z_mm"]
LESION = ["id", "artery", "segment", "position_mm", "volume_mm3", "mass_mg", "peak_mg_cm3", "visible"]
SCAN = ["scan", "protocol", "seed", "kvp", "noise_hu", "thickness_mm", "threshold_hu", "agatston", "true_volume_mm3", "true_mass_mg"]


def write_cohort(out, protocol, seeds, *, shape=None, spacing_mm=None, file_format="nifti", split="test", workers=0):
    """Make one scan per seed and write them to the folder `out`; returns the list of truths. Progress goes to stderr.

    Writes ID.nii.gz (or the DICOM folder ID), ID_label.nii.gz, ID_heart.nii.gz, ID.png, manifest.csv, marks.csv (a point on every
    coronary lesion that can be seen, LPS mm), truth.csv (a row per scan and lesion; a scan without lesions has one row) and truth.json.
    workers: processes, 0 = this one.
    """
    if file_format not in FORMATS:
        raise ValueError(f"file_format must be one of {', '.join(FORMATS)}, got {file_format!r}")
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    work = functools.partial(_make_and_write, out, protocol, shape, spacing_mm, file_format)
    truths = list(tqdm.tqdm(spread(work, list(seeds), workers), f"{protocol} scans", len(seeds), unit="scan"))
    _write_manifest(out, truths, split)
    points = [(t["name"], *(round(mm, 2) for mm in point)) for t in truths for point in marks_of(t).tolist()]
    _write_csv(out / "marks.csv", MARKS, [dict(zip(MARKS, row)) for row in points])
    _write_truth(out, truths)
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
    return f"{protocol}_{seed:05d}"


def _make_and_write(out, protocol, shape, spacing_mm, file_format, seed):
    scan, name = make_scan(protocol, seed, shape=shape, spacing_mm=spacing_mm), scan_id(protocol, seed)
    write_scan(scan, out, name, file_format)
    picture.draw(scan, out / f"{name}.png")
    file = name if file_format == "dicom" else f"{name}.nii.gz"
    return scan.truth | {"name": name, "file": file}


def write_scan(scan: Phantom, out, name: str, file_format: str = "nifti"):
    """Image, label and heart mask of one scan under `out`."""
    out = pathlib.Path(out)
    truth = scan.truth
    if file_format == "dicom":
        about = {"description": f"digital phantom {truth['protocol']}", "seed": truth["scan_seed"]}
        write_dicom(scan.hu, scan.affine, out / name, kvp=float(truth["kvp"]), contrast=truth["contrast"], **about)
    else:
        write_image(scan.hu, scan.affine, out / f"{name}.nii.gz")
    write_image(scan.label, scan.affine, out / f"{name}_label.nii.gz", np.uint8)
    write_image(scan.heart.astype(np.uint8), scan.affine, out / f"{name}_heart.nii.gz", np.uint8)


def _write_manifest(out, truths, split):
    rows = []
    for t in truths:
        files = {"scan": t["file"], "mask": f"{t['name']}_label.nii.gz", "heart": f"{t['name']}_heart.nii.gz", "marks": "marks.csv"}
        domain = {"split": split, "domain": "target" if t["contrast"] else "source"}
        rows.append(files | domain | {k: t[k] for k in MANIFEST if k in t})
    _write_csv(out / "manifest.csv", MANIFEST, rows)


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

"""Statistics of the phantom beside published ones: burden, lesions, noise, and how far two scans of one patient agree.

Patients whose arteries hold no calcium are counted as zero and not scanned: nothing can be marked in them.
"""

import csv
import functools
import json
import pathlib

import numpy as np
import tqdm
from scipy import ndimage

from cacjax.phantom import folder
from cacjax.phantom.acquisition import COHORT_OF, sample_protocol, share_above_lumen
from cacjax.phantom.anatomy import sample_patient
from cacjax.phantom.cohort import first_scan, make_pair, make_scan

GRID = {"shape": (96, 224, 224), "spacing_mm": (1.5, 0.66, 0.66)}
PAIRED = ("cardiac", "chest", "rtp")
CATEGORIES = (0.5, 10.5, 100.5, 400.5)  # upper bounds of Agatston 0, 1-10, 11-100, 101-400
ARTERIES = ("LAD", "LCX", "RCA")
LAG_VOXELS = 1
# quantity -> what is published, with its source.
PUBLISHED = {
    "Agatston 0/1-10/11-100/101-400/>400 % (chest)": "zero about 25-30 in smokers (common knowledge)",
    "Agatston 0/1-10/11-100/101-400/>400 % (cardiac)": "20 each, selected (Gogin 2021 test set)",
    "lesion volume mm3 Q1/median/Q3/p95 (chest)": "1.6 / 7.1 / 29.2 / 188 (Zhai 2022)",
    "lesion peak HU p50/p95 (chest, cardiac)": "about 250-400 / 800-1000 (common knowledge)",
    "arteries with marks LAD/LCX/RCA % (all)": "61 / 12 / 27 (van Velzen 2022)",
    "scans with visible calcium % (rtp)": "37 (van Velzen 2022)",
    "130 HU hits among visible LAD/LCX/RCA % (rtp)": "85 / 58 / 36 (van Velzen 2022)",
    "pseudo-mass difference %, positive twice (rtp)": "58-114 at 130 HU, 47 by calcium map (van Velzen 2022)",
    "pseudo-mass difference %, any positive (rtp)": "92 (van Velzen 2022)",
    "pairs positive twice % (rtp)": "24-29 (van Velzen 2022)",
    "Agatston difference %, positive twice (chest)": "71 (Jacobs, cited by van Velzen 2022)",
    "Agatston difference %, positive twice (cardiac)": "15-41 (cited by van Velzen 2022)",
    "calcium map difference %, positive twice (rtp)": "bound for map-based scores",
    "calcium map difference %, positive twice (cardiac)": "",
    "coronary calcium brighter than its lumen, % of the volume p25/p50/p75 (ccta)": "",
    "noise SD in the aorta HU p5-p95 (cardiac)": "15-25 (usual target)",
    "noise SD in the aorta HU p5-p95 (ccta)": "20-35 (usual target)",
    "noise autocorrelation at .66 mm, 1.5 mm along z (cardiac)": "",
}


def run(n: int, seed: int = 0, *, out=None, workers: int = 0) -> dict:
    """Scan n patients per cohort twice (CCTA once), print the table and write check.csv and check.json to `out`. Returns it."""
    jobs = [(protocol, seed + k) for protocol in (*PAIRED, "ccta") for k in range(n)]
    made = folder.spread(_record, jobs, workers)
    records = list(tqdm.tqdm(made, "check", len(jobs), unit="patient"))
    table = summarise(records)
    for row in table:
        print(f"{row['quantity']:78s} {row['phantom']:26s} n={row['n']:<4d} published: {row['published']}")
    if out:
        _write(pathlib.Path(out), table, records)
    return {row["quantity"]: row for row in table}


def _record(job):
    """Measurements of one patient: {"protocol", "seed", "scans": list, empty without coronary calcium}."""
    protocol, seed = job
    record = {"protocol": protocol, "seed": seed, "scans": []}
    patient = sample_patient(seed, COHORT_OF[protocol])
    if protocol == "ccta":
        above = share_above_lumen(patient, sample_protocol(protocol, patient.anatomy, first_scan(seed)))
        return record | {"scans": [measure(make_scan(protocol, seed, **GRID)) | {"above_lumen": above}]}
    if (patient.calcium["cls"] <= 3).any():
        record["scans"] = [measure(scan) for scan in make_pair(protocol, seed, **GRID)]
    return record


def measure(scan) -> dict:
    """What the table needs of one scan."""
    t, coronary = scan.truth, (scan.label >= 1) & (scan.label <= 3)
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    volume = float(np.prod(spacing))
    component, count = ndimage.label(coronary, np.ones((3, 3, 3)))
    sizes = np.bincount(component[coronary], minlength=count + 1)[1:] * volume
    peaks = [int(scan.hu[component == k].max()) for k in range(1, count + 1)] if count < 200 else []
    seen = scan.calcium[scan.calcium > 10.0].astype(np.float64)
    visible = {artery: any(lesion["visible"] and lesion["artery"] == artery for lesion in t["lesions"]) for artery in ARTERIES}
    texture = (scan.hu - scan.clean)[scan.hu.shape[0] // 4 : -(scan.hu.shape[0] // 4), 60:-60, 60:-60].astype(np.float64)
    return {
        "agatston": t["agatston"],
        "pseudo_mass": t["pseudo_mass"],
        "map_mass": float(seen.sum() * volume),
        "visible": visible,
        "sizes": sizes.round(2).tolist(),
        "peaks": peaks,
        "noise_sd": t["aorta_sd"],
        "acf": [_correlation(texture, axis) for axis in (2, 0)],
    }


def _correlation(noise, axis):
    a = np.take(noise, range(noise.shape[axis] - LAG_VOXELS), axis)
    b = np.take(noise, range(LAG_VOXELS, noise.shape[axis]), axis)
    return float(np.mean(a * b) / np.mean(noise**2))


def difference(first, second) -> float:
    """Relative difference of two scores in %: |a - b| / mean(a, b)."""
    return 200.0 * abs(first - second) / (first + second)


def summarise(records) -> list:
    """Rows {"quantity", "phantom" (text), "values", "n", "published"} of the table."""
    of = functools.partial(_select, records)
    pairs = {p: [r["scans"] for r in of(p) if r["scans"]] for p in PAIRED}
    scans = {p: [s for r in of(p) for s in r["scans"]] for p in (*PAIRED, "ccta")}
    rows = {}
    for p in ("chest", "cardiac"):
        scores = [r["scans"][0]["agatston"]["total"] if r["scans"] else 0.0 for r in of(p)]
        share = 100 * np.bincount(np.digitize(scores, CATEGORIES), minlength=5) / max(len(scores), 1)
        rows[f"Agatston 0/1-10/11-100/101-400/>400 % ({p})"] = (share, len(scores))
    sizes = [v for s in scans["chest"] for v in s["sizes"]]
    rows["lesion volume mm3 Q1/median/Q3/p95 (chest)"] = (_percentiles(sizes, (25, 50, 75, 95)), len(sizes))
    peaks = [v for p in ("chest", "cardiac") for s in scans[p] for v in s["peaks"]]
    rows["lesion peak HU p50/p95 (chest, cardiac)"] = (_percentiles(peaks, (50, 95)), len(peaks))
    rows |= _shares(scans) | _visibility(of("rtp"), scans["rtp"]) | _differences(pairs)
    twice = [all(s["agatston"]["total"] > 0 for s in pair) for pair in pairs["rtp"]]
    rows["pairs positive twice % (rtp)"] = ([100 * sum(twice) / max(len(of("rtp")), 1)], len(of("rtp")))
    for p in ("cardiac", "ccta"):
        sd = [s["noise_sd"] for s in scans[p]]
        rows[f"noise SD in the aorta HU p5-p95 ({p})"] = (_percentiles(sd, (5, 95)), len(sd))
    above = [100 * s["above_lumen"] for s in scans["ccta"] if s["above_lumen"] is not None]
    rows["coronary calcium brighter than its lumen, % of the volume p25/p50/p75 (ccta)"] = (_percentiles(above, (25, 50, 75)), len(above))
    acf = [s["acf"] for s in scans["cardiac"]]
    rows["noise autocorrelation at .66 mm, 1.5 mm along z (cardiac)"] = (np.mean(acf, 0) if acf else [], len(acf))
    return [_row(name, *rows[name]) for name in PUBLISHED]


def _select(records, protocol):
    return [r for r in records if r["protocol"] == protocol]


def _percentiles(values, ranks):
    return np.percentile(values, ranks) if len(values) else []


def _row(name, values, n):
    values = [float(v) for v in values]
    text = " / ".join(f"{v:.2f}" if abs(v) < 2 else f"{v:.0f}" if abs(v) >= 20 else f"{v:.1f}" for v in values) or "-"
    return {"quantity": name, "phantom": text, "values": values, "n": n, "published": PUBLISHED[name]}


def _shares(scans):
    """Share of the arteries with marks over all native scans: each artery of a scan counts once."""
    total = np.array([[s["pseudo_mass"][a] > 0 for a in ARTERIES] for p in PAIRED for s in scans[p]]).reshape(-1, 3).sum(0)
    return {"arteries with marks LAD/LCX/RCA % (all)": (100 * total / max(total.sum(), 1), int(total.sum()))}


def _visibility(patients, scans):
    """How many scans show calcium, and how often the threshold finds an artery that does."""
    shown = sum(any(s["visible"].values()) for s in scans)
    hits = []
    for artery in ARTERIES:
        found = [s["agatston"][artery] > 0 for s in scans if s["visible"][artery]]
        hits.append(100 * float(np.mean(found)) if found else 0.0)
    return {
        "scans with visible calcium % (rtp)": ([100 * shown / max(2 * len(patients), 1)], 2 * len(patients)),
        "130 HU hits among visible LAD/LCX/RCA % (rtp)": (hits, shown),
    }


def _differences(pairs):
    rows = {}
    for p, title in (("rtp", "pseudo-mass"), ("chest", "Agatston"), ("cardiac", "Agatston")):
        score = "pseudo_mass" if p == "rtp" else "agatston"
        values = np.array([[s[score]["total"] for s in pair] for pair in pairs[p]]).reshape(-1, 2)
        maps = np.array([[s["map_mass"] for s in pair] for pair in pairs[p]]).reshape(-1, 2)
        both, either = (values > 0).all(1), (values > 0).any(1)
        rows[f"{title} difference %, positive twice ({p})"] = _mean_difference(values[both])
        rows[f"{title} difference %, any positive ({p})"] = _mean_difference(values[either])
        rows[f"calcium map difference %, positive twice ({p})"] = _mean_difference(maps[both])
    return rows


def _mean_difference(pairs):
    """Mean and median over the pairs [n, 2]."""
    values = [difference(a, b) for a, b in pairs]
    return ([np.mean(values), np.median(values)] if values else []), len(values)


def _write(out, table, records):
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "check.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["quantity", "phantom", "n", "published"], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    (out / "check.json").write_text(json.dumps({"table": table, "patients": records}, indent=1))

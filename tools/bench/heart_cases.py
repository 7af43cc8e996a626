"""Cases of the heart: a trained network on phantoms that it never saw: outlines, the aorta's threshold, and the calcium in its heart.

Patients SEED, SEED + 1, ..; a seed that the run was trained on ends the program. A row for each protocol:

  network      classes, spacing, steps and seed of the run
  dice         by structure, as far as the network has classes, and of the whole heart (all but the aorta): mean, sd, least over scans
  aorta        scans in which `cacjax.scoring.threshold.measure` finds blood; mean_error_hu: its mean less that of the phantom's box;
               for scans with contrast medium also threshold_error_hu, of mean + 3 SD; outline_error_hu: mean + 3 SD less the same
               measured in the true outlines: mean, sd, and most, the largest of either sign
  calcium      marked coronary calcium of all scans, mm3 and lesions, and how much of it (pct), and how many lesions by half or more,
               lie within a heart dilated as `cacjax.score` does: that of the network; the true one of the same classes; the true one
               of the published classes
"""

from typing import Any, NamedTuple

import numpy as np
import tqdm
from scipy import ndimage
from table import ERRORS, HEARTS, WHOLE

from cacjax.classes import AORTA, STRUCTURES
from cacjax.data import phantom as cohort
from cacjax.files import scan
from cacjax.files.geometry import Acquisition
from cacjax.kernels import spatial
from cacjax.phantom import make_scan
from cacjax.scoring import hearts, threshold
from cacjax.training.workdir import load
from configs import lessmann

PUBLISHED_CLASSES = 6
SEED = 500_000
GRID = {"shape": (80, 208, 208), "spacing_mm": (1.5, 0.66, 0.66)}


class Case(NamedTuple):
    """A protocol, and the run of a heart network."""

    protocol: str
    scans: int
    run: Any

    @property
    def key(self) -> dict:
        """The columns that tell a row from the others."""
        config, spacing_mm = self.run.config, list(self.run.config.data.grid.spacing_mm)
        network = {"classes": config.model.classes, "spacing_mm": spacing_mm, "step": int(self.run.state.step), "seed": config.seed}
        return {"protocol": self.protocol, "scans": self.scans, "network": network}

    def measure(self, rounds: int) -> dict:
        """The other columns: every scan once."""
        del rounds
        seeds = tqdm.trange(SEED, SEED + self.scans, desc=self.protocol, unit="scan")
        return summarise([measure(self.run, make_scan(self.protocol, seed, **GRID)) for seed in seeds])


def cases(options):
    """Every protocol. Ends the program where the run is none of a heart network, or has seen the patients."""
    if not options.workdir:
        raise SystemExit("--system heart needs --workdir, a run of heart.py")
    run = load(options.workdir)
    if run.task.segment is None:
        raise SystemExit(f"--workdir holds a run of {run.config.task}.py, expected heart.py")
    if known := trained_on(run.config.data).intersection(range(SEED, SEED + options.n)):
        raise SystemExit(f"the run in --workdir was trained on patients {sorted(known)}: train one with another config.data.seed")
    return [Case(protocol, options.n, run) for protocol in ("ccta", "cardiac", "chest", "rtp")]


def measure(run, phantom) -> dict:
    """{"dice", the keys of ERRORS, "mm3", "lesions", "inside"} of one `cacjax.phantom.Phantom`; run: of a heart network."""
    classes = int(run.config.model.classes)
    image = scan.Scan(phantom.hu.astype(np.float32), phantom.affine, f"seed {phantom.truth['seed']}", Acquisition())
    turned = scan.oriented(image)
    found = scan.restore(run.task.segment(run.state, turned.hu, scan.spacing_mm(turned.affine)), image)
    truth = np.where(phantom.structures < classes, phantom.structures, 0)
    masks = {name: (found == number, truth == number) for number, name in enumerate(STRUCTURES[:classes]) if number}
    masks[WHOLE] = in_heart(found), in_heart(truth)
    chambers = (phantom.structures > 0) & (phantom.structures < PUBLISHED_CLASSES)
    outlines = dict(zip(HEARTS, (*masks[WHOLE], chambers)))
    both = [hearts.Heart(mask, each, classes, "network") for mask, each in zip(masks[WHOLE], (found, truth))]
    record = {"dice": {name: dice(*pair) for name, pair in masks.items()}} | blood_errors(image, *both, phantom.truth)
    return record | holding(np.isin(phantom.label, (1, 2, 3)), outlines, scan.spacing_mm(image.affine))


def in_heart(structures):
    """All structures but the aorta."""
    return (structures > 0) & (structures != AORTA)


def dice(a, b) -> float:
    """Overlap of two masks; NaN where both are empty."""
    both = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / both if both else float("nan")


def blood_errors(image, heart, true_heart, truth) -> dict:
    """ERRORS of what is measured in a `hearts.Heart`; None where there is no blood to measure, or no contrast medium."""
    errors = dict.fromkeys(ERRORS)
    try:
        pool, expected = (threshold.measure(image, each) for each in (heart, true_heart))
    except scan.ScanError:
        return errors
    threshold_hu, expected_hu = (each.mean_hu + threshold.DEVIATIONS * each.sd_hu for each in (pool, expected))
    errors |= {"mean_error_hu": pool.mean_hu - truth["aorta_hu"], "outline_error_hu": threshold_hu - expected_hu}
    return errors | ({"threshold_error_hu": threshold_hu - truth["threshold_hu"]} if truth["contrast"] else {})


def holding(coronary, outlines, spacing_mm) -> dict:
    """mm3 and number of lesions (26-connected) of coronary calcium [z, y, x], and of both what lies within each dilated outline."""
    voxel_mm3 = float(np.prod(spacing_mm))
    lesion, count = ndimage.label(coronary, np.ones((3, 3, 3)))
    sizes = np.bincount(lesion[coronary], minlength=count + 1)[1:]
    inside, dilation_mm = {}, lessmann.get_config().scoring.heart_dilation_mm
    for name, outline in outlines.items():
        reached = coronary & np.asarray(spatial.dilate(outline, dilation_mm, spacing_mm))
        held = np.bincount(lesion[reached], minlength=count + 1)[1:]
        inside[name] = {"mm3": float(held.sum() * voxel_mm3), "lesions": int((2 * held >= sizes).sum())}
    return {"mm3": float(sizes.sum() * voxel_mm3), "lesions": int(count), "inside": inside}


def summarise(records) -> dict:
    """The columns of a protocol from those of its scans."""
    row = {"dice": {}}
    for name in records[0]["dice"]:
        values = [record["dice"][name] for record in records]
        row["dice"][name] = {"mean": rounded(np.nanmean(values)), "sd": rounded(np.nanstd(values)), "least": rounded(np.nanmin(values))}
    errors = {key: [r[key] for r in records if r[key] is not None] for key in ERRORS}
    row["aorta"] = {"measured": len(errors["mean_error_hu"])}
    row["aorta"] |= {key: spread(values) for key, values in errors.items() if values}
    mm3, lesions = (sum(record[key] for record in records) for key in ("mm3", "lesions"))
    row["calcium"] = {"scans": sum(record["lesions"] > 0 for record in records), "mm3": rounded(mm3), "lesions": lesions, "inside": {}}
    for name in HEARTS:
        held, whole = (sum(record["inside"][name][key] for record in records) for key in ("mm3", "lesions"))
        row["calcium"]["inside"][name] = {"pct": rounded(100 * held / mm3) if mm3 else None, "lesions": whole}
    return row


def spread(values) -> dict:
    """Mean and standard deviation of errors in HU, and the largest of either sign."""
    return {"mean": rounded(np.mean(values)), "sd": rounded(np.std(values)), "most": rounded(np.abs(values).max())}


def rounded(value) -> float:
    """Three decimals."""
    return round(float(value), 3)


def trained_on(data) -> set:
    """Seeds of the phantoms that a config's data hold; none for scans of a folder."""
    if data.kind != "phantom":
        return set()
    parts = [(split, part) for split, part in data.splits.items()]
    again = range(0, 100_000, 5_000)  # see cacjax.phantom.pool.calcified_seed
    first = {cohort.patient_seed(data.seed, split, number) for split, part in parts for number in range(part.count)}
    return {seed + more for seed in first for more in again}

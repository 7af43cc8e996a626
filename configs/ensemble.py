"""Five 3D U-Nets at low resolution that vote; the scan itself gives the Agatston score.

Paper:     Gogin et al. 2021, Diagn Interv Imaging 102:683-690
Command:   python -m cacjax.train --config ensemble.py --workdir runs/ensemble
           python -m cacjax.experiments ensemble-table1 --size small --out runs/table1      Table 1, three training sets
Published: category accuracy .857, C-index .951 on 98 gated scans, categories in equal parts (their data are not public)
Measured:  `ensemble-table1 --size small --only j1 ad` (2026-12-01, seed 0, 100 phantoms), accuracy and C-index of the ensemble: J1 .82,
           .941, J1 + J2 + AD in as many steps .77, .932 (nothing but 130 HU in the true pericardium .55, .793); with 500 steps and the
           same weight for every cell, on other phantoms, J1 .81, .933; J1 + J2 .78, .927; J1 + J2 + AD .80, .935:
           tools/results/ensemble.md. A step of `small` takes 2.1 s of one CPU core of 90 GFLOP/s. The published size was not trained
Variants:  ensemble.py:j1, :j2       trained on J1 (80 scans) or J1 + J2 (402) in place of J1 + J2 + AD (763)
           ensemble.py:small         width 8, scans of 144 mm about the heart; also small,j1 and small,j2
           ensemble.py:tiny          width 4, 80 scans of 120 mm, one at a time: minutes on a laptop
           ensemble.py:test          what the tests run
Stages:    none
Own data:  a manifest with masks, or with labels=marks a column `marks` (a CSV of points in LPS mm) and `category` (A to E), as the paper
           had them: --config.data.kind=folder --config.data.manifest=PATH. Scans whose marks give another category are in review.csv
Differs:   the paper prints neither the rule by which HU are restored in its cells, nor learning rate, batch, epochs, form of Dice or what
           is varied in training: components of three pixels keep their maximum, Adam 1e-3, two volumes, 200 epochs, V-Net's Dice of each
           volume, shifts of four cells and noise. The first bias says that a hundredth of all cells is calcium. `small` and `tiny` add the
           cross-entropy of the cells, bright ones times fifty, to 1 - Dice: with Dice alone all five members of `small` answered that
           there is no calcium (validation Dice .271 at every one of 600 steps; volumes without calcium are right then, and nothing is
           learned any more).
           Scans that are to be reviewed keep the labels of their marks, where the paper corrected them by hand
"""

from ml_collections import ConfigDict

from configs import phantom_data

SETS = {"j1": "j1", "j2": "j1,j2", "ad": "j1,j2,ad"}  # what a training draws from: J1, J1 + J2, J1 + J2 + AD

COHORTS = {"j1": (20, 8, 20, 16, 16), "validation": (4, 4, 4, 4, 4), "j2": (80, 32, 82, 64, 64), "ad": (90, 36, 91, 72, 72)}


def get_config(variant: str = "") -> ConfigDict:
    """Return the published settings; `variant` is "small", "tiny" or "test", and "j1", "j2" or "ad", with a comma between."""
    words = set(filter(None, variant.split(",")))
    sizes, sets = words & {"small", "tiny", "test"}, words & SETS.keys()
    if words - sizes - sets or len(sizes) > 1 or len(sets) > 1:
        raise ValueError(f"unknown variant {variant!r}: expected small, tiny or test, and j1, j2 or ad, with a comma between")
    config = ConfigDict({"task": "ensemble", "seed": 0})
    config.stages = ConfigDict()  # none before it
    config.steps = 76_300  # 200 epochs of 763 scans, two at a time
    config.log_every = 50
    config.checkpoint_every = 1000
    config.validate_every = 380  # an epoch

    config.model = ConfigDict({"width": 16, "levels": 4, "residual": True})
    config.cross_entropy = ConfigDict({"share": 0.0})  # beside 1 - Dice, which is the published loss
    config.cross_entropy.weights = ConfigDict({"calcium": 10.0, "bright": 1.0, "rest": 0.02})
    config.optimiser = ConfigDict({"peak": 1e-3, "warmup": 0, "drop_at": 1.0, "drop": 1.0})

    config.data = phantom_data.get_config()
    config.data.seed = 3000
    config.data.labels = "marks"  # a reader's points on calcium; "classes" of masks that you have
    config.data.grid = ConfigDict({"kind": "cells", "sides_mm": (2.5, 3.0), "restore": "max_components"})
    config.data.acquired_mm = (3.0, 0.66, 0.66)
    config.data.shape = (48, 364, 364)
    config.data.splits = ConfigDict()
    for name, numbers in COHORTS.items():
        config.data.splits[name] = phantom_data.split("cardiac", categories=numbers)  # of the categories A to E

    train = {"split": SETS[(sets or {"ad"}).pop()], "size": (48, 80, 80), "count": (5, 2), "axes": ("model", "data")}
    train |= {"strata": (("whole_scan", 1.0),), "jitter_px": 0, "labelled": True, "augment": (("shift", 1.0), ("noise", 0.5))}
    train |= {"view": "none", "scans_in_memory": 0, "swap_every": 0}
    held_out = train | {"split": "validation", "count": (20,), "axes": ("",), "augment": ()}
    config.streams = ConfigDict({"train": train})
    config.validation = ConfigDict({"held_out": held_out})

    config.scoring = ConfigDict({"rule": "gogin", "scheme": "gogin", "threshold": "scan"})
    config.scoring.votes = 3  # of the five
    config.scoring.member = 0  # all; 1 to 5: that one alone
    config.scoring.within_heart = False  # whether a heart that is given limits the answer, which the paper does not do
    config.scoring.heart_dilation_mm = 10.0  # around it

    if sizes:
        make_small(config)
    if "tiny" in sizes:
        make_tiny(config)
    if "test" in sizes:
        make_test(config)
    return config.lock()


def make_small(config: ConfigDict) -> None:
    """A quarter of the parameters on scans of 144 mm about the heart, of which a step sees 120 mm; 1000 steps."""
    config.steps, config.validate_every, config.checkpoint_every, config.log_every = 1000, 100, 100, 20
    config.model.width = 8
    config.cross_entropy.share = 5.0
    config.optimiser = ConfigDict({"peak": 3e-3, "warmup": 30, "drop_at": 0.7, "drop": 0.2})
    config.data.shape = (48, 218, 218)
    config.streams.train.size, config.validation.held_out.size = (40, 40, 40), (48, 48, 48)


def make_tiny(config: ConfigDict) -> None:
    """A sixteenth of the parameters, one scan at a time, a cohort of 80 + 8."""
    config.steps, config.validate_every, config.checkpoint_every = 400, 50, 50
    config.model.width = 4
    config.data.shape = (40, 182, 182)
    config.streams.train.size = config.validation.held_out.size = (40, 40, 40)
    config.streams.train.count, config.validation.held_out.count = (5, 1), (8,)
    config.data.splits = ConfigDict({"j1": phantom_data.split("cardiac", categories=(16, 16, 16, 16, 16))})
    config.data.splits.validation = phantom_data.split("cardiac", categories=(1, 1, 2, 2, 2))
    config.streams.train.split = "j1"


def make_test(config: ConfigDict) -> None:
    """What the tests run."""
    config.steps, config.validate_every, config.checkpoint_every, config.log_every = 4, 2, 2, 1
    config.model = ConfigDict({"width": 2, "levels": 2, "residual": True})
    config.data.shape = (8, 24, 24)
    config.streams.train.size = config.validation.held_out.size = (8, 8, 8)
    config.validation.held_out.count = (2,)
    config.data.splits = ConfigDict({name: phantom_data.split("cardiac", 3) for name in ("j1", "validation")})
    config.streams.train.split = "j1"

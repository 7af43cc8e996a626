"""Second stage: a CNN on three patches that takes away what the first stage mistakes for calcium.

Paper:     Lessmann et al. 2018 (second stage); sampling and settings as in their code, the network as in its PyTorch port
Command:   python -m cacjax.train --config second.py --workdir runs/second
           python -m cacjax.score SCAN --workdir runs/second --out OUT      scores with both stages
Published: fewer false positives at the same sensitivity on non-contrast CT (no figures of this stage alone)
Measured:  `second.py:tiny` on the source network of seed 0 of the main job (2026-11-21): on 10 held-out non-contrast phantoms it left a
           sensitivity of .97 and took false positives without reduction from 24 to 17 mm3 and from 4.4 to 1.0 lesions per scan (pooled F1
           .86 to .89); on 20 CCTA, unadapted, it halved them (1482 to 718 mm3) at the price of calcium (sensitivity .65 to .60)
           `tiny,scenes` with heart.py:tiny,whole,scenes on held-out phantoms (`python -m cacjax.experiments shipped --out DIR`; scans,
           heart Dice, in patients of 350 to 500 mm, sensitivity, FP mm3 a scan, pooled F1, kappa of categories; tools/results/shipped.md),
           with lesions that hold a voxel of P(coronary calcium) .8 (`scoring.least_probability`):
             chest CT     40  .91  .91  .65   16.6  .85  .86
             gated CT     40  .92  .93  .93   15.8  .92  .95
             planning CT  15  .91  .92  .61    2.0  .85  .89
             CCTA         15  .93  .93  .27   53.2  .33  .14
             no heart     40  0 of them scored
Variants:  second.py:tiny        half the channels: minutes on a laptop
           second.py:tiny,tone   both stages trained with random tone curves
           second.py:tiny,three  a first stage of three orientations
           second.py:tone        published size with tone curves
           second.py:rtp         both stages on scans for radiotherapy planning; also tiny,rtp
           second.py:tiny,scenes both stages on scans of all kinds, as the detector that ships with the package
           second.py:ancestor    the two stages as Lessmann 2018 runs them, Zhai's baseline on CCTA: upon lessmann.py:ancestor
Stages:    config.stages.first.workdir names the run of the first stage, of lessmann.py or uda.py; empty trains lessmann.py first, in
           WORKDIR/first. What it detects on the training scans is kept in WORKDIR/detected
Differs:   L2 is a weight decay, half of what Lasagne's penalty comes to
"""

from ml_collections import ConfigDict

from configs import lessmann


def get_config(variant: str = "") -> ConfigDict:
    """Return the published settings; `variant` is "" or words with commas between: those of lessmann.py."""
    words = set(filter(None, variant.split(",")))
    first = lessmann.get_config(variant)
    config = ConfigDict({"task": "second", "seed": 0})
    config.stages = ConfigDict({"first": first.to_dict() | {"workdir": ""}})
    config.steps = 125_000  # 250 epochs x 10 x 50 minibatches
    config.log_every = 50
    config.checkpoint_every = 500

    config.model = ConfigDict()
    config.model.widths = (24, 32, 48, 32)
    config.model.hidden = 256
    config.model.dropout = 0.5
    config.model.norm = "after"  # the activation, as the port; "before" it, as the ancestor, with one set of kernels for all planes
    config.patch = ConfigDict({"pixels": 65, "extent_mm": 42.9})

    config.optimiser = ConfigDict()
    config.optimiser.rate = ConfigDict({"peak": 1e-4, "warmup": 0, "drop_at": 1.0, "drop": 1.0})
    config.optimiser.weight_decay = 1e-5

    config.scoring = first.scoring.copy_and_resolve_references()  # the view as the first stage's
    if "scenes" in words:
        config.scoring.least_probability = 0.8
    config.data = first.data.copy_and_resolve_references()
    config.streams = ConfigDict()
    config.streams.train = ConfigDict()
    config.streams.train.split = "source_train"
    config.streams.train.count = (64,)
    config.streams.train.patch = 1
    config.streams.train.strata = (("calcium", 0.5), ("detected_negative", 0.4), ("bright_negative", 0.1))
    config.streams.train.jitter_px = 0
    config.streams.train.labelled = True
    config.streams.train.augment = (("tone_lift", 1.0),) if "tone" in words else ()
    config.streams.train.view = config.scoring.view
    config.streams.train.scans_in_memory = 101
    config.streams.train.swap_every = 505  # steps; the ancestor swaps 10 of 101 every 50

    if "tiny" in words:
        config.steps = 1500
        config.log_every = 25
        config.model.widths = (12, 16, 24, 16)
        config.model.hidden = 64
        config.optimiser.rate = ConfigDict({"peak": 1e-3, "warmup": 50, "drop_at": 0.75, "drop": 0.1})
        config.streams.train.count = (32,)
        if "scenes" in words:
            config.steps = 2 * config.steps
    return config.lock()

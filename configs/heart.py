"""Whole-heart segmentation: a 3-D encoder-decoder that limits calcium detection to the heart.

Paper:     Bruns et al. 2022 (five structures in CCTA), as used by Zhai et al. 2022, section 2.5; details from systems built on it
Command:   python -m cacjax.train --config heart.py --workdir runs/heart
           python -m cacjax.score SCAN --workdir RUN --heart runs/heart --out OUT
Published: Dice .90 to .95 by structure in CCTA (Bruns 2022; 12 patients, not public)
Measured:  on phantoms, `tiny,whole` and `half`: tools/results/heart.md. `heart.py` itself, 10,000 steps of eight blocks of 128 voxels,
           takes 32 GB and was not run to its end
Variants:  heart.py:tiny         3 mm voxels, smaller network and blocks: 4 to 6 minutes on 2 CPU cores
           heart.py:half         the published network on voxels of twice the side, in blocks that show as much of the body: an hour
           heart.py:whole        two more classes, ours: the ascending aorta, which --threshold-hu auto measures, and the rest
                                 within the pericardium, so that no coronary artery lies outside of the heart
           heart.py:tiny,whole   both; so does half,whole
           heart.py:tiny,whole,scenes   also patients of 350 to 500 mm, arms, hard kernels, motion, streaks, and scans without a heart
                                 (abdomen, neck, head), of which it learns to find nothing; windows as wide as the body. Ships with
                                 the package: tools/results/shipped.md. 35 minutes on one core of 2
Own data:  masks 0-7 as in cacjax.classes.STRUCTURES, with --config.data.kind=folder --config.data.manifest=PATH
Differs:   trained with and without contrast medium, where the paper has CCTA alone
"""

from ml_collections import ConfigDict

from configs import phantom_data

CHESTS = ("ccta", "chest:wide+streaks", "cardiac:sharp", "rtp:arms_down", "ccta:moving", "chest:arms_down+sharp", "cardiac", "rtp:wide")
WITHOUT = ("chest:abdomen", "ccta:neck", "rtp:abdomen+sharp", "chest:head")
SCENES = ",".join((*CHESTS, *WITHOUT))


def get_config(variant: str = "") -> ConfigDict:
    """Return the published settings; `variant` is "", "tiny" or "half", "whole" and, of tiny, "scenes", with commas between."""
    words = set(filter(None, variant.split(",")))
    if words - {"tiny", "half", "whole", "scenes"} or {"tiny", "half"} <= words or ("scenes" in words and "tiny" not in words):
        raise ValueError(f"unknown variant {variant!r}: expected tiny or half, whole and, of tiny, scenes, with commas between")
    config = ConfigDict({"task": "heart", "seed": 0})
    config.stages = ConfigDict()  # none before it
    config.steps = 10_000
    config.log_every = 50
    config.checkpoint_every = 500

    config.model = ConfigDict()
    config.model.width = 8
    config.model.blocks = 6
    config.model.classes = 8 if "whole" in words else 6
    config.model.bias = True  # before a normalisation, too
    config.model.ends = 7  # kernel of the first and the last layer

    config.optimiser = ConfigDict({"rate": 1e-3, "drop_every": 4000, "drop": 0.3})
    config.cross_entropy_weight = 0.0  # of the mean cross-entropy, beside the sum of the classes' Dice losses
    config.window = ConfigDict({"window": 128, "overlap": 32})  # of whole scans; the published code takes corners of up to 256 voxels

    config.data = phantom_data.get_config()
    config.data.labels = "structures"
    config.data.grid = ConfigDict({"kind": "linear", "spacing_mm": (0.8, 0.8, 0.8)})  # noise averages out as in thick slices
    config.data.shape = (200, 256, 256)
    config.data.splits = ConfigDict()
    # Not the paper's CCTA alone: the heart shall be found without contrast medium, too.
    config.data.splits.source_train = phantom_data.split("ccta,cardiac,chest,rtp", 48)

    config.streams = ConfigDict()
    config.streams.train = ConfigDict()
    config.streams.train.split = "source_train"
    config.streams.train.count = (8,)
    config.streams.train.patch = 128
    config.streams.train.strata = (("anywhere", 1.0),)
    config.streams.train.jitter_px = 0
    config.streams.train.labelled = True
    config.streams.train.augment = ()  # or (name, chance) pairs, see cacjax.data.tones
    config.streams.train.view = "none"
    config.streams.train.scans_in_memory = 12
    config.streams.train.swap_every = 100  # steps

    if "half" in words:
        make_short(config)
        config.data.grid.spacing_mm = (1.6, 1.6, 1.6)
        config.data.shape = (120, 160, 160)
        config.steps = 1200
        config.optimiser = ConfigDict({"rate": 2e-3, "drop_every": 450, "drop": 0.3})
        config.streams.train.count = (2,)
        config.streams.train.patch = 64
    if "tiny" in words:
        make_short(config)
        config.data.grid.spacing_mm = (3.0, 3.0, 3.0)
        config.data.shape = (72, 96, 96)
        config.steps = 800
        config.model.blocks = 3
        config.model.ends = 3
        config.optimiser = ConfigDict({"rate": 4e-3, "drop_every": 300, "drop": 0.3})
        config.streams.train.count = (4,)
        config.streams.train.patch = 40
    if "scenes" in words:
        config.data.shape = (72, 168, 168)
        config.data.splits.source_train = phantom_data.split(SCENES, 72)
        # By Dice alone, at twice the rate, training broke down after 900 steps: batches without a heart ask every class for nothing.
        config.cross_entropy_weight = 4.0
        config.steps = 6000
        config.optimiser = ConfigDict({"rate": 2e-3, "drop_every": 2200, "drop": 0.3})
        config.window = ConfigDict({"window": 176, "overlap": 24})  # 528 mm
    return config.lock()


def make_short(config: ConfigDict) -> None:
    """What the short trainings share: most blocks about the heart, and every scan in memory."""
    config.log_every = 20
    config.checkpoint_every = 200
    config.window = ConfigDict({"window": 64, "overlap": 24})
    config.streams.train.strata = (("heart_box", 0.75), ("anywhere", 0.25))
    config.streams.train.scans_in_memory = 0  # all of them
    config.streams.train.swap_every = 0

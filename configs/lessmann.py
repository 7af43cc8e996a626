"""Source network: dilated CNN with deep supervision, trained on labelled non-contrast CT.

Paper:     Lessmann et al. 2018 (first stage), as retrained by Zhai et al. 2022, section 2.2
Command:   python -m cacjax.train --config lessmann.py --workdir runs/lessmann
Published: on non-contrast CT sensitivity .89, F1 .66 (Zhai 2022, Table 2, first column; their data are not public)
Measured:  the published form: not yet trained to its end. `tiny` on 40 phantom cardiac CT: sensitivity .90, F1 .62
           (tools/results/uda.md, first row)
Variants:  lessmann.py:tiny        one orientation, 16 channels, trained on whole maps: minutes on a laptop
           lessmann.py:tiny,tone   the same with random tone curves as augmentation, which alone carries over to CCTA
           lessmann.py:tiny,three  the same with three orientations, as published: about three times as long
           lessmann.py:tone        published size with tone curves
           lessmann.py:rtp         on scans for radiotherapy planning, four of five with calcium; also tiny,rtp
           lessmann.py:tiny,quick  on 40 scans: the first command of the README
           lessmann.py:tiny,scenes on 120 scans of all four protocols, labelled CCTA among them, with wide patients, thin plaques of the
                                   aorta, hard kernels, motion and streaks: for the detector that ships with the package
           lessmann.py:ancestor    detection and reduction of false positives as Lessmann 2018: averaged over the orientations' heads, no
                                   single voxels, small lesions dropped, the others grown into components that they fill a quarter of
Differs:   the data; a lesion counts if half of it is in the heart, where one voxel would keep ribs (scoring.in_heart). `tiny` learns from
           every voxel of axial maps of three slices, weighted, without deep supervision
"""

from ml_collections import ConfigDict

from configs import phantom_data

WORDS = ("tiny", "quick", "tone", "three", "rtp", "scenes", "ancestor")
SCENES = ("ccta", "chest:wide+streaks", "cardiac:sharp", "rtp:arms_down", "ccta:moving", "chest:sharp+thin_plaques")
SCENES += ("cardiac", "chest", "ccta:wide+thin_plaques", "cardiac:wide+moving", "rtp:thin_plaques", "chest:moving")


def get_config(variant: str = "") -> ConfigDict:
    """Return the published settings; `variant` is "" or words with commas between, of WORDS (three is published anyway)."""
    words = set(filter(None, variant.split(",")))
    if words - set(WORDS):
        raise ValueError(f"unknown variant {variant!r}: expected words among {', '.join(WORDS)} with commas between")
    if len(words & {"quick", "rtp", "scenes"}) > 1 or ("scenes" in words and "tiny" not in words):
        raise ValueError(f"variant {variant!r}: expected one of quick, rtp and scenes, each with scans of its own, and scenes of tiny")
    if {"tiny", "ancestor"} <= words and "three" not in words:
        raise ValueError("ancestor averages over orientations, each with a trained head: expected tiny,three,ancestor")
    config = ConfigDict({"task": "lessmann", "seed": 0})
    config.stages = ConfigDict()  # none before it
    config.steps = 35_000  # 700 epochs x 5 x 10 minibatches
    config.log_every = 50
    config.checkpoint_every = 500

    config.model = ConfigDict()
    config.model.width = 32
    config.model.dilations = (1, 1, 2, 4, 8, 16, 32, 1)
    config.model.hidden = 128
    config.model.classes = 7
    config.model.planes = 3
    config.model.slab = 1  # slices seen by a plane, as channels
    config.model.stored = "float32"  # kind of a scan's feature vectors between subnets and main head
    config.model.dropout = 0.35
    config.model.main_dropout = 0.0  # the ancestor evaluates the main head without dropout in training too
    config.model.he = False  # PyTorch's default initialisation, as the code of Zhai; True: He-uniform, as the ancestor

    config.supervision = ConfigDict()
    config.supervision.where = "centre"  # or "map": every voxel of the axial map (one orientation)
    config.supervision.weights = ConfigDict({"calcium": 4.0, "bright": 1.0, "rest": 0.1})  # of "map"
    config.supervision.auxiliary_weight = 0.05
    config.supervision.double_softmax_main = False
    config.supervision.double_softmax_auxiliary = False  # True: Zhai's code

    config.optimiser = ConfigDict()
    config.optimiser.rate = ConfigDict({"peak": 5e-4, "warmup": 0, "drop_at": 1.0, "drop": 1.0})
    config.optimiser.weight_decay = 5e-5

    config.scoring = ConfigDict()
    config.scoring.rule = "lessmann" if "ancestor" in words else "default"  # of cacjax.kernels.rules, or several with commas between
    config.scoring.scheme = "default"  # risk categories, of cacjax.kernels.scores.SCHEMES
    config.scoring.threshold = "scan"  # the scan's own; or "scan_whole": cut to whole HU, as the code of Zhai 2022
    config.scoring.ancestor = "ancestor" in words  # scans are read as by Lessmann 2018, see cacjax.inference.planes
    # How false positives are reduced; or "authors_code", "none", "lessmann" (cacjax.kernels.region_growing).
    config.scoring.fp_reduction = "lessmann" if "ancestor" in words else "paper"
    config.scoring.least_probability = 0.0  # P(coronary calcium) of which a lesion needs a voxel to count; 0: the class decides
    config.scoring.in_heart = 0.5  # share of a lesion that has to lie in the dilated heart; 0: one voxel (Zhai 2022, section 2.5)
    config.scoring.heart_dilation_mm = 5.0  # a ball of 10 mm diameter (Zhai 2022, section 2.5): the arteries lie on the heart's border
    config.scoring.classify = "all"  # or "threshold", "mask": fewer voxels, the same mask (cacjax.inference.candidates)
    config.scoring.view = "none"  # or "contrast_removed": how the detector sees enhanced scans (cacjax.kernels.view)

    config.data = phantom_data.get_config("tiny" if "tiny" in words else "")
    if "rtp" in words:
        count = config.data.splits.source_train.count
        config.data.splits = ConfigDict({"source_train": phantom_data.split("rtp", count, calcified=0.8)})
    if "scenes" in words:
        config.data.splits = ConfigDict({"source_train": phantom_data.split(",".join(SCENES), 120, calcified=0.75)})
    config.streams = ConfigDict()
    config.streams.source = ConfigDict()
    config.streams.source.split = "source_train"
    config.streams.source.count = (64,)
    config.streams.source.patch = 25
    config.streams.source.strata = (("bright_in_slice", 0.125), ("anywhere_in_slice", 0.375), ("calcium_in_slice", 0.5))
    config.streams.source.jitter_px = 0
    config.streams.source.labelled = True
    # (name, chance): tone curves that may lift soft tissue as contrast medium does, see cacjax.data.tones
    config.streams.source.augment = (("tone_lift", 1.0),) if "tone" in words else ()
    config.streams.source.view = "none"
    config.streams.source.scans_in_memory = 60
    config.streams.source.swap_every = 300  # steps; the ancestor swaps 10 of 60 every 50

    if "tiny" in words:
        make_tiny(config)
        if "three" in words:
            make_three(config)
    if "scenes" in words:
        config.steps = 3 * config.steps
        config.model.dilations = (1, 1, 2, 4, 8, 16, 32)  # sees 43 mm around: valves and aorta are told from arteries by where they lie
        shares = {"coronary": 0.3, "other_calcium": 0.2, "candidate_in_heart": 0.25, "bright": 0.15, "anywhere": 0.1}
        config.streams.source.strata = tuple(shares.items())
        config.scoring.classify = "mask"
    if "quick" in words:
        config.data.splits.source_train.count, config.data.splits.target_train.count = 40, 24
    return config.lock()


def make_tiny(config: ConfigDict) -> None:
    """The laptop path: what of the method works in minutes on two CPU cores."""
    config.steps = 2000
    config.log_every = 25
    config.checkpoint_every = 500
    config.model.width = 16
    config.model.dilations = (1, 1, 2, 4, 8, 16)
    config.model.hidden = 32
    config.model.planes = 1
    config.model.slab = 3
    config.supervision.where = "map"
    config.supervision.auxiliary_weight = 0.0
    config.optimiser.rate = ConfigDict({"peak": 2e-3, "warmup": 50, "drop_at": 0.75, "drop": 0.1})
    config.optimiser.weight_decay = 0.0
    stream = config.streams.source
    stream.count = (4,)
    stream.patch = 64
    stream.strata = (("coronary", 0.4), ("calcium", 0.1), ("bright_in_heart", 0.2), ("bright", 0.2), ("anywhere", 0.1))
    stream.jitter_px = 16


def make_three(config: ConfigDict) -> None:
    """Tiny with the published three orientations: each patch then teaches its centre voxel only."""
    config.model.planes = 3
    config.model.slab = 1
    config.supervision.where = "centre"
    config.supervision.auxiliary_weight = 0.05
    config.streams.source.count = (12,)
    config.streams.source.patch = 9
    config.streams.source.jitter_px = 0

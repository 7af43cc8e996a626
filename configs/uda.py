"""Unsupervised adaptation of a calcium detector from non-contrast CT to coronary CT angiography.

Paper:     Zhai et al. 2022, Front. Cardiovasc. Med. 9:981901
Command:   python -m cacjax.train --config uda.py --workdir runs/uda
Published: on CCTA sensitivity .80, false positives 19.8 mm3 per scan, F1 .66 after reduction of false positives (Table 2, full method:
           source network from chest CT, labelled cardiac CT and unlabelled CCTA in the adaptation; their data are not public)
Measured:  the published form: not yet trained to its end. Its flow by `tiny` networks, pooled F1 in three seeds: source network .27, .44,
           .50, adapted .48, .28, .46, trained on labelled CCTA .55, .50, .51: no gain that holds from seed to seed (tools/results/uda.md).
           `tiny,quick`, whose source network learns from the same cardiac scans as the adaptation (`python3 tools/do.py train`,
           2026-11-30, seed 0, 20 phantom CCTA, with reduction of false positives; sensitivity, FP mm3 per scan, pooled F1, average
           precision): source .51, 14.5, .48, .37; adapted .59, 35.6, .49, .33, its F1 .01 [-.06, .09] above that of its source on the same
           scans: so short an adaptation finds more and more that is false. On the CCTA phantoms of before 2026-11-30, which a threshold
           alone solved, `tiny` had .72 and .88 in one seed; in three seeds with every arm, on these: tools/results/uda.md
Variants:  uda.py:tiny        one orientation, critic statistics over both domains: minutes on a laptop
           uda.py:tiny,quick  half the steps, on 40 + 24 scans: the first command of the README
           uda.py:tiny,tone   as tiny, from a source network trained with random tone curves
           uda.py:tone        published size, source network with tone curves
           uda.py:code        the schedule and the loss of the authors' code: 200 critic and 10 generator updates a block, 50 and 10
                              from epoch 100 on, softmax twice, features of a scan kept in float16;
                              124,250 critic and 10,000 generator updates after pre-training
           uda.py:tiny,three  tiny with three orientations, as published
           uda.py:view        published size, the target with its contrast removed (cacjax.kernels.view), as for tiny,view
Stages:    config.stages.source.workdir names the run of a trained source network; empty trains one first, in WORKDIR/source
Differs:   `uda.py` is the published form, on phantoms: its source network comes from chest CT of other patients, critic statistics by
           domain, 20,000 critic updates before the generator moves, 20 to 1 after (the paper prints 1,000 iterations of pre-training, the
           authors' README 20,000). `tiny` takes 16 channels, 5 critic updates to 1, one cohort for the source network and the adaptation
           and critic statistics over both domains: by domain they hide the very shift that it shall remove. Ours
           beside the paper: generator.statistics = domain gives the target's activations the source's moments by a scale and a shift per
           channel (cacjax.models.moments); random tone curves need no target scan at all, and every claim for adaptation should be read
           beside them. Settings were chosen by looking at the labels of 24 other phantom CCTA.
"""

from ml_collections import ConfigDict

from configs import lessmann


def get_config(variant: str = "") -> ConfigDict:
    """Return the published settings; `variant` is "" or words with commas between: those of lessmann.py, view, code."""
    words = set(filter(None, variant.split(",")))
    if words - {"tiny", "quick", "tone", "three", "view", "code"}:
        raise ValueError(f"unknown variant {variant!r}: expected words among tiny, quick, tone, three, view, code with commas between")
    source = lessmann.get_config(",".join(words - {"view", "code"}))
    config = ConfigDict({"task": "uda", "seed": 0})
    config.stages = ConfigDict({"source": source.to_dict() | {"workdir": ""}})
    if "tiny" not in words:
        config.stages.source.data.splits.source_train.protocol = "chest"
        config.stages.source.data.seed = 2000  # other patients: the adaptation's labelled scans are new to the network
    config.pretrain_blocks = 1000  # 20,000 critic updates before the generator moves
    config.steps = 11_000  # blocks of 20 critic updates and 1 generator update: 10,000 generator updates
    config.log_every = 10
    config.checkpoint_every = 250

    config.model = source.model.copy_and_resolve_references()
    config.supervision = source.supervision.copy_and_resolve_references()
    config.classification_weight = 2.0  # alpha
    config.adversarial_weight = 1.0
    config.mmd_weight = 0.0
    config.weight_decay = 5e-4

    config.critic = ConfigDict()
    config.critic.channels = (128, 128, 256, 128, 64, 32, 1)
    config.critic.statistics = "domain"  # or "joint": batch normalisation over both domains together; or "none"
    config.critic.constraint = "clip"  # or "spectral" (Miyato 2018), "gradient_penalty" (Gulrajani 2017; statistics "none")
    config.critic.penalty_weight = 10.0
    config.critic.rate = 5e-4
    config.critic.clip = 0.1
    config.critic.updates = 20
    config.critic.late = ()  # or (block, updates): from this block on so many instead
    config.critic.batch = 16
    config.critic.window = 25
    config.generator = ConfigDict({"rate": 5e-5, "updates": 1})
    config.generator.statistics = "shared"  # or "domain": target activations get the source's moments

    config.scoring = source.scoring.copy_and_resolve_references()
    config.scoring.view = "contrast_removed" if "view" in words else "none"  # how enhanced scans are seen, here and by score
    config.data = source.data.copy_and_resolve_references()
    config.streams = ConfigDict()
    half_bright = (("bright_in_slice", 0.5), ("anywhere_in_slice", 0.5))
    balanced = (("bright_in_slice", 0.125), ("anywhere_in_slice", 0.375), ("calcium_in_slice", 0.5))
    config.streams.pool_source = stream("source_train", count=(20, 16), strata=half_bright)
    config.streams.pool_target = stream("target_train", count=(20, 16), strata=half_bright)
    config.streams.source = stream("source_train", count=(16,), strata=balanced, labelled=True)
    config.streams.target = stream("target_train", count=(16,), strata=half_bright)
    config.streams.pool_target.view = config.streams.target.view = config.scoring.view
    if "tiny" in words:
        make_tiny(config)
    if "code" in words:
        make_code(config)
    if "quick" in words:
        config.steps, config.pretrain_blocks = config.steps // 2, config.pretrain_blocks // 2
    if {"tiny", "three"} <= words:
        config.streams.source.count, config.streams.source.patch, config.streams.source.jitter_px = (12,), 9, 0
    return config.lock()


def stream(split: str, *, count: tuple, strata: tuple, labelled: bool = False) -> ConfigDict:
    """One named sequence of patches (see cacjax.data.loader); scans are swapped five at a time, as published."""
    options = {"split": split, "count": count, "patch": 25, "strata": strata, "jitter_px": 0, "labelled": labelled}
    options |= {"augment": (), "view": "none"}
    # five scans in memory, replaced after every epoch of 1,000 critic updates
    return ConfigDict(options | {"scans_in_memory": 5, "swap_every": 50})


def make_code(config: ConfigDict) -> None:
    """The authors' code where it differs from the paper, with the numbers of their README: 20 rounds, then 200 epochs of 5 blocks."""
    config.pretrain_blocks = 100
    config.steps = 1100
    config.critic.updates = 200
    config.critic.late = (100 + 99 * 5, 50)
    config.generator.updates = 10
    config.supervision.double_softmax_main = True
    config.model.stored = "float16"
    for name, part in config.streams.items():
        part.count = (200, 16) if name.startswith("pool") else (10, 16)
        part.swap_every = 5  # an epoch


def make_tiny(config: ConfigDict) -> None:
    """The laptop path: joint statistics in the critic, which by domain cannot see the shift."""
    config.pretrain_blocks = 60
    config.steps = 460
    config.critic.updates = 5
    config.checkpoint_every = 100
    config.critic.channels = (8, 8, 8, 8, 1)
    config.critic.statistics = "joint"
    config.critic.window = 17
    config.generator.rate = 1e-4
    config.classification_weight = 1.0
    labelled = (("coronary", 0.4), ("calcium", 0.1), ("bright_in_heart", 0.3), ("heart_box", 0.2))
    for name, part in config.streams.items():
        part.patch = 51
        part.scans_in_memory = 0  # all of them
        # Bright voxels are calcium or bone in the source and blood in the target: drawn by brightness their moments do not compare.
        part.strata = labelled if name == "source" else (("heart_box", 1.0),)
        part.count = (1, 4) if name.startswith("pool") else (4,)
    config.streams.source.jitter_px = 16

"""CAC-Net: a 2D U-DenseNet and a 3D U-Net learned jointly, artery by artery.

Paper:     Zhang et al. 2018, "CAC-Net" (coronary artery calcium scoring in non-contrast CT)
Command:   python -m cacjax.train --config cacnet.py --workdir runs/cacnet
           python -m cacjax.experiments cacnet-table1 --size small --out runs/cacnet-tables       Tables 1 and 2; cacnet-table4: Table 4
Published: 129 exams, five folds: F1 .935 by number, .946 by volume; ICC of Agatston scores .986 (their data are not public)
Measured:  `cacnet-parts --size small --fold 0`, then `--fold 1` (seed 0, 80 phantoms to learn from, 20 to test on, each): F1 by volume .84,
           by number .62, ICC of Agatston .936; its halves alone .85, .67, .960 (U-DenseNet) and .92, .74, .983 (3D U-Net); nothing but
           130 HU in the true pericardium .46: tools/results/cacnet.md. CAC-Net calls no calcium LCX after its 1,500 steps. A step takes
           1.7 s of one CPU core, a training 42 minutes, a scan 6 s. The published size was not trained: a step of one crop takes
           85 s of 2 cores (together 100 GFLOP/s) and 16.8 GiB, 14.0 of them what it keeps at once (by XLA's account 48 without
           recomputation, 18 with random words of 32 bits in dropout), and compiles in 122 to 135 CPU s. A scan of 512 x 512 x 400
           voxels is scored in 7.5 GiB (`/usr/bin/time -v python -m cacjax.score`, published windows, a network of width 2: what is added
           up); a window of the published network takes 4.4 GiB more (XLA's account of its `predict`)
Variants:  cacnet.py:unet3d, :udensenet, :twofold, :fcn3d     the networks of Table 4
           cacnet.py:small           growth and width 4 (1.5 million parameters), 1 mm pixels, a crop of 16 x 96 x 96; also small,unet3d, ..
           cacnet.py:tiny            growth 2, width 4, 40 exams
           cacnet.py:test            what the tests run
Stages:    none
Own data:  a manifest with masks: --config.data.kind=folder --config.data.manifest=PATH; the orCaScore set: python -m cacjax.data.orcascore
           DIR writes its manifest. --config.data.fold=K trains without fold K, which is the split exams_test
Differs:   the paper prints neither growth, widths, optimiser, rate, crop nor batch: growth 16, width 16 (24,375,652 parameters), Adam with
           a cosine from 1e-3 to 1e-5, two crops of 32 x 256 x 256, half of them about calcium of an artery drawn first. HU are clipped to
           12 bits and divided by their range, not by each scan's (its extremes are metal and padding). Dice of LAD, LCX, RCA and of all,
           of each crop, smoothed by 1; weights of the five heads 16, 8, 4, 2, 1 of 31. A layer of a dense block is normalised, then
           convolved, as printed (`order`). `small` has no dropout, keeps z in its first pooling (voxels are 3 x 1 x 1 mm), normalises the
           3D part over the batch (eight groups of four channels are none), counts a lesion whole of which half is detected, and adds a
           cross-entropy, in which what is brighter than 107 HU
           weighs 20 times, calcium 200 times the rest. It begins with the answer "background" (`first_bias`): from four equal classes the
           Dice of a few calcified voxels has no slope, and after 480 steps it was .004; with plain weights it ends at "no calcium"
"""

from ml_collections import ConfigDict

from configs import phantom_data

FORMS = ("udensenet", "unet3d", "twofold", "fcn3d")  # of Table 4, beside the whole
SIZES = ("small", "tiny", "test")


def get_config(variant: str = "") -> ConfigDict:
    """Return the published settings; `variant` is "small", "tiny" or "test", and one of FORMS, with a comma between."""
    words = set(filter(None, variant.split(",")))
    sizes, forms = words & set(SIZES), words & set(FORMS)
    if words - sizes - forms or len(sizes) > 1 or len(forms) > 1:
        raise ValueError(
            f"unknown variant {variant!r}: expected one of {', '.join(SIZES)} and one of {', '.join(FORMS)}, with a comma between"
        )
    config = ConfigDict({"task": "cacnet", "seed": 0})
    config.stages = ConfigDict()  # none before it
    config.steps = 40_000
    config.log_every = 50
    config.checkpoint_every = 500

    config.model = ConfigDict({"form": (forms or {"cacnet"}).pop(), "growth": 16, "width": 16, "dropout": 0.5})
    config.model.order = "bn_conv_relu"  # as printed; "bn_relu_conv" is DenseNet's
    config.model.flat = 0  # so many first poolings of the 3D part keep z
    config.model.first_bias = 0.0  # of the background
    config.model.norm = "group"  # of the 3D part, as printed; or "batch"
    config.model.remat = True  # what is inside of a block is computed again for its gradient
    config.cross_entropy = ConfigDict({"share": 0.0})  # of the finest head's, beside the Dice, which is the published loss
    config.cross_entropy.weights = ConfigDict({"calcium": 4.0, "bright": 1.0, "rest": 0.1})
    config.least_mm3 = 1.5  # a lesion is larger
    config.optimiser = ConfigDict({"rate": {"peak": 1e-3, "last": 1e-5}, "weight_decay": 1e-4})

    config.data = phantom_data.get_config()
    config.data.seed = 4000
    config.data.grid = ConfigDict({"kind": "native"})
    config.data.acquired_mm = (2.5, 0.4, 0.4)
    config.data.shape = (48, 512, 512)
    config.data.splits = ConfigDict({"exams": phantom_data.split("cardiac", categories=(25, 13, 31, 30, 30))})
    config.data.folds = 5  # of the categories in equal parts; trains on four, exams_test is the fifth, number data.fold

    train = {"split": "exams", "size": (32, 256, 256), "count": (2,), "axes": ("data",)}
    train |= {"strata": (("artery", 0.5), ("anywhere", 0.5)), "jitter_px": 0, "labelled": True, "augment": ()}
    train |= {"view": "none", "scans_in_memory": 0, "swap_every": 0}
    config.streams = ConfigDict({"train": train})

    config.scoring = ConfigDict({"rule": "orcascore", "scheme": "default", "threshold": "scan"})
    config.scoring.least_share = 0.0  # of a component above the threshold, from which all of it is calcium; 0: what is detected alone
    config.scoring.window = (32, 256, 256)  # voxels (z, y, x) seen at once
    config.scoring.overlap = (16, 128, 128)  # of neighbouring windows, at least

    if sizes:
        make_small(config)
    if "tiny" in sizes:
        make_tiny(config)
    if "test" in sizes:
        make_test(config)
    return config.lock()


def make_small(config: ConfigDict) -> None:
    """A sixteenth of the parameters, no dropout, on pixels of 1 mm about the heart, one crop at a time."""
    config.steps, config.checkpoint_every, config.log_every = 1500, 100, 20
    config.model.update({"growth": 4, "width": 4, "dropout": 0.0, "norm": "batch", "flat": 1, "remat": False, "first_bias": 5.7})
    config.cross_entropy = ConfigDict({"share": 10.0, "weights": {"calcium": 10.0, "bright": 1.0, "rest": 0.05}})
    config.optimiser.rate.peak = 2e-3
    config.data.acquired_mm, config.data.shape = (3.0, 1.0, 1.0), (48, 144, 144)
    config.data.splits.exams = phantom_data.split("cardiac", categories=(15, 10, 25, 25, 25))
    config.streams.train.update({"size": (16, 96, 96), "count": (1,), "jitter_px": 24})
    config.scoring.window, config.scoring.overlap, config.scoring.least_share = (16, 96, 96), (8, 48, 48), 0.5


def make_tiny(config: ConfigDict) -> None:
    """Half of that growth, 40 scans."""
    config.steps, config.model.growth = 600, 2
    config.data.splits.exams = phantom_data.split("cardiac", categories=(5, 5, 10, 10, 10))


def make_test(config: ConfigDict) -> None:
    """What the tests run."""
    config.steps, config.checkpoint_every, config.log_every = 4, 2, 1
    config.model.update({"growth": 1, "width": 2, "flat": 2})
    config.data.shape = (8, 32, 32)
    config.data.splits.exams = phantom_data.split("cardiac", 3)
    config.data.folds = 0
    config.streams.train.update({"size": (8, 32, 32), "count": (2,), "strata": (("anywhere", 1.0),), "jitter_px": 16})
    config.scoring.window, config.scoring.overlap = (8, 32, 32), (4, 16, 16)

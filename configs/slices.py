"""Which slices of a heart show coronary calcium: the gate of calcium CycleGAN.

Paper:     van Velzen et al. 2022, section 2.2 and table 2
Command:   python -m cacjax.train --config slices.py --workdir runs/slices
Published: by slice: accuracy .93, sensitivity .78, false-positive rate .06 (their data are not public)
Measured:  `slices.py:small` on all heart slices of 320 phantom scans: accuracy .90, sensitivity .78, false-positive rate .08, area under
           the curve .94 (seed 0); how other forms of it do stands in tools/results/cyclegan.md
Variants:  slices.py:small        width 8, two residual blocks, 112 pixels within the heart, scaled; 9,000 steps of 16 slices, each with
                                  its neighbours; its strongest place answers, and a running average of its weights
           slices.py:tiny         as small, 400 steps, of 24 patients
           slices.py:test         what the tests run
Stages:    heart (heart.py with two classes): finds the heart of scans that come without one
Own data:  a manifest with masks of coronary calcium, and hearts if there are any: --config.data.kind=folder --config.data.manifest=PATH
Differs:   softmax in place of two sigmoids; the epoch is chosen by F1 on held-out slices, as printed, every `validate_every` steps.
           `small` is shown neighbours and answers by its strongest place, with a running average of its weights
"""

from ml_collections import ConfigDict

from configs import heart, phantom_data

SIZES = ("small", "tiny", "test")


def get_config(variant: str = "") -> ConfigDict:
    """Return the published settings; `variant` is "small", "tiny" or "test"."""
    if variant and variant not in SIZES:
        raise ValueError(f"unknown variant {variant!r}: expected one of {', '.join(SIZES)}")
    config = ConfigDict({"task": "slices", "seed": 0})
    config.stages = ConfigDict({"heart": heart_config(variant).to_dict() | {"workdir": ""}})  # of a run that there is
    config.steps = 1_500_000
    config.log_every, config.checkpoint_every, config.validate_every = 100, 5000, 5000
    config.rate = ConfigDict({"peak": 1e-3, "drop_at": 1.0, "drop": 1.0})  # of Adam; from a share of the steps on times drop
    config.average = 0.0  # decay of the running average of the weights that answers
    config.model = ConfigDict({"width": 64, "blocks": 6, "ends": 7, "bias": False, "padding": "reflect", "head": "mean"})
    config.seen = ConfigDict({"low": -50.0, "high": 950.0, "shift": 0.0, "scale": 1.0})
    config.heart_only = False  # whether it sees nothing outside of the heart
    config.neighbours = 0  # slices on either side that it sees, too
    config.view = view()
    config.data, config.streams, config.validation = data(variant), ConfigDict(), ConfigDict()
    config.streams.train = stream((20,), "train")
    config.validation.held_out = stream((200,), "held_out")
    if variant:
        small_view(config)
        config.steps, config.log_every, config.checkpoint_every, config.validate_every = 9000, 20, 300, 100
        config.rate.update({"drop_at": 0.6, "drop": 0.1})
        config.model.update({"width": 8, "blocks": 2, "ends": 3, "head": "peak"})
        config.average = 0.99
        config.heart_only, config.view.noise, config.neighbours = True, False, 1
        config.seen.update({"shift": 0.09, "scale": 8.0})
        config.streams.train.update({"count": (16,), "one_scan": 0.5})
    if variant == "tiny":
        config.steps = 400
    if variant == "test":
        make_test(config)
    return config.lock()


def heart_config(variant: str = "") -> ConfigDict:
    """The heart network of van Velzen 2022: two classes, no biases before normalisation."""
    config = heart.get_config("tiny" if variant else "").unlock()
    config.model.update({"width": 16, "blocks": 9, "classes": 2, "bias": False})
    config.data.grid = ConfigDict({"kind": "slabs", "spacing_mm": (3.0, 1.5, 1.5), "thickness_mm": 3.0})
    config.data.acquired_mm, config.data.shape = (3.0, 0.9, 0.9), (120, 400, 400)
    config.data.splits = ConfigDict({"source_train": phantom_data.split("rtp", 100)})
    config.window = ConfigDict({"window": 64, "overlap": 32})
    if not variant:
        config.steps, config.optimiser.drop_every = 250_000, 250_000
        config.streams.train.update({"count": (10,), "patch": 64, "strata": (("heart_box", 0.5), ("anywhere", 0.5))})
        return config
    config.model.update({"width": 8, "blocks": 3})
    config.data.grid.spacing_mm = (3.0, 3.0, 3.0)
    config.data.acquired_mm, config.data.shape = (3.0, 3.0, 3.0), (72, 96, 96)
    config.data.splits.source_train.count = 24
    config.steps, config.optimiser.drop_every = 400, 150
    if variant == "test":
        config.steps, config.log_every, config.checkpoint_every = 2, 1, 2
        config.model.update({"width": 2, "blocks": 1})
        config.data.shape, config.data.splits.source_train.count = (16, 32, 32), 1
        config.streams.train.update({"count": (1,), "patch": 16})
        config.window = ConfigDict({"window": 16, "overlap": 8})
    return config


def data(variant: str = "") -> ConfigDict:
    """Scans for radiotherapy planning, each patient's two as they are breathing freely and holding their breath."""
    config = phantom_data.get_config()
    config.seed = 5000
    config.labels = "visible"  # coronary calcium that can be seen; "classes" of masks that you have
    config.grid = ConfigDict({"kind": "slabs", "spacing_mm": (1.5, 1.0, 1.0), "thickness_mm": 3.0})
    config.acquired_mm, config.shape = (3.0, 1.0, 1.0), (44, 320, 320)
    train, held_out = {"": (315, 40), "small": (315, 40), "tiny": (24, 4), "test": (2, 2)}[variant]
    config.splits = ConfigDict({"train": phantom_data.split("rtp", train, calcified=0.8, paired=True)})
    config.splits.held_out = phantom_data.split("rtp", held_out, calcified=0.8, paired=True)
    if variant:
        config.grid.spacing_mm, config.shape = (3.0, 1.0, 1.0), (44, 144, 144)  # a slice a slab
    if variant == "test":
        config.shape = (8, 32, 32)
    return config


def stream(count: tuple, split: str) -> ConfigDict:
    """Slices with and without calcium, as many, at one height of the heart; of the former a half show at least 10 pixels of it."""
    strata = (("large_calcium_slice", 0.25), ("calcium_slice", 0.25), ("clean_slice", 0.5))
    return ConfigDict({"split": split, "size": (1, 256, 256), "count": count, "axes": ("data",), "strata": strata, "bins": 10, **IDLE})


IDLE = {"one_scan": 0.0, "jitter_px": 0, "labelled": True, "heart": True, "augment": ()}
IDLE |= {"view": "none", "scans_in_memory": 0, "swap_every": 0}


def view() -> ConfigDict:
    """Of 256 pixels 224, turned by up to 15 degrees, noise smoothed, amplified or as it is."""
    return ConfigDict({"size": 224, "noise": True, "flips": False, "degrees": 15.0})


def small_view(config: ConfigDict) -> None:
    """112 pixels about the heart, flipped, shifted by up to 8."""
    config.view.update({"size": 112, "flips": True, "degrees": 0.0})
    for each in (config.streams.train, config.validation.held_out):
        each.size = (1, 112, 112)
    config.streams.train.jitter_px = 8


def make_test(config: ConfigDict) -> None:
    """What the tests run."""
    config.steps, config.log_every, config.checkpoint_every, config.validate_every = 4, 1, 2, 2
    config.model.update({"width": 2, "blocks": 1})
    config.view.size, config.streams.train.jitter_px = 16, 2
    config.streams.train.update({"size": (1, 16, 16), "count": (4,)})
    config.validation.held_out.update({"size": (1, 16, 16), "count": (4,)})

"""Calcium CycleGAN: what a generator takes out of a slice to make it look calcium-free is the score.

Paper:     van Velzen et al. 2022, "AI for calcium scoring" (radiotherapy planning CT; scan and rescan)
Command:   python -m cacjax.train --config cyclegan.py --workdir runs/cyclegan
           python -m cacjax.score SCAN --workdir runs/cyclegan --out OUT
           python -m cacjax.experiments cyclegan-pairs --size small --out runs/pairs     tables 3 to 5; cyclegan-figure5, -figure6
Published: relative difference of two scans of a patient 47 % where scoring at 130 HU has 89 % (their data are not public)
Measured:  `small`, one seed, tools/results/cyclegan.md: two scans of 76 phantoms with calcium from 130 HU in both differ by .31 (map) and
           .33 (CT values), where scoring at 130 HU has .44 and the true map .22; of the map .84 lies at true calcium, .85 of the scans with
           visible calcium are found, .09 of those without are positive. On one shared CPU core (100 GFLOP/s): 13 minutes to make 355 pairs
           of scans, about 25 for the gate, 13 for the GAN. The published size was not trained
Variants:  cyclegan.py:small      width 8, slices of 112 pixels about the heart; what differs stands below
           cyclegan.py:tiny       as small, of 24 patients, 1,200 steps
           cyclegan.py:test       what the tests run
           cyclegan.py:small,removal     without the way back: no second generator, no second discriminator, no cycle
Stages:    slices (slices.py), the gate, and its own stage, heart; all by one command
Own data:  a manifest with masks of coronary calcium, and hearts if there are any: --config.data.kind=folder --config.data.manifest=PATH
Differs:   of all sizes: a discriminator has the moments of its batch; smoothed and amplified noise a third of the chance each, rotation by
           up to 15 degrees; ten bins of the heart's height.
           Of small: the published discriminator never sees calcium there. One of 22 pixels without norm on scaled input within the heart,
           with warm-up on real slices against real ones, and real calcium as half of the fakes, half of the pairs of slices from one
           scan; generators with skips and ends of 3 pixels, learning rate 1e-3, an average of their weights answers; no other noise; a
           map counts from 10 HU, in connected parts from 2400 HU x mm³ (`least_lesion`) whose slices show calcium by a mean probability of
           .6, weighted by the map (`gate` "parts"). From -100 HU up, which shows more of what lies
           in fat, that discriminator learned later (.79, not .87)
"""

from ml_collections import ConfigDict

from configs import slices

SIZES = ("small", "tiny", "test")
PATCH_70 = ((4, 2, 1), (4, 2, 2), (4, 2, 4), (4, 1, 8))
PATCH_22 = ((4, 2, 2), (3, 1, 2), (4, 2, 4), (3, 1, 4))  # of 22 pixels: kernel size, stride, times the width


def get_config(variant: str = "") -> ConfigDict:
    """Return the published settings; `variant` is "small", "tiny" or "test", and "removal", with a comma between."""
    words = set(filter(None, variant.split(",")))
    sizes = words & set(SIZES)
    if words - sizes - {"removal"} or len(sizes) > 1:
        raise ValueError(f"unknown variant {variant!r}: expected one of {', '.join(SIZES)}, and removal, with a comma between")
    size = next(iter(sizes), "")
    config = ConfigDict({"task": "cyclegan", "seed": 0})
    config.stages = ConfigDict({"slices": slices.get_config(size).to_dict() | {"workdir": ""}})  # of a run that there is
    config.steps = 375_000
    config.log_every, config.checkpoint_every, config.validate_every = 100, 5000, 5000

    config.back = "removal" not in words  # the second generator, its discriminator and the cycle
    config.heart_only = False  # whether maps and discriminators are limited to the heart in training
    config.b1 = 0.5  # of Adam
    config.generator = ConfigDict()
    config.generator.model = {"width": 64, "blocks": 6, "ends": 7, "bias": False, "padding": "reflect", "spread": 0.02}
    config.generator.model.update({"skips": False, "last_bias": -4.0})
    config.generator.rate = {"peak": 1e-4, "warmup": 0, "fall_from": 1.0, "last": 1e-4}
    config.generator.together = False  # slices with and without calcium in one normalisation
    config.generator.average = 0.0  # decay of the running average of the weights that answers
    config.discriminator = ConfigDict({"rate": {"peak": 1e-4, "drop_at": 1.0, "drop": 1.0}})
    config.discriminator.model = {"width": 64, "layers": PATCH_70, "last": 4, "norm": True, "spread": 0.02}
    config.discriminator.warmup = 0  # steps on real slices of one kind against those of the other, before the generators move
    config.discriminator.from_real = 0.0  # share of the fakes that are real slices of the other kind
    config.weights = ConfigDict({"cycle": 10.0, "identity": 10.0, "sparsity": 0.001})
    config.pool = 50  # earlier slices that a discriminator sees again

    config.seen = ConfigDict({"low": -50.0, "high": 950.0, "shift": 0.0, "scale": 1.0})
    config.view = slices.view()
    config.data, config.streams, config.validation = slices.data(size), ConfigDict(), ConfigDict()
    config.streams.train = slices.stream((4,), "train")
    config.validation.held_out = slices.stream((64,), "held_out")

    config.scoring = ConfigDict({"rule": "adjusted", "scheme": "van_velzen"})
    config.scoring.threshold = -1024.0  # HU: calcium counts whatever its CT value
    config.scoring.heart, config.scoring.gate = True, "classifier"
    config.scoring.least_probability = 0.5  # of calcium in a slice that counts, with gate "parts" in those of a part
    config.scoring.least_lesion = 0.0  # HU x mm³ of the map that connected calcium adds up to
    config.scoring.least_sum = 0.0  # HU x mm² of the map of a slice that counts, with gate "map"
    config.scoring.check_heart = True  # what can be no heart is refused (see cacjax.kernels.anatomy)
    config.scoring.window, config.scoring.wide = 224, 320  # pixels of a slice, about the heart and where none is asked for
    config.scoring.floor_hu = -10.0  # where the twin is darker, nothing is taken
    config.scoring.least_hu = 1.0  # from which a map is calcium
    if sizes:
        make_small(config)
    if size == "tiny":
        config.steps, config.discriminator.warmup = 1200, 500
    if size == "test":
        make_test(config)
    return config.lock()


def make_small(config: ConfigDict) -> None:
    """What trains in minutes on a CPU."""
    slices.small_view(config)
    config.view.noise = False
    config.steps, config.log_every, config.checkpoint_every, config.validate_every = 3000, 20, 200, 100
    config.heart_only = True
    config.generator.model.update({"width": 8, "blocks": 2, "ends": 3, "spread": 0.0, "skips": True})
    config.generator.rate = {"peak": 1e-3, "warmup": 30, "fall_from": 0.7, "last": 1e-4}
    config.generator.together, config.generator.average = True, 0.98
    config.discriminator.model.update({"width": 8, "layers": PATCH_22, "last": 1, "norm": False, "spread": 0.0})
    config.discriminator.update({"rate": {"peak": 2e-3, "drop_at": 0.25, "drop": 0.5}, "warmup": 1000, "from_real": 0.5})
    config.streams.train.one_scan = 0.5
    config.seen.update({"shift": 0.09, "scale": 8.0})
    config.streams.train.count = (8,)
    config.scoring.window, config.scoring.wide = 112, 144
    config.scoring.least_hu, config.scoring.least_lesion = 10.0, 2400.0
    config.scoring.gate, config.scoring.least_probability = "parts", 0.6


def make_test(config: ConfigDict) -> None:
    """What the tests run."""
    config.steps, config.log_every, config.checkpoint_every, config.validate_every = 4, 1, 2, 2
    config.generator.model.update({"width": 2, "blocks": 1})
    config.discriminator.model.update({"width": 2})
    config.discriminator.warmup, config.pool = 1, 3
    config.view.size, config.streams.train.jitter_px = 16, 2
    config.streams.train.update({"size": (1, 16, 16), "count": (4,)})
    config.validation.held_out.update({"size": (1, 16, 16), "count": (4,)})
    config.scoring.window = config.scoring.wide = 16
    config.scoring.check_heart = False  # nothing was learned

"""Record what PyTorch makes of calcium CycleGAN's first steps: `python tools/bench/record_cyclegan.py` writes tests/cyclegan_steps.npz.

The published step, and that of size small with its warm-up, at width 2 without pool and augmentation, in float64: slices, metrics, and
after the steps of every parameter and running statistic up to some numbers (`thinned`). First parameters are drawn anew, not kept.
"""

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from tools.bench.record_cacnet import ROOT, drawn, thinned

STEPS, SLICES, SIDE = 3, 4, 32
RATE = 2.0**-7  # a schedule is worked out in float32
FORMS = {"published": "", "small": "small"}  # of cyclegan.py
NETWORKS = ("remove", "insert", "free", "calcified")


def main() -> None:
    """Record."""
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import jax
    import torch
    from cyclegan_torch import Learner, ours_of

    from cacjax.task import build
    from cacjax.training.streams import example_batch, streams_of

    hu, heart = slices()
    out = {"hu": hu, "heart": heart}
    for form in FORMS:
        config = config_of(form)
        task = build(config)
        example = example_batch(streams_of(config.streams, task))
        nets = jax.eval_shape(lambda key, task=task, example=example: task.init(key, example, {}), jax.random.key(0)).nets
        learner = Learner({name: drawn(nets[name].params, name) for name in NETWORKS}, config, tuned=False, dtype=torch.float64)
        sizes = batch_norm_sizes(learner.networks["remove"], learner.networks["insert"])
        seen = [learner.step(*(learner.place(x[half], y[half]) for half in halves())) for x, y in zip(hu, heart)]
        out |= {f"{form}/metrics/{name}": np.array([float(one[name]) for one in seen]) for name in seen[0]}
        for module, n in sizes.items():  # ours divides the sum of squares by n, PyTorch's running variance by n - 1
            start = (1 - module.momentum) ** (STEPS - config.discriminator.warmup)
            module.running_var.sub_(start).mul_((n - 1) / n).add_(start)
        for name, network in learner.networks.items():
            out |= {f"{form}/last/{name}/{key}": thinned(value) for key, value in ours_of(network).items() if kept(name, key)}
    np.savez_compressed(ROOT / "tests/cyclegan_steps.npz", **out)


def config_of(form):
    """The config at the recorded sizes."""
    from configs import cyclegan

    config = cyclegan.get_config(FORMS[form])
    with config.unlocked():
        config.steps, config.pool = STEPS, 0
        config.generator.model.update({"width": 2, "blocks": 1})
        config.generator.rate = {"peak": RATE, "warmup": 0, "fall_from": 1.0, "last": RATE}
        config.discriminator.model.width = 2
        config.discriminator.rate = {"peak": RATE, "drop_at": 1.0, "drop": 1.0}
        config.discriminator.warmup = min(config.discriminator.warmup, 1)
        config.view = {"size": SIDE, "noise": False, "flips": False, "degrees": 0.0}
        config.streams.train.update({"size": (1, SIDE, SIDE), "count": (SLICES,), "jitter_px": 0})
    return config


def slices():
    """Whole Hounsfield units and hearts [STEPS, b, y, x]; the first half of b has brighter spots."""
    rng = np.random.default_rng(0)
    hu = rng.normal(60, 90, (STEPS, SLICES, SIDE, SIDE))
    hu[:, : SLICES // 2, 8:12, 14:20] += 400
    heart = np.zeros(hu.shape, np.uint8)
    for i in range(SLICES):
        heart[:, i, 5 + i : 22, 9 : 30 - i] = 1
    return hu.round().astype(np.int16), heart


def halves():
    """Of slices: those with calcium, those without."""
    return slice(0, SLICES // 2), slice(SLICES // 2, SLICES)


def kept(network, key) -> bool:
    """Whether an array counts: a discriminator takes the moments of its batch, and its running statistics are nothing."""
    return network in ("remove", "insert") or key.split("/")[-1] not in ("mean", "var")


def batch_norm_sizes(*networks):
    """{batch normalisation: pixels of a channel where it keeps statistics}, filled as the networks run."""
    from cyclegan_torch import Norm

    sizes = {}

    def note(module, given, _):
        x, keep = given
        sizes.update({module: x.numel() // x.shape[1]} if keep else {})

    for module in (module for network in networks for module in network.modules() if isinstance(module, Norm)):
        module.register_forward_hook(note)
    return sizes


if __name__ == "__main__":
    main()

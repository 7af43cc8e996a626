"""Record what PyTorch makes of CAC-Net's first steps: `python tools/bench/record_cacnet.py` writes tests/cacnet_steps.npz.

CAC-Net and its 3D part alone at growth 2 and width 4, two steps of two crops, in float64: inputs, losses, Dice, and of every parameter
and running statistic after them up to `KEPT` numbers (`thinned`). First parameters are drawn anew by `drawn`, not kept.
"""

import pathlib
import sys
import zlib

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS, SHAPE, KEPT = 2, (2, 4, 32, 32), 24
MODEL = {"growth": 2, "width": 4, "flat": 3, "norm": "group"}
RATE = {"peak": 1e-2, "last": 1e-3}
DECAY = 1e-2
FORMS = ("cacnet", "unet3d")


def main() -> None:
    """Record."""
    sys.path[:0] = [str(ROOT), str(pathlib.Path(__file__).parent)]
    import jax
    import jax.numpy as jnp
    import torch
    from cacnet_torch import Learner, ours_of

    from cacjax.models.cacnet import CACNet

    hu, label = crops()
    out = {"hu": hu, "label": label}
    for form in FORMS:
        shapes = jax.eval_shape(CACNet(form=form, **MODEL).init, jax.random.key(0), jnp.zeros((1, *SHAPE[1:], 1)))
        settings = MODEL | RATE | {"weight_decay": DECAY, "steps": STEPS}
        learner = Learner(drawn(shapes["params"]), form=form, tuned=False, dtype=torch.float64, **settings)
        sizes = batch_norm_sizes(learner.network)
        seen = [learner.step(*learner.place(x, y)) for x, y in zip(hu, label)]
        out[f"{form}/loss"], out[f"{form}/dice"] = (np.array([one.numpy() for one in each]) for each in zip(*seen))
        for module, n in sizes.items():  # ours divides the sum of squares by n, PyTorch's running variance by n - 1
            start = (1 - module.momentum) ** STEPS
            module.running_var.sub_(start).mul_((n - 1) / n).add_(start)
        out |= {f"{form}/last/{name}": thinned(value) for name, value in ours_of(learner.network).items()}
    np.savez_compressed(ROOT / "tests/cacnet_steps.npz", **out)


def crops():
    """Whole Hounsfield units and labels [STEPS, b, z, y, x], artery by artery from left to right; what is above 300 HU is calcium."""
    rng = np.random.default_rng(0)
    hu = rng.normal(60, 150, (STEPS, *SHAPE)).round().astype(np.int16)
    artery = 1 + np.arange(SHAPE[-1]) * 3 // SHAPE[-1]
    return hu, np.where(hu > 300, artery, 0).astype(np.uint8)


def drawn(tree, before=""):
    """A tree of parameters of these shapes, each by its name: scales about 1, shifts about 0, kernels by their numbers of inputs."""
    if isinstance(tree, dict):
        return {name: drawn(part, f"{before}/{name}") for name, part in tree.items()}
    noise = np.random.default_rng(zlib.crc32(before.encode())).uniform(-1, 1, tree.shape)
    if len(tree.shape) > 1:
        return noise * np.sqrt(6 / np.prod(tree.shape[:-1]))
    return 0.2 * noise + ("scale" in before.split("/")[-1])


def thinned(array):
    """At most `KEPT` numbers of an array, evenly from its first to its last."""
    flat = np.asarray(array).ravel()
    return flat[np.linspace(0, flat.size - 1, min(KEPT, flat.size)).astype(int)]


def batch_norm_sizes(network):
    """{batch normalisation: pixels of a channel that it sees}, filled as the network runs."""
    import torch

    sizes = {}
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda module, given, _: sizes.update({module: given[0].numel() // given[0].shape[1]}))
    return sizes


if __name__ == "__main__":
    main()

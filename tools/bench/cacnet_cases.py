"""Cases of CAC-Net: the product's train step, the 2D and the 3D network jointly, against PyTorch from the same weights, no dropout and
nothing computed again. The first losses are compared before it races."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from cacnet_torch import Learner
from race import Case, compiled
from run import cores
from torch.utils.flop_counter import FlopCounterMode
from uda_cases import agree, finish, ready

from cacjax.task import build
from cacjax.training.streams import example_batch, streams_of
from configs import cacnet

WORKS = {"small": "joint step, small", "": "joint step, published widths"}
CROP = (32, 64, 64)  # of the published widths: their own crop takes an hour a step here


def cases(options):
    """Generator of the cases whose work contains the text `options.only`: the size that trains on a CPU; the published widths, one crop of
    `CROP`."""
    yield from (step(options.device, variant, work) for variant, work in WORKS.items() if options.only in work)


def step(device, variant, work) -> Case:
    """One train step."""
    torch.set_num_threads(cores())
    config, given = begun(variant)
    state, batch, _ = given
    program, took = compiled(build(config).train_step, *given, training=True)
    about = {"steps": config.steps, "weight_decay": config.optimiser.weight_decay, "device": device} | dict(config.optimiser.rate)
    about |= {name: config.model[name] for name in ("form", "growth", "width", "flat", "norm")}
    params = jax.device_get(state.nets["network"].params)
    theirs = [Learner(params, tuned=tuned, **about) for tuned in (False, True)]
    placed = [each.place(batch["train"]["hu"], batch["train"]["label"]) for each in theirs]
    agree("first loss", program(*given)[1]["loss"], theirs[0].loss(theirs[0].network, *placed[0])[0], 1e-4)
    with FlopCounterMode(display=False) as counter:
        theirs[0].step(*placed[0])
    works = [finish(lambda one=one, where=where: one.step(*where)) for one, where in zip(theirs, placed)]
    size = " x ".join(map(str, batch["train"]["hu"].shape))
    case = f"{size}, growth {config.model.growth}, width {config.model.width}"
    return Case(work, case, ready(program, *given), *works, program, took, flops=counter.get_total_flops())


def begun(variant):
    """(config, (state at the beginning, batch, key)) of a variant."""
    config = cacnet.get_config(variant)
    with config.unlocked():
        config.model.update({"dropout": 0.0, "remat": False})
        config.cross_entropy.share = 0.0  # the published loss
        if not variant:
            config.streams.train.update({"size": CROP, "count": (1,)})
    task = build(config)
    example = example_batch(streams_of(config.streams, task))
    hu = np.random.default_rng(0).normal(40, 90, example["train"]["hu"].shape).round().astype(np.float32)
    artery = 1 + np.arange(hu.shape[-1]) * 3 // hu.shape[-1]
    batch = {"train": {"hu": jnp.asarray(hu), "label": jnp.asarray(np.where(hu > 300, artery, 0).astype(np.uint8))}}
    return config, (jax.jit(lambda key: task.init(key, example, {}))(jax.random.key(0)), batch, jax.random.key(2))

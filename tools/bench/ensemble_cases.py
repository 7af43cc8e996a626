"""Cases of the five-U-Net ensemble: the product's train step of five members against five networks of PyTorch, and against one member
of ours five times, from the same weights. The first losses are compared before it races."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from ensemble_torch import Member
from race import Case, compiled
from run import cores
from uda_cases import agree, finish, ready

from cacjax.task import build
from cacjax.tasks.ensemble import normalise
from cacjax.training.streams import example_batch, streams_of
from configs import ensemble

LEVELS, PUBLISHED_GFLOP = 4, 47.9  # of one forward pass of 48 x 80 x 80 cells at width 16
WORKS = {"small": "five members, small", "": "one member, published size"}


def cases(options):
    """Generator of the cases whose work contains the text `options.only`: five members at size small; one at the published size, on a GPU
    five."""
    published = "five members, published size" if options.device != "cpu" else WORKS[""]
    for variant, work, members in (("small", WORKS["small"], 5), ("", published, 1 if published == WORKS[""] else 5)):
        if options.only in work:
            yield step(options.device, variant, work, members)


def step(device, variant, work, members) -> Case:
    """One train step of so many members."""
    torch.set_num_threads(cores())
    task, state, batch = begun(variant, members)
    program, took = compiled(task.train_step, state, batch, jax.random.key(2), training=True)
    parts = lambda i: jax.tree.map(lambda a: np.asarray(a[i]), state.nets["members"].params)  # noqa: E731
    rate = ensemble.get_config(variant).optimiser.peak
    theirs = [[Member(parts(i), levels=LEVELS, rate=rate, tuned=tuned, device=device) for i in range(members)] for tuned in (False, True)]
    hu, real = (np.asarray(batch["train"][name]) for name in ("hu", "label"))
    placed = [[(m.place(np.array(normalise(x))[..., 0]), m.place(y)) for m, x, y in zip(each, hu, real)] for each in theirs]
    _, metrics = program(state, batch, jax.random.key(2))
    for i, (member, given) in enumerate(zip(theirs[0], placed[0]), 1):
        agree(f"first loss of member {i}", metrics[f"loss/member_{i}"], member.loss(member.network, *given), 1e-4)
    works = [finish(lambda e=each, p=where: [m.step(*given) for m, given in zip(e, p)]) for each, where in zip(theirs, placed)]
    shape = " x ".join(map(str, hu.shape[2:]))
    width = ensemble.get_config(variant).model.width
    flops = 3e9 * PUBLISHED_GFLOP * members * hu.shape[1] * np.prod(hu.shape[2:]) / (48 * 80 * 80) * (width / 16) ** 2
    case, ours = f"{members} x {hu.shape[1]} volumes {shape}, width {width}", ready(program, state, batch, jax.random.key(2))
    return Case(work, case, ours, *works, program, took, flops=flops, lone=lone(variant, members))


def begun(variant, members):
    """(task, state at the beginning, batch) of a variant with so many members."""
    config = ensemble.get_config(variant)
    with config.unlocked():
        config.streams.train.count = (members, *config.streams.train.count[1:])
        config.scoring.votes = 1
        config.cross_entropy.share = 0.0  # Dice alone, as published
    task = build(config)
    example = example_batch(streams_of(config.streams, task))
    rng = np.random.default_rng(0)
    hu = rng.normal(40, 90, example["train"]["hu"].shape).round().astype(np.float32)
    batch = {"train": {"hu": jnp.asarray(hu), "label": jnp.asarray((hu > 300).astype(np.uint8))}}
    return task, jax.jit(lambda key: task.init(key, example, {}))(jax.random.key(0)), batch


def lone(variant, members):
    """A step of one member as often as there are members; None for one."""
    if members == 1:
        return None
    task, state, batch = begun(variant, 1)
    program, _ = compiled(task.train_step, state, batch, jax.random.key(2), training=True)
    return lambda: jax.block_until_ready([program(state, batch, jax.random.key(2)) for _ in range(members)])

"""Five 3D U-Nets that see isotropic cells of 2.5 or 3 mm and vote; the scan itself gives the score (Gogin 2021). [z, y, x].

The members are one stacked network: each has its own seed, its own shuffled scans, its own validation and best epoch.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cacjax.classes import CLASSES, CORONARY
from cacjax.data.sampling import Cut
from cacjax.files.scan import ScanError
from cacjax.inference.steps import Laps
from cacjax.kernels import cells, grids, losses, spatial
from cacjax.models.unet import UNet
from cacjax.optimise import adam, descend, each_member, keep_best, learning_rate, start
from cacjax.task import Detector, Finding, Plan, Task, answering, beginning, is_traced

SEEN_HU = (-300.0, 800.0)  # become 0 and 1
CAC = CLASSES.index("CAC")
MOST_CELLS = 2**23  # a scan with more is no heart, and would take more memory than there is
SHARE_AT_START = 0.01  # of calcium, as the last bias says it: more would be unlearned first


class Arrays(NamedTuple):
    """What is known of a scan beforehand: `cells.Axes`; the rows of the `spatial.Ball` that dilates the heart, or None."""

    axes: Any
    ball: Any


def make(config) -> Task:
    """Build the task; every key that it reads is in configs/ensemble.py. Its `predict` gives probabilities [members, z, y, x] of cells."""
    model, members, scoring = network(config), config.streams.train.count[0], config.scoring
    if not 0 <= scoring.member <= members or not 1 <= scoring.votes <= members:
        raise ValueError(f"scoring: expected member from 0 (all) and votes from 1 to {members}, got {scoring.member}, {scoring.votes}")
    optimiser = adam(learning_rate(steps=config.steps, **config.optimiser))

    def init(key, batch, stages):
        del stages
        one = jnp.zeros((1, *batch["train"]["hu"].shape[2:]))
        begin = jax.jit(lambda key: model.init(key, normalise(one)))

        def of_member(key):
            variables = begin(key)
            return start(optimiser, variables["params"], variables["batch_stats"], validated=True)

        return beginning({"members": jax.vmap(of_member)(jax.random.split(key, members))})

    def train_step(state, batch, key):
        del key
        learn = lambda net, own: descend(net, functools.partial(objective, own), optimiser)  # noqa: E731
        nets, metrics = each_member(learn, state.nets["members"], batch["train"])
        return state._replace(step=state.step + 1, nets={"members": nets}), by_member(metrics)

    def objective(batch, params, stats):
        variables = {"params": params, "batch_stats": stats}
        logits, changed = model.apply(variables, normalise(batch["hu"]), True, mutable=["batch_stats"])
        dice = overlap(logits, batch["label"]).mean()
        loss = 1 - dice
        if config.cross_entropy.share:
            real, either = is_coronary(batch["label"]).astype(jnp.int32), jnp.pad(logits, [(0, 0)] * 4 + [(1, 0)])
            weights = losses.candidate_weights(real, batch["hu"], **config.cross_entropy.weights)
            loss += config.cross_entropy.share * losses.cross_entropy(either, real, weights=weights)
        return loss, ({"loss": loss, "dice": dice}, changed["batch_stats"])

    def validate(state, batch):
        def of_member(net):
            of_scan = lambda hu, label: overlap(answer(net, hu[None])[..., None], label[None])[0]  # noqa: E731
            dice = jax.lax.map(lambda scan: of_scan(*scan), (batch["held_out"]["hu"], batch["held_out"]["label"])).mean()
            return keep_best(net, dice), {"validation_dice": dice}

        nets, metrics = each_member(of_member, state.nets["members"])
        return state._replace(nets={"members": nets}), by_member(metrics)

    def answer(net, hu):
        return model.apply({"params": net.params, "batch_stats": net.stats}, normalise(hu))[..., 0]

    @jax.jit
    def predict(state, hu):
        nets = answering(state).nets["members"]
        if scoring.member:
            nets = jax.tree.map(lambda a: a[scoring.member - 1 : scoring.member], nets)
        return each_member(lambda net: jax.nn.sigmoid(answer(net, hu[None])[0]), nets)

    return Task(
        init,
        train_step,
        lambda stream: Cut(tuple(stream.size)),
        validate=validate,
        predict=predict,
        detector=detector(config, predict),
        spread={"members": "model"},
    )


def network(config) -> UNet:
    """The network of a member."""
    return UNet(**config.model, first_bias=float(np.log(SHARE_AT_START / (1 - SHARE_AT_START))))


def normalise(hu):
    """Network input [b, z, y, x, 1] of HU [b, z, y, x]."""
    low, high = SEEN_HU
    return ((jnp.clip(jnp.asarray(hu, jnp.float32), low, high) - low) / (high - low))[..., None]


def overlap(logits, label):
    """Dice of coronary calcium in each volume, [b]; logits [b, z, y, x, 1]."""
    return losses.squared_dice(jax.nn.sigmoid(logits[..., 0]), is_coronary(label))


def is_coronary(label):
    """Where a label is coronary calcium."""
    return jnp.isin(label, jnp.array(CORONARY))


def by_member(metrics):
    """{"loss": [members]} as {"loss/member_1": number, ..}."""
    return {f"{name}/member_{i}": value for name, values in metrics.items() for i, value in enumerate(values, 1)}


def detector(config, predict) -> Detector:
    """A `Detector` of coronary calcium as a whole: cells that most members take for calcium, looked up, and what reaches the threshold.

    config.scoring: votes, how many of the members' probabilities of .5 and more; member: of one alone, 0 for all; within_heart: only in
    a heart that is given, and heart_dilation_mm around it. The cells are those of config.data.grid, as in training. `plan` raises
    ScanError `too_large`.
    """
    scoring, grid = config.scoring, config.data.grid
    votes = 1 if scoring.member else scoring.votes

    def plan(shape, spacing_mm, affine, heart, threshold_hu, aorta_hu) -> Plan:
        del affine, threshold_hu, aorta_hu
        found = cells.plan(shape, spacing_mm, grid.sides_mm, padded=grids.padded(shape), lengthen=True)
        if (number := int(np.prod(found.shape))) > MOST_CELLS:
            extent = " x ".join(f"{n * s:.0f}" for n, s in zip(shape, spacing_mm))
            raise ScanError("too_large", f"expected a scan of the chest, at most {MOST_CELLS} cells, got {extent} mm, {number} cells")
        ball, reach = None, None
        if heart is not None and scoring.within_heart:
            ball, reach = spatial.ball(scoring.heart_dilation_mm, spacing_mm, grids.padded(shape), step=8)
        note = f"cells of {' x '.join(f'{mm:g}' for mm in found.spacing_mm)} mm"
        return Plan(Arrays(found.axes, ball), (reach,), long=True, notes=(note,))

    def find(state, case, how) -> Finding:
        laps = Laps(silent=is_traced(state, case))
        low = laps.lap("cells", cells.coarse(case.hu, case.plan.axes, restore=grid.restore))
        probability = laps.lap("networks", predict(state, low))
        finding = laps.lap("vote", _vote(case, probability, votes, how))
        return finding._replace(hu=case.hu, timings_s=laps.seconds)

    return Detector(plan, find, classes=(CAC,))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _vote(case, probability, votes, how):
    """The Finding of probabilities [members, z, y, x] of cells; `hu` is left to the caller."""
    for_it = (probability >= 0.5).sum(0)
    calcium = cells.look_up(for_it >= votes, case.plan.axes) & (case.hu >= case.threshold_hu)
    if how[0] is not None:
        calcium &= spatial.spread(case.heart, case.plan.ball, reach=how[0])
    counts = {"cells_with_calcium": (for_it >= votes).sum(), "cells_in_dispute": ((for_it > 0) & (for_it < len(probability))).sum()}
    shown = cells.look_up(probability.mean(0), case.plan.axes)
    return Finding(jnp.where(calcium, CAC, 0).astype(jnp.uint8), None, probability=shown, counts=counts)

"""CAC-Net: a 2D U-DenseNet reads each slice, a 3D U-Net all of them, both learn jointly, artery by artery (Zhang 2018). [z, y, x]."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cacjax.classes import CALCIUM_HU
from cacjax.data.reference import Settled
from cacjax.data.sampling import Cut
from cacjax.files.scan import ScanError
from cacjax.inference import windows
from cacjax.kernels import grids, losses, reduction
from cacjax.models.cacnet import CLASSES, CACNet, sides
from cacjax.models.unet import enlarged
from cacjax.optimise import adam, cosine, descend, start
from cacjax.task import Detector, Finding, Plan, Task, beginning, is_traced

SEEN_HU = (-1024.0, 3071.0)  # become 0 and 1
ARTERIES = {1: "LAD", 2: "LCX", 3: "RCA"}
LEAST_SLICES = 2
JUST_ABOVE = 1 + 3e-6  # times a volume that a lesion must exceed: float32 keeps lesions of exactly a least volume


class Arrays(NamedTuple):
    """What is known of a scan beforehand: first voxels of the windows, int32 [most, 3], of which the first `count` are in use."""

    corners: Any
    count: Any


def make(config) -> Task:
    """Build the task; every key that it reads is in configs/cacnet.py. Its `predict` gives probabilities [1, z, y, x, 4] of a window."""
    model = CACNet(**config.model)
    _check(config)
    optimiser = adam(cosine(steps=config.steps, **config.optimiser.rate), weight_decay=config.optimiser.weight_decay)

    def init(key, batch, stages):
        del stages
        variables = jax.jit(model.init)(key, normalise(jnp.zeros((1, *batch["train"]["hu"].shape[1:]))))
        return beginning({"network": start(optimiser, variables["params"], variables.get("batch_stats", {}))})

    def train_step(state, batch, key):
        net, metrics = descend(state.nets["network"], functools.partial(objective, batch["train"], key), optimiser)
        return state._replace(step=state.step + 1, nets={"network": net}), metrics

    def objective(batch, key, params, stats):
        variables, seen = {"params": params, "batch_stats": stats}, normalise(batch["hu"])
        heads, changed = model.apply(variables, seen, True, mutable=["batch_stats"], rngs={"dropout": key})
        overlaps = [overlap(to_size(logits, seen.shape), batch["label"]) for logits in heads]
        loss = sum(weight * (1 - dice).sum(-1).mean() for weight, dice in zip(supervision(len(heads)), overlaps))
        if config.cross_entropy.share:
            weights = losses.candidate_weights(batch["label"], batch["hu"], **config.cross_entropy.weights)
            loss += config.cross_entropy.share * losses.cross_entropy(heads[0], batch["label"], weights=weights)
        named = {f"dice_{name}": dice for name, dice in zip((*ARTERIES.values(), "CAC"), overlaps[0].mean(0))}
        return loss, ({"loss": loss} | named, changed.get("batch_stats", {}))

    def predict(state, hu):
        net = state.nets["network"]
        return jax.nn.softmax(model.apply({"params": net.params, "batch_stats": net.stats}, normalise(hu))[0])

    def prepare(records, stages, workdir):
        """Labels by the reference standard of the paper."""
        del stages, workdir
        return {split: Settled(source, config.least_mm3) for split, source in records.items()}

    cut = lambda stream: Cut(tuple(stream.size))  # noqa: E731
    return Task(init, train_step, cut, predict=predict, detector=detector(config, predict), prepare=prepare)


def _check(config):
    least = sides(config.model.flat)
    for name, size in (("streams.train.size", config.streams.train.size), ("scoring.window", config.scoring.window)):
        if len(size) != 3 or any(n < 1 or n % m for n, m in zip(size, least)):
            raise ValueError(f"{name} must be multiples of {least} (z, y, x) with model.flat {config.model.flat}, got {tuple(size)}")
    if not all(0 <= o < w for o, w in zip(config.scoring.overlap, config.scoring.window, strict=True)):
        expected = f"0 to less than the window {tuple(config.scoring.window)}"
        raise ValueError(f"scoring.overlap must be {expected}, got {tuple(config.scoring.overlap)}")


def normalise(hu):
    """Network input [b, z, y, x, 1] of HU [b, z, y, x]: the range of 12 bits to 0..1, so that 130 HU are the same in every scan."""
    low, high = SEEN_HU
    return ((jnp.clip(jnp.asarray(hu, jnp.float32), low, high) - low) / (high - low))[..., None]


def to_size(logits, shape):
    """Logits of a coarser level at the size of the finest, by linear interpolation."""
    return enlarged(logits, [n // m for n, m in zip(shape[1:-1], logits.shape[1:-1])])


def supervision(heads: int):
    """Weights of so many heads, the finest first: halved from one to the next, sum 1 (equation 4; the printed ones are not given)."""
    weights = 2.0 ** -np.arange(heads)
    return weights / weights.sum()


def overlap(logits, label):
    """Dice [b, 4] of LAD, LCX, RCA and all of them in each volume (equation 3); logits [b, z, y, x, 4]."""
    probability = jax.nn.softmax(logits)
    of_artery = [losses.squared_dice(probability[..., c], label == c) for c in ARTERIES]
    return jnp.stack([*of_artery, losses.squared_dice(1 - probability[..., 0], label > 0)], -1)


def detector(config, predict) -> Detector:
    """A `Detector` of LAD, LCX and RCA: the most probable class by windows, voxels above the threshold, each 6-connected component by the
    artery of most of it, small ones dropped.

    config.scoring: window and overlap, voxels (z, y, x); least_share: of all components above the threshold those of which at least so
    much is detected are lesions, whole (0: what is detected, as it is); config.least_mm3: a lesion is larger. `plan` raises ScanError
    `too_few_slices`.
    """
    size, overlap_px = tuple(config.scoring.window), tuple(config.scoring.overlap)

    def plan(shape, spacing_mm, affine, heart, threshold_hu, aorta_hu) -> Plan:
        del spacing_mm, affine, heart, threshold_hu, aorta_hu
        if shape[0] < LEAST_SLICES:
            raise ScanError("too_few_slices", f"expected at least {LEAST_SLICES} slices, got {shape[0]}")
        padded = grids.padded(shape)
        window = tuple(min(n, m) for n, m in zip(size, padded))
        corners = windows.corners(shape, window, overlap_px)
        most = len(windows.corners(padded, window, overlap_px))
        kept = np.zeros((max(most, len(corners)), 3), np.int32)
        kept[: len(corners)] = corners
        return Plan(Arrays(kept, np.int32(len(corners))), window, long=True, notes=(f"{len(corners)} windows",))

    def find(state, case, how) -> Finding:
        traced = is_traced(state, case)
        sums = windows.add_up(predict, state, case.hu, case.shape, *case.plan, window=how, classes=CLASSES, traced=traced)
        return conclude(case, sums)._replace(hu=case.hu)

    def conclude(case, sums):
        calcium = case.hu > jnp.maximum(case.threshold_hu, CALCIUM_HU)
        detected = jnp.where(calcium, sums.argmax(-1), 0).astype(jnp.uint8)
        share = config.scoring.least_share
        inside = jnp.where(calcium if share else detected > 0, case.hu, grids.NO_HU)  # what lesions are components of
        limits = {"min_mm3": config.least_mm3 * JUST_ABOVE, "max_mm3": jnp.inf, "least_share": share, "steps": ("grow", "size")}
        label, removed = reduction.grow(detected, inside, case.threshold_hu, None, case.spacing_mm, **limits)
        coronary = jnp.where(calcium, 1 - sums[..., 0] / jnp.maximum(sums.sum(-1), 1e-6), 0)
        return Finding(label, None, probability=coronary, before=detected, counts={"too_small": removed.too_small})

    return Detector(plan, find, classes=tuple(ARTERIES))

"""The second stage of Lessmann 2018: trained on what the first stage detects, it keeps calcium and takes other voxels away.

A state holds both stages, so that a run detects by itself. The first one, a run of lessmann.py or of uda.py, does not change.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cacjax.data import detected, sampling
from cacjax.inference import candidates, patches, planes
from cacjax.kernels import losses
from cacjax.models.undilated import NORMS, Undilated
from cacjax.optimise import adam, descend, learning_rate, start
from cacjax.task import Task, beginning, build
from cacjax.tasks import lessmann


def make(config) -> Task:
    """Build the task; every key that it reads is in configs/second.py."""
    _check(config)
    first = build(config.stages.first)
    model, field = network(config), field_of(config)
    optimiser = adam(learning_rate(steps=config.steps, **config.optimiser.rate), weight_decay=config.optimiser.weight_decay)

    def init(key, batch, stages):
        variables = jax.jit(model.init)(key, patches.look(jnp.zeros(batch["train"]["hu"].shape), field))
        return beginning({"second": start(optimiser, variables["params"], variables["batch_stats"])}, stages)

    def train_step(state, batch, key):
        net, metrics = descend(state.nets["second"], functools.partial(objective, batch["train"], key), optimiser)
        return state._replace(step=state.step + 1, nets={"second": net}), metrics

    def objective(batch, key, params, stats):
        variables, calcium = {"params": params, "batch_stats": stats}, (batch["label"][:, 0, 0, 0] > 0).astype(jnp.int32)
        seen = patches.look(batch["hu"], field)
        logits, changed = model.apply(variables, seen, True, mutable=["batch_stats"], rngs={"dropout": key})
        loss = losses.cross_entropy(logits, calcium)
        return loss, ({"loss": loss, "accuracy": (logits.argmax(-1) == calcium).mean()}, changed["batch_stats"])

    def predict(state, hu, wanted=None, **how):
        """Classes of the first stage where the second sees calcium. P(CAC) is the product of both stages', with one half where the
        second was not asked: what the first calls background keeps its order, and stands behind what both are sure of."""
        label, probability = first.predict(state.stages["first"], hu, wanted, **how)
        net = state.nets["second"]
        calcium = patches.probability(model, {"params": net.params, "batch_stats": net.stats}, hu, label > 0, field)
        return jnp.where(calcium > patches.UNDECIDED, label, 0).astype(label.dtype), probability * calcium

    def prepare(records, stages, workdir):
        """The records of the streams that draw from what the first stage detects, with what it detects, kept in WORKDIR/detected."""
        asking = {s.split: s.view for s in config.streams.values() if sampling.DETECTED in dict(s.strata)}
        label = lambda hu, wanted: first.predict(stages["first"], hu, wanted)[0]  # noqa: E731
        return records | {split: detected.detect(records[split], label, workdir / "detected", seen=seen) for split, seen in asking.items()}

    def cut(stream):
        n, m = stream.patch, field.margin
        return sampling.Cut((1, n, n), (0, m, m), sampling.PLANES)

    halo = np.maximum(planes.halo(lessmann.network(config.stages.first), config.stages.first.model.slab), field.margin)
    return Task(init, train_step, cut, predict=predict, detector=candidates.detector(config, predict, halo), prepare=prepare)


def field_of(config) -> patches.Field:
    """What a patch covers."""
    return patches.Field(config.patch.pixels, config.patch.extent_mm, tuple(config.data.grid.spacing_mm))


def network(config) -> Undilated:
    """The network that a config describes."""
    return Undilated(**config.model.to_dict() | {"widths": tuple(config.model.widths)})


def _check(config):
    first = config.stages.first
    if config.model.norm not in NORMS:
        raise ValueError(f"model.norm must be one of {', '.join(NORMS)}, got {config.model.norm!r}")
    if first.task not in ("lessmann", "uda"):
        raise ValueError(f"the first stage must be a run of lessmann.py or uda.py, got one of {first.task}.py")
    for key, ours, theirs in (
        ("data.grid", config.data.grid.to_dict(), first.data.grid.to_dict()),
        ("scoring.view", config.scoring.view, first.scoring.view),
    ):
        if ours != theirs:
            raise ValueError(f"{key} must be that of the first stage, {theirs!r}, got {ours!r}")

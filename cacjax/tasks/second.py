"""The second stage of Lessmann 2018: trained on what the first stage detects, it keeps calcium and takes other voxels away.

A state holds both stages, so that a run detects by itself. The first one, a run of lessmann.py or of uda.py, does not change.
"""

import importlib

import jax
import jax.numpy as jnp
import optax

from cacjax.data import sampling
from cacjax.inference import patches
from cacjax.kernels import losses
from cacjax.models.undilated import NORMS, Undilated
from cacjax.task import Net, State, Task, adam, learning_rate

FIRST = "first_"  # before the names of the first stage's networks


def make(config) -> Task:
    """Build the task; every key that it reads is in configs/second.py."""
    _check(config)
    first = importlib.import_module(f"cacjax.tasks.{config.source.task}").make(config.source)
    model, field = network(config), field_of(config)
    optimiser = adam(learning_rate(steps=config.steps, **config.optimiser.rate), weight_decay=config.optimiser.weight_decay)

    def init(key, batch, source):
        variables = jax.jit(model.init)(key, patches.look(jnp.zeros(batch["train"]["hu"].shape), field))
        second = Net(variables["params"], variables["batch_stats"], optimiser.init(variables["params"]))
        nets = {FIRST + name: net._replace(opt=()) for name, net in source.nets.items()}
        return State(jnp.zeros((), jnp.int32), nets | {"second": second})

    def train_step(state, batch, key):
        net = state.nets["second"]
        grads, (stats, metrics) = jax.grad(objective, has_aux=True)(net.params, net.stats, batch["train"], key)
        updates, opt = optimiser.update(grads, net.opt, net.params)
        net = Net(optax.apply_updates(net.params, updates), stats, opt)
        return State(state.step + 1, state.nets | {"second": net}), metrics

    def objective(params, stats, batch, key):
        variables, calcium = {"params": params, "batch_stats": stats}, (batch["label"][:, 0, 0, 0] > 0).astype(jnp.int32)
        seen = patches.look(batch["hu"], field)
        logits, changed = model.apply(variables, seen, True, mutable=["batch_stats"], rngs={"dropout": key})
        loss = losses.cross_entropy(logits, calcium)
        return loss, (changed["batch_stats"], {"loss": loss, "accuracy": (logits.argmax(-1) == calcium).mean()})

    def predict_scan(state, hu, wanted=None):
        """Classes of the first stage where the second sees calcium. P(CAC) is the product of both stages', with one half where the
        second was not asked: what the first calls background keeps its order, and stands behind what both are sure of."""
        before = {name.removeprefix(FIRST): net for name, net in state.nets.items() if name.startswith(FIRST)}
        found, net = first.predict(State(state.step, before), hu, wanted), state.nets["second"]
        variables = {"params": net.params, "batch_stats": net.stats}
        calcium = patches.probability(model, variables, found.hu, found.label > 0, field)
        kept = jnp.where(calcium > patches.UNDECIDED, found.label, 0).astype(found.label.dtype)
        return found._replace(label=kept, p_cac=found.p_cac * calcium)

    return Task(init, train_step, predict_scan, crops)


def crops(config) -> dict:
    """How samples are cut: the voxels that the patches span."""
    return {"planes": sampling.PLANES, "margin": field_of(config).margin, "slab": 1}


def field_of(config) -> patches.Field:
    """What a patch covers."""
    return patches.Field(config.patch.pixels, config.patch.extent_mm, tuple(config.spacing_mm))


def network(config) -> Undilated:
    """The network that a config describes."""
    return Undilated(**config.model.to_dict() | {"widths": tuple(config.model.widths)})


def _check(config):
    if config.model.norm not in NORMS:
        raise ValueError(f"model.norm must be one of {', '.join(NORMS)}, got {config.model.norm!r}")
    if config.source.task not in ("lessmann", "uda"):
        raise ValueError(f"the first stage must be a run of lessmann.py or uda.py, got one of {config.source.task}.py")
    for key in ("spacing_mm", "view"):
        if config[key] != config.source[key]:
            raise ValueError(f"{key} must be that of the first stage, {config.source[key]!r}, got {config[key]!r}")

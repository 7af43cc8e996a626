"""Source training: the first-stage dilated CNN of Lessmann 2018 on labelled non-contrast CT, with deep supervision."""

import functools
import json

import jax
import jax.numpy as jnp

from cacjax.data.sampling import PLANES, Cut
from cacjax.inference import candidates, planes
from cacjax.inference.planes import normalise
from cacjax.kernels import losses
from cacjax.models.dilated import Dilated, centre, margin
from cacjax.optimise import adam, descend, learning_rate, start
from cacjax.task import Task, beginning


def make(config) -> Task:
    """Build the task; every key that it reads is in configs/lessmann.py."""
    model = network(config)
    optimiser = adam(learning_rate(steps=config.steps, **config.optimiser.rate), weight_decay=config.optimiser.weight_decay)

    def init(key, batch, stages):
        del stages
        params = jax.jit(model.init)(key, normalise(jnp.zeros(batch["source"]["hu"].shape)))
        return beginning({"detector": start(optimiser, params)})

    def train_step(state, batch, key):
        def loss(params, stats):
            total, metrics = objective(params, batch["source"], key)
            return total, (metrics, stats)

        net, metrics = descend(state.nets["detector"], loss, optimiser)
        return state._replace(step=state.step + 1, nets={"detector": net}), metrics

    def objective(params, batch, key):
        features = model.apply(params, normalise(batch["hu"]), method="features_in_parts")
        main = classification(model, params, features, batch, config.supervision, key)
        auxiliary = model.apply(params, features, True, method="auxiliary_logits", rngs={"dropout": key})
        deep = losses.cross_entropy(auxiliary, batch["label"], double_softmax=config.supervision.double_softmax_auxiliary)
        total = main + config.supervision.auxiliary_weight * model.planes * deep
        return total, {"loss": total, "loss_main": main, "loss_auxiliary": deep}

    return Task(init, train_step, cut_of(config), **answers(config, lambda state: state.nets["detector"].params))


def answers(config, params_of) -> dict:
    """`predict` and `detector` of a Task with a plane network. params_of(state): its parameters, all that a program takes of a State, so
    that runs of one network share their programs, however they were trained."""
    look, halo = functools.partial(planes.predict, network(config), **reading(config)), planes.halo(network(config), config.model.slab)

    def predict(state, hu, wanted=None, **how):
        return look(params_of(state), hu, wanted, **how)

    settings = {"model": config.model.to_dict(), "scoring": config.scoring.to_dict(), "grid": config.data.grid.to_dict()}
    decided_by = json.dumps(settings, sort_keys=True, default=repr)
    return {"predict": predict, "detector": candidates.detector(config, look, halo)._replace(weights=params_of, decided_by=decided_by)}


def cut_of(config):
    """`Task.cut` of a plane network: its orientations and slab, and as much around a patch as its dilations reach."""
    m = margin(config.model.dilations)
    return lambda stream: Cut((config.model.slab, stream.patch, stream.patch), (0, m, m), PLANES[: config.model.planes])


def network(config) -> Dilated:
    """The network that a config describes."""
    options = {k: v for k, v in config.model.items() if k not in ("slab", "stored")}
    return Dilated(**options | {"dilations": tuple(config.model.dilations)})


def reading(config) -> dict:
    """How that network reads a scan: options of `planes.predict`."""
    return {"slab": config.model.slab, "stored": config.model.stored, "ancestor": config.scoring.ancestor}


def classification(model, params, features, batch, supervision, key=None):
    """Cross-entropy of the main head: at the centre voxel as published, or over the whole axial map (one orientation only).

    `batch`: hu [b, planes, h, w, slab] and label [b, planes, n, n]; without a key dropout stays off.
    """
    train = key is not None
    rngs = {"dropout": jax.random.fold_in(key, 1)} if train else None
    if supervision.where == "centre":
        logits = model.apply(params, centre(features), train, method="classify", rngs=rngs)
        labels = centre(batch["label"][:, 0][..., None])[..., 0]
        return losses.cross_entropy(logits, labels, double_softmax=supervision.double_softmax_main)
    logits = model.apply(params, features, train, method="classify", rngs=rngs)
    n, slab = features.shape[1], batch["hu"].shape[-1]
    m = (batch["hu"].shape[2] - n) // 2
    hu = batch["hu"][:, 0, m : m + n, m : m + n, slab // 2]
    weights = losses.candidate_weights(batch["label"][:, 0], hu, **supervision.weights)
    return losses.cross_entropy(logits, batch["label"][:, 0], weights=weights, double_softmax=supervision.double_softmax_main)

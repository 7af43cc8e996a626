"""Source training: the first-stage dilated CNN of Lessmann 2018 on labelled non-contrast CT, with deep supervision."""

import jax
import jax.numpy as jnp

from cacjax.inference.planes import normalise, predict
from cacjax.kernels import losses
from cacjax.models.dilated import Dilated, centre
from cacjax.task import State, Task, adam, learning_rate, start, update


def make(config) -> Task:
    """Build the task; every key that it reads is in configs/lessmann.py."""
    model = network(config)
    rate = learning_rate(steps=config.steps, **config.optimiser.rate)
    optimiser = adam(rate, weight_decay=config.optimiser.weight_decay)

    def init(key, batch, source=None):
        sample = normalise(jnp.zeros(batch["source"]["hu"].shape))
        params = jax.jit(model.init)(key, sample)
        return State(jnp.zeros((), jnp.int32), {"detector": start(params, optimiser)})

    def train_step(state, batch, key):
        net = state.nets["detector"]
        grads, metrics = jax.grad(objective, has_aux=True)(net.params, batch["source"], key)
        return State(state.step + 1, {"detector": update(net, grads, optimiser)}), metrics

    def objective(params, batch, key):
        features = model.apply(params, normalise(batch["hu"]), method="features_in_parts")
        main = classification(model, params, features, batch, config.supervision, key)
        auxiliary = model.apply(params, features, True, method="auxiliary_logits", rngs={"dropout": key})
        deep = losses.cross_entropy(auxiliary, batch["label"], double_softmax=config.supervision.double_softmax_auxiliary)
        total = main + config.supervision.auxiliary_weight * model.planes * deep
        return total, {"loss": total, "loss_main": main, "loss_auxiliary": deep}

    def predict_scan(state, hu, box=None):
        return predict(model, state.nets["detector"].params, hu, box, **reading(config))

    return Task(init, train_step, predict_scan)


def network(config) -> Dilated:
    """The network that a config describes."""
    options = {k: v for k, v in config.model.items() if k not in ("slab", "stored")}
    return Dilated(**options | {"dilations": tuple(config.model.dilations)})


def reading(config) -> dict:
    """How that network reads a scan: options of `planes.predict`. (Runs from before `stored` was a setting have none.)"""
    return {"slab": config.model.slab, "stored": config.model.get("stored", "float32")}


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

"""Heart segmentation (Bruns 2022): chambers and myocardium, with the ascending aorta as one more class where it is asked for.

Labels are those of `cacjax.scoring.hearts.STRUCTURES`; what the network has no class for counts as background.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from cacjax.inference import windows
from cacjax.kernels import losses
from cacjax.models.resnet import EncoderDecoder
from cacjax.task import Net, State, Task, adam


def make(config) -> Task:
    """Build the task; every key that it reads is in configs/heart.py. Its `predict` gives probabilities [classes, z, y, x]."""
    model = network(config)
    rate = optax.exponential_decay(config.optimiser.rate, config.optimiser.drop_every, config.optimiser.drop, staircase=True)
    optimiser = adam(rate)

    def init(key, batch, source=None):
        variables = jax.jit(model.init)(key, windows.normalise(jnp.zeros(batch["train"]["hu"].shape)))
        params = variables["params"]
        return State(jnp.zeros((), jnp.int32), {"heart": Net(params, variables["batch_stats"], optimiser.init(params))})

    def train_step(state, batch, key):
        net = state.nets["heart"]
        grads, (stats, metrics) = jax.grad(objective, has_aux=True)(net.params, net.stats, batch["train"])
        updates, opt = optimiser.update(grads, net.opt, net.params)
        net = Net(optax.apply_updates(net.params, updates), stats, opt)
        return State(state.step + 1, {"heart": net}), metrics

    def objective(params, stats, batch):
        variables = {"params": params, "batch_stats": stats}
        logits, changed = model.apply(variables, windows.normalise(batch["hu"]), True, mutable=["batch_stats"])
        labels = jnp.where(batch["label"] < config.model.classes, batch["label"], 0)
        dice = losses.soft_dice(jax.nn.softmax(logits), labels)
        total = (1 - dice).sum()
        return total, (changed["batch_stats"], {"loss": total, "dice": dice[1:].mean()})

    def predict(state, hu):
        net = state.nets["heart"]
        answer = functools.partial(windows.probabilities, model, {"params": net.params, "batch_stats": net.stats})
        return windows.slide(answer, hu, **config.window)

    return Task(init, train_step, predict, cubes)


def cubes(config) -> dict:
    """How samples are cut: no planes are cubes."""
    return {"planes": (), "margin": 0, "slab": 1}


def network(config) -> EncoderDecoder:
    """The network that a config describes."""
    return EncoderDecoder(config.model.width, config.model.blocks, config.model.classes, config.model.ends)

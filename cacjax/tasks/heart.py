"""Heart segmentation (Bruns 2022): chambers and myocardium, with the ascending aorta as one more class where it is asked for.

Labels are those of `cacjax.classes.STRUCTURES`; what the network has no class for counts as background.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from cacjax.classes import AORTA
from cacjax.data.sampling import Cut
from cacjax.inference import structures, windows
from cacjax.kernels import losses
from cacjax.models.resnet import EncoderDecoder
from cacjax.optimise import adam, descend, start
from cacjax.task import Task, beginning


def make(config) -> Task:
    """Build the task; every key that it reads is in configs/heart.py. Its `predict` gives probabilities [classes, z, y, x]."""
    model = network(config)
    optimiser = adam(optax.exponential_decay(config.optimiser.rate, config.optimiser.drop_every, config.optimiser.drop, staircase=True))

    def init(key, batch, stages):
        del stages
        variables = jax.jit(model.init)(key, windows.normalise(jnp.zeros(batch["train"]["hu"].shape)))
        return beginning({"heart": start(optimiser, variables["params"], variables["batch_stats"])})

    def train_step(state, batch, key):
        net, metrics = descend(state.nets["heart"], functools.partial(objective, batch["train"]), optimiser)
        return state._replace(step=state.step + 1, nets={"heart": net}), metrics

    def objective(batch, params, stats):
        variables = {"params": params, "batch_stats": stats}
        logits, changed = model.apply(variables, windows.normalise(batch["hu"]), True, mutable=["batch_stats"])
        labels = classes(batch["label"], config.model.classes)
        dice = losses.soft_dice(jax.nn.softmax(logits), labels)
        total = (1 - dice).sum() + config.cross_entropy_weight * losses.cross_entropy(logits, labels)
        return total, ({"loss": total, "dice": dice[1:].mean()}, changed["batch_stats"])

    def predict(state, hu):
        return windows.slide(functools.partial(windows_of(config), state), hu, **config.window)

    return Task(init, train_step, lambda stream: Cut((stream.patch,) * 3), predict=predict, segment=structures.segmenter(config, predict))


def network(config) -> EncoderDecoder:
    """The network that a config describes."""
    return EncoderDecoder(**config.model)


def windows_of(config):
    """The network of a config as (state, HU [b, z, y, x]) -> probabilities [b, z, y, x, classes]."""
    model = network(config)

    def answer(state, hu):
        net = state.nets["heart"]
        return windows.probabilities(model, {"params": net.params, "batch_stats": net.stats}, hu)

    return answer


def classes(label, number: int):
    """Structures as so many classes; what a network has none for is background, and with two of them every structure but the aorta is
    heart."""
    if number == 2:
        return ((label > 0) & (label != AORTA)).astype(label.dtype)
    return jnp.where(label < number, label, 0)

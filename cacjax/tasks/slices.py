"""Which axial slices of a heart show coronary calcium (van Velzen 2022, section 2.2). Arrays are [b, y, x], with neighbours [.., k]."""

import functools

import jax
import jax.numpy as jnp

from cacjax.classes import AIR_HU
from cacjax.data import hearts
from cacjax.data.sampling import Cut
from cacjax.inference.removal import Seen, coronary_slices
from cacjax.kernels import losses, slices
from cacjax.models.resnet import EncoderDecoder
from cacjax.optimise import adam, average, descend, keep_best, learning_rate, start
from cacjax.task import Task, answering, beginning, build


def make(config) -> Task:
    """Build the task; every key that it reads is in configs/slices.py. Its `predict` gives P(calcium) [b] of HU [b, y, x, k] and heart
    [b, y, x]."""
    model, seen = EncoderDecoder(classes=2, **config.model), Seen(**config.seen)
    optimiser, heart = adam(learning_rate(steps=config.steps, warmup=0, **config.rate)), build(config.stages.heart)

    def init(key, batch, stages):
        count, slabs, *_ = batch["train"]["hu"].shape
        variables = jax.jit(model.init)(key, jnp.zeros((count, config.view.size, config.view.size, slabs)))
        net = start(optimiser, variables["params"], variables["batch_stats"], validated=True)
        return beginning({"classifier": net._replace(best=()), "average": net._replace(opt=())}, stages)

    def train_step(state, batch, key):
        sample = slices.view(batch["train"], key, **config.view)
        net, metrics = descend(state.nets["classifier"], functools.partial(objective, sample), optimiser)
        nets = {"classifier": net, "average": average(state.nets["average"], net, config.average)}
        return state._replace(step=state.step + 1, nets=nets), metrics

    def objective(sample, params, stats):
        variables, real = {"params": params, "batch_stats": stats}, coronary_slices(sample["label"]).astype(jnp.int32)
        logits, changed = model.apply(variables, shown(sample), True, mutable=["batch_stats"])
        loss = losses.cross_entropy(logits, real)
        return loss, ({"loss": loss, "accuracy": (logits.argmax(-1) == real).mean()}, changed["batch_stats"])

    def validate(state, batch):
        sample = slices.view(batch["held_out"], jax.random.key(0), **config.view.to_dict() | slices.PLAIN)
        net = state.nets["average"]
        found, real = answer(net, shown(sample)) >= 0.5, coronary_slices(sample["label"])
        hits, wrong, missed = ((a & b).sum() for a, b in ((found, real), (found, ~real), (~found, real)))
        f1 = 2 * hits / jnp.maximum(2 * hits + wrong + missed, 1)
        metrics = {"accuracy": (found == real).mean(), "f1": f1}
        metrics |= {"sensitivity": hits / jnp.maximum(real.sum(), 1), "false_positive_rate": wrong / jnp.maximum((~real).sum(), 1)}
        nets = state.nets | {"average": keep_best(net, f1)}
        return state._replace(nets=nets), {f"validation_{name}": value for name, value in metrics.items()}

    def shown(sample):
        return seen.shown(seen.normalise(jnp.where(sample["heart"][..., None] | (not config.heart_only), sample["hu"], AIR_HU)))

    def answer(net, x):
        return jax.nn.softmax(model.apply({"params": net.params, "batch_stats": net.stats}, x))[:, 1]

    def predict(state, hu, heart):
        return answer(answering(state).nets["average"], shown({"hu": hu, "heart": heart}))

    def prepare(records, stages, workdir):
        """Records without a heart get the one that the heart network finds."""
        segment = functools.partial(heart.segment, stages["heart"])
        return {split: hearts.find(source, segment, workdir / "hearts") for split, source in records.items()}

    cut = lambda stream: Cut(tuple(stream.size), (config.neighbours, 0, 0))  # noqa: E731
    return Task(init, train_step, cut, validate=validate, predict=predict, segment=heart.segment, prepare=prepare)

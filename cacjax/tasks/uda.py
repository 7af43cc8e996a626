"""Unsupervised domain adaptation (Zhai 2022): a Wasserstein critic draws contrast-enhanced features onto non-contrast ones.

One train step is one block: all critic updates in one compiled loop over features computed once (the generator rests meanwhile),
then one generator update, or several as in the authors' code. During the first `pretrain_blocks` the generator stays as it is. With
generator statistics by domain (ours, see cacjax.models.moments) these blocks also measure the affine that matches the target's
moments; then it rests.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cacjax.inference.planes import normalise
from cacjax.kernels import losses
from cacjax.models import moments
from cacjax.models.critic import Critic
from cacjax.models.dilated import Dilated, centre
from cacjax.optimise import clip, descend, rmsprop, spectral, start
from cacjax.task import Net, Task, beginning
from cacjax.tasks.lessmann import answers, classification, cut_of, network

DOMAINS = ("source", "target")
GROUPS = {"domain": 2, "joint": 1, "none": 0}  # parts of the batch that are normalised each by itself
CONSTRAINTS = {
    "clip": lambda params, critic: clip(params, critic.clip),
    "spectral": lambda params, critic: spectral(params),
    "gradient_penalty": lambda params, critic: params,
}


class System(NamedTuple):
    """What the config says, and the networks and optimisers that it describes. groups: of the critic's statistics; matched: whether the
    generator has statistics by domain."""

    config: Any
    model: Dilated
    critic: Critic
    groups: int
    matched: bool
    critic_optimiser: Any
    generator_optimiser: Any


def make(config) -> Task:
    """Build the task; every key that it reads is in configs/uda.py."""
    system = system_of(config)

    def params_of(state):
        params = {name: net.params for name, net in state.nets.items()}
        return join(for_target(params["generator"], params.get("affine")), params["heads"])

    steps = functools.partial(init, system), functools.partial(train_step, system)
    return Task(*steps, cut_of(config), check=functools.partial(check, config), **answers(config, params_of))


def system_of(config) -> System:
    """The parts of a config. Raises ValueError for settings that do not exist or do not go together."""
    if config.stages.source.task != "lessmann":
        raise ValueError(f"the source network must be a run of lessmann.py, got one of {config.stages.source.task}.py")
    groups = _chosen("critic.statistics", config.critic.statistics, GROUPS)
    _chosen("critic.constraint", config.critic.constraint, CONSTRAINTS)
    if config.critic.constraint == "gradient_penalty" and groups:
        raise ValueError("a gradient penalty needs critic.statistics = none: batch statistics tie a value to other samples")
    matched = _chosen("generator.statistics", config.generator.statistics, {"shared": False, "domain": True})
    optimisers = (rmsprop(part.rate, weight_decay=config.weight_decay) for part in (config.critic, config.generator))
    return System(config, network(config), Critic(tuple(config.critic.channels)), groups, matched, *optimisers)


def init(system, key, batch, stages):
    """The source network's subnets as generator, its heads frozen, and a new critic."""
    del batch
    config, model = system.config, system.model
    generator, heads = split(stages["source"].nets["detector"].params)
    sample = jnp.zeros((2, config.critic.window, config.critic.window, model.planes * model.width))
    params = jax.jit(system.critic.init, static_argnums=2)(key, sample, system.groups)
    nets = {"generator": start(system.generator_optimiser, generator), "critic": start(system.critic_optimiser, params)}
    if system.matched:
        nets["affine"] = Net(moments.identity(generator))
    return beginning(nets | {"heads": Net(heads)})


def train_step(system, state, batch, key):
    """One block: critic updates on the windows of both pools, then the generator's."""
    config, nets = system.config, dict(state.nets)
    generator, heads = nets["generator"], nets["heads"].params
    affine = None
    if system.matched:
        affine = measured(system, nets["affine"].params, generator.params, batch, state.step)
        nets["affine"] = nets["affine"]._replace(params=affine)
    eyes = {"source": generator.params, "target": for_target(generator.params, affine)}
    source, target = (cut_windows(pool_of(system, eyes[d], heads, batch[f"pool_{d}"]), config) for d in DOMAINS)
    nets["critic"], gaps = critic_updates(system, nets["critic"], source, target, key, state.step)
    # Always computed and taken only after pre-training: inside a conditional XLA:CPU needs a fifth longer for the whole step.
    moved, metrics = generator_updates(system, generator, nets["critic"].params, heads, batch, source, affine)
    nets["generator"] = jax.tree.map(lambda new, old: jnp.where(state.step >= config.pretrain_blocks, new, old), moved, generator)
    return state._replace(step=state.step + 1, nets=nets), metrics | gaps | vitality(system, nets["critic"].params, source, target)


def critic_updates(system, net, source, target, key, step):
    """(critic, metrics) after all updates of a block; source, target: windows [n, window, window, c]."""
    critic = system.config.critic
    picks = [draw(jax.random.fold_in(key, i), len(w), system.config) for i, w in enumerate((source, target))]
    picks = (*picks, jax.random.split(jax.random.fold_in(key, 2), len(picks[0])))
    count = critic.updates
    if critic.late:
        first, fewer = critic.late
        count = jnp.where(step < first, count, fewer)
    one = functools.partial(critic_update, system, source, target)

    def body(i, carry):
        net, metrics = one(carry[0], jax.tree.map(lambda a: a[i], picks))
        return net, metrics, jnp.where(i == 0, metrics["gap"], carry[2])

    before = jax.tree.map(jnp.zeros_like, jax.eval_shape(one, net, jax.tree.map(lambda a: a[0], picks))[1])
    net, metrics, fresh = lax.fori_loop(0, count, body, (net, before, before["gap"]))
    return net, {"gap_fresh": fresh} | metrics


def critic_update(system, source, target, net, pick):
    """One update on picked windows of both domains; pick: indices into source and target, and a key."""
    chosen, critic = (source[pick[0]], target[pick[1]]), system.config.critic

    def objective(params, stats):
        s, t = values(system, params, *chosen)
        loss = losses.critic_loss(s, t)
        if critic.constraint == "gradient_penalty":
            between = losses.gradient_penalty(lambda x: system.critic.apply(params, x, 0), *chosen, pick[2])
            loss += critic.penalty_weight * between
        return loss, ({"gap": s.mean() - t.mean(), "told_apart": losses.told_apart(s, t)}, stats)

    net, metrics = descend(net, objective, system.critic_optimiser)
    return net._replace(params=CONSTRAINTS[critic.constraint](net.params, critic)), metrics


def vitality(system, params, source, target):
    """Of the critic on a minibatch of target windows: norm of the gradient to their features, least share of live pixels of a layer."""
    target = target[: system.config.critic.batch]
    slope = jax.grad(lambda windows: adversarial_value(system, params, source, windows))(target)
    _, sown = system.critic.apply(params, target, min(system.groups, 1), mutable=["intermediates"])
    return {"critic_gradient": jnp.linalg.norm(slope.ravel()), "critic_live": sown["intermediates"]["live"][0]}


def check(config, metrics) -> str:
    """What a step's metrics say against going on: a critic that shall move the generator and cannot."""
    if metrics["critic_gradient"] or not config.adversarial_weight:
        return ""
    return "the critic is dead: its gradient to the target's features is exactly zero; choose another seed or other critic.channels"


def generator_updates(system, net, critic_params, heads, batch, source, affine):
    """(generator, metrics) after the updates of a block: one, or several, a minibatch each."""
    parts, update = (
        {name: batch[name] for name in DOMAINS},
        functools.partial(generator_update, system, critic_params, heads, source, affine),
    )
    if system.config.generator.updates == 1:
        return update(net, parts)
    net, metrics = lax.scan(update, net, parts)
    return net, jax.tree.map(jnp.mean, metrics)


def generator_update(system, critic_params, heads, source_windows, affine, net, batch):
    """One update towards what the critic takes for source, while the source's labels are still told (and MMD where it has a weight)."""
    config, model = system.config, system.model

    def objective(generator, stats):
        target = features(model, for_target(generator, affine), heads, batch["target"]["hu"])
        look = "centre_in_parts" if config.supervision.where == "centre" else "features_in_parts"
        labelled = model.apply(join(generator, heads), normalise(batch["source"]["hu"]), method=look)
        adversarial = -adversarial_value(system, critic_params, source_windows, cut_windows(target, config))
        classes = classification(model, join(generator, heads), labelled, batch["source"], config.supervision)
        total = config.adversarial_weight * adversarial + config.classification_weight * classes
        apart = discrepancy(model, join(generator, heads), labelled, target)
        if config.mmd_weight:
            total += config.mmd_weight * apart
        return total, ({"loss_generator": total, "loss_classification": classes, "mmd": apart}, stats)

    return descend(net, objective, system.generator_optimiser)


def features(model, generator, heads, hu):
    """Feature maps [b, n, n, planes * width] of crops in HU."""
    return model.apply(join(generator, heads), normalise(hu), method="features_in_parts")


def pool_of(system, generator, heads, crops):
    """Features [chunks * b, n, n, c] of crops [chunks, b, ...], a chunk at a time to bound memory."""
    maps = lax.map(lambda hu: features(system.model, generator, heads, hu), crops["hu"])
    return maps.reshape(-1, *maps.shape[2:])


def values(system, params, source, target):
    """Critic values of both domains, normalised apart or together."""
    both = system.critic.apply(params, jnp.concatenate([source, target]), system.groups)
    return both[: len(source)], both[len(source) :]


def adversarial_value(system, params, source, target):
    """The critic's mean value of target windows."""
    if system.groups == 1:
        return values(system, params, source[: len(target)], target)[1].mean()
    return system.critic.apply(params, target, min(system.groups, 1)).mean()  # the target alone is one domain


def discrepancy(model, params, source, target):
    """MMD between the class probabilities of the centre voxels of both domains."""
    logits = (model.apply(params, centre(f), method="classify")[:, 0, 0] for f in (source, target))
    return losses.maximum_mean_discrepancy(*map(jax.nn.softmax, logits))


def for_target(generator, affine):
    """The generator as it looks at the target."""
    return generator if affine is None else moments.fold(generator, affine)


def measured(system, affine, generator, batch, step):
    """The running mean, over the blocks of pre-training, of the affine that matches the pools' moments."""

    def measure(affine):
        source, target = (normalise(batch[f"pool_{d}"]["hu"]).reshape(-1, *batch[f"pool_{d}"]["hu"].shape[2:]) for d in DOMAINS)
        new = moments.match(generator, system.model.dilations, source, target)
        return jax.tree.map(lambda mean, value: mean + (value - mean) / (step + 1), affine, new)

    return lax.cond(step < system.config.pretrain_blocks, measure, lambda affine: affine, affine)


def _chosen(key, value, options):
    """What a setting stands for; ValueError where it is not among the options."""
    if value not in options:
        raise ValueError(f"{key} must be one of {', '.join(options)}, got {value!r}")
    return options[value]


def cut_windows(maps, config):
    """Cut feature maps [b, n, n, c] into the critic's windows [b * k * k, window, window, c], k = n // window."""
    window = config.critic.window
    b, n, _, c = maps.shape
    k = n // window
    maps = maps[:, : k * window, : k * window].reshape(b, k, window, k, window, c)
    return maps.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window, window, c)


def draw(key, available: int, config):
    """Which windows each critic update sees, [updates, batch]: each once where the pool suffices, else drawn anew per update."""
    updates, batch = config.critic.updates, config.critic.batch
    if available >= updates * batch:
        return jnp.arange(updates * batch).reshape(updates, batch)
    keys = jax.random.split(key, updates)
    return jax.vmap(lambda k: jax.random.permutation(k, available)[:batch])(keys)


def split(params):
    """Part a detector's parameters into the generator (subnets) and the frozen heads."""
    inner = params["params"]
    generator = {name: value for name, value in inner.items() if name.startswith("subnets")}
    return generator, {name: value for name, value in inner.items() if name not in generator}


def join(generator, heads):
    """Put a detector's parameters together again."""
    return {"params": generator | heads}

"""Unsupervised domain adaptation (Zhai 2022): a Wasserstein critic draws contrast-enhanced features onto non-contrast ones.

One train step is one block: all critic updates in one compiled loop over features computed once (the generator rests meanwhile),
then one generator update, or several as in the authors' code. During the first `pretrain_blocks` the generator stays as it is. With
generator statistics by domain (ours, see cacjax.models.moments) these blocks also measure the affine that matches the target's
moments; then it rests.
"""

import jax
import jax.numpy as jnp
from jax import lax

from cacjax.inference.planes import normalise, predict
from cacjax.kernels import losses
from cacjax.models import moments
from cacjax.models.critic import Critic
from cacjax.models.dilated import centre
from cacjax.task import Net, State, Task, clip, rmsprop, spectral, start, update
from cacjax.tasks.lessmann import classification, network, reading

DOMAINS = ("source", "target")
GROUPS = {"domain": 2, "joint": 1, "none": 0}  # parts of the batch that are normalised each by itself
CONSTRAINTS = {
    "clip": lambda params, critic: clip(params, critic.clip),
    "spectral": lambda params, critic: spectral(params),
    "gradient_penalty": lambda params, critic: params,
}


def make(config) -> Task:
    """Build the task; every key that it reads is in configs/uda.py."""
    if config.source.task != "lessmann":
        raise ValueError(f"the source network must be a run of lessmann.py, got one of {config.source.task}.py")
    model = network(config)
    critic = Critic(tuple(config.critic.channels))
    groups = _chosen("critic.statistics", config.critic.statistics, GROUPS)
    constrain = _chosen("critic.constraint", config.critic.constraint, CONSTRAINTS)
    penalised = config.critic.constraint == "gradient_penalty"
    if penalised and groups:
        raise ValueError("a gradient penalty needs critic.statistics = none: batch statistics tie a value to other samples")
    matched = _chosen("generator.statistics", config.generator.statistics, {"shared": False, "domain": True})
    critic_optimiser = rmsprop(config.critic.rate, weight_decay=config.weight_decay)
    generator_optimiser = rmsprop(config.generator.rate, weight_decay=config.weight_decay)

    def init(key, batch, source):
        generator, heads = split(source.nets["detector"].params)
        window = config.critic.window
        channels = config.model.planes * config.model.width
        params = jax.jit(critic.init, static_argnums=2)(key, jnp.zeros((2, window, window, channels)), groups)
        nets = {"generator": start(generator, generator_optimiser), "critic": start(params, critic_optimiser)}
        if matched:
            nets["affine"] = Net(moments.identity(generator), {}, ())
        return State(jnp.zeros((), jnp.int32), nets | {"heads": Net(heads, {}, ())})

    def features(generator, heads, hu):
        return model.apply(join(generator, heads), normalise(hu), method="features_in_parts")

    def labelled_features(generator, heads, hu):
        """What `classification` looks at."""
        if config.supervision.where != "centre":
            return features(generator, heads, hu)
        return model.apply(join(generator, heads), normalise(hu), method="centre_in_parts")

    def pool_of(generator, heads, crops):
        """Features [chunks * b, n, n, c] of crops [chunks, b, ...], a chunk at a time to bound memory."""
        params = join(generator, heads)
        maps = lax.map(lambda hu: model.apply(params, normalise(hu), method="features_in_parts"), crops["hu"])
        return maps.reshape(-1, *maps.shape[2:])

    def values(params, source, target):
        """Critic values of both domains, normalised apart or together."""
        both = critic.apply(params, jnp.concatenate([source, target]), groups)
        return both[: len(source)], both[len(source) :]

    def critic_updates(net, source, target, key, step):
        picks = [draw(jax.random.fold_in(key, i), len(w), config) for i, w in enumerate((source, target))]

        def one(net, pick):
            chosen = source[pick[0]], target[pick[1]]

            def objective(params):
                s, t = values(params, *chosen)
                loss = losses.critic_loss(s, t)
                if penalised:
                    between = losses.gradient_penalty(lambda x: critic.apply(params, x, 0), *chosen, pick[2])
                    loss += config.critic.penalty_weight * between
                return loss, {"gap": s.mean() - t.mean(), "told_apart": losses.told_apart(s, t)}

            grads, metrics = jax.grad(objective, has_aux=True)(net.params)
            net = update(net, grads, critic_optimiser)
            return net._replace(params=constrain(net.params, config.critic)), metrics

        picks = (*picks, jax.random.split(jax.random.fold_in(key, 2), len(picks[0])))
        count = config.critic.updates
        if config.critic.late:
            first, fewer = config.critic.late
            count = jnp.where(step < first, count, fewer)

        def body(i, carry):
            net, metrics = one(carry[0], jax.tree.map(lambda a: a[i], picks))
            return net, metrics, jnp.where(i == 0, metrics["gap"], carry[2])

        before = jax.tree.map(jnp.zeros_like, jax.eval_shape(one, net, jax.tree.map(lambda a: a[0], picks))[1])
        net, metrics, fresh = lax.fori_loop(0, count, body, (net, before, before["gap"]))
        return net, {"gap_fresh": fresh} | metrics

    def generator_update(net, critic_params, heads, batch, source_windows, affine):
        def objective(generator):
            target = features(for_target(generator, affine), heads, batch["target"]["hu"])
            labelled = labelled_features(generator, heads, batch["source"]["hu"])
            adversarial = -adversarial_value(critic_params, source_windows, cut_windows(target, config))
            classes = classification(model, join(generator, heads), labelled, batch["source"], config.supervision)
            total = config.adversarial_weight * adversarial + config.classification_weight * classes
            apart = discrepancy(join(generator, heads), labelled, target)
            if config.mmd_weight:
                total += config.mmd_weight * apart
            return total, {"loss_generator": total, "loss_classification": classes, "mmd": apart}

        grads, metrics = jax.grad(objective, has_aux=True)(net.params)
        return update(net, grads, generator_optimiser), metrics

    def generator_updates(net, critic_params, heads, batch, source, affine):
        parts = {name: batch[name] for name in DOMAINS}
        if config.generator.updates == 1:
            return generator_update(net, critic_params, heads, parts, source, affine)
        net, metrics = lax.scan(lambda net, part: generator_update(net, critic_params, heads, part, source, affine), net, parts)
        return net, jax.tree.map(jnp.mean, metrics)

    def adversarial_value(params, source, target):
        if groups == 1:
            return values(params, source[: len(target)], target)[1].mean()
        return critic.apply(params, target, min(groups, 1)).mean()  # the target alone is one domain

    def discrepancy(params, source, target):
        """MMD between the class probabilities of the centre voxels of both domains."""
        logits = (model.apply(params, centre(f), method="classify")[:, 0, 0] for f in (source, target))
        return losses.maximum_mean_discrepancy(*map(jax.nn.softmax, logits))

    def for_target(generator, affine):
        return generator if affine is None else moments.fold(generator, affine)

    def measured(affine, generator, batch, step):
        """The running mean, over the blocks of pre-training, of the affine that matches the pools' moments."""

        def measure(affine):
            source, target = (normalise(batch[f"pool_{d}"]["hu"]).reshape(-1, *batch[f"pool_{d}"]["hu"].shape[2:]) for d in DOMAINS)
            new = moments.match(generator, model.dilations, source, target)
            return jax.tree.map(lambda mean, value: mean + (value - mean) / (step + 1), affine, new)

        return lax.cond(step < config.pretrain_blocks, measure, lambda affine: affine, affine)

    def train_step(state, batch, key):
        nets = dict(state.nets)
        generator, heads = nets["generator"], nets["heads"].params
        affine = None
        if matched:
            affine = measured(nets["affine"].params, generator.params, batch, state.step)
            nets["affine"] = nets["affine"]._replace(params=affine)
        eyes = {"source": generator.params, "target": for_target(generator.params, affine)}
        source, target = (cut_windows(pool_of(eyes[d], heads, batch[f"pool_{d}"]), config) for d in DOMAINS)
        nets["critic"], gaps = critic_updates(nets["critic"], source, target, key, state.step)
        # Always computed and taken only after pre-training: inside a conditional XLA:CPU needs a fifth longer for the whole step.
        moved, metrics = generator_updates(generator, nets["critic"].params, heads, batch, source, affine)
        nets["generator"] = jax.tree.map(lambda new, old: jnp.where(state.step >= config.pretrain_blocks, new, old), moved, generator)
        return State(state.step + 1, nets), metrics | gaps

    def predict_scan(state, hu, box=None):
        params = {name: net.params for name, net in state.nets.items()}
        generator = for_target(params["generator"], params.get("affine"))
        return predict(model, join(generator, params["heads"]), hu, box, **reading(config))

    return Task(init, train_step, predict_scan)


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

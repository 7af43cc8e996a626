"""Calcium CycleGAN: a generator takes calcium out of slices, another puts it in; what the first takes is the score (van Velzen 2022).

Slices are [b, y, x, 1]. Maps are calcium in the units of the network's input, never negative: the calcium-free twin is the slice less
its map. The first half of a batch are slices with coronary calcium, the second are without.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cacjax.data.sampling import Cut
from cacjax.files.scan import ScanError
from cacjax.inference import removal
from cacjax.inference.removal import Seen
from cacjax.kernels import anatomy, losses, slices
from cacjax.models.patchgan import PatchGAN
from cacjax.models.resnet import EncoderDecoder
from cacjax.optimise import adam, average, follow, learning_rate, start, trapezoid
from cacjax.task import Net, Task, beginning, build
from cacjax.tasks.heart import windows_of

NEAR_PX = 3  # of true calcium: a map there is in the right place


class Half(NamedTuple):
    """Slices of one kind: network input and heart, [b, y, x, 1]."""

    x: jax.Array
    heart: jax.Array


def make(config) -> Task:
    """Build the task; every key that it reads is in configs/cyclegan.py. Its `predict` gives maps in HU [b, y, x] of slices in HU."""
    _check(config)
    seen, own = Seen(**config.seen), config.discriminator
    generator = EncoderDecoder(classes=1, **config.generator.model)
    discriminator = PatchGAN(**own.model.to_dict() | {"layers": tuple(map(tuple, own.model.layers))})
    moving = trapezoid(steps=config.steps - own.warmup, **config.generator.rate)
    optimisers = {
        "generator": adam(moving, b1=config.b1),
        "discriminator": adam(learning_rate(steps=config.steps, warmup=0, **own.rate), b1=config.b1),
    }
    directions = ("remove", "insert") if config.back else ("remove",)
    judges = ("free", "calcified") if config.back else ("free",)  # what is real to them

    def init(key, batch, stages):
        size, nets = config.view.size, {}
        x = jnp.zeros((len(batch["train"]["hu"]) // 2, size, size, 1))
        keys = dict(zip((*directions, *judges), jax.random.split(key, len(directions) + len(judges))))
        for name, one in keys.items():
            model, kind = (generator, "generator") if name in directions else (discriminator, "discriminator")
            variables = jax.jit(model.init)(one, x)
            nets[name] = start(optimisers[kind], variables["params"], variables.get("batch_stats", {}))
        nets["average"] = Net(nets["remove"].params, nets["remove"].stats)
        empty = jnp.zeros((max(config.pool, 1), size, size, 2))
        nets |= {f"pool_{name}": Net(slices.Pool(empty, jnp.zeros((), jnp.int32))) for name in judges}
        return beginning(nets, stages)

    def train_step(state, batch, key):
        view_key, *pool_keys = jax.random.split(key, 1 + len(judges))
        calcified, free = halves(slices.view(batch["train"], view_key, **config.view))
        warm = state.step < own.warmup
        work, idle = (functools.partial(each, calcified=calcified, free=free) for each in (generators, no_generators))
        nets, twins, metrics = jax.lax.cond(warm, idle, work, state.nets) if own.warmup else work(state.nets)
        for name, pool_key in zip(judges, pool_keys):
            real, other = (free, calcified) if name == "free" else (calcified, free)
            pool, fakes = nets[f"pool_{name}"], jnp.concatenate([twins[name], other.heart], -1)
            if config.pool:
                after, fakes = slices.exchange(pool.params, fakes, pool_key)
                nets[f"pool_{name}"] = choose(warm, pool, pool._replace(params=after))
            fakes = Half(fakes[..., :1], fakes[..., 1:])
            objective = functools.partial(judge_loss, nets[name].stats, real, fakes, other)
            metrics[f"judge_{name}"], slope = jax.value_and_grad(objective)(nets[name].params)
            nets[name] = follow(nets[name], slope, optimisers["discriminator"])
        return state._replace(step=state.step + 1, nets=nets), metrics

    def generators(nets, calcified, free):
        """(networks after a step of the generators, twins, metrics)."""
        nets, params = dict(nets), {name: nets[name].params for name in directions}
        grads, (twins, stats, metrics) = jax.grad(generator_loss, has_aux=True)(params, nets, calcified, free)
        for name in directions:
            nets[name] = follow(nets[name], grads[name], optimisers["generator"])._replace(stats=stats[name])
        nets["average"] = average(nets["average"], nets["remove"], config.generator.average)
        return nets, twins, metrics

    def no_generators(nets, calcified, free):
        """The same of generators that rest and whose maps are empty: a slice is its own twin."""
        *_, metrics = jax.eval_shape(generators, nets, calcified, free)
        return (
            dict(nets),
            {name: half.x for name, half in zip(judges, (calcified, free))},
            jax.tree.map(lambda m: jnp.zeros(m.shape), metrics),
        )

    def halves(sample):
        x = seen.normalise(sample["hu"])
        heart = sample["heart"][..., None].astype(x.dtype) if config.heart_only else jnp.ones_like(x)
        half = len(x) // 2
        return Half(x[:half], heart[:half]), Half(x[half:], heart[half:])

    def generator_loss(params, nets, calcified, free):
        """Equations 1 to 5: each map fools a discriminator, is undone by the other generator, and is empty where there is nothing."""
        stats = {name: nets[name].stats for name in directions}

        def made(name, x, *, keep):
            found, changed = generate(params[name], nets[name].stats, x)
            if keep:
                stats[name] = changed
            return found

        def both(name, works_on, idle):
            """(map of what a generator works on, map where it has nothing to do)."""
            if config.generator.together:
                return jnp.split(made(name, jnp.concatenate([works_on.x, idle.x]), keep=True), 2)
            return made(name, works_on.x, keep=True), made(name, idle.x, keep=False)

        taken, idle = both("remove", calcified, free)
        twins = {"free": calcified.x - taken * calcified.heart}
        adversarial, empty, sparse = fooled(nets["free"], twins["free"], calcified.heart), idle.mean(), taken.mean()
        metrics, cycle = {"map_hu": taken.mean() * seen.span, "identity_hu": idle.mean() * seen.span}, 0.0
        if config.back:
            put, useless = both("insert", free, calcified)
            twins["calcified"] = free.x + put * free.heart
            adversarial += fooled(nets["calcified"], twins["calcified"], free.heart)
            cycle = abs(made("insert", twins["free"], keep=False) * calcified.heart - taken * calcified.heart).mean()
            cycle += abs(made("remove", twins["calcified"], keep=False) * free.heart - put * free.heart).mean()
            empty, sparse = empty + useless.mean(), sparse + put.mean()
            metrics |= {"cycle": cycle, "inserted_hu": put.mean() * seen.span}
        weights = config.weights
        loss = adversarial + weights.cycle * cycle + weights.identity * empty + weights.sparsity * sparse
        return loss, (jax.lax.stop_gradient(twins), stats, metrics | {"loss": loss, "adversarial": adversarial})

    def generate(params, stats, x):
        variables = {"params": params, "batch_stats": stats}
        logits, changed = generator.apply(variables, seen.shown(x), True, mutable=["batch_stats"])
        return jax.nn.sigmoid(logits), changed["batch_stats"]

    def verdicts(params, stats, x, heart):
        """Logits [b, y', x'] of patches; the discriminator sees nothing outside of the heart."""
        shown = seen.shown(jnp.where(heart > 0, x, 0.0))
        return discriminator.apply({"params": params, "batch_stats": stats}, shown, mutable=["batch_stats"])[0][..., 0]

    def mean(values, heart):
        """Of patches that touch the heart."""
        weights = slices.touched(heart[..., 0] > 0, values.shape[1:])
        return (values * weights).sum() / jnp.maximum(weights.sum(), 1)

    def fooled(judge, x, heart):
        return mean(jax.nn.softplus(-verdicts(judge.params, judge.stats, x, heart)), heart)

    def judge_loss(stats, real, fakes, other, params):
        """Of equation 2; a share of the fakes are real slices of the other kind, so that calcium is not forgotten once it is removed."""
        unmasked = mean(jax.nn.softplus(verdicts(params, stats, *fakes)), fakes.heart)
        if own.from_real:
            unmasked = (1 - own.from_real) * unmasked + own.from_real * mean(jax.nn.softplus(verdicts(params, stats, *other)), other.heart)
        return 0.5 * (unmasked + mean(jax.nn.softplus(-verdicts(params, stats, *real)), real.heart))

    def validate(state, batch):
        """What tells whether it learns what it should: does the discriminator see calcium, and is what is taken calcium."""
        sample = slices.view(batch["held_out"], jax.random.key(0), **config.view.to_dict() | slices.PLAIN)
        calcified, free = halves(sample)
        calcium = sample["label"] > 0
        found = maps(state, jnp.concatenate([calcified.x, free.x]))[..., 0] * seen.span * sample["heart"]
        half = len(found) // 2
        near = slices.within(calcium, NEAR_PX)
        judge = state.nets["free"]
        logits = verdicts(judge.params, judge.stats, *calcified)
        here = slices.touched(calcium[:half], logits.shape[1:])
        there = slices.touched(calcified.heart[..., 0] > 0, logits.shape[1:]) & ~here
        metrics = {
            "patch_auc": losses.area_under_curve(-logits.ravel(), here.ravel(), there.ravel()),
            "near_calcium": (found[:half] * near[:half]).sum() / jnp.maximum(found[:half].sum(), 1e-6),
            "on_calcium_hu": (found * calcium).sum() / jnp.maximum(calcium.sum(), 1),
            "free_slices_hu": found[half:].mean(),
        }
        return state, {f"validation_{name}": value for name, value in metrics.items()}

    def maps(state, x):
        net = state.nets["average"]
        return jax.nn.sigmoid(generator.apply({"params": net.params, "batch_stats": net.stats}, seen.shown(x)))

    def predict(state, hu):
        return maps(state, seen.normalise(hu)[..., None])[..., 0] * seen.span

    gate, of_heart = build(config.stages.slices), config.stages.slices.stages.heart
    parts = removal.Parts(
        lambda state, hu: windows_of(of_heart)(state.stages["slices"].stages["heart"], hu),
        lambda state, hu, heart: gate.predict(state.stages["slices"], hu, heart),
        config.stages.slices.neighbours,
        lambda state, hu, heart: predict(state, hu),
    )

    def prepare(records, stages, workdir):
        """Records without a heart get the one that the heart network finds."""
        return gate.prepare(records, stages["slices"].stages, workdir)

    cut = lambda stream: Cut(tuple(stream.size))  # noqa: E731
    detector = removal.detector(config, of_heart, parts)._replace(check=functools.partial(check, config.scoring))
    return Task(init, train_step, cut, validate=validate, predict=predict, detector=detector, prepare=prepare)


def check(scoring, counts) -> dict:
    """Flags {code: note} of a finding by its counts. Raises ScanError `no_heart`."""
    if not scoring.heart:
        return {}
    cut = bool(counts["heart_reaches_end"])
    if scoring.check_heart and "lung_share" in counts:  # by the network
        against = anatomy.contradictions(float(counts["heart_ml"]), float(counts["lung_share"]), cut=cut)
        if against:
            raise ScanError("no_heart", f"what the network found is no heart: {'; '.join(against)}")
    return anatomy.CUT if cut else {}


def choose(first, a, b):
    """`a` where `first`, else `b`, array by array."""
    return jax.tree.map(lambda x, y: jnp.where(first, x, y), a, b)


def _check(config):
    for name, stream in config.streams.items():
        if stream.count[-1] % 2 or not stream.heart or not stream.labelled:
            raise ValueError(f"streams.{name}: expected an even count, labelled, with heart, got {stream.to_dict()}")

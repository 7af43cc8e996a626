"""Cases of adaptation and source training: the networks of Zhai 2022 at published shapes against PyTorch, from the same weights.

Every pair is compared before it races: features to 1e-4, the first losses to 1e-5 of PyTorch's in float64. (Against its float32 the
critic's first loss stands at 1e-5 itself: at random weights batch normalisation enlarges what both sides round away.)
"""

import copy
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch
import uda_torch
from race import Case, compiled

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from cacjax import train
from cacjax.kernels import losses
from cacjax.task import clip, rmsprop, start, update
from configs import lessmann as source_config
from configs import uda as uda_config
from tools import import_torch

SAMPLES, SIDE, WINDOW = 16, 155, 25
LONG_ROUNDS = 1  # of the authors' block, of which one takes all three sides together a quarter of an hour on two cores
# Operations of one sample, counted as direct convolutions: three planes through the generator in full, or for the middle voxel alone
# (`Dilated.features_at_centre`); a window through the critic. Gradients cost as much again for each side that they are taken of.
FLOPS, CENTRE, CRITIC = 2 * 3 * 823_000_000, 2 * 3 * 316_000_000, 2 * 335_000_000
CRITIC_UPDATE = 2 * SAMPLES * 3 * CRITIC
GENERATOR_UPDATE = SAMPLES * (3 * FLOPS + 3 * CENTRE + 2 * CRITIC)


def planes(rng, samples: int = SAMPLES, side: int = SIDE):
    """Network intensities [b, 3, h, w] of both domains, and class labels [b, 3, 25, 25]."""
    x = [np.clip(rng.normal(0, 0.7, (samples, 3, side, side)), -1, 2.5).astype(np.float32) for _ in range(2)]
    return *x, rng.integers(0, 7, (samples, 3, side - 130, side - 130))


def parameters(system) -> dict:
    """Our parameters of a PyTorch system: {"generator", "neck", "critic"}."""
    return {name: import_torch.convert(name, uda_torch.arrays(getattr(system, name))) for name in ("generator", "neck", "critic")}


def to_hu(x):
    """Hounsfield units [.., h, w, 1] from network intensities."""
    return (x * 1130 + 130)[..., None]


def agree(name: str, ours, theirs, tolerance: float) -> None:
    """End the program where two results differ by more than `tolerance` of the largest value (of 1 where that is smaller)."""
    ours, theirs = np.asarray(ours, np.float64), theirs.detach().cpu().double().numpy()
    difference = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1.0)
    print(f"  {name}: differs by {difference:.1e}", flush=True)
    if not difference <= tolerance:
        raise SystemExit(f"{name} differs by {difference:.1e} from PyTorch, expected at most {tolerance:g}")


class Ours:
    """Our networks and steps at the weights of a PyTorch system, float32 unless x64 is on; planes as PyTorch takes them."""

    def __init__(self, system):
        config = uda_config.get_config()
        params = parameters(system)
        self.model, _ = import_torch.network("generator", params["generator"])
        self.critic, _ = import_torch.network("critic", params["critic"])
        self.heads = params["neck"]
        self.optimisers = {name: rmsprop(config[name].rate, weight_decay=config.weight_decay) for name in ("critic", "generator")}
        self.nets = {
            "critic": start({"params": params["critic"]}, self.optimisers["critic"]),
            "generator": start(params["generator"], self.optimisers["generator"]),
        }

    def features(self, generator, x):
        """Features [b, n, n, c] of planes [b, 3, h, w]."""
        return self.model.apply({"params": generator}, x[..., None], method="features_in_parts")

    def critic_update(self, net, features):
        """One update from features of both domains, source first; returns the network and the loss before."""

        def objective(params):
            values = self.critic.apply(params, features, 2)
            return losses.critic_loss(*jnp.split(values, 2))

        loss, grads = jax.value_and_grad(objective)(net.params)
        net = update(net, grads, self.optimisers["critic"])
        return net._replace(params=clip(net.params, uda_torch.CLIP)), loss

    def critic_step(self, net, generator, source, target):
        """One update from planes of both domains, which share one pass."""
        return self.critic_update(net, self.features(generator, jnp.concatenate([source, target])))

    def generator_step(self, net, critic, source, target, labels, weight=2.0):
        """One update: adversarial loss on the target planes, cross-entropy at the centre on the source; labels [b]."""

        def objective(generator):
            adapted = self.features(generator, target)
            labelled = self.model.apply({"params": generator}, source[..., None], method="centre_in_parts")
            logits = self.model.apply({"params": self.heads}, labelled, method="classify")[:, 0, 0]
            return -self.critic.apply(critic, adapted).mean() + weight * losses.cross_entropy(logits, labels)

        loss, grads = jax.value_and_grad(objective)(net.params)
        return update(net, grads, self.optimisers["generator"]), loss


def systems(device):
    """PyTorch as published and tuned, from the same weights."""
    return [uda_torch.System(tuned=tuned, device=device, compiled=tuned) for tuned in (False, True)]


def exact(loss, system, *arguments):
    """A loss of a PyTorch system in float64."""
    double = copy.deepcopy(system)
    for network in (double.generator, double.critic, double.neck):
        network.double()
    with torch.no_grad():
        return loss(double, *(a.double() if a.is_floating_point() else a for a in arguments))


def ready(program, *arguments):
    """A callable that runs our program on these arguments and returns when all is computed."""
    return lambda: jax.block_until_ready(program(*arguments))


def finish(work):
    """Let a PyTorch callable return when the device has done its work."""

    def run():
        out = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return out

    return run


def cases(device: str, only: str = ""):
    """Generator of the cases whose work contains the text `only`; nothing is made for others."""
    race = Race(device)
    works = {
        "generator, forward": race.forward,
        "critic update, features given": race.critic_alone,
        "critic update": race.critic,
        "generator update": race.generator,
        "UDA block": lambda: block(device, race.systems, ""),
        "source step": lambda: source_step(device),
        "UDA block, the authors' code": lambda: block(device, race.systems, "code"),
    }
    yield from (make() for work, make in works.items() if only in work)


class Race:
    """The same weights and planes on both sides; each method compiles one work of ours, compares it and returns its case."""

    def __init__(self, device):
        self.systems = systems(device)
        self.ours = Ours(self.systems[0])
        source, target, labels = planes(np.random.default_rng(0))
        middle = labels[:, 0, WINDOW // 2, WINDOW // 2]
        self.placed = [[system.place(x) for x in (source, target)] for system in self.systems]
        self.classes = torch.from_numpy(middle).to(device)
        self.there = [jnp.asarray(a) for a in (source, target, middle)]

    def forward(self):
        """Features of one domain."""
        params = self.ours.nets["generator"].params
        program, took = compiled(self.ours.features, params, self.there[0])
        with torch.no_grad():
            theirs = self.systems[0].generator(self.placed[0][0])
        agree("features", np.moveaxis(np.asarray(program(params, self.there[0])), -1, 1), theirs, 1e-4)
        works = [finish(functools.partial(pass_by, system, x[0])) for system, x in zip(self.systems, self.placed)]
        run = ready(program, params, self.there[0])
        return Case("generator, forward", "16 x 3 planes 155x155", run, *works, program, took, flops=SAMPLES * FLOPS)

    def critic_alone(self):
        """A critic update on features that stand."""
        critic, params = self.ours.nets["critic"], self.ours.nets["generator"].params
        features = jnp.concatenate([jax.jit(self.ours.features)(params, x) for x in self.there[:2]])
        program, took = compiled(self.ours.critic_update, critic, features)
        windows = [[pass_by(system, x).detach() for x in xs] for system, xs in zip(self.systems, self.placed)]
        loss = exact(uda_torch.System.critic_loss_of, self.systems[0], *windows[0])
        agree("first loss of the critic", program(critic, features)[1], loss, 1e-5)
        works = [finish(functools.partial(system.critic_update, *x)) for system, x in zip(self.systems, windows)]
        run = ready(program, critic, features)
        return Case("critic update, features given", "16 + 16 windows 25x25x96", run, *works, program, took, flops=CRITIC_UPDATE)

    def critic(self):
        """A critic update from planes."""
        critic, params = self.ours.nets["critic"], self.ours.nets["generator"].params
        program, took = compiled(self.ours.critic_step, critic, params, *self.there[:2])
        works = [finish(functools.partial(system.critic_step, *x)) for system, x in zip(self.systems, self.placed)]
        run = ready(program, critic, params, *self.there[:2])
        flops = 2 * SAMPLES * FLOPS + CRITIC_UPDATE
        return Case("critic update", "16 + 16 samples", run, *works, program, took, flops=flops)

    def generator(self):
        """A generator update from planes and labels."""
        critic, generator = self.ours.nets["critic"], self.ours.nets["generator"]
        program, took = compiled(self.ours.generator_step, generator, critic.params, *self.there)
        both = systems(self.classes.device.type)
        loss = exact(functools.partial(uda_torch.System.generator_loss_of, weight=2.0), both[0], *self.placed[0], self.classes)
        agree("first loss of the generator", program(generator, critic.params, *self.there)[1], loss, 1e-5)
        works = [finish(functools.partial(system.generator_step, *x, self.classes)) for system, x in zip(both, self.placed)]
        run = ready(program, generator, critic.params, *self.there)
        return Case("generator update", "16 + 16 samples", run, *works, program, took, flops=GENERATOR_UPDATE)


def pass_by(system, x):
    """Features by a PyTorch system, as each manner takes them."""
    with torch.set_grad_enabled(not system.tuned):
        return system.features(x)


def block(device, systems, variant: str) -> Case:
    """The product's own train step, one program: the critic updates and then the generator updates of a block, each on its own crops;
    variant: of the config, "" as published (20 + 1), "code" as in the authors' code (200 + 10)."""
    config = uda_config.get_config(variant)
    with config.unlocked():
        config.pretrain_blocks, config.supervision.double_softmax_main = 0, False
    updates, moves = config.critic.updates, config.generator.updates
    rng = np.random.default_rng(1)
    pools = [np.stack([planes(rng)[0] for _ in range(updates)]) for _ in range(2)]
    lasts = [planes(rng) for _ in range(moves)]
    source, target, labels = (np.stack(part) if moves > 1 else part[0] for part in zip(*lasts))
    batch = {name: {"hu": jnp.asarray(to_hu(x))} for name, x in zip(("pool_source", "pool_target"), pools)}
    batch |= {"source": {"hu": jnp.asarray(to_hu(source)), "label": jnp.asarray(labels)}, "target": {"hu": jnp.asarray(to_hu(target))}}
    task = train.build(config)
    detector = train.build(config.source).init(jax.random.key(0), train.example_batch(config.source))
    state = task.init(jax.random.key(1), train.example_batch(config), detector)
    program, took = compiled(task.train_step, state, batch, jax.random.key(2))

    def theirs(system, pairs, lasts):
        for pair in pairs:
            system.critic_step(*pair)
        for *last, classes in lasts:
            loss = system.generator_step(*last, classes)
        return loss

    works = []
    for system in systems:
        pairs = [[system.place(x[i]) for x in pools] for i in range(updates)]
        placed = [[*map(system.place, x), torch.from_numpy(y[:, 0, WINDOW // 2, WINDOW // 2]).to(device)] for *x, y in lasts]
        theirs(system, pairs[:1], placed[:1])  # compiled and warm, as ours is; ten minutes a round are no place for it
        works.append(finish(functools.partial(theirs, system, pairs, placed)))
    return Case(
        "UDA block, the authors' code" if variant else "UDA block",
        f"{updates} + {moves} updates",
        ready(program, state, batch, jax.random.key(2)),
        *works,
        program,
        took,
        flops=updates * (2 * SAMPLES * FLOPS + CRITIC_UPDATE) + moves * GENERATOR_UPDATE,
        rounds=LONG_ROUNDS if variant else None,
    )


def source_step(device) -> Case:
    """One step of source training with deep supervision on 16 samples, dropout as each side draws it."""
    config = source_config.get_config()
    with config.unlocked():
        config.streams.source.count = (SAMPLES,)
    x, _, labels = planes(np.random.default_rng(2))
    task = train.build(config)
    state = task.init(jax.random.key(0), train.example_batch(config))
    batch = {"source": {"hu": jnp.asarray(to_hu(x)), "label": jnp.asarray(labels)}}
    program, took = compiled(task.train_step, state, batch, jax.random.key(1))

    def stepper(tuned):
        layout = torch.channels_last if tuned else torch.contiguous_format
        network = uda_torch.Dilated().to(device, memory_format=layout)
        optimiser = torch.optim.Adam(network.parameters(), lr=5e-4)
        loss = torch.compile(uda_torch.source_loss) if tuned else uda_torch.source_loss
        inputs = torch.from_numpy(x).to(device).contiguous(memory_format=layout), torch.from_numpy(labels).to(device)

        def step():
            optimiser.zero_grad()
            value = loss(network, *inputs)
            value.backward()
            optimiser.step()
            return value

        return finish(step)

    return Case(
        "source step",
        "16 samples, deep supervision",
        ready(program, state, batch, jax.random.key(1)),
        stepper(False),
        stepper(True),
        program,
        took,
        flops=3 * SAMPLES * FLOPS,
    )

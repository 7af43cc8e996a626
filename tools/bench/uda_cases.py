"""Cases of adaptation and source training: the networks of Zhai 2022 at published shapes against PyTorch, from the same weights.

Every pair is compared before it races: features and the first losses to 1e-4, these of PyTorch's in float64. (At random weights batch
normalisation enlarges what float32 rounds away: over three seeds the critic's first loss misses the exact one by up to 3.3e-5, PyTorch's
own by up to 7e-6. In float64 both are one: tests/test_uda_steps.py.)
"""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
import uda_torch
from race import Case, compiled
from run import cores

from cacjax.inference.planes import normalise
from cacjax.optimise import start
from cacjax.task import build
from cacjax.tasks import uda
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
    """Whole Hounsfield units [b, 3, h, w, 1] of both domains, and class labels [b, 3, 25, 25]."""
    hu = [np.round(1130 * np.clip(rng.normal(0, 0.7, (samples, 3, side, side, 1)), -1, 2.5) + 130).astype(np.float32) for _ in range(2)]
    return *hu, rng.integers(0, 7, (samples, 3, side - 130, side - 130))


def parameters(system) -> dict:
    """Our parameters of a PyTorch system: {"generator", "neck", "critic"}."""
    return {name: import_torch.convert(name, uda_torch.arrays(getattr(system, name))) for name in ("generator", "neck", "critic")}


def place(system, hu):
    """The intensities of planes, as PyTorch takes them."""
    return system.place(np.array(normalise(hu))[..., 0])


def agree(name: str, ours, theirs, tolerance: float) -> None:
    """End the program where two results differ by more than `tolerance` of the largest value (of 1 where that is smaller)."""
    ours, theirs = np.asarray(ours, np.float64), theirs.detach().cpu().double().numpy()
    difference = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1.0)
    print(f"  {name}: differs by {difference:.1e}", flush=True)
    if not difference <= tolerance:
        raise SystemExit(f"{name} differs by {difference:.1e} from PyTorch, expected at most {tolerance:g}")


class Ours:
    """The product's own networks and updates, as published, at the weights of a PyTorch system."""

    def __init__(self, system):
        params = parameters(system)
        self.system, self.heads = uda.system_of(uda_config.get_config()), params["neck"]
        self.critic = start(self.system.critic_optimiser, {"params": params["critic"]})
        self.generator = start(self.system.generator_optimiser, params["generator"])

    def features(self, generator, hu):
        """Features [b, n, n, c] of planes."""
        return uda.features(self.system.model, generator, self.heads, hu)

    def critic_update(self, net, source, target):
        """One update from features of both domains."""
        everything = jnp.arange(len(source)), jnp.arange(len(target)), None
        return uda.critic_update(self.system, source, target, net, everything)

    def critic_step(self, net, generator, source, target):
        """One update from planes of both domains, which share one pass."""
        return self.critic_update(net, *jnp.split(self.features(generator, jnp.concatenate([source, target])), 2))

    def generator_step(self, net, critic, source, target, labels):
        """One update from planes of both domains and labels of the source."""
        batch = {"source": {"hu": source, "label": labels}, "target": {"hu": target}}
        return uda.generator_update(self.system, critic, self.heads, None, None, net, batch)


def systems(device):
    """PyTorch as published and tuned, from the same weights, on all cores."""
    torch.set_num_threads(cores())
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


def cases(options):
    """Generator of the cases whose work contains the text `options.only`; nothing is made for others."""
    race, device = Race(options.device), options.device
    works = {
        "generator, forward": race.forward,
        "critic update, features given": race.critic_alone,
        "critic update": race.critic,
        "generator update": race.generator,
        "UDA block": lambda: block(device, race.systems, ""),
        "source step": lambda: source_step(device),
        "UDA block, the authors' code": lambda: block(device, race.systems, "code"),
    }
    yield from (make() for work, make in works.items() if options.only in work)


class Race:
    """The same weights and planes on both sides; each method compiles one work of ours, compares it and returns its case."""

    def __init__(self, device):
        self.systems = systems(device)
        self.ours = Ours(self.systems[0])
        source, target, labels = planes(np.random.default_rng(0))
        self.placed = [[place(system, hu) for hu in (source, target)] for system in self.systems]
        self.classes = torch.from_numpy(labels[:, 0, WINDOW // 2, WINDOW // 2]).to(device)
        self.there = [jnp.asarray(a) for a in (source, target, labels)]

    def forward(self):
        """Features of one domain."""
        given = self.ours.generator.params, self.there[0]
        program, took = compiled(self.ours.features, *given)
        with torch.no_grad():
            theirs = self.systems[0].generator(self.placed[0][0])
        agree("features", np.moveaxis(np.asarray(program(*given)), -1, 1), theirs, 1e-4)
        works = [finish(functools.partial(pass_by, system, x[0])) for system, x in zip(self.systems, self.placed)]
        return Case("generator, forward", "16 x 3 planes 155x155", ready(program, *given), *works, program, took, flops=SAMPLES * FLOPS)

    def critic_alone(self):
        """A critic update on features that stand."""
        look = jax.jit(self.ours.features)
        given = self.ours.critic, *(look(self.ours.generator.params, hu) for hu in self.there[:2])
        program, took = compiled(self.ours.critic_update, *given)
        windows = [[pass_by(system, x).detach() for x in xs] for system, xs in zip(self.systems, self.placed)]
        loss = exact(uda_torch.System.critic_loss_of, self.systems[0], *windows[0])
        agree("first loss of the critic", -program(*given)[1]["gap"], loss, 1e-4)
        works = [finish(functools.partial(system.critic_update, *x)) for system, x in zip(self.systems, windows)]
        what = "critic update, features given", "16 + 16 windows 25x25x96"
        return Case(*what, ready(program, *given), *works, program, took, flops=CRITIC_UPDATE)

    def critic(self):
        """A critic update from planes."""
        given = self.ours.critic, self.ours.generator.params, *self.there[:2]
        program, took = compiled(self.ours.critic_step, *given)
        works = [finish(functools.partial(system.critic_step, *x)) for system, x in zip(self.systems, self.placed)]
        flops = 2 * SAMPLES * FLOPS + CRITIC_UPDATE
        return Case("critic update", "16 + 16 samples", ready(program, *given), *works, program, took, flops=flops)

    def generator(self):
        """A generator update from planes and labels."""
        given = self.ours.generator, self.ours.critic.params, *self.there
        program, took = compiled(self.ours.generator_step, *given)
        both = systems(self.classes.device.type)
        loss = exact(functools.partial(uda_torch.System.generator_loss_of, weight=2.0), both[0], *self.placed[0], self.classes)
        agree("first loss of the generator", program(*given)[1]["loss_generator"], loss, 1e-4)
        works = [finish(functools.partial(system.generator_step, *x, self.classes)) for system, x in zip(both, self.placed)]
        return Case("generator update", "16 + 16 samples", ready(program, *given), *works, program, took, flops=GENERATOR_UPDATE)


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
    batch = {name: {"hu": hu} for name, hu in zip(("pool_source", "pool_target", "source", "target"), (*pools, source, target))}
    batch["source"]["label"] = labels
    state = import_torch.begun(config, {"source": import_torch.begun(config.stages.source)})
    given = state, jax.tree.map(jnp.asarray, batch), jax.random.key(2)
    program, took = compiled(build(config).train_step, *given)

    def theirs(system, pairs, lasts):
        for pair in pairs:
            system.critic_step(*pair)
        for *last, classes in lasts:
            loss = system.generator_step(*last, classes)
        return loss

    works = []
    for system in systems:
        pairs = [[place(system, hu[i]) for hu in pools] for i in range(updates)]
        middle = [torch.from_numpy(y[:, 0, WINDOW // 2, WINDOW // 2]).to(device) for *_, y in lasts]
        placed = [[place(system, s), place(system, t), y] for (s, t, _), y in zip(lasts, middle)]
        theirs(system, pairs[:1], placed[:1])  # compiled and warm, as ours is; ten minutes a round are no place for it
        works.append(finish(functools.partial(theirs, system, pairs, placed)))
    work = "UDA block, the authors' code" if variant else "UDA block"
    flops = updates * (2 * SAMPLES * FLOPS + CRITIC_UPDATE) + moves * GENERATOR_UPDATE
    about = {"flops": flops, "rounds": LONG_ROUNDS if variant else None}
    return Case(work, f"{updates} + {moves} updates", ready(program, *given), *works, program, took, **about)


def source_step(device) -> Case:
    """One step of source training with deep supervision on 16 samples, dropout as each side draws it."""
    config = source_config.get_config()
    with config.unlocked():
        config.streams.source.count = (SAMPLES,)
    hu, _, labels = planes(np.random.default_rng(2))
    given = import_torch.begun(config), {"source": {"hu": jnp.asarray(hu), "label": jnp.asarray(labels)}}, jax.random.key(1)
    program, took = compiled(build(config).train_step, *given)
    x = np.array(normalise(hu))[..., 0]

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

    works = ready(program, *given), stepper(False), stepper(True)
    return Case("source step", "16 samples, deep supervision", *works, program, took, flops=3 * SAMPLES * FLOPS)

"""Calcium CycleGAN and its training step in PyTorch, written from van Velzen 2022, in two manners: eager as published; tuned, channels
last and torch.compile. Without pools. Shapes [b, c, y, x]."""

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

STATISTICS = {"mean": "running_mean", "var": "running_var"}
AFFINE = {"scale": "weight", "bias": "bias"}


class Norm(nn.BatchNorm2d):
    """Batch normalisation by the batch's moments, which running statistics follow where `keep`."""

    def forward(self, x, keep: bool):
        """Normalise."""
        kept = (self.running_mean, self.running_var) if keep else (None, None)
        return functional.batch_norm(x, *kept, self.weight, self.bias, True, self.momentum, self.eps)


class Normalised(nn.Module):
    """A convolution and its normalisation."""

    def __init__(self, conv):
        super().__init__()
        self.conv, self.norm = conv, Norm(conv.out_channels)

    def forward(self, x, keep: bool):
        """Both."""
        return self.norm(self.conv(x), keep)


class Generator(nn.Module):
    """Logits of a map [b, 1, y, x] of slices whose sides are multiples of 4."""

    def __init__(self, width: int, blocks: int, ends: int, skips: bool):
        super().__init__()
        beside = 1 + skips
        like = {"bias": False, "padding_mode": "reflect"}
        first = nn.Conv2d(1, width, ends, padding=ends // 2, **like)
        halves = [nn.Conv2d(n * width, 2 * n * width, 3, 2, 1, **like) for n in (1, 2)]
        inside = [nn.Conv2d(4 * width, 4 * width, 3, padding=1, **like) for _ in range(2 * blocks)]
        back = [nn.ConvTranspose2d(n * width, m * width, 3, 2, 1, 1, bias=False) for n, m in ((4, 2), (2 * beside, 1))]
        self.inward = nn.ModuleList(map(Normalised, (first, *halves)))
        self.inside = nn.ModuleList(map(Normalised, inside))
        self.back = nn.ModuleList(map(Normalised, back))
        self.last = nn.Conv2d(beside * width, 1, ends, padding=ends // 2, padding_mode="reflect")
        self.skips = skips

    def forward(self, x, keep: bool):
        """keep: of this call running statistics are kept."""
        seen = []
        for layer in self.inward:
            x = functional.relu(layer(x, keep))
            seen.append(x)
        seen.pop()
        for one, other in zip(self.inside[::2], self.inside[1::2]):
            x = x + other(functional.relu(one(x, keep)), keep)
        for layer in self.back:
            x = functional.relu(layer(x, keep))
            x = torch.cat([x, seen.pop()], 1) if self.skips else x
        return self.last(x)


class Discriminator(nn.Module):
    """Logits [b, 1, y', x'] of patches. layers: (size, stride, times the width) each."""

    def __init__(self, width: int, layers, last: int, norm: bool):
        super().__init__()
        before = [1, *(factor * width for *_, factor in layers)]
        self.normal = [norm and i > 0 for i in range(len(layers))]
        self.convs = nn.ModuleList(
            nn.Conv2d(n, factor * width, size, stride, 1, bias=not normal)
            for n, normal, (size, stride, factor) in zip(before, self.normal, layers)
        )
        self.norms = nn.ModuleList(Norm(n) if normal else nn.Identity() for n, normal in zip(before[1:], self.normal))
        self.last = nn.Conv2d(before[-1], 1, last, padding=int(last > 1))

    def forward(self, x):
        """Judge."""
        for conv, norm, normal in zip(self.convs, self.norms, self.normal):
            x = conv(x)
            x = functional.leaky_relu(norm(x, False) if normal else x, 0.2)
        return self.last(x)


class Learner:
    """Both generators and both discriminators from our parameters {"remove", "insert", "free", "calcified"}, and their step.

    config: of calcium CycleGAN, with the way back; its pool is taken to be 0, generators' rate to be constant.
    """

    def __init__(self, params, config, *, tuned: bool, device="cpu", dtype=None):
        own, judge = config.generator.model, config.discriminator.model
        shape = {name: own[name] for name in ("width", "blocks", "ends", "skips")}
        of_judge = {name: judge[name] for name in ("width", "layers", "last", "norm")}
        self.config, self.count = config, 0
        self.networks = {name: Generator(**shape) for name in ("remove", "insert")}
        self.networks |= {name: Discriminator(**of_judge) for name in ("free", "calcified")}
        for name, network in self.networks.items():
            network.to(device, dtype)
            network.load_state_dict(state_dict(params[name], network), strict=False)  # running statistics begin alike
            if tuned:
                network.to(memory_format=torch.channels_last).compile()
        rates = {
            name: config.generator.rate.peak if name in ("remove", "insert") else config.discriminator.rate.peak for name in self.networks
        }
        self.optimisers = {
            name: torch.optim.Adam(network.parameters(), rates[name], (config.b1, 0.999)) for name, network in self.networks.items()
        }

    def place(self, hu, heart):
        """(slices in 0..1, hearts in 0, 1) [b, 1, y, x] of whole Hounsfield units and masks [b, y, x]."""
        like, seen = next(self.networks["remove"].parameters()), self.config.seen
        x = torch.tensor(np.asarray(hu)).to(like.device, like.dtype).clamp(seen.low, seen.high)
        heart = torch.tensor(np.asarray(heart)).to(x) if self.config.heart_only else torch.ones_like(x)
        return ((x - seen.low) / (seen.high - seen.low))[:, None], heart[:, None]

    def step(self, calcified, free):
        """One update of all four; {metric: value} before it. calcified, free: (slices, hearts)."""
        warm = self.count < self.config.discriminator.warmup
        self.trained("remove", "insert")
        loss, twins, metrics = self.generator_loss(calcified, free, keep=not warm)
        if not warm:
            self.move(loss, "remove", "insert")
        self.trained("free", "calcified")
        real = {"free": free, "calcified": calcified}
        share = 1.0 if warm else self.config.discriminator.from_real
        for name, other in (("free", calcified), ("calcified", free)):
            metrics[f"judge_{name}"] = self.judge_loss(name, real[name], (twins[name].detach(), other[1]), other, share)
        self.move(metrics["judge_free"] + metrics["judge_calcified"], "free", "calcified")
        self.count += 1
        return {name: value.detach() for name, value in metrics.items()}

    def trained(self, *names):
        """Only these networks take gradients."""
        for name, network in self.networks.items():
            network.requires_grad_(name in names)

    def move(self, loss, *names):
        """A step down the gradient of these networks."""
        for name in names:
            self.optimisers[name].zero_grad()
        loss.backward()
        for name in names:
            self.optimisers[name].step()

    def generator_loss(self, calcified, free, *, keep: bool):
        """(loss, twins by what they are made to look like, metrics): equations 1 to 5 of the paper."""
        (x_c, heart_c), (x_n, heart_n) = calcified, free
        taken, idle = self.maps("remove", x_c, x_n, keep)
        put, useless = self.maps("insert", x_n, x_c, keep)
        twins = {"free": x_c - taken * heart_c, "calcified": x_n + put * heart_n}
        adversarial = self.verdict("free", (twins["free"], heart_c), real=True)
        adversarial = adversarial + self.verdict("calcified", (twins["calcified"], heart_n), real=True)
        cycle = ((self.map("insert", twins["free"], False) - taken) * heart_c).abs().mean()
        cycle = cycle + ((self.map("remove", twins["calcified"], False) - put) * heart_n).abs().mean()
        weights, span = self.config.weights, self.config.seen.high - self.config.seen.low
        empty, sparse = idle.mean() + useless.mean(), taken.mean() + put.mean()
        loss = adversarial + weights.cycle * cycle + weights.identity * empty + weights.sparsity * sparse
        metrics = {"loss": loss, "adversarial": adversarial, "cycle": cycle, "map_hu": span * taken.mean()}
        return loss, twins, metrics | {"identity_hu": span * idle.mean(), "inserted_hu": span * put.mean()}

    def maps(self, name, works_on, idle, keep):
        """Of what a generator works on, and where it has nothing to do."""
        if self.config.generator.together:
            return self.map(name, torch.cat([works_on, idle]), keep).chunk(2)
        return self.map(name, works_on, keep), self.map(name, idle, False)

    def map(self, name, x, keep):
        """In 0..1."""
        return self.networks[name](self.shown(x), keep).sigmoid()

    def shown(self, x):
        """What a network is given of a slice."""
        return (x - self.config.seen.shift) * self.config.seen.scale

    def verdict(self, name, slices, *, real: bool):
        """Cross-entropy of a discriminator's answer, mean over patches that touch the heart."""
        x, heart = slices
        logits = self.networks[name](self.shown(x * heart))
        weights = functional.adaptive_max_pool2d(heart, logits.shape[2:])
        return (functional.softplus(-logits if real else logits) * weights).sum() / weights.sum().clamp(min=1)

    def judge_loss(self, name, real, fakes, other, share):
        """Half of equation 2; a share of the fakes are real slices of the other kind."""
        unmasked = self.verdict(name, fakes, real=False) if share < 1 else 0.0
        if share:
            unmasked = (1 - share) * unmasked + share * self.verdict(name, other, real=False)
        return 0.5 * (unmasked + self.verdict(name, real, real=True))


def names(network):
    """Pairs of where a parameter or running statistic stands in ours, and its name in PyTorch."""
    if isinstance(network, Discriminator):
        for i, normal in enumerate(network.normal):
            yield f"layer_{i}_kernel", f"convs.{i}.weight"
            yield from of_norm(f"norm_{i}", f"norms.{i}") if normal else [(f"layer_{i}_bias", f"convs.{i}.bias")]
        yield from (("last_kernel", "last.weight"), ("last_bias", "last.bias"))
        return
    layers = [(f"Normalised_{i}", f"inward.{i}") for i in range(3)]
    layers += [(f"Block_{i // 2}/Normalised_{i % 2}", f"inside.{i}") for i in range(len(network.inside))]
    layers += [(f"Normalised_{3 + i}", f"back.{i}") for i in range(2)]
    for ours, theirs in layers:
        yield f"{ours}/Conv2D_0/kernel", f"{theirs}.conv.weight"
        yield from of_norm(f"{ours}/BatchNorm_0", f"{theirs}.norm")
    yield from (("Conv2D_0/kernel", "last.weight"), ("last_bias", "last.bias"))


def of_norm(ours, theirs):
    """Those pairs of a normalisation."""
    return ((f"{ours}/{name}", f"{theirs}.{named}") for name, named in (AFFINE | STATISTICS).items())


def state_dict(params, network) -> dict:
    """Our parameters as PyTorch's; running statistics are left out."""
    flat = {"/".join(key.key for key in path): np.asarray(value) for path, value in jax.tree_util.tree_leaves_with_path(params)}
    pairs = {ours: theirs for ours, theirs in names(network) if "running" not in theirs}
    assert pairs.keys() == flat.keys() and set(pairs.values()) == dict(network.named_parameters()).keys()
    turned = {theirs: flat[ours].transpose(_axes(flat[ours], theirs, (3, 2, 0, 1))) for ours, theirs in pairs.items()}
    return {theirs: torch.tensor(np.ascontiguousarray(value)) for theirs, value in turned.items()}


def ours_of(network) -> dict:
    """A network's parameters and running statistics as {"Block_0/Normalised_0/Conv2D_0/kernel": array, ..} in our arrangement."""
    state = {name: value.cpu().numpy() for name, value in network.state_dict().items()}
    return {ours: state[theirs].transpose(_axes(state[theirs], theirs, (2, 3, 1, 0))) for ours, theirs in names(network)}


def _axes(array, theirs, of_kernel):
    """In which order an array's axes become the other side's; transposed convolutions have theirs the other way."""
    if array.ndim == 1:
        return (0,)
    return (2, 3, 0, 1) if theirs.startswith("back") else of_kernel

"""CAC-Net, its loss and its joint step in PyTorch, written from Zhang 2018, in two manners: eager as published; tuned, channels last and
torch.compile. Forms "cacnet" and "unet3d"; no dropout. Shapes [b, c, z, y, x], of slices [b z, c, y, x]."""

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

STEM, LAYERS, BOTTOM, LEVELS, CLASSES = (3, 5, 7), (3, 4, 5), 6, 6, 4
WEIGHTS = tuple(w / 31 for w in (16, 8, 4, 2, 1))  # of the heads, the finest first


class DenseBlock(nn.Module):
    """Layers that see the input and all new maps before them; the new maps."""

    def __init__(self, layers: int, before: int, growth: int):
        super().__init__()
        seen = [before + i * growth for i in range(layers)]
        self.norm1 = nn.ModuleList(nn.BatchNorm2d(n) for n in seen)
        self.conv1 = nn.ModuleList(nn.Conv2d(n, 4 * growth, 1, bias=False) for n in seen)
        self.norm2 = nn.ModuleList(nn.BatchNorm2d(4 * growth) for _ in seen)
        self.conv2 = nn.ModuleList(nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False) for _ in seen)

    def forward(self, x):
        """The new maps beside each other."""
        new = []
        for norm1, conv1, norm2, conv2 in zip(self.norm1, self.conv1, self.norm2, self.conv2):
            y = functional.relu(conv1(norm1(torch.cat([x, *new], 1))))
            new.append(functional.relu(conv2(norm2(y))))
        return torch.cat(new, 1)


class UDenseNet(nn.Module):
    """2D U-DenseNet: features [b, 12 growth, y, x] of slices [b, 1, y, x]."""

    def __init__(self, growth: int):
        super().__init__()
        k, before = growth, [len(STEM) * growth]
        for layers in LAYERS:
            before.append(before[-1] + layers * k)
        below = [LAYERS[1] * k, LAYERS[2] * k, BOTTOM * k]  # channels that come up to a level
        self.stem = nn.ModuleList(nn.Conv2d(1, k, size, padding=size // 2, bias=False) for size in STEM)
        self.inward = nn.ModuleList(DenseBlock(n, c, k) for n, c in zip(LAYERS, before))
        self.transition = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c, 1, bias=False), nn.MaxPool2d(2)) for c in before[1:]
        )
        self.bottom = DenseBlock(BOTTOM, before[-1], k)
        self.skip = nn.ModuleList(nn.Conv2d(n * k, c, 1, bias=False) for n, c in zip(LAYERS, below))
        self.back = nn.ModuleList(DenseBlock(n, c, k) for n, c in zip(LAYERS, below))
        self.past = nn.ModuleList(nn.Conv2d(c, n * k, 1, bias=False) for n, c in zip(LAYERS[1:], below[1:]))  # of levels 1 and 2

    def forward(self, x):
        """Features at full resolution."""
        x, kept, answers = torch.cat([conv(x) for conv in self.stem], 1), [], []
        for block, down in zip(self.inward, self.transition):
            kept.append(block(x))
            x = down(torch.cat([x, kept[-1]], 1))
        x = self.bottom(x)
        for i in (2, 1, 0):
            finer = larger(x, (2, 2)) + self.skip[i](kept[i])
            answer = self.back[i](finer)
            answers.append(larger(answer, (2**i, 2**i)) if i else answer)
            if i:
                x = answer + self.past[i - 1](finer)
        return torch.cat(answers, 1)


class Submodule(nn.Sequential):
    """Twice a 3D convolution, normalisation by "group" or "batch", rectifier."""

    def __init__(self, before: int, features: int, norm: str):
        layers = []
        for n in (before, features):
            normal = nn.GroupNorm(min(8, features), features) if norm == "group" else nn.BatchNorm3d(features)
            layers += [nn.Conv3d(n, features, 3, padding=1, bias=False), normal, nn.ReLU()]
        super().__init__(*layers)


class UNet(nn.Module):
    """3D U-Net: logits of five heads, the finest first, each of its own level; the first `flat` poolings keep z."""

    def __init__(self, before: int, width: int, flat: int = 0, norm: str = "group"):
        super().__init__()
        self.norm = norm
        widths = [width * 2**level for level in range(LEVELS)]
        self.pools = [(1 if level < flat else 2, 2, 2) for level in range(LEVELS - 1)]
        self.down = nn.ModuleList(Submodule(n, w, norm) for n, w in zip([before, *widths], widths))
        self.up = nn.ModuleList(Submodule(3 * w, w, norm) for w in widths[:-1])
        self.head = nn.ModuleList(nn.Conv3d(w, CLASSES, 1) for w in widths[:-1])

    def forward(self, x):
        """Logits."""
        kept, answers = [], []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool3d(x, self.pools[level - 1]) if level else x)
            kept.append(x)
        for level in range(LEVELS - 2, -1, -1):
            x = self.up[level](torch.cat([kept[level], larger(x, self.pools[level])], 1))
            answers.append(self.head[level](x))
        return answers[::-1]


class CACNet(nn.Module):
    """Logits of five heads of [b, 1, z, y, x]."""

    def __init__(self, form: str = "cacnet", growth: int = 16, width: int = 16, flat: int = 0, norm: str = "group"):
        super().__init__()
        self.slices = UDenseNet(growth) if form == "cacnet" else None
        self.volume = UNet(12 * growth if self.slices else 1, width, flat, norm)

    def forward(self, x):
        """The 2D network on every slice, the 3D one on what it gives."""
        if self.slices:
            b, _, z, height, width = x.shape
            x = self.slices(x.transpose(1, 2).reshape(b * z, 1, height, width))
            x = x.reshape(b, z, -1, height, width).transpose(1, 2)
        return self.volume(x)


def larger(x, factors):
    """Linear interpolation, half-pixel centres."""
    return functional.interpolate(x, scale_factor=tuple(map(float, factors)), mode="bilinear" if x.ndim == 4 else "trilinear")


def joint_loss(network, x, label):
    """(loss, Dice [4] of LAD, LCX, RCA and all of them at the finest head): sums of 1 - Dice over these four, by head and volume."""
    loss, finest = 0, None
    for weight, logits in zip(WEIGHTS, network(x)):
        p = functional.interpolate(logits, size=x.shape[2:], mode="trilinear").softmax(1) if finest is not None else logits.softmax(1)
        overlaps = torch.stack([*(dice(p[:, c], label == c) for c in (1, 2, 3)), dice(1 - p[:, 0], label > 0)], 1)
        finest = overlaps.mean(0).detach() if finest is None else finest
        loss = loss + weight * (1 - overlaps).sum(1).mean()
    return loss, finest


def dice(p, real):
    """Of each volume, with squared sizes."""
    real = real.to(p.dtype)
    shared, sizes = (p * real).sum((1, 2, 3)), (p * p).sum((1, 2, 3)) + (real * real).sum((1, 2, 3))
    return (2 * shared + 1) / (sizes + 1)


class Learner:
    """A network with its optimiser from our parameters, in either manner; settings: of `CACNet`."""

    def __init__(
        self, params, *, steps: int, peak: float, last: float, weight_decay: float, tuned: bool, device="cpu", dtype=None, **settings
    ):
        self.network = CACNet(**settings).to(device, dtype)
        self.network.load_state_dict(state_dict(params, self.network), strict=False)  # running statistics begin alike
        if tuned:
            for part, layout in ((self.network.slices, torch.channels_last), (self.network.volume, torch.channels_last_3d)):
                part is None or part.to(memory_format=layout)
        each = list(self.network.parameters())
        groups = [{"params": [p for p in each if p.ndim > 1], "weight_decay": weight_decay}, {"params": [p for p in each if p.ndim < 2]}]
        self.optimiser = torch.optim.Adam(groups, lr=peak)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, steps, last)
        self.loss = torch.compile(joint_loss) if tuned else joint_loss

    def place(self, hu, label):
        """Network input and labels [b, z, y, x] of whole Hounsfield units and labels."""
        like = next(self.network.parameters())
        x = (torch.tensor(np.asarray(hu)).to(like.device, like.dtype).clamp(-1024, 3071) + 1024) / 4095
        return x[:, None], torch.tensor(np.asarray(label), device=like.device)

    def step(self, x, label):
        """One update; returns loss and Dice before it."""
        self.optimiser.zero_grad()
        loss, overlaps = self.loss(self.network, x, label)
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        return loss.detach(), overlaps


def names(slices: bool, norm: str):
    """Pairs of where a parameter or running statistic stands in ours, and its name in PyTorch."""
    if slices:
        yield from ((f"slices/stem_{size}", f"slices.stem.{i}.weight") for i, size in enumerate(STEM))
        blocks = [
            (f"{ours}_{i}", f"{theirs}.{i}", n) for i, n in enumerate(LAYERS) for ours, theirs in (("in", "inward"), ("back", "back"))
        ]
        for ours, theirs, layers in (*blocks, ("bottom", "bottom", BOTTOM)):
            for i in range(layers):
                kinds = {f"narrow_{i}": "conv1", f"wide_{i}": "conv2", f"scale_{i}": "norm1"}
                yield from ((f"slices/{ours}/{a}", f"slices.{theirs}.{b}.{i}.weight") for a, b in kinds.items())
                yield f"slices/{ours}/shift_{i}", f"slices.{theirs}.norm1.{i}.bias"
                yield from of_norm(f"slices/{ours}/norm_{i}", f"slices.{theirs}.norm2.{i}")
                yield from of_norm(f"slices/{ours}/moments_{i or 'in'}", f"slices.{theirs}.norm1.{i}", ("mean", "var"))
        for i in range(len(LAYERS)):
            yield from of_norm(f"slices/transition_{i}/Normalisation_0", f"slices.transition.{i}.0")
            yield f"slices/transition_{i}/Pointwise_0/kernel", f"slices.transition.{i}.2.weight"
            yield f"slices/skip_{i}/kernel", f"slices.skip.{i}.weight"
            if i:
                yield f"slices/past_{i}/kernel", f"slices.past.{i - 1}.weight"
    for i in range(2 * LEVELS - 1):
        theirs = f"volume.down.{i}" if i < LEVELS else f"volume.up.{2 * (LEVELS - 1) - i}"
        for half in (0, 1):
            yield f"volume/Block_{i}/Kernel3_{half}/kernel", f"{theirs}.{3 * half}.weight"
            if norm == "group":
                yield from of_norm(f"volume/Block_{i}/GroupNormalisation_{half}", f"{theirs}.{3 * half + 1}", ("scale", "bias"))
            else:
                yield from of_norm(f"volume/Block_{i}/Normalisation_{half}", f"{theirs}.{3 * half + 1}")
    for i in range(LEVELS - 1):
        yield from ((f"volume/Pointwise_{i}/{a}", f"volume.head.{LEVELS - 2 - i}.{b}") for a, b in (("kernel", "weight"), ("bias", "bias")))


def of_norm(ours, theirs, which=("scale", "bias", "mean", "var")):
    """Those pairs of a normalisation."""
    named = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return ((f"{ours}/{name}", f"{theirs}.{named[name]}") for name in which)


def state_dict(params, network) -> dict:
    """Our parameters as PyTorch's; running statistics are left out."""
    flat = {"/".join(key.key for key in path): np.asarray(value) for path, value in jax.tree_util.tree_leaves_with_path(params)}
    like = network.state_dict()
    pairs = [(ours, theirs) for ours, theirs in names(network.slices is not None, network.volume.norm) if "running" not in theirs]
    assert {ours for ours, _ in pairs} == set(flat) and {theirs for _, theirs in pairs} == dict(network.named_parameters()).keys()
    turned = {
        theirs: flat[ours].transpose(-1, -2, *range(flat[ours].ndim - 2)) if flat[ours].ndim > 1 else flat[ours] for ours, theirs in pairs
    }
    return {theirs: torch.tensor(np.ascontiguousarray(value)).reshape(like[theirs].shape) for theirs, value in turned.items()}


def ours_of(network) -> dict:
    """A network's parameters and running statistics as {"volume/Block_0/Kernel3_0/kernel": array, ..} in our arrangement."""
    state, out = {name: value.cpu().numpy() for name, value in network.state_dict().items()}, {}
    for ours, theirs in names(network.slices is not None, network.volume.norm):
        value = state[theirs]
        if value.ndim > 1:
            value = value.transpose(*range(2, value.ndim), 1, 0)
            value = value.reshape(value.shape[-2:]) if value.shape[0] == 1 else value
        new = ours.split("/")[-2].startswith("moments_") and not ours.split("/")[-2].endswith("in")
        out[ours] = value[-_growth(network) :] if new else value  # ours keeps those of each map once
    return out


def _growth(network):
    return network.slices.stem[0].out_channels

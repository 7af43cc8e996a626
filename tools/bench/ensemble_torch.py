"""The network, loss and step of Gogin 2021 in PyTorch, written from the paper, in two manners: eager as published; tuned, channels last
and torch.compile. Shapes [b, c, z, y, x]."""

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

MOMENTUM = 0.1  # of the new batch, as ours has .9 of the old


class Block(nn.Module):
    """Two convolutions with batch normalisation, a shortcut, ELU."""

    def __init__(self, before: int, features: int):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv3d(n, features, 3, padding=1, bias=False) for n in (before, features))
        self.norm1, self.norm2 = (nn.BatchNorm3d(features, momentum=MOMENTUM) for _ in range(2))
        self.shortcut = nn.Conv3d(before, features, 1, bias=False) if before != features else nn.Identity()

    def forward(self, x):
        """The block's output."""
        y = functional.elu(self.norm1(self.conv1(x)))
        return functional.elu(self.norm2(self.conv2(y)) + self.shortcut(x))


class UNet(nn.Module):
    """Residual 3D U-Net: logits [b, 1, z, y, x]."""

    def __init__(self, width: int = 16, levels: int = 4):
        super().__init__()
        widths = [width * 2**i for i in range(levels)]
        self.down = nn.ModuleList(Block(before, after) for before, after in zip([1, *widths], widths))
        self.up = nn.ModuleList(nn.Conv3d(2 * w, w, 3, padding=1) for w in widths[-2::-1])
        self.join = nn.ModuleList(Block(2 * w, w) for w in widths[-2::-1])
        self.head = nn.Conv3d(width, 1, 1)

    def forward(self, x):
        """Logits of a batch."""
        kept = []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool3d(x, 2) if level else x)
            kept.append(x)
        for up, join, skip in zip(self.up, self.join, kept[-2::-1]):
            x = join(torch.cat([skip, up(functional.interpolate(x, scale_factor=2))], 1))
        return self.head(x)


def dice_loss(network, x, real):
    """1 - Dice with squared sizes, mean over the batch (Milletari 2016)."""
    p, axes = torch.sigmoid(network(x)), (1, 2, 3, 4)
    shared, sizes = (p * real).sum(axes), (p * p).sum(axes) + (real * real).sum(axes)
    return (1 - (2 * shared + 1) / (sizes + 1)).mean()


class Member:
    """A network with its optimiser, from our parameters, in either manner."""

    def __init__(self, params, *, levels: int, rate: float, tuned: bool, device: str = "cpu", dtype=torch.float32):
        width = params["Block_0"]["Kernel3_0"]["kernel"].shape[-1]
        self.network = UNet(width, levels)
        self.network.load_state_dict(state_dict(params, levels), strict=False)  # running statistics begin alike
        self.layout = torch.channels_last_3d if tuned else torch.contiguous_format
        self.network.to(device, dtype, memory_format=self.layout)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=rate)
        self.loss = torch.compile(dice_loss) if tuned else dice_loss

    def place(self, array):
        """An array [b, z, y, x] as the network takes it."""
        like = next(self.network.parameters())
        return torch.tensor(array)[:, None].to(like.device, like.dtype).contiguous(memory_format=self.layout)

    def step(self, x, real):
        """One update; returns the loss."""
        self.optimiser.zero_grad()
        loss = self.loss(self.network, x, real)
        loss.backward()
        self.optimiser.step()
        return loss.detach()


def names(levels: int):
    """Pairs of where a parameter or running statistic stands in ours, and its name in PyTorch."""
    blocks = [(f"Block_{i}", f"down.{i}" if i < levels else f"join.{i - levels}") for i in range(2 * levels - 1)]
    of_norm = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for ours, theirs in blocks:
        for i in (0, 1):
            yield f"{ours}/Kernel3_{i}/kernel", f"{theirs}.conv{i + 1}.weight"
            yield from ((f"{ours}/Normalisation_{i}/{a}", f"{theirs}.norm{i + 1}.{b}") for a, b in of_norm.items())
        yield f"{ours}/Pointwise_0/kernel", f"{theirs}.shortcut.weight"
    for part, theirs in (*((f"Up_{i}", f"up.{i}") for i in range(levels - 1)), ("Pointwise_0", "head")):
        yield from ((f"{part}/{a}", f"{theirs}.{b}") for a, b in (("kernel", "weight"), ("bias", "bias")))


def state_dict(params, levels: int) -> dict:
    """Our parameters of a U-Net as PyTorch's; running statistics are left out."""
    flat = {"/".join(key.key for key in path): value for path, value in jax.tree_util.tree_leaves_with_path(params)}
    return {theirs: torch.tensor(_turned(np.asarray(flat[ours]))) for ours, theirs in names(levels) if ours in flat}


def ours_of(state, levels: int) -> dict:
    """A state_dict of PyTorch as {"Block_0/Kernel3_0/kernel": array, ..} in our arrangement."""
    return {ours: _turned(state[theirs].numpy(), back=True) for ours, theirs in names(levels) if theirs in state}


def _turned(a, *, back=False):
    """A kernel in the other arrangement: [z, y, x, c, f] or [c, f], and [f, c, z, y, x]."""
    if a.ndim < 2:
        return a
    if back:
        a = a.transpose(2, 3, 4, 1, 0)
        return a[0, 0, 0] if a.shape[:3] == (1, 1, 1) else a
    return a.transpose(4, 3, 0, 1, 2) if a.ndim == 5 else a.T[:, :, None, None, None]

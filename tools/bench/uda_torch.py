"""The networks, losses and steps of Zhai 2022 in PyTorch, written from the paper and the described key layout, in two manners.

*As published*: eager, [b, c, h, w] in memory; the critic is called on each domain's batch, and the generator's graph is built and
thrown away in its steps. *Tuned*: no graph where nothing is trained, channels last, torch.compile. Shapes [b, c, h, w]; planes
[b, 3, 155, 155], features [b, 96, 25, 25].
"""

import torch
from torch import nn
from torch.nn import functional

DILATIONS = (1, 1, 2, 4, 8, 16, 32, 1)
CRITIC_CHANNELS = (128, 128, 256, 128, 64, 32, 1)
CLIP = 0.1


class Generator(nn.Module):
    """Three subnets of dilated convolutions, one per plane; [b, 3, h, w] -> [b, 3 * width, h - 130, w - 130] as published."""

    def __init__(self, width: int = 32, dilations: tuple = DILATIONS):
        super().__init__()
        self.subnets = nn.ModuleList(self._subnet(width, dilations) for _ in range(3))

    @staticmethod
    def _subnet(width, dilations):
        layers = []
        for i, dilation in enumerate(dilations):
            layers += [nn.Conv2d(width if i else 1, width, 3, dilation=dilation), nn.ELU()]
        return nn.Sequential(*layers, nn.Conv2d(width, width, 1), nn.ELU())

    def forward(self, x):
        """Features of all planes side by side."""
        return torch.cat([subnet(x[:, i : i + 1]) for i, subnet in enumerate(self.subnets)], 1)


class Neck(nn.Module):
    """The main head, frozen in adaptation: features -> class probabilities at the centre [b, 7, 1, 1]."""

    def __init__(self, width: int = 32, hidden: int = 128, classes: int = 7):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3 * width, hidden, 1), nn.Conv2d(hidden, classes, 1)

    def logits(self, features):
        """Class logits at every pixel."""
        return self.conv2(functional.elu(self.conv1(features)))

    def forward(self, features):
        """Probabilities at the centre."""
        c = features.shape[-1] // 2
        return self.logits(features[:, :, c : c + 1, c : c + 1]).softmax(1)


class Dilated(Generator):
    """The whole first-stage network: centre logits [b, 7, 1, 1] and auxiliary logits, three of [b, 7, h, w]."""

    def __init__(self, width: int = 32, hidden: int = 128, classes: int = 7, dilations: tuple = DILATIONS):
        super().__init__(width, dilations)
        for i in range(3):
            setattr(self, f"auxClassifier{i}", nn.Sequential(nn.Dropout(0.35), nn.Conv2d(width, classes, 1)))
        self.conv1, self.conv2 = nn.Conv2d(3 * width, hidden, 1), nn.Conv2d(hidden, classes, 1)

    def forward(self, x):
        """Centre logits, auxiliary logits."""
        maps = [subnet(x[:, i : i + 1]) for i, subnet in enumerate(self.subnets)]
        c = maps[0].shape[-1] // 2
        middle = torch.cat([m[:, :, c : c + 1, c : c + 1] for m in maps], 1)
        main = self.conv2(functional.elu(self.conv1(middle)))
        return main, [getattr(self, f"auxClassifier{i}")(m) for i, m in enumerate(maps)]


class Critic(nn.Module):
    """Convolutions with batch normalisation on feature windows, one value [b, 1]."""

    def __init__(self, inputs: int = 96, channels: tuple = CRITIC_CHANNELS, side: int = 25):
        super().__init__()
        layers = []
        for before, after in zip((inputs, *channels), channels):
            layers += [nn.Conv2d(before, after, 3), nn.BatchNorm2d(after), nn.ReLU()]
        last = channels[-1] * (side - 2 * len(channels)) ** 2
        self.module_seq = nn.Sequential(*layers, nn.Flatten(), nn.Linear(last, 1))

    def forward(self, features):
        """Critic values."""
        return self.module_seq(features)


class Rescaling(nn.Module):
    """Batch normalisation as the second stage stores it: four parameters, mean and inverse standard deviation among them."""

    def __init__(self, channels: int):
        super().__init__()
        for name, value in (("beta", 0.0), ("gamma", 1.0), ("mu", 0.0), ("denom", 1.0)):
            setattr(self, name, nn.Parameter(torch.full((channels,), value)))

    def forward(self, x):
        """x [b, c, ...] rescaled."""
        shape = (1, -1, *[1] * (x.ndim - 2))
        mu, scale, beta = (each.view(shape) for each in (self.mu, self.denom * self.gamma, self.beta))
        return (x - mu) * scale + beta


class Undilated(nn.Module):
    """The second-stage network: patches [b, 3, 65, 65] -> probabilities [b, 2]."""

    def __init__(self, widths: tuple = (24, 32, 48, 32), hidden: int = 256):
        super().__init__()
        self.subnets = nn.ModuleList(self._subnet(widths) for _ in range(3))
        first, last = nn.Linear(3 * widths[-1] * 36, hidden, bias=False), nn.Linear(hidden, 2)
        self.classifier = nn.Sequential(nn.Dropout(0.5), first, nn.ReLU(), Rescaling(hidden), last, nn.Softmax(1))

    @staticmethod
    def _subnet(widths):
        layers = []
        for before, after, size in zip((1, *widths), widths, (5, 3, 3, 1)):
            layers += [nn.Conv2d(before, after, size, bias=False), nn.ELU(), Rescaling(after), nn.MaxPool2d(2)]
        return nn.Sequential(*layers[:-1], nn.Flatten())

    def forward(self, x):
        """Class probabilities."""
        return self.classifier(torch.cat([subnet(x[:, i : i + 1]) for i, subnet in enumerate(self.subnets)], 1))


class System:
    """Generator, critic and neck with their optimisers, and the steps of an adaptation, in one of the two manners."""

    def __init__(self, *, tuned: bool, device: str = "cpu", double: bool = False, compiled: bool = False, seed: int = 0, **sizes):
        torch.manual_seed(seed)
        width, critic = sizes.get("width", 32), sizes.get("critic", CRITIC_CHANNELS)
        self.tuned, self.device = tuned, device
        self.dtype = torch.float64 if double else torch.float32
        self.layout = torch.channels_last if tuned else torch.contiguous_format
        generator = Generator(width, sizes.get("dilations", DILATIONS))
        networks = generator, Critic(3 * width, critic, sizes.get("side", 25)), Neck(width, sizes.get("hidden", 128))
        self.generator, self.critic, self.neck = (n.to(device, self.dtype, memory_format=self.layout) for n in networks)
        for parameter in self.neck.parameters():
            parameter.requires_grad_(False)
        self.critic_optimiser, self.generator_optimiser = (
            torch.optim.RMSprop(n.parameters(), lr=rate, alpha=0.99, eps=1e-8, weight_decay=5e-4)
            for n, rate in ((self.generator, 5e-5), (self.critic, 5e-4))[::-1]
        )
        self.features = torch.compile(self.generator) if compiled else self.generator
        self.critic_loss = torch.compile(self.critic_loss_of) if compiled else self.critic_loss_of
        self.generator_loss = torch.compile(self.generator_loss_of) if compiled else self.generator_loss_of

    def place(self, array):
        """A numpy array [b, c, h, w] as this manner wants it."""
        return torch.from_numpy(array).to(self.device, self.dtype).contiguous(memory_format=self.layout)

    def critic_loss_of(self, source, target):
        """The critic's loss from features, never compiled."""
        return -(self.critic(source).mean() - self.critic(target).mean())

    def generator_loss_of(self, source, target, labels, weight):
        """The generator's loss from planes, never compiled."""
        adapted, labelled = self.generator(target), self.generator(source)
        classes = functional.cross_entropy(self.neck.logits(centre(labelled)).flatten(1), labels)
        return -self.critic(adapted).mean() + weight * classes

    def critic_step(self, source, target):
        """One critic update from planes of both domains; returns the loss before it."""
        with torch.set_grad_enabled(not self.tuned):
            features = self.features(source), self.features(target)
        return self.critic_update(*(f.detach() for f in features))

    def critic_update(self, source, target):
        """One critic update from features of both domains."""
        self.critic_optimiser.zero_grad()
        loss = self.critic_loss(source, target)
        loss.backward()
        self.critic_optimiser.step()
        with torch.no_grad():
            for parameter in self.critic.parameters():
                parameter.clamp_(-CLIP, CLIP)
        return loss.detach()

    def generator_step(self, source, target, labels, weight: float = 2.0):
        """One generator update: adversarial loss on the target planes, `weight` times cross-entropy on the labelled source."""
        for parameter in self.critic.parameters():
            parameter.requires_grad_(False)
        self.generator_optimiser.zero_grad()
        loss = self.generator_loss(source, target, labels, weight)
        loss.backward()
        self.generator_optimiser.step()
        for parameter in self.critic.parameters():
            parameter.requires_grad_(True)
        return loss.detach()


def source_loss(network, x, labels, weight: float = 0.05, *, twice: bool = False):
    """Source training with deep supervision: labels [b, 3, n, n]; `twice`: through softmax once more, as in the authors' code."""
    main, auxiliary = network(x)
    if twice:
        main, auxiliary = main.softmax(1), [maps.softmax(1) for maps in auxiliary]
    c = labels.shape[-1] // 2
    deep = sum(functional.cross_entropy(maps, labels[:, i]) for i, maps in enumerate(auxiliary))
    return functional.cross_entropy(main.flatten(1), labels[:, 0, c, c]) + weight * deep


def randomised(network):
    """The network with other than trivial means, deviations, scales and shifts in its Rescaling layers."""
    for layer in network.modules():
        if isinstance(layer, Rescaling):
            for parameter, low, high in ((layer.beta, -1, 1), (layer.gamma, 0.5, 2), (layer.mu, -0.5, 0.5), (layer.denom, 0.5, 2)):
                nn.init.uniform_(parameter, low, high)
    return network


def arrays(network) -> dict:
    """The state dict of a network as numpy arrays, which its training does not change."""
    return {key: value.detach().cpu().contiguous().numpy().copy() for key, value in network.state_dict().items()}


def centre(maps):
    """The middle pixel of maps [b, c, n, n], which all orientations share: [b, c, 1, 1]."""
    c = maps.shape[-1] // 2
    return maps[:, :, c : c + 1, c : c + 1]

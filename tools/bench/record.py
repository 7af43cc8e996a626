"""Record what PyTorch computes, for tests where it is not installed: `python tools/bench/record.py` writes two files in tests/.

import_torch.npz: small networks in the published key layout, inputs in halves, and their outputs. uda_steps.npz: blocks of adaptation and
steps of source training: inputs in halves, weights before, losses in float64 and weights after.
"""

import copy
import pathlib

import numpy as np
import torch
import uda_torch
from torch.nn import functional

TESTS = pathlib.Path(__file__).resolve().parents[2] / "tests"
SIZES = {"width": 4, "hidden": 8, "critic": (4, 6, 1), "side": 9, "dilations": (1, 1, 1, 1, 1, 2, 4, 1)}
DOMAINS, BLOCKS, UPDATES, MOVES = ("source", "target"), 2, 3, 2
CASES = {  # generator updates, critic updates of each block, options
    "published": (1, (3, 3), {}),
    "code": (2, (3, 2), {"twice": True}),
    "code, mmd, joint": (2, (3, 2), {"twice": True, "mmd_weight": 3.0, "joint": True}),
}


def coarse(rng, shape):
    """Intensities of six values, which compress well, as int8 halves."""
    return rng.integers(-2, 4, shape).astype(np.int8)


def networks() -> dict:
    """{"kind/key": array} of the five networks, with x and y."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    made = {
        "generator": (uda_torch.Generator(4), (1, 3, 135, 133)),
        "dilated": (uda_torch.Dilated(4, 8), (1, 3, 133, 133)),
        "neck": (uda_torch.Neck(4, 8), (2, 12, 5, 5)),
        "critic": (uda_torch.Critic(12, (4, 6, 1), 11), (4, 12, 11, 11)),
        "undilated": (uda_torch.randomised(uda_torch.Undilated((2, 3, 4, 2), 4)), (2, 3, 65, 65)),
    }
    out = {}
    for kind, (network, shape) in made.items():
        out |= {f"{kind}/{key}": value.copy() for key, value in uda_torch.arrays(network).items()}
        x = coarse(rng, shape)
        if kind in ("dilated", "undilated"):
            network.eval()
        with torch.no_grad():
            y = network(torch.from_numpy(x) / 2)
        out |= {f"{kind}/x": x, f"{kind}/y": (y[0] if kind == "dilated" else y).numpy()}
    return out


class Adaptation(uda_torch.System):
    """Updates in float64 from the weights of a source network. Options add what the published losses lack: softmax `twice` and the
    discrepancy of class probabilities, as in the authors' code, and statistics of the critic over both domains (`joint`)."""

    def __init__(self, detector, *, twice: bool = False, mmd_weight: float = 0.0, joint: bool = False):
        super().__init__(tuned=False, double=True, **SIZES)
        for network in (self.generator, self.neck):
            network.load_state_dict({key: value for key, value in detector.state_dict().items() if key in network.state_dict()})
        self.twice, self.mmd_weight, self.joint, self.parts = twice, mmd_weight, joint, []

    def values(self, source, target):
        """Critic values of both domains."""
        if self.joint:
            return self.critic(torch.cat([source, target])).chunk(2)
        return self.critic(source), self.critic(target)

    def critic_loss_of(self, source, target):
        """As published."""
        source, target = self.values(source, target)
        return target.mean() - source.mean()

    def generator_loss_of(self, source, target, labels, weight):
        """As published, and what the options add; its parts are kept."""
        adapted, labelled = self.generator(target), self.generator(source)
        logits, others = (self.neck.logits(uda_torch.centre(maps)).flatten(1) for maps in (labelled, adapted))
        classes = functional.cross_entropy(logits.softmax(1) if self.twice else logits, labels)
        apart = discrepancy(logits.softmax(1), others.softmax(1))
        loss = -self.values(self.windows, adapted)[1].mean() + weight * classes + self.mmd_weight * apart
        self.parts.append(torch.stack([loss, classes, apart]).detach())
        return loss

    def block(self, pools, batches) -> dict:
        """A critic update on each pair of pools, then a generator update on each batch: {metric: value}."""
        self.windows, self.parts = self.generator(pools[0][0]).detach(), []
        gaps = [-self.critic_step(*pair).item() for pair in pools]
        for batch in batches:
            self.generator_step(*batch)
        means = torch.stack(self.parts).mean(0).tolist()
        return {"gap_fresh": gaps[0], "gap": gaps[-1]} | dict(zip(("loss_generator", "loss_classification", "mmd"), means))


def discrepancy(source, target, kernels: int = 5, factor: float = 2.0):
    """Maximum mean discrepancy between rows, Gaussian kernels, as the authors' code has it."""
    rows = torch.cat([source, target])
    squared = (rows.unsqueeze(0) - rows.unsqueeze(1)).pow(2).sum(2)
    width = squared.detach().sum() / (len(rows) * (len(rows) - 1)) / factor ** (kernels // 2)
    kernel = torch.stack([torch.exp(-squared / (width * factor**i)) for i in range(kernels)]).sum(0)
    n = len(source)
    return (kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]).mean()


def source_training(detector, x, labels, *, twice: bool) -> dict:
    """Updates of the whole network without dropout, decay on the kernels alone; changes the network."""
    detector.double().eval()
    kernels, biases = ([p for p in detector.parameters() if (p.ndim > 1) == wanted] for wanted in (True, False))
    optimiser = torch.optim.Adam([{"params": kernels, "weight_decay": 5e-5}, {"params": biases}], lr=5e-4)
    seen = []
    for pair in zip(x, labels):
        optimiser.zero_grad()
        loss = uda_torch.source_loss(detector, *pair, twice=twice)
        loss.backward()
        optimiser.step()
        seen.append(loss.item())
    return {"loss": np.array(seen)}


def steps() -> dict:
    """Two blocks of adaptation in three forms and two steps of source training in two, in float64, at small widths and dilations."""
    rng = np.random.default_rng(1)
    n = SIZES["side"] + 2 * sum(SIZES["dilations"])
    planes = {f"pool_{d}": coarse(rng, (BLOCKS, UPDATES, 2, 3, n, n)) for d in DOMAINS}
    planes |= {d: coarse(rng, (BLOCKS, MOVES, 2, 3, n, n)) for d in DOMAINS}
    labels = rng.integers(0, 7, (BLOCKS, MOVES, 2, 3, SIZES["side"], SIZES["side"])).astype(np.uint8)
    torch.manual_seed(0)
    detector = uda_torch.Dilated(SIZES["width"], SIZES["hidden"], dilations=SIZES["dilations"])
    out = planes | {"label": labels} | kept("before", {"detector": detector, "critic": Adaptation(detector).critic})
    x, y = {name: torch.from_numpy(a).double() / 2 for name, a in planes.items()}, torch.from_numpy(labels).long()
    c = SIZES["side"] // 2
    for case, (moves, updates, options) in CASES.items():
        system, seen = Adaptation(detector, **options), []
        for i, count in enumerate(updates):
            pools, batches = zip(x["pool_source"][i], x["pool_target"][i]), zip(x["source"][i], x["target"][i], y[i, :, :, 0, c, c])
            seen.append(system.block(list(pools)[:count], list(batches)[:moves]))
        out |= {f"{case}/metrics/{name}": np.array([one[name] for one in seen]) for name in seen[0]}
        out |= kept(case, {"generator": system.generator, "critic": system.critic})
    for case, twice in {"source": False, "source, softmax twice": True}.items():
        network = copy.deepcopy(detector)
        seen = source_training(network, x["source"][:, 0], y[:, 0], twice=twice)
        out |= {f"{case}/metrics/{name}": values for name, values in seen.items()} | kept(case, {"detector": network})
    return out


def kept(case: str, networks: dict) -> dict:
    """{"case/network/key": array in float32}."""
    every = [(f"{case}/{name}/{key}", value) for name, network in networks.items() for key, value in uda_torch.arrays(network).items()]
    return {key: value.astype(np.float32) for key, value in every if "running" not in key and "tracked" not in key}


if __name__ == "__main__":
    for name, arrays in (("import_torch.npz", networks()), ("uda_steps.npz", steps())):
        np.savez_compressed(TESTS / name, **arrays)
        print(f"{TESTS / name}: {(TESTS / name).stat().st_size / 1e3:.0f} kB")

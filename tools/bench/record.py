"""Record what PyTorch computes, for tests where it is not installed: `python tools/bench/record.py` writes two files in tests/.

import_torch.npz: small networks in the published key layout, inputs in halves, and their outputs. uda_steps.npz: two critic updates and one
generator update in float64: inputs in halves, weights before, losses and weights after.
"""

import pathlib

import numpy as np
import torch
import uda_torch

TESTS = pathlib.Path(__file__).resolve().parents[2] / "tests"
SIZES = {"width": 4, "hidden": 8, "critic": (4, 6, 1), "side": 9}


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


def steps() -> dict:
    """Two critic updates and one generator update in float64, at small widths."""
    system = uda_torch.System(tuned=False, double=True, **SIZES)
    rng = np.random.default_rng(1)
    source, target = coarse(rng, (2, 2, 3, 139, 139))
    labels = rng.integers(0, 7, 2)
    out = {"source": source, "target": target, "labels": labels}
    names = ("generator", "critic", "neck")
    for name in names:
        out |= {f"before/{name}/{key}": value.astype(np.float32) for key, value in uda_torch.arrays(getattr(system, name)).items()}
    pair = [system.place(x) / 2 for x in (source, target)]
    losses = [system.critic_step(*pair) for _ in range(2)] + [system.generator_step(*pair, torch.from_numpy(labels))]
    out["losses"] = torch.stack(losses).numpy()
    return out | {f"after/{name}/{key}": value for name in names[:2] for key, value in uda_torch.arrays(getattr(system, name)).items()}


if __name__ == "__main__":
    for name, arrays in (("import_torch.npz", networks()), ("uda_steps.npz", steps())):
        np.savez_compressed(TESTS / name, **arrays)
        print(f"{TESTS / name}: {(TESTS / name).stat().st_size / 1e3:.0f} kB")

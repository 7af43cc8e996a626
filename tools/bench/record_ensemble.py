"""Record what PyTorch makes of the ensemble's first steps: `python tools/bench/record_ensemble.py` writes tests/ensemble_steps.npz.

Two members of width 2 and 3 levels, three steps of two volumes, in float64: first parameters, inputs, losses, last parameters.
"""

import pathlib
import sys

import numpy as np
import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(pathlib.Path(__file__).parent)]
MEMBERS, STEPS, LEVELS, WIDTH, SHAPE, RATE = 2, 3, 3, 2, (2, 8, 8, 12), 1e-2


def main() -> None:
    """Record."""
    import jax
    import jax.numpy as jnp
    from ensemble_torch import Member, ours_of

    from cacjax.models.unet import UNet

    rng = np.random.default_rng(0)
    hu = rng.normal(60, 150, (STEPS, MEMBERS, *SHAPE)).round().astype(np.int16)
    label = (hu > 250).astype(np.uint8)
    out = {"hu": hu, "label": label}
    for m in range(MEMBERS):
        params = jax.device_get(UNet(WIDTH, LEVELS).init(jax.random.key(m), jnp.zeros((1, *SHAPE[1:], 1)))["params"])
        params = jax.tree.map(lambda a: rng.normal(a, 0.1).astype(np.float32), params)  # biases and scales that are not 0 and 1
        member = Member(params, levels=LEVELS, rate=RATE, tuned=False, dtype=torch.float64)
        placed = [(member.place((np.clip(x, -300.0, 800.0) + 300) / 1100), member.place(y)) for x, y in zip(hu[:, m], label[:, m])]
        out[f"loss/{m}"] = np.array([float(member.step(*given)) for given in placed])
        out |= {f"first/{m}/{name}": np.asarray(value) for name, value in flat(params).items()}
        last = ours_of(member.network.state_dict(), LEVELS)
        out |= {f"last/{m}/{name}": value for name, value in last.items()}
    np.savez_compressed(ROOT / "tests/ensemble_steps.npz", **out)


def flat(tree, before=""):
    """{"a/b/c": array} of a nested dict."""
    if not isinstance(tree, dict):
        return {before: tree}
    return {k: v for name, part in tree.items() for k, v in flat(part, f"{before}/{name}".strip("/")).items()}


if __name__ == "__main__":
    main()

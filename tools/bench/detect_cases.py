"""Cases of detection: the generator on planes of a scan in full, as dense evaluation does."""

import functools

import jax.numpy as jnp
import numpy as np
import torch
from race import Case, compiled
from uda_cases import Ours, agree, finish, ready, systems

SIDE = 642  # of a padded plane of 512 x 512


def cases(device: str, only: str = ""):
    """Dense planes in the three orientations."""
    if only not in "dense detection":
        return
    both = systems(device)
    ours = Ours(both[0])
    x = np.clip(np.random.default_rng(3).normal(0, 0.7, (1, 3, SIDE, SIDE)), -1, 2.5).astype(np.float32)
    there, generator = jnp.asarray(x), ours.nets["generator"].params
    program, took = compiled(ours.features, generator, there)

    def dense(system, x):
        with torch.no_grad():  # inference has no graph in the published code either
            return system.features(x)

    agree("features", np.moveaxis(np.asarray(program(generator, there)), -1, 1), dense(both[0], both[0].place(x)), 1e-4)
    works = [finish(functools.partial(dense, system, system.place(x))) for system in both]
    shape = "512x512 plane, three orientations"
    yield Case("dense detection", shape, ready(program, generator, there), *works, program, took)

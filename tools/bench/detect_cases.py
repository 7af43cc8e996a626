"""Cases of detection: the generator on planes of a scan in full, as dense evaluation does."""

import functools

import jax
import numpy as np
import torch
from race import Case, compiled
from uda_cases import Ours, agree, finish, place, planes, ready, systems

SIDE = 642  # of a padded plane of 512 x 512


def cases(options):
    """Dense planes in the three orientations."""
    if options.only not in "dense detection":
        return
    both = systems(options.device)
    ours = Ours(both[0])
    hu = planes(np.random.default_rng(3), 1, SIDE)[0]
    given = ours.generator.params, jax.device_put(hu)
    program, took = compiled(ours.features, *given)

    def dense(system, x):
        with torch.no_grad():  # inference has no graph in the published code either
            return system.features(x)

    agree("features", np.moveaxis(np.asarray(program(*given)), -1, 1), dense(both[0], place(both[0], hu)), 1e-4)
    works = [finish(functools.partial(dense, system, place(system, hu))) for system in both]
    yield Case("dense detection", "512x512 plane, three orientations", ready(program, *given), *works, program, took)

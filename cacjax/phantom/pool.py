"""Patients by what calcium they have: a share that has some, or so many of each risk category by the true mass in the coronary arteries.

Nothing is scanned to choose them, so the category of a scan, A to E, is near the one that it was drawn for, not always that one: of 160
gated scans at 3 mm, 149 lie in theirs (the true volume, which knows no density, puts 140 there).
"""

import functools

import numpy as np

from cacjax.phantom.acquisition import COHORT_OF, split
from cacjax.phantom.anatomy import sample_patient

MASS_MG = (3.0, 7.0, 40.0, 115.0)  # between A and B, B and C, .. for Agatston scores of 0, 10, 100 and 400
CALCIFIED_MM3 = 10.0  # of coronary calcium: what a patient has at least who is drawn again until there is some
AGAIN = range(0, 100_000, 5_000)  # what is added to a seed to draw its patient again
AT_ONCE = 64  # patients
LIMIT = 200  # patients looked at for each one wanted


def drawn_again(number: int, share: float) -> bool:
    """Whether patient `number` is among the `share` that shall have calcium, evenly spread over a cohort."""
    return int((number + 1) * share) > int(number * share)


def calcified_seed(seed: int, protocol: str) -> int:
    """Return the first of the seeds `seed`, `seed` + 5000, ... whose patient has at least CALCIFIED_MM3 of coronary calcium."""
    for candidate in (seed + more for more in AGAIN):
        calcium = sample_patient(candidate, COHORT_OF[split(protocol)[0]]).calcium
        if calcium["dV"][calcium["cls"] <= 3].sum() >= CALCIFIED_MM3:
            return candidate
    return seed


def category(seed: int, protocol: str) -> int:
    """The category, 0 to 4, that a patient is drawn for."""
    calcium = sample_patient(seed, COHORT_OF[split(protocol)[0]]).calcium
    coronary = calcium["cls"] <= 3
    return int(np.searchsorted(MASS_MG, float((calcium["dV"] * calcium["c"])[coronary].sum() / 1000)))


def draw(numbers, first: int, protocol: str, *, spread=map) -> list[int]:
    """The seeds, from `first` on, of the first numbers[k] patients of each category k, in ascending order.

    spread(function, seeds): how patients are looked at, such as by several processes. Raises ValueError where there are too few.
    """
    left, seeds, last = list(numbers), [], first + LIMIT * sum(numbers)
    for start in range(first, last, AT_ONCE):
        candidates = range(start, start + AT_ONCE)
        for seed, found in zip(candidates, spread(functools.partial(category, protocol=protocol), candidates)):
            if left[found]:
                left[found] -= 1
                seeds.append(seed)
        if not any(left):
            return seeds
    raise ValueError(f"patients {first} to {last} of {protocol} are too few for {list(numbers)} of the categories A to E")

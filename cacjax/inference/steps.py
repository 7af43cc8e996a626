"""Long work as a part of the caller's compiled program, or on the host step by step under a progress bar."""

import time

import jax
from jax import lax
from tqdm import tqdm


def advance(step, total, carry, *, traced: bool, every: int, unit: str, title: str):
    """What step(first, last, carry) makes of `carry` over items 0..total - 1: all in one call where `traced`, else `every` at a time
    under a bar, which shows itself after some seconds."""
    if traced:
        return step(0, total, carry)
    total = int(total)
    with tqdm(total=total, unit=unit, desc=title, disable=None, delay=5, leave=False) as progress:
        for first in range(0, total, every):
            last = min(first + every, total)
            carry = jax.block_until_ready(step(first, last, carry))
            progress.update(last - first)
    return carry


def repeat(one, count, carry, *, traced: bool):
    """carry = one(number, carry) for 0..count - 1, a loop of the program where `traced`, else one of the host."""
    if traced:
        return lax.fori_loop(0, count, one, carry)
    for number in range(int(count)):
        carry = one(number, carry)
    return carry


class Laps:
    """Seconds of the parts of long work, each once it is computed; `silent` (traced, where nothing is computed yet): none."""

    def __init__(self, *, silent: bool):
        self.silent, self.seconds, self._last = silent, {}, time.perf_counter()

    def lap(self, name, value):
        """Book the time since the last lap under `name`, once `value` is computed; returns `value`."""
        if not self.silent:
            value, now = jax.block_until_ready(value), time.perf_counter()
            self.seconds[name], self._last = round(now - self._last, 4), now
        return value

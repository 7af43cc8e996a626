"""Augmentations of samples by name.

Each is a function (sample, rng) -> sample; sample: {"hu": int16, "label": uint8 where the stream is labelled}, shapes as
`cacjax.data.sampling.sample_shapes` says.
"""

import functools

import numpy as np

from cacjax.classes import AIR_HU, OUTSIDE_HU
from cacjax.data import tones

SHIFT = 4  # voxels
NOISE_HU = 12.0  # largest standard deviation


def tone(sample: dict, rng: np.random.Generator, *, lift: bool) -> dict:
    """The sample with its tones changed as `tones.change` does it; what is marked as outside of the scan is air to it, and remains so."""
    outside = sample["hu"] == OUTSIDE_HU
    hu = np.where(outside, AIR_HU, sample["hu"])
    return sample | {"hu": whole_hu(np.where(outside, OUTSIDE_HU, tones.change(hu, rng, lift=lift)))}


def shift(sample: dict, rng: np.random.Generator) -> dict:
    """The sample moved by up to four voxels along each of its last three axes (a block's z, y, x); its last voxels are repeated, as
    they are beyond the edge of a scan."""
    moves = rng.integers(-SHIFT, SHIFT + 1, 3)

    def moved(block):
        for axis, by in zip((-3, -2, -1), moves):
            at = np.clip(np.arange(block.shape[axis]) - by, 0, block.shape[axis] - 1)
            block = block.take(at, axis)
        return block

    return {name: moved(part) for name, part in sample.items()}


def noise(sample: dict, rng: np.random.Generator) -> dict:
    """The sample with white noise of a standard deviation up to 12 HU."""
    sd = rng.uniform(0.0, NOISE_HU)
    return sample | {"hu": whole_hu(sample["hu"] + np.float32(sd) * rng.standard_normal(sample["hu"].shape, dtype=np.float32))}


def whole_hu(hu: np.ndarray) -> np.ndarray:
    """HU rounded to int16."""
    return np.clip(np.rint(hu), -32768, 32767).astype(np.int16)


AUGMENTATIONS = {
    "tone": functools.partial(tone, lift=False),
    "tone_lift": functools.partial(tone, lift=True),
    "shift": shift,
    "noise": noise,
}

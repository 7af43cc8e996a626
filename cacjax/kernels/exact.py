"""Sums of HU and of places that are exact, and so the same on every run and device.

HU are integers in units of 1/1024 HU; a sum is kept in int32 words of 7 bits and the rest, which hold up to 2^25 runs of voxels.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Float32, Int32, UInt32

from cacjax.kernels import bits
from cacjax.kernels.shapes import HU

HU_UNIT = 1.0 / 1024.0
_DIGIT = 7


def hu_of_runs(at: Int32[Array, " n"], ones: UInt32[Array, " n"], hu: HU) -> tuple[Int32[Array, " n"], Float32[Array, " n"]]:
    """Sum in units of 1/1024 HU (HU clipped to 16 bits: 32 x 2^15 x 2^10 = 2^30) and peak of each run.

    at: flat index in the packed mask of `hu` of the word that each run lies in; ones: its bits.
    """
    values, ones = bits.windows(hu, at, ones)
    values = values.astype(jnp.float32)
    on = (ones[:, None] >> jnp.arange(bits.WORD, dtype=jnp.uint32)) & 1 == 1
    fixed = jnp.round(jnp.clip(values, -32768, 32767) / HU_UNIT).astype(jnp.int32)
    return jnp.where(on, fixed, 0).sum(1, dtype=jnp.int32), jnp.where(on, values, -jnp.inf).max(1)


def digits(values: Int32[Array, "*shape"], n: int) -> list[Int32[Array, "*shape"]]:
    """A whole number as n words, n - 1 of 7 bits and the signed rest: sums of words stay in range where sums of values would not."""
    low = [(values >> (_DIGIT * i)) & ((1 << _DIGIT) - 1) for i in range(n - 1)]
    return [*low, values >> (_DIGIT * (n - 1))]


def undigits(words: Int32[ArrayLike, "*rows n"]) -> Float[ArrayLike, "*rows"]:
    """The sum that sums of `digits` stand for: float32 on the device, float64 for numpy arrays."""
    # The low words hold up to 2^25 x 127 < 2^32: as unsigned.
    library, kind = (np, np.float64) if isinstance(words, np.ndarray) else (jnp, jnp.float32)
    low, high = words[..., :-1].astype(library.uint32), words[..., -1]
    scale = np.array([float(1 << (_DIGIT * i)) for i in range(words.shape[-1])], kind)
    return (low.astype(kind) * scale[:-1]).sum(-1) + high.astype(kind) * scale[-1]

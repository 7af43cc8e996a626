"""The types of kernels hold while tests run: a wrong rank, dtype or a mismatch of axes raises at the call."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from cacjax.kernels import bits, lesions, losses, spatial

VOLUME = np.zeros((2, 3, 4), np.float32)


@pytest.mark.parametrize(
    ("kernel", "arguments"),
    [
        (lesions.label, (np.zeros((3, 4), bool),)),
        (lesions.label, (VOLUME,)),
        (lesions.find, (VOLUME > 0, VOLUME[:1], VOLUME.astype(np.uint8), (3.0, 0.5, 0.5))),
        (spatial.resample, (VOLUME[0], (3.0, 0.5, 0.5), (1.5, 0.5, 0.5))),
        (bits.popcount, (jnp.zeros(3, jnp.int32),)),
        (losses.cross_entropy, (np.zeros((2, 7), np.float32), np.zeros(3, np.uint8))),
    ],
    ids=["rank", "dtype", "axes", "rank on the host", "words", "batch"],
)
def test_a_kernel_refuses_what_its_types_exclude(kernel, arguments):
    with pytest.raises(TypeCheckError):
        kernel(*arguments)

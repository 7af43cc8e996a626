"""Types that kernels share. Tests check types at every call of a kernel (tests/conftest.py); elsewhere they are notes and cost nothing.

`ArrayLike` is a NumPy or a JAX array, `Array` one of JAX. Dimensions of one name are of one size in a call; `_` and `...` are any.
"""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Integer, Real, Shaped

Volume = Shaped[ArrayLike, "z y x"]
Mask = Bool[ArrayLike, "z y x"]
Labels = Integer[ArrayLike, "z y x"]
HU = Real[ArrayLike, "z y x"]

Scalar = Real[ArrayLike, ""]
Shape = tuple | list | Integer[np.ndarray, " 3"]  # voxels along z, y, x
Spacing = tuple | list | Real[ArrayLike, " 3"]  # mm along z, y, x

"""What all tests share: the CPU and the compiler options."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")


import cacjax  # noqa: E402, F401  (sets the compiler options before JAX starts)

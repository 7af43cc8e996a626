"""What all tests share: the CPU, eight devices, one compilation cache."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import cacjax  # noqa: E402, F401  (sets the compiler options before JAX starts)

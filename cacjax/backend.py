"""Settings of XLA that must stand before the first use of JAX. Imported by the package; starts no backend."""

import os
import pathlib

# XLA:CPU hands convolutions to a fusion that is 5 to 7 times slower than its plain library path (measured on jax 0.10.2:
# 16x155x155x32 -> 32, 3x3: 272 ms against 41 ms; the weight gradients also on 0.12). Empty means: off.
CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type="


def configure() -> None:
    """Set the CPU convolution flag and a persistent compilation cache, keeping whatever the user has set."""
    flags = os.environ.get("XLA_FLAGS", "")
    if CPU_FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {CPU_FLAG}".strip()
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "cacjax" / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

"""Settings that must stand before the first use of JAX. Imported by the package; starts no backend."""

import contextlib
import ctypes
import os
import pathlib
import sys
import time

BEGAN = time.perf_counter()  # of cacjax in this process
# XLA:CPU hands convolutions to a fusion that is 5 to 7 times slower than its plain library path (measured on jax 0.10.2:
# 16x155x155x32 -> 32, 3x3: 272 ms against 41 ms; the weight gradients also on 0.12). Empty means: off.
CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type="
# Options of programs that train, by platform. XLA:CPU takes barriers away before it looks for what is computed twice, and so undoes
# `jax.checkpoint`: a gradient through six blocks of six products kept 36 matrices with it as without; with the barriers it keeps 11.
TRAINING = {"cpu": {"xla_disable_hlo_passes": "cse_barrier_expander"}}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX, NEVER = -1, -3, -8, -1  # of glibc's malloc.h


def configure() -> None:
    """Set the CPU convolution flag, a persistent compilation cache and the allocator, keeping whatever the user has set."""
    flags = os.environ.get("XLA_FLAGS", "")
    if CPU_FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {CPU_FLAG}".strip()
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "cacjax" / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        keep_freed_memory()


def seconds_so_far() -> dict:
    """Wall-clock seconds of this process: "start", up to the first line of cacjax (on Linux), and "import", from there to now."""
    spent = {"import": time.perf_counter() - BEGAN}
    with contextlib.suppress(OSError, ValueError, IndexError):  # of the file: ticks from the machine's start to the process'
        ticks = int(pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        spent = {"start": max(BEGAN - ticks / os.sysconf("SC_CLK_TCK"), 0.0)} | spent
    return {stage: round(seconds, 4) for stage, seconds in spent.items()}


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks. XLA:CPU allocates its work memory anew at every step; giving it back to the kernel each time costs
    a page fault per 4 KiB (a generator update at published width: 284,000 faults and 3.7 s; none and 3.0 s). Two arenas for all
    threads. Only the first can keep a block above 64 MiB, and with many arenas the thread that runs programs gets another (labelling
    512x512x256: 2,530 faults and 9.3 ms; with one or two 300 to 500 and 6 to 7.5 ms). Not one: what a compilation leaves in it makes
    every thread wait for it (detection in the process that compiled it, a third of a scan's voxels: 7.5 s; with two 4.8, without a
    limit 4.2)."""
    with contextlib.suppress(AttributeError, OSError):  # another C library: nothing to set
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, NEVER)
        library.mallopt(M_TRIM_THRESHOLD, NEVER)
        library.mallopt(M_ARENA_MAX, 2)

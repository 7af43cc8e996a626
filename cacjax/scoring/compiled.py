"""Compiled programs, kept in the process and on disk: a second process traces and compiles nothing.

JAX's own cache saves the compilation alone: to find what it holds a process must first trace everything anew, which takes as long as
many a scan. Here a program is found by what decides it: sources of cacjax, settings of the system, shapes, versions, machine. What is
kept is the executable, as in JAX's cache, and not its StableHLO (`jax.export`), which would still have to be read, lowered and looked
up there. A file that is damaged or of something else is ignored and written anew; one that is whole is trusted as those of JAX's cache are.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import pathlib
import pickle
import platform
import time

import jax
import jaxlib
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from cacjax.files.atomic import replace

FOLDER = "CACJAX_PROGRAMS"  # environment variable: where programs are kept; empty: nowhere
MOST = 64  # programs in the folder; those that were used longest ago go first
_ready = {}


def call(function, *arguments, static=(), decided_by=None):
    """(function(*arguments), {"load" or "trace" and "compile": seconds} of what had to be done for it).

    function: jitted, of a module of cacjax. static: places of its static arguments. decided_by: text that says all that these decide;
    None where it cannot be told: then the program is not kept.
    """
    if decided_by is None:
        return function(*arguments), {}
    given = tuple(argument for place, argument in enumerate(arguments) if place not in static)
    leaves, structure = jax.tree.flatten(given)
    kinds = [(jax.numpy.shape(leaf), str(jax.numpy.result_type(leaf)), getattr(leaf, "weak_type", False)) for leaf in leaves]
    key = "\n".join((function.__module__, function.__qualname__, decided_by, str(structure), str(kinds)))
    seconds = {}
    if key not in _ready:
        _ready[key], seconds = _find(key, function, arguments)
    return _ready[key](*given), seconds


def forget():
    """Let go of the programs that the process holds."""
    _ready.clear()


def _find(key, function, arguments):
    """(the program, seconds), from its file or made and written to it."""
    began, path = time.perf_counter(), _path(key)
    with contextlib.nullcontext() if path is None else _alone(path):
        if program := path and _read(path, key):
            return program, {"load": _since(began)}
        began = time.perf_counter()
        lowered = function.lower(*arguments)
        trace, began = _since(began), time.perf_counter()
        with contextlib.nullcontext() if path is None else _no_cache():
            program = lowered.compile()
        if path:
            _write(path, key, program)
    return program, {"trace": trace, "compile": _since(began)}


@contextlib.contextmanager
def _alone(path):
    """Of processes that want a program at once one makes it and the others wait and load it; without locks of files each makes it."""
    lock = path.with_name(f".{path.name}.lock")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(lock.open("w")), fcntl.LOCK_EX)
            stack.callback(lock.unlink, missing_ok=True)
        yield


@contextlib.contextmanager
def _no_cache():
    """Without JAX's cache: what comes out of it for a CPU cannot be kept, it has lost functions that a second process calls."""
    used = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # else it goes on as it began
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", used)
        compilation_cache.reset_cache()


def _since(began):
    return round(time.perf_counter() - began, 4)


def _path(key):
    """The file of a program, or None where programs are not kept."""
    default = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "cacjax" / "programs"
    folder = os.environ.get(FOLDER, str(default))
    return pathlib.Path(folder) / hashlib.sha256(f"{_here()}\n{key}".encode()).hexdigest() if folder else None


@functools.cache
def _here():
    """All that decides a program beside what it is made of: sources, versions, options and the machine."""
    sources = hashlib.sha256()
    package = pathlib.Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        sources.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    devices = [(device.platform, device.device_kind, device.id) for device in jax.local_devices()]
    options = sorted((name, str(value)) for name, value in getattr(jax.config, "values", {}).items() if "cache" not in name)
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    about = jax.__version__, jaxlib.__version__, jax.devices()[0].client.platform_version, platform.python_version()
    return "\n".join(map(str, (sources.hexdigest(), *about, devices, options, flags, _processor())))


def _processor():
    """What instructions the processor has: programs for a CPU hold those of the one that they were made on."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor(), platform.machine(), platform.node()
    return sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})


def _read(path, key):
    """The program in a file, or None where it holds none that is whole and of this key."""
    try:
        content = path.read_bytes()
        digest, body = content[:32], content[32:]
        if hashlib.sha256(body).digest() != digest:
            return None
        told, parts = pickle.loads(body)
        program = serialize_executable.deserialize_and_load(*parts) if told == key else None
        os.utime(path)
    except Exception:  # whatever is wrong with it: it is made anew
        return None
    return program


def _write(path, key, program):
    """Keep a program; where that fails, as on a full disk, it is not kept."""
    try:
        body = pickle.dumps((key, serialize_executable.serialize(program)))
        replace(path, lambda aside: aside.write_bytes(hashlib.sha256(body).digest() + body))
        kept = sorted(path.parent.glob("[0-9a-f]*"), key=lambda each: each.stat().st_mtime)
        for each in kept[:-MOST]:
            each.unlink(missing_ok=True)
    except Exception:
        return

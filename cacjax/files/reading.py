"""Scans found and read in processes of their own: a file that crashes, hangs or floods its reader costs one scan, not the batch.

    with Readers() as readers:
        sources = readers.find("folder/of/scans")
        for reading in readers.read((source, {}) for source in sources):    # the next is read while this one is used
            ...                                                             # Reading, or ScanError

A reader imports no JAX. Its address space is limited by the kernel, its time by whoever waits for it; one that ended is started anew.
Voxels come back in anonymous shared memory, which the kernel frees with its last user, however that ends. Arrays are [z, y, x].
"""

import collections
import contextlib
import ctypes
import errno
import mmap
import os
import pathlib
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import NamedTuple

import numpy as np

from cacjax.files import scan
from cacjax.files.geometry import Scan, ScanError, refuse

SECONDS = 300  # for the headers of one scan, and for its voxels
# Memory beyond what an idle reader has (0.15 GB), bytes: int16 voxels, read, converted and shared, are held 6 times over; a scan's gzip
# is rarely below a tenth of them. What is small on disk and large in memory is more likely a bomb.
LEAST_BYTES, BYTES_PER_BYTE = 700 << 20, 40
SCAN, LISTING = "cacjax.files.scan", ("os.listdir", "os.scandir")
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
THREADS = ("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
# Freed blocks from 32 MiB go back to the kernel, and more than 128 MiB of smaller ones: a large scan leaves room for the next.
MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 27)}


class Reading(NamedTuple):
    """A Scan; {name: int16 mask on its grid, or None}; the seconds that reading took and that were spent waiting for it."""

    scan: Scan
    masks: dict
    seconds: float
    waited_s: float


class ReaderError(RuntimeError):
    """No reader process can be started."""


class Readers:
    """`count` reader processes, ended with the `with`. seconds: time limit of the headers, and of the voxels, of a scan; megabytes: memory
    limit of a scan, None for one that follows from the size of its files."""

    def __init__(self, count=1, *, seconds=SECONDS, megabytes=None):
        self._folder = tempfile.TemporaryDirectory(prefix="cacjax-")
        self._readers = [_Reader(seconds, megabytes and megabytes << 20, self._folder.name) for _ in range(count)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for reader in self._readers:
            reader.end()
        self._folder.cleanup()

    def find(self, path, *, series=None):
        """Sources of the scans at one path, as `scan.find` has them; what a reader does not survive is a Source with its ScanError."""
        reader, lost = self._readers[0], {}
        while True:
            reader.ask("find", os.fspath(path), series, lost)
            answer = reader.answer(path)
            if not isinstance(answer, ScanError):
                return answer
            if reader.at is None or reader.at in lost:
                return scan.named([scan.Source("", os.fspath(path), None, answer)])
            lost[reader.at] = answer

    def read(self, requests):
        """A Reading or a ScanError for each (Source, {name: path of a mask or None}), in order, while the next ones are being read."""
        requests, idle, waiting = iter(requests), collections.deque(self._readers), collections.deque()

        def fill():
            while idle and (request := next(requests, None)):
                reader = idle.popleft()
                reader.ask("read", *request)
                waiting.append((reader, request[0].path))

        fill()
        while waiting:
            reader, path = waiting.popleft()
            began = time.perf_counter()
            answer = reader.answer(path)
            waited_s = time.perf_counter() - began
            idle.append(reader)
            fill()
            yield answer if isinstance(answer, ScanError) else answer._replace(waited_s=waited_s)


class _Reader:
    """This end of a reader process. at: the path that it was at last while it looked for scans."""

    def __init__(self, seconds, memory, folder):
        self.seconds, self.memory, self.folder, self.at = seconds, memory, folder, None
        self._start()

    def _start(self):
        ours, theirs = socket.socketpair()
        here = str(pathlib.Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
        program = f"from cacjax.files import reading; reading.serve({theirs.fileno()}, {os.getpid()})"
        environment = os.environ | MALLOC | dict.fromkeys(THREADS, "1") | {"PYTHONPATH": paths, "TMPDIR": self.folder}
        # A process group of its own: Ctrl-C is for the one that waits.
        options = {"pass_fds": [theirs.fileno()], "env": environment, "stdin": subprocess.DEVNULL, "process_group": 0}
        self._process = subprocess.Popen([sys.executable, "-P", "-c", program], **options)
        theirs.close()
        self._connection, self._ready = Connection(ours.detach()), False

    def ask(self, task, *arguments):
        """Send a request, of which there is one at a time."""
        if self._process.poll() is not None:
            self.end()
            self._start()
        self.at, self._since = None, time.monotonic()
        with contextlib.suppress(ConnectionError):  # `answer` tells
            self._connection.send((task, self.memory, *arguments))

    def answer(self, path):
        """What was asked for, or the ScanError of a reader that ended over it. Raises ReaderError where no reader can start."""
        while self._hears(max(0.0, self._since + self.seconds - time.monotonic())):
            message = self._received()
            if message is None:
                return self._crashed(self.at or path)
            if not isinstance(message, str):
                return message
            self.at, self._ready, self._since = message or None, True, time.monotonic()
        self.end()
        advice = "Check the file and the disk that it is on, or raise --reader-seconds."
        return refuse("reader_timeout", self.at or path, f"reading took over {self.seconds:g} s", "less", advice)

    def _crashed(self, path):
        code = self.end()
        found = f"its reader process was ended by {signal.Signals(-code).name}" if code < 0 else f"its reader process ended with {code}"
        if not self._ready:
            raise ReaderError(f"no process to read scans can be started: {found}")
        return refuse("reader_crashed", path, found, "a file that the image library survives", "Check the file, or export the scan again.")

    def _hears(self, seconds):
        try:
            return self._connection.poll(seconds)
        except OSError:
            return True

    def _received(self):
        """The next message; None where the process has ended."""
        try:
            message = self._connection.recv()
            if not isinstance(message, Reading):
                return message
            hu = self._array(*message.scan.hu)
            masks = {name: described and self._array(*described) for name, described in message.masks.items()}
            return message._replace(scan=message.scan._replace(hu=hu), masks=masks)
        except (EOFError, OSError):
            return None

    def _array(self, shape, dtype):
        file = recv_handle(self._connection)
        try:
            return _mapped(file, shape, dtype)
        finally:
            os.close(file)

    def end(self):
        """Kill the process; its exit code."""
        self._connection.close()
        self._process.kill()
        return self._process.wait()


def serve(socket_fd, parent):
    """The life of a reader process: answer what comes in at a socket until its other end closes, or the process `parent` ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    connection = Connection(socket_fd)
    watch = _Watch(connection)
    sys.addaudithook(watch)
    with contextlib.suppress(EOFError, ConnectionError):
        connection.send("")
        while True:
            task, memory, *arguments = connection.recv()
            if task == "find":
                _find(watch, memory, *arguments)
            else:
                _read(connection, memory, *arguments)


class _Watch:
    """An audit hook that tells of every scan and folder that is begun below `root`, and passes over those that ended a reader, `lost`."""

    def __init__(self, connection):
        self.connection, self.root, self.lost = connection, None, {}

    def __call__(self, event, arguments):
        if self.root is None or not (event == SCAN or (event in LISTING and self._within(arguments[0]))):
            return
        path = os.fspath(arguments[0])
        if path in self.lost:
            raise self.lost[path] if event == SCAN else OSError(errno.EIO, self.lost[path].message)
        self.connection.send(path)

    def _within(self, listed):
        return isinstance(listed, str | os.PathLike) and os.path.abspath(listed).startswith(self.root)


def _find(watch, memory, path, series, lost):
    _limit(memory or LEAST_BYTES)
    watch.root, watch.lost = os.path.abspath(path), lost
    try:
        found = scan.find([path], series=series)
    except Exception as error:
        found = scan.named([scan.Source("", path, None, _unforeseen(error, path))])
    watch.root = None
    watch.connection.send(found)


def _read(connection, memory, source, masks):
    began, files = time.perf_counter(), []
    try:
        _limit(memory or max(LEAST_BYTES, BYTES_PER_BYTE * _size(source.path)))
        image = scan.read(source)
        image, shapes = image._replace(hu=_share(image.hu, files)), {}
        for name, path in masks.items():
            shapes[name] = None if path is None else _described(_share(scan.read_mask(path, image), files))
        shared = image._replace(hu=_described(image.hu))
        connection.send(Reading(shared, shapes, time.perf_counter() - began, 0.0))
        for file in files:
            send_handle(connection, file, None)
    except ScanError as error:
        connection.send(_told(error))
    except Exception as error:
        connection.send(_told(_unforeseen(error, source.path)))
    finally:
        for file in files:
            os.close(file)


def _unforeseen(error, path):
    found = f"{type(error).__name__}: {error}"
    return refuse("unreadable", path, found, "a scan", "Check its permissions, or export the scan again.")


def _told(error):
    """A ScanError, with a code of its own where memory was wanting."""
    if re.search("MemoryError|bad_alloc|allocate (memory|array)|Unable to allocate", error.message):
        return ScanError("reader_memory", f"{error.message} Reading needed more memory than it may have; --reader-mb allows more.")
    return error


def _size(path):
    """Bytes of a file, or of the files of a folder; 0 where that is not known."""
    try:
        with os.scandir(path) if os.path.isdir(path) else contextlib.nullcontext([pathlib.Path(path)]) as entries:
            return sum(entry.stat().st_size for entry in entries if entry.is_file())
    except OSError:
        return 0


def _limit(memory):
    """Let the address space of this process grow by so many bytes, no more."""
    with contextlib.suppress(OSError, ValueError):  # no /proc, or limited further from outside
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * mmap.PAGESIZE + memory, most))


def _share(array, files):
    """The array in shared memory, its file appended to `files`."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("scan")
    else:
        with tempfile.TemporaryFile() as opened:
            file = os.dup(opened.fileno())
    files.append(file)
    os.ftruncate(file, array.nbytes)
    shared = _mapped(file, array.shape, array.dtype)
    np.copyto(shared, array)
    return shared


def _mapped(file, shape, dtype):
    """The array in a file's memory, all its pages there at once where the system can: one by one they cost more than the voxels."""
    flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
    return np.frombuffer(mmap.mmap(file, 0, flags=flags), dtype).reshape(shape)


def _described(array):
    return array.shape, array.dtype.str

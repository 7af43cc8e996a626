"""Files that are whole or not there, whoever reads them meanwhile; and a folder that one process at a time writes to."""

import contextlib
import errno
import fcntl
import os
import pathlib
import re

LOCK = ".lock"
UNLOCKABLE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # file systems without locks


class FolderInUse(OSError):
    """Another process writes to a folder."""


def replace(path, write):
    """Call `write(temporary path)`, then rename the result to `path`: a reader never sees half a file. Makes the folder."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def owned(folder):
    """A folder, made if need be, that no other process may own meanwhile; half-written files of processes that were killed are removed.

    The lock is the kernel's and ends with the process, however that ends. Raises FolderInUse where another process holds it, OSError
    where the folder cannot be made or written to.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = _locked(folder)
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        for entry in folder.iterdir():
            if (match := re.fullmatch(r"\.(\d+)\..+", entry.name)) and not _runs(int(match[1])):
                entry.unlink(missing_ok=True)
        yield folder
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
        os.close(lock)


def _locked(folder):
    """File descriptor of the folder's lock file, locked."""
    while True:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode().strip()
            os.close(lock)
            raise FolderInUse(errno.EBUSY, f"process {holder or 'unknown'} is writing to it") from None
        except OSError as error:
            if error.errno not in UNLOCKABLE:
                os.close(lock)
                raise
        with contextlib.suppress(FileNotFoundError):  # the last owner may have removed the file between the two calls
            if os.path.samestat(os.fstat(lock), os.stat(folder / LOCK)):
                return lock
        os.close(lock)


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True

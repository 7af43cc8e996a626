"""Regular files only: what a path is gets told before it is opened, for a pipe waits for ever and a device has no end."""

import contextlib
import os
import stat

from cacjax.files.geometry import refuse

KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def size_of(path):
    """Bytes of a regular file. Raises ScanError `not_found` where nothing is, `unreadable` for all else that is no such file."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        link = "a symbolic link to nothing" if os.path.islink(path) else "nothing is there"
        raise refuse("not_found", path, link, "a file or folder", "Check the path.") from None
    except (OSError, ValueError) as error:  # no permission, links in a circle, a name too long, a null character
        raise unreadable(path, error) from None
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "a special file")
        raise refuse("unreadable", path, kind, "a regular file", "Give the file itself, copied to a disk.")
    return found.st_size


def unreadable(path, error):
    """The ScanError for an OSError, or another error of opening and reading."""
    found = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return refuse("unreadable", path, found, "a file that can be read", "Check its permissions and links, or copy it again.")


@contextlib.contextmanager
def opened(path):
    """A regular file open for reading bytes. Raises ScanError as `size_of` does, `unreadable` for an OSError while it is read."""
    size_of(path)
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise unreadable(path, error) from None

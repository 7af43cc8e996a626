"""Files that are whole or not there, whoever reads them meanwhile."""

import os
import pathlib


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

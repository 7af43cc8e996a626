"""Prepared cohorts: the digital phantom and a folder of scans, as array_record files read with random access.

`open` prepares a cohort when its settings are new (or its input changed) and returns {split: source of records}.
"""

import contextlib
import fcntl
import hashlib
import importlib
import io
import json
import multiprocessing
import os
import pathlib
import shutil

import absl.logging

from cacjax.data import folds

KINDS = {"phantom": "cacjax.data.phantom", "folder": "cacjax.data.folder"}


def open(config, *, progress: bool = True) -> dict:
    """Return {split: random-access source of records} of the cohort that `config` describes, preparing it if needed.

    config: a mapping with the keys kind ("phantom" or "folder"), directory (of prepared data; "" means CACJAX_DATA_DIR,
    else ~/.cache/cacjax/datasets), workers (processes; 0: none), those that the kind reads, and those of cacjax.data.folds; or one
    that holds such a mapping as "data". Records are described in cacjax.data.records. An interrupted preparation leaves nothing
    that counts as prepared; two processes that ask at once prepare once. Raises ValueError for unusable settings, RuntimeError in
    a script without a `__main__` guard, which the processes that make scans would run again.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # importing the main module, as multiprocessing itself asks
        raise RuntimeError("a script that opens a cohort needs its work under `if __name__ == '__main__':`: new processes import it")
    data = config.get("data", config)
    if data["kind"] not in KINDS:
        raise ValueError(f"data.kind must be one of {', '.join(KINDS)}, got {data['kind']!r}")
    folds.check(data)
    module = importlib.import_module(KINDS[data["kind"]])
    settings = module.settings(data)
    root = data_directory(data["directory"])
    options = {"name": digest(settings), "root": root, "workers": int(data["workers"]), "progress": progress}
    with _quiet():
        prepare(module.make_builder(settings, **options))
        builder = module.make_builder(settings, **options)  # one that has met the files, whoever wrote them
        sources = dict(builder.as_data_source())
    module.remind(builder)
    return folds.divide(sources, data, builder.data_path.parent / folds.FILE, progress=progress) if data["folds"] else sources


def data_directory(given: str = "") -> pathlib.Path:
    """Return where prepared data lie: `given`, else CACJAX_DATA_DIR, else ~/.cache/cacjax/datasets."""
    default = pathlib.Path.home() / ".cache" / "cacjax" / "datasets"
    return pathlib.Path(given or os.environ.get("CACJAX_DATA_DIR") or default).expanduser().absolute()


def digest(settings: dict) -> str:
    """Return the name of a cohort: twelve digits that follow from everything that shapes its records."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def prepare(builder) -> None:
    """Write the builder's records unless they are there: into a folder of its own that is renamed when complete."""
    import tensorflow_datasets as tfds

    folder = builder.data_path.parent
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        if builder.is_prepared():
            return
        for left in folder.glob("*incomplete*"):  # of a preparation that was killed
            shutil.rmtree(left)
        tfds.disable_progress_bar()  # ours shows scans, with the time left
        builder.download_and_prepare(
            file_format="array_record",
            download_dir=folder / "downloads",  # stays empty
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
        shutil.rmtree(folder / "downloads", ignore_errors=True)


@contextlib.contextmanager
def _quiet():
    """Keep tensorflow-datasets from talking about downloads and custom configurations; errors still come through."""
    before = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.logging.set_verbosity(before)


@contextlib.contextmanager
def _locked(path):
    """Hold a lock between processes; the system lets go of it when a process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

"""What all tests share: the CPU, the compiler options, checked types of kernels; small configs and records for tests of training."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["CACJAX_PROGRAMS"] = ""  # of programs that other tests have patched nothing is kept

import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

import cacjax  # noqa: F401  (sets the compiler options before JAX starts)

jaxtyping.install_import_hook("cacjax.kernels", "beartype.beartype")  # before any of them is imported
sys.path.insert(0, str(Path(__file__).parent.parent))


@pytest.fixture(scope="module", autouse=True)
def free_programs():
    """Let go of the compiled programs of a file's tests: each takes memory maps, of which Linux grants a process 65,530, fewer than all
    tests together would need."""
    import jax  # not before cacjax, which sets what JAX reads when it is imported

    from cacjax.scoring import compiled

    yield
    jax.clear_caches()
    compiled.forget()


@pytest.fixture
def any_heart(monkeypatch):
    """Whatever a heart network finds is a heart."""
    from cacjax.kernels import anatomy

    monkeypatch.setattr(anatomy, "contradictions", lambda *found, **how: [])


def small_record(seed: int, *, shape=(6, 20, 24)) -> dict:
    """A training record with a bright block of calcium in a grey heart."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(40, 20, shape).astype(np.int16)
    label, heart = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    z, y, x = (int(rng.integers(1, side - 3)) for side in shape)
    label[z : z + 2, y : y + 2, x : x + 3] = 1 + seed % 3
    hu[0, :3, :3] = 300  # bone
    hu[label > 0] = 400
    heart[1:-1, 3:-3, 3:-3] = 1
    identity = {"id": f"scan{seed}", "domain": "source", "protocol": "cardiac", "spacing_mm": np.array([1.5, 0.66, 0.66])}
    return identity | {"hu": hu, "label": label, "heart": heart, "affine": np.eye(4), "threshold_hu": 130.0, "aorta_hu": 45.0}


@pytest.fixture
def records(monkeypatch):
    """Replace the datasets of every config by a few small records; returns them by split."""
    from cacjax.data import cohorts

    splits = {"source_train": [small_record(i) for i in range(3)], "target_train": [small_record(9 + i) for i in range(2)]}
    monkeypatch.setattr(cohorts, "open", lambda config: splits)
    return splits


def shrink(config, *, steps: int = 4, batch: int = 2):
    """The real config of a system with widths, patches and batches that compile and run in seconds."""
    with config.unlocked():
        config.steps, config.log_every, config.checkpoint_every = steps, 1, 2
        small = {"width": 2, "dilations": (1, 2), "hidden": 4, "widths": (2, 2, 2, 2)}
        config.model.update({k: v for k, v in small.items() if k in config.model})
        for stream in config.streams.values():
            stream.patch = min(stream.patch, 9)
            stream.jitter_px = min(stream.jitter_px, 1)
            stream.count = (*stream.count[:-1][:0], 2, batch) if len(stream.count) == 2 else (batch,)
            stream.scans_in_memory = min(stream.scans_in_memory, 2)
        config.data.loader.threads = 1
        if "critic" in config:
            config.critic.update({"channels": (2, 1), "window": 9, "updates": 2, "batch": batch})
            config.generator.updates = min(config.generator.updates, 2)
            config.pretrain_blocks = 1
        for stage in config.stages.values():
            shrink(stage, steps=2, batch=batch)
    return config


def example_of(config):
    """Shapes of a batch of a config."""
    from cacjax.task import build
    from cacjax.training.streams import example_batch, streams_of

    return example_batch(streams_of(config.streams, build(config)))


def begin(config, seed: int = 0):
    """The State before the first step, upon stages that have not learned anything either."""
    import jax

    from cacjax.task import build

    stages = {name: begin(stage, seed + 1) for name, stage in config.stages.items()}
    return build(config).init(jax.random.key(seed), example_of(config), stages)


def stand_in(predict, spacing_mm, **scoring):
    """A run that stands in for a trained one: predict(hu, wanted) -> (label, P(coronary calcium)) on a grid of this spacing."""
    from ml_collections import ConfigDict

    from cacjax.inference import candidates
    from cacjax.task import Task
    from cacjax.training.workdir import Run
    from configs import lessmann

    config = ConfigDict({"task": "lessmann", "data": {"grid": {"kind": "spline", "spacing_mm": spacing_mm}}})
    config.scoring = lessmann.get_config().scoring.copy_and_resolve_references().unlock()
    config.scoring.update(scoring)
    detector = candidates.detector(config, lambda state, hu, wanted, **_: predict(hu, wanted))
    return Run(config, Task(None, None, None, detector=detector), ())


def stand_in_heart(predict, spacing_mm, classes: int = 8):
    """A run that stands in for a heart network: predict(hu) -> probabilities [classes, z, y, x] on a grid of this spacing."""
    from ml_collections import ConfigDict

    from cacjax.inference import structures
    from cacjax.task import Task
    from cacjax.training.workdir import Run

    config = ConfigDict({"task": "heart", "data": {"grid": {"kind": "linear", "spacing_mm": spacing_mm}}, "model": {"classes": classes}})
    return Run(config, Task(None, None, None, segment=structures.segmenter(config, lambda state, hu: predict(hu))), ())
